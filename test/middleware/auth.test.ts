import { createHash } from 'node:crypto'
import {
  discoverOAuthProtectedResourceMetadata,
  extractWWWAuthenticateParams,
} from '@modelcontextprotocol/sdk/client/auth.js'
import express from 'express'
import { type AdmitRequest, type Context, createProxy, type Definition, define, type Middleware } from 'open-mcp-proxy'
import { testProxy } from 'open-mcp-proxy/testing'
import { describe, expect, test, vi } from 'vitest'
import { type AuthOptions, auth, type User } from '../../middleware/auth.js'
import { closing } from '../fixtures/closing.js'
import { host } from '../fixtures/http-target.js'
import { AUDIENCE, bearer, issuer, signingKey } from '../fixtures/issuer.js'
import { HandWire } from '../fixtures/played.js'
import { ask, call, get, modernPost, onPort, openSession } from '../fixtures/port.js'

const hash = (key: string) => createHash('sha256').update(key).digest('hex')
const tokens = [
  { token: 'token-of-ada', id: 'ada', scopes: ['read', 'write'] },
  { token: 'token-of-bob', id: 'bob', scopes: ['read'] },
]
const denied = {
  code: -31006,
  message: 'Denied: not authenticated',
  data: { source: 'proxy', reason: 'denied', phase: 'not_sent', retryable: false },
}
const invalid = 'Bearer error="invalid_token", error_description="The token is not valid"'

interface Seen {
  user?: User
  from: string
  method?: string
  kind: string
}

/** Takes note of who sent what passes its place. */
function noting() {
  const seen: Seen[] = []
  const note: Middleware<{ user: User }> = (ctx, next) => {
    const { from, method, kind } = ctx
    seen.push({ from, kind, ...(method !== undefined && { method }), ...(ctx.state.user && { user: ctx.state.user }) })
    return next()
  }
  return { seen, note }
}

async function guarded(options: AuthOptions, ...before: Middleware[]) {
  const { seen, note } = noting()
  const port = await onPort({}, (app) => app.use(...before, auth(options) as Middleware, note as Middleware))
  return { ...port, seen }
}

/** How a request without a session fares: 400 is what it gets that was let in. */
async function tried(url: string, headers: Record<string, string>) {
  const answer = await get(url, headers)
  await answer.text
  return { status: answer.status, challenge: answer.headers.get('www-authenticate') }
}

const LET_IN = { status: 400, challenge: null }
const admitOf = (it: unknown) => (it as Definition).admit!

