import { proxyError, RpcError } from '../error.js'
import { elementsOfBatch } from '../message.js'
import { type Head, scan } from '../scan.js'
import type { Frame } from '../wire.js'
import type { HttpResponse } from './request.js'

/** What the SDK's servers say of a request in no session. */
const NO_SESSION = -32000

/** A JSON-RPC message found in the body of a refusal. */
export interface RefusalBody {
  /** Undefined where the server had none, or null, to give. */
  id: unknown
  /** Undefined where the message is not an error response. */
  error: { code: number; message: string; data?: unknown } | undefined
}

/** What a body that came with a 4xx or 5xx says, if it is JSON-RPC. */
export function refusalBody(body: Buffer): RefusalBody | undefined {
  let value: unknown
  try {
    value = JSON.parse(body.toString())
  } catch {
    return undefined
  }
  if (typeof value !== 'object' || value === null || !('jsonrpc' in value) || value.jsonrpc !== '2.0') return undefined
  const { id, error } = value as { id?: unknown; error?: unknown }
  return { id: id ?? undefined, error: isErrorObject(error) ? error : undefined }
}

function isErrorObject(error: unknown): error is NonNullable<RefusalBody['error']> {
  if (typeof error !== 'object' || error === null) return false
  const { code, message } = error as { code?: unknown; message?: unknown }
  return Number.isInteger(code) && typeof message === 'string'
}

/** What a response with a 4xx or 5xx comes to. */
export type Refused = { isForgotten: true } | { isForgotten: false; body: Buffer; refusal: RefusalBody | undefined }

/**
 * Reads a refusal. The session that a message was sent in is forgotten where the server says so (2025-11-25 basic/transports,
 * "Session Management" 3): by a 404, or as the official examples do, and servers made after them, by a 400 with such a text.
 */
export async function readRefusal(
  response: HttpResponse,
  read: () => Promise<Buffer>,
  inSession: boolean,
): Promise<Refused> {
  if (inSession && response.status === 404) {
    response.body.discard()
    return { isForgotten: true }
  }
  const body = await read()
  const refusal = refusalBody(body)
  const isForgotten = inSession && response.status === 400 && saysNoSession(refusal)
  return isForgotten ? { isForgotten } : { isForgotten: false, body, refusal }
}

function saysNoSession(refusal: RefusalBody | undefined): boolean {
  return refusal?.error?.code === NO_SESSION && /\bsession id\b/i.test(refusal.error.message)
}

/** The same, as what a sender who waits for no answer is told. */
function refusalError(refusal: RefusalBody): RpcError | undefined {
  return refusal.error && new RpcError(refusal.error.code, refusal.error.message, refusal.error.data)
}

/**
 * Judges the response to a message that has no answer. `onLost` is called where it says that the session is lost; without it
 * that is a refusal like any other.
 *
 * @throws (rejects) RpcError where the server did not take the message
 */
export async function accepted(
  response: HttpResponse,
  body: () => Promise<Buffer>,
  onLost?: () => void,
): Promise<void> {
  if (response.status >= 200 && response.status <= 299) return response.body.discard()
  const refused = await readRefusal(response, body, onLost !== undefined)
  if (refused.isForgotten) {
    onLost?.()
    throw proxyError('upstream_session_lost')
  }
  const { refusal } = refused
  throw (refusal && refusalError(refusal)) ?? statusError(response)
}

/** What a status that is no success means, where the body does not say it. */
export function statusError(response: HttpResponse): RpcError {
  const { status } = response
  const detail = `HTTP ${status}`
  if (status === 401 || status === 403) return proxyError('upstream_auth', { phase: 'sent', detail })
  const retryable = status === 408 || status === 429 || status === 503
  const retryAfter = response.headers['retry-after']
  return proxyError('upstream_bad_response', {
    phase: 'sent',
    detail,
    retryable,
    ...(typeof retryAfter === 'string' && { retryAfter }),
  })
}

/** The messages of a body or an event: one, or those of a batch (2025-03-26 basic, "Batching"). */
export function messagesOf(frame: Frame): Frame[] {
  try {
    return elementsOfBatch(frame) ?? [frame]
  } catch {
    return [frame]
  }
}

/** The head of a frame, undefined where it is not one to be trusted. */
export function headOf(frame: Frame): Head | undefined {
  try {
    return scan(frame)
  } catch {
    return undefined
  }
}
