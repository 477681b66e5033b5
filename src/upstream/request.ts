import * as http from 'node:http'
import * as https from 'node:https'
import { Readable } from 'node:stream'
import type { ReadableStream } from 'node:stream/web'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { deferred } from '../deferred.js'
import { inPhase, type Phase, proxyError, RpcError } from '../error.js'
import { decoded } from './encoding.js'

export interface HttpRequest {
  method: 'GET' | 'POST' | 'DELETE'
  headers: Record<string, string>
  body?: Uint8Array
  signal: AbortSignal
}

export interface HttpResponse {
  status: number
  /** Names in lower case. */
  headers: Readonly<Record<string, string | string[] | undefined>>
  /** Must be read, discarded or destroyed. */
  body: Readable
}

/** One request and its response, each told on its own. Unobserved rejections do no harm. */
export interface Exchange {
  /** The connection stands and takes the whole request. With a `fetch` that cannot be seen: at once. */
  written: Promise<void>
  /** The head of the response has come. Rejects with an `RpcError`, or an `AbortError` when the signal aborted. */
  response: Promise<HttpResponse>
}

export interface HttpClientOptions {
  /** Milliseconds for DNS, TCP and TLS. Not applied to a `fetch`. */
  timeout: number
  /** Instead of node:http: for a proxy, a custom CA, tests. Is asked with `redirect: 'manual'`. */
  fetch?: typeof fetch
}

// Under the 5 s after which most servers close an idle connection: a request must not race with that.
const IDLE_SOCKET_MS = 4_000
const TCP_KEEPALIVE_MS = 30_000
const MAX_REDIRECTS = 3
/** How long a body that should be over may keep its connection. */
const LINGER_MS = 2_000
const REDIRECTS = new Set([301, 302, 303, 307, 308])
const NOT_CONNECTED = new Set([
  'ECONNREFUSED',
  'ENOTFOUND',
  'EAI_AGAIN',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'UND_ERR_CONNECT_TIMEOUT',
])

/**
 * HTTP for long calls: nothing but the connect timeout ever cuts a request. Redirects stay within the origin, so that
 * no header meant for it leaves it.
 */
export class HttpClient {
  readonly #timeout: number
  readonly #fetch: typeof fetch | undefined
  readonly #agents: { 'http:': http.Agent; 'https:': https.Agent }

  constructor(options: HttpClientOptions) {
    this.#timeout = options.timeout
    this.#fetch = options.fetch
    const keep = { keepAlive: true, keepAliveMsecs: TCP_KEEPALIVE_MS, timeout: IDLE_SOCKET_MS }
    this.#agents = { 'http:': new http.Agent(keep), 'https:': new https.Agent(keep) }
  }

  open(url: URL, request: HttpRequest): Exchange {
    const written = deferred()
    const response = this.#follow(url, request, written.resolve)
    response.then(() => written.resolve(), written.reject)
    return { written: written.promise, response }
  }

