import { createHash } from 'node:crypto'
import { createReadStream, realpathSync, type Stats, statSync } from 'node:fs'
import { type FileHandle, open, readdir, stat } from 'node:fs/promises'
import { basename, dirname, extname, join, resolve } from 'node:path'
import { pipeline } from 'node:stream'
import { createGunzip } from 'node:zlib'
import {
  type Application,
  type Context,
  define,
  type Middleware,
  type Next,
  proxyError,
  RpcError,
} from 'open-mcp-proxy'
import picomatch from 'picomatch'
import { createStream } from 'rotating-file-stream'

export interface AuditRotation {
  /** Bytes, or a number and `B`, `K`, `M`, `G`: the file is put aside once it has as many. */
  size?: number | string
  /** A number and `s`, `m`, `h`, `d`, `M` (months): `1d` puts it aside at every midnight. */
  interval?: string
  /** So many files that were put aside are kept; the oldest go. Their names are in `FILE.history`. @default all */
  maxFiles?: number
  /** Packs what is put aside with gzip. @default false */
  compress?: boolean
}

/** A stream of Node's, as far as it is used. */
export interface AuditStream {
  write(text: string, done: (error?: Error | null) => void): unknown
  on(event: 'error', listener: (error: Error) => void): unknown
}

export interface AuditOptions {
  /** The file, in a directory that exists. It is made with mode 0600, and only ever appended to. This, or `write`. */
  file?: string
  /** Takes each line, without its newline, and may give a promise; or a stream, which is not ended. */
  write?: ((line: string) => unknown) | AuditStream
  /**
   * What becomes of a message whose record cannot be written: the disk is full, a write takes longer than two seconds,
   * `maxQueueBytes` wait.
   *
   * - `block`: it waits, as do those behind it, until its record is written.
   * - `deny`: a request gets -31005 (`not_sent`, retryable). Responses and notifications pass: what was done cannot be
   *   undone, and nothing could be answered to a notification.
   * - `drop`: it passes.
   *
   * Records wait in memory, as far as `maxQueueBytes` goes. How many were lost beyond it stands in a record of its own
   * (`event: 'lost'`) as soon as one can be written.
   *
   * @default 'block'
   */
  onFull?: 'drop' | 'block' | 'deny'
  /**
   * Names or globs (`tools/*`, `notifications/**`) of the methods that are recorded, those of notifications too.
   * @default all requests of both ends, no notifications
   */
  methods?: string[]
  /**
   * Of the arguments of a tool or prompt, of other methods the whole `params`: nothing; the SHA-256 of their text,
   * byte for byte as it came to the proxy; or also their values, as this place of the line sees them. Values may be secret.
   * @default 'hash'
   */
  arguments?: 'none' | 'hash' | 'full'
  /** When the file is put aside, as `NAME-TIME-NNN.EXT`, and a new one is begun. @default never */
  rotate?: AuditRotation
  /** Bytes of records that may wait to be written. @default 1048576 */
  maxQueueBytes?: number
}

export type AuditOutcome =
  | 'ok'
  | 'error'
  /** A tool's result with `isError`. */
  | 'tool_error'
  /** A result that asks for more (2026-07-28, `resultType`). */
  | 'input_required'
  /** By its sender, or a middleware before this one has answered it. */
  | 'cancelled'
  /** The session, or the end that asked, was gone before the answer. */
  | 'closed'
  /** The far end never saw it. */
  | 'failed-to-deliver'

/** A line of the trail, in the order of its members. Those that do not apply are absent. */
export interface AuditRecord {
  /** Counts the lines of the trail from 1. */
  seq: number
  /** ISO 8601: when the message arrived; of an outcome, when it came about. */
  time: string
  event: 'start' | 'request' | 'outcome' | 'notification' | 'lost' | 'recovered' | 'stop'
  session?: string
  /** The same for a request and its outcome, and for them alone. */
  exchange?: string
  principal?: string
  /** `ctx.state.user.id`, where a middleware has set it. */
  user?: string | number
  /** The address that the client came from, where the listener tells. */
  remote?: string
  /** Who asked. */
  from?: 'client' | 'server'
  method?: string
  /** The tool or prompt, or the resource's URI. */
  name?: string
  /** Exactly as it was written: `0`, `"0"`, `""` and `1.0` are four ids. */
  id?: string | number
  argumentsHash?: string
  arguments?: unknown
  upstream?: string
  era?: 'legacy' | 'modern'
  protocolVersion?: string
  outcome?: AuditOutcome
  /** Of an error. */
  code?: number
  /** Milliseconds since the request arrived. */
  duration?: number
  /** Of `start`: the process. */
  pid?: number
  /** Of `lost`: how many records could not be written at this point. */
  count?: number
  /** Of `recovered`: what a crash or a full disk has left of a line, before this one. */
  torn?: { bytes: number; hash: string }
  prev: string
  hash: string
}

