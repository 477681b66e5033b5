import type { IncomingHttpHeaders } from 'node:http'
import { isIPv4 } from 'node:net'
import { LastGood } from './good.js'
import { HOST, httpUrl, LOOPBACK, type Settings } from './options.js'
import { invalid, type Refused, refused } from './reply.js'

/** Node keeps the first of several in silence, or joins them: two readers would differ. */
const ONCE = /^(?:host|origin|authorization|content-type|content-length|last-event-id|mcp-.+)$/

/** The longest name of this machine, with a scheme and a port; other names can be dear to read. */
const LONGEST_ORIGIN = 'https://localhost:65535'.length

/**
 * Looks at the head of every request, whatever its route: a page in a browser must not reach what listens on its
 * machine by a name of its own (2025-11-25 basic/transports, "Security Warning").
 */
export class Guard {
  readonly #hosts: LastGood<string | undefined>
  readonly #origins: ReadonlySet<string>

  constructor({ hosts, origins }: Pick<Settings, 'hosts' | 'origins'>) {
    this.#hosts = new LastGood((host) => isHost(host, hosts))
    this.#origins = origins
  }

  /** Undefined where the request may go on. */
  turn({ headers, rawHeaders }: { headers: IncomingHttpHeaders; rawHeaders: readonly string[] }): Refused | undefined {
    const twice = repeated(rawHeaders)
    if (twice !== undefined) return invalid(400, `expected one header ${twice}, got several`)
    if (!this.#hosts.has(headers.host)) return refused(403, 'denied', 'this Host is not allowed')
    const { origin } = headers
    if (origin !== undefined && !this.#isOrigin(origin)) return refused(403, 'denied', 'this Origin is not allowed')
    return undefined
  }

  /** Whether answers to pages of this origin may be read by them: only where it was asked for. */
  shares(origin: string | undefined): origin is string {
    return origin !== undefined && this.#origins.has(origin)
  }

  #isOrigin(origin: string): boolean {
    if (this.#origins.has(origin)) return true
    const url = origin.length > LONGEST_ORIGIN ? undefined : httpUrl(origin)
    return url !== undefined && url.origin === origin && LOOPBACK.has(url.hostname)
  }
}

/** Whether an address that is listened on can be reached from this machine alone. */
export function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || (isIPv4(host) && host.startsWith('127.'))
}

function isHost(host = '', hosts: ReadonlySet<string>): boolean {
  const [, name] = HOST.exec(host.toLowerCase()) ?? []
  return name !== undefined && (hosts.has(name) || hosts.has(host.toLowerCase()))
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
