import { once } from 'node:events'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import { type AddressInfo, isIP, isIPv4, isIPv6 } from 'node:net'
import { isDeepStrictEqual } from 'node:util'
import type { Application, Context, Definition, Middleware, Next, Stats } from 'open-mcp-proxy'
import { define, RpcError } from 'open-mcp-proxy'
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry, register } from 'prom-client'

export interface MetricsOptions {
  /**
   * Where the metrics are served; 0 takes a free port, which `address` then tells, and a line on stderr; `false` opens
   * none. All that ask for one host and port in one process share its counters. @default 9464
   */
  port?: number | false
  /** The address to listen on. @default '127.0.0.1' */
  host?: string
  /** Nobody authenticates here: allow a `host` that other machines can reach all the same. @default false */
  allowUnauthenticated?: boolean
  /** What `Host` may say beside `host`, `localhost` and any IP address, without a port. @default [] */
  allowHosts?: string[]
  /** @default '/metrics' */
  path?: string
  /**
   * Upper bounds of the durations' histogram, in seconds, rising.
   * @default [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600]
   */
  buckets?: number[]
  /** Also by tool: the first 200 that gave a result, of up to 128 characters; others are `other`. @default false */
  tools?: boolean
  /** Also serve prom-client's global registry, with the metrics of the process in it. @default false */
  defaultMetrics?: boolean
}

/** The middleware, and what code may want to know of it. */
export type Metrics = Middleware &
  Definition<Application> & {
    /** The URL where the metrics are served, from the start on. */
    readonly address?: string
    /** What the metrics are in, for code that adds its own or serves them itself; once started, that of its port. */
    readonly registry: Registry
  }

type Settings = Required<MetricsOptions>
type Outcome = 'ok' | 'error' | 'tool_error' | 'cancelled'

const labelOf = (method = 'other') => (METHODS.has(method) ? method : 'other')
const isString = (value: unknown) => typeof value === 'string'
const directions = ['client-to-server', 'server-to-client'] as const
const BUCKETS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600]
/** What every revision up to 2026-07-28 and its tasks extension know; any other is `other`. */
const METHODS: ReadonlySet<unknown> = new Set(
  `initialize ping server/discover subscriptions/listen tools/list tools/call prompts/list prompts/get resources/list
  resources/templates/list resources/read resources/subscribe resources/unsubscribe completion/complete
  logging/setLevel sampling/createMessage elicitation/create roots/list tasks/get tasks/list tasks/result tasks/update
  tasks/cancel notifications/initialized notifications/cancelled notifications/progress notifications/message
  notifications/tools/list_changed notifications/prompts/list_changed notifications/resources/list_changed
  notifications/resources/updated notifications/roots/list_changed notifications/elicitation/complete
  notifications/subscriptions/acknowledged notifications/tasks notifications/tasks/status`.split(/\s+/),
)
/** Codes of JSON-RPC, of the protocol's revisions and SDKs, and "rejected by the user". */
const CODES: ReadonlySet<unknown> = new Set([
  -32700, -32600, -32601, -32602, -32603, -32000, -32001, -32002, -32020, -32021, -32022, -32042, -1,
])

/**
 * Counts messages, requests by their outcome, durations, requests in flight, sessions and what waits, and serves it all
 * to Prometheus at `http://127.0.0.1:9464/metrics`. What it counts is what passes its place; it belongs into a line once.
 *
 * `mcp_proxy_messages_total{direction,kind,method}`, `mcp_proxy_requests_total{direction,method,outcome,code}`,
 * `mcp_proxy_request_duration_seconds{direction,method,outcome}`, `mcp_proxy_requests_in_flight{direction,method}`,
 * `mcp_proxy_sessions`, `mcp_proxy_waiting_messages{direction}`, `mcp_proxy_dropped_messages_total`. The outcome is `ok`,
 * `error` (then with its `code`), `tool_error` (a result that says `isError`) or `cancelled` (by its sender, by a
 * middleware before this one, or by the end of its session).
 *
 * @throws `TypeError` where an option cannot be. Its start fails where the port is taken, or is served already with other
 * options: what has been counted would not fit.
 * @example createProxy().use(metrics({ tools: true }))
 */
export function metrics(options: MetricsOptions = {}): Metrics {
  const settings = settingsOf(options)
  let meter = new Meter(settings)
  const joined: Endpoint[] = []

  const middleware = define<object, Application>(
    {
      name: 'metrics',
      role: 'observe',
      async start(app) {
        if (settings.port !== false) {
          const endpoint = join(app, meter)
          observer.address = addressOf(await endpoint.server, endpoint.meter)
          joined.push(endpoint)
          meter = endpoint.meter
          observer.registry = meter.registry
        }
        meter.watch(app)
      },
      close: () => leave(joined.pop()),
    },
    function metrics(ctx, next) {
      if (ctx.kind === 'request') return meter.opened(ctx, next)
      // Looked at once it is on its way: nobody waits for that, and what is only read then needs no second look.
      const sent = next()
      meter.came(ctx)
      if (ctx.kind === 'response') meter.answered(ctx)
      return sent
    },
  )
  const observer = Object.assign(middleware, { registry: meter.registry, address: undefined as string | undefined })
  return observer
}

