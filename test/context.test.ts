import type { Context } from 'open-mcp-proxy'
import { testContext } from 'open-mcp-proxy/testing'
import { describe, expect, it } from 'vitest'
import { deferred, joined, turnOfLoop } from './fixtures/played.js'

const call = { id: 7, method: 'tools/call', params: { name: 'echo', arguments: { a: 1 } } }

/** The contexts that a middleware sees, one per message. */
async function seen() {
  const contexts: Context[] = []
  const it = await joined((app) =>
    app.use((ctx, next) => {
      contexts.push(ctx)
      return next()
    }),
  )
  return { ...it, contexts }
}

describe('what a context tells', () => {
  it('of a request', async () => {
    const before = Date.now()
    const { contexts, client, session } = await seen()
    const raw = '{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"echo","x":1.0}}'
    client.say(raw, { headers: { 'x-a': 'b' }, authInfo: { user: 'u' } })
    const [ctx] = contexts as [Context]
    expect({
      message: ctx.message,
      raw: ctx.raw,
      direction: ctx.direction,
      from: ctx.from,
      kind: ctx.kind,
      request: ctx.request,
      extra: ctx.extra,
      id: ctx.id,
      method: ctx.method,
      name: ctx.name,
      params: ctx.params,
      result: ctx.result,
      error: ctx.error,
    }).toEqual({
      message: JSON.parse(raw),
      raw,
      direction: 'client-to-server',
      from: 'client',
      kind: 'request',
      request: undefined,
      extra: { headers: { 'x-a': 'b' }, authInfo: { user: 'u' } },
      id: 7,
      method: 'tools/call',
      name: 'echo',
      params: { name: 'echo', x: 1 },
      result: undefined,
      error: undefined,
    })
    expect(ctx.session).toBe(session)
    expect(ctx.timestamp).toBeGreaterThanOrEqual(before - 1000)
    expect(ctx.timestamp).toBeLessThanOrEqual(Date.now() + 1000)
    expect(ctx.key.startsWith(session.id)).toBe(true)
  })

  it('of a response: method, name and request are those of its request', async () => {
    const { contexts, client, server } = await seen()
    client.say(call)
    server.say({ id: 7, result: { content: [] } }, { status: 200 })
    const [asked, ctx] = contexts as [Context, Context]
    expect([ctx.kind, ctx.from, ctx.direction, ctx.id, ctx.method, ctx.name]).toEqual([
      'response',
      'server',
      'server-to-client',
      7,
      'tools/call',
      'echo',
    ])
    expect([ctx.result, ctx.params, ctx.error, ctx.extra]).toEqual([
      { content: [] },
      undefined,
      undefined,
      { status: 200 },
    ])
    expect([ctx.request?.key, ctx.request?.raw, ctx.request?.params]).toEqual([asked.key, asked.raw, call.params])
    expect(ctx.request).toBe(ctx.request)
  })

  it('of an error response', async () => {
    const { contexts, client, server } = await seen()
    client.say(call)
    server.say({ id: 7, error: { code: 1, message: 'no' } })
    expect([contexts[1]?.error, contexts[1]?.result]).toEqual([{ code: 1, message: 'no' }, undefined])
  })

  it('of a notification, and of an error without an id', async () => {
    const { contexts, server } = await seen()
    server.say({ method: 'notifications/x' })
    server.say({ error: { code: 1, message: 'no' } })
    expect(contexts.map((it) => [it.kind, it.id, it.method, it.name, it.request])).toEqual([
      ['notification', undefined, 'notifications/x', undefined, undefined],
      ['response', undefined, undefined, undefined, undefined],
    ])
  })

  it('name is that of a tool or prompt, else the uri of a resource; it follows a change', () => {
    const nameOf = (params: object) => testContext({ id: 1, method: 'm', params }).ctx.name
    expect([
      nameOf({ name: 'a' }),
      nameOf({ uri: 'file:///x' }),
      nameOf({ name: 'a', uri: 'b' }),
      nameOf({ name: 7 }),
      nameOf({}),
    ]).toEqual(['a', 'file:///x', 'a', undefined, undefined])
    const { ctx } = testContext(call)
    ctx.params = { name: 'other' }
    expect(ctx.name).toBe('other')
    ;(ctx.message as { method: string }).method = 'prompts/get'
    expect(ctx.method).toBe('prompts/get')
  })

  it('toJSON holds no params and no result', async () => {
    const { contexts, client, server, session } = await seen()
    client.say(call)
    server.say({ id: 7, result: { secret: true } })
    const common = { session: session.id, id: 7, method: 'tools/call', name: 'echo' }
    expect(JSON.parse(JSON.stringify(contexts))).toEqual([
      { ...common, direction: 'client-to-server', kind: 'request' },
      { ...common, direction: 'server-to-client', kind: 'response' },
    ])
  })
})

