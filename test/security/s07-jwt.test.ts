import { createHmac, generateKeyPairSync } from 'node:crypto'
import { inspect } from 'node:util'
import { exportJWK } from 'jose'
import { describe, expect, test, vi } from 'vitest'
import { auth } from '../../middleware/auth.js'
import { closing, serve } from '../fixtures/closing.js'
import { json as answer, type Handler, stream } from '../fixtures/http-server.js'
import { AUDIENCE, bearer, type Issuer, issuer, signingKey } from '../fixtures/issuer.js'
import { ask, initialize, listen, modern, ours, server, session, sse } from './helpers.js'

const json = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url')
const seconds = (from: number) => Math.floor(Date.now() / 1_000) + from

const INVALID = 'The token is not valid'
const EXPIRED = 'The token has expired'
const CANARY = 'canary-in-a-claim'

/** A token with any header, signed by the issuer's right key or by what `sign` gives. */
async function made(from: Issuer, header: object, sign?: (input: string) => Buffer): Promise<string> {
  if (!sign) return from.sign({ canary: CANARY }, { header })
  const claims = { iss: from.url, aud: AUDIENCE, sub: 'ada', exp: seconds(600), canary: CANARY }
  const input = `${json(header)}.${json(claims)}`
  return `${input}.${sign(input).toString('base64url')}`
}

/** The token of a thief who signs with a key of his own, and tells of it in the header. */
async function stolen(from: Issuer, thief: Issuer, header: (thief: Issuer) => object): Promise<string> {
  return from.sign({ canary: CANARY }, { by: thief.key, header: header(thief) })
}

type Forge = (from: Issuer, thief: Issuer) => Promise<string> | string

const bad: Record<string, Forge> = {
  'alg none': (from) => made(from, { alg: 'none' }, () => Buffer.alloc(0)),
  'alg none, with a signature': (from) => made(from, { alg: 'none' }, () => Buffer.from('x')),
  'alg NONE': (from) => made(from, { alg: 'NONE' }, () => Buffer.from('x')),
  'no alg': (from) => made(from, {}, () => Buffer.from('x')),
  'alg of a prototype': (from) => made(from, { alg: 'constructor' }, () => Buffer.from('x')),
  'HS256 with the public key as secret (JWK)': (from) =>
    made(from, { alg: 'HS256', kid: 'first' }, (input) =>
      createHmac('sha256', JSON.stringify(from.key.jwk)).update(input).digest(),
    ),
  'HS256 with an empty secret': (from) =>
    made(from, { alg: 'HS256', kid: 'first' }, (input) => createHmac('sha256', '').update(input).digest()),
  'another algorithm than its key has': (from) => made(from, { alg: 'ES384', kid: 'first' }, () => Buffer.alloc(96)),
  'a signature of zeros': (from) => made(from, { alg: 'ES256', kid: 'first' }, () => Buffer.alloc(64)),
  'a signature cut short': async (from) => (await from.sign()).slice(0, -4),
  'a signature of another token': async (from) => {
    const [head, claims] = (await from.sign({ sub: 'root' })).split('.')
    return `${head}.${claims}.${(await from.sign()).split('.')[2]}`
  },
  'a key of somebody else under the same name': async (from) => from.sign({}, { by: await signingKey('first') }),
  'a key that nobody knows': async (from) => from.sign({}, { by: await signingKey('unknown') }),
  'another issuer': (from) => from.sign({ iss: 'https://other.example' }),
  'its issuer with a slash': (from) => from.sign({ iss: `${from.url}/` }),
  'several issuers': (from) => from.sign({ iss: [from.url] }),
  'no issuer': (from) => from.sign({ iss: undefined }),
  'another audience': (from) => from.sign({ aud: 'https://other.example/mcp' }),
  'other audiences': (from) => from.sign({ aud: ['https://other.example/mcp', `${AUDIENCE}/`] }),
  'no audience': (from) => from.sign({ aud: undefined }),
  'an empty audience': (from) => from.sign({ aud: [] }),
  expired: (from) => from.sign({ exp: seconds(-60) }),
  'not yet valid': (from) => from.sign({ nbf: seconds(60) }),
  'no exp': (from) => from.sign({ exp: undefined }),
  'exp as a text': (from) => from.sign({ exp: String(seconds(600)) }),
  'no sub': (from) => from.sign({ sub: undefined }),
  'an empty sub': (from) => from.sign({ sub: '' }),
  'sub as an object': (from) => from.sign({ sub: { toString: 'ada' } }),
  'sub as a list': (from) => from.sign({ sub: ['ada'] }),
  'crit that nobody understands': (from) =>
    made(from, { alg: 'ES256', kid: 'first', crit: ['x'], x: 1 }, () => Buffer.alloc(64)),
  'crit that is empty': (from) => made(from, { alg: 'ES256', kid: 'first', crit: [] }, () => Buffer.alloc(64)),
  'b64 false': (from) => made(from, { alg: 'ES256', kid: 'first', crit: ['b64'], b64: false }, () => Buffer.alloc(64)),
  'jwk in the header': (from, thief) => stolen(from, thief, ({ key }) => ({ jwk: key.jwk, kid: undefined })),
  'jwk in the header, under the name of a right one': (from, thief) =>
    stolen(from, thief, ({ key }) => ({ jwk: key.jwk, kid: 'first' })),
  'jku to his server': (from, thief) => stolen(from, thief, ({ jwksUri }) => ({ jku: jwksUri, kid: 'first' })),
  'jku to his server, a key of his': (from, thief) =>
    stolen(from, thief, ({ jwksUri }) => ({ jku: jwksUri, kid: 'his' })),
  'x5u to his server': (from, thief) => stolen(from, thief, ({ url }) => ({ x5u: `${url}/chain` })),
  'x5c in the header': (from, thief) => stolen(from, thief, () => ({ x5c: ['MIIB'] })),
  'his issuer': (from, thief) => from.sign({ iss: thief.url }, { by: thief.key }),
  'kid as a path': (from) => made(from, { alg: 'ES256', kid: '../../etc/passwd' }, () => Buffer.alloc(64)),
  'kid of a prototype': (from) => made(from, { alg: 'ES256', kid: '__proto__' }, () => Buffer.alloc(64)),
  'kid as an object': (from) => made(from, { alg: 'ES256', kid: { a: 1 } }, () => Buffer.alloc(64)),
  'a header that is a list': () => `${json([])}.${json({})}.AAAA`,
  'a header that is no JSON': () => 'AAAA.AAAA.AAAA',
  'a header nested 2,000 deep': () => `${Buffer.from('['.repeat(2_000)).toString('base64url')}.AAAA.AAAA`,
  'claims that are a list': (from) => `${json({ alg: 'ES256', kid: from.key.kid })}.${json([])}.AAAA`,
  'a token in five parts': () => `${json({ alg: 'dir', enc: 'A128GCM' })}..AAAA.AAAA.AAAA`,
  garbage: () => 'garbage',
  'base64 of another alphabet': async (from) => (await from.sign()).replace('.', '+.'),
  '15 KB': () => `${'A'.repeat(5_000)}.${'B'.repeat(5_000)}.${'C'.repeat(5_000)}`,
}

