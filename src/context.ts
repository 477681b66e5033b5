import type {
  CallToolResult,
  ClientNotification,
  ClientRequest,
  CompleteResult,
  CreateMessageResult,
  ElicitResult,
  GetPromptResult,
  InitializeResult,
  JSONRPCMessage,
  ListPromptsResult,
  ListResourcesResult,
  ListResourceTemplatesResult,
  ListRootsResult,
  ListToolsResult,
  ReadResourceResult,
  RequestId,
  ServerNotification,
  ServerRequest,
} from '@modelcontextprotocol/sdk/types.js'
import { RpcError } from './error.js'
import type { Message } from './message.js'
import type { CallOptions, Session, Side } from './session.js'
import type { FrameMeta } from './wire.js'

export type Direction = 'client-to-server' | 'server-to-client'
export type Kind = 'request' | 'notification' | 'response'

/** Hands the message on; resolves once it has left the proxy, rejects where it could not be delivered. */
export type Next = () => Promise<void>

/**
 * Sees every message that passes its place on the line, in both directions. What it returns is awaited and
 * otherwise ignored; what it throws becomes the request's error.
 */
export type Middleware<State extends object = object> = (ctx: Context<State>, next: Next) => unknown

export type ErrorObject = { code: number; message: string; data?: unknown }
export type Params = Record<string, unknown>
export type Result = Record<string, unknown>

type KnownRequest = ClientRequest | ServerRequest
type KnownNotification = ClientNotification | ServerNotification
/** The methods this package has types for. Any other passes just the same. */
export type RequestMethod = KnownRequest['method']
export type NotificationMethod = KnownNotification['method']

interface Results {
  initialize: InitializeResult
  'tools/list': ListToolsResult
  'tools/call': CallToolResult
  'prompts/list': ListPromptsResult
  'prompts/get': GetPromptResult
  'resources/list': ListResourcesResult
  'resources/templates/list': ListResourceTemplatesResult
  'resources/read': ReadResourceResult
  'completion/complete': CompleteResult
  'sampling/createMessage': CreateMessageResult
  'elicitation/create': ElicitResult
  'roots/list': ListRootsResult
}

type ByMethod<Known extends { method: string }, M extends string> =
  Extract<Known, { method: M }> extends { params?: infer P } ? P : Params | undefined

/** The type of `params` of a method, where it is known. */
export type ParamsOf<M extends string> = string extends M
  ? Params | undefined
  : M extends RequestMethod
    ? ByMethod<KnownRequest, M>
    : M extends NotificationMethod
      ? ByMethod<KnownNotification, M>
      : Params | undefined

/** The type of `result` of a method, where it is known. */
export type ResultOf<M extends string> = M extends keyof Results ? Results[M] : Result

export type RequestContext<M extends string = string, State extends object = object> = Context<State> & {
  readonly kind: 'request'
  readonly id: RequestId
  readonly method: M
  params: ParamsOf<M>
}

export type NotificationContext<M extends string = string, State extends object = object> = Context<State> & {
  readonly kind: 'notification'
  readonly method: M
  params: ParamsOf<M>
}

export type ResponseContext<M extends string = string, State extends object = object> = Context<State> & {
  readonly kind: 'response'
  readonly method: M
  readonly request: RequestContext<M, State>
  result: ResultOf<M> | undefined
}

/** One message on its way down the line, as its contexts see it. The bridge implements it. */
export interface Transit {
  readonly session: Session
  readonly direction: Direction
  readonly timestamp: number
  readonly extra: FrameMeta
  readonly key: string
  readonly state: object
  /** As it came. */
  readonly origin: Message
  /** As it stands now. */
  message: Message
  /** The place that may change it: entered last, and `next()` not called there yet. */
  readonly holder: number | undefined
  /** Delivered, replied to, failed, dropped or cancelled. */
  readonly settled: boolean
  /** Of a middleware; undefined where none is at that place. */
  nameOf(place: number): string | undefined
  /** The holder has the parsed message and may have changed it. */
  touched: boolean
  signal(place: number): AbortSignal
  /** Of a request: calls back when that signal is aborted, or is already. Gives what ends it. */
  whenAborted(place: number, callback: (reason: unknown) => void): () => void
  /** Of a response: the request that it answers, as this place saw it arrive. */
  request(place: number): Context | undefined
  reply(place: number, result: object | undefined): Promise<void>
  fail(place: number, error: ErrorObject | Error): Promise<void>
  drop(place: number): void
  stepAside(): void
  notify(place: number, to: Side, method: string, params?: object): Promise<void>
  call(place: number, to: Side, method: string, params?: object, options?: CallOptions): Promise<Result>
}

