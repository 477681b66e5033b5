import { proxyError } from '../error.js'
import { timer } from '../rest.js'
import type { CloseOptions, Wire } from '../wire.js'
import { SharedUpstream } from './shared.js'

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
}

/** The children that serve stateless requests over stdio: one for each principal, so that none sees another's. */
export class Pool {
  readonly #options: PoolOptions
  readonly #children = new Map<string | undefined, Child>()
  /** All that have not ended yet. */
  readonly #ending = new Set<Promise<void>>()
  readonly #wires = new Set<SharedUpstream>()
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
    for (const principal of [...this.#children.keys()]) this.#end(principal)
    if (options.urgent) for (const shared of this.#wires) void shared.close(options)
    await Promise.all(this.#ending)
  }

  #add(principal: string | undefined): Child {
    const idle = [...this.#children].find(([, child]) => child.idle !== undefined)
    if (this.#children.size >= this.#options.max && idle) this.#end(idle[0])
    if (this.#children.size >= this.#options.max) throw proxyError('overloaded', { detail: 'too many children' })
    const child: Child = {
      shared: new SharedUpstream(
        this.#options.make(),
        () => this.#end(principal, child),
        (isIdle) => {
          clearTimeout(child.idle)
          const isOver = this.#children.get(principal) !== child
          child.idle =
            isIdle && !isOver ? timer(() => this.#end(principal, child), this.#options.idleTimeout) : undefined
        },
      ),
      idle: undefined,
    }
    this.#children.set(principal, child)
    this.#wires.add(child.shared)
    return child
  }

  #end(principal: string | undefined, child = this.#children.get(principal)): void {
    if (!child) return
    if (this.#children.get(principal) === child) this.#children.delete(principal)
    clearTimeout(child.idle)
    const ending = child.shared.close().finally(() => {
      this.#ending.delete(ending)
      this.#wires.delete(child.shared)
    })
    this.#ending.add(ending)
  }
}
