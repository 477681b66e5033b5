import { getEventListeners, once } from 'node:events'
import { request as httpRequest } from 'node:http'
import { createServer, type Socket, connect as tcp } from 'node:net'
import { Counter, Registry } from 'prom-client'
import { afterEach, describe, expect, test, vi } from 'vitest'
import { type MetricsOptions, metrics } from '../../middleware/metrics.js'
import { type Application, createProxy, onExchange, onRequest, onResponse, proxyError } from '../../src/index.js'
import { testContext, testProxy } from '../../src/testing.js'
import { closing } from '../fixtures/closing.js'
import { HandWire } from '../fixtures/played.js'

/** What a registry holds: series without zeros as `name{label="value"}` without the `mcp_proxy_`, durations by count. */
async function valuesOf(registry: Registry): Promise<Record<string, number>> {
  const values: Record<string, number> = {}
  for (const metric of await registry.getMetricsAsJSON()) {
    for (const { metricName = metric.name, labels, value } of metric.values as never[] as Value[]) {
      const name = metricName.replace(/^mcp_proxy_/, '')
      if (value === 0 || /_(bucket|sum)$/.test(name)) continue
      const words = Object.values(labels).filter((it) => it !== '')
      values[[name, ...words].join(' ')] = value
    }
  }
  return values
}

interface Value {
  metricName?: string
  labels: Record<string, string | number>
  value: number
}

/** A proxy whose metrics are in a registry of the test's. */
function measured(options: MetricsOptions = {}, app: Application = createProxy()) {
  const registry = options.registry ?? new Registry()
  const proxy = testProxy(app.use(metrics({ ...options, registry })))
  return { ...proxy, registry, values: () => valuesOf(registry) }
}

const call = (id: string | number, name = 'add') => ({ id, method: 'tools/call', params: { name, arguments: {} } })
const out = 'client-to-server'
const back = 'server-to-client'

afterEach(() => {
  vi.restoreAllMocks()
})

