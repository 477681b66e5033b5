import { describe, expect, test } from 'vitest'
import type { Middleware } from '../../src/index.js'
import { Account, judge, type Rule } from './checker.js'
import type { Step } from './client.js'
import { type Entry, emptyHistory, type History, type Journaled, type Outcome } from './history.js'
import { rows, type StagePlan } from './plan.js'
import { runStage, type Tampering } from './stage.js'

const circumstances = { isCalm: true, cured: ['upstream_exited'], isPipe: true, bound: 1_000 }
const content = (text: string) => [{ type: 'text', text }]

const entry = (more: Partial<Entry> = {}): Entry => ({
  token: 't',
  life: 'l',
  id: 1,
  method: 'tools/call',
  script: {},
  isTwin: false,
  isReuse: false,
  sentAt: 0,
  outcomes: [{ at: 1, via: 'stdout', result: { content: content('t'), padding: '' } }],
  progress: [],
  ...more,
})

const ran = (token = 't'): Journaled => ({ who: 'a', kind: 'call', token })
const failed = (code: number, phase?: string): Outcome => {
  const data = phase === undefined ? undefined : { source: 'proxy', reason: 'upstream_exited', phase }
  return { at: 1, via: 'stdout', error: { code, message: '', data } }
}

function rulesOf(history: Partial<History>, journal: Journaled[] = [], more = {}): Rule[] {
  const all = judge({ ...emptyHistory(), ...history }, journal, { ...circumstances, ...more })
  return all.map(({ rule }) => rule)
}

test('what went as it should is nothing to tell', () => {
  const entries = [
    entry(),
    entry({ token: 'u', script: { fault: 'hang' }, outcomes: [], cancelledAt: 2 }),
    entry({ token: 'v', outcomes: [], lostAt: 2 }),
    entry({ token: 'w', isTwin: true, outcomes: [failed(-32600)] }),
    entry({ token: 'x', script: { fault: 'crash' }, outcomes: [failed(-31001, 'sent')] }),
  ]
  expect(rulesOf({ entries }, [ran('t'), ran('u'), ran('x')])).toEqual([])
})

describe('a history that breaks a promise', () => {
  const [result] = entry().outcomes as [Outcome]
  test.each<[Rule, Partial<Entry>, Journaled[]]>([
    ['two outcomes', { outcomes: [result, result] }, [ran()]],
    ['no outcome', { outcomes: [] }, [ran()]],
    ['no outcome', { outcomes: [], endedAt: 5 }, [ran()]],
    ['late outcome', { outcomes: [{ ...result, at: 1_001 }] }, [ran()]],
    ['ran twice', {}, [ran(), ran()]],
    ['ran although not sent', { script: { fault: 'crash' }, outcomes: [failed(-31001, 'not_sent')] }, [ran()]],
    ['ran although not sent', { isTwin: true, outcomes: [{ at: 1, via: 'http', status: 503 }] }, [ran()]],
    ['foreign payload', { outcomes: [{ at: 1, via: '', result: { content: content('u'), padding: '' } }] }, [ran()]],
    ['damaged payload', { script: { bytes: 4 } }, [ran()]],
    ['unexpected error', { script: { fault: 'crash' }, outcomes: [failed(-32603)] }, []],
    ['unexpected error', { isTwin: true, outcomes: [failed(-31001)] }, []],
    ['unexpected outcome', { outcomes: [failed(-31001, 'sent')] }, []],
    ['unexpected outcome', { script: { fault: 'cut' } }, [ran()]],
    ['progress', { script: { progress: 2 }, progress: [1] }, [ran()]],
    ['unknown token', {}, [ran(), ran('nobody knows')]],
  ])('%s', (rule, more, journal) => {
    expect(rulesOf({ entries: [entry(more)] }, journal)).toEqual([rule])
  })

  const heard = (n: number, kind: 'request' | 'notification' | 'response' = 'notification', via = 'post-1') =>
    ({ life: 'l', via, from: 'a', n, kind }) as const
  const note = (seq: number): Journaled => ({ who: 'a', kind: 'note', life: 'l', seq })
  const call = (seq: number): Journaled => ({ who: 'a', kind: 'call', life: 'l', seq })

  test('order', () => {
    expect(rulesOf({ heard: [heard(1), heard(3), heard(2, 'request')] })).toEqual(['order to the client'])
    expect(rulesOf({ heard: [heard(1), heard(3, 'response'), heard(2, 'request')] })).toEqual([])
    expect(rulesOf({ heard: [heard(1), heard(2, 'notification', 'get'), heard(3)] })).toEqual([])
    expect(rulesOf({ heard: [heard(1), heard(1, 'notification', 'get')] })).toEqual(['order to the client'])
    expect(rulesOf({}, [note(2), call(1)])).toEqual(['order to the server'])
    expect(rulesOf({}, [note(2), call(1)], { isPipe: false })).toEqual([])
    expect(rulesOf({}, [call(2), note(1)], { isPipe: false })).toEqual(['order to the server'])
  })

  test('an upstream that is lost and not replaced', () => {
    const lives = [{ name: 'l', kind: 'stdio' as const, garbage: 0, isOpen: true }]
    const crash = { script: { fault: 'crash' } }
    const lost = entry({ ...crash, outcomes: [failed(-31001, 'sent')] })
    const late = entry({ ...crash, token: 'u', outcomes: [failed(-31001, 'not_sent')] })
    expect(rulesOf({ lives, entries: [lost] }, [ran()])).toEqual([])
    expect(rulesOf({ lives, entries: [late] })).toEqual(['not replaced'])
    expect(rulesOf({ lives, entries: [late] }, [], { cured: [] })).toEqual([])
    expect(rulesOf({ lives: [{ ...lives[0]!, wasEnded: true }] })).toEqual(['not replaced'])
  })

  test('what belongs to nobody, comes twice, or does not end', () => {
    expect(rulesOf({ strays: [{ life: 'l', text: '{}' }] })).toEqual(['stray message'])
    expect(rulesOf({ asked: new Map([['ask', 2]]) })).toEqual(['asked twice'])
    expect(rulesOf({ lives: [{ name: 'l', kind: 'stdio', garbage: 0, took: 1_001 }] })).toEqual(['slow end'])
  })
})

