import type { Application, Middleware } from 'open-mcp-proxy'
import { RpcError } from 'open-mcp-proxy'
import { describe, expect, it, vi } from 'vitest'
import { deferred, HandWire, joined, proxys, turnOfLoop } from '../fixtures/played.js'

const ownId = expect.stringMatching(/^omp-[0-9a-f]{12}-\d+$/)

/** A middleware that asks the other end before it hands a request of the client on. */
const asking =
  (results: unknown[], method = 'tools/list'): Middleware =>
  async (ctx, next) => {
    if (ctx.kind !== 'request' || ctx.method === method) return next()
    results.push(await ctx.call('server', method, { of: ctx.id }).catch((error) => error))
    return next()
  }
const note =
  (log: string[], name: string): Middleware =>
  (ctx, next) => {
    log.push(`${name} ${ctx.kind} ${ctx.method}`)
    return next()
  }

it('ctx.call asks under an id of its own; the answer walks back to the asking place only', async () => {
  const results: unknown[] = []
  const log: string[] = []
  const { client, server } = await joined((app) => app.use(note(log, 'a'), asking(results), note(log, 'c')))
  client.say({ id: 1, method: 'm' })
  await turnOfLoop()
  const [question] = server.take()
  expect(question).toEqual({ id: ownId, method: 'tools/list', params: { of: 1 } })
  server.say({ id: question?.id, result: { tools: [] } })
  await turnOfLoop()
  expect({ results, sent: server.take(), back: client.take() }).toEqual({
    results: [{ tools: [] }],
    sent: [{ id: 1, method: 'm' }],
    back: [],
  })
  expect(log).toEqual(['a request m', 'c request tools/list', 'c response tools/list', 'c request m'])
})

it('ctx.call to the client, from the answer, walks the other way', async () => {
  const log: string[] = []
  const { client, server } = await joined((app) =>
    app.use(
      note(log, 'a'),
      async (ctx, next) => {
        if (ctx.kind === 'response' && ctx.method === 'm') ctx.result = await ctx.call('client', 'roots/list')
        return next()
      },
      note(log, 'c'),
    ),
  )
  client.say({ id: 1, method: 'm' })
  server.say({ id: 1, result: {} })
  await turnOfLoop()
  const [question] = client.take()
  expect(question).toEqual({ id: ownId, method: 'roots/list' })
  client.say({ id: question?.id, result: { roots: [1] } })
  await turnOfLoop()
  expect({ back: client.take(), sent: server.take() }).toEqual({
    back: [{ id: 1, result: { roots: [1] } }],
    sent: [{ id: 1, method: 'm' }],
  })
  expect(log).toEqual([
    'a request m',
    'c request m',
    'c response m',
    'a request roots/list',
    'a response roots/list',
    'a response m',
  ])
})

it('session.call and session.notify walk the whole line, from any time', async () => {
  const log: string[] = []
  const { client, server, session } = await joined((app) => app.use(note(log, 'a'), note(log, 'b')))
  const answer = session.call('server', 'tools/list')
  await session.notify('client', 'notifications/tools/list_changed')
  await session.notify('server', 'notifications/x', { a: 1 })
  const [question, ...rest] = server.take()
  server.say({ id: question?.id, result: { tools: [] } })
  expect(await answer).toEqual({ tools: [] })
  expect({ question, rest, back: client.take() }).toEqual({
    question: { id: ownId, method: 'tools/list' },
    rest: [{ method: 'notifications/x', params: { a: 1 } }],
    back: [{ method: 'notifications/tools/list_changed' }],
  })
  expect(log).toEqual([
    'a request tools/list',
    'b request tools/list',
    'b notification notifications/tools/list_changed',
    'a notification notifications/tools/list_changed',
    'a notification notifications/x',
    'b notification notifications/x',
    'b response tools/list',
    'a response tools/list',
  ])
})

it('ctx.notify walks from its place', async () => {
  const log: string[] = []
  const { client, server } = await joined((app) =>
    app.use(
      note(log, 'a'),
      async (ctx, next) => {
        if (ctx.kind !== 'request') return next()
        await ctx.notify('client', 'to-client', { n: 1 })
        await ctx.notify('server', 'to-server')
        return next()
      },
      note(log, 'c'),
    ),
  )
  client.say({ id: 1, method: 'm' })
  await turnOfLoop()
  expect({ sent: server.take(), back: client.take() }).toEqual({
    sent: [{ method: 'to-server' }, { id: 1, method: 'm' }],
    back: [{ method: 'to-client', params: { n: 1 } }],
  })
  expect(log).toEqual(['a request m', 'a notification to-client', 'c notification to-server', 'c request m'])
})

