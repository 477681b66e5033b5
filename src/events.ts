import { Pieces, withoutBom } from './lines.js'

/** One server-sent event. */
export interface ServerSentEvent {
  /** @default 'message' */
  type: string
  /** The bytes of its `data` lines, joined by LF. */
  data: Buffer
  /** The `id` that this event itself carried. */
  id?: string
}

export interface EventReaderOptions {
  onEvent: (event: ServerSentEvent) => void
  /** The `retry` field: milliseconds to wait before connecting again. */
  onRetry?: (milliseconds: number) => void
  /** What is over `maxBytes` of a comment may be missing. */
  onComment?: (text: string) => void
  /** An event over `maxBytes` is skipped up to its end; `head` is the beginning of its data. */
  onTooLarge?: (head: Buffer) => void
  /** @default 67_108_864 (64 MiB), for one event */
  maxBytes?: number
}

const LF = 0x0a
const CR = 0x0d
const COLON = 0x3a
const SPACE = 0x20
const HEAD = 4096
const nothing = Buffer.alloc(0)
const newline = Buffer.of(LF)
const DATA = Buffer.from('data')
const EVENT = Buffer.from('event')
const MESSAGE = 'message'

/**
 * Reads an event stream (WHATWG HTML, section 9.2.6) on bytes: what stands in `data` is handed over undecoded, as a
 * view of the chunk where it came in one piece.
 */
export class EventReader {
  /** The last event ID: what a request that resumes the stream sends as `Last-Event-ID`. */
  lastEventId = ''

  readonly #options: EventReaderOptions
  readonly #maxBytes: number
  /** The line that has not ended yet. */
  readonly #partial = new Pieces()
  #bytes = 0
  #afterCR = false
  #firstLine = true
  #type = ''
  /** The data, while it is one line; nearly always it is. */
  #data: Buffer | undefined
  /** The data, as soon as it is more. */
  #lines: Pieces | undefined
  #id: string | undefined
  #skipping = false
  /** Whether the line being skipped has any bytes: it is not the blank one that ends the event. */
  #skippedLine = false

  constructor(options: EventReaderOptions) {
    this.#options = options
    this.#maxBytes = options.maxBytes ?? 64 * 1024 * 1024
  }

