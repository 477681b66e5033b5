import type { RequestId } from '@modelcontextprotocol/sdk/types.js'
import type { Stack } from './compose.js'
import {
  Context,
  type Direction,
  type ErrorObject,
  type Middleware,
  type Next,
  type Result,
  type Transit,
} from './context.js'
import { proxyError } from './error.js'
import type { Turn } from './lane.js'
import { errorFrame, Message, resultFrame } from './message.js'
import type { CallOptions, Session, Side } from './session.js'
import type { Frame, FrameMeta } from './wire.js'

/** A request of the proxy's own: who asked, and where. */
export interface OwnCall {
  /** The place that asked; the answer walks back to it. */
  readonly place: number
  resolve(result: Result): void
  reject(error: unknown): void
}

/** A request and its one outcome. */
export class Exchange {
  /** The id as the requester knows it; undefined on a call of the proxy's own. */
  readonly id: RequestId | undefined
  readonly own: OwnCall | undefined
  request!: Passage
  /** The newest answer that was given to it. */
  response: Passage | undefined
  /** The id as the answering end knows it. Differs from `id` only where that one may still be answered late. */
  readonly wireId: RequestId
  /** The answering end may have seen the request. */
  sent = false
  /** An outcome was chosen; it may still be on its way to the requester. */
  answered = false
  /** Cancelled by the requester, and the reason: silence is its outcome. */
  cancelled: unknown
  /** The answering end took it back (`notifications/cancelled` of a listen stream): no answer is owed. */
  ended = false
  /** Its outcome has left. */
  finished = false
  /** Messages of it that are on their way. */
  walks = 0
  /** Why its signals were aborted. */
  aborted: unknown
  /** Only the signals of places deeper than this are aborted. */
  #limit = Number.POSITIVE_INFINITY
  #controllers: Map<number, AbortController> | undefined
  #callbacks: Map<(reason: unknown) => void, number> | undefined

  constructor(id: RequestId | undefined, wireId: RequestId, own?: OwnCall) {
    this.id = id
    this.wireId = wireId
    this.own = own
  }

  /** The exact JSON token of its id, which the outcome gives back. */
  get idText(): string {
    return this.request.origin.head.idText as string
  }

