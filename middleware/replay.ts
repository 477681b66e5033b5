import { createReadStream } from 'node:fs'
import {
  type Accept,
  createProxy,
  type Frame,
  type FrameMeta,
  glob,
  proxyError,
  RpcError,
  type Side,
  type Upstream,
  type UpstreamFactory,
  type Wire,
} from 'open-mcp-proxy'

export interface ReplayOptions {
  /** What `record` wrote: a path. */
  file: string
  /** The one session to take, by its id or by its place in the file, from 1. @default all of them */
  session?: string | number
  /**
   * `strict`: requests and notifications must come in the recorded order, equal in method and params; the server's
   * messages go in the recorded order, each once all that the client had said before it has come. `call`: in any order;
   * each request gets the first recorded exchange of its method and params that was not taken yet. `_meta` and ids may
   * differ, and so may the params of `initialize`. @default 'strict'
   */
  match?: 'strict' | 'call'
  /** With `call`: gives a request that comes more often than it was recorded the last of its exchanges again. @default true */
  repeat?: boolean
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
  const { file, session, match = 'strict', repeat = true } = checked('replay', options)
  if (match !== 'strict' && match !== 'call') {
    throw new TypeError(`replay: expected match "strict" or "call", got ${show(match)}`)
  }
  if (typeof repeat !== 'boolean') throw new TypeError(`replay: expected repeat true or false, got ${show(repeat)}`)
  let theatre: Promise<Theatre> | undefined
  return async function replay(_session, ...more: unknown[]) {
    if (more.length > 0) throw new TypeError('replay: expected listen(replay(…)), it is an upstream and no middleware')
    theatre ??= readRecording(file, session).then((read) => new Theatre(read, match, repeat))
    return new ServerWire(await theatre)
  }
}

function checked<T extends { file: string; session?: string | number }>(name: string, options: T): T {
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
type Path = readonly (string | number)[]

interface Message {
  id?: Id
  method?: string
  params?: Values
  result?: Values
  error?: Values
}

/** A recorded message, and how it hangs together with others. */
interface Entry {
  readonly line: number
  readonly seq: number
  readonly session: string
  readonly from: Side
  readonly kind: 'request' | 'notification' | 'response'
  /** The JSON text, as it came. */
  readonly text: string
  readonly value: Message
  readonly related?: Id
  /** Its place in the conversation. */
  at: number
  /** Of a response: its request. Of `notifications/cancelled`: what is cancelled. */
  of?: Entry
  /** Of a request. */
  outcome?: Entry
  isCancelled?: boolean
  /** Of a server's message, and of an answer to it: the client's message that it belongs to. */
  owner?: Entry
  /** It says itself to what it belongs; else that is a guess. */
  isTied?: boolean
  /** Of a server's message: the request or notification that the client had said last. */
  cause?: Entry
}

/** Messages that have to do with one another, in the order in which they came. */
interface Conversation {
  readonly era: 'legacy' | 'modern'
  readonly entries: readonly Entry[]
}

/** What a recording holds. */
export interface Recording {
  /** A session of its own for each legacy client, then all that was recorded of 2026-07-28. */
  readonly conversations: readonly Conversation[]
}

/** A line that is longer is no message that any proxy would have taken. */
const MAX_LINE = 64 << 20
const MASK = '[masked]'
const SUBSCRIPTION = 'io.modelcontextprotocol/subscriptionId'
const CANCELLED = 'notifications/cancelled'
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
    for await (const text of linesOf(file)) {
      line++
      if (text.trim() !== '') readLine(text, line, sessions)
    }
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    if (code !== undefined) throw new Error(`${file}: could not be read: ${code}`, { cause: error })
    throw new Error(`${file}: line ${error instanceof LineError ? line : line + 1}: ${message}`)
  }
  if (sessions.size === 0) throw new Error(`${file}: expected a recording, got no session`)
  return { conversations: conversationsOf(chosen(file, sessions, session)) }
}

class LineError extends Error {}

async function* linesOf(file: string): AsyncGenerator<string> {
  let parts: Buffer[] = []
  let size = 0
  for await (const chunk of createReadStream(file, { highWaterMark: 1 << 20 }) as AsyncIterable<Buffer>) {
    let from = 0
    for (let end = chunk.indexOf(10); end >= 0; end = chunk.indexOf(10, from)) {
      parts.push(chunk.subarray(from, end))
      yield Buffer.concat(parts).toString()
      parts = []
      size = 0
      from = end + 1
    }
    parts.push(chunk.subarray(from))
    size += chunk.length - from
    if (size > MAX_LINE) throw new Error(`expected at most ${MAX_LINE} bytes, got more`)
  }
  if (size > 0) yield Buffer.concat(parts).toString()
}

