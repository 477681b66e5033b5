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
  test.each([
    '{"a":1,"a":1}',
    '{"a":1,"\\u0061":2}',
    '[{"x":{"b":[],"c":0,"b":{}}}]',
    ' { "a" : [ {"q":"}", "q" : 1 } ] } ',
    '{"__proto__":1,"__proto__":2}',
    '{"":1,"":2}',
    '{"a\\"b":1,"a\\"b":2}',
  ])('%s has', (text) => {
    expect(hasTwins(text)).toBe(true)
  })

  test.each([
    '{}',
    '[]',
    '1',
    '"{\\"a\\":1,\\"a\\":1}"',
    '{"a":{"a":{"a":1}},"A":1}',
    '[{"a":1},{"a":1}]',
    '{"a":"a","b":"a"}',
  ])('%s has not', (text) => {
    expect(hasTwins(text)).toBe(false)
  })

  it('says no of all that JSON.stringify makes', () => {
    fc.assert(fc.property(fc.jsonValue(), (value) => !hasTwins(JSON.stringify(value))))
  })
})
