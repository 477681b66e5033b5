import { createHash } from 'node:crypto'
import {
  appendFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { gunzipSync } from 'node:zlib'
import { createProxy, type Middleware, onRequest, onResponse } from 'open-mcp-proxy'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { type AuditOptions, audit, verifyAudit } from '../../middleware/audit.js'
import { contract, error, modern, notification, request, result, testClock, testProxy } from '../../src/testing.js'

const sha256 = (text: string) => createHash('sha256').update(text).digest('hex')
const call = (id: string | number = 7, args: object = { a: 2, key: 's3cret' }) =>
  request(id, 'tools/call', { name: 'add', arguments: { ...args } })
const overloaded = (id: string | number) =>
  error(id, -31005, 'Overloaded: the audit trail takes no more', {
    source: 'proxy',
    reason: 'overloaded',
    phase: 'not_sent',
    retryable: true,
  })

let folder: string
let file: string
let warnings: string[]

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'audit-'))
  file = join(folder, 'audit.jsonl')
  warnings = []
  vi.spyOn(process, 'emitWarning').mockImplementation((text) => void warnings.push(String(text)))
})

afterEach(() => {
  vi.restoreAllMocks()
  rmSync(folder, { recursive: true, force: true })
})

const lines = (path = file) => readFileSync(path, 'utf8').split('\n').slice(0, -1)
const records = (all = lines()) => all.map((line) => JSON.parse(line) as Record<string, unknown>)
/** What a trail says, but for the chain, and for what differs between two runs. */
const said = () => records().map(({ seq: _, time: __, session: ___, duration: ____, prev, hash, ...rest }) => rest)
const brief = (all = lines()) =>
  records(all).map(({ torn, lost, event, id, outcome, code }) =>
    [torn && 'torn', lost && `lost ${lost}`, event, id, outcome, code].filter((it) => it !== undefined).join(' '),
  )

/** A proxy with a trail, whose server answers by itself. */
function audited(options: Partial<AuditOptions> = {}, ...behind: Middleware[]) {
  const app = createProxy({ drainTimeout: 0 }).use(audit({ file, ...options }), ...behind)
  const server = { 'tools/call': { content: [] }, ping: {} }
  return { app, ...testProxy(app, { server }), close: () => app.close({ urgent: true }) }
}

/** One whose server is played. */
function played(options: Partial<AuditOptions> = {}, ...behind: Middleware[]) {
  return testProxy(createProxy().use(audit({ file, ...options }), ...behind))
}

describe.each(['block', 'deny', 'drop'] as const)('the contract, %s', (onFull) => {
  for (const { name, run } of contract(() => audit({ file, onFull }))) test(name, run)
})