describe('counts', () => {
  test('messages of both directions, requests by their outcome, durations', async () => {
    const proxy = measured()
    await proxy.fromClient({ id: 0, method: 'initialize', params: {} })
    await proxy.fromServer({ id: 0, result: {} })
    await proxy.fromClient({ method: 'notifications/initialized' })
    for (const id of [1, '1', '']) await proxy.fromClient(call(id))
    await proxy.fromServer({ method: 'notifications/progress', params: { progressToken: 1, progress: 1 } })
    await proxy.fromServer({ id: 1, result: { content: [] } })
    await proxy.fromServer({ id: '1', result: { content: [], isError: true } })
    await proxy.fromServer({ id: '', error: { code: -32602, message: 'no' } })
    await proxy.fromServer({ id: 1, method: 'sampling/createMessage', params: {} })
    await proxy.fromClient({ id: 1, error: { code: -1, message: 'User rejected' } })
    await proxy.fromClient(call(2))
    expect(await proxy.values()).toEqual({
      [`messages_total ${out} request initialize`]: 1,
      [`messages_total ${back} response initialize`]: 1,
      [`messages_total ${out} notification notifications/initialized`]: 1,
      [`messages_total ${out} request tools/call`]: 4,
      [`messages_total ${back} response tools/call`]: 3,
      [`messages_total ${back} notification notifications/progress`]: 1,
      [`messages_total ${back} request sampling/createMessage`]: 1,
      [`messages_total ${out} response sampling/createMessage`]: 1,
      [`requests_total ${out} initialize ok`]: 1,
      [`requests_total ${out} tools/call ok`]: 1,
      [`requests_total ${out} tools/call tool_error`]: 1,
      [`requests_total ${out} tools/call error -32602`]: 1,
      [`requests_total ${back} sampling/createMessage error -1`]: 1,
      [`request_duration_seconds_count ${out} initialize ok`]: 1,
      [`request_duration_seconds_count ${out} tools/call ok`]: 1,
      [`request_duration_seconds_count ${out} tools/call tool_error`]: 1,
      [`request_duration_seconds_count ${out} tools/call error`]: 1,
      [`request_duration_seconds_count ${back} sampling/createMessage error`]: 1,
      [`requests_in_flight ${out} tools/call`]: 1,
    })
  })

  test('only what calls a tool can be a tool error', async () => {
    const proxy = measured()
    await proxy.fromClient({ id: 1, method: 'prompts/get', params: { name: 'x' } })
    await proxy.fromServer({ id: 1, result: { isError: true } })
    await proxy.fromClient(call(2))
    await proxy.fromServer({ id: 2, result: { isError: 'true' } })
    await proxy.fromClient(call(3))
    await proxy.fromServer('{"jsonrpc":"2.0","id":3,"result":{"isErr\\u006fr":true}}')
    expect(await proxy.values()).toMatchObject({
      [`requests_total ${out} prompts/get ok`]: 1,
      [`requests_total ${out} tools/call ok`]: 1,
      [`requests_total ${out} tools/call tool_error`]: 1,
    })
  })

  test('answers of middleware behind it, and what that makes of answers', async () => {
    const app = createProxy()
    const proxy = measured({}, app)
    proxy.use(
      onRequest('tools/call', (ctx, next) => {
        if (ctx.name === 'reply') return ctx.reply({ content: [], isError: true })
        if (ctx.name === 'deny') throw proxyError('denied')
        if (ctx.name === 'forget') return undefined
        if (ctx.name === 'drop') return ctx.drop()
        return next()
      }),
      onResponse('tools/call', (ctx, next) => {
        if (ctx.result) ctx.result.isError = true
        return next()
      }),
    )
    app.on('error', () => {})
    let id = 0
    for (const name of ['reply', 'deny', 'forget', 'drop', 'pass']) await proxy.fromClient(call(++id, name))
    await proxy.fromServer({ id, result: { content: [] } })
    expect(await proxy.values()).toMatchObject({
      [`messages_total ${back} response tools/call`]: 5,
      [`requests_total ${out} tools/call tool_error`]: 2,
      [`requests_total ${out} tools/call error -31006`]: 2,
      [`requests_total ${out} tools/call error -32603`]: 1,
    })
  })

  test('a duration is from the request to its outcome', async () => {
    vi.useFakeTimers({ toFake: ['performance'] })
    try {
      const proxy = measured({ buckets: [1, 100, 200] })
      await proxy.fromClient(call(1))
      vi.advanceTimersByTime(150_000)
      await proxy.fromServer({ id: 1, result: {} })
      const [durations] = (await proxy.registry.getMetricsAsJSON()).filter(({ name }) => name.endsWith('_seconds'))
      const values = durations?.values as never[] as Value[]
      expect(values.map(({ metricName, labels, value }) => [metricName?.slice(35), labels.le, value])).toEqual([
        ['bucket', 1, 0],
        ['bucket', 100, 0],
        ['bucket', 200, 1],
        ['bucket', '+Inf', 1],
        ['sum', undefined, 150],
        ['count', undefined, 1],
      ])
    } finally {
      vi.useRealTimers()
    }
  })

  test('what passes it does not change', async () => {
    const text = '{ "id":1.0,"jsonrpc":"2.0", "result":{"isError":true,"n":1e400} }'
    const { ctx, next, deeds } = testContext(text, { request: { id: 1, method: 'tools/call' } })
    await metrics({ port: false })(ctx, next)
    expect(deeds.passed).toEqual([JSON.parse(text)])
    const proxy = measured()
    expect(await proxy.fromClient(call(7))).toEqual({ toClient: [], toServer: [{ jsonrpc: '2.0', ...call(7) }] })
    const result = { content: [], isError: true }
    expect(await proxy.fromServer({ id: 7, result })).toEqual({
      toClient: [{ jsonrpc: '2.0', id: 7, result }],
      toServer: [],
    })
  })
})

