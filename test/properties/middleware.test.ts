import fc from 'fast-check'
import type { Context, Middleware, Next } from 'open-mcp-proxy'
import { expect, it } from 'vitest'
import { joined, turnOfLoop } from '../fixtures/played.js'
import { many, runs } from './search.js'

type Side = 'client' | 'server'

/** What was thrown that no peer may read: each its own, so that it can be looked for. */
class Secrets {
  thrown: unknown[] = []
  caught = new Set<unknown>()

  /** Something to throw; not all of it is an `Error`. */
  make(): unknown {
    const text = `secret ${this.thrown.length}.`
    const kinds = [new Error(text), new TypeError(text), text, { toString: () => text }]
    const one = kinds[this.thrown.length % kinds.length]
    this.thrown.push(one)
    return one
  }
}

type Deed = (ctx: Context, next: Next, secrets: Secrets) => unknown

const change = (ctx: Context) => {
  if (ctx.kind === 'response') ctx.result = { ...ctx.result, changed: 1 }
  else ctx.params = { ...ctx.params, changed: 1 }
}
const untilAborted = (ctx: Context) =>
  new Promise<void>((resolve) => {
    if (ctx.signal.aborted) resolve()
    ctx.signal.addEventListener('abort', () => resolve())
  })

/** What a middleware may do with a message, well or badly. */
const deeds: Record<string, Deed> = {
  pass: (_ctx, next) => next(),
  passLater: async (_ctx, next) => {
    await turnOfLoop()
    await next()
  },
  passUnawaited: (_ctx, next) => void next(),
  passTwice: async (_ctx, next) => {
    await next()
    await next()
  },
  passTwiceAtOnce: (_ctx, next) => Promise.all([next(), next()]),
  passAndReturnNonsense: async (_ctx, next) => {
    await next()
    return { id: 'nonsense' }
  },
  passAndGoOn: async (_ctx, next) => {
    void next()
    await turnOfLoop()
  },
  read: (ctx, next) => {
    void ctx.message
    return next()
  },
  change: (ctx, next) => {
    change(ctx)
    return next()
  },
  changeBadly: (ctx, next) => {
    ;(ctx.message as unknown as Record<string, unknown>).params = { big: 1n }
    return next()
  },
  changeId: (ctx, next) => {
    ;(ctx.message as { id?: unknown }).id = 'another'
    return next()
  },
  changeAndThrow: (ctx, _next, secrets) => {
    change(ctx)
    throw secrets.make()
  },
  throw: (_ctx, _next, secrets) => {
    throw secrets.make()
  },
  throwLater: async (_ctx, _next, secrets) => {
    await turnOfLoop()
    throw secrets.make()
  },
  throwToPeer: (ctx) => ctx.throw(7, 'no'),
  passAndThrow: async (_ctx, next, secrets) => {
    await next()
    throw secrets.make()
  },
  passUnawaitedAndThrow: (_ctx, next, secrets) => {
    void next()
    throw secrets.make()
  },
  catch: async (_ctx, next, secrets) => {
    try {
      await next()
    } catch (error) {
      secrets.caught.add(error)
    }
  },
  catchAndReply: async (ctx, next, secrets) => {
    try {
      await next()
    } catch (error) {
      secrets.caught.add(error)
      await ctx.reply({ caught: true })
    }
  },
  reply: (ctx) => void ctx.reply({}),
  replyTwice: async (ctx) => {
    await ctx.reply({ first: true })
    await ctx.reply({ second: true })
  },
  replyAfterPassing: async (ctx, next) => {
    await next()
    await turnOfLoop()
    await ctx.reply({})
  },
  replyAndPass: (ctx, next) => {
    void ctx.reply({})
    return next()
  },
  replyAndThrow: async (ctx, _next, secrets) => {
    await ctx.reply({})
    throw secrets.make()
  },
  replyBadly: (ctx) => ctx.reply({ big: 1n }),
  fail: (ctx) => ctx.fail({ code: 7, message: 'no' }),
  failWithError: (ctx, _next, secrets) => ctx.fail(Object.assign(new Error(), { cause: secrets.thrown.length })),
  drop: (ctx) => ctx.drop(),
  dropAndPass: (ctx, next) => {
    ctx.drop()
    return next()
  },
  forget: () => {},
  returnNonsense: () => 42,
  call: async (ctx, next) => {
    await ctx.call('server', 'own', undefined, { signal: ctx.signal })
    return next()
  },
  notify: async (ctx, next) => {
    await ctx.notify('client', 'told')
    return next()
  },
  stepAside: async (ctx, next) => {
    ctx.stepAside()
    await turnOfLoop()
    return next()
  },
  hangUntilAborted: untilAborted,
  hangAndPass: async (ctx, next) => {
    await untilAborted(ctx)
    return next()
  },
  hangAndThrow: async (ctx, _next, secrets) => {
    await untilAborted(ctx)
    throw secrets.make()
  },
  hang: () => new Promise(() => {}),
}
/** What a deeper one throws is lost on these, where the message has its outcome already. */
const careless = new Set(['passUnawaited', 'passAndGoOn', 'passTwiceAtOnce', 'passUnawaitedAndThrow'])
const calm = Object.keys(deeds).filter((name) => !name.startsWith('hang'))
/** Per place, what is done with requests, responses and notifications; and how seldom. */
const place = (names: readonly string[]) => {
  const deed = fc.constantFrom(...names)
  return fc.record({ request: deed, response: deed, notification: deed, every: fc.integer({ min: 0, max: 3 }) })
}
const line = fc.oneof(...[calm, Object.keys(deeds)].map((names) => fc.array(place(names), { maxLength: 4 })))