async function guarded() {
  const [from, thief] = [await issuer(), await issuer()]
  thief.key.kid = thief.key.jwk.kid = 'his'
  const upstream = server()
  const jwt = { issuer: from.url, audience: AUDIENCE, jwksUri: from.jwksUri }
  const middleware = auth({ jwt })
  const proxy = await listen(upstream.open, {}, (app) => app.use(middleware))
  return { from, thief, upstream, ...proxy }
}

const doors = (headers: Record<string, string>) => [
  { headers: { ...ours, ...headers }, body: initialize() },
  { headers: { ...modern(1, 'tools/list').headers, ...headers }, body: modern(1, 'tools/list').body },
  { method: 'GET', path: '/sse', headers: { accept: 'text/event-stream', ...headers } },
]

describe('a bad token', () => {
  test.each(Object.entries(bad))('%s: no door opens, nothing is told, nobody else is asked', async (name, forge) => {
    const written = vi.spyOn(process.stderr, 'write')
    closing.push(() => written.mockRestore())
    const { from, thief, upstream, port, errors, app } = await guarded()
    const token = await forge(from, thief)
    for (const door of doors(bearer(token))) {
      const { status, headers, body } = await ask(port, door)
      const description = name === 'expired' ? EXPIRED : INVALID
      expect({ status, challenge: headers['www-authenticate'] }).toEqual({
        status: 401,
        challenge: `Bearer error="invalid_token", error_description="${description}"`,
      })
      expect(JSON.parse(body)).toEqual({
        jsonrpc: '2.0',
        error: {
          code: -31006,
          message: 'Denied',
          data: { source: 'proxy', reason: 'denied', phase: 'not_sent', retryable: false },
        },
      })
    }
    expect({ errors, sessions: app.stats().sessions, wires: upstream.wires }).toEqual({
      errors: [],
      sessions: 0,
      wires: [],
    })
    expect(thief.state.asked).toBe(0)
    expect(from.state.asked).toBeLessThanOrEqual(1)
    expect(written).not.toHaveBeenCalled()
  })

  test('is one: the right one opens all doors', async () => {
    const { from, port } = await guarded()
    const right = bearer(await from.sign())
    expect(await session(port, right)).toMatch(/^[\w-]{43}$/)
    expect((await sse(port, right)).endpoint).toContain('/messages?sessionId=')
    const { headers, body } = modern(1, 'ping')
    expect((await ask(port, { headers: { ...headers, ...right }, body })).status).toBe(200)
  })

  test('HS256 with the text of a public key, which is all that a thief has', async () => {
    const { publicKey, privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 })
    const pem = publicKey.export({ type: 'spki', format: 'pem' })
    const from = await issuer()
    from.state.keys = [{ ...(await exportJWK(publicKey)), kid: 'rsa' }]
    const jwt = { issuer: from.url, audience: AUDIENCE, jwksUri: from.jwksUri }
    const { port } = await listen(server().open, {}, (app) => app.use(auth({ jwt })))
    const forged = await made(from, { alg: 'HS256', kid: 'rsa' }, (input) =>
      createHmac('sha256', pem).update(input).digest(),
    )
    const by = { kid: 'rsa', jwk: { alg: 'RS256' }, privateKey: privateKey as never }
    expect((await ask(port, doors(bearer(forged))[0])).status).toBe(401)
    expect((await ask(port, doors(bearer(await from.sign({}, { by })))[0])).status).toBe(200)
  })

  test('a secret takes no token of a key, nor one of another secret or hash', async () => {
    const from = await issuer()
    const secret = 'a shared secret of thirty-two bytes!'
    const jwt = { issuer: from.url, audience: AUDIENCE, secret }
    const { port } = await listen(server().open, {}, (app) => app.use(auth({ jwt })))
    const signed = (alg: string, hash: string, key: string) =>
      made(from, { alg }, (input) => createHmac(hash, key).update(input).digest())
    const statuses: number[] = []
    for (const token of [
      await signed('HS256', 'sha256', secret),
      await signed('HS256', 'sha256', 'another one of thirty-two bytes!!!!'),
      await signed('HS512', 'sha512', secret),
      await made(from, { alg: 'none' }, () => Buffer.from('x')),
      await from.sign(),
    ]) {
      statuses.push((await ask(port, doors(bearer(token))[0])).status)
    }
    expect(statuses).toEqual([200, 401, 401, 401, 401])
  })

  test('of random bytes is never a failure of ours', async () => {
    const from = await issuer()
    const { admit } = auth({
      jwt: { issuer: from.url, audience: AUDIENCE, jwks: { keys: [from.key.jwk] } },
    }) as never as {
      admit(request: object): Promise<{ status: number }>
    }
    const right = await from.sign()
    const chars = 'ABCabc019-_.=+/ "\\,\u00e9'
    let seed = 7
    const random = (below: number) => {
      seed = (seed * 1_103_515_245 + 12_345) & 0x7fff_ffff
      return (seed >> 8) % below
    }
    for (let round = 0; round < 2_000; round++) {
      const at = random(right.length)
      const token = `${right.slice(0, at)}${chars[random(chars.length)]}${right.slice(at + 1 + random(2))}`
      if (token === right) continue
      const said = await admit({ method: 'POST', url: '/mcp', headers: bearer(token) })
      // The last character of a signature has bits that mean nothing: another one may be the same token.
      if (at < right.length - 1) expect({ token, status: said.status }).toEqual({ token, status: 401 })
    }
  })
})