describe('a request has one outcome', () => {
  const cancelled = { [`requests_total ${out} tools/call cancelled`]: 1 }
  const over = `requests_in_flight ${out} tools/call`

  test('cancelled by its sender; a late answer is nobody’s', async () => {
    const proxy = measured()
    await proxy.fromClient(call(1))
    expect(await proxy.values()).toMatchObject({ [over]: 1 })
    await proxy.fromClient({ method: 'notifications/cancelled', params: { requestId: 1 } })
    await proxy.fromServer({ id: 1, result: {} })
    const values = await proxy.values()
    expect(values).toMatchObject({ ...cancelled, [`request_duration_seconds_count ${out} tools/call cancelled`]: 1 })
    expect(Object.keys(values).filter((it) => /^requests_/.test(it))).toEqual(Object.keys(cancelled))
  })

  test('cancelled while its answer is held by a middleware before it', async () => {
    const held: (() => void)[] = []
    const app = createProxy().use(
      onResponse('tools/call', async (_, next) => {
        await new Promise<void>((resolve) => held.push(resolve))
        return next()
      }),
    )
    const proxy = measured({}, app)
    await proxy.fromClient(call(1))
    // It does not come to rest while the middleware holds it.
    void proxy.fromServer({ id: 1, result: {} })
    await vi.waitFor(() => expect(held).toHaveLength(1))
    void proxy.fromClient({ method: 'notifications/cancelled', params: { requestId: 1 } })
    held[0]?.()
    await proxy.settle()
    const values = await proxy.values()
    expect(Object.entries(values).filter(([it]) => /^requests_/.test(it))).toEqual([
      [`requests_total ${out} tools/call ok`, 1],
    ])
  })

  test('given up by a middleware before it', async () => {
    let giveUp = () => {}
    const app = createProxy().use(
      onExchange('tools/call', async (_, next) => {
        const late = new Promise<never>((_, reject) => {
          giveUp = () => reject(proxyError('upstream_timeout'))
        })
        await Promise.race([next(), late])
      }),
    )
    const proxy = measured({}, app)
    await proxy.fromClient(call(1))
    giveUp()
    expect((await proxy.settle()).toClient).toMatchObject([{ id: 1, error: { code: -31002 } }])
    await proxy.fromServer({ id: 1, result: {} })
    const values = await proxy.values()
    expect(values).toMatchObject(cancelled)
    expect(values).not.toHaveProperty([over])
    expect(values).not.toHaveProperty([`requests_total ${out} tools/call ok`])
  })

  test.each(['client', 'server'] as const)('the session ends: the %s leaves', async (side) => {
    const proxy = measured({}, createProxy({ drainTimeout: 0 }))
    await proxy.fromClient(call(1))
    await proxy.fromServer({ id: 1, method: 'roots/list' })
    await proxy.end(side)
    const values = Object.entries(await proxy.values())
    const outcomes = values.filter(([it]) => it.startsWith('requests_total'))
    expect(outcomes.reduce((sum, [, value]) => sum + value, 0)).toBe(2)
    expect(values.filter(([it]) => it.startsWith('requests_in_flight'))).toEqual([])
  })

  test('several sessions use the same ids', async () => {
    const app = createProxy()
    const proxy = measured({}, app)
    const other = testProxy(app)
    await proxy.fromClient(call(1))
    await other.fromClient(call(1))
    await other.fromServer({ id: 1, result: { isError: true } })
    expect(await proxy.values()).toMatchObject({
      [over]: 1,
      [`requests_total ${out} tools/call tool_error`]: 1,
    })
    await proxy.fromServer({ id: 1, result: {} })
    expect(await proxy.values()).toMatchObject({ [`requests_total ${out} tools/call ok`]: 1 })
    expect(await proxy.values()).not.toHaveProperty([over])
  })

  test('nothing listens to its signal any more', async () => {
    const one = metrics({ port: false })
    const request = testContext(call(1))
    await one(request.ctx, request.next)
    expect(getEventListeners(request.ctx.signal, 'abort')).toHaveLength(1)
    const response = testContext({ id: 1, result: {} }, { request: call(1) })
    await one(response.ctx, response.next)
    expect(getEventListeners(request.ctx.signal, 'abort')).toHaveLength(0)
  })

  test('a second answer is a message, and no outcome', async () => {
    const registry = new Registry()
    const one = metrics({ registry })
    const request = testContext(call(1))
    await one(request.ctx, request.next)
    for (let times = 0; times < 2; times++) {
      const response = testContext({ id: 1, result: {} }, { request: call(1) })
      await one(response.ctx, response.next)
    }
    request.abort()
    expect(await valuesOf(registry)).toEqual({
      [`messages_total ${out} request tools/call`]: 1,
      [`messages_total ${back} response tools/call`]: 2,
      [`requests_total ${out} tools/call ok`]: 1,
      [`request_duration_seconds_count ${out} tools/call ok`]: 1,
    })
  })

  test('a request that was cancelled before it came', async () => {
    const registry = new Registry()
    const { ctx, next, abort } = testContext(call(1))
    abort()
    await metrics({ registry })(ctx, next)
    expect(await valuesOf(registry)).toEqual({
      [`messages_total ${out} request tools/call`]: 1,
      [`request_duration_seconds_count ${out} tools/call cancelled`]: 1,
      ...cancelled,
    })
  })
})

