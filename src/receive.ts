import type { RequestId } from '@modelcontextprotocol/sdk/types.js'
import { type Carrier, takenBack } from './carrier.js'
import type { Context, ErrorObject } from './context.js'
import type { End } from './end.js'
import { INVALID_REQUEST, inPhase, proxyError, type RpcError, reasons, untakenError } from './error.js'
import { cancelledId, elementsOfBatch, errorFrame, LISTEN, Message, metaMember, tokenValue } from './message.js'
import { Exchange } from './passage.js'
import { peek, Refusal } from './scan.js'
import { type Frame, FrameError, type FrameMeta } from './wire.js'

export interface ReceiverOptions {
  /** Something came that no peer is told of in full. */
  report(error: Error, ctx?: Context): void
  /** Requests of the client that may wait for their answers. */
  maxPending: number
  /** Why the session takes no new requests from an end, if it takes none. */
  closing(end: End): RpcError | undefined
}

/** Takes what the wires bring: frames become messages on their way, or are refused at the gate. */
export class Receiver {
  readonly #carrier: Carrier
  readonly #options: ReceiverOptions
  #initialized = false
  /** Frames that nobody waited for, or that could not be read. */
  dropped = 0

  constructor(carrier: Carrier, options: ReceiverOptions) {
    this.#carrier = carrier
    this.#options = options
  }

  receive(end: End, frame: Frame, meta?: FrameMeta): void {
    end.heard = true
    try {
      const batch = elementsOfBatch(frame)
      if (batch) for (const one of batch) this.#take(end, one, meta)
      else this.#take(end, frame, meta)
    } catch (error) {
      this.#refuse(end, error)
    }
    end.throttle()
  }

