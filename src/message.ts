import { isUtf8 } from 'node:buffer'
import type { JSONRPCMessage, RequestId } from '@modelcontextprotocol/sdk/types.js'
import { INVALID_REQUEST, PARSE_ERROR } from './error.js'
import {
  asBuffer,
  DepthError,
  member,
  OPEN_ARRAY,
  type Span,
  skipDeep,
  skipSpace,
  skipValue,
  splice,
  unexpected,
  walkArray,
} from './json.js'
import { type Origins, originsOf, rewrite } from './rewrite.js'
import { type Head, parseError, Refusal, scan } from './scan.js'

/** Streams that live as long as their session: nobody waits for their end (2026-07-28, basic/utilities/subscriptions). */
export const LISTEN = 'subscriptions/listen'

/** More requests than a session may have pending by default are no batch of an honest client's. */
const MAX_BATCH = 1_000
const TOO_MANY = `Invalid request: over ${MAX_BATCH} messages in a batch`

/** The frame with another id. `idText` is a JSON token. The frame must have an `id`. */
export function withId(frame: Uint8Array, head: Head, idText: string): Buffer {
  if (head.idStart < 0) throw new TypeError('expected a frame with an id')
  return splice(frame, [{ start: head.idStart, end: head.idEnd, text: idText }])
}

/** Where a member of `params._meta` has its value, e.g. `progressToken`. */
export function metaMember(frame: Uint8Array, head: Head, key: string): Span | undefined {
  return member(frame, head.metaStart, key)
}

/** Where a member of `params` has its value, e.g. `requestId` of a `notifications/cancelled`. */
export function paramsMember(frame: Uint8Array, head: Head, key: string): Span | undefined {
  return member(frame, head.paramsStart, key)
}

/** Where a member of `result` has its value. */
export function resultMember(frame: Uint8Array, head: Head, key: string): Span | undefined {
  return member(frame, head.resultStart, key)
}

/** The id that a `notifications/cancelled` speaks of. */
export function cancelledId(frame: Uint8Array, head: Head): RequestId | undefined {
  const span = paramsMember(frame, head, 'requestId')
  return span && (tokenValue(frame, span) as RequestId)
}

/** The parsed value of a span. */
export function tokenValue(frame: Uint8Array, { start, end }: Span): unknown {
  return JSON.parse(asBuffer(frame).toString('utf8', start, end))
}

/**
 * The frames in a batch (2025-03-26, basic, "Batching"); undefined for a frame that is not an array. They are not
 * scanned yet.
 *
 * @throws Refusal with -32700 for what is not JSON, -32600 for an empty array, or one of more than 1,000
 */
export function elementsOfBatch(frame: Uint8Array): Uint8Array[] | undefined {
  const first = skipSpace(frame, 0)
  if (frame[first] !== OPEN_ARRAY) return undefined
  if (!isUtf8(frame)) throw new Refusal(PARSE_ERROR, 'Parse error: not UTF-8')
  const found: Uint8Array[] = []
  try {
    const end = walkArray(frame, first, (start) => {
      const end = skipElement(frame, start)
      if (found.length === MAX_BATCH) throw new Refusal(INVALID_REQUEST, TOO_MANY)
      found.push(frame.subarray(start, end))
      return end
    })
    const rest = skipSpace(frame, end)
    if (rest < frame.length) throw unexpected(frame, rest)
  } catch (error) {
    throw parseError(error)
  }
  if (found.length === 0) throw new Refusal(INVALID_REQUEST, 'Invalid request: empty batch')
  return found
}

/** One element that nests too deep must not cost the others their answers: its own scan refuses it. */
function skipElement(frame: Uint8Array, start: number): number {
  try {
    return skipValue(frame, start)
  } catch (error) {
    if (error instanceof DepthError) return skipDeep(frame, start)
    throw error
  }
}

/** `idText` is a JSON token, e.g. `JSON.stringify(id)`. */
export function requestFrame(idText: string, method: string, params?: object): Buffer {
  return Buffer.from(`{"jsonrpc":"2.0","id":${idText},"method":${JSON.stringify(method)}${ending('params', params)}`)
}

