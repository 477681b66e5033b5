import { getDefaultHighWaterMark, type Writable } from 'node:stream'
import { Batch, LF, NEWLINE, settle } from './batch.js'
import { type Deferred, deferred, handled } from './deferred.js'
import { asBuffer } from './json.js'

/** One line over this many bytes cannot be taken: 64 MiB. */
export const MAX_LINE_BYTES = 64 * 1024 * 1024

const CR = 0x0d
const SPACE = 0x20
const TAB = 0x09
const NOTHING: Buffer = Buffer.alloc(0)
const BOM = Buffer.from([0xef, 0xbb, 0xbf])

/** What is kept of a line over the limit; the id of a message stands near its beginning. */
const HEAD_BYTES = 4096
/**
 * What a stream of Node's default high water mark may hold, which is less in Node 20: each write is a system call. It is
 * also the most that is held until the tick ends.
 */
const FULL = 64 * 1024

/** Pieces below this size are joined as they come, so that a peer writing single bytes costs no object for each. */
const SMALL_PIECE = 64 * 1024

/**
 * Bytes that come in pieces. Small pieces of like size are joined as they come, each byte at most 16 times, and a big
 * one is not touched before the end. Where no more come than the last time, each is copied to its place as it comes:
 * there is nothing to do at the end then.
 */
export class Pieces {
  #pieces: Buffer[] = []
  #size = 0
  /** How many bytes there were the last time, of several pieces. */
  #lately = 0
  /** Room for as many; what has come lies in it. */
  #room: Buffer | undefined

  get size(): number {
    return this.#size
  }

