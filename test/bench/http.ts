// HTTP/1.1 by hand, on sockets: several times cheaper than `fetch` and `node:http`, so that it is not what is measured.
// It understands what servers of MCP send on loopback, nothing else.
import { connect, createServer, type Socket } from 'node:net'

const END_OF_HEAD = '\r\n\r\n'
const END_OF_LINE = Buffer.from('\r\n')
/** Milliseconds after which a server may be about to close an idle connection. */
const FRESH = 2_000

/** The start line and the headers of one message. */
export class Head {
  readonly #text: string
  readonly #lower: string

  constructor(text: string) {
    this.#text = text
    this.#lower = text.toLowerCase()
  }

  /** Of its start line: METHOD PATH VERSION, or VERSION STATUS REASON. */
  word(index: number): string {
    return this.#text.slice(0, this.#text.indexOf('\r')).split(' ')[index] ?? ''
  }

  /** A header, named in lower case. */
  get(name: string): string | undefined {
    const at = this.#lower.indexOf(`\r\n${name}:`)
    if (at < 0) return undefined
    const start = at + name.length + 3
    const end = this.#text.indexOf('\r', start)
    return this.#text.slice(start, end < 0 ? undefined : end).trim()
  }
}

interface Body {
  data(chunk: Buffer): void
  end(): void
}

/** Takes messages out of what comes on a socket. */
class Parser {
  readonly #begin: (head: Head) => Body
  #rest: Buffer | undefined
  #body: Body | undefined
  /** What comes next, and for a part of a body, how many bytes of it. */
  #next: 'head' | 'size' | 'chunk' | 'whole' | 'after' | 'last' = 'head'
  #left = 0

  constructor(begin: (head: Head) => Body) {
    this.#begin = begin
  }

  push(chunk: Buffer): void {
    let bytes: Buffer | undefined = this.#rest ? Buffer.concat([this.#rest, chunk]) : chunk
    this.#rest = undefined
    while (bytes.length > 0) {
      const after = this.#step(bytes)
      if (after === undefined) {
        this.#rest = bytes
        return
      }
      bytes = bytes.subarray(after)
    }
  }

