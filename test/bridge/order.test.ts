import fc from 'fast-check'
import type { Middleware } from 'open-mcp-proxy'
import { expect, it } from 'vitest'
import { deferred, HandWire, joined, turnOfLoop } from '../fixtures/played.js'

/** Holds each message until the test lets it go. */
function holding() {
  const gates = new Map<string, ReturnType<typeof deferred<void>>>()
  const hold: Middleware = async (ctx, next) => {
    const gate = deferred()
    gates.set(`${ctx.kind} ${ctx.id ?? ctx.method}`, gate)
    await gate.promise
    return next()
  }
  const release = async (name: string) => {
    gates.get(name)?.resolve()
    await turnOfLoop()
  }
  return { hold, release }
}

const names = (wire: HandWire) => wire.take().map((it) => it.id ?? it.method)

it('departures keep the order of arrivals, whatever the middleware waits for', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.scheduler(),
      fc.array(fc.constantFrom('request', 'notification'), { maxLength: 40 }),
      async (scheduler, kinds) => {
        const delay: Middleware = async (_ctx, next) => {
          await scheduler.schedule(Promise.resolve())
          await next()
        }
        const { client, server } = await joined((app) => app.use(delay, (_ctx, next) => next(), delay))
        const said = kinds.map((kind, index) =>
          kind === 'request' ? { id: index, method: 'm' } : { method: 'n', params: { index } },
        )
        for (const message of said) client.say(message)
        for (const message of said) server.say({ ...message, method: 's' })
        await scheduler.waitIdle()
        await turnOfLoop()
        await scheduler.waitIdle()
        await turnOfLoop()
        expect(server.take()).toEqual(said)
        expect(client.take()).toEqual(said.map((message) => ({ ...message, method: 's' })))
      },
    ),
    { numRuns: 25 },
  )
})

it('hundreds of messages with delays of their own, to a wire that is slow at random', async () => {
  let seed = 1
  const random = () => {
    seed = (seed * 16_807) % 2_147_483_647
    return seed
  }
  const wait = async (most: number) => {
    for (let left = random() % most; left > 0; left--) await turnOfLoop()
  }
  const server = new HandWire()
  server.sending = () => (random() % 3 === 0 ? wait(3) : undefined)
  const { client, app } = await joined(
    (it) =>
      it.use(async (_ctx, next) => {
        await wait(8)
        await next()
      }),
    { server },
  )
  const said = Array.from({ length: 400 }, (_, id) => (id % 3 ? { id, method: 'm' } : { method: 'n', params: { id } }))
  for (const message of said) client.say(message)
  while (app.stats().lanes['client-to-server'] > 0) await turnOfLoop()
  expect(server.take()).toEqual(said)
})

it('middleware of different messages overlaps, their departures do not overtake', async () => {
  const { hold, release } = holding()
  const { client, server } = await joined((app) => app.use(hold))
  client.say({ id: 1, method: 'm' })
  client.say({ id: 2, method: 'm' })
  client.say({ method: 'n' })
  await release('notification n')
  await release('request 2')
  expect(names(server)).toEqual([])
  await release('request 1')
  expect(names(server)).toEqual([1, 2, 'n'])
})

it('a response does not wait for a request that is held', async () => {
  const { hold, release } = holding()
  const { client, server } = await joined((app) =>
    app.use((ctx, next) => (ctx.direction === 'server-to-client' && ctx.kind === 'request' ? hold(ctx, next) : next())),
  )
  client.say({ id: 1, method: 'm' })
  server.say({ id: 's', method: 'sampling/createMessage' })
  server.say({ id: 1, result: {} })
  await turnOfLoop()
  expect(names(client)).toEqual([1])
  await release('request s')
  expect(names(client)).toEqual(['s'])
})

it('a response waits for the notifications and responses before it', async () => {
  const { hold, release } = holding()
  const { client, server } = await joined((app) =>
    app.use((ctx, next) => (ctx.direction === 'server-to-client' ? hold(ctx, next) : next())),
  )
  client.say({ id: 1, method: 'm' })
  client.say({ id: 2, method: 'm' })
  server.say({ method: 'p1' })
  server.say({ id: 2, result: {} })
  server.say({ method: 'p2' })
  server.say({ id: 1, result: {} })
  for (const it of ['response 1', 'notification p2', 'response 2']) await release(it)
  expect(names(client)).toEqual([])
  await release('notification p1')
  expect(names(client)).toEqual(['p1', 2, 'p2', 1])
})

it('a request waits for the responses before it', async () => {
  const { hold, release } = holding()
  const { client, server } = await joined((app) =>
    app.use((ctx, next) => (ctx.kind === 'response' ? hold(ctx, next) : next())),
  )
  client.say({ id: 1, method: 'm' })
  server.say({ id: 1, result: {} })
  server.say({ id: 's', method: 'roots/list' })
  await turnOfLoop()
  expect(names(client)).toEqual([])
  await release('response 1')
  expect(names(client)).toEqual([1, 's'])
})