export function notificationFrame(method: string, params?: object): Buffer {
  return Buffer.from(`{"jsonrpc":"2.0","method":${JSON.stringify(method)}${ending('params', params)}`)
}

/** An undefined result is `{}`. */
export function resultFrame(idText: string, result?: unknown): Buffer {
  return Buffer.from(`{"jsonrpc":"2.0","id":${idText},"result":${JSON.stringify(result) ?? '{}'}}`)
}

/** Without an id where that of the request could not be read (2025-11-25 and later: `id` is optional in errors). */
export function errorFrame(
  idText: string | undefined,
  { code, message, data }: { code: number; message: string; data?: unknown },
): Buffer {
  const id = idText === undefined ? '' : `"id":${idText},`
  return Buffer.from(`{"jsonrpc":"2.0",${id}"error":${JSON.stringify({ code, message, data })}}`)
}

function ending(key: string, value: object | undefined): string {
  return value === undefined ? '}' : `,"${key}":${JSON.stringify(value)}}`
}

/** A frame, and the message in it, which is parsed when somebody asks for it. */
export class Message {
  readonly frame: Uint8Array
  readonly head: Head
  #text: string | undefined
  #value: JSONRPCMessage | undefined
  #parsed = false
  #origins: Origins | undefined
  /** What `JSON.stringify` makes of a value in which nothing changed, once that is known. */
  #canonical: string | undefined

  /** @throws Refusal where no `head` is given and the frame is no legal message. */
  constructor(frame: Uint8Array, head: Head = scan(frame)) {
    this.frame = frame
    this.head = head
  }

  /** The frame as text. */
  get text(): string {
    this.#text ??= asBuffer(this.frame).toString('utf8')
    return this.#text
  }

  /** The same object each time. It may be changed in place. */
  get value(): JSONRPCMessage {
    if (!this.#parsed) this.#take(JSON.parse(this.text) as JSONRPCMessage)
    return this.#value as JSONRPCMessage
  }

  /** The same frame, with a value of its own. */
  copy(): Message {
    return new Message(this.frame, this.head)
  }

  replace(value: JSONRPCMessage): void {
    this.#value = value
    this.#parsed = true
  }

  /** Of a value that says what the frame does. */
  #take(value: JSONRPCMessage): void {
    this.replace(value)
    this.#origins = originsOf(value)
  }

  /**
   * The message that `value` has become; undefined where it says what the frame says. What did not change keeps its
   * bytes. The new message takes the value over, and this one would parse its own frame again.
   *
   * @throws TypeError when the value is no legal message any more, cannot be written as JSON, or is another message:
   * kind and id may not change
   */
  changed(): Message | undefined {
    if (!this.#parsed) return undefined
    const value = this.#value as JSONRPCMessage
    const canonical: string | undefined = JSON.stringify(value)
    if (canonical !== undefined && (canonical === this.#canonical || canonical === this.text)) return undefined
    const frame = rewrite(this.frame, value, this.#origins)
    // JSON.stringify writes null for 1e400 too: such a text does not prove that nothing changed.
    const proof = canonical?.includes('null') ? undefined : canonical
    if (frame === undefined) {
      this.#canonical = proof
      return undefined
    }
    const next = new Message(frame, this.#successor(frame))
    next.#take(value)
    next.#canonical = proof
    this.#value = undefined
    this.#parsed = false
    return next
  }

  #successor(frame: Buffer): Head {
    let head: Head
    try {
      head = scan(frame)
    } catch (error) {
      if (!(error instanceof Refusal)) throw error
      throw new TypeError(`a middleware made a message illegal: ${error.message}`)
    }
    for (const key of ['kind', 'id'] as const) {
      if (Object.is(head[key], this.head[key])) continue
      const [expected, got] = [this.head[key], head[key]].map((part) => (key === 'id' ? JSON.stringify(part) : part))
      throw new TypeError(`a middleware may not change the ${key} of a message: expected ${expected}, got ${got}`)
    }
    return head
  }
}
