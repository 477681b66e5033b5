import type {
  ClientCapabilities,
  Implementation,
  JSONRPCErrorResponse,
  JSONRPCNotification,
  JSONRPCRequest,
  JSONRPCResultResponse,
  LoggingLevel,
  ProgressToken,
  RequestId,
} from '@modelcontextprotocol/sdk/types.js'
import type { NotificationMethod, Params, ParamsOf, RequestMethod } from '../context.js'
import type { Frame } from '../wire.js'

/** A message as a test writes it: `jsonrpc` may be left out. A string is sent as it is. */
export type Written = string | { id?: unknown; method?: string; params?: object; result?: object; error?: object }

/** `params` of a method where they are known, and whatever else a test wants to say. */
export type WrittenParams<M extends string> = NonNullable<ParamsOf<M>> & Params

/**
 * A request, to be sent or to be expected.
 *
 * @example await proxy.fromClient(request(1, 'tools/call', { name: 'echo' }))
 */
export function request<M extends RequestMethod | (string & {})>(
  id: RequestId,
  method: M,
  params?: WrittenParams<M>,
): JSONRPCRequest & { method: M } {
  return { jsonrpc: '2.0', id, method, ...(params && { params }) }
}

/**
 * A notification.
 *
 * @example await proxy.fromClient(notification('notifications/cancelled', { requestId: 1 }))
 */
export function notification<M extends NotificationMethod | (string & {})>(
  method: M,
  params?: WrittenParams<M>,
): JSONRPCNotification & { method: M } {
  return { jsonrpc: '2.0', method, ...(params && { params }) }
}

/**
 * The answer to a request.
 *
 * @example await proxy.fromServer(result(1, { content: [] }))
 */
export function result(id: RequestId, result: object = {}): JSONRPCResultResponse {
  return { jsonrpc: '2.0', id, result: result as Params }
}

/**
 * An error as the answer to a request.
 *
 * @example expect(toClient).toEqual([error(1, -31006, 'Denied')])
 */
export function error(id: RequestId, code: number, message: string, data?: unknown): JSONRPCErrorResponse {
  return { jsonrpc: '2.0', id, error: { code, message, ...(data !== undefined && { data }) } }
}

export interface ModernOptions {
  /** @default '2026-07-28' */
  version?: string
  /** @default none: `{}` */
  capabilities?: ClientCapabilities
  clientInfo?: Implementation
  /** The level from which on the client wants logs of this request. @default no logs */
  logLevel?: LoggingLevel
  progressToken?: ProgressToken
}

/**
 * A request as a client of 2026-07-28 or later makes it: with the `_meta` that such a request must carry (basic,
 * "`_meta`"). Its own `_meta` stays.
 *
 * @example await proxy.fromClient(modern(request(1, 'tools/list')))
 */
export function modern<R extends JSONRPCRequest>(request: R, options: ModernOptions = {}): R {
  const { version = '2026-07-28', capabilities = {}, clientInfo, logLevel, progressToken } = options
  const added = {
    'io.modelcontextprotocol/protocolVersion': version,
    'io.modelcontextprotocol/clientCapabilities': capabilities,
    ...(clientInfo && { 'io.modelcontextprotocol/clientInfo': clientInfo }),
    ...(logLevel && { 'io.modelcontextprotocol/logLevel': logLevel }),
    ...(progressToken !== undefined && { progressToken }),
  }
  return { ...request, params: { ...request.params, _meta: { ...added, ...request.params?._meta } } }
}

export function textOf(message: Written): string {
  return typeof message === 'string' ? message : JSON.stringify({ jsonrpc: '2.0', ...message })
}

export function bytesOf(message: Written): Frame {
  return new TextEncoder().encode(textOf(message))
}
