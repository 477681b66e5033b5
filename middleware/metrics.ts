import { once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { type AddressInfo, isIP, isIPv4, isIPv6 } from 'node:net'
import {
  type Application,
  type Context,
  type Definition,
  type Direction,
  define,
  type Middleware,
  type Stats,
} from 'open-mcp-proxy'
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client'

export interface MetricsOptions {
  /**
   * Where the metrics are served; 0 takes a free port, which `address` then tells, and a line on stderr; `false` opens
   * none, as does a `registry` without a port. All that ask for one host and port in one process share its counters.
   * @default 9464
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
  /** Labels that every series of this middleware has, by name. @default {} */
  labels?: Record<string, string>
  /**
   * Upper bounds of the durations' histogram, in seconds, rising.
   * @default [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600]
   */
  buckets?: number[]
  /**
   * Count and time calls by tool, too: the first 200 that gave a result, of names up to 128 characters; any other is
   * `other`. @default false
   */
  tools?: boolean
  /** Also serve those of the process, as prom-client collects them; not with a `registry`. @default false */
  defaultMetrics?: boolean
  /** For code: where to register, beside metrics of your own. @default one of its own */
  registry?: Registry
}

/** The middleware, and what code may want to know of it. */
export type Metrics = Middleware &
  Definition<Application> & {
    /** The URL where the metrics are served, from the start on. */
    readonly address?: string
    /** What the metrics are in; once started, that of its port. */
    readonly registry: Registry
  }

const directions = ['client-to-server', 'server-to-client'] as const

type Labels = Record<string, string>
type Outcome = 'ok' | 'error' | 'tool_error' | 'cancelled'
interface Settings extends Required<Omit<MetricsOptions, 'registry'>> {
  /** What those who share the metrics of a registry must agree on. */
  readonly shape: string
}

const BUCKETS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600]
/** Names come from peers, and each costs a series for ever. */
const MAX_TOOLS = 200
const MAX_NAME = 128
/** A scraper needs one. */
const MAX_CONNECTIONS = 100
const OWN_LABELS = ['direction', 'kind', 'method', 'outcome', 'code', 'tool', 'le']
/** What every revision up to 2026-07-28 and its tasks extension know; any other is `other`. */
const METHODS: ReadonlySet<string> = new Set(
  `initialize ping server/discover subscriptions/listen tools/list tools/call prompts/list prompts/get resources/list
  resources/templates/list resources/read resources/subscribe resources/unsubscribe completion/complete
  logging/setLevel sampling/createMessage elicitation/create roots/list tasks/get tasks/list tasks/result tasks/update
  tasks/cancel notifications/initialized notifications/cancelled notifications/progress notifications/message
  notifications/tools/list_changed notifications/prompts/list_changed notifications/resources/list_changed
  notifications/resources/updated notifications/roots/list_changed notifications/elicitation/complete
  notifications/subscriptions/acknowledged notifications/tasks notifications/tasks/status`.split(/\s+/),
)
/** Codes of JSON-RPC, of the protocol's revisions and SDKs, and "rejected by the user". */
const CODES: ReadonlySet<unknown> = new Set(
  '-32700 -32600 -32601 -32602 -32603 -32000 -32001 -32002 -32020 -32021 -32022 -32042 -1'.split(' ').map(Number),
)

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
 * @throws `TypeError` where an option cannot be, or the `registry` has these metrics with other buckets, tools or names of
 * labels. Its start fails where the port is taken, or is served already with other options than these, `labels`' values
 * left aside: what has been counted would not fit.
 * @example createProxy().use(metrics({ tools: true }))
 */
export function metrics(options: MetricsOptions = {}): Metrics {
  const settings = settingsOf(options)
  let meters = metersOf(options.registry ?? new Registry(), settings)
  let tally = meters.tally(settings.labels)
  const joined: Endpoint[] = []

  const observer = define<object, Application>(
    {
      role: 'observe',
      async start(app) {
        if (settings.port !== false) {
          const endpoint = Endpoint.at(settings, app, meters, options.registry !== undefined)
          joined.push(endpoint)
          observer.address = await endpoint.join()
          meters = endpoint.meters
          tally = meters.tally(settings.labels)
          observer.registry = meters.registry
        }
        tally.watch(app)
      },
      close: () => joined.pop()?.leave(),
    },
    function metrics(ctx, next) {
      if (ctx.kind === 'request') tally.opened(ctx)
      else if (ctx.kind === 'notification') tally.message(ctx.direction, 'notification', ctx.method)
      else {
        // Looked at once it is on its way: nobody waits for that, and what is only read then needs no second look.
        const sent = next()
        tally.answered(ctx)
        return sent
      }
      return next()
    },
  ) as Middleware & Definition<Application> & { address?: string; registry: Registry }
  observer.registry = meters.registry
  return observer
}

