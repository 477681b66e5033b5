/** Makes ids for the proxy's own requests. They cannot be guessed, so that no peer has one of its own like them. */
export class OwnIds {
  #prefix: string | undefined
  #serial = 0

  next(): string {
    this.#prefix ??= `omp-${crypto.randomUUID().slice(-12)}-`
    return `${this.#prefix}${++this.#serial}`
  }
}
