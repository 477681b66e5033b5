import { isIPv6 } from 'node:net'
import { OptionError } from '../error.js'
import { Spare } from '../spare.js'
import type { HandlerOptions } from './index.js'
import { READ_TIMEOUT } from './patience.js'
import { Routes } from './routes.js'
import { type EventStore, MemoryEventStore } from './store.js'

/** Names of this machine that only a program on it can mean. */
export const LOOPBACK: ReadonlySet<string> = new Set(['localhost', '127.0.0.1', '[::1]'])
/** A `Host`: a name or an address, and a port. */
export const HOST = /^(\[[\da-f:.]+\]|[^\s:@/\\?#[\]]+)(?::(\d{1,5}))?$/

/** Bytes of the bodies of all requests that are not answered yet, past which one is a 503: 256 MiB. */
const MAX_BODIES = 256 << 20

/** How clients are served over HTTP, every option settled. */
export interface Settings {
  readonly routes: Routes
  /** Lower case; with a port where only that one is meant. */
  readonly hosts: ReadonlySet<string>
  /** Of web pages, those of this machine not among them. */
  readonly origins: ReadonlySet<string>
  readonly token: string | undefined
  readonly maxSessions: number
  readonly maxPending: number
  readonly idleTimeout: number
  readonly maxBodyBytes: number
  /** What the bodies of all requests may take that are not answered yet. */
  readonly bodies: Spare
  readonly keepAlive: number
  readonly streamTimeout: number
  readonly readTimeout: number
  readonly eventStore: EventStore
}

/** @throws `OptionError` */
export function settingsOf(options: HandlerOptions): Settings {
  const { path = '/mcp', allowHosts = [], allowOrigins = [], token, eventStore = new MemoryEventStore() } = options
  if (token !== undefined && !/^[\x21-\x7e]+$/.test(token)) {
    throw new OptionError('token: expected visible ASCII without spaces, got none, or something else')
  }
  const number = (name: keyof HandlerOptions, byDefault: number, least = 1) => {
    const value = options[name] ?? byDefault
    if (typeof value === 'number' && value >= least) return value
    throw new OptionError(`${name}: expected a number from ${least}, got ${JSON.stringify(value) ?? typeof value}`)
  }
  return {
    routes: new Routes(path),
    hosts: new Set([...LOOPBACK, ...allowHosts.map(hostOf)]),
    origins: new Set(allowOrigins.map(originOf)),
    token,
    maxSessions: number('maxSessions', 10_000),
    maxPending: number('maxPending', 1_000),
    idleTimeout: number('idleTimeout', 1_800_000),
    maxBodyBytes: number('maxBodyBytes', 16 << 20),
    bodies: new Spare(MAX_BODIES),
    keepAlive: number('keepAlive', 15_000, 0),
    streamTimeout: number('streamTimeout', 30_000),
    readTimeout: number('readTimeout', READ_TIMEOUT),
    eventStore,
  }
}

/** The host of a URL or `Host` header: IPv6 stands in brackets there. */
export function hostName(host: string): string {
  return isIPv6(host) ? `[${host}]` : host
}

export function httpUrl(text: string): URL | undefined {
  const url = URL.canParse(text) ? new URL(text) : undefined
  return url?.protocol === 'http:' || url?.protocol === 'https:' ? url : undefined
}

function hostOf(host: string): string {
  const name = hostName(host.toLowerCase())
  if (HOST.test(name)) return name
  throw new OptionError(`allowHosts: expected a host, or host:port, got ${JSON.stringify(host)}`)
}

function originOf(origin: string): string {
  const url = httpUrl(origin)
  if (url && (url.origin === origin || `${url.origin}/` === origin)) return url.origin
  throw new OptionError(`allowOrigins: expected an origin as https://app.example.com, got ${JSON.stringify(origin)}`)
}