it('an error of the peer rejects with it', async () => {
  const { server, session } = await joined()
  const answer = session.call('server', 'x').catch((error) => error)
  const [question] = server.take()
  server.say({ id: question?.id, error: { code: -32601, message: 'no', data: { a: 1 } } })
  const error = await answer
  expect(error).toBeInstanceOf(RpcError)
  expect(error.toJSON()).toEqual({ code: -32601, message: 'no', data: { a: 1 } })
})

describe('a call that a middleware on its way', () => {
  const cases: Record<string, [Middleware, unknown]> = {
    'replies to': [(ctx) => ctx.reply({ cached: true }), { cached: true }],
    fails: [(ctx) => ctx.fail({ code: 7, message: 'no' }), { code: 7, message: 'no' }],
    drops: [(ctx) => ctx.drop(), proxys(-31006, 'Denied: dropped', 'denied', 'not_sent', false)],
    'throws at': [(ctx) => ctx.throw(7, 'no'), { code: 7, message: 'no' }],
    forgets: [() => {}, { code: -32603, message: 'Internal error' }],
  }
  for (const [name, [middleware, expected]] of Object.entries(cases)) {
    it(name, async () => {
      const { session } = await joined((app) => app.use(middleware))
      const outcome = await session.call('server', 'x').catch((error: RpcError) => error.toJSON())
      expect(outcome).toEqual(expected)
    })
  }
})

describe('given up', () => {
  const given = async (how: (app: Application) => unknown = () => {}) => {
    const it = await joined(how)
    return { ...it, cancelled: (id: unknown) => ({ method: 'notifications/cancelled', params: { requestId: id } }) }
  }

  it('by its timeout: -31002, the server is told, the late answer swallowed', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
    try {
      const { server, client, session, cancelled } = await given()
      const answer = session.call('server', 'x', undefined, { timeout: 1000 }).catch((error) => error.toJSON())
      vi.advanceTimersByTime(999)
      expect(server.sent.length).toBe(1)
      vi.advanceTimersByTime(1)
      expect(await answer).toEqual(proxys(-31002, 'Upstream timed out', 'upstream_timeout', 'sent', false))
      await turnOfLoop()
      const [question, cancel] = server.take()
      expect(cancel).toEqual(cancelled(question?.id))
      server.say({ id: question?.id, result: {} })
      await turnOfLoop()
      expect(client.take()).toEqual([])
    } finally {
      vi.useRealTimers()
    }
  })

  it('by its timeout before it was sent: the server is told nothing', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
    try {
      const gate = deferred()
      const { server, session } = await given((app) => app.use((_ctx, next) => gate.promise.then(next)))
      const answer = session.call('server', 'x', undefined, { timeout: 5 }).catch((error) => error.toJSON())
      vi.advanceTimersByTime(5)
      expect(await answer).toEqual(proxys(-31002, 'Upstream timed out', 'upstream_timeout', 'not_sent', false))
      gate.resolve()
      await turnOfLoop()
      expect(server.take()).toEqual([])
    } finally {
      vi.useRealTimers()
    }
  })

  it('a timeout longer than any timer of Node is none', async () => {
    const { server, session } = await given()
    const answer = session.call('server', 'x', undefined, { timeout: Number.POSITIVE_INFINITY })
    const [question] = server.take()
    await new Promise((resolve) => setTimeout(resolve, 5))
    server.say({ id: question?.id, result: { late: true } })
    expect(await answer).toEqual({ late: true })
  })

  it('by its signal: rejects with the reason, the server is told', async () => {
    const { server, session, cancelled } = await given()
    const controller = new AbortController()
    const answer = session.call('server', 'x', undefined, { signal: controller.signal }).catch((error) => error)
    const reason = new Error('enough')
    controller.abort(reason)
    expect(await answer).toBe(reason)
    const [question, cancel] = server.take()
    expect(cancel).toEqual(cancelled(question?.id))
  })

  it('by a signal that was aborted before: nothing is sent', async () => {
    const { server, session } = await given()
    await expect(
      session.call('server', 'x', undefined, { signal: AbortSignal.abort(new Error('no')) }),
    ).rejects.toThrow('no')
    expect(server.take()).toEqual([])
  })

  it('after its answer a signal changes nothing', async () => {
    const { server, session } = await given()
    const controller = new AbortController()
    const answer = session.call('server', 'x', undefined, { signal: controller.signal, timeout: 50_000 })
    const [question] = server.take()
    server.say({ id: question?.id, result: {} })
    await answer
    controller.abort()
    await turnOfLoop()
    expect(server.take()).toEqual([])
  })

  it('by the end of the server', async () => {
    const { server, session } = await given()
    const answer = session.call('server', 'x').catch((error) => error.toJSON())
    server.onclose?.()
    expect(await answer).toEqual(proxys(-31001, 'Upstream exited', 'upstream_exited', 'sent', true))
  })

  it('by the end of the session, and refused after it', async () => {
    const { app, session } = await given()
    const answer = session.call('server', 'x').catch((error) => error.toJSON())
    await app.close()
    const shutting = (phase: 'sent' | 'not_sent') => proxys(-31008, 'Shutting down', 'shutting_down', phase, true)
    expect(await answer).toEqual(shutting('sent'))
    expect(await session.call('server', 'x').catch((error) => error.toJSON())).toEqual(shutting('not_sent'))
    expect(await session.notify('client', 'x').catch((error) => error.toJSON())).toEqual(shutting('not_sent'))
  })
})