  /** Drops every connection, those in use too. */
  close(): void {
    for (const agent of Object.values(this.#agents)) agent.destroy()
  }

  async #follow(start: URL, request: HttpRequest, onWritten: () => void): Promise<HttpResponse> {
    let url = start
    for (let hops = 0; ; hops += 1) {
      let response: HttpResponse
      try {
        response = await (this.#fetch
          ? this.#fetched(url, request, onWritten)
          : this.#requested(url, request, onWritten))
      } catch (caught) {
        const error = fault(caught as Error, 'not_sent')
        throw hops > 0 && error instanceof RpcError ? inPhase(error, 'sent') : error
      }
      const { location } = response.headers
      if (!REDIRECTS.has(response.status) || typeof location !== 'string') return response
      discard(response.body)
      url = redirected(url, location, request.method, response.status, hops)
    }
  }

  async #requested(url: URL, request: HttpRequest, onWritten: () => void): Promise<HttpResponse> {
    const secure = url.protocol === 'https:'
    const agent = this.#agents[secure ? 'https:' : 'http:']
    // That the server closed a connection behind its last answer may be there to read: it takes a whole turn to see it.
    for (let half = 0; half < 2 && Object.keys(agent.freeSockets).length > 0; half += 1) await nextTurn()
    return new Promise((resolve, reject) => {
      let phase: Phase = 'not_sent'
      const { method, headers, signal, body } = request
      const options = { agent, method, headers: sized(headers, body), signal, timeout: 0 }
      const outgoing = secure ? https.request(url, options) : http.request(url, options)
      const timer = setTimeout(() => {
        outgoing.destroy(proxyError('upstream_unreachable', { detail: 'connect timeout' }))
      }, this.#timeout)
      const connected = () => {
        clearTimeout(timer)
        phase = 'sent'
      }
      outgoing.on('socket', (socket) => {
        if (outgoing.reusedSocket) connected()
        else socket.once(secure ? 'secureConnect' : 'connect', connected)
      })
      outgoing.on('finish', onWritten)
      outgoing.on('response', (incoming) => {
        incoming.on('error', () => {})
        resolve({ status: incoming.statusCode ?? 0, headers: incoming.headers, body: decoded(incoming) })
      })
      outgoing.on('error', (error) => reject(fault(error, phase)))
      outgoing.on('close', () => {
        clearTimeout(timer)
        // Node tells of no error where the server wants to speak another protocol (101).
        reject(fault(new Error('closed without a response'), phase))
      })
      outgoing.end(body)
    })
  }

  async #fetched(url: URL, request: HttpRequest, onWritten: () => void): Promise<HttpResponse> {
    const { method, headers, signal, body } = request
    try {
      const answer = this.#fetch!(url, { method, headers, signal, redirect: 'manual', ...(body && { body }) })
      onWritten()
      const response = await answer
      const stream = response.body ? Readable.fromWeb(response.body as ReadableStream) : Readable.from([])
      stream.on('error', () => {})
      return { status: response.status, headers: Object.fromEntries(response.headers), body: stream }
    } catch (error) {
      const code = codeOf(error) ?? codeOf((error as Error).cause)
      throw fault(error as Error, code !== undefined && NOT_CONNECTED.has(code) ? 'not_sent' : 'sent', code)
    }
  }
}

/** Reads a body that nobody wants, so that its connection can serve again. */
export function discard(body: Readable): void {
  linger(body)
  body.resume()
}

/** Gives a body that has nothing more to say a moment to end by itself. */
export function linger(body: Readable): void {
  const timer = setTimeout(() => body.destroy(), LINGER_MS).unref()
  body.once('close', () => clearTimeout(timer))
}

function sized(headers: Record<string, string>, body: Uint8Array | undefined): Record<string, string> {
  return body ? { ...headers, 'content-length': String(body.byteLength) } : headers
}

/** An address that a server names, where it is one of its own origin; that of a `blob:` is the origin of what made it. */
export function within(home: URL, address: string): URL | undefined {
  const url = URL.canParse(address, home.href) ? new URL(address, home) : undefined
  return url?.origin === home.origin && url.protocol === home.protocol ? url : undefined
}

function redirected(from: URL, location: string, method: string, status: number, hops: number): URL {
  const refuse = (why: string) =>
    proxyError('upstream_bad_response', { phase: 'sent', detail: `HTTP ${status} ${why}` })
  const to = within(from, location)
  if (to === undefined) throw refuse('to another origin')
  if (method !== 'GET' && status !== 307 && status !== 308) throw refuse('would drop the body')
  if (hops === MAX_REDIRECTS) throw refuse('too many times')
  return to
}

/** Only the code of a network error leaves: its text may hold addresses and paths. */
function fault(error: Error, phase: Phase, code = codeOf(error)): Error {
  if (error instanceof RpcError || error.name === 'AbortError') return error
  if (phase === 'not_sent') return proxyError('upstream_unreachable', { detail: code, cause: error })
  return proxyError('upstream_bad_response', { phase, detail: code ?? 'broken connection', cause: error })
}

function codeOf(error: unknown): string | undefined {
  const code = (error as { code?: unknown } | undefined)?.code
  return typeof code === 'string' && /^[A-Z0-9_]+$/.test(code) ? code : undefined
}
