import type { Readable, Writable } from 'node:stream'
import { reasons } from '../error.js'
import { LineReader, LineWriter, MAX_LINE_BYTES } from '../lines.js'
import { type CloseOptions, type Frame, FrameError, type Wire } from '../wire.js'

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
}

/** A reader or a writer at the other end is no more: a pipe, a socket, a terminal. */
const GONE = new Set<unknown>(['EPIPE', 'ECONNRESET', 'EIO'])

/**
 * The client that started this process, and speaks to it over its stdin and stdout (specification 2025-11-25,
 * basic/transports, "stdio"). Hands over every line that is not blank, whatever is in it.
 *
 * `onclose` is called, without a reason, when stdin ended or stdout broke: the client left. Neither stream is ever
 * ended or destroyed: they belong to the process.
 */
export class StdioClient implements Wire {
  onframe?: Wire['onframe']
  onclose?: Wire['onclose']
  onerror?: Wire['onerror']

  /** What broke stdin or stdout where nobody has left: a disk that is full. */
  failure: Error | undefined

  readonly #stdin: Readable & { ref?(): unknown; unref?(): unknown }
  readonly #reader: LineReader
  readonly #writer: LineWriter
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
      if (!this.#left && !this.#failed(error)) this.onerror?.(error)
      this.#end()
    })
    this.#writer = new LineWriter(options.stdout ?? process.stdout, (error) => {
      this.#failed(error)
      this.#leave()
    })
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
    stdin.on('end', this.#end)
    stdin.on('close', this.#end)
    if (stdin.readableEnded || stdin.destroyed) process.nextTick(this.#end)
    // A listener for data makes a stream flow, unless it was paused by hand.
    stdin.on('data', this.#read)
    if (!this.#paused && !this.#left) stdin.resume()
  }

  send(frame: Frame): Promise<void> | undefined {
    if (!this.#closing) return this.#writer.write(frame)
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
    this.#closing ??= Promise.race([this.#writer.flush(), this.#hurried])
    if (urgent) this.#hurry()
    return this.#closing
  }

  readonly #read = (chunk: Buffer) => this.#reader.push(chunk)

  readonly #end = () => {
    if (this.#left) return
    const lost = this.#reader.end()
    if (lost > 0) this.onerror?.(new Error(`${lost} bytes of an incomplete line from the client were discarded`))
    this.#leave()
  }

  #failed(error: NodeJS.ErrnoException): boolean {
    if (error.code === undefined || GONE.has(error.code)) return false
    this.failure ??= error
    return true
  }

  /** Node goes on filling the buffer of a paused stdin: only one that is unreferenced lets the process end. */
  #leave(): void {
    if (this.#left) return
    this.#left = true
    this.#stdin.off('data', this.#read)
    this.#stdin.pause()
    this.#stdin.unref?.()
    this.onclose?.()
  }
}
