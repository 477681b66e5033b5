import { existsSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type Admission, type AdmitRequest, define, type EventStore, type HttpOptions, stdio } from 'open-mcp-proxy'
import { describe, expect, test, vi } from 'vitest'
import { closing } from '../fixtures/closing.js'
import {
  type Asked,
  ask,
  denied,
  dial,
  initialize,
  listen,
  modern,
  open,
  ours,
  server,
  session,
  sse,
  told,
} from './helpers.js'

const TOKEN = 'the-right-token'
const right = { authorization: `Bearer ${TOKEN}` }
const call = modern(1, 'ping')

/** All that makes a session or a child where it is let in. */
const doors: Record<string, Asked> = {
  'a handshake': { headers: ours, body: initialize() },
  'a modern request': call,
  'a stream of HTTP+SSE': { method: 'GET', path: '/sse', headers: { accept: 'text/event-stream' } },
  'a message of HTTP+SSE': { path: '/messages?sessionId=x', headers: ours, body: initialize() },
  'a stream of a session': { method: 'GET', headers: { accept: 'text/event-stream', 'mcp-session-id': 'x' } },
  'the end of a session': { method: 'DELETE', headers: { 'mcp-session-id': 'x' } },
}

/** A store that says what it was asked to do. */
function watched() {
  const calls: string[] = []
  const store: EventStore = {
    append: () => void calls.push('append'),
    after: () => ({ complete: true, events: [] }),
    forget: () => void calls.push('forget'),
  }
  return { calls, store }
}

/** A proxy whose middleware says who comes in. */
async function guarded(admit: (request: AdmitRequest) => Admission | undefined, options: Partial<HttpOptions> = {}) {
  const upstream = server()
  const { calls, store } = watched()
  const admitted = vi.fn(admit)
  const seen: unknown[] = []
  const proxy = await listen(upstream.open, { eventStore: store, ...options }, (app) => {
    app.use(
      define({ admit: admitted }, (ctx, next) => {
        seen.push(ctx.method)
        return next()
      }),
    )
    app.on('session', () => seen.push('session'))
  })
  /** Nobody was let in: nothing was made for anybody. */
  const untouched = () => {
    expect(seen).toEqual([])
    expect(upstream.wires).toEqual([])
    expect(calls).toEqual([])
    expect(proxy.app.stats()).toEqual({
      sessions: 0,
      pending: 0,
      lanes: { 'client-to-server': 0, 'server-to-client': 0 },
      dropped: 0,
    })
  }
  return { ...proxy, upstream, admitted, untouched, seen }
}

const unauthorized = denied('expected a bearer token')

describe('a token that is not ours', () => {
  const bad: Record<string, Record<string, string>> = {
    none: {},
    wrong: { authorization: 'Bearer the-wrong-token' },
    'the beginning of it': { authorization: `Bearer ${TOKEN.slice(0, -1)}` },
    'more than it': { authorization: `Bearer ${TOKEN}x` },
    'another case of it': { authorization: `Bearer ${TOKEN.toUpperCase()}` },
    empty: { authorization: 'Bearer ' },
    'no scheme': { authorization: TOKEN },
    'another scheme': { authorization: `Basic ${TOKEN}` },
    'two of them': { authorization: `Bearer x ${TOKEN}` },
    'two schemes': { authorization: `Basic x, Bearer ${TOKEN}` },
    'in quotes': { authorization: `Bearer "${TOKEN}"` },
    'a digest of it': { authorization: `Bearer ${Buffer.from(TOKEN).toString('base64')}` },
    'in another header': { 'x-authorization': `Bearer ${TOKEN}`, 'proxy-authorization': `Bearer ${TOKEN}` },
    'in a cookie': { cookie: `token=${TOKEN}; authorization=Bearer ${TOKEN}` },
    'a prototype': { authorization: 'Bearer __proto__' },
  }
  test.each(Object.entries(doors))('%s', async (_name, door) => {
    const { port, admitted, untouched } = await guarded(() => ({ principal: 'anybody' }), { token: TOKEN })
    const found: Record<string, unknown> = {}
    const expected: Record<string, unknown> = {}
    for (const [name, headers] of Object.entries(bad)) {
      const reply = await ask(port, { ...door, headers: { ...door.headers, ...headers } })
      found[name] = { ...told(reply), challenge: reply.headers['www-authenticate'] }
      const given = /^Bearer \S+$/.test(headers.authorization ?? '')
      const challenge = given ? 'Bearer error="invalid_token"' : 'Bearer'
      expected[name] = { status: 401, body: unauthorized, challenge }
    }
    expect(found).toEqual(expected)
    // Middleware is asked behind the token only.
    expect(admitted).not.toHaveBeenCalled()
    untouched()
  })

  test('in the query', async () => {
    const { port, untouched } = await guarded(() => undefined, { token: TOKEN })
    for (const name of ['token', 'access_token', 'authorization']) {
      const reply = await ask(port, { ...doors['a handshake'], path: `/mcp?${name}=${TOKEN}` })
      expect(told(reply)).toEqual({ status: 401, body: unauthorized })
    }
    untouched()
  })

  test('the right one comes in', async () => {
    const { port, upstream } = await guarded(() => undefined, { token: TOKEN })
    await session(port, right)
    const stream = await sse(port, right)
    const posted = await ask(port, { path: stream.endpoint, headers: { ...ours, ...right }, body: initialize(1) })
    const asked = await ask(port, { ...call, headers: { ...call.headers, ...right } })
    expect([posted.status, asked.status]).toEqual([202, 200])
    await vi.waitFor(() => expect(upstream.methods()).toEqual(['initialize', 'initialize', 'ping']))
  })

  test('a session or a stream that somebody with it has opened lets nobody else in', async () => {
    const { port, upstream } = await guarded(() => undefined, { token: TOKEN })
    const id = await session(port, right)
    const stream = await sse(port, right)
    const before = upstream.heard()
    const uses: Asked[] = [
      { headers: { ...ours, 'mcp-session-id': id }, body: initialize(1) },
      { method: 'GET', headers: { accept: 'text/event-stream', 'mcp-session-id': id } },
      { method: 'DELETE', headers: { 'mcp-session-id': id } },
      { path: stream.endpoint, headers: ours, body: initialize(1) },
    ]
    for (const asked of uses) {
      expect(told(await ask(port, asked))).toEqual({ status: 401, body: unauthorized })
    }
    expect(upstream.heard()).toEqual(before)
    const still = await ask(port, { headers: { ...ours, ...right, 'mcp-session-id': id }, body: initialize(2) })
    expect(still.status).toBe(200)
  })
})