describe('fixed tokens', () => {
  test('tell who it is, in the session and with each message', async () => {
    const port = await guarded({ tokens })
    const client = await openSession(port, '2025-11-25', bearer('token-of-ada'))
    expect(client.session.principal).toBe('ada')
    expect(port.seen.map(({ kind, from, method, user }) => [kind, from, method, user?.id])).toEqual([
      ['request', 'client', 'initialize', 'ada'],
      ['response', 'server', 'initialize', 'ada'],
      ['notification', 'client', 'notifications/initialized', 'ada'],
    ])
    expect(port.seen[0]?.user).toEqual({ id: 'ada', scopes: ['read', 'write'] })
    expect(Object.isFrozen(port.seen[0]?.user)).toBe(true)
    expect(Object.isFrozen(port.seen[0]?.user?.scopes)).toBe(true)
  })

  test("are known for the server's own messages, before its place, and the client's answers, behind it", async () => {
    const before = noting()
    const port = await guarded({ tokens }, before.note as Middleware)
    const client = await openSession(port, '2025-11-25', bearer('token-of-ada'))
    const stream = await client.get()
    before.seen.length = port.seen.length = 0
    client.wire.say({ id: 's', method: 'roots/list' })
    client.wire.say({ method: 'notifications/tools/list_changed' })
    expect(await stream.until(2)).toHaveLength(2)
    await client.post({ jsonrpc: '2.0', id: 's', result: { roots: [] } })
    expect(await client.sent(1)).toEqual([{ id: 's', result: { roots: [] } }])
    expect(before.seen.map(({ kind, from, user }) => [kind, from, user?.id])).toEqual([
      ['request', 'server', 'ada'],
      ['notification', 'server', 'ada'],
      ['response', 'client', 'ada'],
    ])
    expect(port.seen.map(({ user }) => user?.id)).toEqual([undefined, undefined, 'ada'])
  })

  test('of one do not open the session of another', async () => {
    const port = await guarded({ tokens })
    const client = await openSession(port, '2025-11-25', bearer('token-of-ada'))
    const answers = await Promise.all([
      client.post({ jsonrpc: '2.0', id: 1, method: 'ping' }, bearer('token-of-bob')),
      client.get(bearer('token-of-bob')),
      ask(port.url, { method: 'DELETE', headers: { ...client.headers, ...bearer('token-of-bob') } }),
    ])
    expect(answers.map(({ status }) => status)).toEqual([404, 404, 404])
    expect(client.wire.sent).toEqual([])
  })

  test.each<[string, Record<string, string>, object]>([
    ['any case', { authorization: 'bEARER token-of-ada' }, LET_IN],
    ['several spaces', { authorization: 'Bearer    token-of-ada' }, LET_IN],
    ['nothing', {}, { status: 401, challenge: 'Bearer' }],
    ['another scheme', { authorization: 'Basic dG9rZW4tb2YtYWRh' }, { status: 401, challenge: 'Bearer' }],
    ['a scheme that begins alike', { authorization: 'BearerX token-of-ada' }, { status: 401, challenge: 'Bearer' }],
    ['no token', { authorization: 'Bearer' }, { status: 401, challenge: invalid }],
    ['an unknown one', { authorization: 'Bearer token-of-eve' }, { status: 401, challenge: invalid }],
    ['part of one', { authorization: 'Bearer token-of-ad' }, { status: 401, challenge: invalid }],
    ['two', { authorization: 'Bearer token-of-ada token-of-ada' }, { status: 401, challenge: invalid }],
    ['two with a comma', { authorization: 'Bearer token-of-ada, Bearer x' }, { status: 401, challenge: invalid }],
    ['other letters', { authorization: 'Bearer token-of-ad\u00e4' }, { status: 401, challenge: invalid }],
    ['15,000 characters', { authorization: `Bearer ${'a'.repeat(15_000)}` }, { status: 401, challenge: invalid }],
    ['20,000 characters', { authorization: `Bearer ${'a'.repeat(20_000)}` }, { status: 431, challenge: null }],
    ['a key where none is taken', { 'x-api-key': 'token-of-ada' }, { status: 401, challenge: 'Bearer' }],
  ])('%s', async (_name, headers, outcome) => {
    const { url, upstreams } = await guarded({ tokens })
    expect(await tried(url, headers)).toEqual(outcome)
    expect(upstreams).toEqual([])
  })
})

describe('API keys', () => {
  const apiKeys = [
    { hash: hash('key-1'), id: 'robot' },
    { hash: hash('key-2').toUpperCase(), id: 'other', scopes: ['read'] },
  ]

  test.each<[string, AuthOptions, Record<string, string>, object]>([
    ['in their header', { apiKeys }, { 'x-api-key': 'key-1' }, LET_IN],
    ['as a bearer token', { apiKeys }, bearer('key-2'), LET_IN],
    ['in a header of another name', { apiKeys, apiKeyHeader: 'X-Key' }, { 'x-key': 'key-2' }, LET_IN],
    ['an unknown one', { apiKeys }, { 'x-api-key': 'key-3' }, { status: 401, challenge: invalid }],
    ['the hash itself', { apiKeys }, { 'x-api-key': hash('key-1') }, { status: 401, challenge: invalid }],
    ['an empty one', { apiKeys }, { 'x-api-key': '' }, { status: 401, challenge: invalid }],
    ['a fixed token in it', { apiKeys, tokens }, { 'x-api-key': 'token-of-ada' }, LET_IN],
    [
      'beside Authorization',
      { apiKeys, tokens },
      { 'x-api-key': 'key-1', ...bearer('token-of-ada') },
      { status: 400, challenge: 'Bearer error="invalid_request", error_description="Expected one credential"' },
    ],
  ])('%s', async (_name, options, headers, outcome) => {
    expect(await tried((await guarded(options)).url, headers)).toEqual(outcome)
  })
})

