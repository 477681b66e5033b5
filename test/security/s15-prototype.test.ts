import { type AdmitRequest, define, http } from 'open-mcp-proxy'
import { afterEach, beforeAll, describe, expect, test, vi } from 'vitest'
import { serve } from '../fixtures/closing.js'
import { event, json, stream } from '../fixtures/http-server.js'
import {
  ask,
  initialize,
  invalidRequest,
  lines,
  listen,
  type Message,
  MODERN,
  modern,
  open,
  ours,
  raw,
  server,
  session,
  sse,
  told,
} from './helpers.js'

/** Names that every object answers to without having been given them. */
const inherited = [
  '__proto__',
  'constructor',
  'prototype',
  'toString',
  'valueOf',
  'hasOwnProperty',
  'isPrototypeOf',
  '__defineGetter__',
  '__lookupGetter__',
  'toJSON',
  'then',
]

let before: string[]

const prototypes = () =>
  [Object.prototype, Array.prototype, Function.prototype, Map.prototype, Buffer.prototype].flatMap((it) =>
    Reflect.ownKeys(it).map(String),
  )

beforeAll(() => {
  before = prototypes()
})

afterEach(() => {
  expect(prototypes()).toEqual(before)
  expect(({} as Record<string, unknown>).polluted).toBeUndefined()
})

const echo = () =>
  server((message) => ({ result: message.method === 'tools/list' ? { tools: [] } : { of: message.method } }))

