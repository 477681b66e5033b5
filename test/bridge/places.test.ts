import { createProxy, type Middleware } from 'open-mcp-proxy'
import { testProxy } from 'open-mcp-proxy/testing'
import { expect, it } from 'vitest'
import { deferred, joined, turnOfLoop } from '../fixtures/played.js'

const call = (id: number, name: string) => ({ jsonrpc: '2.0', id, method: 'tools/call', params: { name } })
const result = (id: number, value: object = {}) => ({ jsonrpc: '2.0', id, result: value })

/** Takes a prefix off the way out and puts it on again on the way back. */
const rename =
  (prefix: string): Middleware =>
  (ctx, next) => {
    if (ctx.isRequest('tools/call')) ctx.params.name = ctx.params.name.replace(prefix, '')
    if (ctx.kind === 'response' && ctx.result?.name) ctx.result.name = `${prefix}${ctx.result.name}`
    return next()
  }

/** Notes who saw what. */
const note =
  (log: string[], name: string): Middleware =>
  (ctx, next) => {
    log.push(`${name} ${ctx.direction === 'client-to-server' ? '>' : '<'} ${ctx.kind} ${ctx.method}`)
    return next()
  }

it('walks in order to the server and in reverse to the client, whatever the kind', async () => {
  const log: string[] = []
  const proxy = testProxy(createProxy().use(note(log, 'a'), note(log, 'b'), note(log, 'c')))
  await proxy.fromClient({ id: 1, method: 'ping' })
  await proxy.fromServer({ id: 1, result: {} })
  await proxy.fromClient({ method: 'notifications/x' })
  await proxy.fromServer({ method: 'notifications/y' })
  await proxy.fromServer({ id: 1, method: 'roots/list' })
  await proxy.fromClient({ id: 1, result: {} })
  const out = (what: string) => ['a', 'b', 'c'].map((it) => `${it} > ${what}`)
  const back = (what: string) => ['c', 'b', 'a'].map((it) => `${it} < ${what}`)
  expect(log).toEqual([
    ...out('request ping'),
    ...back('response ping'),
    ...out('notification notifications/x'),
    ...back('notification notifications/y'),
    ...back('request roots/list'),
    ...out('response roots/list'),
  ])
})

it('inverses compose', async () => {
  const proxy = testProxy(createProxy().use(rename('a_'), rename('b_')))
  expect(await proxy.fromClient(call(1, 'a_b_x'))).toEqual({ toServer: [call(1, 'x')], toClient: [] })
  expect(await proxy.fromServer(result(1, { name: 'x' }))).toEqual({
    toServer: [],
    toClient: [result(1, { name: 'a_b_x' })],
  })
})

it('a reply starts back from its place: it passes the places before it only', async () => {
  const log: string[] = []
  const cache: Middleware = (ctx, next) => (ctx.kind === 'request' ? ctx.reply({ name: 'hit' }) : next())
  const proxy = testProxy(createProxy().use(rename('a_'), note(log, 'before'), cache, note(log, 'behind')))
  expect(await proxy.fromClient(call(1, 'a_x'))).toEqual({
    toServer: [],
    toClient: [result(1, { name: 'a_hit' })],
  })
  expect(log).toEqual(['before > request tools/call', 'before < response tools/call'])
})

it('a reply to a request of the server starts back towards the server', async () => {
  const log: string[] = []
  const answering: Middleware = (ctx, next) => (ctx.kind === 'request' ? ctx.reply({ roots: [] }) : next())
  const proxy = testProxy(createProxy().use(note(log, 'a'), answering, note(log, 'c')))
  expect(await proxy.fromServer({ id: 's', method: 'roots/list' })).toEqual({
    toServer: [{ jsonrpc: '2.0', id: 's', result: { roots: [] } }],
    toClient: [],
  })
  expect(log).toEqual(['c < request roots/list', 'c > response roots/list'])
})

it('ctx.request is the request as each place saw it arrive, before its own change', async () => {
  const seen: Record<string, unknown> = {}
  const change =
    (name: string): Middleware =>
    (ctx, next) => {
      if (ctx.isRequest('tools/call')) ctx.params.name += name
      if (ctx.isResponse()) seen[name] = [(ctx.request.params as { name: string }).name, ctx.request.name, ctx.name]
      return next()
    }
  const proxy = testProxy(createProxy().use(change('1'), change('2'), change('3')))
  await proxy.fromClient(call(1, '_'))
  await proxy.fromServer(result(1))
  expect(seen).toEqual({ 1: ['_', '_', '_'], 2: ['_1', '_1', '_1'], 3: ['_12', '_12', '_12'] })
})