describe('a function', () => {
  test('knows what nothing else knows, last', async () => {
    const asked: string[] = []
    const { url } = await guarded({
      tokens,
      verify: async (token, request) => {
        asked.push(`${token} ${request.method}`)
        return token === 'opaque' ? { id: 'eve', claims: { team: 'x' } } : undefined
      },
    })
    expect(await tried(url, bearer('token-of-ada'))).toEqual(LET_IN)
    expect(await tried(url, bearer('opaque'))).toEqual(LET_IN)
    expect(await tried(url, bearer('nothing'))).toEqual({ status: 401, challenge: invalid })
    expect(asked).toEqual(['opaque GET', 'nothing GET'])
  })

  test('may tell when a token ends', async () => {
    const { url } = await guarded({ verify: () => ({ id: 'eve', expiresAt: Date.now() / 1_000 - 1 }) })
    expect(await tried(url, bearer('x'))).toEqual({
      status: 401,
      challenge: 'Bearer error="invalid_token", error_description="The token has expired"',
    })
  })

  test.each<[string, NonNullable<AuthOptions['verify']>, string]>([
    ['gives nobody', () => ({}) as never, 'auth: expected what verify gives to have an id, got undefined'],
    ['gives a text', () => 'ada' as never, 'auth: expected what verify gives to have an id, got undefined'],
    [
      'throws',
      () => {
        throw new Error('the database is gone')
      },
      'the database is gone',
    ],
  ])('that %s is no fault of the client', async (_name, verify, error) => {
    const { url, errors } = await guarded({ verify })
    expect((await tried(url, bearer('x'))).status).toBe(500)
    expect(errors).toEqual([error])
  })
})

describe('scopes', () => {
  test('that everybody needs', async () => {
    const resource = { url: AUDIENCE, authorizationServers: ['https://id.example.com'] }
    const { url } = await guarded({ tokens, scopes: ['read', 'write'], resource })
    const metadata = 'resource_metadata="https://mcp.example.com/.well-known/oauth-protected-resource/mcp"'
    expect(await tried(url, bearer('token-of-ada'))).toEqual(LET_IN)
    expect(await tried(url, bearer('token-of-bob'))).toEqual({
      status: 403,
      challenge: `Bearer error="insufficient_scope", scope="read write", ${metadata}`,
    })
    expect(await tried(url, {})).toEqual({ status: 401, challenge: `Bearer scope="read write", ${metadata}` })
  })
})

