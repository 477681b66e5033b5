import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { peek, type Sketch, scan } from '../src/scan.js'
import { corpus } from './fixtures/corpus.js'
import { defined, refused } from './fixtures/refused.js'

const bytes = (text: string) => Buffer.from(text)

/** What a scan says of a text: its findings, or how it was refused. */
function scanned(text: string | Uint8Array) {
  try {
    const { kind, id, idText, exactId, method, name, isError } = scan(Buffer.from(text as string))
    return defined({ kind, id, idText, exactId, method, name, isError })
  } catch (error) {
    return refused(error)
  }
}

describe('scan', () => {
  test('reads a request', () => {
    const text = '{"jsonrpc":"2.0","id":"a","method":"tools/call","params":{"name":"x","_meta":{"progressToken":7}}}'
    const head = scan(bytes(text))
    expect({ ...head, idText: head.idText }).toEqual({
      kind: 'request',
      id: 'a',
      idText: '"a"',
      exactId: true,
      token: undefined,
      method: 'tools/call',
      name: 'x',
      isError: false,
      idStart: text.indexOf('"a"'),
      idEnd: text.indexOf(',"method"'),
      paramsStart: text.indexOf('{"name"'),
      paramsEnd: text.length - 1,
      metaStart: text.indexOf('{"progress'),
      metaEnd: text.length - 2,
      resultStart: -1,
      resultEnd: -1,
      errorStart: -1,
      errorEnd: -1,
    })
  })

  test.each([10, 100_000])('does not walk again over the frame that it has just scanned: %i bytes', (length) => {
    const frame = bytes(`{"jsonrpc":"2.0","method":"${'a'.repeat(length)}"}`)
    const other = bytes('{"jsonrpc":"2.0","method":"b"}')
    const head = scan(frame)
    expect(scan(frame)).toBe(head)
    expect(scan(Buffer.from(frame))).not.toBe(head)
    expect(scan(other)).toMatchObject({ method: 'b' })
    expect(scan(frame)).toEqual(head)
    expect(() => scan(bytes('{}'))).toThrow()
    expect(scan(frame)).toEqual(head)
  })

  test.each<[string, object]>([
    ['{"jsonrpc":"2.0","method":"a","params":{"uri":"b"}}', { kind: 'notification', method: 'a', name: 'b' }],
    [
      '{"jsonrpc":"2.0","method":"a","params":{"uri":"b","name":"c"}}',
      { kind: 'notification', method: 'a', name: 'c' },
    ],
    ['{"jsonrpc":"2.0","method":"a","params":{"uri":"b","name":1}}', { kind: 'notification', method: 'a', name: 'b' }],
    ['{"jsonrpc":"2.0","method":"a","params":[]}', { kind: 'notification', method: 'a' }],
    [
      '{"jsonrpc":"2.0","method":"\\u00e9","id":0}',
      { kind: 'request', id: 0, idText: '0', exactId: true, method: 'é' },
    ],
    ['{"jsonrpc":"2.0","id":"","result":{}}', { kind: 'response', id: '', idText: '""', exactId: true }],
    ['{"jsonrpc":"2.0","id":1,"result":null}', { kind: 'response', id: 1, idText: '1', exactId: true }],
    ['{"jsonrpc":"2.0","id":1,"error":{}}', { kind: 'response', id: 1, idText: '1', exactId: true, isError: true }],
    ['{"jsonrpc":"2.0","id":null,"error":{}}', { kind: 'response', isError: true }],
    ['{"jsonrpc":"2.0","error":{}}', { kind: 'response', isError: true }],
  ])('reads %s', (text, expected) => {
    expect(scanned(text)).toEqual({ exactId: false, isError: false, ...expected })
  })

  test.each<[string, string | number, boolean]>([
    ['0', 0, true],
    ['-7', -7, true],
    ['999999999999999', 999_999_999_999_999, true],
    ['-999999999999999', -999_999_999_999_999, true],
    ['1000000000000000', 1e15, false],
    ['9007199254740993', 2 ** 53, false],
    ['-0', -0, false],
    ['1.0', 1, false],
    ['1.5', 1.5, false],
    ['1e2', 100, false],
    ['1e400', Number.POSITIVE_INFINITY, false],
    ['"1"', '1', true],
    ['"é😀\u2028"', 'é😀\u2028', true],
    ['"\\u0031"', '1', false],
    ['"a\\/b"', 'a/b', false],
    ['"\\ud800"', '\ud800', false],
    [`"${'x'.repeat(1000)}"`, 'x'.repeat(1000), true],
  ])('reads the id %s and keeps its token', (token, id, exactId) => {
    const found = scanned(`{"jsonrpc":"2.0","id": ${token} ,"method":"a"}`)
    expect(found).toEqual({ kind: 'request', id, idText: token, exactId, method: 'a', isError: false })
    if (exactId) expect(JSON.stringify(id)).toBe(token)
  })

  test.each(corpus)('agrees with JSON.parse about $name', ({ text }) => {
    expect(scanned(text)).toEqual(told(text))
  })

  const request: Sketch = { kind: 'request', id: 1, idText: '1' }
  const response: Sketch = { kind: 'response', id: 1, idText: '1' }
  const notification: Sketch = { kind: 'notification' }
  test.each<[string, string, Sketch]>([
    ['1', 'expected an object', {}],
    ['"{}"', 'expected an object', {}],
    ['[]', 'expected an object', {}],
    ['null', 'expected an object', {}],
    ['{}', 'expected jsonrpc "2.0"', {}],
    ['{"jsonrpc":"2.0"}', 'expected a method, a result or an error', {}],
    ['{"jsonrpc":"2.0","id":1}', 'expected a method, a result or an error', { id: 1, idText: '1' }],
    ['{"id":1,"method":"a"}', 'expected jsonrpc "2.0"', request],
    ['{"jsonrpc":"1.0","id":1,"method":"a"}', 'expected jsonrpc "2.0"', request],
    ['{"jsonrpc":2.0,"id":1,"method":"a"}', 'expected jsonrpc "2.0"', request],
    ['{"jsonrpc":"2.00","id":1,"result":{}}', 'expected jsonrpc "2.0"', response],
    ['{"jsonrpc":"2.0","id":1,"method":1}', 'expected a method that is a string', request],
    ['{"jsonrpc":"2.0","id":1,"method":null}', 'expected a method that is a string', request],
    ['{"jsonrpc":"2.0","id":null,"method":"a"}', 'expected an id that is a string or a number', { kind: 'request' }],
    ['{"jsonrpc":"2.0","id":{},"method":"a"}', 'expected an id that is a string or a number', { kind: 'request' }],
    ['{"jsonrpc":"2.0","id":true,"method":"a"}', 'expected an id that is a string or a number', { kind: 'request' }],
    ['{"jsonrpc":"2.0","id":[1],"error":{}}', 'expected an id that is a string or a number', { kind: 'response' }],
    ['{"jsonrpc":"2.0","result":{}}', 'expected an id', { kind: 'response' }],
    ['{"jsonrpc":"2.0","id":null,"result":{}}', 'expected an id', { kind: 'response' }],
    ['{"jsonrpc":"2.0","id":1,"method":"a","result":{}}', 'both method and result', { id: 1, idText: '1' }],
    ['{"jsonrpc":"2.0","id":1,"method":"a","error":{}}', 'both method and error', { id: 1, idText: '1' }],
    ['{"jsonrpc":"2.0","id":1,"result":{},"error":null}', 'both result and error', response],
  ])('refuses %s', (text, problem, sketch) => {
    expect(scanned(text)).toEqual({ code: -32600, message: `Invalid request: ${problem}`, ...sketch })
  })

  const ambiguous = (spelled: string, name: string): [string, string] => [spelled, `ambiguous member "${name}"`]
  test.each<[string, string]>([
    ...['jsonrpc', 'id', 'method', 'params', 'result', 'error'].flatMap((name) => [
      ambiguous(name.toUpperCase(), name),
      ambiguous(name[0]!.toUpperCase() + name.slice(1), name),
      ambiguous(`${name}\\u0000`, name),
      ambiguous(`\\u0000${name}`, name),
      ambiguous(`${name.slice(0, 1)}\\u0000${name.slice(1)}`, name),
      ambiguous(`${name}\\u0000é and more`, name),
      ambiguous(`${name.toUpperCase()}\\u0000`, name),
      ambiguous(`\\u00${name.toUpperCase().charCodeAt(0).toString(16)}${name.slice(1)}`, name),
    ]),
    ambiguous('param\u017f', 'params'),
    ambiguous('PARAM\\u017F', 'params'),
    ambiguous('j\u017fonrpc', 'jsonrpc'),
    ambiguous('re\u017fult', 'result'),
    ambiguous('\u0130d', 'id'),
    ambiguous('\u0131D', 'id'),
  ])('refuses %j beside the members of a message', (spelled, problem) => {
    const before = scanned(`{"${spelled}":1,"jsonrpc":"2.0","method":"a"}`)
    const after = scanned(`{"jsonrpc":"2.0","method":"a","${spelled}":1}`)
    const expected = { code: -32600, message: `Invalid request: ${problem}` }
    expect([before, after]).toMatchObject([expected, expected])
  })

  test.each<[string, string]>([
    ...['name', 'uri', 'arguments', '_meta'].flatMap((name) => [
      ambiguous(name.toUpperCase(), name),
      ambiguous(`${name}\\u0000`, name),
      ambiguous(`${name}\\u0000\\n`, name),
      ambiguous(`\\u0000${name}`, name),
      ambiguous(
        `${name.slice(0, -1)}\\u00${name
          .toUpperCase()
          .charCodeAt(name.length - 1)
          .toString(16)}`,
        name,
      ),
    ]),
    ambiguous('argument\u017f', 'arguments'),
    ambiguous('ARGUMENT\\u017f', 'arguments'),
    ambiguous('ur\u0131', 'uri'),
  ])('refuses %j in params', (spelled, problem) => {
    const text = `{"jsonrpc":"2.0","id":1,"method":"a","params":{"${spelled}":1}}`
    expect(scanned(text)).toEqual({ code: -32600, message: `Invalid request: ${problem} in params`, ...request })
  })

  test.each(['name', 'uri', 'arguments', '_meta'])('refuses %j twice in params', (name) => {
    const spelled = `\\u00${name.charCodeAt(0).toString(16)}${name.slice(1)}`
    for (const second of [name, spelled]) {
      const text = `{"jsonrpc":"2.0","id":1,"method":"a","params":{"${name}":"x","y":{},"${second}":"x"}}`
      const message = `Invalid request: ambiguous member "${name}" in params`
      expect(scanned(text)).toEqual({ code: -32600, message, ...request })
    }
  })

  test.each<[string, string, Sketch]>([
    ['{"jsonrpc":"2.0","jsonrpc":"2.0","id":1,"method":"a"}', 'jsonrpc', request],
    ['{"jsonrpc":"2.0","id":1,"id":1,"method":"a"}', 'id', { kind: 'request' }],
    ['{"jsonrpc":"2.0","id":1,"ID":1,"method":"a"}', 'id', { kind: 'request' }],
    ['{"jsonrpc":"2.0","Id":1,"id":1,"method":"a"}', 'id', { kind: 'request' }],
    ['{"jsonrpc":"2.0","id\\u0000":1,"method":"a"}', 'id', { kind: 'request' }],
    ['{"jsonrpc":"2.0","id":1,"\\u0069d":2,"result":{}}', 'id', { kind: 'response' }],
    ['{"jsonrpc":"2.0","id":1,"method":"a","method":"b"}', 'method', request],
    ['{"jsonrpc":"2.0","id":1,"Method":"a"}', 'method', request],
    ['{"jsonrpc":"2.0","method":"a","Params":{}}', 'params', notification],
    ['{"jsonrpc":"2.0","id":1,"method":"a","params":{},"params":{}}', 'params', request],
    ['{"jsonrpc":"2.0","id":1,"result":{},"result":{}}', 'result', response],
    ['{"jsonrpc":"2.0","id":1,"RESULT":{}}', 'result', response],
    ['{"jsonrpc":"2.0","id":1,"error":{},"Error":{}}', 'error', response],
    ['{"jsonrpc":"2.0","id":1,"method":"a","Result":{}}', 'result', { id: 1, idText: '1' }],
  ])('says of %s what every reader would', (text, name, sketch) => {
    expect(scanned(text)).toEqual({ code: -32600, message: `Invalid request: ambiguous member "${name}"`, ...sketch })
  })

  test.each([
    '{"jsonrpc":"2.0","method":"a","ids":1,"i":2,"idd":3,"_id":4,"i d":5,"met-hod":6,"methods":7,"i\\u0000":8}',
    '{"jsonrpc":"2.0","method":"a","x\\u0000id":1,"\\u0000":2,"\\u0000\\u0000x":3,"\\n":4,"id\\n":5,"é":6,"😀":7,"\u2028":8}',
    '{"jsonrpc":"2.0","method":"a","name":1,"NAME":2,"uri":3,"arguments":4,"_meta":5,"x":1,"x":2,"X":3}',
    '{"jsonrpc":"2.0","method":"a","params":{"id":1,"ID":2,"method":3,"method":4,"Name2":5,"_META_":6,"-meta":7}}',
    '{"jsonrpc":"2.0","method":"a","params":{"arguments":{"name":1,"NAME":2,"name":3},"_meta":{"name":1,"name":2}}}',
    '{"jsonrpc":"2.0","method":"a","params":[{"name":1,"name":2}]}',
  ])('has nothing against %s', (text) => {
    expect(scanned(text)).toMatchObject({ kind: 'notification', method: 'a' })
  })

  test('refuses what is no UTF-8, or no JSON, without an id', () => {
    const frame = Buffer.concat([bytes('{"jsonrpc":"2.0","id":1,"method":"'), Buffer.from([0xff]), bytes('"}')])
    expect(scanned(frame)).toEqual({ code: -32700, message: 'Parse error: not UTF-8' })
    const open = '{"jsonrpc":"2.0","id":1,"method":"a"'
    expect(scanned(open)).toEqual({ code: -32700, message: 'Parse error: Unexpected end of JSON text' })
    expect(scanned(`${open}} x`)).toEqual({ code: -32700, message: 'Parse error: Unexpected byte at offset 38' })
    expect(scanned(`${open},"ID":2`)).toEqual({ code: -32700, message: 'Parse error: Unexpected end of JSON text' })
    expect(scanned('')).toMatchObject({ code: -32700 })
    expect(scanned('\ufeff{}')).toMatchObject({ code: -32700 })
  })

  test('bounds the depth and still reads the id, wherever it stands', () => {
    const deep = (levels: number) => '['.repeat(levels) + ']'.repeat(levels)
    const message = 'Invalid request: nested deeper than 512 levels'
    const at = (levels: number) => `{"jsonrpc":"2.0","method":"a","params":${deep(levels)},"id":1}`
    const inside = (levels: number) => `{"jsonrpc":"2.0","method":"a","params":{"x":${deep(levels)}},"id":1}`
    expect([at(511), inside(510)].map(scanned)).toMatchObject([request, request])
    for (const text of [at(512), inside(511), at(100_000), inside(100_000)]) {
      expect(scanned(text)).toEqual({ code: -32600, message, ...request })
    }
    expect(scanned(`{"jsonrpc":"2.0","id":1,"result":${deep(5_000)}}`)).toEqual({ code: -32600, message, ...response })
    expect(scanned(deep(513))).toEqual({ code: -32600, message })
    expect(scanned('['.repeat(10_000))).toMatchObject({ code: -32700 })
  })

  test('takes time in proportion to the frame', () => {
    const frames = [
      `{${'"\\u0061":1,'.repeat(300_000)}"b":1}`,
      `{${'"id":1,'.repeat(300_000)}"b":1}`,
      `{${'"\\u0000id":1,'.repeat(300_000)}"b":1}`,
      `{"params":{${'"é":1,'.repeat(300_000)}"b":1}}`,
      `{"${'\\u0000'.repeat(500_000)}id":1}`,
      `{"id":"${'\\\\'.repeat(1_000_000)}"}`,
      `{"a":${'['.repeat(2_000_000)}${']'.repeat(2_000_000)}}`,
    ]
    const started = performance.now()
    for (const frame of frames) expect(scanned(frame)).toMatchObject({ code: -32600 })
    // A quadratic scan takes hours.
    expect(performance.now() - started).toBeLessThan(20_000)
  })

  test('agrees with JSON.parse about every legal message', () => {
    fc.assert(
      fc.property(legal, (text) => {
        expect(scanned(text)).toEqual(told(text))
      }),
      { numRuns: 5_000 },
    )
  })

  test('takes for JSON what JSON.parse takes for it, and reads the same in it', () => {
    const change = fc.record({
      at: fc.nat(),
      cut: fc.nat(3),
      put: fc.constantFrom('', '"', '\\', ',', '{', '}', '[', ':', '0', 'e', '\n', '\u0000', 'id', 'é'),
    })
    fc.assert(
      fc.property(fc.oneof(legal, fc.json()), fc.array(change, { maxLength: 3 }), (text, changes) => {
        for (const { at, cut, put } of changes) {
          const place = at % (text.length + 1)
          text = text.slice(0, place) + put + text.slice(place + cut)
        }
        // Half a surrogate pair is no UTF-8.
        const whole = bytes(text).toString()
        const found = scanned(whole)
        let parsed = true
        try {
          JSON.parse(whole)
        } catch {
          parsed = false
        }
        expect([whole, found.code !== -32700]).toEqual([whole, parsed])
        if (found.code === undefined) expect(found).toEqual(told(whole))
      }),
      { numRuns: 10_000 },
    )
  })
})

