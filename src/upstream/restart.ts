import type { RequestId } from '@modelcontextprotocol/sdk/types.js'
import { type Deferred, deferred } from '../deferred.js'
import { inPhase, isProxyErrorData, proxyError, RpcError } from '../error.js'
import { Ledger } from '../ledger.js'
import { cancelledId, errorFrame, notificationFrame } from '../message.js'
import { timer } from '../rest.js'
import { scan } from '../scan.js'
import type { CloseOptions, Frame, FrameMeta, StreamEvent, Wire } from '../wire.js'
import { headOf, messagesOf } from './answer.js'
import { Backoff, type Opening } from './backoff.js'
import { Recording, type Scanned } from './recording.js'
import { type Outgoing, Waiting } from './waiting.js'

/** Milliseconds that what was not sent waits for a new upstream, and that one has to become ready. */
const PATIENCE = 30_000
/** An upstream that lived so long, in milliseconds, is no longer one that fails as soon as it is started. */
const STABLE = 30_000
/** How `send` says that the upstream is no more, and has not seen the frame. */
const OVER: ReadonlySet<unknown> = new Set(['upstream_exited', 'upstream_session_lost'])
const INITIALIZED = 'notifications/initialized'
/** What is said of requests that were lost with the upstream. */
const OF_THE_LOST: ReadonlySet<unknown> = new Set(['notifications/cancelled', 'notifications/progress'])

export interface RestartOptions {
  /** Makes the wire to a new upstream. */
  make(): Wire
  /** The upstream was replaced, and is about to get what waited for it. */
  onRestart?: () => void
  /** What all who start it know of its first starts: while that says to wait, none is tried. @default nothing */
  opening?: Opening | undefined
}

/** A time without an upstream. */
interface Outage {
  /** Why there still is none. */
  error: RpcError
  /** Messages wait no longer. */
  isLong: boolean
  /** The upstream was lost, not only what was sent to it. */
  isLost: boolean
  readonly timer: NodeJS.Timeout
}

/**
 * A wire that outlives its upstream: where a child ends, or a server forgets the session, that once has answered
 * something, a new one takes its place and is told what the client had settled with the old one. Requests that were
 * sent get their one error and are never sent again; what was not sent, or was refused unread, waits for the new one.
 */
export class RestartingUpstream implements Wire {
  onframe?: (frame: Frame, meta?: FrameMeta) => void
  onclose?: (reason?: Error) => void
  onerror?: (error: Error) => void
  onstream?: (event: StreamEvent) => void

  readonly #options: RestartOptions
  readonly #recording = new Recording()
  readonly #backoff = new Backoff()
  /** Requests that were sent and have no answer. */
  readonly #pending = new Ledger<RequestId, Outgoing>()
  /** The server's own requests that have no answer. */
  readonly #asked = new Set<RequestId>()
  readonly #waiting = new Waiting()
  #serial = 0
  #wire: Wire
  #since = performance.now()
  #outage: Outage | undefined
  /** Rejects when the upstream that is being made ready is lost. */
  #trial: Deferred<never> | undefined
  /** It has answered something: what has never worked is not started again. */
  #proven = false
  #paused = false
  /** Ends the wait before the next try. */
  #wake = () => {}
  #healing: Promise<void> | undefined
  #closing: Promise<void> | undefined
  /** Before that: a wire may tell of its end while it is told to close. */
  #isClosing = false
  #told = false

  constructor(options: RestartOptions) {
    this.#options = options
    this.#wire = this.#adopt(options.make())
  }

