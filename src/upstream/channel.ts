import type { Endpoint } from './endpoint.js'
import type { Exchange, HttpResponse } from './request.js'
import { discard } from './request.js'
import { collect, Gate, readEvents, type StreamEnd, type StreamOptions } from './stream.js'

const DELETE_MS = 1_000

/** What one client has with one server over Streamable HTTP: the legacy session, and whatever is in flight. */
export class Channel {
  readonly endpoint: Endpoint
  readonly gate = new Gate()
  /** `Mcp-Session-Id` (2025-11-25 basic/transports, "Session Management"). */
  session: string | undefined
  /** The negotiated revision (2025-11-25 basic/transports, "Protocol Version Header"). */
  version: string | undefined
  readonly #controller = new AbortController()

  constructor(endpoint: Endpoint) {
    this.endpoint = endpoint
  }

  /** Aborts with the channel. */
  get signal(): AbortSignal {
    return this.#controller.signal
  }

  get closed(): boolean {
    return this.signal.aborted
  }

  /** What every legacy request after `initialize` carries. */
  headers(): Record<string, string> {
    const headers: Record<string, string> = {}
    if (this.session !== undefined) headers['mcp-session-id'] = this.session
    if (this.version !== undefined) headers['mcp-protocol-version'] = this.version
    return headers
  }

  post(body: Uint8Array, headers: Record<string, string>, signal = this.signal): Exchange {
    const accept = 'application/json, text/event-stream'
    const all = { accept, 'content-type': 'application/json', ...headers }
    return this.endpoint.open({ method: 'POST', headers: all, body, signal })
  }

  get(lastEventId: string, signal = this.signal): Promise<HttpResponse> {
    const headers: Record<string, string> = { accept: 'text/event-stream', ...this.headers() }
    if (lastEventId !== '') headers['last-event-id'] = lastEventId
    return this.endpoint.open({ method: 'GET', headers, signal }).response
  }

  body(response: HttpResponse): Promise<Buffer> {
    return collect(response.body, this.gate, this.endpoint.maxMessageBytes)
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
    const request = { method: 'DELETE', headers: this.headers(), signal: AbortSignal.timeout(DELETE_MS) } as const
    await this.endpoint.open(request).response.then(
      ({ body }) => discard(body),
      () => {},
    )
  }
}
