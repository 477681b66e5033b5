import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { Spare } from '../../src/spare.js'
import { SharedUpstream } from '../../src/upstream/shared.js'
import { HandWire, joined, turnOfLoop } from '../fixtures/played.js'
import { many, runs } from './search.js'

/** The same text, with some of its letters escaped. */
const spelled = (text: string, dice: readonly number[]) => {
  const letters = text.split('').map((unit, index) => {
    const code = unit.charCodeAt(0).toString(16).padStart(4, '0')
    return dice[index % dice.length] === 0 ? `\\u${code}` : JSON.stringify(unit).slice(1, -1)
  })
  return `"${letters.join('')}"`
}
const dice = fc.array(fc.nat(2), { minLength: 1, maxLength: 5 })
const odd = [
  '0',
  '"0"',
  '-1',
  '1',
  '1.0',
  '"1"',
  '1.5',
  '1e2',
  '-0',
  '1e400',
  '-1e400',
  '9007199254740993',
  '123456789012345678',
]
const names = ['', 'a', '__proto__', 'constructor', 'toString', 'omp-1', 'é😀\u2028']

/** Ids and progress tokens, as they may be written. */
const token = fc.oneof(
  fc.constantFrom(...odd),
  fc
    .tuple(fc.oneof(fc.constantFrom(...names), fc.string({ unit: 'binary', maxLength: 3 })), dice)
    .map(([it, dice]) => spelled(it, dice)),
  fc.double({ noNaN: true, noDefaultInfinity: true }).map(String),
)
/** No two are the same to a reader of JSON. */
const tokens = fc.uniqueArray(token, {
  minLength: 1,
  maxLength: 8,
  selector: (it) => JSON.parse(it),
  comparator: 'SameValueZero',
})
const space = fc.constantFrom('', ' ', '\r\t')

/** A token as another program would write it that has read this one. */
function rewritten(token: string): string {
  const value: unknown = JSON.parse(token)
  return typeof value === 'number' && !Number.isFinite(value) ? token : JSON.stringify(value)
}

describe('ids between one client and one server', () => {
  it('come back as they were written, whatever they are and in whatever order', async () => {
    await fc.assert(
      fc.asyncProperty(
        tokens,
        fc.infiniteStream(fc.nat()),
        fc.boolean(),
        space,
        async (ids, order, rewrites, space) => {
          const { app, client, server } = await joined()
          const asked = ids.map(
            (id, n) => `{"jsonrpc":"2.0","id":${space}${id}${space},"method":"m","params":{"n":${n}.0}}`,
          )
          for (const text of asked) client.say(text)
          await turnOfLoop()
          expect(server.sent.splice(0)).toEqual(asked)

          const answers: string[] = []
          for (const left = [...ids.keys()]; left.length > 0; ) {
            const [n] = left.splice(order.next().value % left.length, 1)
            const answer = (id: string) => `{"jsonrpc":"2.0","result":{"n":${n}.0},${space}"id":${id}${space}}`
            const id = ids[n!]!
            server.say(answer(rewrites ? rewritten(id) : id))
            answers.push(answer(id))
          }
          await turnOfLoop()
          expect(client.sent.splice(0)).toEqual(answers)
          expect(app.stats()).toMatchObject({ pending: 0, dropped: 0 })
          await app.close()
        },
      ),
      runs(200),
    )
  })

  it('come back as they were written where a late answer keeps them from the server', async () => {
    await fc.assert(
      fc.asyncProperty(tokens, async (ids) => {
        const { app, client, server } = await joined()
        for (const id of ids) {
          client.say(`{"jsonrpc":"2.0","id":${rewritten(id)},"method":"a"}`)
          client.say(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":${id}}}`)
          client.say(`{"jsonrpc":"2.0","id":${id},"method":"b"}`)
        }
        await turnOfLoop()
        const seen = server.take()
        expect(seen.map(({ method }) => method)).toEqual(ids.flatMap(() => ['a', 'notifications/cancelled', 'b']))
        for (const id of ids) server.say(`{"jsonrpc":"2.0","id":${id},"result":"late"}`)
        for (const { id, method } of seen) if (method === 'b') server.say({ id, result: id as string })
        await turnOfLoop()
        const bs = seen.filter(({ method }) => method === 'b')
        expect(client.sent).toEqual(ids.map((id, n) => `{"jsonrpc":"2.0","id":${id},"result":"${bs[n]!.id}"}`))
        expect(new Set(bs.map(({ id }) => id)).size).toBe(ids.length)
        expect(app.stats()).toMatchObject({ pending: 0, dropped: ids.length })
        await app.close()
      }),
      runs(100),
    )
  })

  it('are refused as they were written where another spelling of them is in use', async () => {
    await fc.assert(
      fc.asyncProperty(fc.string({ unit: 'binary', maxLength: 4 }), dice, dice, async (id, first, second) => {
        const { app, client, server } = await joined()
        client.say(`{"jsonrpc":"2.0","id":${spelled(id, first)},"method":"m"}`)
        client.say(`{"jsonrpc":"2.0","id":${spelled(id, second)},"method":"m"}`)
        await turnOfLoop()
        expect(server.sent).toHaveLength(1)
        expect(client.sent).toEqual([expect.stringContaining(`"id":${spelled(id, second)},"error":{"code":-32600,`)])
        server.onclose?.()
        await app.close()
      }),
      runs(50),
    )
  })
})

/** What a session does, or the server that they share. */
const deed = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({ does: fc.constant('ask' as const), session: fc.nat(2), id: token, token: fc.option(token) }),
  },
  { weight: 3, arbitrary: fc.record({ does: fc.constant('progress' as const), nth: fc.nat(9) }) },
  {
    weight: 3,
    arbitrary: fc.record({ does: fc.constant('answer' as const), nth: fc.nat(9), as: fc.constantFrom('', '.0', 'e0') }),
  },
  { weight: 1, arbitrary: fc.record({ does: fc.constant('cancel' as const), nth: fc.nat(9) }) },
  { weight: 1, arbitrary: fc.record({ does: fc.constant('leave' as const), session: fc.nat(2) }) },
)