describe('JSON Web Tokens', () => {
  const of = (it: { url: string; jwksUri: string }) => ({ issuer: it.url, audience: AUDIENCE, jwksUri: it.jwksUri })

  test('tell who it is and what they say; the token is nowhere', async () => {
    const from = await issuer()
    const port = await guarded({ jwt: of(from) })
    const token = await from.sign({ scope: 'read write', __proto__: null, constructor: 'x', exp: 4_000_000_000 })
    const contexts: Context[] = []
    port.app.use((ctx: Context, next) => {
      contexts.push(ctx)
      return next()
    })
    const { session } = await openSession(port, '2025-11-25', bearer(token))
    const { user } = port.seen[0]!
    expect(session.principal).toBe('ada')
    expect(user).toMatchObject({ id: 'ada', scopes: ['read', 'write'], expiresAt: 4_000_000_000 })
    expect(user?.claims).toMatchObject({ iss: from.url, aud: AUDIENCE, sub: 'ada', constructor: 'x' })
    const { state, extra } = contexts[0]!
    for (const it of [state, extra.authInfo]) expect(JSON.stringify(it)).not.toContain(token.split('.')[2])
  })

  test.each<[string, object, object, string[]]>([
    ['a string', { scope: 'a b' }, {}, ['a', 'b']],
    ['scp, an array', { scp: ['a', 'b'] }, {}, ['a', 'b']],
    ['scp, a string', { scp: 'a b' }, {}, ['a', 'b']],
    ['scope before scp', { scope: 'a', scp: ['b'] }, {}, ['a']],
    ['another claim', { scope: 'a', permissions: ['b'] }, { scopeClaim: 'permissions' }, ['b']],
    ['what is none', { scope: ['a', 1, null, 'b"', ''] }, {}, ['a']],
    ['a number', { scope: 1 }, {}, []],
    ['a claim of everybody', {}, { scopeClaim: 'constructor' }, []],
  ])('scopes: %s', async (_name, claims, more, scopes) => {
    const from = await issuer()
    const admission = await admitOf(auth({ jwt: { ...of(from), ...more } }))(
      headed(bearer(await from.sign({ ...claims }))),
    )
    expect(admission).toMatchObject({ principal: 'ada', authInfo: { scopes } })
  })

  test('another subject, and a type', async () => {
    const from = await issuer()
    const { url } = await guarded({ jwt: { ...of(from), subjectClaim: 'client_id', typ: 'at+jwt' } })
    const claims = { sub: undefined, client_id: 'app' }
    expect(await tried(url, bearer(await from.sign(claims, { header: { typ: 'at+jwt' } })))).toEqual(LET_IN)
    expect(await tried(url, bearer(await from.sign(claims)))).toEqual({ status: 401, challenge: invalid })
    const other = await from.sign({}, { header: { typ: 'at+jwt' } })
    expect(await tried(url, bearer(other))).toEqual({ status: 401, challenge: invalid })
  })

  test('by keys of the configuration, and by a secret', async () => {
    const from = await issuer()
    const jwks = { keys: [from.key.jwk] }
    const { url } = await guarded({ jwt: { issuer: from.url, audience: ['https://x.example', AUDIENCE], jwks } })
    expect(await tried(url, bearer(await from.sign()))).toEqual(LET_IN)
    expect(from.state.asked).toBe(0)
    const secret = 's'.repeat(32)
    const by = { kid: 'x', jwk: { alg: 'HS256' } as never, privateKey: Buffer.from(secret) as never }
    const second = await guarded({ jwt: { issuer: from.url, audience: AUDIENCE, secret } })
    expect(await tried(second.url, bearer(await from.sign({}, { by })))).toEqual(LET_IN)
    expect(await tried(second.url, bearer(await from.sign()))).toEqual({ status: 401, challenge: invalid })
  })

  test('a key that is new is found once the cooldown is over', async () => {
    const from = await issuer()
    const { url } = await guarded({ jwt: { ...of(from), cooldown: 200 } })
    expect(await tried(url, bearer(await from.sign()))).toEqual(LET_IN)
    const by = await signingKey('second')
    from.state.keys = [by.jwk]
    const token = await from.sign({}, { by })
    await vi.waitFor(async () => expect(await tried(url, bearer(token))).toEqual(LET_IN), { timeout: 5_000 })
    expect(from.state.asked).toBe(2)
    expect(await tried(url, bearer(await from.sign()))).toEqual({ status: 401, challenge: invalid })
  })

  test('that end in the middle of a session are a 401 from then on', async () => {
    const from = await issuer()
    const port = await guarded({ jwt: { ...of(from), clockTolerance: 0 } })
    const exp = Math.floor(Date.now() / 1_000) + 2
    const client = await openSession(port, '2025-11-25', bearer(await from.sign({ exp })))
    const ping = { jsonrpc: '2.0', method: 'notifications/x' }
    expect((await client.post(ping)).status).toBe(202)
    await vi.waitFor(async () => expect((await client.post(ping)).status).toBe(401), { timeout: 5_000, interval: 100 })
    expect((await client.post(ping)).headers.get('www-authenticate')).toBe(
      'Bearer error="invalid_token", error_description="The token has expired"',
    )
    expect((await client.post(ping, bearer(await from.sign()))).status).toBe(202)
    expect((await client.post(ping, bearer(await from.sign({ sub: 'bob' })))).status).toBe(404)
  })
})

describe('the metadata of RFC 9728', () => {
  const resource = {
    url: 'https://mcp.example.com/tools/mcp',
    authorizationServers: ['https://id.example.com'],
    scopesSupported: ['read'],
    name: 'Tools',
    documentation: 'https://example.com/docs',
  }
  const document = {
    resource: 'https://mcp.example.com/tools/mcp',
    authorization_servers: ['https://id.example.com'],
    scopes_supported: ['read'],
    bearer_methods_supported: ['header'],
    resource_name: 'Tools',
    resource_documentation: 'https://example.com/docs',
  }
  const root = '/.well-known/oauth-protected-resource'

  test('is read by anybody, at two paths; other methods are told which', async () => {
    const { origin, upstreams } = await guarded({ tokens, resource })
    for (const path of [root, `${root}/tools/mcp`, `${root}?a`]) {
      const answer = await ask(origin + path)
      expect([answer.status, answer.headers.get('content-type')]).toEqual([200, 'application/json'])
      expect(await answer.json()).toEqual(document)
    }
    const others = ['HEAD', 'POST', 'OPTIONS', 'DELETE'].map((method) => ask(origin + root, { method }))
    const answers = await Promise.all(others)
    expect(answers.map(({ status, headers }) => [status, headers.get('allow')])).toEqual([
      [200, null],
      [405, 'GET, HEAD'],
      [405, 'GET, HEAD'],
      [405, 'GET, HEAD'],
    ])
    for (const path of [`${root}/`, `${root}/tools`, `${root}/tools/mcp/`]) {
      expect((await ask(origin + path)).status).toBe(404)
    }
    expect(upstreams).toEqual([])
  })

  test('is not there where no resource is named', async () => {
    const { origin } = await guarded({ tokens })
    expect((await ask(origin + root)).status).toBe(404)
  })

  test("is found by the SDK's client, also where Express has it", async () => {
    const app = express()
    const { origin } = (await host(app)).url('')
    const own = { ...resource, url: `${origin}/mcp` }
    const proxy = createProxy().use(auth({ tokens, resource: own }))
    closing.push(() => proxy.close({ urgent: true }))
    app.use(proxy.handler(() => new HandWire()))
    app.get('/', (_request, response) => void response.send('Home'))
    const response = await fetch(own.url, { method: 'POST' })
    const { resourceMetadataUrl } = extractWWWAuthenticateParams(response)
    expect(response.status).toBe(401)
    expect(resourceMetadataUrl?.href).toBe(`${origin}${root}/mcp`)
    const found = { ...document, resource: own.url }
    expect(await discoverOAuthProtectedResourceMetadata(own.url, { resourceMetadataUrl })).toEqual(found)
    expect(await discoverOAuthProtectedResourceMetadata(own.url)).toEqual(found)
    expect(await (await fetch(origin)).text()).toBe('Home')
  })
})

