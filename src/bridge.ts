import { randomBytes, randomUUID } from 'node:crypto'
import type { RequestId } from '@modelcontextprotocol/sdk/types.js'
import type { Stack } from './compose.js'
import { Context, type Direction, type ErrorObject, type Result } from './context.js'
import { INTERNAL_ERROR, INVALID_REQUEST, inPhase, proxyError, RpcError } from './error.js'
import { Lane, type Turn } from './lane.js'
import {
  elementsOfBatch,
  errorFrame,
  Message,
  metaMember,
  notificationFrame,
  paramsMember,
  peek,
  Refusal,
  requestFrame,
  resultFrame,
  resultMember,
  splice,
  tokenValue,
  withId,
} from './message.js'
import { type Crossing, cancelReason, Exchange, type Outcome, type OwnCall, Passage } from './passage.js'
import { type CallOptions, type Ending, Session, type Side } from './session.js'
import { type CloseOptions, type Frame, FrameError, type FrameMeta, type Wire } from './wire.js'

/** Above this the source of a lane is paused: enough to fill a pipe, little enough to hold for many sessions. */
const HIGH_WATER = { messages: 1_000, bytes: 1 << 20 }
/** Above this a source that must stay readable has its requests refused. */
const HARD_CAP = { messages: 10_000, bytes: 16 << 20 }
/** How many late answers are remembered per end; a peer that never answers must not make the proxy grow. */
const MAX_OWED = 10_000
/** Until a client that has said nothing yet is told that its upstream could not be started, in milliseconds. */
const FIRST_WORD = 250
/** Streams that live as long as their session: nobody waits for their end (2026-07-28, basic/utilities/subscriptions). */
const LISTEN = 'subscriptions/listen'

export interface BridgeOptions {
  /** The line for new messages. */
  stack(): Stack<Passage>
  /** Something went wrong that no peer is told of in full. */
  report(error: Error, ctx?: Context): void
  /** The upstream's name in logs. */
  upstream: string
  principal?: string
  /** Milliseconds that requests in flight have when the session closes. @default 10000 */
  drainTimeout?: number
}

const bridges = new WeakMap<Session, Bridge>()

/** The bridge behind a session. */
export function bridgeOf(session: Session): Bridge | undefined {
  return bridges.get(session)
}

/** One of the two peers, and what is known of it. */
class End {
  readonly lane = new Lane()
  /** Requests that came from it and have no outcome yet, by their id. */
  readonly requests = new Map<RequestId, Exchange>()
  /** Requests on their way to it under an id of the proxy's own. */
  readonly aliases = new Map<RequestId, Exchange>()
  /** Ids that it may still answer although nobody waits any more. */
  readonly owed = new Set<RequestId>()
  wire: Wire | undefined
  /** Until frames can be sent; undefined when they can. */
  ready: Promise<void> | undefined
  /** No more frames come from it, and why. */
  gone: RpcError | undefined
  paused = false

  constructor(readonly side: Side) {}
}

/** Joins two ends: receives frames, walks their messages down the line, sends them, and keeps the accounts. */
export class Bridge implements Crossing {
  readonly session: Session
  readonly closed: Promise<Ending>
  readonly #client = new End('client')
  readonly #server = new End('server')
  readonly #options: BridgeOptions
  readonly #abort = new AbortController()
  readonly #ownPrefix = `omp-${randomBytes(6).toString('base64url')}-`
  #ownSerial = 0
  #active = 0
  #waiting = 0
  #dropped = 0
  #heard = { client: false, server: false }
  #initialized = false
  #watchers: (() => void)[] = []
  #shutting: Promise<void> | undefined
  #urgent = false
  #end!: (ending: Ending) => void

