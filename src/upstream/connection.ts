import type { Socket } from 'node:net'
import { proxyError } from '../error.js'
import { type ResponseEvents, ResponseFault, type ResponseHeaders, ResponseReader } from './response.js'

/** A request on its way over a connection, and the response on its way back. */
export interface Carried {
  /** The request line and the headers, with the blank line. */
  readonly head: string
  readonly body: Uint8Array | undefined
  /** What carries it, while something does. */
  connection: Connection | undefined
  /** From now on the server may see it. */
  onSent(): void
  /** The connection has taken it whole. */
  onTaken(): void
  onHead(status: number, headers: ResponseHeaders): void
  onData(chunk: Buffer): void
  onEnd(): void
  /** No more will come; not called behind `onEnd`. */
  onFault(error: Error): void
}

export interface ConnectionEvents {
  /** The response has ended and another request may follow. */
  onIdle(connection: Connection): void
  onClose(connection: Connection): void
}

// Under the 5 s after which most servers close an idle connection: a request must not race with that.
const IDLE_MS = 4_000
/** How much earlier than the server says it will. */
const HINT_MARGIN_MS = 1_000
/** A body up to this size leaves in one piece with its head: one buffer to write costs less than two. */
export const SMALL = 16 * 1024

/** A connection: one request at a time, and its response. */
export class Connection implements ResponseEvents {
  readonly #socket: Socket
  readonly #events: ConnectionEvents
  readonly #reader = new ResponseReader(this)
  #carried: Carried | undefined
  #isLast = false
  #isGone = false
  /** Milliseconds that it may be idle. */
  #patience = IDLE_MS
  #idleSince = 0

  constructor(socket: Socket, events: ConnectionEvents) {
    this.#socket = socket
    this.#events = events
    socket.on('data', (chunk: Buffer) => this.#read(chunk))
    socket.on('end', () => {
      this.#reader.end()
      this.destroy(reset())
    })
    socket.on('error', (error) => this.destroy(error))
    socket.on('close', () => this.destroy(reset()))
  }

  /** Whether its server has not had the time to close it, as far as is known. */
  isFresh(now: number): boolean {
    return now - this.#idleSince < this.#patience
  }

  /** Carries a first request, once `event` says that it stands. */
  open(carried: Carried, event: string, timeout: number): void {
    this.#carried = carried
    carried.connection = this
    const timer = setTimeout(() => {
      this.destroy(proxyError('upstream_unreachable', { detail: 'connect timeout' }))
    }, timeout)
    this.#socket.once('close', () => clearTimeout(timer))
    this.#socket.once(event, () => {
      clearTimeout(timer)
      if (!this.#isGone) this.carry(carried)
    })
  }

  carry(carried: Carried): void {
    this.#carried = carried
    carried.connection = this
    this.#socket.ref()
    carried.onSent()
    this.#write(carried)
  }

  pause(): void {
    this.#socket.pause()
  }

  resume(): void {
    this.#socket.resume()
  }

  destroy(error: Error): void {
    if (this.#isGone) return
    this.#isGone = true
    this.#reader.stop()
    this.#socket.destroy()
    this.#events.onClose(this)
    const carried = this.#carried
    this.#carried = undefined
    carried?.onFault(error)
  }

  onHead(status: number, headers: ResponseHeaders): void {
    const hint = /^timeout=(\d+)/.exec(String(headers['keep-alive'] ?? ''))?.[1]
    if (hint !== undefined) this.#patience = Math.min(Number(hint) * 1_000 - HINT_MARGIN_MS, IDLE_MS)
    this.#carried?.onHead(status, headers)
  }

  onData(chunk: Buffer): void {
    this.#carried?.onData(chunk)
  }

  onEnd(isLast: boolean): void {
    // Whoever answers before it has read the whole request may not read the rest.
    this.#isLast = isLast || this.#socket.writableLength > 0
    const carried = this.#carried
    this.#carried = undefined
    carried?.onEnd()
  }

  #write(carried: Carried): void {
    const { head, body } = carried
    const socket = this.#socket
    if (body === undefined || body.length <= SMALL) {
      const bytes = Buffer.allocUnsafe(head.length + (body?.length ?? 0))
      bytes.write(head, 'latin1')
      if (body) bytes.set(body, head.length)
      socket.write(bytes)
      carried.onTaken()
      return
    }
    socket.cork()
    socket.write(head, 'latin1')
    socket.write(body, (error) => {
      if (!error) carried.onTaken()
    })
    socket.uncork()
  }

  #read(chunk: Buffer): void {
    // Nobody has asked for that: it must not pass for the answer to what is asked next.
    if (!this.#carried) this.destroy(reset())
    try {
      this.#reader.push(chunk)
    } catch (error) {
      if (!(error instanceof ResponseFault)) throw error
      this.destroy(error)
    }
    if (!this.#carried && !this.#isGone) this.#rest()
  }

  #rest(): void {
    if (this.#isLast || this.#patience <= 0 || !this.#reader.isBetween) {
      this.destroy(reset())
      return
    }
    const socket = this.#socket
    if (socket.isPaused()) socket.resume()
    // One that waits for nothing keeps no process alive.
    socket.unref()
    this.#idleSince = performance.now()
    this.#events.onIdle(this)
  }
}

/** As Node calls it where a connection ends too early. */
export function reset(): Error {
  return Object.assign(new Error('socket hang up'), { code: 'ECONNRESET' })
}