describe('a middleware that turns it away', () => {
  const headers = { 'www-authenticate': 'Bearer scope="mcp"', 'retry-after': '7' }
  test.each(Object.entries(doors))('%s', async (_name, door) => {
    for (const status of [401, 403, 429]) {
      const { port, admitted, untouched } = await guarded(() => ({ status, headers }))
      const reply = await ask(port, door)
      expect(told(reply)).toEqual({ status, body: denied('') })
      expect(reply.headers).toMatchObject(headers)
      expect(admitted).toHaveBeenCalledTimes(1)
      untouched()
    }
  })

  test.each(Object.entries(doors))('by throwing: %s', async (_name, door) => {
    const { port, errors, untouched } = await guarded(() => {
      throw new Error('canary: no such key')
    })
    expect(told(await ask(port, door))).toEqual({
      status: 500,
      body: { jsonrpc: '2.0', error: { code: -32603, message: 'Internal error' } },
    })
    expect(errors).toEqual(['canary: no such key'])
    untouched()
  })
})

describe('a Host or an Origin that is not ours', () => {
  test.each(Object.entries(doors))('%s', async (_name, door) => {
    const { port, admitted, untouched } = await guarded(() => ({ principal: 'anybody' }), { token: TOKEN })
    const bad: Record<string, string>[] = [{ host: 'localhost.evil' }, { origin: 'http://localhost.evil' }]
    for (const headers of bad) {
      const reply = await ask(port, { ...door, headers: { ...door.headers, ...right, ...headers } })
      expect(reply.status).toBe(403)
    }
    expect(admitted).not.toHaveBeenCalled()
    untouched()
  })
})