function settingsOf(options: MetricsOptions): Settings {
  const { registry, port = registry ? false : 9464, host = '127.0.0.1', path = '/metrics' } = options
  const { allowUnauthenticated = false, allowHosts = [], labels = {}, buckets = BUCKETS } = options
  const { tools = false, defaultMetrics = false } = options
  const check = (holds: boolean, expected: string, got: unknown) => {
    if (!holds) throw new TypeError(`metrics: expected ${expected}, got ${JSON.stringify(got) ?? typeof got}`)
  }
  const isPort = Number.isInteger(port) && Number(port) >= 0 && Number(port) < 65_536
  check(port === false || isPort, 'port from 0 to 65535, or false', port)
  check(typeof host === 'string' && host !== '', 'host, an address or a name', host)
  for (const [name, value] of Object.entries({ allowUnauthenticated, tools, defaultMetrics })) {
    check(typeof value === 'boolean', `${name} true or false`, value)
  }
  check(isLoopback(host) || allowUnauthenticated, 'a loopback host, or allowUnauthenticated', host)
  check(Array.isArray(allowHosts) && allowHosts.every(isString), 'allowHosts, an array of names', allowHosts)
  check(isString(path) && /^\/[^\s?#]*$/.test(path), 'path that begins with / and has no query', path)
  check(typeof labels === 'object' && labels !== null && !Array.isArray(labels), 'labels, an object', labels)
  for (const [name, value] of Object.entries(labels)) {
    const isFree = /^(?!__)[a-zA-Z_]\w*$/.test(name) && !OWN_LABELS.includes(name)
    check(isFree, `names of labels (letters, digits, _) that are none of ${OWN_LABELS.join(', ')}`, name)
    check(isString(value), `label "${name}" to be a string`, value)
  }
  check(Array.isArray(buckets) && buckets.length > 0 && buckets.every(isRising), 'buckets, rising seconds', buckets)
  check(registry === undefined || isRegistry(registry), "registry, one of prom-client's", typeof registry)
  check(!(registry && defaultMetrics), 'defaultMetrics or registry', 'both')
  const shape = JSON.stringify([buckets, tools, Object.keys(labels).sort()])
  return { port, host, allowUnauthenticated, allowHosts, path, labels, buckets, tools, defaultMetrics, shape }
}

function isString(value: unknown): value is string {
  return typeof value === 'string'
}

function isRising(bound: unknown, at: number, all: unknown[]): boolean {
  return Number.isFinite(bound) && Number(bound) > (at === 0 ? 0 : Number(all[at - 1]))
}

function isRegistry(value: unknown): boolean {
  return typeof (value as Registry | null)?.registerMetric === 'function'
}

function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || (isIPv4(host) && host.startsWith('127.'))
}

// --- what is counted ----------------------------------------------------------------------------------------

/** A count, which prom-client is told when somebody looks: its own look-up would cost each message half a microsecond. */
interface Cell {
  readonly labels: Labels
  count: number
}

/** The metrics in one registry. */
class Meters {
  readonly registry: Registry
  readonly shape: string
  readonly messages: Cell[] = []
  readonly requests: Cell[] = []
  readonly inFlight: Cell[] = []
  readonly withTools: boolean
  readonly duration: Histogram
  /** Of each application, as many dropped messages as were counted. */
  readonly dropped = new WeakMap<Application, number>()
  readonly #tallies = new Map<string, Tally>()

  readonly #own: string[]

  constructor(registry: Registry, { buckets, tools, labels, shape }: Settings) {
    this.registry = registry
    this.shape = shape
    this.withTools = tools
    this.#own = Object.keys(labels)
    const about = ['direction', 'method']
    const tool = tools ? ['tool'] : []
    new Counter({
      ...this.#named('messages_total', 'Messages that came.', ...about, 'kind'),
      collect: emptying(this.messages),
    })
    new Counter({
      ...this.#named('requests_total', 'Requests that have their outcome.', ...about, 'outcome', 'code', ...tool),
      collect: emptying(this.requests),
    })
    this.duration = new Histogram({
      ...this.#named('request_duration_seconds', 'From a request to its outcome.', ...about, 'outcome', ...tool),
      buckets,
    })
    const { inFlight } = this
    new Gauge({
      ...this.#named('requests_in_flight', 'Requests without an outcome.', ...about),
      collect() {
        for (const cell of inFlight) this.set(cell.labels, cell.count)
      },
    })
    this.#addStats()
  }

  #named(name: string, help: string, ...labelNames: string[]) {
    return {
      name: `mcp_proxy_${name}`,
      help,
      labelNames: [...labelNames, ...this.#own],
      registers: [this.registry],
    }
  }

  /** What the applications themselves know, asked when somebody looks. */
  #addStats(): void {
    const tallies = this.#tallies
    new Gauge({
      ...this.#named('sessions', 'Open sessions; over HTTP each request of 2026-07-28 is one.'),
      collect() {
        for (const it of tallies.values()) this.set(it.labels, it.stats().sessions)
      },
    })
    new Gauge({
      ...this.#named('waiting_messages', 'Messages that came and have not left.', 'direction'),
      collect() {
        for (const it of tallies.values()) {
          for (const [direction, count] of Object.entries(it.stats().lanes)) {
            this.set({ direction, ...it.labels }, count)
          }
        }
      },
    })
    new Counter({
      ...this.#named('dropped_messages_total', 'Messages that nobody waited for, or that could not be read.'),
      collect() {
        for (const it of tallies.values()) this.inc(it.labels, it.takeDropped())
      },
    })
  }

  /** The one for these labels: a middleware that takes the place of another counts on. */
  tally(labels: Labels): Tally {
    const key = JSON.stringify(Object.entries(labels).sort())
    const tally = this.#tallies.get(key) ?? new Tally(this, { ...labels })
    this.#tallies.set(key, tally)
    return tally
  }
}

