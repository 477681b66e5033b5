import { proxyError } from '../error.js'
import { timer } from '../rest.js'
import { Spare } from '../spare.js'
import type { CloseOptions, Wire } from '../wire.js'
import { SharedUpstream } from './shared.js'

/** Bytes that wait for sessions that do not read, beyond what each may hold anyway. */
const MAX_SPARE = 64 << 20

export interface PoolOptions {
  /** Makes the wire to a new child. */
  make: () => Wire
  /** Milliseconds that a child may be without a session. */
  idleTimeout: number
  /** How many children there may be. */
  max: number
}

interface Child {
  readonly shared: SharedUpstream
  idle: NodeJS.Timeout | undefined
  isOver: boolean
}

/** The children that serve stateless requests over stdio: one for each principal, so that none sees another's. */
export class Pool {
  readonly #options: PoolOptions
  readonly #children = new Map<string | undefined, Child>()
  /** Those that were told to end and have not yet. */
  readonly #ending = new Map<SharedUpstream, Promise<void>>()
  readonly #spare = new Spare(MAX_SPARE)
  #closed = false

  constructor(options: PoolOptions) {
    this.#options = options
  }

  /** @throws `RpcError` -31005 where there are too many children already, -31008 behind `close()` */
  tap(principal: string | undefined): Wire {
    if (this.#closed) throw proxyError('shutting_down')
    const child = this.#children.get(principal) ?? this.#add(principal)
    return child.shared.tap()
  }

  /** Ends all children. Call it again with `urgent` to hurry. */
  async close(options: CloseOptions = {}): Promise<void> {
    this.#closed = true
    for (const [principal, child] of [...this.#children]) this.#end(principal, child)
    if (options.urgent) for (const shared of this.#ending.keys()) void shared.close(options)
    await Promise.all(this.#ending.values())
  }

  #add(principal: string | undefined): Child {
    if (this.#children.size >= this.#options.max) {
      const idle = [...this.#children].find(([, child]) => child.idle !== undefined)
      if (idle) this.#end(...idle)
    }
    if (this.#children.size >= this.#options.max) throw proxyError('overloaded', { detail: 'too many children' })
    const child: Child = {
      shared: new SharedUpstream(
        this.#options.make(),
        () => this.#end(principal, child),
        (isIdle) => {
          clearTimeout(child.idle)
          const ends = isIdle && !child.isOver
          child.idle = ends ? timer(() => this.#end(principal, child), this.#options.idleTimeout) : undefined
        },
        this.#spare,
      ),
      idle: undefined,
      isOver: false,
    }
    this.#children.set(principal, child)
    return child
  }

  #end(principal: string | undefined, child: Child): void {
    if (child.isOver) return
    child.isOver = true
    this.#children.delete(principal)
    clearTimeout(child.idle)
    const ending = child.shared.close().finally(() => this.#ending.delete(child.shared))
    this.#ending.set(child.shared, ending)
  }
}
