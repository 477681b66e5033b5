import type { IncomingMessage, ServerResponse } from 'node:http'
import { type Deferred, deferred } from '../deferred.js'
import { INVALID_REQUEST, proxyError, type Reason } from '../error.js'
import { withoutBreaks } from '../lines.js'
import { errorFrame } from '../message.js'
import { LONGEST_TIMER } from '../rest.js'
import type { Spare } from '../spare.js'
import type { Frame, FrameMeta } from '../wire.js'
import { LAST_READ } from './patience.js'

/** Bytes that wait for a reader before its source is held up. */
const HIGH_WATER = 1 << 20
/** The same where its source is that of other streams too, as long as there is room to spare. */
const SHARED_HIGH_WATER = 4 << 20
/** Milliseconds that a refused body may go on before its connection is cut: so long the refusal has to be read. */
const LINGER = 1_000

export type Headers = Record<string, string>

/** A request that is turned away: an HTTP status, and the JSON-RPC error that its body says. */
export interface Refused {
  readonly status: number
  readonly error: { code: number; message: string; data?: unknown }
  readonly headers?: Headers
  /** The id of the request, where it is known. */
  readonly idText?: string
}

/** Nothing where a request is answered, or will be; else why not. */
export type Answering = Refused | undefined | Promise<Refused | undefined>

/** What is wrong with the form of a request. Codes: JSON-RPC 2.0, section 5.1. */
export function invalid(status: number, problem: string, headers?: Headers): Refused {
  return { status, error: { code: INVALID_REQUEST, message: `Invalid request: ${problem}` }, headers }
}

/** Also where it is somebody else's: nobody is to learn which there are. */
export function unknownSession(): Refused {
  return invalid(404, 'unknown session')
}

/** Too much waits already. */
export function noRoom(): Refused {
  return refused(503, 'overloaded', undefined, { 'retry-after': '1' })
}

/** What the proxy itself has against it. */
export function refused(status: number, reason: Reason, detail?: string, headers?: Headers): Refused {
  return { status, error: proxyError(reason, { detail }).toJSON(), headers }
}

export function refuse(response: ServerResponse, { status, error, headers, idText }: Refused): void {
  json(response, errorFrame(idText, error), status, headers)
}

/** Whether somebody may still read what is written. Node leaves `writable` true behind a client that is gone. */
export function isOpen(response: ServerResponse): boolean {
  return !response.destroyed && !response.writableEnded
}

export function json(response: ServerResponse, body: Frame, status = 200, headers: Headers = {}): void {
  if (response.headersSent || response.destroyed) return
  const all = { 'content-type': 'application/json', 'content-length': String(body.length), ...headers }
  response.writeHead(status, all).end(body)
}

/** Ends without a body. */
export function empty(response: ServerResponse, status: number, headers: Headers = {}): void {
  if (response.headersSent || response.destroyed) return
  // Node would announce an empty body in chunks.
  response.writeHead(status, status === 204 ? headers : { 'content-length': '0', ...headers }).end()
}

/** Whether the upstream answered by an event stream. */
export function isStreamed({ headers }: FrameMeta = {}): boolean {
  return String(headers?.['content-type'] ?? '').startsWith('text/event-stream')
}

/** A body that is too large is read no further than it takes to have its sender see why. */
export function cutOff(request: IncomingMessage): void {
  request.resume()
  const timer = setTimeout(() => request.destroy(), LINGER).unref()
  request.once('close', () => clearTimeout(timer))
}

/** Calls back once when a response was handed to the operating system, or its client is gone. */
export function whenOver(response: ServerResponse, then: () => void): void {
  if (response.closed || response.destroyed) process.nextTick(then)
  // Node tells of either end by this, and once. (`finished()` of its streams costs a dozen closures for each request.)
  else response.on('close', then)
}

/** Resolves when responses are over; those that their clients do not read are cut off in the end, or at once. */
export async function settle(responses: readonly ServerResponse[], urgent = false): Promise<void> {
  const timer = setTimeout(
    () => {
      for (const it of responses) it.destroy()
    },
    urgent ? 0 : LAST_READ,
  )
  await Promise.all(responses.map((it) => new Promise<void>((resolve) => whenOver(it, resolve))))
  clearTimeout(timer)
}