describe('a session', () => {
  test('belongs to whom its first token named: with that of another it does not exist', async () => {
    const { from, port, upstream } = await guarded()
    const [ada, bob] = [bearer(await from.sign()), bearer(await from.sign({ sub: 'bob' }))]
    const id = await session(port, ada)
    const stream = await sse(port, ada)
    const heard = upstream.heard().length
    const ping = { jsonrpc: '2.0', id: 7, method: 'ping' }
    const own = { 'mcp-session-id': id }
    const uses = [
      { headers: { ...ours, ...own }, body: ping },
      { method: 'GET', headers: { accept: 'text/event-stream', ...own } },
      { method: 'DELETE', headers: own },
      { path: stream.endpoint, headers: ours, body: ping },
    ]
    for (const use of uses) {
      const asBob = await ask(port, { ...use, headers: { ...use.headers, ...bob } })
      const asNobody = await ask(port, { ...use, headers: use.headers })
      expect([asBob.status, asNobody.status]).toEqual([404, 401])
    }
    expect(upstream.heard()).toHaveLength(heard)
    // Another token of the same user is as good as the first one.
    const again = bearer(await from.sign({ jti: 'x' }))
    expect((await ask(port, { headers: { ...ours, ...own, ...again }, body: ping })).status).toBe(200)
    expect((await ask(port, { path: stream.endpoint, headers: { ...ours, ...again }, body: ping })).status).toBe(202)
  })

  test.each(['__proto__', 'constructor', 'a\r\nSet-Cookie: x', '\u001b[31m', 'é'.repeat(500)])(
    '%j is a name as any',
    async (sub) => {
      const { from, port, upstream, errors } = await guarded()
      await session(port, bearer(await from.sign({ sub })))
      expect(upstream.sessions[0]?.principal).toBe(sub)
      expect(errors).toEqual([])
    },
  )
})

