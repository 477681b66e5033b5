import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Writable } from 'node:stream'
import {
  createProxy,
  type FrameMeta,
  type Middleware,
  onRequest,
  onResponse,
  proxyError,
  RpcError,
} from 'open-mcp-proxy'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { type AuditOptions, type AuditRecord, audit, verifyAudit } from '../../middleware/audit.js'
import { testProxy } from '../../src/testing.js'
import { joined, turnOfLoop } from '../fixtures/played.js'

const call = { id: 7, method: 'tools/call', params: { name: 'add', arguments: { a: 2, key: 's3cret' } } }
const overloaded = {
  code: -31005,
  message: 'Overloaded: the audit trail takes no more',
  data: { source: 'proxy', reason: 'overloaded', phase: 'not_sent', retryable: true },
}
const sha256 = (text: string | Buffer) => createHash('sha256').update(text).digest('hex')

let folder: string
let file: string

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'audit-'))
  file = join(folder, 'audit.jsonl')
})

afterEach(() => {
  vi.restoreAllMocks()
  rmSync(folder, { recursive: true, force: true })
})

const parsed = (lines: string[]) => lines.map((line) => JSON.parse(line) as AuditRecord)
const linesOf = (path: string) => readFileSync(path, 'utf8').split('\n').slice(0, -1)
/** What a trail says, but for the chain, and for what differs between two runs. */
const said = (lines: string[]) =>
  parsed(lines).map(({ seq: _, time: __, exchange: ___, duration: ____, prev, hash, pid, ...rest }) => rest)
const brief = (lines: string[]) =>
  parsed(lines).map(({ event, id, outcome, code, count }) =>
    [event, id, outcome, code, count].filter((it) => it !== undefined).join(' '),
  )

/** Has what the middleware reports told to the application, as `listen` would. */
function startedWith(middleware: Middleware) {
  const app = createProxy({ drainTimeout: 0 }).use(middleware)
  const errors: string[] = []
  app.on('error', ({ message }) => errors.push(message))
  const { start } = middleware as { start?: (app: unknown) => Promise<void> }
  start?.(app).catch(() => {})
  return { app, errors, ...testProxy(app) }
}

/** A proxy whose trail goes into `lines`. */
function audited(options: Partial<AuditOptions> = {}, ...behind: Middleware[]) {
  const lines: string[] = []
  const write = (line: string) => void lines.push(line)
  const proxy = startedWith(audit({ write, ...options }))
  proxy.use(...behind)
  return { ...proxy, lines }
}

/** Listens without an upstream's help: for what `start` and `close` do. */
function running(...middleware: Middleware[]) {
  const app = createProxy({ drainTimeout: 0 }).use(...middleware)
  const errors: string[] = []
  app.on('error', ({ message }) => errors.push(message))
  return { app, errors, start: () => app.listen({ url: 'http://127.0.0.1:9/mcp' }, { port: 0 }) }
}

describe('two lines for each request', () => {
  test('what, who, when, outcome and duration, in both directions', async () => {
    const login: Middleware<{ user: { id: string } }> = (ctx, next) => {
      ctx.state.user = { id: 'ada' }
      return next()
    }
    const lines: string[] = []
    const app = createProxy()
      .use(login)
      .use(audit({ write: (line) => void lines.push(line) }))
    const proxy = testProxy(app)
    const remote = { remoteAddress: '192.0.2.7' } as FrameMeta
    await proxy.fromClient({ id: 0, method: 'initialize', params: { protocolVersion: '2025-11-25' } })
    await proxy.fromServer({ id: 0, result: { protocolVersion: '2025-11-25' } })
    await proxy.fromClient({ method: 'notifications/initialized' })
    await proxy.fromClient(call, remote)
    await proxy.fromServer({ id: 'ask', method: 'sampling/createMessage', params: { maxTokens: 1 } })
    await proxy.fromClient({ id: 'ask', error: { code: -1, message: 'User rejected' } })
    await proxy.fromServer({ id: 7, result: { content: [] } })
    await proxy.fromClient({ id: '0', method: 'resources/read', params: { uri: 'demo://a' } })
    await proxy.fromServer({ id: '0', result: { contents: [] } })
    const session = { session: proxy.session.id, upstream: 'transport', era: 'legacy' }
    const client = { ...session, user: 'ada', from: 'client' }
    const later = { protocolVersion: '2025-11-25' }
    const initialize = { ...client, method: 'initialize', id: 0 }
    const tool = { ...client, ...later, remote: '192.0.2.7', method: 'tools/call', name: 'add', id: 7 }
    // On the way from the server the login comes later on the line.
    const ask = { ...session, ...later, from: 'server', method: 'sampling/createMessage', id: 'ask' }
    const read = { ...client, ...later, method: 'resources/read', name: 'demo://a', id: '0' }
    expect(said(lines)).toEqual([
      { event: 'start' },
      { event: 'request', ...initialize, argumentsHash: sha256('{"protocolVersion":"2025-11-25"}') },
      { event: 'outcome', ...initialize, outcome: 'ok' },
      { event: 'request', ...tool, argumentsHash: sha256('{"a":2,"key":"s3cret"}') },
      { event: 'request', ...ask, argumentsHash: sha256('{"maxTokens":1}') },
      { event: 'outcome', ...ask, user: 'ada', outcome: 'error', code: -1 },
      { event: 'outcome', ...tool, outcome: 'ok' },
      { event: 'request', ...read, argumentsHash: sha256('{"uri":"demo://a"}') },
      { event: 'outcome', ...read, outcome: 'ok' },
    ])
    const time = expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/)
    const records = parsed(lines)
    expect(records.map(({ seq, time, duration }) => ({ seq, time, duration }))).toEqual(
      records.map(({ event }, at) => ({
        seq: at + 1,
        time,
        duration: event === 'outcome' ? expect.any(Number) : undefined,
      })),
    )
    const pairs = records.flatMap(({ exchange }) => exchange ?? [])
    expect(new Set(pairs).size).toBe(4)
    expect([pairs[2], pairs[3]]).toEqual([pairs[5], pairs[4]])
    expect(await verifyAudit({ lines })).toMatchObject({ ok: true, records: 9 })
  })

  test('a modern request, asked for more, and the principal', async () => {
    const lines: string[] = []
    const app = createProxy().use(audit({ write: (line) => void lines.push(line), arguments: 'none' }))
    const { client, server } = await joined((it) =>
      it.use(audit({ write: (line) => void lines.push(line), arguments: 'none' })),
    )
    const _meta = { 'io.modelcontextprotocol/protocolVersion': '2026-07-28' }
    client.say({ id: 1, method: 'prompts/get', params: { name: 'p', _meta } })
    await vi.waitFor(() => expect(server.sent).toHaveLength(1))
    server.say({ id: 1, result: { resultType: 'input_required', inputRequests: {} } })
    await vi.waitFor(() => expect(lines).toHaveLength(3))
    const own = {
      era: 'modern',
      protocolVersion: '2026-07-28',
      method: 'prompts/get',
      name: 'p',
      id: 1,
      from: 'client',
    }
    const rest = { session: expect.any(String), upstream: 'transport' }
    expect(said(lines)).toEqual([
      { event: 'start' },
      { event: 'request', ...own, ...rest },
      { event: 'outcome', ...own, ...rest, outcome: 'input_required' },
    ])
    await app.close()
  })

  test('the request waits for its line, and its answer for the other', async () => {
    const gates: (() => void)[] = []
    const proxy = audited({ write: () => new Promise<void>((resolve) => void gates.push(resolve)) })
    const open = async () => {
      await vi.waitFor(() => expect(gates).not.toEqual([]))
      gates.shift()!()
    }
    const asked = proxy.fromClient(call)
    await open()
    await vi.waitFor(() => expect(gates).toHaveLength(1))
    expect(await Promise.race([asked, turnOfLoop().then(() => 'waits')])).toBe('waits')
    await open()
    expect((await asked).toServer).toHaveLength(1)
    const answered = proxy.fromServer({ id: 7, result: {} })
    await vi.waitFor(() => expect(gates).toHaveLength(1))
    expect(await Promise.race([answered, turnOfLoop().then(() => 'waits')])).toBe('waits')
    await open()
    expect((await answered).toClient).toHaveLength(1)
  })

  test('only the methods that are named, notifications too', async () => {
    const proxy = audited({ methods: ['tools/*', 'notifications/**'] })
    await proxy.fromClient({ id: 1, method: 'ping' })
    await proxy.fromClient({ id: 2, method: 'tools/list' })
    await proxy.fromServer({ id: 1, result: {} })
    await proxy.fromServer({ id: 2, result: { tools: [] } })
    await proxy.fromClient({ method: 'notifications/initialized' })
    await proxy.fromServer({ method: 'notifications/tools/list_changed' })
    await proxy.fromServer({ method: 'other' })
    expect(parsed(proxy.lines).map(({ event, method, from }) => [event, method, from])).toEqual([
      ['start', undefined, undefined],
      ['request', 'tools/list', 'client'],
      ['outcome', 'tools/list', 'client'],
      ['notification', 'notifications/initialized', 'client'],
      ['notification', 'notifications/tools/list_changed', 'server'],
    ])
  })

  test('what it records it does not change', async () => {
    const text =
      '{ "id":1.0,"jsonrpc":"2.0", "method":"tools/call","params":{"name":"a","arguments":{"n":1e400,"n":2}} }'
    for (const values of ['none', 'hash', 'full'] as const) {
      const { client, server } = await joined((app) => app.use(audit({ write: () => {}, arguments: values })))
      client.say(text)
      await vi.waitFor(() => expect(server.sent).toEqual([text]))
    }
  })
})