/**
 * Writes an audit trail, as JSON lines: who asked what, and what came of it.
 *
 * A request has two lines. The first is written before the request is handed on, so that no crash can hide that it was
 * asked; one line, written at the end, would be missing just then. The second tells its one outcome before that reaches
 * whoever asked. "Written" is what survives the end of this process; nothing is synced to the disk, so that a crash of
 * the machine can cost the last seconds. A message that is not recorded passes untouched; arguments are never kept, unless
 * asked for.
 *
 * Each line ends in its hash, and holds that of the line before it in `prev` (64 zeros in the very first):
 *
 *     {"seq":2,…,"prev":"<64 hex digits>","hash":"<64 hex digits>"}
 *
 * `hash` is the SHA-256, in lower-case hexadecimal digits, of the line's UTF-8 bytes without the newline and without the
 * member `,"hash":"…"`: cut the last 75 bytes off and put `}` in their place. The chain goes on across restarts and
 * rotations: the files, put together in order, are one trail. What a crash left of a line stays, and the next record has
 * its length and SHA-256 (`torn`). So a line cannot be changed, removed or put in without a trace, but whoever may write
 * to the file can write a new trail: keep the last hash elsewhere now and then. In Python:
 *
 *     import hashlib, json, sys
 *     prev = '0' * 64
 *     for line in open(sys.argv[1], 'rb'):
 *         try: record = json.loads(line)
 *         except ValueError: continue  # torn: see "torn" of the next record
 *         line = line.rstrip(b'\n')
 *         assert hashlib.sha256(line[:-75] + b'}').hexdigest() == record['hash'], record['seq']
 *         assert record['prev'] == prev, record['seq']
 *         prev = record['hash']
 *
 * Any number of instances of one process share the trail of a file. So do processes, as a rule: each goes on from what
 * it finds there, but two that write at the very same moment break the chain; give each a file of its own. A file that is
 * moved or removed is begun anew, and the trail goes on there. First on the line it sees what the client sees.
 *
 * @throws `TypeError` where an option cannot be understood. `listen` rejects where the file cannot be opened, or is not a trail.
 * @example createProxy().use(audit({ file: '/var/log/mcp/audit.jsonl', rotate: { interval: '1d', compress: true } }))
 */
export function audit(options: AuditOptions): Middleware {
  const desk = new Desk(checked(options))
  return define(
    { role: 'observe', start: (app: Application) => desk.start(app), close: () => desk.close() },
    function audit(ctx, next) {
      if (ctx.kind === 'response') return desk.response(ctx, next)
      if (!desk.concerns(ctx)) return next()
      return ctx.kind === 'request' ? desk.request(ctx, next) : desk.notification(ctx, next)
    },
  )
}

// --- options --------------------------------------------------------------------------------------------------

type Settings = AuditOptions & Required<Pick<AuditOptions, 'onFull' | 'arguments' | 'maxQueueBytes'>>

const NAMES = new Set(['file', 'write', 'onFull', 'methods', 'arguments', 'rotate', 'maxQueueBytes'])
const ROTATION = new Set(['size', 'interval', 'maxFiles', 'compress'])
/** Of these the library wants divisors: it counts from the full minute, hour, day. */
const WHOLE: Record<string, number> = { s: 60, m: 60, h: 24 }

function expect(condition: boolean, what: string, got: unknown): asserts condition {
  const shown = typeof got === 'function' ? 'a function' : (JSON.stringify(got) ?? String(got))
  if (!condition) throw new TypeError(`audit: expected ${what}, got ${shown}`)
}

