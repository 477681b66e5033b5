import type { JSONRPCMessage } from '@modelcontextprotocol/sdk/types.js'
import { Application } from './application.js'
import { bridgeOf } from './bridge.js'
import {
  Context,
  type Direction,
  type ErrorObject,
  type Middleware,
  type Next,
  type Result,
  type Transit,
} from './context.js'
import { RpcError } from './error.js'
import { Message } from './message.js'
import { Session, type Side } from './session.js'
import type { Frame, FrameMeta, Wire } from './wire.js'

// A test that fakes timers must still be able to wait for the proxy.
const { setImmediate } = globalThis

/** A message as a test writes it: `jsonrpc` may be left out. A string is sent as it is. */
export type Written = string | { id?: unknown; method?: string; params?: object; result?: object; error?: object }

/** What came out on both sides. */
export interface Traffic {
  toClient: JSONRPCMessage[]
  toServer: JSONRPCMessage[]
}

/** An application between two ends that a test plays. */
export interface TestProxy {
  readonly session: Session
  /** Appends middleware to the application. */
  use(...middleware: Middleware<never>[]): this
  /** Sends a message as the client; resolves with everything that came out on both sides because of it. */
  fromClient(message: Written, meta?: FrameMeta): Promise<Traffic>
  /** The same as the server. */
  fromServer(message: Written, meta?: FrameMeta): Promise<Traffic>
  /** Resolves with what came out since, once every message has left or waits for a peer: after a timer, for one. */
  settle(): Promise<Traffic>
  /** The client leaves, or the server ends; resolves with the last messages when the session is over. */
  end(side: Side, reason?: Error): Promise<Traffic>
}

/**
 * Plays both ends of a proxy without sockets, processes or sleeps.
 *
 * @example
 * const proxy = testProxy(createProxy().use(rename('a_')))
 * expect(await proxy.fromClient({ id: 1, method: 'tools/call', params: { name: 'a_x' } })).toEqual({
 *   toServer: [{ jsonrpc: '2.0', id: 1, method: 'tools/call', params: { name: 'x' } }],
 *   toClient: [],
 * })
 */
export function testProxy(app: Application<never> | Application = new Application()): TestProxy {
  const client = new PlayedWire()
  const server = new PlayedWire()
  const session = app.connect(client, server)
  const bridge = bridgeOf(session)
  if (!bridge) throw new Error('expected a session of this package')
  const settle = async (): Promise<Traffic> => {
    let before: number
    do {
      before = client.sent.length + server.sent.length
      await bridge.quiet()
      await new Promise(setImmediate)
    } while (before !== client.sent.length + server.sent.length || !bridge.isQuiet)
    return { toClient: client.take(), toServer: server.take() }
  }
  const play = (wire: PlayedWire) => async (message: Written, meta?: FrameMeta) => {
    await wire.started
    wire.onframe?.(bytesOf(message), meta)
    return settle()
  }
  return {
    session,
    use(...middleware) {
      app.use(...(middleware as never[]))
      return this
    },
    fromClient: play(client),
    fromServer: play(server),
    settle,
    async end(side, reason) {
      const wire = side === 'client' ? client : server
      await wire.started
      wire.onclose?.(reason)
      await bridge.closed
      return { toClient: client.take(), toServer: server.take() }
    },
  }
}

class PlayedWire implements Wire {
  onframe?: (frame: Frame, meta?: FrameMeta) => void
  onclose?: (reason?: Error) => void
  sent: JSONRPCMessage[] = []
  readonly started: Promise<void>
  #begin!: () => void

  constructor() {
    this.started = new Promise((resolve) => {
      this.#begin = resolve
    })
  }

  start(): void {
    this.#begin()
  }

  send(frame: Frame): void {
    this.sent.push(JSON.parse(new TextDecoder().decode(frame)) as JSONRPCMessage)
  }

  take(): JSONRPCMessage[] {
    return this.sent.splice(0)
  }

  async close(): Promise<void> {}
  pause(): void {}
  resume(): void {}
}

export interface TestContextOptions<State extends object> {
  /** @default 'server-to-client' for a response, else 'client-to-server' */
  direction?: Direction
  /** Of a response: the request that it answers. */
  request?: Written
  state?: Partial<State>
  extra?: FrameMeta
  /** Answers `ctx.call`. @default it rejects */
  call?: (to: Side, method: string, params?: object) => object | Promise<object>
}

