import type { ServerResponse } from 'node:http'
import type { CloseOptions, Frame, FrameMeta, Wire } from '../wire.js'
import { deaf } from './patience.js'
import {
  type Answering,
  EventStream,
  empty,
  noRoom,
  type Pace,
  type Refused,
  settle,
  unknownSession,
  whenOver,
} from './reply.js'
import { Room } from './room.js'

export interface SseOptions {
  response: ServerResponse
  /** Where the client is to POST its messages. */
  endpoint: string
  principal: string | undefined
  pace: Pace
  /** The session is over. */
  onover(): void
}

/** A client that speaks HTTP+SSE (2024-11-05 basic/transports): all it hears comes on one stream, which is its session. */
export class SseClient implements Wire {
  onframe?: Wire['onframe']
  onclose?: Wire['onclose']
  onerror?: Wire['onerror']

  readonly principal: string | undefined
  readonly #options: SseOptions
  readonly #stream: EventStream
  readonly #room = new Room()
  #left = false

  constructor(options: SseOptions) {
    this.#options = options
    this.principal = options.principal
    this.#stream = new EventStream(options.response, {}, options.pace)
    this.#stream.event('endpoint', options.endpoint)
    whenOver(options.response, () => this.#leave())
  }

  start(): void {}

  send(frame: Frame): Promise<void> | undefined {
    return this.#stream.message(frame)
  }

  pause(): void {
    this.#room.pause()
  }

  resume(): void {
    this.#room.resume()
  }

  /** Takes the message of a POST, or says why it does not: what becomes of it is said on the stream. */
  post(response: ServerResponse, body: Frame, meta: FrameMeta): Answering {
    if (this.#room.isClear) return this.#take(response, body, meta)
    const entering = this.#room.enter(body.length)
    return entering.then((entered) => (entered ? this.#take(response, body, meta) : noRoom()))
  }

  #take(response: ServerResponse, body: Frame, meta: FrameMeta): Refused | undefined {
    if (this.#left) return unknownSession()
    empty(response, 202)
    this.onframe?.(body, meta)
    return undefined
  }

  /** Ends the stream. Urgent: without waiting for its reader. */
  async close({ urgent = false }: CloseOptions = {}): Promise<void> {
    this.#stream.end()
    await settle([this.#options.response], urgent)
  }

  #leave(): void {
    if (this.#left) return
    this.#left = true
    this.#room.resume()
    this.#options.onover()
    this.onclose?.(this.#stream.isCut ? deaf(this.#options.pace.readTimeout) : undefined)
  }
}
