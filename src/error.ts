/** Whether the upstream may have seen the request. `not_sent` means that it certainly has not. */
export type Phase = 'not_sent' | 'sent'

/** What went wrong inside the proxy, as it stands in `data.reason` of its own errors. */
export type Reason = keyof typeof reasons

/** `data` of every error that the proxy itself makes, so that it cannot be mistaken for the server's. */
export interface ProxyErrorData {
  source: 'proxy'
  reason: Reason
  phase: Phase
  /** Whether the same request, sent again later, has a chance. */
  retryable: boolean
  /** Seconds, or an HTTP date, as the upstream said in its `Retry-After` header. */
  retryAfter?: string
}

/**
 * An error that is meant for the peer: code, message and data reach it as they are. Any other error that a
 * middleware throws becomes -32603 "Internal error" and its text stays home.
 */
export class RpcError extends Error {
  override readonly name: string = 'RpcError'
  readonly code: number
  readonly data?: unknown

  constructor(code: number, message: string, data?: unknown, options?: ErrorOptions) {
    super(message, options)
    if (!Number.isInteger(code)) throw new TypeError(`RpcError: expected an integer code, got ${String(code)}`)
    this.code = code
    if (data !== undefined) this.data = data
  }

  /** The error object as JSON-RPC 2.0 (section 5.1) writes it. */
  toJSON(): { code: number; message: string; data?: unknown } {
    return this.data === undefined
      ? { code: this.code, message: this.message }
      : { code: this.code, message: this.message, data: this.data }
  }
}

/** An option that cannot be: its text says what was expected and what came. */
export class OptionError extends TypeError {}

/** The codes that JSON-RPC 2.0 (section 5.1) itself defines. */
export const PARSE_ERROR = -32700
export const INVALID_REQUEST = -32600
export const METHOD_NOT_FOUND = -32601
export const INVALID_PARAMS = -32602
export const INTERNAL_ERROR = -32603

/** The proxy's own codes. They lie outside JSON-RPC's reserved range (-32768 to -32000). */
export const reasons = {
  upstream_exited: { code: -31001, message: 'Upstream exited', retryable: true },
  upstream_timeout: { code: -31002, message: 'Upstream timed out', retryable: false },
  upstream_bad_response: { code: -31003, message: 'Bad response from upstream', retryable: false },
  upstream_session_lost: { code: -31004, message: 'Upstream session lost', retryable: true },
  overloaded: { code: -31005, message: 'Overloaded', retryable: true },
  denied: { code: -31006, message: 'Denied', retryable: false },
  too_large: { code: -31007, message: 'Message too large', retryable: false },
  shutting_down: { code: -31008, message: 'Shutting down', retryable: true },
  upstream_unreachable: { code: -31009, message: 'Upstream unreachable', retryable: true },
  upstream_auth: { code: -31010, message: 'Upstream refused the credentials', retryable: false },
  client_unreachable: { code: -31011, message: 'The client takes no requests now', retryable: false },
} as const

export interface ProxyErrorOptions {
  /** More about this case, appended to the reason's text. Must hold no secret, path or argument. */
  detail?: string
  /** @default 'not_sent' */
  phase?: Phase
  /** @default the reason's own */
  retryable?: boolean
  retryAfter?: string
  cause?: unknown
}

/** An error of the proxy's own, with the code of its reason and `data` that names the proxy as its source. */
export function proxyError(reason: Reason, options: ProxyErrorOptions = {}): RpcError {
  const known = reasons[reason]
  const data: ProxyErrorData = {
    source: 'proxy',
    reason,
    phase: options.phase ?? 'not_sent',
    retryable: options.retryable ?? known.retryable,
  }
  if (options.retryAfter !== undefined) data.retryAfter = options.retryAfter
  const message = options.detail === undefined ? known.message : `${known.message}: ${options.detail}`
  const cause = options.cause === undefined ? undefined : { cause: options.cause }
  const { stackTraceLimit } = Error
  // Every session that ends makes some of these: a stack costs as much as a message, and tells nothing of them.
  if (reason === 'shutting_down') Error.stackTraceLimit = 0
  const error = new RpcError(known.code, message, data, cause)
  Error.stackTraceLimit = stackTraceLimit
  return error
}

/** A frame that could not be taken, as an error of the proxy's own. One that is too large says so in its own words. */
export function untakenError({ code, message }: { code: number; message: string }, phase: Phase): RpcError {
  if (code !== reasons.too_large.code) return proxyError('upstream_bad_response', { phase, detail: message })
  return new RpcError(code, message, proxyError('too_large', { phase }).data)
}

/** Whether a code is one of the proxy's own. */
export function isProxyCode(code: unknown): boolean {
  return Object.values(reasons).some((reason) => reason.code === code)
}

/** The same error, said of a request in another phase. Errors that are not the proxy's own stay as they are. */
export function inPhase(error: RpcError, phase: Phase): RpcError {
  if (!isProxyErrorData(error.data) || error.data.phase === phase) return error
  return new RpcError(error.code, error.message, { ...error.data, phase }, { cause: error.cause })
}

export function isProxyErrorData(data: unknown): data is ProxyErrorData {
  return typeof data === 'object' && data !== null && (data as ProxyErrorData).source === 'proxy'
}

/** The text of whatever was thrown. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
