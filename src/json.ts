import { endOfString } from './strings.js'

/** A part of a JSON text: byte offsets, `end` exclusive. */
export interface Span {
  readonly start: number
  readonly end: number
}

/** A member of an object: its key, where the key's token begins, and the span of its value. */
export interface Member extends Span {
  /** Decoded, as `JSON.parse` would have it. */
  readonly key: string
  readonly keyStart: number
}

/** A span and what is to stand there instead. An empty span inserts. */
export interface Edit extends Span {
  readonly text: string | Uint8Array
}

/**
 * How deep arrays and objects may nest. `JSON.stringify` overflows the stack at about 5,000 levels, which is 10 KB of
 * text.
 */
export const MAX_DEPTH = 512

/** A text that may well be JSON, but nests deeper than `MAX_DEPTH`. */
export class DepthError extends SyntaxError {
  override readonly name = 'DepthError'

  constructor() {
    super(`Nested deeper than ${MAX_DEPTH} levels`)
  }
}

export const QUOTE = 0x22
export const OPEN_OBJECT = 0x7b
export const OPEN_ARRAY = 0x5b
export const BACKSLASH = 0x5c
export const CLOSE_OBJECT = 0x7d
const CLOSE_ARRAY = 0x5d
export const COMMA = 0x2c
export const COLON = 0x3a
export const MINUS = 0x2d
export const ZERO = 0x30
const LOWER_U = 0x75

const escapes = new Uint8Array(256)
for (const letter of '"\\/bfnrt') escapes[letter.charCodeAt(0)] = 1
/** What needs a second look inside a string: its end, an escape, or what must not be there. */
const stops = new Uint8Array(256).fill(1, 0, 0x20)
stops[QUOTE] = stops[BACKSLASH] = 1
const hex = new Uint8Array(256)
for (const digit of '0123456789abcdefABCDEF') hex[digit.charCodeAt(0)] = 1
/** Short strings that were read lately, since methods, names and keys come again and again. */
const SLOTS = 256
const SHORT = 32
const lately: string[] = new Array(SLOTS).fill('')
const latelyBytes = new Uint8Array(SLOTS * SHORT)

/** So far a string is read byte by byte: to ask the module costs more. */
const NEAR = 128

/** What is open around the current value: 1 for an object, 0 for an array. Shared, since no scan interrupts another. */
const open = new Uint8Array(MAX_DEPTH + 1)

/** The same bytes as a Buffer; nothing is copied. */
export function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}

/** What is wrong at an offset. Never quotes the text, since it may reach a peer. */
export function unexpected(bytes: Uint8Array, at: number): SyntaxError {
  return new SyntaxError(at < bytes.length ? `Unexpected byte at offset ${at}` : 'Unexpected end of JSON text')
}

/** The offset of the next byte that is not white space (RFC 8259, section 2), or the end. */
export function skipSpace(bytes: Uint8Array, at: number): number {
  const { length } = bytes
  while (at < length) {
    const byte = bytes[at]!
    if (byte > 0x20 || (byte !== 0x20 && byte !== 0x0a && byte !== 0x0d && byte !== 0x09)) break
    at++
  }
  return at
}

/**
 * The offset after the JSON value that begins at `at` (white space before it is skipped). Refuses what `JSON.parse`
 * refuses, with a `SyntaxError`, and more than `room` levels with a `DepthError`. Whether strings are valid UTF-8 is
 * not looked at.
 */
export function skipValue(bytes: Uint8Array, at: number, room: number = MAX_DEPTH): number {
  let depth = 0
  at = skipSpace(bytes, at)
  for (;;) {
    const byte = bytes[at]
    if (byte === QUOTE) at = skipString(bytes, at)
    else if (byte === OPEN_OBJECT || byte === OPEN_ARRAY) {
      if (depth >= room) throw new DepthError()
      const object = byte === OPEN_OBJECT
      at = skipSpace(bytes, at + 1)
      if (bytes[at] === (object ? CLOSE_OBJECT : CLOSE_ARRAY)) at++
      else {
        open[depth++] = object ? 1 : 0
        if (object) at = skipKey(bytes, at)
        continue
      }
    } else at = skipScalar(bytes, at)
    for (;;) {
      if (depth === 0) return at
      at = skipSpace(bytes, at)
      const object = open[depth - 1] === 1
      if (bytes[at] === COMMA) {
        at = skipSpace(bytes, at + 1)
        if (object) at = skipKey(bytes, at)
        break
      }
      if (bytes[at] !== (object ? CLOSE_OBJECT : CLOSE_ARRAY)) throw unexpected(bytes, at)
      at++
      depth--
    }
  }
}