const noLanes = { 'client-to-server': 0, 'server-to-client': 0 }
const side = fc.constantFrom<Side>('client', 'server')
const id = fc.integer({ min: 0, max: 4 })
const event = fc.oneof(
  { weight: 4, arbitrary: fc.record({ does: fc.constant('ask' as const), side, id }) },
  { weight: 3, arbitrary: fc.record({ does: fc.constant('answer' as const), side, nth: fc.nat(5) }) },
  { weight: 1, arbitrary: fc.record({ does: fc.constant('cancel' as const), side, id }) },
  { weight: 1, arbitrary: fc.record({ does: fc.constant('notify' as const), side }) },
  { weight: 2, arbitrary: fc.record({ does: fc.constant('wait' as const) }) },
)
/** Or both ends answer all that they were asked before it comes to one. */
const end = fc.constantFrom('client leaves', 'server is lost', 'close', 'close at rest')

/** What an end has said and got, by its ids: requests are accepted, cancelled, and answered. */
class Account {
  readonly requests = new Map<number, { asked: number; cancelled: number; answered: number; open: boolean }>()
  readonly unanswered: unknown[] = []
  /** Serial numbers of what came. */
  readonly seen: unknown[] = []

  take(messages: Record<string, unknown>[]): void {
    for (const { id, method, params } of messages) {
      const { serial } = (params ?? {}) as { serial?: number }
      if (serial !== undefined) this.seen.push(serial)
      if (method !== undefined && id !== undefined) this.unanswered.push(id)
      if (method !== undefined) continue
      const request = this.requests.get(id as number)
      expect(request).toBeDefined()
      request!.answered++
      request!.open = false
    }
  }
}

