const PIECE =
  '{\\"path\\":\\"src/index.ts\\",\\"line\\":42,\\"text\\":\\"const x = 1; // lorem ipsum dolor sit amet\\"}\\n'
const BEFORE = '{"jsonrpc":"2.0","id":100000000,"method":"tools/call","params":{"name":"echo","arguments":{"text":"'
const AFTER = '"}}}\n'
export const DIGITS = 9
/** `#NUMBER#LENGTH#`, of which the length spares the server to look for the end of the text. */
const NUMBERS = 2 * DIGITS + 3
/** Above it each line is written in two parts, so that the text is not copied. */
const LARGE = 8_192
const ZERO = 48

export function putNumber(bytes: Buffer, at: number, number: number): void {
  for (let index = at + DIGITS - 1, rest = number; index >= at; index--, rest = Math.floor(rest / 10)) {
    bytes[index] = ZERO + (rest % 10)
  }
}

export function getNumber(bytes: Buffer, at: number): number {
  let number = 0
  for (let index = at; index < at + DIGITS; index++) number = number * 10 + bytes[index]! - ZERO
  return number
}

/** A call of the tool `echo`, made once; each time it is sent its id, which is in the text too, is written into a copy. */
export class Call {
  /** Bytes of a line. */
  readonly size: number
  /** What comes in the text after the number. */
  readonly tail: string
  readonly #line: Buffer
  readonly #idAt = BEFORE.indexOf('1'.padEnd(DIGITS, '0'))
  readonly #numberAt = BEFORE.length + 1
  readonly #restAt = BEFORE.length + 1 + DIGITS

  constructor(size: number) {
    const room = Math.max(0, size - BEFORE.length - AFTER.length - NUMBERS)
    const body = PIECE.repeat(room / PIECE.length).padEnd(room, 'x')
    const text = `#100000000#${String(NUMBERS + body.length).padStart(DIGITS, '0')}#${body}`
    this.#line = Buffer.from(BEFORE + text + AFTER)
    this.size = this.#line.length
    this.tail = JSON.parse(`"${text}"`).slice(1 + DIGITS)
  }

  /** Lines with these ids, in parts. */
  lines(from: number, count: number): Buffer[] {
    if (this.size > LARGE) {
      const rest = this.#line.subarray(this.#restAt)
      return Array.from({ length: count }, (_, index) => [this.#numbered(from + index, this.#restAt), rest]).flat()
    }
    const lines = Buffer.allocUnsafe(count * this.size)
    for (let index = 0; index < count; index++) this.#number(lines, index * this.size, from + index)
    return [lines]
  }

  /** The message alone. */
  body(id: number): Buffer {
    return this.#numbered(id, this.size - 1)
  }

  #numbered(id: number, length: number): Buffer {
    const bytes = Buffer.allocUnsafe(length)
    this.#number(bytes, 0, id)
    return bytes
  }

  #number(bytes: Buffer, at: number, id: number): void {
    this.#line.copy(bytes, at)
    putNumber(bytes, at + this.#idAt, id)
    putNumber(bytes, at + this.#numberAt, id)
  }
}