function emptying(cells: Cell[]) {
  return function collect(this: Counter) {
    for (const cell of cells) {
      this.inc(cell.labels, cell.count)
      cell.count = 0
    }
  }
}

const known = new WeakMap<Registry, Meters>()

function metersOf(registry: Registry, settings: Settings): Meters {
  const meters = known.get(registry) ?? new Meters(registry, settings)
  if (meters.shape !== settings.shape) {
    throw new TypeError(
      'metrics: expected the buckets, tools and names of labels that the registry has them with already',
    )
  }
  known.set(registry, meters)
  return meters
}

/** A request without an outcome. */
interface Open {
  readonly direction: Direction
  readonly method: string
  readonly tool: string | undefined
  readonly since: number
  readonly inFlight: Cell
  readonly signal: AbortSignal
  onabort(): void
}

/** All that is counted under the same constant labels. */
class Tally {
  readonly labels: Labels
  readonly #meters: Meters
  readonly #messages = both(() => ({
    request: new Map<string, Cell>(),
    notification: new Map<string, Cell>(),
    response: new Map<string, Cell>(),
  }))
  readonly #inFlight = both(() => new Map<string, Cell>())
  readonly #outcomes = new Map<string, { cell: Cell; observe(seconds: number): void }>()
  readonly #open = new Map<string, Open>()
  readonly #tools = new Set<string>()
  readonly #applications = new Set<Application>()
  #dropped = 0

  constructor(meters: Meters, labels: Labels) {
    this.#meters = meters
    this.labels = labels
  }

  message(direction: Direction, kind: Context['kind'], method = 'other'): void {
    const cells = this.#messages[direction][kind]
    const cell = cells.get(method) ?? this.#cell(cells, this.#meters.messages, method, { direction, kind })
    cell.count++
  }

  opened(ctx: Context): void {
    const { direction, key, signal } = ctx
    const method = ctx.method as string
    this.message(direction, 'request', method)
    const cells = this.#inFlight[direction]
    const inFlight = cells.get(method) ?? this.#cell(cells, this.#meters.inFlight, method, { direction })
    const tool = this.#meters.withTools && method === 'tools/call' ? ctx.name : undefined
    const onabort = () => this.#settle(key, 'cancelled')
    this.#open.set(key, { direction, method, tool, since: performance.now(), inFlight, signal, onabort })
    inFlight.count++
    if (signal.aborted) onabort()
    else signal.addEventListener('abort', onabort)
  }

  answered(ctx: Context): void {
    const { direction, request } = ctx
    this.message(direction, 'response', request?.method)
    if (!request || !this.#open.has(request.key)) return
    const { error } = ctx
    if (error) this.#settle(request.key, 'error', codeOf(error))
    else
      this.#settle(request.key, request.method === 'tools/call' && ctx.result?.isError === true ? 'tool_error' : 'ok')
  }

  #settle(key: string, outcome: Outcome, code = ''): void {
    const open = this.#open.get(key)
    if (!open) return
    this.#open.delete(key)
    open.signal.removeEventListener('abort', open.onabort)
    open.inFlight.count--
    const tool = open.tool === undefined ? '' : this.#tool(open.tool, outcome)
    const { cell, observe } = this.#outcome(open.direction, labelOf(open.method), outcome, code, tool)
    cell.count++
    observe((performance.now() - open.since) / 1_000)
  }

  #outcome(direction: Direction, method: string, outcome: Outcome, code: string, tool: string) {
    const key = `${direction} ${method} ${outcome} ${code} ${tool}`
    let found = this.#outcomes.get(key)
    if (!found) {
      const byTool: Labels = this.#meters.withTools ? { tool } : {}
      const labels = { direction, method, outcome, ...byTool, ...this.labels }
      const cell = { labels: { ...labels, code }, count: 0 }
      const { observe } = this.#meters.duration.labels(labels)
      this.#meters.requests.push(cell)
      found = { cell, observe }
      this.#outcomes.set(key, found)
    }
    return found
  }

  /** Only a tool that gave a result takes one of the places: a client can call names that no server has. */
  #tool(name: string, outcome: Outcome): string {
    if (this.#tools.has(name)) return name
    // Two names with half a character each would be written alike, and Prometheus refuses a series that comes twice.
    const isFit = name.length <= MAX_NAME && !/\p{Cs}/u.test(name)
    if (!isFit || this.#tools.size >= MAX_TOOLS || outcome === 'error' || outcome === 'cancelled') return 'other'
    this.#tools.add(name)
    return name
  }

  #cell(cells: Map<string, Cell>, all: Cell[], method: string, more: Labels): Cell {
    const label = labelOf(method)
    let cell = cells.get(label)
    if (!cell) {
      cell = { labels: { ...more, method: label, ...this.labels }, count: 0 }
      cells.set(label, cell)
      all.push(cell)
    }
    return cell
  }

  watch(app: Application): void {
    if (this.#applications.has(app)) return
    this.#applications.add(app)
    app.once('close', () => {
      this.#addDropped(app)
      this.#applications.delete(app)
    })
  }

  /** Of all its applications together. */
  stats(): Pick<Stats, 'sessions' | 'lanes'> {
    const sum = { sessions: 0, lanes: { 'client-to-server': 0, 'server-to-client': 0 } }
    for (const app of this.#applications) {
      const { sessions, lanes } = app.stats()
      sum.sessions += sessions
      for (const direction of directions) sum.lanes[direction] += lanes[direction]
    }
    return sum
  }

  /** How many messages were dropped since the last time. */
  takeDropped(): number {
    for (const app of this.#applications) this.#addDropped(app)
    const dropped = this.#dropped
    this.#dropped = 0
    return dropped
  }

  #addDropped(app: Application): void {
    const { dropped } = app.stats()
    this.#dropped += dropped - (this.#meters.dropped.get(app) ?? 0)
    this.#meters.dropped.set(app, dropped)
  }
}

