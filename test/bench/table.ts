import { groups } from './measure.js'
import { type Change, type Figures, key, type Micro, type Ratios, type Report } from './report.js'

interface Table {
  readonly head: readonly string[]
  readonly rows: readonly (readonly string[])[]
}

export function changeTable(changed: readonly Change[]): Table {
  const row = ({ key, before, now, growth }: Change) => {
    const how = growth > 1 ? `${round(growth)} times worse` : `${round(1 / growth)} times better`
    return [key, round(before), round(now), how]
  }
  return { head: ['ratio', 'baseline', 'now', ''], rows: changed.map(row) }
}

/** All figures, one row for each; where there are several of ours, in `middleware`, one row for each of them. */
export function tables({ groups: all, ratios, micro }: Report): Table[] {
  const { middleware, ...rest } = all
  const names = [...new Set(Object.values(rest).flatMap((figures) => Object.keys(figures)))]
  const rows = Object.entries(rest).flatMap(([group, figures]) => {
    const [ours = '', ...others] = names
    return Object.entries(figures[ours] ?? {}).map(([metric, { median }]) => {
      const cell = (other: string) => {
        const value = figures[other]?.[metric]
        const of = ratios[key(group, metric, ours, other)]
        return value ? figure(value.median, of === undefined ? [] : [round(of)]) : ''
      }
      return [`${groups[group]?.title ?? group}: ${metric}`, round(median), ...others.map(cell)]
    })
  })
  const found = [{ head: ['', ...names], rows }, middlewareTable(middleware ?? {}, ratios), microTable(micro)]
  return found.filter((it) => it.rows.length > 0)
}

function microTable(micro: readonly Micro[]): Table {
  const row = ({ name, ns, other, otherNs }: Micro) => [name, round(ns), other, round(otherNs), round(ns / otherNs)]
  return { head: ['in the process', 'ns', 'beside', 'ns', 'ratio'], rows: micro.map(row) }
}

function middlewareTable(figures: Figures, ratios: Ratios): Table {
  const metrics = Object.keys(Object.values(figures)[0] ?? {})
  const others = Object.keys(figures)
  const row = (name: string) =>
    metrics.map((metric) => {
      const of = others.flatMap((other) => {
        const value = ratios[key('middleware', metric, name, other)]
        return value === undefined ? [] : [`${round(value)} of ${other}`]
      })
      const value = figures[name]?.[metric]
      return value ? figure(value.median, of) : ''
    })
  return { head: ['middleware', ...metrics], rows: others.map((name) => [name, ...row(name)]) }
}

const figure = (value: number, of: readonly string[]) => round(value) + (of.length > 0 ? ` (${of.join(', ')})` : '')

/** Three digits say all that is certain. */
function round(value: number): string {
  return Number(value.toPrecision(3)).toLocaleString('en', { maximumFractionDigits: 3 })
}

export function asText({ head, rows }: Table): string {
  const all = [head, ...rows]
  const widths = head.map((_, column) => Math.max(...all.map((row) => row[column]?.length ?? 0)))
  const cell = (text: string, column: number) =>
    column === 0 ? text.padEnd(widths[0]!) : text.padStart(widths[column]!)
  return all.map((row) => row.map(cell).join('  ').trimEnd()).join('\n')
}

export function asMarkdown({ head, rows }: Table): string {
  const line = (cells: readonly string[]) => `| ${cells.join(' | ')} |`
  return [line(head), line(head.map((_, column) => (column === 0 ? ':--' : '--:'))), ...rows.map(line)].join('\n')
}
