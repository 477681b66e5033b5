import { once } from 'node:events'
import { connect } from 'node:net'
import { afterEach, describe, expect, test, vi } from 'vitest'
import { closing } from '../fixtures/closing.js'
import { turnOfLoop } from '../fixtures/played.js'
import {
  ask,
  dial,
  initialize,
  invalidRequest,
  lines,
  listen,
  type Message,
  modern,
  open,
  ours,
  raw,
  server,
  session,
  sse,
  told,
} from './helpers.js'

afterEach(() => void vi.useRealTimers())

const proxyError = (code: number, message: string, reason: string, retryable: boolean, id?: number) => ({
  jsonrpc: '2.0',
  ...(id !== undefined && { id }),
  error: { code, message, data: { source: 'proxy', reason, phase: 'not_sent', retryable } },
})
const tooLarge = (bytes: number) => proxyError(-31007, `Message too large: over ${bytes} bytes`, 'too_large', false)

const head = [
  'Host: localhost',
  'Content-Type: application/json',
  'Accept: application/json, text/event-stream',
  'Connection: close',
]
const begin = (...more: string[]) => ['POST /mcp HTTP/1.1', ...head, ...more, '', ''].join('\r\n')

/** A handshake of exactly so many bytes. */
function sized(bytes: number): string {
  const bare = JSON.stringify(initialize(1))
  return bare + ' '.repeat(bytes - bare.length)
}

describe('a body', () => {
  const MAX = 1_000

  test('of exactly the limit is taken, in one piece and in chunks', async () => {
    const upstream = server()
    const { port } = await listen(upstream.open, { maxBodyBytes: MAX })
    expect((await ask(port, { body: sized(MAX) })).status).toBe(200)
    const chunks = (sized(MAX).match(/.{1,7}/gs) ?? []).map((it) => `${it.length.toString(16)}\r\n${it}\r\n`)
    const chunked = await raw(port, `${begin('Transfer-Encoding: chunked')}${chunks.join('')}0\r\n\r\n`)
    expect(chunked.status).toBe(200)
    expect(upstream.heard()).toHaveLength(2)
  })

  test('that says to be larger is a 413 before any of it has come', async () => {
    const upstream = server()
    const { port } = await listen(upstream.open, { maxBodyBytes: MAX })
    for (const length of [MAX + 1, 2 ** 31, 2 ** 40, Number.MAX_SAFE_INTEGER]) {
      const got = await raw(port, begin(`Content-Length: ${length}`))
      expect(told(got)).toEqual({ status: 413, body: tooLarge(MAX) })
    }
    expect(upstream.wires).toEqual([])
  })

  test('that grows larger in chunks is a 413, and cut off', async () => {
    const upstream = server()
    const { port } = await listen(upstream.open, { maxBodyBytes: MAX })
    const line = await dial(port)
    line.write(begin('Transfer-Encoding: chunked'))
    const endless = setInterval(() => line.write(`40\r\n${'x'.repeat(64)}\r\n`), 1)
    closing.push(() => clearInterval(endless))
    const all = await line.closed
    expect(all).toMatch(/^HTTP\/1\.1 413 /)
    expect(JSON.parse(all.split('\r\n\r\n')[1]!)).toEqual(tooLarge(MAX))
    expect(upstream.wires).toEqual([])
  })

  test('is counted in bytes, not in characters', async () => {
    const { port } = await listen(server().open, { maxBodyBytes: MAX })
    const body = JSON.stringify({ ...initialize(1), x: 'é'.repeat(450) })
    expect(body.length).toBeLessThan(MAX)
    expect(told(await ask(port, { body }))).toEqual({ status: 413, body: tooLarge(MAX) })
  })

  test('is bounded on every route that takes one, and for both eras', async () => {
    const upstream = server()
    const { port } = await listen(upstream.open, { maxBodyBytes: MAX })
    const stream = await sse(port)
    const id = await session(port)
    const before = upstream.heard()
    const { headers } = modern(1, 'ping')
    for (const asked of [
      { path: stream.endpoint, headers: ours },
      { path: '/mcp', headers: { ...ours, 'mcp-session-id': id } },
      { path: '/mcp', headers },
    ]) {
      expect(told(await ask(port, { ...asked, body: sized(MAX + 1) }))).toEqual({ status: 413, body: tooLarge(MAX) })
    }
    expect(upstream.heard()).toEqual(before)
  })

  test('may have 16 MiB by default', async () => {
    const { port } = await listen(server().open)
    const limit = 16 * 1024 * 1024
    const got = await raw(port, begin(`Content-Length: ${limit + 1}`))
    expect(told(got)).toEqual({ status: 413, body: tooLarge(limit) })
    const line = await dial(port)
    line.write(begin(`Content-Length: ${limit}`))
    for (let count = 0; count < 20; count++) await turnOfLoop()
    expect(line.heard()).toBe('')
  })

  test('that is compressed is not taken: it could grow to any size', async () => {
    const upstream = server()
    const { port } = await listen(upstream.open)
    for (const coding of ['gzip', 'deflate', 'br', 'zstd', 'x-gzip', 'GZIP', 'identity, gzip', 'gzip, identity']) {
      const got = await ask(port, { headers: { ...ours, 'content-encoding': coding }, body: initialize() })
      const expected = invalidRequest('expected a body without Content-Encoding')
      expect(told(got)).toEqual({ status: 415, body: expected })
    }
    expect(upstream.wires).toEqual([])
  })
})

