import { type ErrorEvent, EventSource, type EventSourceFetchInit, type FetchLikeResponse } from 'eventsource'
import { inPhase, proxyError, RpcError, reasons } from '../error.js'
import { errorFrame } from '../message.js'
import { type Head, scan } from '../scan.js'
import { type Frame, FrameError, type FrameMeta, type Wire } from '../wire.js'
import { accepted, statusError } from './answer.js'
import { Endpoint, type HttpUpstreamOptions } from './endpoint.js'
import { patiently, settledSoon } from './patience.js'
import { discard, type HttpResponse, within } from './request.js'
import { bytesOf, readEncoded } from './source.js'
import { collect, Gate, mediaType } from './stream.js'

/**
 * The client's end of HTTP+SSE (2024-11-05 basic/transports, "HTTP with SSE"): one GET stream brings everything, each
 * message goes out by a POST to the address that the stream's `endpoint` event names. The end of the stream is the
 * end of the session.
 */
export class SseUpstream implements Wire {
  onframe?: (frame: Frame, meta?: FrameMeta) => void
  onclose?: (reason?: Error) => void
  onerror?: (error: Error) => void

  readonly #endpoint: Endpoint
  readonly #shared: boolean
  readonly #gate = new Gate()
  readonly #controller = new AbortController()
  #source: EventSource | undefined
  #target: URL | undefined
  #failure: RpcError | undefined
  /** Refusals that may still come. */
  readonly #watched = new Set<Promise<void>>()
  #started: { resolve: () => void; reject: (error: Error) => void } | undefined
  #lost: RpcError | undefined
  #closing: Promise<void> | undefined
  #told = false

  constructor(options: HttpUpstreamOptions | Endpoint) {
    this.#shared = options instanceof Endpoint
    this.#endpoint = options instanceof Endpoint ? options : new Endpoint(options)
  }