it('the same on the way from the server', async () => {
  const seen: Record<string, unknown> = {}
  const change =
    (name: string): Middleware =>
    (ctx, next) => {
      if (ctx.kind === 'request') ctx.params = { at: `${ctx.params?.at}${name}` }
      if (ctx.kind === 'response') seen[name] = ctx.request?.params
      return next()
    }
  const proxy = testProxy(createProxy().use(change('1'), change('2'), change('3')))
  await proxy.fromServer({ id: 1, method: 'roots/list', params: { at: '_' } })
  await proxy.fromClient(result(1))
  expect(seen).toEqual({ 3: { at: '_' }, 2: { at: '_3' }, 1: { at: '_32' } })
})

it('ctx.request does not show what was changed and never sent', async () => {
  const seen: unknown[] = []
  const proxy = testProxy(
    createProxy().use(
      (ctx, next) => {
        if (ctx.kind === 'response') seen.push(ctx.request?.params)
        return next()
      },
      (ctx, next) => {
        if (!ctx.isRequest('tools/call')) return next()
        ctx.params.name = 'changed'
        return ctx.reply({})
      },
    ),
  )
  await proxy.fromClient(call(1, 'x'))
  expect(seen).toEqual([{ name: 'x' }])
})

it('a change of ctx.request concerns nobody else', async () => {
  const seen: unknown[] = []
  const proxy = testProxy(
    createProxy().use(
      (ctx, next) => {
        if (ctx.kind === 'response') seen.push(ctx.request?.params)
        return next()
      },
      (ctx, next) => {
        if (ctx.isResponse('tools/call')) ctx.request.params.name = 'changed'
        return next()
      },
    ),
  )
  await proxy.fromClient(call(1, 'x'))
  await proxy.fromServer(result(1))
  expect(seen).toEqual([{ name: 'x' }])
})

it('state is shared by a request and its response, and by nothing else', async () => {
  const seen: unknown[] = []
  const app = createProxy().use<{ user: string }>((ctx, next) => {
    seen.push(ctx.state.user)
    if (ctx.kind === 'request') ctx.state.user = `u${ctx.id}`
    return next()
  })
  const proxy = testProxy(app)
  await proxy.fromClient(call(1, 'x'))
  await proxy.fromClient(call(2, 'y'))
  await proxy.fromServer({ method: 'notifications/message' })
  await proxy.fromServer(result(2))
  await proxy.fromServer(result(1))
  expect(seen).toEqual([undefined, undefined, undefined, 'u2', 'u1'])
})

it('key is unique per message; a response names that of its request', async () => {
  const keys: string[] = []
  const asked: (string | undefined)[] = []
  const proxy = testProxy(
    createProxy().use((ctx, next) => {
      keys.push(ctx.key)
      asked.push(ctx.request?.key)
      return next()
    }),
  )
  await proxy.fromClient(call(1, 'x'))
  await proxy.fromServer(result(1))
  await proxy.fromClient(call(1, 'x'))
  expect(new Set(keys).size).toBe(3)
  expect(asked).toEqual([undefined, keys[0], undefined])
})

it('a new line is for new messages; a response takes that of its request', async () => {
  const log: string[] = []
  const app = createProxy().use(note(log, 'old'))
  const proxy = testProxy(app)
  await proxy.fromClient(call(1, 'x'))
  app.replace(note(log, 'new'), note(log, 'newer'))
  await proxy.fromClient({ method: 'notifications/x' })
  expect(await proxy.fromServer(result(1))).toEqual({ toServer: [], toClient: [result(1)] })
  expect(log).toEqual([
    'old > request tools/call',
    'new > notification notifications/x',
    'newer > notification notifications/x',
    'old < response tools/call',
  ])
})

it('a message that is held keeps its line when the line is replaced', async () => {
  const gate = deferred()
  const log: string[] = []
  const { app, client, server } = await joined((it) =>
    it.use(
      async (_ctx, next) => {
        await gate.promise
        return next()
      },
      note(log, 'old'),
    ),
  )
  client.say(call(1, 'x'))
  app.replace()
  gate.resolve()
  await turnOfLoop()
  expect(server.take()).toEqual([{ id: 1, method: 'tools/call', params: { name: 'x' } }])
  expect(log).toEqual(['old > request tools/call'])
})
