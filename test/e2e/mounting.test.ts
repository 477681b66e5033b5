import { once } from 'node:events'
import express, { type Express } from 'express'
import fastify, { type FastifyInstance } from 'fastify'
import { type Application, createProxy, type HandlerOptions, type RequestHandler, stdio } from 'open-mcp-proxy'
import { expect, test } from 'vitest'
import { callStateless, events, openSession, post, recorded, whole } from '../fixtures/behind-port.js'
import { closing } from '../fixtures/closing.js'
import { gone, isAlive } from '../fixtures/command.js'
import { host } from '../fixtures/http-target.js'
import { everything, target } from '../fixtures/servers.js'
import type { Generation, Talk, Where } from '../fixtures/talk.js'
import { shaped } from '../fixtures/target-talk.js'

const child = { command: process.execPath, args: [target, '--stdio'] }

/** An application that is closed after the test, and what went wrong in it. */
function proxy(options?: HandlerOptions) {
  const app = createProxy()
  const errors: string[] = []
  app.on('error', ({ message }) => errors.push(message))
  closing.push(() => app.close({ urgent: true }))
  return { app, errors, handler: app.handler(child, options) }
}

/** Resolves with the origin. */
async function listenExpress(app: Express): Promise<string> {
  const server = await host(app)
  closing.push(server.close)
  return server.url('').origin
}

async function listenFastify(app: FastifyInstance): Promise<string> {
  closing.push(() => app.close())
  return app.listen({ port: 0, host: '127.0.0.1' })
}

const routes = ['/mcp', '/sse', '/messages', '/healthz']

const initialize = {
  jsonrpc: '2.0',
  id: 1,
  method: 'initialize',
  params: { protocolVersion: '2024-11-05', capabilities: {}, clientInfo: { name: 'a', version: '1' } },
}

interface Mount {
  /** Mounts the handler beside routes of the framework's own, and listens. */
  listen(handler: RequestHandler): Promise<string>
  prefix?: string
  /** Its routes for HTTP+SSE are mounted, too. */
  sse: boolean
  options?: HandlerOptions
}

function onExpress(mount: (app: Express, handler: RequestHandler) => void, ...before: express.RequestHandler[]) {
  return async (handler: RequestHandler) => {
    const app = express()
    if (before.length > 0) app.use(before)
    mount(app, handler)
    return listenExpress(app)
  }
}

function onFastify(mount: (scope: FastifyInstance, handler: RequestHandler) => void, prefix?: string) {
  return async (handler: RequestHandler) => {
    const app = fastify({ forceCloseConnections: true })
    await app.register(async (scope) => mount(scope, handler), { prefix })
    return listenFastify(app)
  }
}

/** On each route of the proxy, with the body as the framework has parsed it. */
function parsed(scope: FastifyInstance, handler: RequestHandler): void {
  for (const route of routes) {
    scope.all(route, (request, reply) => {
      reply.hijack()
      handler(Object.assign(request.raw, { body: request.body }), reply.raw)
    })
  }
}

/** On each route of the proxy, with the body that nobody has read. */
function unparsed(scope: FastifyInstance, handler: RequestHandler): void {
  scope.removeAllContentTypeParsers()
  scope.addContentTypeParser('*', (_request, _body, done) => done(null))
  for (const route of routes) {
    scope.all(route, (request, reply) => {
      reply.hijack()
      handler(request.raw, reply.raw)
    })
  }
}

const atRoot = (app: Express, handler: RequestHandler) => void app.use(handler)
const atTools = (app: Express, handler: RequestHandler) => void app.use('/tools', handler)
const asEndpoint = (app: Express, handler: RequestHandler) => void app.use('/api/mcp', handler)
const atMcp = (app: Express, handler: RequestHandler) => void app.all('/mcp', handler)
const atApi = (app: Express, handler: RequestHandler) => void app.all('/api/mcp', handler)
const json = express.json()

