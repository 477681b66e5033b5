import { setTimeout as sleep } from 'node:timers/promises'
import type { Id, Message } from './behaviour.mjs'
import type { ClientKind, Entry, Heard, History, Life, Outcome, Script } from './history.js'
import type { Leaving, Link } from './links.js'

/** What a client does, one after the other. */
export type Step =
  | { do: 'call'; script: Script; id: 'number' | 'string'; waits: boolean; cancelAfter?: number; reuses?: boolean }
  /** A call under an id that is in use. */
  | { do: 'twin'; script: Script }
  | { do: 'ask'; method: 'ping' | 'tools/list' }
  | { do: 'note' }
  | { do: 'garbage'; text: string }
  | { do: 'pause'; milliseconds: number }
  | { do: 'deafen'; milliseconds: number }
  /** Lets go of the stream of its newest call. */
  | { do: 'drop'; back: boolean }
  /** Leaves with what is in flight, and comes again if there is more to do. */
  | { do: 'leave'; how: Leaving }

export interface ClientPlan {
  kind: ClientKind
  steps: Step[]
  /** Whether it waits for its answers before it leaves. */
  drains: boolean
}

export interface ClientOptions {
  name: string
  history: History
  /** Milliseconds within which everything must have come to its end. */
  bound: number
  open(kind: ClientKind): Promise<Link | undefined>
  /** For whoever looks into a violation: what passes. */
  trace?: (life: string, arrow: '>' | '<' | '!', text: string) => void
  /** For tests of the checker: what becomes of a text on its way to the client. */
  tamper?: (text: string) => string[]
}

const MODERN = {
  'io.modelcontextprotocol/protocolVersion': '2026-07-28',
  'io.modelcontextprotocol/clientCapabilities': { sampling: {} },
}
const OPEN_TRIES = 20

/** A client that speaks JSON-RPC by hand, as badly as its plan says. */
export class Client {
  readonly #plan: ClientPlan
  readonly #options: ClientOptions
  #link: Link | undefined
  #life!: Life
  #lives = 0
  #serial = 0
  #seq = 0
  #wake: (() => void)[] = []

  constructor(plan: ClientPlan, options: ClientOptions) {
    this.#plan = plan
    this.#options = options
  }

