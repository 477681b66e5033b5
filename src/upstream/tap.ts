import { proxyError } from '../error.js'
import type { Frame, FrameMeta, Wire } from '../wire.js'

/** Bytes that wait for a session that does not read, before it is given up so that it cannot stop the others. */
const MAX_HELD = 16 << 20

/** What a tap is on. */
export interface TapSource {
  start(): Promise<void>
  send(frame: Frame): Promise<void>
  /** The session is over. */
  leave(): void
}

/** The part of a shared upstream that one session sees. */
export class Tap implements Wire {
  onframe?: Wire['onframe']
  onclose?: Wire['onclose']
  onerror?: Wire['onerror']
  readonly #source: TapSource
  readonly #held: { frame: Frame; meta: FrameMeta }[] = []
  #heldBytes = 0
  #paused = false
  #over = false

  constructor(source: TapSource) {
    this.#source = source
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
    this.#paused = true
  }

  resume(): void {
    this.#paused = false
    while (!this.#paused && this.#held.length > 0) {
      const { frame, meta } = this.#held.shift()!
      this.#heldBytes -= frame.length
      this.onframe?.(frame, meta)
    }
  }

  /** The source is everybody's: for one that does not read it is not stopped. */
  deliver(frame: Frame, meta: FrameMeta): void {
    if (!this.#paused && this.#held.length === 0) {
      this.onframe?.(frame, meta)
      return
    }
    this.#held.push({ frame, meta })
    this.#heldBytes += frame.length
    if (this.#heldBytes > MAX_HELD) this.end(proxyError('overloaded', { phase: 'sent', detail: 'it does not read' }))
  }

  /** The child has ended: what it said before is still to be heard. */
  lose(reason: Error): void {
    this.resume()
    this.end(reason)
  }

  end(reason?: Error): void {
    if (this.#over) return
    this.#over = true
    this.#source.leave()
    this.onclose?.(reason)
  }
}