describe('what peers say costs a bounded number of series', () => {
  const hostile = ['__proto__', 'constructor', 'toString', 'x'.repeat(10_240), '\u001b[2J\n', '"}\\', '\ud800', '']

  test('methods and codes that no revision knows', async () => {
    const proxy = measured()
    let id = 0
    for (const method of [...hostile, ...Array.from({ length: 500 }, (_, n) => `made/up/${n}`)]) {
      await proxy.fromClient({ id: ++id, method })
      await proxy.fromServer({ id, error: { code: -100_000 - id, message: 'no' } })
      await proxy.fromServer({ method })
    }
    await proxy.fromServer({ error: { code: -32700, message: 'no id' } })
    const { length } = [...hostile, ...Array(500)]
    expect(await proxy.values()).toEqual({
      [`messages_total ${out} request other`]: length,
      [`messages_total ${back} response other`]: length + 1,
      [`messages_total ${back} notification other`]: length,
      [`requests_total ${out} other error other`]: length,
      [`request_duration_seconds_count ${out} other error`]: length,
    })
  })

  test.each([1.5, '-32601', null, 1e308, -31_100, -30_999, { toString: 1 }])('code %j is "other"', async (code) => {
    const proxy = measured()
    await proxy.fromClient(call(1))
    await proxy.fromServer({ id: 1, error: { code, message: 'no' } })
    expect(await proxy.values()).toHaveProperty([`requests_total ${out} tools/call error other`], 1)
  })

  test.each([-32_700, -32_002, -32_042, -31_000, -31_099])('code %j is itself', async (code) => {
    const proxy = measured()
    await proxy.fromClient(call(1))
    await proxy.fromServer({ id: 1, error: { code, message: 'no' } })
    expect(await proxy.values()).toHaveProperty([`requests_total ${out} tools/call error ${code}`], 1)
  })

  test('tools by name, once they gave a result, up to 200', async () => {
    const proxy = measured({ tools: true })
    let id = 0
    const use = async (name: string, answer: object) => {
      await proxy.fromClient(call(++id, name))
      await proxy.fromServer({ id, ...answer })
    }
    const error = { error: { code: -32602, message: 'Unknown tool' } }
    for (let n = 0; n < 300; n++) await use(`unknown-${n}`, error)
    await use('add', error)
    await use('add', { result: { isError: true } })
    await use('add', error)
    for (const name of hostile) await use(name, { result: {} })
    const fit = hostile.filter((it) => it.length < 200 && it !== '\ud800')
    for (let n = 0; n < 300; n++) await use(`tool-${n}`, { result: {} })
    await proxy.fromClient({ id: ++id, method: 'prompts/get', params: { name: 'prompt' } })
    await proxy.fromServer({ id, result: {} })
    const all = await proxy.registry.getMetricsAsJSON()
    const values = all.find(({ name }) => name === 'mcp_proxy_requests_total')?.values as never[] as Value[]
    const named = (name: string) =>
      values.filter(({ labels }) => labels.tool === name).map(({ labels, value }) => [labels.outcome, value])
    expect(named('add')).toEqual([
      ['tool_error', 1],
      ['error', 1],
    ])
    for (const name of fit.filter((it) => it !== '')) expect(named(name), name).toEqual([['ok', 1]])
    expect(named('unknown-1')).toEqual([])
    expect(named('prompt')).toEqual([])
    for (const name of hostile.filter((it) => !fit.includes(it))) expect(named(name)).toEqual([])
    const taken = new Set(values.map(({ labels }) => labels.tool))
    // With `other`, and that of what calls no tool, which the empty name shares.
    expect(taken.size).toBe(200 + 1)
    expect(named('other')).toEqual([
      ['error', 301],
      ['ok', hostile.length - fit.length + 300 - (200 - fit.length - 1)],
    ])
  })

  test('without being asked, no tool is named', async () => {
    const proxy = measured()
    await proxy.fromClient(call(1, 's3cret'))
    await proxy.fromServer({ id: 1, result: {} })
    expect(await proxy.registry.metrics()).not.toMatch(/s3cret|tool=/)
  })
})