describe('one outcome for each request', () => {
  const outcomes = (lines: string[]) =>
    parsed(lines).flatMap(({ event, id, outcome, code }) => (event === 'outcome' ? [{ id, outcome, code }] : []))

  test.each([
    [{ result: { content: [] } }, { outcome: 'ok' }],
    [{ result: { content: [], isError: true } }, { outcome: 'tool_error' }],
    [{ result: { isError: 'true' } }, { outcome: 'ok' }],
    [{ error: { code: -32602, message: 'Unknown tool' } }, { outcome: 'error', code: -32602 }],
    [{ error: { code: 'text\n', message: 5 } }, { outcome: 'error' }],
    [{ error: null }, { outcome: 'error' }],
    [{ result: null }, { outcome: 'ok' }],
    [{ result: [] }, { outcome: 'ok' }],
    [
      { error: { ...proxyError('upstream_exited').toJSON() } },
      // The request was there: a server cannot make the trail say that it was not.
      { outcome: 'error', code: -31001 },
    ],
  ])('%j', async (answer, outcome) => {
    const proxy = audited()
    await proxy.fromClient(call)
    await proxy.fromServer(JSON.stringify({ jsonrpc: '2.0', id: 7, ...answer }))
    expect(outcomes(proxy.lines)).toEqual([{ id: 7, code: undefined, ...outcome }])
  })

  const behind: Record<string, [Middleware, object]> = {
    replies: [onRequest('tools/call', (ctx) => ctx.reply({ isError: true })), { outcome: 'tool_error' }],
    throws: [onRequest('tools/call', (ctx) => ctx.throw(-31006, 'Denied')), { outcome: 'error', code: -31006 }],
    breaks: [
      onRequest('tools/call', () => {
        throw new Error('a secret')
      }),
      { outcome: 'error', code: -32603 },
    ],
    forgets: [onRequest('tools/call', () => {}), { outcome: 'error', code: -32603 }],
    drops: [onRequest('tools/call', (ctx) => ctx.drop()), { outcome: 'error', code: -31006 }],
    refuses: [
      onRequest('tools/call', () => {
        throw proxyError('overloaded')
      }),
      { outcome: 'error', code: -31005 },
    ],
  }
  test.each(Object.keys(behind))('a middleware behind it %s', async (name) => {
    const [middleware, outcome] = behind[name]!
    const proxy = audited({}, middleware)
    const { toClient } = await proxy.fromClient(call)
    expect(toClient).toHaveLength(1)
    await turnOfLoop()
    expect(outcomes(proxy.lines)).toEqual([{ id: 7, code: undefined, ...outcome }])
  })

  test('what the client is told counts, not what was thrown', async () => {
    const milder = onResponse('tools/call', (ctx) => ctx.fail({ code: -5, message: 'Not now' }))
    const proxy = audited({}, milder, behind.throws![0])
    expect((await proxy.fromClient(call)).toClient).toMatchObject([{ error: { code: -5 } }])
    await turnOfLoop()
    expect(outcomes(proxy.lines)).toEqual([{ id: 7, outcome: 'error', code: -5 }])
  })

  test('a request that is cancelled, and answered all the same', async () => {
    const proxy = audited()
    for (const id of [0, '0', '']) await proxy.fromClient({ ...call, id })
    await proxy.fromClient({ method: 'notifications/cancelled', params: { requestId: '0' } })
    await proxy.fromServer({ id: '0', result: {} })
    await proxy.fromServer({ id: '', result: {} })
    await proxy.fromServer({ id: 0, result: {} })
    expect(outcomes(proxy.lines)).toEqual([
      { id: '0', outcome: 'cancelled' },
      { id: '', outcome: 'ok' },
      { id: 0, outcome: 'ok' },
    ])
  })

  test('a middleware before it answers', async () => {
    const lines: string[] = []
    let answer!: () => void
    const timeout = onRequest('tools/call', (ctx, next) => {
      answer = () => void ctx.fail({ code: -31002, message: 'Too late' })
      return next()
    })
    const proxy = testProxy(createProxy().use(timeout, audit({ write: (line) => void lines.push(line) })))
    await proxy.fromClient(call)
    answer()
    await proxy.settle()
    await proxy.fromServer({ id: 7, result: {} })
    expect(outcomes(lines)).toEqual([{ id: 7, outcome: 'cancelled' }])
  })

  test('the client leaves, the server ends', async () => {
    const leaving = audited()
    await leaving.fromClient(call)
    await leaving.fromServer({ id: 1, method: 'roots/list' })
    await leaving.end('client')
    expect(outcomes(leaving.lines)).toEqual([
      { id: 1, outcome: 'closed', code: -31008 },
      { id: 7, outcome: 'closed', code: -31008 },
    ])

    const ending = audited()
    await ending.fromClient(call)
    await ending.fromServer({ id: 1, method: 'roots/list' })
    await ending.end('server')
    expect(outcomes(ending.lines).sort((a, b) => Number(a.id) - Number(b.id))).toEqual([
      { id: 1, outcome: 'closed', code: -31001 },
      { id: 7, outcome: 'error', code: -31001 },
    ])
  })

  test('a server that cannot be reached', async () => {
    const lines: string[] = []
    const { client, server, app } = await joined((it) => it.use(audit({ write: (line) => void lines.push(line) })))
    server.sending = () => Promise.reject(proxyError('upstream_unreachable'))
    client.say(call)
    await vi.waitFor(() => expect(client.sent).toHaveLength(1))
    expect(outcomes(lines)).toEqual([{ id: 7, outcome: 'failed-to-deliver', code: -31009 }])
    server.sending = () => Promise.reject(new RpcError(-31003, 'Odd', { source: 'proxy', phase: 'sent' }))
    client.say({ ...call, id: 8 })
    await vi.waitFor(() => expect(outcomes(lines)).toHaveLength(2))
    expect(outcomes(lines)[1]).toEqual({ id: 8, outcome: 'error', code: -31003 })
    await app.close({ urgent: true })
  })

  test('what the proxy itself asks', async () => {
    const ask = onRequest('tools/call', async (ctx, next) => {
      await ctx.call('client', 'roots/list')
      return next()
    })
    const proxy = audited({}, ask)
    const { toClient } = await proxy.fromClient(call)
    const [{ id }] = toClient as unknown as [{ id: string }]
    await proxy.fromClient({ id, result: { roots: [] } })
    await proxy.fromServer({ id: 7, result: {} })
    expect(parsed(proxy.lines).map(({ event, method, from, outcome }) => [event, method, from, outcome])).toEqual([
      ['start', undefined, undefined, undefined],
      ['request', 'tools/call', 'client', undefined],
      ['request', 'roots/list', 'server', undefined],
      ['outcome', 'roots/list', 'server', 'ok'],
      ['outcome', 'tools/call', 'client', 'ok'],
    ])
  })

  test('nothing is left behind', async () => {
    const proxy = audited()
    for (let id = 0; id < 50; id++) await proxy.fromClient({ ...call, id })
    for (let id = 0; id < 25; id++) await proxy.fromServer({ id, result: {} })
    for (let id = 25; id < 50; id++) {
      await proxy.fromClient({ method: 'notifications/cancelled', params: { requestId: id } })
    }
    await proxy.app.close()
    expect(outcomes(proxy.lines)).toHaveLength(50)
    expect(brief(proxy.lines).at(-1)).toBe('stop')
  })
})

