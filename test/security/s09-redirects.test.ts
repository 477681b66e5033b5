import type { ServerResponse } from 'node:http'
import { http, sse as overSse, type Upstream } from 'open-mcp-proxy'
import { describe, expect, test, vi } from 'vitest'
import { serve } from '../fixtures/closing.js'
import { type Handler, json, type Seen, stream } from '../fixtures/http-server.js'
import { ask, initialize, listen, modern, ours, session, sse, told } from './helpers.js'

const credentials = { authorization: 'Bearer canary-ours', 'x-api-key': 'canary-key', cookie: 'canary=1' }
const STATUSES = [301, 302, 303, 307, 308]

/** Where a redirect of the server at `home` may lead that is somewhere else. */
const elsewhere: Record<string, (home: URL, other: URL) => string> = {
  'another port': (_home, other) => other.href,
  'another port, without a scheme': (_home, other) => `//${other.host}/mcp`,
  'with backslashes': (_home, other) => `\\\\${other.host}/mcp`,
  'behind white space': (_home, other) => ` \t${other.href}`,
  'the right host as a user': (home, other) => `http://${home.hostname}%3A${home.port}@${other.host}/mcp`,
  'another scheme': ({ host }) => `https://${host}/mcp`,
  'another name for the same machine': ({ port }) => `http://localhost:${port}/mcp`,
  'IPv4 in IPv6': ({ port }) => `http://[::ffff:127.0.0.1]:${port}/mcp`,
  'metadata of a cloud': () => 'http://169.254.169.254/latest/meta-data/',
  'javascript:': () => 'javascript:alert(1)',
  'data:': () => 'data:application/json,{}',
  'file:': () => 'file:///etc/passwd',
  'ftp:': ({ host }) => `ftp://${host}/mcp`,
  'blob:': ({ origin }) => `blob:${origin}/x`,
  'about:': () => 'about:blank',
  'no URL': () => 'http://[',
}

const error = (id: number, detail: string, phase = 'sent') => ({
  jsonrpc: '2.0',
  id,
  error: {
    code: -31003,
    message: `Bad response from upstream: ${detail}`,
    data: { source: 'proxy', reason: 'upstream_bad_response', phase, retryable: false },
  },
})

/** Two servers, of which one sends to the other; the second answers whatever comes. */
async function pair(lead: (home: URL, other: URL, seen: Seen, response: ServerResponse) => unknown) {
  const other = await serve((seen, response) => {
    const id = seen.body === '' ? 0 : JSON.parse(seen.body).id
    json(response, { jsonrpc: '2.0', id, result: { stolen: true } })
  })
  const home = await serve((seen, response) => lead(home.url, other.url, seen, response))
  return { home, other }
}

const kinds: Record<string, (url: URL, options?: object) => Upstream> = {
  'Streamable HTTP': (url, options) => http(url, { headers: credentials, ...options }),
  'Streamable HTTP by a fetch of ours': (url) => http(url, { headers: credentials, fetch }),
  'HTTP+SSE': (url) => overSse(url, { headers: credentials }),
  'one that is to be found out': (url) => ({ url, headers: credentials }),
}

