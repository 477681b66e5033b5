import { type Call, DIGITS, getNumber } from './call.js'
import type { Channel, StdioChannel } from './channel.js'

interface SessionOptions {
  /** Which of the clients of one proxy it is: each has ids of its own, so that no answer goes astray unseen. */
  index?: number
  /** Whether the transport keeps the order of answers. */
  isOrdered?: boolean
  /** Milliseconds without any message after which something was lost. @default 10_000 */
  patience?: number
}

interface Message {
  id?: number
  method?: string
  params?: { data?: unknown }
  result?: { serverInfo?: unknown; content?: { text: string }[] }
  error?: unknown
}

/** How a message looks of which nothing changes but a number, which stands in two places (or in one, told twice). */
class Pattern {
  readonly #like: Buffer
  readonly #first: number
  readonly #second: number

  constructor(like: Buffer, one: number, other: number) {
    this.#like = Buffer.from(like)
    this.#first = Math.min(one, other)
    this.#second = Math.max(one, other)
  }

  /** The number; undefined where it is another message. */
  match(line: Buffer): number | undefined {
    const [first, second] = [this.#first, this.#second]
    if (line.length !== this.#like.length || !this.#same(line, 0, first)) return undefined
    if (!this.#same(line, first + DIGITS, second) || !this.#same(line, second + DIGITS, line.length)) return undefined
    const number = getNumber(line, first)
    if (number !== getNumber(line, second))
      throw new Error(`corrupted: the answer to ${number} has the text of another`)
    return number
  }

  #same(line: Buffer, start: number, end: number): boolean {
    return start >= end || this.#like.compare(line, start, end, start, end) === 0
  }
}

/**
 * One client. It numbers its calls and checks each answer, every byte of it: what is lost, doubled, corrupted or (where the
 * transport keeps the order) misordered rejects.
 */
export class Session {
  readonly #channel: Channel
  readonly #isOrdered: boolean
  readonly #patience: number
  #next: number
  #pattern: Pattern | undefined
  #tail = ''
  #isFlooded = false
  #seen = 0
  /** What the answer or the notification with this number is for. */
  #take: (number: number) => void = () => {}
  #answered: ((message: Message) => void) | undefined
  #fail: ((error: Error) => void) | undefined
  #error: Error | undefined

  constructor(channel: Channel, { index = 0, isOrdered = false, patience = 10_000 }: SessionOptions = {}) {
    this.#channel = channel
    this.#isOrdered = isOrdered
    this.#patience = patience
    this.#next = 100_000_001 + index * 1_000_000
    channel.onerror = (error) => this.#broken(error)
    channel.onmessage = (line) => {
      try {
        this.#message(line)
      } catch (error) {
        this.#broken(error as Error)
      }
    }
  }

  async initialize(protocolVersion: string): Promise<void> {
    await this.#channel.open()
    const clientInfo = { name: 'bench', version: '1' }
    const { result } = await this.#ask('initialize', { protocolVersion, capabilities: {}, clientInfo })
    if (!result?.serverInfo) throw new Error('no server')
    this.#channel.send(Buffer.from('{"jsonrpc":"2.0","method":"notifications/initialized"}'))
  }

  /** Calls one at a time; microseconds of each. */
  oneByOne(call: Call, count: number): Promise<Float64Array> {
    const took = new Float64Array(count)
    this.#expect(call.tail)
    return this.#run(`${count} answers`, (done) => {
      let got = 0
      let sent = 0
      const send = () => {
        sent = performance.now()
        this.#channel.calls(call, this.#next, 1)
      }
      this.#take = (number) => {
        if (number !== this.#next) throw new Error(`an answer to ${number}, not to ${this.#next}`)
        this.#next++
        took[got++] = (performance.now() - sent) * 1_000
        if (got === count) done(took)
        else send()
      }
      send()
    })
  }