describe('arguments', () => {
  const texts = {
    '{"a":1.0,"b":9007199254740993,"b":"\\u00e9é👋","c":[{"}":"\\\\\\""}, 1e400]}': 'tools/call',
    '[ "a" ]': 'tools/call',
    null: 'prompts/get',
    '"\\\\"': 'prompts/get',
    '-0': 'tools/call',
  }
  test.each(Object.entries(texts))('the hash is of the very bytes: %s', async (text, method) => {
    const proxy = audited()
    await proxy.fromClient(
      `{"jsonrpc":"2.0","method":"${method}","params" : {"_meta":{"arguments":1},"arguments":${text}\n,"name":"a"},"id":1}`,
    )
    expect(parsed(proxy.lines)[1]).toMatchObject({ event: 'request', argumentsHash: sha256(text), id: 1 })
  })

  test('none for a tool without; of other methods all params', async () => {
    const proxy = audited()
    await proxy.fromClient({ id: 1, method: 'tools/call', params: { name: 'a' } })
    await proxy.fromClient({ id: 2, method: 'ping' })
    await proxy.fromClient('{"jsonrpc":"2.0","id":3,"method":"x/y","params":{ "arguments":1 }}')
    await proxy.fromClient('{"jsonrpc":"2.0","id":4,"method":"tools/call","params":[1]}')
    expect(parsed(proxy.lines).map(({ id, argumentsHash }) => [id, argumentsHash])).toEqual([
      [undefined, undefined],
      [1, undefined],
      [2, undefined],
      [3, sha256('{ "arguments":1 }')],
      [4, undefined],
    ])
  })

  test('never a value, unless it is asked for', async () => {
    for (const values of ['none', 'hash', 'full'] as const) {
      const proxy = audited({ arguments: values })
      await proxy.fromClient(call)
      await proxy.fromServer({ id: 7, result: { content: [{ type: 'text', text: 's3cret too' }] } })
      await proxy.fromClient({ ...call, id: 8 })
      await proxy.fromServer({ id: 8, error: { code: 1, message: 's3cret too', data: 's3cret too' } })
      expect(proxy.lines).toHaveLength(5)
      expect(proxy.lines.join()).not.toContain('s3cret too')
      const [, request] = parsed(proxy.lines)
      expect([request!.argumentsHash, request!.arguments]).toEqual([
        values === 'none' ? undefined : sha256(JSON.stringify(call.params.arguments)),
        values === 'full' ? call.params.arguments : undefined,
      ])
      expect(proxy.lines.join().includes('s3cret')).toBe(values === 'full')
    }
  })

  test('what a middleware before it has taken out stays out', async () => {
    const redact = onRequest('tools/call', (ctx, next) => {
      ctx.params!.arguments = { key: '…' }
      return next()
    })
    const lines: string[] = []
    const app = createProxy().use(redact, audit({ write: (line) => void lines.push(line), arguments: 'full' }))
    await testProxy(app).fromClient(call)
    expect(parsed(lines)[1]!.arguments).toEqual({ key: '…' })
  })
})

