// AssemblyScript, compiled into `compiled.ts` by `npm run compile`. Reads on in a JSON string 64 bytes at a time: each
// byte is one bit of a mask, the first byte the lowest. A loop over bytes in JavaScript takes five times as long.

/** The text lies at the beginning of the memory, whose only page it may fill. */
const TEXT: usize = 0

const ODD: u64 = 0xaaaaaaaaaaaaaaaa

/** What the last 64 bytes leave for the next: whether their first is escaped, and which must be digits of a `\u`. */
let escapedNext: u64 = 0
let digitsNext: u64 = 0

/**
 * Looks for the quote that ends a string in `length` bytes of text, which begin inside of it; where they are not its
 * `first`, they go on where the last ones ended. Gives its offset, -1 where it is yet to come, -2 where the string is
 * no JSON (RFC 8259, section 7).
 */
export function endOfString(length: u32, first: bool): i32 {
  let before = first ? 0 : escapedNext
  let digits = first ? 0 : digitsNext
  const quote = i8x16.splat(0x22)
  const backslash = i8x16.splat(0x5c)
  const space = i8x16.splat(0x20)
  for (let at: u32 = 0; at < length; at += 64) {
    const a = v128.load(TEXT + at)
    const b = v128.load(TEXT + at, 16)
    const c = v128.load(TEXT + at, 32)
    const d = v128.load(TEXT + at, 48)
    let ends = mask(i8x16.eq(a, quote), i8x16.eq(b, quote), i8x16.eq(c, quote), i8x16.eq(d, quote))
    let bad = mask(i8x16.lt_u(a, space), i8x16.lt_u(b, space), i8x16.lt_u(c, space), i8x16.lt_u(d, space))
    const slashes = mask(i8x16.eq(a, backslash), i8x16.eq(b, backslash), i8x16.eq(c, backslash), i8x16.eq(d, backslash))
    if ((slashes | before | digits) != 0) {
      // Of a run of backslashes every second one is escaped: the subtraction carries through the run, so that each of
      // its bits differs from ODD by turns (simdjson, json_escape_scanner.h).
      const starts = slashes & ~before
      const turns = (((starts << 1) | ODD) - starts) ^ ODD
      const escaped = turns ^ (slashes | before)
      before = (turns & slashes) >> 63
      ends &= ~escaped
      const others = escaped & ~mask(isLetter(a), isLetter(b), isLetter(c), isLetter(d))
      if ((others | digits) != 0) {
        const u = i8x16.splat(0x75)
        const hex = others & mask(i8x16.eq(a, u), i8x16.eq(b, u), i8x16.eq(c, u), i8x16.eq(d, u))
        digits |= (hex << 1) | (hex << 2) | (hex << 3) | (hex << 4)
        bad |= (others & ~hex) | (digits & ~mask(isDigit(a), isDigit(b), isDigit(c), isDigit(d)))
        digits = (hex >> 63) | (hex >> 62) | (hex >> 61) | (hex >> 60)
      }
    }
    const rest = length - at
    const stops = rest < 64 ? (ends | bad) & (((1 as u64) << rest) - 1) : ends | bad
    if (stops != 0) {
      const stop = ctz(stops)
      return (bad >> stop) & 1 ? -2 : <i32>at + <i32>stop
    }
  }
  escapedNext = before
  digitsNext = digits
  return -1
}

/** The top bits of 64 bytes. */
// @ts-ignore: a decorator
@inline
function mask(a: v128, b: v128, c: v128, d: v128): u64 {
  return (
    <u64>i8x16.bitmask(a) |
    (<u64>i8x16.bitmask(b) << 16) |
    (<u64>i8x16.bitmask(c) << 32) |
    (<u64>i8x16.bitmask(d) << 48)
  )
}

/** Whether a byte may follow a backslash: `"` `/` `\` `b` `f` `n` `r` `t`. One table tells of its low half, one of its high. */
// @ts-ignore: a decorator
@inline
function isLetter(bytes: v128): v128 {
  const low = i8x16.swizzle(i8x16(0, 0, 13, 0, 8, 0, 4, 0, 0, 0, 0, 0, 2, 0, 4, 1), v128.and(bytes, i8x16.splat(0x0f)))
  const high = i8x16.swizzle(i8x16(0, 0, 1, 0, 0, 2, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0), i8x16.shr_u(bytes, 4))
  return i8x16.ne(v128.and(low, high), i8x16.splat(0))
}

/** Whether a byte is a hexadecimal digit. */
// @ts-ignore: a decorator
@inline
function isDigit(bytes: v128): v128 {
  const decimal = i8x16.lt_u(i8x16.sub(bytes, i8x16.splat(0x30)), i8x16.splat(10))
  const letter = i8x16.lt_u(i8x16.sub(v128.or(bytes, i8x16.splat(0x20)), i8x16.splat(0x61)), i8x16.splat(6))
  return v128.or(decimal, letter)
}
