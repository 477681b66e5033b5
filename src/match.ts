import type {
  Context,
  Kind,
  Middleware,
  Next,
  NotificationContext,
  NotificationMethod,
  RequestContext,
  RequestMethod,
  ResponseContext,
} from './context.js'
import { deferred } from './deferred.js'
import { define } from './define.js'

/** A method, several, or none for all. */
export type Methods<M extends string> = M | readonly M[]

type AnyRequest = RequestMethod | (string & {})
type AnyNotification = NotificationMethod | (string & {})

function matches(methods: Methods<string> | undefined, method: string | undefined): boolean {
  if (methods === undefined) return true
  if (method === undefined) return false
  return typeof methods === 'string' ? methods === method : methods.includes(method)
}

/** Whether a middleware looks at messages of a kind and method. It calls `next()`, and no more, on all others. */
type Concern = (kind: Kind, method: string | undefined) => boolean

const concerns = new WeakMap<Middleware<never>, Concern>()

/** What a middleware looks at, where that is known. */
export function concernOf(middleware: Middleware): Concern | undefined {
  return concerns.get(middleware)
}

/** Errors name the handler. */
function concerned<State extends object>(
  concern: Concern,
  handler: { name: string },
  middleware: Middleware<State>,
): Middleware<State> {
  concerns.set(middleware, concern)
  return define({ name: handler.name }, middleware)
}

/**
 * Runs a handler on requests of the given methods; everything else passes.
 *
 * @example onRequest('tools/call', (ctx, next) => allowed(ctx.params.name) ? next() : ctx.throw(-31006, 'Denied'))
 */
export function onRequest<M extends AnyRequest, State extends object = object>(
  methods: Methods<M> | undefined,
  handler: (ctx: RequestContext<M, State>, next: Next) => unknown,
): Middleware<State> {
  const concern: Concern = (kind, method) => kind === 'request' && matches(methods, method)
  return concerned(concern, handler, (ctx, next) => {
    if (!concern(ctx.kind, ctx.method)) return next()
    return handler(ctx as RequestContext<M, State>, next)
  })
}

/** Runs a handler on notifications of the given methods; everything else passes. */
export function onNotification<M extends AnyNotification, State extends object = object>(
  methods: Methods<M> | undefined,
  handler: (ctx: NotificationContext<M, State>, next: Next) => unknown,
): Middleware<State> {
  const concern: Concern = (kind, method) => kind === 'notification' && matches(methods, method)
  return concerned(concern, handler, (ctx, next) => {
    if (!concern(ctx.kind, ctx.method)) return next()
    return handler(ctx as NotificationContext<M, State>, next)
  })
}

/** Runs a handler on responses to requests of the given methods; everything else passes. */
export function onResponse<M extends AnyRequest, State extends object = object>(
  methods: Methods<M> | undefined,
  handler: (ctx: ResponseContext<M, State>, next: Next) => unknown,
): Middleware<State> {
  const concern: Concern = (kind, method) => kind === 'response' && matches(methods, method)
  return concerned(concern, handler, (ctx, next) => {
    if (!concern(ctx.kind, ctx.method) || !ctx.request) return next()
    return handler(ctx as ResponseContext<M, State>, next)
  })
}

/** A handler that sleeps between a request and its response. */
interface Sleeper<State extends object> {
  wake(response: Context<State>): void
  /** Settles when the handler has finished. */
  readonly done: Promise<unknown>
}

/**
 * Runs a handler around a request and its response, like an onion. `await next()` sends the request on and
 * resolves with the response on its way back, at this very place; the lane is free while the handler sleeps.
 *
 * `next()` rejects when the request could not be delivered, is cancelled, or the session closes. If the handler
 * throws while it sleeps (a timeout), the request is failed and the late answer swallowed.
 *
 * @example
 * onExchange('tools/call', async (request, next) => {
 *   const started = performance.now()
 *   await next()
 *   console.error(request.params.name, performance.now() - started)
 * })
 */
export function onExchange<M extends AnyRequest, State extends object = object>(
  methods: Methods<M> | undefined,
  handler: (request: RequestContext<M, State>, next: () => Promise<ResponseContext<M, State>>) => unknown,
): Middleware<State> {
  /** By the state that a request shares with its response. */
  const sleeping = new Map<object, Sleeper<State>>()
  const concern: Concern = (kind, method) => kind !== 'notification' && matches(methods, method)
  return concerned(concern, handler, async (ctx, next) => {
    if (ctx.kind === 'response') {
      const sleeper = sleeping.get(ctx.state)
      if (!sleeper) return next()
      sleeper.wake(ctx)
      await sleeper.done
      return ctx.settled ? undefined : next()
    }
    if (ctx.kind !== 'request' || !matches(methods, ctx.method)) return next()
    const request = ctx as RequestContext<M, State>
    const { state } = ctx
    const answer = deferred<ResponseContext<M, State>>()
    const asleep = deferred<void>()
    const over = deferred<void>()
    let awake = () => {}
    let sent: Promise<void> | undefined
    let woken = false
    let refused = false
    let finished = false

    const done = (async () =>
      handler(request, () => {
        if (sent) return Promise.reject(new Error('next() called multiple times'))
        sleeping.set(state, {
          done: over.promise,
          wake(response) {
            woken = true
            answer.resolve(response as ResponseContext<M, State>)
          },
        })
        awake = ctx.whenAborted(answer.reject)
        sent = next()
        asleep.resolve()
        return answer.promise
      }))()
    const finish = () => {
      finished = true
      sleeping.delete(state)
      awake()
    }
    done.then(
      () => {
        finish()
        over.resolve()
      },
      (error: unknown) => {
        finish()
        over.reject(error)
        if (sent && !woken && !refused) failLate(request, error)
      },
    )

    await Promise.race([asleep.promise, done])
    if (!sent) return done
    try {
      await sent
    } catch (error) {
      answer.reject(error)
      if (ctx.settled) return
      refused = true
      if (finished) throw error
      return done
    }
  })
}

/** A handler threw in its sleep: the request gets its error now, unless it has its outcome already. */
function failLate(request: Context, error: unknown): void {
  try {
    void request.fail(error instanceof Error ? error : new Error(String(error)))
  } catch {
    // The request was cancelled or the session closed meanwhile: its outcome stands.
  }
}