it('whatever middleware, peers and time do, each accepted request gets exactly one outcome', async () => {
  await fc.assert(
    fc.asyncProperty(line, many(event, 25), end, async (places, events, how) => {
      const secrets = new Secrets()
      const reported: Error[] = []
      /** Of the outer middleware: how often each message came, and went. */
      const runs = { entered: 0, left: 0 }
      const watch: Middleware = async (ctx, next) => {
        if (ctx.method === 'own') return next()
        runs.entered++
        try {
          await next()
        } finally {
          runs.left++
        }
      }
      const middleware = places.map((place): Middleware => {
        let count = 0
        return (ctx, next) => {
          if (ctx.method === 'own' || count++ % (place.every + 1) !== place.every) return next()
          return deeds[place[ctx.kind]]?.(ctx, next, secrets)
        }
      })
      const { app, client, server } = await joined((it) => it.use(watch, ...middleware, watch), { drainTimeout: 5 })
      app.on('error', (error: Error) => reported.push(error))
      const ends = {
        client: { wire: client, account: new Account() },
        server: { wire: server, account: new Account() },
      }
      const texts: string[] = []
      const collect = () => {
        for (const { wire, account } of Object.values(ends)) {
          texts.push(...wire.sent)
          account.take(wire.take())
        }
      }
      let serial = 0
      for (const it of events) {
        collect()
        if (it.does === 'wait') {
          await turnOfLoop()
          continue
        }
        const { wire, account } = ends[it.side]
        if (it.does === 'notify') wire.say({ method: 'n', params: { serial: serial++ } })
        if (it.does === 'answer') {
          const [id] = account.unanswered.splice(it.nth % (account.unanswered.length || 1), 1)
          if (id !== undefined) wire.say({ id, result: { n: serial } })
        }
        if (it.does === 'ask') {
          const request = account.requests.get(it.id) ?? { asked: 0, cancelled: 0, answered: 0, open: false }
          // An end that uses an id twice is refused, which another test is about.
          if (request.open) continue
          account.requests.set(it.id, { ...request, asked: request.asked + 1, open: true })
          wire.say({ id: it.id, method: 'm', params: { serial: serial++ } })
        }
        if (it.does === 'cancel') {
          const request = account.requests.get(it.id)
          if (!request?.open) continue
          request.open = false
          request.cancelled++
          wire.say({ method: 'notifications/cancelled', params: { requestId: it.id } })
        }
      }
      if (how === 'close at rest') {
        for (let turns = 0; turns < 40; turns++) {
          for (const { wire, account } of Object.values(ends)) {
            for (const id of account.unanswered.splice(0)) wire.say({ id, result: {} })
          }
          await turnOfLoop()
          collect()
        }
        const hangs = places.some((it) => Object.values(it).some((deed) => String(deed).startsWith('hang')))
        if (!hangs) expect(app.stats()).toMatchObject({ pending: 0, lanes: noLanes })
      }
      if (how === 'client leaves') client.onclose?.()
      if (how === 'server is lost') server.onclose?.()
      await app.close()
      // What hung may go on now, and finds that it is too late.
      for (let turns = 0; turns < 10; turns++) await turnOfLoop()
      collect()
      for (const [side, { account }] of Object.entries(ends)) {
        for (const { asked, cancelled, answered } of account.requests.values()) {
          // Nobody is told who is not there. A cancellation and an answer may cross.
          const least = side === 'server' && how === 'server is lost' ? 0 : asked - cancelled
          expect(answered).toBeGreaterThanOrEqual(least)
          expect(answered).toBeLessThanOrEqual(asked)
        }
        expect(new Set(account.seen).size).toBe(account.seen.length)
      }
      expect(app.stats()).toMatchObject({
        sessions: 0,
        pending: 0,
        lanes: noLanes,
      })
      expect(
        texts.filter((text) => text.includes('secret') || (text.includes('omp-') && !text.includes('method'))),
      ).toEqual([])
      const isCareful = places.every((it) => !Object.values(it).some((deed) => careless.has(String(deed))))
      for (const [n, one] of secrets.thrown.entries()) {
        const told = reported.filter(({ message, cause }) => `${message} ${cause}`.includes(`secret ${n}.`)).length
        if (secrets.caught.has(one) || !isCareful) expect(told).toBeLessThanOrEqual(1)
        else expect([n, told]).toEqual([n, 1])
      }
      const hangs = places.some((it) => Object.values(it).includes('hang'))
      if (!hangs) expect(runs.left).toBe(runs.entered)
    }),
    runs(100),
  )
})