test('no credential goes upstream, nor can what middleware are shown tell it', async () => {
  const from = await issuer()
  const seen: string[] = []
  const upstream = server()
  const token = await from.sign()
  const jwt = { issuer: from.url, audience: AUDIENCE, jwksUri: from.jwksUri }
  const { port } = await listen(upstream.open, {}, (app) =>
    app.use(auth({ jwt }), (ctx, next) => {
      seen.push(inspect([ctx.state, ctx.extra.authInfo, ctx.session.state, ctx], { depth: 9, showHidden: true }))
      return next()
    }),
  )
  await session(port, bearer(token))
  expect(seen.length).toBeGreaterThan(0)
  expect([...seen, ...upstream.heard()].filter((it) => it.includes(token.split('.')[2]!))).toEqual([])
})

describe('the keys of an issuer', () => {
  const invalid = `Bearer error="invalid_token", error_description="${INVALID}"`

  test('a flood of unknown ones is none at the issuer', async () => {
    const { from, port, upstream } = await guarded()
    const kids = [
      '../../etc/passwd',
      '__proto__',
      'a'.repeat(5_000),
      ...Array.from({ length: 50 }, (_, at) => `k${at}`),
    ]
    const flood = kids.map(async (kid) => {
      const headers = { ...ours, ...bearer(await from.sign({}, { header: { kid } })) }
      const { status, headers: came } = await ask(port, { headers, body: initialize() })
      return [status, came['www-authenticate']]
    })
    expect(await Promise.all(flood)).toEqual(kids.map(() => [401, invalid]))
    expect([from.state.asked, upstream.wires]).toEqual([1, []])
  })

  const bait = () => serve((_seen, response) => answer(response, { keys: [] }))
  const bad: Record<string, [handler: Handler, reason: string]> = {
    fail: [(_seen, response) => response.writeHead(500).end('canary'), 'expected status 200, got 500'],
    'are nowhere': [(_seen, response) => response.writeHead(404).end('canary'), 'expected status 200, got 404'],
    'are no JSON': [(_seen, response) => answer(response, 'canary'), 'expected JSON'],
    'are none': [(_seen, response) => answer(response, []), 'JSON Web Key Set malformed'],
    'are too many': [(_seen, response) => answer(response, ' '.repeat(2 << 20)), 'expected at most 1048576 bytes'],
    'break off': [(_seen, response) => response.destroy(), 'UND_ERR_SOCKET'],
    'never come': [() => {}, 'it took too long'],
    'begin to come': [(_seen, response) => stream(response).write('{'), 'it took too long'],
  }

  test.each(Object.entries(bad))(
    'that %s let nobody in, and are left alone for a while',
    async (_name, [handler, reason]) => {
      const from = await issuer()
      const { url, seen } = await serve(handler)
      const upstream = server()
      const jwt = { issuer: from.url, audience: AUDIENCE, jwksUri: url.href, timeout: 100 }
      const { port, errors } = await listen(upstream.open, {}, (app) => app.use(auth({ jwt })))
      const headers = { ...ours, ...bearer(await from.sign()) }
      for (let round = 0; round < 3; round++) {
        const replies = await Promise.all([1, 2, 3].map((id) => ask(port, { headers, body: initialize(id) })))
        expect(replies.map(({ status, headers }) => [status, headers['retry-after']])).toEqual(
          Array(3).fill([503, '5']),
        )
        expect(JSON.stringify(replies)).not.toContain('canary')
      }
      expect(errors).toEqual([`auth: the keys at ${url.origin} could not be fetched: ${reason}`])
      expect([seen.length, upstream.wires]).toEqual([1, []])
    },
  )

  test('that are said to be elsewhere are not looked for there', async () => {
    const from = await issuer()
    const other = await bait()
    for (const status of [301, 302, 303, 307, 308]) {
      const { url } = await serve((_seen, response) => response.writeHead(status, { location: other.url.href }).end())
      const jwt = { issuer: from.url, audience: AUDIENCE, jwksUri: url.href }
      const { port, errors } = await listen(server().open, {}, (app) => app.use(auth({ jwt })))
      const reply = await ask(port, { headers: { ...ours, ...bearer(await from.sign()) }, body: initialize() })
      expect(reply.status).toBe(503)
      expect(errors).toEqual([
        `auth: the keys at ${url.origin} could not be fetched: expected status 200, got ${status}`,
      ])
    }
    expect(other.seen).toEqual([])
  })

  test('that are gone let nobody in', async () => {
    const { from, port, errors } = await guarded()
    from.close()
    const reply = await ask(port, { headers: { ...ours, ...bearer(await from.sign()) }, body: initialize() })
    expect(reply.status).toBe(503)
    expect(errors).toEqual([`auth: the keys at ${from.url} could not be fetched: ECONNREFUSED`])
  })

  test('are asked of nobody for what is no JSON Web Token', async () => {
    const { from, port } = await guarded()
    for (const token of ['a', 'a.b', 'a.b.c.d', '..', 'a.b.', '%.%.%', 'a.b.c', `${'a'.repeat(5_000)}.`]) {
      expect((await ask(port, { headers: { ...ours, ...bearer(token) }, body: initialize() })).status).toBe(401)
    }
    expect(from.state.asked).toBe(0)
  })

  test.each([
    'http://keys.example/jwks',
    'https://user:canary@keys.example/',
    'file:///etc/jwks',
    'data:,{}',
    'jwks',
    '',
  ])('must be asked for over TLS, or on this machine: %j', (jwksUri) => {
    const make = () => auth({ jwt: { issuer: 'a', audience: 'b', jwksUri } })
    expect(make).toThrow(
      new TypeError('auth: expected jwt.jwksUri to be a URL with https, or http on this machine, got something else'),
    )
  })
})

