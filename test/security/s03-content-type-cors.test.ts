import { type AdmitRequest, define } from 'open-mcp-proxy'
import { describe, expect, test, vi } from 'vitest'
import {
  type Asked,
  ask,
  denied,
  initialize,
  invalidRequest,
  lines,
  listen,
  modern,
  open,
  ours,
  type Reply,
  raw,
  server,
  session,
  sse,
  told,
} from './helpers.js'

const cors = ({ headers }: Pick<Reply, 'headers'>) =>
  Object.fromEntries(Object.entries(headers).filter(([name]) => name.startsWith('access-control') || name === 'vary'))

describe('Content-Type', () => {
  const bad = [
    'text/plain',
    'text/plain;charset=UTF-8',
    'text/plain; application/json',
    'text/plain;application/json',
    'text/plain, application/json',
    'application/json, text/plain',
    'application/json,application/json',
    'multipart/form-data',
    'multipart/form-data; boundary=application/json',
    'application/x-www-form-urlencoded',
    'application/x-www-form-urlencoded; application/json',
    'application/json-seq',
    'application/jsonp',
    'application/json+x',
    'application/vnd.api+json',
    'application/problem+json',
    'application/javascript',
    'application',
    'application/',
    '/json',
    'json',
    'text/json',
    'text/html',
    'application/*',
    '*/*',
    'application /json',
    'application/ json',
    '"application/json"',
    'null',
    ';application/json',
    ' ',
    '',
  ]
  const good = [
    'application/json',
    'application/json; charset=utf-8',
    'application/json;charset="UTF-8"',
    'APPLICATION/JSON',
    'Application/Json ; x=y',
    'application/json;',
  ]
  const rest = ['Host: localhost', 'Accept: application/json, text/event-stream']

  async function routes() {
    const upstream = server()
    const { port } = await listen(upstream.open)
    const stream = await sse(port)
    const id = await session(port)
    await vi.waitFor(() => expect(upstream.heard()).toHaveLength(1))
    const ping = { jsonrpc: '2.0', id: 1, method: 'ping' }
    const call = modern(1, 'ping')
    const head = (headers: Record<string, string>) =>
      Object.entries(headers)
        .filter(([name]) => name.startsWith('mcp-'))
        .map(([name, value]) => `${name}: ${value}`)
    const asks: Record<string, (type: string[]) => Promise<{ status: number; body: string }>> = {
      'a handshake': (type) => post('/mcp', [], type, initialize(1)),
      'a session': (type) => post('/mcp', [`Mcp-Session-Id: ${id}`], type, ping),
      'a modern request': (type) => post('/mcp', head(call.headers), type, call.body),
      'HTTP+SSE': (type) => post(stream.endpoint, [], type, ping),
    }
    const post = (path: string, more: string[], type: string[], body: object) => {
      const text = JSON.stringify(body)
      return raw(port, lines('POST', path, [...rest, ...more, ...type, `Content-Length: ${text.length}`], text))
    }
    return { upstream, asks, port }
  }

  test.each(['a handshake', 'a session', 'a modern request', 'HTTP+SSE'])(
    'anything but application/json is a 415, unread: %s',
    async (name) => {
      const { upstream, asks } = await routes()
      const found: Record<string, unknown> = {}
      for (const type of bad) found[type] = told(await asks[name]!([`Content-Type: ${type}`]))
      found.none = told(await asks[name]!([]))
      const expected = { status: 415, body: invalidRequest('expected Content-Type application/json') }
      expect(found).toEqual(Object.fromEntries([...bad, 'none'].map((type) => [type, expected])))
      expect(upstream.heard()).toEqual([JSON.stringify(initialize())])
    },
  )

  test.each(['a handshake', 'a session', 'a modern request', 'HTTP+SSE'])(
    'application/json is taken: %s',
    async (name) => {
      const { asks } = await routes()
      const found: Record<string, number> = {}
      for (const type of good) found[type] = (await asks[name]!([`Content-Type: ${type}`])).status
      const expected = name === 'HTTP+SSE' ? 202 : 200
      expect(found).toEqual(Object.fromEntries(good.map((type) => [type, expected])))
    },
  )

  test('what is no white space of HTTP belongs to the type', async () => {
    const { asks, upstream } = await routes()
    for (const type of ['application/json\u00a0', '\u00a0application/json', 'application/json\u0085']) {
      const got = await asks['a handshake']!([`Content-Type: ${type}`])
      expect(told(got)).toEqual({ status: 415, body: invalidRequest('expected Content-Type application/json') })
    }
    expect(upstream.heard()).toEqual([JSON.stringify(initialize())])
  })

  test('what a form of a web page can send is not read', async () => {
    const { port, upstream } = await routes()
    const forms: Asked[] = [
      {
        headers: {
          'content-type': 'text/plain',
          accept: '*/*',
          'sec-fetch-site': 'cross-site',
          'sec-fetch-mode': 'no-cors',
        },
        body: `${JSON.stringify(initialize(1)).slice(0, -1)},"=":"x"}`,
      },
      {
        headers: { 'content-type': 'application/x-www-form-urlencoded', accept: 'text/html,*/*' },
        body: JSON.stringify(initialize(1)),
      },
    ]
    for (const form of forms) expect((await ask(port, form)).status).toBe(415)
    expect(upstream.heard()).toEqual([JSON.stringify(initialize())])
  })
})