describe('two lines an exchange', () => {
  test('who asked what, and what came of it, in both directions', async () => {
    const login: Middleware<{ user: { id: string } }> = (ctx, next) => {
      ctx.state.user = { id: 'ada' }
      return next()
    }
    const app = createProxy().use(login, audit({ file }))
    const proxy = testProxy(app, { principal: 'ada' })
    await proxy.fromClient(request(0, 'initialize', { protocolVersion: '2025-11-25', capabilities: {} } as never))
    await proxy.fromServer(result(0, { protocolVersion: '2025-11-25' }))
    await proxy.fromClient(notification('notifications/initialized'))
    await proxy.fromClient(call())
    await proxy.fromServer(request('ask', 'sampling/createMessage', { maxTokens: 1, messages: [] }))
    await proxy.fromClient(error('ask', -1, 'User rejected'))
    await proxy.fromServer(result(7, { content: [] }))
    await proxy.fromClient(request('', 'resources/read', { uri: 'demo://a' }))
    await proxy.fromServer(result('', { contents: [] }))
    const session = { principal: 'ada', upstream: 'transport' }
    const client = { ...session, user: 'ada', from: 'client' }
    const later = { protocolVersion: '2025-11-25' }
    const initialize = { ...client, method: 'initialize', id: 0 }
    const tool = { ...client, ...later, method: 'tools/call', name: 'add', id: 7 }
    // On the way from the server the login comes later on the line.
    const ask = { ...session, ...later, from: 'server', method: 'sampling/createMessage', id: 'ask' }
    const read = { ...client, ...later, method: 'resources/read', name: 'demo://a', id: '' }
    expect(said()).toEqual([
      { event: 'request', ...initialize },
      { event: 'outcome', ...initialize, outcome: 'ok' },
      { event: 'request', ...tool, argumentsHash: sha256('{"a":2,"key":"s3cret"}') },
      { event: 'request', ...ask },
      { event: 'outcome', ...ask, user: 'ada', outcome: 'error', code: -1 },
      { event: 'outcome', ...tool, outcome: 'ok' },
      { event: 'request', ...read },
      { event: 'outcome', ...read, outcome: 'ok' },
    ])
    expect(records().map(({ seq, session }) => ({ seq, session }))).toEqual(
      records().map((_, at) => ({ seq: at + 1, session: proxy.session.id })),
    )
    const time = expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/)
    expect(records().at(-1)).toMatchObject({ time, duration: expect.any(Number) })
    expect(statSync(file).mode & 0o777).toBe(0o600)
    expect(await verifyAudit(lines())).toEqual({ ok: true, records: 8, hash: records().at(-1)!.hash })
  })

  test('a modern request that is asked for more', async () => {
    const proxy = played()
    await proxy.fromClient(modern(request(1, 'prompts/get', { name: 'p', arguments: { a: 'b' } })))
    await proxy.fromServer(result(1, { resultType: 'input_required', inputRequests: {} }))
    expect(records()).toMatchObject([
      { event: 'request', protocolVersion: '2026-07-28', argumentsHash: sha256('{"a":"b"}') },
      { event: 'outcome', protocolVersion: '2026-07-28', outcome: 'input_required' },
    ])
  })

  test('only the methods that are named', async () => {
    const proxy = audited({ methods: ['tools/*'] })
    await proxy.fromClient(request(1, 'ping'))
    await proxy.fromClient(call())
    expect(brief()).toEqual(['request 7', 'outcome 7 ok'])
  })

  test.each([
    ['none', {}],
    ['full', { arguments: { a: 2, key: 's3cret' } }],
  ] as const)('arguments: %s', async (kept, members) => {
    await audited({ arguments: kept }).fromClient(call())
    const { argumentsHash, arguments: values } = records()[0]!
    expect({ argumentsHash, arguments: values }).toEqual(members)
  })

  test('arguments are hashed as this place sees them, and what is not changed keeps its bytes', async () => {
    const text =
      '{"jsonrpc":"2.0","id":1.0,"method":"tools/call","params":{"name":"a","arguments":{"n":1e400,"__proto__":1}} }'
    const proxy = played()
    await proxy.fromClient(text)
    expect(await proxy.raw()).toEqual([{ fromClient: text }, { toServer: text }])
    expect(records()[0]).toMatchObject({ id: 1, argumentsHash: sha256('{"n":null,"__proto__":1}') })
  })

  test('hostile names and ids stay on their line, in ASCII, and are cut', async () => {
    const odd = '\u001b[2K\r\n\u2028\u202e\u{e0041}é"__proto__'
    const proxy = played()
    for (const name of [odd, 'x'.repeat(10_000)]) {
      await proxy.fromClient(request(odd, 'tools/call', { name }))
      await proxy.fromServer(result(odd))
    }
    expect(readFileSync(file, 'latin1')).toMatch(/^[ -~\n]*$/)
    expect(records().map(({ id, name }) => [id, name])).toEqual([
      [odd, odd],
      [odd, odd],
      [odd, `${'x'.repeat(1000)}…`],
      [odd, `${'x'.repeat(1000)}…`],
    ])
    expect(await verifyAudit(lines())).toMatchObject({ ok: true, records: 4 })
  })
})