describe('options', () => {
  test.each([
    [{ port: 65_536 }, 'port from 0 to 65535, or false, got 65536'],
    [{ port: -1 }, 'port from 0 to 65535, or false, got -1'],
    [{ port: 1.5 }, 'port from 0 to 65535, or false, got 1.5'],
    [{ port: '80' }, 'port from 0 to 65535, or false, got "80"'],
    [{ port: true }, 'port from 0 to 65535, or false, got true'],
    [{ host: '' }, 'host, an address or a name, got ""'],
    [{ host: 5, allowUnauthenticated: true }, 'host, an address or a name, got 5'],
    [{ host: '0.0.0.0' }, 'a loopback host, or allowUnauthenticated, got "0.0.0.0"'],
    [{ host: '::' }, 'a loopback host, or allowUnauthenticated, got "::"'],
    [{ host: '127.example.com' }, 'a loopback host, or allowUnauthenticated, got "127.example.com"'],
    [{ allowUnauthenticated: 'yes' }, 'allowUnauthenticated true or false, got "yes"'],
    [{ tools: 1 }, 'tools true or false, got 1'],
    [{ defaultMetrics: null }, 'defaultMetrics true or false, got null'],
    [{ allowHosts: 'a' }, 'allowHosts, an array of names, got "a"'],
    [{ allowHosts: [1] }, 'allowHosts, an array of names, got [1]'],
    [{ path: 'metrics' }, 'path that begins with / and has no query, got "metrics"'],
    [{ path: '/a?b' }, 'path that begins with / and has no query, got "/a?b"'],
    [{ labels: [] }, 'labels, an object, got []'],
    [{ labels: null }, 'labels, an object, got null'],
    [{ labels: { a: 1 } }, 'label "a" to be a string, got 1'],
    [{ labels: { le: 'x' } }, /^metrics: expected names of labels .*, got "le"$/],
    [{ labels: { method: 'x' } }, /^metrics: expected names of labels .*, got "method"$/],
    [{ labels: { 'a-b': 'x' } }, /^metrics: expected names of labels .*, got "a-b"$/],
    [{ labels: JSON.parse('{"__proto__":"x"}') }, /^metrics: expected names of labels .*, got "__proto__"$/],
    [{ buckets: [] }, 'buckets, rising seconds, got []'],
    [{ buckets: [1, 1] }, 'buckets, rising seconds, got [1,1]'],
    [{ buckets: [0] }, 'buckets, rising seconds, got [0]'],
    [{ buckets: [1, Number.POSITIVE_INFINITY] }, 'buckets, rising seconds, got [1,null]'],
    [{ buckets: ['1'] }, 'buckets, rising seconds, got ["1"]'],
    [{ registry: {} }, `registry, one of prom-client's, got "object"`],
    [{ registry: new Registry(), defaultMetrics: true }, 'defaultMetrics or registry, got "both"'],
  ])('%j is refused', (options, text) => {
    const expected = typeof text === 'string' ? `metrics: expected ${text}` : text
    expect(() => metrics(options as never)).toThrow(TypeError)
    expect(() => metrics(options as never)).toThrow(expected)
  })

  test('it observes', () => {
    const { role, name } = metrics()
    expect({ role, name }).toEqual({ role: 'observe', name: 'metrics' })
  })

  test('labels are on every series of its own, and on no other of the registry', async () => {
    const registry = new Registry()
    const mine = new Counter({ name: 'mine_total', help: 'Mine.', registers: [registry] })
    mine.inc()
    const app = createProxy()
    const proxy = measured({ registry, labels: { zone: 'eu "1"\\\n' } }, app)
    await proxy.fromClient(call(1))
    await proxy.fromServer({ id: 1, result: {} })
    const lines = (await registry.metrics()).split('\n').filter((it) => it !== '' && !it.startsWith('#'))
    for (const line of lines) {
      if (line.startsWith('mine_total')) expect(line).toBe('mine_total 1')
      else expect(line).toContain(String.raw`zone="eu \"1\"\\\n"`)
    }
  })

  test('one registry may have them several times: with the same shape, labels with values of their own', async () => {
    const registry = new Registry()
    const outer = measured({ registry, labels: { place: 'outer' } })
    const inner = measured({ registry, labels: { place: 'inner' } })
    const same = measured({ registry, labels: { place: 'inner' } })
    for (const proxy of [outer, inner, same]) await proxy.fromClient(call(1))
    expect(await valuesOf(registry)).toMatchObject({
      [`messages_total ${out} request tools/call outer`]: 1,
      [`messages_total ${out} request tools/call inner`]: 2,
      [`requests_in_flight ${out} tools/call outer`]: 1,
      [`requests_in_flight ${out} tools/call inner`]: 2,
    })
    const sorted = measured({ labels: { a: '1', b: '2' } })
    const turned = measured({ registry: sorted.registry, labels: { b: '2', a: '1' } })
    for (const proxy of [sorted, turned]) await proxy.fromClient(call(1))
    expect(await sorted.registry.metrics()).toContain('method="tools/call",a="1",b="2"} 2\n')
    const text = 'metrics: expected the buckets, tools and names of labels that the registry has them with already'
    for (const options of [{}, { labels: { place: 'outer' }, tools: true }, { labels: { place: 'a' }, buckets: [1] }]) {
      expect(() => metrics({ registry, ...options })).toThrow(new TypeError(text))
    }
  })
})

