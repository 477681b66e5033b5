// What Linux tells of processes. Elsewhere nothing is known of their CPU and memory, and those rows are left out.
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'

function read(file: string): string {
  try {
    return readFileSync(file, 'utf8')
  } catch {
    return ''
  }
}

function list(folder: string): string[] {
  try {
    return readdirSync(folder)
  } catch {
    return []
  }
}

/** What follows the name of the command, which may hold anything. */
const status = (pid: number) => read(`/proc/${pid}/stat`).split(') ').pop()!.split(' ')

export const isAlive = (pid: number) => !['', 'Z'].includes(status(pid)[0] ?? '')

/** A process and all below it, without those whose command line holds a text; these are told apart. */
export function family(root: number, text: string): { own: number[]; others: number[] } {
  const children = new Map<number, number[]>()
  for (const pid of list('/proc').map(Number)) {
    const [state = '', parent] = pid > 0 ? status(pid) : []
    if (state !== '' && state !== 'Z') children.set(Number(parent), [...(children.get(Number(parent)) ?? []), pid])
  }
  const all: number[] = isAlive(root) ? [root] : []
  for (const pid of all) all.push(...(children.get(pid) ?? []))
  const isOther = (pid: number) => read(`/proc/${pid}/cmdline`).replaceAll('\0', ' ').includes(text)
  return {
    own: all.filter((pid) => pid === root || !isOther(pid)),
    others: all.filter((pid) => pid !== root && isOther(pid)),
  }
}

/** Microseconds of all threads. */
export function cpu(pids: readonly number[]): number {
  const threads = pids.flatMap((pid) => list(`/proc/${pid}/task`).map((thread) => `/proc/${pid}/task/${thread}`))
  return threads.reduce((sum, thread) => sum + Number(read(`${thread}/schedstat`).split(' ')[0]), 0) / 1_000
}

function memory(pids: readonly number[], field: string): number {
  const kibibytes = (pid: number) =>
    Number(new RegExp(`${field}:\\s+(\\d+)`).exec(read(`/proc/${pid}/status`))?.[1] ?? 0)
  return pids.reduce((sum, pid) => sum + kibibytes(pid), 0) / 1_024
}

/** Mebibytes. */
export const resident = (pids: readonly number[]) => memory(pids, 'VmRSS')
export const peak = (pids: readonly number[]) => memory(pids, 'VmHWM')

export function forgetPeak(pids: readonly number[]): void {
  for (const pid of pids) writeFileSync(`/proc/${pid}/clear_refs`, '5')
}

/** Ticks of all processors: all, those spent by somebody, and those by this process and what it has started. */
export function ticks(): { all: number; busy: number; own: number } {
  const [user = 0, nice = 0, system = 0, idle = 0, waiting = 0, ...rest] = read('/proc/stat')
    .split(/\s+/, 9)
    .slice(1)
    .map(Number)
  const sum = (ticks: number[]) => ticks.reduce((all, it) => all + it, 0)
  const busy = sum([user, nice, system, ...rest])
  return { all: busy + idle + waiting, busy, own: sum(status(process.pid).slice(11, 15).map(Number)) }
}
