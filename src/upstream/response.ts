/** Names in lower case. */
export type ResponseHeaders = Record<string, string | string[] | undefined>

export interface ResponseEvents {
  /** The head of a final response; those that are informational are skipped. */
  onHead(status: number, headers: ResponseHeaders): void
  onData(chunk: Buffer): void
  /** `isLast`: nothing more may be asked on this connection; so it is where more has come than the response. */
  onEnd(isLast: boolean): void
}

/** What came is no HTTP/1.1. The codes are those of llhttp, which Node's own errors have made known. */
export class ResponseFault extends Error {
  readonly code: string

  constructor(code: string) {
    super(code)
    this.code = code
  }
}

/** Node's own limit: of a head, of the trailers, and of the line before a chunk. */
const MAX_HEAD = 16 * 1024
const MAX_NAMES = 256
const CR = 0x0d
const LF = 0x0a
const BLANK_LINE = '\r\n\r\n'
const TOKEN = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/
const STATUS = /^HTTP\/1\.([01]) (\d{3})(?: |\r|$)/
/** Its size, and extensions, which mean something to those alone who have agreed on them (RFC 9112, section 7.1). */
const CHUNK_LINE =
  /^([\da-f]{1,12})(?:;[!#$%&'*+\-.^_`|~\w]+(?:=(?:[!#$%&'*+\-.^_`|~\w]+|"(?:[\t !#-[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"))?)*\r$/i
/** What no head may hold (RFC 9110, section 5.5). */
// biome-ignore lint/suspicious/noControlCharactersInRegex: that is what it looks for
const FORBIDDEN = /[\0-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)|(?<!\r)\n/
/** Of these the first one counts, as with Node; others are joined. */
const SINGLE = new Set(['content-type', 'etag', 'expires', 'last-modified', 'location', 'retry-after', 'server'])

type Phase = 'head' | 'length' | 'size' | 'chunk' | 'chunk end' | 'trailers' | 'until close' | 'over'

/** Reads the responses on one connection (RFC 9112), one after another, to requests that are neither HEAD nor CONNECT. */
export class ResponseReader {
  readonly #events: ResponseEvents
  #phase: Phase = 'head'
  /** The beginning of what is read whole: a head, a line. */
  #partial: Buffer | undefined
  /** Bytes of the body, or of this chunk, that are still to come. */
  #left = 0
  #isLast = false

  constructor(events: ResponseEvents) {
    this.#events = events
  }

  /** Whether nothing of a response has come that has not ended. */
  get isBetween(): boolean {
    return this.#phase === 'head' && this.#partial === undefined
  }

  /** @throws ResponseFault */
  push(chunk: Buffer): void {
    let rest: Buffer | undefined = chunk
    if (this.#partial) {
      rest = Buffer.concat([this.#partial, chunk])
      this.#partial = undefined
    }
    while (rest && rest.length > 0) rest = this.#step(rest)
  }

  /** The connection ended. Tells whether the response did. */
  end(): boolean {
    if (this.#phase !== 'until close') return false
    this.stop()
    this.#events.onEnd(true)
    return true
  }

  /** What still comes is not wanted. */
  stop(): void {
    this.#phase = 'over'
  }

  /** Takes what it can from the beginning. Returns what is left, undefined where there must be more to go on. */
  #step(bytes: Buffer): Buffer | undefined {
    switch (this.#phase) {
      case 'head':
        return this.#readHead(bytes)
      case 'length':
      case 'chunk':
        return this.#readBody(bytes)
      case 'size':
        return this.#readSize(bytes)
      case 'chunk end':
        return this.#readChunkEnd(bytes)
      case 'trailers':
        return this.#readTrailers(bytes)
      case 'until close':
        this.#events.onData(bytes)
        return undefined
      case 'over':
        return undefined
    }
  }

  #hold(bytes: Buffer): undefined {
    if (bytes.length > MAX_HEAD) throw new ResponseFault('HPE_HEADER_OVERFLOW')
    this.#partial = bytes
  }

  /** The same of lines. One that ends as none may would be waited for in vain. */
  #holdLines(bytes: Buffer): undefined {
    for (let at = bytes.indexOf(LF); at >= 0; at = bytes.indexOf(LF, at + 1)) {
      if (bytes[at - 1] !== CR) throw new ResponseFault('HPE_INVALID_HEADER_TOKEN')
    }
    return this.#hold(bytes)
  }

  #readHead(bytes: Buffer): Buffer | undefined {
    const end = bytes.indexOf(BLANK_LINE)
    if (end < 0) {
      if (!'HTTP/'.startsWith(bytes.toString('latin1', 0, 5))) throw new ResponseFault('HPE_INVALID_CONSTANT')
      return this.#holdLines(bytes)
    }
    if (end > MAX_HEAD) throw new ResponseFault('HPE_HEADER_OVERFLOW')
    this.#take(bytes.toString('latin1', 0, end))
    const rest = bytes.subarray(end + BLANK_LINE.length)
    if ((this.#phase as Phase) === 'length' && this.#left === 0) this.#finish(rest)
    return rest
  }

  #take(head: string): void {
    const [line, minor, digits] = STATUS.exec(head) ?? []
    if (line === undefined) throw new ResponseFault('HPE_INVALID_CONSTANT')
    const status = Number(digits)
    if (status < 100) throw new ResponseFault('HPE_INVALID_STATUS')
    if (status === 101) throw new ResponseFault('another protocol')
    const headers = headersOf(head)
    const phase = this.#framing(headers)
    if (status < 200) return
    const connection = headers.connection as string | undefined
    this.#isLast = minor === '1' ? /\bclose\b/i.test(connection ?? '') : !/\bkeep-alive\b/i.test(connection ?? '')
    this.#phase = phase
    if (status === 204 || status === 304) {
      this.#left = 0
      this.#phase = 'length'
    } else if (phase === 'until close') this.#isLast = true
    this.#events.onHead(status, headers)
  }

  /** How the body ends (RFC 9112, section 6.3). Two ways at once are how responses are smuggled. */
  #framing({ 'transfer-encoding': coding, 'content-length': length }: ResponseHeaders): Phase {
    this.#left = 0
    if (coding !== undefined) {
      if (length !== undefined) throw new ResponseFault('HPE_UNEXPECTED_CONTENT_LENGTH')
      if (String(coding).toLowerCase() !== 'chunked') throw new ResponseFault('HPE_INVALID_TRANSFER_ENCODING')
      return 'size'
    }
    if (length === undefined) return 'until close'
    if (!/^\d{1,15}$/.test(String(length))) throw new ResponseFault('HPE_INVALID_CONTENT_LENGTH')
    this.#left = Number(length)
    return 'length'
  }

  #readBody(bytes: Buffer): Buffer | undefined {
    const isLength = this.#phase === 'length'
    const part = bytes.length > this.#left ? bytes.subarray(0, this.#left) : bytes
    this.#left -= part.length
    this.#events.onData(part)
    if (this.#left > 0 || (this.#phase as Phase) === 'over') return undefined
    const rest = bytes.subarray(part.length)
    if (isLength) this.#finish(rest)
    else this.#phase = 'chunk end'
    return rest
  }

  #readSize(bytes: Buffer): Buffer | undefined {
    const end = bytes.indexOf(LF)
    if (end < 0) return this.#hold(bytes)
    if (end > MAX_HEAD) throw new ResponseFault('HPE_HEADER_OVERFLOW')
    const digits = CHUNK_LINE.exec(bytes.toString('latin1', 0, end))?.[1]
    if (digits === undefined) throw new ResponseFault('HPE_INVALID_CHUNK_SIZE')
    this.#left = Number.parseInt(digits, 16)
    this.#phase = this.#left === 0 ? 'trailers' : 'chunk'
    return bytes.subarray(end + 1)
  }

  #readChunkEnd(bytes: Buffer): Buffer | undefined {
    if (bytes[0] !== CR || (bytes.length > 1 && bytes[1] !== LF)) throw new ResponseFault('HPE_STRICT')
    if (bytes.length === 1) return this.#hold(bytes)
    this.#phase = 'size'
    return bytes.subarray(2)
  }

  /** Nobody here has a use for them; but what is none is no end. */
  #readTrailers(bytes: Buffer): Buffer | undefined {
    const isBlank = bytes[0] === CR && bytes[1] === LF
    const end = isBlank ? 0 : bytes.indexOf(BLANK_LINE)
    if (end < 0) return this.#holdLines(bytes)
    if (end > MAX_HEAD) throw new ResponseFault('HPE_HEADER_OVERFLOW')
    if (!isBlank) checkTrailers(headersOf(`\r\n${bytes.toString('latin1', 0, end)}`))
    const rest = bytes.subarray(end + (isBlank ? 2 : BLANK_LINE.length))
    this.#finish(rest)
    return rest
  }

  #finish(rest: Buffer): void {
    const isLast = this.#isLast || rest.length > 0
    this.#phase = isLast ? 'over' : 'head'
    this.#events.onEnd(isLast)
  }
}