/** A timer for comments, or for the stream to put them on; 0 is off. It keeps no process alive. */
export function beats(start: typeof setInterval | typeof setTimeout, beat: () => void, milliseconds: number) {
  return milliseconds > 0 ? start(beat, Math.min(milliseconds, LONGEST_TIMER)).unref() : undefined
}

export interface Pace {
  /** Milliseconds between the comments that keep an idle stream alive. */
  readonly keepAlive: number
  /** Milliseconds after which a reader that takes nothing is cut off. */
  readonly readTimeout: number
  /** Where the source of a stream is that of others too: what may wait for it before it holds them up. */
  readonly spare?: Spare
}

/** An event stream to a client (WHATWG HTML, section 9.2). Its head leaves at once, with what is said in the same tick. */
export class EventStream {
  readonly response: ServerResponse
  readonly #pace: Pace
  #isBehind = false
  #isCut = false
  /** Bytes of the common room that wait here. */
  #spared = 0
  #drained: Deferred | undefined
  /** Its reader is cut off. */
  oncut?: () => void

  constructor(response: ServerResponse, headers: Headers, pace: Pace) {
    this.response = response
    this.#pace = pace
    // What stands between must neither hold events back nor change them.
    const own = {
      'content-type': 'text/event-stream',
      'cache-control': 'no-cache, no-transform',
      'x-accel-buffering': 'no',
    }
    response.writeHead(200, { ...own, ...headers })
    response.cork()
    response.flushHeaders()
    process.nextTick(() => response.uncork())
    const beat = beats(setInterval, () => this.#put(': keep-alive\n\n'), pace.keepAlive)
    response.on('drain', () => this.#flow())
    response.on('timeout', () => this.#cut())
    whenOver(response, () => {
      clearInterval(beat)
      this.#flow()
    })
  }

  get isOpen(): boolean {
    return isOpen(this.response)
  }

  /** Whether its reader was cut off. */
  get isCut(): boolean {
    return this.#isCut
  }

  /** Returns a promise where the reader is behind: it resolves when there is room again, or the reader is gone. */
  message(frame: Frame, id?: string): Promise<void> | undefined {
    const bytes = eventOf(id === undefined ? 'data: ' : `id: ${id}\ndata: `, withoutBreaks(frame))
    this.#put(bytes)
    const { writableLength } = this.response
    if (!this.isOpen || writableLength <= HIGH_WATER) return undefined
    // Node's own timer: it looks at whether bytes go out.
    if (!this.#isBehind) this.response.setTimeout(Math.min(this.#pace.readTimeout, LONGEST_TIMER))
    this.#isBehind = true
    if (writableLength <= SHARED_HIGH_WATER && this.#pace.spare?.take(bytes.length)) {
      this.#spared += bytes.length
      return undefined
    }
    this.#drained ??= deferred()
    return this.#drained.promise
  }

  /** An event of any type, in ASCII. */
  event(type: string, data: string): void {
    this.#put(`event: ${type}\ndata: ${data}\n\n`)
  }

  /** A cursor to come back with, before there is anything to say (2025-11-25 basic/transports). */
  prime(id: string, retry: number): void {
    this.#put(`id: ${id}\nretry: ${retry}\ndata: \n\n`)
  }

  /** `retry`: milliseconds after which the client should come back */
  end(retry?: number): void {
    if (retry !== undefined) this.#put(`retry: ${retry}\n\n`)
    if (this.isOpen) this.response.end()
  }

  #put(bytes: string | Buffer): void {
    if (this.isOpen) this.response.write(bytes)
  }

  #cut(): void {
    this.#isCut = true
    this.response.destroy()
    this.oncut?.()
  }

  #flow(): void {
    if (!this.#isBehind) return
    this.#isBehind = false
    if (!this.response.destroyed) this.response.setTimeout(0)
    this.#pace.spare?.give(this.#spared)
    this.#spared = 0
    this.#drained?.resolve()
    this.#drained = undefined
  }
}

/** The bytes of an event: its head is ASCII. */
function eventOf(head: string, data: Uint8Array): Buffer {
  const bytes = Buffer.allocUnsafe(head.length + data.length + 2)
  bytes.write(head, 'latin1')
  bytes.set(data, head.length)
  bytes.write('\n\n', head.length + data.length, 'latin1')
  return bytes
}
