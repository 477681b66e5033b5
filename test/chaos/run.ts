import { randomInt } from 'node:crypto'
import { parseArgs } from 'node:util'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { Account, type Violation } from './checker.js'
import { planOf, rows } from './plan.js'
import { runStage } from './stage.js'

setFlagsFromString('--expose-gc')
const collectGarbage = runInNewContext('gc') as () => void

/** Stages before a slope of the heap says anything. */
const ENOUGH = 24
/** A clear slope: the last third holds so much more than the second. */
const SLOPE = { bytes: 8 << 20, factor: 1.2 }

const { values } = parseArgs({
  options: {
    seed: { type: 'string' },
    minutes: { type: 'string' },
    stage: { type: 'string' },
    row: { type: 'string' },
    /** Tells all that passes at the clients whose names begin so. */
    trace: { type: 'string' },
  },
})
const seed = values.seed === undefined ? randomInt(2 ** 31) : Number(values.seed)
const from = values.row === undefined ? rows : rows.filter(({ name }) => name === values.row)
const until = performance.now() + (values.minutes === undefined ? 20_000 : Number(values.minutes) * 60_000)

const account = new Account()
const heaps: number[] = []
const found = new Map<string, number>()

async function stage(index: number): Promise<void> {
  const plan = planOf(seed, index, from)
  const started = performance.now()
  const violations = await runStage(plan, account, values.trace === undefined ? {} : { trace })
  collectGarbage()
  heaps.push(process.memoryUsage().heapUsed)
  const took = ((performance.now() - started) / 1_000).toFixed(1)
  const weather = `${plan.isCalm ? 'calm' : 'rough'}${plan.isHeld ? ', held' : ''}`
  if (violations.length > 0 || values.stage !== undefined) {
    console.log(`stage ${index}: ${plan.row.name} (${weather}), ${took} s, ${violations.length} violations`)
  }
  for (const { rule, detail } of violations) tell(rule, detail)
  if (violations.length > 0) {
    const row = values.row === undefined ? '' : ` --row '${values.row}'`
    console.log(`  again: npm run chaos -- --seed ${seed} --stage ${index}${row}`)
  }
}

function tell(rule: Violation['rule'], detail: string): void {
  found.set(rule, (found.get(rule) ?? 0) + 1)
  console.log(`  ${rule}: ${detail}`)
}

function trace(life: string, arrow: string, text: string): void {
  const all = `${Math.round(performance.now())} ${life} ${arrow} ${text}`
  if (life === '' || life.startsWith(values.trace as string)) console.log(all.slice(0, 300))
}

function slope(): string {
  const third = Math.floor(heaps.length / 3)
  const median = (some: number[]) => [...some].sort((a, b) => a - b)[some.length >> 1] ?? 0
  const [middle, late] = [median(heaps.slice(third, 2 * third)), median(heaps.slice(-third))]
  const said = `heap: ${megabytes(heaps[0] ?? 0)} first, ${megabytes(middle)} in the middle, ${megabytes(late)} late`
  const isClear = late - middle > SLOPE.bytes && late > middle * SLOPE.factor
  if (heaps.length >= ENOUGH && isClear) tell('left over', said)
  return said
}

function megabytes(bytes: number): string {
  return `${(bytes / 2 ** 20).toFixed(1)} MB`
}

// What is loaded later, and what loads it, would pass for something that a stage has left over.
await Promise.all(['pool', 'restart', 'http', 'sse', 'detect'].map((name) => import(`../../src/upstream/${name}.js`)))
await Promise.all(['http', 'face'].map((name) => import(`../../src/listener/${name}.js`)))

console.log(`seed ${seed}`)
if (values.stage !== undefined) await stage(Number(values.stage))
else for (let index = 0; performance.now() < until; index++) await stage(index)

console.log(`${heaps.length} stages over ${from.length} ways\n${account}\n${slope()}`)
const violations = [...found].map(([rule, count]) => `${rule}: ${count}`)
console.log(`violations: ${violations.join(', ') || 'none'}; again: npm run chaos -- --seed ${seed}`)
process.exitCode = found.size === 0 ? 0 : 1
