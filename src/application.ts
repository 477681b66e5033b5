import { EventEmitter } from 'node:events'
import type { Transport } from '@modelcontextprotocol/sdk/shared/transport.js'
import { Bridge } from './bridge.js'
import { Stack, type Step } from './compose.js'
import type { Context, Middleware } from './context.js'
import type { Definition } from './define.js'
import { messageOf } from './error.js'
import { Ledger } from './ledger.js'
import {
  type AcceptOptions,
  type HandlerOptions,
  type HttpOptions,
  type Listener,
  type Listening,
  type RequestHandler,
  stdioListener,
} from './listener/index.js'
import { settingsOf } from './listener/options.js'
import { headOf } from './listener/routes.js'
import { printable } from './log.js'
import { concernOf } from './match.js'
import type { Passage } from './passage.js'
import { Service, type ServiceHost, toWire } from './service.js'
import type { Session } from './session.js'
import type { Upstream } from './upstream/index.js'
import type { Wire } from './wire.js'

export interface ApplicationEvents {
  /** It serves. */
  start: []
  /** It has stopped and nothing is left; `error` says why, unless the client left or `close()` was called. */
  close: [error?: Error]
  /** A client was joined to a server. */
  session: [session: Session]
  /** Something went wrong that no peer is told of in full. Without a listener it goes to stderr. */
  error: [error: Error, ctx?: Context]
}

export interface Stats {
  /** Open sessions. */
  sessions: number
  /** Requests without an outcome, of both ends. */
  pending: number
  /** Messages that arrived and have not left. */
  lanes: { 'client-to-server': number; 'server-to-client': number }
  /** Messages that nobody waited for, or that could not be read, since the start. */
  dropped: number
}

export interface ApplicationOptions {
  /** Milliseconds that requests in flight have when a session closes. @default 10000 */
  drainTimeout?: number
}

export interface ConnectOptions {
  /** Who is at the client's end. */
  principal?: string
}

type Tuple<State extends object> = readonly (Middleware<State> & Definition<never>)[]

/** A line of middleware, and the sessions that run through it. */
export class Application<State extends object = object> extends EventEmitter<ApplicationEvents> {
  readonly #options: ApplicationOptions
  readonly #host: ServiceHost = {
    join: (client, open, options) => this.#join(client, open, options),
    definitions: () => definitionsOf<never>(this.#stack),
    stats: () => this.stats(),
    report: (error) => this.#report(error),
  }
  #stack = lineOf([])
  readonly #bridges = new Ledger<number, Bridge>()
  #serial = 0
  readonly #listening = new Set<Listening>()
  #serves = false
  readonly #started = new Set<Definition<this>>()
  /** What was replaced is being closed. */
  #retiring: Promise<unknown> = Promise.resolve()
  #closing: Promise<void> | undefined
  #isClosed = false
  #dropped = 0

  constructor(options: ApplicationOptions = {}) {
    super()
    this.#options = options
  }

  /**
   * Appends middleware to the line. The first one is next to the client and sees exactly what the client sees.
   * A shared stack is an array: `use(...stack)`.
   */
  use(...middleware: Tuple<State>): Application<State>
  use<A extends object>(a: Middleware<State & A>): Application<State & A>
  use<A extends object, B extends object>(
    a: Middleware<State & A>,
    b: Middleware<State & A & B>,
  ): Application<State & A & B>
  use<A extends object, B extends object, C extends object>(
    a: Middleware<State & A>,
    b: Middleware<State & A & B>,
    c: Middleware<State & A & B & C>,
  ): Application<State & A & B & C>
  use(...middleware: Middleware[]): this {
    this.#stack = lineOf([...this.#stack.middleware, ...middleware.map(checked)])
    return this
  }