function readLine(text: string, line: number, sessions: Map<string, Entry[]>): void {
  let it: Values
  try {
    it = JSON.parse(text) as Values
  } catch {
    throw new LineError('expected JSON, got what does not parse (was it cut off?)')
  }
  if (it?.type === 'session') {
    if (it.version !== 1) throw new LineError(`expected version 1 of the format, got ${show(it.version)}`)
    if (typeof it.session !== 'string') throw new LineError(`expected a session's id, got ${show(it.session)}`)
    if (!sessions.has(it.session)) sessions.set(it.session, [])
    return
  }
  if (it?.type !== 'message') throw new LineError(`expected type "session" or "message", got ${show(it?.type)}`)
  const entries = sessions.get(it.session as string)
  if (!entries) throw new LineError('expected the first line of its session before it, got none')
  const { seq, session, from, related } = it as unknown as Entry
  if (from !== 'client' && from !== 'server') {
    throw new LineError(`expected from "client" or "server", got ${show(from)}`)
  }
  const value = it.message as Message
  const kind = kindOf(value)
  entries.push({ line, seq, session, from, kind, related, value, text: rawOf(text, it), at: 0 })
}

function kindOf(value: Message): Entry['kind'] {
  const isId = ['string', 'number'].includes(typeof value?.id)
  if (typeof value?.method === 'string') return isId ? 'request' : 'notification'
  if (isObject(value) && (isObject(value.result) || isObject(value.error))) return 'response'
  throw new LineError('expected a JSON-RPC message, got something else')
}

/** The bytes of the message, where it stands last, behind plain values: as `record` writes it. */
function rawOf(text: string, { message, ...head }: Values): string {
  const start = text.indexOf(',"message":')
  const isPlain = Object.values(head).every((it) => typeof it !== 'object')
  if (start < 0 || !isPlain || !text.startsWith('{"type"')) return JSON.stringify(message)
  return text.slice(start + ',"message":'.length, text.lastIndexOf('}'))
}

function chosen(file: string, sessions: Map<string, Entry[]>, wanted: string | number | undefined): Entry[][] {
  if (wanted === undefined) return [...sessions.values()]
  const id = typeof wanted === 'number' ? [...sessions.keys()][wanted - 1] : wanted
  const entries = id === undefined ? undefined : sessions.get(id)
  if (!entries) throw new Error(`${file}: expected session ${show(wanted)}, it has ${sessions.size} and not that one`)
  return [entries]
}

/** Over HTTP each request of 2026-07-28 is a session of its own: they make sense together only. */
function conversationsOf(sessions: Entry[][]): Conversation[] {
  const isLegacy = (entries: Entry[]) => entries.some(({ value }) => value.method === 'initialize')
  const legacy = sessions.filter(isLegacy)
  const modern = sessions.filter((it) => !isLegacy(it)).flat()
  const all: Conversation[] = legacy.map((entries) => ({ era: 'legacy', entries }))
  if (modern.length > 0) all.push({ era: 'modern', entries: modern.sort((a, b) => a.line - b.line) })
  for (const { entries } of all) link(entries)
  return all
}

/** Finds out what answers what, and to which message of the client's each of the server's belongs. */
function link(entries: readonly Entry[]): void {
  const requests = new Map<string, Entry>()
  const tokens = new Map<string, Entry>()
  const waiting = new Map<string, Set<Entry>>()
  const last = new Map<string, Entry>()
  let cause: Entry | undefined
  const keyOf = (session: string, from: Side, id: unknown) => JSON.stringify([session, from, id])
  for (const [at, entry] of entries.entries()) {
    const { session, from, kind, value } = entry
    const far = from === 'client' ? 'server' : 'client'
    const open = waiting.get(session) ?? new Set()
    waiting.set(session, open)
    entry.at = at
    entry.cause = from === 'server' ? cause : undefined
    if (kind === 'response') {
      entry.of = requests.get(keyOf(session, far, value.id))
      if (entry.of) entry.of.outcome ??= entry
      entry.owner = from === 'server' ? entry.of : entry.of?.owner
      entry.isTied = true
      if (entry.of) open.delete(entry.of)
      continue
    }
    if (kind === 'request') requests.set(keyOf(session, from, value.id), entry)
    if (value.method === CANCELLED) {
      const id = value.params?.requestId
      entry.of = requests.get(keyOf(session, from, id)) ?? requests.get(keyOf(session, far, id))
    }
    if (from === 'server') {
      const { params, method } = value
      const meta = params?._meta as Values | undefined
      const id = meta?.[SUBSCRIPTION] ?? entry.related
      const tied =
        method === CANCELLED && entry.of
          ? (entry.of.owner ?? entry.of)
          : method === 'notifications/progress'
            ? tokens.get(keyOf(session, 'client', params?.progressToken))
            : requests.get(keyOf(session, 'client', id))
      entry.isTied = tied !== undefined
      entry.owner = tied ?? [...open].at(-1) ?? last.get(session)
      continue
    }
    if (entry.of) {
      entry.of.isCancelled = true
      open.delete(entry.of)
      continue
    }
    last.set(session, entry)
    cause = entry
    if (kind !== 'request') continue
    open.add(entry)
    const token = (value.params?._meta as Values | undefined)?.progressToken
    if (token !== undefined) tokens.set(keyOf(session, 'client', token), entry)
  }
}

