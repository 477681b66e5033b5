import fc from 'fast-check'
import { afterEach, beforeEach, expect, it, vi } from 'vitest'
import { inPhase, proxyError, type RpcError } from '../../src/error.js'
import { RestartingUpstream } from '../../src/upstream/restart.js'
import { HandWire } from '../fixtures/played.js'
import { many, runs } from './search.js'

type Id = number | string
type Settled = 'resolved' | 'sent' | 'not_sent'
type Sends = 'at once' | 'soon' | 'hang'

/** A request or notification of the client. */
interface Said {
  readonly serial: number
  readonly id: Id | undefined
  /** When it was said, or was last in the hands of an upstream: from then on it may wait. */
  since: number
  /** What became of `send`. */
  sent: 'open' | 'resolved' | RpcError
  readonly outcomes: { readonly error?: { data?: { phase?: string } }; readonly result?: unknown }[]
  cancelled: boolean
  /** Whoever answers it wants to see that it was cancelled. */
  cancelledAt: Upstream | undefined
  /** How many had taken it when it was cancelled, where none was to be told. */
  takesBefore: number | undefined
}

/** A message in the hands of an upstream. */
interface Taken {
  readonly said: Said
  state: 'open' | 'taken' | 'answered' | 'refused' | 'broken' | 'not sent'
}

/** What an upstream is like that is started. */
interface Plan {
  readonly start: 'works' | 'fails' | 'hangs'
  readonly handshake: 'answers' | 'hangs' | 'refuses' | 'speaks another revision'
  /** It is lost so many turns behind its answer to the handshake. */
  readonly dies: number | undefined
}

const states = { resolved: 'taken', sent: 'broken', not_sent: 'not sent' } as const
const works: Plan = { start: 'works', handshake: 'answers', dies: undefined }
const hello = { protocolVersion: '2025-11-25', capabilities: {} }
const initialize = { jsonrpc: '2.0', id: 0, method: 'initialize', params: hello }
const settled = [
  { method: 'logging/setLevel', params: { level: 'debug' } },
  { method: 'resources/subscribe', params: { uri: 'a:1' } },
  { method: 'resources/subscribe', params: { uri: 'b:2' } },
]
const replayed = [
  { id: expect.stringMatching(/^omp-/), method: 'initialize', params: hello },
  { method: 'notifications/initialized' },
  ...settled.map((it) => ({ id: expect.stringMatching(/^omp-/), ...it })),
]

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] })
})
afterEach(() => {
  vi.useRealTimers()
})

const exited = (phase: 'sent' | 'not_sent') => proxyError('upstream_exited', { phase, detail: 'exit code 3' })
/** So many turns of the microtask queue later. */
function behind(turns: number, then: () => void) {
  if (turns === 0) then()
  else queueMicrotask(() => behind(turns - 1, then))
}

const rest = () => vi.advanceTimersByTimeAsync(0)

/** An upstream that can be lost at any moment, and whose sends settle when the test says so. */
class Upstream extends HandWire {
  readonly taken: Taken[] = []
  /** What it was told before anything else. */
  readonly replay: object[] = []
  readonly cancels: unknown[] = []
  readonly asked = new Map<Id, 'open' | 'answered' | 'cancelled'>()
  readonly responses: unknown[] = []
  hanging: { settle: (how: Settled) => void }[] = []
  begin: ((how: 'works' | 'fails') => void) | undefined
  isDead = false
  isTold = false
  constructor(
    readonly table: Table,
    readonly plan: Plan,
  ) {
    super()
    this.starting = () => this.#start()
    this.sending = (text) => this.#send(JSON.parse(text))
    this.closing = async () => this.#close()
  }

