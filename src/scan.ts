import { isUtf8 } from 'node:buffer'
import type { RequestId } from '@modelcontextprotocol/sdk/types.js'
import { INVALID_REQUEST, PARSE_ERROR } from './error.js'
import {
  asBuffer,
  asciiOf,
  BACKSLASH,
  DepthError,
  MAX_DEPTH,
  OPEN_OBJECT,
  QUOTE,
  skipDeep,
  skipSpace,
  skipValue,
  stringOf,
  unexpected,
  walkObject,
} from './json.js'

export type Kind = 'request' | 'notification' | 'response'

/** What one walk over a frame finds. Offsets are of the member's value, `end` exclusive, -1 where there is none. */
export class Head {
  kind: Kind = 'notification'
  /** Parsed. Undefined on notifications and on error responses whose id is null or absent. */
  id: RequestId | undefined = undefined
  /** Whether `JSON.stringify(id)` is the very token: a string without escapes, an integer of 15 digits at most. */
  exactId = false
  method: string | undefined = undefined
  /** `params.name`, else `params.uri`, when it is a string. */
  name: string | undefined = undefined
  /** Whether it is a response with an `error`. */
  isError = false
  idStart = -1
  idEnd = -1
  paramsStart = -1
  paramsEnd = -1
  /** Of `params._meta`. */
  metaStart = -1
  metaEnd = -1
  resultStart = -1
  resultEnd = -1
  errorStart = -1
  errorEnd = -1
  /** @internal The id's token where it is not exact. */
  token: string | undefined = undefined

  /** The id's token, as it stands in the frame. */
  get idText(): string | undefined {
    return this.exactId ? JSON.stringify(this.id) : this.token
  }
}

/** What is known of a message that may be refused. */
export interface Sketch {
  kind?: Kind
  id?: RequestId
  /** The id's token, as it stands in the frame. */
  idText?: string
}

/** A frame that is no legal message, or one that two parsers could read differently. */
export class Refusal extends Error implements Sketch {
  override readonly name = 'Refusal'
  /** -32700 where the frame is not JSON, else -32600 (JSON-RPC 2.0, section 5.1). */
  readonly code: typeof PARSE_ERROR | typeof INVALID_REQUEST
  /** What kind of message every reader would take it for. */
  readonly kind?: Kind
  /** Its id, where every reader would see the same. */
  readonly id?: RequestId
  readonly idText?: string

  constructor(code: typeof PARSE_ERROR | typeof INVALID_REQUEST, message: string, { kind, id, idText }: Sketch = {}) {
    // Many bad messages in one body are to cost little, and the stack tells nobody anything of them.
    const { stackTraceLimit } = Error
    Error.stackTraceLimit = 0
    super(message)
    Error.stackTraceLimit = stackTraceLimit
    this.code = code
    if (kind !== undefined) this.kind = kind
    if (id !== undefined) this.id = id
    if (idText !== undefined) this.idText = idText
  }
}

const topNames = ['jsonrpc', 'id', 'method', 'params', 'result', 'error']
const [JSONRPC, ID, METHOD, PARAMS, RESULT, ERROR] = [0, 1, 2, 3, 4, 5]
const paramsNames = ['name', 'uri', 'arguments', '_meta']
const [NAME, URI, , META] = [0, 1, 2, 3]
const LONGEST = Math.max(...[...topNames, ...paramsNames].map((name) => name.length))
/** `lookUp` found another spelling of a name: its index and this. */
const ALIKE = 8
/**
 * Letters that some parsers take for an ASCII one when they ignore case: Go folds the first, Java the others. (Both
 * take U+212A for a k, which no name has.)
 */
const folds = new Map([
  [0x17f, 's'],
  [0x130, 'i'],
  [0x131, 'i'],
])

/**
 * Scans a frame once. Agrees with `JSON.parse` in all that it accepts. Refuses what is no JSON-RPC 2.0 message, nests
 * deeper than `MAX_DEPTH`, or could be read differently by another parser: a second, differently cased or NUL-bearing
 * `jsonrpc id method params result error` at the top, or `name uri arguments _meta` in `params`.
 *
 * @throws Refusal
 */
export function scan(frame: Uint8Array): Head {
  if (!isUtf8(frame)) throw new Refusal(PARSE_ERROR, 'Parse error: not UTF-8')
  const walk = new Walk(asBuffer(frame))
  try {
    walk.run()
  } catch (error) {
    throw parseError(error)
  }
  const problem = walk.judge()
  if (problem !== undefined) throw new Refusal(INVALID_REQUEST, `Invalid request: ${problem}`, walk.sketch())
  return walk.head
}