/** Serves with these middleware on a port for MCP, which nobody uses. */
async function started(...options: MetricsOptions[]) {
  vi.spyOn(process.stderr, 'write').mockReturnValue(true)
  const all = options.map((it) => metrics(it))
  const app = createProxy().use(...all)
  closing.push(() => app.close({ urgent: true }))
  await app.listen(() => new HandWire(), { port: 0 })
  return { app, all, url: all[0]?.address as string }
}

async function taken() {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  closing.push(() => server.close())
  return (server.address() as { port: number }).port
}

/** A port that was free a moment ago. */
async function free() {
  const port = await taken()
  await closing.pop()?.()
  return port
}

/** A GET with any Host, which fetch does not let through. */
function ask(url: string, host?: string, method = 'GET'): Promise<{ status?: number; body: string; allow?: string }> {
  return new Promise((resolve, reject) => {
    const request = httpRequest(
      url,
      { agent: false, method, headers: host === undefined ? {} : { host } },
      async (response) => {
        let body = ''
        for await (const chunk of response) body += chunk
        resolve({ status: response.statusCode, body, allow: response.headers.allow })
      },
    )
    request.on('error', reject).end()
  })
}

describe('its own port', () => {
  test('serves GET and HEAD on its path, and nothing else', async () => {
    const { url, all } = await started({ port: 0 })
    expect(url).toMatch(/^http:\/\/127\.0\.0\.1:\d+\/metrics$/)
    const got = await fetch(url)
    expect(got.status).toBe(200)
    expect(Object.fromEntries(got.headers)).toMatchObject({
      'content-type': 'text/plain; version=0.0.4; charset=utf-8',
      'x-content-type-options': 'nosniff',
    })
    const text = await got.text()
    expect(text).toBe(await all[0]?.registry.metrics())
    expect(text).not.toContain('process_cpu')
    const head = await fetch(`${url}?x=1`, { method: 'HEAD' })
    expect([head.status, await head.text()]).toEqual([200, ''])
    for (const method of ['POST', 'PUT', 'DELETE', 'OPTIONS', 'PATCH']) {
      expect(await ask(url, undefined, method)).toEqual({ status: 405, body: '', allow: 'GET, HEAD' })
    }
    for (const path of ['', '/', '/metrics/', '/mcp', '/metricsx', '/%6detrics']) {
      expect((await ask(new URL(url).origin + path)).status, path).toBe(path === '/metrics' ? 200 : 404)
    }
  })

  test('Host must name this machine, an address, or what is allowed', async () => {
    const { url } = await started({ port: 0, allowHosts: ['Metrics.lan'] })
    const good = ['localhost', 'LOCALHOST:1', '127.0.0.1', '127.0.0.1:9464', '[::1]:5', '10.1.2.3:80', 'metrics.lan:9']
    for (const host of good) expect((await ask(url, host)).status, host).toBe(200)
    const bad = ['evil.example', 'evil.example:9464', '127.0.0.1.evil.example', 'localhost@evil', '[x]', '1.2.3']
    for (const host of bad) expect((await ask(url, host)).status, host).toBe(403)
  })

  test('a host that others can reach, where that is allowed', async () => {
    const { url } = await started({ port: 0, host: '0.0.0.0', allowUnauthenticated: true, path: '/' })
    expect((await ask(url.replace('0.0.0.0', '127.0.0.1'))).status).toBe(200)
    expect((await ask(url.replace('0.0.0.0', '127.0.0.1'), 'evil.example')).status).toBe(403)
  })

  test('says where, where nobody could know', async () => {
    const { url } = await started({ port: 0 })
    expect(process.stderr.write).toHaveBeenCalledExactlyOnceWith(`metrics: listening on ${url}\n`)
    vi.mocked(process.stderr.write).mockClear()
    const port = await free()
    expect((await started({ port })).url).toBe(`http://127.0.0.1:${port}/metrics`)
    expect(process.stderr.write).not.toHaveBeenCalled()
  })

  test('a port that is taken fails the start', async () => {
    const port = await taken()
    const app = createProxy().use(metrics({ port }))
    const text = `metrics: port ${port} on 127.0.0.1 is taken`
    await expect(app.listen(() => new HandWire(), { port: 0 })).rejects.toThrow(new Error(text))
    await closing.pop()?.()
    await app.listen(() => new HandWire(), { port: 0 })
    expect((await ask(`http://127.0.0.1:${port}/metrics`)).status).toBe(200)
    await app.close()
    await expect(ask(`http://127.0.0.1:${port}/metrics`)).rejects.toThrow('ECONNREFUSED')
  })

  test('closes, whoever is still connected', async () => {
    const { app, url } = await started({ port: 0 })
    const half = 'GET /metrics HTTP/1.1\r\nhost: localhost\r\n'
    const sockets = [half, `${half}\r\n`].map((text) => {
      const socket = tcp(Number(new URL(url).port), '127.0.0.1')
      socket.write(text)
      return socket
    })
    const closed = sockets.map((it) => once(it, 'close'))
    await once(sockets[1] as Socket, 'data')
    await app.close()
    await Promise.all(closed)
    await expect(ask(url)).rejects.toThrow('ECONNREFUSED')
  })

  test('no port is opened beside a registry, unless asked for', async () => {
    const registry = new Registry()
    const { url } = await started({ registry })
    expect(url).toBeUndefined()
    const { url: both } = await started({ registry, port: 0 })
    expect(await (await fetch(both)).text()).toBe(await registry.metrics())
    expect((await started({ port: false })).url).toBeUndefined()
  })

  test('also the metrics of the process', async () => {
    const { url } = await started({ port: 0, defaultMetrics: true })
    const text = await (await fetch(url)).text()
    expect(text).toMatch(/^process_cpu_seconds_total \d/m)
    expect(text).toMatch(/^mcp_proxy_sessions 0$/m)
    const { url: other } = await started({ port: 0, defaultMetrics: true })
    expect(await (await fetch(other)).text()).toMatch(/^process_cpu_seconds_total \d/m)
  })

  test('what fails is not told', async () => {
    const registry = new Registry()
    const { url } = await started({ registry, port: 0 })
    new Counter({
      name: 'bad_total',
      help: 'x',
      registers: [registry],
      collect() {
        throw new Error('s3cret')
      },
    })
    expect(await ask(url)).toMatchObject({ status: 500, body: '' })
  })
})

