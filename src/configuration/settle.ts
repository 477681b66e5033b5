import { basename, dirname, resolve } from 'node:path'
import type { Level, McpServer, ProxyConfig } from '../config.js'
import { OptionError } from '../error.js'
import type { HttpOptions } from '../listener/index.js'
import { settingsOf } from '../listener/options.js'
import type { Upstream } from '../upstream/index.js'
import { expand, parseListen, parseUrl, secretsOf, UsageError, type Variables } from '../values.js'
import { ConfigError, checkConfig, isObject } from './check.js'
import type { ConfigFileContent } from './file.js'

export type StackEntry = NonNullable<ProxyConfig['use']>[number]

/** A configuration, checked, with the environment's values in it. */
export interface Configuration {
  /** Absolute. */
  readonly path: string
  readonly upstream: Upstream
  /** Undefined: the client on this process's stdin and stdout. */
  readonly http: HttpOptions | undefined
  readonly use: readonly StackEntry[]
  readonly logLevel: Level | undefined
}

export interface SettleOptions {
  env: Variables
  /** Where clients come to, in place of what the file says. */
  http?: HttpOptions
  /** The name of a server under `mcpServers`, in place of what the file says. */
  server?: string
  /** Told of what no line on stderr may show, also where the file is then refused. */
  hide?: (secrets: readonly string[]) => void
}

/** @throws `UsageError`: the file, the path in it, what was expected and what came */
export function settle({ path, value }: ConfigFileContent, options: SettleOptions): Configuration {
  const { env, hide = () => {} } = options
  const inside = new Inside(env)
  try {
    checkConfig(value)
    const { use = [], logLevel } = value
    const http = options.http ?? httpOf(inside.expanded(value.listen, 'listen'))
    // Whoever started us to speak to one server set our environment for it. Behind a port it is ours alone.
    const upstream = located(serverOf(value, inside, options.server), dirname(path), http ? {} : env)
    const stack = use.map((entry, at) => inside.expanded(entry, `use[${at}]`))
    hide(secretsIn(upstream, http))
    return { path, upstream, http, use: stack, logLevel }
  } catch (error) {
    if (error instanceof ConfigError || error instanceof UsageError) {
      throw new UsageError(`${basename(path)}: ${error.message}`)
    }
    if (error instanceof RangeError) {
      throw new UsageError(`${basename(path)}: expected data, got an object that holds itself or is nested without end`)
    }
    throw error
  } finally {
    hide(inside.values)
  }
}

/** Puts the environment's values in, and knows them. */
class Inside {
  readonly values: string[] = []
  readonly #env: Variables

  constructor(env: Variables) {
    this.#env = env
  }

  expanded<T>(value: T, path: string): T {
    if (typeof value === 'string') return this.#text(value, path) as T
    if (Array.isArray(value)) return value.map((it, at) => this.expanded(it, `${path}[${at}]`)) as T
    if (!isObject(value)) return value
    const entries = Object.entries(value).map(([name, it]) => [name, this.expanded(it, `${path}.${name}`)])
    return Object.fromEntries(entries) as T
  }

  #text(text: string, path: string): string {
    try {
      return expand(text, this.#env, { lenient: true, onValue: (value) => this.values.push(value) })
    } catch (error) {
      throw new ConfigError(path, (error as Error).message)
    }
  }
}

function httpOf(listen: ProxyConfig['listen']): HttpOptions | undefined {
  if (listen === undefined) return undefined
  const http: HttpOptions = typeof listen === 'object' ? listen : parseListen(String(listen), 'listen')
  try {
    settingsOf(http)
  } catch (error) {
    if (error instanceof OptionError) throw new ConfigError('', `listen.${error.message}`)
    throw error
  }
  if (Number.isInteger(http.port) && http.port >= 0 && http.port <= 65_535) return http
  throw new ConfigError('listen.port', `expected a port from 0 to 65535, got ${http.port}`)
}

/** The server that is meant. Of the others the environment need not know. */
function serverOf({ upstream, mcpServers = {} }: ProxyConfig, inside: Inside, name?: string): Upstream {
  const wanted = name ?? upstream
  if (typeof wanted === 'function') return wanted
  if (typeof wanted === 'object') return inside.expanded(wanted, 'upstream')
  const names = Object.keys(mcpServers)
  const known = names.join(', ') || 'none'
  const chosen = wanted ?? (names.length === 1 ? names[0] : undefined)
  if (chosen === undefined) {
    throw new ConfigError('upstream', `expected a server, or the name of one under mcpServers (${known}), got none`)
  }
  if (!Object.hasOwn(mcpServers, chosen)) {
    const where = name === undefined ? 'upstream' : '--server'
    throw new ConfigError(where, `expected the name of one under mcpServers (${known}), got ${JSON.stringify(chosen)}`)
  }
  return asUpstream(inside.expanded(mcpServers[chosen]!, `mcpServers.${chosen}`), `mcpServers.${chosen}`)
}

/** What clients say of a server beside this is theirs. */
function asUpstream({ command, args, env, cwd, url, type, headers, restart }: McpServer, path: string): Upstream {
  if (command !== undefined) return { command, args, env, cwd, restart }
  if (url !== undefined) return { url, type: type === 'sse' ? 'sse' : type && 'http', headers, restart }
  throw new ConfigError(path, 'expected command or url, got neither')
}

/** What is relative is so to the file; a program gets the variables that are given on beside its own. */
function located(upstream: Upstream, directory: string, env: Variables): Upstream {
  if (typeof upstream === 'function') return upstream
  if ('url' in upstream) return { ...upstream, url: parseUrl(String(upstream.url), 'url') }
  const { cwd } = upstream
  return { ...upstream, env: { ...env, ...upstream.env }, ...(cwd !== undefined && { cwd: resolve(directory, cwd) }) }
}

function secretsIn(upstream: Upstream, http: HttpOptions | undefined): string[] {
  if (typeof upstream === 'function' || !('url' in upstream)) return secretsOf({}, undefined, http?.token)
  const { url, headers } = upstream
  return secretsOf(typeof headers === 'object' ? headers : {}, new URL(url), http?.token)
}
