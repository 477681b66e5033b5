import type { Transport } from '@modelcontextprotocol/sdk/shared/transport.js'
import type { Session } from '../session.js'
import type { CloseOptions, Wire } from '../wire.js'
import { Opening } from './backoff.js'
import type { Endpoint, HttpUpstreamOptions } from './endpoint.js'
import type { Pool } from './pool.js'
import { type StdioOptions, StdioUpstream } from './stdio.js'

/**
 * Whether a new upstream takes the place of one that is lost: of a child that ended, an SSE stream that did, a session
 * that an HTTP server forgot. Only of one that has worked; what was sent is never sent again.
 */
export type Restart = 'on-failure' | 'never'

/** Options of an upstream that is reached by URL. */
export interface UrlOptions extends Omit<HttpUpstreamOptions, 'url'> {
  /** @default 'on-failure' */
  restart?: Restart
}

/** A server to start, as in every client's `mcpServers`. */
export interface CommandUpstream extends StdioOptions {
  /** @default 'on-failure' behind a port, 'never' where the one client is on stdin: it is told by the end of the process */
  restart?: Restart
}

/** A server to reach. Without a `type`: Streamable HTTP first, the SSE transport where the server knows no other. */
export interface UrlUpstream extends UrlOptions {
  url: string | URL
  type?: 'http' | 'sse'
}

/** Makes the wire to the upstream of one session; an SDK transport, or an in-process server's, is one too. */
export type UpstreamFactory = (session: Session) => Wire | Transport | Promise<Wire | Transport>

/** Where the messages go. */
export type Upstream = CommandUpstream | UrlUpstream | UpstreamFactory

/** A server to start: `stdio('npx', ['-y', '@modelcontextprotocol/server-everything'])`. */
export function stdio(command: string, args?: readonly string[], options?: Partial<StdioOptions>): CommandUpstream {
  return { ...options, command, args: args ?? options?.args }
}

/** A server that speaks the HTTP+SSE transport of 2024-11-05. */
export function sse(url: string | URL, options?: UrlOptions): UrlUpstream {
  return { ...options, url, type: 'sse' }
}

/** A server that speaks Streamable HTTP: sessions (2025-03-26 to 2025-11-25) or stateless (2026-07-28). */
export function http(url: string | URL, options?: UrlOptions): UrlUpstream {
  return { ...options, url, type: 'http' }
}

/** An upstream that sessions can be joined to. */
export interface OpenUpstream {
  open: UpstreamFactory
  /** Ends what outlives its sessions. Call it again with `urgent` to hurry. */
  close(options?: CloseOptions): Promise<void>
}

export interface OpenOptions {
  /** Milliseconds that a child may be without a session (modern sessions share one). @default 1800000 (30 min) */
  idleTimeout?: number
  /** How many children modern sessions may have. @default 10000 */
  maxSessions?: number
  /** What an upstream does that does not say it. @default what its own kind does */
  restart?: Restart
}

/**
 * Checks an upstream and says how to open it. A transport is loaded when it is first used. The wires to one URL share
 * its connections, renewed credentials and what is known of its tools; connections that nobody uses close by themselves
 * and keep no process alive.
 */
export function openUpstream(upstream: Upstream, options: OpenOptions = {}): OpenUpstream {
  if (isCommand(upstream)) return openCommand(upstream, options)
  return { open: typeof upstream === 'function' ? upstream : openUrl(upstream), close: async () => {} }
}