  /** Each place has a signal of its own, since an answer from one place ends the work of those behind it only. */
  signal(place: number): AbortSignal {
    const depth = this.depth(place)
    this.#controllers ??= new Map()
    let controller = this.#controllers.get(depth)
    if (controller === undefined) {
      controller = new AbortController()
      if (depth > this.#limit) controller.abort(this.aborted)
      this.#controllers.set(depth, controller)
    }
    return controller.signal
  }

  /** Calls back where the signal of a place would be aborted. Gives what ends that. */
  whenAborted(place: number, callback: (reason: unknown) => void): () => void {
    const depth = this.depth(place)
    if (depth > this.#limit) callback(this.aborted)
    this.#callbacks ??= new Map()
    this.#callbacks.set(callback, depth)
    return () => this.#callbacks?.delete(callback)
  }

  /** Aborts the signals of the places deeper than a depth, of all places without one. */
  abort(reason: unknown, limit = Number.NEGATIVE_INFINITY): void {
    if (limit >= this.#limit) return
    this.#limit = limit
    this.aborted = reason
    for (const [depth, controller] of this.#controllers ?? []) if (depth > limit) controller.abort(reason)
    for (const [callback, depth] of this.#callbacks ?? []) if (depth > limit) callback(reason)
  }

  /** How far a place lies from the requester; comparable, no more. */
  depth(place: number): number {
    return this.request.direction === 'client-to-server' ? place : -place
  }

  cancel(reason: unknown): void {
    this.cancelled = reason
    this.abort(reason)
  }
}

/** Messages of the proxy's own, from a place of a line to one of its ends. */
export interface OwnMessages {
  /** `extra` tells to which request of the far end they relate. */
  notify(
    stack: Stack<Passage>,
    place: number,
    to: Side,
    method: string,
    params?: object,
    extra?: FrameMeta,
  ): Promise<void>
  call(
    stack: Stack<Passage>,
    place: number,
    to: Side,
    method: string,
    params?: object,
    options?: CallOptions,
    extra?: FrameMeta,
  ): Promise<Result>
}

/** What a passage asks of the carrier that it crosses. */
export interface Crossing {
  readonly session: Session
  /** Hands the message to the far end. */
  deliver(passage: Passage): Promise<void> | undefined
  /** Gives an exchange an outcome of the proxy's own, walking from `place` to the requester. */
  answer(exchange: Exchange, message: Message, place: number, turn?: Turn): Promise<void>
  readonly own: OwnMessages
  /** Turns whatever was thrown into what the peer may know of it. */
  publicError(error: unknown, passage: Passage): ErrorObject
  /** Has the signals of an exchange aborted when the session closes. */
  watch(exchange: Exchange): void
  /** Counts what waits on something other than its own middleware. */
  waiting<T, R = T>(promise: Promise<T>, go?: (value: T) => R | PromiseLike<R>): Promise<R>
}

export interface PassageOptions {
  /** Where it sets out. @default the end that it comes from */
  place?: number
  exchange?: Exchange
  turn?: Turn
  extra?: FrameMeta
}

let serial = 0
let instant: number | undefined

/** What comes in one read has arrived at once: a look at the clock is a quarter of what a message costs here. */
function now(): number {
  if (instant === undefined) {
    instant = performance.timeOrigin + performance.now()
    void done.then(() => {
      instant = undefined
    })
  }
  return instant
}

/** One message on its way down one line. */
export class Passage implements Transit {
  readonly crossing: Crossing
  readonly stack: Stack<Passage>
  readonly direction: Direction
  readonly origin: Message
  message: Message
  readonly extra: FrameMeta
  /** Of a request, its own; of a response, the one it answers. */
  readonly exchange: Exchange | undefined
  /** Released as soon as the message has left, or will not leave. */
  turn: Turn | undefined
  readonly timestamp = now()
  /** The deepest place it has reached. */
  place: number
  holder: number | undefined
  touched = false
  /** The far end's wire has it. */
  handedOver = false
  /** It was delivered. */
  left = false
  /** It will not be delivered: replied to, dropped, cancelled; with the reason that `next()` then gives. */
  over: Error | undefined
  /** Of `notifications/cancelled`: the exchange that it cancels. */
  target: Exchange | undefined
  /** The place that replied to it, failed or dropped it, and how. */
  #settledBy: { place: number; verb: string } | undefined
  /** What `next()` gave to each place. */
  #onward: Promise<void>[] | undefined
  /** Who changed it, and what it was before. */
  #changes: { place: number; before: Message }[] | undefined
  /** Where it was entered first. */
  #first: number | undefined
  /** What was thrown last, and where. */
  #blamed: { error: unknown; place: number } | undefined
  #key: string | undefined
  #state: object | undefined

  constructor(
    crossing: Crossing,
    stack: Stack<Passage>,
    direction: Direction,
    message: Message,
    place: number,
    options: PassageOptions,
  ) {
    this.crossing = crossing
    this.stack = stack
    this.direction = direction
    this.origin = message
    this.message = message
    this.place = place
    this.exchange = options.exchange
    this.turn = options.turn
    this.extra = options.extra ?? noExtra
  }

  get session(): Session {
    return this.crossing.session
  }

  get kind(): Message['head']['kind'] {
    return this.origin.head.kind
  }

  get settled(): boolean {
    return this.left || this.over !== undefined
  }

  get key(): string {
    this.#key ??= `${this.session.id}:${++serial}`
    return this.#key
  }

  get state(): object {
    if (this.kind === 'response' && this.exchange) return this.exchange.request.state
    this.#state ??= {}
    return this.#state
  }

  signal(place: number): AbortSignal {
    const { exchange } = this
    if (!exchange) return this.session.signal
    this.crossing.watch(exchange)
    return exchange.signal(place)
  }

  whenAborted(place: number, callback: (reason: unknown) => void): () => void {
    const { exchange } = this
    if (!exchange) throw new TypeError('expected a request')
    this.crossing.watch(exchange)
    return exchange.whenAborted(place, callback)
  }

  /** On a response: the method of its request, as this place saw it. */
  methodAt(place: number): string | undefined {
    if (this.kind !== 'response') return this.message.head.method
    return this.exchange?.request.seenBy(place).head.method
  }

  request(place: number): Context | undefined {
    if (this.kind !== 'response' || !this.exchange) return undefined
    const { request } = this.exchange
    return new Context(request, place, request.seenBy(place))
  }

  /** The message as it arrived at a place. */
  seenBy(place: number): Message {
    const change = this.#changes?.find((it) =>
      this.direction === 'client-to-server' ? it.place >= place : it.place <= place,
    )
    return change ? change.before : this.message
  }

  /** Runs one middleware at its place. */
  enter(middleware: Middleware, place: number, next: Next): unknown {
    if (this.over) throw this.over
    this.#first ??= place
    this.place = place
    this.holder = place
    return middleware(new Context(this, place), () => {
      const onward = this.#handOn(place, next)
      // A middleware that does not await it must not end the process.
      onward.then(undefined, (error: unknown) => this.#blame(error, place))
      this.#onward ??= []
      this.#onward.push(onward)
      return onward
    })
  }

  /** What comes out of the next() of a place, and of no deeper one, the place behind it has thrown. */
  #blame(error: unknown, place: number): void {
    if (this.#blamed?.error === error) return
    const step = this.direction === 'client-to-server' ? 1 : -1
    let behind = place + step
    while (!this.stack.concerns(behind, this)) behind += step
    this.#blamed = { error, place: behind }
  }

  /** The place whose middleware threw this. */
  blamed(error: unknown): number {
    const place = this.#blamed?.error === error ? this.#blamed?.place : this.#first
    return place !== undefined && this.nameOf(place) !== undefined ? place : this.place
  }

  nameOf(place: number): string | undefined {
    return this.stack.middleware[place]?.name
  }

  #handOn(place: number, next: Next): Promise<void> {
    const by = this.#settledBy
    if (by?.place === place) return Promise.reject(new Error(`next() after ${by.verb}()`))
    if (this.over) return Promise.reject(this.over)
    try {
      if (this.holder === place) this.#change(place)
    } catch (error) {
      return Promise.reject(error)
    }
    return next()
  }

  #change(place: number): void {
    const changed = this.touched ? this.message.changed() : undefined
    if (changed !== undefined) {
      this.#changes ??= []
      this.#changes.push({ place, before: this.message })
      this.message = changed
    }
    this.touched = false
    this.holder = undefined
  }

  /**
   * Resolves when all that was handed on has come to its end, with what was thrown there, if anything was; undefined
   * where nothing was handed on since the last time.
   */
  onward(): Promise<unknown> | undefined {
    const onward = this.#onward
    this.#onward = undefined
    if (!onward) return undefined
    return Promise.allSettled(onward).then((all) => all.find((it) => it.status === 'rejected')?.reason)
  }

  /** Waits for its turn and leaves. */
  leave(): Promise<void> | undefined {
    if (this.over) throw this.over
    // It has passed those, too, that do not look at it.
    this.place = this.direction === 'client-to-server' ? this.stack.size - 1 : 0
    const turn = this.turn?.wait()
    if (turn === undefined) return this.crossing.deliver(this)
    return this.crossing.waiting(turn, () => {
      if (this.over) throw this.over
      return this.crossing.deliver(this)
    })
  }

  /** It will not leave; whoever still holds it is told `reason`. */
  stop(reason: Error): void {
    if (this.left || this.over) return
    this.over = reason
    this.turn?.release()
  }

  stepAside(): void {
    this.turn?.release()
    this.turn = undefined
  }

  reply(place: number, result: object | undefined): Promise<void> {
    return this.#settle('reply', place, (idText) => resultFrame(idText, result))
  }

  fail(place: number, error: ErrorObject | Error): Promise<void> {
    return this.#settle('fail', place, (idText) =>
      errorFrame(idText, error instanceof Error ? this.crossing.publicError(error, this) : error),
    )
  }

  drop(place: number): void {
    const { exchange } = this
    if (!exchange) {
      this.#settledBy ??= { place, verb: 'drop' }
      this.stop(new Error('the message was dropped'))
      return
    }
    const phase = exchange.sent ? 'sent' : 'not_sent'
    const error = proxyError('denied', { detail: 'dropped', phase })
    void this.#settle('drop', place, (idText) => errorFrame(idText, error.toJSON()))
  }

  #settle(verb: string, place: number, outcome: (idText: string) => Frame): Promise<void> {
    const { exchange } = this
    if (!exchange) throw new TypeError(`ctx.${verb}(): a ${this.kind} without a request has no answer`)
    if (exchange.cancelled) return Promise.resolve()
    const response = this.kind === 'response'
    if (response && this.settled) {
      throw new Error(`ctx.${verb}(): this response was handed on or replaced already`)
    }
    if (!response && exchange.answered) throw new Error(`ctx.${verb}(): this request has its outcome already`)
    const message = new Message(outcome(exchange.idText))
    this.#settledBy = { place, verb }
    const turn = response ? this.turn : undefined
    if (response) this.turn = undefined
    this.stop(new Error(`the ${this.kind} was answered by another middleware`))
    return this.crossing.answer(exchange, message, place, turn)
  }

  notify(place: number, to: Side, method: string, params?: object): Promise<void> {
    return this.crossing.own.notify(this.stack, place, to, method, params, this.#related(to))
  }

  call(place: number, to: Side, method: string, params?: object, options?: CallOptions): Promise<Result> {
    const call = this.crossing.own.call(this.stack, place, to, method, params, options, this.#related(to))
    return this.crossing.waiting(call)
  }

  /** What is said to whoever asked belongs to what was asked. */
  #related(to: Side): FrameMeta | undefined {
    const { id, request, finished } = this.exchange ?? {}
    const asked = request?.direction === (to === 'client' ? 'client-to-server' : 'server-to-client')
    return asked && !finished ? { relatedRequestId: id } : undefined
  }
}

const done = Promise.resolve()
const noExtra: FrameMeta = Object.freeze({})