/**
 * The offset after a value of any depth, found by counting brackets. For texts that are refused already and of which
 * only the rest is to be read.
 */
export function skipDeep(bytes: Uint8Array, at: number): number {
  let depth = 0
  while (at < bytes.length) {
    const byte = bytes[at]
    if (byte === QUOTE) at = skipString(bytes, at)
    else {
      if (byte === OPEN_OBJECT || byte === OPEN_ARRAY) depth++
      else if (byte === CLOSE_OBJECT || byte === CLOSE_ARRAY) depth--
      at++
      if (depth === 0) return at
    }
  }
  throw unexpected(bytes, at)
}

function skipKey(bytes: Uint8Array, at: number): number {
  at = skipSpace(bytes, skipString(bytes, at))
  if (bytes[at] !== COLON) throw unexpected(bytes, at)
  return skipSpace(bytes, at + 1)
}

export function skipString(bytes: Uint8Array, at: number): number {
  if (bytes[at] !== QUOTE) throw unexpected(bytes, at)
  at = readString(bytes, at + 1, Math.min(bytes.length, at + NEAR))
  if (at < 0) return -at
  const end = endOfString(bytes, at)
  return end < 0 ? -readString(bytes, at, bytes.length) : end
}

/** Reads on in a string byte by byte. Gives the first offset from `stop` on, or minus the offset after the string. */
function readString(bytes: Uint8Array, at: number, stop: number): number {
  while (at < stop) {
    while (at < stop && stops[bytes[at]!] === 0) at++
    if (at >= stop) break
    const byte = bytes[at]!
    if (byte === QUOTE) return -(at + 1)
    if (byte !== BACKSLASH) throw unexpected(bytes, at)
    at = skipEscape(bytes, at)
  }
  if (at >= bytes.length) throw unexpected(bytes, bytes.length)
  return at
}

function skipEscape(bytes: Uint8Array, at: number): number {
  const byte = bytes[at + 1]!
  if (escapes[byte] === 1) return at + 2
  if (byte !== LOWER_U) throw unexpected(bytes, at + 1)
  for (let index = at + 2; index < at + 6; index++) if (hex[bytes[index]!] !== 1) throw unexpected(bytes, index)
  return at + 6
}

function skipScalar(bytes: Uint8Array, at: number): number {
  const byte = bytes[at]!
  if (byte === MINUS || isDigit(byte)) return skipNumber(bytes, at)
  const word = byte === 0x74 ? 'true' : byte === 0x66 ? 'false' : 'null'
  for (let index = 0; index < word.length; index++) {
    if (bytes[at + index] !== word.charCodeAt(index)) throw unexpected(bytes, at + index)
  }
  return at + word.length
}

/** RFC 8259, section 6. */
function skipNumber(bytes: Uint8Array, at: number): number {
  if (bytes[at] === MINUS) at++
  at = bytes[at] === ZERO ? at + 1 : skipDigits(bytes, at)
  if (bytes[at] === 0x2e) at = skipDigits(bytes, at + 1)
  if (bytes[at] === 0x65 || bytes[at] === 0x45) {
    at++
    if (bytes[at] === 0x2b || bytes[at] === MINUS) at++
    at = skipDigits(bytes, at)
  }
  return at
}

function skipDigits(bytes: Uint8Array, at: number): number {
  if (!isDigit(bytes[at])) throw unexpected(bytes, at)
  while (isDigit(bytes[at])) at++
  return at
}

export function isDigit(byte: number | undefined): boolean {
  return byte !== undefined && byte >= ZERO && byte <= 0x39
}

/**
 * Walks the object whose `{` is at `at` and gives the offset after it. `visit` gets the span of each key's token and
 * the offset of its value, and gives the offset after that value.
 */
export function walkObject(
  bytes: Uint8Array,
  at: number,
  visit: (keyStart: number, keyEnd: number, start: number) => number,
): number {
  if (bytes[at] !== OPEN_OBJECT) throw unexpected(bytes, at)
  at = skipSpace(bytes, at + 1)
  if (bytes[at] === CLOSE_OBJECT) return at + 1
  for (;;) {
    const keyEnd = skipString(bytes, at)
    const colon = skipSpace(bytes, keyEnd)
    if (bytes[colon] !== COLON) throw unexpected(bytes, colon)
    at = skipSpace(bytes, visit(at, keyEnd, skipSpace(bytes, colon + 1)))
    if (bytes[at] === CLOSE_OBJECT) return at + 1
    if (bytes[at] !== COMMA) throw unexpected(bytes, at)
    at = skipSpace(bytes, at + 1)
  }
}

