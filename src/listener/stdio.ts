import type { Readable, Writable } from 'node:stream'
import { reasons } from '../error.js'
import { LineReader, LineWriter, MAX_LINE_BYTES } from '../lines.js'
import { LONGEST_TIMER } from '../rest.js'
import { type CloseOptions, type Frame, FrameError, type Wire } from '../wire.js'
import { deaf, LAST_READ, READ_TIMEOUT } from './patience.js'

export interface StdioClientOptions {
  /** @default process.stdin */
  stdin?: Readable
  /** @default process.stdout */
  stdout?: Writable
  /**
   * Bytes that a message from the client may have; a larger one is skipped.
   * @default 67108864
   */
  maxMessageBytes?: number
  /**
   * Milliseconds that a client may take nothing of what waits for it, before it is cut off. Looked at where stdout is a
   * pipe or a socket.
   * @default 30000
   */
  readTimeout?: number
}

/** A reader or a writer at the other end is no more: a pipe, a socket, a terminal. */
const GONE = new Set<unknown>(['EPIPE', 'ECONNRESET', 'EIO'])

/**
 * The client that started this process, and speaks to it over its stdin and stdout (specification 2025-11-25,
 * basic/transports, "stdio"). Hands over every line that is not blank, whatever is in it.
 *
 * `onclose` is called, without a reason, when stdin ended or stdout broke: the client left; with one where it was cut off
 * because it does not read, or stdin or stdout broke where nobody has left: a disk that is full. Neither stream is ever ended or destroyed: they belong to the process.
 */
export class StdioClient implements Wire {
  onframe?: Wire['onframe']
  onclose?: Wire['onclose']
  onerror?: Wire['onerror']

  readonly #stdin: Readable & { ref?(): unknown; unref?(): unknown }
  readonly #reader: LineReader
  readonly #writer: LineWriter
  readonly #stdout: Writable & { setTimeout?(milliseconds: number): unknown }
  readonly #readTimeout: number
  #behind = false
  #isCut = false
  #started = false
  #left = false
  #paused = false
  #closing: Promise<void> | undefined
  #hurry!: () => void
  readonly #hurried = new Promise<void>((resolve) => {
    this.#hurry = resolve
  })

  constructor(options: StdioClientOptions = {}) {
    const maxBytes = options.maxMessageBytes ?? MAX_LINE_BYTES
    this.#stdin = options.stdin ?? process.stdin
    this.#stdin.on('error', (error) => {
      const failure = failureOf(error)
      if (!failure && !this.#left) this.onerror?.(error)
      this.#end(failure)
    })
    this.#stdout = options.stdout ?? process.stdout
    this.#readTimeout = Math.min(options.readTimeout ?? READ_TIMEOUT, LONGEST_TIMER)
    // Node's own timer of a socket: it looks at whether bytes go out.
    this.#stdout.on('timeout', () => this.#cut())
    this.#writer = new LineWriter(this.#stdout, (error) => this.#leave(failureOf(error)))
    this.#reader = new LineReader({
      maxBytes,
      onLine: (line) => {
        if (!this.#left) this.onframe?.(line)
      },
      onOversize: (head) => {
        const { code, message } = reasons.too_large
        if (!this.#left) this.onerror?.(new FrameError(code, `${message}: over ${maxBytes} bytes`, head))
      },
    })
  }

  start(): void {
    if (this.#started) return
    this.#started = true
    const stdin = this.#stdin
    stdin.ref?.()
    stdin.on('end', () => this.#end())
    stdin.on('close', () => this.#end())
    if (stdin.readableEnded || stdin.destroyed) process.nextTick(() => this.#end())
    // A listener for data makes a stream flow, unless it was paused by hand.
    stdin.on('data', this.#read)
    if (!this.#paused && !this.#left) stdin.resume()
  }

  send(frame: Frame): Promise<void> | undefined {
    if (this.#isCut) return undefined
    if (!this.#closing) {
      const behind = this.#writer.write(frame)
      if (behind) this.#watch(behind)
      return behind
    }
    const refused = Promise.reject(new Error('The client is closed'))
    refused.catch(() => {})
    return refused
  }

  pause(): void {
    this.#paused = true
    this.#stdin.pause()
  }

  resume(): void {
    this.#paused = false
    if (this.#started && !this.#left) this.#stdin.resume()
  }

  /** Stops reading, and resolves when the client has taken all that was sent, or is gone. Urgent: does not wait. */
  close({ urgent = false }: CloseOptions = {}): Promise<void> {
    this.#leave()
    this.#stdout.setTimeout?.(Math.min(LAST_READ, this.#readTimeout))
    this.#closing ??= Promise.race([this.#writer.flush(), this.#hurried]).finally(() => this.#stdout.setTimeout?.(0))
    if (urgent) this.#hurry()
    return this.#closing
  }

  #watch(behind: Promise<void>): void {
    if (this.#behind) return
    this.#behind = true
    this.#stdout.setTimeout?.(this.#readTimeout)
    const caughtUp = () => {
      this.#behind = false
      if (!this.#closing) this.#stdout.setTimeout?.(0)
    }
    behind.then(caughtUp, caughtUp)
  }

  /** It does not read: nothing of what waits for it will ever leave. */
  #cut(): void {
    this.#isCut = true
    this.#writer.abandon()
    this.#leave(deaf(this.#readTimeout))
  }

  readonly #read = (chunk: Buffer) => this.#reader.push(chunk)

  #end(failure?: Error): void {
    if (this.#left) return
    const lost = this.#reader.end()
    if (lost > 0) this.onerror?.(new Error(`${lost} bytes of an incomplete line from the client were discarded`))
    this.#leave(failure)
  }

  /** Node goes on filling the buffer of a paused stdin: only one that is unreferenced lets the process end. */
  #leave(reason?: Error): void {
    if (this.#left) return
    this.#left = true
    this.#stdin.off('data', this.#read)
    this.#stdin.pause()
    this.#stdin.unref?.()
    this.onclose?.(reason)
  }
}

function failureOf(error: NodeJS.ErrnoException): Error | undefined {
  return error.code === undefined || GONE.has(error.code) ? undefined : error
}
