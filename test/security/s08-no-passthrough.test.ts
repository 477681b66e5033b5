import { http, type Upstream } from 'open-mcp-proxy'
import { describe, expect, test, vi } from 'vitest'
import { serve } from '../fixtures/closing.js'
import { event, type Handler, json, stream } from '../fixtures/http-server.js'
import { ask, initialize, listen, modern, open, ours, session } from './helpers.js'

/** What a client has sent to the proxy, and no server behind it is to see. */
const secrets: Record<string, string> = {
  authorization: 'Bearer canary-authorization',
  cookie: 'canary=cookie',
  'proxy-authorization': 'Basic canary-proxy',
  'x-forwarded-for': '203.0.113.7',
  'x-forwarded-host': 'canary.example',
  'x-forwarded-proto': 'https',
  'x-forwarded-port': '4433',
  'x-forwarded-user': 'canary',
  'x-real-ip': '203.0.113.7',
  forwarded: 'for=203.0.113.7;host=canary.example',
  via: '1.1 canary',
  origin: 'http://localhost:6274',
  referer: 'http://localhost:6274/canary',
  'x-api-key': 'canary-key',
  'x-amz-security-token': 'canary-amz',
  'x-unknown': 'canary-unknown',
  'x-http-method-override': 'DELETE',
  'x-original-url': '/canary',
  'accept-language': 'x-canary',
  'user-agent': 'canary/1.0',
  'cache-control': 'max-age=0',
  'if-none-match': '"canary"',
  priority: 'u=1',
  traceparent: '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01',
  te: 'trailers',
  'last-event-id': '0-0',
  'mcp-unknown': 'canary',
  'sec-fetch-site': 'same-origin',
}

/** What a server sends, and no client of the proxy is to see. */
const foreign: Record<string, string> = {
  'set-cookie': 'canary=1; Domain=localhost',
  'www-authenticate': 'Bearer resource_metadata="http://canary.example/"',
  'proxy-authenticate': 'Basic realm="canary"',
  'access-control-allow-origin': '*',
  'access-control-allow-credentials': 'true',
  'access-control-expose-headers': 'canary',
  'access-control-allow-private-network': 'true',
  'mcp-session-id': 'canary-upstream-session',
  server: 'canary/1.0',
  via: '1.1 canary',
  'alt-svc': 'h3="canary.example:443"',
  'strict-transport-security': 'max-age=31536000',
  'content-language': 'x-canary',
  'content-disposition': 'attachment; filename=canary',
  'cache-control': 'public, max-age=31536000',
  'x-accel-buffering': 'yes',
  vary: 'X-Canary',
}

const answerTo = (body: string) => {
  const { id, method } = JSON.parse(body)
  const result =
    method === 'initialize'
      ? { protocolVersion: '2025-11-25', capabilities: {}, serverInfo: { name: 's', version: '1' } }
      : {}
  return { jsonrpc: '2.0', id, result: method === 'tools/list' ? { tools: [] } : result }
}

/** Answers as JSON, or as an event stream, with all of those headers. */
const answering =
  (how: 'json' | 'stream', headers = foreign): Handler =>
  (seen, response) => {
    if (seen.method === 'GET') return stream(response, headers)
    if (seen.method === 'DELETE') return response.writeHead(200, headers).end()
    if (JSON.parse(seen.body).id === undefined) return response.writeHead(202, headers).end()
    if (how === 'json') return json(response, answerTo(seen.body), 200, headers)
    return stream(response, headers).end(event(answerTo(seen.body), 'canary-event'))
  }

/** What node:http and the proxy put there themselves. */
const own = (host: string, body: string) => ({
  host,
  connection: 'keep-alive',
  accept: 'application/json, text/event-stream',
  'accept-encoding': 'identity',
  'content-type': 'application/json',
  'content-length': String(Buffer.byteLength(body)),
})

