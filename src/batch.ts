export const LF = 0x0a
export const NEWLINE = Buffer.from('\n')
/** A part of this size is not copied to have it in one buffer with others: copying costs more than a second buffer to write. */
const LARGE = 16 * 1024

/** Memory that is written to no more. */
const settled = new WeakSet<ArrayBufferLike>()

/**
 * Nobody will change the memory of these bytes: a newline behind a frame there stays one. Not noted where they share it
 * with other buffers, as small ones do.
 */
export function settle({ buffer, byteLength }: Uint8Array): void {
  if (byteLength === buffer.byteLength) settled.add(buffer)
}

/**
 * Lines that leave together. Frames that lie one behind another in one buffer with a newline between, as they do in a
 * chunk that was split into lines, leave as one part of that buffer; what is scattered and small is copied together.
 */
export class Batch {
  #size = 0
  #parts: Buffer[] = []
  /** The part that may go on: where it lies in a buffer, its last newline not counted. */
  #buffer: ArrayBufferLike | undefined
  #start = 0
  #end = 0
  /** That buffer's bytes, where they are settled. */
  #bytes: Uint8Array | undefined

  /** Bytes in it, newlines counted. */
  get size(): number {
    return this.#size
  }

  /** Adds a frame without line breaks. */
  add(frame: Uint8Array): void {
    const { buffer, byteOffset, length } = frame
    this.#size += length + 1
    if (buffer !== this.#buffer || byteOffset !== this.#end + 1 || !this.#isEnded) {
      this.#close()
      this.#buffer = buffer
      this.#bytes = settled.has(buffer) ? new Uint8Array(buffer) : undefined
      this.#start = byteOffset
    }
    this.#end = byteOffset + length
  }

  /** Takes all that is in it, in few buffers. */
  take(): readonly Buffer[] {
    this.#close()
    const parts = this.#parts
    this.clear()
    return parts.length > 1 ? joined(parts) : parts
  }

  clear(): void {
    this.#size = 0
    this.#parts = []
    this.#buffer = undefined
    this.#bytes = undefined
  }

  /** Whether a newline stands behind the part that may go on. */
  get #isEnded(): boolean {
    return this.#bytes?.[this.#end] === LF
  }

  #close(): void {
    if (this.#buffer === undefined) return
    const isEnded = this.#isEnded
    this.#parts.push(Buffer.from(this.#buffer as ArrayBuffer, this.#start, this.#end - this.#start + (isEnded ? 1 : 0)))
    if (!isEnded) this.#parts.push(NEWLINE)
    this.#buffer = undefined
    this.#bytes = undefined
  }
}

/** The same bytes, with small parts copied together. */
function joined(parts: readonly Buffer[]): Buffer[] {
  const found: Buffer[] = []
  let first = 0
  for (let at = 0; at <= parts.length; at++) {
    if (at < parts.length && parts[at]!.length < LARGE) continue
    if (at > first) found.push(at - first === 1 ? parts[first]! : Buffer.concat(parts.slice(first, at)))
    if (at < parts.length) found.push(parts[at]!)
    first = at + 1
  }
  return found
}