function both<T>(make: () => T): Record<Direction, T> {
  return { 'client-to-server': make(), 'server-to-client': make() }
}

function labelOf(method: string): string {
  return METHODS.has(method) ? method : 'other'
}

/** The proxy's own are a hundred at most. */
function codeOf({ code }: { code: number }): string {
  return CODES.has(code) || (Number.isInteger(code) && code <= -31_000 && code > -31_100) ? String(code) : 'other'
}

// --- where it is served -------------------------------------------------------------------------------------

/** The process's own metrics, once: what watches it cannot be stopped again. */
let ofProcess: Registry | undefined

function processRegistry(): Registry {
  if (!ofProcess) {
    ofProcess = new Registry()
    collectDefaultMetrics({ register: ofProcess })
  }
  return ofProcess
}

/** What those who share a port must agree on. */
function termsOf({ path, allowHosts, defaultMetrics, shape }: Settings): string {
  return JSON.stringify([path, allowHosts, defaultMetrics, shape])
}

/** A port that one middleware or several share. */
class Endpoint {
  static readonly #all = new Set<Endpoint>()

  readonly meters: Meters
  readonly #settings: Settings
  /** For a port 0, which only those of one application share. */
  readonly #app: Application
  readonly #server = createServer((request, response) => this.#answer(request, response))
  #ready: Promise<string> | undefined
  #users = 0

