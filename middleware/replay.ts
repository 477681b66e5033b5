import { readFile } from 'node:fs/promises'
import {
  type Accept,
  createProxy,
  type Frame,
  glob,
  proxyError,
  RpcError,
  rewriteText,
  type Side,
  type Upstream,
  type UpstreamFactory,
  type Wire,
} from 'open-mcp-proxy'

/** Which recording: what `replay` and `rerun` have in common. */
interface Source {
  /** What `record` wrote: a path. */
  file: string
  /** The one session to take, by its id or by its place in the file, from 1. @default all, one after the other */
  session?: string | number
}

export interface ReplayOptions extends Source {
  /**
   * `strict`: requests and notifications must come in the recorded order, equal in method and params; the server's
   * messages go in the recorded order, each once all that the client had said before it has come. `call`: in any order;
   * each request gets the first recorded exchange of its method and params that was not taken yet, else the last of them.
   * `_meta` and ids may differ, and so may the params of `initialize`. @default 'strict'
   */
  match?: 'strict' | 'call'
}

/**
 * An upstream that answers from a recording, notifications and the server's own requests included. Legacy clients get
 * the recorded sessions one after the other, then from the first one again; those of 2026-07-28 share all that was
 * recorded of their era. A request that is not in the recording gets -31003, which says what was expected and what came.
 *
 * @throws `TypeError` where an option cannot be understood. A file that cannot be read fails the session.
 * @example createProxy().use(logger()).listen(replay({ file: 'session.jsonl', match: 'call' }))
 */
export function replay(options: ReplayOptions): UpstreamFactory {
  const { file, session, match = 'strict' } = checked('replay', options)
  if (match !== 'strict' && match !== 'call') {
    throw new TypeError(`replay: expected match "strict" or "call", got ${show(match)}`)
  }
  let enter: Promise<Enter> | undefined
  return async function replay(_session, ...more: unknown[]) {
    if (more.length > 0) throw new TypeError('replay: expected listen(replay(…)), it is an upstream and no middleware')
    enter ??= readRecording(file, session).then((recording) => stages(recording, match === 'strict'))
    return new ServerWire(await enter)
  }
}

function checked<T extends Source>(name: string, options: T): T {
  const { file, session } = options ?? {}
  if (typeof file !== 'string' || file === '') throw new TypeError(`${name}: expected file, a path, got ${show(file)}`)
  if (session !== undefined && typeof session !== 'string' && !(Number.isInteger(session) && session > 0)) {
    throw new TypeError(`${name}: expected session, an id or a number from 1, got ${show(session)}`)
  }
  return options
}

// --- the recording ----------------------------------------------------------------------------------------------

type Id = string | number
type Values = Record<string, unknown>

interface Message {
  id?: Id
  method?: string
  params?: Values
  result?: Values
  error?: Values
}

/** A recorded message, and how it hangs together with others. */
interface Entry {
  /** Of the file: its place in the conversation. */
  readonly line: number
  readonly session: string
  readonly from: Side
  readonly kind: 'request' | 'notification' | 'response'
  /** The JSON text, as it came. */
  readonly text: string
  readonly value: Message
  /** The client's request on whose HTTP stream it came. */
  readonly related?: Id
  /** Of a response: its request. Of `notifications/cancelled`: what is cancelled. */
  of?: Entry
  /** Of a request: its response. */
  outcome?: Entry
  /** The client's message that it belongs to, if it is not one of the client's own. */
  owner?: Entry
}

/** Messages that have to do with one another, in the order in which they came. */
interface Conversation {
  readonly era: 'legacy' | 'modern'
  readonly entries: readonly Entry[]
}

/** What a recording holds: a conversation for each legacy client, then all that was recorded of 2026-07-28. */
export type Recording = readonly Conversation[]

const MASK = '[masked]'
const SUBSCRIPTION = 'io.modelcontextprotocol/subscriptionId'
const CANCELLED = 'notifications/cancelled'
const PROGRESS = 'notifications/progress'
const DISCOVER = 'server/discover'
const LISTEN = 'subscriptions/listen'

