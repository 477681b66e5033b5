import { proxyError } from '../error.js'
import { LONGEST_TIMER } from '../rest.js'
import { ToolHeaders } from '../tools.js'
import { discard, type Exchange, HttpClient, type HttpRequest, type HttpResponse } from './request.js'

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
  /** Instead of node:http. */
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
export interface EndpointRequest extends HttpRequest {
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
  readonly #basic: Headers
  #renewed: Headers = {}
  #generation = 0
  #renewing: Promise<void> | undefined

  constructor(options: HttpUpstreamOptions) {
    this.url = new URL(options.url)
    if (this.url.protocol !== 'http:' && this.url.protocol !== 'https:') {
      throw new TypeError(`expected an http: or https: URL, got ${this.url.protocol}`)
    }
    this.#basic = basicAuth(this.url)
    this.timeout = Math.min(options.timeout ?? 5_000, LONGEST_TIMER)
    this.sseReadTimeout = Math.min(options.sseReadTimeout ?? 0, LONGEST_TIMER)
    this.maxMessageBytes = options.maxMessageBytes ?? 64 * 1024 * 1024
    this.#options = options
    this.#client = new HttpClient({ ...options, timeout: this.timeout })
  }

  /** One exchange with our credentials; after a 401 that `auth` answered, the second one is the response. */
  open(request: EndpointRequest): Exchange {
    const first = this.#send(request)
    const written = first.then((sent) => sent.exchange.written)
    const response = first.then(async (sent): Promise<HttpResponse> => {
      const response = await sent.exchange.response
      if (response.status !== 401 || this.#options.auth === undefined) return response
      discard(response.body)
      if (sent.generation === this.#generation) await unlessAborted(this.#renew(response), request.signal)
      return (await this.#send(request)).exchange.response
    })
    written.catch(() => {})
    response.catch(() => {})
    return { written, response }
  }

  close(): void {
    this.#client.close()
  }

  async #send(request: EndpointRequest): Promise<{ exchange: Exchange; generation: number }> {
    const { headers } = this.#options
    const generation = this.#generation
    const own = lower(
      typeof headers === 'function'
        ? await unlessAborted(refused(headers, 'not_sent'), request.signal)
        : (headers ?? {}),
    )
    const all = { 'accept-encoding': 'identity', ...this.#basic, ...own, ...this.#renewed, ...request.headers }
    return { generation, exchange: this.#client.open(request.url ?? this.url, { ...request, headers: all }) }
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