interface Asked {
  session: number
  id: string
  token: string | null
  wireId: number
}

describe('ids and progress tokens of sessions that share a server', () => {
  it('are unique on its wire, and come back to each session as it wrote them', async () => {
    await fc.assert(
      fc.asyncProperty(many(deed, 30), async (deeds) => {
        const wire = new HandWire()
        const upstream = new SharedUpstream(
          wire,
          () => {},
          () => {},
          new Spare(1 << 20),
        )
        const heard: string[][] = [[], [], []]
        const taps = heard.map((texts) => {
          const tap = upstream.tap()
          tap.onframe = (frame) => texts.push(Buffer.from(frame).toString())
          return tap
        })
        await Promise.all(taps.map((tap) => tap.start()))
        const expected: string[][] = [[], [], []]
        const gone = new Set<number>()
        let open: Asked[] = []
        let serial = 0
        for (const [n, it] of deeds.entries()) {
          const one = 'nth' in it ? open[it.nth % open.length] : undefined
          const onWire: string[] = []
          if (it.does === 'ask') {
            const { session, id, token } = it
            const isOpen = open.some((other) => other.session === session && JSON.parse(other.id) === JSON.parse(id))
            if (isOpen || gone.has(session)) continue
            const asked = (id: unknown, token: unknown) =>
              `{"jsonrpc":"2.0","id":${id},"method":"m","params":{"n":1.0,"_meta":{"a":1e400${token === null ? '' : `,"progressToken" : ${token}`}}}}`
            const wireId = ++serial
            await taps[session]!.send(Buffer.from(asked(id, token)))
            onWire.push(asked(wireId, token && wireId))
            open.push({ session, id, token, wireId })
          } else if (it.does === 'leave') {
            await taps[it.session]!.close()
            for (const { session, wireId } of open) {
              if (session === it.session)
                onWire.push(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":${wireId}}}`)
            }
            open = open.filter(({ session }) => session !== it.session)
            gone.add(it.session)
          } else if (one) {
            const { session, id, token, wireId } = one
            if (it.does === 'progress') {
              const told = (token: unknown) =>
                `{"jsonrpc":"2.0","method":"notifications/progress","params":{"progress":${n}.0,"progressToken":${token}}}`
              wire.say(told(wireId))
              if (token !== null) expected[session]!.push(told(token))
            } else {
              open.splice(open.indexOf(one), 1)
              const answer = (id: unknown) => `{"jsonrpc":"2.0","result":{"n":${n}.0}, "id": ${id}}`
              if (it.does === 'answer') expected[session]!.push(answer(id))
              else {
                const cancel = (id: unknown) =>
                  `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId": ${id} }}`
                await taps[session]!.send(Buffer.from(cancel(id)))
                onWire.push(cancel(wireId))
              }
              // What is said of it afterwards, or of no request at all, is nobody's.
              wire.say(answer(`${wireId}${it.does === 'answer' ? it.as : ''}`))
              wire.say(answer(wireId))
              wire.say(answer(`"${wireId}"`))
            }
          }
          expect(wire.sent.splice(0)).toEqual(onWire)
          expect(heard).toEqual(expected)
        }
      }),
      runs(300),
    )
  })
})