/** A message at one place of the line. Each middleware gets its own. */
export class Context<State extends object = object> {
  readonly #transit: Transit
  readonly #place: number
  readonly #arrived: Message
  readonly #isPast: boolean
  #value: JSONRPCMessage | undefined
  #request: Context | undefined

  /** @internal With the message as this place saw it, where that has been handed on: what is done to it changes nothing. */
  constructor(transit: Transit, place: number, past?: Message) {
    this.#transit = transit
    this.#place = place
    this.#arrived = past ?? transit.message
    this.#isPast = past !== undefined
  }

  /**
   * The message, parsed when it is first asked for. Change it in place or assign another; what changed is sent
   * and keeps the bytes of what did not. Its kind and its id cannot be changed.
   */
  get message(): JSONRPCMessage {
    if (this.#isHeld) this.#transit.touched = true
    this.#value ??= this.#isPast ? this.#arrived.copy().value : this.#arrived.value
    return this.#value
  }

  /** @throws after `next()`: nothing would come of it. So do `params` and `result`. */
  set message(message: JSONRPCMessage) {
    this.#transit.message.replace(this.#changing(message))
    this.#value = message
  }

  get #isHeld(): boolean {
    return this.#transit.holder === this.#place && this.#transit.message.head === this.#arrived.head
  }

  #changing<T>(value: T): T {
    if (!this.#isHeld) throw new Error('the message was handed on already: change it before next()')
    this.#transit.touched = true
    return value
  }

  /** The text as it came to the proxy. */
  get raw(): string {
    return this.#transit.origin.text
  }

  /** The text as it came to this place: what the middleware before it changed is in it. */
  get text(): string {
    return this.#arrived.text
  }

  /** The name of the middleware that this context is of, if its function has one. */
  get middleware(): string | undefined {
    return this.#transit.nameOf(this.#place) || undefined
  }

  get direction(): Direction {
    return this.#transit.direction
  }

  /** The end that sent it. */
  get from(): Side {
    return this.#transit.direction === 'client-to-server' ? 'client' : 'server'
  }

  get kind(): Kind {
    return this.#arrived.head.kind
  }

  get session(): Session {
    return this.#transit.session
  }

  /** Shared by a request and its response. Its keys are optional: nobody logged in on a server's notification. */
  get state(): Partial<State> {
    return this.#transit.state as Partial<State>
  }

  /** Of a response: the request that it answers, as this place saw it arrive. */
  get request(): Context<State> | undefined {
    this.#request ??= this.#transit.request(this.#place)
    return this.#request as Context<State> | undefined
  }

  /** Aborted when the sender cancels the request, a middleware before this one answers it, or the session closes. */
  get signal(): AbortSignal {
    return this.#transit.signal(this.#place)
  }

  /** @internal What a listener on `signal` does, without a signal: each costs Node as much as ten messages cost us. */
  whenAborted(callback: (reason: unknown) => void): () => void {
    return this.#transit.whenAborted(this.#place, callback)
  }

  /** What the transport knows of the message beside its bytes: HTTP status and headers, `authInfo`. */
  get extra(): FrameMeta {
    return this.#transit.extra
  }

  /** When it arrived: milliseconds since 1970, with fractions. */
  get timestamp(): number {
    return this.#transit.timestamp
  }

  /** `0`, `""`, `1` and `"1"` are four different ids. Undefined on a notification and on an error without id. */
  get id(): RequestId | undefined {
    return this.#arrived.head.id
  }