/** What a middleware did with its message. */
export interface Deeds {
  /** What it handed on, as it then was. */
  passed: JSONRPCMessage[]
  /** What it replied or failed with. */
  replies: ({ result: object } | { error: ErrorObject })[]
  dropped: boolean
  steppedAside: boolean
  notified: { to: Side; method: string; params?: object }[]
  called: { to: Side; method: string; params?: object }[]
}

/**
 * A context to try one middleware on, with a `next` that takes note.
 *
 * @example
 * const { ctx, next, deeds } = testContext({ id: 1, method: 'tools/call', params: { name: 'rm' } })
 * await guard(ctx, next)
 * expect(deeds.replies).toEqual([{ error: { code: -31006, message: 'Denied' } }])
 */
export function testContext<State extends object = object>(
  message: Written,
  options: TestContextOptions<State> = {},
): { ctx: Context<State>; next: Next; deeds: Deeds; abort(reason?: unknown): void } {
  const deeds: Deeds = { passed: [], replies: [], dropped: false, steppedAside: false, notified: [], called: [] }
  const controller = new AbortController()
  const transit = new PlayedTransit(new Message(bytesOf(message)), options, deeds, controller.signal)
  return {
    ctx: new Context<State>(transit, 0),
    next: async () => {
      if (transit.settled) throw new Error('next() after reply(), fail() or drop()')
      transit.message = transit.message.changed() ?? transit.message
      deeds.passed.push(JSON.parse(transit.message.text) as JSONRPCMessage)
    },
    deeds,
    abort: (reason) => controller.abort(reason),
  }
}

class PlayedTransit implements Transit {
  readonly session: Session
  readonly direction: Direction
  readonly timestamp = Date.now()
  readonly extra: FrameMeta
  readonly key = 'test:1'
  readonly state: object
  readonly holder = 0
  message: Message
  touched = false
  readonly #request: Context | undefined

  constructor(
    readonly origin: Message,
    readonly options: TestContextOptions<object>,
    readonly deeds: Deeds,
    readonly abortSignal: AbortSignal,
  ) {
    this.message = origin
    this.direction = options.direction ?? (origin.head.kind === 'response' ? 'server-to-client' : 'client-to-server')
    this.extra = options.extra ?? {}
    this.state = options.state ?? {}
    this.session = new Session(
      { id: 'test', upstream: 'test', signal: abortSignal },
      {
        notify: (to, method, params) => this.notify(0, to, method, params),
        call: (to, method, params) => this.call(0, to, method, params),
      },
    )
    if (options.request !== undefined) {
      const { request, ...rest } = options
      const opposite = this.direction === 'client-to-server' ? 'server-to-client' : 'client-to-server'
      const asked = new Message(bytesOf(request))
      this.#request = new Context(new PlayedTransit(asked, { ...rest, direction: opposite }, deeds, abortSignal), 0)
    }
  }

  get settled(): boolean {
    return this.deeds.replies.length > 0 || this.deeds.dropped
  }

  signal(): AbortSignal {
    return this.abortSignal
  }

  request(): Context | undefined {
    return this.#request
  }

  reply(_place: number, result: object = {}): Promise<void> {
    return this.#settle({ result })
  }

  fail(_place: number, error: ErrorObject | Error): Promise<void> {
    const known = error instanceof RpcError ? error.toJSON() : error
    return this.#settle({ error: known instanceof Error ? { code: -32603, message: 'Internal error' } : known })
  }

  #settle(reply: Deeds['replies'][number]): Promise<void> {
    if (this.origin.head.kind === 'notification') throw new TypeError('a notification has no answer')
    if (this.settled) throw new Error('this message has its outcome already')
    this.deeds.replies.push(reply)
    return Promise.resolve()
  }

  drop(): void {
    this.deeds.dropped = true
  }

  stepAside(): void {
    this.deeds.steppedAside = true
  }

  async notify(_place: number, to: Side, method: string, params?: object): Promise<void> {
    this.deeds.notified.push(params === undefined ? { to, method } : { to, method, params })
  }

  async call(_place: number, to: Side, method: string, params?: object): Promise<Result> {
    this.deeds.called.push(params === undefined ? { to, method } : { to, method, params })
    if (!this.options.call) throw new Error(`testContext: expected options.call to answer ${method}, got none`)
    return (await this.options.call(to, method, params)) as Result
  }
}

function bytesOf(message: Written): Frame {
  const text = typeof message === 'string' ? message : JSON.stringify({ jsonrpc: '2.0', ...message })
  return new TextEncoder().encode(text)
}