describe('Accept', () => {
  const post = invalidRequest('expected Accept with application/json and text/event-stream')
  const get = invalidRequest('expected Accept with text/event-stream')

  test.each([
    'application/json',
    'text/event-stream',
    'text/html',
    'text/*',
    'application/*',
    'application/json;q=1',
    'application/jsonx, text/event-streamx',
    'x/application/json, y/text/event-stream',
    'null',
    '',
  ])('%j is a 406 for a POST', async (accept) => {
    const upstream = server()
    const { port } = await listen(upstream.open)
    for (const asked of [{ headers: ours, body: initialize(1) }, modern(1, 'ping')]) {
      const reply = await ask(port, { ...asked, headers: { ...asked.headers, accept } })
      expect(told(reply)).toEqual({ status: 406, body: post })
    }
    expect(upstream.wires).toEqual([])
  })

  test.each(['application/json', 'text/html', 'application/*', ''])('%j is a 406 for a stream', async (accept) => {
    const upstream = server()
    const { port } = await listen(upstream.open)
    for (const path of ['/mcp', '/sse']) {
      expect(told(await ask(port, { method: 'GET', path, headers: { accept } }))).toEqual({ status: 406, body: get })
    }
    expect(upstream.wires).toEqual([])
  })

  test.each([
    'application/json, text/event-stream',
    'text/event-stream,application/json;q=0.9',
    'Application/JSON , Text/Event-Stream',
    'application/*, text/*',
    'text/html, */*;q=0.1',
  ])('%j is taken', async (accept) => {
    const { port } = await listen(server().open)
    expect((await ask(port, { headers: { ...ours, accept }, body: initialize(1) })).status).toBe(200)
  })
})

/** Every kind of answer. */
async function answers(port: number, headers: Record<string, string>): Promise<Record<string, Reply>> {
  const get = { accept: 'text/event-stream' }
  const id = await session(port, headers)
  const stream = await open(port, { method: 'GET', headers: { ...headers, ...get, 'mcp-session-id': id } })
  const old = await sse(port, headers)
  const call = modern(1, 'ping')
  const preflight = {
    ...headers,
    'access-control-request-method': 'POST',
    'access-control-request-headers': 'content-type',
  }
  return {
    'a handshake': await ask(port, { headers: { ...ours, ...headers }, body: initialize(1) }),
    'a modern answer': await ask(port, { ...call, headers: { ...call.headers, ...headers } }),
    'a stream': { ...stream.reply, body: '' },
    'a stream of HTTP+SSE': { ...old.reply, body: '' },
    'a message of HTTP+SSE': await ask(port, {
      path: old.endpoint,
      headers: { ...ours, ...headers },
      body: initialize(1),
    }),
    health: await ask(port, { method: 'GET', path: '/healthz', headers }),
    'an unknown route': await ask(port, { method: 'GET', path: '/unknown', headers }),
    'a wrong method': await ask(port, { method: 'PUT', headers }),
    'a wrong type': await ask(port, { headers: { ...headers, 'content-type': 'text/plain' }, body: 'x' }),
    'no JSON': await ask(port, { headers: { ...ours, ...headers }, body: '{' }),
    'an unknown session': await ask(port, {
      headers: { ...ours, ...headers, 'mcp-session-id': 'x' },
      body: initialize(1),
    }),
    'the end of a session': await ask(port, { method: 'DELETE', headers: { ...headers, 'mcp-session-id': id } }),
    'a preflight': await ask(port, { method: 'OPTIONS', headers: preflight }),
    'OPTIONS alone': await ask(port, { method: 'OPTIONS', headers }),
  }
}

