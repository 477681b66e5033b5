import { createProxy, type Middleware } from 'open-mcp-proxy'
import { testProxy } from 'open-mcp-proxy/testing'
import { describe, expect, it, test } from 'vitest'
import { deferred, joined, turnOfLoop } from '../fixtures/played.js'

const cancel = (requestId: unknown) => ({ method: 'notifications/cancelled', params: { requestId } })
const reason = 'The request was cancelled by its sender'

it('aborts ctx.signal on arrival, also while another message is held before the cancellation', async () => {
  const log: string[] = []
  const gate = deferred()
  const { client, server, errors } = await joined((app) =>
    app.use(async (ctx, next) => {
      if (ctx.id === 0) await gate.promise
      if (ctx.id !== 1) return next()
      ctx.signal.addEventListener('abort', () => log.push((ctx.signal.reason as Error).message))
      await gate.promise
      return next()
    }),
  )
  client.say({ id: 0, method: 'm' })
  client.say({ id: 1, method: 'm' })
  client.say(cancel(1))
  expect(log).toEqual([reason])
  gate.resolve()
  await turnOfLoop()
  await turnOfLoop()
  expect({ sent: server.take(), back: client.take(), errors }).toEqual({
    sent: [{ id: 0, method: 'm' }],
    back: [],
    errors: [],
  })
})

it('a signal that is first asked for after the cancellation is aborted', async () => {
  const gate = deferred()
  const seen: unknown[] = []
  const { client, errors } = await joined((app) =>
    app.use(async (ctx, next) => {
      if (ctx.kind !== 'request') return next()
      await gate.promise
      seen.push(ctx.signal.aborted, ctx.settled)
      ctx.signal.throwIfAborted()
    }),
  )
  client.say({ id: 1, method: 'm' })
  client.say(cancel(1))
  gate.resolve()
  await turnOfLoop()
  expect({ seen, errors }).toEqual({ seen: [true, true], errors: [] })
})

describe('a held request that is cancelled', () => {
  for (const [how, middleware] of Object.entries<Middleware>({
    'handed on': (_ctx, next) => next(),
    'replied to': (ctx) => ctx.reply({}),
    failed: (ctx) => ctx.fail(new Error('x')),
    dropped: (ctx) => ctx.drop(),
    forgotten: () => {},
  })) {
    it(`and then ${how}: is never sent, never answered, its cancellation not forwarded`, async () => {
      const gate = deferred()
      const { client, server, errors, app } = await joined((app) =>
        app.use(async (ctx, next) => {
          if (ctx.kind !== 'request') return next()
          await gate.promise
          return middleware(ctx, next)
        }),
      )
      client.say({ id: 1, method: 'm' })
      client.say(cancel(1))
      client.say({ method: 'n' })
      await turnOfLoop()
      expect(server.take()).toEqual([{ method: 'n' }])
      gate.resolve()
      await turnOfLoop()
      expect({ sent: server.take(), back: client.take(), errors }).toEqual({ sent: [], back: [], errors: [] })
      expect(app.stats()).toMatchObject({ pending: 0, lanes: { 'client-to-server': 0 } })
    })
  }
})

it('of a sent request is forwarded after it; the late response is swallowed', async () => {
  const walked: string[] = []
  const { client, server, app } = await joined((it) =>
    it.use((ctx, next) => {
      walked.push(ctx.kind)
      return next()
    }),
  )
  client.say({ id: 1, method: 'm' })
  client.say(cancel(1))
  await turnOfLoop()
  server.say({ id: 1, result: {} })
  await turnOfLoop()
  expect({ sent: server.take(), back: client.take(), walked }).toEqual({
    sent: [{ id: 1, method: 'm' }, cancel(1)],
    back: [],
    walked: ['request', 'notification'],
  })
  expect(app.stats()).toMatchObject({ pending: 0, dropped: 1 })
})

it('frees the id at once; the new request gets its own answer', async () => {
  const { client, server } = await joined()
  client.say({ id: 1, method: 'a' })
  client.say(cancel(1))
  client.say({ id: 1, method: 'b' })
  await turnOfLoop()
  const sent = server.take()
  server.say({ id: 1, result: { of: 'a' } })
  server.say({ id: sent[2]?.id, result: { of: 'b' } })
  await turnOfLoop()
  expect(sent).toEqual([{ id: 1, method: 'a' }, cancel(1), { id: expect.stringMatching(/^omp-/), method: 'b' }])
  expect(client.take()).toEqual([{ id: 1, result: { of: 'b' } }])
})

it('of initialize is not forwarded, and changes nothing', async () => {
  const { client, server } = await joined()
  client.say({ id: 0, method: 'initialize', params: {} })
  client.say(cancel(0))
  await turnOfLoop()
  server.say({ id: 0, result: { protocolVersion: '2025-06-18' } })
  await turnOfLoop()
  expect(server.take()).toEqual([{ id: 0, method: 'initialize', params: {} }])
  expect(client.take()).toEqual([{ id: 0, result: { protocolVersion: '2025-06-18' } }])
})

