import type { Writable } from 'node:stream'

const LF = 0x0a
const TAB = 0x09
/** Control, format (bidirectional ones among them) and line separating characters. */
const UNSEEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu
const NEWLINE = Buffer.from('\n')
/** A line of a log over this many bytes is cut. */
const MAX_LOG_LINE = 64 * 1024
/** A log whose reader is this many bytes behind loses what comes. */
const MAX_LOG_BUFFER = 1024 * 1024

const guarded = new WeakSet<Writable>()

/**
 * Passes a log on in whole lines, so that those of several writers do not mix in one sink. Takes whatever comes: where
 * the sink fails, or is more than 1 MiB behind, bytes are lost and the next line says how many. A line over 64 KiB is
 * cut into pieces.
 */
export class LogRelay {
  readonly #sink: Writable
  #rest: Buffer[] = []
  #size = 0
  #lost = 0

  constructor(sink: Writable) {
    this.#sink = sink
    if (!guarded.has(sink)) sink.on('error', () => {})
    guarded.add(sink)
  }

  push(chunk: Buffer): void {
    const end = chunk.lastIndexOf(LF) + 1
    this.#rest.push(chunk.subarray(0, end || chunk.length))
    this.#size += end || chunk.length
    if (end > 0) this.#pass()
    else if (this.#size >= MAX_LOG_LINE) this.end()
    if (end > 0 && end < chunk.length) this.push(chunk.subarray(end))
  }

  /** Ends the line that was begun. */
  end(): void {
    if (this.#size === 0) return
    this.#rest.push(NEWLINE)
    this.#pass()
  }

  #pass(): void {
    const lines = shown(Buffer.concat(this.#rest))
    this.#rest = []
    this.#size = 0
    this.#lost += lines.length
    if (!this.#sink.writable || this.#sink.writableLength > MAX_LOG_BUFFER) return
    const lost = this.#lost - lines.length
    try {
      if (lost > 0) this.#sink.write(`[${lost} bytes of log lost]\n`)
      this.#sink.write(lines)
      this.#lost = 0
    } catch {}
  }
}

/** Whole lines as a terminal may show them: what could move its cursor, hide or turn text round is escaped. */
function shown(lines: Buffer): Buffer {
  if (lines.every((byte) => (byte >= 0x20 && byte < 0x7f) || byte === LF || byte === TAB)) return lines
  const text = lines.toString().replaceAll('\r\n', '\n')
  return Buffer.from(text.replace(UNSEEN, (c) => (c === '\n' || c === '\t' ? c : escaped(c))))
}

/** Text of a peer's for a log: control, format and line separating characters are escaped, so it stays on its line. */
export function printable(bytes: Uint8Array): string {
  return Buffer.from(bytes)
    .toString()
    .replaceAll('\r\n', '\n')
    .replace(UNSEEN, (c) => (c === '\n' ? '\\n' : escaped(c)))
}

function escaped(c: string): string {
  return `\\u{${c.codePointAt(0)!.toString(16)}}`
}
