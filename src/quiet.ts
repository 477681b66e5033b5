import { Ledger } from './ledger.js'
import { LONGEST_TIMER } from './rest.js'

export interface Quiet {
  /** It has been quiet for too long. */
  late(): void
}

/**
 * Tells those that have been quiet for some time, the same for all: so one timer does for them. (One of its own for each
 * request costs a microsecond, and what the timer refers to.) It keeps no process alive. 0 milliseconds are off.
 */
export class Silence {
  readonly #milliseconds: number
  /** The longest first. */
  readonly #quiet = new Ledger<number, { it: Quiet; since: number }>()
  #serial = 0
  #timer: NodeJS.Timeout | undefined

  constructor(milliseconds: number) {
    this.#milliseconds = Math.min(milliseconds, LONGEST_TIMER)
  }

  /** Gives the number under which it ends. */
  begin(it: Quiet): number {
    this.#serial += 1
    if (this.#milliseconds === 0) return this.#serial
    this.#quiet.set(this.#serial, { it, since: performance.now() })
    this.#timer ??= setTimeout(this.#look, this.#milliseconds).unref()
    return this.#serial
  }

  end(number: number): void {
    this.#quiet.delete(number)
  }

  readonly #look = () => {
    this.#timer = undefined
    const now = performance.now()
    for (const [number, { it, since }] of this.#quiet.entries()) {
      const left = since + this.#milliseconds - now
      if (left > 0) {
        this.#timer = setTimeout(this.#look, left).unref()
        return
      }
      if (this.#quiet.delete(number)) it.late()
    }
  }
}
