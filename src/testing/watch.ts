import { AsyncLocalStorage, createHook } from 'node:async_hooks'

interface Handle {
  hasRef?(): boolean
  /** Of a timer: it has fired, or was cleared. */
  _destroyed?: boolean
}

/** What comes and goes by itself. */
const EPHEMERAL = new Set(['PROMISE', 'TickObject', 'Microtask', 'Immediate'])
const printing = ['log', 'info', 'debug', 'dir', 'table'] as const

/**
 * Keeps an eye on what runs inside it, and on nothing else: a test runner in the same process prints and sets timers,
 * too.
 */
export class Watch {
  /** What was written to stdout. */
  readonly printed: string[] = []
  readonly #inside = new AsyncLocalStorage<this>()
  readonly #handles: { type: string; handle: Handle }[] = []
  // Without `destroy`, which would have the garbage collector tell of every promise.
  readonly #hook = createHook({
    init: (_id, type, _trigger, resource) => {
      if (!EPHEMERAL.has(type) && this.#isInside) this.#handles.push({ type, handle: resource as Handle })
    },
  })

  get #isInside(): boolean {
    return this.#inside.getStore() === this
  }

  /** Timers, servers, watchers, … that keep the process from ending. */
  get left(): string[] {
    return this.#handles
      .filter(({ handle }) => handle.hasRef?.() === true && !handle._destroyed)
      .map(({ type }) => type)
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
