/** Milliseconds to wait behind the first failure; each further one doubles them. */
const FIRST = 250
const LONGEST = 30_000
/** What a wait may be longer, as a part of it: whoever failed together does not come back together. */
const SPREAD = 0.2

/** When something that failed is to be tried again: 0.25 s later, twice as long behind each further failure, up to 30 s. */
export class Backoff {
  #failures = 0
  #until = 0
  #error: Error | undefined

  /** Milliseconds until the next try is due. */
  get wait(): number {
    return Math.max(0, this.#until - performance.now())
  }

  /** Why the last try failed, until one did not. */
  get error(): Error | undefined {
    return this.#error
  }

  failed(error: Error): void {
    const wait = FIRST * 2 ** this.#failures * (1 + SPREAD * Math.random())
    this.#until = performance.now() + Math.min(wait, LONGEST)
    this.#failures += 1
    this.#error = error
  }

  reset(): void {
    this.#failures = 0
    this.#until = 0
    this.#error = undefined
  }
}

/** What all who start one upstream know of its first starts. */
export class Opening extends Backoff {
  /** How many of those that were started work: while one does, whoever comes to nothing has only itself to blame. */
  working = 0
}
