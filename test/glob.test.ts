import fc from 'fast-check'
import { glob } from 'open-mcp-proxy'
import { describe, expect, it, test } from 'vitest'

describe('glob', () => {
  test.each<[pattern: string, fits: string[], not: string[]]>([
    ['a', ['a'], ['', 'A', 'aa', ' a', 'a ', 'á']],
    ['', [''], ['a']],
    ['*', ['', 'a', '/', '.hidden', 'a/../b', '__proto__', '\n', '\u{1f44b}'], []],
    ['get_*', ['get_', 'get_a/b.c'], ['get', 'forget_', 'GET_a']],
    ['*delete*', ['delete', 'a.delete-b'], ['delet', 'deletE']],
    ['a*b*c', ['abc', 'a-b-b-c', 'abcabc'], ['ab', 'acb', 'abcd']],
    ['?', ['a', '/', '\u{1f44b}', '\n'], ['', 'ab']],
    ['a?c', ['abc', 'a.c'], ['ac', 'abbc']],
    ['{a,b}c', ['ac', 'bc'], ['abc', 'c', '{a,b}c']],
    ['x{,y}', ['x', 'xy'], ['x,', 'x{,y}']],
    ['{,a}', ['', 'a'], ['{,a}']],
    ['{a,{b,c}d}', ['a', 'bd', 'cd'], ['b', 'ad']],
    ['file:///{id}', ['file:///{id}'], ['file:///id', 'file:///1']],
    ['file:///docs/**', ['file:///docs/', 'file:///docs/a/b'], ['file:///docs', 'file:///doc/']],
    ['a.b+c$^', ['a.b+c$^'], ['aXbbc']],
    ['\\*\\?\\{a,b\\}\\\\\\[\\!', ['*?{a,b}\\[!'], ['x']],
    ['{\\,,b}', [',', 'b'], ['']],
    ['\\\\*', ['\\', '\\a'], ['*', 'a']],
    ['a!', ['a!'], []],
    ['\\\u{1f44b}\\é', ['\u{1f44b}é'], ['\uf44bé']],
    ['\u{f1234}', ['\u{f1234}'], ['\u1234']],
    ['\u{1f44b}*', ['\u{1f44b}\u{1f44b}'], ['\u{1f44a}']],
  ])('%j', (pattern, fits, not) => {
    expect([...fits, ...not].filter(glob(pattern))).toEqual(fits)
  })

  it('one of several must match; none matches nothing', () => {
    expect(['a', 'b', 'c'].filter(glob('a', 'c'))).toEqual(['a', 'c'])
    expect(['a', ''].filter(glob())).toEqual([])
  })

  test.each([
    ['[ab]', 'expected a pattern without [ (\\[ is the character itself), got "[ab]"'],
    ['@(a|b)', 'expected a pattern without ( (\\( is the character itself), got "@(a|b)"'],
    ['!a', 'expected a pattern without ! (\\! is the character itself), got "!a"'],
    ['a\\', 'expected a pattern with a character after each \\, got "a\\\\"'],
    ['{a', 'expected a pattern with every { closed (\\{ is the character itself), got "{a"'],
    ['a}{', 'expected a pattern with every { closed (\\{ is the character itself), got "a}{"'],
    ['{1..5000}', 'expected a pattern with 1000 alternatives at most, got "{1..5000}"'],
    [5, 'expected a pattern that is a string, got 5'],
  ])('refuses %j', (pattern, text) => {
    expect(() => glob(pattern as string)).toThrow(new TypeError(text))
  })

  it('agrees with a regular expression', () => {
    const letters = fc.array(fc.constantFrom('a', 'b', '*', '?', '.'), { maxLength: 8 }).map((it) => it.join(''))
    const name = fc.array(fc.constantFrom('a', 'b', '.'), { maxLength: 10 }).map((it) => it.join(''))
    fc.assert(
      fc.property(letters, name, (pattern, name) => {
        const source = pattern.replaceAll('.', '\\.').replaceAll('?', '.').replaceAll('*', '.*')
        expect(glob(pattern)(name)).toBe(new RegExp(`^${source}$`).test(name))
      }),
    )
  })

  it('takes no more steps for a hostile name than for an honest one of its length', () => {
    // A regular expression would be at this for longer than there have been stars.
    expect(glob(`${'*a'.repeat(64)}b`)('a'.repeat(4_096))).toBe(false)
  })
})
