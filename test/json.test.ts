import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import {
  DepthError,
  elements,
  MAX_DEPTH,
  member,
  members,
  skipDeep,
  skipSpace,
  skipValue,
  splice,
} from '../src/json.js'

const bytes = (text: string) => Buffer.from(text)

/** Whether our skipper takes the whole of the bytes for one JSON text. */
function accepts(text: Uint8Array): boolean {
  try {
    return skipSpace(text, skipValue(text, 0)) === text.length
  } catch (error) {
    expect(error).toBeInstanceOf(SyntaxError)
    return false
  }
}

function parses(text: string): boolean {
  try {
    JSON.parse(text)
    return true
  } catch {
    return false
  }
}

const nested = (levels: number) => '['.repeat(levels) + ']'.repeat(levels)

describe('skipValue', () => {
  test('gives the offset after the value', () => {
    expect(skipValue(bytes(' {"a":[1,2]} ,'), 0)).toBe(12)
    expect(skipValue(bytes('[1,"b"]'), 3)).toBe(6)
    expect(skipValue(bytes('12.5e3]'), 0)).toBe(6)
  })

  test('takes exactly the texts that JSON.parse takes', () => {
    const piece = fc.constantFrom(
      ...'{}[]",:\\ 0123456789.eE+-u',
      'true',
      'fals',
      'e',
      'null',
      '\u0000',
      '\n',
      '\t',
      'é',
    )
    const quoted = fc.array(piece, { maxLength: 6 }).map((pieces) => `"${pieces.join('')}"`)
    fc.assert(
      fc.property(fc.array(fc.oneof(piece, quoted), { maxLength: 12 }), (pieces) => {
        const text = pieces.join('')
        expect([text, accepts(bytes(text))]).toEqual([text, parses(text)])
      }),
      { numRuns: 20_000 },
    )
  })

  test('takes exactly the strings that JSON.parse takes, however long and wherever they lie', () => {
    const odd = fc.constantFrom(
      '"',
      '\\',
      '\\"',
      '\\u12aF',
      '\\u12',
      '\\x',
      '\\n',
      '\u0000',
      '\u001f',
      '\n',
      '\u007f',
      'é',
      '😀',
    )
    const pad = fc.integer({ min: 0, max: 150 }).map((length) => 'x'.repeat(length))
    fc.assert(
      fc.property(fc.array(fc.oneof(pad, odd), { maxLength: 6 }), fc.nat(7), fc.boolean(), (parts, shift, closed) => {
        const text = `"${parts.join('')}${closed ? '"' : ''}`
        const frame = bytes(' '.repeat(shift) + text).subarray(shift)
        expect([text, accepts(frame)]).toEqual([text, parses(text)])
      }),
      { numRuns: 10_000 },
    )
  })

  test.each(['"\\u0000"', '-0', '1E+2', '[]', '{ }', '[ ]', '\r\n\t true ', '{"":{"":[]}}', '"\u2028"', '1e400'])(
    'takes %j',
    (text) => {
      expect(accepts(bytes(text))).toBe(true)
    },
  )

  test.each([
    '',
    ' ',
    '01',
    '-',
    '1.',
    '.5',
    '+1',
    '1e',
    '0x1',
    'tru',
    'nul',
    'falsé',
    'NaN',
    'Infinity',
    "'a'",
    '"\t"',
    '"\\u00g0"',
    '"\\v"',
    '[1,]',
    '[,1]',
    '{"a":1,}',
    '{a:1}',
    '{"a" 1}',
    '{"a":}',
    '[1 2]',
    '[1}',
    '{"a":1]',
    '\ufeff1',
    '\u00a01',
    '\u000b1',
    '1/**/',
    '"abc',
    '{"a"',
    '[',
  ])('refuses %j', (text) => {
    expect(parses(text)).toBe(false)
    expect(accepts(bytes(text))).toBe(false)
  })

  test('bounds the depth', () => {
    expect(accepts(bytes(nested(MAX_DEPTH)))).toBe(true)
    expect(() => skipValue(bytes(nested(MAX_DEPTH + 1)), 0)).toThrow(DepthError)
    expect(accepts(bytes(`${'{"a":'.repeat(MAX_DEPTH)}1${'}'.repeat(MAX_DEPTH)}`))).toBe(true)
    expect(() => skipValue(bytes('{"a":'.repeat(MAX_DEPTH + 1)), 0)).toThrow(DepthError)
    expect(() => skipValue(bytes('['.repeat(10_000)), 0)).toThrow(DepthError)
    expect(skipDeep(bytes(`${nested(100_000)},`), 0)).toBe(200_000)
    expect(() => skipDeep(bytes('['.repeat(100_000)), 0)).toThrow(SyntaxError)
  })

  test('never quotes the text in its errors', () => {
    expect(() => skipValue(bytes('{"secret":hunter2}'), 0)).toThrow('Unexpected byte at offset 10')
  })

  test('takes time in proportion to the text, however dense it is', () => {
    const texts = [
      `"${'\\n'.repeat(4 << 20)}"`,
      `"${'\\u0041'.repeat(1 << 20)}"`,
      `"${'xxx\\"'.repeat(1 << 20)}"`,
      `[${'"xxxxxxxx",'.repeat(1 << 19)}0]`,
    ]
    const started = performance.now()
    for (const text of texts) expect(accepts(bytes(text))).toBe(true)
    // A quadratic scan of 8 MiB takes hours.
    expect(performance.now() - started).toBeLessThan(20_000)
  })
})

describe('members and elements', () => {
  test('gives the members in order, duplicates included, keys decoded', () => {
    const text = bytes('[ {"a" : 1, "\\u0061":[2] ,"é":"x"}]')
    const found = members(text, 2).map((it) => [it.key, text.toString('utf8', it.keyStart, it.end)])
    expect(found).toEqual([
      ['a', '"a" : 1'],
      ['a', '"\\u0061":[2]'],
      ['é', '"é":"x"'],
    ])
    expect(members(bytes('{ }'), 0)).toEqual([])
    expect(() => members(text, 0)).toThrow(SyntaxError)
  })

  test('gives the member that JSON.parse would have taken', () => {
    const text = bytes('{"a":1,"a":2,"__proto__":3}')
    expect(member(text, 0, 'a')).toEqual({ key: 'a', keyStart: 7, start: 11, end: 12 })
    expect(member(text, 0, '__proto__')?.start).toBe(25)
    expect(member(text, 0, 'b')).toBeUndefined()
    expect(member(text, -1, 'a')).toBeUndefined()
    expect(member(bytes('["a"]'), 0, 'a')).toBeUndefined()
  })

  test('gives the elements of an array', () => {
    expect(elements(bytes('[1, [2] ,"c" ]'), 0)).toEqual([
      { start: 1, end: 2 },
      { start: 4, end: 7 },
      { start: 9, end: 12 },
    ])
    expect(elements(bytes('[ ]'), 0)).toEqual([])
  })

  test('splices spans in any order', () => {
    const edits = [
      { start: 4, end: 5, text: 'two' },
      { start: 0, end: 0, text: bytes('zero ') },
      { start: 0, end: 1, text: '' },
    ]
    expect(splice(bytes('a b c'), edits).toString()).toBe('zero  b two')
  })
})