function isObject(value: unknown): boolean {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function isCount(value: unknown): boolean {
  return Number.isSafeInteger(value) && (value as number) > 0
}

function checked(options: AuditOptions): Settings {
  expect(isObject(options), 'options with a file', options)
  for (const name of Object.keys(options)) expect(NAMES.has(name), `one of ${[...NAMES].join(', ')}`, name)
  const {
    file,
    write,
    methods,
    rotate,
    onFull = 'block',
    arguments: values = 'hash',
    maxQueueBytes = 1 << 20,
  } = options
  const given = file !== undefined && write !== undefined ? 'both' : 'neither'
  expect((file === undefined) !== (write === undefined), 'file or write', given)
  if (file !== undefined) expect(typeof file === 'string' && file !== '', 'file to be a path', file)
  if (write !== undefined) {
    const takes = typeof write === 'function' || (typeof write?.write === 'function' && typeof write.on === 'function')
    expect(takes, 'write to be a function or a stream', typeof write)
  }
  expect(['drop', 'block', 'deny'].includes(onFull), 'onFull "drop", "block" or "deny"', onFull)
  expect(['none', 'hash', 'full'].includes(values), 'arguments "none", "hash" or "full"', values)
  expect(isCount(maxQueueBytes), 'maxQueueBytes to be a positive number of bytes', maxQueueBytes)
  if (methods !== undefined) {
    const named = Array.isArray(methods) && methods.every((it) => typeof it === 'string' && it !== '')
    expect(named, 'methods to be a list of names or globs', methods)
  }
  if (rotate !== undefined) checkRotation(rotate, file)
  return { ...options, onFull, arguments: values, maxQueueBytes }
}

function checkRotation(rotate: AuditRotation, file: string | undefined): void {
  expect(isObject(rotate), 'rotate to be an object', rotate)
  for (const name of Object.keys(rotate)) expect(ROTATION.has(name), `one of ${[...ROTATION].join(', ')}`, name)
  const { size, interval, maxFiles, compress } = rotate
  expect(file !== undefined, 'a file to rotate', 'write')
  expect(size !== undefined || interval !== undefined, 'rotate with a size or an interval', rotate)
  const sized = size === undefined || isCount(size) || /^[1-9]\d*[BKMG]$/.test(String(size))
  expect(sized, 'rotate.size in bytes, or as "10M"', size)
  const [, count, unit = ''] = /^([1-9]\d*)([smhdM])$/.exec(String(interval)) ?? []
  const timed = count !== undefined && (WHOLE[unit] ?? Number(count)) % Number(count) === 0
  expect(interval === undefined || timed, 'rotate.interval as "1d" or "12h", a part of the whole', interval)
  expect(maxFiles === undefined || isCount(maxFiles), 'rotate.maxFiles to be a positive number', maxFiles)
  expect(compress === undefined || typeof compress === 'boolean', 'rotate.compress to be true or false', compress)
}

// --- the desk: one instance, which follows the exchanges ------------------------------------------------------

/** A request without an outcome. */
interface Asked {
  readonly ctx: Context
  /** What both of its lines say, as JSON. */
  readonly facts: Facts
  /** It has left. */
  delivered: boolean
  forget(): void
}

type Facts = Record<string, string | undefined>
type Ending = { outcome: AuditOutcome; code?: number }

class Desk {
  readonly #settings: Settings
  readonly #named: ((method: string) => boolean) | undefined
  readonly #asked = new Map<string, Asked>()
  #app: Application | undefined
  #held: Trail | undefined
  #isClosed = false

  constructor(settings: Settings) {
    this.#settings = settings
    const { methods } = settings
    this.#named = methods && picomatch(methods, { dot: true, windows: false, flags: 's' })
  }

  concerns({ kind, method = '' }: Context): boolean {
    return this.#named ? method !== '' && this.#named(method) : kind === 'request'
  }

  async start(app: Application): Promise<void> {
    this.#app = app
    this.#isClosed = false
    try {
      await this.#trail.opened()
    } catch (error) {
      this.#held = undefined
      throw new Error(`audit: expected a file that can be written, got ${(error as Error).message}`)
    }
  }

  /** Exchanges that left through this instance may yet end: then the last of them lets go of the trail. */
  async close(): Promise<void> {
    this.#isClosed = true
    await new Promise(setImmediate)
    if (this.#asked.size === 0) await this.#release()
    else await this.#held?.flush()
  }

  get #trail(): Trail {
    this.#held ??= Trail.of(this.#settings, (text) => this.#report(text))
    return this.#held
  }

  async #release(): Promise<void> {
    const trail = this.#held
    this.#held = undefined
    await trail?.leave()
  }

  #report(text: string): void {
    const error = new Error(`audit: ${text}`)
    if (this.#app && this.#app.listenerCount('error') > 0) this.#app.emit('error', error)
    else process.stderr.write(`open-mcp-proxy: ${plain(error.message)}\n`)
  }

  /** Resolves with whether it is written, once the message may go on. */
  async #record(facts: Facts, signal?: AbortSignal): Promise<boolean> {
    const { onFull, maxQueueBytes } = this.#settings
    const patience = onFull === 'block' ? signal : undefined
    try {
      return await this.#trail.write(bodyOf(facts), maxQueueBytes, patience)
    } finally {
      if (this.#isClosed && this.#asked.size === 0) void this.#release()
    }
  }

  async request(ctx: Context, next: Next): Promise<void> {
    const { signal, key } = ctx
    const asked: Asked = { ctx, facts: this.#factsOf(ctx), delivered: false, forget: () => {} }
    this.#asked.set(key, asked)
    // Whether it was the session that ended shows only when its own signal was aborted, too.
    const giveUp = () => queueMicrotask(() => void this.#end(asked, () => abandoned(asked)))
    asked.forget = () => signal.removeEventListener('abort', giveUp)
    if (signal.aborted) giveUp()
    else signal.addEventListener('abort', giveUp)
    try {
      const isWritten = await this.#record({ event: '"request"', ...asked.facts }, signal)
      if (!isWritten && this.#settings.onFull === 'deny') {
        throw proxyError('overloaded', { detail: 'the audit trail takes no more' })
      }
      await next()
      asked.delivered = true
    } catch (error) {
      if (!signal.aborted) await this.#failed(asked, error)
      throw error
    }
  }

  /** The error becomes an answer, which passes here if it is made behind this place, and may be another one by then. */
  async #failed(asked: Asked, error: unknown): Promise<void> {
    const ending = error instanceof RpcError ? failureOf(error.code, error.data) : failureOf(-32603, undefined)
    if (ending.outcome === 'failed-to-deliver') await this.#end(asked, () => ending)
    else setImmediate(() => void this.#end(asked, () => ending))
  }

  response(ctx: Context, next: Next): Promise<void> {
    const asked = this.#asked.size > 0 && ctx.request ? this.#asked.get(ctx.request.key) : undefined
    if (!asked) return next()
    return this.#end(asked, () => endingOf(ctx, asked), ctx).then(next)
  }

  async notification(ctx: Context, next: Next): Promise<void> {
    await this.#record({ event: '"notification"', ...this.#factsOf(ctx) }, ctx.signal)
    return next()
  }

  async #end(asked: Asked, how: () => Ending, response?: Context): Promise<void> {
    const { ctx, facts } = asked
    if (!this.#asked.delete(ctx.key)) return
    asked.forget()
    const { outcome, code } = how()
    const now = response?.timestamp ?? performance.timeOrigin + performance.now()
    const { argumentsHash: _, arguments: __, ...known } = facts
    const ending: Facts = { event: '"outcome"', ...known, ...peersOf(ctx), time: json(new Date(now).toISOString()) }
    const duration = Math.round((now - ctx.timestamp) * 100) / 100
    await this.#record(
      { ...ending, outcome: json(outcome), code: json(code), duration: json(duration) },
      response?.signal,
    )
  }

  #factsOf(ctx: Context): Facts {
    const { from, method, name, session, timestamp, kind, key } = ctx
    const { id, hashed } = textsOf(ctx.raw, method)
    const { arguments: values } = this.#settings
    return {
      time: json(new Date(timestamp).toISOString()),
      session: json(session.id),
      exchange: kind === 'request' ? json(key) : undefined,
      ...peersOf(ctx),
      from: json(from),
      method: json(shortened(method)),
      name: json(shortened(name)),
      id: id !== undefined && id.length > LONGEST ? json(shortened(id)) : id,
      argumentsHash: values === 'none' || hashed === undefined ? undefined : json(sha256(hashed)),
      arguments: values === 'full' && hashed !== undefined ? json(argumentsOf(ctx.params, method)) : undefined,
      upstream: json(session.upstream),
    }
  }
}

/** What may be known only when the request is answered. */
function peersOf({ session, state, extra }: Context): Facts {
  const { id } = (state as { user?: { id?: unknown } }).user ?? {}
  const { remoteAddress } = extra as { remoteAddress?: unknown }
  return {
    principal: json(shortened(session.principal)),
    user: typeof id === 'number' ? json(id) : json(shortened(id)),
    remote: json(shortened(remoteAddress)),
    era: json(session.era),
    protocolVersion: json(shortened(session.protocolVersion)),
  }
}

