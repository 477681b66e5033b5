import { glob } from 'open-mcp-proxy'
import { analyse } from 'scslre'
import ts from 'typescript'
import { describe, expect, test } from 'vitest'
import { nodes } from './source.js'

interface Found {
  file: string
  source: string
  flags: string
}

/**
 * Every regular expression: literals, and the texts that one is made of. One that is made of anything else is told as it
 * stands there, so that it is looked at by a person.
 */
const all: Found[] = nodes().flatMap(({ file, node }) => {
  if (node.kind === ts.SyntaxKind.RegularExpressionLiteral) return [{ file, ...partsOf(node.getText()) }]
  const isMade = (ts.isNewExpression(node) || ts.isCallExpression(node)) && node.expression.getText() === 'RegExp'
  return isMade ? textsIn(node).map((source) => ({ file, source, flags: 'i' })) : []
})

function partsOf(literal: string) {
  const end = literal.lastIndexOf('/')
  return { source: literal.slice(1, end), flags: literal.slice(end + 1) }
}

/** The alternatives that stand as `String.raw` in the call; the call itself where there is none. */
function textsIn(call: ts.Node): string[] {
  const found: string[] = []
  const visit = (node: ts.Node) => {
    if (ts.isTaggedTemplateExpression(node) && ts.isNoSubstitutionTemplateLiteral(node.template)) {
      found.push(node.template.getText().slice(1, -1))
    }
    ts.forEachChild(node, visit)
  }
  visit(call)
  return found.length > 0 ? found : [call.getText()]
}

/** The parts that take more steps than the text has characters, where the text does not fit. */
const slow = ({ source, flags }: Pick<Found, 'source' | 'flags'>) =>
  analyse({ source, flags }, { reportTypes: { Move: true, Self: true, Trade: true } }).reports

const SIZE = 40_000

/** The most milliseconds that it takes for one of many texts; of three tries the best. */
function hardest({ source, flags }: Pick<Found, 'source' | 'flags'>): number {
  const regex = new RegExp(source, flags.includes('g') ? flags : `${flags}g`)
  let most = 0
  for (const text of textsFor(source)) {
    let best = Number.POSITIVE_INFINITY
    for (let run = 0; run < 3 && best > 100; run++) {
      const started = performance.now()
      text.replace(regex, '')
      best = Math.min(best, performance.now() - started)
    }
    most = Math.max(most, best)
    if (most > 100) return most
  }
  return most
}

/** Texts that begin to fit again and again: of the words and characters of the expression itself. */
function textsFor(source: string): string[] {
  const plain = source
    .replace(/\\[sS]/g, ' ')
    .replace(/\\[wW]/g, 'a-')
    .replace(/\\[dD]/g, '1')
    .replace(/\\0/g, '\0')
    .replace(/\\x([\da-f]{2})/gi, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)))
    .replace(/\\[bpPuk](?:\{\w+\}|[\da-f]{4})?/g, '')
    .replace(/\\(.)/g, '$1')
  const parts = new Set([...(plain.match(/[a-z]{2,}/gi) ?? []), ...plain.replace(/[a-z]{2,}/gi, ''), ' ', 'a'])
  const some = [...parts].slice(0, 10)
  const filled = (unit: string) => unit.repeat(Math.ceil(SIZE / unit.length))
  return some.flatMap((one) => [filled(one), ...some.flatMap((two) => [filled(one + two), one + filled(two)])])
}

/** Where that many steps cannot come, and why. */
const harmless: Record<string, string> = {
  'src/alike.ts /\\0.*$/s': 'with `s` it fits wherever a NUL stands, so it is never tried twice',
  'middleware/authorize.ts /\\0.*$/s': 'the same',
  'middleware/authorize.ts /#.*$/s': 'the same, with a #',
  'middleware/authorize.ts /[?#].*$/s': 'the same, with either',
  'middleware/replay.ts /^(?:(.*):)?(.*)$/s': 'it fits every text',
  'src/values.ts /\\$(?:\\$|\\{([^}]*)\\}|([A-Za-z_]\\w*)|)/g': "reads the user's own configuration",
  'src/cli.ts /\\d+(?=\\.$)/': "reads a text of commander's, to whoever typed the command",
  'src/configuration/modules.ts /^(ParseError: .*?)\\s*\\n.*:(\\d+:\\d+)$/': "reads an error about the user's own file",
}