  #start(): Promise<void> {
    if (this.plan.start === 'works') return Promise.resolve()
    if (this.plan.start === 'fails') return Promise.reject(proxyError('upstream_unreachable'))
    return new Promise((resolve, reject) => {
      this.begin = (how) => (how === 'works' ? resolve() : reject(proxyError('upstream_unreachable')))
    })
  }

  #send(message: { id?: Id; method?: string; params?: { serial?: number; requestId?: Id } }): Promise<void> | void {
    const { id, method, params } = message
    if (method === undefined) {
      expect(this.asked.get(id!)).toBe('open')
      this.asked.set(id!, 'answered')
      return undefined
    }
    const said = params?.serial === undefined ? undefined : this.table.said[params.serial]!
    const taken: Taken | undefined = said && { said, state: 'open' }
    if (taken) this.#take(taken)
    if (this.isDead) {
      if (taken) taken.state = 'not sent'
      return Promise.reject(exited('not_sent'))
    }
    if (method === 'notifications/cancelled') this.cancels.push(params?.requestId)
    else if (!taken) this.#replayed(message)
    return this.#settling(taken, said || method === 'notifications/cancelled' ? this.table.sends : this.table.replays)
  }

  #take(taken: Taken) {
    expect(this.table.upstream).toBe(this)
    // The first one is settled with by the client itself.
    if (this !== this.table.upstreams[0]) expect(this.replay).toEqual(replayed)
    this.taken.push(taken)
  }

  #replayed(message: { id?: Id; method?: string }) {
    const { jsonrpc: _, ...rest } = message as { jsonrpc?: string }
    this.replay.push(rest)
    if (message.method !== 'initialize') return
    const { handshake } = this.plan
    if (handshake === 'hangs') return
    const outcome =
      handshake === 'refuses'
        ? { error: { code: 7, message: 'no' } }
        : { result: { ...hello, ...(handshake === 'answers' ? {} : { protocolVersion: '1' }) } }
    queueMicrotask(() => this.say({ id: message.id, ...outcome }))
    const { dies } = this.plan
    if (dies !== undefined) behind(dies, () => this.lose())
  }

  #settling(taken: Taken | undefined, sends: Sends): Promise<void> | void {
    if (sends !== 'hang') {
      if (taken) taken.state = 'taken'
      return sends === 'at once' ? undefined : Promise.resolve()
    }
    return new Promise((resolve, reject) => {
      const settle = (how: Settled) => {
        if (taken?.state === 'open') taken.state = states[how]
        if (how === 'resolved') resolve()
        else reject(exited(how))
      }
      this.hanging.push({ settle })
    })
  }

  settle(how: Settled) {
    for (const { settle } of this.hanging.splice(0)) settle(how)
  }

  #close() {
    this.begin?.('fails')
    if (this.table.tells) this.tell()
    this.settle('sent')
    this.isDead = true
  }

  lose(reason: Error = exited('sent')) {
    this.isDead = true
    this.tell(reason)
  }

  tell(reason?: Error) {
    if (this.isTold) return
    this.isTold = true
    this.onclose?.(reason)
  }

  /** Requests that it took and that have no outcome. */
  get open(): Taken[] {
    return this.taken.filter(({ said, state }) => said.id !== undefined && (state === 'open' || state === 'taken'))
  }
}

/** Plays the client and all upstreams, and holds against the promises what comes of it. */
class Table {
  readonly upstreams: Upstream[] = []
  readonly said: Said[] = []
  readonly restarts: number[] = []
  readonly wire: RestartingUpstream
  /** Plans of the upstreams to come. */
  plans: Plan[] = []
  sends: Sends = 'at once'
  replays: Sends = 'at once'
  /** A wire tells of its end while it is told to close. */
  tells = false
  closes = 0
  isClosing = false

  constructor() {
    this.wire = new RestartingUpstream({
      make: () => {
        const upstream = new Upstream(this, this.plans.shift() ?? works)
        this.upstreams.push(upstream)
        return upstream
      },
      onRestart: () => {
        expect(this.upstream.replay).toEqual(replayed)
        this.restarts.push(this.upstreams.length)
      },
    })
    this.wire.onframe = (frame) => this.hear(JSON.parse(Buffer.from(frame).toString()))
    this.wire.onclose = () => {
      this.closes++
      // Whoever is told may close it himself.
      void this.wire.close()
    }
  }

  get upstream() {
    return this.upstreams.at(-1)!
  }

  async begin() {
    await this.wire.start()
    const send = (message: object) => void this.wire.send(Buffer.from(JSON.stringify(message)))
    send(initialize)
    this.upstream.say({ id: 0, result: hello })
    send({ jsonrpc: '2.0', method: 'notifications/initialized' })
    for (const it of settled) {
      send({ jsonrpc: '2.0', id: 0, ...it })
      this.upstream.say({ id: 0, result: {} })
    }
    await rest()
  }

  // --- the client -------------------------------------------------------------------------------------------

  openOf(id: Id | undefined): Said | undefined {
    return this.said.findLast((it) => it.id === id && id !== undefined)
  }