function headersOf(head: string): ResponseHeaders {
  if (FORBIDDEN.test(head)) throw new ResponseFault('HPE_INVALID_HEADER_TOKEN')
  const headers: ResponseHeaders = {}
  let at = head.indexOf('\r\n')
  while (at >= 0) {
    const next = head.indexOf('\r\n', at + 2)
    const line = next < 0 ? head.slice(at + 2) : head.slice(at + 2, next)
    const colon = line.indexOf(':')
    if (colon < 0) throw new ResponseFault('HPE_INVALID_HEADER_TOKEN')
    put(headers, lowerName(line.slice(0, colon)), trimmed(line, colon + 1))
    at = next
  }
  return headers
}

function checkTrailers({ 'transfer-encoding': coding, 'content-length': length }: ResponseHeaders): void {
  if (length !== undefined) throw new ResponseFault('HPE_UNEXPECTED_CONTENT_LENGTH')
  if (coding !== undefined) throw new ResponseFault('HPE_INVALID_TRANSFER_ENCODING')
}

/** What stands from there on, without the white space around it. */
function trimmed(line: string, from: number): string {
  let start = from
  let end = line.length
  while (start < end && isSpace(line.charCodeAt(start))) start += 1
  while (end > start && isSpace(line.charCodeAt(end - 1))) end -= 1
  return line.slice(start, end)
}

function isSpace(code: number): boolean {
  return code === 0x20 || code === 0x09
}

function put(headers: ResponseHeaders, name: string, value: string): void {
  if (!Object.hasOwn(headers, name)) headers[name] = name === 'set-cookie' ? [value] : value
  else if (name === 'set-cookie') (headers[name] as string[]).push(value)
  else if (name === 'content-length') throw new ResponseFault('HPE_UNEXPECTED_CONTENT_LENGTH')
  else if (!SINGLE.has(name)) headers[name] = `${headers[name]}, ${value}`
}

/** A server says the same names over and over. */
const names = new Map<string, string>()

function lowerName(name: string): string {
  const known = names.get(name)
  if (known !== undefined) return known
  if (!TOKEN.test(name)) throw new ResponseFault('HPE_INVALID_HEADER_TOKEN')
  const lower = name.toLowerCase()
  if (names.size < MAX_NAMES) names.set(name, lower)
  return lower
}
