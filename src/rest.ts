/** Node fires a timer longer than this after 1 ms. In milliseconds. */
export const LONGEST_TIMER = 2 ** 31 - 1

/** `setTimeout` for a time of any length, `Infinity` included: about 24 days at most. */
export function timer(callback: () => void, milliseconds: number): NodeJS.Timeout {
  return setTimeout(callback, Math.min(milliseconds, LONGEST_TIMER))
}

/** Counts what is on its way, so that others can wait until it has come to rest. */
export class Rest {
  #active = 0
  #waiting = 0
  #watchers: (() => void)[] = []

  /** Messages on their way down the line. */
  get active(): number {
    return this.#active
  }

  /** Whether whatever is on its way waits for a peer, a turn or a wire. */
  get isQuiet(): boolean {
    return this.#active <= this.#waiting
  }

  begin(): void {
    this.#active++
  }

  end(): void {
    this.#active--
    this.check()
  }

  /** What comes of a promise; until it settles, one message waits for something other than its own middleware. */
  waiting<T, R = T>(promise: Promise<T>, go?: (value: T) => R | PromiseLike<R>): Promise<R> {
    this.#waiting++
    this.check()
    return promise.then(
      (value) => {
        this.#waiting--
        return go ? go(value) : (value as never)
      },
      (error: unknown) => {
        this.#waiting--
        throw error
      },
    )
  }

  /** Resolves when a condition holds, which is looked at after everything that could make it so. */
  until(condition: () => boolean): Promise<void> {
    if (condition()) return Promise.resolve()
    return new Promise((resolve) => {
      const watch = () => {
        if (!condition()) return
        this.#watchers = this.#watchers.filter((it) => it !== watch)
        resolve()
      }
      this.#watchers.push(watch)
    })
  }

  /** The same, for so many milliseconds at most. */
  async within(milliseconds: number, condition: () => boolean): Promise<void> {
    let late = false
    const timeout = timer(() => {
      late = true
      this.check()
    }, milliseconds)
    await this.until(() => late || condition())
    clearTimeout(timeout)
  }

  check(): void {
    for (const watch of this.#watchers) watch()
  }
}
