import type { IncomingHttpHeaders } from 'node:http'
import { isIPv4, isIPv6 } from 'node:net'
import { OptionError } from '../error.js'
import { invalid, type Refused, refused } from './reply.js'

/** Names of this machine that only a program on it can mean. */
const LOOPBACK = new Set(['localhost', '127.0.0.1', '[::1]'])
/** Node keeps the first of several in silence, or joins them: two readers would differ. */
const ONCE = /^(?:host|origin|authorization|content-type|content-length|last-event-id|mcp-.+)$/
const HOST = /^(\[[\da-f:.]+\]|[^\s:@/\\?#[\]]+)(?::(\d{1,5}))?$/

export interface GuardOptions {
  /** Hosts that a request may name beside those of the loopback; with a port where only that one is meant. */
  allowHosts?: readonly string[]
  /** Origins that a request may come from beside those of the loopback. */
  allowOrigins?: readonly string[]
}

/**
 * Looks at the head of every request, whatever its route: a page in a browser must not reach what listens on its
 * machine by a name of its own (2025-11-25 basic/transports, "Security Warning").
 */
export class Guard {
  readonly #hosts: ReadonlySet<string>
  readonly #origins: ReadonlySet<string>

  /** @throws `OptionError` for a host or an origin that is none */
  constructor({ allowHosts = [], allowOrigins = [] }: GuardOptions) {
    this.#hosts = new Set([...LOOPBACK, ...allowHosts.map(checkedHost)])
    this.#origins = new Set(allowOrigins.map(checkedOrigin))
  }

  /** Undefined where the request may go on. */
  turn({ headers, rawHeaders }: { headers: IncomingHttpHeaders; rawHeaders: readonly string[] }): Refused | undefined {
    const twice = repeated(rawHeaders)
    if (twice !== undefined) return invalid(400, `expected one header ${twice}, got several`)
    if (!this.#isHost(headers.host)) return refused(403, 'denied', 'this Host is not allowed')
    const { origin } = headers
    if (origin !== undefined && !this.#isOrigin(origin)) return refused(403, 'denied', 'this Origin is not allowed')
    return undefined
  }

  /** Whether answers to pages of this origin may be read by them: only where it was asked for. */
  shares(origin: string | undefined): origin is string {
    return origin !== undefined && this.#origins.has(origin)
  }

  #isHost(host = ''): boolean {
    const [, name] = HOST.exec(host.toLowerCase()) ?? []
    return name !== undefined && (this.#hosts.has(name) || this.#hosts.has(host.toLowerCase()))
  }

  #isOrigin(origin: string): boolean {
    if (this.#origins.has(origin)) return true
    const url = httpUrl(origin)
    return url !== undefined && url.origin === origin && LOOPBACK.has(url.hostname)
  }
}

/** Whether an address that is listened on can be reached from this machine alone. */
export function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || (isIPv4(host) && host.startsWith('127.'))
}

/** The host of a URL or `Host` header: IPv6 stands in brackets there. */
export function hostName(host: string): string {
  return isIPv6(host) ? `[${host}]` : host
}

function repeated(rawHeaders: readonly string[]): string | undefined {
  const seen = new Set<string>()
  for (let at = 0; at < rawHeaders.length; at += 2) {
    const name = rawHeaders[at]!.toLowerCase()
    if (seen.has(name) && ONCE.test(name)) return name
    seen.add(name)
  }
  return undefined
}

function checkedHost(host: string): string {
  const name = hostName(host.toLowerCase())
  if (HOST.test(name)) return name
  throw new OptionError(`allowHosts: expected a host, or host:port, got ${JSON.stringify(host)}`)
}

function checkedOrigin(origin: string): string {
  const url = httpUrl(origin)
  if (url && (url.origin === origin || `${url.origin}/` === origin)) return url.origin
  throw new OptionError(`allowOrigins: expected an origin as https://app.example.com, got ${JSON.stringify(origin)}`)
}

function httpUrl(text: string): URL | undefined {
  const url = URL.canParse(text) ? new URL(text) : undefined
  return url?.protocol === 'http:' || url?.protocol === 'https:' ? url : undefined
}
