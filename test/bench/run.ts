import { execFileSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { cpus } from 'node:os'
import { parseArgs } from 'node:util'
import { Bench, beat, beats, type Effort, FULL, groups, QUICK } from './measure.js'
import { peers } from './peers.js'
import { ticks } from './proc.js'
import { add, addMicro, changes, type Ratios, type Report, spread } from './report.js'
import { built, parse, program, raw, type Subject, sdk } from './subjects.js'
import { asMarkdown, asText, changeTable, tables } from './table.js'

const HELP = `npm run bench -- [options]

  --only GROUP,…    of ${[...Object.keys(groups), 'micro'].join(', ')}
  --quick           about a minute in all, less certain
  --rounds COUNT    of each measurement
  --peers           other proxies, too: they are installed from npm when they are first asked for
  --check           quick, and what got worse by more than a third since the baseline
  --strict          then the exit code is 1
  --update          quick, and makes it the baseline; with --only that of these groups
  --out FILE        all figures as JSON
  --markdown        the tables as Markdown
  --program FILE    another build in place of dist/cli.js

Exit code 2: something was lost, doubled, misordered or corrupted.`

const { values } = parseArgs({
  options: {
    only: { type: 'string' },
    quick: { type: 'boolean', default: false },
    rounds: { type: 'string' },
    peers: { type: 'boolean', default: false },
    check: { type: 'boolean', default: false },
    strict: { type: 'boolean', default: false },
    update: { type: 'boolean', default: false },
    out: { type: 'string' },
    markdown: { type: 'boolean', default: false },
    program: { type: 'string', default: built('../../../dist/cli.js') },
    help: { type: 'boolean', default: false },
  },
})

const BASELINE = built('../baseline.json')
const isQuick = values.quick || values.check || values.update
const usual = isQuick ? QUICK : FULL
const effort: Effort = { ...usual, rounds: Number(values.rounds ?? usual.rounds) }
const report: Report = {
  date: new Date().toISOString().slice(0, 10),
  node: process.version,
  machine: `${cpus().length} × ${cpus()[0]?.model.trim()}`,
  groups: {},
  micro: [],
  ratios: {},
  bests: {},
  faults: [],
}

function subjectsOf(name: string, others: readonly Subject[]): Subject[] {
  const variants = ['reads', 'whole', 'changes', 'exchange', 'others']
  if (name === 'middleware') {
    return [program(values.program, 'none'), ...variants.map((it) => program(values.program, it, [it])), raw, parse]
  }
  const { link } = groups[name]!
  const where = { server: [], url: '', port: 0 }
  const rest = isQuick && !link.startsWith('listener') ? [] : [sdk]
  const all = [program(values.program), raw, ...(name === 'slow' ? [] : [parse]), ...rest, ...others]
  return all.filter((it) => it.command(link, where) !== undefined)
}

/** Measures a group; whether anything went wrong that is a fault of ours. */
async function measure(name: string, others: readonly Subject[]): Promise<boolean> {
  const { link, steps } = groups[name]!
  const bench = new Bench(subjectsOf(name, others), link, effort)
  for (const step of steps) await step(bench)
  return add(report, name, bench.contestants)
}

function micro(): void {
  const found = execFileSync(process.execPath, [built('micro.js'), String(effort.warmUp / 2)], { encoding: 'utf8' })
  addMicro(report, JSON.parse(found))
}

function tell(): void {
  for (const table of tables(report)) console.log(`\n${values.markdown ? asMarkdown(table) : asText(table)}`)
  const { median, low, high, othersPercent } = report.noise!
  const even = `${median.toFixed(1)} ms (${low.toFixed(1)} to ${high.toFixed(1)})`
  console.log(`\n${report.date}, Node ${report.node}, ${report.machine}; ${Math.round(performance.now() / 1_000)} s.`)
  const foreign = Number.isNaN(othersPercent) ? '' : `; others used ${othersPercent.toFixed(0)} % of the processors`
  console.log(`The same work took ${even}${foreign}.`)
  for (const fault of report.faults) console.log(`\nFAULT ${fault}`)
}

/** The ratios alone, of the best rounds: times are those of one machine. How long some of its calls take says nothing. */
function update(): void {
  const { date, node, machine, bests } = report
  const steady = Object.entries(bests).filter(([key]) => !/sessions?, p\d/.test(key))
  const found = Object.fromEntries(steady.map(([key, value]) => [key, Number(value.toPrecision(3))]))
  const ratios = { ...(values.only ? baseline() : {}), ...found }
  writeFileSync(BASELINE, `${JSON.stringify({ date, node, machine, ratios }, null, 2)}\n`)
}

function baseline(): Ratios {
  return JSON.parse(readFileSync(BASELINE, 'utf8')).ratios
}

/** Tells what has changed; whether anything got worse. */
function check(): boolean {
  const ratios = baseline()
  const changed = changes(ratios, report)
  const count = Object.keys(report.ratios).filter((key) => key in ratios).length
  console.log(`\n${changed.length} of ${count} ratios differ by more than a third from the baseline.`)
  if (changed.length > 0) console.log(asText(changeTable(changed)))
  return changed.some(({ growth }) => growth > 1)
}

async function main(): Promise<void> {
  const known = [...Object.keys(groups), 'micro']
  const names = values.only?.split(',') ?? known
  const unknown = names.filter((name) => !known.includes(name))
  if (unknown.length > 0) throw new Error(`--only: expected some of ${known.join(', ')}, got ${unknown.join(', ')}`)
  const others = values.peers ? peers() : []
  const before = ticks()
  beat()
  let isFaulty = false
  for (const name of names) {
    const began = performance.now()
    if (name === 'micro') micro()
    else isFaulty = (await measure(name, others)) || isFaulty
    console.error(`${name}: ${((performance.now() - began) / 1_000).toFixed(1)} s`)
  }
  const after = ticks()
  const foreign = Math.max(0, after.busy - before.busy - (after.own - before.own))
  report.noise = { ...spread(beats), othersPercent: (100 * foreign) / (after.all - before.all) }
  tell()
  if (values.out) writeFileSync(values.out, `${JSON.stringify(report, null, 2)}\n`)
  if (values.update) update()
  const isWorse = values.check && check()
  process.exitCode = isFaulty ? 2 : isWorse && values.strict ? 1 : 0
}
if (values.help) console.log(HELP)
else await main()
