import type { JSONRPCMessage } from '@modelcontextprotocol/sdk/types.js'
import type { Application } from '../application.js'
import { type Bridge, bridgeOf } from '../bridge.js'
import type { Session, Side } from '../session.js'
import type { Frame, FrameMeta, Wire } from '../wire.js'
import { currentClock } from './clock.js'
import { bytesOf, textOf, type Written } from './messages.js'
import { Actor, type Answering, type Script } from './script.js'

// A test that fakes timers must still be able to wait for the proxy.
const { setImmediate } = globalThis

/** Lets everything that is ready run. */
export const turn = () => new Promise((resolve) => setImmediate(resolve))

/** Turns of the event loop without a move after which a message, or an answer, is waiting for the test. */
const PATIENCE = 20

export interface Ends {
  /** What the client answers, and hears, by itself. @default nothing: the test plays it */
  client?: Script | Answering
  /** What the server answers, and hears, by itself. @default nothing: the test plays it */
  server?: Script | Answering
  /** Who is at the client's end, as a listener would have found out. */
  principal?: string
}

export type Step = 'fromClient' | 'toServer' | 'fromServer' | 'toClient'

/** One session whose two ends are played. */
export class Stage {
  readonly session: Session
  readonly bridge: Bridge
  /** All that was said, in its order. */
  readonly log: { step: Step; text: string }[] = []
  readonly #ends: Record<Side, PlayedWire>
  readonly #actors: Actor[]

  constructor(app: Application<never> | Application, { client, server, principal }: Ends = {}) {
    const actor = (side: Side, script: Ends['client']) =>
      script && new Actor(side, script, (message) => this.#hear(side, message))
    const actors = { client: actor('client', client), server: actor('server', server) }
    const wire = (side: Side) =>
      new PlayedWire((frame) => {
        const text = new TextDecoder().decode(frame)
        this.log.push({ step: side === 'client' ? 'toClient' : 'toServer', text })
        actors[side]?.take(JSON.parse(text) as JSONRPCMessage)
      })
    this.#actors = [actors.client, actors.server].filter((it) => it !== undefined)
    this.#ends = { client: wire('client'), server: wire('server') }
    this.session = app.connect(this.#ends.client, this.#ends.server, { principal })
    const bridge = bridgeOf(this.session)
    if (!bridge) throw new Error('expected a session of this package')
    this.bridge = bridge
  }

  /** One end says something. */
  async say(side: Side, message: Written, meta?: FrameMeta): Promise<void> {
    await this.#ends[side].started
    this.#hear(side, message, meta)
  }

  #hear(side: Side, message: Written, meta?: FrameMeta): void {
    this.log.push({ step: side === 'client' ? 'fromClient' : 'fromServer', text: textOf(message) })
    this.#ends[side].onframe?.(bytesOf(message), meta)
  }

  /** One end is gone. */
  async leave(side: Side, reason?: Error): Promise<void> {
    await this.#ends[side].started
    this.#ends[side].onclose?.(reason)
  }

  /**
   * Resolves once every message has left or waits for a peer, or for the test's clock.
   *
   * @throws (rejects) what a script threw, unless it was an `RpcError`
   */
  async settle(): Promise<void> {
    let still = 0
    while (still < PATIENCE) {
      const { length } = this.log
      const clock = currentClock()
      if (!clock) await this.bridge.quiet()
      await turn()
      const { isQuiet } = this.bridge
      if (this.log.length !== length || isReading()) still = 0
      else if (isQuiet && !this.#actors.some((it) => it.pending > 0)) break
      else if (isQuiet || (clock && clock.timers > 0)) still++
    }
    for (const { failures } of this.#actors) if (failures.length > 0) throw failures.shift()
  }
}

/** A file is being read or written, a name looked up: what waits for that does not wait for the test. */
function isReading(): boolean {
  return process.getActiveResourcesInfo().some((it) => /^(?:FSReq|CloseReq|GetAddrInfoReq)/.test(it))
}

class PlayedWire implements Wire {
  onframe?: (frame: Frame, meta?: FrameMeta) => void
  onclose?: (reason?: Error) => void
  readonly started: Promise<void>
  readonly send: (frame: Frame) => void
  #begin!: () => void

  constructor(send: (frame: Frame) => void) {
    this.send = send
    this.started = new Promise((resolve) => {
      this.#begin = resolve
    })
  }

  start(): void {
    this.#begin()
  }

  async close(): Promise<void> {}
  pause(): void {}
  resume(): void {}
}