/** The same for an array: `visit` gets the offset of each element and gives the offset after it. */
export function walkArray(bytes: Uint8Array, at: number, visit: (start: number) => number): number {
  if (bytes[at] !== OPEN_ARRAY) throw unexpected(bytes, at)
  at = skipSpace(bytes, at + 1)
  if (bytes[at] === CLOSE_ARRAY) return at + 1
  for (;;) {
    at = skipSpace(bytes, visit(at))
    if (bytes[at] === CLOSE_ARRAY) return at + 1
    if (bytes[at] !== COMMA) throw unexpected(bytes, at)
    at = skipSpace(bytes, at + 1)
  }
}

/** The members of the object whose `{` is at `at`, in order, duplicates included. */
export function members(bytes: Uint8Array, at: number): Member[] {
  const buffer = asBuffer(bytes)
  const found: Member[] = []
  walkObject(bytes, at, (keyStart, keyEnd, start) => {
    const end = skipValue(bytes, start)
    found.push({ key: stringOf(buffer, keyStart, keyEnd), keyStart, start, end })
    return end
  })
  return found
}

/** The member that `JSON.parse` would have taken for `key`, which is the last; undefined where `at` is no object. */
export function member(bytes: Uint8Array, at: number, key: string): Member | undefined {
  if (bytes[at] !== OPEN_OBJECT) return undefined
  return members(bytes, at).findLast((found) => found.key === key)
}

/** The elements of the array whose `[` is at `at`. */
export function elements(bytes: Uint8Array, at: number): Span[] {
  const found: Span[] = []
  walkArray(bytes, at, (start) => {
    const end = skipValue(bytes, start)
    found.push({ start, end })
    return end
  })
  return found
}

/** What a valid string token says. `start` is at its opening quote, `end` after the closing one. */
export function stringOf(bytes: Uint8Array, start: number, end: number): string {
  const slot = slotOf(bytes, start + 1, end - 1)
  if (isIn(slot, bytes, start + 1, end - 1)) return lately[slot]!
  let ascii = true
  for (let at = start + 1; at < end - 1; at++) {
    const byte = bytes[at]!
    if (byte === BACKSLASH) return JSON.parse(asBuffer(bytes).toString('utf8', start, end)) as string
    if (byte >= 0x80) ascii = false
  }
  return ascii ? asciiOf(bytes, start + 1, end - 1) : asBuffer(bytes).toString('utf8', start + 1, end - 1)
}

/** A span of ASCII as a string. */
export function asciiOf(bytes: Uint8Array, start: number, end: number): string {
  const slot = slotOf(bytes, start, end)
  if (isIn(slot, bytes, start, end)) return lately[slot]!
  const text = asBuffer(bytes).toString('latin1', start, end)
  if (text.length <= SHORT) {
    lately[slot] = text
    latelyBytes.set(bytes.subarray(start, end), slot * SHORT)
  }
  return text
}

function slotOf(bytes: Uint8Array, start: number, end: number): number {
  const length = end - start
  return (length * 31 + bytes[start]! * 7 + bytes[start + (length >> 1)]! * 3 + bytes[end - 1]!) & (SLOTS - 1)
}

/** Whether the string in a slot says what a span does. */
function isIn(slot: number, bytes: Uint8Array, start: number, end: number): boolean {
  const length = end - start
  if (lately[slot]!.length !== length) return false
  let same = 0
  while (same < length && latelyBytes[slot * SHORT + same] === bytes[start + same]) same++
  return same === length
}

/** The bytes with some spans replaced. The spans may come in any order; they must not overlap. */
export function splice(bytes: Uint8Array, edits: readonly Edit[]): Buffer {
  const pieces: Uint8Array[] = []
  let at = 0
  for (const { start, end, text } of edits.toSorted((one, other) => one.start - other.start)) {
    pieces.push(bytes.subarray(at, start), typeof text === 'string' ? Buffer.from(text) : text)
    at = end
  }
  pieces.push(bytes.subarray(at))
  return Buffer.concat(pieces)
}