function settingsOf(options: MetricsOptions): Settings {
  const { port = 9464, host = '127.0.0.1', path = '/metrics', allowUnauthenticated = false, allowHosts = [] } = options
  const { buckets = BUCKETS, tools = false, defaultMetrics = false } = options
  const check = (holds: boolean, expected: string, got: unknown) => {
    if (!holds) throw new TypeError(`metrics: expected ${expected}, got ${JSON.stringify(got) ?? typeof got}`)
  }
  const isPort = Number.isInteger(port) && Number(port) >= 0 && Number(port) < 65_536
  check(port === false || isPort, 'port from 0 to 65535, or false', port)
  check(isString(host) && host !== '', 'host, an address or a name', host)
  for (const [name, value] of Object.entries({ allowUnauthenticated, tools, defaultMetrics })) {
    check(typeof value === 'boolean', `${name} true or false`, value)
  }
  const isLoopback = host === 'localhost' || host === '::1' || (isIPv4(host) && host.startsWith('127.'))
  check(isLoopback || allowUnauthenticated, 'a loopback host, or allowUnauthenticated', host)
  check(Array.isArray(allowHosts) && allowHosts.every(isString), 'allowHosts, an array of names', allowHosts)
  check(isString(path) && /^\/[^\s?#]*$/.test(path), 'path that begins with / and has no query', path)
  const isRising = (bound: unknown, at: number) => Number.isFinite(bound) && Number(bound) > (buckets[at - 1] ?? 0)
  check(Array.isArray(buckets) && buckets.length > 0 && buckets.every(isRising), 'buckets, rising seconds', buckets)
  return { port, host, path, allowUnauthenticated, allowHosts, buckets: [...buckets], tools, defaultMetrics }
}

/** What is counted, in a registry of its own. */
class Meter {
  readonly registry = new Registry()
  readonly settings: Settings
  readonly #messages = new Counter(this.#named('messages_total', 'Messages that came.', 'direction', 'kind', 'method'))
  readonly #inFlight = new Gauge(this.#named('requests_in_flight', 'Without an outcome.', 'direction', 'method'))
  readonly #requests: Counter
  readonly #durations: Histogram
  /** Gives a request its outcome, by the request's key. */
  readonly #open = new Map<string, (outcome: Outcome, code?: string) => void>()
  readonly #tools = new Set<string>()
  readonly #applications = new Set<Application>()
  /** Messages, by applications that have closed. */
  #dropped = 0

  constructor(settings: Settings) {
    this.settings = settings
    const labels = ['direction', 'method', 'outcome', ...(settings.tools ? ['tool'] : [])]
    const durations = this.#named('request_duration_seconds', 'From a request to its outcome.', ...labels)
    this.#requests = new Counter(this.#named('requests_total', 'Requests by their outcome.', ...labels, 'code'))
    this.#durations = new Histogram({ ...durations, buckets: settings.buckets })
    // What the applications themselves know, asked when somebody looks.
    const sum = (pick: (stats: Stats) => number) => {
      return [...this.#applications].reduce((total, app) => total + pick(app.stats()), 0)
    }
    const sessions: Gauge = new Gauge({
      ...this.#named('sessions', 'Open sessions; over HTTP each request of 2026-07-28 is one.'),
      collect: () => sessions.set(sum((stats) => stats.sessions)),
    })
    const waiting: Gauge = new Gauge({
      ...this.#named('waiting_messages', 'Messages that came and have not left.', 'direction'),
      collect: () => {
        for (const it of directions) waiting.labels(it).set(sum(({ lanes }) => lanes[it]))
      },
    })
    const dropped: Counter = new Counter({
      ...this.#named('dropped_messages_total', 'Messages that nobody waited for, or that could not be read.'),
      collect: () => {
        dropped.reset()
        dropped.inc(this.#dropped + sum((stats) => stats.dropped))
      },
    })
  }

  #named(name: string, help: string, ...labelNames: string[]) {
    return { name: `mcp_proxy_${name}`, help, labelNames, registers: [this.registry] }
  }

  watch(app: Application): void {
    if (this.#applications.has(app)) return
    this.#applications.add(app)
    app.once('close', () => {
      this.#applications.delete(app)
      this.#dropped += app.stats().dropped
    })
  }

  came({ direction, kind, method }: Context): void {
    this.#messages.inc({ direction, kind, method: labelOf(method) })
  }

  opened(ctx: Context, next: Next): Promise<void> {
    this.came(ctx)
    const { direction, key, signal, name = '' } = ctx
    const method = labelOf(ctx.method)
    const since = performance.now()
    const settle = (outcome: Outcome, code = '') => {
      if (!this.#open.delete(key)) return
      signal.removeEventListener('abort', cancel)
      this.#inFlight.dec({ direction, method })
      const tool = this.settings.tools && { tool: method === 'tools/call' ? this.#tool(name, outcome) : '' }
      const labels = { direction, method, outcome, ...tool }
      this.#requests.inc({ ...labels, code })
      this.#durations.observe(labels, (performance.now() - since) / 1_000)
    }
    const cancel = () => settle('cancelled')
    this.#open.set(key, settle)
    this.#inFlight.inc({ direction, method })
    if (signal.aborted) cancel()
    else signal.addEventListener('abort', cancel)
    return next().catch((error: unknown) => {
      // It was not delivered: no answer passes the last place of a line then.
      if (!ctx.settled) settle('error', codeOf(error instanceof RpcError ? error.code : -32_603))
      throw error
    })
  }

  answered(ctx: Context): void {
    const { request, error } = ctx
    const settle = request && this.#open.get(request.key)
    if (!settle) return
    if (error) settle('error', codeOf(error.code))
    else settle(request.method === 'tools/call' && ctx.result?.isError === true ? 'tool_error' : 'ok')
  }

  /** Each costs a series for ever: it must have given a result, as a client can call names that no server has. */
  #tool(name: string, outcome: Outcome): string {
    if (this.#tools.has(name)) return name
    // Two names with half a character each would be written alike, and Prometheus refuses a series that comes twice.
    const isFit = name.length <= 128 && !/\p{Cs}/u.test(name)
    if (!isFit || this.#tools.size >= 200 || outcome === 'error' || outcome === 'cancelled') return 'other'
    this.#tools.add(name)
    return name
  }
}

/** The proxy's own are a hundred at most. */
function codeOf(code: number): string {
  return CODES.has(code) || (Number.isInteger(code) && code <= -31_000 && code > -31_100) ? String(code) : 'other'
}

/** A port that one middleware or several share. */
type Endpoint = { key: unknown; meter: Meter; server: Promise<Server>; users: number }

/** By host and port; for a port 0 by application, which alone shares it. */
const endpoints = new Map<unknown, Endpoint>()

/** The one that is there already, else a new one for this meter. */
function join(app: Application, meter: Meter): Endpoint {
  const { host, port } = meter.settings
  const key = port === 0 ? app : `${host}:${port}`
  const endpoint = endpoints.get(key) ?? { key, meter, server: serve(meter), users: 0 }
  if (!isDeepStrictEqual(endpoint.meter.settings, meter.settings)) {
    throw new Error(`metrics: port ${port} on ${host} is served already with other options; a restart changes them`)
  }
  endpoint.users++
  endpoints.set(key, endpoint)
  endpoint.server.catch(() => endpoints.delete(key))
  return endpoint
}

/** Closes it with the last one that leaves. */
async function leave(endpoint?: Endpoint): Promise<void> {
  if (!endpoint || --endpoint.users > 0) return
  endpoints.delete(endpoint.key)
  const server = await endpoint.server
  server.close()
  server.closeAllConnections()
  await once(server, 'close')
}

async function serve(meter: Meter): Promise<Server> {
  const { host, port, defaultMetrics } = meter.settings
  const server = createServer((request, response) => void answer(meter, request, response))
  server.maxConnections = 100
  // Whoever scrapes must not keep a process that has nothing else to do.
  server.on('connection', (socket) => socket.unref()).unref()
  try {
    await once(server.listen({ host, port: Number(port) }), 'listening')
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    const text = code === 'EADDRINUSE' ? 'is taken' : `could not be opened: ${code}`
    throw new Error(`metrics: port ${port} on ${host} ${text}`, { cause: error })
  }
  server.on('error', () => {})
  // Once: what watches a process cannot be stopped again.
  if (defaultMetrics && !register.getSingleMetric('process_cpu_seconds_total')) collectDefaultMetrics()
  if (port === 0) process.stderr.write(`metrics: listening on ${addressOf(server, meter)}\n`)
  return server
}

function addressOf(server: Server, { settings: { host, path } }: Meter): string {
  return `http://${isIPv6(host) ? `[${host}]` : host}:${(server.address() as AddressInfo).port}${path}`
}

async function answer({ registry, settings }: Meter, request: IncomingMessage, response: ServerResponse) {
  const { headers, method = '', url = '' } = request
  response.setHeader('x-content-type-options', 'nosniff')
  if (!isAllowed(headers.host, settings)) response.writeHead(403).end()
  else if (url.split('?', 1)[0] !== settings.path) response.writeHead(404).end()
  else if (method !== 'GET' && method !== 'HEAD') response.writeHead(405, { allow: 'GET, HEAD' }).end()
  else {
    try {
      const all = settings.defaultMetrics ? Registry.merge([registry, register]) : registry
      const text = await all.metrics()
      response.writeHead(200, { 'content-type': all.contentType }).end(text)
    } catch {
      response.writeHead(500).end()
    }
  }
}

/** A page in a browser can make a name of its own mean this machine, but no address (DNS rebinding). */
function isAllowed(header = '', { host, allowHosts }: Settings): boolean {
  const name = URL.canParse(`http://${header}`) ? new URL(`http://${header}`).hostname.replace(/^\[|\]$/g, '') : ''
  return isIP(name) > 0 || ['localhost', host, ...allowHosts].some((it) => it.toLowerCase() === name)
}
