import type { RequestId } from '@modelcontextprotocol/sdk/types.js'
import { proxyError, RpcError, untakenError } from '../error.js'
import { asBuffer, type Edit, type Member, member, members, OPEN_OBJECT, splice } from '../json.js'
import { Ledger } from '../ledger.js'
import { errorFrame, LISTEN, notificationFrame, paramsMember, tokenValue } from '../message.js'
import { type Head, peek, type Refusal, scan } from '../scan.js'
import type { Spare } from '../spare.js'
import { type CloseOptions, type Frame, FrameError, type Wire } from '../wire.js'
import { messagesOf } from './answer.js'
import { Tap } from './tap.js'

const SUBSCRIPTION_ID = 'io.modelcontextprotocol/subscriptionId'
const LOG_LEVEL = 'io.modelcontextprotocol/logLevel'
/** Bytes that wait for a child that does not read, before more requests are refused. */
const HARD_CAP = 16 << 20

/** A request of one session, on the wire under an id that no other has. */
interface Pending {
  readonly tap: Tap
  readonly id: RequestId
  readonly idText: string
  /** The progress token's own text, where it has one. */
  readonly tokenText: string | undefined
  readonly wantsLogs: boolean
  readonly isListen: boolean
}

/**
 * One wire for many short sessions (2026-07-28, whose requests are whole in themselves). On it every request has an id
 * and a progress token of our own; what comes back goes to the one session that it belongs to, under the names that
 * this one knows. What nobody can be told to own goes to nobody.
 */
export class SharedUpstream {
  readonly #wire: Wire
  readonly #pending = new Ledger<number, Pending>()
  readonly #taps = new Ledger<number, Tap>()
  readonly #onEnd: () => void
  readonly #onIdle: (idle: boolean) => void
  readonly #spare: Spare
  #started: Promise<void> | undefined
  /** Sessions that read no more for now. */
  #unreading = 0
  #isPaused = false
  #serial = 0
  #tapSerial = 0
  /** Bytes of requests that the child has not taken. */
  #unread = 0
  #ended: RpcError | undefined

