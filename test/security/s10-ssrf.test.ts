import { http, sse as overSse } from 'open-mcp-proxy'
import { describe, expect, test, vi } from 'vitest'
import { auth } from '../../middleware/auth.js'
import { serve } from '../fixtures/closing.js'
import { type Handler, json, stream } from '../fixtures/http-server.js'
import { bearer, issuer } from '../fixtures/issuer.js'
import { ask, initialize, listen, modern, ours, server, session, told } from './helpers.js'
import { calls, imports, nodes } from './source.js'

/** A server that nobody is to ask. */
const bait = () => serve((_seen, response) => json(response, { keys: [], resource: 'x' }))

const endpoint = (address: string) => `event: endpoint\ndata: ${address}\n\n`

describe('the address that a server of HTTP+SSE names', () => {
  /** By the server's own and the bait's. */
  const bad: Record<string, (home: URL, bait: URL) => string> = {
    'of another port': (_home, bait) => bait.href,
    'without a scheme': (_home, bait) => `//${bait.host}/messages`,
    'with backslashes': (_home, bait) => `\\\\${bait.host}\\messages`,
    'with a slash and a backslash': (_home, bait) => `/\\${bait.host}/messages`,
    'behind white space': (_home, bait) => ` \t ${bait.href}`,
    'with a tab in the scheme': (_home, bait) => bait.href.replace('http:', 'ht\ttp:'),
    'in capitals': (_home, bait) => bait.href.replace('http:', 'HTTP:'),
    'the right host as a user': (home, bait) => `http://${home.hostname}@${bait.host}/messages`,
    'the right host and port as user and password': (home, bait) => `http://${home.host}@${bait.host}/messages`,
    'the bait in a number': (_home, bait) => `http://2130706433:${bait.port}/messages`,
    'the bait in hexadecimal': (_home, bait) => `http://0x7f.1:${bait.port}/messages`,
    'the bait in octal': (_home, bait) => `http://0177.0.0.1:${bait.port}/messages`,
    'the bait in full width': (_home, bait) => `http://１２７.０.０.１:${bait.port}/messages`,
    'the bait in IPv6': (_home, bait) => `http://[::ffff:127.0.0.1]:${bait.port}/messages`,
    'the bait in IPv6, in hexadecimal': (_home, bait) => `http://[::ffff:7f00:1]:${bait.port}/messages`,
    'another name for the same machine': ({ port }) => `http://localhost:${port}/messages`,
    'another scheme': ({ host }) => `https://${host}/messages`,
    'the metadata of a cloud': () => 'http://169.254.169.254/latest/meta-data/',
    'a private address': () => 'http://10.0.0.1/messages',
    'javascript:': () => 'javascript:alert(1)',
    'data:': () => 'data:text/plain,x',
    'file:': () => 'file:///etc/passwd',
    'ws:': ({ host }) => `ws://${host}/messages`,
    'blob:': ({ origin }) => `blob:${origin}/1`,
    'gopher:': ({ host }) => `gopher://${host}/_x`,
    'no URL': () => 'http://[::1',
  }

  test.each(Object.entries(bad))('is asked for nothing where it is elsewhere: %s', async (_name, address) => {
    const other = await bait()
    const home = await serve((seen, response) => {
      if (seen.method !== 'GET') return response.writeHead(202).end()
      return stream(response).write(endpoint(address(home.url, other.url)))
    })
    const { port } = await listen(overSse(home.url, { headers: { authorization: 'Bearer canary' } }))
    const reply = told(await ask(port, { body: initialize(1) }))
    expect(reply).toMatchObject({ status: 200, body: { id: 1, error: { code: -31003, data: { phase: 'not_sent' } } } })
    expect(JSON.stringify(reply)).not.toContain(other.url.port)
    expect([other.seen, home.seen.map(({ method }) => method)]).toEqual([[], ['GET']])
  })

  test('may not change later', async () => {
    const other = await bait()
    const responses: import('node:http').ServerResponse[] = []
    const home = await serve((seen, response) => {
      if (seen.method === 'GET') return responses.push(stream(response)) && response.write(endpoint('/messages'))
      response.writeHead(202).end()
      const { id } = JSON.parse(seen.body)
      return responses.at(-1)!.write(`data: ${JSON.stringify({ jsonrpc: '2.0', id, result: {} })}\n\n`)
    })
    const { port, app } = await listen(overSse(home.url))
    const headers = { ...ours, 'mcp-session-id': await session(port) }
    responses[0]!.write(endpoint(other.url.href))
    await vi.waitFor(() => expect(responses).toHaveLength(2))
    await ask(port, { headers, body: { jsonrpc: '2.0', id: 2, method: 'ping' } })
    expect([other.seen, app.stats().sessions]).toEqual([[], 1])
  })
})