/** A child for each session; sessions that come as modern ones are whole in one request each, and share. */
function openCommand(upstream: CommandUpstream, options: OpenOptions): OpenUpstream {
  const { idleTimeout = 1_800_000, maxSessions = 10_000 } = options
  const restart = checkedRestart(upstream.restart) ?? options.restart ?? 'never'
  const opening = new Opening()
  const make = () => new StdioUpstream(upstream)
  let made: Promise<Pool> | undefined
  const pool = (): Promise<Pool> => {
    made ??= Promise.all([import('./pool.js'), import('./restart.js')]).then(([{ Pool }, { RestartingUpstream }]) => {
      const renewed = () => new RestartingUpstream({ make, opening })
      return new Pool({ make: restart === 'never' ? make : renewed, idleTimeout, max: maxSessions })
    })
    return made
  }
  return {
    open: async (session) => {
      if (session.era === 'modern') return (await pool()).tap(session.principal)
      return restart === 'never' ? make() : restarting(make, session, opening)
    },
    close: async (options) => (await made)?.close(options),
  }
}

/** A wire whose session is told when its upstream was replaced. */
async function restarting(make: () => Wire, session: Session, opening?: Opening): Promise<Wire> {
  const { RestartingUpstream } = await import('./restart.js')
  return new RestartingUpstream({ make, opening, onRestart: () => session.emit('restart') })
}

function checkedRestart(restart: unknown): Restart | undefined {
  if (restart === undefined || restart === 'on-failure' || restart === 'never') return restart
  throw new TypeError(`listen(): expected restart "on-failure" or "never", got ${show(restart)}`)
}

function openUrl(upstream: UrlUpstream): UpstreamFactory {
  if (!isUrl(upstream)) {
    throw new TypeError(
      `listen(): expected { command }, { url } or a function that makes a transport, got ${show(upstream)}`,
    )
  }
  const options = { ...upstream, url: parseUrl(upstream.url) }
  let made: Promise<Endpoint> | undefined
  const endpoint = () => {
    made ??= import('./endpoint.js').then(({ Endpoint }) => new Endpoint(options))
    return made
  }
  const { type } = upstream
  if (type !== undefined && type !== 'sse' && type !== 'http') {
    throw new TypeError(`listen(): expected type "http" or "sse", got ${show(type)}`)
  }
  const maker = async (): Promise<() => Wire> => {
    const at = await endpoint()
    if (type === 'sse') {
      const { SseUpstream } = await import('./sse.js')
      return () => new SseUpstream(at)
    }
    if (type === 'http') {
      const { HttpUpstream } = await import('./http.js')
      return () => new HttpUpstream(at)
    }
    const { detect } = await import('./detect.js')
    return () => detect(at)
  }
  const isLasting = checkedRestart(upstream.restart) !== 'never'
  return async (session) => {
    const make = await maker()
    // A session of 2026-07-28 is one request, which is answered or lost.
    return isLasting && session.era !== 'modern' ? restarting(make, session) : make()
  }
}

/** The upstream's name for logs: no arguments, query or credentials, which may hold secrets. */
export function nameOf(upstream: Upstream): string {
  if (typeof upstream === 'function') return upstream.name || 'function'
  if (isCommand(upstream)) return upstream.command.split(/[\\/]/).at(-1) as string
  const { origin, pathname } = parseUrl(upstream.url)
  return `${origin}${pathname}`
}

function isCommand(upstream: Upstream): upstream is CommandUpstream {
  return typeof (upstream as CommandUpstream | null)?.command === 'string'
}

function isUrl(upstream: Upstream): upstream is UrlUpstream {
  const url = (upstream as UrlUpstream | null)?.url
  return typeof url === 'string' || url instanceof URL
}

function parseUrl(text: string | URL): URL {
  const url = URL.canParse(String(text)) ? new URL(text) : undefined
  if (url && (url.protocol === 'http:' || url.protocol === 'https:')) return url
  // Its text may hold credentials: only what is wrong with it is told.
  throw new TypeError(`listen(): expected an http: or https: URL, got ${url ? `one with ${url.protocol}` : 'no URL'}`)
}

function show(value: unknown): string {
  return typeof value === 'object' && value !== null
    ? `an object with ${Object.keys(value).join(', ') || 'nothing'}`
    : (JSON.stringify(value) ?? String(value))
}