describe('a regular expression of ours', () => {
  const nameOf = ({ file, source, flags }: Found) => `${file} /${source}/${flags}`

  test('takes as many steps as its text has characters, however that is made', () => {
    expect(all.length).toBeGreaterThan(100)
    const found = all.filter((it) => slow(it).length > 0).map(nameOf)
    expect(found.filter((it) => !(it in harmless))).toEqual([])
    // What is no longer there needs no excuse.
    expect(Object.keys(harmless).filter((it) => !all.some((one) => nameOf(one) === it))).toEqual([])
  })

  test('is done with any text of 40 KB that is made of what it looks for', { timeout: 120_000 }, () => {
    const late = all.filter((it) => !(nameOf(it) in harmless) && hardest(it) > 100)
    expect(late.map(nameOf)).toEqual([])
    expect(hardest({ source: '\\beyJ[\\w-]{5,}\\.[\\w-]{5,}\\.[\\w-]*', flags: 'gi' })).toBeGreaterThan(100)
  })

  test.each([
    ['(a+)+$', ''],
    ['(a|a)*$', ''],
    ['^(?:\\w+\\s?)*$', ''],
    ['\\s*\\n\\s*', 'g'],
    ['\\s*,\\s*', ''],
    ['^\\s+|\\s+$', 'g'],
  ])('would be found if it did not: /%s/', (source, flags) => {
    expect(slow({ source, flags }).length).toBeGreaterThan(0)
  })
})

test('nothing makes one out of what a peer or a user says', () => {
  // The one that is made is made of texts of its own.
  expect(all.filter(({ source }) => source.includes('RegExp('))).toEqual([])
})

describe('a pattern of a user’s', () => {
  const hostile: Record<string, [pattern: string, name: string]> = {
    'that is a nested quantifier elsewhere': ['\\(a+\\)+$', 'a'.repeat(5_000)],
    'with many stars': [`${'*a'.repeat(30)}*b`, 'a'.repeat(5_000)],
    'with stars alone': [`${'*'.repeat(200)}b`, 'a'.repeat(5_000)],
    'with ? and *': [`${'?*'.repeat(200)}b`, 'a'.repeat(5_000)],
    'with a long end': [`*${'a'.repeat(50)}b`, 'a'.repeat(5_000)],
    'that fits nearly': [`${'*?a'.repeat(50)}b`, 'xa'.repeat(2_500)],
    'with 900 alternatives': [`{${Array.from({ length: 900 }, (_, at) => `*${at}*x`).join(',')}}`, '1'.repeat(2_000)],
  }

  test.each(Object.entries(hostile))('%s decides over any name in a moment', (_name, [pattern, name]) => {
    const fits = glob(pattern)
    const started = performance.now()
    for (let count = 0; count < 10; count++) expect(fits(name)).toBe(false)
    // (a+)+$ as a regular expression takes longer than a life on a name of 31 characters.
    expect(performance.now() - started).toBeLessThan(5_000)
  })

  test('is data: what regular expressions know means nothing in it', () => {
    for (const pattern of ['a.c', 'a+', '^a$', 'a\\|b', '\\(a+\\)+$', '\\[a-c\\]', 'a{2}']) {
      const name = pattern.replaceAll('\\', '')
      expect([glob(pattern)(name), glob(pattern)('abc'), glob(pattern)('aa'), glob(pattern)('a')]).toEqual([
        true,
        false,
        false,
        false,
      ])
    }
  })

  test.each([
    ['braces that never close', '{'.repeat(5_000)],
    ['a million alternatives', '{a,b}'.repeat(20)],
    ['braces in braces', `${'{a,'.repeat(2_000)}${'}'.repeat(2_000)}`],
  ])('that would stand for too many is refused: %s', (_name, pattern) => {
    expect(() => glob(pattern)).toThrow(TypeError)
  })
})
