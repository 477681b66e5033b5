import { describe, expect, test, vi } from 'vitest'
import {
  type Asked,
  ask,
  type Body,
  byHeader,
  initialize,
  invalidRequest,
  listen,
  modern,
  type Opened,
  open,
  ours,
  server,
  session,
  sse,
  told,
} from './helpers.js'

async function proxied(options: Parameters<typeof listen>[1] = {}) {
  const upstream = server()
  const proxy = await listen(upstream.open, options, (app) => app.use(byHeader))
  return { ...proxy, upstream }
}

const as = (user: string | undefined): Record<string, string> => (user === undefined ? {} : { 'x-user': user })
const ping = { jsonrpc: '2.0', id: 7, method: 'ping' }
const event = { accept: 'text/event-stream' }

/** What can be asked in the name of a session, and how it looks where there is none. */
const uses: Record<string, (id: string) => Asked> = {
  'a request': (id) => ({ headers: { ...ours, 'mcp-session-id': id }, body: ping }),
  'a notification': (id) => ({ headers: { ...ours, 'mcp-session-id': id }, body: { jsonrpc: '2.0', method: 'x' } }),
  'an answer': (id) => ({ headers: { ...ours, 'mcp-session-id': id }, body: { jsonrpc: '2.0', id: 1, result: {} } }),
  'a batch': (id) => ({ headers: { ...ours, 'mcp-session-id': id }, body: [ping] }),
  'a second handshake': (id) => ({ headers: { ...ours, 'mcp-session-id': id }, body: initialize(7) }),
  'its stream': (id) => ({ method: 'GET', headers: { ...event, 'mcp-session-id': id } }),
  'what was said on it': (id) => ({
    method: 'GET',
    headers: { ...event, 'mcp-session-id': id, 'last-event-id': '0-0' },
  }),
  'its end': (id) => ({ method: 'DELETE', headers: { 'mcp-session-id': id } }),
  'a message of HTTP+SSE': (id) => ({ path: `/messages?sessionId=${id}`, headers: ours, body: ping }),
}

/** All of a response but when it was. */
async function whole(port: number, asked: Asked, user?: string) {
  const { status, headers, body } = await ask(port, { ...asked, headers: { ...asked.headers, ...as(user) } })
  const { date: _, ...rest } = headers
  return { status, headers: rest, body }
}

describe('an id', () => {
  const bits = (id: string) =>
    [...Buffer.from(id, 'base64url')].flatMap((byte) => [...byte.toString(2).padStart(8, '0')])

  test.each<[string, (port: number) => Promise<string>]>([
    ['of a session', (port) => session(port)],
    ['of a stream of HTTP+SSE', async (port) => (await sse(port)).id],
  ])('%s has 256 bits, all of them random, in visible ASCII, and comes once', async (_name, id) => {
    const { port } = await proxied()
    const ids: string[] = []
    for (let count = 0; count < 100; count++) ids.push(await id(port))
    expect(ids.filter((it) => !/^[\w-]{43}$/.test(it))).toEqual([])
    expect(new Set(ids).size).toBe(100)
    const all = ids.map(bits)
    expect(all.map((it) => it.length)).toEqual(Array(100).fill(256))
    // A bit that is the same in all of 100 is none: by chance that is so once in 10^27 runs.
    const still = all[0]!.flatMap((bit, at) => (all.every((it) => it[at] === bit) ? [at] : []))
    expect(still).toEqual([])
  })

  test('is none that a client brings', async () => {
    const { port, upstream } = await proxied()
    const mine = 'A'.repeat(43)
    const reply = await whole(port, uses['a second handshake']!(mine))
    expect(told(reply)).toEqual({ status: 404, body: invalidRequest('unknown session', 7) })
    expect(reply.headers['mcp-session-id']).toBeUndefined()
    expect(upstream.wires).toEqual([])
  })

  test('is told to whom opens the session only: where the handshake failed there is none', async () => {
    const upstream = server(() => ({ error: { code: -32602, message: 'no' } }))
    const { port, app } = await listen(upstream.open)
    const reply = await ask(port, { body: initialize() })
    expect(told(reply)).toEqual({
      status: 200,
      body: { jsonrpc: '2.0', id: 0, error: { code: -32602, message: 'no' } },
    })
    expect(reply.headers['mcp-session-id']).toBeUndefined()
    await vi.waitFor(() => expect(app.stats().sessions).toBe(0))
  })

  test('of the proxy is not the one of the upstream, nor the one in the logs', async () => {
    const { port, upstream } = await proxied()
    const ids = [await session(port), (await sse(port)).id]
    const inside = JSON.stringify([upstream.sessions.map(({ id }) => id), upstream.heard(), upstream.wires])
    for (const id of ids) expect(inside).not.toContain(id)
  })
})

