/**
 * Remembers the last value that was found good: the next request mostly says the same of itself, and need not be read
 * with such care again.
 */
export class LastGood<Value> {
  readonly #isGood: (value: Value) => boolean
  #last: { value: Value } | undefined

  constructor(isGood: (value: Value) => boolean) {
    this.#isGood = isGood
  }

  has(value: Value): boolean {
    if (this.#last !== undefined && this.#last.value === value) return true
    if (!this.#isGood(value)) return false
    this.#last = { value }
    return true
  }
}