  constructor(options: BridgeOptions) {
    this.#options = options
    this.closed = new Promise((resolve) => {
      this.#end = resolve
    })
    this.session = new Session(
      { id: randomUUID(), upstream: options.upstream, principal: options.principal, signal: this.#abort.signal },
      {
        notify: (to, method, params) => this.notify(options.stack(), this.#origin(to), to, method, params),
        call: (to, method, params, more) => this.call(options.stack(), this.#origin(to), to, method, params, more),
      },
    )
    bridges.set(this.session, this)
  }

  /** Starts both ends. Frames of the client are taken at once and wait for the server. */
  start(client: Wire, open: () => Wire | Promise<Wire>): void {
    this.#attach(this.#client, client)
    this.#server.ready = (async () => {
      try {
        this.#attach(this.#server, await open())
        await this.#server.ready
      } catch (error) {
        this.#lost(this.#server, error as Error)
      }
    })()
  }

  get stats(): { pending: number; dropped: number; lanes: Record<Direction, number> } {
    const { lane: out, requests } = this.#client
    return {
      pending: requests.size + this.#server.requests.size,
      dropped: this.#dropped,
      lanes: { 'client-to-server': out.size, 'server-to-client': this.#server.lane.size },
    }
  }

  // --- ends -------------------------------------------------------------------------------------------------

  #attach(end: End, wire: Wire): void {
    end.wire = wire
    wire.onframe = (frame, meta) => this.#receive(end, frame, meta)
    wire.onclose = (reason) => this.#lost(end, reason)
    wire.onerror = (error) => this.#faulty(end, error)
    end.lane.onrelease = () => this.#released(end)
    end.ready = (async () => {
      try {
        if (!this.#abort.signal.aborted) await wire.start()
        end.ready = undefined
      } catch (error) {
        this.#lost(end, error as Error)
      }
    })()
  }

  #far(end: End): End {
    return end === this.#client ? this.#server : this.#client
  }

  #from(direction: Direction): End {
    return direction === 'client-to-server' ? this.#client : this.#server
  }

