import { EventEmitter } from 'node:events'
import type { Transport } from '@modelcontextprotocol/sdk/shared/transport.js'
import { Bridge } from './bridge.js'
import { Stack } from './compose.js'
import type { Context, Middleware } from './context.js'
import { deferred } from './deferred.js'
import type { Admission, Definition } from './define.js'
import {
  type Accept,
  type AcceptOptions,
  type HandlerOptions,
  type Health,
  type HttpOptions,
  type Listener,
  type Listening,
  type RequestHandler,
  type Served,
  stdioListener,
} from './listener/index.js'
import { printable } from './log.js'
import type { Passage } from './passage.js'
import type { Ending, Session } from './session.js'
import { nameOf, openUpstream, type Upstream } from './upstream/index.js'
import { type CloseOptions, fromTransport, isWire, type Wire } from './wire.js'

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
  #stack = lineOf([])
  readonly #bridges = new Set<Bridge>()
  readonly #listening = new Set<Listening>()
  #serves = false
  readonly #started = new Set<Definition<this>>()
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
   * get their answers through the line that they left by. Where the application serves, what is new is started first;
   * what was taken out is closed with the application.
   *
   * @throws (rejects) what a middleware's `start` throws; the old line stays.
   */
  async replace(...middleware: Middleware<State>[]): Promise<void> {
    const stack = lineOf(middleware.map((it) => checked(it as Middleware)))
    if (this.#serves) await this.#start(stack)
    this.#stack = stack
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
    this.#bridges.add(bridge)
    void bridge.closed.then(() => {
      this.#bridges.delete(bridge)
      this.#dropped += bridge.stats.dropped
    })
    this.emit('session', bridge.session)
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
  async listen(upstream: Upstream, listener: Listener | HttpOptions = stdioListener()): Promise<Listening> {
    if (typeof listener === 'function') return this.#serve(upstream, {}, listener)
    const { listenHttp } = await import('./listener/http.js')
    return this.#serve(upstream, listener, (accept, served) => listenHttp(listener, accept, served))
  }

  /**
   * The same as a request handler for a Node server, Express, Fastify, Koa or Hono's Node adapter. `app.close()` ends it.
   * What starts with it (`define({ start })`) does so at once; where that fails, requests get a 503 and `'error'` is told.
   *
   * @throws `TypeError` where the upstream cannot be understood.
   */
  handler(upstream: Upstream, options: HandlerOptions = {}): RequestHandler {
    nameOf(upstream)
    const listener = async (accept: Accept, served: Served) => {
      const { Face } = await import('./listener/face.js')
      const face = new Face(accept, served, options)
      const over = deferred<Ending>()
      const close = async (how?: CloseOptions) => {
        await face.close(how)
        over.resolve({ served: true })
      }
      return { closed: over.promise, close, handle: face.handle }
    }
    const ready = this.#serve(upstream, options, listener)
    ready.catch((error: Error) => this.#report(error))
    return (request, response, next) => {
      ready.then(
        ({ handle }) => handle(request, response, next),
        () => response.writeHead(503).end(),
      )
    }
  }

  async #serve<It extends Listening>(
    upstream: Upstream,
    options: HandlerOptions,
    listener: (accept: Accept, served: Served) => It | Promise<It>,
  ): Promise<It> {
    this.#refuseIfClosed()
    const { open, close } = openUpstream(upstream, options)
    const name = nameOf(upstream)
    this.#serves = true
    await this.#start(this.#stack)
    this.#refuseIfClosed()
    const joined = new Set<Bridge>()
    let state: Health['upstream']['state'] = 'unknown'
    const accept: Accept = (client, more = {}) => {
      const options = { ...more, upstream: name }
      const bridge = this.#join(client, async (session) => toWire(await open(session)), options)
      joined.add(bridge)
      void bridge.closed.then(({ served, reason }) => {
        joined.delete(bridge)
        if (served || reason) state = served ? 'up' : 'down'
      })
      return { session: bridge.session, closed: bridge.closed, close: (how) => bridge.close(how) }
    }
    const since = performance.now()
    const health = (): Health => {
      const { sessions, pending } = this.stats()
      if ([...joined].some((it) => it.isServed)) state = 'up'
      const uptime = Math.floor((performance.now() - since) / 1_000)
      // A path may be a secret: whoever asks is not known.
      const origin = /^https?:/.test(name) ? new URL(name).origin : name
      return { status: 'ok', uptime, sessions, pending, upstream: { name: origin, state } }
    }
    const listening = await listener(accept, this.#served(health))
    if (this.#isClosed) await listening.close({ urgent: true })
    this.#refuseIfClosed()
    const whole: It = {
      ...listening,
      closed: listening.closed.then(async (ending) => {
        await close()
        return ending
      }),
      close: async (how) => {
        await listening.close(how)
        await close(how)
      },
    }
    this.#listening.add(whole)
    void whole.closed.then(({ reason }) => {
      this.#listening.delete(whole)
      if (this.#listening.size === 0) void this.#finish(reason)
    })
    this.emit('start')
    return whole
  }

  #refuseIfClosed(): void {
    if (this.#isClosed) throw new Error('listen(): expected an application that is open, this one was closed')
  }

  #served(health: () => Health): Served {
    const admitting = () => definitionsOf<this>(this.#stack).flatMap(({ admit }) => (admit ? [admit] : []))
    return {
      get authenticates() {
        return admitting().length > 0
      },
      async admit(request) {
        let admission: Admission | undefined
        for (const admit of admitting()) {
          const said = await admit(request)
          if (said && 'status' in said) return said
          admission ??= said
        }
        return admission
      },
      health,
      report: (error) => this.#report(error),
    }
  }

  async #start(stack: Stack<Passage>): Promise<void> {
    for (const definition of definitionsOf<this>(stack)) {
      if (this.#started.has(definition)) continue
      this.#started.add(definition)
      try {
        await definition.start?.(this)
      } catch (error) {
        this.#started.delete(definition)
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
    await Promise.all([...open, ...[...this.#bridges].map((it) => it.close(options))])
    await this.#finish()
  }

  #finish(error?: Error): Promise<void> {
    this.#isClosed = true
    this.#closing ??= (async () => {
      for (const { close } of new Set([...this.#started, ...definitionsOf<this>(this.#stack)])) {
        try {
          await close?.()
        } catch (failure) {
          this.#report(failure as Error)
        }
      }
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
    for (const { stats: one } of this.#bridges) {
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
  const text = error instanceof Error ? error.message : String(error)
  process.stderr.write(`open-mcp-proxy: ${printable(Buffer.from(text))}\n`)
}

function definitionsOf<App>({ middleware }: Stack<Passage>): Definition<App>[] {
  return [...middleware] as Definition<App>[]
}

function lineOf(middleware: readonly Middleware[]): Stack<Passage> {
  return new Stack(middleware, (it, place) => (passage, next) => passage.enter(it, place, next))
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

function toWire(end: Wire | Transport): Wire {
  return isWire(end) ? end : fromTransport(end)
}