describe('nothing of a client’s own reaches the upstream', () => {
  async function set(how: 'json' | 'stream', options: object = {}) {
    const target = await serve(answering(how))
    const proxy = await listen(http(target.url, options))
    return { target, ...proxy }
  }

  test.each(['json', 'stream'] as const)('in a legacy session (%s)', async (how) => {
    const { target, port, app } = await set(how)
    const id = await session(port, secrets)
    const headers = { ...secrets, ...ours, 'mcp-session-id': id, 'mcp-protocol-version': '2025-11-25' }
    await ask(port, { headers, body: { jsonrpc: '2.0', method: 'notifications/initialized' } })
    await vi.waitFor(() => expect(target.seen.filter(({ method }) => method === 'GET')).toHaveLength(1))
    const call = { jsonrpc: '2.0', id: 1, method: 'tools/call', params: { name: 'a' } }
    const param = { 'mcp-param-region': 'canary', 'mcp-name': 'canary', 'mcp-method': 'canary' }
    await ask(port, { headers: { ...headers, ...param }, body: call })
    const { 'last-event-id': _, ...rest } = secrets
    await open(port, { method: 'GET', headers: { ...rest, accept: 'text/event-stream', 'mcp-session-id': id } })
    await ask(port, { method: 'DELETE', headers: { ...secrets, 'mcp-session-id': id } })
    await vi.waitFor(() => expect(app.stats().sessions).toBe(0))
    const { host } = target.url
    const session2 = { 'mcp-session-id': 'canary-upstream-session', 'mcp-protocol-version': '2025-11-25' }
    const { 'content-type': __, 'content-length': ___, ...bare } = own(host, '')
    expect(target.seen.map(({ method, path, headers }) => ({ method, path, headers }))).toEqual([
      { method: 'POST', path: '/mcp', headers: own(host, JSON.stringify(initialize())) },
      { method: 'POST', path: '/mcp', headers: { ...own(host, target.seen[1]!.body), ...session2 } },
      { method: 'GET', path: '/mcp', headers: { ...bare, accept: 'text/event-stream', ...session2 } },
      { method: 'POST', path: '/mcp', headers: { ...own(host, JSON.stringify(call)), ...session2 } },
      {
        method: 'DELETE',
        path: '/mcp',
        headers: { host, connection: 'keep-alive', 'accept-encoding': 'identity', ...session2 },
      },
    ])
  })

  test.each(['json', 'stream'] as const)('with a modern request, but for Mcp-Param-* (%s)', async (how) => {
    const { target, port } = await set(how)
    const list = modern(1, 'tools/list')
    await ask(port, {
      ...list,
      headers: { ...secrets, ...list.headers, 'mcp-session-id': 'canary', 'mcp-param-a': 'b' },
    })
    const told = { jsonrpc: '2.0', method: 'notifications/x' }
    const { 'mcp-method': _, ...head } = list.headers
    await ask(port, { headers: { ...secrets, ...head, 'mcp-session-id': 'canary' }, body: told })
    const { host } = target.url
    // What has no answer is confirmed before it is under way.
    await vi.waitFor(() => expect(target.seen).toHaveLength(2))
    expect(target.seen.map(({ headers }) => headers)).toEqual([
      {
        ...own(host, JSON.stringify(list.body)),
        'mcp-protocol-version': '2026-07-28',
        'mcp-method': 'tools/list',
        'mcp-param-a': 'b',
      },
      { ...own(host, JSON.stringify(told)), 'mcp-protocol-version': '2026-07-28' },
    ])
  })

  test('not even in place of what the upstream is to get', async () => {
    const options = { headers: { Authorization: 'Bearer ours', 'X-Api-Key': 'ours', Cookie: 'ours' } }
    const { target, port } = await set('json', options)
    await session(port, secrets)
    const ping = modern(1, 'ping')
    await ask(port, { ...ping, headers: { ...secrets, ...ping.headers } })
    const credentials = ({ headers }: { headers: Record<string, unknown> }) => ({
      authorization: headers.authorization,
      'x-api-key': headers['x-api-key'],
      cookie: headers.cookie,
    })
    expect(target.seen.map(credentials)).toEqual(
      Array(2).fill({ authorization: 'Bearer ours', 'x-api-key': 'ours', cookie: 'ours' }),
    )
    expect(target.seen.map(({ headers }) => JSON.stringify(headers)).join()).not.toMatch(/canary(?!-upstream)/)
  })

  test('not with what names the connection’s own headers', async () => {
    const { target, port } = await set('json')
    const ping = modern(1, 'ping')
    const hop = { connection: 'close, mcp-param-a, x-hop', 'x-hop': 'canary', 'keep-alive': 'timeout=1' }
    await ask(port, { ...ping, headers: { ...hop, ...ping.headers } })
    expect(target.seen.map(({ headers }) => headers)).toEqual([
      {
        ...own(target.url.host, JSON.stringify(ping.body)),
        'mcp-protocol-version': '2026-07-28',
        'mcp-method': 'ping',
      },
    ])
    expect(JSON.stringify(target.seen)).not.toContain('canary')
  })

  test('not to a server of HTTP+SSE', async () => {
    const responses: import('node:http').ServerResponse[] = []
    const target = await serve((seen, response) => {
      if (seen.method === 'GET') {
        responses.push(stream(response))
        response.write('event: endpoint\ndata: /mcp?session=1\n\n')
        return
      }
      response.writeHead(202).end()
      const { id } = JSON.parse(seen.body)
      if (id !== undefined) responses[0]!.write(`event: message\ndata: ${JSON.stringify(answerTo(seen.body))}\n\n`)
    })
    const { port } = await listen({ url: target.url, type: 'sse' } satisfies Upstream)
    await session(port, secrets)
    expect(target.seen).toHaveLength(2)
    const { 'x-forwarded-for': address, via: _, ...values } = secrets
    for (const { headers } of target.seen) {
      for (const name of Object.keys(secrets)) if (name !== 'cache-control') expect(headers).not.toHaveProperty([name])
      for (const value of [address!, ...Object.values(values)]) {
        expect(Object.values(headers)).not.toContain(value)
      }
    }
  })
})