describe('time', () => {
  test('a body that takes 30 s is a 408, and cut off', async () => {
    const upstream = server()
    const { port } = await listen(upstream.open)
    const line = await dial(port)
    // Node's own timers are none of these.
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
    const before = vi.getTimerCount()
    line.write(`${begin('Content-Length: 1000')}{"jsonrpc":`)
    while (vi.getTimerCount() === before) await turnOfLoop()
    vi.advanceTimersByTime(29_999)
    line.write('"2.0",')
    for (let count = 0; count < 20; count++) await turnOfLoop()
    expect(line.heard()).toBe('')
    vi.advanceTimersByTime(1)
    while (!line.heard().includes('\r\n\r\n{')) await turnOfLoop()
    expect(line.heard()).toMatch(/^HTTP\/1\.1 408 /)
    vi.advanceTimersByTime(1_000)
    const all = await line.closed
    expect(JSON.parse(all.split('\r\n\r\n')[1]!)).toEqual(invalidRequest('the body took too long'))
    expect(upstream.wires).toEqual([])
  })

  test('an answer may take as long as it takes', async () => {
    const upstream = server(() => undefined)
    const { port } = await listen(upstream.open, { keepAlive: 1_000_000_000 })
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
    const asked = ask(port, { body: initialize(1) })
    while (upstream.heard().length === 0) await turnOfLoop()
    vi.advanceTimersByTime(3_600_000)
    upstream.wires[0]!.say({ id: 1, result: { late: true } })
    expect(told(await asked)).toEqual({ status: 200, body: { jsonrpc: '2.0', id: 1, result: { late: true } } })
  })

  test('headers that take 10 s are a 408, however busily they come', async () => {
    const { port } = await listen(server().open)
    const [still, busy, silent] = await Promise.all([dial(port), dial(port), dial(port)])
    still.write('POST /mcp HTTP/1.1\r\nHost: localhost\r\n')
    busy.write('POST /mcp HTTP/1.1\r\nHost: localhost\r\nX-A: ')
    const drip = setInterval(() => busy.write('a'), 200)
    closing.push(() => clearInterval(drip))
    const heard = await Promise.all([still.closed, busy.closed, silent.closed])
    for (const text of heard.slice(0, 2)) expect(text).toMatch(/^HTTP\/1\.1 408 Request Timeout\r\n/)
  })
})