describe('what a peer says cannot break a line', () => {
  const evil = 'a\n\r\t\u0000\u001b[2K\u007f\u009b\u2028\u2029\u202e\u200b\ufeff\u{e0041}"\\},{"seq":1'

  test('control characters, surrogates, names of members', async () => {
    const proxy = audited({ arguments: 'full', methods: ['**'] })
    await proxy.fromClient({ id: evil, method: evil, params: { name: evil, [evil]: evil } })
    await proxy.fromServer({ id: evil, error: { code: -1, message: evil } })
    await proxy.fromClient('{"jsonrpc":"2.0","id":"\\ud800","method":"\\udfff","params":{"name":"\\ud800"}}')
    for (const name of ['__proto__', 'constructor', 'toString', '']) {
      await proxy.fromClient({ id: `${name}!`, method: name || 'x', params: { name } })
    }
    await proxy.fromServer({ method: evil })
    for (const line of proxy.lines) expect(line).not.toMatch(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/u)
    const [, request, outcome, surrogate, ...named] = parsed(proxy.lines)
    expect(request).toMatchObject({ id: evil, method: evil, name: evil, arguments: { [evil]: evil } })
    expect(outcome).toMatchObject({ id: evil, method: evil, outcome: 'error' })
    expect(surrogate).toMatchObject({ id: '\ud800', method: '\udfff', name: '\ud800' })
    expect(named.map(({ name, method }) => name ?? method)).toEqual(['__proto__', 'constructor', 'toString', '', evil])
    expect(await verifyAudit({ lines: proxy.lines })).toMatchObject({ ok: true, records: 9 })
  })

  test('ids stay as they were written', async () => {
    const proxy = audited()
    const ids = ['0', '"0"', '""', '1.0', '9007199254740993', '-0', '1e3', '"\\u0031"', '1']
    for (const id of ids) {
      await proxy.fromClient(`{"jsonrpc":"2.0","params":{"id":5,"x":{"id":6}},"id":${id},"method":"ping"}`)
      await proxy.fromServer(`{"jsonrpc":"2.0","id":${id},"result":{}}`)
    }
    const written = proxy.lines.flatMap((line) => /,"id":([^,]+),/.exec(line)?.[1] ?? [])
    expect(written).toEqual(ids.flatMap((id) => [id, id]))
    expect(await verifyAudit({ lines: proxy.lines })).toMatchObject({ ok: true })
  })

  test('long names are cut, with a mark', async () => {
    const proxy = audited()
    const long = 'é'.repeat(10_240)
    await proxy.fromClient({ id: long, method: 'tools/call', params: { name: long } })
    const mark = `${'é'.repeat(1_000)}… (10240 characters, SHA-256 ${sha256(long)})`
    const idMark = `"${'é'.repeat(999)}… (10242 characters, SHA-256 ${sha256(JSON.stringify(long))})`
    expect(parsed(proxy.lines)[1]).toMatchObject({ id: idMark, name: mark })
    const [, line] = proxy.lines
    expect(line!.length).toBeLessThan(4_000)
  })
})

