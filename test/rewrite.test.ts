import fc from 'fast-check'
import { describe, expect, it, test } from 'vitest'
import { originsOf, rewrite } from '../src/rewrite.js'
import { corpus } from './fixtures/corpus.js'

const bytes = (text: string) => Buffer.from(text)

describe('rewrite', () => {
  // biome-ignore lint/suspicious/noExplicitAny: what JSON.parse gives
  type Change = (value: any) => unknown
  /** The text after `change` gave another value in place of what `JSON.parse` made of it. */
  const changed = (text: string, change: Change) => rewrite(bytes(text), change(JSON.parse(text)))?.toString()
  const set = (fresh: object) => (value: object) => Object.assign(value, fresh)
  const cut =
    (...keys: string[]) =>
    (value: object) => {
      for (const key of keys) Reflect.deleteProperty(value, key)
      return value
    }
  const at = (key: string, change: Change) => (value: Record<string, unknown>) => {
    Object.defineProperty(value, key, { value: change(value[key]) })
    return value
  }
  const push =
    (...fresh: unknown[]) =>
    (value: unknown[]) => [...value, ...fresh]

  test.each(corpus)('leaves $name alone when nothing changed', ({ text }) => {
    expect(rewrite(bytes(text), JSON.parse(text))).toBeUndefined()
  })

  test.each<[string, string, Change, string]>([
    ['a member', '{"a": 1.0, "b":2}', set({ b: 3 }), '{"a": 1.0, "b":3}'],
    [
      'one below',
      '{"p":{"x":1,"y":{"n":1e400,"n":1.0}}}',
      at('p', set({ x: '\n' })),
      '{"p":{"x":"\\n","y":{"n":1e400,"n":1.0}}}',
    ],
    ['the first removed', '{ "a":1 , "b":2.0 }', cut('a'), '{ "b":2.0 }'],
    ['one in the middle removed', '{"a":1.0, "b":2, "c":3.0}', cut('b'), '{"a":1.0, "c":3.0}'],
    ['the last removed', '{"a":1.0 , "b":2}', cut('b'), '{"a":1.0}'],
    ['all removed', '{ "a":1, "b":2 }', cut('a', 'b'), '{  }'],
    ['the first two removed', '{"a":1,"b":2,"c":3.0}', cut('a', 'b'), '{"c":3.0}'],
    ['outer ones removed', '{"a":1,"b":2.0,"c":3}', cut('a', 'c'), '{"b":2.0}'],
    ['a member set to undefined', '{"a":1.0,"b":2}', set({ b: undefined }), '{"a":1.0}'],
    ['a member set to a function', '{"a":1.0,"b":2}', set({ b: () => 1 }), '{"a":1.0}'],
    ['a member added', '{"a":1.0}', set({ b: [1] }), '{"a":1.0,"b":[1]}'],
    ['two added', '{\n "a":1.0,\n "b":2\n}', set({ c: 1, d: 2 }), '{\n "a":1.0,\n "b":2,\n "c":1,\n "d":2\n}'],
    ['one added to an empty object', '{ }', set({ a: 1 }), '{"a":1 }'],
    ['one replaced by another', '{"a":1}', () => ({ b: 1 }), '{"b":1}'],
    ['one changed and undefined added', '{"a":1,"b":2}', set({ c: undefined, b: 1 }), '{"a":1,"b":1}'],
    ['a symbol in an array', '[1.0,2]', set({ 1: Symbol('x') }), '[1.0,null]'],
    ['a duplicate key changed', '{"a":1,"b":2.0,"a":3}', set({ a: 4 }), '{"b":2.0,"a":4}'],
    ['a duplicate key removed', '{"a":1,"b":2.0,"a":3}', cut('a'), '{"b":2.0}'],
    ['below a duplicate key', '{"a":{"x":1},"a":{"x":2,"y":1.0}}', at('a', set({ x: 3 })), '{"a":{"x":3,"y":1.0}}'],
    ['beside one', '{"a":{"x":1},"a":{"x":2},"b":1}', set({ b: 2 }), '{"a":{"x":1},"a":{"x":2},"b":2}'],
    ['an escaped key', '{"\\u0061":1,"\\ud800":1}', set({ a: 2, '\ud800': 2 }), '{"\\u0061":2,"\\ud800":2}'],
    ['an own __proto__ changed', '{"__proto__":1}', at('__proto__', () => 2), '{"__proto__":2}'],
    ['an own __proto__ removed', '{"__proto__":1,"a":1.0}', cut('__proto__'), '{"a":1.0}'],
    ['an own __proto__ added', '{"a":1.0}', () => JSON.parse('{"a":1,"__proto__":[]}'), '{"a":1.0,"__proto__":[]}'],
    ['toJSON', '{"at":"","n":1.0}', set({ at: new Date(0) }), '{"at":"1970-01-01T00:00:00.000Z","n":1.0}'],
    ['toJSON by its key', '{"a":1}', set({ a: { toJSON: (key: string) => ({ key }) } }), '{"a":{"key":"a"}}'],
    ['boxed values', '[1,2,3]', () => [Object('s'), Object(2), Object(true)], '["s",2,true]'],
    ['an instance of a class', '{"a":{"x":1.0}}', set({ a: new Point(1, 2) }), '{"a":{"x":1.0,"y":2}}'],
    ['a Map, which has no members', '{"a":{"x":1.0}}', set({ a: new Map([['x', 1]]) }), '{"a":{}}'],
    ['NaN', '[1.0,2]', set({ 1: Number.NaN }), '[1.0,null]'],
    ['Infinity by null', '[1.0,1e400]', set({ 1: null }), '[1.0,null]'],
    ['minus zero by zero', '[1.0,-0]', set({ 1: 0 }), '[1.0,0]'],
    ['a string by a number', '["1",1.0]', set({ 0: 1 }), '[1,1.0]'],
    ['a lone surrogate', '["\\ud800","a"]', set({ 1: '\udc00' }), '["\\ud800","\\udc00"]'],
    ['an object by an array', '{"a":{}}', set({ a: [] }), '{"a":[]}'],
    ['an array by an object', '{"a":[]}', set({ a: {} }), '{"a":{}}'],
    ['the root', ' {"a":1} ', () => 'x', ' "x" '],
    ['an element', '[1.0, {"a":1.0,"b":1} ]', at('1', set({ b: 2 })), '[1.0, {"a":1.0,"b":2} ]'],
    ['elements filtered', '[ 1.0, 2, {"a":1e400}, 3.0 ]', (it) => it.toSpliced(1, 1), '[ 1.0, {"a":1e400}, 3.0 ]'],
    ['elements reversed', '[1.0, 2.0, 3.0]', (it) => it.reverse(), '[3.0, 2.0, 1.0]'],
    ['swapped, and one changed', '[{"a":1.0},{"b":2.0},0]', ([a, b]) => [b, a, 1], '[{"b":2.0},{"a":1.0},1]'],
    ['an element added in front', '[1.0,2.0]', (it) => [0, ...it], '[0,1.0,2.0]'],
    ['an element pushed', '[\n 1.0,\n 2.0\n]', push('x'), '[\n 1.0,\n 2.0,\n "x"\n]'],
    ['one pushed to an empty array', '[ ]', push(1), '[1]'],
    ['all taken out', '[1.0 , 2.0]', () => [], '[]'],
    ['the same element thrice', '[1.0,2]', () => [1, 1, 1], '[1.0,1,1]'],
    ['1e400 taken out beside null', '[null,1e400,2]', (it) => [it[1]], '[null]'],
    ['null taken out beside 1e400', '[1e400,null,2]', (it) => [it[1]], '[null]'],
    ['a sparse array', '[1.0,2,3]', cut('1'), '[1.0,null,3]'],
  ])('changes %s and nothing else', (_name, text, change, expected) => {
    expect(changed(text, change)).toBe(expected)
  })

  test.each<[string, string, Change]>([
    ['the order of members', '{"a":1.0,"b":2}', ({ a, b }) => ({ b, a })],
    ['undefined members', '{"a":1.0}', set({ b: undefined })],
    ['members that are not enumerable', '{"a":1.0}', at('b', () => 1)],
    ['NaN where there was null', '[null]', set({ 0: Number.NaN })],
    ['minus zero where there was zero', '[0]', set({ 0: -0 })],
    ['a Date that says the same', '["1970-01-01T00:00:00.000Z"]', set({ 0: new Date(0) })],
  ])('takes %s for no change', (_name, text, change) => {
    expect(changed(text, change)).toBeUndefined()
  })

  test('lets out what JSON.stringify throws', () => {
    const circle = (value: { a: { a: unknown } }) => {
      value.a.a = value
      return value
    }
    expect(() => changed('{"a":1}', set({ a: 1n }))).toThrow(TypeError)
    expect(() => changed('{"a":{"a":{}}}', circle)).toThrow(TypeError)
    expect(() => rewrite(bytes('{}'), undefined)).toThrow(TypeError)
    expect(() => rewrite(bytes('{}'), () => 1)).toThrow(TypeError)
  })

  test.runIf('rawJSON' in JSON)('writes JSON.rawJSON as it is', () => {
    const { rawJSON } = JSON as unknown as { rawJSON(text: string): unknown }
    const change = set({ a: rawJSON('9007199254740993') })
    expect(changed('{"a":{},"b":1.0}', change)).toBe('{"a":9007199254740993,"b":1.0}')
    expect(changed('{"a":9007199254740993}', change)).toBeUndefined()
  })

  test('parses to the value, whatever was changed', () => {
    const changes = fc.array(fc.tuple(fc.nat(), fc.nat(5), fc.jsonValue({ maxDepth: 2 })), { maxLength: 4 })
    fc.assert(
      fc.property(rendered, changes, (text, changes) => {
        const value = { root: JSON.parse(text) as unknown }
        expect(rewrite(bytes(text), value.root)).toBeUndefined()
        for (const [place, kind, fresh] of changes) mutate(value, place, kind, fresh)
        const made = rewrite(bytes(text), value.root)
        expect(sorted(JSON.parse((made ?? text).toString()))).toBe(sorted(JSON.parse(JSON.stringify(value.root))))
      }),
      { numRuns: 5_000 },
    )
  })

  test('keeps the bytes of every member that was not changed', () => {
    fc.assert(
      fc.property(fc.array(rendered, { minLength: 1, maxLength: 6 }), fc.nat(), (texts, place) => {
        const index = place % texts.length
        const object = (at: string) => `{${texts.map((text, i) => ` "k${i}" :${i === index ? at : text}`).join(',')}}`
        const array = (at: string) => `[${texts.map((text, i) => (i === index ? at : text)).join(' , ')}]`
        const fresh = 'not generated'
        expect(changed(object(texts[index]!), set({ [`k${index}`]: fresh }))).toBe(object(`"${fresh}"`))
        expect(changed(array(texts[index]!), set({ [index]: fresh }))).toBe(array(`"${fresh}"`))
      }),
      { numRuns: 1_000 },
    )
  })

  test('takes time in proportion to the text', () => {
    const many = `{${'"a":{"b":1.0},'.repeat(50_000)}"c":[${'1,'.repeat(200_000)}1]}`
    const deep = `${'{"a":1,"a":'.repeat(500)}[1]${'}'.repeat(500)}`
    const append: Change = (value) => (Array.isArray(value) ? [...value, 2] : { a: append(value.a) })
    const started = performance.now()
    const expected = `{"a":{"b":2},"c":[${'1,'.repeat(199_999)}1]}`
    expect(changed(many, ({ a, c }) => ({ a: { ...a, b: 2 }, c: c.slice(1) }))).toBe(expected)
    expect(changed(deep, append)).toBe(`${'{"a":'.repeat(500)}[1,2]${'}'.repeat(500)}`)
    // Work that doubles at each level, or goes with the square of the members, takes hours.
    expect(performance.now() - started).toBeLessThan(20_000)
  })
})