  #direction(from: End): Direction {
    return from === this.#client ? 'client-to-server' : 'server-to-client'
  }

  /** The place of the end from which a message to `to` sets out. */
  #origin(to: Side): number {
    return to === 'server' ? -1 : this.#options.stack().size
  }

  /** The place of an end on a given line. */
  #placeOf(end: End, stack: Stack<Passage>): number {
    return end === this.#client ? -1 : stack.size
  }

  // --- receive ----------------------------------------------------------------------------------------------

  #receive(end: End, frame: Frame, meta?: FrameMeta): void {
    this.#heard[end.side] = true
    let message: Message
    try {
      const batch = elementsOfBatch(frame)
      if (batch) {
        for (const element of batch) this.#receive(end, element, meta)
        return
      }
      message = new Message(frame)
    } catch (error) {
      if (!(error instanceof Refusal)) throw error
      this.#refuse(end, error)
      return
    }
    if (message.head.kind === 'request') this.#request(end, message, meta)
    else if (message.head.kind === 'response') this.#response(end, message, meta)
    else this.#notification(end, message, meta)
    this.#throttle(end)
  }

  #request(end: End, message: Message, meta?: FrameMeta): void {
    const { head } = message
    const id = head.id as RequestId
    const idText = head.idText as string
    const refusal = this.#refusal(end, id)
    if (refusal) {
      this.#tell(end, errorFrame(idText, refusal), { relatedRequestId: id })
      return
    }
    if (end === this.#client) this.#sniff(message)
    const far = this.#far(end)
    const exchange = new Exchange(id, idText, far.owed.has(id) ? this.#ownId() : id)
    if (exchange.wireId !== id) far.aliases.set(exchange.wireId, exchange)
    end.requests.set(id, exchange)
    const passage = this.#passage(end, message, { exchange, turn: this.#take(end, message), extra: meta })
    exchange.request = passage
    if (far.paused) this.#released(far)
    this.#walk(passage, this.#placeOf(far, passage.stack))
  }

  /** Why a request is not taken at all. */
  #refusal(end: End, id: RequestId): ErrorObject | undefined {
    if (end.requests.has(id)) {
      return { code: INVALID_REQUEST, message: `Invalid request: id ${JSON.stringify(id)} is in use` }
    }
    const gone = this.#far(end).gone ?? (this.#shutting && end === this.#client ? this.#shuttingDown() : undefined)
    if (gone) return inPhase(gone, 'not_sent').toJSON()
    return over(end.lane, HARD_CAP) ? proxyError('overloaded').toJSON() : undefined
  }

  #notification(end: End, message: Message, meta?: FrameMeta): void {
    const target = message.head.method === 'notifications/cancelled' ? this.#cancelled(end, message) : undefined
    if (target?.request.origin.head.method === 'initialize') return
    const passage = this.#passage(end, message, { turn: this.#take(end, message), extra: meta })
    passage.target = target
    if (target && !target.answered) this.#cancel(end, target)
    this.#walk(passage, this.#placeOf(this.#far(end), passage.stack))
  }

  #response(end: End, message: Message, meta?: FrameMeta): void {
    const { id } = message.head
    if (id === undefined) {
      const passage = this.#passage(end, message, { turn: this.#take(end, message), extra: meta })
      this.#walk(passage, this.#placeOf(this.#far(end), passage.stack))
      return
    }
    const exchange = this.#awaited(end, id)
    if (!exchange) {
      end.owed.delete(id)
      this.#dropped++
      return
    }
    void this.answer(exchange, { frame: message, meta: meta ?? {} }, this.#placeOf(end, exchange.request.stack))
  }

  /** The exchange that waits for an answer of this id from this end. */
  #awaited(end: End, id: RequestId): Exchange | undefined {
    const exchange = end.aliases.get(id) ?? this.#far(end).requests.get(id)
    return exchange?.sent && !exchange.answered && exchange.wireId === id ? exchange : undefined
  }

  #refuse(end: End, refusal: Refusal): void {
    const { kind, id, idText } = refusal
    if (kind === 'response' || end === this.#server) {
      const exchange = kind === 'response' && id !== undefined ? this.#awaited(end, id) : undefined
      if (exchange) {
        const error = proxyError('upstream_bad_response', { phase: 'sent', detail: refusal.message })
        void this.answer(exchange, { error: error.toJSON() }, this.#placeOf(end, exchange.request.stack))
        return
      }
    }
    if (kind === 'request' || (end === this.#client && kind === undefined)) {
      this.#tell(end, errorFrame(idText, { code: refusal.code, message: refusal.message }))
      return
    }
    this.#dropped++
    this.#options.report(new Error(`a message of the ${end.side} was dropped: ${refusal.message}`))
  }

  /** A frame that the wire itself could not take: over its limit, for one. */
  #faulty(end: End, error: Error): void {
    if (!(error instanceof FrameError)) {
      this.#options.report(error)
      return
    }
    const { kind, id, idText } = error.head ? peek(error.head) : {}
    const reason = error.code === -31007 ? 'too_large' : 'upstream_bad_response'
    const told = proxyError(reason, { phase: 'sent', detail: error.message }).toJSON()
    if (kind === 'request' || (end === this.#client && kind !== 'response')) {
      this.#tell(end, errorFrame(idText, inPhase(proxyError(reason, { detail: error.message }), 'not_sent').toJSON()))
      return
    }
    this.#dropped++
    this.#options.report(error)
    if (kind === 'notification') return
    const exchange = id === undefined ? undefined : this.#awaited(end, id)
    const owed = exchange
      ? [exchange]
      : id === undefined
        ? this.#unanswered(this.#far(end)).filter((it) => it.sent)
        : []
    for (const it of owed) void this.answer(it, { error: told }, this.#placeOf(end, it.request.stack))
  }

  /** An error at the gate: nothing has walked, so nothing is walked. */
  #tell(end: End, frame: Frame, meta?: FrameMeta): void {
    void (async () => {
      await end.ready
      await end.wire?.send(frame, meta)
    })().catch(() => {})
  }

  #sniff(message: Message): void {
    if (message.head.method === 'initialize') {
      this.#initialized = true
      this.session.era = 'legacy'
      return
    }
    if (this.#initialized || this.session.era === 'modern') return
    const span = metaMember(message.frame, message.head, 'io.modelcontextprotocol/protocolVersion')
    if (!span) return
    this.session.era = 'modern'
    const version = tokenValue(message.frame, span)
    if (typeof version === 'string') this.session.protocolVersion = version
  }

  // --- walk -------------------------------------------------------------------------------------------------

  #take(end: End, message: Message): Turn {
    return end.lane.take(message.head.kind, message.frame.length)
  }

  #passage(
    end: End,
    message: Message,
    more: { exchange?: Exchange; turn?: Turn; extra?: FrameMeta; stack?: Stack<Passage>; place?: number },
  ): Passage {
    const stack = more.stack ?? this.#options.stack()
    const place = more.place ?? this.#placeOf(end, stack)
    return new Passage(this, stack, this.#direction(end), message, { ...more, place })
  }

  /** Walks a message from where it stands to a place (or end) of its line. */
  #walk(passage: Passage, to: number, last: (passage: Passage) => unknown = leave): Promise<void> {
    const chain = passage.stack.between(passage.place, to)
    this.#active++
    try {
      const walk = chain ? chain(passage, last) : (last(passage) as Promise<void> | undefined)
      if (walk) {
        return walk.then(
          () => this.#walked(passage),
          (error: unknown) => this.#threw(passage, error),
        )
      }
      this.#walked(passage)
    } catch (error) {
      this.#threw(passage, error)
    }
    return done
  }

  #walked(passage: Passage): void {
    this.#active--
    passage.turn?.release()
    if (!passage.left && !passage.over && passage.exchange) {
      const { kind, place } = passage
      const error = new Error(`a middleware forgot a ${kind}: it neither called next() nor replied`)
      this.#options.report(error, new Context(passage, place))
      this.#failed(passage, { code: INTERNAL_ERROR, message: 'Internal error' })
    }
    this.#check()
  }

  #threw(passage: Passage, error: unknown): void {
    this.#active--
    const settled = passage.left || passage.over !== undefined
    if (error !== passage.over) {
      const unseen = settled || !passage.exchange || passage.exchange.cancelled
      if (unseen) this.#report(error, passage)
      else this.#failed(passage, this.publicError(error, passage))
    }
    passage.turn?.release()
    this.#check()
  }

  /** A message was given up on its way: its requester is told, from the deepest place that it reached. */
  #failed(passage: Passage, error: ErrorObject): void {
    const { exchange, place, turn } = passage
    if (!exchange || exchange.cancelled) return
    if (passage.kind === 'response') {
      passage.turn = undefined
      void this.answer(exchange, { error }, place, turn)
    } else if (!exchange.answered) void this.answer(exchange, { error }, place)
    passage.over = new Error('this message was given up')
  }

  publicError(error: unknown, passage: Passage): ErrorObject {
    if (error instanceof RpcError) return error.toJSON()
    if (!(error instanceof Error) && isErrorObject(error)) return error
    this.#report(error, passage)
    return { code: INTERNAL_ERROR, message: 'Internal error' }
  }

  #report(error: unknown, passage: Passage): void {
    const known = error instanceof Error ? error : new Error(`a middleware threw ${String(error)}`)
    this.#options.report(known, new Context(passage, passage.place))
  }

  // --- send -------------------------------------------------------------------------------------------------

  deliver(passage: Passage): Promise<void> | undefined {
    const end = this.#far(this.#from(passage.direction))
    if (end.ready) {
      return this.waiting(end.ready).then(() => {
        if (passage.over) throw passage.over
        return this.deliver(passage)
      })
    }
    if (end.gone) throw inPhase(end.gone, 'not_sent')
    const { exchange, target } = passage
    // A cancelled request that was never sent needs no cancelling; an answer to a cancelled one is not wanted.
    if (passage.kind === 'response' ? exchange?.cancelled : target && !target.sent) return this.#arrived(passage)
    if (passage.kind === 'request' && exchange) exchange.sent = true
    let sent: Promise<void> | undefined
    try {
      sent = end.wire?.send(this.#frame(passage), this.#meta(passage)) as Promise<void> | undefined
    } catch (error) {
      this.#undelivered(passage, end, error)
    }
    if (!sent) return this.#arrived(passage)
    return sent.then(
      () => this.#arrived(passage),
      (error: unknown) => this.#undelivered(passage, end, error),
    )
  }

  #arrived(passage: Passage): undefined {
    passage.left = true
    passage.turn?.release()
    if (passage.kind === 'response' && passage.exchange) this.#finish(passage.exchange)
  }

  #undelivered(passage: Passage, end: End, error: unknown): never {
    if (passage.kind === 'request' && passage.exchange && phaseOf(error) === 'not_sent') passage.exchange.sent = false
    if (passage.kind === 'response' && passage.exchange) {
      passage.left = true
      this.#finish(passage.exchange)
    }
    if (end === this.#client && end.gone) this.#hurry()
    throw error
  }

  /** The bytes that leave: with the id, token and cancel target that the far end knows. */
  #frame(passage: Passage): Frame {
    const { exchange, target, message } = passage
    const { frame, head } = message
    if (passage.kind === 'response') {
      this.#remember(passage)
      if (!exchange || (head.exactId && head.id === exchange.id && exchange.request.origin.head.exactId)) return frame
      return head.idText === exchange.idText ? frame : withId(frame, head, exchange.idText)
    }
    if (exchange && exchange.wireId !== exchange.id && !exchange.own) {
      return withId(frame, head, JSON.stringify(exchange.wireId))
    }
    if (target && target.wireId !== target.id) {
      const span = paramsMember(frame, head, 'requestId')
      if (span) return splice(frame, [{ ...span, text: JSON.stringify(target.wireId) }])
    }
    return frame
  }

  /** What the handshake settled. */
  #remember({ message, exchange, direction }: Passage): void {
    if (direction !== 'server-to-client' || exchange?.request.origin.head.method !== 'initialize') return
    const span = resultMember(message.frame, message.head, 'protocolVersion')
    const version = span && tokenValue(message.frame, span)
    if (typeof version === 'string') this.session.protocolVersion = version
  }

  #meta(passage: Passage): FrameMeta | undefined {
    if (passage.kind === 'response') {
      const { relatedRequestId: _, ...extra } = passage.extra
      return { ...extra, relatedRequestId: passage.exchange?.id }
    }
    const related = passage.extra.relatedRequestId
    if (related === undefined) return undefined
    const exchange = this.#from(passage.direction).aliases.get(related)
    return { relatedRequestId: exchange ? exchange.id : related }
  }

  // --- outcomes ---------------------------------------------------------------------------------------------

  answer(exchange: Exchange, outcome: Outcome, place: number, turn?: Turn): Promise<void> {
    const { request, idText, own } = exchange
    exchange.answered = true
    if (!('frame' in outcome) && exchange.sent && !turn) this.#owe(exchange)
    const from = this.#far(this.#from(request.direction))
    const message =
      'frame' in outcome
        ? outcome.frame
        : new Message('error' in outcome ? errorFrame(idText, outcome.error) : resultFrame(idText, outcome.result))
    const came = 'frame' in outcome && !own ? this.#take(from, message) : turn
    const extra = 'frame' in outcome ? outcome.meta : undefined
    const passage = this.#passage(from, message, { exchange, turn: came, extra, stack: request.stack, place })
    if (own) {
      return this.#walk(passage, own.place, () => {
        settle(own, passage.message.value as { result?: Result; error?: ErrorObject })
        passage.left = true
        this.#finish(exchange)
      })
    }
    return this.#walk(passage, this.#placeOf(this.#from(request.direction), request.stack))
  }

  #finish(exchange: Exchange): void {
    if (exchange.id !== undefined) {
      const { requests } = this.#from(exchange.request.direction)
      if (requests.get(exchange.id) === exchange) requests.delete(exchange.id)
    }
    if (exchange.wireId !== exchange.id)
      this.#far(this.#from(exchange.request.direction)).aliases.delete(exchange.wireId)
    this.#check()
  }

  /** The answering end may still answer: its answer must not be taken for that of a later request of the same id. */
  #owe(exchange: Exchange): void {
    const { owed } = this.#far(this.#from(exchange.request.direction))
    if (owed.size >= MAX_OWED) owed.delete(owed.values().next().value as RequestId)
    owed.add(exchange.wireId)
  }

  #cancelled(end: End, message: Message): Exchange | undefined {
    const span = paramsMember(message.frame, message.head, 'requestId')
    const id = span && (tokenValue(message.frame, span) as RequestId)
    if (id === undefined) return undefined
    const exchange = end.requests.get(id)
    // A server may take back a listen stream of the client's in this way (2026-07-28, cancellation).
    if (!exchange && end === this.#server) {
      const listen = end.aliases.get(id) ?? this.#client.requests.get(id)
      if (listen?.request.origin.head.method === LISTEN) listen.ended = true
    }
    return exchange
  }

  #cancel(end: End, exchange: Exchange): void {
    if (exchange.id !== undefined) end.requests.delete(exchange.id)
    if (exchange.sent) this.#owe(exchange)
    exchange.cancel()
    exchange.request.stop(cancelReason())
    this.#check()
  }

  // --- the proxy's own messages -----------------------------------------------------------------------------

  #ownId(): string {
    return `${this.#ownPrefix}${++this.#ownSerial}`
  }

  notify(stack: Stack<Passage>, place: number, to: Side, method: string, params?: object): Promise<void> {
    const far = to === 'client' ? this.#client : this.#server
    const passage = this.#passage(this.#far(far), new Message(notificationFrame(method, params)), { stack, place })
    const sent = new Promise<void>((resolve, reject) => {
      void this.#walk(passage, this.#placeOf(far, stack), (it) => {
        try {
          const left = it.leave()
          left?.catch(reject)
          return left
        } catch (error) {
          reject(error)
          throw error
        }
      }).then(resolve)
    })
    sent.catch(() => {})
    return sent
  }

  call(
    stack: Stack<Passage>,
    place: number,
    to: Side,
    method: string,
    params?: object,
    options: CallOptions = {},
  ): Promise<Result> {
    if (to === 'client' && this.session.era === 'modern') {
      return Promise.reject(
        new TypeError(
          `call('client', '${method}'): a modern client (2026-07-28) takes no requests; reply with resultType "input_required" instead`,
        ),
      )
    }
    const far = to === 'client' ? this.#client : this.#server
    const near = this.#far(far)
    const id = this.#ownId()
    const giveUp = new AbortController()
    const answer = new Promise<Result>((resolve, reject) => {
      const own: OwnCall = { place, resolve, reject }
      const exchange = new Exchange(undefined, JSON.stringify(id), id, own)
      far.aliases.set(id, exchange)
      const stop = (reason: unknown) => {
        if (exchange.answered) return
        this.#cancel(near, exchange)
        this.#finish(exchange)
        reject(reason)
        if (exchange.sent) void this.notify(stack, place, to, 'notifications/cancelled', { requestId: id })
      }
      const { signal, timeout } = options
      signal?.addEventListener('abort', () => stop(signal.reason), { signal: giveUp.signal })
      if (timeout !== undefined) {
        const timer = setTimeout(() => stop(proxyError('upstream_timeout', { phase: 'sent' })), timeout)
        giveUp.signal.addEventListener('abort', () => clearTimeout(timer))
      }
      const message = new Message(requestFrame(exchange.idText, method, params))
      const passage = this.#passage(near, message, { stack, place, exchange })
      exchange.request = passage
      if (signal?.aborted) return stop(signal.reason)
      if (far.paused) this.#released(far)
      void this.#walk(passage, this.#placeOf(far, stack))
    })
    answer.catch(() => {}).finally(() => giveUp.abort())
    return this.waiting(answer)
  }

  // --- back-pressure ----------------------------------------------------------------------------------------

  /** An answer that somebody waits for can only be read from a source that is read. */
  #mustRead(end: End): boolean {
    return (
      !over(end.lane, HARD_CAP) && (end.aliases.size > 0 || (end === this.#client && this.#server.requests.size > 0))
    )
  }

  #throttle(end: End): void {
    if (end.paused || !over(end.lane, HIGH_WATER) || this.#mustRead(end)) return
    end.paused = true
    end.wire?.pause()
  }

  #released(end: End): void {
    if (!end.paused || (over(end.lane, HIGH_WATER) && !this.#mustRead(end))) return
    end.paused = false
    end.wire?.resume()
  }

  // --- rest and end -----------------------------------------------------------------------------------------

  async waiting<T>(promise: Promise<T>): Promise<T> {
    this.#waiting++
    this.#check()
    try {
      return await promise
    } finally {
      this.#waiting--
    }
  }

  /** Resolves when every message has come to rest: it left, or waits for a peer. For tests. */
  quiet(): Promise<void> {
    return this.#until(() => this.isQuiet)
  }

  get isQuiet(): boolean {
    return this.#active <= this.#waiting
  }

  #until(condition: () => boolean): Promise<void> {
    if (condition()) return Promise.resolve()
    return new Promise((resolve) => {
      const watch = () => {
        if (!condition()) return
        this.#watchers = this.#watchers.filter((it) => it !== watch)
        resolve()
      }
      this.#watchers.push(watch)
    })
  }

  #check(): void {
    for (const watch of this.#watchers) watch()
  }

  #unanswered(end: End): Exchange[] {
    const own = [...this.#far(end).aliases.values()].filter((it) => it.own)
    return [...end.requests.values(), ...own].filter((it) => !it.answered)
  }

  #drained(): boolean {
    if (this.#active > 0) return false
    for (const it of this.#client.requests.values()) if (it.request.origin.head.method !== LISTEN) return false
    return true
  }

  #shuttingDown(): RpcError {
    return proxyError('shutting_down')
  }

  /** No more frames come from an end. */
  #lost(end: End, reason?: Error): void {
    if (end.gone) return
    end.ready = undefined
    if (end === this.#client) {
      end.gone = this.#shuttingDown()
      if (reason) this.#options.report(reason)
      this.#giveUp(this.#server, end.gone)
      void this.close()
      return
    }
    end.gone = reason instanceof RpcError ? reason : proxyError('upstream_exited', { cause: reason })
    this.#giveUp(this.#client, end.gone)
    this.#server.requests.forEach((exchange) => {
      this.#cancel(this.#server, exchange)
    })
    void this.close({ reason: reason ?? (this.#shutting ? undefined : end.gone) })
  }

  /** Whoever waits for an end that will not answer is told so. */
  #giveUp(requester: End, reason: RpcError): void {
    for (const exchange of this.#unanswered(requester)) {
      if (exchange.ended) {
        this.#finish(exchange)
        continue
      }
      const { request } = exchange
      const error = inPhase(reason, exchange.sent ? 'sent' : 'not_sent')
      const place = request.left ? this.#placeOf(this.#far(requester), request.stack) : request.place
      request.stop(error)
      void this.answer(exchange, { error: error.toJSON() }, place)
    }
  }

  #hurry(): void {
    this.#urgent = true
    this.#check()
  }

  /**
   * Stops taking requests, lets those in flight finish (at most `drainTimeout` milliseconds), answers the rest,
   * closes both ends and resolves when nothing is left.
   */
  close(options: CloseOptions & { reason?: Error; drainTimeout?: number } = {}): Promise<void> {
    if (options.urgent) {
      this.#hurry()
      if (this.#shutting) {
        void this.#client.wire?.close({ urgent: true })
        void this.#server.wire?.close({ urgent: true })
      }
    }
    this.#shutting ??= this.#shut(options.reason, options.drainTimeout ?? this.#options.drainTimeout ?? 10_000)
    return this.#shutting
  }

  async #shut(reason: Error | undefined, drainTimeout: number): Promise<void> {
    const { client, server } = this.#heard
    // A client that has not spoken yet still gets its answer, not only the end of its stream.
    if (reason && !server && !client) await this.#within(FIRST_WORD, () => this.#heard.client)
    await this.#within(drainTimeout, () => this.#urgent || this.#drained())
    this.#giveUp(this.#client, this.#shuttingDown())
    this.#giveUp(this.#server, this.#shuttingDown())
    await this.#within(FIRST_WORD, () => this.#active === 0)
    this.#abort.abort(reason ?? this.#shuttingDown())
    const closing = { urgent: this.#urgent }
    await Promise.allSettled([this.#client.wire?.close(closing), this.#server.wire?.close(closing)])
    this.#end({ reason, served: this.#heard.server })
  }

  async #within(milliseconds: number, condition: () => boolean): Promise<void> {
    let timer: NodeJS.Timeout | undefined
    let late = false
    const timeout = new Promise<void>((resolve) => {
      timer = setTimeout(() => {
        late = true
        resolve()
      }, milliseconds)
    })
    await Promise.race([this.#until(() => late || condition()), timeout])
    clearTimeout(timer)
    this.#check()
  }
}

const done = Promise.resolve()

function leave(passage: Passage): unknown {
  return passage.leave()
}

function settle(own: OwnCall, answer: { result?: Result; error?: ErrorObject }): void {
  if (answer.error) own.reject(new RpcError(answer.error.code, answer.error.message, answer.error.data))
  else own.resolve(answer.result ?? {})
}

function over(lane: Lane, limit: { messages: number; bytes: number }): boolean {
  return lane.size > limit.messages || lane.bytes > limit.bytes
}

function phaseOf(error: unknown): unknown {
  return error instanceof RpcError ? (error.data as { phase?: unknown } | undefined)?.phase : undefined
}

function isErrorObject(error: unknown): error is ErrorObject {
  const it = error as ErrorObject | null
  return typeof it === 'object' && it !== null && Number.isInteger(it.code) && typeof it.message === 'string'
}
