import express from 'express'
import { createProxy, define } from 'open-mcp-proxy'
import { beforeEach, describe, expect, test } from 'vitest'
import { closing, serve } from '../fixtures/closing.js'
import { host } from '../fixtures/http-target.js'
import {
  ask,
  denied,
  dial,
  initialize,
  invalidRequest,
  lines,
  listen,
  ours,
  raw,
  server,
  session,
  sse,
  told,
} from './helpers.js'

/** Every route, by every method that could do something there. */
const targets = [
  ...['GET', 'POST', 'DELETE', 'OPTIONS', 'PUT', 'PATCH', 'TRACE'].map((method) => [method, '/mcp']),
  ...['GET', 'POST', 'OPTIONS'].map((method) => [method, '/sse']),
  ...['GET', 'POST', 'OPTIONS'].map((method) => [method, '/messages?sessionId=x']),
  ...['GET', 'POST', 'OPTIONS'].map((method) => [method, '/healthz']),
  ...['GET', 'POST', 'OPTIONS'].map((method) => [method, '/unknown']),
  ['OPTIONS', '*'],
] as [method: string, path: string][]

const badHosts = [
  'evil.example',
  'localhost.evil',
  'localhost.evil.example:80',
  'evil-localhost',
  '127.0.0.1.nip.io',
  '127.0.0.1.nip.io:3000',
  'localhost.',
  '127.0.0.1.',
  'mcp.lan.',
  'user@localhost',
  'user:password@localhost',
  'localhost:80@evil.example',
  'localhost@evil.example',
  'localhost/evil',
  'localhost\\evil',
  'localhost#evil',
  'localhost?evil',
  'localhost evil',
  'localhost\tevil',
  'localhost,evil.example',
  'localhost, localhost',
  'localhost:',
  'localhost:http',
  'localhost:123456',
  'localhost:80:80',
  'localhost%00',
  'local\u00adhost',
  '\u00e9.localhost',
  '127.0.0.2',
  '127.1',
  '2130706433',
  '0x7f000001',
  '0177.0.0.1',
  '0.0.0.0',
  '::1',
  '[::1',
  '[::]',
  '[::1]x',
  '[::1]:',
  '[::1%lo]',
  '[0:0:0:0:0:0:0:1]',
  '[::ffff:127.0.0.1]',
  '169.254.169.254',
  'null',
  '',
  'one.lan',
  'one.lan:8444',
  'one.lan:84430',
  'one.lan:08443',
  'sub.mcp.lan',
]

const goodHosts = [
  'localhost',
  'localhost:1',
  'LOCALHOST:65535',
  '127.0.0.1',
  '127.0.0.1:3000',
  '[::1]',
  '[::1]:3000',
  'mcp.lan',
  'MCP.Lan:99',
  'one.lan:8443',
  'ONE.LAN:8443',
]

const badOrigins = [
  'null',
  '',
  'evil.example',
  'http://evil.example',
  'https://evil.example',
  'http://localhost.evil',
  'http://localhost.evil.example',
  'http://127.0.0.1.nip.io',
  'http://localhost.',
  'http://user@localhost',
  'http://user:password@localhost',
  'http://localhost@evil.example',
  'http://localhost:80@evil.example',
  'http://localhost/',
  'http://localhost/x',
  'http://localhost?x',
  'http://localhost#x',
  'http://localhost\\@evil.example',
  'http://localhost:http',
  'http://localhost:99999',
  'http://localhost, http://evil.example',
  'http://localhost http://evil.example',
  'HTTP://LOCALHOST',
  'http:localhost',
  'http:/localhost',
  '//localhost',
  'localhost',
  'http://127.1',
  'http://2130706433',
  'http://0x7f.0.0.1',
  'http://127.0.0.2',
  'http://0.0.0.0',
  'http://[::]',
  'http://[::ffff:127.0.0.1]',
  'http://[0:0:0:0:0:0:0:1]',
  'file://',
  'file://localhost',
  'ws://localhost',
  'ftp://localhost',
  'data:,x',
  'blob:http://localhost',
  'chrome-extension://abcdefghijklmnop',
  'https://app.example.com.',
  'https://app.example.com:8443',
  'https://app.example.com/',
  'https://APP.example.com',
  'http://app.example.com',
  'https://evil.app.example.com',
  'https://app.example.com.evil.example',
  'https://user@app.example.com',
]

