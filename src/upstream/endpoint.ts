import { handled } from '../deferred.js'
import { proxyError } from '../error.js'
import { LONGEST_TIMER } from '../rest.js'
import { ToolHeaders } from '../tools.js'
import { Fields } from './fields.js'
import { type Exchange, HttpClient, type HttpRequest, type HttpResponse, type Taker } from './request.js'

/** What a server said when it asked for credentials (HTTP 401). */
export interface AuthInfo {
  status: number
  /** Its `WWW-Authenticate` header (RFC 9728, RFC 6750). */
  wwwAuthenticate?: string
}

type Headers = Record<string, string>

export interface HttpUpstreamOptions {
  url: string | URL
  /** Sent with every request; a function is asked before each one. */
  headers?: Headers | (() => Headers | Promise<Headers>)
  /** Instead of connections of our own. */
  fetch?: typeof fetch
  /**
   * Answers a 401 with headers to use from then on, in place of those of the same name. The request is then sent once
   * more. Asked once at a time, however many requests wait for it.
   */
  auth?: (info: AuthInfo) => Headers | Promise<Headers>
  /** Milliseconds to connect, and for the `endpoint` event of the SSE transport. @default 5000 */
  timeout?: number
  /** Milliseconds of silence after which a stream counts as lost; comments are life. 0 is off. @default 0 */
  sseReadTimeout?: number
  /** Bytes of one message. @default 67_108_864 (64 MiB) */
  maxMessageBytes?: number
}

/** A request to the endpoint; `url` only where it differs from the endpoint's own. */
export interface EndpointRequest {
  method: HttpRequest['method']
  /** Names in lower case. Not changed once they were given: how they are written is kept. */
  headers: Headers
  body?: Uint8Array
  url?: URL
}

/**
 * What all wires to one server share: its address, its connections, our credentials, and what its tools want to see in
 * headers.
 */
export class Endpoint {
  readonly url: URL
  readonly timeout: number
  readonly sseReadTimeout: number
  readonly maxMessageBytes: number
  readonly tools = new ToolHeaders()
  readonly #client: HttpClient
  readonly #options: HttpUpstreamOptions
  /** What every request carries, unless it says otherwise. */
  readonly #basic: Headers
  /** What became of the headers of a request, where ours stay the same. */
  readonly #fields = new WeakMap<Headers, Fields>()
  #renewed: Headers = {}
  #generation = 0
  #renewing: Promise<void> | undefined

  constructor(options: HttpUpstreamOptions) {
    this.url = new URL(options.url)
    if (this.url.protocol !== 'http:' && this.url.protocol !== 'https:') {
      throw new TypeError(`expected an http: or https: URL, got ${this.url.protocol}`)
    }
    const { headers } = options
    const own = typeof headers === 'function' ? {} : lower(headers ?? {})
    this.#basic = { 'accept-encoding': 'identity', ...basicAuth(this.url), ...own }
    this.timeout = Math.min(options.timeout ?? 5_000, LONGEST_TIMER)
    this.sseReadTimeout = Math.min(options.sseReadTimeout ?? 0, LONGEST_TIMER)
    this.maxMessageBytes = options.maxMessageBytes ?? 64 * 1024 * 1024
    this.#options = options
    this.#client = new HttpClient(this.url, { ...options, timeout: this.timeout })
  }

  /** One exchange with our credentials; after a 401 that `auth` answered, the second one is the response. */
  open(request: EndpointRequest, taker: Taker): Exchange {
    const { headers, auth } = this.#options
    if (typeof headers === 'function' || auth) return this.#openWithCare(request, taker)
    let fields = this.#fields.get(request.headers)
    if (fields === undefined) {
      fields = this.#merged(request.headers)
      this.#fields.set(request.headers, fields)
    }
    const { method, body } = request
    return this.#client.open(request.url ?? this.url, { method, fields, body }, taker)
  }