describe('peek', () => {
  const whole = '{"jsonrpc":"2.0","id":12,"method":"tools/call","params":{"name":"a","arguments":{"x":"yyy"}}}'

  test('reads what the beginning of a frame tells', () => {
    const until = (part: string) => peek(bytes(whole.slice(0, whole.indexOf(part))))
    expect(until('yyy')).toEqual({ kind: 'request', id: 12, idText: '12' })
    expect(until(',"method"')).toEqual({})
    expect(until('"method"')).toEqual({ id: 12, idText: '12' })
    expect(until('tools')).toEqual({ kind: 'request', id: 12, idText: '12' })
    expect(peek(bytes(whole))).toEqual({ kind: 'request', id: 12, idText: '12' })
    expect(peek(bytes('{"result":{"content":[{"text":"aaa'))).toEqual({ kind: 'response' })
    expect(peek(bytes('{"id":"\\u0031","result":{"a":[1,'))).toEqual({ kind: 'response', id: '1', idText: '"\\u0031"' })
    expect(peek(bytes(`{"error":{"data":${'['.repeat(600)}${']'.repeat(600)}},"id":3,`))).toEqual({
      kind: 'response',
      id: 3,
      idText: '3',
    })
  })

  test('says nothing that the rest may belie', () => {
    expect(peek(bytes('{"jsonrpc":"2.0","method":"a","params":{"x":"'))).toEqual({})
    expect(peek(bytes('{"jsonrpc":"2.0","method":"a"}'))).toEqual({ kind: 'notification' })
    expect(peek(bytes('{"id":1,"ID":2,"method":"a",'))).toEqual({ kind: 'request' })
    expect(peek(Buffer.concat([bytes('{"id":"'), Buffer.from([0xff]), bytes('","method":"a",')]))).toEqual({
      kind: 'request',
    })
    expect(['', 'x', '[{"id":1},', '{"id":"abc', '{"i'].map((text) => peek(bytes(text)))).toEqual([{}, {}, {}, {}, {}])
  })

  test('never throws and never names another id than the whole frame has', () => {
    fc.assert(
      fc.property(legal, fc.nat(), (text, cut) => {
        const frame = bytes(text)
        const { id, idText } = peek(frame.subarray(0, cut % (frame.length + 1)))
        if (id !== undefined) expect({ id, idText }).toEqual({ id: scan(frame).id, idText: scan(frame).idText })
      }),
      { numRuns: 2_000 },
    )
  })
})

