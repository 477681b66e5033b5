import type { RequestId } from '@modelcontextprotocol/sdk/types.js'
import { type Deferred, deferred } from '../deferred.js'
import type { FrameMeta } from '../wire.js'
import type { Scanned } from './recording.js'

/** A message on its way to the upstream. */
export interface Outgoing extends Scanned {
  readonly meta: FrameMeta | undefined
  /** Which one it is of all. */
  readonly serial: number
  /** It was sent once, and refused unread. */
  isRefused?: boolean
  /** It had its outcome before it was sent. */
  isOver?: boolean
  /** Who waits until it is sent; undefined where it was, and was refused unread. */
  waiting?: Deferred
}

/** Messages that wait for the next upstream, in the order in which they came. */
export class Waiting {
  #messages: Outgoing[] = []

  /** Resolves when it is sent, or nobody wants the answer any more. */
  add(it: Outgoing): Promise<void> {
    it.waiting = deferred()
    this.put(it)
    return it.waiting.promise
  }

  /** Takes what was sent and refused unread. False where it was so before: nothing is sent a third time. */
  addRefused(it: Outgoing): boolean {
    if (it.isRefused) return false
    it.isRefused = true
    it.waiting = undefined
    this.put(it)
    return true
  }

  /** What came before it goes before it, whenever its upstream told that it has not taken it. */
  put(it: Outgoing): void {
    const before = this.#messages.findLastIndex(({ serial }) => serial < it.serial)
    this.#messages.splice(before + 1, 0, it)
  }

  /** The next one; undefined where nothing waits. */
  take(): Outgoing | undefined {
    return this.#messages.shift()
  }

  /** Nobody wants the answer to a request any more. */
  withdraw(id: RequestId | undefined): void {
    const it = this.#messages.find(({ head }) => head.kind === 'request' && head.id === id)
    if (!it) return
    this.#messages = this.#messages.filter((other) => other !== it)
    it.waiting?.resolve()
  }

  /** Nothing waits any longer. */
  giveUp(give: (it: Outgoing) => void): void {
    for (const it of this.#messages.splice(0)) give(it)
  }
}