  /**
   * `onIdle` is told when the last session has left, and when one has come again; `spare` is what those may hold that do not
   * read while others do.
   */
  constructor(wire: Wire, onEnd: () => void, onIdle: (idle: boolean) => void, spare: Spare) {
    this.#wire = wire
    this.#spare = spare
    this.#onEnd = onEnd
    this.#onIdle = onIdle
    wire.onframe = (frame) => {
      for (const one of messagesOf(frame)) this.#receive(one)
    }
    wire.onerror = (error) => this.#faulty(error)
    wire.onclose = (reason) => {
      this.#ended =
        reason instanceof RpcError ? reason : proxyError('upstream_exited', { phase: 'sent', cause: reason })
      onEnd()
      for (const tap of this.#taps.values()) tap.lose(this.#ended)
      this.#pending.clear()
    }
  }

  /** A wire for one session. */
  tap(): Wire {
    this.#tapSerial += 1
    const number = this.#tapSerial
    const tap: Tap = new Tap(
      {
        start: () => this.#start(),
        send: (frame) => this.#send(tap, frame),
        pace: (change) => this.#pace(change),
        leave: () => this.#leave(tap, number),
      },
      this.#spare,
    )
    this.#taps.set(number, tap)
    this.#pace(0)
    if (this.#taps.size === 1) this.#onIdle(false)
    return tap
  }

  #start(): Promise<void> {
    this.#started ??= (async () => this.#wire.start())().catch((error: unknown) => {
      this.#onEnd()
      throw error
    })
    return this.#started
  }

  close(options?: CloseOptions): Promise<void> {
    return this.#wire.close(options)
  }

  async #send(tap: Tap, frame: Frame): Promise<void> {
    if (this.#ended) throw this.#ended
    const head = scan(frame)
    if (head.kind === 'request') return this.#request(tap, frame, head)
    if (head.method === 'notifications/cancelled') return this.#cancel(tap, frame, head)
    if (head.kind === 'notification') return this.#wire.send(frame)
    // An answer: nobody has asked.
  }

  /** One that does not read holds the child up where there is nobody else. */
  #pace(change: number): void {
    this.#unreading += change
    const stops = this.#unreading > 0 && this.#unreading === this.#taps.size
    if (stops === this.#isPaused) return
    this.#isPaused = stops
    if (stops) this.#wire.pause()
    else this.#wire.resume()
  }

  /** Its requests are taken back. */
  #leave(tap: Tap, number: number): void {
    if (!this.#taps.delete(number)) return
    // Most have their answers, and those of others are many.
    for (const [wireId, { tap: owner }] of tap.asked > 0 ? this.#pending.entries() : []) {
      if (owner === tap) this.#take(wireId)
    }
    this.#pace(0)
    if (this.#taps.size === 0) this.#onIdle(true)
  }

  async #request(tap: Tap, frame: Frame, head: Head): Promise<void> {
    if (this.#unread > HARD_CAP) throw proxyError('overloaded', { detail: 'the server does not read' })
    this.#serial += 1
    const wireId = this.#serial
    const text = String(wireId)
    const meta = frame[head.metaStart] === OPEN_OBJECT ? members(frame, head.metaStart) : []
    // A parser that takes the first of several must not see one that is not ours either.
    const tokens = meta.filter(({ key }) => key === 'progressToken')
    const edits: Edit[] = [{ start: head.idStart, end: head.idEnd, text }]
    for (const token of tokens) edits.push({ ...token, text })
    const token = tokens.at(-1)
    tap.asked += 1
    this.#pending.set(wireId, {
      tap,
      id: head.id as RequestId,
      idText: head.idText as string,
      tokenText: token && textOf(frame, token),
      wantsLogs: meta.some(({ key }) => key === LOG_LEVEL),
      isListen: head.method === LISTEN,
    })
    try {
      await this.#write(splice(frame, edits))
    } catch (error) {
      this.#answered(wireId)
      throw error
    }
  }

  async #write(frame: Frame): Promise<void> {
    this.#unread += frame.length
    try {
      await this.#wire.send(frame)
    } finally {
      this.#unread -= frame.length
    }
  }

  /** Of a request that is answered already there is nothing to take back. */
  async #cancel(tap: Tap, frame: Frame, head: Head): Promise<void> {
    const span = paramsMember(frame, head, 'requestId')
    if (!span) return
    const id = tokenValue(frame, span)
    for (const [wireId, pending] of this.#pending.entries()) {
      if (pending.tap !== tap || pending.id !== id) continue
      this.#answered(wireId)
      return this.#wire.send(splice(frame, [{ ...span, text: String(wireId) }]))
    }
  }

  /** Nobody waits for it to arrive. */
  #tell(frame: Frame): void {
    void (async () => this.#wire.send(frame))().catch(() => {})
  }

  #take(wireId: number): void {
    this.#answered(wireId)
    const cancel = notificationFrame('notifications/cancelled', { requestId: wireId })
    this.#tell(cancel)
  }

  #receive(frame: Frame): void {
    let head: Head
    try {
      head = scan(frame)
    } catch (error) {
      this.#unreadable(error as Refusal)
      return
    }
    if (head.kind === 'response') this.#answer(frame, head)
    else if (head.kind === 'notification') this.#notification(frame, head)
    else {
      const refusal = errorFrame(head.idText, proxyError('client_unreachable').toJSON())
      this.#tell(refusal)
    }
  }

  #answer(frame: Frame, head: Head): void {
    const pending = this.#answered(head.id)
    if (!pending) return
    const edits: Edit[] = [{ start: head.idStart, end: head.idEnd, text: pending.idText }]
    const meta = member(frame, head.resultStart, '_meta')
    const subscription = meta && member(frame, meta.start, SUBSCRIPTION_ID)
    if (subscription) edits.push({ ...subscription, text: pending.idText })
    pending.tap.deliver(splice(frame, edits), { relatedRequestId: pending.id })
  }

  #notification(frame: Frame, head: Head): void {
    const found = this.#ownerOf(frame, head)
    if (!found) return
    const { pending, span, text } = found
    const restored = span && text !== undefined ? splice(frame, [{ ...span, text }]) : frame
    pending.tap.deliver(restored, { relatedRequestId: pending.id })
  }

  /** Whose request a notification speaks of, and where it names it by our name instead of its own. */
  #ownerOf(frame: Frame, head: Head): { pending: Pending; span?: Member; text?: string } | undefined {
    const owner = (span: Member | undefined, text: (pending: Pending) => string | undefined) => {
      const pending = span && this.#pending.get(tokenValue(frame, span) as number)
      const own = pending && text(pending)
      return own === undefined ? undefined : { pending: pending as Pending, span, text: own }
    }
    const subscription = member(frame, head.metaStart, SUBSCRIPTION_ID)
    if (subscription) return owner(subscription, ({ idText }) => idText)
    const param = (key: string) => member(frame, head.paramsStart, key)
    if (head.method === 'notifications/progress') return owner(param('progressToken'), ({ tokenText }) => tokenText)
    if (head.method === 'notifications/cancelled') {
      return owner(param('requestId'), ({ idText, isListen }) => (isListen ? idText : undefined))
    }
    if (head.method !== 'notifications/message') return undefined
    // Nothing ties a log to its request (2026-07-28 schema): it has an owner where only one asked for logs.
    const asking = this.#pending.values().filter(({ wantsLogs }) => wantsLogs)
    return asking.length === 1 ? { pending: asking[0] as Pending } : undefined
  }

  #unreadable({ id, kind, message }: Refusal): void {
    if (kind === 'response' || kind === undefined)
      this.#fail(id, proxyError('upstream_bad_response', { phase: 'sent', detail: message }))
  }

  #faulty(error: Error): void {
    if (!(error instanceof FrameError)) {
      this.#taps.values()[0]?.onerror?.(error)
      return
    }
    const { id } = error.head ? peek(error.head) : {}
    if (this.#fail(id, untakenError(error, 'sent'))) return
    for (const tap of this.#taps.values()) tap.onerror?.(new FrameError(error.code, error.message))
  }

  /** The answer to a request could not be taken, and no other will come. Tells whether there is such a request. */
  #fail(id: unknown, error: RpcError): boolean {
    const pending = this.#answered(id)
    const { idText, id: relatedRequestId } = pending ?? {}
    pending?.tap.deliver(errorFrame(idText, error.toJSON()), { relatedRequestId })
    return pending !== undefined
  }

  /** Nobody waits for the answer to it any longer. */
  #answered(id: unknown): Pending | undefined {
    const pending = this.#pending.get(id as number)
    if (!pending) return undefined
    pending.tap.asked -= 1
    this.#pending.delete(id as number)
    return pending
  }
}

function textOf(frame: Frame, { start, end }: Member): string {
  return asBuffer(frame).toString('utf8', start, end)
}