  /** An id is free once its last request has an outcome. */
  isFree(id: Id) {
    const last = this.openOf(id)
    return !last || last.outcomes.length > 0 || last.sent instanceof Error
  }

  say(id?: Id) {
    if (this.isClosing || (id !== undefined && !this.isFree(id))) return
    const serial = this.said.length
    const said: Said = {
      serial,
      id,
      since: performance.now(),
      sent: 'open',
      outcomes: [],
      cancelled: false,
      cancelledAt: undefined,
      takesBefore: undefined,
    }
    this.said.push(said)
    const message = { jsonrpc: '2.0', id, method: id === undefined ? 'n' : 'm', params: { serial } }
    const sent = this.wire.send(Buffer.from(JSON.stringify(message)))
    if (!sent) said.sent = 'resolved'
    sent?.then(
      () => {
        said.sent = 'resolved'
      },
      (error: RpcError) => {
        said.sent = error
      },
    )
  }

  cancel(id: Id) {
    const said = this.openOf(id)
    if (this.isClosing || !said || this.isFree(id) || said.cancelled) return
    said.cancelled = true
    const { upstream } = this
    const isThere = upstream.taken.some((it) => it.said === said && (it.state === 'taken' || it.state === 'open'))
    if (isThere && !upstream.isDead) said.cancelledAt = upstream
    // One that comes back unsent in this very turn may miss it.
    else if (!this.wasSent(said)) said.takesBefore = this.takesOf(said).length
    const message = { jsonrpc: '2.0', method: 'notifications/cancelled', params: { requestId: id } }
    this.wire.send(Buffer.from(JSON.stringify(message)))?.catch(() => {})
  }

  respond(nth: number) {
    const open = this.upstreams.flatMap(({ asked }) => [...asked].filter(([, state]) => state === 'open'))
    const [id] = open[nth % open.length] ?? []
    if (id === undefined || this.isClosing) return
    this.wire.send(Buffer.from(JSON.stringify({ jsonrpc: '2.0', id, result: {} })))?.catch(() => {})
  }

  hear(message: {
    id?: Id
    method?: string
    params?: { requestId?: Id }
    error?: object
    result?: { serial?: number }
  }) {
    const { id, method, params, error, result } = message
    if (method === 'notifications/cancelled') {
      const upstream = this.upstreams.find(({ asked }) => asked.get(params!.requestId!) === 'open')
      expect(upstream).toBeDefined()
      upstream!.asked.set(params!.requestId!, 'cancelled')
    }
    if (method !== undefined || id === 'nobody' || (error === undefined && result?.serial === undefined)) return
    const said = this.openOf(id)!
    if (result) expect(result.serial).toBe(said.serial)
    said.outcomes.push(message as Said['outcomes'][number])
    // Who hears of an outcome may go on at once.
    if (said.serial % 3 === 0) this.say(`behind ${said.serial}`)
  }

  // --- the server -------------------------------------------------------------------------------------------

  answer({ nth, error }: { nth: number; error: boolean }) {
    const { open } = this.upstream
    const one = open[nth % open.length]
    if (!one || this.upstream.isDead) return
    one.state = 'answered'
    const outcome = error ? { error: { code: 7, message: 'no' } } : { result: { serial: one.said.serial } }
    this.upstream.say({ id: one.said.id, ...outcome })
  }

  ask() {
    const { upstream } = this
    if (upstream.isDead || upstream.plan.start !== 'works') return
    const id = `q${this.upstreams.reduce((sum, { asked }) => sum + asked.size, 0)}`
    upstream.asked.set(id, 'open')
    upstream.say({ id, method: 'roots/list' })
  }

  takeBack(nth: number) {
    const { upstream } = this
    const open = [...upstream.asked].filter(([, state]) => state === 'open')
    const [id] = open[nth % open.length] ?? []
    if (id === undefined || upstream.isDead) return
    upstream.say({ method: 'notifications/cancelled', params: { requestId: id } })
  }

  /** The server has forgotten the session: it reads none of them. */
  refuse({ count, lost }: { count: number; lost: boolean }) {
    const { upstream } = this
    const refused = upstream.open.filter(({ state }) => state === 'taken').slice(0, count)
    if (upstream.isDead || refused.length === 0) return
    upstream.isDead = true
    for (const it of refused) {
      it.state = 'refused'
      const error = inPhase(proxyError('upstream_session_lost'), 'not_sent').toJSON()
      upstream.say({ id: it.said.id, error }, { relatedRequestId: it.said.id, isUnread: true })
    }
    if (lost) upstream.tell(proxyError('upstream_session_lost', { phase: 'sent' }))
    else setTimeout(() => upstream.tell(proxyError('upstream_session_lost', { phase: 'sent' })), 200)
  }