describe('a proxy that breaks a promise is caught', () => {
  const calls = (count: number): Step[] =>
    Array.from({ length: count }, () => ({ do: 'call', script: { progress: 2 }, id: 'number', waits: false }))
  const plan = (row: number, steps = calls(5)): StagePlan => ({
    seed: 1,
    index: 0,
    row: rows[row]!,
    isCalm: true,
    isHeld: false,
    waves: [{ clients: [{ kind: rows[row]!.clients[0]!, steps, drains: true }], spells: [] }],
  })
  const caught = async (tampering: Tampering, row = 0) => {
    const violations = await runStage({ ...plan(row) }, new Account(), { ...tampering, bound: 700 })
    return [...new Set(violations.map(({ rule }) => rule))].sort()
  }
  const isAnswer = (text: string) => text.includes('"content"')
  const once = (act: (text: string) => string[]) => {
    let isDone = false
    return (text: string) => {
      if (isDone || !isAnswer(text)) return [text]
      isDone = true
      return act(text)
    }
  }
  const asks: Middleware = async (ctx, next) => {
    if (ctx.isRequest('tools/call')) await ctx.call('server', 'tools/call', { ...ctx.params })
    return next()
  }
  const makesUp: Middleware = (ctx, next) => {
    if (ctx.isResponse('tools/call')) ctx.result = { content: [{ type: 'text', text: 'made up' }] }
    return next()
  }
  const refuses: Middleware = async (ctx, next) => {
    if (!ctx.isRequest('tools/call')) return next()
    await ctx.call('server', 'tools/call', { ...ctx.params })
    ctx.drop()
  }

  test.each<[string, Rule[], Tampering]>([
    ['runs a call twice', ['ran twice'], { middleware: asks }],
    ['makes up an answer', ['foreign payload'], { middleware: makesUp }],
    ['says not_sent of what it sent', ['ran although not sent'], { middleware: refuses }],
    ['loses an answer', ['no outcome'], { text: once(() => []) }],
    ['doubles an answer', ['two outcomes', 'order to the client'], { text: once((text) => [text, text]) }],
    ['loses what was written down', ['unknown token'], { journal: (all) => [...all, { ...all.at(-1)!, token: 'x' }] }],
  ])('one that %s', async (_, rules, tampering) => {
    expect(await caught(tampering)).toEqual(expect.arrayContaining(rules))
  })

  test('and one that keeps them is not', async () => {
    expect(await runStage(plan(0), new Account())).toEqual([])
  })

  test('one that leaves something behind', async () => {
    const timers: NodeJS.Timeout[] = []
    const forgets: Middleware = (_ctx, next) => {
      for (let left = 0; left < 3; left++) timers.push(setTimeout(() => {}, 60_000))
      return next()
    }
    expect(await caught({ middleware: forgets })).toContain('left over')
    for (const it of timers) clearTimeout(it)
  })
})
