import { isUtf8 } from 'node:buffer'
import type { RequestId } from '@modelcontextprotocol/sdk/types.js'
import { INVALID_REQUEST, PARSE_ERROR } from './error.js'
import {
  asBuffer,
  asciiOf,
  BACKSLASH,
  DepthError,
  MAX_DEPTH,
  MINUS,
  OPEN_OBJECT,
  QUOTE,
  skipDeep,
  skipSpace,
  skipValue,
  stringOf,
  unexpected,
  ZERO,
} from './json.js'
import { ALIKE, Names } from './names.js'

export type Kind = 'request' | 'notification' | 'response'

/** What one walk over a frame finds; nobody changes it. Offsets are of the member's value, `end` exclusive, -1 where there is none. */
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
    // Not `${id}`, which leaves each text in a cache of V8's that is old: collecting garbage then takes seven times as long.
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

const topNames = new Names(['jsonrpc', 'id', 'method', 'params', 'result', 'error'])
const [JSONRPC, ID, METHOD, PARAMS, RESULT, ERROR] = [0, 1, 2, 3, 4, 5]
const paramsNames = new Names(['name', 'uri', 'arguments', '_meta'])
const [NAME, URI, , META] = [0, 1, 2, 3]
const VERSION = '2.0'

/**
 * Scans a frame once. Agrees with `JSON.parse` in all that it accepts. Refuses what is no JSON-RPC 2.0 message, nests
 * deeper than `MAX_DEPTH`, or could be read differently by another parser: a second, differently cased or NUL-bearing
 * `jsonrpc id method params result error` at the top, or `name uri arguments _meta` in `params`.
 *
 * @throws Refusal
 */
export function scan(frame: Uint8Array): Head {
  return frame === lastFrame || (lastBig !== undefined && frame === lastBig.deref()) ? lastHead : scanned(frame)
}

/** Of more than this the memory is not kept for the sake of another scan. */
const BIG = 64 * 1024
/** What was scanned last: the wire behind the bridge often asks in the same turn what the bridge has just asked. */
let lastFrame: Uint8Array | undefined
let lastBig: WeakRef<Uint8Array> | undefined
let lastHead = new Head()

function scanned(frame: Uint8Array): Head {
  if (!isUtf8(frame)) throw new Refusal(PARSE_ERROR, 'Parse error: not UTF-8')
  try {
    walk.run(frame)
    const problem = walk.judge()
    if (problem !== undefined) throw new Refusal(INVALID_REQUEST, `Invalid request: ${problem}`, walk.sketch())
    const isBig = frame.length > BIG
    lastFrame = isBig ? undefined : frame
    lastBig = isBig ? new WeakRef(frame) : undefined
    lastHead = walk.head
    return lastHead
  } catch (error) {
    throw parseError(error)
  } finally {
    walk.forget()
  }
}

