import fc from 'fast-check'
import type { Middleware } from 'open-mcp-proxy'
import { afterEach, beforeEach, expect, it, vi } from 'vitest'
import { proxyError, type Reason } from '../../src/error.js'
import { HandWire, joined, turnOfLoop } from '../fixtures/played.js'
import { many, runs } from './search.js'

type Id = number | string
type Side = 'client' | 'server'

/** A request that has no outcome yet. */
interface Asked {
  readonly id: Id
  /** As the end that is to answer it knows it. */
  readonly wireId: Id
}

/** A request of the proxy's own. */
interface Own extends Asked {
  readonly to: Side
  readonly abort: AbortController
  readonly outcome: Promise<unknown>
}

const TIMEOUT = 60_000
const DRAIN_TIMEOUT = 10_000

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
})
afterEach(() => {
  vi.useRealTimers()
})

const side = fc.constantFrom<Side>('client', 'server')
const id = fc.constantFrom<Id>(0, '0', 1, '1', '')
const nth = fc.nat(9)
const event = fc.oneof(
  { weight: 5, arbitrary: fc.record({ does: fc.constant('ask' as const), side, id }) },
  {
    weight: 4,
    arbitrary: fc.record({ does: fc.constant('answer' as const), side, nth, error: fc.boolean(), twice: fc.boolean() }),
  },
  { weight: 2, arbitrary: fc.record({ does: fc.constant('cancel' as const), side, id }) },
  { weight: 2, arbitrary: fc.record({ does: fc.constant('answer late' as const), side, nth }) },
  { weight: 1, arbitrary: fc.record({ does: fc.constant('answer nobody' as const), side, id }) },
  { weight: 1, arbitrary: fc.record({ does: fc.constant('notify' as const), side }) },
  { weight: 2, arbitrary: fc.record({ does: fc.constant('call' as const), to: side }) },
  { weight: 1, arbitrary: fc.record({ does: fc.constant('abort' as const), nth }) },
  { weight: 1, arbitrary: fc.record({ does: fc.constant('wait' as const) }) },
)
const end = fc.constantFrom('client leaves', 'server is lost', 'close', 'close in a hurry')

const slow: Middleware = async (_ctx, next) => {
  await turnOfLoop()
  await next()
}
const lines: Record<string, Middleware[]> = { empty: [], slow: [slow, (_ctx, next) => next(), slow] }

/** Until nothing moves any more. */
async function rest() {
  for (let turns = 0; turns < 8; turns++) await turnOfLoop()
}

const far = (side: Side): Side => (side === 'client' ? 'server' : 'client')

/** Plays both ends, and knows what must come of all that they say. */
class Table {
  readonly ends = { client: new HandWire(), server: new HandWire() }
  /** Requests of each end. */
  readonly asked: Record<Side, Map<Id, Asked>> = { client: new Map(), server: new Map() }
  /** Ids under which each end may still answer although nobody waits. */
  readonly late: Record<Side, Set<Id>> = { client: new Set(), server: new Set() }
  readonly own: Own[] = []
  dropped = 0
  serial = 0
  joined!: Awaited<ReturnType<typeof joined>>

  async begin(line: Middleware[]) {
    this.joined = await joined((app) => app.use(...line), { ...this.ends, drainTimeout: DRAIN_TIMEOUT })
  }

  /** Everything that has come to both ends by now. */
  async expect(expected: Partial<Record<Side, unknown[]>>) {
    await rest()
    const come = { client: this.ends.client.take(), server: this.ends.server.take() }
    expect(come).toEqual({ client: [], server: [], ...expected })
    const { pending, dropped } = this.joined.app.stats()
    const open = this.asked.client.size + this.asked.server.size
    expect({ pending, dropped }).toEqual({ pending: open, dropped: this.dropped })
    return come
  }

  async play(event: typeof events extends fc.Arbitrary<(infer One)[]> ? One : never) {
    if (event.does === 'ask') return this.ask(event.side, event.id)
    if (event.does === 'answer') return this.answer(event.side, event)
    if (event.does === 'cancel') return this.cancel(event.side, event.id)
    if (event.does === 'answer late') return this.answerLate(event.side, event.nth)
    if (event.does === 'answer nobody') return this.answerNobody(event.side, event.id)
    if (event.does === 'notify') return this.notify(event.side)
    if (event.does === 'call') return this.call(event.to)
    if (event.does === 'abort') return this.abort(event.nth)
    return this.wait()
  }

  async ask(side: Side, id: Id) {
    const to = far(side)
    const request = { method: 'm', params: { serial: this.serial++ } }
    this.ends[side].say({ id, ...request })
    if (this.asked[side].has(id)) {
      const message = `Invalid request: id ${JSON.stringify(id)} is in use`
      await this.expect({ [side]: [{ id, error: { code: -32600, message } }] })
      return
    }
    const isOwed = this.late[to].has(id)
    this.asked[side].set(id, { id, wireId: id })
    const come = await this.expect({ [to]: [{ id: isOwed ? expect.stringMatching(/^omp-/) : id, ...request }] })
    this.asked[side].set(id, { id, wireId: come[to][0]?.id as Id })
  }

