import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { createWriteStream } from 'node:fs'
import { open, readdir, readFile } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import type { Writable } from 'node:stream'
import { finished } from 'node:stream/promises'
import { setTimeout as pause } from 'node:timers/promises'
import { gunzipSync } from 'node:zlib'
import { type Application, type Context, define, glob, type Middleware, type Next, proxyError } from 'open-mcp-proxy'
import { createStream } from 'rotating-file-stream'

export interface AuditOptions {
  /** In a directory that exists; made with mode 0600, only ever appended to, by one process at a time. */
  file: string
  /**
   * What becomes of a request while nothing can be written, or more than `maxQueueBytes` wait. `block`: it waits, and so
   * does an answer. `deny`: it gets -31005, answers pass. `drop`: all pass, and none ever waits for the disk. @default 'block'
   */
  onFull?: 'block' | 'deny' | 'drop'
  /** Patterns (`glob`) of the methods of requests, of both ends. @default ['*'] */
  methods?: string[]
  /**
   * Of a tool's or prompt's arguments, as this place sees them: nothing, the SHA-256 of their `JSON.stringify`, or
   * themselves, which may be secret. @default 'hash'
   */
  arguments?: 'none' | 'hash' | 'full'
  /**
   * When the file is put aside, as `FILE.TIME-NNN`: once it has a `size` (`10M`), at each `interval` (`1d`: at midnight).
   * `maxFiles` are kept, or all; `compress` packs them with gzip. @default never
   */
  rotate?: { size?: string; interval?: string; maxFiles?: number; compress?: boolean }
  /** Bytes of records that may wait to be written. @default 1048576 */
  maxQueueBytes?: number
}

/**
 * Writes an audit trail as JSON lines: each request before it is handed on, so that no crash of this process hides that it
 * was asked, and its one outcome before whoever asked hears of it. (With `deny` answers, with `drop` requests too, do not
 * wait for their lines.) Nothing is synced to the disk. After a write that failed a record may stand twice.
 *
 * Members, where they apply: `seq` counts from 1, over all files; `torn`: a crash or a full disk has left a part of a line
 * before this one; `lost`: so many records could not be written; `time`, `event`, `session`, `principal`, `user`
 * (`ctx.state.user.id`), `from`, `method`, `name`, `id` (what a peer wrote is cut at 1000 characters), `upstream`,
 * `protocolVersion`, `argumentsHash`, `arguments`; of an outcome `outcome`, the error's `code`, `duration` in milliseconds;
 * `prev`, the hash of the line before; `hash`, the SHA-256 of the line without `,"hash":"…"`. So no line can be changed,
 * removed or put in unnoticed, but by whoever writes all that follows anew, or cuts off the end: keep the last hash
 * elsewhere now and then. First on the line of middleware it sees what the client sees.
 *
 * @throws `TypeError` where an option cannot be understood; `listen` rejects where the file cannot be opened.
 * @example createProxy().use(audit({ file: '/var/log/mcp/audit.jsonl', rotate: { interval: '1d', compress: true } }))
 */
export function audit(options: AuditOptions): Middleware {
  check({ file: null, ...(options as object) })
  check(options.rotate ?? {}, 'rotate.')
  const isRecorded = glob(...(options.methods ?? ['*']))
  const desk = new Desk(options)
  return define({ role: 'observe', start: desk.start, close: desk.close }, function audit(ctx, next) {
    if (ctx.kind === 'response') return desk.response(ctx, next)
    return ctx.kind === 'request' && isRecorded(ctx.method as string) ? desk.request(ctx, next) : next()
  })
}