  lose({ turns, before, after }: { turns: number; before?: Settled; after?: Settled }) {
    const { upstream } = this
    if (before) upstream.settle(before)
    behind(turns, () => {
      upstream.lose()
      if (after) upstream.settle(after)
    })
  }

  // --- what must hold ---------------------------------------------------------------------------------------

  wasSent(said: Said) {
    return this.upstreams.some(({ taken }) => taken.some((it) => it.said === said && it.state !== 'refused'))
  }

  takesOf(said: Said) {
    return this.upstreams.flatMap((upstream) =>
      upstream.taken.filter((it) => it.said === said && it.state !== 'not sent').map((taken) => ({ upstream, taken })),
    )
  }

  check() {
    for (const said of this.said) this.#checkOne(said)
    for (const { taken, replay } of this.upstreams) {
      const serials = taken.filter(({ state }) => state !== 'not sent').map(({ said }) => said.serial)
      expect(serials).toEqual([...serials].sort((one, other) => one - other))
      expect(replay.length).toBeLessThanOrEqual(replayed.length)
    }
    expect(this.closes).toBeLessThanOrEqual(1)
  }

  #checkOne(said: Said) {
    const takes = this.takesOf(said)
    const { outcomes, sent, cancelled, id } = said
    expect(outcomes.length).toBeLessThanOrEqual(1)
    if (said.takesBefore !== undefined) expect(takes.length).toBeLessThanOrEqual(said.takesBefore)
    expect(takes.length).toBeLessThanOrEqual(takes[0]?.taken.state === 'refused' ? 2 : 1)
    const phases = [...outcomes.map(({ error }) => error?.data?.phase), sent instanceof Error && phaseOf(sent)]
    if (phases.includes('not_sent')) for (const { taken } of takes) expect(taken.state).toBe('refused')
    if (sent instanceof Error && phaseOf(sent) === 'not_sent') expect(outcomes).toEqual([])
    if (id === undefined || cancelled || this.isClosing || outcomes.length > 0 || sent instanceof Error) return
    const last = takes.at(-1)
    const isThere = last?.upstream === this.upstream && !last.upstream.isTold && last.taken.state !== 'refused'
    if (isThere) said.since = performance.now()
    else expect(performance.now() - said.since).toBeLessThanOrEqual(31_000)
  }

  checkCancelled() {
    for (const { cancelledAt, id } of this.said) {
      if (cancelledAt && !cancelledAt.isDead && !this.isClosing) expect(cancelledAt.cancels).toContain(id)
    }
  }

  /** Everything works again: each one gets what it waits for. */
  async heal() {
    this.plans = []
    this.sends = 'at once'
    this.replays = 'at once'
    for (const upstream of this.upstreams) {
      upstream.settle('resolved')
      upstream.begin?.('works')
    }
    await rest()
    // Longer than the longest wait for one that hangs, and for the next.
    await vi.advanceTimersByTimeAsync(31_000)
    await vi.advanceTimersByTimeAsync(40_000)
    this.check()
    if (this.closes === 0 && !this.isClosing) {
      expect(this.upstream.isDead).toBe(false)
      this.say('last')
      await rest()
      for (let { open } = this.upstream; open.length > 0; open = this.upstream.open)
        this.answer({ nth: 0, error: false })
      await rest()
      this.check()
      for (const said of this.said) {
        if (said.id === undefined || said.cancelled) continue
        expect([said.serial, said.outcomes.length + (said.sent instanceof Error ? 1 : 0)]).not.toEqual([said.serial, 0])
      }
      expect(this.openOf('last')!.outcomes).toEqual([expect.objectContaining({ result: expect.anything() })])
    }
    this.checkCancelled()
  }

  async close(urgent: boolean) {
    this.isClosing = true
    const made = this.upstreams.length
    const closing = this.wire.close({ urgent })
    await rest()
    await closing
    await rest()
    expect(this.closes).toBe(1)
    expect(this.said.filter(({ sent }) => sent === 'open')).toEqual([])
    await vi.advanceTimersByTimeAsync(1_000)
    expect([this.upstreams.length, vi.getTimerCount()]).toEqual([made, 0])
    this.check()
  }

  async play(event: Event) {
    const { does } = event
    if (does === 'say') this.say(event.id)
    else if (does === 'cancel') this.cancel(event.id)
    else if (does === 'respond') this.respond(event.nth)
    else if (does === 'answer') this.answer(event)
    else if (does === 'answer nobody') {
      if (!this.upstream.isDead) this.upstream.say({ id: 'nobody', result: { serial: -1 } })
    } else if (does === 'ask') this.ask()
    else if (does === 'take back') this.takeBack(event.nth)
    else if (does === 'refuse') this.refuse(event)
    else if (does === 'lose') this.lose(event)
    else if (does === 'settle') this.upstream.settle(event.how)
    else if (does === 'begin') this.upstream.begin?.(event.how)
    else if (does === 'plan') this.plans.push(event.plan)
    else if (does === 'sends') this.sends = event.sends
    else if (does === 'replays') this.replays = event.sends
    else if (does === 'pause') event.on ? this.wire.pause() : this.wire.resume()
    else await vi.advanceTimersByTimeAsync(event.milliseconds)
  }
}

