import { execFileSync } from 'node:child_process'
import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest'
import { type RecordOptions, record } from '../../middleware/record.js'
import { createProxy, type Middleware, onRequest } from '../../src/index.js'
import { testProxy } from '../../src/testing.js'
import { closing } from '../fixtures/closing.js'
import { HandWire, joined } from '../fixtures/played.js'
import { call, modernPost, onPort, openSession } from '../fixtures/port.js'

let directory: string
let file: string
let serial = 0

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'omproxy-record-'))
})

beforeEach(() => {
  file = join(directory, `${++serial}.jsonl`)
})

afterAll(() => rm(directory, { recursive: true, force: true }))

/** A proxy that records into `lines`. */
function recorded(options: RecordOptions = {}, ...before: Middleware[]) {
  const lines: string[] = []
  const write = (line: string) => void lines.push(line)
  const proxy = testProxy(
    createProxy()
      .use(...before)
      .use(record({ write, ...options })),
  )
  const messages = () => lines.filter((it) => it.startsWith('{"type":"message"')).map(raw)
  return { ...proxy, lines, messages }
}

/** The bytes of a line's message. */
const raw = (line: string) => /,"message":(.*)\}$/s.exec(line)?.[1] as string

const linesOf = async (path = file) => (await readFile(path, 'utf8')).trimEnd().split('\n')

const time = expect.any(Number)

