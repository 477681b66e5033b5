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
  readonly #data = new Pieces()
  #dataLines = 0
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
      this.#line(bytes.subarray(start, end))
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

  #line(rest: Buffer): void {
    if (this.#skipping) {
      const blank = rest.length === 0 && !this.#skippedLine
      this.#skippedLine = false
      if (blank) this.#reset()
      return
    }
    let line = rest
    this.#bytes += rest.length
    if (this.#partial.size > 0) {
      this.#partial.add(rest)
      line = this.#partial.take()
    }
    if (this.#firstLine) {
      this.#firstLine = false
      line = withoutBom(line)
    }
    if (line.length === 0) this.#dispatch()
    else this.#field(line)
    if (this.#bytes > this.#maxBytes) {
      this.#tooLarge()
      this.#skippedLine = false
    }
  }

  #field(line: Buffer): void {
    const colon = line.indexOf(COLON)
    const value = colon === -1 ? nothing : line.subarray(colon + (line[colon + 1] === SPACE ? 2 : 1))
    if (colon === 0) {
      this.#bytes -= line.length
      this.#options.onComment?.(value.toString())
      return
    }
    switch (line.toString('latin1', 0, colon === -1 ? line.length : colon)) {
      case 'data':
        if (this.#dataLines > 0) this.#data.add(newline)
        this.#dataLines += 1
        this.#data.add(value)
        break
      case 'event':
        this.#type = value.toString()
        break
      case 'id':
        if (!value.includes(0)) this.#id = value.toString()
        break
      case 'retry': {
        const digits = value.toString('latin1')
        if (/^\d+$/.test(digits)) this.#options.onRetry?.(Number(digits))
      }
    }
  }

  #dispatch(): void {
    if (this.#id !== undefined) this.lastEventId = this.#id
    const empty = this.#dataLines === 0
    const event: ServerSentEvent = { type: this.#type || 'message', data: this.#data.take() }
    if (this.#id !== undefined) event.id = this.#id
    this.#reset()
    if (!empty) this.#options.onEvent(event)
  }

  #tooLarge(): void {
    const head = this.#data.size > 0 ? this.#data.head(HEAD) : afterName(this.#partial.head(HEAD))
    if (this.#id !== undefined) this.lastEventId = this.#id
    this.#reset()
    this.#partial.clear()
    this.#firstLine = false
    this.#skipping = true
    this.#skippedLine = true
    this.#options.onTooLarge?.(head)
  }

  #reset(): void {
    this.#type = ''
    this.#data.clear()
    this.#dataLines = 0
    this.#id = undefined
    this.#bytes = 0
    this.#skipping = false
  }
}

function afterName(line: Buffer): Buffer {
  return line.subarray(line.indexOf(COLON) + 1)
}
