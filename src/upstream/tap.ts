import { proxyError } from '../error.js'
import type { Spare } from '../spare.js'
import type { Frame, FrameMeta, Wire } from '../wire.js'

/** Bytes that wait for a session that does not read while others do, before it is given up so that it cannot stop them. */
const MAX_HELD = 16 << 20
/** What each may have of these whatever the others hold. */
const OWN = 1 << 20

/** What a tap is on. */
export interface TapSource {
  start(): Promise<void>
  send(frame: Frame): Promise<void>
  /** The session reads no more for now: 1; it reads on, or is over: -1. */
  pace(change: 1 | -1): void
  /** The session is over. */
  leave(): void
}

/** The part of a shared upstream that one session sees. */
export class Tap implements Wire {
  onframe?: Wire['onframe']
  onclose?: Wire['onclose']
  onerror?: Wire['onerror']
  readonly #source: TapSource
  readonly #spare: Spare
  readonly #held: { frame: Frame; meta: FrameMeta }[] = []
  #heldBytes = 0
  #spared = 0
  #paused = false
  #over = false
  /** Requests of the session that have no answer: its source counts them. */
  asked = 0

  /** `spare`: what sessions that do not read may hold beyond a MiB each, all together. */
  constructor(source: TapSource, spare: Spare) {
    this.#source = source
    this.#spare = spare
  }

  start(): Promise<void> {
    return this.#source.start()
  }

  send(frame: Frame): Promise<void> {
    return this.#source.send(frame)
  }

  async close(): Promise<void> {
    this.end()
  }

  pause(): void {
    if (this.#paused || this.#over) return
    this.#paused = true
    this.#source.pace(1)
  }

  resume(): void {
    this.#flow()
    while (!this.#paused && this.#held.length > 0) {
      const { frame, meta } = this.#held.shift()!
      this.#heldBytes -= frame.length
      this.onframe?.(frame, meta)
    }
    if (this.#held.length === 0) this.#giveBack()
  }

  #flow(): void {
    if (!this.#paused) return
    this.#paused = false
    this.#source.pace(-1)
  }

  /** The source is everybody's: for one that does not read it is not stopped where another does. */
  deliver(frame: Frame, meta: FrameMeta): void {
    if (!this.#paused && this.#held.length === 0) {
      this.onframe?.(frame, meta)
      return
    }
    this.#held.push({ frame, meta })
    this.#heldBytes += frame.length
    if (this.#isTooMuch()) this.end(proxyError('overloaded', { phase: 'sent', detail: 'it does not read' }))
  }

  #isTooMuch(): boolean {
    const more = this.#heldBytes - OWN - this.#spared
    if (more <= 0) return false
    if (this.#heldBytes > MAX_HELD || !this.#spare.take(more)) return true
    this.#spared += more
    return false
  }

  #giveBack(): void {
    this.#spare.give(this.#spared)
    this.#spared = 0
  }

  /** The child has ended: what it said before is still to be heard. */
  lose(reason: Error): void {
    this.resume()
    this.end(reason)
  }

  end(reason?: Error): void {
    if (this.#over) return
    this.#over = true
    this.#giveBack()
    this.#flow()
    this.#source.leave()
    this.onclose?.(reason)
  }
}