describe('headers', () => {
  const filled = (bytes: number) => `X-Filler: ${'a'.repeat(bytes)}`

  test('of 15 KiB pass, of 16 KiB are a 431', async () => {
    const upstream = server()
    const { port } = await listen(upstream.open)
    const body = JSON.stringify(initialize(1))
    const length = `Content-Length: ${body.length}`
    expect((await raw(port, begin(length, filled(15 << 10)) + body)).status).toBe(200)
    expect(upstream.wires).toHaveLength(1)
    for (const more of [[filled(16 << 10)], Array.from({ length: 2_000 }, (_, at) => `X-${at}: aaaa`)]) {
      const got = await raw(port, begin(length, ...more) + body)
      expect(got.status).toBe(431)
    }
    expect((await raw(port, lines('GET', `/mcp?${'a'.repeat(17 << 10)}`, ['Host: localhost']))).status).toBe(431)
    expect(upstream.wires).toHaveLength(1)
  })

  test('of chunks are bounded, too', async () => {
    const upstream = server()
    const { port } = await listen(upstream.open)
    const chunk = `1;${'x'.repeat(20 << 10)}\r\n{\r\n`
    const extended = await raw(port, begin('Transfer-Encoding: chunked') + chunk)
    const trailed = await raw(port, `${begin('Transfer-Encoding: chunked')}1\r\n{\r\n0\r\n${filled(17 << 10)}\r\n\r\n`)
    expect([extended.status, trailed.status].filter((it) => it !== 400 && it !== 413 && it !== 431)).toEqual([])
    expect(upstream.wires).toEqual([])
  })
})

describe('nesting', () => {
  const nested = (levels: number, open = '[', close = ']') => {
    // The message, its params and the arguments are three.
    const inner = levels - 3
    return `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":{"a":${open.repeat(inner)}1${close.repeat(inner)}}}}`
  }
  const deep = invalidRequest('nested deeper than 512 levels', 1)

  test('of 512 levels passes byte for byte, of 513 is a 400', async () => {
    const upstream = server()
    const { port } = await listen(upstream.open)
    const id = await session(port)
    const headers = { ...ours, 'mcp-session-id': id }
    for (const [open, close] of [
      ['[', ']'],
      ['{"a":', '}'],
    ] as const) {
      const most = nested(512, open, close)
      expect((await ask(port, { headers, body: most })).status).toBe(200)
      expect(upstream.heard().at(-1)).toBe(most)
      const before = upstream.heard()
      for (const levels of [513, 5_000, 100_000]) {
        expect(told(await ask(port, { headers, body: nested(levels, open, close) }))).toEqual({
          status: 400,
          body: deep,
        })
      }
      expect(upstream.heard()).toEqual(before)
    }
  })

  test('of 513 levels is a 400 for a modern request, and in the place of a batch for its element', async () => {
    const upstream = server()
    const { port } = await listen(upstream.open)
    const id = await session(port, {})
    const before = upstream.heard()
    const { headers } = modern(1, 'tools/call', {}, 'a')
    expect(told(await ask(port, { headers, body: nested(513) }))).toEqual({ status: 400, body: deep })
    const batch = await ask(port, { headers: { ...ours, 'mcp-session-id': id }, body: `[${nested(513)}]` })
    expect(told(batch)).toEqual({ status: 200, body: [deep] })
    expect(upstream.heard()).toEqual(before)
  })

  test('that never ends is a 400', async () => {
    const upstream = server()
    const { port } = await listen(upstream.open)
    const parse = (offset: number) => ({
      jsonrpc: '2.0',
      error: { code: -32700, message: expect.stringMatching(`Parse error: .*(${offset}|end)`) },
    })
    for (const body of ['['.repeat(1_000_000), '{"a":'.repeat(200_000)]) {
      const got = await ask(port, { body })
      expect(told(got)).toEqual({ status: 400, body: parse(body.length) })
    }
    expect(upstream.wires).toEqual([])
  })
})

