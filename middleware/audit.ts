import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { createWriteStream, promises as fs } from 'node:fs'
import { basename, dirname, join, resolve } from 'node:path'
import { promises as streams, type Writable } from 'node:stream'
import { setTimeout as pause } from 'node:timers/promises'
import { gunzipSync } from 'node:zlib'
import { type Context, define, glob, type Middleware, type Next, proxyError } from 'open-mcp-proxy'
import { createStream } from 'rotating-file-stream'

export interface AuditOptions {
  /** In a directory that exists; made with mode 0600, only ever appended to, by one process at a time. */
  file: string
  /**
   * While nothing can be written, or more than `maxQueueBytes` wait. `block`: requests and answers wait. `deny`: requests get
   * -31005, answers pass. `drop`: all pass, and none ever waits for the disk. @default 'block'
   */
  onFull?: 'block' | 'deny' | 'drop'
  /** Patterns (`glob`) of the methods of requests, of both ends. @default ['*'] */
  methods?: string[]
  /** Of the arguments of a tool or prompt, as this place sees them: their JSON's SHA-256, or all of it. @default 'hash' */
  arguments?: 'none' | 'hash' | 'full'
  /** When the file is put aside, as `FILE.TIME-NNN`: at a size, and at each interval (`1d`: at midnight). @default never */
  rotate?: { size?: string; interval?: string; maxFiles?: number; compress?: boolean }
  /** Bytes of records that may wait to be written. @default 1048576 */
  maxQueueBytes?: number
}

/**
 * Writes an audit trail as JSON lines: each request before it is handed on, so that no crash of this process hides that it
 * was asked, and its one outcome before whoever asked hears of it; but nothing is synced to the disk, with `deny` answers do
 * not wait, with `drop` no message does. After a write that failed a record may stand twice.
 * `prev` is the hash of the line before, 64 zeros at first; `hash` the SHA-256 of the line without `,"hash":"…"`: none can be
 * changed, removed or put in unnoticed, but by whoever writes all that follows anew, or cuts off the end: keep the last hash
 * elsewhere. Before a line with `torn` stands what a crash, or a full disk, has left of one; before one with `lost` so many
 * are missing. What a peer wrote is cut at 1000 characters. First on the line it sees what the client sees.
 * @throws `TypeError` where an option cannot be understood; `listen` rejects where the file cannot be opened.
 * @example createProxy().use(audit({ file: '/var/log/mcp/audit.jsonl', rotate: { interval: '1d', compress: true } }))
 */
export function audit(options: AuditOptions): Middleware {
  check({ file: null, ...(options as object) })
  const isRecorded = patternsOf(options.methods)
  const desk = new Desk(options)
  return define({ name: 'audit', role: 'observe', start: desk.start, close: desk.close }, function audit(ctx, next) {
    if (ctx.kind === 'response') return desk.response(ctx, next)
    return ctx.kind === 'request' && isRecorded(ctx.method as string) ? desk.request(ctx, next) : next()
  })
}

function patternsOf(methods: readonly string[] = ['*']): (method: string) => boolean {
  try {
    return glob(...methods)
  } catch (error) {
    throw new TypeError(`audit: ${(error as Error).message.replace(/^expected/, 'expected methods to have')}`)
  }
}

const ROTATION = /^\{(("size":"\d+[BKMG]"|"interval":"\d+[smhdM]"|"maxFiles":[1-9]\d*|"compress":(true|false)),?)+\}$/
/** What the options are to be, and how this looks as JSON. */
const EXPECTED = new Map<string, [string, RegExp]>([
  ['file', ['a path', /^".+"$/]],
  ['onFull', ['"block", "deny" or "drop"', /^"(block|deny|drop)"$/]],
  ['methods', ['a list of patterns', /^\[(".*")?\]$/]],
  ['arguments', ['"none", "hash" or "full"', /^"(none|hash|full)"$/]],
  ['rotate', ['like { "size": "10M", "interval": "1d", "maxFiles": 9, "compress": true }', ROTATION]],
  ['maxQueueBytes', ['a positive number', /^[1-9]\d*$/]],
])

