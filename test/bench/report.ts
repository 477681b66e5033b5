import type { Contestant } from './contestant.js'
import { median, quantile, ratio } from './stats.js'

interface Spread {
  readonly median: number
  readonly low: number
  readonly high: number
}

/** Of each subject, each metric. */
export type Figures = Record<string, Record<string, Spread>>

/** How a figure of ours stands to the same one of another, by `GROUP: METRIC: OURS / OTHER`. */
export type Ratios = Record<string, number>

/** One part of the core, and a piece of work that does not change. */
export interface Micro {
  readonly name: string
  readonly ns: number
  readonly other: string
  readonly otherNs: number
}

export interface Report {
  readonly date: string
  readonly node: string
  readonly machine: string
  /** How even the machine was: a fixed piece of work, in milliseconds, and what others took of it. */
  noise?: Spread & { readonly othersPercent: number }
  readonly groups: Record<string, Figures>
  micro: readonly Micro[]
  /** The medians of all rounds. */
  readonly ratios: Ratios
  /** The same of the best of all rounds. */
  readonly bests: Ratios
  /** What was lost, doubled, misordered or corrupted, and whatever else went wrong. */
  readonly faults: string[]
}

export function spread(values: ArrayLike<number>): Spread {
  return { median: median(values), low: quantile(values, 0.1), high: quantile(values, 0.9) }
}

/** Adds what was measured in a group; whether anything went wrong that is a fault of ours. */
export function add(report: Report, group: string, contestants: readonly Contestant[]): boolean {
  const figures: Figures = {}
  report.groups[group] = figures
  for (const { subject, samples, error } of contestants) {
    const rows = [...samples].map(([metric, values]) => [metric, spread([...values.values()])])
    figures[subject.name] = Object.fromEntries(rows)
    if (error !== undefined) report.faults.push(`${group}: ${subject.name}: ${error}`)
  }
  const others = contestants.filter(({ subject }) => subject.role !== 'ours')
  for (const ours of contestants.filter((it) => !others.includes(it))) {
    for (const [metric, values] of ours.samples) {
      for (const other of others) {
        const found = ratio(values, other.samples.get(metric) ?? new Map(), isMoreBetter(metric))
        if (!found) continue
        const name = key(group, metric, ours.subject.name, other.subject.name)
        report.ratios[name] = found.median
        report.bests[name] = found.best
      }
    }
  }
  return contestants.some(({ subject, error }) => error !== undefined && subject.role === 'ours')
}

export function addMicro(report: Report, micro: readonly Micro[]): void {
  report.micro = micro
  for (const { name, ns, other, otherNs } of micro) {
    const all = key('micro', `${name}, ns`, 'ours', other)
    report.ratios[all] = report.bests[all] = ns / otherNs
  }
}

export const key = (group: string, metric: string, ours: string, other: string) =>
  `${group}: ${metric}: ${ours} / ${other}`

/** What got worse, or better, by more than this is told: less is the noise of a machine. */
const MARGIN = 4 / 3

export interface Change {
  readonly key: string
  readonly before: number
  readonly now: number
  /** How many times worse it is; below 1 it is better. */
  readonly growth: number
}

/** Of what is measured in a second more is better, of all else less. */
const isMoreBetter = (metric: string) => /\/s(?=:|$)/.test(metric)

/** What has changed beyond the noise, the worst first: where both the median and the best say so. */
export function changes(before: Ratios, { ratios, bests }: Pick<Report, 'ratios' | 'bests'>): Change[] {
  const all = Object.entries(ratios).flatMap(([key, now]) => {
    const other = before[key]
    if (other === undefined) return []
    const growth = (value: number) => (isMoreBetter(key) ? other / value : value / other)
    const both = [growth(now), growth(bests[key] ?? now)]
    const [least = 1, most = 1] = both.sort((a, b) => a - b)
    if (least <= MARGIN && most >= 1 / MARGIN) return []
    return [{ key, before: other, now, growth: least > 1 ? least : most }]
  })
  return all.sort((a, b) => b.growth - a.growth)
}
