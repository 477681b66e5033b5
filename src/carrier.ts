import { setMaxListeners } from 'node:events'
import { Caller } from './call.js'
import type { Stack } from './compose.js'
import { Context, type ErrorObject, type Result } from './context.js'
import { End } from './end.js'
import { INTERNAL_ERROR, inPhase, proxyError, RpcError } from './error.js'
import { OwnIds } from './ids.js'
import type { Turn } from './lane.js'
import { errorFrame, Message, resultMember, tokenValue } from './message.js'
import { frameOf, metaOf } from './outgoing.js'
import { type Crossing, type Exchange, type OwnMessages, Passage, type PassageOptions } from './passage.js'
import { Rest } from './rest.js'
import { Session, type Side } from './session.js'
import type { FrameMeta, StreamEvent } from './wire.js'

export interface CarrierOptions {
  /** The line for new messages. */
  stack(): Stack<Passage>
  /** Something went wrong that no peer is told of in full. */
  report(error: Error, ctx?: Context): void
  /** The upstream's name in logs. */
  upstream: string
  principal?: string
  /** Where the client's wire tells it from the start. */
  era?: 'modern'
}

/** Carries the messages of one session: walks them down the line, sends them, gives each request its one outcome. */
export class Carrier implements Crossing {
  readonly session: Session
  readonly client = new End('client')
  readonly server = new End('server')
  readonly rest = new Rest()
  /** The last request that did not get to the server failed with this. */
  unreached: Error | undefined
  /** Called when the client turns out to read nothing any more. */
  ondeaf?: () => void
  readonly #options: CarrierOptions
  readonly #abort = new AbortController()
  /** Why nothing is carried any more. */
  #closed: RpcError | undefined
  readonly #watched = new Set<Exchange>()
  readonly own: OwnMessages = new Caller(this)
  readonly #ids = new OwnIds()

  constructor(options: CarrierOptions) {
    this.#options = options
    // Every middleware may want to know of the end.
    setMaxListeners(0, this.#abort.signal)
    this.client.far = this.server
    this.server.far = this.client
    const { upstream, principal, era } = options
    this.session = new Session(
      { upstream, principal, era, signal: this.#abort.signal },
      {
        notify: (to, method, params) => this.own.notify(options.stack(), this.#origin(to), to, method, params),
        call: (to, method, params, more) => this.own.call(options.stack(), this.#origin(to), to, method, params, more),
      },
    )
  }

  // --- places -----------------------------------------------------------------------------------------------

  /** The place of an end on a given line. */
  placeOf(end: End, stack: Stack<Passage>): number {
    return end === this.client ? -1 : stack.size
  }

  /** The place of the end from which a message to `to` sets out. */
  #origin(to: Side): number {
    return to === 'server' ? -1 : this.#options.stack().size
  }

  requester({ request }: Exchange): End {
    return request.direction === 'client-to-server' ? this.client : this.server
  }

  passage(from: End, message: Message, more: PassageOptions & { stack?: Stack<Passage> }): Passage {
    const stack = more.stack ?? this.#options.stack()
    const direction = from === this.client ? 'client-to-server' : 'server-to-client'
    return new Passage(this, stack, direction, message, more.place ?? this.placeOf(from, stack), more)
  }

  // --- walk -------------------------------------------------------------------------------------------------

  /** Walks a message from where it stands to a place (or end) of its line. */
  walk(passage: Passage, to: number, last: (passage: Passage) => unknown = leave): Promise<void> {
    const between = passage.stack.between(passage.place, to)
    const chain = between?.concerns?.(passage) === false ? undefined : between
    this.rest.begin()
    if (passage.exchange) passage.exchange.walks++
    let walk: Promise<void> | undefined
    try {
      walk = chain ? chain(passage, last) : (last(passage) as Promise<void> | undefined)
    } catch (error) {
      this.#threw(passage, error)
      return done
    }
    if (walk) {
      return walk.then(
        () => this.#walked(passage),
        (error: unknown) => this.#threw(passage, error),
      )
    }
    return this.#walked(passage) ?? done
  }

  /** `lost` is what a deeper middleware threw at one that did not care. */
  #walked(passage: Passage, lost?: unknown): Promise<void> | undefined {
    const { exchange, kind, place, settled } = passage
    // Somebody may have called next() without waiting for it.
    const onward = settled ? undefined : passage.onward()
    if (onward) return onward.then((failure) => this.#walked(passage, lost ?? failure))
    if (!settled && exchange && !exchange.cancelled) {
      const text = `a middleware forgot a ${kind}: it neither called next() nor replied`
      const error = new Error(text, lost === undefined ? undefined : { cause: lost })
      this.#options.report(error, new Context(passage, place))
      this.#failed(passage, internalError)
    }
    this.#ended(passage)
    return undefined
  }

  #threw(passage: Passage, error: unknown): void {
    const { exchange, over, settled } = passage
    const known = error === over || (exchange?.aborted !== undefined && error === exchange.aborted)
    if (!settled && exchange && !exchange.cancelled) this.#failed(passage, this.publicError(error, passage))
    else if (!known) this.#report(error, passage)
    this.#ended(passage)
  }

  #ended(passage: Passage): void {
    const { exchange, turn } = passage
    turn?.release()
    if (exchange && --exchange.walks === 0 && exchange.finished) this.#watched.delete(exchange)
    this.rest.end()
  }

  /** A message was given up on its way: its requester is told, from the deepest place that it reached. */
  #failed(passage: Passage, error: ErrorObject): void {
    const { exchange, place, turn } = passage
    passage.over = new Error('the message was given up')
    if (!exchange || (passage.kind === 'request' && exchange.answered)) return
    if (passage.kind === 'response') passage.turn = undefined
    let message: Message
    try {
      message = new Message(errorFrame(exchange.idText, error))
    } catch (unwritable) {
      this.#report(unwritable, passage)
      message = new Message(errorFrame(exchange.idText, internalError))
    }
    void this.answer(exchange, message, place, passage.kind === 'response' ? turn : undefined)
  }