const mounts: Record<string, Mount> = {
  'Express, app.use(handler)': { listen: onExpress(atRoot), sse: true },
  'Express, app.use(handler) behind express.json()': { listen: onExpress(atRoot, json), sse: true },
  'Express, app.use(handler) behind express.text()': {
    listen: onExpress(atRoot, express.text({ type: '*/*' })),
    sse: true,
  },
  'Express, app.use(handler) behind express.raw()': {
    listen: onExpress(atRoot, express.raw({ type: '*/*' })),
    sse: true,
  },
  "Express, app.use('/tools', handler)": { listen: onExpress(atTools), prefix: '/tools', sse: true },
  "Express, app.use('/tools', handler) behind express.json()": {
    listen: onExpress(atTools, json),
    prefix: '/tools',
    sse: true,
  },
  "Express, app.use('/api/mcp', handler)": { listen: onExpress(asEndpoint), prefix: '/api', sse: false },
  "Express, app.all('/mcp', handler)": { listen: onExpress(atMcp), sse: false },
  "Express, app.all('/mcp', handler) behind express.json()": { listen: onExpress(atMcp, json), sse: false },
  "Express, app.all('/api/mcp', handler), which is told its path": {
    listen: onExpress(atApi),
    prefix: '/api',
    options: { path: '/api/mcp' },
    sse: false,
  },
  'Fastify without its parsers': { listen: onFastify(unparsed), sse: true },
  'Fastify with its parsers': { listen: onFastify(parsed), sse: true },
  'Fastify under a prefix, of which the handler is told': {
    listen: onFastify(parsed, '/api'),
    prefix: '/api',
    options: { path: '/api/mcp' },
    sse: false,
  },
}

/** A bit of everything. */
async function converse(talk: Talk): Promise<void> {
  await talk.client.listTools()
  await talk.tool('echo', { text: 'é👋\u2028', large: 'x'.repeat(50_000), n: [1.5, null, true] })
  await talk.tool('burst', { n: 5 }, { onprogress: () => {} })
  await talk.tool('test_sampling', { prompt: 'é👋' })
  await talk.tool('test_elicitation_sep1034_defaults')
  await talk.tool('test_input_required_result_multiple_inputs')
  await talk.tool('test_logging_tool')
  await talk.tool('big', { bytes: 3 << 20 })
  await talk.tool('test_error_handling')
  await talk.client.getPrompt({ name: 'no-such-prompt' }).catch(() => {})
}

const clients: { name: string; generation: Generation; at: (origin: string) => Where; sse: boolean }[] = [
  { name: 'v1 over HTTP', generation: 'v1', at: (base) => ({ http: `${base}/mcp` }), sse: false },
  { name: 'v1 over SSE', generation: 'v1', at: (base) => ({ sse: `${base}/sse` }), sse: true },
  { name: 'v2 over HTTP', generation: 'v2', at: (base) => ({ http: `${base}/mcp` }), sse: false },
  { name: 'v2 of 2026-07-28', generation: 'v2-modern', at: (base) => ({ http: `${base}/mcp` }), sse: false },
]

const direct = new Map<Generation, ReturnType<typeof recorded>>()

for (const [name, { listen, prefix = '', sse, options }] of Object.entries(mounts)) {
  test(`${name}: clients speak through it as with the server itself`, async () => {
    const { handler, errors } = proxy(options)
    const origin = await listen(handler)
    for (const client of clients) {
      if (client.sse && !sse) continue
      const { generation } = client
      if (!direct.has(generation)) direct.set(generation, recorded(child, generation, converse))
      const model = (await direct.get(generation)!).conversation
      const through = await recorded(client.at(origin + prefix), generation, converse, model)
      expect({ ...through, conversation: shaped(through.conversation), client: client.name }).toEqual({
        conversation: shaped(model),
        complaints: [],
        client: client.name,
      })
    }
    expect(errors).toEqual([])
  })
}

test('Express: what the handler does not serve goes on to the routes of the application', async () => {
  const { handler } = proxy()
  const app = express()
  app.use(handler)
  app.use('/tools', handler)
  app.post('/own', express.json(), (request, response) => void response.send(request.body))
  for (const path of ['/own', '/tools/own']) app.get(path, (request, response) => void response.send(request.path))
  const origin = await listenExpress(app)
  const get = async (path: string) => {
    const response = await fetch(origin + path)
    return { status: response.status, text: await response.text() }
  }
  expect(await get('/own')).toEqual({ status: 200, text: '/own' })
  expect(await get('/tools/own')).toEqual({ status: 200, text: '/tools/own' })
  expect(await whole(await post(`${origin}/own`, { a: [1] }))).toMatchObject({ status: 200, texts: ['{"a":[1]}'] })
  for (const path of ['/', '/mcp/more', '/tools', '/tools/mcp/more', '/ssemessages', '/tools/sse/', '//mcp']) {
    expect(await get(path)).toEqual({ status: 404, text: expect.stringContaining(`Cannot GET ${path}`) })
  }
  for (const base of [origin, `${origin}/tools`]) {
    const put = await whole(await fetch(`${base}/mcp`, { method: 'PUT' }))
    expect(put).toMatchObject({ status: 405, texts: [expect.stringContaining('"code":-32600')] })
    const health = await whole(await fetch(`${base}/healthz`))
    expect(health).toMatchObject({ status: 200, texts: [expect.stringContaining('"status":"ok"')] })
  }
})

