import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { connect, createServer } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Channel, type Piped, SseChannel, StdioChannel, StreamableChannel } from './channel.js'
import { family, isAlive } from './proc.js'
import { Session } from './session.js'
import type { Samples } from './stats.js'
import { built, type Link, type Subject } from './subjects.js'

const SERVER = built('server.js')
/** Milliseconds for a process to listen, or to end by itself. */
const PATIENCE = { start: 20_000, end: 5_000 }
/** The end of what it has said on stderr is told with its fault. */
const SAID = 400

const started = new Set<number>()
process.once('exit', () => started.forEach(kill))
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1))

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // It has ended by itself.
  }
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as { port: number }
  await new Promise((resolve) => server.close(resolve))
  return port
}

function isListening(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1')
    socket.once('connect', () => resolve(true)).once('error', () => resolve(false))
    socket.once('connect', () => socket.destroy())
  })
}

/** One subject on one link, with the server behind it, and what was measured of it. */
export class Contestant {
  readonly subject: Subject
  readonly link: Link
  readonly samples = new Map<string, Samples>()
  /** What it did wrong, after which it is measured no more. */
  error: string | undefined
  sessions: Session[] = []
  #process: ChildProcess | undefined
  #server: ChildProcess | undefined
  #port = 0
  #said = ''

  constructor(subject: Subject, link: Link) {
    this.subject = subject
    this.link = link
  }

  add(metric: string, round: number, value: number): void {
    const samples = this.samples.get(metric) ?? new Map()
    this.samples.set(metric, samples.set(round, value))
  }

  /** Starts the server, where it is one of its own, and the subject. */
  async start(): Promise<void> {
    const { link } = this
    const isListener = link.startsWith('listener')
    const behind = link === 'stdio' || isListener ? undefined : link
    const serverPort = await freePort()
    if (behind) {
      this.#server = this.#spawn([process.execPath, SERVER, behind, String(serverPort)], true)
      await this.#listens(this.#server, serverPort)
    }
    this.#port = isListener ? await freePort() : 0
    const url = `http://127.0.0.1:${serverPort}/${behind === 'sse' ? 'sse' : 'mcp'}`
    const where = { server: [process.execPath, SERVER, 'stdio'], url, port: this.#port }
    this.#process = this.#spawn(this.subject.command(link, where)!, isListener)
    if (isListener) await this.#listens(this.#process, this.#port)
  }

  async open(): Promise<Session> {
    const index = this.sessions.length
    const session = new Session(this.#channel(), { index, isOrdered: this.link === 'stdio' })
    this.sessions.push(session)
    await session.initialize(this.link === 'sse' || this.link === 'listener-sse' ? '2024-11-05' : '2025-06-18')
    return session
  }

  /** Its processes, and those of the servers that it has started. */
  processes(): { own: number[]; others: number[] } {
    return family(this.#process?.pid ?? 0, SERVER)
  }

  /** Runs what may find it faulty: then it is ended and measured no more. */
  async try(run: () => Promise<void>): Promise<void> {
    if (this.error !== undefined) return
    try {
      await run()
    } catch (error) {
      this.error = [(error as Error).message, this.#said.trim()].filter(Boolean).join('\n')
      await this.stop()
    }
  }

  /** As clients end a server: by the end of its stdin; a listener by a signal. */
  async stop(): Promise<void> {
    const all = this.processes()
    const it = this.#process
    if (it?.exitCode === null && it.signalCode === null) {
      const ended = once(it, 'exit')
      const patience = () => sleep(PATIENCE.end, undefined, { ref: false })
      await Promise.race([Promise.all(this.sessions.map((session) => session.close())), patience()])
      if (this.link.startsWith('listener')) it.kill()
      await Promise.race([ended, patience()])
    }
    this.sessions = []
    for (const pid of [...all.own, ...all.others].filter(isAlive)) kill(pid)
    it?.kill('SIGKILL')
    this.#server?.kill('SIGKILL')
    this.#process = this.#server = undefined
  }

  #channel(): Channel {
    if (this.link === 'listener-sse') return new SseChannel(this.#port)
    if (this.link === 'listener') return new StreamableChannel(this.#port)
    return new StdioChannel(this.#process as Piped)
  }

  #spawn([command = '', ...args]: readonly string[], isAlone: boolean): ChildProcess {
    const ends = isAlone ? 'ignore' : 'pipe'
    const it = spawn(command, args, { stdio: [ends, ends, 'pipe'] })
    this.#said = ''
    it.stderr?.on('data', (chunk) => {
      this.#said = (this.#said + chunk).slice(-SAID)
    })
    started.add(it.pid!)
    it.once('exit', () => started.delete(it.pid!))
    return it
  }

  async #listens(it: ChildProcess, port: number): Promise<void> {
    const until = performance.now() + PATIENCE.start
    while (!(await isListening(port))) {
      if (it.exitCode !== null) throw new Error(`it ended with ${it.exitCode} before it listened`)
      if (performance.now() > until) throw new Error('it never listened')
      await sleep(3)
    }
  }
}