  /** @throws (rejects) the last error, without a try, where the upstream could not be started a moment ago */
  async start(): Promise<void> {
    const { opening } = this.#options
    if (opening?.error && opening.wait > 0) throw opening.error
    try {
      await this.#wire.start()
    } catch (error) {
      if (!this.#isClosing) this.#failedToOpen(error as Error)
      throw error
    }
  }

  send(frame: Frame, meta?: FrameMeta): Promise<void> | undefined {
    const it: Outgoing = { frame, head: scan(frame), meta, serial: ++this.#serial }
    const sent = this.#outage ? this.#hold(it, this.#outage) : this.#pass(it)
    if (it.head.method !== INITIALIZED) return sent
    // However that ends: the client has said it once, and will not say it to the next one.
    if (sent) return sent.finally(() => this.#recording.initialized(it))
    this.#recording.initialized(it)
    return undefined
  }

  pause(): void {
    this.#paused = true
    this.#wire.pause()
  }

  resume(): void {
    this.#paused = false
    this.#wire.resume()
  }

  close(options: CloseOptions = {}): Promise<void> {
    this.#closing ??= this.#close(options)
    if (options.urgent) void this.#wire.close(options)
    return this.#closing
  }

  async #close(options: CloseOptions): Promise<void> {
    this.#isClosing = true
    const reason = proxyError('shutting_down')
    this.#wake()
    this.#trial?.reject(reason)
    this.#giveUp(reason)
    await this.#wire.close(options)
    await this.#healing
    this.#tell()
  }

  #adopt(wire: Wire): Wire {
    wire.onframe = (frame, meta) => this.#receive(frame, meta)
    wire.onclose = (reason) => this.#lost(reason)
    wire.onerror = (error) => this.onerror?.(error)
    wire.onstream = (event) => this.onstream?.(event)
    if (this.#paused) wire.pause()
    this.#wire = wire
    return wire
  }

  // --- to the upstream --------------------------------------------------------------------------------------

  /** Sends it; where the upstream is no more and has not taken it, the next one may. */
  #pass(it: Outgoing): Promise<void> | undefined {
    return this.#hand(it)?.catch((reason: unknown) => {
      const error = this.#refused(it, reason)
      const mayWait = this.#proven && !this.#isClosing && it.head.kind !== 'response'
      if (!mayWait || !isOver(error)) throw error
      return this.#hold(it, this.#begin(error))
    })
  }

  #hand(it: Outgoing): Promise<void> | undefined {
    const { id, kind, method } = it.head
    if (kind === 'request') this.#pending.set(id!, it)
    else if (kind === 'response') this.#asked.delete(id!)
    else if (method === 'notifications/cancelled') this.#pending.delete(cancelledId(it.frame, it.head)!)
    return this.#wire.send(it.frame, it.meta) as Promise<void> | undefined
  }

  /** Why it was not taken, as its sender is to be told. */
  #refused(it: Outgoing, error: unknown): unknown {
    const { id, kind } = it.head
    it.isOver = kind === 'request' && this.#pending.get(id!) !== it
    if (kind === 'request' && !it.isOver) this.#pending.delete(id!)
    // What has its outcome already must not be sent again.
    return it.isOver && error instanceof RpcError ? inPhase(error, 'sent') : error
  }

  #hold(it: Outgoing, outage: Outage): Promise<void> | undefined {
    const { id, kind, method } = it.head
    const target = method === 'notifications/cancelled' ? cancelledId(it.frame, it.head) : undefined
    // One that is being made ready may ask already, and have been sent something; whoever was before is gone.
    if (kind === 'response' ? this.#asked.has(id!) : this.#pending.has(target!)) return this.#pass(it)
    if (kind === 'response') return undefined
    this.#waiting.withdraw(target)
    if (OF_THE_LOST.has(method)) return undefined
    if (outage.isLong) return Promise.reject(inPhase(outage.error, 'not_sent'))
    return this.#waiting.add(it)
  }

  /** Nothing waits any longer. */
  #giveUp(error: RpcError): void {
    const told = inPhase(error, 'not_sent')
    this.#waiting.giveUp((it) => (it.waiting ? it.waiting.reject(told) : this.#fail(it, told)))
  }

  #fail({ head }: Outgoing, error: RpcError): void {
    this.onframe?.(errorFrame(head.idText, error.toJSON()), { relatedRequestId: head.id })
  }

  // --- from the upstream ------------------------------------------------------------------------------------

  #receive(frame: Frame, meta?: FrameMeta): void {
    if (meta?.isUnread && this.#takeBack(meta.relatedRequestId)) return
    for (const one of messagesOf(frame)) {
      const head = headOf(one)
      const isOurs = head !== undefined && this.#notice({ frame: one, head })
      if (!isOurs) this.onframe?.(one, meta)
    }
  }

  /** Tells whether it is the answer to a request of our own. */
  #notice(it: Scanned): boolean {
    const { id, kind, method } = it.head
    if (kind === 'request') this.#asked.add(id!)
    else if (method === 'notifications/cancelled') this.#asked.delete(cancelledId(it.frame, it.head)!)
    else if (kind === 'response' && id !== undefined) {
      if (this.#recording.take(it)) return true
      const request = this.#pending.get(id)
      if (!request) return false
      this.#pending.delete(id)
      this.#recording.answered(request, it)
      if (!this.#proven) this.#prove()
    }
    return false
  }

  #prove(): void {
    this.#proven = true
    const { opening } = this.#options
    if (!opening) return
    opening.reset()
    opening.working += 1
  }

  /** A request that the server refused because it has forgotten the session: it is sent once more, to the next one. */
  #takeBack(id: RequestId | undefined): boolean {
    const it = this.#pending.get(id!)
    if (!it || this.#isClosing || !this.#waiting.addRefused(it)) return false
    this.#pending.delete(id!)
    this.#begin(proxyError('upstream_session_lost'))
    return true
  }

  #lost(reason?: Error): void {
    if (this.#isClosing || !this.#proven) {
      if (!this.#isClosing && reason) this.#failedToOpen(reason)
      this.#tell(reason)
      return
    }
    const error = lossOf(reason)
    this.#wire.onclose = undefined
    Object.assign(this.#begin(error), { error, isLost: true })
    this.#abandon(error)
    const trial = this.#trial
    this.#trial = undefined
    if (trial) trial.reject(error)
    else this.#healing = this.#heal(error)
  }

  /** What was begun together fails together: that is one failure. */
  #failedToOpen(error: Error): void {
    const { opening } = this.#options
    if (opening?.wait === 0 && opening.working === 0) opening.failed(error)
  }

  /** Nobody answers any more what was asked, on either side. */
  #abandon(error: RpcError): void {
    const told = inPhase(error, 'sent')
    const pending = this.#pending.values()
    this.#pending.clear()
    for (const it of pending) this.#fail(it, told)
    const asked = [...this.#asked]
    this.#asked.clear()
    for (const requestId of asked) this.onframe?.(notificationFrame('notifications/cancelled', { requestId }))
  }

  // --- the next one -----------------------------------------------------------------------------------------

  #begin(error: RpcError): Outage {
    if (this.#outage) return this.#outage
    const outage: Outage = {
      error,
      isLong: false,
      isLost: false,
      timer: timer(() => {
        outage.isLong = true
        this.#giveUp(outage.error)
        // It has taken nothing any more, and never told of its end.
        if (!outage.isLost) this.#lost(outage.error)
      }, PATIENCE),
    }
    this.#outage = outage
    return outage
  }

  async #heal(error: RpcError): Promise<void> {
    if (performance.now() - this.#since > STABLE) this.#backoff.reset()
    let lost: Error = error
    for (;;) {
      this.#backoff.failed(lost)
      this.onerror?.(new Error(`${lost.message}; it is tried again`, { cause: lost.cause }))
      // What it leaves behind may be in the way of the next one.
      await this.#wire.close().catch(() => {})
      if (!this.#isClosing) await this.#wait(this.#backoff.wait)
      if (this.#isClosing) return
      try {
        return await this.#replace()
      } catch (failure) {
        if (this.#isClosing) return
        lost = failure as Error
        if (this.#outage && failure instanceof RpcError) this.#outage.error = failure
      }
    }
  }

  async #wait(milliseconds: number): Promise<void> {
    const over = deferred()
    this.#wake = over.resolve
    const timeout = timer(over.resolve, milliseconds)
    await over.promise
    clearTimeout(timeout)
  }

  async #replace(): Promise<void> {
    const trial = deferred<never>()
    this.#trial = trial
    const wire = this.#adopt(this.#options.make())
    const late = timer(() => trial.reject(proxyError('upstream_timeout', { detail: 'to become ready' })), PATIENCE)
    try {
      await Promise.race([this.#ready(wire), trial.promise])
      clearTimeout(late)
      this.#since = performance.now()
      this.#restarted()
      // It may have been lost since: that counts before anything else.
      await Promise.race([trial.promise, this.#flush(trial)])
    } catch (error) {
      // One that is given up has nothing more to say.
      wire.onframe = undefined
      wire.onclose = undefined
      this.#abandon(lossOf(error))
      throw error
    } finally {
      clearTimeout(late)
      this.#trial = undefined
    }
  }

  #restarted(): void {
    try {
      this.#options.onRestart?.()
    } catch (error) {
      this.onerror?.(error as Error)
    }
  }

  async #ready(wire: Wire): Promise<void> {
    await wire.start()
    await this.#recording.replay(wire, (error) => this.onerror?.(error))
  }

  async #flush(trial: Deferred<never>): Promise<void> {
    while (this.#trial === trial) {
      const it = this.#waiting.take()
      if (!it) return this.#recovered()
      const { waiting } = it
      try {
        await this.#hand(it)
        waiting?.resolve()
      } catch (reason) {
        const error = this.#refused(it, reason)
        if (isOver(error) && !this.#isClosing) this.#waiting.put(it)
        else if (waiting) waiting.reject(error)
        else if (!it.isOver) this.#fail(it, lossOf(error))
        if (isOver(error)) throw error
      }
    }
  }

  /** At once: what comes from now on must not be held, and the end of this one is no longer that of a trial. */
  #recovered(): void {
    clearTimeout(this.#outage?.timer)
    this.#outage = undefined
    this.#trial = undefined
  }

  #tell(reason?: Error): void {
    if (this.#told) return
    this.#told = true
    const { opening } = this.#options
    if (opening && this.#proven) opening.working -= 1
    clearTimeout(this.#outage?.timer)
    this.onclose?.(reason)
  }
}

function lossOf(reason: unknown): RpcError {
  return reason instanceof RpcError ? reason : proxyError('upstream_exited', { phase: 'sent', cause: reason })
}

function isOver(error: unknown): error is RpcError {
  if (!(error instanceof RpcError) || !isProxyErrorData(error.data)) return false
  return error.data.phase === 'not_sent' && OVER.has(error.data.reason)
}