  /**
   * Puts a new line in place of the old one, for messages that come from now on. Sessions stay, and requests in flight
   * get their answers through the line that they left by. Where the application serves, what is new is started first,
   * and what was taken out is closed when nothing goes through it any more.
   *
   * @throws (rejects) what a middleware's `start` throws; the old line stays.
   */
  async replace(...middleware: Middleware<State>[]): Promise<void> {
    const stack = lineOf(middleware.map((it) => checked(it as Middleware)))
    if (this.#serves) await this.#start(stack)
    const before = definitionsOf<this>(this.#stack)
    this.#stack = stack
    const retired = Promise.all(this.#bridges.values().map((it) => it.past())).then(() => this.#retire(before))
    this.#retiring = Promise.all([this.#retiring, retired])
  }

  async #retire(definitions: readonly Definition<this>[]): Promise<void> {
    for (const definition of definitions) {
      if (definitionsOf<this>(this.#stack).includes(definition) || !this.#started.delete(definition)) continue
      await this.#end(definition)
    }
  }

  async #end({ close }: Definition<this>): Promise<void> {
    try {
      await close?.()
    } catch (error) {
      this.#report(error as Error)
    }
  }

  /**
   * Joins a client to a server: the primitive under `listen`. Both ends are started; the session closes them.
   */
  connect(client: Wire | Transport, server: Wire | Transport, options: ConnectOptions = {}): Session {
    return this.#join(toWire(client), () => toWire(server), { ...options, upstream: 'transport' }).session
  }

  #join(
    client: Wire,
    open: (session: Session) => Wire | Promise<Wire>,
    options: AcceptOptions & { upstream: string },
  ): Bridge {
    const bridge = new Bridge({
      ...options,
      drainTimeout: this.#options.drainTimeout,
      stack: () => this.#stack,
      report: (error, ctx) => this.#report(error, ctx),
    })
    this.#serial += 1
    const number = this.#serial
    this.#bridges.set(number, bridge)
    void bridge.closed.then(() => {
      this.#bridges.delete(number)
      this.#dropped += bridge.stats.dropped
    })
    try {
      this.emit('session', bridge.session)
    } catch (error) {
      this.#report(error as Error)
    }
    bridge.start(client, () => open(bridge.session))
    return bridge
  }

  /**
   * Serves. With a `port`: clients over HTTP, each of which gets an upstream connection (a child) of its own;
   * stateless ones (2026-07-28) share. Without: the one client is whoever started this process, on its stdin and
   * stdout; then the application closes when that client leaves, or the upstream ends. Resolves when it serves.
   *
   * @throws (rejects) `TypeError` where the upstream or an option cannot be understood, or for an address that others can
   * reach and nobody authenticates at; what a middleware's `start` throws, or Node, where the port cannot be had.
   */
  listen(upstream: Upstream, options: HttpOptions): Promise<Listening & { readonly address: string }>
  listen(upstream: Upstream, listener?: Listener | HttpOptions): Promise<Listening>
  async listen(upstream: Upstream, listener: Listener | HttpOptions = stdioListener()): Promise<Listening> {
    if (typeof listener === 'function') return this.#serve(new Service(upstream, {}, this.#host), listener)
    const { listenHttp } = await import('./listener/http.js')
    const service = new Service(upstream, { ...listener, restart: 'on-failure' }, this.#host)
    return this.#serve(service, (accept, served) => listenHttp(listener, accept, served))
  }

  /**
   * The same as a request handler for a Node server, Express, Fastify, Koa or Hono's Node adapter. `app.close()` ends it.
   * What starts with it (`define({ start })`) does so at once; where that fails, requests get a 503 and `'error'` is told.
   *
   * @throws `TypeError` where the upstream or an option cannot be understood.
   */
  handler(upstream: Upstream, options: HandlerOptions = {}): RequestHandler {
    const settings = settingsOf(options)
    const service = new Service(upstream, { ...options, restart: 'on-failure' }, this.#host)
    let handle: RequestHandler | undefined
    const ready = this.#serve(service, async (accept, served) => {
      const { Face } = await import('./listener/face.js')
      const face = new Face(accept, served, settings)
      handle = face.handle
      return face
    })
    ready.catch((error: Error) => this.#report(error))
    return (request, response, next) => {
      // Nobody else's requests wait for us, or fail with us.
      if (next && settings.routes.of(request) === undefined && !service.respond(headOf(request))) next()
      else {
        ready.then(
          () => handle?.(request, response, next),
          () => response.writeHead(503).end(),
        )
      }
    }
  }

  async #serve(service: Service, listener: Listener): Promise<Listening> {
    this.#refuseIfClosed()
    this.#serves = true
    await this.#start(this.#stack)
    this.#refuseIfClosed()
    const listening = await listener(service.accept, service)
    const whole: Listening = {
      address: listening.address,
      closed: listening.closed.then(async (ending) => {
        await service.close()
        return ending
      }),
      close: async (how) => {
        await listening.close(how)
        await service.close(how)
      },
    }
    if (this.#isClosed) await whole.close({ urgent: true })
    this.#refuseIfClosed()
    this.#listening.add(whole)
    void whole.closed.then(({ reason }) => {
      this.#listening.delete(whole)
      if (this.#listening.size === 0) void this.#finish(reason)
    })
    this.emit('start')
    return whole
  }

  #refuseIfClosed(): void {
    if (this.#isClosed) throw new Error('expected an application that is open, this one was closed')
  }

  /** What one of them throws is thrown; what was started before it is closed again. */
  async #start(stack: Stack<Passage>): Promise<void> {
    const begun: Definition<this>[] = []
    for (const definition of definitionsOf<this>(stack)) {
      if (this.#started.has(definition)) continue
      this.#started.add(definition)
      try {
        await definition.start?.(this)
        begun.push(definition)
        this.#refuseIfClosed()
      } catch (error) {
        if (!begun.includes(definition)) this.#started.delete(definition)
        for (const it of begun) if (this.#started.delete(it)) await this.#end(it)
        throw error
      }
    }
  }

  /**
   * Stops accepting, lets requests in flight finish (`drainTimeout`), closes all sessions and upstreams, and
   * resolves when nothing is left. Call it again with `urgent` to wait no longer.
   */
  async close(options: { urgent?: boolean } = {}): Promise<void> {
    this.#isClosed = true
    const open = [...this.#listening].map((it) => it.close(options))
    await Promise.all([...open, ...this.#bridges.values().map((it) => it.close(options))])
    await this.#finish()
  }

  #finish(error?: Error): Promise<void> {
    this.#isClosed = true
    this.#closing ??= (async () => {
      await this.#retiring
      const last = new Set([...this.#started, ...definitionsOf<this>(this.#stack)])
      this.#started.clear()
      for (const it of last) await this.#end(it)
      this.emit('close', error)
    })()
    return this.#closing
  }

  /** What is going on right now. */
  stats(): Stats {
    const stats: Stats = {
      sessions: this.#bridges.size,
      pending: 0,
      lanes: { 'client-to-server': 0, 'server-to-client': 0 },
      dropped: this.#dropped,
    }
    for (const { stats: one } of this.#bridges.values()) {
      stats.pending += one.pending
      stats.dropped += one.dropped
      stats.lanes['client-to-server'] += one.lanes['client-to-server']
      stats.lanes['server-to-client'] += one.lanes['server-to-client']
    }
    return stats
  }

  #report(error: Error, ctx?: Context): void {
    try {
      if (this.listenerCount('error') === 0) complain(error)
      else this.emit('error', error, ctx)
    } catch (failure) {
      complain(failure)
    }
  }
}

/** A new application: `createProxy().use(auth).use(logger()).listen(upstream)`. */
export function createProxy(options?: ApplicationOptions): Application {
  return new Application(options)
}

/** One line, whatever a peer put into the text. */
function complain(error: unknown): void {
  process.stderr.write(`open-mcp-proxy: ${printable(Buffer.from(messageOf(error)))}\n`)
}

function definitionsOf<App>({ middleware }: Stack<Passage>): Definition<App>[] {
  return [...middleware] as Definition<App>[]
}

function lineOf(middleware: readonly Middleware[]): Stack<Passage> {
  return new Stack(middleware, (it, place) => {
    const step: Step<Passage> = (passage, next) => passage.enter(it, place, next)
    const concern = concernOf(it)
    if (concern) step.concerns = (passage) => concern(passage.kind, passage.methodAt(place))
    return step
  })
}

function checked(middleware: Middleware): Middleware {
  if (typeof middleware !== 'function') {
    throw new TypeError(`use(): expected a middleware function (ctx, next) => …, got ${describe(middleware)}`)
  }
  return middleware
}

function describe(value: unknown): string {
  if (Array.isArray(value)) return 'an array (spread it: use(...stack))'
  return value === null ? 'null' : typeof value
}
