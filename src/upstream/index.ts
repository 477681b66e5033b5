import type { Transport } from '@modelcontextprotocol/sdk/shared/transport.js'
import type { Session } from '../session.js'
import type { CloseOptions, Wire } from '../wire.js'
import type { Endpoint, HttpUpstreamOptions } from './endpoint.js'
import type { Pool } from './pool.js'
import { type StdioOptions, StdioUpstream } from './stdio.js'

/** Options of an upstream that is reached by URL. */
export type UrlOptions = Omit<HttpUpstreamOptions, 'url'>

/** A server to start, as in every client's `mcpServers`. */
export type CommandUpstream = StdioOptions

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
function openCommand(upstream: CommandUpstream, { idleTimeout = 1_800_000, maxSessions = 10_000 }: OpenOptions) {
  const make = () => new StdioUpstream(upstream)
  let made: Promise<Pool> | undefined
  const pool = () => {
    made ??= import('./pool.js').then(({ Pool }) => new Pool({ make, idleTimeout, max: maxSessions }))
    return made
  }
  return {
    open: async ({ era, principal }: Session) => (era === 'modern' ? (await pool()).tap(principal) : make()),
    close: async (options?: CloseOptions) => (await made)?.close(options),
  }
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
  if (upstream.type === 'sse') return async () => new (await import('./sse.js')).SseUpstream(await endpoint())
  if (upstream.type === 'http') return async () => new (await import('./http.js')).HttpUpstream(await endpoint())
  if (upstream.type !== undefined) {
    throw new TypeError(`listen(): expected type "http" or "sse", got ${show(upstream.type)}`)
  }
  return async () => (await import('./detect.js')).detect(await endpoint())
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
