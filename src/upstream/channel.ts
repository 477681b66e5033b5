import { setMaxListeners } from 'node:events'
import { type CollectEvents, collect, collected, Gate } from './body.js'
import type { Endpoint } from './endpoint.js'
import type { Exchange, HttpResponse, Taker } from './request.js'
import { readEvents, type StreamEnd, type StreamOptions } from './stream.js'

type Headers = Readonly<Record<string, string>>

const DELETE_MS = 1_000
const EITHER = 'application/json, text/event-stream'
const STREAM_FIRST = 'text/event-stream, application/json'

/** What one client has with one server over Streamable HTTP: the legacy session, and whatever is in flight. */
export class Channel {
  readonly endpoint: Endpoint
  readonly gate = new Gate()
  readonly #controller = new AbortController()
  #session: string | undefined
  #version: string | undefined
  /** Of every legacy POST, until one of the two changes. */
  #headers: { either: Headers; streamFirst: Headers } | undefined

  constructor(endpoint: Endpoint) {
    this.endpoint = endpoint
    // Each message on its way listens; Node warns of more than ten.
    setMaxListeners(0, this.signal)
  }

  /** `Mcp-Session-Id` (2025-11-25 basic/transports, "Session Management"). */
  get session(): string | undefined {
    return this.#session
  }

  set session(session: string | undefined) {
    this.#session = session
    this.#headers = undefined
  }

  /** The negotiated revision (2025-11-25 basic/transports, "Protocol Version Header"). */
  get version(): string | undefined {
    return this.#version
  }

  set version(version: string | undefined) {
    this.#version = version
    this.#headers = undefined
  }

  /** Aborts with the channel. */
  get signal(): AbortSignal {
    return this.#controller.signal
  }

  get closed(): boolean {
    return this.signal.aborted
  }

  /** A legacy message. */
  post(body: Uint8Array, streamFirst: boolean, taker: Taker): Exchange {
    this.#headers ??= {
      either: postHeaders(false, this.#ours()),
      streamFirst: postHeaders(true, this.#ours()),
    }
    const headers = streamFirst ? this.#headers.streamFirst : this.#headers.either
    return this.endpoint.open({ method: 'POST', headers, body }, taker)
  }

  /** A modern one, which says all about itself. */
  postModern(body: Uint8Array, streamFirst: boolean, headers: Headers, taker: Taker): Exchange {
    return this.endpoint.open({ method: 'POST', headers: postHeaders(streamFirst, headers), body }, taker)
  }

  /** What has no answer but its status; with the revision that it comes under, where that is not the session's. */
  tell(body: Uint8Array, version: string | undefined): Promise<HttpResponse> {
    const headers = version === undefined ? this.#ours() : { 'mcp-protocol-version': version }
    return this.endpoint.ask({ method: 'POST', headers: postHeaders(false, headers), body }, this.signal)
  }

  get(lastEventId: string, signal = this.signal): Promise<HttpResponse> {
    const headers: Record<string, string> = { accept: 'text/event-stream', ...this.#ours() }
    // In UTF-8 (WHATWG HTML, section 9.2.3).
    if (lastEventId !== '') headers['last-event-id'] = Buffer.from(lastEventId).toString('latin1')
    return this.endpoint.ask({ method: 'GET', headers }, signal)
  }

  body(response: HttpResponse): Promise<Buffer> {
    return collected(response.body, this.gate, this.endpoint.maxMessageBytes)
  }

  collect(response: HttpResponse, events: CollectEvents): void {
    collect(response.body, this.gate, this.endpoint.maxMessageBytes, events)
  }

  events(response: HttpResponse, take: Pick<StreamOptions, 'onFrame' | 'onTooLarge'>): Promise<StreamEnd> {
    const { maxMessageBytes: maxBytes, sseReadTimeout: silence } = this.endpoint
    return readEvents(response.body, { gate: this.gate, maxBytes, silence, ...take })
  }

  abort(): void {
    this.#controller.abort()
  }

  /** Ends the session, if the server lets us and does not take long. */
  async leave(): Promise<void> {
    if (this.session === undefined) return
    const request = { method: 'DELETE', headers: this.#ours() } as const
    await this.endpoint.ask(request, AbortSignal.timeout(DELETE_MS)).then(
      ({ body }) => body.discard(),
      () => {},
    )
  }

  /** What every legacy request after `initialize` carries. */
  #ours(): Headers {
    const headers: Record<string, string> = {}
    if (this.session !== undefined) headers['mcp-session-id'] = this.session
    if (this.version !== undefined) headers['mcp-protocol-version'] = this.version
    return headers
  }
}

function postHeaders(streamFirst: boolean, headers: Headers): Headers {
  return { accept: streamFirst ? STREAM_FIRST : EITHER, 'content-type': 'application/json', ...headers }
}