  add(piece: Buffer): void {
    if (piece.length === 0) return
    const before = this.#size
    this.#size += piece.length
    if (this.#room === undefined && this.#pieces.length === 1 && this.#size <= this.#lately) this.#makeRoom()
    if (this.#room === undefined) this.#gather(piece)
    else if (this.#size <= this.#room.length) this.#room.set(piece, before)
    else {
      this.#pieces = [this.#room.subarray(0, before), piece]
      this.#room = undefined
      this.#lately = 0
    }
  }

  #makeRoom(): void {
    const room = Buffer.allocUnsafe(this.#lately)
    room.set(this.#pieces[0]!)
    settle(room)
    this.#room = room
    this.#pieces = []
  }

  #gather(piece: Buffer): void {
    let last = piece
    for (let previous = this.#pieces.at(-1); previous && last.length < SMALL_PIECE; previous = this.#pieces.at(-1)) {
      if (previous.length > last.length) break
      this.#pieces.pop()
      last = Buffer.concat([previous, last])
    }
    this.#pieces.push(last)
  }

  /** A copy of the first bytes, `length` at most. */
  head(length: number): Buffer {
    return Buffer.concat(this.#room ? [this.#room] : this.#pieces, Math.min(this.#size, length))
  }

  /** All of it, and begins anew. A single piece is handed over as it came. */
  take(): Buffer {
    const all = this.#room ? this.#inRoom(this.#room) : this.#joined()
    this.clear()
    return all
  }

  /** Far more room than needed is not kept for so little. */
  #inRoom(room: Buffer): Buffer {
    this.#lately = this.#size
    const all = room.subarray(0, this.#size)
    return room.length > 2 * all.length ? Buffer.from(all) : all
  }

  #joined(): Buffer {
    if (this.#pieces.length === 1) return this.#pieces[0]!
    const all = Buffer.concat(this.#pieces, this.#size)
    this.#lately = this.#size
    settle(all)
    return all
  }

  clear(): void {
    this.#pieces = []
    this.#size = 0
    this.#room = undefined
  }
}

export interface LineReaderOptions {
  /**
   * Bytes that a line may have, its newline not counted.
   * @default 67108864
   */
  maxBytes?: number
  /** A line, without its newline and one carriage return before it; it may be a view of the chunk it came in. */
  onLine: (line: Buffer) => void
  /** A line passed the limit; called once, with its first 4096 bytes at most. It is skipped up to its newline. */
  onOversize: (head: Buffer, bytesSoFar: number) => void
  /** The same line passed twice the limit. */
  onRunaway?: () => void
}

/**
 * Splits a stream of bytes into lines, at the byte 0x0A only: a bare carriage return, U+2028 and U+2029 are legal in
 * JSON. Decodes nothing, so that a character may be cut anywhere. Skips lines of white space only, and a byte order
 * mark at the very start. Framing of the stdio transport: specification 2025-11-25, basic/transports, "stdio".
 */
export class LineReader {
  readonly #options: LineReaderOptions
  readonly #max: number
  readonly #pieces = new Pieces()
  /** Bytes of the line, those that are skipped too. */
  #size = 0
  #first = true

  constructor(options: LineReaderOptions) {
    this.#options = options
    this.#max = options.maxBytes ?? MAX_LINE_BYTES
  }

  push(chunk: Buffer): void {
    settle(chunk)
    let start = 0
    for (let end = chunk.indexOf(LF); end >= 0; end = chunk.indexOf(LF, start)) {
      const piece = chunk.subarray(start, end)
      start = end + 1
      const isWhole = this.#size === 0 && piece.length <= this.#max
      if (!isWhole) this.#take(piece)
      const line = isWhole ? this.#lineOf(piece) : this.#finish(NEWLINE)
      if (line !== undefined) this.#options.onLine(line)
    }
    if (start < chunk.length) this.#take(start === 0 ? chunk : chunk.subarray(start))
  }

  /** The stream ended. A last line without newline is a line if it is whole JSON; else says how many bytes are lost. */
  end(): number {
    const line = this.#finish()
    if (line === undefined) return 0
    if (!isJson(line)) return line.length
    this.#options.onLine(line)
    return 0
  }

  #take(piece: Buffer): void {
    const before = this.#size
    this.#size += piece.length
    if (before <= this.#max) this.#pieces.add(piece)
    if (before <= this.#max && this.#size > this.#max) {
      const head = this.#pieces.head(HEAD_BYTES)
      this.#pieces.clear()
      this.#options.onOversize(this.#first ? withoutBom(head) : head, this.#size)
    }
    if (before <= 2 * this.#max && this.#size > 2 * this.#max) this.#options.onRunaway?.()
  }

  /** The line that was gathered, which has `ending` behind it. */
  #finish(ending = NOTHING): Buffer | undefined {
    const oversize = this.#size > this.#max
    this.#size = 0
    if (oversize) {
      this.#first = false
      return undefined
    }
    const { size } = this.#pieces
    this.#pieces.add(ending)
    const bytes = this.#pieces.take()
    return this.#lineOf(bytes.subarray(0, size))
  }

  /** The line, unless it is of white space only. */
  #lineOf(bytes: Buffer): Buffer | undefined {
    let line = this.#first ? withoutBom(bytes) : bytes
    this.#first = false
    if (line[line.length - 1] === CR) line = line.subarray(0, -1)
    return firstByte(line) === undefined ? undefined : line
  }
}

/**
 * Writes frames as lines to a stream. Frames written in one tick leave in one system call. Never waits on a dead
 * stream, and listens to its errors so that none is uncaught.
 */
export class LineWriter {
  readonly #stream: Writable
  /** What was written in this tick. */
  readonly #batch = new Batch()
  /** Bytes at which it is full. */
  readonly #room: number
  #scheduled = false
  /** Buffers that the stream has and the operating system has not. */
  #pending = 0
  #failure: Error | undefined
  #ready: Deferred | undefined
  #flushed: Deferred | undefined

  /** `onClose` is called once, when the stream takes no more: it failed, or was closed by the other end. */
  constructor(stream: Writable, onClose?: (error: Error) => void) {
    this.#stream = stream
    const mark = stream.writableHighWaterMark
    this.#room = mark === getDefaultHighWaterMark(false) ? FULL : mark
    const fail = (error: Error) => {
      if (this.#failure) return
      this.#failure = error
      this.#batch.clear()
      this.#ready?.reject(error)
      this.#flushed?.resolve()
      onClose?.(error)
    }
    stream.on('error', fail)
    stream.on('close', () => fail(new Error('The stream was closed')))
    stream.on('drain', this.#drained)
    stream.on('finish', this.#drained)
  }

  /** Whether a frame can still be written. */
  get open(): boolean {
    return this.#failure === undefined && this.#stream.writable
  }

  /**
   * Writes a frame, on one line, and a newline. Returns nothing while the stream takes more, else a promise that resolves when it does,
   * and rejects when the stream failed. A rejection that nobody awaits is not reported as unhandled.
   */
  write(frame: Uint8Array): Promise<void> | undefined {
    if (!this.open) return handled(Promise.reject(this.#failure ?? new Error('The stream was ended')))
    if (!this.#scheduled) {
      this.#scheduled = true
      process.nextTick(this.#endTick)
    }
    const stream = this.#stream
    const batch = this.#batch
    batch.add(onOneLine(frame))
    if (batch.size >= FULL) this.#leave()
    if (stream.writableLength + batch.size < this.#room) return
    this.#ready ??= deferred()
    return this.#ready.promise
  }

  /** Resolves when all that was written is with the operating system, or the stream failed. */
  flush(): Promise<void> {
    if ((this.#pending === 0 && this.#batch.size === 0) || this.#failure) return Promise.resolve()
    this.#flushed ??= deferred()
    return this.#flushed.promise
  }

  /** Gives the stream up, though it stays open: nothing more is written, and nobody waits for it any longer. */
  abandon(): void {
    this.#failure ??= new Error('The stream was given up')
    this.#batch.clear()
    this.#ready?.resolve()
    this.#ready = undefined
    this.#flushed?.resolve()
  }

  /** Ends the stream once everything written is gone. */
  end(): void {
    if (!this.open) return
    this.#leave()
    this.#stream.end()
  }

  readonly #endTick = () => {
    this.#scheduled = false
    this.#leave()
  }

  #leave(): void {
    if (this.#batch.size === 0) return
    const parts = this.#batch.take()
    if (parts.length > 1) this.#stream.cork()
    let isReady = false
    for (const part of parts) {
      this.#pending++
      isReady = this.#stream.write(part, this.#written)
    }
    if (parts.length > 1) this.#stream.uncork()
    // It has drained since it was full, and will not say so again.
    if (isReady) this.#drained()
  }

  readonly #drained = () => {
    this.#ready?.resolve()
    this.#ready = undefined
  }

  readonly #written = () => {
    if (--this.#pending > 0 || this.#batch.size > 0) return
    this.#flushed?.resolve()
    this.#flushed = undefined
  }
}

/** Whether the bytes may be a JSON-RPC message, or a batch: the first one that is not white space opens one. */
export function looksLikeMessage(line: Uint8Array): boolean {
  const byte = firstByte(line)
  return byte === 0x7b || byte === 0x5b
}

/**
 * A frame without line breaks. Those in it can only be white space between tokens (RFC 8259, section 2): they become
 * spaces.
 */
export function withoutBreaks(frame: Uint8Array): Buffer {
  const bytes = asBuffer(frame)
  if (bytes.indexOf(LF) < 0 && bytes.indexOf(CR) < 0) return bytes
  const copy = Buffer.from(bytes)
  for (const byte of [LF, CR]) {
    for (let at = copy.indexOf(byte); at >= 0; at = copy.indexOf(byte, at + 1)) copy[at] = SPACE
  }
  return copy
}

/** A carriage return alone ends no line on stdio: such a frame stays as it is. */
function onOneLine(frame: Uint8Array): Buffer {
  const bytes = asBuffer(frame)
  return bytes.indexOf(LF) < 0 ? bytes : withoutBreaks(bytes)
}

/** The first byte that is not white space. */
function firstByte(line: Uint8Array): number | undefined {
  for (let at = 0; at < line.length; at++) {
    const byte = line[at]!
    if (byte !== SPACE && byte !== TAB && byte !== CR) return byte
  }
}

function isJson(line: Buffer): boolean {
  try {
    JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(line))
    return true
  } catch {
    return false
  }
}

export function withoutBom(line: Buffer): Buffer {
  return BOM.equals(line.subarray(0, BOM.length)) ? line.subarray(BOM.length) : line
}