const kept = (found: Record<string, Reply>) =>
  Object.fromEntries(Object.entries(found).map(([name, reply]) => [name, cors(reply)]))
const all = <T>(found: Record<string, unknown>, value: T) =>
  Object.fromEntries(Object.keys(found).map((name) => [name, value]))

describe('CORS', () => {
  const app = 'https://app.example.com'

  test('there is none by default, not even for pages of this machine', async () => {
    for (const origin of [undefined, 'http://localhost:6274', 'http://127.0.0.1']) {
      const { port } = await listen(server().open)
      const found = await answers(port, origin === undefined ? {} : { origin })
      expect(kept(found)).toEqual(all(found, {}))
      expect(found['a preflight']!.status).toBe(405)
    }
  })

  test('there is none for pages of this machine where others are allowed', async () => {
    const { port } = await listen(server().open, { allowOrigins: [app] })
    for (const headers of [{}, { origin: 'http://localhost:6274' }] as Record<string, string>[]) {
      const found = await answers(port, headers)
      expect(kept(found)).toEqual(all(found, {}))
      expect(found['a preflight']!.status).toBe(405)
    }
  })

  test('an origin that is allowed, and no other, may read every answer', async () => {
    const { port } = await listen(server().open, { allowOrigins: [app, 'http://other.example'] })
    for (const origin of [app, 'http://other.example']) {
      const found = await answers(port, { origin })
      const shared = {
        'access-control-allow-origin': origin,
        'access-control-expose-headers': 'Mcp-Session-Id, MCP-Protocol-Version, WWW-Authenticate, Retry-After',
        vary: 'Origin',
      }
      const preflight = {
        ...shared,
        'access-control-allow-methods': 'GET, POST, DELETE',
        'access-control-allow-headers': 'content-type',
        'access-control-max-age': '600',
      }
      expect(kept(found)).toEqual({ ...all(found, shared), 'a preflight': preflight })
      const { date: _, ...headers } = found['a preflight']!.headers
      expect({ ...found['a preflight'], headers }).toEqual({
        status: 204,
        headers: { ...preflight, connection: 'close' },
        body: '',
      })
    }
  })

  test('never lets cookies along, nor everybody', async () => {
    const { port } = await listen(server().open, { allowOrigins: [app] })
    for (const origin of [app, 'https://evil.example', 'null']) {
      const headers: Record<string, string> = {
        origin,
        cookie: 'a=b',
        'access-control-request-method': 'POST',
        'access-control-request-private-network': 'true',
        'access-control-request-local-network': 'true',
      }
      for (const method of ['OPTIONS', 'GET']) {
        const reply = await ask(port, { method, path: '/healthz', headers })
        expect(Object.keys(reply.headers).filter((it) => /credentials|private-network|local-network/.test(it))).toEqual(
          [],
        )
        expect(Object.values(cors(reply))).not.toContain('*')
      }
    }
  })

  test('of what the upstream says there is none', async () => {
    const upstream = server(() => undefined)
    const { port } = await listen(upstream.open, { allowOrigins: [app] })
    const call = modern(1, 'ping')
    for (const [origin, expected] of [
      [app, app],
      ['http://localhost', undefined],
    ] as const) {
      const asked = ask(port, { ...call, headers: { ...call.headers, origin } })
      await vi.waitFor(() => expect(upstream.wires.at(-1)?.sent).toHaveLength(1))
      const headers = {
        'content-type': 'application/json',
        'access-control-allow-origin': '*',
        'access-control-allow-credentials': 'true',
      }
      upstream.wires.at(-1)!.say({ id: 1, result: {} }, { relatedRequestId: 1, status: 200, headers })
      const reply = await asked
      expect(reply.headers['access-control-allow-origin']).toBe(expected)
      expect(reply.headers['access-control-allow-credentials']).toBeUndefined()
      upstream.wires.pop()
    }
  })
})

