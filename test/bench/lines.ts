const NEWLINE = 10
const RETURN = 13
const COLON = 58
const SPACE = 32

interface LinesOptions {
  /** Empty lines count, too. */
  keepsEmpty?: boolean
  /** A line that came in pieces is good until the next one: then a large one costs no memory. */
  isReused?: boolean
}

/** Splits bytes into lines, undecoded. */
export class Lines {
  readonly #take: (line: Buffer) => void
  readonly #options: LinesOptions
  #parts: Buffer[] = []
  #gathered = Buffer.alloc(0)
  #length = 0

  constructor(take: (line: Buffer) => void, options: LinesOptions = {}) {
    this.#take = take
    this.#options = options
  }

  push(chunk: Buffer): void {
    let start = 0
    for (let end = chunk.indexOf(NEWLINE); end >= 0; end = chunk.indexOf(NEWLINE, start)) {
      const line = this.#whole(chunk.subarray(start, end))
      start = end + 1
      if (line.length > 0 || this.#options.keepsEmpty) this.#take(line)
    }
    if (start < chunk.length) this.#keep(chunk.subarray(start))
  }

  #keep(part: Buffer): void {
    if (!this.#options.isReused) this.#parts.push(part)
    else {
      const needed = this.#length + part.length
      if (needed > this.#gathered.length) this.#gathered = Buffer.concat([this.#gathered], 2 * needed)
      part.copy(this.#gathered, this.#length)
    }
    this.#length += part.length
  }

  #whole(last: Buffer): Buffer {
    if (this.#length === 0) return last
    this.#keep(last)
    const line = this.#options.isReused ? this.#gathered.subarray(0, this.#length) : Buffer.concat(this.#parts)
    this.#parts = []
    this.#length = 0
    return line
  }
}

/** The events of a `text/event-stream`, undecoded: as much of the format as MCP servers write. */
export class Events {
  readonly #take: (type: string, data: Buffer) => void
  readonly #lines = new Lines((line) => this.#line(line), { keepsEmpty: true })
  #type = 'message'
  #data: Buffer | undefined

  constructor(take: (type: string, data: Buffer) => void) {
    this.#take = take
  }

  push(chunk: Buffer): void {
    this.#lines.push(chunk)
  }

  #line(whole: Buffer): void {
    const line = whole.at(-1) === RETURN ? whole.subarray(0, -1) : whole
    if (line.length === 0) {
      if (this.#data !== undefined) this.#take(this.#type, this.#data)
      this.#data = undefined
      this.#type = 'message'
      return
    }
    const colon = line.indexOf(COLON)
    const value = line.subarray(line[colon + 1] === SPACE ? colon + 2 : colon + 1)
    const name = line.toString('latin1', 0, colon)
    if (name === 'event') this.#type = value.toString()
    if (name === 'data') this.#data = this.#data ? Buffer.concat([this.#data, Buffer.from('\n'), value]) : value
  }
}