const goodOrigins = [
  'http://localhost',
  'https://localhost',
  'http://localhost:6274',
  'http://127.0.0.1:1',
  'http://[::1]:8080',
  'https://app.example.com',
  'https://port.example.com:8443',
]

let upstream: ReturnType<typeof server>
let proxy: Awaited<ReturnType<typeof listen>>

beforeEach(async () => {
  upstream = server()
  proxy = await listen(upstream.open, {
    allowHosts: ['mcp.lan', 'One.lan:8443'],
    allowOrigins: ['https://app.example.com', 'https://port.example.com:8443'],
  })
})

/** The head of a request that would be taken, but for the lines that come with it. */
const head = (...more: string[]) => [
  ...more,
  'Content-Type: application/json',
  'Accept: application/json, text/event-stream',
  `Content-Length: ${Buffer.byteLength(body)}`,
]
const body = JSON.stringify(initialize(1))
const same = <T>(keys: readonly string[], value: T) => Object.fromEntries(keys.map((key) => [key, value]))

async function each(keys: readonly string[], run: (key: string) => Promise<{ status: number; body: string }>) {
  const found: Record<string, unknown> = {}
  for (const key of keys) found[key] = told(await run(key))
  return found
}

describe('a Host that is not ours is a 403 on every route', () => {
  test.each(targets)('%s %s', async (method, path) => {
    const got = await each(badHosts, (host) => raw(proxy.port, lines(method, path, head(`Host: ${host}`), body)))
    expect(got).toEqual(same(badHosts, { status: 403, body: denied('this Host is not allowed') }))
    expect(upstream.wires).toEqual([])
    expect(proxy.app.stats().sessions).toBe(0)
  })

  test('also with an Origin that is ours, and a target or a header that names another host', async () => {
    const more = [
      'Origin: http://localhost',
      'X-Forwarded-Host: localhost',
      'Forwarded: host=localhost',
      'X-Host: localhost',
    ]
    for (const path of ['/mcp', 'http://localhost/mcp']) {
      const got = await raw(proxy.port, lines('POST', path, head('Host: evil.example', ...more), body))
      expect(told(got)).toEqual({ status: 403, body: denied('this Host is not allowed') })
    }
    expect(upstream.wires).toEqual([])
  })

  test('HTTP/1.0 without one, too; HTTP/1.1 without one is no request', async () => {
    const text = lines('POST', '/mcp', head(), body)
    expect(told(await raw(proxy.port, text.replace('HTTP/1.1', 'HTTP/1.0')))).toEqual({
      status: 403,
      body: denied('this Host is not allowed'),
    })
    expect((await raw(proxy.port, text)).status).toBe(400)
    expect(upstream.wires).toEqual([])
  })

  test('also for what a middleware serves, and where a framework has routes of its own', async () => {
    const respond = () => ({ status: 200, body: 'canary' })
    const { port } = await listen(upstream.open, {}, (app) => app.use(define({ respond }, (_ctx, next) => next())))
    const get = (...more: string[]) => raw(port, lines('GET', '/.well-known/x', more))
    expect((await get('Host: localhost')).status).toBe(200)
    const turned = (of: string) => ({ status: 403, body: denied(`this ${of} is not allowed`) })
    for (const host of badHosts) expect(told(await get(`Host: ${host}`))).toEqual(turned('Host'))
    for (const origin of badOrigins) {
      expect(told(await get('Host: localhost', `Origin: ${origin}`))).toEqual(turned('Origin'))
    }
    const app = createProxy()
    closing.push(() => app.close({ urgent: true }))
    const framework = express()
    framework.use(app.handler(upstream.open))
    const { origin } = (await host(framework)).url('')
    for (const [method, path] of targets.filter(([, path]) => path !== '/unknown' && path !== '*')) {
      const got = await raw(Number(new URL(origin).port), lines(method, path, head('Host: evil.example'), body))
      expect([method, path, got.status]).toEqual([method, path, 403])
    }
    expect(upstream.wires).toEqual([])
  })

  test('no answer to one has CORS headers', async () => {
    const origin = 'Origin: https://app.example.com'
    const got = await raw(proxy.port, lines('POST', '/mcp', head('Host: evil.example', origin), body))
    expect(got.status).toBe(403)
    expect(got.head).not.toMatch(/access-control/i)
  })
})

