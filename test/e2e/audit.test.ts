import { createHash } from 'node:crypto'
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { type AuditRecord, verifyAudit } from '../../middleware/audit.js'
import { behindPort } from '../fixtures/behind-port.js'
import { closing } from '../fixtures/closing.js'
import { omproxy, type Running, stop } from '../fixtures/command.js'
import { modernPost } from '../fixtures/port.js'
import { everything, startTarget, target } from '../fixtures/servers.js'
import { type Generation, proxied, type Talk, talkTo, type Where } from '../fixtures/talk.js'

let folder: string
let file: string

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'audit-'))
  file = join(folder, 'audit.jsonl')
})

afterEach(() => rmSync(folder, { recursive: true, force: true }))

const sha256 = (value: object) => createHash('sha256').update(JSON.stringify(value)).digest('hex')
const use = (options: object = {}) => ['--use', `audit=${JSON.stringify({ file, ...options })}`]
const records = (from = file) =>
  readFileSync(from, 'utf8')
    .split('\n')
    .flatMap((line) => (line.endsWith('"}') ? [JSON.parse(line) as AuditRecord] : []))

/** The trail, with what differs between two runs masked; sessions and exchanges are numbered. */
function trail() {
  const numbers = new Map<string | undefined, number>()
  const number = (it: string | undefined) => it && numbers.set(it, numbers.get(it) ?? numbers.size + 1).get(it)
  return records().map(({ seq: _, time: __, prev: ___, hash: ____, session, exchange, duration, pid, ...rest }) => ({
    ...rest,
    ...(session && { session: number(session) }),
    ...(exchange && { exchange: number(exchange) }),
    ...(duration !== undefined && { duration: typeof duration }),
    ...(pid !== undefined && { pid: typeof pid }),
  }))
}

/** A request and its outcome, as the trail has them. */
function asked(common: object, own: object, ending: object) {
  const { argumentsHash, ...both } = { ...common, ...own } as Record<string, unknown>
  const request = { event: 'request', ...both, ...(argumentsHash !== undefined && { argumentsHash }) }
  return [request, { event: 'outcome', ...both, ...ending, duration: 'number' }]
}

async function verified(): Promise<void> {
  expect(await verifyAudit({ files: file })).toMatchObject({ ok: true, records: records().length })
}

async function ended(): Promise<void> {
  await vi.waitFor(() => expect(records().at(-1)?.event).toBe('stop'), { timeout: 10_000 })
}

const start = { event: 'start', pid: 'number' }
const stopped = { event: 'stop' }

/** Runs a conversation through the command, over stdio or a port, to its very end. */
async function through(over: 'stdio' | 'HTTP', where: Where, generation: Generation, speak: (talk: Talk) => unknown) {
  const port = over === 'HTTP' ? await behindPort(where, ...use()) : undefined
  if (port) closing.push(port.kill)
  const talk = await talkTo(port?.http ?? proxied(where, ...use()), generation)
  try {
    await speak(talk)
  } finally {
    await talk.close()
    await port?.end()
  }
  await ended()
  expect(talk.complaints).toEqual([])
}