describe('the file', () => {
  test('is made for its owner alone, and goes on where it ended', async () => {
    for (let run = 0; run < 3; run++) {
      const { app, start } = running(audit({ file }))
      await start()
      await app.close()
    }
    expect(statSync(file).mode & 0o777).toBe(0o600)
    expect(brief(linesOf(file))).toEqual(['start', 'stop', 'start', 'stop', 'start', 'stop'])
    expect(parsed(linesOf(file))[0]).toMatchObject({ seq: 1, prev: '0'.repeat(64), pid: process.pid })
    const last = parsed(linesOf(file)).at(-1)!
    expect(await verifyAudit({ files: file })).toEqual({
      ok: true,
      records: 6,
      first: { seq: 1, prev: '0'.repeat(64) },
      last: { seq: 6, hash: last.hash },
    })
  })

  test('is used without start, too, and shared by instances that come and go', async () => {
    symlinkSync(folder, join(tmpdir(), 'link-to-audit'))
    try {
      const one = running(audit({ file }))
      await one.start()
      const app = createProxy().use(audit({ file }), audit({ file: join(tmpdir(), 'link-to-audit', 'audit.jsonl') }))
      const proxy = testProxy(app)
      await proxy.fromClient(call)
      await one.app.close()
      await proxy.fromServer({ id: 7, result: {} })
      await app.close()
      expect(brief(linesOf(file))).toEqual(['start', 'request 7', 'request 7', 'outcome 7 ok', 'outcome 7 ok', 'stop'])
      expect(await verifyAudit({ files: file })).toMatchObject({ ok: true, records: 6 })
    } finally {
      rmSync(join(tmpdir(), 'link-to-audit'))
    }
  })

  test('an instance that is replaced still tells how its exchanges ended', async () => {
    const old = audit({ file }) as Middleware & { close(): Promise<void> }
    const app = createProxy().use(old)
    const proxy = testProxy(app)
    await proxy.fromClient(call)
    await app.replace(audit({ file, rotate: { size: '1M' } }))
    await proxy.fromClient({ ...call, id: 8 })
    await old.close()
    await proxy.fromServer({ id: 7, result: {} })
    await proxy.fromServer({ id: 8, result: {} })
    await app.close()
    expect(brief(linesOf(file))).toEqual(['start', 'request 7', 'request 8', 'outcome 7 ok', 'outcome 8 ok', 'stop'])
    expect(await verifyAudit({ files: file })).toMatchObject({ ok: true, records: 6 })
  })

  test.each([
    ['in a directory that is not there', () => join(folder, 'none', 'audit.jsonl'), /ENOENT: no such file/],
    ['that is a directory', () => folder, /EISDIR/],
    [
      'that is no trail',
      () => {
        writeFileSync(file, 'my diary\n')
        return file
      },
      /a file that is no audit trail$/,
    ],
  ])('%s fails listen', async (_, path, why) => {
    const { app, start, errors } = running(audit({ file: path() }))
    const failed = await start().catch((error: Error) => error)
    expect(failed).toBeInstanceOf(Error)
    expect((failed as Error).message).toMatch(/^audit: expected a file that can be written, got /)
    expect((failed as Error).message).toMatch(why)
    await app.close()
    expect(errors).toEqual([])
    if (existsSync(file)) expect(readFileSync(file, 'utf8')).toBe('my diary\n')
  })

  /** The first lines of a trail, and what a crash has left of the next. */
  async function crashed(whole: number, leave: (line: string) => string | Buffer) {
    const app = createProxy().use(audit({ file }))
    await testProxy(app).fromClient({ ...call, params: { name: 'ä' } })
    await app.close({ urgent: true })
    const lines = linesOf(file)
    const torn = Buffer.from(leave(lines[whole]!))
    writeFileSync(
      file,
      lines
        .slice(0, whole)
        .map((it) => `${it}\n`)
        .join(''),
    )
    appendFileSync(file, torn)
    return torn
  }
  async function restart() {
    const { app, start } = running(audit({ file }))
    await start()
    await app.close()
  }
  const isWhole = (line: string) => /"hash":"[0-9a-f]{64}"}$/.test(line)

  test.each<[string, number, (line: string) => string | Buffer]>([
    ['in the middle of a line', 2, (line) => line.slice(0, -20)],
    ['in the middle of a character', 1, (line) => Buffer.concat([Buffer.from(line.slice(0, 30)), Buffer.from([0xc3])])],
    ['in the first line', 0, (line) => line.slice(0, 30)],
    ['again, while it recovered', 2, (line) => `${line.slice(0, 9)}\n{"seq":3`],
    ['so that an empty line is left', 2, (line) => `${line.slice(0, 9)}\n`],
  ])('torn by a crash %s', async (_, whole, leave) => {
    const torn = await crashed(whole, leave)
    await restart()
    const records = parsed(linesOf(file).filter(isWhole)).slice(whole)
    const left = torn.at(-1) === 10 ? torn.subarray(0, -1) : torn
    expect(records.map(({ event, torn }) => [event, torn])).toEqual([
      ['recovered', { bytes: left.length, hash: sha256(left) }],
      ['start', undefined],
      ['stop', undefined],
    ])
    expect(await verifyAudit({ files: file })).toMatchObject({ ok: true, records: whole + 3 })
    // What is left of it is part of the trail.
    const bytes = readFileSync(file)
    const at = bytes.indexOf(torn) + 3
    bytes[at] = bytes[at]! ^ 1
    writeFileSync(file, bytes)
    expect(await verifyAudit({ files: file })).toMatchObject({ ok: false })
  })

  test('until it is recovered, the torn line is told apart', async () => {
    const torn = await crashed(2, (line) => line.slice(0, -20))
    expect(await verifyAudit({ files: file })).toMatchObject({ ok: true, records: 2, torn: torn.length })
    appendFileSync(file, '\n')
    expect(await verifyAudit({ files: file })).toMatchObject({ ok: false, records: 2, line: 3 })
  })

  test('a crash right before the newline', async () => {
    await crashed(2, (line) => line)
    expect(await verifyAudit({ files: file })).toMatchObject({ ok: true, records: 3 })
    await restart()
    expect(brief(linesOf(file)).slice(2)).toEqual(['outcome 7 closed -31008', 'start', 'stop'])
    expect(await verifyAudit({ files: file })).toMatchObject({ ok: true, records: 5 })
  })

  test('a long last line is found', async () => {
    const app = createProxy().use(audit({ file, arguments: 'full' }))
    await testProxy(app).fromClient({ ...call, params: { name: 'a', arguments: { long: 'x'.repeat(300_000) } } })
    // The process ends here.
    const next = audit({ file: join(folder, 'copy.jsonl') })
    writeFileSync(join(folder, 'copy.jsonl'), `${readFileSync(file, 'utf8')}{"seq":3,`)
    const { app: later, start } = running(next)
    await start()
    await later.close()
    await app.close({ urgent: true })
    expect(await verifyAudit({ files: join(folder, 'copy.jsonl') })).toMatchObject({ ok: true, records: 5 })
  })

  test('moved or removed, it is begun anew, and the trail goes on there', async () => {
    const proxy = startedWith(audit({ file }))
    const { app, errors } = proxy
    await proxy.fromClient(call)
    renameSync(file, `${file}.old`)
    await proxy.fromServer({ id: 7, result: {} })
    await app.close()
    expect(brief(linesOf(`${file}.old`))).toEqual(['start', 'request 7'])
    expect(brief(linesOf(file))).toEqual(['outcome 7 ok', 'stop'])
    expect(await verifyAudit({ files: [`${file}.old`, file] })).toMatchObject({ ok: true, records: 4 })
    expect(await verifyAudit({ files: file })).toMatchObject({ ok: true, records: 2, first: { seq: 3 } })
    expect(errors).toEqual([])
  })
})

describe('somebody else writes to the file, too', () => {
  test('another process, in turn: the trail is one', async () => {
    const other = await import(`${new URL('../../middleware/audit.ts', import.meta.url).href}?another`)
    const one = startedWith(audit({ file }))
    await one.fromClient({ ...call, id: 'first' })
    const two = startedWith(other.audit({ file, rotate: { size: '1M' } }))
    await two.fromClient({ ...call, id: 'second' })
    for (let id = 0; id < 3; id++) {
      await one.fromClient({ ...call, id })
      await two.fromClient({ ...call, id: `${id}` })
    }
    await one.app.close({ urgent: true })
    await two.app.close({ urgent: true })
    expect(parsed(linesOf(file)).flatMap(({ event, id }) => (event === 'request' ? [id] : []))).toEqual([
      'first',
      'second',
      0,
      '0',
      1,
      '1',
      2,
      '2',
    ])
    expect(await verifyAudit({ files: file })).toMatchObject({ ok: true, records: linesOf(file).length })
  })

  test('what is no record is told of', async () => {
    const proxy = startedWith(audit({ file }))
    await proxy.fromClient(call)
    appendFileSync(file, 'hello\n')
    await proxy.fromServer({ id: 7, result: {} })
    await proxy.app.close()
    expect(parsed(linesOf(file).filter((it) => it !== 'hello')).map(({ event, torn }) => [event, torn])).toEqual([
      ['start', undefined],
      ['request', undefined],
      ['recovered', { bytes: 5, hash: sha256('hello') }],
      ['outcome', undefined],
      ['stop', undefined],
    ])
    expect(await verifyAudit({ files: file })).toMatchObject({ ok: true, records: 5 })
  })

  test('lines that are taken off the end are missed', async () => {
    const proxy = startedWith(audit({ file }))
    for (let id = 0; id < 4; id++) await proxy.fromClient({ ...call, id })
    const lines = linesOf(file)
    truncateSync(file, statSync(file).size - lines.at(-1)!.length - 1)
    await proxy.app.close({ urgent: true })
    expect(await verifyAudit({ files: file })).toMatchObject({ ok: false, line: 5 })
  })
})

