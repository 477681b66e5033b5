import type { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { proxyError, RpcError, reasons } from '../error.js'
import { EventReader } from '../events.js'
import { Pieces, withoutBom } from '../lines.js'
import { LONGEST_TIMER } from '../rest.js'
import { discard, type HttpResponse } from './request.js'

/** Pauses and resumes all bodies that a wire is reading. */
export class Gate {
  #open = true
  readonly #bodies = new Set<Readable>()

  get open(): boolean {
    return this.#open
  }

  /** To be called once the body's listeners are on: those would make it flow. */
  add(body: Readable): void {
    this.#bodies.add(body)
    body.once('close', () => this.#bodies.delete(body))
    if (!this.#open) body.pause()
  }

  pause(): void {
    this.#open = false
    for (const body of this.#bodies) body.pause()
  }

  resume(): void {
    this.#open = true
    for (const body of this.#bodies) body.resume()
  }
}

/**
 * Reads a whole body, without a byte order mark (RFC 8259, section 8.1). Rejects with -31007 over `maxBytes`, with
 * -31003 when it breaks off.
 */
export function collect(body: Readable, gate: Gate, maxBytes: number): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const pieces = new Pieces()
    body.on('data', (chunk: Buffer) => {
      pieces.add(chunk)
      if (pieces.size <= maxBytes) return
      reject(proxyError('too_large', { phase: 'sent' }))
      body.destroy()
    })
    body.on('end', () => resolve(withoutBom(pieces.take())))
    body.on('close', () => reject(proxyError('upstream_bad_response', { phase: 'sent', detail: 'broken connection' })))
    gate.add(body)
  })
}

/** How a stream ended, as far as one that resumes it must know. */
export interface StreamEnd {
  lastEventId: string
  /** Milliseconds, where the server said so. */
  retry: number | undefined
  /** How many events came, those without data too. */
  events: number
}

export interface StreamOptions {
  gate: Gate
  maxBytes: number
  /** Milliseconds of silence that end it; 0 is off. */
  silence: number
  onFrame: (frame: Buffer) => void
  onTooLarge: (head: Buffer) => void
}

/** Hands over the messages of an event stream. Resolves when it ends, however it ends. */
export function readEvents(body: Readable, options: StreamOptions): Promise<StreamEnd> {
  return new Promise((resolve) => {
    const end: StreamEnd = { lastEventId: '', retry: undefined, events: 0 }
    const reader = new EventReader({
      maxBytes: options.maxBytes,
      onRetry: (milliseconds) => {
        end.retry = milliseconds
      },
      onTooLarge: options.onTooLarge,
      onEvent: ({ type, data }) => {
        end.events += 1
        // An event without data only sets the cursor (2025-11-25 basic/transports, "Sending Messages" 6).
        if (type === 'message' && data.length > 0) options.onFrame(data)
      },
    })
    const watch = watchSilence(body, options.gate, options.silence)
    body.on('data', (chunk: Buffer) => reader.push(chunk))
    body.once('close', () => {
      watch()
      reader.end()
      end.lastEventId = reader.lastEventId
      resolve(end)
    })
    options.gate.add(body)
  })
}

/** Destroys a body on which nothing came for so long; time spent paused does not count. Returns how to stop it. */
export function watchSilence(body: Readable, gate: Gate, milliseconds: number): () => void {
  if (milliseconds <= 0) return () => {}
  const timer = setTimeout(() => {
    if (gate.open) body.destroy()
    else timer.refresh()
  }, milliseconds)
  body.on('data', () => timer.refresh())
  return () => clearTimeout(timer)
}

export interface FollowOptions {
  /** Sends a GET with this `Last-Event-ID`; '' is none. */
  open: (lastEventId: string) => Promise<HttpResponse>
  read: (response: HttpResponse) => Promise<StreamEnd>
  /** The broken stream to resume: waits first, and a stream that brought nothing is a failed try. */
  broken?: StreamEnd
  /** How many failures in a row are too many. That nobody is there is one only where a stream broke. */
  tries: number
  done: () => boolean
  signal: AbortSignal
}

const RETRY_MS = 1_000
const MAX_DOUBLINGS = 5
const QUICK_TRIES = 3
/** What a later try may cure; any other 4xx says that there is no such stream. */
const TRANSIENT = new Set([408, 409, 425, 429])

/**
 * Reads a stream by GET, and again behind its last event each time it ends, after the time the server asked for
 * (2025-11-25 basic/transports, "Resumability and Redelivery"). Resolves when it is over; never rejects.
 */
export async function follow(options: FollowOptions): Promise<void> {
  let { lastEventId = '', retry } = options.broken ?? {}
  let failures = 0
  let idle = 0
  let waits = options.broken !== undefined
  while (!options.done() && !options.signal.aborted) {
    if (waits) {
      await sleep(pauseBefore(retry, idle), undefined, { signal: options.signal, ref: false }).catch(() => {})
      if (options.done() || options.signal.aborted) return
    }
    waits = true
    const end = await attempt(options, lastEventId)
    if (end === 'none') return
    const read = typeof end === 'object'
    const brought = read && end.events > 0
    idle = brought ? 0 : idle + 1
    if (brought || (read && options.broken === undefined)) failures = 0
    else if (end !== 'away' || options.broken !== undefined) failures += 1
    if (failures >= options.tries) return
    if (!read) continue
    lastEventId = end.lastEventId || lastEventId
    retry = end.retry ?? retry
  }
}

/** Milliseconds: what the server asked for, and more behind tries that brought nothing, however little that was. */
function pauseBefore(retry = RETRY_MS, idle: number): number {
  const wait = Math.min(retry * 2 ** Math.min(Math.max(idle - 1, 0), MAX_DOUBLINGS), LONGEST_TIMER)
  return idle > QUICK_TRIES ? Math.max(wait, RETRY_MS) : wait
}

/** `'none'`: the server has no such stream; `'not now'`: it failed; `'away'`: nobody is there. */
async function attempt(options: FollowOptions, lastEventId: string): Promise<StreamEnd | 'none' | 'not now' | 'away'> {
  let response: HttpResponse
  try {
    response = await options.open(lastEventId)
  } catch (error) {
    return error instanceof RpcError && error.code === reasons.upstream_unreachable.code ? 'away' : 'not now'
  }
  if (response.status === 200 && isEventStream(response)) return options.read(response)
  discard(response.body)
  return response.status < 500 && !TRANSIENT.has(response.status) ? 'none' : 'not now'
}

export function mediaType(response: HttpResponse): string {
  return String(response.headers['content-type'] ?? '')
    .split(';', 1)[0]!
    .trim()
    .toLowerCase()
}

export function isEventStream(response: HttpResponse): boolean {
  return mediaType(response) === 'text/event-stream'
}
