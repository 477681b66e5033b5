import {
  asBuffer,
  type Edit,
  isDigit,
  MINUS,
  OPEN_ARRAY,
  OPEN_OBJECT,
  QUOTE,
  type Span,
  skipSpace,
  skipValue,
  splice,
  stringOf,
  walkArray,
  walkObject,
} from './json.js'

/**
 * The frame, changed so that it parses to what `JSON.parse(JSON.stringify(value))` is. Everything in which nothing
 * changed keeps its bytes: numbers that JavaScript cannot hold, escapes, white space, duplicate keys, and the order of
 * members. Elements of an array that were moved take their bytes along; one that was also changed does where `origins`
 * knows it.
 *
 * @returns undefined where nothing changed
 * @throws TypeError where `JSON.stringify` throws it (a BigInt, a circle), and for an undefined value
 */
export function rewrite(frame: Uint8Array, value: unknown, origins: Origins = nowhere): Buffer | undefined {
  const root = serializable(value, '')
  if (root === undefined) throw new TypeError(`expected a JSON value, got ${typeof value}`)
  const bytes = asBuffer(frame)
  const edits: Edits = []
  patch(bytes, skipSpace(bytes, 0), root, edits, origins)
  return spliced(bytes, edits)
}

/**
 * A JSON text, changed so that it says `value`. What did not change keeps its bytes: numbers that JavaScript cannot hold,
 * escapes, white space, duplicate keys, the order of members.
 *
 * @param text what `JSON.parse` takes, nested no deeper than a message may be
 * @throws `TypeError` where `JSON.stringify` throws it, and for an undefined value
 * @example rewriteText('{"a":1.0,"b":"secret"}', { a: 1, b: '***' }) // '{"a":1.0,"b":"***"}'
 */
export function rewriteText(text: string, value: unknown): string {
  return rewrite(Buffer.from(text), value)?.toString() ?? text
}

/** The place of objects in the arrays that they were parsed from. */
export interface Origins {
  get(element: unknown): number | undefined
}

const nowhere: Origins = new Map()
/** Down to the content of results and the messages of params: what lies deeper is hardly ever moved and changed at once. */
const ORIGIN_DEPTH = 4

/** What stands where in a value that was just parsed, for `rewrite` when it has been changed. */
export function originsOf(value: unknown): Origins {
  // Copies alone, since most of what is parsed is only read.
  const arrays: unknown[][] = []
  const visit = (value: unknown, depth: number) => {
    if (typeof value !== 'object' || value === null || depth === 0) return
    if (Array.isArray(value)) {
      arrays.push([...value])
      if (depth > 1) for (const element of value) visit(element, depth - 1)
    } else for (const key in value) visit((value as Record<string, unknown>)[key], depth - 1)
  }
  visit(value, ORIGIN_DEPTH)
  if (arrays.length === 0) return nowhere
  let places: Map<unknown, number> | undefined
  return {
    get(element) {
      places ??= placesIn(arrays)
      return places.get(element)
    },
  }
}

function placesIn(arrays: readonly unknown[][]): Map<unknown, number> {
  const places = new Map<unknown, number>()
  for (const array of arrays) {
    for (const [index, element] of array.entries()) {
      if (typeof element === 'object' && element !== null) places.set(element, index)
    }
  }
  return places
}

/** undefined where nothing changed */
function spliced(bytes: Buffer, edits: Edits): Buffer | undefined {
  const live = edits.filter((edit) => edit !== undefined)
  return live.length === 0 ? undefined : splice(bytes, live)
}

/** Edits made so far; undefined in place of one that was taken back. */
type Edits = (Edit | undefined)[]

/** A span of the source, and which of the edits were made inside it. */
interface Source extends Span {
  readonly from: number
  readonly to: number
}

/** `JSON.rawJSON` came with Node 22. */
const { isRawJSON } = JSON as { isRawJSON?: (value: unknown) => boolean }

/** The first steps of SerializeJSONProperty (ECMA-262, 25.5.2.2); undefined for what JSON has no form for. */
function serializable(value: unknown, key: string): unknown {
  if (value !== null && (typeof value === 'object' || typeof value === 'function')) {
    const { toJSON } = value as { toJSON?: unknown }
    if (typeof toJSON === 'function') value = toJSON.call(value, key)
  }
  if (value instanceof Number || value instanceof String || value instanceof Boolean) return value.valueOf()
  return typeof value === 'function' || typeof value === 'symbol' ? undefined : value
}

