import { Call } from './call.js'
import { Contestant } from './contestant.js'
import { cpu, forgetPeak, peak, resident } from './proc.js'
import type { Session } from './session.js'
import { median, quantile } from './stats.js'
import type { Link, Subject } from './subjects.js'

/** How long everything is measured. */
export interface Effort {
  readonly rounds: number
  /** Milliseconds of one measurement in a round, and of warming up. */
  readonly slice: number
  readonly warmUp: number
  /** Sessions at once at a listener. */
  readonly sessions: readonly number[]
  /** Milliseconds for which a slow client does not read. */
  readonly pause: number
}

export const FULL: Effort = { rounds: 10, slice: 200, warmUp: 1_000, sessions: [1, 10, 100], pause: 3_000 }
export const QUICK: Effort = { rounds: 8, slice: 50, warmUp: 400, sessions: [1, 10], pause: 1_500 }

/** One measurement of several contestants at a time. */
type Step = (bench: Bench) => Promise<void>

/** How long a fixed piece of work took whenever a round began: how even the machine was. */
export const beats: number[] = []
const WORK = JSON.stringify(Array.from({ length: 4_000 }, (_, index) => ({ index, text: `x${index}` })))

export function beat(): void {
  const began = performance.now()
  for (let index = 0; index < 8; index++) JSON.stringify(JSON.parse(WORK))
  beats.push(performance.now() - began)
}

/** The contestants of one group on one link. */
export class Bench {
  readonly contestants: readonly Contestant[]
  readonly effort: Effort

  constructor(subjects: readonly Subject[], link: Link, effort: Effort) {
    this.contestants = subjects.map((subject) => new Contestant(subject, link))
    this.effort = effort
  }

  /** Starts all of them and makes them ready, measures them, and stops them. */
  async with(ready: (it: Contestant) => Promise<void>, measure: () => Promise<void>): Promise<void> {
    for (const it of this.contestants) {
      await it.try(async () => {
        await it.start()
        await ready(it)
        forgetPeak(it.processes().own)
      })
    }
    await measure()
    for (const it of this.contestants) await it.stop()
  }

  /** Measures one after the other, and in the next round in the reverse order: A B, B A. */
  async rounds(count: number, measure: (it: Contestant, round: number) => Promise<void>): Promise<void> {
    for (let round = 0; round < count; round++) {
      beat()
      const all = round % 2 === 0 ? this.contestants : this.contestants.toReversed()
      for (const it of all) await it.try(() => measure(it, round))
    }
  }
}

const SMALL = new Call(150)
/** One after the other, in a round. */
const SINGLE = 400
/** In flight at once. */
const MANY = 64
const MEGABYTE = 1e6

/** Does some work of so many units; the processor time of each. */
async function metered<T>(
  it: Contestant,
  metric: string,
  round: number,
  units: number,
  work: () => Promise<T>,
): Promise<T> {
  const { own } = it.processes()
  const before = cpu(own)
  const result = await work()
  if (own.length > 0) it.add(`${metric}, CPU µs`, round, (cpu(own) - before) / units)
  return result
}

/** Runs calls for so long, and so many that the same code is compiled however slow the machine is; how many fill a slice. */
async function warm(it: Contestant, call: Call, width: number, { warmUp, slice }: Effort): Promise<number> {
  const session = await it.open()
  const least = width < MANY ? 0 : it.link === 'stdio' ? 15_000 : 1_500
  const batch = width < MANY ? width : 500
  const began = performance.now()
  let rate = 0
  for (let sent = 0; sent < least || performance.now() < began + warmUp; sent += batch) {
    rate = await session.inFlight(call, batch, width)
  }
  return Math.max(2 * width, Math.round((rate * slice) / 1_000))
}

function calls(isSingle: boolean): Step {
  return async (bench) => {
    const { effort } = bench
    const counts = new Map<Contestant, number>()
    const ready = async (it: Contestant) => {
      counts.set(it, await warm(it, SMALL, MANY, effort))
    }
    await bench.with(ready, () =>
      bench.rounds(effort.rounds, async (it, round) => {
        const [session] = it.sessions as [Session]
        const count = counts.get(it)!
        if (isSingle) {
          const took = await metered(it, 'one at a time', round, SINGLE, () => session.oneByOne(SMALL, SINGLE))
          it.add('one at a time, p50 µs', round, median(took))
        }
        const rate = await metered(it, `${MANY} in flight`, round, count, () => session.inFlight(SMALL, count, MANY))
        it.add(`${MANY} in flight, calls/s`, round, rate)
      }),
    )
  }
}