for (const id of [0, '', 1, '1']) {
  it(`of id ${JSON.stringify(id)} concerns no other`, async () => {
    const { client, server } = await joined()
    const ids = [0, '', 1, '1']
    for (const it of ids) client.say({ id: it, method: 'm' })
    client.say(cancel(id))
    await turnOfLoop()
    server.take()
    for (const it of ids) server.say({ id: it, result: {} })
    await turnOfLoop()
    expect(client.take().map((it) => it.id)).toEqual(ids.filter((it) => it !== id))
  })
}

it('of an id that nobody knows, or none, is forwarded as it is', async () => {
  const { client, server } = await joined()
  const said = [
    cancel(9),
    { method: 'notifications/cancelled' },
    { method: 'notifications/cancelled', params: { taskId: 't' } },
  ]
  for (const it of said) client.say(it)
  await turnOfLoop()
  expect(server.take()).toEqual(said)
})

it('by the server, of its own request: the answer is swallowed', async () => {
  const aborted: boolean[] = []
  const { client, server } = await joined((app) =>
    app.use(async (ctx, next) => {
      await next()
      if (ctx.kind === 'request') ctx.signal.addEventListener('abort', () => aborted.push(true))
    }),
  )
  client.say({ id: 1, method: 'mine' })
  server.say({ id: 1, method: 'roots/list' })
  await turnOfLoop()
  server.say(cancel(1))
  await turnOfLoop()
  client.say({ id: 1, result: {} })
  server.say({ id: 1, result: { of: 'mine' } })
  await turnOfLoop()
  expect(aborted).toEqual([true])
  expect(client.take()).toEqual([{ id: 1, method: 'roots/list' }, cancel(1), { id: 1, result: { of: 'mine' } }])
  expect(server.take()).toEqual([{ id: 1, method: 'mine' }])
})

it('while the answer is on its way: the answer wins, or is swallowed, but nothing else comes', async () => {
  const gate = deferred()
  const { client, server, errors } = await joined((app) =>
    app.use(async (ctx, next) => {
      if (ctx.kind === 'response') await gate.promise
      return next()
    }),
  )
  client.say({ id: 1, method: 'm' })
  await turnOfLoop()
  server.say({ id: 1, result: {} })
  client.say(cancel(1))
  gate.resolve()
  await turnOfLoop()
  expect({ back: client.take(), errors }).toEqual({ back: [{ id: 1, result: {} }], errors: [] })
})

it('in a middleware that drops it: the server goes on, its answer is swallowed', async () => {
  const { client, server } = await joined((app) =>
    app.use((ctx, next) => (ctx.kind === 'notification' ? ctx.drop() : next())),
  )
  client.say({ id: 1, method: 'm' })
  client.say(cancel(1))
  await turnOfLoop()
  server.say({ id: 1, result: {} })
  await turnOfLoop()
  expect({ sent: server.take(), back: client.take() }).toEqual({ sent: [{ id: 1, method: 'm' }], back: [] })
})

describe('a listen stream that its server takes back', () => {
  const listen = { id: 'l', method: 'subscriptions/listen', params: {} }

  it('the cancellation is forwarded; the end of the server owes it no answer', async () => {
    const { client, server, session } = await joined()
    client.say(listen)
    await turnOfLoop()
    server.say(cancel('l'))
    await turnOfLoop()
    expect(client.take()).toEqual([cancel('l')])
    const closed = new Promise((resolve) => session.signal.addEventListener('abort', resolve))
    server.onclose?.()
    await closed
    expect(client.take()).toEqual([])
  })

  it('a result that comes all the same is forwarded', async () => {
    const { client, server } = await joined()
    client.say(listen)
    await turnOfLoop()
    server.say(cancel('l'))
    server.say({ id: 'l', result: {} })
    await turnOfLoop()
    expect(client.take()).toEqual([cancel('l'), { id: 'l', result: {} }])
  })

  it('its id may be used again', async () => {
    const { client, server, app } = await joined()
    client.say(listen)
    server.say(cancel('l'))
    client.say(listen)
    await turnOfLoop()
    const [, second] = server.take()
    server.say(cancel(second?.id))
    server.say({ id: second?.id, result: { of: 'second' } })
    await turnOfLoop()
    expect(client.take()).toEqual([cancel('l'), cancel('l'), { id: 'l', result: { of: 'second' } }])
    expect(app.stats().pending).toBe(0)
  })

  it('no other request can be taken back', async () => {
    const { client, server } = await joined()
    client.say({ id: 1, method: 'tools/call' })
    server.say(cancel(1))
    server.onclose?.()
    await turnOfLoop()
    expect(client.take()).toEqual([cancel(1), { id: 1, error: expect.objectContaining({ code: -31001 }) }])
  })
})

test.each(['client', 'server'] as const)(
  'a stream that its server took back is over when the %s leaves',
  async (side) => {
    const aborted: unknown[] = []
    const proxy = testProxy(
      createProxy().use((ctx, next) => {
        if (ctx.kind === 'request') ctx.signal.addEventListener('abort', () => aborted.push(ctx.signal.reason.name))
        return next()
      }),
    )
    await proxy.fromClient({ id: 1, method: 'subscriptions/listen', params: {} })
    await proxy.fromServer({ method: 'notifications/cancelled', params: { requestId: 1 } })
    await proxy.end(side)
    expect(aborted).toEqual(['AbortError'])
  },
)
