import { tokenOf } from './client.js'
import type { Entry, History, Journaled, Outcome } from './history.js'

/** What holds for a stage, beside the promises that always do. */
export interface Circumstances {
  /** Nothing but single requests fails: whatever is asked well must succeed. */
  isCalm: boolean
  /** What nobody hears of requests that were not sent: another upstream takes the place of the lost one, and them. */
  cured: readonly string[]
  /** Both ends are pipes, so that what goes in has one order, and what comes out. */
  isPipe: boolean
  /** Milliseconds within which everything must have come to its end. */
  bound: number
}

export interface Violation {
  rule: Rule
  detail: string
}

export type Rule =
  | 'two outcomes'
  | 'no outcome'
  | 'late outcome'
  | 'foreign payload'
  | 'damaged payload'
  | 'unexpected error'
  | 'unexpected outcome'
  | 'ran twice'
  | 'ran although not sent'
  | 'unknown token'
  | 'order to the server'
  | 'order to the client'
  | 'progress'
  | 'asked twice'
  | 'stray message'
  | 'slow end'
  | 'not replaced'
  | 'left over'

/** Who sends something as its proxy dies may have been too late for it; so many milliseconds before, not. */
const TOO_LATE = 1_000

const FAILS = new Set([
  'crash',
  'reset',
  'html',
  'empty',
  'status-202',
  'status-204',
  '500',
  '503',
  '429',
  'cut',
  'json-cut',
  'end',
  'huge',
  'wrong-id',
  'string-id',
  'error',
])

/** Holds what clients saw, and what servers wrote down, against what the proxy promises. */
export function judge(history: History, journal: readonly Journaled[], circumstances: Circumstances): Violation[] {
  const ran = runs(journal)
  const known = new Set(history.entries.map(({ token }) => token))
  const violations = history.entries.flatMap((it) => judgeEntry(it, ran.get(it.token) ?? 0, history, circumstances))
  const add = (rule: Rule, detail: string) => void violations.push({ rule, detail })
  for (const [token] of ran) if (!known.has(token)) add('unknown token', token)
  for (const { life, text } of history.strays) add('stray message', `${life}: ${text.slice(0, 300)}`)
  for (const [id, times] of history.asked) if (times > 1) add('asked twice', `${id}: ${times} times`)
  for (const { name, took = 0 } of history.lives) {
    if (took > circumstances.bound) add('slow end', `${name}: ${Math.round(took)} ms`)
  }
  for (const detail of unreplaced(history, circumstances.cured)) add('not replaced', detail)
  for (const detail of disorderHeard(history)) add('order to the client', detail)
  for (const detail of disorderJournaled(journal, circumstances.isPipe)) add('order to the server', detail)
  return violations
}

function runs(journal: readonly Journaled[]): Map<string, number> {
  const ran = new Map<string, number>()
  for (const { kind, token } of journal) if (kind === 'call' && token) ran.set(token, (ran.get(token) ?? 0) + 1)
  return ran
}

function judgeEntry(entry: Entry, ran: number, history: History, circumstances: Circumstances): Violation[] {
  const { outcomes } = entry
  const violations: Violation[] = []
  const add = (rule: Rule, detail = '') => {
    const { sentAt, ...rest } = entry
    const told = JSON.stringify({ ...rest, ran }, (_, it) => (typeof it === 'string' ? it.slice(0, 120) : it))
    violations.push({ rule, detail: `${detail} ${told}; sent at ${Math.round(sentAt)}`.trim() })
  }
  if (outcomes.length > 1) add('two outcomes')
  if (ran > 1) add('ran twice')
  if (outcomes.length === 0 && isMissing(entry, ran)) add('no outcome')
  for (const outcome of outcomes) {
    if (outcome.at - entry.sentAt > circumstances.bound + (entry.script.delay ?? 0)) add('late outcome')
    if (ran > 0 && saysNotSent(outcome)) add('ran although not sent')
    if ('result' in outcome) {
      const problem = payloadProblem(entry, outcome.result)
      if (problem) add(problem)
    } else if ('error' in outcome && !isKnownError(entry, outcome.error)) add('unexpected error')
  }
  if (
    circumstances.isCalm &&
    outcomes.length === 1 &&
    !entry.isTwin &&
    !entry.isReuse &&
    entry.method === 'tools/call'
  ) {
    const fails = FAILS.has(entry.script.fault ?? '')
    if ('result' in outcomes[0]! === fails && !isForgiven(entry, history)) add('unexpected outcome')
  }
  const steps = entry.progress
  const isWhole = outcomes.length === 1 && 'result' in outcomes[0]! && entry.method === 'tools/call'
  if (isWhole && entry.lostAt === undefined && !entry.cancelledAt && steps.length !== (entry.script.progress ?? 0)) {
    add('progress', `${steps.length} of ${entry.script.progress}`)
  }
  return violations
}

/** Who leaves with requests in flight gets what there was time for. */
function isForgiven({ life, outcomes, cancelledAt, lostAt }: Entry, { lives }: History): boolean {
  const [outcome] = outcomes
  const isTooLate = outcome && 'error' in outcome && outcome.error.data?.reason === 'shutting_down'
  const hasLeft = lives.find(({ name }) => name === life)?.took !== undefined
  return cancelledAt !== undefined || lostAt !== undefined || (hasLeft && isTooLate === true)
}

function isMissing({ cancelledAt, lostAt, endedAt, sentAt, method }: Entry, ran: number): boolean {
  if (cancelledAt !== undefined || lostAt !== undefined) return false
  if (endedAt === undefined || ran > 0) return true
  return method !== 'initialize' && endedAt - sentAt > TOO_LATE
}