describe('lines', () => {
  test('one for the session, and one for each message in both directions', async () => {
    const proxy = recorded()
    const session = proxy.session.id
    await proxy.fromClient({ id: 7, method: 'tools/call', params: { name: 'add' } })
    await proxy.fromServer({ method: 'notifications/progress', params: { progressToken: 1 } }, { relatedRequestId: 7 })
    await proxy.fromServer({ id: 7, method: 'roots/list' })
    await proxy.fromClient({ id: 7, result: { roots: [] } })
    await proxy.fromServer({ id: 7, result: { content: [] } })
    const line = { type: 'message', session, time }
    const jsonrpc = '2.0'
    expect(proxy.lines.map((it) => JSON.parse(it))).toEqual([
      { type: 'session', version: 1, session, time: expect.stringMatching(/^\d{4}-.*Z$/), upstream: 'transport' },
      { ...line, seq: 1, from: 'client', message: { jsonrpc, id: 7, method: 'tools/call', params: { name: 'add' } } },
      {
        ...line,
        seq: 2,
        from: 'server',
        related: 7,
        message: { jsonrpc, method: 'notifications/progress', params: { progressToken: 1 } },
      },
      { ...line, seq: 3, from: 'server', message: { jsonrpc, id: 7, method: 'roots/list' } },
      { ...line, seq: 4, from: 'client', message: { jsonrpc, id: 7, result: { roots: [] } } },
      { ...line, seq: 5, from: 'server', message: { jsonrpc, id: 7, result: { content: [] } } },
    ])
  })

  test('a message keeps its bytes, but for line breaks', async () => {
    const proxy = recorded()
    const text =
      '{ "jsonrpc":"2.0",\r\n"id":9007199254740993, "method":"tools/call","params":{"name":"a","arguments":' +
      '{"n":9007199254740993,"d":1.0,"e":1e400,"d":2, "s":"\\u00e9\\/\u2028\\"\\\\"}},"x":[1 , 2]}'
    await proxy.fromClient(text)
    expect(proxy.messages()).toEqual([text.replace('\r\n', '  ')])
  })

  test('it is recorded as it is at its place', async () => {
    const rename = onRequest('tools/call', (ctx, next) => {
      ctx.params.name = 'b'
      return next()
    })
    const proxy = recorded({}, rename)
    const args = '{"n":9007199254740993, "d":1.0,"e":1e400}'
    await proxy.fromClient(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"arguments":${args},"name":"a"}}`)
    expect(proxy.messages()).toEqual([
      `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"arguments":${args},"name":"b"}}`,
    ])
  })

  test("what is the proxy's own is recorded, too", async () => {
    const lines: string[] = []
    const app = createProxy()
      .use(record({ write: (line) => void lines.push(line) }))
      .use(onRequest('tools/call', (ctx) => ctx.throw(-31006, 'Denied')))
    await testProxy(app).fromClient({ id: 1, method: 'tools/call', params: { name: 'rm' } })
    expect(lines.slice(1).map((it) => JSON.parse(it).message)).toEqual([
      { jsonrpc: '2.0', id: 1, method: 'tools/call', params: { name: 'rm' } },
      { jsonrpc: '2.0', id: 1, error: { code: -31006, message: 'Denied' } },
    ])
  })

  test('an answer has the id of its request, also where that was used twice', async () => {
    const proxy = recorded()
    await proxy.fromClient({ id: 1, method: 'tools/call', params: { name: 'slow' } })
    await proxy.fromClient({ method: 'notifications/cancelled', params: { requestId: 1 } })
    const { toServer } = await proxy.fromClient({ id: 1, method: 'tools/call', params: { name: 'fast' } })
    const { id } = toServer[0] as { id: string }
    expect(id).not.toBe(1)
    await proxy.fromServer(`{"jsonrpc":"2.0","id":${JSON.stringify(id)},"result":{"n":1.0}}`)
    expect(proxy.messages().at(-1)).toBe('{"jsonrpc":"2.0","id":1,"result":{"n":1.0}}')
  })

  test('names of peers do no harm', async () => {
    const proxy = recorded()
    const name = `__proto__\u001b[2J${'x'.repeat(10_000)}`
    const message = `{"jsonrpc":"2.0","id":"","method":"constructor","params":{"__proto__":{"name":${JSON.stringify(name)}}}}`
    await proxy.fromClient(message)
    expect(proxy.messages()).toEqual([message])
  })
})

describe('secrets', () => {
  const canary = 'CANARY0123456789abcdefghijklmnop'

  test.each(
    [
      'Authorization',
      'authorization',
      'password',
      'PASSWORD',
      'api_key',
      'apiKey',
      'x-api-key',
      'secret',
      'client_secret',
      'clientSecret',
      'token',
      'access_token',
      'accessToken',
      'refresh-token',
      'GITHUB_TOKEN',
      'AWS_SECRET_ACCESS_KEY',
      'private_key',
      'Cookie',
      'set-cookie',
      'passphrase',
      'credentials',
    ].map((name) => [name]),
  )('a value that is called %s', async (name) => {
    const proxy = recorded()
    const rest = '"maxTokens":10,"progressToken":"p","n":1.0'
    const written = (value: string) =>
      `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":{"deep":[{${JSON.stringify(name)}: ${value}}],${rest}}}}`
    for (const value of [`"${canary}"`, '12345678', `{"inner":["${canary}"]}`]) {
      proxy.lines.length = 0
      await proxy.fromClient(written(value).replace('"id":1', `"id":"${value.length}"`))
      expect(proxy.messages()).toEqual([written('"[masked]"').replace('"id":1', `"id":"${value.length}"`)])
    }
  })

  test.each([
    [`Bearer ${canary}`, 'Bearer [masked]'],
    [`Authorization: bearer ${canary}, and more`, 'Authorization: bearer [masked], and more'],
    [`sk-${canary}`, '[masked]'],
    [`a\nsk-ant-${canary}\n`, 'a\n[masked]\n'],
    [`ghp_${canary}`, '[masked]'],
    [`github_pat_${canary}`, '[masked]'],
    ['AKIAIOSFODNN7EXAMPLE!', '[masked]!'],
    [`xoxb-${canary}`, '[masked]'],
    [`eyJhbGciOiJI.eyJzdWIiOiIx.${canary}`, '[masked]'],
    [
      `https://ada:${canary}@example.com/a?token=${canary}&b=1`,
      'https://ada:[masked]@example.com/a?token=[masked]&b=1',
    ],
    [`-----BEGIN RSA PRIVATE KEY-----\n${canary}\n-----END RSA PRIVATE KEY-----\n`, '[masked]\n'],
    [`{"env": {"GH_TOKEN": "${canary}", "n": 1.0}}`, '{"env": {"GH_TOKEN": "[masked]", "n": 1.0}}'],
  ])('a text that looks like one: %j', async (text, masked) => {
    const proxy = recorded()
    await proxy.fromClient({ id: 1, method: 'a' })
    proxy.lines.length = 0
    await proxy.fromServer({ id: 1, result: { content: [{ type: 'text', text }] } })
    const message = (it: string) =>
      JSON.stringify({ jsonrpc: '2.0', id: 1, result: { content: [{ type: 'text', text: it }] } })
    expect(proxy.messages()).toEqual([message(masked)])
    expect(proxy.lines.join()).not.toContain(canary)
  })

  test('what may be called like one stays: schemas, tokens of progress, what is empty', async () => {
    const proxy = recorded()
    const schema = { type: 'object', properties: { password: { type: 'string' }, token: { const: 1 } } }
    const params = { a: { inputSchema: schema }, _meta: { progressToken: 7 }, token: null, secret: '', password: false }
    await proxy.fromClient({ id: 1, method: 'a', params })
    expect(proxy.messages()).toEqual([JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'a', params })])
  })

  test('more names, as globs, or none at all', async () => {
    const message = JSON.stringify({ jsonrpc: '2.0', method: 'a', params: { pin: 1234, 'tax-id': 'x', token: canary } })
    const masked = message.replace('1234', '"[masked]"').replace('"x"', '"[masked]"').replace(canary, '[masked]')
    const more = recorded({ mask: { fields: ['PIN', 'tax_*'] } })
    await more.fromClient(message)
    expect(more.messages()).toEqual([masked])
    const none = recorded({ mask: false })
    await none.fromClient(message)
    expect(none.messages()).toEqual([message])
  })

  test('in a text that nests too deep to be looked into: nothing of it is written, and it passes', async () => {
    const proxy = recorded()
    const levels = 5_000
    const text = `${'{"a":'.repeat(levels)}{"password":"hunter2-hunter2"}${'}'.repeat(levels)}`
    const request = { id: 1, method: 'tools/call', params: { name: 'a', arguments: { text } } }
    const { toServer } = await proxy.fromClient(request)
    expect(toServer).toEqual([{ jsonrpc: '2.0', ...request }])
    const [written] = proxy.messages().map((it) => JSON.parse(it))
    expect(written.params.arguments).toEqual({ text: '[masked]' })
    expect(proxy.lines.join()).not.toContain('hunter2')
  })

  test('a JSON Web Token goes with the word that it ends', async () => {
    const proxy = recorded()
    const token = 'eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl'
    for (const text of [token, `x ${token}.`, `session-${token}`, `a.${token}`, `(${token})`, `"${token}"`]) {
      proxy.lines.length = 0
      await proxy.fromClient({ method: 'x', params: { text } })
      expect(proxy.lines.join()).not.toMatch(/eyJ|c2lnb/)
    }
  })

  test('HTTP headers are not written', async () => {
    const port = await onPort({}, (app) => app.use(record({ file })))
    const session = await openSession(port, '2025-11-25', { authorization: `Bearer ${canary}`, 'x-other': canary })
    const answer = session.post(call(1))
    await session.sent(1)
    session.wire.say({ id: 1, result: {} }, { headers: { 'x-upstream': canary } })
    expect((await answer).status).toBe(200)
    await port.app.close({ urgent: true })
    expect(await readFile(file, 'utf8')).not.toContain(canary)
    expect((await linesOf()).length).toBeGreaterThan(4)
  })
})

