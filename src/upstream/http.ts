import { proxyError, RpcError } from '../error.js'
import { errorFrame, type Head, paramsMember, resultMember, scan, tokenValue } from '../message.js'
import { type Frame, FrameError, type FrameMeta, type Wire } from '../wire.js'
import { headOf, messagesOf, refusalBody, refusalError, statusError } from './answer.js'
import { askTools } from './ask.js'
import { Endpoint, type HttpUpstreamOptions } from './endpoint.js'
import { argumentHeaders, metadataHeaders, modernVersion } from './headers.js'
import { discard, type Exchange, type HttpResponse } from './request.js'
import { collect, follow, Gate, isEventStream, mediaType, readEvents, type StreamEnd } from './stream.js'

/** A request that waits for its answer. */
interface Call {
  readonly frame: Frame
  readonly head: Head
  /** The revision that it names itself; undefined on a legacy one. */
  readonly modern: string | undefined
  /** The session it was sent in. */
  readonly session: string | undefined
  readonly controller: AbortController
  /** What the response came with. */
  meta: FrameMeta
  answered: boolean
  /** Cancelled by its sender, who expects nothing any more. */
  forgotten: boolean
  mirroredAgain: boolean
}

const RESUME_TRIES = 3
const LISTEN_TRIES = 5
const DELETE_MS = 1_000

/**
 * The client's end of Streamable HTTP: 2025-03-26 to 2025-11-25 with their sessions and streams, and the stateless
 * 2026-07-28, told apart by each message. Without an endpoint of its own to share, it makes one.
 */
export class HttpUpstream implements Wire {
  onframe?: (frame: Frame, meta?: FrameMeta) => void
  onclose?: (reason?: Error) => void
  onerror?: (error: Error) => void

  readonly #endpoint: Endpoint
  readonly #shared: boolean
  readonly #gate = new Gate()
  readonly #calls = new Set<Call>()
  readonly #controller = new AbortController()
  #session: string | undefined
  #version: string | undefined
  #listening = false
  #lost: RpcError | undefined
  #closing: Promise<void> | undefined
  #told = false

  constructor(options: HttpUpstreamOptions, endpoint?: Endpoint) {
    this.#shared = endpoint !== undefined
    this.#endpoint = endpoint ?? new Endpoint(options)
  }

  start(): void {}

  async send(frame: Frame): Promise<void> {
    if (this.#controller.signal.aborted) throw this.#lost ?? proxyError('shutting_down')
    try {
      await this.#send(frame)
    } catch (error) {
      throw this.#lost ?? (isAbort(error) ? proxyError('shutting_down', { phase: 'sent' }) : error)
    }
  }

  async #send(frame: Frame): Promise<void> {
    const head = scan(frame)
    if (head.kind === 'request') return this.#request(frame, head)
    if (head.method === 'notifications/cancelled' && this.#cancelled(frame, head)) return
    const version = modernVersion(frame, head)
    const headers = version === undefined ? this.#sessionHeaders() : { 'mcp-protocol-version': version }
    const { response } = this.#post(frame, headers, this.#controller.signal)
    await this.#accepted(await response, headers['mcp-session-id'])
    if (head.method === 'notifications/initialized' && version === undefined) this.#listen()
  }

  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  pause(): void {
    this.#gate.pause()
  }

  resume(): void {
    this.#gate.resume()
  }

  async #request(frame: Frame, head: Head): Promise<void> {
    const modern = modernVersion(frame, head)
    // A client without a session id starts anew (2025-11-25 basic/transports, "Session Management" 4).
    if (head.method === 'initialize' && modern === undefined) {
      this.#session = undefined
      this.#version = undefined
    }
    const call: Call = {
      frame,
      head,
      modern,
      session: modern === undefined ? this.#session : undefined,
      controller: new AbortController(),
      meta: { relatedRequestId: head.id },
      answered: false,
      forgotten: false,
      mirroredAgain: false,
    }
    this.#calls.add(call)
    try {
      const exchange = await this.#callOut(call)
      await exchange.written
      void this.#settle(call, exchange)
    } catch (error) {
      this.#calls.delete(call)
      if (!call.forgotten) throw error
    }
  }

