import { closeSync, createWriteStream, fstatSync, openSync, readSync, type WriteStream } from 'node:fs'
import { resolve } from 'node:path'
import {
  type Application,
  type Context,
  type Definition,
  define,
  glob,
  type Middleware,
  rewriteText,
  type Session,
} from 'open-mcp-proxy'

export interface RecordMask {
  /**
   * Names of members whose values are masked, beside the known ones: globs, upper and lower case alike, `-` as good as
   * `_`. @default none
   */
  fields?: readonly string[]
}

export interface RecordOptions {
  /**
   * Where the lines go: a path. What is there is kept and added to; a file that is made can be read by its owner alone.
   * One file holds as many sessions as come. Needed where there is no `write`. @default none
   */
  file?: string
  /**
   * Puts `[masked]` in the place of what looks like a secret: values of members with names like `authorization`,
   * `password`, `api_key`, `secret`, `token` or `*_token`, and in any text what looks like a token (`Bearer …`, `sk-…`,
   * `ghp_…`, `AKIA…`, a JWT, a private key, a URL's password). `false` writes all as it is. @default true
   */
  mask?: boolean | RecordMask
  /** Takes each line, without its newline; the message waits for what it returns. Instead of `file`. @default none */
  write?: (line: string) => void | Promise<void>
}

/** The first line of each session. */
export interface RecordedSession {
  type: 'session'
  /** Of this format. */
  version: 1
  session: string
  /** ISO 8601, when its first message came. */
  time: string
  upstream: string
  /** Where the first message tells it. */
  protocolVersion?: string
}

/** A line per message. */
export interface RecordedMessage {
  type: 'message'
  session: string
  /** From 1, in the order in which the session's messages came to the place. */
  seq: number
  /** Milliseconds since the session's first message, with fractions. */
  time: number
  from: 'client' | 'server'
  /** Of a server's notification or request: the id of the client's request on whose HTTP stream it came. */
  related?: string | number
  /** The last member, with the bytes that it came with. */
  message: unknown
}

/** What stands in the place of a secret. */
const MASK = '[masked]'
/** Bytes that wait for the disk before messages wait, too. */
const MAX_WAITING = 1 << 20

/**
 * Writes the whole traffic, as it is at its place, in both directions, as JSON lines that `replay` can answer from.
 * Bytes stay as they are, but for secrets and line breaks. HTTP headers are not written. A disk that is slow holds
 * messages up; one that fails is reported once, and the traffic goes on unrecorded.
 *
 * @throws `TypeError` where an option cannot be understood; `listen` rejects where the file cannot be opened.
 * @example createProxy().use(record({ file: 'session.jsonl' }))
 */
export function record(options: RecordOptions): Middleware & Definition<Application> {
  const mask = maskOf(options)
  const sink = sinkOf(options)
  return define<object, Application>(
    { name: 'record', role: 'observe', start: (app) => sink.open(app), close: () => sink.close() },
    function record(ctx, next) {
      const ready = sink.write(linesOf(ctx, sink.sessions, mask))
      return ready ? ready.then(next) : next()
    },
  )
}

function maskOf({ mask = true }: RecordOptions): Masker | undefined {
  if (typeof mask === 'boolean') return mask ? new Masker([]) : undefined
  const { fields = [] } = mask ?? {}
  if (mask === null || typeof mask !== 'object' || !isTexts(fields)) {
    throw new TypeError('record: expected mask true, false or { fields: [NAME, …] }, got something else')
  }
  return new Masker(fields)
}

function isTexts(value: unknown): value is string[] {
  return Array.isArray(value) && value.every((it) => typeof it === 'string' && it !== '')
}

// --- lines ------------------------------------------------------------------------------------------------------

/** How far the lines of each session have come. */
type Sessions = WeakMap<Session, { seq: number; since: number }>

function linesOf(ctx: Context, sessions: Sessions, mask: Masker | undefined): string[] {
  const { session, timestamp, from, extra } = ctx
  const lines: string[] = []
  let known = sessions.get(session)
  if (!known) {
    known = { seq: 0, since: timestamp }
    sessions.set(session, known)
    const { id, upstream, protocolVersion } = session
    const time = new Date(timestamp).toISOString()
    const head: RecordedSession = { type: 'session', version: 1, session: id, time, upstream, protocolVersion }
    lines.push(JSON.stringify(head))
  }
  const text = textOf(ctx)
  const time = Math.round((timestamp - known.since) * 1_000) / 1_000
  const related = from === 'server' && ctx.kind !== 'response' ? extra.relatedRequestId : undefined
  const head = JSON.stringify({ type: 'message', session: session.id, seq: ++known.seq, time, from, related })
  lines.push(`${head.slice(0, -1)},"message":${(mask?.masked(text) ?? text).replace(/[\r\n]/g, ' ')}}`)
  return lines
}