function check(options: object): void {
  for (const [name, value] of Object.entries(options)) {
    const [expected, pattern] = EXPECTED.get(name) ?? ['left out', /^$/]
    const got = JSON.stringify(value) ?? typeof value
    if (value === undefined || pattern.test(got)) continue
    throw new TypeError(`audit: expected ${name} to be ${expected}, got ${got}`)
  }
}

/** One instance, which follows the exchanges. */
class Desk {
  readonly #settings
  readonly #trail: Trail
  /** Requests without an outcome. */
  readonly #asked = new Map<string, Context>()

  constructor({ onFull = 'block', maxQueueBytes = 1 << 20, ...options }: AuditOptions) {
    this.#settings = { onFull, maxQueueBytes, kept: options.arguments ?? 'hash' }
    const path = resolve(options.file)
    this.#trail = trails.get(path) ?? new Trail(path)
    this.#trail.rotate = options.rotate
    trails.set(path, this.#trail)
  }

  readonly start = async () => {
    await this.#trail.reopen().catch(({ message }: Error) => {
      throw new Error(`audit: expected a file that can be written, got ${message}`)
    })
    this.#trail.users.add(this)
  }

  readonly close = async () => {
    this.#trail.users.delete(this)
    if (this.#trail.users.size === 0) await this.#trail.end()
  }

  async request(ctx: Context, next: Next): Promise<void> {
    const { signal, key } = ctx
    // The signal of its session is aborted after its own.
    const giveUp = () => queueMicrotask(() => void this.#end(key))
    this.#asked.set(key, ctx)
    signal.addEventListener('abort', giveUp)
    if (signal.aborted) giveUp()
    const { kept, onFull } = this.#settings
    const isKept = kept !== 'none' && (ctx.method === 'tools/call' || ctx.method === 'prompts/get')
    const json = isKept ? JSON.stringify(ctx.params?.arguments) : undefined
    const own = kept === 'full' ? { arguments: json && ctx.params?.arguments } : { argumentsHash: json && sha256(json) }
    const written = this.#record(bodyOf(ctx, 'request', ctx.timestamp, own), signal)
    if (onFull === 'drop' || (await written)) return next()
    this.#asked.delete(key)
    throw proxyError('overloaded', { detail: 'the audit trail takes no more' })
  }

  async response(ctx: Context, next: Next): Promise<void> {
    const key = this.#asked.size > 0 && ctx.request?.key
    if (!key || !this.#asked.has(key)) return next()
    const written = this.#end(key, ctx)
    if (this.#settings.onFull === 'block') await written
    return next()
  }

  async #end(key: string, response?: Context): Promise<void> {
    const ctx = this.#asked.get(key)
    if (!ctx || !this.#asked.delete(key)) return
    const time = response?.timestamp ?? performance.timeOrigin + performance.now()
    const ending = response ? outcomeOf(response) : { outcome: ctx.session.signal.aborted ? 'closed' : 'cancelled' }
    const duration = Math.round((time - ctx.timestamp) * 100) / 100
    await this.#record(bodyOf(ctx, 'outcome', time, { ...ending, duration }), response?.signal)
  }

  /** Resolves with whether it is written; with `block` and a signal, which ends the wait, once it is. */
  async #record(body: string, signal?: AbortSignal): Promise<boolean> {
    this.#trail.users.add(this)
    while (!(await this.#trail.write(body, this.#settings.maxQueueBytes))) {
      if (this.#settings.onFull !== 'block' || !signal) {
        this.#trail.lost++
        return false
      }
      await pause(2 * REST, undefined, { signal, ref: false })
    }
    return true
  }
}

function outcomeOf(response: Context): object {
  const { error, method, session } = response
  const code = Number.isInteger(error?.code) ? error?.code : undefined
  // -31008: the proxy's own, of a session that ends.
  if (error !== undefined) return code === -31008 ? { outcome: 'closed' } : { outcome: 'error', code }
  // A result is parsed only where it may tell more than that it came.
  const result = session.era === 'legacy' && method !== 'tools/call' ? undefined : response.result
  if (result?.isError === true) return { outcome: 'tool_error' }
  return { outcome: result?.resultType === 'input_required' ? 'input_required' : 'ok' }
}

/** In ASCII: a peer could hide a line, or a part of one, from whoever reads it on a terminal. */
const escaped = (unit: string) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`
const cut = <T>(it: T) => (typeof it === 'string' && it.length > 1000 ? `${it.slice(0, 1000)}…` : it)
const sha256 = (text: string) => createHash('sha256').update(text).digest('hex')

/** A line without its braces, `seq`, `prev` and `hash`. */
function bodyOf(ctx: Context, event: 'request' | 'outcome', time: number, more: object): string {
  const { session, from, method, name, id, state } = ctx
  const { principal, upstream, protocolVersion } = session
  const { user } = state as { user?: { id?: unknown } }
  const who = { session: session.id, principal: cut(principal), user: cut(user?.id), from }
  const what = { method: cut(method), name: cut(name), id: cut(id), upstream, protocolVersion: cut(protocolVersion) }
  const text = JSON.stringify({ time: new Date(time).toISOString(), event, ...who, ...what, ...more })
  return text.slice(1, -1).replace(/[^ -~]/g, escaped)
}

type Link = typeof GENESIS
const GENESIS = { seq: 0, hash: '0'.repeat(64) }
/** Milliseconds after a write that failed in which no other is tried. */
const REST = 500
const trails = new Map<string, Trail>()

/** What all instances over one file share: it makes records links of the chain, and writes them. */
class Trail {
  readonly users = new Set<object>()
  rotate: AuditOptions['rotate']
  /** Records that were given up, and that no line tells of. */
  lost = 0
  #isTorn = false
  /** The last line that was written, and the last of those that are on their way. */
  #written = GENESIS
  #last = GENESIS
  #stream: Promise<Writable> | undefined
  #ended: Promise<unknown> | undefined
  #restsUntil = Number.NEGATIVE_INFINITY
  #isToldOf = false

  constructor(readonly path: string) {}

  async reopen(): Promise<void> {
    void this.end()
    this.#stream = this.#open()
    await this.#stream
  }

  async end(): Promise<void> {
    this.#ended = this.#stream?.then((it) => streams.finished(it.end())).catch(() => {}) ?? this.#ended
    this.#stream = undefined
    await this.#ended
  }

  /** Resolves with whether it is written; never rejects. */
  async write(body: string, limit: number): Promise<boolean> {
    if (performance.now() < this.#restsUntil) return false
    this.#stream ??= this.#open()
    const stream = this.#stream
    let lost = 0
    try {
      const writable = await stream
      if (writable.writableLength > limit) return this.#tell(`more than ${limit} bytes wait to be written`)
      lost = this.lost
      const marks = `${this.#isTorn ? '"torn":true,' : ''}${lost > 0 ? `"lost":${lost},` : ''}`
      const seq = this.#last.seq + 1
      const line = `{"seq":${seq},${marks}${body},"prev":"${this.#last.hash}"`
      const link = { seq, hash: sha256(`${line}}`) }
      this.lost = 0
      this.#last = link
      this.#isTorn = false
      const text = `${line},"hash":"${link.hash}"}\n`
      await new Promise<void>((done, fail) => writable.write(text, (error) => (error ? fail(error) : done())))
      this.#written = link
      if (writable.writableLength === 0) this.#isToldOf = false
      return true
    } catch (error) {
      this.lost += lost
      if (stream === this.#stream) void this.end()
      this.#restsUntil = performance.now() + REST
      return this.#tell((error as Error).message)
    }
  }

  #tell(incident: string): false {
    if (!this.#isToldOf) process.emitWarning(`${incident}: records wait, or are lost`, 'AuditWarning')
    this.#isToldOf = true
    return false
  }

  async #open(): Promise<Writable> {
    await this.#ended
    const { last = (await lastAside(this.path)) ?? this.#written, isTorn } = await endOf(this.path)
    // What a write that failed has left behind is known from the file alone.
    this.lost += Math.max(0, this.#written.seq - last.seq)
    this.#written = last
    this.#last = last
    this.#isTorn = isTorn
    const stream = this.rotate ? rotating(this.path, this.rotate) : createWriteStream(this.path, { flags: 'a' })
    await once(stream, 'open')
    return stream.on('error', () => {})
  }
}

function rotating(path: string, { compress, interval, ...rotate }: NonNullable<AuditOptions['rotate']>): Writable {
  const time = () => new Date().toISOString().replace(/[-:.]/g, '')
  const aside = (index = 1) => `.${time()}-${String(index).padStart(3, '0')}${compress ? '.gz' : ''}`
  const nameOf = (isAside: unknown, index?: number) => basename(path) + (isAside ? aside(index) : '')
  const when = interval && { interval, intervalBoundary: true, initialRotation: true }
  const how = { path: dirname(path), mode: 0o600, ...rotate, ...when, ...(compress && { compress: 'gzip' as const }) }
  return createStream(nameOf, how)
}

/** Where the file is new, the chain goes on from the newest that was put aside. */
async function lastAside(path: string): Promise<Link | undefined> {
  const isAside = (it: string) => it.startsWith(`${basename(path)}.`) && /\.\d{8}T\d{9}Z-\d{3}(\.gz)?$/.test(it)
  const newest = (await fs.readdir(dirname(path))).filter(isAside).sort().at(-1)
  const bytes = newest && (await fs.readFile(join(dirname(path), newest)))
  return bytes ? lastIn(String(newest?.endsWith('.gz') ? gunzipSync(bytes) : bytes)).last : undefined
}

/** How a file ends, whose last line is ended where it is not. */
async function endOf(path: string): Promise<{ last?: Link; isTorn: boolean }> {
  const handle = await fs.open(path, 'a+', 0o600)
  try {
    const { size } = await handle.stat()
    for (let length = 1 << 16; ; length *= 8) {
      const start = Math.max(0, size - length)
      const text = String((await handle.read(Buffer.alloc(size - start), 0, size - start, start)).buffer)
      const end = lastIn(text)
      if (!end.last && start > 0) continue
      if (!end.last && text !== '' && !text.startsWith('{"seq":')) throw new Error('a file that is no audit trail')
      if (text !== '' && !text.endsWith('\n')) await handle.appendFile('\n')
      return end
    }
  } finally {
    await handle.close()
  }
}

/** The last whole line, and whether there is anything after it. */
function lastIn(text: string): { last?: Link; isTorn: boolean } {
  const lines = text.split('\n')
  const at = lines.findLastIndex((line) => read(line)?.isWhole)
  return { last: read(lines[at] ?? ''), isTorn: lines.slice(at + 1).some((line) => line !== '') }
}

function read(line: string) {
  const [, seq, torn, prev, end = '', hash = ''] =
    /^\{"seq":(\d+),("torn":true,)?.*,"prev":"(\w{64})"(,"hash":"(\w{64})"\})$/.exec(line) ?? []
  const due = sha256(`${line.slice(0, -end.length)}}`)
  return prev ? { seq: Number(seq), isTorn: torn !== undefined, prev, hash, due, isWhole: hash === due } : undefined
}

/**
 * Finds the first line, from 1, of an audit trail that was changed, removed, put in or moved, other than a last one that a
 * crash has torn. Files that were put aside come first; the oldest may be gone. `hash` is the last one, which is to be kept.
 * @example const verdict = await verifyAudit(readline.createInterface(createReadStream('audit.jsonl')))
 */
export async function verifyAudit(lines: Iterable<string> | AsyncIterable<string>) {
  let [at, records, torn] = [0, 0, 0]
  let last: Link | undefined
  for await (const line of lines) {
    at++
    const it = read(line)
    if (!it) torn ||= at
    if (!it) continue
    const { seq, hash } = last ?? (it.seq === 1 ? GENESIS : { seq: it.seq - 1, hash: it.prev })
    const expected = `seq ${seq + 1}, torn ${torn > 0}, prev ${hash}, hash ${it.due}`
    const got = `seq ${it.seq}, torn ${it.isTorn}, prev ${it.prev}, hash ${it.hash}`
    if (expected !== got) return { ok: false as const, line: torn || at, expected, got }
    last = it
    records++
    torn = 0
  }
  if (torn > 0 && torn < at) return { ok: false as const, line: torn, expected: 'a record', got: 'none' }
  return { ok: true as const, records, hash: last?.hash }
}
