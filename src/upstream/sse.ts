import { setMaxListeners } from 'node:events'
import { type ErrorEvent, EventSource, type EventSourceFetchInit, type FetchLikeResponse } from 'eventsource'
import { type Deferred, deferred } from '../deferred.js'
import { inPhase, proxyError, RpcError, reasons } from '../error.js'
import { errorFrame } from '../message.js'
import { type Head, scan } from '../scan.js'
import { type Frame, FrameError, type FrameMeta, type Wire } from '../wire.js'
import { accepted, statusError } from './answer.js'
import { collected, Gate } from './body.js'
import { Endpoint, type EndpointRequest, type HttpUpstreamOptions } from './endpoint.js'
import { patiently, settledSoon } from './patience.js'
import { type Exchange, type HttpResponse, type Taker, within } from './request.js'
import { bytesOf, readEncoded } from './source.js'
import { mediaType } from './stream.js'

/** One object for all, as what is made of it is kept. */
const JSON_BODY = { 'content-type': 'application/json' }

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
  readonly #posts = new Set<Post>()
  #started: { resolve: () => void; reject: (error: Error) => void } | undefined
  #lost: RpcError | undefined
  #closing: Promise<void> | undefined
  #told = false

  constructor(options: HttpUpstreamOptions | Endpoint) {
    this.#shared = options instanceof Endpoint
    this.#endpoint = options instanceof Endpoint ? options : new Endpoint(options)
    // Each message on its way listens; Node warns of more than ten.
    setMaxListeners(0, this.#controller.signal)
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
        source.addEventListener('error', (event) => this.#broken(event))
      })
    } finally {
      clearTimeout(timer)
      this.#started = undefined
    }
  }

  send(frame: Frame): Promise<void> | undefined {
    if (this.#target === undefined || this.#lost) {
      return Promise.reject(this.#lost ?? proxyError('upstream_unreachable'))
    }
    const head = scan(frame)
    const request = { method: 'POST', url: this.#target, headers: JSON_BODY, body: frame } as const
    const sent = head.kind === 'request' ? this.#post(request, head) : this.#tellServer(request)
    return sent?.catch((error: unknown) => {
      throw error instanceof RpcError ? error : inPhase(this.#lost ?? proxyError('shutting_down'), 'sent')
    })
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

  #post(request: EndpointRequest, head: Head): Promise<void> | undefined {
    const post = new Post(head, {
      onRefused: (response) => this.#refused(post, response),
      onError: (error) => this.#fail(post, error),
      onSettled: () => this.#posts.delete(post),
    })
    this.#posts.add(post)
    post.exchange = this.#endpoint.open(request, post)
    return post.exchange.written?.catch((error: unknown) => {
      post.settle()
      throw error
    })
  }

  /** The answer comes on the stream; only a refusal comes here. */
  async #refused(post: Post, response: HttpResponse): Promise<void> {
    const { status, headers } = response
    let isUnread = false
    const onUnread = () => {
      isUnread = true
    }
    try {
      await this.#accepted(response, onUnread)
    } catch (error) {
      this.#fail(post, error, { status, headers, ...(isUnread ? { isUnread } : {}) })
    }
  }

  #fail(post: Post, error: unknown, meta: FrameMeta = {}): void {
    const { head } = post
    post.settle()
    if (this.#controller.signal.aborted) return
    const told = error instanceof RpcError ? error : proxyError('upstream_bad_response', { phase: 'sent' })
    this.onframe?.(errorFrame(head.idText, told.toJSON()), { relatedRequestId: head.id, ...meta })
  }

  /** Sends what has no answer: resolves when the server has taken it. */
  #tellServer(request: EndpointRequest): Promise<void> {
    const taken = this.#endpoint.ask(request, this.#controller.signal).then((response) => this.#accepted(response))
    return patiently(taken, (error) => {
      if (!this.#lost) this.onerror?.(error)
    })
  }

  #accepted(response: HttpResponse, onUnread = () => {}): Promise<void> {
    const body = () => collected(response.body, this.#gate, this.#endpoint.maxMessageBytes)
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
    void settledSoon([...this.#posts].map(({ settled }) => settled)).then(() =>
      this.#leave(proxyError('upstream_session_lost', { phase: 'sent' })),
    )
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
    for (const { exchange } of this.#posts) exchange?.abort()
  }

  #tell(reason?: Error): void {
    if (this.#told) return
    this.#told = true
    this.onclose?.(reason)
  }

  async #fetch(init: EventSourceFetchInit): Promise<FetchLikeResponse> {
    const request = { method: 'GET', headers: { accept: init.headers.Accept } } as const
    const response = await this.#endpoint.ask(request, this.#controller.signal).catch((error: unknown) => {
      if (error instanceof RpcError) this.#failure = error
      throw error
    })
    const { status } = response
    if (status === 401 || status === 403) this.#failure = statusError(response)
    if (status !== 200) response.body.discard()
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
            onFrame: (frame) => {
              if (!this.#controller.signal.aborted) this.onframe?.(frame)
            },
            onTooLarge: (head) => {
              this.onerror?.(new FrameError(reasons.too_large.code, reasons.too_large.message, head))
            },
          }),
      },
    }
  }
}

interface PostEvents {
  onRefused(response: HttpResponse): void
  onError(error: Error): void
  onSettled(): void
}

/** A request that was POSTed: whether the server takes it. */
class Post implements Taker {
  readonly head: Head
  exchange: Exchange | undefined
  readonly #events: PostEvents
  #settled: Deferred | undefined

  constructor(head: Head, events: PostEvents) {
    this.head = head
    this.#events = events
  }

  /** Resolves when nothing more will come. */
  get settled(): Promise<void> {
    this.#settled ??= deferred()
    return this.#settled.promise
  }

  settle(): void {
    this.#settled?.resolve()
    this.#events.onSettled()
  }

  onResponse(response: HttpResponse): void {
    if (response.status < 200 || response.status > 299) this.#events.onRefused(response)
    else {
      response.body.discard()
      this.settle()
    }
  }

  onError(error: Error): void {
    this.#events.onError(error)
  }
}