describe('rotation', () => {
  const aside = () =>
    readdirSync(folder)
      .filter((it) => it !== 'audit.jsonl' && !it.endsWith('.history'))
      .sort()

  test.each([
    ['by size', { size: 4_000 }],
    ['packed', { size: '4K', compress: true }],
  ])('%s: no line is lost, and the trail goes on across the files and restarts', async (_, rotate) => {
    for (let run = 0; run < 2; run++) {
      const app = createProxy().use(audit({ file, rotate }))
      const proxy = testProxy(app)
      for (let id = 0; id < 40; id++) {
        await proxy.fromClient({ ...call, id })
        await proxy.fromServer({ id, result: {} })
      }
      await app.close()
    }
    const files = [...aside(), 'audit.jsonl'].map((it) => join(folder, it))
    expect(files.length).toBeGreaterThan(5)
    for (const it of files) expect(statSync(it).mode & 0o777).toBe(0o600)
    expect(await verifyAudit({ files })).toMatchObject({ ok: true, records: 2 * 82, first: { seq: 1 } })
    const without = [...files.slice(0, 2), ...files.slice(3)]
    expect(await verifyAudit({ files: without })).toMatchObject({ ok: false, file: without[2], line: 1 })
  })

  test('a restart right after the file was put aside', async () => {
    const one = running(audit({ file, rotate: { size: '1B', compress: true } }))
    await one.start()
    await one.app.close()
    expect(readFileSync(file, 'utf8')).toBe('')
    const two = running(audit({ file }))
    await two.start()
    await two.app.close()
    expect(parsed(linesOf(file)).map(({ seq }) => seq)).toEqual([3, 4])
    expect(await verifyAudit({ files: [...aside(), 'audit.jsonl'].map((it) => join(folder, it)) })).toMatchObject({
      ok: true,
      records: 4,
    })
  })

  test('that fails once the lines are written: none is written twice', async () => {
    // The library keeps the names of the files there, and finds out after it has moved one.
    mkdirSync(`${file}.history`)
    const proxy = startedWith(audit({ file, rotate: { size: '1B', maxFiles: 9 } }))
    expect((await proxy.fromClient(call)).toServer).toHaveLength(1)
    expect((await proxy.fromServer({ id: 7, result: {} })).toClient).toHaveLength(1)
    await vi.waitFor(() => expect(proxy.errors.at(-1)).toBe('audit: written again'))
    await proxy.app.close()
    const files = aside().map((it) => join(folder, it))
    expect(brief(files.flatMap(linesOf)).slice(0, 3)).toEqual(['start', 'request 7', 'outcome 7 ok'])
    expect(await verifyAudit({ files })).toMatchObject({ ok: true, first: { seq: 1 } })
  })

  test('the oldest files go; what is left can be verified', async () => {
    const app = createProxy().use(audit({ file, rotate: { size: '1K', maxFiles: 3 } }))
    const proxy = testProxy(app)
    for (let id = 0; id < 30; id++) await proxy.fromClient({ ...call, id })
    await app.close({ urgent: true })
    expect(aside()).toHaveLength(3)
    const verdict = await verifyAudit({ files: [...aside(), 'audit.jsonl'].map((it) => join(folder, it)) })
    expect(verdict).toMatchObject({ ok: true, last: { seq: 62 } })
    expect((verdict as { first: { seq: number } }).first.seq).toBeGreaterThan(1)
  })
})

