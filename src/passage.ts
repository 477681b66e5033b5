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
import { proxyError, type RpcError } from './error.js'
import type { Turn } from './lane.js'
import type { Message } from './message.js'
import type { CallOptions, Session, Side } from './session.js'
import type { FrameMeta } from './wire.js'

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
  /** Its exact JSON token, which the outcome gives back. */
  readonly idText: string
  readonly own: OwnCall | undefined
  request!: Passage
  /** The id as the answering end knows it. Differs from `id` only where that one may still be answered late. */
  wireId: RequestId
  /** The answering end may have seen the request. */
  sent = false
  /** An outcome was chosen; it may still be on its way to the requester. */
  answered = false
  /** Cancelled by the requester: silence is its outcome. */
  cancelled = false
  /** The answering end took it back (`notifications/cancelled` of a listen stream): no answer is owed. */
  ended = false
  #controller: AbortController | undefined

  constructor(id: RequestId | undefined, idText: string, wireId: RequestId, own?: OwnCall) {
    this.id = id
    this.idText = idText
    this.wireId = wireId
    this.own = own
  }

  signal(session: AbortSignal): AbortSignal {
    if (this.#controller === undefined) {
      this.#controller = new AbortController()
      if (this.cancelled) this.#controller.abort(cancelReason())
      else if (session.aborted) this.#controller.abort(session.reason)
    }
    return this.#controller.signal
  }

  abort(reason: unknown): void {
    this.#controller?.abort(reason)
  }

  cancel(): void {
    this.cancelled = true
    this.#controller?.abort(cancelReason())
  }
}

export function cancelReason(): DOMException {
  return new DOMException('The request was cancelled by its sender', 'AbortError')
}

/** What a passage asks of the bridge that it crosses. */
export interface Crossing {
  readonly session: Session
  /** Hands the message to the far end. */
  deliver(passage: Passage): Promise<void> | undefined
  /** Gives an exchange its outcome, walking from `place` to the requester. */
  answer(exchange: Exchange, outcome: Outcome, place: number, turn?: Turn): Promise<void>
  notify(stack: Stack<Passage>, place: number, to: Side, method: string, params?: object): Promise<void>
  call(
    stack: Stack<Passage>,
    place: number,
    to: Side,
    method: string,
    params?: object,
    options?: CallOptions,
  ): Promise<Result>
  /** Turns whatever was thrown into what the peer may know of it. */
  publicError(error: unknown, passage: Passage): ErrorObject
  /** Counts what waits on something other than its own middleware. */
  waiting<T>(promise: Promise<T>): Promise<T>
}

export type Outcome = { result: object | undefined } | { error: ErrorObject } | { frame: Message; meta: FrameMeta }

let serial = 0

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
  readonly timestamp = performance.timeOrigin + performance.now()
  place: number
  touched = false
  /** It was delivered. */
  left = false
  /** It will not be delivered: replied to, dropped, cancelled; with the reason that `next()` then gives. */
  over: Error | undefined
  /** Of `notifications/cancelled`: the exchange that it cancels. */
  target: Exchange | undefined
  /** Who changed it, and what it was before. */
  #changes: { place: number; before: Message }[] | undefined
  #key: string | undefined
  #state: object | undefined

  constructor(
    crossing: Crossing,
    stack: Stack<Passage>,
    direction: Direction,
    message: Message,
    options: { place: number; exchange?: Exchange; turn?: Turn; extra?: FrameMeta },
  ) {
    this.crossing = crossing
    this.stack = stack
    this.direction = direction
    this.origin = message
    this.message = message
    this.place = options.place
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

  get signal(): AbortSignal {
    return this.exchange?.signal(this.session.signal) ?? this.session.signal
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
    this.place = place
    return middleware(new Context(this, place), () => {
      this.#handOn(place)
      return next()
    })
  }

  #handOn(place: number): void {
    if (this.over) throw this.over
    if (!this.touched || this.place !== place || this.left) return
    this.touched = false
    const changed = this.message.changed()
    if (changed === undefined) return
    this.#changes ??= []
    this.#changes.push({ place, before: this.message })
    this.message = changed
  }

  /** Waits for its turn and leaves. */
  leave(): Promise<void> | undefined {
    if (this.over) throw this.over
    const turn = this.turn?.wait()
    if (turn === undefined) return this.crossing.deliver(this)
    return this.crossing.waiting(turn).then(() => {
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
    return this.#settle('reply', place, { result })
  }

  fail(place: number, error: ErrorObject | RpcError): Promise<void> {
    return this.#settle('fail', place, { error: this.crossing.publicError(error, this) })
  }

  drop(place: number): void {
    if (this.kind === 'notification') {
      this.stop(new Error('next() after drop()'))
      return
    }
    const phase = this.exchange?.sent ? 'sent' : 'not_sent'
    void this.#settle('drop', place, { error: proxyError('denied', { detail: 'dropped', phase }).toJSON() })
  }

  #settle(verb: string, place: number, outcome: Outcome): Promise<void> {
    const { exchange } = this
    if (!exchange) throw new TypeError(`ctx.${verb}(): a ${this.kind} without a request has no answer`)
    if (exchange.cancelled) return Promise.resolve()
    if (this.kind === 'response') {
      if (this.left || this.over) throw new Error(`ctx.${verb}(): this response was handed on or replaced already`)
      const { turn } = this
      this.turn = undefined
      this.over = new Error(`next() after ${verb}()`)
      return this.crossing.answer(exchange, outcome, place, turn)
    }
    if (exchange.answered) throw new Error(`ctx.${verb}(): this request has its outcome already`)
    this.stop(new Error(`next() after ${verb}()`))
    return this.crossing.answer(exchange, outcome, place)
  }

  notify(place: number, to: Side, method: string, params?: object): Promise<void> {
    return this.crossing.notify(this.stack, place, to, method, params)
  }

  call(place: number, to: Side, method: string, params?: object, options?: CallOptions): Promise<Result> {
    return this.crossing.call(this.stack, place, to, method, params, options)
  }
}

const noExtra: FrameMeta = Object.freeze({})
