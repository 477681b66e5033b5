import fc from 'fast-check'
import { hasTwins, isAlike } from 'open-mcp-proxy'
import { describe, expect, it, test } from 'vitest'

describe('isAlike', () => {
  test.each(['Tools', 'TOOLS', 'tools\0', 'to\0ols', 'tool\u017f', 'tools\0x'])('%j is taken for tools', (key) => {
    expect(isAlike(key, 'tools')).toBe(true)
  })

  test.each(['tools', 'tool', 'tools ', 'tоols', '', '__proto__', 'x\0tools'])('%j is not', (key) => {
    expect(isAlike(key, 'tools')).toBe(false)
  })

  it('knows the letters that Java and Go fold', () => {
    expect([isAlike('ur\u0130', 'uri'), isAlike('ur\u0131', 'uri'), isAlike('\u212aey', 'key')]).toEqual([
      true,
      true,
      true,
    ])
  })
})

describe('hasTwins', () => {
  test.each<[text: string, ...path: string[]]>([
    ['{"a":1,"a":1}', 'a'],
    ['{"a":1,"\\u0061":2}', 'a'],
    ['{"a":{"b":0},"a":0}', 'a', 'b'],
    ['{"x":1,"a":{"b":1,"c":0,"b":{}}}', 'a', 'b'],
    [' { "a" : [ { } , [ {"q":"}", "q" : 1 } ] ] } ', 'a', 'q'],
    ['{"__proto__":1,"__proto__":2}', '__proto__'],
    ['{"":1,"":2}', ''],
  ])('%s has, on %s', (text, ...path) => {
    expect(hasTwins(text, ...path)).toBe(true)
  })

  test.each<[text: string, ...path: string[]]>([
    ['{}', 'a'],
    ['1', 'a'],
    ['"{\\"a\\":1,\\"a\\":1}"', 'a'],
    ['{"a":{"a":{"a":1}},"A":1}', 'a'],
    ['[{"a":1},{"a":1}]', 'a'],
    ['{"a":"a","b":"a"}', 'a'],
    ['{"b":1,"b":2,"a":{"c":[1],"c":[2]}}', 'a', 'b'],
    ['{"x":{"a":1,"a":2}}', 'a'],
    ['{"a":1,"a":1}'],
  ])('%s has not, on %s', (text, ...path) => {
    expect(hasTwins(text, ...path)).toBe(false)
  })

  it('says no of all that JSON.stringify makes', () => {
    const path = fc.array(fc.string(), { maxLength: 3 })
    fc.assert(fc.property(fc.jsonValue(), path, (value, path) => !hasTwins(JSON.stringify(value), ...path)))
  })
})