  async #callOut(call: Call): Promise<Exchange> {
    const { frame, head, modern, controller } = call
    if (modern === undefined) return this.#post(frame, this.#sessionHeaders(), controller.signal)
    const headers = metadataHeaders(frame, head, modern)
    if (head.method === 'tools/call' && head.name !== undefined) {
      const declared = await this.#endpoint.tools.of(head.name, this.#ask(call))
      Object.assign(headers, argumentHeaders(frame, head, declared))
    }
    return this.#post(frame, headers, controller.signal)
  }

  async #settle(call: Call, exchange: Exchange): Promise<void> {
    try {
      await this.#answer(call, await exchange.response)
    } catch (error) {
      this.#fail(call, error instanceof RpcError ? error : bad('broken connection'))
    } finally {
      this.#calls.delete(call)
    }
  }

  async #answer(call: Call, response: HttpResponse): Promise<void> {
    const { status, headers } = response
    call.meta = { relatedRequestId: call.head.id, status, headers }
    if (status < 200 || status > 299) return this.#refused(call, response)
    if (call.head.method === 'initialize' && call.modern === undefined) this.#session = sessionOf(response)
    if (isEventStream(response)) return this.#stream(call, response)
    if (mediaType(response) !== 'application/json') {
      discard(response.body)
      throw bad(`HTTP ${status} without an answer`)
    }
    const body = await collect(response.body, this.#gate, this.#endpoint.maxMessageBytes)
    if (body.length > 0) this.#hand(body, call.meta, call)
    if (!call.answered) throw bad(`HTTP ${status} without the answer`)
  }

  async #refused(call: Call, response: HttpResponse): Promise<void> {
    if (response.status === 404 && call.session !== undefined) {
      discard(response.body)
      return this.#sessionLost(call.session, call)
    }
    const body = await collect(response.body, this.#gate, this.#endpoint.maxMessageBytes)
    const refusal = refusalBody(body)
    if (refusal === undefined) throw statusError(response)
    if (refusal.error?.code === HEADER_MISMATCH && call.modern !== undefined && call.head.method === 'tools/call') {
      if (!call.mirroredAgain) return this.#mirrorAgain(call)
    }
    if (refusal.id !== undefined || refusal.error === undefined) {
      this.#hand(body, call.meta, call)
      if (!call.answered) throw statusError(response)
    } else {
      this.#fail(call, refusal.error)
    }
  }

  /** The tool's schema has changed since it was learned (2026-07-28 streamable-http, "Client Behavior"). */
  async #mirrorAgain(call: Call): Promise<void> {
    call.mirroredAgain = true
    await this.#endpoint.tools.refresh(this.#ask(call))
    const exchange = await this.#callOut(call)
    await this.#answer(call, await exchange.response)
  }

  async #stream(call: Call, response: HttpResponse): Promise<void> {
    let tooLarge = false
    const read = (from: HttpResponse) =>
      this.#read(from, {
        onFrame: (frame) => this.#hand(frame, call.meta, call),
        onTooLarge: (head) => {
          tooLarge = true
          // A response names no method; one whose result does is failed when the stream ends.
          if (!/"method"\s*:/.test(head.toString('latin1'))) from.body.destroy()
        },
      })
    const done = () => call.answered || call.forgotten || tooLarge
    const end = await read(response)
    if (!done() && call.modern === undefined && end.lastEventId !== '') {
      const open = (lastEventId: string) => this.#get(lastEventId, call.controller.signal)
      await follow({ open, read, broken: end, tries: RESUME_TRIES, done, signal: call.controller.signal })
    }
    if (call.answered || call.forgotten) return
    throw tooLarge ? proxyError('too_large', { phase: 'sent' }) : bad('stream ended without the answer')
  }

  /** The stream on which a legacy server sends what belongs to no request; a server without one says 405. */
  #listen(): void {
    if (this.#listening) return
    this.#listening = true
    const { signal } = this.#controller
    const read = (response: HttpResponse) => {
      const meta = { status: response.status, headers: response.headers }
      return this.#read(response, {
        onFrame: (frame) => this.#hand(frame, meta),
        onTooLarge: (head) => this.onerror?.(new FrameError(proxyError('too_large').code, 'Message too large', head)),
      })
    }
    const open = (lastEventId: string) => this.#get(lastEventId, signal)
    void follow({ open, read, tries: LISTEN_TRIES, done: () => false, signal }).then(() => {
      this.#listening = false
    })
  }

  #read(
    response: HttpResponse,
    take: { onFrame: (frame: Buffer) => void; onTooLarge: (head: Buffer) => void },
  ): Promise<StreamEnd> {
    const { maxMessageBytes: maxBytes, sseReadTimeout: silence } = this.#endpoint
    return readEvents(response.body, { gate: this.#gate, maxBytes, silence, ...take })
  }

  #hand(text: Frame, meta: FrameMeta, call?: Call): void {
    for (const frame of messagesOf(text)) {
      if (this.#controller.signal.aborted || (call?.forgotten && call.modern !== undefined)) return
      const head = call === undefined || call.answered ? undefined : headOf(frame)
      if (call !== undefined && head?.kind === 'response' && head.id === call.head.id) this.#answered(call, frame, head)
      this.onframe?.(frame, meta)
    }
  }

  #answered(call: Call, frame: Frame, head: Head): void {
    call.answered = true
    if (call.modern !== undefined) {
      if (call.head.method === 'tools/list') this.#endpoint.tools.learn(frame)
    } else if (call.head.method === 'initialize') {
      const span = resultMember(frame, head, 'protocolVersion')
      const version = span && tokenValue(frame, span)
      if (typeof version === 'string' && VISIBLE_ASCII.test(version)) this.#version = version
    }
  }

  #fail(call: Call, error: RpcError | { code: number; message: string; data?: unknown }): void {
    if (call.answered || call.forgotten || this.#controller.signal.aborted) return
    call.answered = true
    this.onframe?.(errorFrame(call.head.idText, error instanceof RpcError ? error.toJSON() : error), call.meta)
  }

  /**
   * Whether that was all there is to do: closing its stream is how a modern request is cancelled (2026-07-28
   * streamable-http, "Cancellation"). A legacy server is told.
   */
  #cancelled(frame: Frame, head: Head): boolean {
    const span = paramsMember(frame, head, 'requestId')
    const id = span && tokenValue(frame, span)
    for (const call of this.#calls) {
      if (call.head.id !== id) continue
      call.forgotten = true
      if (call.modern === undefined) return false
      call.controller.abort()
      return true
    }
    return modernVersion(frame, head) !== undefined
  }

  async #accepted(response: HttpResponse, session: string | undefined): Promise<void> {
    if (response.status >= 200 && response.status <= 299) return discard(response.body)
    if (response.status === 404 && session !== undefined) {
      discard(response.body)
      this.#sessionLost(session)
      throw proxyError('upstream_session_lost')
    }
    const refusal = refusalBody(await collect(response.body, this.#gate, this.#endpoint.maxMessageBytes))
    throw (refusal && refusalError(refusal)) ?? statusError(response)
  }

  #sessionLost(session: string, call?: Call): void {
    if (call) this.#fail(call, proxyError('upstream_session_lost'))
    if (session !== this.#session) return
    this.#session = undefined
    this.#lost = proxyError('upstream_session_lost')
    this.#abort()
    this.#tell(proxyError('upstream_session_lost', { phase: 'sent' }))
  }

  async #close(): Promise<void> {
    const headers = this.#sessionHeaders()
    this.#abort()
    if (this.#session !== undefined) {
      const request = { method: 'DELETE', headers, signal: AbortSignal.timeout(DELETE_MS) } as const
      await this.#endpoint.open(request).response.then(
        ({ body }) => discard(body),
        () => {},
      )
    }
    if (!this.#shared) this.#endpoint.close()
    this.#tell()
  }

  #abort(): void {
    this.#controller.abort()
    for (const call of this.#calls) call.controller.abort()
  }

  #tell(reason?: Error): void {
    if (this.#told) return
    this.#told = true
    this.onclose?.(reason)
  }

  #ask(call: Call) {
    return askTools(this.#endpoint, call.frame, call.head, call.modern ?? '', call.controller.signal)
  }

  #post(body: Frame, headers: Record<string, string>, signal: AbortSignal): Exchange {
    const accept = 'application/json, text/event-stream'
    const all = { accept, 'content-type': 'application/json', ...headers }
    return this.#endpoint.open({ method: 'POST', headers: all, body, signal })
  }

  #get(lastEventId: string, signal: AbortSignal): Promise<HttpResponse> {
    const headers: Record<string, string> = { accept: 'text/event-stream', ...this.#sessionHeaders() }
    if (lastEventId !== '') headers['last-event-id'] = lastEventId
    return this.#endpoint.open({ method: 'GET', headers, signal }).response
  }

  #sessionHeaders(): Record<string, string> {
    const headers: Record<string, string> = {}
    if (this.#session !== undefined) headers['mcp-session-id'] = this.#session
    if (this.#version !== undefined) headers['mcp-protocol-version'] = this.#version
    return headers
  }
}

/** 2026-07-28 streamable-http, "Server Validation". */
const HEADER_MISMATCH = -32020
const VISIBLE_ASCII = /^[\x21-\x7e]+$/

function sessionOf(response: HttpResponse): string | undefined {
  const id = response.headers['mcp-session-id']
  return typeof id === 'string' && VISIBLE_ASCII.test(id) ? id : undefined
}

function isAbort(error: unknown): boolean {
  return (error as Error | undefined)?.name === 'AbortError'
}

function bad(detail: string): RpcError {
  return proxyError('upstream_bad_response', { phase: 'sent', detail })
}