  /** The response alone. Rejects as a taker is told of an error; `signal` ends the body too. */
  ask(request: EndpointRequest, signal: AbortSignal): Promise<HttpResponse> {
    return new Promise((resolve, reject) => {
      signal.throwIfAborted()
      const abort = () => exchange.abort()
      const over = () => signal.removeEventListener('abort', abort)
      const onError = (error: Error) => {
        over()
        reject(error)
      }
      const exchange = this.open(request, {
        onError,
        onResponse: (response) => {
          response.body.onOver = over
          resolve(response)
        },
      })
      signal.addEventListener('abort', abort)
      exchange.written?.catch(onError)
    })
  }

  close(): void {
    this.#client.close()
  }

  #merged(headers: Headers, own: Headers = {}): Fields {
    return new Fields({ ...this.#basic, ...lower(own), ...this.#renewed, ...headers }, this.url.host)
  }

  /** Functions of our user's are asked: before the request, and about a 401. */
  #openWithCare(request: EndpointRequest, taker: Taker): Exchange {
    const aborting = new AbortController()
    const { signal } = aborting
    const begin = async (to: Taker): Promise<void> => {
      const { headers } = this.#options
      const own = typeof headers === 'function' ? await unlessAborted(refused(headers, 'not_sent'), signal) : {}
      signal.throwIfAborted()
      const fields = this.#merged(request.headers, own)
      const exchange = this.#client.open(request.url ?? this.url, { ...request, fields }, to)
      signal.addEventListener('abort', () => exchange.abort())
      await exchange.written
    }
    const onError = (error: Error) => taker.onError(error)
    const again = async (response: HttpResponse, generation: number) => {
      response.body.discard()
      if (generation === this.#generation) await unlessAborted(this.#renew(response), signal)
      await begin(taker)
    }
    const generation = this.#generation
    const written = begin({
      onError,
      onResponse: (response) => {
        if (response.status !== 401 || !this.#options.auth) taker.onResponse(response)
        else again(response, generation).catch(onError)
      },
    })
    return { written: handled(written), abort: () => aborting.abort() }
  }

  #renew(response: HttpResponse): Promise<void> {
    this.#renewing ??= (async () => {
      try {
        const wwwAuthenticate = response.headers['www-authenticate']
        const info: AuthInfo = { status: response.status }
        if (wwwAuthenticate !== undefined) info.wwwAuthenticate = String(wwwAuthenticate)
        const headers = await refused(() => this.#options.auth!(info), 'sent')
        this.#renewed = { ...this.#renewed, ...lower(headers) }
        this.#generation += 1
      } finally {
        this.#renewing = undefined
      }
    })()
    return this.#renewing
  }
}

async function refused(headers: () => Headers | Promise<Headers>, phase: 'sent' | 'not_sent'): Promise<Headers> {
  try {
    return await headers()
  } catch (cause) {
    throw proxyError('upstream_auth', { phase, cause })
  }
}

/** A function of our user's may take for ever. */
async function unlessAborted<T>(result: Promise<T>, signal: AbortSignal): Promise<T> {
  result.catch(() => {})
  let abort = () => {}
  const aborted = new Promise<never>((_resolve, reject) => {
    abort = () => reject(signal.reason)
  })
  signal.addEventListener('abort', abort)
  if (signal.aborted) abort()
  try {
    return await Promise.race([result, aborted])
  } finally {
    signal.removeEventListener('abort', abort)
  }
}

/** Takes the credentials out of a URL: every request is to carry them, also to an address that the server names. */
function basicAuth(url: URL): Headers {
  const { username, password } = url
  if (username === '' && password === '') return {}
  url.username = ''
  url.password = ''
  const pair = `${decodeURIComponent(username)}:${decodeURIComponent(password)}`
  return { authorization: `Basic ${Buffer.from(pair).toString('base64')}` }
}

function lower(headers: Headers): Headers {
  return Object.fromEntries(Object.entries(headers).map(([name, value]) => [name.toLowerCase(), value]))
}