function isObject(value: unknown): value is Values {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function isCancelling({ from, value, of }: Entry): boolean {
  return from === 'client' && value.method === CANCELLED && of !== undefined
}

function isOwnMessage({ from, kind, value }: Entry): boolean {
  return from === 'client' && kind !== 'response' && value.method !== CANCELLED
}

// --- comparing --------------------------------------------------------------------------------------------------

interface Unlike {
  path: Path
  expected: unknown
  came: unknown
}

/** Where two JSON values differ. What was masked is like anything. */
function* unlike(expected: unknown, came: unknown, path: Path = []): Generator<Unlike> {
  if (Array.isArray(expected) && Array.isArray(came)) {
    const length = Math.max(expected.length, came.length)
    for (let at = 0; at < length; at++) yield* unlike(expected[at], came[at], [...path, at])
  } else if (isObject(expected) && isObject(came)) {
    for (const key of new Set([...Object.keys(expected), ...Object.keys(came)])) {
      const [a, b] = [expected, came].map((it) => (Object.hasOwn(it, key) ? it[key] : undefined))
      yield* unlike(a, b, [...path, key])
    }
  } else if (expected !== came && !isMasked(expected, came) && !isTime(path.at(-1), expected, came)) {
    yield { path, expected, came }
  }
}

/** When a task was made and changed (2025-11-25, basic/utilities/tasks) is never the same again. */
function isTime(key: unknown, ...values: unknown[]): boolean {
  return (
    (key === 'createdAt' || key === 'lastUpdatedAt') &&
    values.every((it) => typeof it === 'string' && /^\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:?\d\d)$/.test(it))
  )
}

function isMasked(expected: unknown, came: unknown): boolean {
  if (typeof expected !== 'string' || !expected.includes(MASK)) return false
  if (expected === MASK) return came !== undefined
  if (typeof came !== 'string') return false
  const parts = expected.split(MASK)
  const end = parts.pop() as string
  let at = 0
  for (const [index, part] of parts.entries()) {
    const found = came.indexOf(part, at)
    if (found < 0 || (index === 0 && found > 0)) return false
    at = found + part.length
  }
  return came.length - at >= end.length && came.endsWith(end)
}

/** What one end makes up and the other gives back as it is: what it was when it was recorded, and what it is now. */
type Handles = Map<string, string>

const HANDLES = new Set<unknown>(['requestState', 'nextCursor', 'taskId'])

function isHandle({ path, expected, came }: Unlike): boolean {
  return HANDLES.has(path.at(-1)) && typeof expected === 'string' && typeof came === 'string'
}

function learn(handles: Handles, recorded: Message, came: Message): void {
  for (const it of unlike(recorded, came)) if (isHandle(it)) handles.set(it.expected as string, it.came as string)
}

/** The text of a message with the handles of now. */
function withHandles({ text, value }: Entry, handles: Handles): string {
  if (handles.size === 0) return text
  let isChanged = false
  const changed = JSON.stringify(value, (_, it) => {
    const now = typeof it === 'string' ? handles.get(it) : undefined
    if (now !== undefined) isChanged = true
    return now ?? it
  })
  return isChanged ? changed : text
}

/** The first place where what came is not what was recorded: by method and params, without `_meta`. */
function misfit(expected: Message, came: Message, handles: Handles): Unlike | undefined {
  if (expected.method !== came.method) return { path: ['method'], expected: expected.method, came: came.method }
  if (came.method === 'initialize') return undefined
  const [a, b] = [expected, came].map(({ params }) => ({ ...params, _meta: undefined }))
  for (const it of unlike(a, b, ['params'])) {
    const known = handles.get(it.expected as string)
    // What a notification names for the first time is the sender's own to name.
    const isNew = known === undefined && isHandle(it) && came.id === undefined
    if (!isNew && (known === undefined || known !== it.came)) return it
  }
  return undefined
}

