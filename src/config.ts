import type { Middleware } from './context.js'
import type { HttpOptions } from './listener/index.js'
import type { CommandUpstream, Restart, Upstream, UrlUpstream } from './upstream/index.js'

/** What the command itself says on stderr, from the least to the most. */
export const levels = ['silent', 'error', 'warn', 'info', 'debug'] as const
export type Level = (typeof levels)[number]

/** A server to start. */
export interface CommandServer extends Omit<CommandUpstream, 'env' | 'stderr'> {
  /** Variables for the program, beside ours where its client is on our stdin, and beside a few where it is not. */
  env?: Record<string, string>
}

/** A server to reach. Without a `type`: Streamable HTTP first, the SSE transport where the server knows no other. */
export interface UrlServer extends Omit<UrlUpstream, 'url' | 'headers' | 'fetch' | 'auth'> {
  /** An http: or https: URL. */
  url: string
  /** Sent with every request. */
  headers?: Record<string, string>
}

/** A server as clients write it under `mcpServers`; what else they say of it is theirs and ignored. */
export interface McpServer {
  /** The program to start, without a shell. */
  command?: string
  args?: string[]
  /** Variables for the program. */
  env?: Record<string, string>
  cwd?: string
  /** The server to reach, where there is no command. */
  url?: string
  type?: 'stdio' | 'http' | 'streamable-http' | 'streamableHttp' | 'sse'
  /** Sent with every request. */
  headers?: Record<string, string>
  /** Ours alone: whether a new one takes its place when it is lost. */
  restart?: Restart
  [other: string]: unknown
}

/**
 * What a configuration file may say as data. In every text that is not one of a few words `$NAME` and `${NAME}` come
 * from the environment, `$$` is a literal `$`, and a `$` before anything else stays as it is.
 */
export interface ConfigFile {
  /** Where an editor finds the schema. */
  $schema?: string
  /** Where the messages go: a server, or the name of one under `mcpServers`. @default the only one there */
  upstream?: string | CommandServer | UrlServer
  /** As in the configuration of any client. */
  mcpServers?: Record<string, McpServer>
  /** A port, `HOST:PORT`, or a port and how it is served. @default the client on this process's stdin and stdout */
  listen?: number | string | Omit<HttpOptions, 'eventStore'>
  /**
   * The stack, the first one next to the client: `"logger"` is one of the shelf, `"./mine.js"` a file, as is seen from
   * this one, `"package/module#name"` an export of a package. `{ "logger": { "arguments": true } }` gives it options.
   * @default none
   */
  use?: (string | Record<string, unknown>)[]
  /** What the command itself says on stderr. @default 'warn' */
  logLevel?: Level
}

/** The same in code, where an upstream may be a function, and middleware middleware. */
export interface ProxyConfig extends Omit<ConfigFile, 'upstream' | 'listen' | 'use'> {
  upstream?: string | Upstream
  listen?: number | string | HttpOptions
  // Each adds a state of its own: that they fit together is what `app.use` checks, a list cannot.
  use?: (string | Record<string, unknown> | Middleware<never>)[]
}

/**
 * Types a configuration: `export default defineProxy({ … })` in `proxy.config.ts`.
 *
 * @example
 * export default defineProxy({
 *   upstream: { command: 'npx', args: ['-y', '@modelcontextprotocol/server-everything'] },
 *   listen: 3000,
 *   use: ['logger', { toolFilter: { deny: ['get-env'] } }],
 * })
 */
export function defineProxy(config: ProxyConfig): ProxyConfig {
  return config
}