describe.each(inherited)('%s', (name) => {
  test('as an id, a method, a tool and a token in a session', async () => {
    const upstream = server(({ method }) => (method === 'initialize' ? { result: {} } : undefined))
    const { port } = await listen(upstream.open, { keepAlive: 20 })
    const headers = { ...ours, 'mcp-session-id': await session(port) }
    const params = { name, uri: name, arguments: {}, _meta: { progressToken: name } }
    const body = JSON.stringify({ jsonrpc: '2.0', id: name, method: name, params })
    const asked = open(port, { headers, body })
    await vi.waitFor(() => expect(upstream.heard()).toHaveLength(2))
    expect(upstream.heard()[1]).toBe(body)
    const progress = { method: 'notifications/progress', params: { progressToken: name, progress: 1 } }
    upstream.wires[0]!.say(progress)
    upstream.wires[0]!.say({ id: name, result: { [name]: name } })
    const { text, messages } = await asked
    await text
    expect(messages()).toEqual([
      { jsonrpc: '2.0', ...progress },
      { jsonrpc: '2.0', id: name, result: JSON.parse(`{"${name}":"${name}"}`) },
    ])
  })

  test('as an id that was never asked under: nobody gets it', async () => {
    const upstream = echo()
    const { port, app } = await listen(upstream.open)
    const headers = { ...ours, 'mcp-session-id': await session(port) }
    upstream.wires[0]!.say({ id: name, result: { stolen: true } })
    upstream.wires[0]!.say({ method: 'notifications/cancelled', params: { requestId: name } })
    await ask(port, { headers, body: { jsonrpc: '2.0', id: name, result: {} } })
    await ask(port, {
      headers,
      body: { jsonrpc: '2.0', method: 'notifications/cancelled', params: { requestId: name } },
    })
    const reply = await ask(port, { headers, body: { jsonrpc: '2.0', id: 1, method: 'a' } })
    expect(told(reply)).toEqual({ status: 200, body: { jsonrpc: '2.0', id: 1, result: { of: 'a' } } })
    expect(app.stats().pending).toBe(0)
  })

  test('in a modern request, in its headers too', async () => {
    const upstream = echo()
    const { port } = await listen(upstream.open)
    const call = modern(name, 'tools/call', { name, arguments: { a: name } }, name)
    expect(told(await ask(port, call))).toEqual({
      status: 200,
      body: { jsonrpc: '2.0', id: name, result: { of: 'tools/call' } },
    })
    expect(upstream.heard().at(-1)).toBe(JSON.stringify(call.body))
    const other = modern(1, name)
    expect(told(await ask(port, other))).toEqual({ status: 200, body: { jsonrpc: '2.0', id: 1, result: { of: name } } })
    const versioned = { ...MODERN, 'io.modelcontextprotocol/protocolVersion': name }
    const odd = await ask(port, {
      headers: { ...call.headers, 'mcp-protocol-version': name },
      body: { jsonrpc: '2.0', id: 1, method: 'tools/call', params: { name, _meta: versioned } },
    })
    expect([200, 400]).toContain(odd.status)
    expect(JSON.parse(odd.body)).toMatchObject({ jsonrpc: '2.0', id: 1 })
  })

  test('as a session, a route, a query and an event', async () => {
    const upstream = echo()
    const { port } = await listen(upstream.open)
    const ping = { jsonrpc: '2.0', id: 1, method: 'ping' }
    const unknown = (id?: number) => ({ status: 404, body: invalidRequest('unknown session', id) })
    const nothing = { status: 404, body: invalidRequest('nothing is served here') }
    expect(told(await ask(port, { headers: { ...ours, 'mcp-session-id': name }, body: ping }))).toEqual(unknown(1))
    expect(told(await ask(port, { method: 'DELETE', headers: { 'mcp-session-id': name } }))).toEqual(unknown())
    for (const query of [`sessionId=${name}`, name, `${name}=x`, `${name}[sessionId]=x`]) {
      expect(told(await ask(port, { path: `/messages?${query}`, headers: ours, body: ping }))).toEqual(unknown())
    }
    for (const path of [`/${name}`, `/mcp/${name}`, name]) {
      for (const method of ['GET', 'POST', 'DELETE', 'OPTIONS']) {
        const got = await raw(port, lines(method, path, ['Host: localhost', 'Content-Length: 0']))
        // A target that is no path is no HTTP either.
        if (path === name && got.status === 400) continue
        expect(told(got)).toEqual(nothing)
      }
    }
    expect(upstream.wires).toEqual([])
    const id = await session(port)
    for (const given of [name, `${name}-0`, `${name}-1`]) {
      const headers = { accept: 'text/event-stream', 'mcp-session-id': id, 'last-event-id': given }
      expect((await ask(port, { method: 'GET', headers })).status).toBe(400)
    }
  })

  test('as a header of a client’s, a server’s and a middleware’s', async () => {
    const seen: AdmitRequest[] = []
    const target = await serve((request, response) => {
      const { id } = JSON.parse(request.body)
      const headers = { [name]: 'polluted', [`x-${name}`]: 'made' }
      if (request.headers.accept?.startsWith('text/event-stream')) {
        stream(response, headers).end(event({ jsonrpc: '2.0', id, result: {} }))
      } else json(response, { jsonrpc: '2.0', id, result: {} }, 200, headers)
    })
    const admit = (request: AdmitRequest) => {
      seen.push(request)
      return undefined
    }
    const { port } = await listen(http(target.url), {}, (app) => app.use(define({ admit }, (_ctx, next) => next())))
    const { headers, body } = modern(1, 'ping')
    const text = JSON.stringify(body)
    const ofClient = [`${name}: polluted`, `Mcp-Param-${name}: param`, `Content-Length: ${text.length}`]
    for (const accept of ['application/json, text/event-stream', 'text/event-stream, application/json']) {
      const own = Object.entries({ ...headers, accept }).map(([key, value]) => `${key}: ${value}`)
      const got = await raw(port, lines('POST', '/mcp', ['Host: localhost', ...own, ...ofClient], text))
      expect(got.status).toBe(200)
      expect(got.head.toLowerCase()).toContain(`x-${name.toLowerCase()}: made`)
    }
    for (const { headers } of target.seen) {
      expect(headers[`mcp-param-${name.toLowerCase()}`]).toBe('param')
      expect(Object.hasOwn(headers, name.toLowerCase())).toBe(false)
    }
    expect(seen.map(({ headers }) => (headers as Record<string, unknown>).polluted)).toEqual([undefined, undefined])
  })

  test('as who somebody is', async () => {
    const upstream = echo()
    const admit = ({ headers }: AdmitRequest) => ({ principal: String(headers['x-user']) })
    const { port } = await listen(upstream.open, {}, (app) => app.use(define({ admit }, (_ctx, next) => next())))
    const id = await session(port, { 'x-user': name })
    const old = await sse(port, { 'x-user': name })
    const ping = { jsonrpc: '2.0', id: 1, method: 'ping' }
    const as = async (user: string) => [
      (await ask(port, { headers: { ...ours, 'mcp-session-id': id, 'x-user': user }, body: ping })).status,
      (await ask(port, { path: old.endpoint, headers: { ...ours, 'x-user': user }, body: ping })).status,
    ]
    expect([await as('bob'), await as(name)]).toEqual([
      [404, 404],
      [200, 202],
    ])
    expect(upstream.sessions.map(({ principal }) => principal)).toEqual([name, name])
  })
})