describe('one outcome', () => {
  test.each([
    [{ result: { content: [] } }, 'ok'],
    [{ result: { content: [], isError: true } }, 'tool_error'],
    [{ result: { isError: 'true' } }, 'ok'],
    [{ result: null }, 'ok'],
    [{ error: { code: -32602, message: 'Unknown tool' } }, 'error -32602'],
    [{ error: { code: 'text\n', message: 5 } }, 'error'],
    [{ error: null }, 'error'],
  ])('%j', async (answer, outcome) => {
    const proxy = played()
    await proxy.fromClient(call())
    await proxy.fromServer(JSON.stringify({ jsonrpc: '2.0', id: 7, ...answer }))
    expect(brief()).toEqual(['request 7', `outcome 7 ${outcome}`])
  })

  const deny = onRequest('tools/call', (ctx) => ctx.throw(-31006, 'Denied'))
  test.each<[string, Middleware[], string]>([
    ['replies', [onRequest('tools/call', (ctx) => ctx.reply({ isError: true }))], 'tool_error'],
    ['throws', [deny], 'error -31006'],
    ['forgets', [onRequest('tools/call', () => {})], 'error -32603'],
    ['drops', [onRequest('tools/call', (ctx) => ctx.drop())], 'error -31006'],
    ['changes the error', [onResponse('tools/call', (ctx) => ctx.fail({ code: -5, message: 'No' })), deny], 'error -5'],
  ])('a middleware behind it %s', async (_, behind, outcome) => {
    await audited({}, ...behind).fromClient(call())
    expect(brief()).toEqual(['request 7', `outcome 7 ${outcome}`])
  })

  test('cancelled, and answered all the same; 0, "0" and "" are three ids', async () => {
    const proxy = played()
    for (const id of [0, '0', '']) await proxy.fromClient(call(id))
    await proxy.fromClient(notification('notifications/cancelled', { requestId: '0' }))
    for (const id of ['0', '', 0]) await proxy.fromServer(result(id))
    const outcomes = records().flatMap(({ event, id, outcome }) => (event === 'outcome' ? [[id, outcome]] : []))
    expect(outcomes).toEqual([
      ['0', 'cancelled'],
      ['', 'ok'],
      [0, 'ok'],
    ])
  })

  test('the client leaves', async () => {
    const proxy = played()
    await proxy.fromClient(call())
    await proxy.fromServer(request(1, 'roots/list'))
    await proxy.end('client')
    await vi.waitFor(() => expect(brief().slice(2).sort()).toEqual(['outcome 1 closed', 'outcome 7 closed']))
  })
})