/**
 * Reads what `record` wrote.
 * @throws (rejects) `Error` with the line that is wrong, and how.
 */
export async function readRecording(file: string, session?: string | number): Promise<Recording> {
  const sessions = new Map<string, Entry[]>()
  let line = 0
  try {
    for (const text of (await readFile(file, 'utf8')).split('\n')) {
      line++
      if (text.trim() !== '') readLine(text, line, sessions)
    }
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    const wrong = error instanceof SyntaxError ? 'expected JSON, got what does not parse (was it cut off?)' : message
    const what = code === undefined ? `line ${line}: ${wrong}` : `could not be read: ${code}`
    throw new Error(`${file}: ${what}`, { cause: error })
  }
  if (sessions.size === 0) throw new Error(`${file}: expected a recording, got no session`)
  return conversationsOf(chosen(file, sessions, session))
}

function readLine(text: string, line: number, sessions: Map<string, Entry[]>): void {
  const it = JSON.parse(text) as Values
  if (it?.type === 'session') {
    if (it.version !== 1) throw new Error(`expected version 1 of the format, got ${show(it.version)}`)
    if (typeof it.session !== 'string') throw new Error(`expected a session's id, got ${show(it.session)}`)
    if (!sessions.has(it.session)) sessions.set(it.session, [])
    return
  }
  if (it?.type !== 'message') throw new Error(`expected type "session" or "message", got ${show(it?.type)}`)
  const entries = sessions.get(it.session as string)
  if (!entries) throw new Error('expected the first line of its session before it, got none')
  const { session, from, related } = it as unknown as Entry
  if (from !== 'client' && from !== 'server') throw new Error(`expected from "client" or "server", got ${show(from)}`)
  const value = it.message as Message
  entries.push({ line, session, from, kind: kindOf(value), related, value, text: rawOf(text, it) })
}

function kindOf(value: Message): Entry['kind'] {
  const isId = ['string', 'number'].includes(typeof value?.id)
  if (typeof value?.method === 'string') return isId ? 'request' : 'notification'
  if (typeof (value?.result ?? value?.error) === 'object') return 'response'
  throw new Error('expected a JSON-RPC message, got something else')
}