it('to the client of a modern session is a TypeError', async () => {
  const { client, session } = await joined()
  client.say({
    id: 1,
    method: 'tools/list',
    params: { _meta: { 'io.modelcontextprotocol/protocolVersion': '2026-07-28' } },
  })
  await expect(session.call('client', 'roots/list')).rejects.toThrow(
    new TypeError(
      `call('client', 'roots/list'): a modern client (2026-07-28) takes no requests; reply with resultType "input_required" instead`,
    ),
  )
  expect(client.take()).toEqual([])
})

it('what JSON cannot write rejects, and leaves nothing behind', async () => {
  const { session, app } = await joined()
  await expect(session.call('server', 'x', { n: 1n })).rejects.toThrow(TypeError)
  await expect(session.notify('server', 'x', { n: 1n })).rejects.toThrow(TypeError)
  expect(app.stats().pending).toBe(0)
})

it('a notification that could not be delivered rejects', async () => {
  const server = new HandWire()
  server.sending = () => Promise.reject(new Error('broken'))
  const { session, errors } = await joined(undefined, { server })
  await expect(session.notify('server', 'x')).rejects.toThrow('broken')
  expect(errors).toEqual(['broken'])
})

it('the answer takes no turn: a call out of a held request works, whatever queues behind it', async () => {
  const results: unknown[] = []
  const { client, server } = await joined((app) => app.use(asking(results)))
  client.say({ id: 0, method: 'm' })
  for (let id = 1; id <= 100; id++) client.say({ method: 'n', params: { id } })
  await turnOfLoop()
  const [question, ...rest] = server.take()
  expect(rest).toEqual([])
  server.say({ id: question?.id, result: {} })
  await turnOfLoop()
  expect(server.take().map((it) => it.id ?? (it.params as { id: number }).id)).toEqual(
    Array.from({ length: 101 }, (_, id) => id),
  )
})

it('the answer to a call does not wait for a held message of the same end', async () => {
  const { client, server } = await joined((app) =>
    app.use(async (ctx, next) => {
      if (ctx.method === 'sampling/createMessage' && ctx.kind === 'request') await ctx.call('server', 'tools/list')
      return next()
    }),
  )
  server.say({ id: 's', method: 'sampling/createMessage' })
  server.say({ method: 'behind' })
  await turnOfLoop()
  expect(client.take()).toEqual([])
  const [question] = server.take()
  server.say({ id: question?.id, result: {} })
  await turnOfLoop()
  expect(client.take()).toEqual([{ id: 's', method: 'sampling/createMessage' }, { method: 'behind' }])
})

it('a notification that relates to a call of the proxy shows the client no id of it', async () => {
  const { client, server, session } = await joined()
  void session.call('server', 'x').catch(() => {})
  const [question] = server.take()
  server.say({ method: 'notifications/progress' }, { relatedRequestId: question?.id as string })
  await turnOfLoop()
  expect(client.metas).toEqual([{ relatedRequestId: undefined }])
})
