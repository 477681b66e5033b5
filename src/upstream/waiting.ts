import type { RequestId } from '@modelcontextprotocol/sdk/types.js'
import { type Deferred, deferred } from '../deferred.js'
import { paramsMember, tokenValue } from '../message.js'
import type { FrameMeta } from '../wire.js'
import type { Scanned } from './recording.js'

/** A message on its way to the upstream. */
export interface Outgoing extends Scanned {
  readonly meta: FrameMeta | undefined
  /** Who waits until it is sent; undefined where it was, and was refused unread. */
  waiting?: Deferred
}

/** Messages that wait for the next upstream, in the order in which they are to be sent. */
export class Waiting {
  #messages: Outgoing[] = []
  /** What was refused before comes first. */
  readonly #refused = new WeakSet<Outgoing>()

  /** Resolves when it is sent, or nobody wants the answer any more. */
  add(it: Outgoing): Promise<void> {
    it.waiting = deferred()
    this.#messages.push(it)
    return it.waiting.promise
  }

  /** Takes what was sent and refused unread. False where it was so before: nothing is sent a third time. */
  addRefused(it: Outgoing): boolean {
    if (this.#refused.has(it)) return false
    this.#refused.add(it)
    it.waiting = undefined
    const first = this.#messages.findIndex((other) => !this.#refused.has(other))
    this.#messages.splice(first < 0 ? this.#messages.length : first, 0, it)
    return true
  }

  /** The next one; undefined where nothing waits. */
  take(): Outgoing | undefined {
    return this.#messages.shift()
  }

  putBack(it: Outgoing): void {
    this.#messages.unshift(it)
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

/** The id that a `notifications/cancelled` speaks of. */
export function cancelledBy({ frame, head }: Scanned): RequestId | undefined {
  const span = paramsMember(frame, head, 'requestId')
  return span && (tokenValue(frame, span) as RequestId)
}
