import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { PassThrough } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { type Application, createProxy, type Middleware, stdioListener, type Upstream } from '../../src/index.js'
import { type Account, judge, type Violation } from './checker.js'
import { Client, type ClientOptions } from './client.js'
import { FaultyHttp } from './faulty-http.js'
import { type ClientKind, emptyHistory, type Journaled } from './history.js'
import { HttpLink, type Link, StdioLink } from './links.js'
import { isReplaced, type Row, type Spell, type StagePlan } from './plan.js'
import { Random, seedOf } from './random.js'
import { ToxicProxy } from './toxic.js'

const at = (path: string) => fileURLToPath(new URL(path, import.meta.url))
const SERVER = at('faulty-stdio.mjs')
const CLI = at('../../dist/cli.js')

/** Milliseconds that a drain may take: those that hang are told so long after. */
const DRAIN = 1_000
/** Milliseconds within which everything has come to its end, on a machine that does much else. */
const BOUND = { once: 15_000, replaced: 45_000 }
/** Milliseconds that a session may be without a connection. */
const IDLE = 1_500

/** For tests of the checker: lies that it must see. */
export interface Tampering {
  middleware?: Middleware
  text?: (text: string) => string[]
  journal?: (journal: Journaled[]) => Journaled[]
  /** Milliseconds within which everything has come to its end. */
  bound?: number
  trace?: ClientOptions['trace']
}

/** Runs a stage to its end, and tells which promises were not kept. */
export async function runStage(plan: StagePlan, account: Account, tampering: Tampering = {}): Promise<Violation[]> {
  const before = resources()
  const bound = tampering.bound ?? (isReplaced(plan.row) ? BOUND.replaced : BOUND.once)
  const stage = new Stage(plan, bound, tampering)
  const violations: Violation[] = []
  try {
    await stage.open()
    await stage.perform()
    violations.push(...(await stage.rest()))
  } finally {
    await stage.close()
  }
  const journal = tampering.journal?.(stage.journal()) ?? stage.journal()
  account.add(stage.history, journal)
  const isPipe = plan.row.upstream === 'stdio' && plan.row.listener !== 'port'
  violations.push(...judge(stage.history, journal, { isCalm: plan.isCalm, cured: curedBy(plan.row), isPipe, bound }))
  if (plan.isCalm && stage.unended > 0) violations.push(leftover(`${stage.unended} sessions at the server`))
  violations.push(
    ...(await stage.survivors(journal)),
    ...(await leftOver(before, tampering.bound ?? 10_000, stage.ports)),
  )
  stage.forget()
  return violations
}

class Stage {
  readonly history = emptyHistory()
  /** Who listens where. */
  readonly ports = new Map<number, string>()
  /** Sessions of which the server was never told that they are over. */
  unended = 0
  readonly #plan: StagePlan
  readonly #bound: number
  readonly #tampering: Tampering
  readonly #directory = mkdtempSync(join(tmpdir(), 'chaos-'))
  readonly #apps = new Set<Application>()
  #server: FaultyHttp | undefined
  #near: ToxicProxy | undefined
  #far: ToxicProxy | undefined
  #port: URL | undefined

  constructor(plan: StagePlan, bound: number, tampering: Tampering) {
    this.#plan = plan
    this.#bound = bound
    this.#tampering = tampering
  }

