import { mkdir, mkdtemp, realpath, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { loadMiddleware, parseReference } from '../src/load.js'
import { UsageError } from '../src/values.js'

let directory: string

const files = {
  'default.mjs': 'export default (options) => Object.assign(() => {}, { options })',
  'both.mjs': 'export default () => function first() {}\nexport const both = () => function second() {}',
  'rate-limit.mjs': 'export const rateLimit = (options) => Object.assign(() => {}, { options })',
  'several.mjs': 'export default () => [function a() {}, function b() {}]',
  'none.mjs': 'export default () => []',
  'later.mjs': 'export default async () => function later() {}',
  'other.mjs': 'export const other = 1\nexport const one = () => {}, two = () => {}',
  'nothing.mjs': '',
  'object.mjs': 'export default { not: "a function" }',
  'throws.mjs': 'export default () => { throw new Error("expected { file }\\nand more") }',
  'rejects.mjs': 'export default async () => { throw "a text" }',
  'returns.mjs': 'export const nothing = () => {}, none = () => null, word = () => "x", list = () => [() => {}, 1]',
  'syntax.mjs': 'export default () => {',
  'imports.mjs': 'import "./no-such-file.mjs"',
  'fails.mjs': 'throw new Error("at load")',
  'common.cjs': 'exports.common = () => function common() {}',
  'function.cjs': 'module.exports = () => function whole() {}',
  'node_modules/some-package/package.json':
    '{ "name": "some-package", "type": "module", "exports": { ".": "./main.js", "./audit-log": "./lib/audit-log.js" } }',
  'node_modules/some-package/main.js': 'export const audit = () => function audit() {}',
  'node_modules/some-package/lib/audit-log.js': 'export const auditLog = () => function auditLog() {}',
  'node_modules/@scope/mw/package.json': '{ "name": "@scope/mw", "type": "module", "exports": "./index.js" }',
  'node_modules/@scope/mw/index.js': 'export default () => function scoped() {}',
}

beforeAll(async () => {
  directory = await realpath(await mkdtemp(join(tmpdir(), 'omproxy-load-')))
  for (const [name, text] of Object.entries(files)) {
    const path = join(directory, name)
    await mkdir(dirname(path), { recursive: true })
    await writeFile(path, text)
  }
})

afterAll(() => rm(directory, { recursive: true, force: true }))

const load = (text: string) => loadMiddleware(parseReference(text), directory)
const names = async (text: string) => (await load(text)).map((it) => it.name)
const optionsOf = async (text: string) => (await load(text)).map((it) => (it as { options?: unknown }).options)

/** The text of the UsageError, with the directory taken out; one line, or the test fails. */
async function refusal(text: string): Promise<string> {
  const error = await load(text).then(
    () => new Error('expected a refusal'),
    (reason: Error) => reason,
  )
  expect(error).toBeInstanceOf(UsageError)
  expect(error.message).not.toContain('\n')
  return error.message.replaceAll(directory, 'DIR')
}

describe('parseReference', () => {
  test.each([
    ['logger', { module: 'logger' }],
    ['./a.js#b', { module: './a.js', name: 'b' }],
    ['logger={"arguments":true}', { module: 'logger', options: { arguments: true } }],
    ['pkg/mw#audit={"file":"a=b#c.jsonl"}', { module: 'pkg/mw', name: 'audit', options: { file: 'a=b#c.jsonl' } }],
    ['./a.js=null', { module: './a.js', options: null }],
    ['./a.js#b#c', { module: './a.js', name: 'b#c' }],
  ])('%s', (text, reference) => {
    expect(parseReference(text)).toEqual(reference)
  })

  test.each([
    ['', '--use: expected MODULE[#EXPORT][=JSON], got ""'],
    ['#b={}', '--use: expected MODULE[#EXPORT][=JSON], got "#b"'],
    ['./a.js#', '--use: expected MODULE[#EXPORT][=JSON], got "./a.js#"'],
    ['={"key":"s3cret"}', '--use: expected MODULE[#EXPORT][=JSON], got ""'],
  ])('refuses %j', (text, message) => {
    expect(() => parseReference(text)).toThrow(new UsageError(message))
  })

  test.each(['./a.js=', './a.js=s3cret', './a.js={"key":"s3cret"', './a.js={key:"s3cret"}', './a.js="s3cret'])(
    'refuses JSON that does not parse, and does not show it: %j',
    (text) => {
      expect(() => parseReference(text)).toThrow(
        /^--use \.\/a\.js: expected JSON after "=", got what does not parse( at position \d+)?$/,
      )
    },
  )
})

describe('what is loaded', () => {
  test('the default export, called with the options', async () => {
    expect(await optionsOf('./default.mjs={"a":1}')).toEqual([{ a: 1 }])
    expect(await optionsOf('./default.mjs')).toEqual([undefined])
  })

  test('the default export before the one named like the file', async () => {
    expect(await names('./both.mjs')).toEqual(['first'])
  })

  test('an export by its name', async () => {
    expect(await names('./both.mjs#both')).toEqual(['second'])
    expect(await names('./both.mjs#default')).toEqual(['first'])
  })

  test('the export named like the file, in camel case', async () => {
    expect(await optionsOf('./rate-limit.mjs={"perMinute":5}')).toEqual([{ perMinute: 5 }])
  })

  test('an array of middleware, in order', async () => {
    expect(await names('./several.mjs')).toEqual(['a', 'b'])
    expect(await names('./none.mjs')).toEqual([])
  })

  test('what an async factory makes', async () => {
    expect(await names('./later.mjs')).toEqual(['later'])
  })

  test('an absolute path', async () => {
    expect(await names(join(directory, 'later.mjs'))).toEqual(['later'])
  })

  test('CommonJS', async () => {
    expect(await names('./common.cjs#common')).toEqual(['common'])
    expect(await names('./function.cjs')).toEqual(['whole'])
  })

  test('a package in node_modules of the directory', async () => {
    expect(await names('some-package/audit-log')).toEqual(['auditLog'])
    expect(await names('@scope/mw')).toEqual(['scoped'])
  })

  test('a bare word is one of the shelf, even where a package has the name', async () => {
    expect(await load('logger')).toEqual([expect.any(Function)])
    expect(await load('logger#logger={"arguments":true}')).toEqual([expect.any(Function)])
    expect(await refusal('some-package')).toBe(
      "--use some-package: expected one of the shelf (audit, auth, authorize, logger, metrics, record, toolFilter, trace), a path (./some-package.js) or a package's module, found none",
    )
  })
})

describe('what is refused', () => {
  test.each([
    ['./nope.mjs', '--use ./nope.mjs: expected a module in DIR (a path begins with ./, ../ or /), found none'],
    ['nope.mjs', '--use nope.mjs: expected a module in DIR (a path begins with ./, ../ or /), found none'],
    ['/nope/nope.mjs', '--use /nope/nope.mjs: expected a module there, found none'],
    [
      'some-package/inner',
      '--use some-package/inner: expected a module in DIR (a path begins with ./, ../ or /), found none',
    ],
    ['.', '--use .: expected a module in DIR (a path begins with ./, ../ or /), found none'],
    [
      './both.mjs#three',
      '--use ./both.mjs: expected an export "three" that makes a middleware, the module exports both, default',
    ],
    [
      './other.mjs',
      '--use ./other.mjs: expected a default export or one named "other" that makes a middleware, the module exports one, other, two',
    ],
    [
      './nothing.mjs',
      '--use ./nothing.mjs: expected a default export or one named "nothing" that makes a middleware, the module exports nothing',
    ],
    [
      './object.mjs',
      '--use ./object.mjs: expected a default export or one named "object" that makes a middleware, the module exports default',
    ],
    ['./throws.mjs', '--use ./throws.mjs: default(options) failed: expected { file }'],
    ['./rejects.mjs', '--use ./rejects.mjs: default(options) failed: a text'],
    [
      './returns.mjs#nothing',
      '--use ./returns.mjs: expected nothing(options) to return a middleware or an array of them, got undefined',
    ],
    [
      './returns.mjs#none',
      '--use ./returns.mjs: expected none(options) to return a middleware or an array of them, got null',
    ],
    [
      './returns.mjs#word',
      '--use ./returns.mjs: expected word(options) to return a middleware or an array of them, got string',
    ],
    [
      './returns.mjs#list',
      '--use ./returns.mjs: expected list(options) to return a middleware or an array of them, got number',
    ],
    ['./fails.mjs', '--use ./fails.mjs: the module could not be loaded: at load'],
  ])('%s', async (text, message) => {
    expect(await refusal(text)).toBe(message)
  })

  test.each(['./syntax.mjs', './imports.mjs'])('%s: the module could not be loaded', async (text) => {
    expect(await refusal(text)).toMatch(/^--use \.\/\w+\.mjs: the module could not be loaded: ./)
  })

  test('options that the middleware refuses', async () => {
    expect(await refusal('logger={"format":"xml"}')).toBe(
      '--use logger: logger(options) failed: logger: expected format "pretty" or "json", got "xml"',
    )
  })
})