function endingOf(response: Context, { ctx, delivered }: Asked): Ending {
  const { error, session } = response
  if (error !== undefined) {
    const { code, data } = (isObject(error) ? error : {}) as { code?: unknown; data?: unknown }
    const failure = failureOf(typeof code === 'number' ? code : undefined, data)
    if (failure.reason === 'shutting_down') return { outcome: 'closed', code: failure.code }
    // What a server that has seen it says of itself is no failure to deliver.
    return delivered ? { outcome: 'error', code: failure.code } : failure
  }
  // A result is parsed only where it may tell more than that it came.
  if (session.era === 'legacy' && ctx.method !== 'tools/call') return { outcome: 'ok' }
  const { result } = response
  if (result?.isError === true) return { outcome: 'tool_error' }
  return { outcome: result?.resultType === 'input_required' ? 'input_required' : 'ok' }
}

/** What an error tells that came instead of an answer, or as one. */
function failureOf(code: number | undefined, data: unknown): Ending & { reason?: unknown } {
  const { source, reason, phase } = (isObject(data) ? data : {}) as Record<string, unknown>
  if (source !== 'proxy') return { outcome: 'error', code }
  const isUnsent = phase === 'not_sent' && /^upstream_|^client_unreachable$|^shutting_down$/.test(String(reason))
  return { outcome: isUnsent ? 'failed-to-deliver' : 'error', code, reason }
}

function abandoned({ ctx, delivered }: Asked): Ending {
  const { reason } = ctx.signal
  if (ctx.session.signal.aborted) return { outcome: 'closed' }
  if (!(reason instanceof RpcError)) return { outcome: 'cancelled' }
  return { outcome: delivered ? 'closed' : 'failed-to-deliver', code: reason.code }
}

// --- texts ----------------------------------------------------------------------------------------------------

/** Of what a peer made up, more is not kept. */
const LONGEST = 1_000

function json(value: unknown): string | undefined {
  return value === undefined ? undefined : JSON.stringify(value)
}

function sha256(text: string | Buffer): string {
  return createHash('sha256').update(text).digest('hex')
}

function shortened(text: unknown): string | undefined {
  if (typeof text !== 'string') return undefined
  if (text.length <= LONGEST) return text
  return `${text.slice(0, LONGEST)}… (${text.length} characters, SHA-256 ${sha256(text)})`
}

/** Control, format and line separating characters: a peer could hide a line from whoever reads it on a terminal. */
const UNSEEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu

/** Escapes as JSON does: what is no white space between tokens stays the same value. */
function plain(text: string): string {
  return text.replace(UNSEEN, (it) =>
    Array.from({ length: it.length }, (_, at) => `\\u${it.charCodeAt(at).toString(16).padStart(4, '0')}`).join(''),
  )
}

const ORDER =
  'time event session exchange principal user remote from method name id argumentsHash arguments upstream era protocolVersion outcome code duration pid count torn'
const MEMBERS = ORDER.split(' ')

/** A line but for its number, `prev` and `hash`. */
function bodyOf(facts: Facts): string {
  const members = MEMBERS.flatMap((name) => (facts[name] === undefined ? [] : [`"${name}":${facts[name]}`]))
  return plain(members.join(','))
}

function hasArguments(method: string | undefined): boolean {
  return method === 'tools/call' || method === 'prompts/get'
}

function argumentsOf(params: Record<string, unknown> | undefined, method: string | undefined): unknown {
  return hasArguments(method) ? params?.arguments : params
}

/** The id and the arguments of a message, or its whole `params`, exactly as they were written. */
function textsOf(raw: string, method: string | undefined): { id?: string; hashed?: string } {
  const { id, params } = membersOf(raw, raw.indexOf('{'), ['id', 'params'])
  if (!params || !hasArguments(method)) return { id: id?.text, hashed: params?.text }
  const found = params.text.startsWith('{') ? membersOf(raw, params.start, ['arguments']) : {}
  return { id: id?.text, hashed: found.arguments?.text }
}

type Found = Record<string, { start: number; text: string } | undefined>

/** Some members of an object in a text that is known to be JSON. */
function membersOf(text: string, brace: number, wanted: string[]): Found {
  const found: Found = {}
  let at = pastSpace(text, brace + 1)
  while (at < text.length && text[at] !== '}') {
    const key = pastValue(text, at)
    const name = JSON.parse(text.slice(at, key)) as string
    const start = pastSpace(text, pastSpace(text, key) + 1)
    const end = pastValue(text, start)
    if (wanted.includes(name)) found[name] = { start, text: text.slice(start, end) }
    at = pastSpace(text, end)
    if (text[at] === ',') at = pastSpace(text, at + 1)
  }
  return found
}

function past(pattern: RegExp, text: string, at: number): number {
  pattern.lastIndex = at
  pattern.test(text)
  return pattern.lastIndex
}

function pastSpace(text: string, at: number): number {
  return past(/[ \t\r\n]*/y, text, at)
}

function pastValue(text: string, start: number): number {
  if (text[start] === '"') return pastString(text, start)
  if (text[start] !== '{' && text[start] !== '[') return past(/[^ \t\r\n,\]}]*/y, text, start)
  const mark = /["{}[\]]/g
  let depth = 0
  let at = start
  do {
    at = past(mark, text, at)
    const it = text[at - 1]
    if (it === '"') at = pastString(text, at - 1)
    else depth += it === '{' || it === '[' ? 1 : -1
  } while (depth > 0 && at > 0)
  return at
}

function pastString(text: string, quote: number): number {
  let end = quote
  let escapes: number
  do {
    end = text.indexOf('"', end + 1)
    escapes = 0
    while (text[end - 1 - escapes] === '\\') escapes++
  } while (escapes % 2 === 1)
  return end + 1
}

// --- the chain ------------------------------------------------------------------------------------------------

interface Link {
  readonly seq: number
  readonly hash: string
}