describe('nothing of the upstream’s own connection reaches a client', () => {
  const base = (length: number) => ({
    'content-type': 'application/json',
    'content-length': String(length),
    date: expect.any(String),
    connection: 'close',
  })
  const streamed = {
    'content-type': 'text/event-stream',
    'cache-control': 'no-cache, no-transform',
    'x-accel-buffering': 'no',
    date: expect.any(String),
    connection: 'close',
    'transfer-encoding': 'chunked',
  }

  test('in a legacy session, as JSON', async () => {
    const target = await serve(answering('json'))
    const { port } = await listen(http(target.url))
    const { headers, body } = await ask(port, { body: initialize() })
    expect(headers).toEqual({ ...base(body.length), 'mcp-session-id': expect.stringMatching(/^[\w-]{43}$/) })
    expect(body).toEqual(JSON.stringify(answerTo(JSON.stringify(initialize()))))
  })

  test('in a legacy session, as a stream', async () => {
    const target = await serve(answering('stream'))
    const { port } = await listen(http(target.url))
    const { headers, body } = await ask(port, { body: initialize() })
    expect(headers).toEqual({ ...streamed, 'mcp-session-id': expect.stringMatching(/^[\w-]{43}$/) })
    expect(body).not.toContain('canary')
  })

  test('of a modern request, as JSON; what is the server’s to say does', async () => {
    const target = await serve(answering('json', { ...foreign, 'x-made': 'here' }))
    const { port } = await listen(http(target.url))
    const { headers, body } = await ask(port, modern(1, 'ping'))
    expect(headers).toEqual({ ...base(body.length), 'x-made': 'here' })
  })

  test('of a modern request, as a stream', async () => {
    const target = await serve(answering('stream', { ...foreign, 'x-made': 'here' }))
    const { port } = await listen(http(target.url))
    const { headers, body } = await ask(port, modern(1, 'ping'))
    expect(headers).toEqual({ ...streamed, 'x-made': 'here' })
    expect(body).not.toContain('canary')
  })

  test.each([400, 401, 403, 404, 407, 500, 503])('with a refusal of status %i', async (status) => {
    const text = (body: string) =>
      JSON.stringify({ jsonrpc: '2.0', id: JSON.parse(body).id, error: { code: -32050, message: 'no' } })
    const target = await serve((seen, response) => json(response, text(seen.body), status, foreign))
    const { port } = await listen(http(target.url))
    const asked = modern(1, 'ping')
    const found = await ask(port, asked)
    // What it says of our credentials is not said of the client's.
    const expected = [401, 403, 407].includes(status) ? 200 : status
    expect({ ...found, body: JSON.parse(found.body) }).toEqual({
      status: expected,
      headers: base(found.body.length),
      body: { jsonrpc: '2.0', id: 1, error: { code: -32050, message: 'no' } },
    })
    const legacy = await ask(port, { body: initialize() })
    expect({ ...legacy, body: JSON.parse(legacy.body) }).toEqual({
      status: 200,
      headers: base(legacy.body.length),
      body: { jsonrpc: '2.0', id: 0, error: { code: -32050, message: 'no' } },
    })
  })

  test('in a redirect: not where it leads, and not what it sets', async () => {
    const target = await serve((_seen, response) =>
      response.writeHead(307, { ...foreign, location: 'http://canary.example/' }).end(),
    )
    const { port } = await listen(http(target.url))
    const found = await ask(port, modern(1, 'ping'))
    expect(found.status).toBe(200)
    expect(found.headers).toEqual(base(found.body.length))
    expect(JSON.stringify(found)).not.toContain('canary')
    expect(target.seen).toHaveLength(1)
  })

  // They act on all of what a browser keeps of this origin, not on this answer.
  test.each([
    ['clear-site-data', '"*"'],
    ['set-cookie2', 'canary=1'],
    ['authentication-info', 'nextnonce="canary"'],
    ['nel', '{"report_to":"canary","max_age":31536000}'],
    ['report-to', '{"group":"canary","endpoints":[{"url":"https://canary.example/"}]}'],
    ['reporting-endpoints', 'canary="https://canary.example/"'],
    ['service-worker-allowed', '/'],
    ['location', 'https://canary.example/'],
    ['refresh', '0; url=https://canary.example/'],
    ['public-key-pins', 'pin-sha256="canary"'],
    ['content-security-policy', 'report-uri https://canary.example/'],
  ])('not a header that speaks for the whole origin: %s', async (name, value) => {
    const target = await serve(answering('json', { [name]: value }))
    const { port } = await listen(http(target.url))
    const { headers, body } = await ask(port, modern(1, 'ping'))
    expect(headers).toEqual(base(body.length))
  })
})