describe('what the application knows', () => {
  test('sessions, lanes and dropped messages', async () => {
    const { app, all, url } = await started({ port: 0 })
    const registry = all[0]?.registry as Registry
    const held: (() => void)[] = []
    app.use(async (_, next) => {
      await new Promise<void>((resolve) => held.push(resolve))
      return next()
    })
    const one = testProxy(app)
    const two = testProxy(app)
    void one.fromClient({ method: 'notifications/initialized' })
    await vi.waitFor(() => expect(held).toHaveLength(1))
    await two.fromServer({ id: 'nobody asked', result: {} })
    expect(await valuesOf(registry)).toEqual({
      [`messages_total ${out} notification notifications/initialized`]: 1,
      sessions: 2,
      [`waiting_messages ${out}`]: 1,
      dropped_messages_total: 1,
    })
    held[0]?.()
    await one.end('client')
    await two.end('client')
    expect(await valuesOf(registry)).toEqual({
      [`messages_total ${out} notification notifications/initialized`]: 1,
      dropped_messages_total: 1,
    })
    expect(url).toBeDefined()
    await testProxy(app).fromServer({ id: 'nobody asked', result: {} })
    await app.close()
    expect(await valuesOf(registry)).toMatchObject({ dropped_messages_total: 2 })
  })
})