describe('the file', () => {
  const hello = { method: 'notifications/hello' }

  test('holds as many sessions as come, also those of one request', async () => {
    const port = await onPort({}, (app) => app.use(record({ file })))
    await openSession(port)
    const answer = modernPost(port.url, { id: 1, method: 'tools/list' })
    const { wire } = await port.upstream(1)
    await port.sent(wire, 1)
    wire.say({ id: 1, result: { tools: [] } })
    expect((await answer).status).toBe(200)
    await port.app.close({ urgent: true })
    const lines = (await linesOf()).map((it) => JSON.parse(it))
    const heads = lines.filter(({ type }) => type === 'session')
    expect(heads.map(({ protocolVersion }) => protocolVersion)).toEqual([undefined, '2026-07-28'])
    const ids = heads.map(({ session }) => session)
    expect(ids.map((id) => lines.filter(({ type, session }) => type === 'message' && session === id).length)).toEqual([
      3, 2,
    ])
  })

  test('is for its owner alone, and is complete when the application has closed', async () => {
    const app = createProxy().use(record({ file }))
    const proxy = testProxy(app)
    for (let n = 0; n < 100; n++) await proxy.fromClient({ ...hello, params: { n, pad: 'x'.repeat(100_000) } })
    await app.close()
    expect((await stat(file)).mode & 0o777).toBe(0o600)
    const lines = await linesOf()
    expect(lines.slice(1).map((it) => JSON.parse(it).message.params.n)).toEqual(
      Array.from({ length: 100 }, (_, n) => n),
    )
  })

  test('keeps what is in it, and what was cut off there stays a line of its own', async () => {
    await writeFile(file, '{"type":"sess')
    const app = createProxy().use(record({ file }))
    await testProxy(app).fromClient(hello)
    await app.close()
    expect((await linesOf()).map((it) => it.slice(0, 14))).toEqual([
      '{"type":"sess',
      '{"type":"sessi',
      '{"type":"messa',
    ])
  })

  test('a line that replaces another goes on in the same file, and in the same session', async () => {
    const app = createProxy()
    const old = record({ file })
    app.use(old)
    const listening = await app.listen(() => new Promise(() => {}), { port: 0 })
    closing.push(() => listening.close({ urgent: true }))
    const proxy = testProxy(app)
    await proxy.fromClient(hello)
    await app.replace(record({ file }))
    await old.close?.()
    await proxy.fromClient(hello)
    await app.close({ urgent: true })
    const lines = (await linesOf()).map((it) => JSON.parse(it))
    expect(lines.map(({ type, seq }) => [type, seq])).toEqual([
      ['session', undefined],
      ['message', 1],
      ['message', 2],
    ])
  })

  test('that cannot be opened fails the start', async () => {
    const path = join(directory, 'none', 'a.jsonl')
    const app = createProxy().use(record({ file: path }))
    await expect(app.listen(() => new Promise(() => {}), { port: 0 })).rejects.toThrow(
      `record: could not open ${path}: ENOENT`,
    )
  })

  test.skipIf(process.platform !== 'linux')(
    'on a full disk the traffic goes on, and somebody hears of it once',
    async () => {
      const errors: string[] = []
      const app = createProxy().use(record({ file: '/dev/full' }))
      app.on('error', (error) => errors.push(error.message))
      const listening = await app.listen(() => new Promise(() => {}), { port: 0 })
      closing.push(() => listening.close({ urgent: true }))
      const proxy = testProxy(app)
      for (let n = 0; n < 3; n++) {
        const { toServer } = await proxy.fromClient(hello)
        expect(toServer).toHaveLength(1)
      }
      await app.close({ urgent: true })
      expect(errors).toEqual(['record: nothing more is written to /dev/full: ENOSPC'])
    },
  )
})