/** Collects what must change in the value at `at`, so that it becomes `value`; gives the offset after it. */
function patch(bytes: Buffer, at: number, value: unknown, edits: Edits, origins: Origins): number {
  if (typeof value === 'object' && value !== null && !isRawJSON?.(value)) {
    if (Array.isArray(value)) {
      if (bytes[at] === OPEN_ARRAY) return patchArray(bytes, at, value, edits, origins)
    } else if (bytes[at] === OPEN_OBJECT)
      return patchObject(bytes, at, value as Record<string, unknown>, edits, origins)
  }
  const end = skipValue(bytes, at)
  if (!says(bytes, at, end, value)) edits.push({ start: at, end, text: JSON.stringify(value) })
  return end
}

/** Whether a token already says what `value` is, or what `JSON.stringify` would make of it. */
function says(bytes: Buffer, start: number, end: number, value: unknown): boolean {
  const byte = bytes[start]
  if (typeof value === 'string') {
    return byte === QUOTE && value.length <= end - start - 2 && stringOf(bytes, start, end) === value
  }
  if (typeof value !== 'number') return bytes.toString('utf8', start, end) === JSON.stringify(value)
  if (byte !== MINUS && !isDigit(byte)) return byte === 0x6e && !Number.isFinite(value)
  const number = Number(bytes.toString('latin1', start, end))
  return Object.is(number, value) || Object.is(number, value + 0)
}

function patchObject(
  bytes: Buffer,
  at: number,
  value: Record<string, unknown>,
  edits: Edits,
  origins: Origins,
): number {
  const found: (Source & { key: string; keyStart: number; kept: boolean })[] = []
  const last = new Map<string, number>()
  const end = walkObject(bytes, at, (keyStart, keyEnd, start) => {
    const key = stringOf(bytes, keyStart, keyEnd)
    const next = Object.prototype.propertyIsEnumerable.call(value, key) ? serializable(value[key], key) : undefined
    const from = edits.length
    const end = next === undefined ? skipValue(bytes, start) : patch(bytes, start, next, edits, origins)
    last.set(key, found.length)
    found.push({ key, keyStart, start, end, from, to: edits.length, kept: next !== undefined })
    return end
  })
  if (last.size < found.length) {
    const changed = new Map<string, boolean>()
    for (const [key, index] of last) changed.set(key, isChanged(edits, found[index]!))
    for (const [index, source] of found.entries()) {
      if (last.get(source.key) === index) continue
      edits.fill(undefined, source.from, source.to)
      if (changed.get(source.key)) source.kept = false
    }
  }
  let any = false
  for (const [index, { kept, keyStart, end }] of found.entries()) {
    if (kept) any = true
    else if (any) edits.push({ start: found[index - 1]!.end, end, text: '' })
    else edits.push({ start: keyStart, end: found[index + 1]?.keyStart ?? end, text: '' })
  }
  const separator = found.length > 1 ? bytes.toString('latin1', found[0]!.end, found[1]!.keyStart) : ','
  let added = ''
  for (const key of Object.keys(value)) {
    const next = last.has(key) ? undefined : serializable(value[key], key)
    if (next === undefined) continue
    if (any) added += separator
    added += `${JSON.stringify(key)}:${JSON.stringify(next)}`
    any = true
  }
  const place = found.at(-1)?.end ?? at + 1
  if (added !== '') edits.push({ start: place, end: place, text: added })
  return end
}

function isChanged(edits: Edits, { from, to }: Source): boolean {
  for (let index = from; index < to; index++) if (edits[index] !== undefined) return true
  return false
}

