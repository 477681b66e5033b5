import koaCompose from 'koa-compose'
import type { Middleware, Next } from './context.js'

/** One middleware of a chain, without its place. */
export type Step<T> = (transit: T, next: Next) => unknown

/** Runs the steps in order, then `last`. */
export type Chain<T> = (transit: T, last: (transit: T) => unknown) => Promise<void>

/** koa-compose: each step awaits the next; a second `next()` of the same step rejects. */
export function compose<T>(steps: readonly Step<T>[]): Chain<T> {
  return koaCompose(steps) as Chain<T>
}

/**
 * The middleware of one line, and the chains between any two places of it. Places count from 0; the client is
 * at -1, the server at `size`. A chain towards the server runs in order, one towards the client in reverse.
 */
export class Stack<T> {
  readonly middleware: readonly Middleware[]
  readonly #steps: readonly Step<T>[]
  readonly #chains = new Map<number, Chain<T>>()

  /** `step` gives a middleware its place. */
  constructor(middleware: readonly Middleware[], step: (middleware: Middleware, place: number) => Step<T>) {
    this.middleware = middleware
    this.#steps = middleware.map(step)
  }

  get size(): number {
    return this.#steps.length
  }

  /** The chain between two places, both excluded; undefined where nothing lies between them. */
  between(from: number, to: number): Chain<T> | undefined {
    const count = Math.abs(to - from) - 1
    if (count <= 0) return undefined
    const key = (from + 1) * (this.size + 2) + to + 1
    let chain = this.#chains.get(key)
    if (chain === undefined) {
      const steps = from < to ? this.#steps.slice(from + 1, to) : this.#steps.slice(to + 1, from).reverse()
      chain = compose(steps)
      this.#chains.set(key, chain)
    }
    return chain
  }
}