describe('a trail that takes no more', () => {
  /** A sink that fails while `fails` is set. */
  function flaky(options: Partial<AuditOptions>) {
    const lines: string[] = []
    const sink = { fails: true }
    const write = (line: string) => {
      if (sink.fails) throw new Error('ENOSPC: no space left')
      lines.push(line)
    }
    return { sink, lines, ...startedWith(audit({ write, ...options })) }
  }
  const incident = 'audit: ENOSPC: no space left: records wait, or are lost'

  test('drop: the message goes on, and what was lost is told once and recorded', async () => {
    const proxy = flaky({ onFull: 'drop', maxQueueBytes: 1_500 })
    for (let id = 0; id < 5; id++) {
      expect((await proxy.fromClient({ ...call, id })).toServer).toHaveLength(1)
      expect((await proxy.fromServer({ id, result: {} })).toClient).toHaveLength(1)
    }
    expect(proxy.errors).toEqual([incident])
    proxy.sink.fails = false
    await vi.waitFor(() => expect(proxy.errors).toHaveLength(2))
    const lost = parsed(proxy.lines).find(({ event }) => event === 'lost')!.count!
    expect(lost).toBe(11 - (proxy.lines.length - 1))
    expect(proxy.errors).toEqual([incident, `audit: written again, ${lost} records were lost`])
    await proxy.fromClient({ ...call, id: 9 })
    expect(brief(proxy.lines).slice(0, 2)).toEqual(['start', 'request 0'])
    expect(brief(proxy.lines).slice(-2)).toEqual([`lost ${lost}`, 'request 9'])
    expect(await verifyAudit({ lines: proxy.lines })).toMatchObject({ ok: true })
    await proxy.app.close()
  })

  test('deny: a request is refused, a response and a notification pass', async () => {
    const proxy = flaky({ onFull: 'deny', methods: ['**'] })
    proxy.sink.fails = false
    await proxy.fromClient({ ...call, id: 'before' })
    proxy.sink.fails = true
    expect(await proxy.fromClient(call)).toEqual({
      toClient: [{ jsonrpc: '2.0', id: 7, error: overloaded }],
      toServer: [],
    })
    expect(await proxy.fromClient({ ...call, id: 8 })).toMatchObject({
      toClient: [{ error: overloaded }],
      toServer: [],
    })
    expect((await proxy.fromServer({ id: 'before', result: {} })).toClient).toMatchObject([
      { id: 'before', result: {} },
    ])
    expect((await proxy.fromClient({ method: 'notifications/x' })).toServer).toHaveLength(1)
    expect((await proxy.fromServer({ id: 1, method: 'roots/list' })).toServer).toMatchObject([{ error: overloaded }])
    expect(proxy.errors).toEqual([incident])
    proxy.sink.fails = false
    await vi.waitFor(() => expect(proxy.errors).toEqual([incident, 'audit: written again']))
    expect((await proxy.fromClient({ ...call, id: 9 })).toServer).toHaveLength(1)
    expect(brief(proxy.lines)).toEqual([
      'start',
      'request before',
      'request 7',
      'outcome 7 error -31005',
      'request 8',
      'outcome 8 error -31005',
      'outcome before ok',
      'notification',
      'request 1',
      'outcome 1 error -31005',
      'request 9',
    ])
    await proxy.app.close()
  })

  test('deny: a queue that is full is no different', async () => {
    const proxy = flaky({ onFull: 'deny', maxQueueBytes: 1 })
    expect(await proxy.fromClient(call)).toMatchObject({ toClient: [{ error: overloaded }], toServer: [] })
    proxy.sink.fails = false
    await vi.waitFor(() => expect(brief(proxy.lines)).toEqual(['start', 'lost 2']))
    await vi.waitFor(() => expect(proxy.errors).toHaveLength(2))
    await proxy.app.close()
  })

  test('block: all wait, and go on when it can be written', async () => {
    const proxy = flaky({ maxQueueBytes: 600 })
    const done: string[] = []
    const all = [1, 2, 3].map((id) => proxy.fromClient({ ...call, id }).then(() => done.push(String(id))))
    await vi.waitFor(() => expect(proxy.errors).toEqual([incident]))
    await turnOfLoop()
    expect([done, proxy.lines]).toEqual([[], []])
    proxy.sink.fails = false
    await Promise.all(all)
    expect(brief(proxy.lines)).toEqual(['start', 'request 1', 'request 2', 'request 3'])
    proxy.sink.fails = true
    const answer = proxy.fromServer({ id: 2, result: {} })
    await vi.waitFor(() => expect(proxy.errors).toHaveLength(3))
    expect(await Promise.race([answer, turnOfLoop().then(() => 'waits')])).toBe('waits')
    proxy.sink.fails = false
    expect((await answer).toClient).toHaveLength(1)
    expect(brief(proxy.lines).at(-1)).toBe('outcome 2 ok')
    expect(await verifyAudit({ lines: proxy.lines })).toMatchObject({ ok: true, records: 5 })
    await proxy.app.close({ urgent: true })
  })

  test('block: whoever cancels waits no longer, and was never handed on', async () => {
    const proxy = flaky({ maxQueueBytes: 400 })
    void proxy.fromClient({ ...call, id: 1 })
    void proxy.fromClient({ ...call, id: 2 })
    await vi.waitFor(() => expect(proxy.errors).toEqual([incident]))
    void proxy.fromClient({ method: 'notifications/cancelled', params: { requestId: 1 } })
    void proxy.fromClient({ method: 'notifications/cancelled', params: { requestId: 2 } })
    await turnOfLoop()
    proxy.sink.fails = false
    expect(await proxy.settle()).toEqual({ toClient: [], toServer: [] })
    await vi.waitFor(() => expect(proxy.errors).toHaveLength(2))
    const [lost] = parsed(proxy.lines).filter(({ event }) => event === 'lost')
    expect(brief(proxy.lines)).toEqual(['start', 'request 1', 'lost 3'])
    expect(lost!.count).toBe(3)
    await proxy.app.close()
  })

  test.each(['block', 'deny', 'drop'] as const)('%s: the application closes all the same', async (onFull) => {
    const proxy = flaky({ onFull })
    void proxy.fromClient(call)
    await vi.waitFor(() => expect(proxy.errors).toEqual([incident]))
    await proxy.app.close({ urgent: true })
    expect(proxy.errors).toEqual([incident, expect.stringMatching(/^audit: [34] records could not be written$/)])
    expect(proxy.lines).toEqual([])
  })

  test('a slow stream: what waits is bounded, and no line is lost', async () => {
    const texts: string[] = []
    const pending: (() => void)[] = []
    const stream = new Writable({
      decodeStrings: false,
      write(text, _, done) {
        texts.push(text)
        pending.push(done)
      },
    })
    const proxy = audited({ write: stream, onFull: 'deny', maxQueueBytes: 1_200 })
    const { errors } = proxy
    const answers = [1, 2, 3, 4].map((id) => proxy.fromClient({ ...call, id }))
    await vi.waitFor(() => expect(errors).toEqual(['audit: too much waits to be written: records wait, or are lost']))
    const seen = (await Promise.all(answers)).flatMap(({ toClient }) => toClient as { id: number }[])
    seen.sort((a, b) => a.id - b.id)
    expect(seen).toMatchObject([1, 2, 3, 4].map((id) => ({ id, error: overloaded })))
    pending.shift()!()
    await turnOfLoop()
    expect(errors).toHaveLength(1)
    const release = setInterval(() => pending.shift()?.(), 1)
    await vi.waitFor(() => expect(errors).toHaveLength(2))
    clearInterval(release)
    expect(await verifyAudit({ lines: texts.map((it) => it.slice(0, -1)) })).toMatchObject({ ok: true })
    expect(brief(texts)).toContain('request 1')
  })

  test('a write that takes too long counts as none', async () => {
    let finish!: () => void
    const proxy = audited({ onFull: 'drop', write: () => new Promise<void>((resolve) => (finish = resolve)) })
    const { errors } = proxy
    expect((await proxy.fromClient(call)).toServer).toHaveLength(1)
    expect(errors).toEqual(['audit: a write takes longer than 2000 ms: records wait, or are lost'])
    finish()
  })

  test('a stream that ends in an error does not end the process', async () => {
    const stream = new Writable({ write: (_text, _encoding, done) => done(new Error('EPIPE: broken pipe')) })
    const proxy = audited({ write: stream, onFull: 'deny' })
    const { errors } = proxy
    expect(await proxy.fromClient(call)).toMatchObject({ toClient: [{ error: overloaded }] })
    expect(errors).toEqual(['audit: EPIPE: broken pipe: records wait, or are lost'])
    await proxy.app.close()
    expect(errors).toHaveLength(2)
    expect(stream.listenerCount('error')).toBe(1)
  })

  test('without a listener it says so on stderr, in one line', async () => {
    const said: string[] = []
    vi.spyOn(process.stderr, 'write').mockImplementation((text) => said.push(String(text)) > 0)
    const write = () => Promise.reject(new Error('no\nmore'))
    const app = createProxy().use(audit({ write, onFull: 'drop' }))
    await testProxy(app).fromClient(call)
    await app.close({ urgent: true })
    expect(said).toEqual([
      'open-mcp-proxy: audit: no\\u000amore: records wait, or are lost\n',
      expect.stringMatching(/^open-mcp-proxy: audit: \d records could not be written\n$/),
    ])
  })

  test('a directory that is removed, and comes back', async () => {
    const place = join(folder, 'logs')
    mkdirSync(place)
    const proxy = startedWith(audit({ file: join(place, 'audit.jsonl'), onFull: 'deny' }))
    const { app, errors } = proxy
    expect((await proxy.fromClient(call)).toServer).toHaveLength(1)
    rmSync(place, { recursive: true })
    expect(await proxy.fromClient({ ...call, id: 8 })).toMatchObject({ toClient: [{ error: overloaded }] })
    mkdirSync(place)
    await vi.waitFor(() => expect(errors).toEqual([expect.stringContaining('ENOENT'), 'audit: written again']))
    expect(brief(linesOf(join(place, 'audit.jsonl')))).toEqual(['request 8', 'outcome 8 error -31005'])
    expect(await verifyAudit({ files: join(place, 'audit.jsonl') })).toMatchObject({ ok: true, first: { seq: 3 } })
    await app.close()
  })
})