/** What the options are to be, and how this looks as JSON. */
const EXPECTED: Record<string, [string, RegExp]> = {
  file: ['a path', /^".+"$/],
  onFull: ['"block", "deny" or "drop"', /^"(block|deny|drop)"$/],
  methods: ['a list of patterns', /^\[(".*)?\]$/],
  arguments: ['"none", "hash" or "full"', /^"(none|hash|full)"$/],
  rotate: ['an object', /^\{/],
  'rotate.size': ['like "10M"', /^"[1-9]\d*[BKMG]"$/],
  'rotate.interval': ['like "1d"', /^"[1-9]\d*[smhdM]"$/],
  'rotate.maxFiles': ['a positive number', /^[1-9]\d*$/],
  'rotate.compress': ['true or false', /^(true|false)$/],
  maxQueueBytes: ['a positive number', /^[1-9]\d*$/],
}

function check(options: object, prefix = ''): void {
  for (const [key, value] of Object.entries(options)) {
    const name = prefix + key
    const got = JSON.stringify(value) ?? typeof value
    const [expected, pattern] = Object.entries(EXPECTED).find(([it]) => it === name)?.[1] ?? ['left out', /^undefined$/]
    if (value !== undefined && !pattern.test(got)) {
      throw new TypeError(`audit: expected ${name} to be ${expected}, got ${got}`)
    }
  }
}

type Ending = { outcome: string; code?: number }

/** One instance, which follows the exchanges. */
class Desk {
  /** Requests without an outcome. */
  readonly #asked = new Map<string, { ctx: Context; forget: () => void }>()
  #app: Application | undefined
  #joined: Trail | undefined

  constructor(readonly options: AuditOptions) {}

  readonly start = async (app: Application) => {
    this.#app = app
    await this.#trail.ready().catch(async (error: Error) => {
      await this.close()
      throw new Error(`audit: expected a file that can be written, got ${error.message}`)
    })
  }

  readonly close = async () => {
    const trail = this.#joined
    this.#joined = undefined
    await trail?.leave()
  }

  get #trail(): Trail {
    this.#joined ??= Trail.join(this.options, (text) => {
      if (this.#app && this.#app.listenerCount('error') > 0) this.#app.emit('error', new Error(text))
      else process.emitWarning(text)
    })
    return this.#joined
  }

  async request(ctx: Context, next: Next): Promise<void> {
    const { signal, key, timestamp } = ctx
    // Whether it was the session that ended shows only when its own signal was aborted, too.
    const outcome = () => (ctx.session.signal.aborted ? 'closed' : 'cancelled')
    const giveUp = () => queueMicrotask(() => void this.#end(key, { outcome: outcome() }))
    this.#asked.set(key, { ctx, forget: () => signal.removeEventListener('abort', giveUp) })
    signal.addEventListener('abort', giveUp)
    if (signal.aborted) giveUp()
    const written = this.#record(bodyOf(ctx, 'request', timestamp, argumentsOf(ctx, this.options.arguments)), signal)
    if (this.options.onFull === 'drop' || (await written)) return next()
    const error = proxyError('overloaded', { detail: 'the audit trail takes no more' })
    void this.#end(key, { outcome: 'error', code: error.code })
    throw error
  }

  async response(ctx: Context, next: Next): Promise<void> {
    const key = this.#asked.size > 0 && ctx.request?.key
    if (!key || !this.#asked.has(key)) return next()
    const written = this.#end(key, outcomeOf(ctx), ctx)
    if ((this.options.onFull ?? 'block') === 'block') await written
    return next()
  }

  async #end(key: string, ending: Ending, response?: Context): Promise<void> {
    const asked = this.#asked.get(key)
    if (!asked || !this.#asked.delete(key)) return
    asked.forget()
    const time = response?.timestamp ?? performance.timeOrigin + performance.now()
    const duration = Math.round((time - asked.ctx.timestamp) * 100) / 100
    await this.#record(bodyOf(asked.ctx, 'outcome', time, { ...ending, duration }), response?.signal)
  }

  /** Resolves with whether it is written; with `block` and a signal, which ends the wait, once it is. */
  async #record(body: string, signal?: AbortSignal): Promise<boolean> {
    const { onFull = 'block', maxQueueBytes = 1 << 20 } = this.options
    const trail = this.#trail
    while (!(await trail.write(body, maxQueueBytes))) {
      if (onFull !== 'block' || !signal) {
        trail.lost++
        return false
      }
      await pause(2 * REST, undefined, { signal, ref: false })
    }
    return true
  }
}

function outcomeOf(response: Context): Ending {
  const { error } = response
  if (error !== undefined) return { outcome: 'error', code: Number.isInteger(error?.code) ? error.code : undefined }
  // A result is parsed only where it may tell more than that it came.
  if (response.session.era === 'legacy' && response.method !== 'tools/call') return { outcome: 'ok' }
  const { result } = response
  if (result?.isError === true) return { outcome: 'tool_error' }
  return { outcome: result?.resultType === 'input_required' ? 'input_required' : 'ok' }
}

function argumentsOf(ctx: Context, kept: AuditOptions['arguments'] = 'hash'): object {
  if (kept === 'none' || (ctx.method !== 'tools/call' && ctx.method !== 'prompts/get')) return {}
  const values = ctx.params?.arguments
  if (kept === 'full' || values === undefined) return { arguments: values }
  return { argumentsHash: sha256(JSON.stringify(values)) }
}

/** Control, format and line separating characters: a peer could hide a line from whoever reads it on a terminal. */
const UNSEEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu
const escaped = (it: string) =>
  it.replace(/[\s\S]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`)
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
  return text.slice(1, -1).replace(UNSEEN, escaped)
}

/** A line, as the next one has to know it. */
type Link = { seq: number; hash: string }

const GENESIS: Link = { seq: 0, hash: '0'.repeat(64) }
/** Milliseconds after a write that failed in which no other is tried. */
const REST = 500

/** What all instances over one file share: it makes records links of the chain, and writes them. */
class Trail {
  static readonly #all = new Map<string, Trail>()
  /** Records that were given up, and that no line tells of. */
  lost = 0
  #isTorn = false
  /** The last line that was written, and the last of those that are on their way. */
  #written = GENESIS
  #last = GENESIS
  #waiting = 0
  #stream: Promise<Writable> | undefined
  #ended: Promise<unknown> | undefined
  #restsUntil = 0
  #isToldOf = false
  #users = 0

  private constructor(
    readonly path: string,
    readonly rotate: AuditOptions['rotate'],
    readonly report: (text: string) => void,
  ) {}

  static join({ file, rotate }: AuditOptions, report: (text: string) => void): Trail {
    const path = resolve(file)
    const trail = Trail.#all.get(path) ?? new Trail(path, rotate, report)
    Trail.#all.set(path, trail)
    trail.#users++
    return trail
  }

  async leave(): Promise<void> {
    if (--this.#users > 0) return
    await this.#end()
    if (this.#users === 0 && Trail.#all.delete(this.path) && this.lost > 0) {
      this.report(`audit: ${this.lost} records are lost`)
    }
  }

  ready(): Promise<Writable> {
    this.#stream ??= this.#open()
    return this.#stream
  }

  #end(): Promise<unknown> | undefined {
    this.#ended = this.#stream?.then((it) => finished(it.end())).catch(() => {})
    this.#stream = undefined
    return this.#ended
  }

  /** Resolves with whether it is written; never rejects. */
  async write(body: string, limit: number): Promise<boolean> {
    const bytes = Buffer.byteLength(body)
    let stream: Promise<Writable> | undefined
    this.#waiting += bytes
    try {
      if (Date.now() < this.#restsUntil) return false
      if (this.#waiting - bytes > limit) throw new Error(`more than ${limit} bytes wait to be written`)
      stream = this.ready()
      await this.#append(await stream, body)
      if (this.#waiting === bytes) this.#isToldOf = false
      return true
    } catch (error) {
      if (stream && stream === this.#stream) {
        this.#restsUntil = Date.now() + REST
        this.#last = this.#written
        void this.#end()
      }
      if (!this.#isToldOf) this.report(`audit: ${(error as Error).message}: records wait, or are lost`)
      this.#isToldOf = true
      return false
    } finally {
      this.#waiting -= bytes
    }
  }

  #append(stream: Writable, body: string): Promise<void> {
    const { lost } = this
    const marks = `${this.#isTorn ? '"torn":true,' : ''}${lost > 0 ? `"lost":${lost},` : ''}`
    const seq = this.#last.seq + 1
    const line = `{"seq":${seq},${marks}${body},"prev":"${this.#last.hash}"`
    const hash = sha256(`${line}}`)
    this.#last = { seq, hash }
    this.#isTorn = false
    this.lost = 0
    return new Promise((resolve, reject) =>
      stream.write(`${line},"hash":"${hash}"}\n`, (error) => {
        if (!error) this.#written = { seq, hash }
        else this.lost += lost
        return error ? reject(error) : resolve()
      }),
    )
  }

  async #open(): Promise<Writable> {
    await this.#ended
    const { path, rotate } = this
    const { last = await lastAside(path), isTorn } = await endOf(path)
    // What a write that failed has left behind is known from the file alone.
    if (last && last.seq > this.#written.seq) this.#written = last
    this.#last = this.#written
    this.#isTorn = isTorn
    const stream = rotate ? rotating(path, rotate) : createWriteStream(path, { flags: 'a', mode: 0o600 })
    await once(stream, 'open')
    return stream.on('error', () => {})
  }
}

function rotating(path: string, { compress, interval, ...rotate }: NonNullable<AuditOptions['rotate']>): Writable {
  const time = () => new Date().toISOString().replace(/[-:.]/g, '')
  const aside = (index = 1) => `.${time()}-${String(index).padStart(3, '0')}${compress ? '.gz' : ''}`
  return createStream((isAside, index) => basename(path) + (isAside ? aside(index) : ''), {
    path: dirname(path),
    mode: 0o600,
    ...rotate,
    ...(interval && { interval, intervalBoundary: true, initialRotation: true }),
    ...(compress && { compress: 'gzip' }),
  })
}

/** Where the file is new, the chain goes on from the newest that was put aside. */
async function lastAside(path: string): Promise<Link | undefined> {
  const isAside = (it: string) => it.startsWith(`${basename(path)}.`) && /\.\d{8}T\d{9}Z-\d{3}(\.gz)?$/.test(it)
  const newest = (await readdir(dirname(path))).filter(isAside).sort().at(-1)
  const bytes = newest && (await readFile(join(dirname(path), newest)))
  return bytes ? lastIn(String(newest?.endsWith('.gz') ? gunzipSync(bytes) : bytes)).last : undefined
}

/** How a file ends, whose last line is ended where it is not. */
async function endOf(path: string): Promise<{ last?: Link; isTorn: boolean }> {
  const handle = await open(path, 'a+', 0o600)
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
  let isTorn = false
  for (const line of lines.reverse()) {
    const last = read(line)
    if (last && last.hash === last.due) return { last, isTorn }
    isTorn ||= line !== ''
  }
  return { isTorn }
}

const LINE = /^\{"seq":(\d+),("torn":true,)?.*,"prev":"([0-9a-f]{64})"(,"hash":"([0-9a-f]{64})"\})$/

/** With the hash that is due to it. Undefined where it is no whole line. */
function read(line: string) {
  const [, seq, torn, prev, end = '', hash] = LINE.exec(line) ?? []
  if (prev === undefined || hash === undefined) return undefined
  return { seq: Number(seq), isTorn: torn !== undefined, prev, hash, due: sha256(`${line.slice(0, -end.length)}}`) }
}

/**
 * Finds the first line, from 1, of an audit trail that was changed, removed, put in or moved. A last line that a crash has
 * torn is none of these. Files are read in order, those that were put aside first. Keep the `hash`, which is the last.
 *
 * @example const verdict = await verifyAudit(readline.createInterface(createReadStream('audit.jsonl')))
 */
export async function verifyAudit(
  lines: Iterable<string> | AsyncIterable<string>,
): Promise<{ ok: true; records: number; hash?: string } | { ok: false; line: number; expected: string }> {
  let [at, records, torn] = [0, 0, 0]
  let last: Link | undefined
  for await (const line of lines) {
    at++
    const it = read(line)
    if (!it) torn ||= at
    if (!it) continue
    // Older files may be gone.
    const { seq, hash } = last ?? (it.seq === 1 ? GENESIS : { seq: it.seq - 1, hash: it.prev })
    const expected = `seq ${seq + 1}, prev ${hash}, hash ${it.due}`
    if (expected !== `seq ${it.seq}, prev ${it.prev}, hash ${it.hash}`) return { ok: false, line: at, expected }
    if (it.isTorn !== torn > 0) return { ok: false, line: torn || at, expected: torn ? 'a record' : 'a torn line' }
    last = it
    records++
    torn = 0
  }
  if (torn > 0 && torn < at) return { ok: false, line: torn, expected: 'a record' }
  return { ok: true, records, hash: last?.hash }
}
