import { Readable } from 'node:stream'
import type { ReadableStream } from 'node:stream/web'
import { type Deferred, deferred, handled } from '../deferred.js'
import { inPhase, type Phase, proxyError, RpcError } from '../error.js'
import { Body, bodyOf, type Source } from './body.js'
import { type Carried, type Connection, SMALL } from './connection.js'
import { Connections } from './connections.js'
import { decoded } from './encoding.js'
import type { Fields } from './fields.js'
import type { ResponseHeaders } from './response.js'

export interface HttpRequest {
  method: 'GET' | 'POST' | 'DELETE'
  fields: Fields
  body?: Uint8Array | undefined
}

export interface HttpResponse {
  status: number
  headers: Readonly<ResponseHeaders>
  body: Body
}

/** Is told of one of the two, once. */
export interface Taker {
  /** The head of the response has come. */
  onResponse(response: HttpResponse): void
  /** With an `RpcError`, or an `AbortError`. Not called where `written` has rejected. */
  onError(error: Error): void
}

export interface Exchange {
  /**
   * Resolves when the connection stands and takes the whole request; undefined where one stands that is about to. With a
   * `fetch` that cannot be seen.
   */
  readonly written: Promise<void> | undefined
  abort(): void
}

export interface HttpClientOptions {
  /** Milliseconds for DNS, TCP and TLS. Not applied to a `fetch`. */
  timeout: number
  /** Instead of connections of our own: for a proxy, a custom CA, tests. Is asked with `redirect: 'manual'`. */
  fetch?: typeof fetch
}

const MAX_REDIRECTS = 3
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
 * HTTP/1.1 for long calls to one origin: nothing but the connect timeout ever cuts a request, and redirects stay within
 * the origin, so that no header meant for it leaves it. It is written for what a call costs: undici takes 15 MiB more and
 * 30 ms longer to start, for its parser in WebAssembly, and node:http twice the time for each call.
 */
export class HttpClient {
  readonly #fetch: typeof fetch | undefined
  readonly #connections: Connections

  constructor(origin: URL, options: HttpClientOptions) {
    this.#fetch = options.fetch
    this.#connections = new Connections(origin, options.timeout)
  }

  open(url: URL, request: HttpRequest, taker: Taker): Exchange {
    return new Following(this, url, request, taker)
  }

