import { randomUUID } from 'node:crypto'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { buffer } from 'node:stream/consumers'
import { aborted, behave, Desk, type Id, type JournalLine, type Message, type Out } from './behaviour.mjs'
import type { Journaled } from './history.js'
import { reset as resetSocket } from './toxic.js'

interface Session {
  readonly id: string
  readonly desk: Desk
  /** The standalone GET stream, or that of HTTP+SSE. */
  stream?: ServerResponse
  /** Answers that wait for whoever comes back behind an event. */
  readonly kept: Map<string, Message>
  serial: number
}

const JSON_TYPE = { 'content-type': 'application/json' }
const STREAM_TYPE = { 'content-type': 'text/event-stream', 'cache-control': 'no-cache' }
const MODERN = 'io.modelcontextprotocol/protocolVersion'

/** A server that breaks on demand: Streamable HTTP of both eras at `/mcp`, HTTP+SSE at `/sse`. */
export class FaultyHttp {
  readonly journal: Journaled[] = []
  readonly #server: Server
  readonly #sessions = new Map<string, Session>()
  #streams = 0

  constructor() {
    this.#server = createServer((request, response) => {
      request.on('error', () => {})
      response.on('error', () => {})
      this.#serve(request, response).catch(() => response.destroy())
    })
    // A request must not race with the end of an idle connection that no toxic has ended.
    this.#server.keepAliveTimeout = 60_000
  }

  async listen(): Promise<number> {
    await new Promise<void>((resolve) => this.#server.listen(0, '127.0.0.1', resolve))
    return (this.#server.address() as AddressInfo).port
  }

  /** Sessions that their client has not ended. */
  get sessions(): number {
    return this.#sessions.size
  }

  close(): Promise<void> {
    return new Promise((resolve) => {
      this.#server.close(() => resolve())
      this.#server.closeAllConnections()
    })
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { pathname, searchParams } = new URL(request.url ?? '', 'http://localhost')
    if (pathname === '/sse') return this.#openSse(response)
    if (pathname === '/messages') {
      return this.#postSse(this.#sessions.get(searchParams.get('session') ?? ''), request, response)
    }
    const id = request.headers['mcp-session-id']
    const session = this.#sessions.get(String(id))
    if (id !== undefined && !session) return void response.writeHead(404).end()
    if (request.method === 'DELETE') {
      this.#forget(session)
      return void response.writeHead(200).end()
    }
    const kept = session?.kept.get(String(request.headers['last-event-id']))
    if (request.method === 'GET' && kept) {
      return void response.writeHead(200, STREAM_TYPE).end(`data: ${JSON.stringify(kept)}\n\n`)
    }
    if (request.method === 'GET') return this.#listen(session, response)
    return this.#post(session, request, response)
  }

  #forget(session: Session | undefined): void {
    if (!session) return
    this.#sessions.delete(session.id)
    session.stream?.end()
  }

  #open(): Session {
    const session: Session = { id: randomUUID(), desk: new Desk(), kept: new Map(), serial: 0 }
    this.#sessions.set(session.id, session)
    return session
  }

  #write(who: string, line: JournalLine): void {
    this.journal.push({ who, ...line })
  }

  // --- Streamable HTTP --------------------------------------------------------------------------------------

  #listen(session: Session | undefined, response: ServerResponse): void {
    if (!session || session.stream?.writable) return void response.writeHead(session ? 409 : 405).end()
    session.stream = response
    response.writeHead(200, STREAM_TYPE).flushHeaders()
  }

  async #post(known: Session | undefined, request: IncomingMessage, response: ServerResponse): Promise<void> {
    const message = JSON.parse((await buffer(request)).toString()) as Message
    const isModern = (message.params?._meta as Record<string, unknown> | undefined)?.[MODERN] !== undefined
    if (isModern) return this.#request(undefined, message, response)
    if (message.method === 'initialize') {
      const session = this.#open()
      response.setHeader('mcp-session-id', session.id)
      return this.#request(session, message, response)
    }
    if (!known) return void response.writeHead(400).end()
    if (message.method !== undefined && message.id !== undefined) return this.#request(known, message, response)
    this.#take(known, message)
    response.writeHead(202).end()
  }

  /** What has no answer. */
  #take(session: Session, message: Message): void {
    const { seq, life, requestId } = (message.params ?? {}) as { seq?: number; life?: string; requestId?: Id }
    if (message.method === undefined) session.desk.answer(message)
    else if (message.method === 'notifications/cancelled') {
      this.#write(session.id, { kind: 'cancel' })
      session.desk.cancel(requestId)
    } else if (seq !== undefined) this.#write(session.id, { kind: 'note', seq, life })
  }

  async #request(session: Session | undefined, message: Message, response: ServerResponse): Promise<void> {
    const who = session?.id ?? 'modern'
    const call = (message.params?.arguments ?? {}) as { stream?: boolean; token?: string }
    const from = `${who}/${++this.#streams}`
    const desk = session?.desk ?? new Desk()
    const { signal, done } = desk.open(message.id as Id)
    // A modern request is cancelled by the end of its stream.
    if (!session) response.once('close', () => desk.cancel(message.id))
    let serial = 0
    const event = (it: Message) => {
      if (!response.headersSent) response.writeHead(200, STREAM_TYPE)
      response.write(`event: message\ndata: ${JSON.stringify(it)}\n\n`)
    }
    const out: Out = {
      journal: (line) => this.#write(who, line),
      number: () => ({ from, n: ++serial }),
      say: event,
      ask: (it) => desk.ask(it, event),
      answer: (it, again) => {
        if (call.stream || response.headersSent || again) event(it)
        else response.writeHead(200, JSON_TYPE).end(JSON.stringify(it))
        if (!again) response.end()
      },
      before: (fault) => this.#before(fault, response),
      fault: (fault, answer) => {
        // The next request of the session gets the 404, and is not run.
        if (fault === 'session-404') this.#forget(session)
        if (fault === 'resume' && session) return this.#breakOff(session, answer(), response)
        return this.#fault(fault, answer, response, event)
      },
      isCancelled: () => signal.aborted,
      cancelled: aborted(signal),
    }
    await behave(message, out)
    done()
    // Of what was cancelled nothing more is to come.
    if (signal.aborted && !response.writableEnded) response.end()
  }

  #before(fault: string | undefined, response: ServerResponse): boolean {
    const statuses: Record<string, number> = {
      'status-202': 202,
      'status-204': 204,
      '500': 500,
      '503': 503,
      '429': 429,
    }
    if (fault === 'crash' || fault === 'reset') reset(response)
    else if (fault === 'html') response.writeHead(200, { 'content-type': 'text/html' }).end('<h1>It works!</h1>')
    else if (fault === 'empty') response.writeHead(200, JSON_TYPE).end()
    else if (fault !== undefined && statuses[fault] !== undefined) {
      response.writeHead(statuses[fault], { 'retry-after': '1' }).end()
    } else return false
    return true
  }

  #fault(fault: string, answer: () => Message, response: ServerResponse, event: (it: Message) => void): boolean {
    if (fault === 'cut') {
      if (!response.headersSent) response.writeHead(200, STREAM_TYPE)
      const text = `data: ${JSON.stringify(answer())}\n\n`
      response.write(text.slice(0, text.length / 2), () => response.destroy())
    } else if (fault === 'json-cut') {
      const text = JSON.stringify(answer())
      if (!response.headersSent) response.writeHead(200, { ...JSON_TYPE, 'content-length': Buffer.byteLength(text) })
      response.write(text.slice(0, text.length / 2), () => response.destroy())
    } else if (fault === 'end') {
      if (!response.headersSent) response.writeHead(200, STREAM_TYPE)
      response.end(': nothing\n\n')
    } else if (fault === 'huge') {
      const big = answer()
      event({ ...big, result: { ...big.result, padding: 'x'.repeat(3 << 19) } })
      response.end()
    } else if (fault === 'slow') {
      if (!response.headersSent) response.writeHead(200, STREAM_TYPE)
      void slowly(response, Buffer.from(`:\r\n\r\ndata: ${JSON.stringify(answer())}\r\n\r\n`))
    } else if (fault === 'noise') {
      event({ jsonrpc: '2.0' })
      response.write('data: no json\n\nevent: other\ndata: {"x":1}\n\n')
      event(answer())
      response.end()
    } else return false
    return true
  }

  /** The answer is to be had by a GET behind the last event. */
  #breakOff(session: Session, answer: Message, response: ServerResponse): boolean {
    const id = `event-${++this.#streams}`
    session.kept.set(id, answer)
    if (!response.headersSent) response.writeHead(200, STREAM_TYPE)
    response.write(`id: ${id}\nretry: 20\ndata: \n\n`, () => response.destroy())
    return true
  }

  // --- HTTP+SSE ---------------------------------------------------------------------------------------------

  #openSse(response: ServerResponse): void {
    const session = this.#open()
    session.stream = response
    response.writeHead(200, STREAM_TYPE)
    response.write(`event: endpoint\ndata: /messages?session=${session.id}\n\n`)
    response.once('close', () => this.#forget(session))
  }

  async #postSse(session: Session | undefined, request: IncomingMessage, response: ServerResponse): Promise<void> {
    const message = JSON.parse((await buffer(request)).toString()) as Message
    if (!session?.stream) return void response.writeHead(404).end()
    const stream = session.stream
    if (message.method === undefined || message.id === undefined) {
      this.#take(session, message)
      return void response.writeHead(202).end()
    }
    const event = (it: Message) => void stream.write(`event: message\ndata: ${JSON.stringify(it)}\n\n`)
    const { signal, done } = session.desk.open(message.id)
    const accept = () => response.headersSent || response.writeHead(202).end('Accepted')
    const out: Out = {
      journal: (line) => this.#write(session.id, line),
      number: () => ({ from: session.id, n: ++session.serial }),
      say: event,
      ask: (it) => session.desk.ask(it, event),
      answer: event,
      before: (fault) => {
        // In this transport these say that the message was taken, and no more.
        if (fault === 'status-202' || fault === 'status-204' || fault === 'html' || fault === 'empty') return false
        const hit = this.#before(fault, response)
        if (fault === 'crash') this.#dropSse(session)
        if (!hit) accept()
        return hit
      },
      fault: (fault, answer) => this.#faultSse(fault, answer, session, stream),
      isCancelled: () => signal.aborted,
      cancelled: aborted(signal),
    }
    if (message.method !== 'tools/call') accept()
    await behave(message, out)
    accept()
    done()
  }

  #dropSse(session: Session): void {
    if (session.stream) reset(session.stream)
    this.#forget(session)
  }

  #faultSse(fault: string, answer: () => Message, session: Session, stream: ServerResponse): boolean {
    if (fault === 'session-404') {
      stream.write(`data: ${JSON.stringify(answer())}\n\n`, () => this.#dropSse(session))
    } else if (fault === 'cut' || fault === 'json-cut') {
      const text = `data: ${JSON.stringify(answer())}\n\n`
      stream.write(text.slice(0, text.length / 2), () => this.#dropSse(session))
    } else if (fault === 'end') stream.end()
    else if (fault === 'noise') {
      stream.write(`: comment\n\ndata: no json\n\ndata: {"jsonrpc":"2.0"}\n\ndata: ${JSON.stringify(answer())}\n\n`)
    } else return false
    return true
  }
}

function reset({ socket }: ServerResponse): void {
  if (socket) resetSocket(socket)
}

/** In a few pieces, none of which ends where a character or a line does. */
async function slowly(response: ServerResponse, bytes: Buffer): Promise<void> {
  const size = Math.ceil(bytes.length / 7)
  for (let at = 0; at < bytes.length && !response.destroyed; at += size) {
    response.write(bytes.subarray(at, at + size))
    await new Promise((resolve) => setTimeout(resolve, 3))
  }
  response.end()
}