/** Messages of so many bytes, a few in flight. */
function size(name: string, bytes: number, width: number): Step {
  return async (bench) => {
    const call = new Call(bytes)
    const effort = { ...bench.effort, warmUp: bench.effort.warmUp / 2 }
    const counts = new Map<Contestant, number>()
    const ready = async (it: Contestant) => {
      counts.set(it, await warm(it, call, width, effort))
    }
    await bench.with(ready, async () => {
      await bench.rounds(effort.rounds, async (it, round) => {
        const rate = await it.sessions[0]!.inFlight(call, counts.get(it)!, width)
        it.add(`${name}, MB/s`, round, (rate * bytes) / MEGABYTE)
      })
      await bench.rounds(1, async (it) => addMemory(it, `${name}, peak MB`, peak))
    })
  }
}

/** Where the machine tells. */
function addMemory(it: Contestant, metric: string, measure: (pids: readonly number[]) => number, round = 0): void {
  const { own } = it.processes()
  if (own.length > 0) it.add(metric, round, measure(own))
}

/** From its start to the first answer, and what it then holds. */
const starts: Step = (bench) =>
  bench.rounds(Math.ceil(bench.effort.rounds / 2), async (it, round) => {
    const began = performance.now()
    await it.start()
    await it.open()
    it.add('start, ms', round, performance.now() - began)
    addMemory(it, 'idle, MB', resident, round)
    await it.stop()
  })

const flood: Step = (bench) =>
  bench.with(
    async (it) => void (await (await it.open()).flood(10_000, 150)),
    () =>
      bench.rounds(Math.ceil(bench.effort.rounds / 2), async (it, round) => {
        it.add('notifications/s', round, await it.sessions[0]!.flood(bench.effort.slice * 500, 150))
      }),
  )

/** 200 MB for a client that does not read. */
const slow: Step = (bench) =>
  bench.with(
    async (it) => void (await (await it.open()).flood(1_000, 2_000)),
    () =>
      bench.rounds(1, async (it, round) => {
        await it.sessions[0]!.unreadFlood(100_000, 2_000, bench.effort.pause)
        addMemory(it, 'slow reader, peak MB', peak, round)
      }),
  )

/** So many clients at once, each with one call in flight. */
async function sessions(bench: Bench, count: number): Promise<void> {
  const { slice, rounds } = bench.effort
  const calls = new Map<Contestant, number>()
  const all = (it: Contestant, each: number) => Promise.all(it.sessions.map((session) => session.oneByOne(SMALL, each)))
  const ready = async (it: Contestant) => {
    const before = resident(it.processes().own)
    for (let open = 0; open < count; open += 5) {
      await Promise.all(Array.from({ length: Math.min(5, count - open) }, () => it.open()))
    }
    await all(it, Math.ceil(600 / count))
    if (count >= 100) addMemory(it, `${count} sessions, KiB each`, (own) => ((resident(own) - before) * 1_024) / count)
    const began = performance.now()
    await all(it, Math.ceil(1_000 / count))
    calls.set(it, Math.max(5, Math.round(((1_000 / (performance.now() - began)) * slice) / count)))
  }
  const name = count === 1 ? '1 session' : `${count} sessions`
  await bench.with(ready, () =>
    bench.rounds(rounds, async (it, round) => {
      const each = calls.get(it)!
      const began = performance.now()
      const took = (await metered(it, name, round, each * count, () => all(it, each))).flatMap((some) => [...some])
      it.add(`${name}, calls/s`, round, (took.length / (performance.now() - began)) * 1_000)
      it.add(`${name}, p50 µs`, round, median(took))
      it.add(`${name}, p99 µs`, round, quantile(took, 0.99))
    }),
  )
}

const listener: Step = async (bench) => {
  for (const count of bench.effort.sessions) await sessions(bench, count)
}

const sizes = [size('64 KiB', 1 << 16, 16), size('1 MiB', 1 << 20, 4), size('16 MiB', 1 << 24, 1)]

interface Group {
  readonly title: string
  readonly link: Link
  readonly steps: readonly Step[]
}

/** What is measured, by the name that `--only` knows. */
export const groups: Readonly<Record<string, Group>> = {
  stdio: { title: 'stdio', link: 'stdio', steps: [calls(true), ...sizes, starts] },
  flood: { title: 'flood', link: 'stdio', steps: [flood] },
  slow: { title: '200 MB', link: 'stdio', steps: [slow] },
  sse: { title: 'SSE upstream', link: 'sse', steps: [calls(true)] },
  http: { title: 'Streamable HTTP upstream', link: 'http', steps: [calls(true), starts] },
  'http-sse': { title: 'Streamable HTTP upstream, streams', link: 'http-sse', steps: [calls(true)] },
  listener: { title: 'Streamable HTTP before stdio', link: 'listener', steps: [listener] },
  'listener-sse': { title: 'SSE before stdio', link: 'listener-sse', steps: [(bench) => sessions(bench, 10)] },
  middleware: { title: 'middleware', link: 'stdio', steps: [calls(false)] },
}
