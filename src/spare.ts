/** Bytes that may wait for readers beyond what each has of its own, for all of them together. */
export class Spare {
  #left: number

  constructor(bytes: number) {
    this.#left = bytes
  }

  /** Whether there were so many left. */
  take(bytes: number): boolean {
    if (bytes > this.#left) return false
    this.#left -= bytes
    return true
  }

  give(bytes: number): void {
    this.#left += bytes
  }
}