class Point {
  constructor(
    readonly x: number,
    readonly y: number,
  ) {}
}

/** JSON text that does not depend on the order of members. */
function sorted(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(sorted).join()}]`
  if (typeof value !== 'object' || value === null) return JSON.stringify(value)
  const entries = Object.entries(value).map(([key, inner]) => `${JSON.stringify(key)}:${sorted(inner)}`)
  return `{${entries.sort().join()}}`
}

/** JSON texts with odd numbers, odd spelling and odd spacing. */
const rendered: fc.Arbitrary<string> = fc.letrec<{ value: string; array: string; object: string }>((tie) => {
  const space = fc.constantFrom('', '', '', ' ', '\n\t', '\r')
  const key = fc.oneof(
    fc.constantFrom('"a"', '"b"', '"\\u0061"', '"1"', '"__proto__"', '"toString"', '""'),
    fc.string().map((it) => JSON.stringify(it)),
  )
  const scalar = fc.oneof(
    fc.constantFrom(
      '1.0',
      '-0',
      '1e400',
      '9007199254740993',
      '1E-2',
      '0',
      'null',
      'true',
      'false',
      '"\\/"',
      '"\\ud800"',
      '"\u2028é😀"',
    ),
    fc.jsonValue({ maxDepth: 0 }).map((it) => JSON.stringify(it)),
  )
  const spaced = (text: fc.Arbitrary<string>) => fc.tuple(space, text, space).map((parts) => parts.join(''))
  return {
    value: fc.oneof({ maxDepth: 4, withCrossShrink: true }, scalar, tie('array'), tie('object')),
    array: fc.array(spaced(tie('value')), { maxLength: 5 }).map((all) => `[${all.join(',')}]`),
    object: fc
      .array(fc.tuple(spaced(key), spaced(tie('value'))), { maxLength: 5 })
      .map((all) => `{${all.map(([name, value]) => `${name}:${value}`).join(',')}}`),
  }
}).value

/** Changes one place, chosen among all that hang below `root`. */
function mutate(root: { root: unknown }, place: number, kind: number, fresh: unknown): void {
  const holders: (Record<string, unknown> | unknown[])[] = [root as Record<string, unknown>]
  for (const holder of holders) {
    for (const inner of Object.values(holder))
      if (typeof inner === 'object' && inner !== null) holders.push(inner as unknown[])
  }
  const holder = holders[place % holders.length]!
  const keys = Object.keys(holder)
  const key = keys[place % Math.max(1, keys.length)]
  const set = (name: string) =>
    Object.defineProperty(holder, name, { value: fresh, writable: true, enumerable: true, configurable: true })
  if (holder === root || kind === 0) set(key ?? 'x')
  else if (Array.isArray(holder)) {
    if (kind === 1) holder.reverse()
    else if (kind === 2) holder.splice(place % (holder.length + 1), 1)
    else if (kind === 3) holder.splice(place % (holder.length + 1), 0, fresh)
    else if (kind === 4) holder.length = 0
    else holder.push(holder[0], undefined)
  } else if (kind < 3) delete holder[key ?? '']
  else set(kind === 3 ? '__proto__' : `new${place}`)
}

describe('elements that were moved and changed', () => {
  /** Parses, has it changed, and writes it. */
  function changed(text: string, change: (value: never) => unknown): string | undefined {
    const value = JSON.parse(text)
    const origins = originsOf(value)
    return rewrite(Buffer.from(text), change(value as never) ?? value, origins)?.toString()
  }
  const tools = '{"tools":[{"n":"rm"}, {"n":"a","x":1e400,"y":9007199254740993},{"n":"b","n":"c"}]}'

  test.each<[what: string, change: (value: { tools: { n: string }[] }) => unknown, text: string]>([
    [
      'one goes, the others are renamed',
      (value) => {
        value.tools = value.tools.filter(({ n }) => n !== 'rm')
        for (const tool of value.tools) tool.n = `p_${tool.n}`
      },
      '{"tools":[{"n":"p_a","x":1e400,"y":9007199254740993},{"n":"p_c"}]}',
    ],
    [
      'one goes, the others stay as they are, twins and all',
      (value) => void value.tools.shift(),
      '{"tools":[{"n":"a","x":1e400,"y":9007199254740993},{"n":"b","n":"c"}]}',
    ],
    [
      'turned round, and one changed',
      (value) => {
        value.tools.reverse()[1]!.n = 'z'
      },
      '{"tools":[{"n":"b","n":"c"}, {"n":"z","x":1e400,"y":9007199254740993},{"n":"rm"}]}',
    ],
    [
      'two changed places, and both changed',
      (value) => {
        const [a, b, c] = value.tools
        a!.n = 'A'
        b!.n = 'B'
        value.tools = [b!, a!, c!]
      },
      '{"tools":[{"n":"B","x":1e400,"y":9007199254740993}, {"n":"A"},{"n":"b","n":"c"}]}',
    ],
    [
      'one stands there twice',
      (value) => void value.tools.splice(0, 3, value.tools[1]!, value.tools[1]!),
      '{"tools":[{"n":"a","x":1e400,"y":9007199254740993}, {"n":"a","x":null,"y":9007199254740992}]}',
    ],
    [
      'copies are known by what they say',
      (value) => ({ tools: value.tools.slice(2).map((it) => ({ ...it })) }),
      '{"tools":[{"n":"b","n":"c"}]}',
    ],
  ])('%s', (_what, change, text) => {
    expect(changed(tools, change as never)).toBe(text)
  })

  it('parse to what was meant, whatever was done to them', () => {
    const element = fc.oneof(fc.record({ n: fc.string(), x: fc.jsonValue() }), fc.jsonValue())
    const picks = fc.array(fc.tuple(fc.nat({ max: 9 }), fc.option(fc.string())), { maxLength: 8 })
    fc.assert(
      fc.property(fc.array(element, { maxLength: 8 }), picks, (list, picks) => {
        const text = JSON.stringify({ list })
        const value = JSON.parse(text)
        const origins = originsOf(value)
        value.list = picks.map(([at, n]) => {
          const it = value.list[at] ?? at
          if (n !== null && typeof it === 'object' && it !== null) it.n = n
          return it
        })
        const written = rewrite(Buffer.from(text), value, origins)?.toString() ?? text
        expect(JSON.parse(written)).toEqual(JSON.parse(JSON.stringify(value)))
      }),
      { numRuns: 500 },
    )
  })
})