  /** On a response: the method of its request. */
  get method(): string | undefined {
    if (this.kind === 'response') return this.request?.method
    if (this.#value) return (this.#value as { method?: string }).method
    return this.#arrived.head.method
  }

  /** Of the tool or prompt (`params.name`), else the resource (`params.uri`). On a response: its request's. */
  get name(): string | undefined {
    if (this.kind === 'response') return this.request?.name
    if (!this.#value) return this.#arrived.head.name
    const params = (this.#value as { params?: Params }).params
    const name = params?.name ?? params?.uri
    return typeof name === 'string' ? name : undefined
  }

  /** On a response: the params of its request are at `ctx.request.params`. */
  get params(): Params | undefined {
    return (this.message as { params?: Params }).params
  }

  set params(params: Params | undefined) {
    ;(this.message as { params?: Params }).params = this.#changing(params)
  }

  get result(): Result | undefined {
    return (this.message as { result?: Result }).result
  }

  set result(result: Result | undefined) {
    ;(this.message as { result?: Result }).result = this.#changing(result)
  }

  /** Of an error response. */
  get error(): ErrorObject | undefined {
    if (!this.#value && !this.#arrived.head.isError) return undefined
    return (this.message as { error?: ErrorObject }).error
  }

  /** It was delivered, replied to, failed, dropped or cancelled: `next()` has nothing left to hand on. */
  get settled(): boolean {
    return this.#transit.settled
  }

  /** Unique per message; a response's `request` has the key of its request. */
  get key(): string {
    return this.#transit.key
  }

  isRequest<M extends RequestMethod | (string & {}) = string>(method?: M): this is RequestContext<M, State> {
    return this.kind === 'request' && (method === undefined || this.method === method)
  }

  isNotification<M extends NotificationMethod | (string & {}) = string>(
    method?: M,
  ): this is NotificationContext<M, State> {
    return this.kind === 'notification' && (method === undefined || this.method === method)
  }

  isResponse<M extends RequestMethod | (string & {}) = string>(method?: M): this is ResponseContext<M, State> {
    return this.kind === 'response' && (method === undefined || this.method === method)
  }

  /**
   * Answers the request from this place: the result walks back through the middleware before it. On a response:
   * takes its place. Resolves when it has left; never rejects.
   * @throws where the message is a notification, or has its outcome already.
   */
  reply(result?: object): Promise<void> {
    return this.#transit.reply(this.#place, result)
  }

  /**
   * Answers the request with an error from this place. An `RpcError` or error object reaches the peer as it is,
   * any other error as -32603 without its text. On a response: takes its place.
   * @throws where the message is a notification, or has its outcome already.
   */
  fail(error: ErrorObject | Error): Promise<void> {
    return this.#transit.fail(this.#place, error)
  }

  /** Lets a notification vanish. Who waits for the answer of a dropped request, or for a dropped response, is told -31006. */
  drop(): void {
    this.#transit.drop(this.#place)
  }

  /** Throws an error that is meant for the peer. */
  throw(code: number, message: string, data?: unknown): never {
    throw new RpcError(code, message, data)
  }

  /** Sends a notification of the proxy's own from this place to one end. Rejects where it could not be delivered. */
  notify(to: Side, method: string, params?: object): Promise<void> {
    return this.#transit.notify(this.#place, to, method, params)
  }

  /**
   * Sends a request of the proxy's own from this place to one end; its answer walks back to this place.
   * @throws (rejects) `RpcError` with the peer's error, or the proxy's own when there is no answer; a `TypeError`
   * for `'client'` in a modern session, whose clients take no requests (2026-07-28, basic/transports).
   */
  call<M extends RequestMethod | (string & {})>(
    to: Side,
    method: M,
    params?: object,
    options?: CallOptions,
  ): Promise<ResultOf<M>> {
    return this.#transit.call(this.#place, to, method, params, options) as Promise<ResultOf<M>>
  }

  /** Gives up the message's turn for good: it leaves when it is ready and holds up nobody until then. */
  stepAside(): void {
    this.#transit.stepAside()
  }

  /** What a log may hold: no params, no result. */
  toJSON(): Record<string, unknown> {
    const { direction, kind, id, method, name } = this
    return { session: this.session.id, direction, kind, id, method, name }
  }
}