describe('who is on no port', () => {
  const request = { id: 1, method: 'tools/list' }

  test('is refused, and what wants no answer vanishes', async () => {
    const proxy = testProxy(createProxy().use(auth({ tokens })))
    expect(await proxy.fromClient(request)).toEqual({
      toClient: [{ jsonrpc: '2.0', id: 1, error: denied }],
      toServer: [],
    })
    expect(await proxy.fromClient({ method: 'notifications/initialized' })).toEqual({ toClient: [], toServer: [] })
    expect(await proxy.fromServer({ method: 'notifications/message' })).toEqual({ toClient: [], toServer: [] })
    expect(await proxy.fromServer({ id: 's', method: 'ping' })).toEqual({
      toClient: [],
      toServer: [{ jsonrpc: '2.0', id: 's', error: denied }],
    })
  })

  test('is whom `local` names', async () => {
    const { seen, note } = noting()
    const app = createProxy().use(auth({ local: { id: 'me', scopes: ['all'] } }), note)
    const proxy = testProxy(app as never)
    expect((await proxy.fromClient(request)).toServer).toHaveLength(1)
    expect((await proxy.fromServer({ id: 1, result: {} })).toClient).toHaveLength(1)
    expect((await proxy.fromServer({ method: 'notifications/x' })).toClient).toHaveLength(1)
    // What the server says by itself has not passed `auth` here.
    const me = { id: 'me', scopes: ['all'] }
    expect(seen.map(({ user }) => user)).toEqual([me, me, undefined])
  })

  test('needs the scopes that everybody needs', async () => {
    const proxy = testProxy(createProxy().use(auth({ local: { id: 'me' }, scopes: ['all'] })) as never)
    expect((await proxy.fromClient(request)).toClient).toEqual([{ jsonrpc: '2.0', id: 1, error: denied }])
  })

  test('is nobody for what another one says of it', async () => {
    const options = { tokens, local: { id: 'me' } }
    const stranger = await admitOf(auth(options))(headed(bearer('token-of-ada')))
    const proxy = testProxy(createProxy().use(auth(options)) as never)
    const foreign = [
      { authInfo: { id: 'ada', scopes: [] } },
      { authInfo: 'ada' },
      { authInfo: (stranger as { authInfo: unknown }).authInfo },
      { headers: {} },
      { headers: bearer('token-of-ada') },
    ]
    for (const meta of foreign) {
      expect((await proxy.fromClient(request, meta)).toClient).toEqual([{ jsonrpc: '2.0', id: 1, error: denied }])
      expect(await proxy.fromClient({ method: 'x' }, meta)).toEqual({ toClient: [], toServer: [] })
    }
  })

  test('does not become another one in the middle of a session', async () => {
    const middleware = auth({ tokens })
    const proxy = testProxy(createProxy().use(middleware) as never)
    const [ada, bob] = await Promise.all(
      tokens.map(({ token }) => admitOf(middleware)(headed(bearer(token))) as Promise<{ authInfo: unknown }>),
    )
    expect((await proxy.fromClient(request, ada)).toServer).toHaveLength(1)
    expect((await proxy.fromClient({ ...request, id: 2 }, bob)).toClient).toEqual([
      { jsonrpc: '2.0', id: 2, error: denied },
    ])
  })

  test("may be whom the application joined; the proxy's own messages are that one's", async () => {
    const { seen, note } = noting()
    const app = createProxy().use(auth({ tokens }), note)
    const [client, server] = [new HandWire(), new HandWire()]
    const session = app.connect(client, server, { principal: 'ada' })
    await session.notify('server', 'notifications/x')
    expect(seen.map(({ user }) => user)).toEqual([{ id: 'ada', scopes: [] }])
  })
})