  publicError(error: unknown, passage: Passage): ErrorObject {
    if (error instanceof RpcError) return error.toJSON()
    this.#report(error, passage)
    return internalError
  }

  #report(error: unknown, passage: Passage): void {
    const known = error instanceof Error ? error : new Error(`a middleware threw ${String(error)}`)
    this.#options.report(known, new Context(passage, passage.blamed(error)))
  }

  waiting<T>(promise: Promise<T>): Promise<T> {
    return this.rest.waiting(promise)
  }

  // --- send -------------------------------------------------------------------------------------------------

  deliver(passage: Passage): Promise<void> | undefined {
    const end = passage.direction === 'client-to-server' ? this.server : this.client
    const { exchange, target, kind } = passage
    if (end.ready) {
      return this.waiting(end.ready).then(() => {
        if (passage.over) throw passage.over
        return this.deliver(passage)
      })
    }
    // A cancelled request that was never sent needs no cancelling; an answer to a cancelled one is not wanted.
    if (kind === 'response' ? exchange?.cancelled : target && !target.sent) return this.#arrived(passage)
    // A client that says nothing more may still listen.
    const gone = this.#closed ?? (end === this.server || kind === 'request' ? end.gone : undefined)
    if (gone) return this.#undelivered(passage, end, inPhase(gone, 'not_sent'))
    if (kind === 'request' && exchange) exchange.sent = true
    passage.handedOver = true
    this.#remember(passage)
    let sent: Promise<void> | undefined
    try {
      sent = end.wire?.send(frameOf(passage), metaOf(passage, end.far)) as Promise<void> | undefined
    } catch (error) {
      this.#undelivered(passage, end, error)
    }
    if (!sent) return this.#arrived(passage)
    return sent.then(
      () => this.#arrived(passage),
      (error: unknown) => this.#undelivered(passage, end, error),
    )
  }

  /** What the handshake settled. */
  #remember({ message, exchange, direction, kind }: Passage): void {
    if (kind !== 'response' || direction !== 'server-to-client') return
    if (exchange?.request.origin.head.method !== 'initialize') return
    const span = resultMember(message.frame, message.head, 'protocolVersion')
    const version = span && tokenValue(message.frame, span)
    if (typeof version === 'string') this.session.protocolVersion = version
  }

  #arrived(passage: Passage): undefined {
    passage.left = true
    passage.turn?.release()
    if (passage.kind === 'response' && passage.exchange) this.finish(passage.exchange)
  }

  #undelivered(passage: Passage, end: End, error: unknown): never {
    const { exchange, kind } = passage
    passage.turn?.release()
    if (kind === 'request' && exchange && phaseOf(error) === 'not_sent') {
      exchange.sent = false
      if (end === this.server) this.unreached = error as Error
    }
    if (kind === 'response' && exchange) {
      passage.left = true
      this.finish(exchange)
    }
    if (end === this.client && end.gone) this.ondeaf?.()
    throw error
  }

  /** The upstream tells how it answers a request: so does the client's wire, if it is one of HTTP. */
  stream(event: StreamEvent): void {
    const exchange = this.server.awaited(event.relatedRequestId)
    if (exchange?.id === undefined) return
    this.client.wire?.stream?.({ ...event, relatedRequestId: exchange.id })
  }

  // --- outcomes ---------------------------------------------------------------------------------------------

  answer(exchange: Exchange, message: Message, place: number, turn?: Turn): Promise<void> {
    if (!exchange.answered) {
      exchange.answered = true
      if (exchange.sent) this.requester(exchange).far.owe(exchange.wireId)
      exchange.abort(
        new DOMException('The request was answered before this place', 'AbortError'),
        exchange.depth(place),
      )
    }
    return this.respond(exchange, message, place, turn)
  }

  /** Walks a response from a place to whoever asked. */
  respond(exchange: Exchange, message: Message, place: number, turn?: Turn, extra?: FrameMeta): Promise<void> {
    const { own, request } = exchange
    const to = this.requester(exchange)
    exchange.answered = true
    const passage = this.passage(to.far, message, { exchange, turn, extra, stack: request.stack, place })
    exchange.response = passage
    if (!own) return this.walk(passage, this.placeOf(to, request.stack))
    return this.walk(passage, own.place, () => {
      const { result, error } = passage.message.value as { result?: Result; error?: ErrorObject }
      if (error) own.reject(new RpcError(error.code, error.message, error.data))
      else own.resolve(result ?? {})
      passage.left = true
      this.finish(exchange)
    })
  }

  finish(exchange: Exchange): void {
    const { id, wireId } = exchange
    const { requests, far } = this.requester(exchange)
    exchange.finished = true
    if (id !== undefined && requests.get(id) === exchange) requests.delete(id)
    if (wireId !== id) far.aliases.delete(wireId)
    if (exchange.walks === 0) this.#watched.delete(exchange)
    this.rest.check()
  }

  /** Silence is the outcome from now on. */
  cancel(exchange: Exchange, reason: unknown): void {
    if (exchange.sent) this.requester(exchange).far.owe(exchange.wireId)
    exchange.cancel(reason)
    exchange.request.stop(reason as Error)
    this.finish(exchange)
  }

  /**
   * Whoever waits for an end that will not answer is told so; with `all`, also where an answer is on its way and held
   * by a middleware. Gives how many were told.
   */
  giveUp(requester: End, reason: RpcError, all = false): number {
    let told = 0
    for (const exchange of requester.unfinished()) {
      const { answered, ended, request, response, sent } = exchange
      if (ended) this.cancel(exchange, takenBack())
      if (ended || response?.handedOver || (answered && !all)) continue
      const error = inPhase(reason, sent ? 'sent' : 'not_sent')
      const held = response ?? request
      const place = held.left ? this.placeOf(requester.far, request.stack) : held.place
      if (!held.left) exchange.abort(error, exchange.depth(place) - 1)
      held.stop(error)
      void this.answer(exchange, new Message(errorFrame(exchange.idText, error.toJSON())), place)
      told++
    }
    return told
  }

  watch(exchange: Exchange): void {
    if (this.#closed) exchange.abort(this.#abort.signal.reason)
    else this.#watched.add(exchange)
  }

  /** Carries nothing any more. */
  close(reason: Error): void {
    this.#closed = proxyError('shutting_down')
    for (const exchange of this.#watched) exchange.abort(reason)
    this.#watched.clear()
    for (const { aliases } of [this.client, this.server]) {
      for (const { own, sent } of aliases.values()) own?.reject(inPhase(this.#closed, sent ? 'sent' : 'not_sent'))
    }
    this.#abort.abort(reason)
  }

  // --- the proxy's own messages -----------------------------------------------------------------------------

  ownId(): string {
    return this.#ids.next()
  }
}

/** Why a listen stream is over that its server ended by `notifications/cancelled` (2026-07-28, basic/utilities/cancellation). */
export function takenBack(): DOMException {
  return new DOMException('The stream was ended by its server', 'AbortError')
}

const done = Promise.resolve()
const internalError: ErrorObject = { code: INTERNAL_ERROR, message: 'Internal error' }

function leave(passage: Passage): unknown {
  return passage.leave()
}

function phaseOf(error: unknown): unknown {
  return error instanceof RpcError ? (error.data as { phase?: unknown } | undefined)?.phase : undefined
}