/** What the beginning of a frame tells, as far as it can be relied upon whatever follows. Never throws. */
export function peek(head: Uint8Array): Sketch {
  let whole = true
  try {
    walk.run(head)
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
  walk.forget()
  return sketch
}

export function parseError(error: unknown): unknown {
  return error instanceof SyntaxError ? new Refusal(PARSE_ERROR, `Parse error: ${error.message}`) : error
}

const NO_BYTES: Uint8Array = new Uint8Array(0)

/**
 * A walk over a frame. What is wrong with it is kept until its end: what is not even JSON is told so. There is one for
 * all frames, since no scan interrupts another.
 */
class Walk {
  head = new Head()
  bytes = NO_BYTES
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

  run(bytes: Uint8Array): void {
    this.head = new Head()
    this.bytes = bytes
    this.problem = undefined
    this.seen = 0
    this.doubtful = 0
    this.seenParams = 0
    this.nameStart = -1
    this.uriStart = -1
    let at = skipSpace(bytes, 0)
    if (bytes[at] !== OPEN_OBJECT) {
      at = this.pass(at, MAX_DEPTH)
      this.problem ??= 'expected an object'
    } else at = topNames.walk(bytes, at, this.top)
    at = skipSpace(bytes, at)
    if (at < bytes.length) throw unexpected(bytes, at)
  }

  /** Keeps no frame longer than it is scanned. */
  forget(): void {
    this.bytes = NO_BYTES
  }

  readonly top = (index: number, start: number): number => {
    if (index >= 0) this.see(index)
    const end =
      index === PARAMS && this.bytes[start] === OPEN_OBJECT
        ? paramsNames.walk(this.bytes, start, this.param)
        : this.pass(start, MAX_DEPTH - 1)
    if (index >= 0 && (this.doubtful & (1 << index)) === 0) this.note(index, start, end)
    return end
  }

  readonly param = (index: number, start: number): number => {
    const end = this.pass(start, MAX_DEPTH - 2)
    if (index < 0) return end
    const bit = 1 << (index & (ALIKE - 1))
    if (index >= ALIKE || (this.seenParams & bit) !== 0) {
      this.problem ??= `ambiguous member "${paramsNames.names[index & (ALIKE - 1)]}" in params`
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
      this.problem ??= `ambiguous member "${topNames.names[index & (ALIKE - 1)]}"`
    }
    this.seen |= bit
  }

  note(index: number, start: number, end: number): void {
    const { head } = this
    if (index === JSONRPC) {
      if (this.string(start, end) !== VERSION) this.problem ??= 'expected jsonrpc "2.0"'
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
    } else if (byte === MINUS || (byte >= ZERO && byte <= 0x39)) {
      const id = plainInteger(this.bytes, start, end)
      head.exactId = id !== undefined
      head.id = id ?? Number(asciiOf(this.bytes, start, end))
    } else if (byte !== 0x6e) this.problem ??= 'expected an id that is a string or a number'
    if (head.id !== undefined && !head.exactId) head.token = asBuffer(this.bytes).toString('utf8', start, end)
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
    if (!this.saw(JSONRPC)) return 'expected jsonrpc "2.0"'
    if (this.saw(RESULT) && this.saw(ERROR)) return 'both result and error'
    if (this.saw(METHOD)) {
      if (this.saw(RESULT) || this.saw(ERROR)) return `both method and ${this.saw(RESULT) ? 'result' : 'error'}`
      if (head.method === undefined) return 'expected a method that is a string'
      if (this.saw(ID)) {
        if (head.id === undefined) return 'expected an id that is a string or a number'
        head.kind = 'request'
      }
    } else {
      if (!this.saw(RESULT) && !this.saw(ERROR)) return 'expected a method, a result or an error'
      if (this.saw(RESULT) && head.id === undefined) return 'expected an id'
      head.kind = 'response'
      head.isError = this.saw(ERROR)
    }
    head.name = this.string(this.nameStart, this.nameEnd) ?? this.string(this.uriStart, this.uriEnd)
    return undefined
  }

  saw(index: number): boolean {
    return (this.seen & (1 << index)) !== 0
  }

  sketch(): Sketch {
    const { id, idText } = this.head
    const sketch: Sketch = {}
    const call = this.saw(METHOD)
    const answer = this.saw(RESULT) || this.saw(ERROR)
    if (call && !answer) sketch.kind = this.saw(ID) ? 'request' : 'notification'
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

const walk = new Walk()

/** An integer of 15 digits at most, which a JavaScript number holds exactly; -0 is none. */
function plainInteger(bytes: Uint8Array, start: number, end: number): number | undefined {
  const first = bytes[start] === MINUS ? start + 1 : start
  if (end - first > 15 || (bytes[first] === ZERO && first > start)) return undefined
  let value = 0
  for (let at = first; at < end; at++) {
    const digit = bytes[at]! - ZERO
    if (digit < 0 || digit > 9) return undefined
    value = value * 10 + digit
  }
  return first > start ? -value : value
}