function phaseOf(error: RpcError): unknown {
  return (error.data as { phase?: unknown }).phase
}

const id = fc.constantFrom<Id>(0, '0', 1, '1')
const nth = fc.nat(5)
const how = fc.constantFrom<Settled>('resolved', 'sent', 'not_sent')
const turns = fc.nat(30)
const sends = fc.constantFrom<Sends>('at once', 'soon', 'hang')
const plan = fc.record<Plan>({
  start: fc.constantFrom('works', 'works', 'fails', 'hangs'),
  handshake: fc.constantFrom('answers', 'answers', 'hangs', 'refuses', 'speaks another revision'),
  dies: fc.option(turns, { nil: undefined }),
})
const does = <Name extends string, T>(does: Name, more: { [K in keyof T]: fc.Arbitrary<T[K]> }) =>
  fc.record({ does: fc.constant(does), ...more }) as fc.Arbitrary<{ does: Name } & T>
const milliseconds = fc.constantFrom(0, 1, 250, 300, 300, 300, 600, 1_000, 5_000, 30_000)
const event = fc.oneof(
  { weight: 6, arbitrary: does('say', { id: fc.option(id, { nil: undefined }) }) },
  { weight: 2, arbitrary: does('cancel', { id }) },
  { weight: 1, arbitrary: does('respond', { nth }) },
  { weight: 3, arbitrary: does('answer', { nth, error: fc.boolean() }) },
  { weight: 1, arbitrary: does('answer nobody', {}) },
  { weight: 1, arbitrary: does('ask', {}) },
  { weight: 1, arbitrary: does('take back', { nth }) },
  { weight: 2, arbitrary: does('refuse', { count: fc.integer({ min: 1, max: 3 }), lost: fc.boolean() }) },
  {
    weight: 3,
    arbitrary: does('lose', {
      turns,
      before: fc.option(how, { nil: undefined }),
      after: fc.option(how, { nil: undefined }),
    }),
  },
  { weight: 2, arbitrary: does('settle', { how }) },
  { weight: 1, arbitrary: does('begin', { how: fc.constantFrom<'works' | 'fails'>('works', 'fails') }) },
  { weight: 2, arbitrary: does('plan', { plan }) },
  { weight: 3, arbitrary: does('sends', { sends }) },
  { weight: 1, arbitrary: does('replays', { sends }) },
  { weight: 1, arbitrary: does('pause', { on: fc.boolean() }) },
  { weight: 5, arbitrary: does('wait', { milliseconds }) },
)
type Event = typeof event extends fc.Arbitrary<infer One> ? One : never
const end = fc.record({ heal: fc.boolean(), urgent: fc.boolean(), tells: fc.boolean() })

it('every request has its one outcome, however often its upstream is lost', async () => {
  await fc.assert(
    fc.asyncProperty(many(fc.tuple(event, fc.boolean()), 40), end, async (events, { heal, urgent, tells }) => {
      vi.clearAllTimers()
      const table = new Table()
      table.tells = tells
      await table.begin()
      for (const [event, rests] of events) {
        await table.play(event)
        if (rests) await rest()
        table.check()
      }
      if (heal) await table.heal()
      await table.close(urgent)
    }),
    runs(400),
  )
})