test('one that takes the place of another knows whose sessions are open, and what they lack now', async () => {
  const port = await guarded({ tokens, scopes: ['read'] })
  const client = await openSession(port, '2025-11-25', bearer('token-of-bob'))
  const stream = await client.get()
  const replace = (...scopes: string[]) => port.app.replace(auth({ tokens, scopes }) as Middleware)
  await replace('read')
  client.wire.say({ method: 'notifications/message', params: { level: 'info', data: 1 } })
  client.wire.say({ id: 's', method: 'roots/list' })
  expect(await stream.until(2)).toMatchObject([{ method: 'notifications/message' }, { method: 'roots/list' }])
  await replace('read', 'write')
  client.wire.say({ id: 't', method: 'roots/list' })
  expect(await client.sent(1)).toMatchObject([{ id: 't', error: denied }])
})

test.each([
  ['the same', tokens, undefined],
  ['another', [{ token: 'token-of-ada', id: 'eve' }], denied],
  ['nobody', [{ token: 'other', id: 'ada' }], denied],
])('one that takes the place of another while a request is read looks at its token: %s', async (_name, then, error) => {
  const port = await guarded({ tokens })
  const client = await openSession(port, '2025-11-25', bearer('token-of-ada'))
  let go = () => {}
  const gate = new Promise<void>((resolve) => {
    go = resolve
  })
  const body = new ReadableStream({
    async start(controller) {
      controller.enqueue(Buffer.from('{"jsonrpc":"2.0",'))
      await gate
      controller.enqueue(Buffer.from('"id":5,"method":"ping"}'))
      controller.close()
    },
  })
  const admitting = vi.fn()
  await port.app.replace(
    define({ admit: admitting }, (_ctx, next) => next()),
    auth({ tokens }) as Middleware,
  )
  const headers = {
    'content-type': 'application/json',
    accept: 'application/json, text/event-stream',
    ...client.headers,
  }
  const answer = ask(port.url, { method: 'POST', headers, body, duplex: 'half' } as RequestInit)
  await vi.waitFor(() => expect(admitting).toHaveBeenCalled())
  await new Promise(setImmediate)
  await port.app.replace(auth({ tokens: then }) as Middleware)
  go()
  if (!error) {
    await client.sent(1)
    client.wire.say({ id: 5, result: {} })
  }
  expect(await (await answer).json()).toEqual({ jsonrpc: '2.0', id: 5, ...(error ? { error } : { result: {} }) })
})