/** Its answer has the id under which it was sent on, where two requests of the same id are under way. */
function textOf({ kind, id, request, text }: Context): string {
  const isAlias = kind === 'response' && request?.id !== undefined && request.id !== id
  return isAlias ? rewriteText(text, { ...JSON.parse(text), id: request.id }) : text
}

// --- secrets ----------------------------------------------------------------------------------------------------

const FIELDS = [
  'authorization',
  'proxy_authorization',
  'bearer',
  '{,set_}cookie',
  'credential{,s}',
  'passphrase',
  'passwd',
  'pwd',
  '{,*_}{password,secret,token}',
  '{access,auth,bearer,id,refresh,session}token',
  '{,*_}api{,_}key',
  '{,*_}{access,account,private,secret}{,_}key{,_id}',
  'clientsecret',
]
/** What is under these describes values, and holds none: a parameter that is called `password` keeps its schema. */
const SCHEMAS = new Set(['inputSchema', 'outputSchema', 'requestedSchema'])
/** What goes before a secret is kept. */
const TOKENS = new RegExp(
  [
    // What comes first says no at once where white space goes on for long.
    String.raw`(?=[\w.~+/=-])(?<=\bBearer\s+)[\w.~+/=-]{6,}`,
    String.raw`\b(?:sk-|glpat-|xox[abeoprs]-)[\w-]{10,}`,
    String.raw`\b(?:gh[opsru]|github_pat|npm|[rs]k_(?:live|test))_\w{10,}`,
    String.raw`\b(?:AKIA|ASIA)[A-Z0-9]{16}\b`,
    String.raw`\bAIza[\w-]{35}`,
    // Looked for once in each word, however often it says eyJ.
    String.raw`(?<![\w-])(?=[\w-]+\.[\w-]{5,}\.)(?:[\w-]*?-)?eyJ[\w-]{5,}\.[\w-]{5,}\.[\w-]*`,
    String.raw`-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)`,
    String.raw`(?<=[?&](?:access_token|api_?key|key|password|secret|sig|signature|token)=)[^&#\s"']+`,
    String.raw`(?<=:\/\/[^/\s:@]{0,256}:)[^/\s@]+(?=@)`,
  ].join('|'),
  'gi',
)

/** Names whose answer is remembered; peers may have any number of them. */
const MAX_NAMES = 1_000

class Masker {
  readonly #fits: (name: string) => boolean
  readonly #known = new Map<string, boolean>()

  constructor(fields: readonly string[]) {
    this.#fits = glob(...FIELDS, ...fields.map((it) => it.replaceAll('-', '_').toLowerCase()))
  }

  #isSecret(name: string): boolean {
    let known = this.#known.get(name)
    if (known === undefined) {
      known = this.#fits(name.replace(/[-./\s]/g, '_').toLowerCase())
      if (this.#known.size >= MAX_NAMES) this.#known.clear()
      this.#known.set(name, known)
    }
    return known
  }

  /** A JSON text without what looks like a secret; the rest of it keeps its bytes. */
  masked(text: string): string {
    const value: unknown = JSON.parse(text)
    const masked = this.#value(value, false)
    return masked === value ? text : rewriteText(text, masked)
  }

  /** The very value where there is no secret in it. */
  #value(value: unknown, isSchema: boolean): unknown {
    if (typeof value === 'string') return this.#text(value)
    if (typeof value !== 'object' || value === null) return value
    const entries = Object.entries(value).map(([key, it]) => [key, this.#member(key, it, isSchema)] as const)
    if (entries.every(([key, it]) => it === (value as Record<string, unknown>)[key])) return value
    return Array.isArray(value) ? entries.map(([, it]) => it) : Object.fromEntries(entries)
  }

  #member(key: string, value: unknown, isSchema: boolean): unknown {
    const isSecret = !isSchema && this.#isSecret(key)
    if (!isSecret) return this.#value(value, isSchema || SCHEMAS.has(key))
    return value === null || typeof value === 'boolean' || value === '' ? value : MASK
  }

  /** A text that is JSON itself is looked into. */
  #text(text: string): string {
    const inner = /^\s*[[{]/.test(text) && isJson(text) ? this.#inside(text) : text
    return inner.replace(TOKENS, MASK)
  }

  /** What nests too deep to be looked into is not shown. */
  #inside(text: string): string {
    try {
      return this.masked(text)
    } catch (error) {
      if (error instanceof RangeError) return MASK
      throw error
    }
  }
}

function isJson(text: string): boolean {
  try {
    JSON.parse(text)
    return true
  } catch {
    return false
  }
}