describe('a batch', () => {
  const ping = (id: number) => ({ jsonrpc: '2.0', id, method: 'ping' })

  test('of more than 1,000 messages is a 400, whatever they are, in a moment', async () => {
    const upstream = server()
    const { port } = await listen(upstream.open)
    const headers = { ...ours, 'mcp-session-id': await session(port) }
    const full = { status: 400, body: invalidRequest('over 1000 messages in a batch') }
    for (const one of ['1', '{}', '""', JSON.stringify(ping(1)), '{"jsonrpc":"2.0","method":"x"}']) {
      const body = `[${`${one},`.repeat(1_000)}${one}]`
      expect(told(await ask(port, { headers, body }))).toEqual(full)
    }
    expect(told(await ask(port, { headers, body: `[${'1,'.repeat(8_000_000)}1]` }))).toEqual(full)
    expect(upstream.heard()).toEqual([JSON.stringify(initialize())])
  })

  test('of 1,000 is answered, one by one', async () => {
    const { port } = await listen(server().open)
    const headers = { ...ours, 'mcp-session-id': await session(port) }
    const all = Array.from({ length: 1_000 }, (_, at) => (at % 2 ? ping(at) : 1))
    const { status, body } = told(await ask(port, { headers, body: all })) as { status: number; body: Message[] }
    expect([status, body.filter(({ error }) => error?.code === -32600).length]).toEqual([200, 500])
    const ids = body.flatMap(({ id }) => (id === undefined ? [] : [id]))
    expect(ids.sort((one, two) => Number(one) - Number(two))).toEqual(
      Array.from({ length: 500 }, (_, at) => 2 * at + 1),
    )
  })
})

describe('sessions', () => {
  test('more than there is room for get a 503, of every kind; one that ends makes room', async () => {
    const { port, app } = await listen(server().open, { maxSessions: 2 })
    const id = await session(port)
    const stream = await sse(port)
    const full = proxyError(-31005, 'Overloaded: too many sessions', 'overloaded', true)
    const withId = (id: number) => ({ ...full, id })
    const get = { method: 'GET', path: '/sse', headers: { accept: 'text/event-stream' } }
    const found = [await ask(port, { body: initialize(5) }), await ask(port, get), await ask(port, modern(6, 'ping'))]
    expect(found.map(told)).toEqual([
      { status: 503, body: withId(5) },
      { status: 503, body: full },
      { status: 503, body: withId(6) },
    ])
    expect(found.map(({ headers }) => headers['retry-after'])).toEqual(['5', '5', '5'])
    expect(app.stats().sessions).toBe(2)
    // Those that are there are not disturbed.
    const ping = { jsonrpc: '2.0', id: 1, method: 'ping' }
    expect((await ask(port, { headers: { ...ours, 'mcp-session-id': id }, body: ping })).status).toBe(200)
    await ask(port, { method: 'DELETE', headers: { 'mcp-session-id': id } })
    await vi.waitFor(() => expect(app.stats().sessions).toBe(1))
    await session(port)
    stream.close()
    await vi.waitFor(() => expect(app.stats().sessions).toBe(1))
    expect((await ask(port, modern(6, 'ping'))).status).toBe(200)
  })

  test('a handshake that fails takes no room', async () => {
    const { port, app } = await listen(server(() => ({ error: { code: -32602, message: 'no' } })).open, {
      maxSessions: 1,
    })
    for (let count = 0; count < 3; count++) {
      expect((await ask(port, { body: initialize() })).status).toBe(200)
      await vi.waitFor(() => expect(app.stats().sessions).toBe(0))
    }
  })
})