describe('another takes its place', () => {
  test('on the same port, and counts on: nothing is lost, nothing is counted twice', async () => {
    const port = await free()
    const { app, url, all } = await started({ port })
    const proxy = testProxy(app)
    await proxy.fromClient(call(1))
    await proxy.fromClient(call(2))
    await proxy.fromServer({ id: 2, result: {} })
    await proxy.fromServer({ id: 'nobody asked', result: {} })
    const next = metrics({ port })
    await app.replace(next)
    await all[0]?.close?.()
    await proxy.fromClient(call(3))
    for (const id of [1, 3]) await proxy.fromServer({ id, result: {} })
    expect(next.address).toBe(url)
    expect(await valuesOf(next.registry)).toEqual({
      [`messages_total ${out} request tools/call`]: 3,
      [`messages_total ${back} response tools/call`]: 3,
      [`requests_total ${out} tools/call ok`]: 3,
      [`request_duration_seconds_count ${out} tools/call ok`]: 3,
      sessions: 1,
      dropped_messages_total: 1,
    })
    expect(await ask(url)).toMatchObject({ status: 200, body: await next.registry.metrics() })
    await app.close()
    await expect(ask(url)).rejects.toThrow('ECONNREFUSED')
  })

  test('a port of 0 stays what it was; another application gets its own', async () => {
    const { app, url } = await started({ port: 0 })
    const next = metrics({ port: 0 })
    await app.replace(next)
    expect(next.address).toBe(url)
    expect((await started({ port: 0 })).url).not.toBe(url)
  })

  test('two applications may share a port: it closes with the last', async () => {
    const port = await free()
    const one = await started({ port })
    const two = await started({ port })
    const a = testProxy(one.app)
    const b = testProxy(two.app)
    await a.fromClient(call(1))
    await b.fromClient(call(1))
    expect(two.all[0]?.registry).toBe(one.all[0]?.registry)
    expect(await valuesOf(two.all[0]?.registry as Registry)).toMatchObject({
      [`requests_in_flight ${out} tools/call`]: 2,
      sessions: 2,
    })
    await one.app.close({ urgent: true })
    expect((await ask(one.url)).body).toMatch(/^mcp_proxy_sessions 1$/m)
    await two.app.close({ urgent: true })
    await expect(ask(one.url)).rejects.toThrow('ECONNREFUSED')
  })

  test('two that start at once', async () => {
    const port = await free()
    const [one, two] = await Promise.all([started({ port }), started({ port })])
    expect(two.url).toBe(one.url)
  })

  test.each([
    { buckets: [1] },
    { tools: true },
    { labels: { a: 'b' } },
    { path: '/' },
    { allowHosts: ['a'] },
    { defaultMetrics: true },
    { registry: new Registry() },
  ])('with other options it does not start, and the old one goes on: %j', async (options) => {
    const { app, url } = await started({ port: 0 })
    const text =
      'metrics: port 0 on 127.0.0.1 is served already with another registry, path, allowHosts, defaultMetrics, ' +
      'buckets, tools or names of labels'
    await expect(app.replace(metrics({ port: 0, ...options }))).rejects.toThrow(new Error(text))
    expect((await ask(url)).status).toBe(200)
  })

  test('labels may have other values', async () => {
    const { app } = await started({ port: 0, labels: { version: '1' } })
    const next = metrics({ port: 0, labels: { version: '2' } })
    await testProxy(app).fromServer({ id: 'nobody asked', result: {} })
    await app.replace(next)
    await testProxy(app).fromClient(call(1))
    const values = await valuesOf(next.registry)
    expect(values).toMatchObject({ [`messages_total ${out} request tools/call 2`]: 1 })
    expect((values['dropped_messages_total 1'] ?? 0) + (values['dropped_messages_total 2'] ?? 0)).toBe(1)
  })
})
