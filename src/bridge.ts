import { Carrier, type CarrierOptions } from './carrier.js'
import type { Direction } from './context.js'
import type { End } from './end.js'
import { proxyError, type Reason, RpcError } from './error.js'
import { LISTEN, notificationFrame } from './message.js'
import { Receiver } from './receive.js'
import type { Ending, Session } from './session.js'
import type { CloseOptions, Wire } from './wire.js'

/** Until a client that has said nothing yet is told that its upstream could not be started, in milliseconds. */
const FIRST_WORD = 250
/** Until the error of a request that was given up goes on behind a middleware that holds it, in milliseconds. */
const LAST_WORD = 250

export interface BridgeOptions extends CarrierOptions {
  /** Milliseconds that requests in flight have when the session closes. @default 10000 */
  drainTimeout?: number
  /** Requests of the client that may wait for their answers. @default as many as come */
  maxPending?: number
}

const bridges = new WeakMap<Session, Bridge>()

/** The bridge behind a session. */
export function bridgeOf(session: Session): Bridge | undefined {
  return bridges.get(session)
}

/** Joins two ends for as long as both are there, and parts them in good order. */
export class Bridge {
  readonly session: Session
  /** Resolves when nothing is left. */
  readonly closed: Promise<Ending>
  readonly #options: BridgeOptions
  readonly #carrier: Carrier
  readonly #receiver: Receiver
  #shutting: Promise<void> | undefined
  #urgent = false
  #over = false
  #end!: (ending: Ending) => void

