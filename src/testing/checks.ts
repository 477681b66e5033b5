import assert from 'node:assert/strict'
import type { RequestId } from '@modelcontextprotocol/sdk/types.js'
import type { Params } from '../context.js'
import { INTERNAL_ERROR } from '../error.js'
import type { Side } from '../session.js'
import { request, type Written } from './messages.js'
import type { Stage } from './stage.js'
import { answerTo, Gate, lull, mark, outcomes, reached, said, type Trial } from './trial.js'

export interface Sample {
  readonly method: string
  readonly params?: Params
}

export const CLIENT: readonly Sample[] = [
  { method: 'x/contract', params: { a: 1 } },
  { method: 'ping' },
  { method: 'tools/list' },
  { method: 'tools/call', params: { name: 'contract', arguments: { a: 1 } } },
  { method: 'prompts/get', params: { name: 'contract' } },
  { method: 'resources/read', params: { uri: 'contract://a' } },
]
export const SERVER: readonly Sample[] = [
  { method: 'x/contract', params: { a: 1 } },
  { method: 'roots/list' },
  { method: 'sampling/createMessage', params: { messages: [], maxTokens: 1 } },
  { method: 'elicitation/create', params: { message: 'a', requestedSchema: { type: 'object', properties: {} } } },
]
/** What two parsers, or a parser and a writer, would make something else of. */
export const ODD =
  '{"b":1.0, "a":9007199254740993 ,"c":1e400,"d":-0,"e":"\\u0041\\/\\ud83d\\ude00","__proto__":{"f":1E2},"g":1,"g":2}'

export const far = (side: Side): Side => (side === 'client' ? 'server' : 'client')
export const ask = (id: RequestId, { method, params }: Sample) => request(id, method, params)
export const late = (id: RequestId): Written => ({ id, result: answerTo({ id, method: 'late' }, 'late ') })

export function samples({ options }: Trial, side: Side): readonly Sample[] {
  return side === 'client' ? (options.requests ?? CLIENT) : SERVER
}

/** A session in which as many requests as possible wait for the server. */
export async function waitingOnServer(trial: Trial): Promise<{ stage: Stage; ids: string[] }> {
  const all = samples(trial, 'client')
  const ids = all.map((_, n) => `waiting-${n}`)
  const gate = new Gate((id) => ids.includes(id as string))
  const stage = trial.join({ client: new Gate().answer, server: gate.answer })
  for (const [n, sample] of all.entries()) await stage.say('client', ask(ids[n] as string, sample))
  await somePassed(trial, stage, ids)
  await lull(stage)
  return { stage, ids }
}

export async function answered(trial: Trial, stage: Stage, side: Side, ids: readonly RequestId[]): Promise<void> {
  const open = () => ids.filter((id) => outcomes(stage, side, id).length === 0).map((id) => JSON.stringify(id))
  await trial.until(
    () => `an outcome for the requests ${open()} of the ${side}`,
    () => open().length === 0,
  )
  await trial.rest(stage)
}

/** Answers a request once it has come, and whatever the middleware asks meanwhile. */
export async function answerByHand(
  trial: Trial,
  stage: Stage,
  side: Side,
  id: RequestId,
  answer: (id: RequestId) => Written,
): Promise<void> {
  const done = new Set<RequestId>()
  const step = side === 'client' ? 'toServer' : 'toClient'
  let isThere = false
  await trial.until('a request to arrive, or to be answered', () => {
    for (const it of said(stage, step)) {
      if (!it.method || it.id === undefined || done.has(it.id)) continue
      done.add(it.id)
      if (it.id === id) isThere = true
      else void stage.say(far(side), { id: it.id, result: answerTo({ id: it.id, method: it.method }) })
    }
    return isThere || outcomes(stage, side, id).length > 0
  })
  if (isThere) await stage.say(far(side), answer(id))
}

export async function ended(trial: Trial, { bridge, session }: Stage): Promise<void> {
  let over = false
  void bridge.closed.then(() => {
    over = true
  })
  await trial.until('the session to end', () => over && session.signal.aborted)
  await trial.until('every message to be given up with its session', () => bridge.isQuiet)
}

export function isOne(stage: Stage, side: Side, id: RequestId) {
  const got = outcomes(stage, side, id)
  assert.equal(got.length, 1, `expected exactly one outcome of request ${JSON.stringify(id)} of the ${side}`)
  const [outcome] = got
  assert.notEqual(outcome?.error?.code, INTERNAL_ERROR, `expected an outcome, got ${outcome?.error?.message}`)
  return outcome
}

/** What a middleware answered itself is its own business. */
export function isOwn(stage: Stage, side: Side, id: RequestId, who?: string): void {
  const outcome = isOne(stage, side, id)
  if (!reached(stage, side, id)) return
  const expected = mark(id, who)
  assert.equal(outcome?.result?._meta?.contract, expected, `expected its own answer to request ${JSON.stringify(id)}`)
}

export async function somePassed(trial: Trial, stage: Stage, ids: readonly RequestId[]): Promise<void> {
  const some = () => ids.some((id) => reached(stage, 'client', id))
  const none = () => ids.every((id) => outcomes(stage, 'client', id).length > 0)
  await trial.until('requests to reach the server, or to be answered', () => some() || none())
  assert.ok(
    some(),
    'expected a request to reach the server: name some in contract(…, { requests }) that the middleware lets pass',
  )
}

export function textOf({ log }: Stage, step: string, key: string): string | undefined {
  return log.find((it) => it.step === step && it.text.includes(`"${key}"`))?.text
}

export function isSame({ options }: Trial, arrived: string | undefined, sent: string): void {
  if (options.rewrites) assert.ok(arrived?.includes(ODD), `expected what was not changed in its bytes, got ${arrived}`)
  else assert.equal(arrived, sent, 'expected the bytes as they came')
}
