import type { JSONRPCMessage } from '@modelcontextprotocol/sdk/types.js'
import { Context, type Direction, type ErrorObject, type Next, type Result, type Transit } from '../context.js'
import { RpcError } from '../error.js'
import { Message } from '../message.js'
import { Session, type Side } from '../session.js'
import type { FrameMeta } from '../wire.js'
import { bytesOf, type Written } from './messages.js'

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

  nameOf(): undefined {}

  get settled(): boolean {
    return this.deeds.replies.length > 0 || this.deeds.dropped
  }

  signal(): AbortSignal {
    return this.abortSignal
  }

  whenAborted(_place: number, callback: (reason: unknown) => void): () => void {
    const { abortSignal } = this
    const onabort = () => callback(abortSignal.reason)
    if (abortSignal.aborted) onabort()
    abortSignal.addEventListener('abort', onabort)
    return () => abortSignal.removeEventListener('abort', onabort)
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