/** `result.content[0].text` */
function dotted(path: Path): string {
  return path.map((it, at) => (typeof it === 'number' ? `[${it}]` : at === 0 ? it : `.${it}`)).join('')
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

// --- JSON text --------------------------------------------------------------------------------------------------

/** The text with another value where a path of keys leads, if it leads anywhere. */
function spliced(text: string, path: readonly string[], value: string): string {
  let [start, end] = [text.indexOf('{'), text.length]
  for (const key of path) {
    if (text[start] !== '{') return text
    const found = memberOf(text, start, key)
    if (!found) return text
    ;[start, end] = found
  }
  return text.slice(0, start) + value + text.slice(end)
}

const SPACE = /\s*/y

function skipSpace(text: string, at: number): number {
  SPACE.lastIndex = at
  SPACE.test(text)
  return SPACE.lastIndex
}

/** Where the string that begins at `at` ends. */
function stringEnd(text: string, at: number): number {
  let end = text.indexOf('"', at + 1)
  for (;;) {
    let slashes = 0
    while (text[end - 1 - slashes] === '\\') slashes++
    if (slashes % 2 === 0) return end + 1
    end = text.indexOf('"', end + 1)
  }
}

/** Start and end of the value of a key in the object that begins at `at`. */
function memberOf(text: string, at: number, wanted: string): [start: number, end: number] | undefined {
  let depth = 0
  let found = -1
  for (let next = at; next < text.length; ) {
    const char = text[next]
    if (char === '"') {
      const end = stringEnd(text, next)
      const colon = skipSpace(text, end)
      const isKey = depth === 1 && found < 0 && text[colon] === ':'
      const isWanted = isKey && JSON.parse(text.slice(next, end)) === wanted
      next = isKey ? skipSpace(text, colon + 1) : end
      if (isWanted) found = next
      continue
    }
    if (char === '{' || char === '[') depth++
    if (char === '}' || char === ']') depth--
    if (found >= 0 && next > found && ((depth === 1 && char === ',') || depth === 0)) {
      return [found, found + text.slice(found, next).trimEnd().length]
    }
    if (depth === 0) return undefined
    next++
  }
  return undefined
}

// --- as the server ----------------------------------------------------------------------------------------------

/** A client's message that came, and what the recording has to say to it. */
interface Run {
  readonly entry: Entry
  readonly wire: ServerWire
  /** As this client wrote them: JSON texts. */
  readonly id?: string
  readonly token?: string
  /** What is still to be said of it, with `call`. */
  readonly steps: Entry[]
  /** What else the client has said about it. */
  readonly heard: Set<Entry>
  /** It has its answer, or wants none any more. */
  isOver: boolean
}

/** Where all clients of a replay find their part. */
class Theatre {
  readonly #legacy: Conversation[]
  readonly #modern: Conversation | undefined
  readonly #make: (conversation: Conversation) => Stage
  #shared: Stage | undefined
  #turn = 0

  constructor({ conversations }: Recording, match: 'strict' | 'call', repeat: boolean) {
    this.#legacy = conversations.filter(({ era }) => era === 'legacy')
    this.#modern = conversations.find(({ era }) => era === 'modern')
    this.#make = (it) => (match === 'strict' ? new StrictStage(it) : new CallStage(it, repeat))
  }

  /** The stage for a client that begins with this message; undefined where no recorded one began so. */
  enter({ method }: Message): Stage | undefined {
    const next = this.#legacy[this.#turn % this.#legacy.length]
    const begins = method === 'initialize' || next?.entries.find(isOwnMessage)?.value.method === method
    if (next && (method === 'initialize' || (begins && !this.#modern))) {
      this.#turn++
      return this.#make(next)
    }
    if (method === 'initialize' || !this.#modern) return undefined
    if (!this.#shared || this.#shared.isOver) this.#shared = this.#make(this.#modern)
    return this.#shared
  }
}

/** The server's end of one session. */
class ServerWire implements Wire {
  onframe?: Wire['onframe']
  onclose?: Wire['onclose']
  onerror?: Wire['onerror']
  /** The server's requests that wait for the client's answer, by the id that they were sent with. */
  readonly asked = new Map<unknown, { run: Run; step: Entry }>()
  /** The client's requests, by the JSON text of their ids. */
  readonly runs = new Map<string, Run>()
  hasLeft = false
  readonly #theatre: Theatre
  readonly #out: { text: string; meta?: FrameMeta }[] = []
  #stage: Stage | undefined
  #paused = false
  #serial = 0

  constructor(theatre: Theatre) {
    this.#theatre = theatre
  }

  start(): void {}

  send(frame: Frame): void {
    const message = JSON.parse(new TextDecoder().decode(frame)) as Message
    // A client that has asked for the era first may begin again.
    if (!this.#stage || message.method === 'initialize') this.#stage = this.#theatre.enter(message) ?? this.#stage
    if (this.#stage) this.#stage.receive(this, message)
    else if (kindOf(message) === 'request') {
      this.refuse(JSON.stringify(message.id), `no recorded session begins with ${label(message)}`)
    }
  }

  async close(): Promise<void> {
    this.hasLeft = true
    this.#out.length = 0
    this.#stage?.play()
  }

  pause(): void {
    this.#paused = true
  }

  resume(): void {
    this.#paused = false
    this.#flush()
  }

  say(text: string, meta?: FrameMeta): void {
    if (this.#out.push({ text, meta }) === 1) queueMicrotask(() => this.#flush())
  }

  refuse(id: string, detail: string): void {
    const error = proxyError('upstream_bad_response', { detail })
    this.say(`{"jsonrpc":"2.0","id":${id},"error":${JSON.stringify(error)}}`)
  }

  /** The recorded id, unless a request of that id still waits. */
  idFor(step: Entry): Id {
    const id = step.value.id as Id
    return this.asked.has(id) ? `replay-${++this.#serial}` : id
  }

  #flush(): void {
    while (!this.#paused && this.#out.length > 0) {
      const { text, meta } = this.#out.shift() as { text: string; meta?: FrameMeta }
      this.onframe?.(Buffer.from(text), meta)
    }
  }
}

/** A recorded conversation, played to whoever has the client's part. */
abstract class Stage {
  protected readonly entries: readonly Entry[]
  /** What the client has said. */
  protected readonly came = new Map<Entry, Run>()
  /** What is under way. */
  protected readonly runs = new Set<Run>()
  protected readonly handles: Handles = new Map()

  constructor({ entries }: Conversation) {
    this.entries = entries
  }

  /** There is nothing left to play. */
  abstract readonly isOver: boolean
  /** Says all that can be said now. */
  abstract play(): void
  /** The entry that a request or notification is, or what was expected instead; undefined where it changes nothing. */
  protected abstract take(message: Message, cancelled?: Run): Entry | string | undefined
  /** What is to be said of a client's message that came. */
  protected abstract stepsOf(entry: Entry): Entry[]

  receive(wire: ServerWire, message: Message): void {
    const kind = kindOf(message)
    if (kind === 'response') this.#answer(wire, message)
    else {
      const run = message.method === CANCELLED ? wire.runs.get(JSON.stringify(message.params?.requestId)) : undefined
      const entry = this.take(message, run)
      if (run) {
        run.isOver = true
        if (typeof entry === 'object') run.heard.add(entry)
      }
      if (typeof entry === 'object') this.#begin(wire, message, entry)
      else if (entry === undefined) wire.runs.delete(run?.id ?? '')
      else if (kind === 'request') wire.refuse(JSON.stringify(message.id), entry)
      else wire.onerror?.(new Error(`replay: ${entry}`))
    }
    this.play()
  }

  #begin(wire: ServerWire, message: Message, entry: Entry): void {
    const token = (message.params?._meta as Values | undefined)?.progressToken
    const run: Run = {
      entry,
      wire,
      id: JSON.stringify(message.id),
      token: JSON.stringify(token),
      steps: this.stepsOf(entry),
      heard: new Set(),
      isOver: entry.kind !== 'request',
    }
    if (run.id !== undefined) wire.runs.set(run.id, run)
    learn(this.handles, entry.value, message)
    this.came.set(entry, run)
    this.runs.add(run)
  }

  #answer(wire: ServerWire, message: Message): void {
    const asked = wire.asked.get(message.id)
    wire.asked.delete(message.id)
    const answer = asked?.step.outcome
    if (!answer) return
    asked.run.heard.add(answer)
    learn(this.handles, answer.value, message)
  }

  protected say(run: Run, step: Entry): void {
    const { id = 'null', token, wire, entry } = run
    const { kind, value } = step
    const recorded = withHandles(step, this.handles)
    if (kind === 'response') {
      const text = spliced(recorded, ['id'], id)
      if (!run.isOver) wire.say(spliced(text, ['result', '_meta', SUBSCRIPTION], id))
      run.isOver = true
      return
    }
    let text = spliced(recorded, ['params', '_meta', SUBSCRIPTION], id)
    if (value.method === 'notifications/progress' && token !== undefined && step.isTied) {
      text = spliced(text, ['params', 'progressToken'], token)
    }
    if (value.method === CANCELLED && step.of === entry) text = spliced(text, ['params', 'requestId'], id)
    if (kind === 'request') {
      const own = wire.idFor(step)
      wire.asked.set(own, { run, step })
      if (own !== value.id) text = spliced(text, ['id'], JSON.stringify(own))
    }
    wire.say(text, step.related === undefined ? undefined : { relatedRequestId: JSON.parse(id) as Id })
  }

  /** The recording was cut off, or the server never answered. */
  protected giveUp(run: Run): void {
    const { entry, isOver, wire, id } = run
    if (isOver || entry.outcome || entry.isCancelled || entry.value.method === LISTEN) return
    run.isOver = true
    wire.refuse(id as string, `the recording ends before the answer to ${label(entry.value)} (line ${entry.line})`)
  }
}

/** As it was recorded, message by message. */
class StrictStage extends Stage {
  /** What the client has to say, in this order. */
  readonly #parts: Entry[]
  readonly #skipped = new Set<Entry>()
  #next = 0
  #at = 0

  constructor(conversation: Conversation) {
    super(conversation)
    // A client of 2026-07-28 may cancel by closing a stream, which comes when it comes.
    const isOrdered = conversation.era === 'legacy'
    this.#parts = this.entries.filter((it) => isOwnMessage(it) || (isOrdered && isCancelling(it)))
  }

  get isOver(): boolean {
    return this.#next === this.#parts.length && this.#at === this.entries.length
  }

  protected take(message: Message, cancelled?: Run): Entry | string | undefined {
    const entry = this.#parts[this.#next]
    if (message.method === CANCELLED && (entry?.value.method !== CANCELLED || entry.of !== cancelled?.entry)) {
      return this.entries.find((it) => isCancelling(it) && it.of === cancelled?.entry)
    }
    // Who knows the server already need not ask (2026-07-28, server/discover), or asks a process of its own.
    if (entry?.value.method === DISCOVER && message.method !== DISCOVER) {
      this.#skipped.add(entry)
      this.#next++
      return this.take(message, cancelled)
    }
    const got = `got ${label(message)}`
    if (!entry) return `expected nothing more, the recording is at its end, ${got}`
    const expected = `expected ${label(entry.value)} (line ${entry.line})`
    if (label(entry.value) !== label(message)) return `${expected}, ${got}`
    const wrong = message.method === CANCELLED ? undefined : misfit(entry.value, message, this.handles)
    if (wrong) return `${expected} with ${dotted(wrong.path)} ${show(wrong.expected)}, got ${show(wrong.came)}`
    this.#next++
    return entry
  }

  protected stepsOf(): Entry[] {
    return []
  }

  play(): void {
    for (; this.#at < this.entries.length; this.#at++) {
      const step = this.entries[this.#at] as Entry
      const run = step.owner && this.came.get(step.owner)
      if (step.from === 'client' && !this.#hasCome(step)) return
      if (step.from === 'server' && run && !run.wire.hasLeft) this.say(run, step)
    }
    for (const run of this.runs) this.giveUp(run)
    this.runs.clear()
  }

  #hasCome(step: Entry): boolean {
    if (isOwnMessage(step)) return this.came.has(step) || this.#skipped.has(step)
    // What answers or cancels nothing that is known is not waited for.
    const run = this.came.get((step.kind === 'response' ? step.of?.owner : step.of) as Entry)
    return !run || run.wire.hasLeft || run.heard.has(step)
  }
}

/** By method and arguments, in any order. */
class CallStage extends Stage {
  readonly isOver = false
  readonly #repeat: boolean
  /** By the client's message that they belong to: what the server says, and what else the client says. */
  readonly #said = new Map<Entry | undefined, Entry[]>()
  readonly #heard = new Map<Entry | undefined, Entry[]>()

  constructor(conversation: Conversation, repeat: boolean) {
    super(conversation)
    this.#repeat = repeat
    for (const it of this.entries) {
      if (isOwnMessage(it)) continue
      const lists = it.from === 'server' ? this.#said : this.#heard
      const about = isCancelling(it) ? it.of : it.owner
      const list = lists.get(about) ?? []
      list.push(it)
      lists.set(about, list)
    }
  }

  protected take(message: Message, cancelled?: Run): Entry | string | undefined {
    if (message.method === CANCELLED) {
      const recorded = cancelled && this.#heard.get(cancelled.entry)?.find(isCancelling)
      if (!recorded && cancelled) this.runs.delete(cancelled)
      return recorded
    }
    const kind = kindOf(message)
    let fitting: Entry | undefined
    let nearest: [Entry, Unlike] | undefined
    for (const entry of this.entries) {
      if (!isOwnMessage(entry) || entry.kind !== kind || entry.value.method !== message.method) continue
      const wrong = misfit(entry.value, message, this.handles)
      if (!wrong && !this.came.has(entry)) return entry
      if (!wrong) fitting = entry
      else if (!nearest || nameOf(entry.value) === nameOf(message)) nearest = [entry, wrong]
    }
    if (fitting && this.#repeat) return fitting
    if (fitting) return `expected no ${label(message)} with these params any more, got another one`
    if (!nearest) return `expected what was recorded, got ${label(message)}`
    const [{ line }, { path, expected, came }] = nearest
    const at = `${dotted(path)} ${show(expected)} (line ${line}), got ${show(came)}`
    return `expected params that were recorded with ${label(message)}, for one ${at}`
  }

  /** Said again, it brings nothing that may have had another reason. */
  protected stepsOf(entry: Entry): Entry[] {
    const isAgain = this.came.has(entry)
    const until = entry.outcome?.at ?? Number.POSITIVE_INFINITY
    return (this.#said.get(entry) ?? []).filter((it) => !isAgain || it.isTied || it.at < until)
  }

  play(): void {
    for (let said = true; said; ) {
      said = false
      for (const run of this.runs) {
        const [step] = run.steps
        if (!step) this.giveUp(run)
        if (run.wire.hasLeft || (!step && run.isOver)) this.#forget(run)
        else if (step && this.#isDue(run, step)) {
          run.steps.shift()
          this.say(run, step)
          said = true
        }
      }
    }
  }

  #forget(run: Run): void {
    const { id = '', wire } = run
    this.runs.delete(run)
    if (wire.runs.get(id) === run) wire.runs.delete(id)
  }

  /** All that the client had said about it before has come. */
  #isDue({ entry, heard }: Run, step: Entry): boolean {
    const before = (this.#heard.get(entry) ?? []).filter((it) => it.at < step.at)
    if (before.some((it) => !heard.has(it))) return false
    // What comes on a listen stream has another cause: what the client had said last, most likely.
    return entry.value.method !== LISTEN || !step.cause || this.came.has(step.cause)
  }
}

// --- as the client ----------------------------------------------------------------------------------------------

export interface RerunOptions {
  /** What `record` wrote: a path. */
  file: string
  /** The one session to take, by its id or by its place in the file, from 1. @default all, one after the other */
  session?: string | number
  /** The server that is held against the recording. */
  upstream: Upstream
  /**
   * What may differ: paths with `*` for any one member or item and `**` for any number of them, like
   * `result.content[*].text`; with the name of a method, tool, prompt or resource before it only there: `get-env:result.**`,
   * `notifications/message:**`, which also lets such a message come or not. What the server makes up and the client gives
   * back (`requestState`, `nextCursor`, `taskId`) may always differ. @default none
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
  const { conversations } = await readRecording(file, session)
  const app = createProxy({ drainTimeout: LAST_WORD })
  let accept: Accept | undefined
  let end = () => {}
  const closed = new Promise<{ served: boolean }>((resolve) => {
    end = () => resolve({ served: true })
  })
  const close = async () => end()
  await app.listen(upstream, (it) => {
    accept = it
    return { closed, close }
  })
  try {
    const found: Difference[] = []
    for (const it of conversations) {
      found.push(...(await new Rerun(it, accept as Accept, { timeout, signal, isIgnored }).run()))
    }
    return found
  } finally {
    await app.close({ urgent: signal?.aborted })
  }
}

/** What is still without an answer then has been given up already, in milliseconds. */
const LAST_WORD = 1_000

type Ignored = (entry: { method: string; name?: string }, path: Path) => boolean

function ignoring(patterns: readonly string[]): Ignored {
  if (!isTexts(patterns)) throw new TypeError('rerun: expected ignore, a list of paths, got something else')
  const known = patterns.map((pattern) => {
    const colon = pattern.lastIndexOf(':')
    const path = pattern.slice(colon + 1).replace(/\[(\w+|\*)\]/g, '.$1')
    return { who: pattern.slice(0, Math.max(colon, 0)), fits: glob(path) }
  })
  return ({ method, name }, path) => {
    const text = path.join('.')
    return known.some(({ who, fits }) => (who === '' || who === method || who === name) && fits(text))
  }
}

function isTexts(value: unknown): value is string[] {
  return Array.isArray(value) && value.every((it) => typeof it === 'string' && it !== '')
}

/** The client's end of one recorded session. */
class ClientWire implements Wire {
  onframe?: Wire['onframe']
  onclose?: Wire['onclose']
  onerror?: Wire['onerror']
  /** The client's requests, by the JSON text of their ids. */
  readonly sent = new Map<string, Entry>()
  readonly started: Promise<void>
  readonly #hear: (message: Message) => void
  #start = () => {}

  constructor(hear: (message: Message) => void) {
    this.#hear = hear
    this.started = new Promise((resolve) => {
      this.#start = resolve
    })
  }

  start(): void {
    this.#start()
  }

  send(frame: Frame): void {
    this.#hear(JSON.parse(new TextDecoder().decode(frame)) as Message)
  }

  async close(): Promise<void> {}
  pause(): void {}
  resume(): void {}

  say(text: string): void {
    this.onframe?.(Buffer.from(text))
  }
}

interface Terms {
  timeout: number
  signal?: AbortSignal
  isIgnored: Ignored
}

/** One conversation, had again with another server. */
class Rerun {
  readonly #conversation: Conversation
  readonly #accept: Accept
  readonly #options: Terms
  readonly #differences: Difference[] = []
  readonly #wires = new Map<string, ClientWire>()
  /** Sessions whose server has left. */
  readonly #over = new Set<string>()
  /** The server's messages that came, or that nobody waits for any more. */
  readonly #settled = new Set<Entry>()
  /** The server's requests that came: JSON texts of their ids. */
  readonly #asked = new Map<Entry, string>()
  /** Requests that were answered otherwise: what else was said of them may never come. */
  readonly #changed = new Set<Entry>()
  readonly #handles: Handles = new Map()
  #line = 0
  #failure: unknown
  #wake = () => {}

  constructor(conversation: Conversation, accept: Accept, options: Terms) {
    this.#conversation = conversation
    this.#accept = accept
    this.#options = options
  }

  async run(): Promise<Difference[]> {
    const { signal } = this.#options
    const abort = () => this.#fail(signal?.reason)
    signal?.addEventListener('abort', abort)
    try {
      for (const entry of this.#conversation.entries) {
        if (signal?.aborted) abort()
        if (entry.from === 'server') await this.#due(entry)
        else await this.#say(entry)
      }
      return this.#differences
    } finally {
      signal?.removeEventListener('abort', abort)
      for (const wire of this.#wires.values()) wire.onclose?.()
    }
  }

  /** Resolves when a message of the server's has come, or will not. */
  async #due(entry: Entry): Promise<void> {
    const isDone = () =>
      this.#failure !== undefined ||
      this.#settled.has(entry) ||
      this.#over.has(entry.session) ||
      (entry.owner !== undefined && this.#changed.has(entry.owner))
    if (entry.kind === 'response' && !entry.of) return
    let timer: NodeJS.Timeout | undefined
    let isLate = false
    const late = () => {
      isLate = true
      this.#wake()
    }
    while (!isDone() && !isLate) {
      timer ??= setTimeout(late, this.#options.timeout)
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
    clearTimeout(timer)
    if (this.#failure !== undefined) throw this.#failure
    if (this.#settled.has(entry)) return
    this.#settled.add(entry)
    const { result, error, params } = entry.value
    this.#differ(entry, [], result ?? error ?? params ?? {}, undefined)
  }

  async #say(entry: Entry): Promise<void> {
    const { session, kind, value } = entry
    this.#line = entry.line
    const wire = await this.#wireOf(session)
    if (kind !== 'response') {
      if (kind === 'request') wire.sent.set(JSON.stringify(value.id), entry)
      wire.say(withHandles(entry, this.#handles))
      return
    }
    const id = entry.of && this.#asked.get(entry.of)
    if (id !== undefined) wire.say(spliced(entry.text, ['id'], id))
  }

  async #wireOf(session: string): Promise<ClientWire> {
    const known = this.#wires.get(session)
    if (known) return known
    const wire = new ClientWire((message) => this.#hear(session, wire, message))
    this.#wires.set(session, wire)
    const { closed } = this.#accept(wire, this.#conversation.era === 'modern' ? { era: 'modern' } : {})
    void closed.then(({ reason, served }) => {
      this.#over.add(session)
      if (reason && !served) this.#fail(reason)
      this.#wake()
    })
    await wire.started
    return wire
  }

  #fail(reason: unknown): void {
    this.#failure ??= reason
    this.#wake()
  }

  #hear(session: string, wire: ClientWire, message: Message): void {
    const kind = kindOf(message)
    if (kind === 'response') this.#hearAnswer(wire, message)
    else if (kind === 'request') this.#hearRequest(session, wire, message)
    else this.#hearNotification(session, message)
    this.#wake()
  }

  #hearAnswer(wire: ClientWire, { id, result, error }: Message): void {
    const data = error?.data as { source?: unknown; reason?: unknown } | undefined
    if (data?.source === 'proxy' && (data.reason === 'upstream_unreachable' || data.reason === 'upstream_auth')) {
      this.#fail(new RpcError(error?.code as number, String(error?.message), data))
      return
    }
    const request = wire.sent.get(JSON.stringify(id))
    const expected = request?.outcome
    if (!expected || this.#settled.has(expected)) return
    const before = this.#differences.length
    this.#settled.add(expected)
    this.#compare(expected, { result: expected.value.result, error: expected.value.error }, { result, error })
    if (this.#differences.length > before) this.#changed.add(request)
  }

  #hearRequest(session: string, wire: ClientWire, message: Message): void {
    const open = this.#open(session, 'request').filter(({ value }) => value.method === message.method)
    const entry = open.find(({ value }) => !misfit(value, message, this.#handles)) ?? open[0]
    if (entry) {
      this.#asked.set(entry, JSON.stringify(message.id))
      this.#settled.add(entry)
      this.#compare(entry, { params: entry.value.params }, { params: message.params })
      return
    }
    const id = JSON.stringify(message.id)
    if (message.method === 'ping') {
      wire.say(`{"jsonrpc":"2.0","id":${id},"result":{}}`)
      return
    }
    this.#unexpected(session, message)
    wire.say(`{"jsonrpc":"2.0","id":${id},"error":{"code":-32601,"message":"It was not recorded"}}`)
  }

  /** Of those that belong to one exchange, each method has its own order; so have those of which nobody knows. */
  #hearNotification(session: string, message: Message): void {
    const about = aboutOf(message)
    const open = this.#open(session, 'notification').filter(
      ({ value }) => value.method === message.method && aboutOf(value) === about,
    )
    const entry = open.find(({ value }) => !unlike(value.params, message.params).next().value) ?? open[0]
    if (!entry) {
      this.#unexpected(session, message)
      return
    }
    this.#settled.add(entry)
    this.#compare(entry, { params: entry.value.params }, { params: message.params })
  }

  #open(session: string, kind: Entry['kind']): Entry[] {
    return this.#conversation.entries.filter(
      (it) => it.from === 'server' && it.kind === kind && it.session === session && !this.#settled.has(it),
    )
  }

  #unexpected(session: string, message: Message): void {
    const method = String(message.method)
    const name = nameOf(message)
    if (this.#options.isIgnored({ method, name }, [])) return
    const { params = {} } = message
    this.#differences.push({ line: this.#line, session, method, name, path: '', expected: undefined, came: params })
  }

  #compare(entry: Entry, expected: object, came: object): void {
    for (const it of unlike(expected, came)) {
      if (isHandle(it)) this.#handles.set(it.expected as string, it.came as string)
      else this.#differ(entry, it.path, it.expected, it.came)
    }
  }

  #differ({ line, session, value, of }: Entry, path: Path, expected: unknown, came: unknown): void {
    const about = of && value.method === undefined ? of.value : value
    const method = String(about.method)
    const name = nameOf(about)
    if (this.#options.isIgnored({ method, name }, path)) return
    this.#differences.push({ line, session, method, name, path: dotted(path), expected, came })
  }
}

/** What a notification says itself of where it belongs. */
function aboutOf({ method, params }: Message): string {
  const meta = params?._meta as Values | undefined
  return JSON.stringify([meta?.[SUBSCRIPTION], method === 'notifications/progress' ? params?.progressToken : undefined])
}
