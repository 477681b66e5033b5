import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { elementsOfBatch, Message } from '../../src/message.js'
import { Refusal } from '../../src/scan.js'
import { joined, turnOfLoop } from '../fixtures/played.js'
import { runs } from './search.js'

const space = fc.constantFrom('', '', ' ', '\n', '\r\n\t')
/** JSON texts that do not survive a parser and a writer. */
const value = fc.oneof(
  fc.json({ maxDepth: 2 }),
  fc.constantFrom(
    '1.0',
    '1e400',
    '-0',
    '9007199254740993',
    '"\\u0061"',
    '{"a":1,"a":2}',
    '{"__proto__":1}',
    '[ 1.0 , {"b" : "\\/"} ]',
  ),
)
const key = fc.oneof(
  fc.constantFrom('x', '__proto__', 'constructor', '', 'é', 'a b'),
  fc.string({ unit: 'binary', maxLength: 3 }),
)

/** The members of an object, and how they stand there. */
const members = fc.uniqueArray(
  fc.tuple(
    key.map((it) => `k${it}`),
    space,
    value,
    space,
  ),
  {
    maxLength: 6,
    selector: ([key]) => key,
  },
)
type Members = [key: string, space: string, value: string, space: string][]

const written = (members: Members) =>
  `{${members.map(([key, before, value, after]) => `${before}${JSON.stringify(key)}:${value}${after}`).join()}}`

/** JSON text that does not depend on the order of members. */
function sorted(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(sorted).join()}]`
  if (typeof value !== 'object' || value === null) return JSON.stringify(value)
  const entries = Object.entries(value).map(([key, inner]) => `${JSON.stringify(key)}:${sorted(inner)}`)
  return `{${entries.sort().join()}}`
}

describe('what a middleware changes', () => {
  it('is sent, and every other member keeps its bytes', async () => {
    await fc.assert(
      fc.asyncProperty(
        members,
        fc.jsonValue({ maxDepth: 2 }),
        fc.nat(),
        fc.boolean(),
        async (members, fresh, nth, assigns) => {
          const { app, client, server } = await joined((it) =>
            it.use((ctx, next) => {
              const name = members[nth % members.length]?.[0] ?? 'new'
              // What only asks whether there is something to do changes nothing.
              const params = ctx.params as Record<string, unknown>
              if (assigns) ctx.params = { ...params, [name]: fresh }
              else params[name] = fresh
              return next()
            }),
          )
          const frame = (params: string) =>
            `{"jsonrpc":"2.0", "id":1.0,"method":"m\\u0061","params":${params} ,"z":1e400}`
          client.say(frame(written(members)))
          await turnOfLoop()
          const index = nth % (members.length || 1)
          const before = members[index]?.[2] ?? 'undefined'
          const isSame = before !== 'undefined' && JSON.stringify(JSON.parse(before)) === JSON.stringify(fresh)
          const [sent] = server.sent
          const expected = JSON.parse(frame(written(members)))
          expected.params[members[index]?.[0] ?? 'new'] = fresh
          expect(sorted(JSON.parse(sent!))).toBe(sorted(JSON.parse(JSON.stringify(expected))))
          // The rest is found around what was changed, to the byte.
          const at = (text: string) =>
            frame(written(members.map((it, n) => (n === index ? [it[0], it[1], text, it[3]] : it))))
          const [head, tail] = (members.length === 0 ? frame('{\0}') : at('\0')).split('\0') as [string, string]
          if (!isSame) {
            expect(sent!.startsWith(head)).toBe(true)
            expect(sent!.endsWith(tail)).toBe(true)
          }
          server.onclose?.()
          await app.close()
        },
      ),
      runs(200),
    )
  })

  it('comes to nothing where it is undone, and a message that is read stays as it is', () => {
    fc.assert(
      fc.property(members, fc.jsonValue(), (members, fresh) => {
        const text = `{"jsonrpc":"2.0","method":"m","params":${written(members)}}`
        const message = new Message(Buffer.from(text))
        const { params } = message.value as unknown as { params: Record<string, unknown> }
        expect(message.changed()).toBeUndefined()
        const [first] = members
        if (first) {
          const before = params[first[0]]
          params[first[0]] = fresh
          params[first[0]] = before
        }
        expect(message.changed()).toBeUndefined()
        expect(message.text).toBe(text)
      }),
      runs(300),
    )
  })
})

describe('a batch', () => {
  it('is taken apart where JSON.parse finds its elements, each to the byte', () => {
    const change = fc.record({
      at: fc.nat(),
      cut: fc.nat(2),
      put: fc.constantFrom('', ',', ']', '[', '"', '1', '\\', ' ', '{'),
    })
    const batch = fc.array(fc.tuple(space, value, space), { maxLength: 5 })
    fc.assert(
      fc.property(batch, space, fc.array(change, { maxLength: 2 }), (elements, space, changes) => {
        let text = `${space}[${elements.map((it) => it.join('')).join()}]${space}`
        for (const { at, cut, put } of changes) {
          const place = at % (text.length + 1)
          text = text.slice(0, place) + put + text.slice(place + cut)
        }
        // Half a surrogate pair is no UTF-8.
        text = Buffer.from(text).toString()
        let parsed: unknown
        try {
          parsed = JSON.parse(text)
        } catch {
          parsed = undefined
        }
        const read = () => elementsOfBatch(Buffer.from(text))?.map((it) => Buffer.from(it).toString())
        if (!/^\s*\[/.test(text)) expect(read()).toBeUndefined()
        else if (!Array.isArray(parsed) || parsed.length === 0) {
          const code = parsed === undefined ? -32700 : -32600
          expect(read).toThrow(expect.objectContaining({ code }))
          expect(read).toThrow(Refusal)
        } else {
          const found = read()!
          expect(found.map((it) => JSON.parse(it))).toEqual(parsed)
          if (changes.length === 0) expect(found).toEqual(elements.map(([, it]) => it.trim()))
        }
      }),
      runs(2_000),
    )
  })
})