const prefixed: Record<string, (handler: RequestHandler) => express.RequestHandler | express.Router> = {
  'app.use': (handler) => handler as express.RequestHandler,
  'a router of a router': (handler) => express.Router().use('/', express.Router().use(handler)),
}

for (const [name, mounted] of Object.entries(prefixed)) {
  test(`Express, ${name}: a stream of HTTP+SSE names the endpoint under the prefix`, async () => {
    const { handler } = proxy()
    const app = express()
    app.use('/deep/er', mounted(handler))
    app.use(mounted(handler))
    const origin = await listenExpress(app)
    for (const prefix of ['', '/deep/er']) {
      const controller = new AbortController()
      const { signal } = controller
      const response = await fetch(`${origin}${prefix}/sse?a=b`, { headers: { accept: 'text/event-stream' }, signal })
      const stream = events(response)
      const { value: endpoint } = await stream.next()
      expect(endpoint).toMatch(new RegExp(`^${prefix}/messages\\?sessionId=[\\w-]{43}$`))
      expect((await post(origin + endpoint, initialize)).status).toBe(202)
      const { value: answer } = await stream.next()
      expect(JSON.parse(answer!)).toMatchObject({ id: 1, result: { protocolVersion: '2024-11-05' } })
      controller.abort()
    }
  })
}

test('Express: two servers behind two prefixes have nothing in common', async () => {
  const { handler } = proxy()
  const other = createProxy()
  closing.push(() => other.close({ urgent: true }))
  const app = express()
  app.use('/one', handler)
  app.use('/two', other.handler(stdio(process.execPath, [everything])))
  const origin = await listenExpress(app)
  const one = await openSession(`${origin}/one/mcp`)
  const two = await openSession(`${origin}/two/mcp`)
  const called = async (url: string, headers: Record<string, string>) => {
    const params = { name: 'echo', arguments: { message: 'x' } }
    const { status, texts } = await whole(
      await post(url, { jsonrpc: '2.0', id: 1, method: 'tools/call', params }, headers),
    )
    return { status, text: texts.at(-1) }
  }
  expect(await called(`${origin}/one/mcp`, one.headers)).toMatchObject({
    status: 200,
    text: expect.stringContaining('{\\"message\\":\\"x\\"}'),
  })
  expect(await called(`${origin}/two/mcp`, two.headers)).toMatchObject({
    status: 200,
    text: expect.stringContaining('Echo: x'),
  })
  expect(await called(`${origin}/two/mcp`, one.headers)).toMatchObject({ status: 404 })
  await other.close()
  expect(await called(`${origin}/one/mcp`, one.headers)).toMatchObject({ status: 200 })
})

test('a body that a parser has taken, and not handed on, is missed at once', async () => {
  const { handler } = proxy()
  const origin = await onFastify((scope) => {
    scope.post('/mcp', (request, reply) => {
      reply.hijack()
      handler(request.raw, reply.raw)
    })
  })(handler)
  const { status, texts } = await whole(await post(`${origin}/mcp`, initialize))
  expect({ status, texts }).toEqual({ status: 400, texts: [expect.stringContaining('"code":-32600')] })
  expect(texts[0]).not.toContain('took too long')
})

