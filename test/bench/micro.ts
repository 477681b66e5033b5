// The parts of the core alone, each beside a piece of work that does not change: JSON on the figures.
// micro.js MILLISECONDS
import koaCompose from 'koa-compose'
import { createProxy, type Frame, type Middleware, type Wire } from 'open-mcp-proxy'
import PQueue from 'p-queue'
import { Bench } from 'tinybench'
import { Stack } from '../../src/compose.js'
import { Lane, type Turn } from '../../src/lane.js'
import { scan } from '../../src/scan.js'
import { Call } from './call.js'
import type { Micro } from './report.js'

/** Of nine digits, as every id of the bench. */
const FIRST = 100_000_001
/** Each is run so often at a time that the clock costs nothing. */
const OFTEN = 64
const noop = () => {}
const pass: Middleware = (_ctx, next) => next()

interface Pair {
  readonly name: string
  /** How often a run does it. */
  readonly units: number
  readonly ours: () => unknown
  /** What it is compared with. */
  readonly other: string
  readonly work: () => unknown
}

/** So many frames of one kind, so that a run takes about a tenth of a millisecond. */
function scanned(name: string, frame: Buffer, units = 1): Pair {
  const often = (run: () => void) => () => {
    for (let index = 0; index < units; index++) run()
  }
  const work = often(() => JSON.stringify(JSON.parse(frame.toString())))
  // One that was just scanned is known again: each time it is another frame.
  return { name: `scan, ${name}`, units, ours: often(() => scan(frame.subarray())), other: 'parse and stringify', work }
}

/** Nothing but escapes, which a scan cannot skip. */
function escapes(): Buffer {
  const text = '\\"\\\\\\n'.repeat(10_000)
  return Buffer.from(
    `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"text":"${text}"}}}`,
  )
}

/** So many at once take a turn and use it. */
function lane(count: number): Pair {
  const lane = new Lane()
  const queue = new PQueue({ concurrency: 1 })
  const all = Array.from({ length: count })
  const rounds = Array.from({ length: OFTEN / count })
  const use = async (turn: Turn) => {
    const wait = turn.wait()
    if (wait) await wait
    turn.release()
  }
  return {
    name: `lane, ${count} at once`,
    units: OFTEN,
    ours: async () => {
      for (const _ of rounds) await Promise.all(all.map(() => lane.take('request', 150)).map(use))
    },
    other: 'p-queue',
    work: async () => {
      for (const _ of rounds) await Promise.all(all.map(() => queue.add(noop)))
    },
  }
}

function chain(count: number): Pair {
  const middleware = Array.from({ length: count }, () => pass)
  const ctx = {} as Parameters<Middleware>[0]
  const stack = new Stack<object>(middleware, (it) => (_transit, next) => it(ctx, next))
  const bare = koaCompose(middleware.map(() => (_ctx: object, next: () => Promise<void>) => next()))
  const rounds = Array.from({ length: OFTEN })
  return {
    name: `chain of ${count}`,
    units: OFTEN,
    ours: async () => {
      for (const _ of rounds) await stack.between(-1, count)?.(ctx, noop)
    },
    other: 'koa-compose',
    work: async () => {
      for (const _ of rounds) await bare(ctx, async () => {})
    },
  }
}

/** A wire whose other end is here. */
function wire(send: (frame: Frame) => void): Wire {
  return { start: noop, send, close: async () => {}, pause: noop, resume: noop }
}

/** So many calls and their answers, through the whole core. */
function core(count: number): Pair {
  const app = createProxy()
  for (let index = 0; index < count; index++) app.use(pass)
  let left = 0
  let done = noop
  const answer = (id: number) => Buffer.from(`{"jsonrpc":"2.0","id":${id},"result":{"content":[]}}`)
  const client = wire(() => {
    if (--left === 0) done()
  })
  const server = wire((frame) => {
    const { id } = JSON.parse(Buffer.from(frame).toString())
    server.onframe?.(answer(id))
  })
  app.connect(client, server)
  const call = new Call(150)
  const frames = Array.from({ length: OFTEN }, (_, index) => call.body(FIRST + index))
  const answers = frames.map((_, index) => answer(FIRST + index))
  return {
    name: `the whole core, ${count} middleware`,
    units: OFTEN,
    ours: () =>
      new Promise<void>((resolve) => {
        left = OFTEN
        done = resolve
        for (const frame of frames) client.onframe?.(frame)
      }),
    other: 'parse and stringify',
    work: () => {
      for (const frame of [...frames, ...answers]) JSON.stringify(JSON.parse(frame.toString()))
    },
  }
}

const pairs = [
  scanned('150 bytes', new Call(150).body(FIRST), OFTEN),
  scanned('64 KiB', new Call(1 << 16).body(FIRST)),
  scanned('60 KB of escapes', escapes()),
  ...[1, 64].map(lane),
  ...[0, 1, 5].map(chain),
  ...[0, 1, 5].map(core),
]

/** Of several rounds the best: what disturbs only slows. */
const ROUNDS = 5
const time = Number(process.argv[2]) / ROUNDS
const bench = new Bench({ time, warmupTime: time / 4, iterations: 8, throws: true })
for (const { name, ours, work } of pairs) bench.add(name, ours).add(`${name}: other`, work)
const best = new Map<string, number>()
for (let round = 0; round < ROUNDS; round++) {
  for (const { name, result } of await bench.run()) {
    if (result.state === 'completed')
      best.set(name, Math.min(result.latency.p50, best.get(name) ?? Number.POSITIVE_INFINITY))
  }
}
const nanoseconds = (name: string, units: number) => ((best.get(name) ?? Number.NaN) * 1e6) / units
const figures: Micro[] = pairs.map(({ name, units, other }) => ({
  name,
  ns: nanoseconds(name, units),
  other,
  otherNs: nanoseconds(`${name}: other`, units),
}))
console.log(JSON.stringify(figures))