  async open(): Promise<void> {
    const { row, seed, index } = this.#plan
    if (row.upstream !== 'stdio') {
      this.#server = new FaultyHttp()
      const target = await this.#server.listen()
      this.#far = await new ToxicProxy(target, seedOf(seed, index, 'far')).listen()
      this.ports.set(target, 'the server').set(this.#far.port, 'what is before the server')
    }
    if (row.listener !== 'port') return
    const options = { port: 0, idleTimeout: IDLE, streamTimeout: 500, keepAlive: 200 }
    const { address } = await this.#app().listen(this.#upstream(row), options)
    const target = Number(new URL(address).port)
    this.#near = await new ToxicProxy(target, seedOf(seed, index, 'near')).listen()
    this.ports.set(target, 'the listener').set(this.#near.port, 'what is before the listener')
    this.#port = new URL(`http://127.0.0.1:${this.#near.port}/mcp`)
  }

  async perform(): Promise<void> {
    for (const [number, { clients, spells }] of this.#plan.waves.entries()) {
      const weather = this.#weather(spells)
      await Promise.all(
        clients.map((plan, index) =>
          new Client(plan, {
            name: `${this.#plan.index}:${number}:${index}`,
            history: this.history,
            bound: this.#bound,
            open: (kind) => this.#connect(kind),
            tamper: this.#tampering.text,
            trace: this.#tampering.trace,
          }).run(),
        ),
      )
      await weather
    }
  }

  /** When all clients have left, the applications come to rest. */
  async rest(): Promise<Violation[]> {
    const isAtRest = ({ sessions, pending, lanes }: ReturnType<Application['stats']>) =>
      sessions + pending + lanes['client-to-server'] + lanes['server-to-client'] === 0
    return [...this.#apps].length === 0
      ? []
      : Promise.all(
          [...this.#apps].map(async (app) => {
            await until(() => isAtRest(app.stats()), this.#bound)
            return isAtRest(app.stats()) ? [] : [leftover(`in the application: ${JSON.stringify(app.stats())}`)]
          }),
        ).then((all) => all.flat())
  }

  async close(): Promise<void> {
    await Promise.all([...this.#apps].map((app) => app.close()))
    const unended = () => this.#server?.sessions ?? 0
    if (this.#plan.isCalm) await until(() => unended() === 0, 2_000)
    this.unended = unended()
    await Promise.all([this.#near?.close(), this.#far?.close(), this.#server?.close()])
  }

  journal(): Journaled[] {
    const file = this.#file
    const lines = existsSync(file) ? readFileSync(file, 'utf8').split('\n') : []
    const written = lines.filter((line) => line !== '').map((line) => JSON.parse(line) as Journaled)
    return [...written, ...(this.#server?.journal ?? [])]
  }

  /** Processes that live on. */
  async survivors(journal: Journaled[]): Promise<Violation[]> {
    const pids = journal.flatMap(({ kind, pid }) => (kind === 'start' && pid ? [pid] : []))
    await until(() => !pids.some(isAlive), 5_000)
    const alive = pids.filter(isAlive)
    for (const pid of alive) process.kill(pid, 'SIGKILL')
    return alive.map((pid) => leftover(`process ${pid}`))
  }

  forget(): void {
    rmSync(this.#directory, { recursive: true })
  }

  get #file(): string {
    return join(this.#directory, 'journal')
  }

  #app(): Application {
    const app = createProxy({ drainTimeout: DRAIN })
    app.on('error', () => {})
    app.once('close', () => setImmediate(() => this.#apps.delete(app)))
    if (this.#plan.isHeld) app.use(held(this.#plan))
    if (this.#tampering.middleware) app.use(this.#tampering.middleware)
    this.#apps.add(app)
    return app
  }

  #upstream({ upstream, restart }: Row): Upstream {
    if (upstream !== 'stdio') {
      const type = upstream === 'detect' ? undefined : upstream
      const path = upstream === 'sse' ? '/sse' : '/mcp'
      const url = `http://127.0.0.1:${this.#far?.port}${path}`
      return { url, type, timeout: 2_000, maxMessageBytes: 1 << 20, restart }
    }
    const stderr = new PassThrough().resume()
    return { command: process.execPath, args: [SERVER, this.#file], maxMessageBytes: 1 << 20, stderr, restart }
  }

  async #connect(kind: ClientKind): Promise<Link | undefined> {
    const { row } = this.#plan
    if (row.listener === 'in process') return this.#inProcess(kind)
    if (row.listener === 'command') return this.#command(kind)
    const link = new HttpLink(kind, this.#port as URL)
    return (await link.connect()) ? link : undefined
  }

  async #inProcess(kind: ClientKind): Promise<Link> {
    const stdin = new PassThrough()
    const stdout = new PassThrough()
    const app = this.#app()
    // As a process does when it ends.
    const over = new Promise<void>((resolve) => app.once('close', () => resolve())).then(() => stdout.end())
    await app.listen(this.#upstream(this.#plan.row), stdioListener({ stdin, stdout }))
    return new StdioLink(kind, stdin, stdout, over)
  }

  #command(kind: ClientKind): Link {
    const target =
      this.#plan.row.upstream === 'stdio'
        ? ['stdio', '--', process.execPath, SERVER, this.#file]
        : ['http', '--url', `http://127.0.0.1:${this.#far?.port}/mcp`]
    const [transport, ...rest] = target as [string, ...string[]]
    const { restart } = this.#plan.row
    const options = restart === undefined ? [] : ['--restart', restart]
    const child = spawn(process.execPath, [CLI, transport, ...options, ...rest], { stdio: ['pipe', 'pipe', 'ignore'] })
    const over = once(child, 'exit')
    return new StdioLink(kind, child.stdin, child.stdout, over)
  }

  async #weather(spells: Spell[]): Promise<void> {
    let now = 0
    for (const { side, from, to, toxic } of spells) {
      const proxy = side === 'client' ? this.#near : this.#far
      await sleep(from - now)
      this.#tampering.trace?.('', '!', `${side}: ${JSON.stringify(toxic)}`)
      await proxy?.set(toxic)
      await sleep(to - from)
      await proxy?.set()
      this.#tampering.trace?.('', '!', `${side}: well`)
      now = to
    }
  }
}

/** A session that an HTTP server has forgotten may be forgotten again before its turn: that it is told. */
function curedBy(row: Row): string[] {
  if (!isReplaced(row)) return []
  const once = row.upstream === 'http' || row.upstream === 'detect'
  return once ? ['upstream_exited'] : ['upstream_exited', 'upstream_session_lost']
}

/** Holds some messages for a moment; what comes behind them must not overtake them. */
function held({ seed, index }: StagePlan): Middleware {
  const random = new Random(seedOf(seed, index, 'held'))
  return async function hold(_ctx, next) {
    if (random.chance(0.2)) await sleep(random.int(0, 20))
    return next()
  }
}

// --- what is left over ----------------------------------------------------------------------------------------

interface Resources {
  files: number
  active: Map<string, number>
}

function resources(): Resources {
  const active = new Map<string, number>()
  for (const name of process.getActiveResourcesInfo()) active.set(name, (active.get(name) ?? 0) + 1)
  const files = existsSync('/proc/self/fd') ? readdirSync('/proc/self/fd').length : 0
  return { files, active }
}

/** What holds the process, or a descriptor, that did not before. */
async function leftOver(before: Resources, patience: number, ports: Map<number, string>): Promise<Violation[]> {
  const surplus = () => {
    const now = resources()
    const more = [...now.active].filter(([name, count]) => count > (before.active.get(name) ?? 0) && name !== 'Timeout')
    const timers = (now.active.get('Timeout') ?? 0) - (before.active.get('Timeout') ?? 0)
    // One is that of whoever waits here.
    if (timers > 1) more.push(['Timeout', timers])
    return { files: now.files - before.files, more }
  }
  const isClean = () => surplus().files <= 0 && surplus().more.length === 0
  await until(isClean, patience)
  const { files, more } = surplus()
  return isClean()
    ? []
    : [leftover(`descriptors: ${files}, resources: ${JSON.stringify(more)}, sockets: ${sockets(ports).join(', ')}`)]
}

/** Whose the sockets are that there are, for whoever looks for a leak. */
function sockets(ports: Map<number, string>): string[] {
  const { _getActiveHandles: handles } = process as unknown as { _getActiveHandles(): unknown[] }
  return handles.call(process).flatMap((it) => {
    if (!(it instanceof Socket) || it.remotePort === undefined) return []
    const { localPort = 0, remotePort, readable, writable, writableLength } = it
    const [side, name] = ports.has(remotePort) ? ['to', ports.get(remotePort)] : ['of', ports.get(localPort)]
    const state = JSON.stringify({ readable, writable, writableLength, isPaused: it.isPaused() })
    return [`${side} ${name ?? `${localPort} to ${remotePort}`} ${state}`]
  })
}

function leftover(detail: string): Violation {
  return { rule: 'left over', detail }
}

async function until(condition: () => boolean, milliseconds: number): Promise<void> {
  const end = performance.now() + milliseconds
  while (!condition() && performance.now() < end) await sleep(10)
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch {
    return false
  }
}
