import { setTimeout as sleep } from 'node:timers/promises'
import { RpcError, reasons } from '../error.js'
import { EventReader } from '../events.js'
import { LONGEST_TIMER } from '../rest.js'
import type { Body, Gate } from './body.js'
import type { HttpResponse } from './request.js'

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
export function readEvents(body: Body, options: StreamOptions): Promise<StreamEnd> {
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
    const sink = {
      onData: (chunk: Buffer) => {
        watch?.refresh()
        reader.push(chunk)
      },
      onEnd: () => {
        clearTimeout(watch)
        reader.end()
        end.lastEventId = reader.lastEventId
        resolve(end)
      },
    }
    body.read(sink, options.gate)
  })
}

/** Destroys a body when its timer, which whoever reads it refreshes, runs out; time spent paused does not count. */
export function watchSilence(body: Body, gate: Gate, milliseconds: number): NodeJS.Timeout | undefined {
  if (milliseconds <= 0) return undefined
  const timer = setTimeout(() => {
    if (gate.open) body.destroy()
    else timer.refresh()
  }, milliseconds)
  return timer
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
  response.body.discard()
  return response.status < 500 && !TRANSIENT.has(response.status) ? 'none' : 'not now'
}

export const EVENT_STREAM = 'text/event-stream'

export function mediaType(response: HttpResponse): string {
  return String(response.headers['content-type'] ?? '')
    .split(';', 1)[0]!
    .trim()
    .toLowerCase()
}

export function isEventStream(response: HttpResponse): boolean {
  return mediaType(response) === EVENT_STREAM
}