test('nobody is taken further: CONNECT, Upgrade and targets elsewhere lead nowhere', async () => {
  const target = await serve((_seen, response) => response.end())
  const { host, port } = target.url
  const tunnel = await raw(proxy.port, lines('CONNECT', host, [`Host: ${host}`]))
  expect(tunnel.head).not.toMatch(/^HTTP\/1\.1 2/)
  const upgrades = ['Upgrade: websocket', 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==', 'Sec-WebSocket-Version: 13']
  for (const [path, status] of [
    [`http://${host}/mcp`, 404],
    [`http://localhost:${port}/healthz`, 404],
    ['/mcp', 405],
  ] as const) {
    const text = lines('PUT', path, ['Host: localhost', ...upgrades]).replace(
      'Connection: close',
      'Connection: upgrade',
    )
    const line = await dial(proxy.port)
    line.write(text)
    await line.until('"error"')
    expect(line.heard()).toMatch(new RegExp(`^HTTP/1\\.1 ${status} `))
  }
  expect(target.seen).toEqual([])
  expect(upstream.wires).toEqual([])
})

describe('an Origin that is not ours is a 403 on every route', () => {
  test.each(targets)('%s %s', async (method, path) => {
    const got = await each(badOrigins, (origin) =>
      raw(proxy.port, lines(method, path, head('Host: localhost', `Origin: ${origin}`), body)),
    )
    expect(got).toEqual(same(badOrigins, { status: 403, body: denied('this Origin is not allowed') }))
    expect(upstream.wires).toEqual([])
    expect(proxy.app.stats().sessions).toBe(0)
  })

  test('also where it is the very host that the request names', async () => {
    const got = await raw(proxy.port, lines('POST', '/mcp', head('Host: mcp.lan', 'Origin: http://mcp.lan'), body))
    expect(told(got)).toEqual({ status: 403, body: denied('this Origin is not allowed') })
  })
})

describe('a second one is a 400 on every route', () => {
  const pairs: [name: string, first: string, second: string][] = [
    ['host', 'localhost', 'evil.example'],
    ['host', 'evil.example', 'localhost'],
    ['host', 'localhost', 'localhost'],
    ['origin', 'http://localhost', 'https://evil.example'],
    ['origin', 'http://localhost', 'http://localhost'],
  ]
  test.each(targets)('%s %s', async (method, path) => {
    for (const [name, first, second] of pairs) {
      const own = name === 'host' ? [] : ['Host: localhost']
      const twice = [`${name}: ${first}`, `${name.toUpperCase()}: ${second}`]
      const got = await raw(proxy.port, lines(method, path, head(...own, ...twice), body))
      expect(told(got)).toEqual({ status: 400, body: invalidRequest(`expected one header ${name}, got several`) })
    }
    expect(upstream.wires).toEqual([])
  })

  test.each([
    ['authorization', 'Bearer a', 'Bearer b'],
    ['content-type', 'application/json', 'text/plain'],
    ['mcp-session-id', 'a', 'b'],
    ['mcp-protocol-version', '2025-11-25', '2026-07-28'],
    ['mcp-method', 'ping', 'tools/call'],
    ['mcp-name', 'a', 'b'],
    ['mcp-param-region', 'a', 'b'],
    ['last-event-id', '0-1', '0-2'],
  ])('%s, of which two readers would take different ones', async (name, first, second) => {
    const rest = head('Host: localhost').filter((line) => !line.toLowerCase().startsWith(name))
    const twice = [`${name}: ${first}`, ...rest, `${name.toUpperCase()}: ${second}`]
    const got = await raw(proxy.port, lines('POST', '/mcp', twice, body))
    expect(told(got)).toEqual({ status: 400, body: invalidRequest(`expected one header ${name}, got several`) })
    expect(upstream.wires).toEqual([])
  })
})

describe('what is ours passes', () => {
  test.each(goodHosts)('Host %s', async (host) => {
    const got = await raw(proxy.port, lines('POST', '/mcp', head(`Host: ${host}`), body))
    expect(told(got)).toEqual({ status: 200, body: { jsonrpc: '2.0', id: 1, result: {} } })
    expect(upstream.heard()).toEqual([body])
  })

  test.each(goodOrigins)('Origin %s', async (origin) => {
    const got = await raw(proxy.port, lines('POST', '/mcp', head('Host: localhost', `Origin: ${origin}`), body))
    expect(told(got)).toEqual({ status: 200, body: { jsonrpc: '2.0', id: 1, result: {} } })
    expect(upstream.heard()).toEqual([body])
  })

  test('on every route', async () => {
    const headers = { host: 'mcp.lan', origin: 'https://app.example.com' }
    const id = await session(proxy.port, headers)
    const deleted = await ask(proxy.port, { method: 'DELETE', headers: { ...headers, 'mcp-session-id': id } })
    const health = await ask(proxy.port, { method: 'GET', path: '/healthz', headers })
    const stream = await sse(proxy.port, headers)
    const posted = await ask(proxy.port, {
      path: stream.endpoint,
      headers: { ...ours, ...headers },
      body: initialize(2),
    })
    expect([deleted.status, health.status, posted.status]).toEqual([200, 200, 202])
  })

  test('no route is found by anything but its own path', async () => {
    const paths = [
      '/MCP',
      '/mcp/',
      '//mcp',
      '/./mcp',
      '/x/../mcp',
      '/%6dcp',
      '/mcp;x',
      '/mcp%00',
      'http://localhost/mcp',
    ]
    for (const path of paths) {
      const got = await raw(proxy.port, lines('POST', path, head('Host: localhost'), body))
      expect(told(got)).toEqual({ status: 404, body: invalidRequest('nothing is served here') })
    }
    expect(upstream.wires).toEqual([])
  })
})

describe('what is to be allowed', () => {
  test.each(['http://mcp.lan', 'mcp.lan/', 'mcp.lan:', 'mcp.lan:x', 'user@mcp.lan', 'a b', ''])(
    'is a TypeError where it is no host: %j',
    async (host) => {
      await expect(listen(upstream.open, { allowHosts: [host] })).rejects.toThrow(TypeError)
    },
  )

  test.each([
    '*',
    'null',
    '',
    'app.example.com',
    'https://app.example.com/x',
    'https://app.example.com/?x',
    'https://app.example.com/#x',
    'https://user@app.example.com',
    'file://',
    'ftp://app.example.com',
  ])('is a TypeError where it is no origin: %j', async (origin) => {
    await expect(listen(upstream.open, { allowOrigins: [origin] })).rejects.toThrow(TypeError)
  })

  test('has no wildcards: an asterisk is nobody', async () => {
    const { port } = await listen(upstream.open, {
      allowHosts: ['*', '*.lan'],
      allowOrigins: ['https://*.example.com'],
    })
    const bad = [
      ['Host: evil.example'],
      ['Host: mcp.lan'],
      ['Host: localhost', 'Origin: https://app.example.com'],
      ['Host: localhost', 'Origin: https://evil.example'],
    ]
    for (const headers of bad) expect((await raw(port, lines('POST', '/mcp', head(...headers), body))).status).toBe(403)
    expect(upstream.wires).toEqual([])
  })
})
