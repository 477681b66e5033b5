import { timer } from '../rest.js'
import type { Head } from '../scan.js'
import type { Frame } from '../wire.js'
import { type Journal, ResumableStream } from './resumable.js'

/** How many streams that are over a client may still come back to. */
const MAX_OVER = 100
/** The stream that a GET opens. */
const STANDALONE = '0'

export interface StreamsOptions {
  journal: Journal
  /** Milliseconds that a request of the server's waits for somebody to read its stream. */
  timeout: number
  /** Nobody did: it will not be said any more. */
  onUnread(head: Head): void
}

/** The streams of one session: that of the GET, those that POSTs became, and the last of those that are over. */
export class Streams {
  readonly standalone: ResumableStream
  readonly #options: StreamsOptions
  readonly #byId = new Map<string, ResumableStream>()
  /** Those that are over, the oldest first. */
  readonly #over = new Set<ResumableStream>()
  /** Requests of the server that nobody has read yet, by their number. */
  readonly #unread = new Map<ResumableStream, Map<number, { timeout: NodeJS.Timeout; head: Head }>>()
  #serial = 0

  constructor(options: StreamsOptions) {
    this.#options = options
    this.standalone = this.#add(STANDALONE)
  }

  get(id: string): ResumableStream | undefined {
    return this.#byId.get(id)
  }

  open(): ResumableStream {
    this.#serial += 1
    return this.#add(this.#serial.toString(36))
  }

  /** Says what is no answer. A request that nobody reads in time is given up: its sender must not wait for ever. */
  say(stream: ResumableStream, frame: Frame, head: Head): Promise<void> | undefined {
    const { seq, ready } = stream.message(frame)
    if (head.kind !== 'request' || seq <= stream.said) return ready
    const waiting = this.#unread.get(stream) ?? new Map()
    this.#unread.set(stream, waiting)
    const timeout = timer(() => {
      waiting.delete(seq)
      if (stream.withdraw(seq)) this.#options.onUnread(head)
    }, this.#options.timeout)
    waiting.set(seq, { timeout, head })
    return ready
  }

  /** Nothing more will be said on it. A client that has lost its end may come back to it for a while. */
  retire(stream: ResumableStream): void {
    this.#over.add(stream)
    const [oldest] = this.#over
    if (this.#over.size <= MAX_OVER || !oldest) return
    this.#over.delete(oldest)
    this.#byId.delete(oldest.id)
    this.#giveUp(oldest)
    void oldest.forget()
  }

  /** Nothing more will be said on any. */
  finish(): void {
    for (const stream of this.#byId.values()) stream.finish()
  }

  /** Lets go of all that they keep. */
  async close(): Promise<void> {
    for (const waiting of this.#unread.values()) for (const { timeout } of waiting.values()) clearTimeout(timeout)
    this.#unread.clear()
    await Promise.all([...this.#byId.values()].map((it) => it.forget()))
  }

  #add(id: string): ResumableStream {
    const stream = new ResumableStream(id, this.#options.journal)
    stream.onsaid = (seq) => {
      clearTimeout(this.#unread.get(stream)?.get(seq)?.timeout)
      this.#unread.get(stream)?.delete(seq)
    }
    stream.onattached = () => this.#giveUp(stream)
    this.#byId.set(id, stream)
    return stream
  }

  /** What is not said by now never will be: nothing of it is kept. */
  #giveUp(stream: ResumableStream): void {
    const waiting = this.#unread.get(stream)
    this.#unread.delete(stream)
    for (const { timeout, head } of waiting?.values() ?? []) {
      clearTimeout(timeout)
      this.#options.onUnread(head)
    }
  }
}