const HEAD = /^\{(?:"\w+":(?:"[^"\\]*"|[-+.\de]+),)+"message":/

/** The bytes of the message, where it stands last, behind plain values: as `record` writes it. */
function rawOf(text: string, it: Values): string {
  const [head] = (Object.keys(it).at(-1) === 'message' && HEAD.exec(text)) || []
  return head === undefined ? JSON.stringify(it.message) : text.slice(head.length, text.lastIndexOf('}'))
}

function chosen(file: string, sessions: Map<string, Entry[]>, wanted: string | number | undefined): Entry[][] {
  if (wanted === undefined) return [...sessions.values()]
  const id = typeof wanted === 'number' ? [...sessions.keys()][wanted - 1] : wanted
  const entries = id === undefined ? undefined : sessions.get(id)
  if (!entries) throw new Error(`${file}: expected session ${show(wanted)}, it has ${sessions.size} and not that one`)
  return [entries]
}

/** Over HTTP each request of 2026-07-28 is a session of its own: they make sense together only. */
function conversationsOf(sessions: Entry[][]): Recording {
  const isLegacy = (entries: Entry[]) => entries.some(({ value }) => value.method === 'initialize')
  const modern = sessions.filter((it) => !isLegacy(it)).flat()
  for (const entries of sessions) link(entries)
  const all: Conversation[] = sessions.filter(isLegacy).map((entries) => ({ era: 'legacy', entries }))
  if (modern.length > 0) all.push({ era: 'modern', entries: modern.sort((a, b) => a.line - b.line) })
  return all
}

/** Finds out what answers what, and to which message of the client's each of the others belongs. */
function link(entries: readonly Entry[]): void {
  const requests = { client: new Map<unknown, Entry>(), server: new Map<unknown, Entry>() }
  const tokens = new Map<unknown, Entry>()
  /** The client's requests that have no answer yet, and its message that came last. */
  const open = new Set<Entry>()
  let last: Entry | undefined
  for (const entry of entries) {
    const { from, kind, related, value } = entry
    const { id, method, params } = value
    const [near, far] = from === 'client' ? [requests.client, requests.server] : [requests.server, requests.client]
    if (kind === 'response') entry.of = far.get(id)
    if (method === CANCELLED) entry.of = near.get(params?.requestId) ?? far.get(params?.requestId)
    if (kind === 'request') near.set(id, entry)
    if (isOwn(entry)) {
      last = entry
      if (kind === 'request') open.add(entry)
      const token = metaOf(value)?.progressToken
      if (token !== undefined) tokens.set(token, entry)
      continue
    }
    const { of } = entry
    if (of) {
      open.delete(of)
      if (kind === 'response') of.outcome ??= entry
      entry.owner = isOwn(of) ? of : of.owner
    } else if (from === 'server' && kind !== 'response') {
      const said =
        method === PROGRESS ? tokens.get(params?.progressToken) : far.get(metaOf(value)?.[SUBSCRIPTION] ?? related)
      // Where it does not say what it belongs to, that is a guess.
      entry.owner = said ?? [...open].at(-1) ?? last
    }
  }
}

/** Whether the client says it of its own accord. */
function isOwn({ from, kind, value }: Entry): boolean {
  return from === 'client' && kind !== 'response' && value.method !== CANCELLED
}

function metaOf({ params, result }: Message): Values | undefined {
  return (params ?? result)?._meta as Values | undefined
}

// --- comparing --------------------------------------------------------------------------------------------------

interface Unlike {
  /** `result.content[0].text` */
  path: string
  expected: unknown
  came: unknown
  isHandle: boolean
}

/** What one end makes up and the other gives back as it is. */
const HANDLES = new Set(['requestState', 'nextCursor', 'taskId'])
/** When a task was made and changed (2025-11-25, basic/utilities/tasks) is never the same again. */
const TIMES = new Set(['createdAt', 'lastUpdatedAt'])
const TIME = /^\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:?\d\d)$/

/** What a handle was when it was recorded, and what it is now. */
type Handles = Map<unknown, string>

/** Where two JSON values differ. What was masked is like anything. */
function unlike(expected: unknown, came: unknown, path = '', key = ''): Unlike[] {
  if (expected === came || isMasked(expected, came)) return []
  if (!isObject(expected) || !isObject(came) || Array.isArray(expected) !== Array.isArray(came)) {
    const isText = typeof expected === 'string' && typeof came === 'string'
    if (isText && TIMES.has(key) && TIME.test(expected) && TIME.test(came)) return []
    return [{ path, expected, came, isHandle: isText && HANDLES.has(key) }]
  }
  return [...new Set([...Object.keys(expected), ...Object.keys(came)])].flatMap((key) => {
    const [a, b] = [expected, came].map((it) => (Object.hasOwn(it, key) ? it[key] : undefined))
    return unlike(a, b, Array.isArray(expected) ? `${path}[${key}]` : path === '' ? key : `${path}.${key}`, key)
  })
}

function isObject(value: unknown): value is Values {
  return typeof value === 'object' && value !== null
}

function isMasked(expected: unknown, came: unknown): boolean {
  if (expected === MASK) return came !== undefined
  if (typeof expected !== 'string' || typeof came !== 'string' || !expected.includes(MASK)) return false
  const parts = expected.split(MASK).map((it) => it.replace(/[^\p{L}\p{N}]/gu, '\\$&'))
  return glob(parts.join('*'))(came)
}

/** Where what came is not what was recorded; learns the handles in it. */
function compare(expected: Message, came: Message, handles: Handles): Unlike[] {
  const [a, b] = [expected, came].map(({ params, result, error }) => ({ params, result, error }))
  return unlike(a, b).filter((it) => {
    if (it.isHandle) handles.set(it.expected, it.came as string)
    return !it.isHandle
  })
}

/** The first place where what came is not what was recorded: by method and params, without `_meta`. */
function misfit(expected: Message, came: Message, handles: Handles): Unlike | undefined {
  const isFree = came.method === 'initialize'
  const [a, b] = [expected, came].map(({ method, params }) => {
    return { method, params: isFree ? {} : { ...params, _meta: undefined } }
  })
  return unlike(a, b).find((it) => {
    const known = handles.get(it.expected)
    // What a notification names for the first time is the sender's own to name.
    return known === undefined ? came.id !== undefined || !it.isHandle : known !== it.came
  })
}

/** The text of a message with the handles of now, and with what `change` does to it. */
function renewed({ text }: Entry, handles: Handles, change: (message: Message) => void): Buffer {
  const message = JSON.parse(text, (_, it) => handles.get(it) ?? it) as Message
  change(message)
  return Buffer.from(rewriteText(text, message))
}

function parsed(frame: Frame): Message {
  return JSON.parse(new TextDecoder().decode(frame)) as Message
}

function show(value: unknown): string {
  const text = JSON.stringify(value) ?? 'nothing'
  return text.length > 80 ? `${text.slice(0, 80)}…` : text
}

function nameOf({ params }: Message): string | undefined {
  const name = params?.name ?? params?.uri
  return typeof name === 'string' ? name : undefined
}

function label(message: Message): string {
  const name = nameOf(message)
  return name === undefined ? String(message.method) : `${message.method} ${show(name)}`
}

// --- as the server ----------------------------------------------------------------------------------------------

/** A client's message that came, and which of the recorded ones it is. */
interface Run {
  readonly entry: Entry
  readonly wire: ServerWire
  readonly message: Message
}

/** Whether nobody waits for an answer to it any more. */
function isOver({ wire, message }: Run): boolean {
  return wire.runs.get(message.id)?.message !== message
}

/** Where a client that begins with this message finds its part; undefined where no recorded one began so. */
type Enter = (first: Message) => Stage | undefined

function stages(conversations: Recording, isStrict: boolean): Enter {
  const legacy = conversations.filter(({ era }) => era === 'legacy')
  const modern = conversations.find(({ era }) => era === 'modern')
  let shared: Stage | undefined
  let turn = 0
  return ({ method }) => {
    const next = legacy[turn % legacy.length]
    const isLegacy = method === 'initialize' || (!modern && next?.entries.find(isOwn)?.value.method === method)
    if (isLegacy && next) {
      turn++
      return new Stage(next, isStrict)
    }
    if (isLegacy || !modern) return undefined
    if (!shared || shared.isOver) shared = new Stage(modern, isStrict)
    return shared
  }
}

/** The server's end of one session. */
class ServerWire implements Wire {
  onframe?: Wire['onframe']
  onclose?: Wire['onclose']
  onerror?: Wire['onerror']
  /** The server's requests that wait for the client's answer, by the id that they were sent with. */
  readonly asked = new Map<unknown, { run: Run; step: Entry }>()
  /** The client's requests that wait for an answer. */
  readonly runs = new Map<unknown, Run>()
  hasLeft = false
  readonly #enter: Enter
  #stage: Stage | undefined

  constructor(enter: Enter) {
    this.#enter = enter
  }

  start(): void {}
  pause(): void {}
  resume(): void {}

  send(frame: Frame): void {
    const message = parsed(frame)
    // A client that has asked for the era first may begin again.
    const isAgain = message.method === 'initialize' && this.#stage?.era === 'modern'
    if (!this.#stage || isAgain) this.#stage = this.#enter(message) ?? this.#stage
    if (this.#stage) this.#stage.receive(this, message)
    else this.refuse(message, `no recorded session begins with ${label(message)}`)
  }

  async close(): Promise<void> {
    this.hasLeft = true
    this.#stage?.play()
  }

  say(frame: Frame, relatedRequestId?: Id): void {
    queueMicrotask(() => {
      if (!this.hasLeft) this.onframe?.(frame, { relatedRequestId })
    })
  }

  refuse(message: Message, detail: string): void {
    const error = proxyError('upstream_bad_response', { detail })
    if (kindOf(message) !== 'request') this.onerror?.(new Error(`replay: ${detail}`))
    else this.say(Buffer.from(JSON.stringify({ jsonrpc: '2.0', id: message.id, error })))
  }
}

/** Messages that go in this order: the server's are said once all of the client's before them have come. */
interface Lane {
  /** With `call`: what they belong to. */
  readonly run?: Run
  readonly steps: readonly Entry[]
  at: number
}

/** A recorded conversation, played to whoever has the client's part. */
class Stage {
  readonly era: Conversation['era']
  readonly #entries: readonly Entry[]
  readonly #isStrict: boolean
  /** One with `strict`, one for each of the client's messages with `call`. */
  readonly #lanes = new Set<Lane>()
  /** What the client has said; undefined where it may as well not say it. */
  readonly #came = new Map<Entry | undefined, Run | undefined>()
  readonly #handles: Handles = new Map()
  #serial = 0

  constructor({ era, entries }: Conversation, isStrict: boolean) {
    this.era = era
    this.#entries = entries
    this.#isStrict = isStrict
    if (isStrict) this.#lanes.add({ steps: entries, at: 0 })
  }

  /** There is nothing left to play. */
  get isOver(): boolean {
    return this.#isStrict && this.#lanes.size === 0
  }

  receive(wire: ServerWire, message: Message): void {
    const { id, method, params } = message
    if (kindOf(message) === 'response') {
      const recorded = wire.asked.get(id)?.step.outcome
      wire.asked.delete(id)
      if (recorded) compare(recorded.value, message, this.#handles)
    } else if (method === CANCELLED) {
      // It waits for no answer, and need not give any.
      for (const [key, { run }] of wire.asked) if (run === wire.runs.get(params?.requestId)) wire.asked.delete(key)
      wire.runs.delete(params?.requestId)
    } else {
      const entry = this.#take(message)
      if (typeof entry === 'string') wire.refuse(message, entry)
      else this.#begin({ entry, wire, message })
    }
    this.play()
  }

  #begin(run: Run): void {
    const { entry, wire, message } = run
    if (entry.kind === 'request') wire.runs.set(message.id, run)
    compare(entry.value, message, this.#handles)
    if (!this.#isStrict) {
      // Said again, it brings nothing that may have had another reason.
      const until = (this.#came.has(entry) && entry.outcome?.line) || Number.POSITIVE_INFINITY
      this.#lanes.add({ run, steps: this.#entries.filter((it) => it.owner === entry && it.line <= until), at: 0 })
    }
    this.#came.set(entry, run)
  }

  /** The entry that a request or notification is, or what was expected instead. */
  #take(message: Message): Entry | string {
    const open = this.#isStrict ? this.#next(message) : this.#entries.filter(isOwn)
    const fitting = open.filter((it) => it.kind === kindOf(message) && !misfit(it.value, message, this.#handles))
    const entry = fitting.find((it) => !this.#came.has(it)) ?? fitting.at(-1)
    if (entry) return entry
    const got = label(message)
    const alike = open.find(({ value }) => label(value) === got)
    const nearest = alike ?? (this.#isStrict ? open[0] : undefined)
    const end = this.#isStrict ? 'nothing more, the recording is at its end' : 'what was recorded'
    const expected = `expected ${nearest ? `${label(nearest.value)} (line ${nearest.line})` : end}`
    const wrong = alike && misfit(alike.value, message, this.#handles)
    return wrong
      ? `${expected} with ${wrong.path} ${show(wrong.expected)}, got ${show(wrong.came)}`
      : `${expected}, got ${got}`
  }

  /** With `strict`: the one entry that may come now, if any is left. */
  #next(message: Message): Entry[] {
    // A client of 2026-07-28 may cancel by closing a stream, which comes when it comes.
    const isLegacy = this.era === 'legacy'
    const isOrdered = (it: Entry) => isOwn(it) || (isLegacy && it.from === 'client' && it.kind !== 'response')
    const entry = this.#entries.find((it) => isOrdered(it) && !this.#isDue(it, this.#came.get(it.owner)))
    if (!entry) return []
    if (entry.value.method !== DISCOVER || message.method === DISCOVER) return [entry]
    // Who knows the server already need not ask (2026-07-28, server/discover), or asks a process of its own.
    this.#came.set(entry, undefined)
    return this.#next(message)
  }

  /** Says all that can be said now. */
  play(): void {
    for (const lane of this.#lanes) {
      for (let step = lane.steps[lane.at]; step; step = lane.steps[++lane.at]) {
        const run = lane.run ?? this.#came.get(step.owner)
        if (!this.#isDue(step, run)) break
        if (run && step.from === 'server') this.#say(run, step)
      }
      if (lane.at < lane.steps.length) continue
      this.#lanes.delete(lane)
      for (const run of lane.run ? [lane.run] : this.#came.values()) if (run) this.#giveUp(run)
    }
  }

  /** Of a client's message: whether it has come, or nobody waits for it. Of a server's: whether its reason has. */
  #isDue(step: Entry, run: Run | undefined): boolean {
    if (isOwn(step)) return this.#came.has(step)
    if (!run || run.wire.hasLeft) return true
    const { wire, entry } = run
    if (step.from === 'client') {
      if (step.kind !== 'response') return isOver(run)
      return ![...wire.asked.values()].some((it) => it.run === run && it.step === step.of)
    }
    // What comes on a listen stream has another cause: what the client had said last, most likely.
    if (entry.value.method !== LISTEN) return true
    return this.#came.has(this.#entries.findLast((it) => isOwn(it) && it.line < step.line))
  }

  #say(run: Run, step: Entry): void {
    const { message, wire, entry } = run
    const { kind, value, related } = step
    const { id } = message
    const [recorded, token] = [entry.value, message].map((it) => metaOf(it)?.progressToken)
    const isNew = recorded !== undefined && token !== undefined
    if (kind === 'response' && isOver(run)) return
    const text = renewed(step, this.#handles, (it) => {
      const { method, params = {} } = it
      const meta = metaOf(it)
      if (meta?.[SUBSCRIPTION] !== undefined) meta[SUBSCRIPTION] = id
      if (method === CANCELLED && step.of === entry) params.requestId = id
      if (method === PROGRESS && isNew && params?.progressToken === recorded) params.progressToken = token
      if (kind === 'response') it.id = id
      // The recorded id, unless a request of that id still waits.
      if (kind === 'request' && wire.asked.has(value.id)) it.id = `replay-${++this.#serial}`
      if (kind === 'request') wire.asked.set(it.id, { run, step })
    })
    if (kind === 'response') wire.runs.delete(id)
    wire.say(text, related === undefined ? undefined : id)
  }

  /** The recording was cut off, or the server never answered. */
  #giveUp(run: Run): void {
    const { entry, wire, message } = run
    const { value, outcome, line } = entry
    if (isOver(run) || outcome || value.method === LISTEN) return
    wire.runs.delete(message.id)
    wire.refuse(message, `the recording ends before the answer to ${label(value)} (line ${line})`)
  }
}

// --- as the client ----------------------------------------------------------------------------------------------

export interface RerunOptions extends Source {
  /** The server that is held against the recording. */
  upstream: Upstream
  /**
   * What may differ: globs of paths, like `result.content[*].text` or `*.uri`; with the name of a method, tool, prompt or
   * resource before it only there: `get-env:result.*`, `notifications/message:*`, which also lets such a message come or
   * not. What the server makes up and the client gives back (`requestState`, `nextCursor`, `taskId`) may always differ.
   * @default none
   */
  ignore?: readonly string[]
  /** Milliseconds that each of the server's messages may take. @default 30000 */
  timeout?: number
  /** Ends it: rejects with the signal's reason. @default none */
  signal?: AbortSignal
}

/** What a server said otherwise than it was recorded. */
export interface Difference {
  /** Of the file, where it was recorded; of a message that was not, the line of the last that it came after. */
  line: number
  session: string
  /** What it answers, or what it is itself. */
  method: string
  /** The tool, prompt or resource. */
  name?: string
  /** `result.content[0].text`; empty for a whole message. */
  path: string
  /** Undefined where nothing was recorded. */
  expected: unknown
  /** Undefined where nothing came. */
  came: unknown
}

/**
 * Says to a server what the recorded client had said, in the same order, each message once the server has said what it had
 * said before, and gives what it says otherwise. Its own requests get the recorded answers.
 *
 * @throws (rejects) `TypeError` where an option cannot be understood, `Error` where the file cannot be read, `RpcError`
 * -31009 or -31010 where the server cannot be reached.
 * @example const differences = await rerun({ file: 'session.jsonl', upstream: stdio('node', ['server.js']) })
 */
export async function rerun(options: RerunOptions): Promise<Difference[]> {
  const { file, session, upstream, timeout = 30_000, signal } = checked('rerun', options)
  if (!(timeout > 0)) throw new TypeError(`rerun: expected timeout, milliseconds above 0, got ${show(timeout)}`)
  const isIgnored = ignoring(options.ignore ?? [])
  const conversations = await readRecording(file, session)
  // What is without an answer in the end has been given up already.
  const app = createProxy({ drainTimeout: 1_000 })
  let accept!: Accept
  await app.listen(upstream, (it) => {
    accept = it
    return { closed: new Promise(() => {}), close: async () => {} }
  })
  try {
    const found: Difference[] = []
    for (const it of conversations) found.push(...(await new Rerun(it, { accept, timeout, signal, isIgnored }).run()))
    return found
  } finally {
    await app.close({ urgent: signal?.aborted })
  }
}

function ignoring(patterns: readonly string[]): Terms['isIgnored'] {
  if (!Array.isArray(patterns) || !patterns.every((it) => typeof it === 'string' && it !== '')) {
    throw new TypeError('rerun: expected ignore, a list of paths, got something else')
  }
  const known = patterns.map((pattern: string) => {
    const [, who = '', path = ''] = /^(?:(.*):)?(.*)$/s.exec(pattern) as RegExpExecArray
    return { who, fits: glob(path.replace(/[[\]]/g, '\\$&')) }
  })
  return ({ method, name, path }) => known.some(({ who, fits }) => ['', method, name].includes(who) && fits(path))
}

interface Terms {
  accept: Accept
  timeout: number
  signal?: AbortSignal
  isIgnored: (difference: Difference) => boolean
}

/** One conversation, had again with another server. */
class Rerun {
  readonly #conversation: Conversation
  readonly #terms: Terms
  readonly #differences: Difference[] = []
  readonly #wires = new Map<string, Wire>()
  /** Sessions whose server has left. */
  readonly #over = new Set<string>()
  /** What came of the server's messages; undefined for what nobody waits for any more. */
  readonly #came = new Map<Entry | undefined, Message | undefined>()
  readonly #handles: Handles = new Map()
  /** Of what the client has said last. */
  #line = 0
  #failure: unknown
  #wake = () => {}

  constructor(conversation: Conversation, terms: Terms) {
    this.#conversation = conversation
    this.#terms = terms
  }

  async run(): Promise<Difference[]> {
    const { signal } = this.#terms
    const abort = () => this.#fail(signal?.reason)
    signal?.addEventListener('abort', abort)
    try {
      for (const entry of this.#conversation.entries) {
        if (signal?.aborted) abort()
        if (entry.from === 'client') await this.#say(entry)
        else if (entry.kind !== 'response' || entry.of) await this.#due(entry)
      }
      return this.#differences
    } finally {
      signal?.removeEventListener('abort', abort)
      for (const wire of this.#wires.values()) wire.onclose?.()
    }
  }

  /** Resolves when a message of the server's has come, or will not. */
  async #due(entry: Entry): Promise<void> {
    const { session, owner, value } = entry
    const { result, error, params = {} } = value
    // Where a request was answered otherwise, what else was said of it may not come either.
    const isChanged = () => this.#differences.some(({ line }) => line === owner?.outcome?.line)
    let isLate = false
    const timer = setTimeout(() => {
      isLate = true
      this.#wake()
    }, this.#terms.timeout)
    while (
      this.#failure === undefined &&
      !isLate &&
      !this.#came.has(entry) &&
      !this.#over.has(session) &&
      !isChanged()
    ) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
    clearTimeout(timer)
    if (this.#failure !== undefined) throw this.#failure
    if (this.#came.has(entry)) return
    this.#came.set(entry, undefined)
    this.#differ(entry, { path: '', expected: result ?? error ?? params, came: undefined })
  }

  async #say(entry: Entry): Promise<void> {
    const { session, kind, value, of, line } = entry
    const wire = this.#wires.get(session) ?? (await this.#begin(session))
    this.#line = line
    const id = kind === 'response' ? this.#came.get(of)?.id : value.id
    if (kind === 'response' && id === undefined) return
    const text = renewed(entry, this.#handles, (it) => {
      it.id = id
    })
    wire.onframe?.(text)
  }

  #begin(session: string): Promise<Wire> {
    const { era } = this.#conversation
    return new Promise((resolve) => {
      const wire: Wire = {
        start: () => resolve(wire),
        send: (frame) => this.#hear(session, parsed(frame)),
        close: async () => {},
        pause() {},
        resume() {},
      }
      this.#wires.set(session, wire)
      const { closed } = this.#terms.accept(wire, era === 'modern' ? { era } : {})
      void closed.then(({ reason, served }) => {
        this.#over.add(session)
        this.#fail(served ? undefined : reason)
      })
    })
  }

  #fail(reason: unknown): void {
    this.#failure ??= reason
    this.#wake()
  }

  #hear(session: string, message: Message): void {
    const { code, data } = (message.error ?? {}) as { code: number; data?: { source?: unknown; reason?: unknown } }
    if (data?.source === 'proxy' && (data.reason === 'upstream_unreachable' || data.reason === 'upstream_auth')) {
      this.#fail(new RpcError(code, String(message.error?.message), data))
      return
    }
    const about = aboutOf(message)
    const open = this.#conversation.entries.filter(
      (it) => it.from === 'server' && it.session === session && !this.#came.has(it) && aboutOf(it.value) === about,
    )
    const entry = open.find(({ value }) => !misfit(value, message, this.#handles)) ?? open[0]
    if (entry) {
      this.#came.set(entry, message)
      for (const it of compare(entry.value, message, this.#handles)) this.#differ(entry, it)
    } else if (kindOf(message) !== 'response') this.#unexpected(session, message)
    this.#wake()
  }

  #unexpected(session: string, message: Message): void {
    const { id, method, params = {} } = message
    const isPing = method === 'ping' && id !== undefined
    const place = { line: this.#line, session, value: message }
    if (!isPing) this.#differ(place, { path: '', expected: undefined, came: params })
    if (kindOf(message) !== 'request') return
    const answer = isPing ? { result: {} } : { error: { code: -32601, message: 'It was not recorded' } }
    this.#wires.get(session)?.onframe?.(Buffer.from(JSON.stringify({ jsonrpc: '2.0', id, ...answer })))
  }

  #differ(place: Pick<Entry, 'line' | 'session' | 'value' | 'of'>, what: Omit<Unlike, 'isHandle'>): void {
    const { line, session, value, of } = place
    const { path, expected, came } = what
    const about = value.method === undefined && of ? of.value : value
    const it = { line, session, method: String(about.method), name: nameOf(about), path, expected, came }
    if (!this.#terms.isIgnored(it)) this.#differences.push(it)
  }
}

/**
 * What a message is, and what it says itself of where it belongs. Of those that are alike in this, each method has its own
 * order.
 */
function aboutOf(message: Message): string {
  const { id, method, params } = message
  const kind = kindOf(message)
  const token = method === PROGRESS ? params?.progressToken : undefined
  return JSON.stringify([kind, method, kind === 'response' ? id : token, metaOf({ params })?.[SUBSCRIPTION]])
}