  /** The oldest, or another, of what this end was asked. */
  async answer(side: Side, { nth, error, twice }: { nth: number; error: boolean; twice: boolean }) {
    const asker = far(side)
    const open: (Asked | Own)[] = [...this.asked[asker].values(), ...this.own.filter(({ to }) => to === side)]
    const one = open[nth % open.length]
    if (!one) return
    const { wireId } = one
    const outcome = error ? { error: { code: 7, message: 'no' } } : { result: { serial: this.serial++ } }
    this.ends[side].say({ id: wireId, ...outcome })
    if (twice) {
      this.dropped++
      this.ends[side].say({ id: wireId, result: { twice } })
    }
    if ('outcome' in one) {
      this.own.splice(this.own.indexOf(one), 1)
      await this.expect({})
      expect(await one.outcome).toEqual(outcome.result ?? 'no')
      return
    }
    this.asked[asker].delete(one.id)
    await this.expect({ [asker]: [{ id: one.id, ...outcome }] })
  }

  async cancel(side: Side, id: Id) {
    const to = far(side)
    const one = this.asked[side].get(id)
    this.asked[side].delete(id)
    if (one) this.late[to].add(one.wireId)
    const cancel = (requestId: Id) => ({ method: 'notifications/cancelled', params: { requestId } })
    this.ends[side].say(cancel(id))
    await this.expect({ [to]: [cancel(one?.wireId ?? id)] })
  }

  async answerLate(side: Side, nth: number) {
    const late = [...this.late[side]]
    const id = late[nth % late.length]
    if (id === undefined) return
    this.late[side].delete(id)
    this.dropped++
    this.ends[side].say({ id, result: { late: true } })
    await this.expect({})
  }

  /** Its id belongs to no request, though one like it may. */
  async answerNobody(side: Side, id: Id) {
    const open = [...this.asked[far(side)].values()].some(({ wireId }) => wireId === id)
    if (open) return
    this.late[side].delete(id)
    this.dropped++
    this.ends[side].say({ id, result: {} })
    await this.expect({})
  }

  async notify(side: Side) {
    const told = { method: 'n', params: { serial: this.serial++ } }
    this.ends[side].say(told)
    await this.expect({ [far(side)]: [told] })
  }

  async call(to: Side) {
    const abort = new AbortController()
    const call = this.joined.session.call(to, 'own', undefined, { signal: abort.signal, timeout: TIMEOUT })
    const outcome = call.catch((error: Error) => error.message)
    const come = await this.expect({ [to]: [{ id: expect.stringMatching(/^omp-/), method: 'own' }] })
    const id = come[to][0]?.id as Id
    this.own.push({ id, wireId: id, to, abort, outcome })
  }

  async abort(nth: number) {
    const [one] = this.own.splice(nth % (this.own.length || 1), 1)
    if (!one) return
    this.late[one.to].add(one.id)
    one.abort.abort(new Error('aborted'))
    await this.expect({ [one.to]: [{ method: 'notifications/cancelled', params: { requestId: one.id } }] })
    expect(await one.outcome).toBe('aborted')
  }

  /** So long that no call of the proxy's own is waited for any longer. */
  async wait() {
    const late = this.own.splice(0)
    for (const { to, id } of late) this.late[to].add(id)
    await vi.advanceTimersByTimeAsync(TIMEOUT)
    const told = (side: Side) =>
      late.flatMap(({ to, id }) =>
        to === side ? [{ method: 'notifications/cancelled', params: { requestId: id } }] : [],
      )
    await this.expect({ client: told('client'), server: told('server') })
    for (const { outcome } of late) expect(await outcome).toBe('Upstream timed out')
  }

  /** While the server owes the client an answer, its answers are waited for, and no new requests are taken. */
  async drain() {
    if (this.asked.client.size === 0) return
    const error = proxyError('shutting_down').toJSON()
    this.ends.client.say({ id: 'new', method: 'm' })
    await this.expect({ client: [{ id: 'new', error }] })
    await this.notify('server')
    if (this.asked.client.size > 1) await this.answer('server', { nth: 0, error: false, twice: true })
  }

  /** Whoever still waits is told, once, if anybody is there to be told. */
  async end(how: string) {
    const { app, errors } = this.joined
    if (how === 'client leaves') this.ends.client.onclose?.()
    if (how === 'server is lost') this.ends.server.onclose?.()
    const closing = app.close({ urgent: how === 'close in a hurry' })
    await rest()
    if (how === 'close') await this.drain()
    await vi.advanceTimersByTimeAsync(DRAIN_TIMEOUT)
    await closing
    const isLost = how === 'server is lost'
    const told = (side: Side, reason: Reason) => {
      const error = proxyError(reason, { phase: 'sent' }).toJSON()
      return [...this.asked[side].keys()].map((id) => ({ id, error }))
    }
    expect({ client: this.ends.client.take(), server: this.ends.server.take() }).toEqual({
      client: told('client', isLost ? 'upstream_exited' : 'shutting_down'),
      server: isLost ? [] : told('server', 'shutting_down'),
    })
    for (const { outcome } of this.own) expect(await outcome).toEqual(expect.any(String))
    expect(app.stats()).toEqual({
      sessions: 0,
      pending: 0,
      dropped: this.dropped,
      lanes: { 'client-to-server': 0, 'server-to-client': 0 },
    })
    expect(errors).toEqual([])
  }
}

const events = many(event, 40)

it('every request has one outcome at its sender, and nothing else comes of what the ends say', async () => {
  await fc.assert(
    fc.asyncProperty(events, end, fc.constantFrom(...Object.keys(lines)), async (events, how, line) => {
      const table = new Table()
      await table.begin(lines[line]!)
      for (const event of events) await table.play(event)
      await table.end(how)
    }),
    runs(400),
  )
})
