import { createHash } from 'node:crypto'
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { gunzipSync } from 'node:zlib'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { verifyAudit } from '../../middleware/audit.js'
import { behindPort } from '../fixtures/behind-port.js'
import { closing } from '../fixtures/closing.js'
import { isMessage, omproxy, type Running, stop } from '../fixtures/command.js'
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
const lines = () => (existsSync(file) ? readFileSync(file, 'utf8').split('\n').slice(0, -1) : [])
const records = () => lines().flatMap((it) => (it.endsWith('"}') ? [JSON.parse(it) as Record<string, unknown>] : []))
/** What was asked of tools, how it ended, and in which era. */
const calls = () =>
  records().flatMap(({ method, event, name, argumentsHash, outcome, protocolVersion }) =>
    method === 'tools/call' ? [[event, name, argumentsHash ?? outcome, protocolVersion]] : [],
  )

async function verified(): Promise<void> {
  expect(await verifyAudit(lines())).toMatchObject({ ok: true, records: records().length })
  const asked = records().filter(({ event }) => event === 'request')
  expect(records()).toHaveLength(asked.length * 2)
}

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
  expect(talk.complaints).toEqual([])
  await vi.waitFor(verified, { timeout: 10_000 })
}

describe.each(['stdio', 'HTTP'] as const)('clients over %s', (over) => {
  const asked = (version: string, name: string, args: object, outcome: string) => [
    ['request', name, sha256(args), version],
    ['outcome', name, outcome, version],
  ]

  test('server-everything, legacy', async () => {
    await through(over, { command: process.execPath, args: [everything, 'stdio'] }, 'v1', async (talk) => {
      await talk.tool('echo', { message: 'é👋' })
      await talk.tool('no-such-tool', { key: 's3cret' })
      const controller = new AbortController()
      const args = { duration: 30, steps: 30 }
      const long = talk.tool('trigger-long-running-operation', args, { signal: controller.signal })
      await vi.waitFor(() => expect(records().at(-1)?.name).toBe('trigger-long-running-operation'))
      controller.abort()
      await long
      await vi.waitFor(() => expect(records().at(-1)?.outcome).toBe('cancelled'))
      await talk.tool('trigger-sampling-request', { prompt: 'Say', maxTokens: 10 })
    })
    expect(calls()).toEqual([
      ...asked('2025-11-25', 'echo', { message: 'é👋' }, 'ok'),
      ...asked('2025-11-25', 'no-such-tool', { key: 's3cret' }, 'tool_error'),
      ...asked('2025-11-25', 'trigger-long-running-operation', { duration: 30, steps: 30 }, 'cancelled'),
      ...asked('2025-11-25', 'trigger-sampling-request', { prompt: 'Say', maxTokens: 10 }, 'ok'),
    ])
    const server = records().filter(({ from, event }) => from === 'server' && event === 'request')
    expect(server.map(({ method }) => method)).toContain('sampling/createMessage')
    expect(readFileSync(file, 'utf8')).not.toContain('s3cret')
  })

  test('the conformance target, modern', async () => {
    await through(over, { command: process.execPath, args: [target, '--stdio'] }, 'v2-modern', async (talk) => {
      await talk.tool('echo', { n: 1 })
      await talk.tool('test_error_handling')
      await talk.tool('test_input_required_result_elicitation')
    })
    expect(calls()).toEqual([
      ...asked('2026-07-28', 'echo', { n: 1 }, 'ok'),
      ...asked('2026-07-28', 'test_error_handling', {}, 'tool_error'),
      ...asked('2026-07-28', 'test_input_required_result_elicitation', {}, 'input_required'),
      ...asked('2026-07-28', 'test_input_required_result_elicitation', {}, 'ok'),
    ])
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

/** Of one that was killed the last line may be cut. */
const answers = (run: Running) => {
  const whole = run.lines.filter(isMessage).map((line) => JSON.parse(line.toString()))
  return new Map(whole.flatMap((it) => ('method' in it ? [] : [[it.id, it]])))
}

test('killed in the middle of writing, it goes on where it was, and nothing that was asked is hidden', async () => {
  for (let round = 0; round < 3; round++) {
    const before = records().length
    const run = await opened({ arguments: 'full' })
    for (let id = 0; id < 400; id++) run.send(echo(id, 'x'.repeat(20_000)))
    await run.until(20)
    run.child.kill('SIGKILL')
    await run.exit
    for (const event of ['request', 'outcome']) {
      const ids = records()
        .slice(before)
        .flatMap((it) => (it.event === event ? [it.id] : []))
      expect(ids).toEqual(expect.arrayContaining([...answers(run).keys()]))
    }
    expect(await verifyAudit(lines())).toMatchObject({ ok: true })
  }
  await (await opened({})).end()
  expect(await verifyAudit(lines())).toMatchObject({ ok: true, records: records().length })
}, 60_000)

describe('a disk that is full', () => {
  const full = { file: '/dev/full' }
  const start = (onFull: string) =>
    omproxy(['stdio', ...use({ ...full, onFull }), '--', process.execPath, everything, 'stdio'])
  const incidents = (run: Running) => run.stderr.split('\n').filter((it) => it.includes('AuditWarning: ENOSPC'))

  test('deny', async () => {
    const run = start('deny')
    closing.push(run.kill)
    run.send(initialize, echo(1))
    await run.until(2)
    const overloaded = { code: -31005, data: { source: 'proxy', reason: 'overloaded', phase: 'not_sent' } }
    for (const id of ['init', 1]) expect(answers(run).get(id)).toMatchObject({ error: overloaded })
    expect(await run.end()).toEqual({ code: 0, signal: null })
    expect(incidents(run)).toHaveLength(1)
  })

  test('drop', async () => {
    const run = await opened({ ...full, onFull: 'drop' })
    run.send(echo(1))
    await run.when(() => answers(run).has(1), 'the answer')
    expect(answers(run).get(1)).toMatchObject({ result: { content: [{ text: 'Echo: hello' }] } })
    await run.end()
    expect(incidents(run)).toHaveLength(1)
  })

  test('block', async () => {
    const run = start('block')
    closing.push(run.kill)
    run.send(initialize, echo(1))
    await run.when(() => run.stderr.includes('ENOSPC'), 'it is full')
    run.send({ jsonrpc: '2.0', method: 'notifications/cancelled', params: { requestId: 1 } })
    run.child.kill('SIGTERM')
    run.child.kill('SIGTERM')
    await run.exit
    expect(answers(run).has(1)).toBe(false)
    expect(incidents(run)).toHaveLength(1)
  })

  test('a write that is cut short', async () => {
    // Past its limit a file takes the first part of a write, and then EFBIG.
    const limited = join(folder, 'limited.sh')
    writeFileSync(limited, `#!/bin/sh\ntrap '' XFSZ\nulimit -f 16\nexec "${process.execPath}" "$@"\n`, { mode: 0o755 })
    const args = ['stdio', ...use({ onFull: 'deny' }), '--', process.execPath, everything, 'stdio']
    const run = await opened({}, omproxy(args, { node: limited }))
    const passed: number[] = []
    for (let id = 0; !run.stderr.includes('EFBIG'); id++) {
      run.send(echo(id))
      await run.when(() => answers(run).has(id), 'an answer')
      if (answers(run).get(id).result) passed.push(id)
    }
    await run.end()
    expect(passed.length).toBeGreaterThan(1)
    expect(records().flatMap(({ event, id }) => (event === 'request' ? [id] : []))).toEqual(
      expect.arrayContaining(passed),
    )
    await (await opened({})).end()
    expect(records().filter(({ torn }) => torn)).toHaveLength(1)
    expect(await verifyAudit(lines())).toMatchObject({ ok: true, records: records().length })
  })
})

test('rotation: no line is lost', async () => {
  const run = await opened({ rotate: { size: '20K', compress: true } })
  for (let id = 0; id < 500; id++) run.send(echo(id))
  await run.when(() => answers(run).size === 501, 'all answers')
  await run.end()
  const aside = readdirSync(folder).filter((it) => it.endsWith('.gz'))
  expect(aside.length).toBeGreaterThan(5)
  const texts = aside.sort().map((it) => String(gunzipSync(readFileSync(join(folder, it)))))
  const verdict = await verifyAudit([...texts.flatMap((it) => it.trimEnd().split('\n')), ...lines()])
  expect(verdict).toMatchObject({ ok: true })
  // The handshake, the server's own question if it came to it, 500 calls.
  expect([1002, 1004]).toContain((verdict as { records: number }).records)
}, 60_000)

test('a file that cannot be opened', async () => {
  const options = use({ file: join(folder, 'none', 'a.jsonl') })
  const run = omproxy(['stdio', ...options, '--', process.execPath, everything, 'stdio'])
  closing.push(run.kill)
  expect(await run.exit).toEqual({ code: 1, signal: null })
  expect(run.stderr).toMatch(/^omproxy: audit: expected a file that can be written, got ENOENT: .*\n$/)
})