/** What the beginning of a frame tells, as far as it can be relied upon whatever follows. Never throws. */
export function peek(head: Uint8Array): Sketch {
  const walk = new Walk(asBuffer(head))
  let whole = true
  try {
    walk.run()
  } catch {
    whole = false
  }
  const sketch = walk.sketch()
  // An id may yet come, and a token at the very end may yet go on.
  if (!whole && sketch.kind === 'notification') delete sketch.kind
  const { idStart, idEnd } = walk.head
  if (idStart >= 0 && (idEnd === head.length || !isUtf8(head.subarray(idStart, idEnd)))) {
    delete sketch.id
    delete sketch.idText
  }
  return sketch
}

export function parseError(error: unknown): unknown {
  return error instanceof SyntaxError ? new Refusal(PARSE_ERROR, `Parse error: ${error.message}`) : error
}

/** One walk over a frame. What is wrong with it is kept until its end: what is not even JSON is told so. */
class Walk {
  readonly head = new Head()
  readonly bytes: Buffer
  problem: string | undefined
  /** One bit for each of `topNames`: seen in any spelling, and seen so that readers may differ. */
  seen = 0
  doubtful = 0
  /** The same for `paramsNames`. */
  seenParams = 0
  nameStart = -1
  nameEnd = -1
  uriStart = -1
  uriEnd = -1

  constructor(bytes: Buffer) {
    this.bytes = bytes
  }

  run(): void {
    const bytes = this.bytes
    let at = skipSpace(bytes, 0)
    if (bytes[at] !== OPEN_OBJECT) {
      at = this.pass(at, MAX_DEPTH)
      this.problem ??= 'expected an object'
    } else at = walkObject(bytes, at, this.top)
    at = skipSpace(bytes, at)
    if (at < bytes.length) throw unexpected(bytes, at)
  }

  readonly top = (keyStart: number, keyEnd: number, start: number): number => {
    const bytes = this.bytes
    const index = lookUp(bytes, keyStart, keyEnd, topNames)
    if (index >= 0) this.see(index)
    const end =
      index === PARAMS && bytes[start] === OPEN_OBJECT
        ? walkObject(bytes, start, this.param)
        : this.pass(start, MAX_DEPTH - 1)
    if (index >= 0 && (this.doubtful & (1 << index)) === 0) this.note(index, start, end)
    return end
  }

  readonly param = (keyStart: number, keyEnd: number, start: number): number => {
    const end = this.pass(start, MAX_DEPTH - 2)
    const index = lookUp(this.bytes, keyStart, keyEnd, paramsNames)
    if (index < 0) return end
    const bit = 1 << (index & (ALIKE - 1))
    if (index >= ALIKE || (this.seenParams & bit) !== 0) {
      this.problem ??= `ambiguous member "${paramsNames[index & (ALIKE - 1)]}" in params`
    }
    this.seenParams |= bit
    if (index === NAME) {
      this.nameStart = start
      this.nameEnd = end
    } else if (index === URI) {
      this.uriStart = start
      this.uriEnd = end
    } else if (index === META) {
      this.head.metaStart = start
      this.head.metaEnd = end
    }
    return end
  }

  see(index: number): void {
    const bit = 1 << (index & (ALIKE - 1))
    if (index >= ALIKE || (this.seen & bit) !== 0) {
      this.doubtful |= bit
      this.problem ??= `ambiguous member "${topNames[index & (ALIKE - 1)]}"`
    }
    this.seen |= bit
  }

  note(index: number, start: number, end: number): void {
    const { head } = this
    if (index === JSONRPC) {
      if (this.string(start, end) !== '2.0') this.problem ??= 'expected jsonrpc "2.0"'
    } else if (index === ID) this.id(start, end)
    else if (index === METHOD) {
      if (this.bytes[start] === QUOTE) head.method = stringOf(this.bytes, start, end)
    } else if (index === PARAMS) {
      head.paramsStart = start
      head.paramsEnd = end
    } else if (index === RESULT) {
      head.resultStart = start
      head.resultEnd = end
    } else if (index === ERROR) {
      head.errorStart = start
      head.errorEnd = end
    }
  }