  constructor(settings: Settings, app: Application, meters: Meters) {
    this.#settings = settings
    this.#app = app
    this.meters = meters
  }

  /** The one that is there already, else a new one for these meters. */
  static at(settings: Settings, app: Application, meters: Meters, isGiven: boolean): Endpoint {
    const { host, port } = settings
    const isThere = (it: Endpoint) => it.#isAt(host, port) && (port !== 0 || it.#app === app)
    const there = [...Endpoint.#all].find(isThere)
    if (!there) return new Endpoint(settings, app, meters)
    if (termsOf(there.#settings) === termsOf(settings) && (!isGiven || there.meters === meters)) return there
    throw new Error(
      `metrics: port ${port} on ${host} is served already with another registry, path, allowHosts, defaultMetrics, ` +
        'buckets, tools or names of labels',
    )
  }

  #isAt(host: string, port: number | false): boolean {
    return this.#settings.host === host && this.#settings.port === port
  }

  /** Resolves with the address once it is served. */
  join(): Promise<string> {
    this.#users++
    Endpoint.#all.add(this)
    this.#ready ??= this.#listen()
    return this.#ready
  }

  async #listen(): Promise<string> {
    const { host, port, path } = this.#settings
    const server = this.#server
    server.maxConnections = MAX_CONNECTIONS
    // Whoever scrapes must not keep a process that has nothing else to do.
    server.on('connection', (socket) => socket.unref())
    server.unref()
    try {
      server.listen({ host, port: port as number })
      await once(server, 'listening')
    } catch (error) {
      Endpoint.#all.delete(this)
      const { code } = error as NodeJS.ErrnoException
      const text = code === 'EADDRINUSE' ? 'is taken' : `could not be opened: ${code}`
      throw new Error(`metrics: port ${port} on ${host} ${text}`, { cause: error })
    }
    server.on('error', () => {})
    const { port: taken } = server.address() as AddressInfo
    const address = `http://${isIPv6(host) ? `[${host}]` : host}:${taken}${path}`
    if (port === 0) process.stderr.write(`metrics: listening on ${address}\n`)
    return address
  }

  /** Closes it with the last one that leaves. */
  async leave(): Promise<void> {
    if (--this.#users > 0) return
    Endpoint.#all.delete(this)
    await this.#ready?.catch(() => {})
    if (!this.#server.listening) return
    this.#server.close()
    this.#server.closeAllConnections()
    await once(this.#server, 'close')
  }

  #answer({ headers, method = '', url = '' }: IncomingMessage, response: ServerResponse): void {
    const end = (status: number, more: Record<string, string> = {}, body = '') => {
      const length = String(Buffer.byteLength(body))
      response.writeHead(status, { 'content-length': length, 'x-content-type-options': 'nosniff', ...more }).end(body)
    }
    if (!this.#isHost(headers.host)) end(403)
    else if (url.split('?', 1)[0] !== this.#settings.path) end(404)
    else if (method !== 'GET' && method !== 'HEAD') end(405, { allow: 'GET, HEAD' })
    else {
      this.#text().then(
        (text) => end(200, { 'content-type': this.meters.registry.contentType }, text),
        () => end(500),
      )
    }
  }

  /** A page in a browser can make a name of its own mean this machine, but no address (DNS rebinding). */
  #isHost(header = ''): boolean {
    const { host, allowHosts } = this.#settings
    const [, name = '', address] = /^(\[([\da-f:.]+)\]|[^\s:@/\\?#[\]]+)(?::\d{1,5})?$/.exec(header.toLowerCase()) ?? []
    return isIP(address ?? name) > 0 || ['localhost', host, ...allowHosts].some((it) => it.toLowerCase() === name)
  }

  #text(): Promise<string> {
    const { registry } = this.meters
    const all = this.#settings.defaultMetrics ? Registry.merge([registry, processRegistry()]) : registry
    return all.metrics()
  }
}
