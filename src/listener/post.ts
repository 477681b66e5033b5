import type { ServerResponse } from 'node:http'
import type { RequestId } from '@modelcontextprotocol/sdk/types.js'
import type { Frame, FrameMeta } from '../wire.js'
import {
  beats,
  type EventStream,
  empty,
  type Headers,
  isOpen,
  isStreamed,
  json,
  over,
  refuse,
  refused,
} from './reply.js'
import type { ResumableStream } from './resumable.js'

export interface PostOptions {
  /** The requests that it brought. */
  owed: Iterable<RequestId>
  /** It was an array: so is its answer (2025-03-26 basic, "Batching"). */
  isBatch: boolean
  /** Answers that are there already. */
  answers: Frame[]
  /** Milliseconds without a word after which it becomes a stream, which can be kept alive. */
  keepAlive: number
  headers: () => Headers
  /** Makes the response an event stream, which says what is said on the stream. */
  events: (response: ServerResponse, stream: ResumableStream) => EventStream
  /** Where the upstream has no say in it (stdio), the answer is a stream at any rate. */
  prefersStream: boolean
  /** Makes the stream of it. */
  open: () => ResumableStream
  /** Nothing more will be said on the stream. */
  onover: (stream: ResumableStream) => void
  /** Milliseconds after which a client should poll, where this one knows how to; it gets a cursor at once then. */
  retry: number | undefined
}

/** One POST of a legacy session, and how it is answered: as JSON where the answer is all there is, else as a stream. */
export class Post {
  readonly response: ServerResponse
  readonly #options: PostOptions
  readonly #owed: Set<RequestId>
  readonly #answers: Frame[]
  readonly #quiet: NodeJS.Timeout | undefined
  #stream: ResumableStream | undefined

  constructor(response: ServerResponse, options: PostOptions) {
    this.response = response
    this.#options = options
    this.#owed = new Set(options.owed)
    this.#answers = options.answers
    this.#quiet = beats(setTimeout, () => this.stream(), options.keepAlive)
    void over(response).then(() => clearTimeout(this.#quiet))
  }

  /** It stands where its answers are looked for: those that it brought itself may be all. */
  begin(): void {
    this.#finish()
  }

  /** Its stream: from now on it is one. Undefined where its client is gone and could not come back. */
  stream(): ResumableStream | undefined {
    if (this.#stream !== undefined || this.response.headersSent || !isOpen(this.response)) return this.#stream
    clearTimeout(this.#quiet)
    const { retry } = this.#options
    const stream = this.#options.open()
    this.#stream = stream
    const events = this.#options.events(this.response, stream)
    if (retry !== undefined) events.prime(stream.cursorAt(0), retry)
    void stream.attach(events, 0)
    for (const answer of this.#answers.splice(0)) stream.message(answer)
    return stream
  }

  /** Whether its answers are said on a stream. */
  isOn(stream: ResumableStream): boolean {
    return this.#stream === stream
  }

  /** The answer to one of its requests. */
  answer(id: RequestId, frame: Frame, meta?: FrameMeta): Promise<void> | undefined {
    this.#owed.delete(id)
    const chosen = meta?.headers?.['content-type'] !== undefined
    if (chosen ? isStreamed(meta) : this.#options.prefersStream) this.stream()
    const ready = this.#stream?.message(frame).ready
    if (!this.#stream) this.#answers.push(frame)
    this.#finish()
    return ready
  }

  /** One of its requests was cancelled: silence is its outcome. */
  forget(id: RequestId): void {
    this.#owed.delete(id)
    this.#finish()
  }

  /** The upstream wants its client to poll: so it shall, if it can. */
  detach(retry = this.#options.retry): void {
    if (this.#options.retry !== undefined) this.#stream?.detach(retry)
  }

  /** The session is over. */
  close(): void {
    clearTimeout(this.#quiet)
    if (this.#stream) this.#stream.finish()
    else refuse(this.response, refused(503, 'shutting_down'))
  }

  #finish(): void {
    if (this.#owed.size > 0) return
    clearTimeout(this.#quiet)
    if (this.#stream) {
      this.#stream.finish()
      this.#options.onover(this.#stream)
    } else if (this.#answers.length === 0) empty(this.response, 202, this.#options.headers())
    else json(this.response, this.#body(), 200, this.#options.headers())
  }

  #body(): Frame {
    if (!this.#options.isBatch) return this.#answers[0] as Frame
    const pieces = this.#answers.flatMap((answer, index) => [Buffer.from(index === 0 ? '[' : ','), answer])
    return Buffer.concat([...pieces, Buffer.from(']')])
  }
}