describe('in a line', () => {
  test('two: both must let a request in, and the first says who it is', async () => {
    const { seen, note } = noting()
    const first = auth({
      apiKeys: [
        { hash: hash('key'), id: 'gate' },
        { hash: hash('key-2'), id: 'gate-2' },
      ],
    })
    const second = auth({
      verify: (_, { headers }) => (headers['x-user'] ? { id: `${headers['x-user']}` } : undefined),
    })
    const port = await onPort({}, (app) => app.use(first as Middleware, second as Middleware, note as Middleware))
    expect((await tried(port.url, bearer('key'))).status).toBe(401)
    expect((await tried(port.url, { authorization: 'Bearer no', 'x-user': 'ada' })).status).toBe(401)
    const { session } = await openSession(port, '2025-11-25', { ...bearer('key'), 'x-user': 'ada' })
    expect([session.principal, seen[0]?.user?.id]).toEqual(['gate', 'gate'])
  })

  test('behind one that admits everybody: the user is ours, and nobody goes on in the session of another', async () => {
    const gate = define({ admit: () => ({ principal: 'gate', authInfo: { id: 'gate' } }) }, (_ctx, next) => next())
    const port = await guarded({ tokens }, gate as Middleware)
    const client = await openSession(port, '2025-11-25', bearer('token-of-ada'))
    expect([client.session.principal, port.seen[0]?.user?.id]).toEqual(['gate', 'ada'])
    expect(await (await client.post(call(1), bearer('token-of-bob'))).json()).toMatchObject({ id: 1, error: denied })
    expect(client.wire.sent).toEqual([])
  })

  test("put in while sessions are open: they were nobody's and stay so", async () => {
    const port = await onPort()
    const client = await openSession(port)
    const stream = await client.get()
    await port.app.replace(auth({ tokens, local: { id: 'me' } }) as Middleware)
    expect((await client.post(call(1))).status).toBe(401)
    expect((await client.post(call(1), bearer('token-of-ada'))).status).toBe(404)
    const again = await openSession(port, '2025-11-25', bearer('token-of-ada'))
    expect(again.session.principal).toBe('ada')
    stream.leave()
  })

  test('exchanged for a new one: sessions go on, and what is no longer known is a 401', async () => {
    const port = await guarded({ tokens })
    const ada = await openSession(port, '2025-11-25', bearer('token-of-ada'))
    const bob = await openSession(port, '2025-11-25', bearer('token-of-bob'))
    await port.app.replace(auth({ tokens: [tokens[0]!] }) as Middleware)
    const note = { jsonrpc: '2.0', method: 'notifications/x' }
    expect((await ada.post(note)).status).toBe(202)
    expect(await ada.sent(1)).toEqual([{ method: 'notifications/x' }])
    expect((await bob.post(note)).status).toBe(401)
  })

  test("requests of 2026-07-28: each has its own token, and the question for the tools is its user's", async () => {
    const port = await guarded({ tokens })
    const answer = modernPost(port.url, { id: 1, method: 'tools/call', params: { name: 'a' } }, bearer('token-of-ada'))
    const { wire, session } = await port.upstream(0)
    const [list] = await port.sent(wire, 1)
    wire.say({ id: list!.id, result: { tools: [{ name: 'a', inputSchema: { type: 'object' } }] } })
    const [asked] = await port.sent(wire, 1)
    wire.say({ id: asked!.id, result: { content: [] } })
    expect((await answer).status).toBe(200)
    expect(session.principal).toBe('ada')
    expect([list!.method, asked!.method]).toEqual(['tools/list', 'tools/call'])
    expect(port.seen.map(({ method, user }) => [method, user?.id])).toEqual([
      ['tools/list', 'ada'],
      ['tools/list', 'ada'],
      ['tools/call', 'ada'],
      ['tools/call', 'ada'],
    ])
    const refused = await modernPost(port.url, { id: 1, method: 'tools/list' })
    expect(refused.status).toBe(401)
  })
})