test('no URL that stands in a message, whoever sends it, is fetched', async () => {
  const other = await bait()
  const url = other.url.href
  const metadata = { 'www-authenticate': `Bearer resource_metadata="${url}"`, link: `<${url}>; rel=preload` }
  const everywhere = {
    icons: [{ src: url }],
    websiteUrl: url,
    uri: url,
    url,
    $schema: url,
    $ref: url,
    inputSchema: { $schema: url, $ref: url, $dynamicRef: url, properties: { a: { $ref: url, 'x-mcp-header': 'A' } } },
    outputSchema: { $ref: url },
    authorization_servers: [url],
    content: [{ type: 'resource_link', uri: url, name: 'x' }],
    _meta: { url },
  }
  const answer: Handler = (seen, response) => {
    if (seen.method === 'GET') {
      const asked = { jsonrpc: '2.0', id: 's', method: 'elicitation/create', params: { mode: 'url', ...everywhere } }
      return stream(response, metadata).write(`data: ${JSON.stringify(asked)}\n\n`)
    }
    if (seen.method === 'DELETE') return response.writeHead(401, metadata).end()
    const { id, method, params } = JSON.parse(seen.body)
    if (id === undefined) return response.writeHead(202, metadata).end()
    if (method === 'resources/read') return response.writeHead(Number(params.uri), { ...metadata, location: url }).end()
    const named = { name: 'a', ...everywhere }
    const result = { protocolVersion: '2025-11-25', tools: [named], serverInfo: named, ...everywhere }
    return json(response, { jsonrpc: '2.0', id, result }, 200, metadata)
  }
  const target = await serve(answer)
  for (const upstream of [http(target.url), { url: target.url }]) {
    const { port } = await listen(upstream)
    const params = { ...initialize().params, ...everywhere }
    const { headers: came } = await ask(port, { body: { ...initialize(), params } })
    const headers = { ...ours, 'mcp-session-id': String(came['mcp-session-id']), referer: url, link: `<${url}>` }
    await ask(port, { headers, body: { jsonrpc: '2.0', method: 'notifications/initialized', params: everywhere } })
    await ask(port, { headers, body: { jsonrpc: '2.0', id: 1, method: 'tools/list' } })
    const call = { name: 'a', arguments: { ...everywhere, a: url } }
    await ask(port, { headers, body: { jsonrpc: '2.0', id: 2, method: 'tools/call', params: call } })
    const asked = modern(3, 'tools/call', call, 'a')
    await ask(port, { ...asked, headers: { ...asked.headers, 'mcp-param-a': url } })
    for (const [id, uri] of ['401', '403', '500', '200', '302', '407'].entries()) {
      await ask(port, { headers, body: { jsonrpc: '2.0', id, method: 'resources/read', params: { uri } } })
    }
    await ask(port, { method: 'DELETE', headers })
  }
  expect(target.methods()).toContain('tools/list')
  expect(other.seen).toEqual([])
})

test('no address that a token names is asked for keys', async () => {
  const other = await bait()
  const from = await issuer()
  const middleware = auth({ jwt: { issuer: from.url, audience: 'a', jwksUri: from.jwksUri } })
  const { port } = await listen(server().open, {}, (app) => app.use(middleware))
  const url = other.url.href
  for (const header of [{ jku: url }, { x5u: url }, { jku: url, kid: 'unknown' }, { x5u: url, kid: 'unknown' }]) {
    const token = await from.sign({ aud: 'other', iss: url }, { header })
    expect((await ask(port, { headers: { ...ours, ...bearer(token) }, body: initialize() })).status).toBe(401)
  }
  expect(other.seen).toEqual([])
})

/**
 * All that can open a connection, and where. What they connect to is written by whoever runs the proxy: the upstream's
 * URL, the keys of an issuer. The only address of a peer's that is ever used is the one of HTTP+SSE, and redirects, both
 * within the origin that was configured: so there are no ranges of addresses to be told apart, and no DNS to be pinned.
 */
test('nothing else can open a connection', () => {
  const all = nodes()
  const networked =
    /^(?:node:)?(?:https?|http2|net|tls|dgram|dns|inspector)(?:\/.*)?$|^(?:undici|eventsource|ws|axios)$/
  expect(imports(all, networked)).toEqual([
    // It listens, as does the one of the listener.
    'middleware/metrics.ts: node:http { createServer }',
    'middleware/metrics.ts: node:net { isIP, isIPv4, isIPv6 }',
    'src/listener/guard.ts: node:net { isIPv4 }',
    'src/listener/http.ts: node:http { createServer }',
    'src/listener/options.ts: node:net { isIPv6 }',
    // To the upstream that is configured. What reads event streams is given a fetch of ours.
    'src/upstream/connections.ts: node:net { connect, isIP }',
    'src/upstream/sse.ts: eventsource { EventSource }',
  ])
  expect(calls(all, /\bgetBuiltinModule$|^require$/)).toEqual([
    "src/upstream/connections.ts: process.getBuiltinModule('node:tls')",
    "src/upstream/encoding.ts: process.getBuiltinModule('node:zlib')",
  ])
  // To the keys of the issuer that is configured.
  expect(calls(all, /^(?:globalThis\.)?fetch$/)).toEqual(['middleware/auth.ts: fetch(url, init)'])
  expect(calls(all, /WebSocket|XMLHttpRequest|sendBeacon/)).toEqual([])
})