  async run(): Promise<void> {
    for (const step of this.#plan.steps) {
      if ((!this.#link || this.#link.isGone) && !(await this.#open())) break
      await this.#do(step)
    }
    if (!this.#link) return
    if (this.#plan.drains) await this.#settled(this.#open_())
    await this.#leave('half')
  }

  get #isModern(): boolean {
    return this.#plan.kind === 'modern' || this.#plan.kind === 'stdio-modern'
  }

  // --- comes and goes ---------------------------------------------------------------------------------------

  async #open(): Promise<boolean> {
    const { kind } = this.#plan
    for (let tries = 0; tries < OPEN_TRIES; tries++) {
      // Of a session that is over, what was in flight still gets its answers.
      if (this.#link) await this.#leave(this.#link.kind === 'http' ? 'half' : 'abrupt')
      const link = await this.#options.open(kind)
      if (link) {
        this.#begin(link)
        this.#life.isOpen = await this.#shakeHands()
        if (this.#life.isOpen) return true
      }
      this.#options.history.unopened++
      await sleep(100)
    }
    return false
  }

  #begin(link: Link): void {
    const life: Life = { name: `${this.#options.name}.${++this.#lives}`, kind: link.kind, garbage: 0 }
    this.#options.history.lives.push(life)
    this.#life = life
    this.#link = link
    this.#seq = 0
    link.start({
      text: (text, via, entry) => {
        for (const it of this.#options.tamper?.(text) ?? [text]) this.#receive(life, link, it, via, entry)
      },
      refused: (entry, status, body) => {
        const phase = parsed(body)?.error?.data as { phase?: string } | undefined
        this.#outcome(entry, { at: performance.now(), via: 'http', status, phase: phase?.phase })
      },
      ended: (entry, how) => {
        if (how === 'ended') entry.endedAt ??= performance.now()
        else entry.lostAt ??= performance.now()
        this.#stir()
      },
      gone: () => {
        life.wasEnded = this.#link === link && life.isOpen
        for (const it of this.#entries(life)) it.endedAt ??= performance.now()
        this.#stir()
      },
    })
  }

  async #shakeHands(): Promise<boolean> {
    if (this.#isModern) return true
    const params = {
      protocolVersion: '2025-11-25',
      capabilities: { sampling: {} },
      clientInfo: { name: 'c', version: '1' },
    }
    const entry = this.#request('initialize', params, {}, `${this.#life.name}-init`)
    await this.#settled([entry])
    const [outcome] = entry.outcomes
    if (!outcome || !('result' in outcome)) return false
    await this.#link?.send(JSON.stringify({ jsonrpc: '2.0', method: 'notifications/initialized' }))
    if (this.#link && 'listen' in this.#link) (this.#link as { listen(): void }).listen()
    return true
  }

  async #leave(how: Leaving): Promise<void> {
    const link = this.#link
    const life = this.#life
    this.#link = undefined
    if (!link) return
    life.isAbrupt = how === 'abrupt'
    const loses = how === 'abrupt' || link.kind === 'sse' || link.kind === 'modern'
    if (loses) for (const it of this.#entries(life)) it.lostAt ??= performance.now()
    const since = performance.now()
    await Promise.race([link.leave(how), sleep(this.#options.bound * 2, undefined, { ref: false })])
    life.took = performance.now() - since
    if (how === 'half' && link.kind === 'http') {
      for (const it of this.#entries(life)) it.lostAt ??= performance.now()
    }
  }

  // --- says -------------------------------------------------------------------------------------------------

  async #do(step: Step): Promise<void> {
    this.#options.trace?.(this.#life.name, '!', JSON.stringify(step))
    switch (step.do) {
      case 'call':
        return this.#call(step)
      case 'twin': {
        // On the one stream of this transport nobody could tell which of the two was refused.
        if (this.#link?.kind === 'sse') return
        const first = this.#open_().findLast(({ method, cancelledAt }) => method === 'tools/call' && !cancelledAt)
        if (!first) return
        this.#tool(step.script, first.id, true)
        // Of two POSTs the second may come first.
        if (!this.#link?.kind.startsWith('stdio')) first.isTwin = true
        return
      }
      case 'ask':
        await this.#settled([this.#request(step.method, {}, {}, `${this.#life.name}-${++this.#serial}`)])
        return
      case 'note':
        if (this.#link?.kind === 'modern') return
        return this.#link?.send(
          JSON.stringify({ jsonrpc: '2.0', method: 'notifications/chaos', params: this.#numbered() }),
        )
      case 'garbage':
        this.#life.garbage++
        return this.#link?.send(step.text)
      case 'pause':
        return sleep(step.milliseconds)
      case 'deafen':
        return this.#link?.deafen(step.milliseconds)
      case 'drop': {
        const entry = this.#open_().at(-1)
        if (entry) this.#link?.drop(entry, step.back)
        return
      }
      case 'leave':
        return this.#leave(step.how)
    }
  }

  async #call({ script, id, waits, cancelAfter, reuses }: Step & { do: 'call' }): Promise<void> {
    const entry = this.#tool(script, id === 'number' ? ++this.#serial : String(++this.#serial), false)
    const cancelled = (async () => {
      if (cancelAfter === undefined) return
      await sleep(cancelAfter)
      await this.#cancel(entry, reuses)
    })()
    if (waits) await Promise.all([this.#settled([entry]), cancelled])
  }

  async #cancel(entry: Entry, reuses = false): Promise<void> {
    const link = this.#link
    if (!link || isSettled(entry) || entry.life !== this.#life.name) return
    entry.cancelledAt = performance.now()
    this.#stir()
    if (link.kind === 'modern') return link.drop(entry, false)
    const text = JSON.stringify({
      jsonrpc: '2.0',
      method: 'notifications/cancelled',
      params: { requestId: entry.id, ...(this.#isModern && { _meta: MODERN }) },
    })
    const sent = link.send(text)
    // Over a pipe the cancelled id is free as soon as that is written.
    if (reuses && link.kind.startsWith('stdio')) this.#tool({}, entry.id, false, true)
    return sent
  }

  #tool(script: Script, id: Id, isTwin: boolean, isReuse = false): Entry {
    const token = `${this.#life.name}-${++this.#serial}`
    const params = {
      name: 'chaos',
      arguments: { ...script, ...this.#numbered(), token },
      _meta: { progressToken: token },
    }
    return this.#request('tools/call', params, script, token, id, { isTwin, isReuse })
  }

  #numbered(): { life: string; seq: number } {
    return { life: this.#life.name, seq: ++this.#seq }
  }

  #request(
    method: string,
    params: object,
    script: Script,
    token: string,
    id: Id = token,
    twin = { isTwin: false, isReuse: false },
  ): Entry {
    const { name: life } = this.#life
    const sentAt = performance.now()
    const entry: Entry = { token, life, id, method, script, ...twin, sentAt, outcomes: [], progress: [] }
    this.#options.history.entries.push(entry)
    const meta = { ...((params as Message['params'])?._meta as object), ...(this.#isModern && MODERN) }
    const message: Message = { jsonrpc: '2.0', id, method, params: { ...params, _meta: meta } }
    this.#options.trace?.(life, '>', JSON.stringify(message))
    if (!this.#link || this.#link.isGone) entry.lostAt = sentAt
    else void this.#link.send(JSON.stringify(message), message, entry)
    return entry
  }

  // --- hears ------------------------------------------------------------------------------------------------

  #receive(life: Life, link: Link, text: string, via: string, owner?: Entry): void {
    const message = parsed(text)
    const { history } = this.#options
    this.#options.trace?.(life.name, '<', `${via} ${text}`)
    if (message?.jsonrpc !== '2.0') return void history.strays.push({ life: life.name, text })
    const { from, n } = (message.params ?? message.result ?? {}) as { from?: string; n?: number }
    if (from !== undefined && n !== undefined) {
      history.heard.push({ life: life.name, via, from, n, kind: kindOf(message) })
    }
    if (message.method === undefined) this.#answer(life, message, text, via, owner)
    else if (message.id !== undefined) this.#asked(link, message)
    else if (message.method === 'notifications/progress') this.#progress(life, message, text)
  }

  #answer(life: Life, message: Message, text: string, via: string, owner?: Entry): void {
    const { history } = this.#options
    if (message.id === undefined || message.id === null) {
      if (message.error && life.garbage > 0) life.garbage--
      else history.strays.push({ life: life.name, text })
      return
    }
    const entry = owner?.id === message.id ? owner : this.#owner(life, message)
    if (!entry) return void history.strays.push({ life: life.name, text })
    if (entry.isReuse) this.#giveBack(life, entry)
    const { result, error } = message
    const at = performance.now()
    if (result) this.#outcome(entry, { at, via, result })
    else this.#outcome(entry, { at, via, error: error as Outcome & never })
  }

  /** Which of those that had this id it answers: by the token where there is one. */
  #owner(life: Life, { id, result, error }: Message): Entry | undefined {
    const entries = this.#entries(life).filter((it) => it.id === id)
    const token = tokenOf(result) ?? (error?.data as { token?: string } | undefined)?.token
    if (token !== undefined) return entries.find((it) => it.token === token) ?? entries.at(-1)
    const open = entries.filter((it) => it.outcomes.length === 0)
    const reuse = entries.find(({ isReuse }) => isReuse)
    if (error?.code === -32600) return open.find(({ isTwin }) => isTwin) ?? reuse ?? entries.at(-1)
    const waits = open.find(({ isTwin, cancelledAt }) => !isTwin && !cancelledAt)
    return waits ?? (reuse && !isRefused(reuse) ? reuse : open.at(-1)) ?? entries.at(-1)
  }

  /** There is more to come: then the error that came first was for the one that had the id before. */
  #giveBack(life: Life, { id, outcomes }: Entry): void {
    const before = this.#entries(life).find((it) => it.id === id && it.cancelledAt && it.outcomes.length === 0)
    const isOfOld = outcomes[0] && 'error' in outcomes[0] && !isRefused({ outcomes })
    if (before && isOfOld) before.outcomes.push(...outcomes.splice(0))
  }

  #outcome(entry: Entry, outcome: Outcome): void {
    entry.outcomes.push(outcome)
    this.#stir()
  }

  #asked(link: Link, { id, params }: Message): void {
    const { asked } = this.#options.history
    asked.set(String(id), (asked.get(String(id)) ?? 0) + 1)
    void link.send(JSON.stringify({ jsonrpc: '2.0', id, result: { token: params?.token } }))
  }

  #progress(life: Life, { params = {} }: Message, text: string): void {
    const entry = this.#options.history.entries.findLast(({ token }) => token === params.progressToken)
    if (entry?.life === life.name && params.token === entry.token) entry.progress.push(params.progress as number)
    else this.#options.history.strays.push({ life: life.name, text })
  }

  // --- waits ------------------------------------------------------------------------------------------------

  #entries(life: Life): Entry[] {
    return this.#options.history.entries.filter((it) => it.life === life.name)
  }

  #open_(): Entry[] {
    return this.#entries(this.#life).filter((it) => !isSettled(it))
  }

  async #settled(entries: Entry[]): Promise<void> {
    const until = performance.now() + this.#options.bound
    while (!entries.every(isSettled) && performance.now() < until) {
      await Promise.race([
        new Promise<void>((resolve) => this.#wake.push(resolve)),
        sleep(Math.max(1, until - performance.now()), undefined, { ref: false }),
      ])
    }
  }

  #stir(): void {
    for (const it of this.#wake.splice(0)) it()
  }
}

export function isSettled({ outcomes, cancelledAt, lostAt, endedAt }: Entry): boolean {
  return outcomes.length > 0 || cancelledAt !== undefined || lostAt !== undefined || endedAt !== undefined
}

/** Its id was in use. */
function isRefused({ outcomes: [outcome] }: Pick<Entry, 'outcomes'>): boolean {
  return outcome !== undefined && 'error' in outcome && outcome.error.code === -32600
}

function kindOf({ id, method }: Message): Heard['kind'] {
  if (method === undefined) return 'response'
  return id === undefined ? 'notification' : 'request'
}

/** The token that a result gives back. */
export function tokenOf(result: Record<string, unknown> | undefined): string | undefined {
  return (result?.content as { text?: string }[] | undefined)?.[0]?.text
}

function parsed(text: string): Message | undefined {
  try {
    return JSON.parse(text) as Message
  } catch {
    return undefined
  }
}
