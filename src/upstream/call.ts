import { setTimeout as sleep } from 'node:timers/promises'
import type { RequestId } from '@modelcontextprotocol/sdk/types.js'
import { type Deferred, deferred } from '../deferred.js'
import { proxyError, RpcError } from '../error.js'
import { errorFrame, resultMember, tokenValue } from '../message.js'
import {
  argumentHeaders,
  HEADER_MISMATCH,
  metadataHeaders,
  modernVersion,
  type ParamHeader,
  paramHeaders,
  prefersStream,
} from '../mirror.js'
import type { Head } from '../scan.js'
import type { Frame, FrameMeta, StreamEvent } from '../wire.js'
import { headOf, messagesOf, type RefusalBody, readRefusal, statusError } from './answer.js'
import { askTools } from './ask.js'
import type { CollectEvents } from './body.js'
import type { Channel } from './channel.js'
import type { Exchange, HttpResponse, Taker } from './request.js'
import { EVENT_STREAM, follow, mediaType } from './stream.js'

export interface CallEvents {
  onFrame: (frame: Frame, meta: FrameMeta) => void
  onStream: (event: StreamEvent) => void
  /** The answer to another request came on the stream of this one. */
  onForeignAnswer: (id: unknown) => void
  /** The server no longer knows this session. */
  onSessionLost: (session: string) => void
  /** Nothing more will come. */
  onSettled: (call: Call) => void
}

const RESUME_TRIES = 3
/** A server that answers as JSON sends no head until it is done: so long it has to take the request in. */
const OVERTAKE_MS = 100
const VISIBLE_ASCII = /^[\x21-\x7e]+$/

/** A request over Streamable HTTP. It is answered, or failed by a frame of our own, exactly once. */
export class Call implements Taker, CollectEvents {
  readonly head: Head
  /** The revision that it names itself; undefined on a legacy one. */
  readonly modern: string | undefined
  readonly #channel: Channel
  readonly #frame: Frame
  readonly #came: FrameMeta['headers']
  readonly #events: CallEvents
  /** The session it is sent in. */
  readonly #session: string | undefined
  #exchange: Exchange | undefined
  #aborting: AbortController | undefined
  #meta: FrameMeta
  #writtenAt = 0
  /** Something has come back. */
  #heard: Deferred | undefined
  #settled: Deferred | undefined
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

  /** Resolves when nothing more will come. */
  get settled(): Promise<void> {
    this.#settled ??= deferred()
    return this.#settled.promise
  }

  /** Its answer came on another stream: its own is not missed any more. */
  answer(): void {
    this.#answered = true
  }

  /** Returns nothing where it is as good as written, else what resolves when it is. What comes back goes to the events. */
  send(): Promise<void> | undefined {
    if (this.modern !== undefined) return this.#sendModern(this.modern)
    return this.#sent(this.#channel.post(this.#frame, prefersStream(this.#came), this))
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
    this.#heard ??= deferred()
    if (left > 0) await Promise.race([this.#heard.promise, sleep(left)])
    return false
  }

  abort(): void {
    this.#exchange?.abort()
    this.#aborting?.abort()
  }

  onResponse(response: HttpResponse): void {
    const { status, headers } = response
    this.#heard?.resolve()
    this.#meta = { relatedRequestId: this.head.id, status, headers }
    if (status < 200 || status > 299) this.#unlessFaulty(this.#refused(response))
    else this.#accepted(response)
  }

  onText(body: Buffer): void {
    if (body.length > 0) this.#hand(body)
    this.#end(`HTTP ${this.#meta.status} without the answer`)
  }

  onError(error: Error): void {
    this.#heard?.resolve()
    this.#fail(error instanceof RpcError ? error : bad('broken connection'))
  }

  #accepted(response: HttpResponse): void {
    if (this.head.method === 'initialize' && this.modern === undefined) this.#channel.session = sessionOf(response)
    const type = mediaType(response)
    if (type === EVENT_STREAM) this.#unlessFaulty(this.#stream(response))
    else if (type === 'application/json') this.#channel.collect(response, this)
    else {
      response.body.discard()
      this.#fail(bad(`HTTP ${response.status} without an answer`))
    }
  }

  #sent(exchange: Exchange): Promise<void> | undefined {
    this.#exchange = exchange
    this.#writtenAt = performance.now()
    return exchange.written?.then(() => {
      this.#writtenAt = performance.now()
    })
  }

  #sendModern(version: string): Promise<void> | undefined {
    const { method, name } = this.head
    const { tools } = this.#channel.endpoint
    if (method !== 'tools/call' || name === undefined) return this.#sendMirrored(version, [])
    const known = tools.known(name)
    if (known) return this.#sendMirrored(version, known)
    return tools.of(name, this.#ask(version)).then((declared) => {
      this.#aborting?.signal.throwIfAborted()
      return this.#sendMirrored(version, declared)
    })
  }

  /** With the headers that mirror what it says. */
  #sendMirrored(version: string, declared: readonly ParamHeader[]): Promise<void> | undefined {
    const headers = {
      ...paramHeaders(this.#came, declared),
      ...metadataHeaders(this.#frame, this.head, version),
      ...argumentHeaders(this.#frame, this.head, declared),
    }
    return this.#sent(this.#channel.postModern(this.#frame, prefersStream(this.#came), headers, this))
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
    this.#settle()
  }

  #isStale({ error }: RefusalBody): boolean {
    return error?.code === HEADER_MISMATCH && this.head.method === 'tools/call' && !this.#mirroredAgain
  }

  /** The tool's schema has changed since it was learned (2026-07-28 streamable-http, "Client Behavior"). */
  async #mirrorAgain(version: string): Promise<void> {
    this.#mirroredAgain = true
    await this.#channel.endpoint.tools.refresh(this.#ask(version))
    await this.#sendModern(version)
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
          if (this.#answered && !before) from.body.linger()
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
      const { signal } = this.#abortable()
      const open = (lastEventId: string) => this.#channel.get(lastEventId, signal)
      await follow({ open, read, broken: end, tries: RESUME_TRIES, done, signal })
    }
    if (tooLarge) throw proxyError('too_large', { phase: 'sent' })
    this.#end('stream ended without the answer')
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

  /** All that there is has come; `missing` says what that comes to without the answer. */
  #end(missing: string): void {
    if (this.#answered) this.#settle()
    else this.#fail(bad(missing))
  }

  #fail(error: RpcError | NonNullable<RefusalBody['error']>): void {
    const isTold = !this.#answered && !this.#forgotten && !this.#channel.closed
    this.#settle()
    if (!isTold) return
    this.#answered = true
    const told = error instanceof RpcError ? error.toJSON() : error
    this.#events.onFrame(errorFrame(this.head.idText, told), this.#meta)
  }

  #settle(): void {
    this.#settled?.resolve()
    this.#events.onSettled(this)
  }

  #unlessFaulty(end: Promise<void>): void {
    end.catch((error: Error) => this.onError(error))
  }

  #ask(version: string) {
    return askTools(this.#channel.endpoint, this.#frame, this.head, version, this.#abortable().signal)
  }

  #abortable(): AbortController {
    this.#aborting ??= new AbortController()
    return this.#aborting
  }
}

function sessionOf(response: HttpResponse): string | undefined {
  const id = response.headers['mcp-session-id']
  return typeof id === 'string' && VISIBLE_ASCII.test(id) ? id : undefined
}

function bad(detail: string): RpcError {
  return proxyError('upstream_bad_response', { phase: 'sent', detail })
}