  constructor(options: BridgeOptions) {
    this.#options = options
    this.closed = new Promise((resolve) => {
      this.#end = resolve
    })
    this.#carrier = new Carrier(options)
    this.#carrier.ondeaf = () => this.#hurry()
    this.#receiver = new Receiver(this.#carrier, {
      report: options.report,
      maxPending: options.maxPending ?? Number.POSITIVE_INFINITY,
      closing: ({ side }) => (this.#shutting && side === 'client' ? proxyError('shutting_down') : undefined),
    })
    this.session = this.#carrier.session
    bridges.set(this.session, this)
  }

  get stats(): { pending: number; dropped: number; lanes: Record<Direction, number> } {
    const { client, server } = this.#carrier
    return {
      pending: client.requests.size + server.requests.size,
      dropped: this.#receiver.dropped,
      lanes: { 'client-to-server': client.lane.size, 'server-to-client': server.lane.size },
    }
  }

  /** Whether the upstream has said anything. */
  get isServed(): boolean {
    return this.#carrier.server.heard
  }

  /** Resolves when every message has come to rest: it left, or waits for a peer. For tests. */
  quiet(): Promise<void> {
    return this.#carrier.rest.until(() => this.isQuiet)
  }

  get isQuiet(): boolean {
    return this.#carrier.rest.isQuiet
  }

  /** Resolves when what is on its way now has come to its end: messages have left, requests have their outcomes. */
  async past(): Promise<void> {
    const { rest, client, server } = this.#carrier
    const asked = [...client.unfinished(), ...server.unfinished()]
    const isPast = () => rest.active === 0 && asked.every(({ finished }) => finished)
    await Promise.race([rest.until(isPast), this.closed])
  }

  /** Starts both ends. Frames of the client are taken at once and wait for the server. */
  start(client: Wire, open: () => Wire | Promise<Wire>): void {
    void this.#attach(this.#carrier.client, client)
    void this.#open(open)
  }

  async #open(open: () => Wire | Promise<Wire>): Promise<void> {
    const { server } = this.#carrier
    try {
      const wire = await open()
      if (this.#over) await wire.close()
      else await this.#attach(server, wire)
    } catch (error) {
      this.#lost(server, error as Error, 'upstream_unreachable')
    }
  }

  async #attach(end: End, wire: Wire): Promise<void> {
    end.wire = wire
    wire.onframe = (frame, meta) => {
      if (!this.#over) this.#receiver.receive(end, frame, meta)
    }
    wire.onclose = (reason) => this.#lost(end, reason)
    wire.onerror = (error) => this.#receiver.faulty(end, error)
    if (end === this.#carrier.server) wire.onstream = (event) => this.#carrier.stream(event)
    try {
      await wire.start()
      end.open()
    } catch (error) {
      this.#lost(end, error as Error, 'upstream_unreachable')
    }
  }

  /** No more frames come from an end. */
  #lost(end: End, error?: Error, why: Reason = 'upstream_exited'): void {
    if (end.gone) return
    const carrier = this.#carrier
    if (end === carrier.client) {
      if (error) this.#cut(error)
      end.gone = proxyError('shutting_down')
      carrier.giveUp(carrier.server, end.gone)
      void this.close({ reason: error })
    } else {
      end.gone = error instanceof RpcError ? error : proxyError(why, { cause: error })
      // Its client may leave before the reason is told.
      if (error && !end.heard) carrier.unreached = end.gone
      carrier.giveUp(carrier.client, end.gone)
      for (const exchange of carrier.server.unfinished()) if (!exchange.own) carrier.cancel(exchange, end.gone)
      void this.close({ reason: error ?? (this.#shutting ? undefined : end.gone) })
    }
    end.open()
  }

  /** A client that does not read any more wants no answers either. */
  #cut(error: Error): void {
    const { client } = this.#carrier
    this.#options.report(error)
    for (const requestId of [...client.requests.keys()]) {
      this.#receiver.receive(client, notificationFrame('notifications/cancelled', { requestId }))
    }
  }

  #hurry(): void {
    this.#urgent = true
    this.#carrier.rest.check()
  }

  /**
   * Stops taking requests, lets those in flight finish (at most `drainTimeout` milliseconds), answers the rest,
   * closes both ends and resolves when nothing is left. Call it again with `urgent` to wait no longer.
   */
  close(options: CloseOptions & { reason?: Error } = {}): Promise<void> {
    const shutting = this.#shutting
    if (options.urgent) this.#hurry()
    if (options.urgent && this.#over) {
      const { client, server } = this.#carrier
      for (const { wire } of [client, server]) wire?.close({ urgent: true }).catch(() => {})
    }
    this.#shutting = shutting ?? this.#shut(options.reason)
    return this.#shutting
  }

  async #shut(reason: Error | undefined): Promise<void> {
    const { rest, client, server } = this.#carrier
    // A client that has not spoken yet still gets its answer, not only the end of its stream.
    if (reason && !server.heard && !client.heard) await rest.within(FIRST_WORD, () => client.heard)
    await rest.within(this.#options.drainTimeout ?? 10_000, () => this.#urgent || this.#isDrained())
    // A middleware that holds an answer may hold its error too: then it goes on behind that one.
    while (this.#giveUp() > 0) {
      await rest.within(LAST_WORD, () => client.unfinished().length + server.unfinished().length === 0)
    }
    this.#over = true
    this.#carrier.close(reason ?? proxyError('shutting_down'))
    const closing = { urgent: this.#urgent }
    await Promise.allSettled([client.wire?.close(closing), server.wire?.close(closing)])
    // Over HTTP an upstream's absence ends nothing: it shows with each request.
    const absence = server.heard ? undefined : this.#carrier.unreached
    this.#end({ reason: reason ?? absence, served: server.heard })
  }

  #giveUp(): number {
    const { client, server } = this.#carrier
    const reason = proxyError('shutting_down')
    return this.#carrier.giveUp(client, reason, true) + this.#carrier.giveUp(server, reason, true)
  }

  #isDrained(): boolean {
    const { rest, client } = this.#carrier
    if (rest.active > 0) return false
    for (const it of client.requests.values()) if (it.request.origin.head.method !== LISTEN) return false
    return true
  }
}
