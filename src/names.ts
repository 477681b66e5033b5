import { BACKSLASH, CLOSE_OBJECT, COLON, COMMA, QUOTE, skipSpace, skipString, unexpected } from './json.js'

/** Another spelling of a name was found: its index and this. */
export const ALIKE = 8
/** A key that is no name. */
const OTHER = -1
/** A key that may spell a name in another way. */
const SPELLED = -2

/**
 * Letters that some parsers take for an ASCII one when they ignore case: Go folds the first, Java the others. (Both
 * take U+212A for a k, which no name has.)
 */
const folds = new Map([
  [0x17f, 's'],
  [0x130, 'i'],
  [0x131, 'i'],
])

/** Names of members that no two parsers may read differently. Each begins with another letter. */
export class Names {
  readonly names: readonly string[]
  /** What a key's token has behind its first quote. */
  readonly #tokens: readonly Uint8Array[]
  readonly #longest: number
  /** For the first byte of a key: the index of the name that begins so, `OTHER`, or `SPELLED`. */
  readonly #first: Int8Array

  constructor(names: readonly string[]) {
    this.names = names
    this.#tokens = names.map((name) => Buffer.from(`${name}"`))
    this.#longest = Math.max(...names.map((name) => name.length))
    this.#first = new Int8Array(256).fill(OTHER, 0, 0x80).fill(SPELLED, 0x80)
    this.#first[BACKSLASH] = SPELLED
    for (const [index, name] of names.entries()) {
      this.#first[name.toUpperCase().charCodeAt(0)] = SPELLED
      this.#first[name.charCodeAt(0)] = index
    }
  }

  /**
   * Walks the object whose `{` is at `at` and gives the offset after it. `visit` gets the index of the name that each
   * key spells, that and `ALIKE` if it only resembles it, -1 if neither; and the offset of its value. It gives the
   * offset after that value.
   */
  walk(bytes: Uint8Array, at: number, visit: (index: number, start: number) => number): number {
    at = skipSpace(bytes, at + 1)
    if (bytes[at] === CLOSE_OBJECT) return at + 1
    for (;;) {
      let index = this.#plain(bytes, at)
      const keyEnd = index >= 0 ? at + 1 + this.#tokens[index]!.length : skipString(bytes, at)
      if (index === SPELLED) index = this.#alike(bytes, at + 1, keyEnd - 1)
      const colon = skipSpace(bytes, keyEnd)
      if (bytes[colon] !== COLON) throw unexpected(bytes, colon)
      at = skipSpace(bytes, visit(index, skipSpace(bytes, colon + 1)))
      if (bytes[at] === CLOSE_OBJECT) return at + 1
      if (bytes[at] !== COMMA) throw unexpected(bytes, at)
      at = skipSpace(bytes, at + 1)
    }
  }

  /** The index of the name that the key at `at` plainly is; else `OTHER` for no name, `SPELLED` where it may be one. */
  #plain(bytes: Uint8Array, at: number): number {
    if (bytes[at] !== QUOTE) return OTHER
    const index = this.#first[bytes[at + 1] ?? 0]!
    if (index < 0) return index
    const token = this.#tokens[index]!
    for (let same = 1; same < token.length; same++) {
      if (bytes[at + 1 + same] !== token[same]) return SPELLED
    }
    return index
  }

  /** Reads a key no further than needed: a frame may hold a million of them. */
  #alike(bytes: Uint8Array, at: number, end: number): number {
    let folded = ''
    let exact = true
    let beforeNul = -1
    while (at < end) {
      let code = bytes[at]!
      if (code === BACKSLASH) {
        if (bytes[at + 1] !== 0x75) return beforeNul
        code = 0
        const stop = at + 6
        for (at += 2; at < stop; at++) code = code * 16 + hexDigit(bytes[at]!)
      } else if (code < 0x80) at++
      else if (code < 0xe0) {
        code = ((code & 0x1f) << 6) | (bytes[at + 1]! & 0x3f)
        at += 2
      } else return beforeNul
      if (code === 0) {
        exact = false
        if (beforeNul < 0) beforeNul = this.#resembled(folded)
        continue
      }
      const letter = foldOf(code)
      if (letter === undefined || folded.length === this.#longest) return beforeNul
      if (letter.charCodeAt(0) !== code) exact = false
      folded += letter
    }
    const index = this.#resembled(folded)
    if (index < 0) return beforeNul
    return exact ? index - ALIKE : index
  }

  #resembled(folded: string): number {
    const index = this.names.indexOf(folded)
    return index < 0 ? -1 : index + ALIKE
  }
}

function hexDigit(byte: number): number {
  return byte <= 0x39 ? byte - 0x30 : (byte | 0x20) - 0x57
}

/** The letter of a known name that some parser takes this one for. */
function foldOf(code: number): string | undefined {
  if (code >= 0x61 && code <= 0x7a) return String.fromCharCode(code)
  if (code >= 0x41 && code <= 0x5a) return String.fromCharCode(code + 0x20)
  return code === 0x5f ? '_' : folds.get(code)
}