const GENESIS: Link = { seq: 0, hash: '0'.repeat(64) }
const LINE = /^\{"seq":(\d+),.*"prev":"([0-9a-f]{64})","hash":"([0-9a-f]{64})"\}$/s
/** Of `,"hash":"…"}`. */
const HASH_LENGTH = 75

function linked(last: Link, body: string): Link & { text: string } {
  const seq = last.seq + 1
  const text = `{"seq":${seq},${body},"prev":"${last.hash}"`
  const hash = sha256(`${text}}`)
  return { seq, hash, text: `${text},"hash":"${hash}"}` }
}

interface ReadLine extends Link {
  readonly prev: string
  /** What its hash should be. */
  readonly due: string
  readonly torn?: AuditRecord['torn']
}

/** Undefined where it is no whole line of a trail. */
function readLine(line: Buffer): ReadLine | undefined {
  const text = line.toString()
  const [, seq, prev, hash] = LINE.exec(text) ?? []
  if (seq === undefined || prev === undefined || hash === undefined) return undefined
  let torn: AuditRecord['torn']
  try {
    torn = (JSON.parse(text) as AuditRecord).torn
  } catch {
    return undefined
  }
  const due = sha256(Buffer.concat([line.subarray(0, -HASH_LENGTH), Buffer.from('}')]))
  return { seq: Number(seq), prev, hash, due, torn }
}

// --- the trail: what all instances over one file share --------------------------------------------------------

/** A write that takes longer is as good as none: a disk that hangs, a reader that has stopped reading. */
const PATIENCE = 2_000
/** Between two attempts to write: the first, and the longest. */
const RETRY = { first: 50, longest: 2_000 }
/** So much is written at once. */
const BATCH = 1 << 16
/** What a line has beyond its body. */
const FRAME = 180

interface Entry {
  body: string
  /** Of a line that tells how many were lost. */
  lost?: number
  /** Its line is being written, or may have been. */
  sealed?: boolean
  /** Called once: with whether it is written, or waits while the trail is in trouble. */
  done?: (isWritten: boolean) => void
  /** It is no use to tell it of trouble. */
  patient?: boolean
}

interface Line extends Link {
  text: string
  entry?: Entry
}

const trails = new Map<unknown, Trail>()

class Trail {
  readonly #key: unknown
  #settings: Settings
  #report: (text: string) => void
  #users = 0
  readonly #queue: Entry[] = []
  #bytes = 0
  #last = GENESIS
  /** Lines of which it is not known whether they are written. */
  #doubt: Line[] = []
  #torn: Buffer | undefined
  /** What is there already lacks its newline. */
  #isUnended = false
  #sink: Sink | undefined
  #opening: Promise<Sink> | undefined
  #isRunning = false
  #trouble: string | undefined
  #lost = 0
  #isLeaving = false
  #wake: (() => void) | undefined
  readonly #roomless = new Set<() => void>()
  #idle: (() => void)[] = []

  private constructor(key: unknown, settings: Settings, report: (text: string) => void) {
    this.#key = key
    this.#settings = settings
    this.#report = report
  }

  static of(settings: Settings, report: (text: string) => void): Trail {
    const key = settings.write ?? realPath(settings.file as string)
    const trail = trails.get(key) ?? new Trail(key, settings, report)
    trails.set(key, trail)
    trail.#join(settings, report)
    return trail
  }

