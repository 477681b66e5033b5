import assert from 'node:assert/strict'
import type { RequestId } from '@modelcontextprotocol/sdk/types.js'
import type { Side } from '../session.js'
import {
  answerByHand,
  answered,
  ask,
  ended,
  far,
  isOne,
  isOwn,
  isSame,
  late,
  ODD,
  type Sample,
  samples,
  somePassed,
  textOf,
  waitingOnServer,
} from './checks.js'
import { error, modern, notification, request } from './messages.js'
import { answerTo, Gate, lull, type MakeStack, outcomes, reached, said, Trial } from './trial.js'

const SIDES: readonly Side[] = ['client', 'server']
const IDS: readonly RequestId[] = [0, '0', 1, '1', '', '__proto__']
const FAILURE = { code: 4711, message: 'No such thing', data: { a: [1, null, 'é'] } }

/** Each is played on a line that was started, and is stopped afterwards. */
export const invariants: readonly [name: string, play: (trial: Trial, stack: MakeStack) => Promise<void>][] = [
  ['each request gets exactly one outcome, its own, whatever its id and the order of the answers', ownOutcomes],
  ['an error of a peer comes back as it is', errors],
  ['notifications arrive in their order, none lost, none twice', notifications],
  ['what it does not know passes byte for byte', bytes],
  ['a request of the server in the middle of a call is answered', inTheMiddle],
  ['a cancelled request gets silence, and its id is free again', cancelled],
  ['the server is gone: each request that waits gets one outcome', serverGone],
  ['the client is gone: the session ends and nothing stays', clientGone],
  ['two sessions at once do not mix', apart],
  ['a thousand exchanges leave nothing behind', many],
  ['requests of 2026-07-28 pass, each in a session of its own', modernRequests],
  ['nothing is written to stdout', silence],
  ['it starts and closes beside another of its kind', twice],
]

async function ownOutcomes(trial: Trial): Promise<void> {
  for (const side of SIDES) {
    for (const sample of samples(trial, side)) {
      const gate = new Gate((id) => IDS.includes(id))
      const stage = trial.join({ client: new Gate().answer, server: new Gate().answer, [far(side)]: gate.answer })
      for (const id of IDS) await stage.say(side, ask(id, sample))
      await lull(stage)
      gate.open()
      await answered(trial, stage, side, IDS)
      for (const id of IDS) isOwn(stage, side, id)
    }
  }
}

async function errors(trial: Trial): Promise<void> {
  for (const side of SIDES) {
    const all = samples(trial, side)
    const ids = all.map((_, n) => `failing-${n}`)
    const stage = trial.join({ client: new Gate().answer, server: new Gate().answer, [far(side)]: undefined })
    for (const [n, sample] of all.entries()) {
      const id = ids[n] as string
      await stage.say(side, ask(id, sample))
      await answerByHand(trial, stage, side, id, (it) => error(it, FAILURE.code, FAILURE.message, FAILURE.data))
      await answered(trial, stage, side, [id])
      if (!reached(stage, side, id)) continue
      const [outcome] = outcomes(stage, side, id)
      if (trial.options.rewrites) assert.ok(outcome?.error, `expected ${sample.method} to fail as the peer said`)
      else assert.deepEqual(outcome?.error, FAILURE, `expected the peer's error for ${sample.method}`)
    }
  }
}

async function notifications(trial: Trial): Promise<void> {
  for (const side of SIDES) {
    const all = samples(trial, side)
    const stage = trial.join({ client: new Gate().answer, server: new Gate().answer })
    const ids: string[] = []
    for (let n = 0; n < 30; n++) {
      await stage.say(side, notification('notifications/contract', { n }))
      if (n % 3 > 0) continue
      ids.push(`between-${n}`)
      await stage.say(side, ask(`between-${n}`, all[(n / 3) % all.length] as Sample))
    }
    await answered(trial, stage, side, ids)
    const heard = said(stage, side === 'client' ? 'toServer' : 'toClient')
      .filter((it) => it.method === 'notifications/contract')
      .map((it) => it.params?.n)
    const expected = Array.from({ length: 30 }, (_, n) => n)
    assert.deepEqual(heard, expected, `expected the notifications of the ${side} in their order`)
  }
}