describe('members of a message', () => {
  const poison =
    '{"__proto__":{"polluted":true},"constructor":{"prototype":{"polluted":true}},"a":{"__proto__":{"polluted":true}}}'

  test.each([
    ['arguments', `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":${poison}}}`],
    ['params', `{"jsonrpc":"2.0","id":1,"method":"a","params":${poison}}`],
    ['_meta', `{"jsonrpc":"2.0","id":1,"method":"a","params":{"_meta":${poison}}}`],
    ['the message', `{"jsonrpc":"2.0","id":1,"method":"a",${poison.slice(1)}`],
  ])('pass as they were written, and pollute nothing: %s', async (_name, body) => {
    const upstream = server(() => ({ result: JSON.parse(poison) as object }))
    const { port } = await listen(upstream.open, {}, (app) => {
      // It reads the message, and so has it parsed.
      app.use((ctx, next) => {
        expect((ctx.params as Record<string, unknown> | undefined)?.polluted).toBeUndefined()
        return next()
      })
    })
    const headers = { ...ours, 'mcp-session-id': await session(port) }
    expect((await ask(port, { headers, body })).body).toBe(`{"jsonrpc":"2.0","id":1,"result":${poison}}`)
    expect(upstream.heard()[1]).toBe(body)
  })

  test('let a middleware change what is beside them', async () => {
    const upstream = echo()
    const { port } = await listen(upstream.open, {}, (app) => {
      app.use((ctx, next) => {
        const { params } = ctx
        if (ctx.kind === 'request' && ctx.method === 'tools/call' && params) {
          const args = params.arguments as Record<string, unknown>
          args.added = 1
          params.arguments = args
        }
        return next()
      })
    })
    const headers = { ...ours, 'mcp-session-id': await session(port) }
    const body = `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":${poison}}}`
    expect((await ask(port, { headers, body })).status).toBe(200)
    const { name, arguments: args } = (JSON.parse(upstream.heard()[1]!) as Message).params!
    expect([name, Object.keys(args as object).filter((it) => !inherited.includes(it))]).toEqual(['a', ['a', 'added']])
  })

  // Object.assign would take the member for the prototype of the copy: the README warns of it. It stays in the message, so
  // that a middleware which looks for what is forbidden sees all that the server will see.
  test('make nobody more than they are where a middleware copies them, all members included', async () => {
    const upstream = echo()
    const copies: unknown[] = []
    const { port } = await listen(upstream.open, {}, (app) => {
      app.use((ctx, next) => {
        if (ctx.kind === 'request' && ctx.method === 'tools/call') {
          const copy = { ...(ctx.params?.arguments as Record<string, unknown>) }
          copies.push(copy.polluted, ({} as typeof copy).polluted, Object.hasOwn(copy, '__proto__'))
        }
        return next()
      })
    })
    const headers = { ...ours, 'mcp-session-id': await session(port) }
    const body = `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":${poison}}}`
    await ask(port, { headers, body })
    expect(copies).toEqual([undefined, undefined, true])
  })

  test('of a list of tools, whose names and schemas are such', async () => {
    const target = await serve((seen, response) => {
      const { id, method } = JSON.parse(seen.body) as Message
      const schema = `{"type":"object","properties":{"__proto__":{"type":"string","x-mcp-header":"P","polluted":true},"constructor":{"type":"object","properties":{"prototype":{"type":"string","x-mcp-header":"Q"}}}}}`
      const tools = inherited.map((name) => `{"name":"${name}","inputSchema":${schema}}`)
      json(
        response,
        `{"jsonrpc":"2.0","id":${JSON.stringify(id)},"result":${method === 'tools/list' ? `{"tools":[${tools}]}` : '{}'}}`,
      )
    })
    const { port } = await listen(http(target.url))
    for (const name of inherited) {
      const meta = JSON.stringify(MODERN)
      const body = `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"${name}","arguments":{"__proto__":"p","constructor":{"prototype":"q"}},"_meta":${meta}}}`
      const { headers } = modern(1, 'tools/call', {}, name)
      const reply = await ask(port, { headers: { ...headers, 'mcp-param-p': 'p', 'mcp-param-q': 'q' }, body })
      expect(told(reply)).toEqual({ status: 200, body: { jsonrpc: '2.0', id: 1, result: {} } })
      const { body: sent, headers: came } = target.seen.at(-1)!
      expect([sent, came['mcp-param-p'], came['mcp-param-q']]).toEqual([body, 'p', 'q'])
      // A tool without such arguments is not asked for the headers of what it inherits.
      const bare = await ask(port, modern(1, 'tools/call', { name, arguments: {} }, name))
      expect(bare.status).toBe(200)
      expect(Object.keys(target.seen.at(-1)!.headers).filter((it) => it.startsWith('mcp-param'))).toEqual([])
    }
  })

  test('of a handshake', async () => {
    const upstream = server(() => ({ result: JSON.parse(poison) as object }))
    const { port } = await listen(upstream.open)
    const params = `{"protocolVersion":"__proto__","capabilities":${poison},"clientInfo":${poison}}`
    const reply = await ask(port, {
      body: `{"jsonrpc":"2.0","id":"__proto__","method":"initialize","params":${params}}`,
    })
    expect(reply.status).toBe(200)
    expect(reply.body).toBe(`{"jsonrpc":"2.0","id":"__proto__","result":${poison}}`)
    expect(initialize().params.protocolVersion).toBe('2025-11-25')
  })
})