describe('who writes slowly', () => {
  test.skipIf(process.platform === 'win32')('holds messages up: a pipe that nobody reads', async () => {
    execFileSync('mkfifo', [file])
    const server = new HandWire()
    const { app, client } = await joined((app) => app.use(record({ file })), { server })
    const pad = 'x'.repeat(1 << 20)
    for (let n = 0; n < 3; n++) client.say({ method: 'notifications/hello', params: { n, pad } })
    for (let n = 0; n < 100; n++) await new Promise(setImmediate)
    const before = server.sent.length
    const read = readFile(file, 'utf8')
    await vi.waitFor(() => expect(server.sent).toHaveLength(3))
    await app.close()
    expect(before).toBe(0)
    expect(
      (await read)
        .trimEnd()
        .split('\n')
        .slice(1)
        .map((it) => JSON.parse(it).message.params.n),
    ).toEqual([0, 1, 2])
  })

  test('holds messages up, and gets them in order', async () => {
    const lines: string[] = []
    const taken: (() => void)[] = []
    const write = (line: string) => {
      lines.push(line)
      return new Promise<void>((resolve) => taken.push(resolve))
    }
    const proxy = testProxy(createProxy().use(record({ write })))
    const traffic = Promise.all([proxy.fromClient({ id: 1, method: 'a' }), proxy.fromClient({ id: 2, method: 'b' })])
    const came: unknown[] = []
    void traffic.then((all) => came.push(...all.flatMap(({ toServer }) => toServer)))
    const turn = () => new Promise(setImmediate)
    for (let n = 1; n <= 3; n++) {
      while (taken.length < n) await turn()
      expect(lines).toHaveLength(n)
      expect(came).toEqual([])
      taken[n - 1]?.()
    }
    await traffic
    expect(lines.slice(1).map((it) => JSON.parse(it).message.id)).toEqual([1, 2])
    expect(came).toHaveLength(2)
  })
})

test.each([
  [{}, 'record: expected file, a path, or write, a function, got undefined'],
  [{ file: '' }, 'record: expected file, a path, or write, a function, got ""'],
  [{ file: 7 }, 'record: expected file, a path, or write, a function, got 7'],
  [{ file: 'a', write: () => {} }, 'record: expected file, a path, or write, a function, got both'],
  [{ file: 'a', mask: 'yes' }, 'record: expected mask true, false or { fields: [NAME, …] }, got something else'],
  [{ file: 'a', mask: null }, 'record: expected mask true, false or { fields: [NAME, …] }, got something else'],
  [
    { file: 'a', mask: { fields: [1] } },
    'record: expected mask true, false or { fields: [NAME, …] }, got something else',
  ],
])('%o is no set of options', (options, message) => {
  expect(() => record(options as never)).toThrow(new TypeError(message))
})

test('it observes', () => {
  const { name, role } = record({ write: () => {} })
  expect({ name, role }).toEqual({ name: 'record', role: 'observe' })
})
