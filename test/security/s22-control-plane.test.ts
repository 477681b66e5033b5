import { existsSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { networkInterfaces, tmpdir } from 'node:os'
import { join } from 'node:path'
import { stdio } from 'open-mcp-proxy'
import { describe, expect, test } from 'vitest'
import { type MetricsOptions, metrics } from '../../middleware/metrics.js'
import { closing } from '../fixtures/closing.js'
import { ask, initialize, lines, listen, modern, ours, raw, server, session } from './helpers.js'

/** A proxy with metrics on a port of their own, in front of a child that would leave a mark. */
async function watched(options: MetricsOptions = {}) {
  const directory = await mkdtemp(join(tmpdir(), 'omproxy-s22-'))
  closing.push(() => rm(directory, { recursive: true, force: true }))
  const mark = join(directory, 'started')
  const script = `
    require('node:fs').writeFileSync(process.argv[1], '')
    require('node:readline').createInterface(process.stdin).on('line', (line) => {
      const { id } = JSON.parse(line)
      if (id !== undefined) console.log(JSON.stringify({ jsonrpc: '2.0', id, result: { content: [] } }))
    })`
  const observer = metrics({ port: 0, ...options })
  const upstream = stdio(process.execPath, ['-e', script, mark])
  const proxy = await listen(upstream, { token: 'canary-token' }, (app) => app.use(observer))
  const { port, hostname } = new URL(observer.address!)
  return { ...proxy, metricsPort: Number(port), hostname, isStarted: () => existsSync(mark) }
}

const right = { authorization: 'Bearer canary-token' }

describe('metrics', () => {
  test('have a port of their own, on this machine alone, where nothing else is to be had', async () => {
    const { port, metricsPort, hostname, isStarted, app } = await watched()
    expect([hostname, metricsPort === port]).toEqual(['127.0.0.1', false])
    const found: Record<string, number> = {}
    const paths = [
      '/metrics',
      '/mcp',
      '/sse',
      '/messages?sessionId=x',
      '/healthz',
      '/',
      '/metrics/',
      '//metrics',
      '/METRICS',
    ]
    for (const path of paths) {
      for (const method of ['GET', 'POST', 'DELETE', 'OPTIONS', 'PUT']) {
        const body = method === 'POST' ? initialize() : undefined
        found[`${method} ${path}`] = (
          await ask(metricsPort, { method, path, headers: { ...ours, ...right }, body })
        ).status
      }
    }
    const expected = paths.flatMap((path) =>
      ['GET', 'POST', 'DELETE', 'OPTIONS', 'PUT'].map((method) => {
        const status = path === '/metrics' ? (method === 'GET' ? 200 : 405) : 404
        return [`${method} ${path}`, status]
      }),
    )
    expect(found).toEqual(Object.fromEntries(expected))
    // Nor are they on the port of the clients.
    for (const path of ['/metrics', '/mcp/metrics']) {
      expect((await ask(port, { method: 'GET', path, headers: right })).status).toBe(404)
    }
    expect([isStarted(), app.stats().sessions]).toEqual([false, 0])
  })

  test('are not for a page in a browser', async () => {
    const { metricsPort } = await watched()
    const get = (...head: string[]) => raw(metricsPort, lines('GET', '/metrics', head))
    for (const host of [
      'evil.example',
      'localhost.evil',
      '127.0.0.1.nip.io',
      'localhost.',
      'metrics',
      'localhost@evil',
      '',
    ]) {
      expect([host, (await get(`Host: ${host}`)).status]).toEqual([host, 403])
    }
    const { status, head } = await get('Host: localhost', 'Origin: https://evil.example')
    expect(status).toBe(200)
    expect(head).not.toMatch(/access-control/i)
    expect(head).toMatch(/x-content-type-options: nosniff/i)
  })

  test('tell nothing of what was said, by whom, or with which credential', async () => {
    const { port, metricsPort, isStarted } = await watched()
    const canary = 'canary-said'
    const headers = { ...ours, ...right, 'mcp-session-id': await session(port, right), 'x-canary': canary }
    const params = { name: canary, arguments: { a: canary }, _meta: { progressToken: canary } }
    await ask(port, { headers, body: { jsonrpc: '2.0', id: canary, method: 'tools/call', params } })
    await ask(port, { headers, body: { jsonrpc: '2.0', id: canary, method: canary, params } })
    const call = modern(canary, 'tools/call', params, canary)
    await ask(port, { ...call, headers: { ...call.headers, ...right } })
    expect(isStarted()).toBe(true)
    const { body } = await ask(metricsPort, { method: 'GET', path: '/metrics', headers: {} })
    expect(body).toMatch(/mcp_proxy_requests_total\{.*method="tools\/call".*\} 2\n/)
    expect(body).not.toContain('canary')
    expect(body).not.toContain(headers['mcp-session-id'])
  })

  test.each([
    '0.0.0.0',
    '::',
    Object.values(networkInterfaces())
      .flat()
      .find((it) => !it!.internal)?.address ?? '10.0.0.1',
  ])('are not opened to others by mistake: %s', (host) => {
    expect(() => metrics({ host })).toThrow(
      new TypeError(`metrics: expected a loopback host, or allowUnauthenticated, got ${JSON.stringify(host)}`),
    )
  })
})

describe('a health check', () => {
  test('tells how many there are, and nothing of them; nothing is started for it', async () => {
    const { port, isStarted } = await watched()
    const check = () => ask(port, { method: 'GET', path: '/healthz', headers: {} })
    const health = {
      status: 'ok',
      uptime: expect.any(Number),
      pending: 0,
      upstream: { name: 'node', state: 'unknown' },
    }
    expect(JSON.parse((await check()).body)).toMatchObject({ ...health, sessions: 0 })
    expect(isStarted()).toBe(false)
    const id = await session(port, right)
    const { body, headers } = await check()
    expect(Object.keys(JSON.parse(body) as object).sort()).toEqual([
      'pending',
      'sessions',
      'status',
      'upstream',
      'uptime',
    ])
    expect(JSON.parse(body)).toMatchObject({ sessions: 1 })
    expect(body).not.toMatch(new RegExp(`canary|${id}|writeFileSync|-e`))
    expect(headers['cache-control']).toBe('no-store')
  })

  test.each(['POST', 'PUT', 'DELETE', 'PATCH', 'OPTIONS', 'TRACE'])(
    'is no place to send anything to: %s',
    async (method) => {
      const upstream = server()
      const { port } = await listen(upstream.open)
      const body = method === 'TRACE' ? undefined : initialize()
      expect((await ask(port, { method, path: '/healthz', headers: ours, body })).status).toBe(405)
      expect(upstream.wires).toEqual([])
    },
  )
})