it('notifications leave before their response on overlapping calls', async () => {
  const { client, server } = await joined((app) =>
    app.use(async (ctx, next) => {
      if (ctx.kind === 'notification') await turnOfLoop()
      return next()
    }),
  )
  for (const id of [1, 2, 3]) client.say({ id, method: 'm' })
  for (const id of [3, 1, 2]) {
    server.say({ method: 'notifications/progress', params: { progressToken: id } })
    server.say({ id, result: {} })
  }
  await turnOfLoop()
  await turnOfLoop()
  await turnOfLoop()
  const seen = client.take().map((it) => it.id ?? (it.params as { progressToken: number }).progressToken)
  expect(seen).toEqual([3, 3, 1, 1, 2, 2])
})

for (const [verb, handler] of Object.entries<Middleware>({
  reply: (ctx) => void ctx.reply({}),
  fail: (ctx) => void ctx.fail({ code: 1, message: 'no' }),
  drop: (ctx) => ctx.drop(),
  throw: (ctx) => ctx.throw(1, 'no'),
})) {
  it(`${verb} releases the turn, also where the middleware goes on`, async () => {
    const end = deferred()
    const { client, server } = await joined((app) =>
      app.use(async (ctx, next) => {
        if (ctx.id !== 1) return next()
        await turnOfLoop()
        handler(ctx, next)
        await end.promise
      }),
    )
    client.say({ id: 1, method: 'm' })
    client.say({ id: 2, method: 'm' })
    client.say({ method: 'n' })
    await turnOfLoop()
    await turnOfLoop()
    expect(names(server)).toEqual([2, 'n'])
    end.resolve()
  })
}

it('a dropped notification holds up no response, though a held request is before both', async () => {
  const { hold } = holding()
  const { client, server } = await joined((app) =>
    app.use((ctx, next) => {
      if (ctx.direction === 'client-to-server') return next()
      if (ctx.kind === 'request') return hold(ctx, next)
      if (ctx.kind === 'notification') return ctx.drop()
      return next()
    }),
  )
  client.say({ id: 1, method: 'm' })
  server.say({ id: 's', method: 'roots/list' })
  server.say({ method: 'n' })
  server.say({ id: 1, result: {} })
  await turnOfLoop()
  expect(names(client)).toEqual([1])
})

it('stepAside lets the others pass; the message departs when it is ready', async () => {
  const { hold, release } = holding()
  const { client, server } = await joined((app) =>
    app.use((ctx, next) => {
      if (ctx.id !== 1) return next()
      ctx.stepAside()
      return hold(ctx, next)
    }),
  )
  client.say({ id: 1, method: 'm' })
  client.say({ id: 2, method: 'm' })
  await turnOfLoop()
  expect(names(server)).toEqual([2])
  await release('request 1')
  expect(names(server)).toEqual([1])
})

it('what a middleware creates does not queue', async () => {
  const { hold, release } = holding()
  const { client, server } = await joined((app) =>
    app.use((ctx, next) => {
      if (ctx.id === 1) return hold(ctx, next)
      if (ctx.id === 2) void ctx.notify('server', 'created')
      return ctx.kind === 'request' ? ctx.reply({}) : next()
    }),
  )
  client.say({ id: 1, method: 'm' })
  client.say({ id: 2, method: 'm' })
  client.say({ id: 3, method: 'm' })
  await turnOfLoop()
  expect(names(server)).toEqual(['created'])
  expect(names(client)).toEqual([2, 3])
  await release('request 1')
  expect(names(server)).toEqual([1])
})

it('next() resolves once the message has left, not before', async () => {
  const gone = deferred()
  const server = new HandWire()
  server.sending = () => gone.promise
  const log: string[] = []
  const { client } = await joined(
    (app) =>
      app.use(async (_ctx, next) => {
        await next()
        log.push('left')
      }),
    { server },
  )
  client.say({ id: 1, method: 'm' })
  await turnOfLoop()
  expect(log).toEqual([])
  gone.resolve()
  await turnOfLoop()
  expect(log).toEqual(['left'])
})

it('messages that came before the server has started leave in their order when it has', async () => {
  const started = deferred()
  const server = new HandWire()
  server.starting = () => started.promise
  const { client } = await joined(undefined, { server })
  for (const id of [1, 2, 3]) client.say({ id, method: 'm' })
  client.say({ method: 'notifications/cancelled', params: { requestId: 2 } })
  await turnOfLoop()
  expect(names(server)).toEqual([])
  started.resolve()
  await turnOfLoop()
  client.say({ id: 4, method: 'm' })
  await turnOfLoop()
  expect(names(server)).toEqual([1, 3, 4])
})