  /** Resolves when the `endpoint` event has come. */
  async start(): Promise<void> {
    if (this.#lost) throw this.#lost
    const { timeout, url } = this.#endpoint
    const timer = setTimeout(
      () => this.#end(proxyError('upstream_unreachable', { detail: 'no endpoint event' })),
      timeout,
    )
    try {
      await new Promise<void>((resolve, reject) => {
        this.#started = { resolve, reject }
        const source = new EventSource(url, { fetch: (_url, init) => this.#fetch(init) })
        this.#source = source
        source.addEventListener('endpoint', ({ data }) => this.#located(bytesOf(data).toString()))
        source.addEventListener('message', ({ data }) => {
          if (data !== '') this.onframe?.(bytesOf(data))
        })
        source.addEventListener('error', (event) => this.#broken(event))
      })
    } finally {
      clearTimeout(timer)
      this.#started = undefined
    }
  }

  async send(frame: Frame): Promise<void> {
    if (this.#target === undefined || this.#lost) throw this.#lost ?? proxyError('upstream_unreachable')
    const head = scan(frame)
    const { response, written } = this.#endpoint.open({
      method: 'POST',
      url: this.#target,
      headers: { 'content-type': 'application/json' },
      body: frame,
      signal: this.#controller.signal,
    })
    try {
      if (head.kind === 'request') await written
      else await patiently(this.#accepted(response), (error) => this.#late(error))
    } catch (error) {
      throw error instanceof RpcError ? error : inPhase(this.#lost ?? proxyError('shutting_down'), 'sent')
    }
    if (head.kind !== 'request') return
    const watch = this.#watch(head, response).finally(() => this.#watched.delete(watch))
    this.#watched.add(watch)
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

  /** The answer comes on the stream; only a refusal comes here. */
  async #watch(head: Head, pending: Promise<HttpResponse>): Promise<void> {
    const meta: { -readonly [Name in keyof FrameMeta]: FrameMeta[Name] } = { relatedRequestId: head.id }
    try {
      const { status, headers } = await pending
      meta.status = status
      meta.headers = headers
      await this.#accepted(pending, () => {
        meta.isUnread = true
      })
    } catch (error) {
      if (this.#controller.signal.aborted) return
      const told = error instanceof RpcError ? error : proxyError('upstream_bad_response', { phase: 'sent' })
      this.onframe?.(errorFrame(head.idText, told.toJSON()), meta)
    }
  }

  #late(error: Error): void {
    if (!this.#lost) this.onerror?.(error)
  }

  async #accepted(pending: Promise<HttpResponse>, onUnread = () => {}): Promise<void> {
    const response = await pending
    const body = () => collect(response.body, this.#gate, this.#endpoint.maxMessageBytes)
    return accepted(response, body, () => {
      onUnread()
      this.#forgotten()
    })
  }

  /** Only the origin that we were told to talk to may be named, or our credentials would go elsewhere. */
  #located(address: string): void {
    const { url } = this.#endpoint
    const target = within(url, address)
    if (this.#target !== undefined) {
      this.#end(proxyError('upstream_session_lost', { phase: 'sent' }))
    } else if (target === undefined) {
      this.#end(proxyError('upstream_bad_response', { detail: 'endpoint of another origin' }))
    } else {
      this.#target = target
      this.#started?.resolve()
      this.#started = undefined
    }
  }

  #broken(event: ErrorEvent): void {
    if (this.#started === undefined) {
      this.#end(proxyError('upstream_session_lost', { phase: 'sent' }))
    } else {
      const detail = event.code === undefined ? 'stream ended' : `HTTP ${event.code}, no event stream`
      this.#end(this.#failure ?? proxyError('upstream_unreachable', { detail }))
    }
  }

  #end(reason: RpcError): void {
    if (this.#lost) return
    this.#lost = inPhase(reason, 'not_sent')
    this.#leave(reason)
  }

  /** The server does not know this session any more: others that were sent into it may be refused unread as well. */
  #forgotten(): void {
    if (this.#lost) return
    this.#lost = proxyError('upstream_session_lost')
    void settledSoon(this.#watched).then(() => this.#leave(proxyError('upstream_session_lost', { phase: 'sent' })))
  }

  #leave(reason: RpcError): void {
    this.#abort()
    if (this.#started) this.#started.reject(reason)
    else this.#tell(reason)
  }

  async #close(): Promise<void> {
    this.#lost ??= proxyError('shutting_down')
    this.#abort()
    this.#started?.reject(this.#lost)
    if (!this.#shared) this.#endpoint.close()
    this.#tell()
  }

  #abort(): void {
    this.#source?.close()
    // It sets its timer to connect again after it told of the error in whose handler we may be.
    queueMicrotask(() => this.#source?.close())
    this.#controller.abort()
  }

  #tell(reason?: Error): void {
    if (this.#told) return
    this.#told = true
    this.onclose?.(reason)
  }

  async #fetch(init: EventSourceFetchInit): Promise<FetchLikeResponse> {
    const { response: pending } = this.#endpoint.open({
      method: 'GET',
      headers: { accept: init.headers.Accept },
      signal: this.#controller.signal,
    })
    const response = await pending.catch((error: unknown) => {
      if (error instanceof RpcError) this.#failure = error
      throw error
    })
    const { status } = response
    if (status === 401 || status === 403) this.#failure = statusError(response)
    if (status !== 200) discard(response.body)
    return {
      status,
      url: this.#endpoint.url.href,
      redirected: false,
      // It asks for the content type alone, and compares it as it was written.
      headers: { get: () => mediaType(response) },
      body: {
        getReader: () =>
          readEncoded(response.body, {
            gate: this.#gate,
            maxBytes: this.#endpoint.maxMessageBytes,
            silence: this.#endpoint.sseReadTimeout,
            onTooLarge: (head) => {
              this.onerror?.(new FrameError(reasons.too_large.code, reasons.too_large.message, head))
            },
          }),
      },
    }
  }
}
