import { LONGEST_TIMER } from '../rest.js'

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
  /** Since when, the longest first. */
  readonly #quiet = new Map<Quiet, number>()
  #timer: NodeJS.Timeout | undefined

  constructor(milliseconds: number) {
    this.#milliseconds = Math.min(milliseconds, LONGEST_TIMER)
  }

  begin(it: Quiet): void {
    if (this.#milliseconds === 0) return
    this.#quiet.set(it, performance.now())
    this.#timer ??= setTimeout(this.#look, this.#milliseconds).unref()
  }

  end(it: Quiet): void {
    this.#quiet.delete(it)
  }

  readonly #look = () => {
    this.#timer = undefined
    const now = performance.now()
    for (const [it, since] of this.#quiet) {
      const left = since + this.#milliseconds - now
      if (left > 0) {
        this.#timer = setTimeout(this.#look, left).unref()
        return
      }
      this.#quiet.delete(it)
      it.late()
    }
  }
}