  push(chunk: Uint8Array): void {
    const bytes = Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength)
    let start = 0
    if (this.#afterCR && bytes.length > 0) {
      this.#afterCR = false
      if (bytes[0] === LF) start = 1
    }
    let cr = bytes.indexOf(CR, start)
    let lf = bytes.indexOf(LF, start)
    while (cr !== -1 || lf !== -1) {
      const end = cr === -1 || (lf !== -1 && lf < cr) ? lf : cr
      this.#line(bytes, start, end)
      start = end + 1
      if (end === cr) {
        if (start === bytes.length) this.#afterCR = true
        else if (bytes[start] === LF) start += 1
        cr = bytes.indexOf(CR, start)
      }
      if (lf !== -1 && lf < start) lf = bytes.indexOf(LF, start)
    }
    if (start < bytes.length) this.#hold(bytes.subarray(start))
  }

  /** The stream ended: an event that no blank line ended is discarded. */
  end(): void {
    this.#reset()
    this.#partial.clear()
  }

  #hold(part: Buffer): void {
    if (this.#skipping) {
      this.#skippedLine = true
      return
    }
    this.#partial.add(part)
    this.#bytes += part.length
    if (this.#bytes > this.#maxBytes && !this.#cutComment()) this.#tooLarge()
  }

  /** Lets go of a comment that has not ended: it is no part of the event, which must not be lost for it. */
  #cutComment(): boolean {
    const head = this.#partial.head(4)
    const start = this.#firstLine ? head.length - withoutBom(head).length : 0
    if (head[start] !== COLON) return false
    this.#bytes -= this.#partial.size - start - 1
    this.#partial.clear()
    this.#partial.add(head.subarray(0, start + 1))
    return true
  }

  /** Cuts no view of what it need not hand over: a view costs more than all else that is done to a short line. */
  #line(chunk: Buffer, from: number, to: number): void {
    if (this.#skipping) {
      const blank = from === to && !this.#skippedLine
      this.#skippedLine = false
      if (blank) this.#reset()
      return
    }
    let [bytes, start, end] = [chunk, from, to]
    this.#bytes += end - start
    if (this.#partial.size > 0) {
      this.#partial.add(bytes.subarray(start, end))
      bytes = this.#partial.take()
      start = 0
      end = bytes.length
    }
    if (this.#firstLine) {
      this.#firstLine = false
      start = end - withoutBom(bytes.subarray(start, end)).length
    }
    if (start === end) this.#dispatch()
    else this.#field(bytes, start, end)
    if (this.#bytes > this.#maxBytes) {
      this.#tooLarge()
      this.#skippedLine = false
    }
  }

  #field(bytes: Buffer, start: number, end: number): void {
    if (isNamed(bytes, start, end, DATA)) this.#addData(valueFrom(bytes, start + DATA.length, end))
    else if (isNamed(bytes, start, end, EVENT)) this.#type = typeOf(bytes, start + EVENT.length, end)
    else this.#otherField(bytes.subarray(start, end))
  }

  #addData(value: Buffer): void {
    if (this.#data === undefined) {
      this.#data = value
      return
    }
    if (this.#lines === undefined) {
      this.#lines = new Pieces()
      this.#lines.add(this.#data)
    }
    this.#lines.add(newline)
    this.#lines.add(value)
  }

  #otherField(line: Buffer): void {
    const colon = line.indexOf(COLON)
    const value = valueFrom(line, colon === -1 ? line.length : colon, line.length)
    if (colon === 0) {
      this.#bytes -= line.length
      this.#options.onComment?.(value.toString())
      return
    }
    const name = line.toString('latin1', 0, colon === -1 ? line.length : colon)
    if (name === 'id') {
      if (!value.includes(0)) this.#id = value.toString()
    } else if (name === 'retry') {
      const digits = value.toString('latin1')
      if (/^\d+$/.test(digits)) this.#options.onRetry?.(Number(digits))
    }
  }

  #dispatch(): void {
    if (this.#id !== undefined) this.lastEventId = this.#id
    const data = this.#lines?.take() ?? this.#data
    if (data === undefined) {
      this.#reset()
      return
    }
    const event: ServerSentEvent = { type: this.#type || 'message', data }
    if (this.#id !== undefined) event.id = this.#id
    this.#reset()
    this.#options.onEvent(event)
  }

  #tooLarge(): void {
    const head = this.#headOfData() ?? afterName(this.#partial.head(HEAD))
    if (this.#id !== undefined) this.lastEventId = this.#id
    this.#reset()
    this.#partial.clear()
    this.#firstLine = false
    this.#skipping = true
    this.#skippedLine = true
    this.#options.onTooLarge?.(head)
  }

  #headOfData(): Buffer | undefined {
    if (this.#lines) return this.#lines.head(HEAD)
    return this.#data && this.#data.length > 0 ? Buffer.from(this.#data.subarray(0, HEAD)) : undefined
  }

  #reset(): void {
    this.#type = ''
    this.#data = undefined
    this.#lines = undefined
    this.#id = undefined
    this.#bytes = 0
    this.#skipping = false
  }
}

function isNamed(bytes: Buffer, start: number, end: number, name: Buffer): boolean {
  const after = start + name.length
  if (after > end || (after < end && bytes[after] !== COLON)) return false
  for (let at = 0; at < name.length; at += 1) if (bytes[start + at] !== name[at]) return false
  return true
}

/** What stands behind the colon, and one space; nothing where there is no colon. */
function valueFrom(bytes: Buffer, colon: number, end: number): Buffer {
  if (colon >= end) return nothing
  return bytes.subarray(bytes[colon + 1] === SPACE && colon + 1 < end ? colon + 2 : colon + 1, end)
}

/** Nearly all are messages. */
function typeOf(bytes: Buffer, colon: number, end: number): string {
  const start = colon + (bytes[colon + 1] === SPACE ? 2 : 1)
  if (end - start === MESSAGE.length && bytes.toString('latin1', start, end) === MESSAGE) return MESSAGE
  return valueFrom(bytes, colon, end).toString()
}

function afterName(line: Buffer): Buffer {
  return line.subarray(line.indexOf(COLON) + 1)
}