async function bytes(trial: Trial): Promise<void> {
  for (const side of SIDES) {
    const stage = trial.join()
    const there = side === 'client' ? 'toServer' : 'toClient'
    const back = side === 'client' ? 'toClient' : 'toServer'
    const asked = `{ "params":{"odd":${ODD}},"method":"x/contract", "id":"odd" ,"jsonrpc":"2.0"}`
    await stage.say(side, asked)
    const answer = `{"result":{"odd":${ODD}} ,"id":"odd","jsonrpc":"2.0"}`
    await answerByHand(trial, stage, side, 'odd', () => answer)
    await answered(trial, stage, side, ['odd'])
    if (reached(stage, side, 'odd')) {
      isSame(trial, textOf(stage, there, 'x/contract'), asked)
      isSame(trial, textOf(stage, back, 'odd'), answer)
    }
    const told = `{"jsonrpc":"2.0" ,"params":{"odd":${ODD}}, "method":"notifications/contract"}`
    await stage.say(side, told)
    await trial.until('a notification to arrive', () => textOf(stage, there, 'notifications/contract') !== undefined)
    isSame(trial, textOf(stage, there, 'notifications/contract'), told)
  }
}

async function inTheMiddle(trial: Trial): Promise<void> {
  const all = samples(trial, 'client')
  const ids = all.map((_, n) => `call-${n}`)
  const stage = trial.join({
    client: new Gate().answer,
    server: async (it, { call }) => {
      // Whether the client may be asked is up to the middleware; that it waits for nothing is not.
      if (ids.includes(it.id as string)) await call('sampling/createMessage').catch(() => {})
      return answerTo(it)
    },
  })
  for (const [n, sample] of all.entries()) await stage.say('client', ask(ids[n] as string, sample))
  await answered(trial, stage, 'client', ids)
  for (const id of ids) isOwn(stage, 'client', id)
  await somePassed(trial, stage, ids)
}

async function cancelled(trial: Trial): Promise<void> {
  for (const side of SIDES) {
    const all = samples(trial, side)
    const ids = all.map((_, n) => `cancelled-${n}`)
    const gate = new Gate((id) => ids.includes(id as string), 'late ')
    const stage = trial.join({ client: new Gate().answer, server: new Gate().answer, [far(side)]: gate.answer })
    for (const [n, sample] of all.entries()) await stage.say(side, ask(ids[n] as string, sample))
    if (side === 'client') await somePassed(trial, stage, ids)
    await lull(stage)
    const waiting: string[] = []
    for (const requestId of ids) {
      // A middleware that had to wait for a file may have answered meanwhile.
      if (outcomes(stage, side, requestId).length > 0) continue
      waiting.push(requestId)
      await stage.say(side, notification('notifications/cancelled', { requestId }))
    }
    await lull(stage)
    for (const id of ids) if (reached(stage, side, id)) await stage.say(far(side), late(id))
    await trial.rest(stage)
    for (const id of waiting) {
      assert.deepEqual(outcomes(stage, side, id), [], 'expected no outcome of a request that was cancelled')
    }
    gate.open()
    gate.who = 'again '
    for (const id of waiting) await stage.say(side, ask(id, all[ids.indexOf(id)] as Sample))
    await answered(trial, stage, side, waiting)
    for (const id of waiting) isOwn(stage, side, id, 'again ')
  }
}

async function serverGone(trial: Trial): Promise<void> {
  const { stage, ids } = await waitingOnServer(trial)
  await stage.leave('server')
  await answered(trial, stage, 'client', ids)
  await ended(trial, stage)
  for (const id of ids) isOne(stage, 'client', id)
}

async function clientGone(trial: Trial): Promise<void> {
  const { stage } = await waitingOnServer(trial)
  await stage.leave('client')
  await ended(trial, stage)
  assert.equal(trial.app.stats().pending, 0, 'expected nothing to be pending once the client has left')
}

