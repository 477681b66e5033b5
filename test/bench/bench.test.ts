import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { describe, expect, test } from 'vitest'
import { Call } from './call.js'
import type { Channel } from './channel.js'
import { changes } from './report.js'
import { Session } from './session.js'
import { ratio } from './stats.js'

/** What a proxy may do to its answers. */
type Fault = (answers: Buffer[]) => Buffer[]

/** Answers in the next turn; from the third batch on with a fault. */
function faulty(fault: Fault): Channel {
  let batches = 0
  const channel: Channel = {
    onmessage() {},
    onerror() {},
    async open() {},
    send() {},
    calls(call, from, count) {
      const ids = Array.from({ length: count }, (_, index) => from + index)
      const answers = ids.map((id) => answer(id, JSON.parse(call.body(id).toString()).params.arguments.text))
      const said = ++batches > 2 ? fault(answers) : answers
      setImmediate(() => {
        for (const message of said) channel.onmessage(message)
      })
    },
    async close() {},
  }
  return channel
}

const answer = (id: unknown, text: string) =>
  Buffer.from(JSON.stringify({ jsonrpc: '2.0', id, result: { content: [{ type: 'text', text }] } }))

const changed =
  (pattern: RegExp, by: string): Fault =>
  ([first, ...rest]) => [Buffer.from(String(first).replace(pattern, by)), ...rest]

const run = (fault: Fault) =>
  new Session(faulty(fault), { isOrdered: true, patience: 100 }).inFlight(new Call(300), 100, 10)

describe('a proxy is caught that', () => {
  test.each<[string, Fault, RegExp]>([
    ['loses answers', () => [], /^lost: nothing came for 100 ms, of 100 answers$/],
    ['says one twice', ([first, ...rest]) => [first!, first!, ...rest], /^doubled: an answer to 100000021$/],
    ['changes the order', ([one, two, ...rest]) => [two!, one!, ...rest], /^misordered: answer 21 came as number 20$/],
    ['changes a byte', changed(/index/, 'indes'), /^corrupted, or another's: the answer to 100000021/],
    ['changes an id', changed(/"id":100000021/, '"id":100000022'), /^corrupted: the answer to 100000022 has the text/],
    ['answers what was not asked', changed(/100000021/g, '100000099'), /^an answer to 100000099, which was not asked$/],
    ['refuses a call', () => [Buffer.from('{"jsonrpc":"2.0","id":1,"error":{"code":-32603}}')], /^an error for 1: /],
  ])('%s', async (_, fault, message) => {
    await expect(run(fault)).rejects.toThrow(message)
  })

  test('corrupts, by the command as well', async () => {
    await promisify(execFile)('npx', ['tsup', '--config', 'test/bench/tsup.config.ts', '--silent'])
    const args = ['--program', 'test/bench/bad.mjs', '--quick', '--rounds', '0', '--only', 'flood']
    const ended = promisify(execFile)(process.execPath, ['test/bench/dist/run.js', ...args])
    await expect(ended).rejects.toMatchObject({
      code: 2,
      stdout: expect.stringContaining('FAULT flood: open-mcp-proxy: corrupted: a notification of #000000998#yxxx'),
    })
  })
})

test('a good one is measured', async () => {
  expect(await run((answers) => answers)).toBeGreaterThan(0)
})

test('a ratio is the median of those of each round that has both, and that of the best of each', () => {
  const of = new Map([
    [0, 1],
    [1, 8],
    [2, 30],
    [3, 5],
  ])
  const to = new Map([
    [0, 1],
    [1, 2],
    [2, 10],
  ])
  expect(ratio(of, to, true)).toEqual({ median: 3, best: 3 })
  expect(ratio(of, to, false)).toEqual({ median: 3, best: 1 })
  expect(ratio(of, new Map(), true)).toBeUndefined()
})

describe('a check', () => {
  const baseline = {
    'stdio: 64 in flight, calls/s: ours / raw': 0.6,
    'stdio: start, ms: ours / raw': 1.2,
    'slow: peak MB: ours / raw': 1,
    'flood: notifications/s: ours / raw': 0.5,
  }

  test('says nothing of what is as it was, more or less, nor of what it does not know', () => {
    expect(changes(baseline, { ratios: baseline, bests: baseline })).toEqual([])
    const now = { 'stdio: 64 in flight, calls/s: ours / raw': 0.46, 'stdio: start, ms: ours / raw': 1.59, new: 9 }
    expect(changes(baseline, { ratios: now, bests: {} })).toEqual([])
  })

  test('says nothing of what only the median or only the best tells: it was the machine', () => {
    const now = { 'stdio: start, ms: ours / raw': 2.4 }
    const best = { 'stdio: start, ms: ours / raw': 1.2 }
    expect(changes(baseline, { ratios: now, bests: best })).toEqual([])
    expect(changes(baseline, { ratios: best, bests: now })).toEqual([])
  })

  test('tells what got worse by more than a third, then what got better', () => {
    const now = {
      'stdio: 64 in flight, calls/s: ours / raw': 0.4,
      'stdio: start, ms: ours / raw': 2.4,
      'slow: peak MB: ours / raw': 0.5,
      'flood: notifications/s: ours / raw': 1,
    }
    const bests = { 'flood: notifications/s: ours / raw': 0.8 }
    expect(
      changes(baseline, { ratios: now, bests }).map(({ key, growth }) => [key, Number(growth.toFixed(3))]),
    ).toEqual([
      ['stdio: start, ms: ours / raw', 2],
      ['stdio: 64 in flight, calls/s: ours / raw', 1.5],
      ['flood: notifications/s: ours / raw', 0.625],
      ['slow: peak MB: ours / raw', 0.5],
    ])
  })
})