describe('isRequest, isNotification, isResponse', () => {
  it('tell kind and method', () => {
    const { ctx: request } = testContext(call)
    const { ctx: notification } = testContext({ method: 'n' })
    const { ctx: response } = testContext({ id: 7, result: {} }, { request: call })
    const tell = (ctx: Context) => [
      ctx.isRequest(),
      ctx.isRequest('tools/call'),
      ctx.isRequest('x'),
      ctx.isNotification(),
      ctx.isNotification('n'),
      ctx.isNotification('x'),
      ctx.isResponse(),
      ctx.isResponse('tools/call'),
      ctx.isResponse('x'),
    ]
    expect([request, notification, response].map(tell)).toEqual([
      [true, true, false, false, false, false, false, false, false],
      [false, false, false, true, true, false, false, false, false],
      [false, false, false, false, false, false, true, true, false],
    ])
  })
})

describe('signal', () => {
  it("is the same each time; that of a notification is the session's", async () => {
    const { contexts, client, session } = await seen()
    client.say(call)
    client.say({ method: 'n' })
    const [request, notification] = contexts as [Context, Context]
    expect(request.signal).toBe(request.signal)
    expect(request.signal.aborted).toBe(false)
    expect(notification.signal).toBe(session.signal)
  })

  it('is aborted at places behind one that answers, not before', async () => {
    const gate = deferred()
    const signals: AbortSignal[] = []
    const { client } = await joined((app) =>
      app.use(
        (ctx, next) => {
          if (ctx.kind === 'request') signals.push(ctx.signal)
          return next()
        },
        (ctx, next) => {
          if (ctx.kind !== 'request') return next()
          signals.push(ctx.signal)
          void next()
          return ctx.reply({})
        },
        (ctx) => {
          signals.push(ctx.signal)
          return gate.promise
        },
      ),
    )
    client.say(call)
    await turnOfLoop()
    expect({ back: client.take(), aborted: signals.map((it) => it.aborted) }).toEqual({
      back: [{ id: 7, result: {} }],
      aborted: [false, false, true],
    })
    gate.resolve()
  })

  it('on the way from the server too', async () => {
    const signals: boolean[] = []
    const { server } = await joined((app) =>
      app.use(
        async (ctx) => {
          if (ctx.kind !== 'request') return
          ctx.signal.addEventListener('abort', () => signals.push(true))
          await new Promise(() => {})
        },
        (ctx, next) => {
          if (ctx.kind !== 'request') return next()
          void next()
          return ctx.reply({})
        },
      ),
    )
    server.say({ id: 1, method: 'roots/list' })
    await turnOfLoop()
    expect(signals).toEqual([true])
  })
})

it('settled: delivered, replied to, dropped', async () => {
  const seenSettled: Record<string, boolean[]> = {}
  const { client } = await joined((app) =>
    app.use(async (ctx, next) => {
      if (ctx.kind === 'response') return next()
      const log = [ctx.settled]
      seenSettled[String(ctx.method)] = log
      if (ctx.method === 'pass') await next()
      if (ctx.method === 'reply') void ctx.reply()
      if (ctx.method === 'drop') ctx.drop()
      log.push(ctx.settled)
    }),
  )
  client.say({ id: 1, method: 'pass' })
  client.say({ id: 2, method: 'reply' })
  client.say({ method: 'drop' })
  await turnOfLoop()
  expect(seenSettled).toEqual({ pass: [false, true], reply: [false, true], drop: [false, true] })
})