  id(start: number, end: number): void {
    const { head } = this
    head.idStart = start
    head.idEnd = end
    const byte = this.bytes[start]!
    if (byte === QUOTE) {
      head.id = stringOf(this.bytes, start, end)
      head.exactId = !this.bytes.subarray(start, end).includes(BACKSLASH)
    } else if (byte === 0x2d || (byte >= 0x30 && byte <= 0x39)) {
      head.exactId = isPlainInteger(this.bytes, start, end)
      head.id = Number(asciiOf(this.bytes, start, end))
    } else if (byte !== 0x6e) this.problem ??= 'expected an id that is a string or a number'
    if (head.id !== undefined && !head.exactId) head.token = this.bytes.toString('utf8', start, end)
  }

  /** Skips a value. What nests too deep is passed over, since the id may come after it. */
  pass(start: number, room: number): number {
    try {
      return skipValue(this.bytes, start, room)
    } catch (error) {
      if (!(error instanceof DepthError)) throw error
      this.problem ??= `nested deeper than ${MAX_DEPTH} levels`
      return skipDeep(this.bytes, start)
    }
  }

  /** Finishes the head; gives what makes the frame illegal (JSON-RPC 2.0, sections 4 and 5), if anything does. */
  judge(): string | undefined {
    if (this.problem !== undefined) return this.problem
    const { head } = this
    const saw = (index: number) => (this.seen & (1 << index)) !== 0
    if (!saw(JSONRPC)) return 'expected jsonrpc "2.0"'
    if (saw(RESULT) && saw(ERROR)) return 'both result and error'
    if (saw(METHOD)) {
      if (saw(RESULT) || saw(ERROR)) return `both method and ${saw(RESULT) ? 'result' : 'error'}`
      if (head.method === undefined) return 'expected a method that is a string'
      if (saw(ID)) {
        if (head.id === undefined) return 'expected an id that is a string or a number'
        head.kind = 'request'
      }
    } else {
      if (!saw(RESULT) && !saw(ERROR)) return 'expected a method, a result or an error'
      if (saw(RESULT) && head.id === undefined) return 'expected an id'
      head.kind = 'response'
      head.isError = saw(ERROR)
    }
    head.name = this.string(this.nameStart, this.nameEnd) ?? this.string(this.uriStart, this.uriEnd)
    return undefined
  }

  sketch(): Sketch {
    const { id, idText } = this.head
    const sketch: Sketch = {}
    const call = (this.seen & (1 << METHOD)) !== 0
    const answer = (this.seen & ((1 << RESULT) | (1 << ERROR))) !== 0
    if (call && !answer) sketch.kind = (this.seen & (1 << ID)) !== 0 ? 'request' : 'notification'
    if (answer && !call) sketch.kind = 'response'
    if (id !== undefined && (this.doubtful & (1 << ID)) === 0) {
      sketch.id = id
      if (idText !== undefined) sketch.idText = idText
    }
    return sketch
  }

  string(start: number, end: number): string | undefined {
    return start >= 0 && this.bytes[start] === QUOTE ? stringOf(this.bytes, start, end) : undefined
  }
}

/** An integer of 15 digits at most, which a JavaScript number holds exactly; -0 is none. */
function isPlainInteger(bytes: Buffer, start: number, end: number): boolean {
  const first = bytes[start] === 0x2d ? start + 1 : start
  if (end - first > 15 || (bytes[first] === 0x30 && first > start)) return false
  for (let at = first; at < end; at++) if (bytes[at]! < 0x30 || bytes[at]! > 0x39) return false
  return true
}

/** The index of the name that a key's token spells, that and `ALIKE` if it only resembles it, -1 if neither. */
function lookUp(bytes: Buffer, start: number, end: number, names: readonly string[]): number {
  const length = end - start - 2
  for (let index = 0; index < names.length; index++) {
    const name = names[index]!
    if (name.length !== length) continue
    let same = 0
    while (same < length && bytes[start + 1 + same] === name.charCodeAt(same)) same++
    if (same === length) return index
  }
  return alike(bytes, start + 1, end - 1, names)
}

/** Reads a key no further than needed: a frame may hold a million of them. */
function alike(bytes: Buffer, at: number, end: number, names: readonly string[]): number {
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
      if (beforeNul < 0) beforeNul = resembled(names, folded)
      continue
    }
    const letter = foldOf(code)
    if (letter === undefined || folded.length === LONGEST) return beforeNul
    if (letter.charCodeAt(0) !== code) exact = false
    folded += letter
  }
  const index = resembled(names, folded)
  if (index < 0) return beforeNul
  return exact ? index - ALIKE : index
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

function resembled(names: readonly string[], folded: string): number {
  const index = names.indexOf(folded)
  return index < 0 ? -1 : index + ALIKE
}
