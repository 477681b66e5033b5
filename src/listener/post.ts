import type { ServerResponse } from 'node:http'
import type { Quiet, Silence } from '../quiet.js'
import type { Frame, FrameMeta } from '../wire.js'
import { type EventStream, empty, type Headers, isOpen, isStreamed, json, refuse, refused, whenOver } from './reply.js'
import type { ResumableStream } from './resumable.js'

/** The session that a POST is of. */
export interface PostSession {
  /** Where it waits while nothing is said: it becomes a stream then, which can be kept alive. */
  readonly silence: Silence
  headers(): Headers
  /** Makes the response an event stream, which says what is said on the stream. */
  events(response: ServerResponse, stream: ResumableStream): EventStream
  /** Makes the stream of it. */
  open(): ResumableStream
  /** Nothing more will be said on the stream. */
  retire(stream: ResumableStream): void
}

export interface PostOptions {
  /** How many requests it brought. */
  owed: number
  /** It was an array: so is its answer (2025-03-26 basic, "Batching"). */
  isBatch: boolean
  /** Answers that are there already. */
  answers: Frame[]
  /** Where the upstream has no say in it (stdio), the answer is a stream at any rate. */
  prefersStream: boolean
  /** Milliseconds after which a client should poll, where this one knows how to; it gets a cursor at once then. */
  retry: number | undefined
}

/** One POST of a legacy session, and how it is answered: as JSON where the answer is all there is, else as a stream. */
export class Post implements Quiet {
  readonly response: ServerResponse
  readonly #session: PostSession
  readonly #options: PostOptions
  readonly #quiet: number
  #owed: number
  #stream: ResumableStream | undefined

  constructor(response: ServerResponse, session: PostSession, options: PostOptions) {
    this.response = response
    this.#session = session
    this.#options = options
    this.#owed = options.owed
    this.#quiet = session.silence.begin(this)
    whenOver(response, () => this.#speak())
  }

  /** It stands where its answers are looked for: those that it brought itself may be all. */
  begin(): void {
    this.#finish()
  }

  late(): void {
    this.stream()
  }

  /** Its stream: from now on it is one. Undefined where its client is gone and could not come back. */
  stream(): ResumableStream | undefined {
    if (this.#stream !== undefined || this.response.headersSent || !isOpen(this.response)) return this.#stream
    const { retry, answers } = this.#options
    this.#speak()
    const stream = this.#session.open()
    this.#stream = stream
    const events = this.#session.events(this.response, stream)
    if (retry !== undefined) events.prime(stream.cursorAt(0), retry)
    void stream.attach(events, 0)
    for (const answer of answers.splice(0)) stream.message(answer)
    return stream
  }

  /** Whether its answers are said on a stream. */
  isOn(stream: ResumableStream): boolean {
    return this.#stream === stream
  }

  /** The answer to one of its requests, each of which has one at most. */
  answer(frame: Frame, meta?: FrameMeta): Promise<void> | undefined {
    this.#owed -= 1
    const chosen = meta?.headers?.['content-type'] !== undefined
    if (chosen ? isStreamed(meta) : this.#options.prefersStream) this.stream()
    const ready = this.#stream?.message(frame).ready
    if (!this.#stream) this.#options.answers.push(frame)
    this.#finish()
    return ready
  }

  /** One of its requests was cancelled: silence is its outcome. */
  forget(): void {
    this.#owed -= 1
    this.#finish()
  }

  /** The upstream wants its client to poll: so it shall, if it can. */
  detach(retry = this.#options.retry): void {
    if (this.#options.retry !== undefined) this.#stream?.detach(retry)
  }

  /** It will not be quiet any more: it is a stream, or over. */
  #speak(): void {
    this.#session.silence.end(this.#quiet)
  }

  /** The session is over. */
  close(): void {
    this.#speak()
    if (this.#stream) this.#stream.finish()
    else refuse(this.response, refused(503, 'shutting_down'))
  }

  #finish(): void {
    if (this.#owed > 0) return
    const { answers } = this.#options
    this.#speak()
    if (this.#stream) {
      this.#stream.finish()
      this.#session.retire(this.#stream)
    } else if (answers.length === 0) empty(this.response, 202, this.#session.headers())
    else json(this.response, this.#body(), 200, this.#session.headers())
  }

  #body(): Frame {
    const { answers, isBatch } = this.#options
    if (!isBatch) return answers[0] as Frame
    const pieces = answers.flatMap((answer, index) => [Buffer.from(index === 0 ? '[' : ','), answer])
    return Buffer.concat([...pieces, Buffer.from(']')])
  }
}
