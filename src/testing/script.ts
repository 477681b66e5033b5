import type { JSONRPCMessage, JSONRPCNotification, JSONRPCRequest, RequestId } from '@modelcontextprotocol/sdk/types.js'
import type { ErrorObject, NotificationMethod, Params, ParamsOf, RequestMethod, Result, ResultOf } from '../context.js'
import { METHOD_NOT_FOUND, RpcError } from '../error.js'
import type { Side } from '../session.js'
import { error, notification, request, result, type Written, type WrittenParams } from './messages.js'

/** A scripted end in the middle of an answer. */
export interface Player {
  /** The whole message that it answers. */
  readonly message: JSONRPCRequest | JSONRPCNotification
  /** Aborted when the other end cancels the request; no answer is sent then. */
  readonly signal: AbortSignal
  /** Says something before the answer. */
  notify<M extends NotificationMethod | (string & {})>(method: M, params?: WrittenParams<M>): void
  /** `notifications/progress` under the request's own token; nothing where it has none. */
  progress(progress: number, total?: number): void
  /** Asks the other end. @throws (rejects) `RpcError` with its error */
  call<M extends RequestMethod | (string & {})>(method: M, params?: WrittenParams<M>): Promise<ResultOf<M>>
}

// As a method: what knows the params of its method is an answer to any method.
type Handler<P, R> = { handle(params: P, player: Player): R | Promise<R> }['handle']
type Answered<M extends string> = ResultOf<M> | (Result & { resultType: string })
type Answer<M extends string> = Answered<M> | Handler<ParamsOf<M>, Answered<M>>

/**
 * What an end says by itself: to each method its result, or a function that makes it. The function may take its time,
 * and throw an `RpcError`. What is not in the script is answered with -32601. A function for a notification hears it.
 */
export type Script = { [M in RequestMethod]?: Answer<M> } & {
  [M in NotificationMethod]?: Handler<ParamsOf<M>, unknown>
} & { [method: string]: Handler<Params | undefined, unknown> | object | undefined }

/** Answers any request. */
export type Answering = (request: JSONRPCRequest, player: Player) => object | Promise<object>

/** One end that follows its script. */
export class Actor {
  /** What went wrong in the script itself, an assertion for one. */
  readonly failures: unknown[] = []
  /** Answers that are not given yet. */
  pending = 0
  readonly #side: Side
  readonly #answer: Answering
  readonly #hear: (message: JSONRPCNotification, player: Player) => unknown
  readonly #say: (message: Written) => void
  readonly #cancels = new Map<unknown, AbortController>()
  readonly #calls = new Map<unknown, (answer: { result?: Result; error?: ErrorObject }) => void>()
  #serial = 0

  constructor(side: Side, script: Script | Answering, say: (message: Written) => void) {
    this.#side = side
    this.#say = say
    const entry = (method: string) => (Object.hasOwn(script, method) ? (script as Script)[method] : undefined)
    this.#hear = (message, player) => run(entry(message.method), message.params, player)
    this.#answer =
      typeof script === 'function'
        ? script
        : ({ method, params }, player) => {
            if (entry(method) === undefined) throw new RpcError(METHOD_NOT_FOUND, `Method not found: ${method}`)
            return run(entry(method), params, player) as object
          }
  }

  /** Takes a message that came; what it says to it comes later. */
  take(message: JSONRPCMessage): void {
    if (!('method' in message)) this.#calls.get(message.id)?.(message as { result?: Result; error?: ErrorObject })
    else if ('id' in message) void this.#reply(message)
    else {
      if (message.method === 'notifications/cancelled') this.#cancels.get(message.params?.requestId)?.abort()
      void this.#attempt(() => this.#hear(message, this.#player(message, new AbortController().signal)))
    }
  }

  async #reply(message: JSONRPCRequest): Promise<void> {
    const cancel = new AbortController()
    this.#cancels.set(message.id, cancel)
    this.pending++
    const answer = await this.#attempt(async () =>
      result(message.id, await this.#answer(message, this.#player(message, cancel.signal))),
    )
    this.pending--
    this.#cancels.delete(message.id)
    if (cancel.signal.aborted) return
    if (answer instanceof RpcError) this.#say(error(message.id, answer.code, answer.message, answer.data))
    else this.#say(answer ?? error(message.id, -32603, 'Internal error'))
  }

  /** Never before whoever sent the message is done with it. */
  async #attempt<T>(attempt: () => T): Promise<Awaited<T> | RpcError | undefined> {
    await undefined
    try {
      return await attempt()
    } catch (error) {
      if (error instanceof RpcError) return error
      this.failures.push(error)
      return undefined
    }
  }

  #player(message: JSONRPCRequest | JSONRPCNotification, signal: AbortSignal): Player {
    return {
      message,
      signal,
      notify: (method: string, params?: object) => this.#say(notification(method, params as Params)),
      progress: (progress, total) => {
        const progressToken = message.params?._meta?.progressToken
        if (progressToken === undefined) return
        this.#say(
          notification('notifications/progress', {
            progressToken,
            progress,
            ...(total !== undefined && { total }),
          }),
        )
      },
      call: <M extends string>(method: M, params?: object) => {
        const id: RequestId = `${this.#side}-${++this.#serial}`
        return new Promise<ResultOf<M>>((resolve, reject) => {
          this.#calls.set(id, ({ error, result }) => {
            this.#calls.delete(id)
            if (error) reject(new RpcError(error.code, error.message, error.data))
            else resolve(result as ResultOf<M>)
          })
          this.#say(request(id, method as string, params as Params))
        })
      },
    }
  }
}

function run(entry: object | undefined, params: Params | undefined, player: Player): unknown {
  return typeof entry === 'function' ? entry(params, player) : entry
}