describe.each(['stdio', 'HTTP'] as const)('the whole trail, clients over %s', (over) => {
  test('server-everything, legacy', async () => {
    await through(over, { command: process.execPath, args: [everything, 'stdio'] }, 'v1', async (talk) => {
      // The server asks for the roots when the client has been there for a while, and says so.
      await talk.heard('notifications/message', 1)
      await talk.client.listTools()
      await talk.tool('echo', { message: 'é👋' })
      await talk.tool('no-such-tool', { key: 's3cret' })
      await talk.tool('trigger-sampling-request', { prompt: 'Say something', maxTokens: 10 })
      const controller = new AbortController()
      const long = talk.tool(
        'trigger-long-running-operation',
        { duration: 30, steps: 30 },
        { signal: controller.signal },
      )
      await vi.waitFor(() => expect(records().at(-1)?.name).toBe('trigger-long-running-operation'))
      controller.abort()
      await long
      await vi.waitFor(() => expect(records().at(-1)?.outcome).toBe('cancelled'))
      await talk.client.readResource({ uri: 'demo://no-such' }).catch(() => {})
    })
    const session = { session: 1, upstream: expect.any(String), era: 'legacy' }
    const client = { ...session, from: 'client', protocolVersion: '2025-11-25' }
    const tools = { ...client, method: 'tools/call' }
    const all = trail()
    const { protocolVersion: _, ...first } = client
    const [hello, helloEnd] = asked(
      first,
      { exchange: 2, method: 'initialize', id: 0, argumentsHash: expect.any(String) },
      { outcome: 'ok' },
    )
    const server = { ...client, from: 'server', exchange: 3, method: 'roots/list', id: 0 }
    const sampling = {
      ...client,
      from: 'server',
      exchange: 8,
      method: 'sampling/createMessage',
      id: 1,
      argumentsHash: expect.any(String),
    }
    const [sample, sampleEnd] = asked(client, sampling, { outcome: 'ok' })
    const prompt = { prompt: 'Say something', maxTokens: 10 }
    const [trigger, triggerEnd] = asked(
      tools,
      { exchange: 7, name: 'trigger-sampling-request', id: 4, argumentsHash: sha256(prompt) },
      { outcome: 'ok' },
    )
    expect(all).toEqual([
      start,
      hello,
      helloEnd,
      ...asked(client, server, { outcome: 'ok' }),
      ...asked(client, { exchange: 4, method: 'tools/list', id: 1, argumentsHash: undefined }, { outcome: 'ok' }),
      ...asked(
        tools,
        { exchange: 5, name: 'echo', id: 2, argumentsHash: sha256({ message: 'é👋' }) },
        { outcome: 'ok' },
      ),
      ...asked(
        tools,
        { exchange: 6, name: 'no-such-tool', id: 3, argumentsHash: sha256({ key: 's3cret' }) },
        { outcome: 'tool_error' },
      ),
      trigger,
      sample,
      sampleEnd,
      triggerEnd,
      ...asked(
        tools,
        {
          exchange: 9,
          name: 'trigger-long-running-operation',
          id: 5,
          argumentsHash: sha256({ duration: 30, steps: 30 }),
        },
        { outcome: 'cancelled' },
      ),
      ...asked(
        client,
        {
          exchange: 10,
          method: 'resources/read',
          name: 'demo://no-such',
          id: 6,
          argumentsHash: sha256({ uri: 'demo://no-such' }),
        },
        { outcome: 'error', code: -32602 },
      ),
      stopped,
    ])
    expect(readFileSync(file, 'utf8')).not.toContain('s3cret')
    await verified()
  })

  test('the conformance target, modern', async () => {
    await through(over, { command: process.execPath, args: [target, '--stdio'] }, 'v2-modern', async (talk) => {
      await talk.client.listTools()
      await talk.tool('echo', { n: 1 })
      await talk.tool('test_error_handling')
      await talk.tool('test_input_required_result_elicitation')
      await talk.client.getPrompt({ name: 'no-such-prompt' }).catch(() => {})
    })
    const client = {
      session: expect.any(Number),
      exchange: expect.any(Number),
      upstream: 'node',
      era: 'modern',
      from: 'client',
      protocolVersion: '2026-07-28',
    }
    const argumentsHash = expect.any(String)
    const list = asked(client, { method: 'tools/list', id: 0, argumentsHash }, { outcome: 'ok' })
    const { protocolVersion: _, ...proxy } = client
    const tool = (id: number, name: string, args: object, outcome: string) =>
      asked(client, { method: 'tools/call', name, id, argumentsHash: sha256(args) }, { outcome })
    const probe = asked(
      client,
      { method: 'server/discover', id: 'server-discover-probe-1', argumentsHash },
      { outcome: 'ok' },
    )
    expect(trail()).toEqual([
      start,
      ...probe,
      // Over stdio this client asks a process of its own what the server speaks.
      ...(over === 'stdio' ? [stopped, start] : []),
      ...list,
      // The listener holds Mcp-Param-* against the schemas, which it asks for itself.
      ...(over === 'HTTP'
        ? asked(proxy, { method: 'tools/list', id: expect.stringMatching(/^omp-/), argumentsHash }, { outcome: 'ok' })
        : []),
      ...tool(1, 'echo', { n: 1 }, 'ok'),
      ...tool(2, 'test_error_handling', {}, 'tool_error'),
      ...tool(3, 'test_input_required_result_elicitation', {}, 'input_required'),
      ...tool(4, 'test_input_required_result_elicitation', {}, 'ok'),
      ...asked(client, { method: 'prompts/get', name: 'no-such-prompt', id: 5 }, { outcome: 'error', code: -32602 }),
      stopped,
    ])
    const pairs = trail().flatMap(({ exchange }) => exchange ?? [])
    expect(pairs.filter((it, at) => pairs.indexOf(it) === at)).toHaveLength(pairs.length / 2)
    await verified()
  })
})