describe('a session that is not theirs looks as one that never was', () => {
  test.each(Object.entries(uses))('%s', async (name, use) => {
    const { port, upstream } = await proxied()
    const id = await session(port, as('alice'))
    const anonymous = await session(port)
    const stream = await sse(port, as('alice'))
    const anonymousStream = await sse(port)
    const deleted = await session(port, as('bob'))
    expect((await whole(port, uses['its end']!(deleted), 'bob')).status).toBe(200)
    const before = upstream.heard()

    const unknown = await whole(port, use('B'.repeat(43)), 'bob')
    const withId = /request|handshake|batch/.test(name) && name !== 'a batch' ? 7 : undefined
    expect(told(unknown)).toEqual({ status: 404, body: invalidRequest('unknown session', withId) })

    const ofSse = name === 'a message of HTTP+SSE'
    const cases: Record<string, [id: string, user?: string]> = {
      'of another principal': [ofSse ? stream.id : id, 'bob'],
      'of a principal, by nobody': [ofSse ? stream.id : id, undefined],
      'of nobody, by a principal': [ofSse ? anonymousStream.id : anonymous, 'bob'],
      'of another transport': [ofSse ? id : stream.id, 'alice'],
      'by another case of the name': [ofSse ? stream.id : id, 'Alice'],
      'by a longer name': [ofSse ? stream.id : id, 'alice,bob'],
      deleted: [deleted, 'bob'],
      'the beginning of one': [(ofSse ? stream.id : id).slice(0, -1), 'alice'],
      'more than one': [`${ofSse ? stream.id : id}A`, 'alice'],
      'another case of one': [swapped(ofSse ? stream.id : id), 'alice'],
      'a prototype': ['__proto__', 'alice'],
      'a constructor': ['constructor', 'alice'],
    }
    const found: Record<string, unknown> = {}
    for (const [what, [given, user]] of Object.entries(cases)) found[what] = await whole(port, use(given), user)
    expect(found).toEqual(Object.fromEntries(Object.keys(cases).map((what) => [what, unknown])))
    expect(upstream.heard()).toEqual(before)

    // They all still work for whom they belong to.
    const ask200 = async (body: Body, headers: Record<string, string>, path = '/mcp') =>
      (await ask(port, { path, headers: { ...ours, ...headers }, body })).status
    expect(await ask200(ping, { 'mcp-session-id': id, ...as('alice') })).toBe(200)
    expect(await ask200(ping, { 'mcp-session-id': anonymous })).toBe(200)
    expect(await ask200(ping, as('alice'), stream.endpoint)).toBe(202)
    expect(await ask200(ping, {}, anonymousStream.endpoint)).toBe(202)
  })

  test('also when it has come to its end by itself', async () => {
    const { port, app } = await proxied({ idleTimeout: 30 })
    const id = await session(port, as('alice'))
    const stream = await sse(port, as('alice'))
    stream.close()
    await vi.waitFor(() => expect(app.stats().sessions).toBe(0))
    for (const use of Object.values(uses)) {
      const unknown = await whole(port, use('B'.repeat(43)), 'alice')
      expect(await whole(port, use(id), 'alice')).toEqual(unknown)
      expect(await whole(port, use(stream.id), 'alice')).toEqual(unknown)
    }
  })

  test('an id in the wrong place is none', async () => {
    const { port } = await proxied()
    const id = await session(port)
    const stream = await sse(port)
    const missing = invalidRequest('expected a header Mcp-Session-Id', 7)
    for (const asked of [
      { path: `/mcp?sessionId=${id}`, headers: ours, body: ping },
      { path: '/mcp', headers: { ...ours, cookie: `mcp-session-id=${id}` }, body: ping },
    ]) {
      expect(told(await ask(port, asked))).toEqual({ status: 400, body: missing })
    }
    const unknown = { status: 404, body: invalidRequest('unknown session') }
    for (const asked of [
      { path: '/messages', headers: { ...ours, 'mcp-session-id': stream.id }, body: ping },
      { path: `/messages?sessionid=${stream.id}`, headers: ours, body: ping },
      { path: `/messages?sessionId=x&sessionId=${stream.id}`, headers: ours, body: ping },
    ]) {
      expect(told(await ask(port, asked))).toEqual(unknown)
    }
  })
})

