import koaCompose from 'koa-compose'
import type { Middleware, Next } from './context.js'

/** One middleware of a chain, without its place. */
export interface Step<T> {
  (transit: T, next: Next): unknown
  /** Whether it does anything but call `next()`. @default it may */
  concerns?(transit: T): boolean
}

/** Runs the steps in order, then `last`. */
export interface Chain<T> {
  (transit: T, last: (transit: T) => unknown): Promise<void>
  /** Whether any of its steps does anything. @default one may */
  concerns?(transit: T): boolean
}

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

  /** Whether the middleware at a place does anything but call `next()`. */
  concerns(place: number, transit: T): boolean {
    return this.#steps[place]?.concerns?.(transit) ?? true
  }

  /** The chain between two places, both excluded; undefined where nothing lies between them. */
  between(from: number, to: number): Chain<T> | undefined {
    const count = Math.abs(to - from) - 1
    if (count <= 0) return undefined
    const key = (from + 1) * (this.size + 2) + to + 1
    let chain = this.#chains.get(key)
    if (chain === undefined) {
      const steps = from < to ? this.#steps.slice(from + 1, to) : this.#steps.slice(to + 1, from).reverse()
      chain = chainOf(steps)
      this.#chains.set(key, chain)
    }
    return chain
  }
}

/** Neighbours that look at some messages only are one step for all others: 10 ns each, where one that is run costs 100. */
function chainOf<T>(steps: readonly Step<T>[]): Chain<T> {
  const grouped: Step<T>[] = []
  for (let start = 0; start < steps.length; ) {
    let end = start
    while (steps[end]?.concerns) end++
    grouped.push(end > start ? groupOf(steps.slice(start, end)) : steps[start]!)
    start = Math.max(end, start + 1)
  }
  return Object.assign(compose(grouped), grouped.length === 1 && { concerns: grouped[0]?.concerns })
}

function groupOf<T>(steps: readonly Step<T>[]): Step<T> {
  const chain = compose(steps)
  const concerns = (transit: T) => {
    for (const step of steps) if (step.concerns?.(transit)) return true
    return false
  }
  const group: Step<T> = (transit, next) => (concerns(transit) ? chain(transit, next) : next())
  return Object.assign(group, { concerns })
}