  #join(settings: Settings, report: (text: string) => void): void {
    this.#report = report
    const isOther = JSON.stringify(settings.rotate) !== JSON.stringify(this.#settings.rotate)
    this.#settings = settings
    if (isOther) void this.#sink?.retire()
    this.#isLeaving = false
    if (++this.#users === 1) this.#push({ body: bodyOf({ ...eventNow('start'), pid: json(process.pid) }) })
  }

  async leave(): Promise<void> {
    if (--this.#users > 0) return this.flush()
    this.#push({ body: bodyOf(eventNow('stop')) })
    await this.flush()
    if (this.#users > 0) return
    trails.delete(this.#key)
    await this.#abandonSink()
  }

  /** Resolves when all is written, or cannot be. */
  async flush(): Promise<void> {
    this.#isLeaving = this.#users === 0
    this.#wake?.()
    if (this.#queue.length === 0) return
    void this.#run()
    let timer: NodeJS.Timeout | undefined
    await new Promise<void>((resolve) => {
      this.#idle.push(resolve)
      timer = setTimeout(resolve, PATIENCE * 2)
    })
    clearTimeout(timer)
    if (this.#isLeaving && this.#queue.length > 0) this.#giveUp()
  }

  /** @throws (rejects) where it cannot be opened; then its caller has left it. */
  async opened(): Promise<void> {
    try {
      await this.#opened()
    } catch (error) {
      if (--this.#users === 0) trails.delete(this.#key)
      throw error
    }
    void this.#run()
  }

  async #opened(): Promise<Sink> {
    if (this.#sink) return this.#sink
    this.#opening ??= this.#open().finally(() => {
      this.#opening = undefined
    })
    this.#sink = await this.#opening
    return this.#sink
  }

  /**
   * Resolves with whether it is written, once it is; without a signal to wait by, also when it turns out that this takes
   * too long. Rejects where the signal was aborted first.
   */
  async write(body: string, limit: number, signal?: AbortSignal): Promise<boolean> {
    while (this.#bytes >= limit) {
      if (signal === undefined) {
        this.#lose()
        return false
      }
      try {
        await until(signal, (resolve) => {
          this.#roomless.add(resolve)
          return () => this.#roomless.delete(resolve)
        })
      } catch (error) {
        this.#lose()
        throw error
      }
    }
    const entry: Entry = { body, patient: signal !== undefined }
    this.#push(entry)
    void this.#run()
    if (!signal && this.#trouble !== undefined) return false
    return until<boolean>(signal, (resolve) => {
      entry.done = resolve
      return () => {
        entry.done = undefined
      }
    })
  }

  #push(entry: Entry): void {
    this.#queue.push(entry)
    this.#bytes += entry.body.length + FRAME
  }

  #lose(): void {
    this.#lost++
    const last = this.#queue.at(-1)
    if (last?.lost !== undefined && !last.sealed) last.lost++
    else this.#push({ body: '', lost: 1 })
    this.#troubled('too much waits to be written')
  }

  #troubled(why: string): void {
    if (this.#trouble !== undefined) return
    this.#trouble = why
    this.#report(`${why}: records wait, or are lost`)
    for (const entry of this.#queue) {
      if (entry.patient) continue
      entry.done?.(false)
      entry.done = undefined
    }
  }

  async #run(): Promise<void> {
    if (this.#isRunning) return
    this.#isRunning = true
    let delay = RETRY.first
    while (this.#queue.length > 0) {
      try {
        await this.#attempt()
        delay = RETRY.first
      } catch (error) {
        this.#troubled((error as Error).message)
        await this.#abandonSink()
        if (this.#isLeaving) break
        await this.#pause(delay)
        delay = Math.min(delay * 2, RETRY.longest)
      }
    }
    this.#isRunning = false
    for (const resolve of this.#idle.splice(0)) resolve()
  }

  #pause(delay: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, delay).unref()
      this.#wake = () => {
        clearTimeout(timer)
        resolve()
      }
    })
  }

  async #abandonSink(): Promise<void> {
    const sink = this.#sink
    this.#sink = undefined
    await sink?.close().catch(() => {})
  }

  async #attempt(): Promise<void> {
    if (this.#sink && !(await this.#sink.isThere())) await this.#abandonSink()
    const sink = await this.#opened()
    const lines = this.#chain(sink.most)
    if (lines.length === 0) return this.#recovered()
    this.#doubt = lines
    const timer = setTimeout(() => this.#troubled(`a write takes longer than ${PATIENCE} ms`), PATIENCE).unref()
    try {
      await sink.write(`${this.#isUnended ? '\n' : ''}${lines.map(({ text }) => `${text}\n`).join('')}`)
    } finally {
      clearTimeout(timer)
    }
    this.#isUnended = false
    this.#confirm(lines.length)
    this.#recovered()
  }

  #chain(most: number): Line[] {
    const lines: Line[] = []
    let last = this.#last
    let bytes = 0
    const add = (body: string, entry?: Entry) => {
      const line: Line = { ...linked(last, body), entry }
      bytes += line.text.length
      last = line
      lines.push(line)
    }
    if (this.#torn) {
      // The newline that ends it is the trail's, not its own.
      const torn = this.#torn.at(-1) === NEWLINE ? this.#torn.subarray(0, -1) : this.#torn
      add(bodyOf({ ...eventNow('recovered'), torn: json({ bytes: torn.length, hash: sha256(torn) }) }))
    }
    for (const entry of this.#queue) {
      if (bytes >= most) break
      entry.sealed = true
      add(entry.lost === undefined ? entry.body : bodyOf({ ...eventNow('lost'), count: json(entry.lost) }), entry)
    }
    return lines
  }

  /** The first of the lines in doubt are written. */
  #confirm(count: number): void {
    for (const { seq, hash, entry } of this.#doubt.splice(0, count)) {
      this.#last = { seq, hash }
      this.#torn = undefined
      if (!entry) continue
      this.#queue.shift()
      this.#bytes -= entry.body.length + FRAME
      entry.done?.(true)
      entry.done = undefined
    }
    for (const resolve of [...this.#roomless]) resolve()
  }

  /** Trouble is over when all that waited is written: else it would come and go with each line. */
  #recovered(): void {
    if (this.#trouble === undefined || this.#queue.length > 0) return
    this.#trouble = undefined
    this.#report(`written again${this.#lost > 0 ? `, ${this.#lost} records were lost` : ''}`)
    this.#lost = 0
  }

  #giveUp(): void {
    const count = this.#queue.reduce((sum, { lost }) => sum + (lost ?? 1), 0)
    for (const { done } of this.#queue.splice(0)) done?.(false)
    this.#bytes = 0
    this.#doubt = []
    this.#report(`${count} records could not be written`)
  }

  /** Opens what there is to write to, and finds out how far the trail has come there. */
  async #open(): Promise<Sink> {
    const { write, rotate } = this.#settings
    if (typeof write === 'function') return callSink(write)
    if (write) return streamSink(write)
    const path = this.#key as string
    const handle = await open(path, 'a+', 0o600)
    try {
      const { isFile, last: there, torn, isUnended } = await tailOf(handle)
      this.#torn = torn.length > 0 ? torn : undefined
      this.#isUnended = isUnended
      const last = there ?? (isFile ? await lastSetAside(path) : undefined)
      const written = this.#doubt.findIndex(({ hash }) => hash === last?.hash)
      this.#settle(written)
      if (last && last.seq > this.#last.seq) this.#last = last
      if (!rotate) return fileSink(path, handle)
    } catch (error) {
      await handle.close()
      throw error
    }
    await handle.close()
    return rotatingSink(path, rotate, (text) => this.#report(text))
  }

  /** What a write that failed has left behind is known from the file alone. */
  #settle(written: number): void {
    const torn = this.#torn
    this.#confirm(written + 1)
    this.#torn = torn
    this.#doubt = []
  }
}

function eventNow(event: AuditRecord['event']): Facts {
  return { time: json(new Date().toISOString()), event: json(event) }
}

/** Resolves when `begin` says so; rejects with the reason of the signal where that is aborted before. */
function until<T = void>(
  signal: AbortSignal | undefined,
  begin: (resolve: (value: T) => void) => () => void,
): Promise<T> {
  return new Promise((resolve, reject) => {
    const abort = () => {
      end()
      reject(signal?.reason)
    }
    const end = begin((value) => {
      signal?.removeEventListener('abort', abort)
      end()
      resolve(value)
    })
    if (signal?.aborted) abort()
    else signal?.addEventListener('abort', abort)
  })
}

/** Two names of one file are one trail. */
function realPath(file: string): string {
  const path = resolve(file)
  for (const known of [path, dirname(path)]) {
    try {
      const real = realpathSync(known)
      return known === path ? real : join(real, basename(path))
    } catch {
      // It is not there yet.
    }
  }
  return path
}

// --- what the lines are written to ----------------------------------------------------------------------------

interface Sink {
  /** So many bytes at once; where they are 1, single lines. */
  readonly most: number
  write(text: string): Promise<void>
  /** Whether what is written still gets there. */
  isThere(): boolean | Promise<boolean>
  /** It is to be opened anew for the next write. */
  retire(): void
  close(): Promise<void>
}

function callSink(write: (line: string) => unknown): Sink {
  return {
    most: 1,
    write: async (text) => void (await write(text.slice(0, -1))),
    isThere: () => true,
    retire: () => {},
    close: async () => {},
  }
}

/** Their errors come with the callback, and once more as an event, which without a listener would end the process. */
const heard = new WeakSet<AuditStream>()

function streamSink(stream: AuditStream): Sink {
  if (!heard.has(stream)) stream.on('error', () => {})
  heard.add(stream)
  return {
    most: 1,
    write: (text) =>
      new Promise((resolve, reject) => {
        stream.write(text, (error) => (error ? reject(error) : resolve()))
      }),
    isThere: () => true,
    retire: () => {},
    close: async () => {},
  }
}

/** A file as it should be: other than that, somebody has moved it, or written to it. */
class Known {
  readonly #path: string
  readonly #stats: Stats
  #size: number

  constructor(path: string, stats: Stats) {
    this.#path = path
    this.#stats = stats
    this.#size = stats.size
  }

  grew(text: string | Buffer): void {
    this.#size += Buffer.byteLength(text)
  }

  async isSame(): Promise<boolean> {
    try {
      const { ino, dev, size } = await stat(this.#path)
      const isIt = ino === this.#stats.ino && dev === this.#stats.dev
      return isIt && (size === this.#size || !this.#stats.isFile())
    } catch {
      return false
    }
  }
}

async function fileSink(path: string, handle: FileHandle): Promise<Sink> {
  const known = new Known(path, await handle.stat())
  let isRetired = false
  return {
    most: BATCH,
    async write(text) {
      await handle.appendFile(text)
      known.grew(text)
    },
    isThere: () => !isRetired && known.isSame(),
    retire: () => {
      isRetired = true
    },
    close: () => handle.close(),
  }
}

async function rotatingSink(path: string, rotate: AuditRotation, warn: (text: string) => void): Promise<Sink> {
  const { size, interval, maxFiles, compress } = rotate
  const stream = createStream((time, index) => (time ? asideName(path, index ?? 1, compress) : basename(path)), {
    path: dirname(path),
    mode: 0o600,
    ...(size !== undefined && { size: typeof size === 'number' ? `${size}B` : size }),
    ...(interval !== undefined && { interval, intervalBoundary: true, initialRotation: true }),
    ...(maxFiles !== undefined && { maxFiles, history: `${basename(path)}.history` }),
    ...(compress && { compress: 'gzip' as const }),
  })
  let known: Known | undefined
  let isRetired = false
  let failure: Error | undefined
  stream.on('warning', ({ message }) => warn(message))
  stream.on('error', (error) => {
    failure = error
  })
  stream.on('rotation', () => {
    known = undefined
  })
  stream.on('open', () => {
    known = new Known(path, statSync(path))
    // The library takes a write that a full disk has cut short for a whole one.
    const { file } = stream as unknown as { file: FileHandle }
    const write = async (chunk: Buffer) => {
      const before = known
      await file.appendFile(chunk)
      before?.grew(chunk)
    }
    Object.assign(file, { write })
  })
  await new Promise<void>((resolve, reject) => {
    stream.once('open', () => resolve())
    stream.once('error', reject)
  })
  return {
    most: BATCH,
    write: (text) =>
      new Promise((resolve, reject) => {
        stream.write(text, (error) => (error ? reject(failure ?? error) : resolve()))
      }),
    isThere: () => !isRetired && !stream.destroyed && (known === undefined || known.isSame()),
    retire: () => {
      isRetired = true
    },
    close: () =>
      new Promise((resolve) => {
        if (stream.closed) return resolve()
        stream.once('close', () => resolve())
        stream.end()
      }),
  }
}

/** Such names, in order, are the files in order. */
function asideName(path: string, index: number, compress: boolean | undefined): string {
  const extension = extname(path)
  const time = new Date().toISOString().replace(/[-:.]/g, '')
  const number = String(index).padStart(3, '0')
  return `${basename(path, extension)}-${time}-${number}${extension}${compress ? '.gz' : ''}`
}

/** The files that were put aside, the oldest first. */
async function asideOf(path: string): Promise<string[]> {
  const extension = extname(path)
  const stem = `${basename(path, extension)}-`
  const isAside = (name: string) => {
    if (!name.startsWith(stem)) return false
    const rest = name.slice(stem.length).replace(/\.gz$/, '')
    return rest.endsWith(extension) && /^\d{8}T\d{9}Z-\d{3}$/.test(rest.slice(0, rest.length - extension.length))
  }
  const names = (await readdir(dirname(path)).catch(() => [])).filter(isAside).sort()
  return names.map((name) => join(dirname(path), name))
}

async function lastSetAside(path: string): Promise<Link | undefined> {
  for (const file of (await asideOf(path)).reverse()) {
    let last: Link | undefined
    for await (const { bytes } of linesOf([file])) last = readLine(bytes) ?? last
    if (last) return last
  }
  return undefined
}

const NEWLINE = 10

interface Tail {
  isFile: boolean
  last?: Link
  /** What comes after the last whole line. */
  torn: Buffer
  isUnended: boolean
}

/** How a file ends. @throws (rejects) where it is no trail. */
async function tailOf(handle: FileHandle): Promise<Tail> {
  const stats = await handle.stat()
  if (!stats.isFile()) return { isFile: false, torn: Buffer.alloc(0), isUnended: false }
  for (let length = BATCH; ; length *= 4) {
    const start = Math.max(0, stats.size - length)
    const { buffer } = await handle.read(Buffer.alloc(stats.size - start), 0, stats.size - start, start)
    const isUnended = buffer.length > 0 && buffer.at(-1) !== NEWLINE
    let end = isUnended ? buffer.length : buffer.length - 1
    while (end > 0) {
      const before = buffer.lastIndexOf(NEWLINE, end - 1)
      if (before < 0 && start > 0) break
      const last = readLine(buffer.subarray(before + 1, end))
      if (last && last.hash === last.due) return { isFile: true, last, torn: buffer.subarray(end + 1), isUnended }
      end = before
    }
    if (start > 0) continue
    const isTrail =
      buffer.length === 0 || buffer.subarray(0, 7).equals(Buffer.from('{"seq":').subarray(0, buffer.length))
    if (!isTrail) throw new Error('a file that is no audit trail')
    return { isFile: true, torn: buffer, isUnended }
  }
}

// --- verify ---------------------------------------------------------------------------------------------------

/** What a look at a trail has found. */
export type AuditVerdict =
  | {
      ok: true
      /** How many. */
      records: number
      /** Its `seq` is over 1 where older files are gone: compare its `prev` with what was kept of them. */
      first?: { seq: number; prev: string }
      /** To be kept elsewhere: with it a later look finds out whether the end is missing. */
      last?: { seq: number; hash: string }
      /** Bytes after the last newline: a crash, or a line that is being written. */
      torn?: number
    }
  | {
      ok: false
      /** Records that were found whole before. */
      records: number
      file?: string
      /** Of the first broken place, from 1. */
      line: number
      expected: string
      got: string
    }

export type AuditSource =
  /** In order, the oldest first; those whose names end in `.gz` are unpacked. */
  | { files: string | readonly string[] }
  /** Without their newlines. */
  | { lines: Iterable<string> | AsyncIterable<string> }

/**
 * Finds the first broken place of an audit trail: a line that was changed, removed, put in or moved.
 *
 * @throws (rejects) where a file cannot be read.
 * @example
 * const verdict = await verifyAudit({ files: ['audit-20260728T000000000Z-001.jsonl.gz', 'audit.jsonl'] })
 */
export async function verifyAudit(source: AuditSource): Promise<AuditVerdict> {
  const lines = 'files' in source ? linesOf([source.files].flat()) : numbered(source.lines)
  let records = 0
  let first: { seq: number; prev: string } | undefined
  let last: Link | undefined
  let debris: Place[] = []
  const broken = (place: Place, expected: string, got: string): AuditVerdict => ({
    ok: false,
    records,
    ...(place.file !== undefined && { file: place.file }),
    line: place.line,
    expected,
    got,
  })
  for await (const place of lines) {
    const record = readLine(place.bytes)
    if (!record) {
      debris.push(place)
      continue
    }
    const { seq, prev, hash, due, torn } = record
    if (hash !== due) return broken(place, `hash ${due}`, hash)
    if (torn?.hash !== debrisHash(debris)) {
      return debris[0] ? broken(debris[0], 'a record', 'a line that is none') : broken(place, 'a torn line', 'none')
    }
    last ??= seq === 1 ? GENESIS : { seq: seq - 1, hash: prev }
    if (prev !== last.hash) return broken(place, `prev ${last.hash}`, prev)
    if (seq !== last.seq + 1) return broken(place, `seq ${last.seq + 1}`, String(seq))
    first ??= { seq, prev }
    last = { seq, hash }
    debris = []
    records++
  }
  const [rest, ...more] = debris
  if (rest && (more.length > 0 || rest.isWhole)) return broken(rest, 'a record', 'a line that is none')
  return { ok: true, records, ...(first && { first }), ...(last && { last }), ...(rest && { torn: rest.bytes.length }) }
}

interface Place {
  bytes: Buffer
  file?: string
  line: number
  /** It ends in a newline. */
  isWhole: boolean
}

function debrisHash(debris: Place[]): string | undefined {
  if (debris.length === 0) return undefined
  return sha256(Buffer.concat(debris.flatMap(({ bytes }, at) => (at === 0 ? [bytes] : [Buffer.from('\n'), bytes]))))
}

async function* numbered(lines: Iterable<string> | AsyncIterable<string>): AsyncGenerator<Place> {
  let line = 0
  for await (const it of lines) yield { bytes: Buffer.from(it), line: ++line, isWhole: true }
}

function contentOf(file: string): AsyncIterable<Buffer> {
  const source = createReadStream(file)
  if (!file.endsWith('.gz')) return source
  // Whoever stops reading, or cannot, ends both; the one that is read tells why.
  return pipeline(source, createGunzip(), () => {})
}

/** As if the files were one. */
async function* linesOf(files: readonly string[]): AsyncGenerator<Place> {
  let parts: Buffer[] = []
  let begun: { file: string; line: number } | undefined
  for (const file of files) {
    let line = 1
    for await (const chunk of contentOf(file)) {
      let from = 0
      for (let end = chunk.indexOf(NEWLINE); end >= 0; end = chunk.indexOf(NEWLINE, from)) {
        const bytes = Buffer.concat([...parts, chunk.subarray(from, end)])
        yield { ...(begun ?? { file, line }), bytes, isWhole: true }
        parts = []
        begun = undefined
        from = end + 1
        line++
      }
      if (from === chunk.length) continue
      parts.push(chunk.subarray(from))
      begun ??= { file, line }
    }
  }
  if (begun) yield { ...begun, bytes: Buffer.concat(parts), isWhole: false }
}