test('a modern client that closes its stream has cancelled', async () => {
  const { child, origin } = await startTarget()
  closing.push(() => stop(child))
  const port = await behindPort({ http: `${origin}/mcp` }, ...use({ methods: ['tools/call'] }))
  closing.push(port.kill)
  const controller = new AbortController()
  const params = { name: 'slow', arguments: { ms: 60_000 } }
  const slow = modernPost(port.http.http, { id: '', method: 'tools/call', params }, {}, controller.signal).catch(
    () => {},
  )
  await vi.waitFor(() => expect(records().at(-1)).toMatchObject({ event: 'request', name: 'slow', id: '' }))
  controller.abort()
  await slow
  await vi.waitFor(() => expect(records().at(-1)).toMatchObject({ event: 'outcome', id: '', outcome: 'cancelled' }))
  await port.end()
  await verified()
})

const initialize = {
  jsonrpc: '2.0',
  id: 'init',
  method: 'initialize',
  params: { protocolVersion: '2025-11-25', capabilities: {}, clientInfo: { name: 'raw', version: '1' } },
}
const echo = (id: number | string, message = 'hello') => ({
  jsonrpc: '2.0',
  id,
  method: 'tools/call',
  params: { name: 'echo', arguments: { message } },
})

/** The command before the reference server, with its handshake done. */
async function opened(
  options: object,
  run = omproxy(['stdio', ...use(options), '--', process.execPath, everything, 'stdio']),
) {
  closing.push(run.kill)
  run.send(initialize)
  await run.when(() => answers(run).has('init'), 'the handshake')
  run.send({ jsonrpc: '2.0', method: 'notifications/initialized' })
  return run
}

const answers = (run: Running) => new Map(run.messages().flatMap((it) => ('method' in it ? [] : [[it.id, it]])))

test('killed in the middle of writing, it goes on where it was, and nothing that was asked is hidden', async () => {
  for (let round = 0; round < 3; round++) {
    const run = await opened({ arguments: 'full' })
    for (let id = 0; id < 400; id++) run.send(echo(id, 'x'.repeat(20_000)))
    await run.until(20)
    run.child.kill('SIGKILL')
    await run.exit
    const told = [...answers(run).keys()]
    const asks = records().slice(records().findLastIndex(({ event }) => event === 'start'))
    for (const event of ['request', 'outcome']) {
      const ids = asks.flatMap((it) => (it.event === event ? [it.id] : []))
      expect(ids).toEqual(expect.arrayContaining(told))
    }
    expect(await verifyAudit({ files: file })).toMatchObject({ ok: true })
  }
  const last = await opened({})
  await last.end()
  await verified()
  expect(records().filter(({ event }) => event === 'start')).toHaveLength(4)
}, 60_000)