  /** The same, redirects not followed. */
  hop(url: URL, request: HttpRequest, taker: Taker): Exchange {
    if (this.#fetch) return fetched(this.#fetch, url, request, taker)
    try {
      return new Sending(this.#connections, url, request, taker)
    } catch (error) {
      return { written: handled(Promise.reject(fault(error as Error, 'not_sent'))), abort() {} }
    }
  }

  /** Drops every connection, those in use too. */
  close(): void {
    this.#connections.close()
  }
}

/** An exchange, and those that redirects make of it. */
class Following implements Exchange, Taker {
  readonly written: Promise<void> | undefined
  readonly #client: HttpClient
  readonly #request: HttpRequest
  readonly #taker: Taker
  #url: URL
  #hops = 0
  #current: Exchange

  constructor(client: HttpClient, url: URL, request: HttpRequest, taker: Taker) {
    this.#client = client
    this.#url = url
    this.#request = request
    this.#taker = taker
    this.#current = client.hop(url, request, this)
    this.written = this.#current.written
  }

  abort(): void {
    this.#current.abort()
  }

  onResponse(response: HttpResponse): void {
    const { location } = response.headers
    if (REDIRECTS.has(response.status) && typeof location === 'string') this.#follow(response, location)
    else this.#taker.onResponse(response)
  }

  onError(error: Error): void {
    this.#taker.onError(this.#hops > 0 && error instanceof RpcError ? inPhase(error, 'sent') : error)
  }

  #follow({ status, body }: HttpResponse, location: string): void {
    body.discard()
    const to = redirected(this.#url, location, this.#request.method, status, this.#hops)
    if (to instanceof RpcError) {
      this.#taker.onError(to)
      return
    }
    this.#url = to
    this.#hops += 1
    this.#current = this.#client.hop(to, this.#request, this)
    this.#current.written?.catch((error: Error) => this.onError(error))
  }
}

/** One request over a connection of ours. */
class Sending implements Exchange, Carried, Source {
  readonly head: string
  readonly body: Uint8Array | undefined
  readonly written: Promise<void> | undefined
  connection: Connection | undefined
  #isOver = false
  readonly #connections: Connections
  readonly #taker: Taker
  #phase: Phase = 'not_sent'
  #isAborted = false
  #writing: Deferred | undefined
  #response: Body | undefined

  constructor(connections: Connections, url: URL, { method, fields, body }: HttpRequest, taker: Taker) {
    this.#connections = connections
    this.#taker = taker
    const size = body === undefined ? '' : `content-length: ${body.byteLength}\r\n`
    this.head = `${method} ${url.pathname}${url.search} HTTP/1.1\r\n${size}${fields.text}\r\n`
    this.body = body
    const stands = connections.carry(this)
    if (stands && (body?.byteLength ?? 0) <= SMALL) return
    this.#writing = deferred()
    this.written = this.#writing.promise
  }

  abort(): void {
    if (this.#isOver) return
    this.#isAborted = true
    this.#connections.drop(this)
  }

  // --- as its connection has it -----------------------------------------------------------------------------

  onSent(): void {
    this.#phase = 'sent'
  }

  onTaken(): void {
    this.#writing?.resolve()
    this.#writing = undefined
  }

  onHead(status: number, headers: ResponseHeaders): void {
    this.onTaken()
    const body = new Body(this)
    this.#response = body
    this.#taker.onResponse({
      status,
      headers,
      body: isEmpty(headers) ? body : decoded(body, headers['content-encoding']),
    })
  }

  onData(chunk: Buffer): void {
    this.#response!.push(chunk)
  }

  onEnd(): void {
    this.#isOver = true
    this.connection = undefined
    this.#response!.finish(true)
  }

  onFault(error: Error): void {
    if (this.#isOver) return
    this.#isOver = true
    this.connection = undefined
    const told = this.#isAborted ? abortError() : fault(error, this.#phase)
    if (this.#response) this.#response.finish(false)
    else if (this.#writing) this.#writing.reject(told)
    else this.#taker.onError(told)
  }

  // --- as its body has it -----------------------------------------------------------------------------------

  pause(): void {
    this.connection?.pause()
  }

  resume(): void {
    this.connection?.resume()
  }

  destroy(): void {
    this.abort()
  }
}

function fetched(by: typeof fetch, url: URL, { method, fields, body }: HttpRequest, taker: Taker): Exchange {
  const aborting = new AbortController()
  const ask = async () => {
    const { signal } = aborting
    const response = await by(url, {
      method,
      headers: fields.record,
      signal,
      redirect: 'manual',
      ...(body && { body }),
    })
    const stream = response.body ? Readable.fromWeb(response.body as ReadableStream) : Readable.from([])
    return { status: response.status, headers: Object.fromEntries(response.headers), body: bodyOf(stream) }
  }
  ask().then(
    (response) => taker.onResponse(response),
    (error: Error) => {
      const code = codeOf(error) ?? codeOf(error.cause)
      const phase = code !== undefined && NOT_CONNECTED.has(code) ? 'not_sent' : 'sent'
      taker.onError(fault(error, phase, code))
    },
  )
  return { written: undefined, abort: () => aborting.abort() }
}

/** An address that a server names, where it is one of its own origin; that of a `blob:` is the origin of what made it. */
export function within(home: URL, address: string): URL | undefined {
  const url = URL.canParse(address, home.href) ? new URL(address, home) : undefined
  return url?.origin === home.origin && url.protocol === home.protocol ? url : undefined
}

function redirected(from: URL, location: string, method: string, status: number, hops: number): URL | RpcError {
  const refuse = (why: string) =>
    proxyError('upstream_bad_response', { phase: 'sent', detail: `HTTP ${status} ${why}` })
  const to = within(from, location)
  if (to === undefined) return refuse('to another origin')
  if (method !== 'GET' && status !== 307 && status !== 308) return refuse('would drop the body')
  if (hops === MAX_REDIRECTS) return refuse('too many times')
  return to
}

/** Of nothing there is nothing to decode. */
function isEmpty(headers: ResponseHeaders): boolean {
  return headers['content-length'] === '0'
}

function abortError(): Error {
  return new DOMException('This operation was aborted', 'AbortError')
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
