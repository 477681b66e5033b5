import { proxyError, RpcError } from '../error.js'
import { errorFrame } from '../message.js'
import { scan } from '../scan.js'
import type { Frame, FrameMeta, StreamEvent, Wire } from '../wire.js'
import { Endpoint, type HttpUpstreamOptions } from './endpoint.js'
import { HttpUpstream } from './http.js'
import { SseUpstream } from './sse.js'

/** Statuses by which an HTTP+SSE server refuses a POST to its stream's address. */
const NOT_STREAMABLE = new Set([400, 404, 405])

/** What a server of 2026-07-28 says to an `initialize` (streamable-http, "Backward Compatibility"). */
const MODERN_ERRORS = new Set([-32601, -32020, -32021, -32022])

/**
 * A wire to a server whose transport nobody named: Streamable HTTP, unless that server refuses the first `initialize`
 * in a way that tells of HTTP+SSE and does serve such a stream (2025-11-25 basic/transports, "Backwards
 * Compatibility"). What was found out is kept.
 */
export function detect(options: HttpUpstreamOptions | Endpoint): Wire {
  return options instanceof Endpoint
    ? new DetectingUpstream(options, true)
    : new DetectingUpstream(new Endpoint(options), false)
}

class DetectingUpstream implements Wire {
  onframe?: (frame: Frame, meta?: FrameMeta) => void
  onclose?: (reason?: Error) => void
  onerror?: (error: Error) => void
  onstream?: (event: StreamEvent) => void

  readonly #endpoint: Endpoint
  readonly #shared: boolean
  readonly #streamable: HttpUpstream
  #wire: Wire
  #first: { id: unknown; frame: Frame } | undefined
  #decided = false
  #switching: Promise<void> | undefined
  #paused = false
  #candidate: SseUpstream | undefined
  #closing: Promise<void> | undefined

  constructor(endpoint: Endpoint, shared: boolean) {
    this.#endpoint = endpoint
    this.#shared = shared
    this.#streamable = new HttpUpstream(endpoint)
    this.#wire = this.#streamable
  }

  start(): Promise<void> | void {
    this.#adopt(this.#wire)
    return this.#wire.start()
  }

  send(frame: Frame, meta?: FrameMeta): Promise<void> | void {
    if (this.#decided && this.#switching === undefined) return this.#wire.send(frame, meta)
    return this.#sendEarly(frame, meta)
  }

  async #sendEarly(frame: Frame, meta?: FrameMeta): Promise<void> {
    if (!this.#decided && this.#first === undefined) {
      const head = scan(frame)
      if (head.method === 'initialize' && head.kind === 'request') this.#first = { id: head.id, frame }
    }
    await this.#switching
    const first = this.#first
    try {
      await this.#wire.send(frame, meta)
    } catch (error) {
      if (first?.frame === frame) this.#first = undefined
      throw error
    }
  }

  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  pause(): void {
    this.#paused = true
    this.#wire.pause()
  }

  resume(): void {
    this.#paused = false
    this.#wire.resume()
  }

  #adopt(wire: Wire): void {
    wire.onframe = (frame, meta) => this.#frame(frame, meta)
    wire.onclose = (reason) => this.onclose?.(reason)
    wire.onerror = (error) => this.onerror?.(error)
    wire.onstream = (event) => this.onstream?.(event)
  }

  #frame(frame: Frame, meta?: FrameMeta): void {
    const first = this.#first
    if (meta && first !== undefined && meta.relatedRequestId === first.id) {
      const { status = 0 } = meta
      const refused = NOT_STREAMABLE.has(status)
      // A server that is busy, or wants credentials, has said nothing of its transport.
      this.#decided = refused || (status >= 200 && status < 300)
      this.#first = undefined
      if (refused && !isModernError(frame) && !this.#closing) {
        this.#switching = this.#fallBack(first.frame, (error = frame) => this.onframe?.(error, meta)).finally(() => {
          this.#switching = undefined
        })
        return
      }
    }
    this.onframe?.(frame, meta)
  }

  /** Where there is no such stream either, the first refusal says more than the second. */
  async #fallBack(initialize: Frame, refuse: (error?: Frame) => void): Promise<void> {
    const sse = new SseUpstream(this.#endpoint)
    this.#candidate = sse
    try {
      await sse.start()
    } catch {
      return refuse()
    }
    // Requests beside this one still get their answers from there.
    this.#streamable.onclose = undefined
    this.#adopt(sse)
    this.#wire = sse
    if (this.#paused) sse.pause()
    try {
      await sse.send(initialize)
    } catch (error) {
      const told = error instanceof RpcError ? error : proxyError('upstream_unreachable')
      refuse(errorFrame(scan(initialize).idText, told.toJSON()))
    }
  }

  async #close(): Promise<void> {
    await Promise.all([this.#candidate?.close(), this.#streamable.close()])
    await this.#switching
    if (!this.#shared) this.#endpoint.close()
  }
}

function isModernError(frame: Frame): boolean {
  const { error } = JSON.parse(Buffer.from(frame).toString()) as { error?: { code?: unknown } }
  return MODERN_ERRORS.has(Number(error?.code))
}