  #take(end: End, frame: Frame, meta?: FrameMeta): void {
    let message: Message
    try {
      message = new Message(frame)
    } catch (error) {
      this.#refuse(end, error)
      return
    }
    const { kind } = message.head
    if (kind === 'request') this.#request(end, message, meta)
    else if (kind === 'response') this.#response(end, message, meta)
    else this.#notification(end, message, meta)
  }

  #request(end: End, message: Message, meta?: FrameMeta): void {
    const carrier = this.#carrier
    const { far } = end
    const id = message.head.id as RequestId
    const refusal = this.#refusal(end, id)
    if (refusal) {
      this.#tell(end, errorFrame(message.head.idText, refusal), { relatedRequestId: id })
      return
    }
    if (end.side === 'client') this.#sniff(message)
    const exchange = new Exchange(id, far.owed.has(id) ? carrier.ownId() : id)
    if (exchange.wireId !== id) far.aliases.set(exchange.wireId, exchange)
    end.requests.set(id, exchange)
    const passage = carrier.passage(end, message, { exchange, turn: take(end, message), extra: meta })
    exchange.request = passage
    far.flow()
    void carrier.walk(passage, carrier.placeOf(far, passage.stack))
  }

  /** Why a request is not taken at all. */
  #refusal(end: End, id: RequestId): ErrorObject | undefined {
    const known = end.requests.get(id)
    if (known?.ended) this.#carrier.cancel(known, takenBack())
    else if (known) return { code: INVALID_REQUEST, message: `Invalid request: id ${JSON.stringify(id)} is in use` }
    const gone = end.far.gone ?? this.#options.closing(end)
    if (gone) return inPhase(gone, 'not_sent').toJSON()
    if (end.isFull) return proxyError('overloaded').toJSON()
    const isTooMany = end.side === 'client' && end.requests.size >= this.#options.maxPending
    return isTooMany ? proxyError('overloaded', { detail: 'too many requests wait' }).toJSON() : undefined
  }

  #notification(end: End, message: Message, meta?: FrameMeta): void {
    const carrier = this.#carrier
    const target = message.head.method === 'notifications/cancelled' ? this.#target(end, message) : undefined
    if (target?.request.origin.head.method === 'initialize') return
    const passage = carrier.passage(end, message, { turn: take(end, message), extra: meta })
    passage.target = target
    if (target && carrier.requester(target) !== end) target.ended = true
    else if (target && !target.answered) {
      carrier.cancel(target, new DOMException('The request was cancelled by its sender', 'AbortError'))
    }
    void carrier.walk(passage, carrier.placeOf(end.far, passage.stack))
  }

  /** The exchange that a `notifications/cancelled` speaks of. */
  #target(end: End, message: Message): Exchange | undefined {
    const id = cancelledId(message.frame, message.head)
    if (id === undefined) return undefined
    const exchange = end.requests.get(id)
    if (exchange || end.side === 'client') return exchange
    // A server may take back a listen stream of the client's in this way (2026-07-28, cancellation).
    const listen = end.awaited(id)
    return listen?.request.origin.head.method === LISTEN ? listen : undefined
  }

  #response(end: End, message: Message, meta?: FrameMeta): void {
    const carrier = this.#carrier
    const { id } = message.head
    if (id === undefined) {
      const passage = carrier.passage(end, message, { turn: take(end, message), extra: meta })
      void carrier.walk(passage, carrier.placeOf(end.far, passage.stack))
      return
    }
    const exchange = end.awaited(id)
    if (!exchange) {
      end.owed.delete(id)
      this.dropped++
      return
    }
    const turn = exchange.own ? undefined : take(end, message)
    void carrier.respond(exchange, message, carrier.placeOf(end, exchange.request.stack), turn, meta)
  }

  #sniff(message: Message): void {
    const { session } = this.#carrier
    if (message.head.method === 'initialize') {
      this.#initialized = true
      session.era = 'legacy'
      return
    }
    if (this.#initialized || (session.era === 'modern' && session.protocolVersion !== undefined)) return
    const span = metaMember(message.frame, message.head, 'io.modelcontextprotocol/protocolVersion')
    if (!span) return
    session.era = 'modern'
    const version = tokenValue(message.frame, span)
    if (typeof version === 'string') session.protocolVersion = version
  }

  // --- refused at the gate ----------------------------------------------------------------------------------

  #refuse(end: End, error: unknown): void {
    if (!(error instanceof Refusal)) throw error
    const { code, kind, id, idText, message } = error
    const exchange = kind === 'response' && id !== undefined ? end.awaited(id) : undefined
    if (exchange) {
      this.#fail(end, exchange, proxyError('upstream_bad_response', { phase: 'sent', detail: message }))
    } else if (kind === 'request' || (end.side === 'client' && kind === undefined)) {
      this.#tell(end, errorFrame(idText, { code, message }))
    } else {
      this.dropped++
      this.#options.report(new Error(`a message of the ${end.side} was dropped: ${message}`))
    }
  }

  /** Something went wrong at a wire: a frame that it could not take, for one. */
  faulty(end: End, error: Error): void {
    if (!(error instanceof FrameError)) {
      this.#options.report(error)
      return
    }
    const { kind, id, idText } = error.head ? peek(error.head) : {}
    const tooLarge = error.code === reasons.too_large.code
    if (kind === 'request' || (end.side === 'client' && kind === undefined)) {
      const { code, message } = error
      const refusal = tooLarge ? untakenError(error, 'not_sent').toJSON() : { code, message }
      this.#tell(end, errorFrame(idText, refusal))
      return
    }
    this.dropped++
    this.#options.report(error)
    if (kind === 'notification') return
    const told = untakenError(error, 'sent')
    const exchange = id === undefined ? undefined : end.awaited(id)
    if (exchange) this.#fail(end, exchange, told)
    if (id !== undefined) return
    for (const it of end.far.unfinished()) if (it.sent && !it.answered) this.#fail(end, it, told)
  }

  /** The answer could not be taken, and no other will come. */
  #fail(end: End, exchange: Exchange, error: RpcError): void {
    const carrier = this.#carrier
    const message = new Message(errorFrame(exchange.idText, error.toJSON()))
    void carrier.respond(exchange, message, carrier.placeOf(end, exchange.request.stack))
  }

  /** An error at the gate: nothing has walked, so nothing is walked. */
  #tell(end: End, frame: Frame, meta?: FrameMeta): void {
    void (async () => {
      await end.ready
      await end.wire?.send(frame, meta)
    })().catch(() => {})
  }
}

function take(end: End, message: Message) {
  return end.lane.take(message.head.kind, message.frame.length)
}