async function apart(trial: Trial): Promise<void> {
  const all = samples(trial, 'client')
  const ids = all.map((_, n) => n)
  const names = ['session-a', 'session-b']
  const both = names.map((who) => {
    const gate = new Gate((id) => ids.includes(id as number), `${who} `)
    return { who, gate, stage: trial.join({ client: new Gate().answer, server: gate.answer }) }
  })
  for (const [id, { method, params }] of all.entries()) {
    for (const { who, stage } of both) {
      const _meta = { ...(params?._meta as object), contract: `of ${who}` }
      await stage.say('client', request(id, method, { ...params, _meta }))
      await stage.say('server', notification('notifications/contract', { of: `of ${who}` }))
    }
  }
  for (const { stage } of both) await lull(stage)
  for (const { gate } of both.toReversed()) gate.open()
  for (const { who, stage } of both) {
    await answered(trial, stage, 'client', ids)
    for (const id of ids) isOwn(stage, 'client', id, `${who} `)
    const foreign = stage.log.filter(({ text }) => names.some((it) => it !== who && text.includes(`of ${it}`)))
    assert.deepEqual(foreign, [], 'expected nothing of another session')
    const heard = said(stage, 'toClient').filter((it) => it.method === 'notifications/contract')
    assert.equal(heard.length, all.length, 'expected the notifications of this session')
  }
}

async function many(trial: Trial): Promise<void> {
  const all = samples(trial, 'client')
  const stage = trial.join({ client: new Gate().answer, server: new Gate().answer })
  for (let first = 0; first < 1_000; first += 100) {
    const ids = Array.from({ length: 100 }, (_, n) => first + n)
    for (const id of ids) await stage.say('client', ask(id, all[id % all.length] as Sample))
    await trial.until('each of many requests to be answered', () => {
      const answers = said(stage, 'toClient').filter((it) => !it.method)
      return answers.length >= first + 100
    })
  }
  await trial.rest(stage)
  const answers = said(stage, 'toClient').filter((it) => !it.method)
  assert.equal(new Set(answers.map(({ id }) => id)).size, 1_000, 'expected an outcome for each of many requests')
  assert.equal(answers.length, 1_000, 'expected exactly one outcome for each of many requests')
  const { pending, lanes } = trial.app.stats()
  assert.deepEqual({ pending, ...lanes }, { pending: 0, 'client-to-server': 0, 'server-to-client': 0 })
}

async function modernRequests(trial: Trial): Promise<void> {
  const stages = samples(trial, 'client').map((sample) => ({
    sample,
    stage: trial.join({ server: (it) => ({ ...answerTo(it), resultType: 'complete' }) }),
  }))
  for (const { sample, stage } of stages) await stage.say('client', modern(ask(1, sample)))
  for (const { sample, stage } of stages) {
    await answered(trial, stage, 'client', [1])
    isOwn(stage, 'client', 1)
    assert.equal(stage.session.era, 'modern')
    const asked = said(stage, 'toServer').find(({ method, id }) => method && id === 1)
    const { _meta } = modern(ask(1, sample)).params as { _meta: object }
    if (asked) assert.deepEqual({ ...(asked.params?._meta as object), ..._meta }, asked.params?._meta)
    await stage.leave('client')
    await ended(trial, stage)
  }
}

async function silence(trial: Trial): Promise<void> {
  const stage = trial.join({ client: new Gate().answer, server: new Gate().answer })
  for (const side of SIDES) {
    const all = samples(trial, side)
    for (const [n, sample] of all.entries()) await stage.say(side, ask(n, sample))
    await stage.say(side, notification('notifications/contract'))
    await answered(trial, stage, side, [...all.keys()])
  }
  await trial.stop()
  assert.deepEqual(trial.watch.printed, [], 'expected nothing on stdout, which belongs to the messages')
}

async function twice(trial: Trial, stack: MakeStack): Promise<void> {
  const other = new Trial(stack, trial.options, trial.watch)
  try {
    await other.start()
    await exchange(trial)
    await trial.stop()
    await exchange(other)
    await other.stop()
  } finally {
    other.abandon()
  }
  assert.deepEqual(other.errors, [], 'expected no error to be reported')
}

async function exchange(trial: Trial): Promise<void> {
  const stage = trial.join({ client: new Gate().answer, server: new Gate().answer })
  const all = samples(trial, 'client')
  for (const [n, sample] of all.entries()) await stage.say('client', ask(n, sample))
  await answered(trial, stage, 'client', [...all.keys()])
  for (const id of all.keys()) isOwn(stage, 'client', id)
}
