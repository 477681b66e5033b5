import { validateHeaderValue } from 'node:http'
import fc from 'fast-check'
import { glob } from 'open-mcp-proxy'
import { describe, expect, it } from 'vitest'
import { parseEventId } from '../../src/listener/resumable.js'
import { decodeValue, encodeValue } from '../../src/mirror.js'
import { expand, UsageError } from '../../src/values.js'
import { runs } from './search.js'

const text = fc.string({ unit: 'binary' })

describe('a header value', () => {
  const parts = fc.oneof(fc.constantFrom('=?base64?', '?=', ' ', '\t', '\r\n', '\0', 'a', 'é', '\x7f', '='), text)
  const joined = fc.array(parts, { maxLength: 4 }).map((it) => it.join(''))
  const hard = fc.oneof(
    joined,
    text,
    joined.map((it) => `=?base64?${it}?=`),
  )

  it('carries any text there and back, in visible ASCII, which no one can take for two', () => {
    fc.assert(
      fc.property(hard, (value) => {
        const header = encodeValue(value)
        expect(header).toMatch(/^[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?$/)
        validateHeaderValue('mcp-name', header)
        expect(decodeValue(header)).toBe(value)
      }),
      runs(1_000),
    )
  })

  it('is read as one text, or refused', () => {
    fc.assert(
      fc.property(hard, (header) => {
        const value = decodeValue(header)
        if (value === undefined || value === header) return
        // It was encoded: it is a text that Base64 stands for, and that had no need to be.
        expect(header).toBe(`=?base64?${Buffer.from(value).toString('base64')}?=`)
      }),
      runs(1_000),
    )
  })
})

describe('an event id', () => {
  it('names its stream and its event, as an id and as a cursor', () => {
    const stream = fc.nat({ max: 2 ** 40 }).map((it) => it.toString(36))
    const seq = fc.nat({ max: 999_999_999_999_999 })
    fc.assert(
      fc.property(stream, seq, fc.option(seq), (stream, seq, cursor) => {
        const id = `${stream}-${seq}${cursor === null ? '' : `.${cursor}`}`
        expect(parseEventId(id)).toEqual({ stream, seq })
        // No header that an HTTP client could send along with it is taken for it.
        for (const other of [` ${id}`, `${id}\n`, `${id}, ${id}`, `${id}-1`, `${id}.`, `-${id}`]) {
          expect(parseEventId(other)).toBeUndefined()
        }
      }),
      runs(200),
    )
  })

  it('is nothing that it was not made of, whatever a client sends', () => {
    const any = fc
      .array(fc.oneof(fc.constantFrom('0', 'a', '-', '.', '9', 'z'), text), { maxLength: 6 })
      .map((it) => it.join(''))
    fc.assert(
      fc.property(any, (id) => {
        const found = parseEventId(id)
        if (!found) return
        expect(Number.isSafeInteger(found.seq)).toBe(true)
        expect(id.startsWith(`${found.stream}-`)).toBe(true)
      }),
      runs(1_000),
    )
  })
})

/** A pattern as a tree: characters, what stands for any, and choices. */
type Node = string | { any: '*' | '?' } | { choice: Node[][] }

describe('a glob', () => {
  const letter = fc.constantFrom('a', 'b', '.', '/', '{', '}', ',', '*', '?', '\\', '!', '[', '(', '|', '$', '\n', '👋')
  const { nodes } = fc.letrec<{ nodes: Node[]; node: Node }>((tie) => ({
    nodes: fc.array(tie('node'), { maxLength: 4, depthIdentifier: 'glob' }),
    node: fc.oneof(
      { depthIdentifier: 'glob', maxDepth: 3 },
      { weight: 4, arbitrary: letter },
      { weight: 2, arbitrary: fc.constantFrom<Node>({ any: '*' }, { any: '?' }) },
      {
        weight: 2,
        arbitrary: fc.array(tie('nodes'), { minLength: 2, maxLength: 3 }).map((choice): Node => ({ choice })),
      },
    ),
  }))
  const pattern = (nodes: Node[]): string =>
    nodes
      .map((node) => {
        if (typeof node === 'string') return `\\${node}`
        return 'any' in node ? node.any : `{${node.choice.map(pattern).join()}}`
      })
      .join('')
  const source = (nodes: Node[]): string =>
    nodes
      .map((node) => {
        if (typeof node === 'string') return /[\n👋]/u.test(node) ? node : `\\u{${node.codePointAt(0)!.toString(16)}}`
        if ('any' in node) return node.any === '*' ? '.*' : '.'
        return `(?:${node.choice.map(source).join('|')})`
      })
      .join('')
  /** A name that the pattern was made for. */
  const name = (nodes: Node[], dice: Iterator<number>): string =>
    nodes
      .map((node): string => {
        if (typeof node === 'string') return node
        if (!('any' in node)) return name(node.choice[dice.next().value % node.choice.length]!, dice)
        return node.any === '?' ? '?' : 'a👋'.slice(0, [0, 1, 3][dice.next().value % 3])
      })
      .join('')

  it('with any choices and escapes fits what the regular expression fits', () => {
    const other = fc.array(letter, { maxLength: 6 }).map((it) => it.join(''))
    fc.assert(
      fc.property(nodes, fc.infiniteStream(fc.nat()), other, (nodes, dice, other) => {
        const fits = glob(pattern(nodes))
        const reference = new RegExp(`^${source(nodes)}$`, 'su')
        const made = name(nodes, dice)
        expect(fits(made)).toBe(true)
        for (const it of [made, other, `${made}a`, made.slice(1)]) {
          if (!/^[\udc00-\udfff]/.test(it)) expect([it, fits(it)]).toEqual([it, reference.test(it)])
        }
      }),
      runs(500),
    )
  })
})

describe('variables', () => {
  const env = { A: 'one', _b2: '$A', EMPTY: '', secret: 's3cret value' }
  const part = fc.oneof(
    fc
      .constantFrom('$A', '$' + '{A}', '$_b2', '$' + '{EMPTY}', '$EMPTY', '$$', '$' + '{secret}')
      .map((it) => ({ text: it })),
    fc.string({ unit: fc.constantFrom(' ', 'a', '-', '{', '}', '9', 'é', '.') }).map((it) => ({ text: it })),
  )
  const values: Record<string, string> = { $A: 'one', $_b2: '$A', $EMPTY: '', $$: '$' }

  it('are put in once, each for itself, and what they hold is not read again', () => {
    fc.assert(
      fc.property(fc.array(part, { maxLength: 6 }), (parts) => {
        // A space after each: a letter would be part of its name.
        const expected = parts.map(
          ({ text }) => values[text.replace(/[{}]/g, '')] ?? (text === '$' + '{secret}' ? env.secret : text),
        )
        expect(expand(parts.map(({ text }) => text).join(' '), env)).toBe(expected.join(' '))
      }),
      runs(300),
    )
  })

  it('are refused without showing more than a name, or left alone where that was asked for', () => {
    fc.assert(
      fc.property(fc.string({ unit: fc.constantFrom('$', '{', '}', 'A', '1', ' ', '_') }), (text) => {
        try {
          const strict = expand(text, env)
          expect(expand(text, env, { lenient: true })).toBe(strict)
        } catch (error) {
          expect(error).toBeInstanceOf(UsageError)
          expect((error as Error).message).toMatch(
            /^expected (?:the environment variable \w+, it|a variable as \$NAME)/,
          )
        }
      }),
      runs(500),
    )
  })
})
