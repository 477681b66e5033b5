import { setTimeout as sleep } from 'node:timers/promises'
import type { RequestId } from '@modelcontextprotocol/sdk/types.js'
import { proxyError, RpcError } from '../error.js'
import { errorFrame, resultMember, tokenValue } from '../message.js'
import {
  argumentHeaders,
  HEADER_MISMATCH,
  metadataHeaders,
  modernVersion,
  paramHeaders,
  prefersStream,
} from '../mirror.js'
import type { Head } from '../scan.js'
import type { Frame, FrameMeta, StreamEvent } from '../wire.js'
import { headOf, messagesOf, type RefusalBody, readRefusal, statusError } from './answer.js'
import { askTools } from './ask.js'
import type { Channel } from './channel.js'
import { discard, type Exchange, type HttpResponse, linger } from './request.js'
import { follow, isEventStream, mediaType } from './stream.js'

export interface CallEvents {
  onFrame: (frame: Frame, meta: FrameMeta) => void
  onStream: (event: StreamEvent) => void
  /** The answer to another request came on the stream of this one. */
  onForeignAnswer: (id: unknown) => void
  /** The server no longer knows this session. */
  onSessionLost: (session: string) => void
}

const STREAM_FIRST: Record<string, string> = { accept: 'text/event-stream, application/json' }
const RESUME_TRIES = 3
/** A server that answers as JSON sends no head until it is done: so long it has to take the request in. */
const OVERTAKE_MS = 100
const VISIBLE_ASCII = /^[\x21-\x7e]+$/

/** A request over Streamable HTTP. It is answered, or failed by a frame of our own, exactly once. */
export class Call {
  readonly head: Head
  /** The revision that it names itself; undefined on a legacy one. */
  readonly modern: string | undefined
  readonly #channel: Channel
  readonly #frame: Frame
  readonly #came: FrameMeta['headers']
  readonly #events: CallEvents
  /** The session it is sent in. */
  readonly #session: string | undefined
  readonly #controller = new AbortController()
  #meta: FrameMeta
  #response: Promise<HttpResponse> | undefined
  #writtenAt = 0
  #answered = false
  #forgotten = false
  #mirroredAgain = false

  /** `came`: the headers that it came to the proxy with, if it came over HTTP. */
  constructor(channel: Channel, frame: Frame, head: Head, came: FrameMeta['headers'], events: CallEvents) {
    this.#channel = channel
    this.#frame = frame
    this.#came = came
    this.#events = events
    this.head = head
    this.modern = modernVersion(frame, head)
    this.#session = this.modern === undefined ? channel.session : undefined
    this.#meta = { relatedRequestId: head.id }
  }

  /** Cancelled by its sender, who expects nothing any more. */
  get forgotten(): boolean {
    return this.#forgotten
  }

  get answered(): boolean {
    return this.#answered
  }

  /** Its answer came on another stream: its own is not missed any more. */
  answer(): void {
    this.#answered = true
  }

  /** Resolves when it is written; what comes back is for `settle`. */
  async send(): Promise<Exchange> {
    const exchange = await this.#post()
    await exchange.written
    this.#response = exchange.response
    this.#writtenAt = performance.now()
    return exchange
  }

  /** Resolves when nothing more will come. Never rejects. */
  async settle(exchange: Exchange): Promise<void> {
    try {
      await this.#answer(await exchange.response)
    } catch (error) {
      this.#fail(error instanceof RpcError ? error : bad('broken connection'))
    }
  }

