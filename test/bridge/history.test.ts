import fc from 'fast-check'
import type { Middleware } from 'open-mcp-proxy'
import { expect, it } from 'vitest'
import { joined, turnOfLoop } from '../fixtures/played.js'

/** What a middleware may do with a message, well or badly. */
const deeds: Record<string, Middleware> = {
  pass: (_ctx, next) => next(),
  passAsync: async (_ctx, next) => {
    await turnOfLoop()
    await next()
  },
  passUnawaited: (_ctx, next) => void next(),
  passTwice: async (_ctx, next) => {
    await next()
    await next()
  },
  read: (ctx, next) => {
    void ctx.message
    return next()
  },
  change: (ctx, next) => {
    if (ctx.kind !== 'response') ctx.params = { ...ctx.params, changed: true }
    return next()
  },
  reply: (ctx) => void ctx.reply({}),
  replyLate: async (ctx, next) => {
    await next()
    await turnOfLoop()
    await ctx.reply({})
  },
  replyAndPass: (ctx, next) => {
    void ctx.reply({})
    return next()
  },
  fail: (ctx) => ctx.fail({ code: 1, message: 'no' }),
  drop: (ctx) => ctx.drop(),
  throw: async (ctx) => {
    await turnOfLoop()
    ctx.throw(1, 'no')
  },
  forget: () => {},
  call: async (ctx, next) => {
    await ctx.call('server', 'own', undefined, { signal: ctx.signal })
    return next()
  },
  stepAside: async (ctx, next) => {
    ctx.stepAside()
    await turnOfLoop()
    return next()
  },
  hang: () => new Promise(() => {}),
}
const deed = fc.constantFrom(...Object.keys(deeds))
/** Per place, what is done with requests and with responses; mostly nothing. */
const line = fc.array(fc.tuple(deed, deed, fc.integer({ min: 0, max: 4 })), { maxLength: 3 })
const event = fc.oneof(
  { weight: 4, arbitrary: fc.record({ kind: fc.constant('ask' as const), id: fc.integer({ min: 0, max: 5 }) }) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant('answer' as const), nth: fc.nat(5) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('cancel' as const), id: fc.integer({ min: 0, max: 5 }) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('wait' as const) }) },
)
const end = fc.constantFrom('client leaves', 'server lost', 'close')

it('whatever middleware, peers and time do, each accepted request gets exactly one outcome', async () => {
  await fc.assert(
    fc.asyncProperty(line, fc.array(event, { maxLength: 25 }), end, async (places, events, how) => {
      const { app, client, server } = await joined(
        (it) =>
          it.use(
            ...places.map(([onRequest, onResponse, every]): Middleware => {
              let count = 0
              return (ctx, next) => {
                if (ctx.method === 'own' || ctx.kind === 'notification' || count++ % (every + 1) !== every)
                  return next()
                return deeds[ctx.kind === 'request' ? onRequest : onResponse]?.(ctx, next)
              }
            }),
          ),
        { drainTimeout: 5 },
      )
      /** Per id: how many requests were accepted, cancelled, and answered. */
      const accounts = new Map<number, { asked: number; cancelled: number; open: boolean }>()
      const unanswered: Record<string, unknown>[] = []
      const seen: number[] = []
      const back: Record<string, unknown>[] = []
      const collect = () => {
        for (const it of server.take()) {
          if (it.method === 'm') seen.push((it.params as { serial: number }).serial)
          if ('id' in it && 'method' in it) unanswered.push(it)
        }
        for (const it of client.take()) {
          back.push(it)
          const account = accounts.get(it.id as number)
          if (account) account.open = false
        }
      }
      let serial = 0
      for (const it of events) {
        collect()
        if (it.kind === 'wait') await turnOfLoop()
        if (it.kind === 'ask') {
          const account = accounts.get(it.id) ?? { asked: 0, cancelled: 0, open: false }
          // A client that uses an id twice is refused, which another test is about.
          if (account.open) continue
          accounts.set(it.id, { ...account, asked: account.asked + 1, open: true })
          client.say({ id: it.id, method: 'm', params: { serial: serial++ } })
        }
        if (it.kind === 'answer') {
          const [asked] = unanswered.splice(it.nth % (unanswered.length || 1), 1)
          if (asked) server.say({ id: asked.id, result: {} })
        }
        if (it.kind === 'cancel') {
          const account = accounts.get(it.id)
          if (!account?.open) continue
          account.open = false
          account.cancelled++
          client.say({ method: 'notifications/cancelled', params: { requestId: it.id } })
        }
      }
      if (how === 'client leaves') client.onclose?.()
      if (how === 'server lost') server.onclose?.()
      await app.close()
      collect()
      for (const [id, { asked, cancelled }] of accounts) {
        const outcomes = back.filter((it) => it.id === id && 'id' in it && !('method' in it)).length
        // A cancellation and an answer may cross.
        expect(outcomes).toBeGreaterThanOrEqual(asked - cancelled)
        expect(outcomes).toBeLessThanOrEqual(asked)
      }
      expect(new Set(seen).size).toBe(seen.length)
      expect(back.filter((it) => String(it.id).startsWith('omp-'))).toEqual([])
      expect(app.stats()).toEqual({
        sessions: 0,
        pending: 0,
        dropped: expect.any(Number),
        lanes: expect.any(Object),
      })
    }),
    { numRuns: 60 },
  )
}, 60_000)