function saysNotSent(outcome: Outcome): boolean {
  if ('error' in outcome) return outcome.error.data?.phase === 'not_sent' || outcome.error.code === -32600
  return 'status' in outcome && outcome.phase !== 'sent'
}

function payloadProblem({ token, method, script }: Entry, result: Record<string, unknown>): Rule | undefined {
  if (method !== 'tools/call') return undefined
  if (tokenOf(result) !== token) return 'foreign payload'
  const { asked } = result
  if (asked !== undefined && asked !== null && typeof asked !== 'number' && asked !== token) return 'foreign payload'
  const padding = 'é'.repeat((script.bytes ?? 0) >> 1)
  return result.padding === padding ? undefined : 'damaged payload'
}

function isKnownError(
  { script, token, isTwin, isReuse }: Entry,
  { code, data }: { code: number; data?: ErrorData },
): boolean {
  // The answer to the one before may have been on its way.
  if (code === -32600) return isTwin || isReuse
  if (code === -1) return script.fault === 'error' && data?.token === token
  const isOwn = code <= -31001 && code >= -31011
  return isOwn && data?.source === 'proxy' && (data.phase === 'sent' || data.phase === 'not_sent')
}

interface ErrorData {
  source?: string
  phase?: string
  token?: string
}

/** Sessions that ended with their upstream, or had it say so of what it has not seen; only what has worked is replaced. */
function unreplaced({ lives, entries }: History, cured: readonly string[]): string[] {
  if (cured.length === 0) return []
  const legacy = lives.filter(({ kind, isOpen }) => isOpen && (kind === 'stdio' || kind === 'http'))
  const names = new Set(legacy.map(({ name }) => name))
  const ended = legacy.filter(({ wasEnded }) => wasEnded).map(({ name }) => `${name} was ended`)
  const failed = entries.filter(({ life, outcomes: [outcome] }) => {
    const data = names.has(life) && outcome && 'error' in outcome ? outcome.error.data : undefined
    return data?.phase === 'not_sent' && cured.includes(data.reason ?? '')
  })
  return [...ended, ...failed.map(({ token }) => `${token} did not wait`)]
}

/**
 * On each stream to a client, what comes from one stream of the server is in its order, and there once. Only a response
 * may overtake a request.
 */
function disorderHeard({ heard }: History): string[] {
  const last = new Map<string, { any: number; asking: number }>()
  const seen = new Set<string>()
  const disorder: string[] = []
  for (const { life, via, from, n, kind } of heard) {
    const way = `${life} ${via} ${from}`
    const { any, asking } = last.get(way) ?? { any: 0, asking: 0 }
    const before = kind === 'request' ? asking : any
    if (n <= before) disorder.push(`${way}: ${kind} ${n} behind ${before}`)
    last.set(way, { any: Math.max(any, n), asking: kind === 'response' ? asking : Math.max(asking, n) })
    const message = `${life} ${from} ${n}`
    if (seen.has(message)) disorder.push(`${message}: twice`)
    seen.add(message)
  }
  return disorder
}

/** Of requests over HTTP, each of which has its own connection, nobody can say in which order they come; a notification's is that in which it was taken. */
function disorderJournaled(journal: readonly Journaled[], isPipe: boolean): string[] {
  const last = new Map<string, number>()
  const disorder: string[] = []
  for (const { kind, life, seq } of journal) {
    if (life === undefined || seq === undefined) continue
    const before = last.get(life) ?? 0
    if (seq < before && (isPipe || kind === 'note')) disorder.push(`${life}: ${kind} ${seq} behind ${before}`)
    last.set(life, Math.max(before, seq))
  }
  return disorder
}

/** Where all requests went. */
export class Account {
  readonly #counts = new Map<string, number>()
  readonly #deaths: number[] = []

  add(history: History, journal: readonly Journaled[]): void {
    const ran = runs(journal)
    for (const entry of history.entries) {
      this.#count('requests')
      this.#count(fateOf(entry))
      const [outcome] = entry.outcomes
      if (entry.script.fault === 'crash' && outcome) this.#deaths.push(outcome.at - entry.sentAt)
    }
    this.#count('journaled', ran.size)
    this.#count('duplicated', [...ran.values()].filter((times) => times > 1).length)
    this.#count('lives', history.lives.length)
    this.#count('connections refused', history.unopened)
    this.#count('asked by servers', history.asked.size)
    this.#count('messages in order', history.heard.length)
  }

  #count(name: string, by = 1): void {
    this.#counts.set(name, (this.#counts.get(name) ?? 0) + by)
  }

  get(name: string): number {
    return this.#counts.get(name) ?? 0
  }

  toString(): string {
    const lines = [...this.#counts].sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, count]) => `  ${name}: ${count}`)
    const deaths = this.#deaths.sort((a, b) => a - b)
    const at = (part: number) => Math.round(deaths[Math.floor((deaths.length - 1) * part)] ?? 0)
    if (deaths.length > 0) {
      lines.push(`  from a fatal request to its error: median ${at(0.5)} ms, 99 % ${at(0.99)} ms, most ${at(1)} ms`)
    }
    return lines.join('\n')
  }
}

function fateOf({ outcomes, cancelledAt, lostAt }: Entry): string {
  const [outcome] = outcomes
  if (!outcome) {
    if (cancelledAt !== undefined) return 'silent: cancelled'
    return lostAt === undefined ? 'silent: its proxy ended' : 'silent: its client left'
  }
  if ('result' in outcome) return 'results'
  if ('status' in outcome) return `refused: HTTP ${outcome.status}`
  const { code, data } = outcome.error
  return data?.source === 'proxy' ? `errors: ${data.reason} ${data.phase}` : `errors: ${code}`
}
