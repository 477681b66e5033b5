import { type Deferred, deferred } from '../deferred.js'

/** Bytes of messages that wait for room; past that one is refused. */
const MAX_HELD = 16 << 20

/** Holds messages of a client back while its upstream is behind: the source waits, as any other does. */
export class Room {
  #wait: Deferred | undefined
  #held = 0
  /** The call before. */
  #last = Promise.resolve(true)

  /** Whether one may enter without a wait: none waits. (The wait for nothing takes two promises for each message.) */
  get isClear(): boolean {
    return this.#wait === undefined && this.#held === 0
  }

  pause(): void {
    this.#wait ??= deferred()
  }

  resume(): void {
    this.#wait?.resolve()
    this.#wait = undefined
  }

  /** Resolves when there is room for so many bytes, in the order of the calls; with false where too many wait already. */
  enter(bytes: number): Promise<boolean> {
    if (this.#wait && this.#held + bytes > MAX_HELD) return Promise.resolve(false)
    this.#held += bytes
    this.#last = this.#last.then(async () => {
      while (this.#wait) await this.#wait.promise
      this.#held -= bytes
      return true
    })
    return this.#last
  }
}