describe.each(Object.entries(kinds))('%s: a redirect', (kind, upstream) => {
  // There a stream stands before anything is sent.
  const refused = (detail: string) => error(1, detail, kind === 'HTTP+SSE' ? 'not_sent' : 'sent')

  test.each(Object.entries(elsewhere))('elsewhere is not followed: %s', async (_name, location) => {
    let status = 0
    const { home, other } = await pair((home, other, _seen, response) =>
      response.writeHead(status, { location: location(home, other) }).end(),
    )
    const { port } = await listen(upstream(home.url))
    const found: unknown[] = []
    for (status of STATUSES) found.push(told(await ask(port, { body: initialize(1) })))
    const expected = STATUSES.map((it) => ({ status: 200, body: refused(`HTTP ${it} to another origin`) }))
    expect(found).toEqual(expected)
    expect([other.seen, home.seen.length]).toEqual([[], STATUSES.length])
  })

  test('within the origin is followed three times, no more', async () => {
    const { home, other } = await pair((_home, _other, { path }, response) =>
      response.writeHead(307, { location: `/${Number(path.slice(1)) + 1 || 1}` }).end(),
    )
    const { port } = await listen(upstream(home.url))
    expect(told(await ask(port, { body: initialize(1) })).body).toEqual(refused('HTTP 307 too many times'))
    expect(home.seen.map(({ path }) => path)).toEqual(['/mcp', '/1', '/2', '/3'])
    expect(other.seen).toEqual([])
  })

  test('that leads away behind one that does not is none either', async () => {
    const { home, other } = await pair((_home, other, { path }, response) =>
      response.writeHead(307, { location: path === '/mcp' ? '/there' : other.href }).end(),
    )
    const { port } = await listen(upstream(home.url))
    expect(told(await ask(port, { body: initialize(1) })).body).toEqual(refused('HTTP 307 to another origin'))
    expect([home.seen.length, other.seen.length]).toEqual([2, 0])
  })

  if (kind.startsWith('Streamable'))
    test('keeps method, headers and body, or is not followed', async () => {
      const answer: Handler = (seen, response) => {
        if (seen.method === 'DELETE') return response.writeHead(200).end()
        const { id } = JSON.parse(seen.body)
        if (id === undefined) return response.writeHead(202).end()
        return json(response, { jsonrpc: '2.0', id, result: {} }, 200, { 'mcp-session-id': 'of-upstream' })
      }
      let status = 0
      const { home } = await pair((_home, _other, seen, response) => {
        if (seen.method === 'GET') return response.writeHead(405).end()
        if (seen.path === '/mcp' && status > 0) return response.writeHead(status, { location: '/there' }).end()
        return answer(seen, response)
      })
      const { port } = await listen(upstream(home.url))
      const headers = { ...ours, 'mcp-session-id': await session(port) }
      const ping = { jsonrpc: '2.0', id: 1, method: 'ping' }
      for (status of STATUSES) {
        home.seen.length = 0
        const reply = told(await ask(port, { headers, body: ping }))
        const [first, second, ...more] = home.seen
        expect(more).toEqual([])
        if (status >= 307) {
          expect(reply.body).toEqual({ jsonrpc: '2.0', id: 1, result: {} })
          expect(second).toEqual({ ...first, path: '/there' })
          expect(first).toMatchObject({ method: 'POST', body: JSON.stringify(ping), headers: credentials })
          expect(second!.headers['mcp-session-id']).toBe('of-upstream')
        } else {
          expect(reply.body).toEqual(error(1, `HTTP ${status} would drop the body`))
          expect(second).toBeUndefined()
        }
      }
    })
})

test('a stream of HTTP+SSE and what is sent beside it stay with the origin', async () => {
  let location = '/stream'
  const { home, other } = await pair((_home, _other, seen, response) => {
    if (seen.path === '/mcp') return response.writeHead(303, { location }).end()
    if (seen.method === 'GET') return stream(response).write('event: endpoint\ndata: /post\n\n')
    return response.writeHead(308, { location: other.url.href }).end()
  })
  const { port } = await listen(overSse(home.url, { headers: credentials }))
  const client = await sse(port)
  await vi.waitFor(() => expect(home.seen.map(({ path }) => path)).toEqual(['/mcp', '/stream']))
  expect((await ask(port, { path: client.endpoint, body: initialize(1) })).status).toBe(202)
  await vi.waitFor(() => expect(client.messages()).toEqual([error(1, 'HTTP 308 to another origin')]))
  location = other.url.href
  expect(told(await ask(port, { body: initialize(1) })).body).toEqual(
    error(1, 'HTTP 303 to another origin', 'not_sent'),
  )
  expect(other.seen).toEqual([])
})

test('a modern request is redirected no further', async () => {
  const { home, other } = await pair((_home, other, _seen, response) =>
    response.writeHead(307, { location: other.href }).end(),
  )
  const { port } = await listen(http(home.url, { headers: credentials }))
  expect(told(await ask(port, modern(1, 'ping'))).body).toEqual(error(1, 'HTTP 307 to another origin'))
  expect([home.seen.length, other.seen.length]).toEqual([1, 0])
})

test('new credentials go to the origin alone: a 401 that a redirect leads to is asked again there', async () => {
  const { home, other } = await pair((_home, other, { headers }, response) =>
    headers.authorization === 'Bearer new'
      ? response.writeHead(307, { location: other.href }).end()
      : response.writeHead(401, { 'www-authenticate': `Bearer resource_metadata="${other.href}"` }).end(),
  )
  const asked: unknown[] = []
  const auth = (info: object) => {
    asked.push(info)
    return { authorization: 'Bearer new' }
  }
  const { port } = await listen(http(home.url, { auth }))
  expect(told(await ask(port, { body: initialize(1) })).body).toEqual(error(1, 'HTTP 307 to another origin'))
  // What it names is told to the function, and fetched by nobody.
  expect(asked).toEqual([{ status: 401, wwwAuthenticate: `Bearer resource_metadata="${other.url.href}"` }])
  expect([home.seen.length, other.seen.length]).toEqual([2, 0])
})
