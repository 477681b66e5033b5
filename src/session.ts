import { EventEmitter } from 'node:events'

/** The two ends of the line. */
export type Side = 'client' | 'server'

export interface CallOptions {
  /** Gives the call up: it rejects with the signal's reason and the peer is told by `notifications/cancelled`. */
  signal?: AbortSignal
  /** Milliseconds after which the call is given up with -31002. @default none */
  timeout?: number
}

/** How a session ended. */
export interface Ending {
  /** Why, unless the client left or the application closed it; also where no request ever reached the upstream. */
  readonly reason?: Error
  /** Whether the upstream ever said anything. */
  readonly served: boolean
}

/** What the bridge does in a session's name. */
export interface SessionActions {
  notify(to: Side, method: string, params?: object): Promise<void>
  call(to: Side, method: string, params?: object, options?: CallOptions): Promise<Record<string, unknown>>
}

export interface SessionOptions {
  /** @default a UUID, made when somebody asks for it */
  id?: string
  upstream: string
  signal: AbortSignal
  principal?: string
  /** @default 'legacy', until a request says otherwise */
  era?: 'modern'
}

/** One client joined to one server. Emits `'restart'` when its upstream was replaced by a new one. */
export class Session extends EventEmitter<{ restart: [] }> {
  /** Shared by all messages of the session; yours to fill. */
  readonly state: Record<string, unknown> = {}
  /** Aborted when the session closes. */
  readonly signal: AbortSignal
  /** Who is at the client's end, where a listener authenticated it. */
  readonly principal?: string
  /** The upstream's name for logs: the command's base name, or the URL's origin and path. Never holds a secret. */
  readonly upstream: string
  /** What `initialize` settled on, or the version that modern requests carry in `_meta`. */
  protocolVersion?: string
  /** `modern` once a request said 2026-07-28 or later and no `initialize` was seen after it. */
  era: 'legacy' | 'modern' = 'legacy'
  readonly #actions: SessionActions
  #id: string | undefined

  /** @internal */
  constructor(options: SessionOptions, actions: SessionActions) {
    super()
    this.#id = options.id
    this.upstream = options.upstream
    this.signal = options.signal
    if (options.era !== undefined) this.era = options.era
    if (options.principal !== undefined) this.principal = options.principal
    this.#actions = actions
  }

  /** Unique in this process and hard to guess. */
  get id(): string {
    this.#id ??= crypto.randomUUID()
    return this.#id
  }

  /**
   * Sends a notification of the proxy's own down the whole line to one end.
   * @throws (rejects) where it could not be delivered.
   */
  notify(to: Side, method: string, params?: object): Promise<void> {
    return this.#actions.notify(to, method, params)
  }

  /**
   * Sends a request of the proxy's own down the whole line to one end and resolves with its result.
   * @throws (rejects) `RpcError` with the peer's error, or the proxy's own when there is no answer.
   */
  call(to: Side, method: string, params?: object, options?: CallOptions): Promise<Record<string, unknown>> {
    return this.#actions.call(to, method, params, options)
  }
}