describe('what is missing', () => {
  const resource = { url: AUDIENCE, authorizationServers: ['https://id.example.com'] }
  const metadata = 'resource_metadata="https://mcp.example.com/.well-known/oauth-protected-resource/mcp"'

  test('is told: a token is a 401, a scope is a 403 that names all that are needed and none that is had', async () => {
    const from = await issuer()
    const upstream = server()
    const jwt = { issuer: from.url, audience: AUDIENCE, jwksUri: from.jwksUri }
    const options = { jwt, resource, scopes: ['read', 'write'] }
    const { port } = await listen(upstream.open, {}, (app) => app.use(auth(options)))
    const challenge = async (headers: Record<string, string>) => {
      const reply = await ask(port, { headers: { ...ours, ...headers }, body: initialize() })
      return [reply.status, reply.headers['www-authenticate']]
    }
    const scoped = async (scope?: unknown) => challenge(bearer(await from.sign({ scope })))
    const insufficient = [403, `Bearer error="insufficient_scope", scope="read write", ${metadata}`]
    expect(await challenge({})).toEqual([401, `Bearer scope="read write", ${metadata}`])
    for (const scope of [
      'read',
      'write',
      'READ WRITE',
      'read,write',
      'read\twrite',
      'readwrite',
      '',
      undefined,
      1,
      {},
    ]) {
      expect(await scoped(scope)).toEqual(insufficient)
    }
    expect(await scoped(['read write'])).toEqual(insufficient)
    expect(await scoped('canary write read')).toEqual([200, undefined])
    expect(upstream.sessions).toHaveLength(1)
  })

  test('is where the token was meant for: it is the audience that counts, wherever else it names us', async () => {
    const { from, port } = await guarded()
    const statuses: Record<string, number> = {}
    for (const [name, claims] of Object.entries({
      'one of several': { aud: ['https://other.example', AUDIENCE] },
      'azp alone': { aud: 'https://other.example', azp: AUDIENCE },
      'resource alone': { aud: undefined, resource: AUDIENCE },
      'with a slash': { aud: `${AUDIENCE}/` },
      'in another case': { aud: AUDIENCE.toUpperCase() },
      'without its path': { aud: new URL(AUDIENCE).origin },
      'as an object': { aud: { 0: AUDIENCE } },
    })) {
      const headers = { ...ours, ...bearer(await from.sign(claims)) }
      statuses[name] = (await ask(port, { headers, body: initialize() })).status
    }
    const { 'one of several': right, ...wrong } = statuses
    expect([right, Object.values(wrong)]).toEqual([200, Array(6).fill(401)])
  })
})
