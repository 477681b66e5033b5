/** Keys of removed entries that are kept, unless there are more entries than that. */
const STRUCK = 64

/**
 * A Map for what comes and goes, as requests do. A Map of V8's moves its entries into a new table when many were removed,
 * and the old table points to the new one. Once one table is in the old generation of the heap, all that come behind it get
 * there too, with all that stood in them when they were left: of 70 µs that a request over HTTP took, 20 went into
 * copying what was long dead. Here a removed entry leaves its key behind, and what is left moves into another Map in time,
 * to which nothing old points. A key should be a number or a text: a few of those that went are kept.
 */
export class Ledger<Key, Value extends NonNullable<unknown>> {
  #entries = new Map<Key, Value | undefined>()
  #struck = 0

  get size(): number {
    return this.#entries.size - this.#struck
  }

  get(key: Key): Value | undefined {
    return this.#entries.get(key)
  }

  has(key: Key): boolean {
    return this.#entries.get(key) !== undefined
  }

  set(key: Key, value: Value): void {
    if (this.#entries.get(key) === undefined) {
      // It stands behind all others now, even where its key is left from before.
      if (this.#entries.delete(key)) this.#struck -= 1
      if (this.#struck >= STRUCK && this.#struck >= this.size) this.#move()
    }
    this.#entries.set(key, value)
  }

  /** Tells whether there was one. */
  delete(key: Key): boolean {
    if (this.#entries.get(key) === undefined) return false
    this.#entries.set(key, undefined)
    this.#struck += 1
    return true
  }

  clear(): void {
    this.#entries = new Map()
    this.#struck = 0
  }

  /** As they are now, the oldest first. */
  keys(): Key[] {
    return this.entries().map(([key]) => key)
  }

  /** As they are now, the oldest first. */
  values(): Value[] {
    return this.entries().map(([, value]) => value)
  }

  /** As they are now, the oldest first. */
  entries(): [Key, Value][] {
    return [...this.#entries].filter((it): it is [Key, Value] => it[1] !== undefined)
  }

  #move(): void {
    this.#entries = new Map(this.entries())
    this.#struck = 0
  }
}