describe('a disk that is full', () => {
  const full = { file: '/dev/full' }
  const overloaded = {
    code: -31005,
    data: { source: 'proxy', reason: 'overloaded', phase: 'not_sent', retryable: true },
  }

  test('deny', async () => {
    const run = omproxy(['stdio', ...use({ ...full, onFull: 'deny' }), '--', process.execPath, everything, 'stdio'])
    closing.push(run.kill)
    run.send(initialize, echo(1))
    await run.until(2)
    expect([...answers(run).values()].map(({ id, error }) => [id, error])).toMatchObject([
      ['init', overloaded],
      [1, overloaded],
    ])
    expect(await run.end()).toEqual({ code: 0, signal: null })
    expect(run.said()).toEqual([
      'omproxy: audit: ENOSPC: no space left on device, write: records wait, or are lost',
      expect.stringMatching(/^omproxy: audit: \d records could not be written$/),
    ])
  })

  test('drop', async () => {
    const run = await opened({ ...full, onFull: 'drop' })
    run.send(echo(1))
    await run.when(() => answers(run).has(1), 'the answer')
    expect(answers(run).get(1)).toMatchObject({ result: { content: [{ text: 'Echo: hello' }] } })
    await run.end()
    expect(run.said()).toEqual([
      'omproxy: audit: ENOSPC: no space left on device, write: records wait, or are lost',
      expect.stringMatching(/^omproxy: audit: \d records could not be written$/),
    ])
  })

  test('block', async () => {
    const run = omproxy(['stdio', ...use(full), '--', process.execPath, everything, 'stdio'])
    closing.push(run.kill)
    run.send(initialize)
    await run.when(() => run.stderr.includes('ENOSPC'), 'it is full')
    run.send({ jsonrpc: '2.0', method: 'notifications/initialized' }, echo(1))
    run.send({ jsonrpc: '2.0', method: 'notifications/cancelled', params: { requestId: 1 } })
    run.child.kill('SIGTERM')
    run.child.kill('SIGTERM')
    await run.exit
    expect([...answers(run).keys()].filter((id) => id === 1)).toEqual([])
  })

  test.each([{}, { rotate: { size: '1M' } }])('a write that is cut short: %j', async (more) => {
    // Past its limit a file takes the first part of a write, and then EFBIG.
    const limited = join(folder, 'limited.sh')
    writeFileSync(limited, `#!/bin/sh\ntrap '' XFSZ\nulimit -f 16\nexec "${process.execPath}" "$@"\n`, { mode: 0o755 })
    const args = ['stdio', ...use({ ...more, onFull: 'deny' }), '--', process.execPath, everything, 'stdio']
    const run = await opened({}, omproxy(args, { node: limited }))
    const passed: number[] = []
    for (let id = 0; !run.stderr.includes('EFBIG'); id++) {
      run.send(echo(id))
      await run.when(() => answers(run).has(id), 'an answer')
      if (answers(run).get(id).result) passed.push(id)
    }
    await run.end()
    const asked = records().flatMap(({ event, id }) => (event === 'request' ? [id] : []))
    expect(passed.length).toBeGreaterThan(1)
    expect(asked).toEqual(expect.arrayContaining(passed))
    expect(await verifyAudit({ files: file })).toMatchObject({ ok: true, torn: expect.any(Number) })
    const next = await opened(more)
    await next.end()
    expect(records().filter(({ event }) => event === 'recovered')).toHaveLength(1)
    expect(await verifyAudit({ files: file })).toMatchObject({ ok: true })
  })
})

test('rotation: no line is lost', async () => {
  const run = await opened({ rotate: { size: '20K', compress: true } })
  for (let id = 0; id < 500; id++) run.send(echo(id))
  await run.when(() => answers(run).size === 501, 'all answers')
  await run.end()
  const aside = readdirSync(folder)
    .filter((it) => it.endsWith('.gz'))
    .sort()
  expect(aside.length).toBeGreaterThan(5)
  const files = [...aside.map((it) => join(folder, it)), file]
  const verdict = await verifyAudit({ files })
  expect(verdict).toMatchObject({ ok: true, first: { seq: 1 } })
  // Start and stop, the handshake, the server's own question if it came to it, 500 calls.
  expect([1004, 1006]).toContain((verdict as { records: number }).records)
}, 60_000)

test('a file that cannot be opened', async () => {
  const run = omproxy([
    'stdio',
    ...use({ file: join(folder, 'none', 'a.jsonl') }),
    '--',
    process.execPath,
    everything,
    'stdio',
  ])
  closing.push(run.kill)
  expect(await run.exit).toEqual({ code: 1, signal: null })
  expect(run.stderr).toMatch(/^omproxy: audit: expected a file that can be written, got ENOENT: .*\n$/)
})