describe('a modern request', () => {
  const call = modern(7, 'ping')

  test.each([['alice'], ['bob'], [undefined]])(
    'takes no notice of a session id, and gets none: by %s',
    async (user) => {
      const { port, upstream } = await proxied()
      const id = await session(port, as('alice'))
      const { id: ofSse } = await sse(port, as('alice'))
      for (const given of [id, ofSse, 'unknown', '']) {
        const headers = { ...call.headers, 'mcp-session-id': given, ...as(user) }
        const { headers: came, ...reply } = await ask(port, { ...call, headers })
        expect(told(reply)).toEqual({ status: 200, body: { jsonrpc: '2.0', id: 7, result: {} } })
        expect(came['mcp-session-id']).toBeUndefined()
      }
      // The session's own upstream has heard its handshake alone.
      expect(upstream.wires[0]!.sent).toEqual([JSON.stringify(initialize())])
      expect(upstream.wires.slice(2).map(({ sent }) => sent)).toEqual(Array(4).fill([JSON.stringify(call.body)]))
    },
  )

  test('neither opens the stream of a session nor ends it', async () => {
    const { port } = await proxied()
    const id = await session(port)
    const headers = { ...event, 'mcp-session-id': id, 'mcp-protocol-version': '2026-07-28' }
    for (const method of ['GET', 'DELETE']) {
      const { headers: came, ...reply } = await ask(port, { method, headers })
      expect(told(reply)).toEqual({ status: 405, body: invalidRequest('expected POST') })
      expect(came.allow).toBe('POST')
    }
    expect((await ask(port, { headers: { ...ours, 'mcp-session-id': id }, body: ping })).status).toBe(200)
  })
})

test('a stream is its own session’s: what is said in one is heard in no other', async () => {
  const { port, upstream } = await proxied()
  const ids = [await session(port, as('alice')), await session(port, as('alice')), await session(port, as('bob'))]
  const users = ['alice', 'alice', 'bob']
  const streams: Opened[] = []
  for (const [at, id] of ids.entries()) {
    const headers = { ...event, 'mcp-session-id': id, ...as(users[at]) }
    streams.push(await open(port, { method: 'GET', headers }))
  }
  for (const [at, wire] of upstream.wires.entries()) wire.say({ method: 'notifications/x', params: { at } })
  await vi.waitFor(() => expect(streams.map((it) => it.messages().length)).toEqual([1, 1, 1]))
  expect(streams.map((it) => it.messages().map(({ params }) => params))).toEqual([
    [{ at: 0 }],
    [{ at: 1 }],
    [{ at: 2 }],
  ])
})

function swapped(id: string): string {
  return id.replace(/[a-z]/gi, (it) => (it === it.toLowerCase() ? it.toUpperCase() : it.toLowerCase()))
}