  /**
   * Tells whether that was all there is to do: closing its stream is how a modern request is cancelled (2026-07-28
   * streamable-http, "Cancellation"). A legacy server wants to be told, on another connection: as soon as that cannot
   * overtake the request.
   */
  async forget(): Promise<boolean> {
    this.#forgotten = true
    if (this.modern !== undefined) {
      this.abort()
      return true
    }
    const left = this.#writtenAt + OVERTAKE_MS - performance.now()
    if (left > 0) await Promise.race([this.#response, sleep(left)]).catch(() => {})
    return false
  }

  abort(): void {
    this.#controller.abort()
  }

  async #post(): Promise<Exchange> {
    const channel = this.#channel
    const { signal } = this.#controller
    const accept = prefersStream(this.#came) ? STREAM_FIRST : undefined
    if (this.modern === undefined) return channel.post(this.#frame, { ...accept, ...channel.headers() }, signal)
    const isToolCall = this.head.method === 'tools/call' && this.head.name !== undefined
    const declared = isToolCall ? await channel.endpoint.tools.of(this.head.name as string, this.#ask(this.modern)) : []
    const headers = {
      ...accept,
      ...paramHeaders(this.#came, declared),
      ...metadataHeaders(this.#frame, this.head, this.modern),
      ...argumentHeaders(this.#frame, this.head, declared),
    }
    return channel.post(this.#frame, headers, signal)
  }

  async #answer(response: HttpResponse): Promise<void> {
    const { status, headers } = response
    this.#meta = { relatedRequestId: this.head.id, status, headers }
    if (status < 200 || status > 299) return this.#refused(response)
    if (this.head.method === 'initialize' && this.modern === undefined) this.#channel.session = sessionOf(response)
    if (isEventStream(response)) return this.#stream(response)
    if (mediaType(response) !== 'application/json') {
      discard(response.body)
      throw bad(`HTTP ${status} without an answer`)
    }
    const body = await this.#channel.body(response)
    if (body.length > 0) this.#hand(body)
    if (!this.#answered) throw bad(`HTTP ${status} without the answer`)
  }

  async #refused(response: HttpResponse): Promise<void> {
    const session = this.#session
    const refused = await readRefusal(response, () => this.#channel.body(response), session !== undefined)
    if (refused.isForgotten) {
      this.#meta = { ...this.#meta, isUnread: true }
      this.#fail(proxyError('upstream_session_lost'))
      return this.#events.onSessionLost(session!)
    }
    const { body, refusal } = refused
    if (refusal === undefined) throw statusError(response)
    if (this.modern !== undefined && this.#isStale(refusal)) return this.#mirrorAgain(this.modern)
    if (refusal.id === undefined && refusal.error !== undefined) return this.#fail(refusal.error)
    this.#hand(body)
    if (!this.#answered) throw statusError(response)
  }

  #isStale({ error }: RefusalBody): boolean {
    return error?.code === HEADER_MISMATCH && this.head.method === 'tools/call' && !this.#mirroredAgain
  }

  /** The tool's schema has changed since it was learned (2026-07-28 streamable-http, "Client Behavior"). */
  async #mirrorAgain(version: string): Promise<void> {
    this.#mirroredAgain = true
    await this.#channel.endpoint.tools.refresh(this.#ask(version))
    const exchange = await this.#post()
    await this.#answer(await exchange.response)
  }

  async #stream(response: HttpResponse): Promise<void> {
    const relatedRequestId = this.head.id as RequestId
    this.#events.onStream({ relatedRequestId, type: 'open', headers: response.headers })
    let tooLarge = false
    const read = (from: HttpResponse) =>
      this.#channel.events(from, {
        onFrame: (frame) => {
          const before = this.#answered
          this.#hand(frame)
          if (this.#answered && !before) linger(from.body)
        },
        onTooLarge: (head) => {
          tooLarge = true
          // A response names no method; one whose result does is failed when the stream ends.
          if (!/"method"\s*:/.test(head.toString('latin1'))) from.body.destroy()
        },
      })
    const done = () => this.#answered || this.#forgotten || tooLarge
    const end = await read(response)
    if (!done() && this.modern === undefined && end.lastEventId !== '') {
      this.#events.onStream({ relatedRequestId, type: 'detach', retry: end.retry })
      const { signal } = this.#controller
      const open = (lastEventId: string) => this.#channel.get(lastEventId, signal)
      await follow({ open, read, broken: end, tries: RESUME_TRIES, done, signal })
    }
    throw tooLarge ? proxyError('too_large', { phase: 'sent' }) : bad('stream ended without the answer')
  }

  #hand(text: Frame): void {
    for (const frame of messagesOf(text)) {
      if (this.#channel.closed || (this.#forgotten && this.modern !== undefined)) return
      const head = headOf(frame)
      if (head?.kind === 'response' && head.id !== this.head.id) this.#events.onForeignAnswer(head.id)
      // A second one would pass for the answer to a later request of this id.
      else if (head?.kind === 'response' && this.#answered) continue
      else if (head?.kind === 'response') this.#learn(frame, head)
      this.#events.onFrame(frame, this.#meta)
    }
  }

  /** Takes from the answer what later messages depend on, before anyone else sees it. */
  #learn(frame: Frame, head: Head): void {
    this.#answered = true
    if (this.modern !== undefined) {
      if (this.head.method === 'tools/list') this.#channel.endpoint.tools.learn(frame)
    } else if (this.head.method === 'initialize') {
      const span = resultMember(frame, head, 'protocolVersion')
      const version = span && tokenValue(frame, span)
      if (typeof version === 'string' && VISIBLE_ASCII.test(version)) this.#channel.version = version
    }
  }

  #fail(error: RpcError | NonNullable<RefusalBody['error']>): void {
    if (this.#answered || this.#forgotten || this.#channel.closed) return
    this.#answered = true
    const told = error instanceof RpcError ? error.toJSON() : error
    this.#events.onFrame(errorFrame(this.head.idText, told), this.#meta)
  }

  #ask(version: string) {
    return askTools(this.#channel.endpoint, this.#frame, this.head, version, this.#controller.signal)
  }
}

function sessionOf(response: HttpResponse): string | undefined {
  const id = response.headers['mcp-session-id']
  return typeof id === 'string' && VISIBLE_ASCII.test(id) ? id : undefined
}

function bad(detail: string): RpcError {
  return proxyError('upstream_bad_response', { phase: 'sent', detail })
}
