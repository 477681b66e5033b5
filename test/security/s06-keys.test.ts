import { createHash } from 'node:crypto'
import { inspect } from 'node:util'
import { beforeEach, describe, expect, test, vi } from 'vitest'
import { type AuthOptions, auth } from '../../middleware/auth.js'
import { bearer } from '../fixtures/issuer.js'
import { ask, initialize, listen, ours, server, session } from './helpers.js'

const compared = vi.hoisted(() => [] as [number, number][])

/** Takes note of every comparison that takes the same time whatever it compares. */
vi.mock('node:crypto', async (original) => {
  const real = await original<typeof import('node:crypto')>()
  const timingSafeEqual: typeof real.timingSafeEqual = (a, b) => {
    compared.push([a.byteLength, b.byteLength])
    return real.timingSafeEqual(a, b)
  }
  return { ...real, default: { ...real, timingSafeEqual }, timingSafeEqual }
})

beforeEach(() => {
  compared.length = 0
})

const hash = (key: string) => createHash('sha256').update(key).digest('hex')
const keys = Array.from({ length: 10 }, (_, at) => `canary-key-${at}`)
const apiKeys = keys.map((key, at) => ({ id: `user-${at}`, hash: hash(key) }))
const tokens = keys.map((token, at) => ({ id: `user-${at}`, token }))

/** Every guess that a thief might make. */
const guesses: Record<string, string> = {
  'another one': 'canary-key-x',
  'the beginning of one': 'canary-key',
  'more than one': 'canary-key-10',
  'another case of one': 'CANARY-KEY-1',
  'one character': 'c',
  'its hash': hash(keys[0]!),
  'its hash in capitals': hash(keys[0]!).toUpperCase(),
  'its hash in Base64': Buffer.from(hash(keys[0]!), 'hex').toString('base64'),
  'the hash of its hash': hash(hash(keys[0]!)),
  'all of them': keys.join(','),
  '10 KB': 'k'.repeat(10_000),
  'a prototype': '__proto__',
  'a constructor': 'constructor',
  'the name of a user': 'user-0',
}

async function guarded(options: AuthOptions) {
  const upstream = server()
  const proxy = await listen(upstream.open, {}, (app) => app.use(auth(options)))
  return { upstream, ...proxy }
}

describe.each<[string, AuthOptions, (key: string) => Record<string, string>]>([
  ['a key in its header', { apiKeys }, (key) => ({ 'x-api-key': key })],
  ['a key as a bearer token', { apiKeys }, bearer],
  ['a fixed token', { tokens }, bearer],
])('%s', (_name, options, headers) => {
  test.each(Object.entries(guesses))('is none that is not known: %s', async (_name, guess) => {
    const { port, upstream } = await guarded(options)
    const reply = await ask(port, { headers: { ...ours, ...headers(guess) }, body: initialize() })
    expect(reply.status).toBe(401)
    expect(JSON.stringify(reply)).not.toMatch(/canary|user-/)
    expect(upstream.wires).toEqual([])
  })

  test('is compared with all of them, hash by hash, wherever the right one stands, and where none is', async () => {
    const { port, upstream } = await guarded(options)
    const all = Array(10).fill([32, 32])
    for (const key of [keys[0]!, keys[4]!, keys[9]!]) {
      compared.length = 0
      await session(port, headers(key))
      expect(compared).toEqual(all)
    }
    expect(upstream.sessions.map(({ principal }) => principal)).toEqual(['user-0', 'user-4', 'user-9'])
    for (const guess of Object.values(guesses)) {
      compared.length = 0
      await ask(port, { headers: { ...ours, ...headers(guess) }, body: initialize() })
      expect(compared).toEqual(all)
    }
  })

  test('is nowhere in what middleware and the server are shown', async () => {
    const seen: string[] = []
    const upstream = server()
    const { port } = await listen(upstream.open, {}, (app) =>
      app.use(auth(options), (ctx, next) => {
        seen.push(inspect([ctx.state, ctx.session.state, ctx.extra.authInfo], { depth: 9, showHidden: true }))
        return next()
      }),
    )
    await session(port, headers(keys[3]!))
    expect(seen.length).toBeGreaterThan(0)
    expect([...seen, ...upstream.heard()].join()).not.toMatch(/canary-key/)
  })
})

test('the one token of a port is compared as a hash, whatever its length', async () => {
  const { port } = await listen(server().open, { token: keys[0]! })
  for (const [guess, status] of [
    ...Object.values(guesses).map((it) => [it, 401] as const),
    [keys[1]!, 401],
    [keys[0]!, 200],
  ] as const) {
    compared.length = 0
    expect((await ask(port, { headers: { ...ours, ...bearer(guess) }, body: initialize() })).status).toBe(status)
    expect(compared).toEqual([[32, 32]])
  }
})

test.each(['canary-key', `${hash('x')}0`, hash('x').slice(1), 'g'.repeat(64), '', ` ${hash('x')}`])(
  'a key is configured by its SHA-256 alone, and no error shows what was given: %j',
  (given) => {
    expect(() => auth({ apiKeys: [{ id: 'a', hash: given }] })).toThrow(
      new TypeError('auth: expected apiKeys[0].hash to be a SHA-256 of 64 hexadecimal digits, got something else'),
    )
  },
)