describe('the chain', () => {
  test('goes on across restarts and instances', async () => {
    for (const id of [1, 2]) {
      const proxies = [audited(), audited()]
      for (const proxy of proxies) await proxy.fromClient(call(id))
      await proxies[0]!.close()
      await proxies[1]!.fromClient(call(id))
      await proxies[1]!.close()
    }
    expect(await verifyAudit(lines())).toMatchObject({ ok: true, records: 12 })
  })

  test.each([1, 80, 300])('a line torn %i bytes before its end', async (bytes) => {
    const first = audited()
    await first.fromClient(call(1))
    await first.close()
    truncateSync(file, statSync(file).size - bytes)
    expect(await verifyAudit(readFileSync(file, 'utf8').split('\n'))).toMatchObject({ ok: true })
    // Another process, whose memory is empty.
    vi.resetModules()
    const anew = (await import('../../middleware/audit.js')).audit
    await testProxy(createProxy().use(anew({ file })), { server: { 'tools/call': { content: [] } } }).fromClient(
      call(2),
    )
    const all = lines()
    expect(all).toHaveLength(4)
    expect(records(all.slice(2)).map(({ seq, torn }) => [seq, torn])).toEqual(
      bytes === 1
        ? [
            [3, undefined],
            [4, undefined],
          ]
        : [
            [2, true],
            [3, undefined],
          ],
    )
    expect(await verifyAudit(all)).toMatchObject({ ok: true, records: bytes === 1 ? 4 : 3 })
  })

  test.each([true, false])('goes on across rotation, and a restart just after it; compress: %j', async (compress) => {
    const aside = () =>
      readdirSync(folder)
        .filter((it) => /\.\d{8}T\d{9}Z-001(\.gz)?$/.test(it))
        .sort()
    for (let at = 0; at < 3; at++) {
      vi.resetModules()
      const anew = (await import('../../middleware/audit.js')).audit
      const app = createProxy({ drainTimeout: 0 }).use(anew({ file, rotate: { size: '1B', maxFiles: 100, compress } }))
      await testProxy(app, { server: { 'tools/call': { content: [] } } }).fromClient(call(at))
      await app.close({ urgent: true })
    }
    const texts = aside().map((it) => readFileSync(join(folder, it)))
    const all = texts.flatMap((it) =>
      String(compress ? gunzipSync(it) : it)
        .trim()
        .split('\n'),
    )
    expect(lines()).toEqual([])
    expect(brief(all)).toEqual([0, 1, 2].flatMap((id) => [`request ${id}`, `outcome ${id} ok`]))
    expect(await verifyAudit(all)).toMatchObject({ ok: true, records: 6 })
    expect(await verifyAudit(all.slice(2))).toMatchObject({ ok: true, records: 4 })
    for (const it of aside()) expect(statSync(join(folder, it)).mode & 0o777).toBe(0o600)
  })

  const forged = (line: string, id: number) => {
    const text = `${line.slice(0, -75).replace('"id":1', `"id":${id}`)}}`
    return `${text.slice(0, -1)},"hash":"${sha256(text)}"}`
  }
  test.each<[string, (all: string[]) => string[], number]>([
    ['a changed character', (it) => it.with(2, it[2]!.replace('"id":1', '"id":2')), 3],
    ['one in the last line', (it) => it.with(5, it[5]!.replace('"id":2', '"id":3')), 6],
    ['a changed line with its hash', (it) => it.with(2, forged(it[2]!, 5)), 4],
    ['a line removed', (it) => it.toSpliced(2, 1), 3],
    ['two lines swapped', (it) => [...it.slice(0, 2), it[3]!, it[2]!, ...it.slice(4)], 3],
    ['a line twice', (it) => it.toSpliced(2, 0, it[1]!), 3],
    ['a line put in', (it) => it.toSpliced(2, 0, 'hello'), 3],
    ['something at the end', (it) => [...it, 'x', 'y'], 7],
    ['a beginning made up', (it) => it.with(0, it[0]!.replace('0000"', '0001"')), 1],
  ])('verifyAudit finds %s', async (_, change, line) => {
    const proxy = audited()
    for (let id = 0; id < 3; id++) await proxy.fromClient(call(id))
    const verdict = { ok: false, line, expected: expect.any(String), got: expect.any(String) }
    expect(await verifyAudit(change(lines()))).toEqual(verdict)
  })
})