describe('requests that wait', () => {
  const ping = (id: number) => ({ jsonrpc: '2.0', id, method: 'ping' })
  const full = (id: number) => proxyError(-31005, 'Overloaded: too many requests wait', 'overloaded', true, id)
  const silent = () => server(({ method }) => (method === 'initialize' ? { result: {} } : undefined))

  test('past the limit of a session get -31005, and the others their answers', async () => {
    const upstream = silent()
    const { port } = await listen(upstream.open, { maxPending: 2 })
    const id = await session(port)
    const headers = { ...ours, 'mcp-session-id': id }
    const waiting = [ask(port, { headers, body: ping(1) }), ask(port, { headers, body: ping(2) })]
    await vi.waitFor(() => expect(upstream.heard()).toHaveLength(3))
    expect(told(await ask(port, { headers, body: ping(3) }))).toEqual({ status: 200, body: full(3) })
    expect(told(await ask(port, { headers, body: [ping(4)] }))).toEqual({ status: 200, body: [full(4)] })
    expect(upstream.heard()).toHaveLength(3)
    // Another session has its own.
    const other = ask(port, { headers: { ...ours, 'mcp-session-id': await session(port) }, body: ping(1) })
    await vi.waitFor(() => expect(upstream.wires[1]?.sent).toHaveLength(2))
    for (const at of [1, 2]) upstream.wires[0]!.say({ id: at, result: { at } })
    upstream.wires[1]!.say({ id: 1, result: { other: true } })
    const answers = (await Promise.all([...waiting, other])).map(({ body }) => JSON.parse(body).result)
    expect(answers).toEqual([{ at: 1 }, { at: 2 }, { other: true }])
    const again = ask(port, { headers, body: ping(3) })
    await vi.waitFor(() => expect(upstream.wires[0]!.sent).toHaveLength(4))
    upstream.wires[0]!.say({ id: 3, result: {} })
    expect((await again).status).toBe(200)
  })

  test('count also where they come in one batch', async () => {
    const upstream = silent()
    const { port } = await listen(upstream.open, { maxPending: 2 })
    const headers = { ...ours, 'mcp-session-id': await session(port) }
    const asked = ask(port, { headers, body: [1, 2, 3].map(ping) })
    await vi.waitFor(() => expect(upstream.heard()).toHaveLength(3))
    for (const id of [1, 2]) upstream.wires[0]!.say({ id, result: {} })
    const { status, body } = told(await asked) as { status: number; body: unknown[] }
    const answers = [{ jsonrpc: '2.0', id: 1, result: {} }, { jsonrpc: '2.0', id: 2, result: {} }, full(3)]
    expect([status, body.length]).toEqual([200, 3])
    expect(body).toEqual(expect.arrayContaining(answers))
    expect(upstream.methods()).toEqual(['initialize', 'ping', 'ping'])
  })

  test('count over HTTP+SSE, too', async () => {
    const upstream = silent()
    const { port } = await listen(upstream.open, { maxPending: 2 })
    const stream = await sse(port)
    for (const at of [1, 2, 3]) expect((await ask(port, { path: stream.endpoint, body: ping(at) })).status).toBe(202)
    await vi.waitFor(() => expect(stream.messages()).toEqual([full(3)]), { timeout: 3_000 })
    expect(upstream.methods()).toEqual(['ping', 'ping'])
  })
})

describe('sockets', () => {
  test('more than maxConnections are closed unheard', async () => {
    const { port } = await listen(server().open, { maxConnections: 2 })
    const first = await dial(port)
    await dial(port)
    const third = await dial(port)
    third.write(lines('GET', '/healthz', ['Host: localhost']))
    expect(await third.closed).toBe('')
    first.write(lines('GET', '/healthz', ['Host: localhost']))
    expect(await first.closed).toMatch(/^HTTP\/1\.1 200 /)
    await vi.waitFor(async () => {
      const { status } = await raw(port, lines('GET', '/healthz', ['Host: localhost']))
      expect(status).toBe(200)
    })
  })

  test.runIf(process.platform === 'linux')(
    'more than maxConnectionsPerAddress are closed, of that address',
    async () => {
      const { port } = await listen(server().open, { maxConnectionsPerAddress: 2 })
      const health = lines('GET', '/healthz', ['Host: localhost'])
      const first = await dial(port)
      await dial(port)
      const third = await dial(port)
      third.write(health)
      expect(await third.closed).toBe('')
      const elsewhere = await dial(port, { localAddress: '127.0.0.2' })
      elsewhere.write(health)
      expect(await elsewhere.closed).toMatch(/^HTTP\/1\.1 200 /)
      first.socket.destroy()
      await vi.waitFor(async () => expect((await raw(port, health)).status).toBe(200))
    },
  )

  test('many that come and go leave nothing behind', async () => {
    const { port } = await listen(server().open, { maxConnectionsPerAddress: 3 })
    for (let count = 0; count < 20; count++) {
      const socket = connect(port, '127.0.0.1')
      await once(socket, 'connect')
      socket.destroy()
    }
    await vi.waitFor(async () =>
      expect((await raw(port, lines('GET', '/healthz', ['Host: localhost']))).status).toBe(200),
    )
  })
})