describe('verifyAudit finds the first broken place', () => {
  async function trail() {
    const proxy = audited()
    for (let id = 0; id < 4; id++) await proxy.fromClient({ ...call, id })
    return proxy.lines
  }
  const forged = (line: string, change: Partial<AuditRecord>) => {
    const { hash: _, ...record } = JSON.parse(line) as AuditRecord
    const text = JSON.stringify({ ...record, ...change })
    return `${text.slice(0, -1)},"hash":"${sha256(text)}"}`
  }

  test('an honest one', async () => {
    expect(await verifyAudit({ lines: await trail() })).toMatchObject({ ok: true, records: 5 })
    expect(await verifyAudit({ lines: [] })).toEqual({ ok: true, records: 0 })
  })

  test.each<[string, (lines: string[]) => string[], object]>([
    ['a changed character', (it) => it.with(2, it[2]!.replace('"id":1', '"id":2')), { line: 3, expected: /^hash / }],
    ['a changed line with its hash', (it) => it.with(2, forged(it[2]!, { id: 5 })), { line: 4 }],
    ['a line removed', (it) => it.toSpliced(2, 1), { line: 3 }],
    ['two lines swapped', (it) => [...it.slice(0, 2), it[3]!, it[2]!, it[4]!], { line: 3 }],
    ['a line twice', (it) => it.toSpliced(2, 0, it[1]!), { line: 3 }],
    ['a number left out', (it) => it.with(4, forged(it[4]!, { seq: 9 })), { line: 5, expected: /^seq 5$/ }],
    ['a line put in', (it) => it.toSpliced(2, 0, 'hello'), { line: 3, expected: /^a record$/ }],
    ['an empty line', (it) => it.toSpliced(2, 0, ''), { line: 3, expected: /^a record$/ }],
    ['something at the end', (it) => [...it, 'x', 'y'], { line: 6 }],
    ['a beginning made up', (it) => it.with(0, forged(it[0]!, { prev: '1'.repeat(64) })), { line: 1 }],
    [
      'a whole line said to be torn',
      (it) => it.with(2, forged(it[2]!, { torn: { bytes: 1, hash: sha256('') } })),
      { line: 3 },
    ],
  ])('%s', async (_, change, { line, expected = /./ }: { line?: number; expected?: RegExp }) => {
    const lines = await trail()
    expect(await verifyAudit({ lines: change(lines) })).toEqual({
      ok: false,
      records: line! - 1,
      line,
      expected: expect.stringMatching(expected),
      got: expect.any(String),
    })
  })

  test('an end that is missing shows against the hash that was kept', async () => {
    const lines = await trail()
    const whole = await verifyAudit({ lines })
    const cut = await verifyAudit({ lines: lines.slice(0, -1) })
    expect([whole, cut]).toMatchObject([{ last: { seq: 5 } }, { ok: true, last: { seq: 4 } }])
  })

  test('a file that is not there', async () => {
    await expect(verifyAudit({ files: join(folder, 'none.gz') })).rejects.toThrow('ENOENT')
  })

  test('ten lines of Python agree', async (it) => {
    const app = createProxy().use(audit({ file }))
    const proxy = testProxy(app)
    await proxy.fromClient({ ...call, params: { name: 'é👋\u2028\ud800' } })
    await app.close({ urgent: true })
    truncateSync(file, statSync(file).size - 10)
    const next = running(audit({ file }))
    await next.start()
    await next.app.close()
    const source = readFileSync(new URL('../../middleware/audit.ts', import.meta.url), 'utf8')
    const script = /In Python:\n \*\n((?: \* {5}.*\n)+)/.exec(source)![1]!.replace(/^ \* {5}/gm, '')
    const run = () => spawnSync('python3', ['-c', script, file], { encoding: 'utf8' })
    const { error, status, stderr } = run()
    if (error) it.skip('there is no python3')
    expect([status, stderr]).toEqual([0, ''])
    writeFileSync(file, readFileSync(file, 'utf8').replace('"from":"client"', '"from":"server"'))
    expect(run()).toMatchObject({ status: 1, stderr: expect.stringContaining('AssertionError: 2') })
  })
})

describe('options', () => {
  test.each<[unknown, string]>([
    [undefined, 'expected options with a file, got undefined'],
    [{}, 'expected file or write, got "neither"'],
    [{ file: 'a', write: () => {} }, 'expected file or write, got "both"'],
    [{ file: '' }, 'expected file to be a path, got ""'],
    [{ file: 5 }, 'expected file to be a path, got 5'],
    [{ write: 'stdout' }, 'expected write to be a function or a stream, got "string"'],
    [
      { file: 'a', onfull: 'deny' },
      'expected one of file, write, onFull, methods, arguments, rotate, maxQueueBytes, got "onfull"',
    ],
    [{ file: 'a', onFull: 'wait' }, 'expected onFull "drop", "block" or "deny", got "wait"'],
    [{ file: 'a', arguments: true }, 'expected arguments "none", "hash" or "full", got true'],
    [{ file: 'a', maxQueueBytes: 0 }, 'expected maxQueueBytes to be a positive number of bytes, got 0'],
    [{ file: 'a', methods: 'tools/call' }, 'expected methods to be a list of names or globs, got "tools/call"'],
    [{ file: 'a', rotate: {} }, 'expected rotate with a size or an interval, got {}'],
    [{ file: 'a', rotate: { size: '10X' } }, 'expected rotate.size in bytes, or as "10M", got "10X"'],
    [
      { file: 'a', rotate: { interval: '7h' } },
      'expected rotate.interval as "1d" or "12h", a part of the whole, got "7h"',
    ],
    [
      { file: 'a', rotate: { interval: 'daily' } },
      'expected rotate.interval as "1d" or "12h", a part of the whole, got "daily"',
    ],
    [{ file: 'a', rotate: { size: 1, maxFiles: 0 } }, 'expected rotate.maxFiles to be a positive number, got 0'],
    [{ file: 'a', rotate: { size: 1, compress: 'zip' } }, 'expected rotate.compress to be true or false, got "zip"'],
    [{ file: 'a', rotate: { size: 1, keep: 1 } }, 'expected one of size, interval, maxFiles, compress, got "keep"'],
    [{ write: () => {}, rotate: { size: 1 } }, 'expected a file to rotate, got "write"'],
  ])('%j', (options, text) => {
    expect(() => audit(options as AuditOptions)).toThrow(new TypeError(`audit: ${text}`))
  })

  test.each(['1d', '12h', '15m', '30s', '2M', '10d'])('an interval of %s', (interval) => {
    expect(audit({ file: 'a', rotate: { interval } })).toHaveProperty('role', 'observe')
  })

  test('nothing is opened before it is used', () => {
    audit({ file })
    expect(existsSync(file)).toBe(false)
  })
})
