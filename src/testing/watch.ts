import { AsyncLocalStorage, createHook } from 'node:async_hooks'

interface Handle {
  hasRef?(): boolean
}

const printing = ['log', 'info', 'debug', 'dir', 'table'] as const

/**
 * Keeps an eye on what runs inside it, and on nothing else: a test runner in the same process prints and sets timers,
 * too.
 */
export class Watch {
  /** What was written to stdout. */
  readonly printed: string[] = []
  readonly #inside = new AsyncLocalStorage<this>()
  readonly #handles = new Map<number, { type: string; handle: Handle }>()
  readonly #hook = createHook({
    init: (id, type, _trigger, resource) => {
      if (type !== 'Immediate' && this.#isInside) this.#handles.set(id, { type, handle: resource as Handle })
    },
    destroy: (id) => this.#handles.delete(id),
  })

  get #isInside(): boolean {
    return this.#inside.getStore() === this
  }

  /** Timers, servers, watchers, … that keep the process from ending. */
  get left(): string[] {
    return [...this.#handles.values()].filter(({ handle }) => handle.hasRef?.() === true).map(({ type }) => type)
  }

  async over<T>(run: () => Promise<T>): Promise<T> {
    this.#hook.enable()
    const restore = [this.#spy(process.stdout, 'write'), ...printing.map((method) => this.#spy(console, method))]
    try {
      return await this.#inside.run(this, run)
    } finally {
      for (const it of restore) it()
      this.#hook.disable()
    }
  }

  #spy<Key extends string>(target: Record<Key, (...args: never[]) => unknown>, method: Key): () => void {
    const original = target[method]
    target[method] = (...args: never[]) => {
      if (this.#isInside) this.printed.push(String(args[0]))
      return Reflect.apply(original, target, args)
    }
    return () => {
      target[method] = original
    }
  }
}