  /** Keeps so many calls in flight; how many were answered in a second. */
  inFlight(call: Call, count: number, width: number): Promise<number> {
    const base = this.#next
    this.#next += count
    const seen = new Uint8Array(count)
    this.#expect(call.tail)
    return this.#run(`${count} answers`, (done) => {
      const began = performance.now()
      let sent = 0
      let got = 0
      const refill = () => {
        const more = Math.min(got + width, count) - sent
        if (more > 0) this.#channel.calls(call, base + sent, more)
        sent += more
      }
      this.#take = (number) => {
        const index = number - base
        if (index < 0 || index >= sent) throw new Error(`an answer to ${number}, which was not asked`)
        if (seen[index]) throw new Error(`doubled: an answer to ${number}`)
        if (this.#isOrdered && index !== got) throw new Error(`misordered: answer ${index} came as number ${got}`)
        seen[index] = 1
        // One refill for all answers that came in one read.
        if (sent - got === Math.min(width, count - got)) queueMicrotask(refill)
        if (++got === count) done((count / (performance.now() - began)) * 1_000)
      }
      refill()
    })
  }

  /** The server sends so many notifications, of so many bytes; how many came in a second. */
  async flood(count: number, size: number): Promise<number> {
    this.#expect('')
    this.#isFlooded = true
    let got = 0
    let rate = 0
    const began = performance.now()
    this.#take = (number) => {
      if (number !== got) throw new Error(`lost or misordered: notification ${number} came as number ${got}`)
      if (++got === count) rate = (count / (performance.now() - began)) * 1_000
    }
    const { error } = await this.#ask('tools/call', { name: 'flood', arguments: { count, size } })
    if (error || got < count) throw new Error(`lost: ${count - got} notifications`)
    return rate
  }

  /** The same with a client that does not read for some milliseconds. */
  async unreadFlood(count: number, size: number, pause: number): Promise<void> {
    const channel = this.#channel as StdioChannel
    channel.pause()
    setTimeout(() => channel.resume(), pause)
    await this.flood(count, size)
  }

  close(): Promise<void> {
    this.#channel.onmessage = () => {}
    this.#channel.onerror = () => {}
    return this.#channel.close()
  }

  #expect(tail: string): void {
    this.#tail = tail
    this.#isFlooded = false
    this.#pattern = undefined
  }

  #ask(method: string, params: object): Promise<Message> {
    return this.#run(`an answer to ${method}`, (done) => {
      this.#answered = done
      this.#channel.send(Buffer.from(JSON.stringify({ jsonrpc: '2.0', id: this.#next++, method, params })))
    })
  }

  #run<T>(what: string, begin: (done: (value: T) => void) => void): Promise<T> {
    let seen = -1
    const timer = setInterval(() => {
      if (this.#seen === seen) this.#broken(new Error(`lost: nothing came for ${this.#patience} ms, of ${what}`))
      seen = this.#seen
    }, this.#patience)
    return new Promise<T>((resolve, reject) => {
      if (this.#error) throw this.#error
      this.#fail = reject
      begin(resolve)
    }).finally(() => clearInterval(timer))
  }

  #broken(error: Error): void {
    this.#error ??= error
    this.#fail?.(this.#error)
  }

  #message(line: Buffer): void {
    this.#seen++
    const number = this.#pattern?.match(line) ?? this.#learn(line)
    if (number !== undefined) this.#take(number)
  }

  /** Reads a message that is like none before it; the number that it carries. */
  #learn(line: Buffer): number | undefined {
    const message: Message = JSON.parse(line.toString())
    const { id, method, params, result, error } = message
    if (this.#isFlooded && method === 'notifications/message') return this.#note(line, String(params?.data))
    // Whatever else a proxy may have to say is its own affair.
    if (method !== undefined) return undefined
    const answered = this.#answered
    this.#answered = undefined
    if (answered) return void answered(message)
    if (error) throw new Error(`an error for ${id}: ${JSON.stringify(error).slice(0, 200)}`)
    const text = result?.content?.[0]?.text
    if (text !== `#${id}${this.#tail}`)
      throw new Error(`corrupted, or another's: the answer to ${id}, ${text?.slice(0, 60)}`)
    const [idAt, textAt] = [line.indexOf(`"id":${id}`), line.indexOf(`"#${id}#`)]
    if (idAt >= 0 && textAt >= 0) this.#pattern = new Pattern(line, idAt + 5, textAt + 2)
    return id
  }

  #note(line: Buffer, data: string): number {
    if (!/^#\d{9}#x*$/.test(data)) throw new Error(`corrupted: a notification of ${data.slice(0, 60)}`)
    const at = line.indexOf(`"${data.slice(0, 1 + DIGITS)}`) + 2
    this.#pattern = new Pattern(line, at, at)
    return Number(data.slice(1, 1 + DIGITS))
  }
}