describe('a file that cannot be written', () => {
  const broken = (onFull: AuditOptions['onFull']) => {
    file = join(folder, 'later', 'audit.jsonl')
    return audited({ onFull })
  }
  const recover = async (clock: ReturnType<typeof testClock>) => {
    mkdirSync(join(folder, 'later'))
    await clock.advance(1_000)
  }
  const incident = [expect.stringMatching(/^ENOENT: .*: records wait, or are lost$/)]

  test('block: requests wait, and go on when it can be written; who cancels waits no longer', async () => {
    using clock = testClock()
    const proxy = broken('block')
    for (const id of [1, 2]) expect(await proxy.fromClient(call(id))).toEqual({ toClient: [], toServer: [] })
    await proxy.fromClient(notification('notifications/cancelled', { requestId: 1 }))
    await recover(clock)
    await vi.waitFor(async () =>
      expect((await proxy.conversation()).at(-1)).toEqual({ toClient: result(2, { content: [] }) }),
    )
    expect(brief()).toEqual(['lost 1 request 2', 'outcome 2 ok'])
    expect(warnings).toEqual(incident)
    await proxy.close()
  })

  test('deny: requests are refused, until it can be written', async () => {
    using clock = testClock()
    const proxy = broken('deny')
    for (const id of [1, 2]) {
      expect(await proxy.fromClient(call(id))).toEqual({ toClient: [overloaded(id)], toServer: [] })
    }
    expect((await proxy.fromClient(notification('notifications/x'))).toServer).toHaveLength(1)
    await recover(clock)
    expect((await proxy.fromClient(call(3))).toClient).toEqual([result(3, { content: [] })])
    expect(brief()).toEqual(['lost 2 request 3', 'outcome 3 ok'])
    expect(warnings).toEqual(incident)
    await proxy.close()
  })

  test('drop: all pass, and are counted', async () => {
    using clock = testClock()
    const proxy = broken('drop')
    expect((await proxy.fromClient(call(1))).toClient).toEqual([result(1, { content: [] })])
    await recover(clock)
    expect((await proxy.fromClient(call(2))).toClient).toEqual([result(2, { content: [] })])
    expect(brief()).toEqual(['lost 2 request 2', 'outcome 2 ok'])
    expect(warnings).toEqual(incident)
    await proxy.close()
  })

  test('a queue that is full', async () => {
    const proxy = audited({ onFull: 'drop', maxQueueBytes: 1 })
    void proxy.fromClient(call(1))
    void proxy.fromClient(call(2))
    await proxy.settle()
    await proxy.fromClient(call(3))
    expect(brief().join()).toMatch(/lost \d /)
    expect([...new Set(warnings)]).toEqual(['more than 1 bytes wait to be written: records wait, or are lost'])
    expect(await verifyAudit(lines())).toMatchObject({ ok: true })
    await proxy.close()
  })

  test('start rejects, and leaves a file alone that is no trail', async () => {
    const listen = () => createProxy().use(audit({ file })).listen({ url: 'http://127.0.0.1:9/mcp' }, { port: 0 })
    appendFileSync(file, 'root:x:0:0\n')
    const text = 'audit: expected a file that can be written, got '
    await expect(listen()).rejects.toThrow(`${text}a file that is no audit trail`)
    expect(readFileSync(file, 'utf8')).toBe('root:x:0:0\n')
    file = join(folder, 'none', 'audit.jsonl')
    await expect(listen()).rejects.toThrow(`${text}ENOENT`)
  })
})

test.each<[unknown, string]>([
  [undefined, 'file to be a path, got null'],
  [{ file: '' }, 'file to be a path, got ""'],
  [{ file: 'a', onfull: 'deny' }, 'onfull to be left out, got "deny"'],
  [{ file: 'a', constructor: 1 }, 'constructor to be left out, got 1'],
  [{ file: 'a', onFull: 'wait' }, 'onFull to be "block", "deny" or "drop", got "wait"'],
  [{ file: 'a', arguments: true }, 'arguments to be "none", "hash" or "full", got true'],
  [{ file: 'a', maxQueueBytes: 0 }, 'maxQueueBytes to be a positive number, got 0'],
  [{ file: 'a', methods: 'ping' }, 'methods to be a list of patterns, got "ping"'],
  [{ file: 'a', methods: ['[a'] }, 'methods to have a pattern without [ (\\[ is the character itself), got "[a"'],
  [
    { file: 'a', rotate: {} },
    'rotate to be like { "size": "10M", "interval": "1d", "maxFiles": 9, "compress": true }, got {}',
  ],
  ...[{ size: 1 }, { size: '10X' }, { interval: 'daily' }, { maxFiles: 0 }, { compress: 'zip' }, { keep: 1 }].map(
    (rotate): [unknown, string] => [{ file: 'a', rotate }, `got ${JSON.stringify(rotate)}`],
  ),
])('%j', (options, text) => {
  expect(() => audit(options as AuditOptions)).toThrow(TypeError)
  expect(() => audit(options as AuditOptions)).toThrow(text)
})