describe('a preflight', () => {
  const app = 'https://app.example.com'
  const asking = {
    'access-control-request-method': 'POST',
    'access-control-request-headers': 'authorization,content-type',
  }
  const paths = ['/mcp', '/sse', '/messages', '/messages?sessionId=x', '/healthz']

  async function guarded() {
    const upstream = server()
    const admit = vi.fn((_: AdmitRequest) => ({ principal: 'a' }))
    const proxy = await listen(upstream.open, { allowOrigins: [app], token: 'a-token', maxSessions: 1 }, (it) =>
      it.use(define({ admit }, (_ctx, next) => next())),
    )
    return { ...proxy, upstream, admit }
  }

  test.each(paths)('makes nothing and asks nobody, with or without credentials: %s', async (path) => {
    const { port, upstream, admit, app: proxy } = await guarded()
    for (const authorization of [undefined, 'Bearer wrong', 'Bearer a-token']) {
      const headers = { origin: app, ...asking, ...(authorization !== undefined && { authorization }) }
      const reply = await ask(port, { method: 'OPTIONS', path, headers })
      expect([reply.status, reply.body]).toEqual([204, ''])
      expect(reply.headers['mcp-session-id']).toBeUndefined()
    }
    expect(upstream.wires).toEqual([])
    expect(admit).not.toHaveBeenCalled()
    expect(proxy.stats().sessions).toBe(0)
  })

  test.each(paths)('of an origin that is not allowed is a 403 without CORS: %s', async (path) => {
    const { port, upstream } = await guarded()
    for (const origin of ['https://evil.example', 'null', `${app}.evil.example`, 'http://app.example.com', '']) {
      const reply = await ask(port, { method: 'OPTIONS', path, headers: { origin, ...asking } })
      expect(told(reply)).toEqual({ status: 403, body: denied('this Origin is not allowed') })
      expect(cors(reply)).toEqual({})
    }
    expect(upstream.wires).toEqual([])
  })

  test('opens no door: what follows needs the token, and a refusal can be read', async () => {
    const { port, upstream } = await guarded()
    await ask(port, { method: 'OPTIONS', headers: { origin: app, ...asking } })
    const reply = await ask(port, { headers: { ...ours, origin: app }, body: initialize(1) })
    expect(told(reply)).toEqual({ status: 401, body: denied('expected a bearer token') })
    expect(reply.headers).toMatchObject({ 'www-authenticate': 'Bearer', 'access-control-allow-origin': app })
    expect(upstream.wires).toEqual([])
  })

  test('cannot dress up as another request', async () => {
    const { port, upstream } = await guarded()
    for (const method of ['POST', 'GET', 'DELETE']) {
      const headers = { ...ours, origin: app, ...asking, 'x-http-method-override': 'OPTIONS' }
      expect((await ask(port, { method, headers, body: initialize(1) })).status).toBe(401)
    }
    // A body behind OPTIONS is none of a message.
    const reply = await ask(port, {
      method: 'OPTIONS',
      headers: { ...ours, origin: app, ...asking },
      body: initialize(1),
    })
    expect(reply.status).toBe(204)
    expect(upstream.wires).toEqual([])
  })

  test('gets no more headers than it asked for, whatever those are', async () => {
    const { port } = await guarded()
    const odd = ['*', 'a'.repeat(1_000), 'a, b', 'x;y', '\u00e9', '__proto__', 'a\tb']
    for (const asked of odd) {
      const text = lines('OPTIONS', '/mcp', [
        'Host: localhost',
        `Origin: ${app}`,
        'Access-Control-Request-Method: POST',
        `Access-Control-Request-Headers: ${asked}`,
      ])
      const { status, head } = await raw(port, text)
      expect(status).toBe(204)
      expect(head.split('\r\n').filter((line) => /^(access-control-allow-headers|set-cookie|x-)/i.test(line))).toEqual([
        `access-control-allow-headers: ${asked}`,
      ])
    }
  })
})