/** What `JSON.parse` has to say of a legal message. */
function told(text: string): Record<string, unknown> {
  const { id, method, params, error, result } = JSON.parse(text) as Record<string, unknown>
  const named = typeof params === 'object' && params !== null ? (params as Record<string, unknown>) : {}
  const kind = method === undefined ? 'response' : id === undefined ? 'notification' : 'request'
  const name = [named.name, named.uri].find((it) => typeof it === 'string')
  const token = id === undefined || id === null ? undefined : idTokenOf(text)
  const one = typeof id === 'string' || (Number.isInteger(id) && Math.abs(id as number) < 1e15)
  const exactId = one && token === JSON.stringify(id) && !token.includes('\\')
  expect(result === undefined || error === undefined).toBe(true)
  return defined({
    kind,
    id: id ?? undefined,
    idText: token,
    exactId,
    method,
    name,
    isError: error !== undefined,
  })
}

/** The id's token by another way: the text is walked by a regular expression, without what lies deeper. */
function idTokenOf(text: string): string | undefined {
  let depth = 0
  let key: string | undefined
  for (const [token] of text.matchAll(/"(?:[^"\\]|\\.)*"|[[\]{}:,]|[^\s[\]{}:,"]+/gu)) {
    if (token === '{' || token === '[') depth++
    else if (token === '}' || token === ']') depth--
    else if (depth === 1 && token === ',') key = undefined
    else if (depth === 1 && token !== ':') {
      if (key === 'id') return token
      key = key === undefined ? (JSON.parse(token) as string) : key
    }
  }
  return undefined
}