/** One client of each kind, with the process that serves it. */
async function clientsOf(origin: string) {
  const pidOf = (texts: string[]) => Number(/pid\\":(\d+)/.exec(texts.at(-1)!)![1])
  const url = `${origin}/mcp`
  const session = await openSession(url, { elicitation: {} })
  const asked = events(await fetch(url, { headers: { ...session.headers, accept: 'text/event-stream' } }))
  const legacy = pidOf((await whole(await session.call('1', 'seen', {}))).texts)
  const stateless = pidOf((await whole(await callStateless(url, '1', 'seen', {}))).texts)
  const sse = events(await fetch(`${origin}/sse`, { headers: { accept: 'text/event-stream' } }))
  const { value: endpoint } = await sse.next()
  const send = (message: object) => post(origin + endpoint, { jsonrpc: '2.0', ...message })
  await send(initialize)
  await sse.next()
  await send({ id: 2, method: 'tools/call', params: { name: 'seen' } })
  const streamed = pidOf([(await sse.next()).value!])
  return { url, session, asked, sse, send, pids: [legacy, stateless, streamed] }
}

/** Behind the end of the application its routes are there, and say so. */
async function expectClosed(app: Application, origin: string, pids: number[]) {
  expect(app.stats()).toMatchObject({ sessions: 0, pending: 0 })
  expect(pids.filter(isAlive)).toEqual([])
  for (const opening of [post(`${origin}/mcp`, initialize), callStateless(`${origin}/mcp`, '1', 'echo', {})]) {
    const { status, headers, texts } = await whole(await opening)
    expect({ status, retry: headers.get('retry-after'), texts }).toEqual({
      status: 503,
      retry: '5',
      texts: [expect.stringContaining('"code":-31008')],
    })
  }
  const sse = await whole(await fetch(`${origin}/sse`, { headers: { accept: 'text/event-stream' } }))
  expect(sse).toMatchObject({ status: 503, texts: [expect.stringContaining('"code":-31008')] })
  const health = await whole(await fetch(`${origin}/healthz`))
  expect(health).toMatchObject({ status: 503, texts: [expect.stringContaining('"status":"closing"')] })
  expect(await (await fetch(`${origin}/own`)).text()).toBe('own')
}

const closable: Record<string, (handler: RequestHandler) => Promise<string>> = {
  Express: onExpress((app, handler) => {
    app.use(handler)
    app.get('/own', (_request, response) => void response.send('own'))
  }),
  Fastify: onFastify((scope, handler) => {
    parsed(scope, handler)
    scope.get('/own', () => 'own')
  }),
}

for (const [name, listen] of Object.entries(closable)) {
  test(`${name}: close() lets what is in flight finish, and ends sessions, streams and processes`, async () => {
    const { app, handler, errors } = proxy()
    const origin = await listen(handler)
    const { session, asked, sse, pids } = await clientsOf(origin)
    expect([new Set(pids).size, pids.every(isAlive)]).toEqual([3, true])
    const call = session.call('1', 'test_elicitation', { message: 'Name?' })
    const { value: question } = await asked.next()
    const { id, method } = JSON.parse(question!)
    expect(method).toBe('elicitation/create')

    const ended = once(app, 'close')
    const closed = app.close()
    // It has begun: no new ones.
    expect((await whole(await post(`${origin}/mcp`, initialize))).status).toBe(503)
    expect((await session.say({ jsonrpc: '2.0', id, result: { action: 'decline' } })).status).toBe(202)
    const { status, texts } = await whole(await call)
    expect([status, texts.map((it) => JSON.parse(it).result.content[0].text)]).toEqual([
      200,
      ['User response: action: decline, content: {}'],
    ])
    await closed
    await ended
    expect([(await asked.next()).done, (await sse.next()).done]).toEqual([true, true])
    await expectClosed(app, origin, pids)
    expect(errors).toEqual([])
  })

  test(`${name}: close({ urgent }) waits for nobody; what is in flight is told`, async () => {
    const { app, handler, errors } = proxy()
    const origin = await listen(handler)
    const { url, session, asked, sse, send, pids } = await clientsOf(origin)
    const call = session.call('1', 'test_elicitation', { message: 'Name?' })
    await asked.next()
    const stateless = callStateless(url, '1', 'slow', { ms: 60_000 })
    await send({ id: 3, method: 'tools/call', params: { name: 'slow', arguments: { ms: 60_000 } } })
    await expect.poll(() => app.stats().pending).toBe(4)
    await app.close({ urgent: true })
    await Promise.all(pids.map((pid) => gone(pid)))
    const error = { code: -31008, data: { source: 'proxy', reason: 'shutting_down', phase: 'sent' } }
    for (const response of [call, stateless]) {
      const { status, texts } = await whole(await response)
      expect([status, texts.map((it) => JSON.parse(it))]).toMatchObject([200, [{ id: 1, error }]])
    }
    expect(JSON.parse((await sse.next()).value!)).toMatchObject({ id: 3, error })
    expect([(await asked.next()).done, (await sse.next()).done]).toEqual([true, true])
    await expectClosed(app, origin, pids)
    expect(errors).toEqual([])
  })
}