describe('framing that two readers would take differently is a 400', () => {
  const smuggled = lines('POST', '/mcp', [...head, 'Content-Length: 2'], '{}')
  const body = JSON.stringify(initialize(1))
  const chunk = `${body.length.toString(16)}\r\n${body}\r\n0\r\n\r\n`
  const length = `Content-Length: ${body.length}`
  const chunked = 'Transfer-Encoding: chunked'
  test.each<[string, string]>([
    ['both lengths', begin(length, chunked) + chunk],
    ['both lengths, the other way round', begin(chunked, length) + chunk],
    ['a length of 0 before chunks', begin('Content-Length: 0', chunked) + chunk + smuggled],
    ['two lengths', begin(length, 'Content-Length: 2') + body],
    ['the same length twice', begin(length, length) + body],
    ['lengths in a list', begin(`Content-Length: ${body.length}, 2`) + body],
    ['a length with a sign', begin(`Content-Length: +${body.length}`) + body],
    ['a negative length', begin('Content-Length: -1') + body],
    ['a length in hexadecimal', begin(`Content-Length: 0x${body.length.toString(16)}`) + body],
    ['a length with a fraction', begin(`Content-Length: ${body.length}.0`) + body],
    ['a length in words', begin('Content-Length: many') + body],
    ['a length beyond all numbers', begin(`Content-Length: ${'9'.repeat(40)}`) + body],
    ['an empty length', begin('Content-Length:') + body],
    ['a space in the name of the length', begin(`Content-Length : ${body.length}`) + body],
    ['a space in the name of the coding', begin('Transfer-Encoding : chunked') + chunk],
    ['a coding that is none', begin('Transfer-Encoding: xchunked') + chunk],
    ['identity', begin('Transfer-Encoding: identity') + body],
    ['chunked, then identity', begin('Transfer-Encoding: chunked, identity') + chunk],
    ['chunked twice', begin(chunked, 'Transfer-Encoding: identity') + chunk],
    ['a folded coding', begin('Transfer-Encoding:\r\n chunked') + chunk],
    ['a chunk whose size is none', `${begin(chunked)}zz\r\n{\r\n0\r\n\r\n`],
    ['a chunk with a sign', `${begin(chunked)}+1\r\n{\r\n0\r\n\r\n`],
    ['a chunk in 0x', `${begin(chunked)}0x1\r\n{\r\n0\r\n\r\n`],
    ['a chunk beyond all numbers', `${begin(chunked)}${'f'.repeat(17)}\r\n{\r\n0\r\n\r\n`],
    ['a chunk that is longer than it says', `${begin(chunked)}1\r\n{}\r\n0\r\n\r\n`],
    ['bare line feeds', begin(length).replaceAll('\r\n', '\n') + body],
    ['bare carriage returns', begin(length).replaceAll('\r\n', '\r') + body],
    ['a NUL in a header', begin(length, 'X-A: a\0b') + body],
    ['a line feed in a header', begin(length, 'X-A: a\nX-B: b') + body],
    ['a carriage return in a header', begin(length, 'X-A: a\rX-B: b') + body],
    ['a header without a name', begin(length, ': a') + body],
    ['a header without a colon', begin(length, 'X-A') + body],
    ['a version that is none', (begin(length) + body).replace('HTTP/1.1', 'HTTP/9.9')],
    ['a preface of HTTP/2', 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'],
    ['no HTTP', '{"jsonrpc":"2.0","id":1,"method":"initialize"}\r\n\r\n'],
  ])('%s', async (_name, text) => {
    const upstream = server()
    const { port } = await listen(upstream.open)
    const line = await dial(port)
    line.write(text)
    const all = await line.closed
    expect(all.match(/HTTP\/1\.1 \d{3}/g)).toEqual(['HTTP/1.1 400'])
    expect(upstream.wires).toEqual([])
  })

  test('a body that breaks off is nothing', async () => {
    const upstream = server()
    const { port, app } = await listen(upstream.open)
    for (const text of [begin('Content-Length: 1000') + body, begin(chunked) + chunk.slice(0, -5)]) {
      const line = await dial(port)
      line.write(text)
      line.socket.end()
      await line.closed
    }
    expect(upstream.wires).toEqual([])
    expect(app.stats().sessions).toBe(0)
  })

  test('a second request behind a body is one of its own', async () => {
    const upstream = server()
    const { port } = await listen(upstream.open)
    const keep = begin(length).replace('Connection: close\r\n', '')
    const all = await raw(port, `${keep}${body}${lines('GET', '/healthz', ['Host: evil.example'])}`)
    expect(all.status).toBe(200)
    expect(all.body).toContain('HTTP/1.1 403')
    expect(upstream.heard()).toEqual([body])
  })
})

test('an unread answer is not kept for ever', async () => {
  const upstream = server()
  const { port, app } = await listen(upstream.open)
  const id = await session(port)
  const stream = await open(port, { method: 'GET', headers: { accept: 'text/event-stream', 'mcp-session-id': id } })
  stream.close()
  // What nobody reads is bounded by the store, and the session goes on.
  for (let at = 0; at < 2_000; at++) upstream.wires[0]!.say({ method: 'notifications/x', params: { at } })
  await vi.waitFor(() => expect(app.stats().lanes['server-to-client']).toBe(0))
  const ping = { jsonrpc: '2.0', id: 1, method: 'ping' }
  expect((await ask(port, { headers: { ...ours, 'mcp-session-id': id }, body: ping })).status).toBe(200)
})

describe('a body that nobody wants', () => {
  const get = ['Host: localhost', 'Accept: text/event-stream']
  const unwanted: Record<string, [line: string, headers: string[], status: number]> = {
    'of another type': ['POST /mcp', ['Host: localhost', 'Content-Type: text/plain'], 415],
    'of a client that takes no answer': [
      'POST /mcp',
      ['Host: localhost', 'Content-Type: application/json', 'Accept: text/html'],
      406,
    ],
    'of an unknown route': ['POST /unknown', ['Host: localhost'], 404],
    'of a wrong method': ['PUT /mcp', ['Host: localhost'], 405],
    'of another host': ['POST /mcp', ['Host: evil.example'], 403],
    'of a health check': ['GET /healthz', get, 200],
    'of the end of a session that is none': ['DELETE /mcp', [...get, 'Mcp-Session-Id: x'], 404],
    'of a preflight': [
      'OPTIONS /mcp',
      ['Host: localhost', 'Origin: https://app.example.com', 'Access-Control-Request-Method: POST'],
      204,
    ],
  }

  test('cannot keep its connection for ever', async () => {
    const { port } = await listen(server().open, { allowOrigins: ['https://app.example.com'] })
    const held = Object.entries(unwanted).map(async ([name, [begins, headers, status]]) => {
      const line = await dial(port)
      line.write([`${begins} HTTP/1.1`, ...headers, 'Transfer-Encoding: chunked', '', ''].join('\r\n'))
      const endless = setInterval(() => line.write('1\r\nx\r\n'), 10)
      closing.push(() => clearInterval(endless))
      await line.until(`HTTP/1.1 ${status} `)
      await vi.waitFor(() => expect([name, line.isOver()]).toEqual([name, true]), { timeout: 10_000, interval: 20 })
    })
    await Promise.all(held)
  })
})