/** Legal messages in any order, spacing and spelling. */
const legal: fc.Arbitrary<string> = (() => {
  const text = fc.oneof(fc.string(), fc.string({ unit: 'binary' }), fc.constantFrom('tools/call', '__proto__', ''))
  /** A string, some of whose characters are written as escapes. */
  const spelled = (word: fc.Arbitrary<string>) =>
    fc.tuple(word, fc.infiniteStream(fc.nat(5))).map(([word, dice]) => {
      const letters = word.split('').map((unit) => {
        const escaped = dice.next().value === 0
        return escaped ? `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}` : JSON.stringify(unit).slice(1, -1)
      })
      // Halves of a pair are escaped both or not at all.
      return /[\ud800-\udfff]/.test(word) ? JSON.stringify(word) : `"${letters.join('')}"`
    })
  const space = fc.constantFrom('', '', ' ', '\n', '\t\r ')
  const spaced = (value: fc.Arbitrary<string>) => fc.tuple(space, value, space).map((parts) => parts.join(''))
  const value = fc.oneof(fc.json({ maxDepth: 2 }), fc.constantFrom('1e400', '-0', '{"id":1,"id":2}', '[1.0]'))
  const id = fc.oneof(
    spelled(text),
    fc.integer().map(String),
    fc.constantFrom('0', '-0', '1.0', '1e2', '9007199254740993', '123456789012345', '1234567890123456'),
  )
  const object = (members: [string, fc.Arbitrary<string>][], extra: fc.Arbitrary<string>) =>
    fc
      .tuple(
        fc.tuple(...members.map(([key, value]) => fc.tuple(spaced(spelled(fc.constant(key))), spaced(value)))),
        fc.array(fc.tuple(spaced(extra), spaced(value)), { maxLength: 2 }),
      )
      .chain(([known, more]) => fc.shuffledSubarray([...known, ...more], { minLength: known.length + more.length }))
      .map((all) => `{${all.map(([key, value]) => `${key}:${value}`).join(',')}}`)
  const extra = spelled(fc.constantFrom('x', 'trace', 'ids', 'é', '', 'Xid'))
  const some = (...keys: [string, fc.Arbitrary<string>][]) => fc.subarray(keys)
  const params = fc.oneof(
    some(
      ['name', spelled(text)],
      ['uri', fc.oneof(spelled(text), value)],
      ['arguments', value],
      ['_meta', value],
    ).chain((members) => object(members, extra)),
    fc.array(value, { maxLength: 2 }).map((all) => `[${all.join()}]`),
  )
  const version: [string, fc.Arbitrary<string>] = ['jsonrpc', spelled(fc.constant('2.0'))]
  const call = some(['params', params], ['id', id]).map(
    (all) => [version, ['method', spelled(text)], ...all] as [string, fc.Arbitrary<string>][],
  )
  const answer = fc.constantFrom<[string, fc.Arbitrary<string>][]>(
    [version, ['id', id], ['result', value]],
    [version, ['id', id], ['error', object([['code', fc.constant('1')]], extra)]],
    [version, ['id', fc.constant('null')], ['error', fc.constant('{}')]],
    [version, ['error', fc.constant('{}')]],
  )
  return spaced(fc.oneof(call, answer).chain((members) => object(members, extra)))
})()