  /** How many bytes were used; undefined where more have to come first. */
  #step(bytes: Buffer): number | undefined {
    if (this.#next === 'head') return this.#head(bytes)
    if (this.#next === 'size') return this.#size(bytes)
    if (this.#next === 'chunk' || this.#next === 'whole') return this.#part(bytes)
    if (bytes.length < 2) return undefined
    if (this.#next === 'last') this.#end()
    else this.#next = 'size'
    return 2
  }

  #head(bytes: Buffer): number | undefined {
    const end = bytes.indexOf(END_OF_HEAD)
    if (end < 0) return undefined
    const head = new Head(bytes.toString('latin1', 0, end))
    this.#body = this.#begin(head)
    this.#left = Number(head.get('content-length') ?? 0)
    if (head.get('transfer-encoding') === 'chunked') this.#next = 'size'
    else if (this.#left > 0) this.#next = 'whole'
    else this.#end()
    return end + END_OF_HEAD.length
  }

  #size(bytes: Buffer): number | undefined {
    const end = bytes.indexOf(END_OF_LINE)
    if (end < 0) return undefined
    this.#left = Number.parseInt(bytes.toString('latin1', 0, end), 16)
    if (Number.isNaN(this.#left)) throw new Error('a chunk without a size')
    this.#next = this.#left > 0 ? 'chunk' : 'last'
    return end + END_OF_LINE.length
  }

  #part(bytes: Buffer): number {
    const part = bytes.subarray(0, this.#left)
    this.#left -= part.length
    this.#body!.data(part)
    if (this.#left === 0 && this.#next === 'whole') this.#end()
    else if (this.#left === 0) this.#next = 'after'
    return part.length
  }

  #end(): void {
    this.#next = 'head'
    this.#body!.end()
  }
}

export interface Answer {
  head?(status: number, head: Head): void
  data(chunk: Buffer): void
  end(): void
  error(error: Error): void
}

/** One connection of a client, with one request on it at a time. */
class Connection {
  readonly socket: Socket
  readonly #released: (connection: Connection) => void
  #answer: Answer | undefined
  #isClosing = false
  idleSince = 0

  constructor(port: number, released: (connection: Connection) => void) {
    this.#released = released
    this.socket = connect({ host: '127.0.0.1', port, noDelay: true })
    const parser = new Parser((head) => this.#begin(head))
    this.socket.on('data', (chunk) => {
      try {
        parser.push(chunk)
      } catch (error) {
        this.socket.destroy(error as Error)
      }
    })
    this.socket.on('error', () => {})
    this.socket.on('close', () => this.#answer?.error(new Error('the connection was closed')))
  }

  get isUsable(): boolean {
    return !this.socket.destroyed && Date.now() - this.idleSince < FRESH
  }

  send(head: Buffer, body: Buffer | undefined, answer: Answer): void {
    this.#answer = answer
    this.socket.cork()
    this.socket.write(head)
    if (body) this.socket.write(body)
    this.socket.uncork()
  }

  #begin(head: Head): Body {
    const answer = this.#answer
    if (!answer) throw new Error('an answer that nobody asked for')
    this.#isClosing = head.get('connection') === 'close'
    answer.head?.(Number(head.word(1)), head)
    return { data: (chunk) => answer.data(chunk), end: () => this.#end(answer) }
  }

  #end(answer: Answer): void {
    this.#answer = undefined
    this.idleSince = Date.now()
    if (this.#isClosing) this.socket.destroy()
    else this.#released(this)
    answer.end()
  }
}

/** The connections of one client to one port of this machine. */
export class Client {
  readonly port: number
  readonly #idle: Connection[] = []
  readonly #all = new Set<Connection>()

  constructor(port: number) {
    this.port = port
  }

  send(method: string, path: string, headers: string, body: Buffer | undefined, answer: Answer): void {
    const length = body ? `content-type: application/json\r\ncontent-length: ${body.length}\r\n` : ''
    const accept = 'accept: application/json, text/event-stream\r\n'
    const head = `${method} ${path} HTTP/1.1\r\nhost: 127.0.0.1:${this.port}\r\n${accept}${length}${headers}\r\n`
    this.#connection().send(Buffer.from(head, 'latin1'), body, answer)
  }

  #connection(): Connection {
    for (let idle = this.#idle.pop(); idle; idle = this.#idle.pop()) {
      if (idle.isUsable) return idle
      idle.socket.destroy()
    }
    const connection = new Connection(this.port, (it) => this.#idle.push(it))
    this.#all.add(connection)
    connection.socket.on('close', () => this.#all.delete(connection))
    return connection
  }

  close(): void {
    for (const { socket } of this.#all) socket.removeAllListeners('close').destroy()
  }
}

/** One request at a time of each connection. */
export function serve(port: number, take: (head: Head, body: Buffer, socket: Socket) => void): void {
  const server = createServer({ noDelay: true }, (socket) => {
    const parser = new Parser((head) => {
      const parts: Buffer[] = []
      const end = () => take(head, parts.length === 1 ? parts[0]! : Buffer.concat(parts), socket)
      return { data: (chunk) => parts.push(chunk), end }
    })
    socket.on('data', (chunk) => parser.push(chunk))
    socket.on('error', () => socket.destroy())
  })
  server.listen(port, '127.0.0.1')
}

export function respond(socket: Socket, status: number, headers: string, parts: readonly Buffer[] = []): void {
  const length = parts.reduce((sum, part) => sum + part.length, 0)
  const head = Buffer.from(`HTTP/1.1 ${status} OK\r\ncontent-length: ${length}\r\n${headers}\r\n`, 'latin1')
  socket.write(Buffer.concat([head, ...parts]))
}

/** Begins an answer that does not end. */
export function stream(socket: Socket, headers = ''): void {
  socket.write(`HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n${headers}\r\n`)
}

export function chunk(socket: Socket, parts: readonly Buffer[]): void {
  const length = parts.reduce((sum, part) => sum + part.length, 0)
  socket.write(Buffer.concat([Buffer.from(`${length.toString(16)}\r\n`), ...parts, END_OF_LINE]))
}