describe('the body of a request that is turned away', () => {
  const heads: Record<string, string[]> = {
    'without a token': ['Host: localhost'],
    'with a wrong token': ['Host: localhost', 'Authorization: Bearer wrong'],
    'of another host': ['Host: evil.example', `Authorization: Bearer ${TOKEN}`],
    'of another origin': ['Host: localhost', 'Origin: https://evil.example', `Authorization: Bearer ${TOKEN}`],
    'of a middleware': ['Host: localhost', `Authorization: Bearer ${TOKEN}`, 'X-Turn-Away: 401'],
  }
  const statuses: Record<string, number> = { 'of another host': 403, 'of another origin': 403 }
  const admit = ({ headers }: AdmitRequest) => (headers['x-turn-away'] ? { status: 401 } : { principal: 'somebody' })
  const post = (head: string[], ...more: string[]) =>
    ['POST /mcp HTTP/1.1', ...head, 'Content-Type: application/json', ...more, '', ''].join('\r\n')

  test.each(Object.entries(heads))('is not waited for: %s', async (name, head) => {
    const { port, untouched } = await guarded(admit, { token: TOKEN })
    const line = await dial(port)
    line.write(post(head, 'Content-Length: 1000'))
    await line.until(`HTTP/1.1 ${statuses[name] ?? 401} `)
    untouched()
  })

  test.each(Object.entries(heads))('is not asked for (Expect: 100-continue): %s', async (name, head) => {
    const { port, untouched } = await guarded(admit, { token: TOKEN })
    const line = await dial(port)
    line.write(post(head, 'Content-Length: 1000', 'Expect: 100-continue'))
    await line.until('"error"')
    expect(line.heard()).toMatch(new RegExp(`^HTTP/1\\.1 ${statuses[name] ?? 401} `))
    untouched()
  })

  test('cannot keep its connection for ever', async () => {
    const { port, untouched } = await guarded(admit, { token: TOKEN })
    const held = Object.entries(heads).map(async ([name, head]) => {
      const line = await dial(port)
      line.write(post(head, 'Transfer-Encoding: chunked'))
      const endless = setInterval(() => line.write('1\r\nx\r\n'), 10)
      closing.push(() => clearInterval(endless))
      await line.until(`HTTP/1.1 ${statuses[name] ?? 401} `)
      await vi.waitFor(() => expect([name, line.isOver()]).toEqual([name, true]), { timeout: 10_000, interval: 20 })
      clearInterval(endless)
    })
    await Promise.all(held)
    untouched()
  })
})

describe('a child', () => {
  test('is started for nobody who is turned away', async () => {
    const directory = await mkdtemp(join(tmpdir(), 'omproxy-s21-'))
    closing.push(() => rm(directory, { recursive: true, force: true }))
    const marker = join(directory, 'started')
    const script = `
      require('node:fs').writeFileSync(${JSON.stringify(marker)}, '')
      require('node:readline').createInterface(process.stdin).on('line', (line) => {
        const { id } = JSON.parse(line)
        if (id !== undefined) console.log(JSON.stringify({ jsonrpc: '2.0', id, result: {} }))
      })`
    const { port, app } = await listen(stdio(process.execPath, ['-e', script]), { token: TOKEN })
    for (const door of Object.values(doors)) expect((await ask(port, door)).status).toBe(401)
    for (const door of Object.values(doors)) {
      const headers = { ...door.headers, ...right, host: 'evil.example' } as Record<string, string>
      expect((await ask(port, { ...door, headers })).status).toBe(403)
    }
    expect(app.stats().sessions).toBe(0)
    expect(existsSync(marker)).toBe(false)
    // The same door opens with the token: so the marker does tell.
    await session(port, right)
    expect(existsSync(marker)).toBe(true)
  })

  test('is started neither by a health check nor by a request that is refused for its form', async () => {
    const { port, untouched } = await guarded(() => ({ principal: 'somebody' }))
    const health = await ask(port, { method: 'GET', path: '/healthz', headers: {} })
    const odd: Asked[] = [
      { headers: { ...ours, 'content-type': 'text/plain' }, body: initialize() },
      { headers: { ...ours, accept: 'text/html' }, body: initialize() },
      { headers: ours, body: '{' },
      { headers: ours, body: '[]' },
      { headers: ours, body: [initialize()] },
      { headers: ours, body: { jsonrpc: '2.0', id: 1, method: 'ping' } },
      { headers: { ...ours, 'mcp-protocol-version': '1999-01-01' }, body: initialize() },
      { headers: { ...call.headers, 'mcp-method': 'tools/call' }, body: call.body },
      { headers: { ...call.headers, 'mcp-protocol-version': '2026-07-29' }, body: call.body },
      { headers: call.headers, body: [call.body] },
      { headers: call.headers, body: { jsonrpc: '2.0', id: 1, result: {} } },
      { headers: call.headers, body: { jsonrpc: '2.0', id: 1, method: 'ping' } },
      { method: 'GET', headers: { accept: 'text/event-stream' } },
      { method: 'PUT', headers: ours, body: initialize() },
    ]
    const statuses: number[] = []
    for (const asked of odd) statuses.push((await ask(port, asked)).status)
    expect([health.status, ...statuses]).toEqual([200, 415, 406, ...Array(11).fill(400), 405])
    untouched()
  })
})

test('who is not known yet does not take the room of those who are', async () => {
  const { port } = await guarded(() => undefined, { token: TOKEN, maxSessions: 1 })
  for (const door of Object.values(doors)) for (let at = 0; at < 3; at++) await ask(port, door)
  await session(port, right)
  const full = await open(port, { headers: { ...ours, ...right }, body: initialize() })
  expect(full.reply.status).toBe(503)
})