// --- where lines go ---------------------------------------------------------------------------------------------

interface Sink {
  readonly sessions: Sessions
  open(app?: Application): void
  /** A promise where whoever writes has to wait. */
  write(lines: string[]): Promise<void> | undefined
  close(): Promise<void> | undefined
}

function sinkOf({ file, write }: RecordOptions): Sink {
  if (typeof write === 'function' && file === undefined) return new FunctionSink(write)
  if (typeof file === 'string' && file !== '' && write === undefined) return new FileSink(resolve(file))
  const got = file !== undefined && write !== undefined ? 'both' : JSON.stringify(file ?? write)
  throw new TypeError(`record: expected file, a path, or write, a function, got ${got}`)
}

class FunctionSink implements Sink {
  readonly sessions: Sessions = new WeakMap()
  readonly #write: (line: string) => void | Promise<void>
  /** What was not taken yet. */
  #last: Promise<void> | undefined

  constructor(write: (line: string) => void | Promise<void>) {
    this.#write = write
  }

  open(): void {}

  write(lines: string[]): Promise<void> | undefined {
    for (const line of lines) {
      const taken = this.#last ? this.#last.then(() => this.#write(line)) : this.#write(line)
      if (!taken) continue
      const last = Promise.resolve(taken).finally(() => {
        if (this.#last === last) this.#last = undefined
      })
      this.#last = last
    }
    return this.#last
  }

  close(): Promise<void> | undefined {
    return this.#last
  }
}

/** The files of this process that are open: a line that replaces another one goes on in the same file. */
const files = new Map<string, OpenFile>()

class FileSink implements Sink {
  readonly #path: string
  #file: OpenFile | undefined
  #app: Application | undefined

  constructor(path: string) {
    this.#path = path
  }

  get sessions(): Sessions {
    return this.#opened().sessions
  }

  open(app?: Application): void {
    this.#app = app
    this.#opened()
  }

  #opened(): OpenFile {
    if (this.#file) return this.#file
    const file = files.get(this.#path) ?? new OpenFile(this.#path)
    files.set(this.#path, file)
    file.users.add(this)
    this.#file = file
    return file
  }

  write(lines: string[]): Promise<void> | undefined {
    return this.#opened().write(`${lines.join('\n')}\n`)
  }

  /** Somebody has to hear that the recording has ended, once. */
  complain(error: Error): void {
    if (this.#app?.listenerCount('error')) this.#app.emit('error', error)
    else process.stderr.write(`open-mcp-proxy: ${error.message}\n`)
  }

  async close(): Promise<void> {
    const file = this.#file
    this.#file = undefined
    if (!file) return
    file.users.delete(this)
    if (file.users.size > 0) return
    if (files.get(this.#path) === file) files.delete(this.#path)
    await file.close()
  }
}

class OpenFile {
  readonly sessions: Sessions = new WeakMap()
  readonly users = new Set<FileSink>()
  readonly #stream: WriteStream
  #drained: Promise<void> | undefined
  #isOver = false

  /** @throws where it cannot be opened. */
  constructor(path: string) {
    let fd: number | undefined
    try {
      fd = openSync(path, 'a+', 0o600)
      const isTorn = !endsLine(fd)
      this.#stream = createWriteStream(path, { fd, highWaterMark: MAX_WAITING })
      if (isTorn) this.#stream.write('\n')
    } catch (error) {
      if (fd !== undefined) closeSync(fd)
      throw new Error(`record: could not open ${path}: ${(error as NodeJS.ErrnoException).code}`, { cause: error })
    }
    this.#stream.on('error', (error: NodeJS.ErrnoException) => {
      this.#isOver = true
      const [user] = this.users
      user?.complain(new Error(`record: nothing more is written to ${path}: ${error.code}`, { cause: error }))
    })
  }

  write(text: string): Promise<void> | undefined {
    if (this.#isOver || this.#stream.write(text)) return undefined
    this.#drained ??= new Promise((resolve) => {
      const done = () => {
        this.#drained = undefined
        this.#stream.off('drain', done).off('close', done)
        resolve()
      }
      this.#stream.on('drain', done).on('close', done)
    })
    return this.#drained
  }

  close(): Promise<void> {
    return new Promise((resolve) => {
      if (this.#stream.closed) resolve()
      this.#stream.on('close', resolve).end()
    })
  }
}

/** Whether the last line of a file is whole: who wrote it may have been killed. */
function endsLine(fd: number): boolean {
  const { size } = fstatSync(fd)
  const last = Buffer.alloc(1)
  return size === 0 || readSync(fd, last, 0, 1, size - 1) === 0 || last[0] === 0x0a
}