function patchArray(bytes: Buffer, at: number, value: readonly unknown[], edits: Edits, origins: Origins): number {
  const mark = edits.length
  const next = Array.from(value, (element, index) => serializable(element, String(index)) ?? null)
  const found: Source[] = []
  const end = walkArray(bytes, at, (start) => {
    const from = edits.length
    const index = found.length
    const end = index < next.length ? patch(bytes, start, next[index], edits, origins) : skipValue(bytes, start)
    found.push({ start, end, from, to: edits.length })
    return end
  })
  if (found.length === next.length) {
    // One element that differs was changed; two or more may have been moved.
    const changed = [...found.keys()].filter((index) => isChanged(edits, found[index]!))
    if (changed.length < 2) return end
    const taker = new Taker(bytes, found, changed, origins)
    for (const index of changed) {
      const taken = taker.take(next[index])
      if (taken === undefined || taken.source === found[index]) continue
      const { start, end, from, to } = found[index]!
      edits.fill(undefined, from, to)
      edits.push({ start, end, text: taken.text })
    }
    return end
  }
  edits.length = mark
  const pieces = rearranged(bytes, at, end, found, next, origins)
  edits.push({ start: at, end, text: Buffer.concat(pieces) })
  return end
}

/** The text of an array whose elements came, went or moved. */
function rearranged(
  bytes: Buffer,
  at: number,
  end: number,
  found: readonly Source[],
  next: readonly unknown[],
  origins: Origins,
): Buffer[] {
  if (next.length === 0) return [Buffer.from('[]')]
  const [first, second] = found
  const usual = first && second ? bytes.subarray(first.end, second.start) : Buffer.from(',')
  const before = new Map<Source, Buffer>()
  for (let index = 1; index < found.length; index++) {
    before.set(found[index]!, bytes.subarray(found[index - 1]!.end, found[index]!.start))
  }
  const taker = new Taker(bytes, found, [...found.keys()], origins)
  const pieces: Buffer[] = []
  for (const element of next) {
    const taken = taker.take(element)
    if (pieces.length === 0) pieces.push(bytes.subarray(at, first?.start ?? at + 1))
    else pieces.push((taken && before.get(taken.source)) ?? usual)
    pieces.push(taken?.text ?? Buffer.from(JSON.stringify(element)))
  }
  pieces.push(bytes.subarray(found.at(-1)?.end ?? end - 1, end))
  return pieces
}

/** Gives the source of an element, each source once: the one that it was parsed from, else the first that says the same. */
class Taker {
  readonly #bytes: Buffer
  readonly #origins: Origins
  readonly #left: Map<number, Source>
  /** Sources by what they say, the first one last. */
  #alike: Map<string, number[]> | undefined

  constructor(bytes: Buffer, found: readonly Source[], candidates: readonly number[], origins: Origins) {
    this.#bytes = bytes
    this.#origins = origins
    this.#left = new Map(candidates.map((index) => [index, found[index]!]))
  }

  take(element: unknown): { source: Source; text: Buffer } | undefined {
    const index = this.#origins.get(element)
    const origin = index === undefined ? undefined : this.#left.get(index)
    if (index !== undefined && origin) {
      this.#left.delete(index)
      const text = this.#textOf(origin)
      return { source: origin, text: this.#patched(text, element) ?? text }
    }
    const same = this.#indexOf(element)
    const source = same === undefined ? undefined : this.#left.get(same)
    if (same === undefined || !source) return undefined
    // What JSON.stringify writes alike (1e400 and null) must not be taken for each other.
    const text = this.#textOf(source)
    if (this.#patched(text, element)) return undefined
    this.#left.delete(same)
    return { source, text }
  }

  #textOf({ start, end }: Source): Buffer {
    return this.#bytes.subarray(start, end)
  }

  #patched(text: Buffer, element: unknown): Buffer | undefined {
    const edits: Edits = []
    patch(text, 0, element, edits, this.#origins)
    return spliced(text, edits)
  }

  #indexOf(element: unknown): number | undefined {
    if (!this.#alike) {
      this.#alike = new Map()
      for (const [index, source] of [...this.#left].reverse()) {
        const text = JSON.stringify(JSON.parse(this.#textOf(source).toString('utf8')))
        const same = this.#alike.get(text)
        if (same) same.push(index)
        else this.#alike.set(text, [index])
      }
    }
    const same = this.#alike.get(JSON.stringify(element)) ?? []
    while (same.length > 0 && !this.#left.has(same.at(-1)!)) same.pop()
    return same.at(-1)
  }
}