describe('options', () => {
  const jwt = { issuer: 'i', audience: 'a', secret: 's'.repeat(32) }
  const jwks = { keys: [{ kty: 'RSA' }] }
  const resource = { url: 'https://a.example/mcp', authorizationServers: ['https://b.example'] }
  const url = 'to be a URL with https, or http on this machine, got something else'
  const scope = 'to be words of visible ASCII without quote and backslash, got something else'

  test.each<[object, string]>([
    [{}, 'tokens, apiKeys, jwt, verify or local, got none of them'],
    [{ tokens: [], apiKeys: [] }, 'tokens, apiKeys, jwt, verify or local, got none of them'],
    [
      { tokens: [{ id: 'a', token: 'a secret' }] },
      'tokens[0].token to be visible ASCII without spaces, got something else',
    ],
    [{ tokens: [{ token: 'x' }] }, 'tokens[0] to have an id, got undefined'],
    [{ tokens: [{ token: 'x', id: '' }] }, 'tokens[0] to have an id, got string'],
    [{ tokens: [{ token: 'x', id: 'a', scopes: ['a b'] }] }, `the scopes of tokens[0] ${scope}`],
    [
      {
        tokens: [
          { token: 'x', id: 'a' },
          { token: 'x', id: 'b' },
        ],
      },
      'tokens to be different ones, got one of them twice',
    ],
    [
      { apiKeys: [{ id: 'a', hash: 'key' }] },
      'apiKeys[0].hash to be a SHA-256 of 64 hexadecimal digits, got something else',
    ],
    [
      { apiKeys: [{ id: 'a', hash: hash('x') }], apiKeyHeader: 'Authorization' },
      'apiKeyHeader to be the name of a header for it alone, got "Authorization"',
    ],
    [
      { apiKeys: [{ id: 'a', hash: hash('x') }], apiKeyHeader: 'a b' },
      'apiKeyHeader to be the name of a header for it alone, got "a b"',
    ],
    [{ verify: 'x' }, 'verify to be a function, got string'],
    [{ local: {} }, 'local to have an id, got undefined'],
    [{ tokens, scopes: ['a"\r\nX: y'] }, `scopes ${scope}`],
    [{ tokens, scopes: 'read' }, `scopes ${scope}`],
    [{ jwt: { ...jwt, issuer: undefined } }, 'jwt.issuer to be a string, got undefined'],
    [{ jwt: { ...jwt, audience: undefined } }, 'jwt.audience to be what tokens for us say in aud, got nothing'],
    [{ jwt: { ...jwt, audience: [] } }, 'jwt.audience to be what tokens for us say in aud, got []'],
    [{ jwt: { ...jwt, secret: undefined } }, 'one of jwt.jwksUri, jwt.jwks and jwt.secret, got none or several'],
    [{ jwt: { ...jwt, jwks } }, 'one of jwt.jwksUri, jwt.jwks and jwt.secret, got none or several'],
    [{ jwt: { ...jwt, secret: 's'.repeat(31) } }, 'jwt.secret to have at least 32 bytes, got 31'],
    [{ jwt: { ...jwt, algorithms: ['HS256', 'HS512'] } }, 'jwt.secret to have at least 64 bytes, got 32'],
    [{ jwt: { ...jwt, algorithms: ['none'] } }, 'jwt.algorithms to be of HS256, HS384, HS512, got ["none"]'],
    [{ jwt: { ...jwt, algorithms: ['RS256'] } }, 'jwt.algorithms to be of HS256, HS384, HS512, got ["RS256"]'],
    [
      { jwt: { ...jwt, secret: undefined, jwks: { keys: [{ kty: 'oct', k: 'x' }] } } },
      'jwt.jwks to be { keys } with public keys, got something else',
    ],
    [
      { jwt: { ...jwt, secret: undefined, jwks: { keys: [{ kty: 'RSA', d: 'x' }] } } },
      'jwt.jwks to be { keys } with public keys, got something else',
    ],
    [{ jwt: { ...jwt, secret: undefined, jwks: {} } }, 'jwt.jwks to be { keys } with public keys, got something else'],
    [{ jwt: { ...jwt, secret: undefined, jwksUri: 'http://id.example.com/jwks' } }, `jwt.jwksUri ${url}`],
    [{ jwt: { ...jwt, secret: undefined, jwksUri: 'https://a:b@id.example.com/jwks' } }, `jwt.jwksUri ${url}`],
    [{ jwt: { ...jwt, clockTolerance: -1 } }, 'jwt.clockTolerance to be a whole number from 0, got -1'],
    [{ jwt: { ...jwt, cooldown: '30s' } }, 'jwt.cooldown to be a whole number from 0, got "30s"'],
    [{ jwt: { ...jwt, typ: 1 } }, 'jwt.typ to be a string, got number'],
    [{ tokens, resource: { ...resource, url: 'mcp' } }, `resource.url ${url}`],
    [
      { tokens, resource: { ...resource, url: 'https://a.example/mcp?x' } },
      'resource.url without query and fragment, got one with',
    ],
    [
      { tokens, resource: { ...resource, authorizationServers: [] } },
      'resource.authorizationServers to have a URL, got none',
    ],
    [{ tokens, resource: { ...resource, authorizationServers: ['x'] } }, `resource.authorizationServers ${url}`],
    [{ tokens, resource: { ...resource, scopesSupported: [''] } }, `resource.scopesSupported ${scope}`],
  ])('%j', (options, text) => {
    expect(() => auth(options as AuthOptions)).toThrow(new TypeError(`auth: expected ${text}`))
  })

  test.each(['HS256', 'none'])('keys of an issuer never go with %s', (alg) => {
    const options = { issuer: 'i', audience: 'a', jwks, algorithms: [alg] }
    expect(() => auth({ jwt: options })).toThrow(TypeError)
  })
})

test('without a listener for errors stderr is told', async () => {
  const from = await issuer()
  const token = await from.sign()
  from.close()
  const said = vi.spyOn(process.stderr, 'write').mockReturnValue(true)
  closing.push(() => said.mockRestore())
  const middleware = auth({ jwt: { issuer: from.url, audience: AUDIENCE, jwksUri: from.jwksUri } })
  expect(await admitOf(middleware)(headed(bearer(token)))).toEqual({ status: 503, headers: { 'retry-after': '5' } })
  expect(said.mock.calls).toEqual([
    [`open-mcp-proxy: auth: the keys at ${from.url} could not be fetched: ECONNREFUSED\n`],
  ])
})

function headed(headers: Record<string, string>): AdmitRequest {
  return { method: 'POST', url: '/mcp', headers }
}
