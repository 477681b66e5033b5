import type { ChildProcess } from 'node:child_process'
import type { Writable } from 'node:stream'
import spawn from 'cross-spawn'
import { type Phase, proxyError, type RpcError, reasons } from '../error.js'
import { LineReader, LineWriter, looksLikeMessage, MAX_LINE_BYTES } from '../lines.js'
import { LogRelay, printable } from '../log.js'
import { type CloseOptions, type Frame, FrameError, type Wire } from '../wire.js'
import { inheritedEnv, isWindows, ProcessGroup, unreachable } from './child.js'

export interface StdioOptions {
  /** The program to run, without a shell: a path, or a name that is looked up in `PATH`. */
  command: string
  args?: readonly string[]
  /**
   * Variables for the child, added to the few it inherits by default: on POSIX `HOME LOGNAME PATH SHELL TERM USER`,
   * as the MCP SDK has it. An undefined value takes one away.
   */
  env?: Readonly<Record<string, string | undefined>>
  /** @default the working directory of this process */
  cwd?: string
  /**
   * Bytes that a message from the child may have. A larger one is skipped; where twice as many come without a
   * newline the child is killed.
   * @default 67108864
   */
  maxMessageBytes?: number
  /**
   * Where the child's stderr goes, in whole lines.
   * @default process.stderr
   */
  stderr?: Writable
}

/** Milliseconds. */
export interface StdioTiming {
  /** From the end of the child to that of its output, which a grandchild may hold open. */
  drain: number
  /** From the end of the child's stdin to SIGTERM. */
  term: number
  /** From that SIGTERM to SIGKILL. */
  kill: number
  /** From the SIGTERM of an urgent close to SIGKILL: our own parent kills us 2 s after its SIGTERM. */
  terminate: number
}

const TIMING: StdioTiming = { drain: 250, term: 2000, kill: 2000, terminate: 1000 }
const WARN_INTERVAL = 60_000
const STDERR_TAIL = 2048
const EXCERPT = 80

/**
 * A server in a child process that speaks over its stdin and stdout (specification 2025-11-25, basic/transports,
 * "stdio"). The child leads a process group of its own, so that its helpers end with it.
 *
 * `start()` rejects with -31009 where the program cannot be run, with -31008 behind `close()`. `send()` rejects with
 * -31001: `not_sent` where the child was already gone, `sent` where it went while the frame was under way. `onclose`
 * has no reason where the end was asked for; else a -31001 whose `cause` holds the last of the child's stderr.
 */
export class StdioUpstream implements Wire {
  onframe?: Wire['onframe']
  onclose?: Wire['onclose']
  onerror?: Wire['onerror']

  readonly #options: StdioOptions
  readonly #timing: StdioTiming
  readonly #reader: LineReader
  readonly #log: LogRelay
  #child: ChildProcess | undefined
  #writer: LineWriter | undefined
  #started: Promise<void> | undefined
  #closing: Promise<void> | undefined
  #group: ProcessGroup | undefined
  #paused = false
  #finished = false
  #hurried = false
  #fault: string | undefined
  #tail = Buffer.alloc(0)
  #skipped = 0
  #warnedAt = Number.NEGATIVE_INFINITY
  #termTimer: NodeJS.Timeout | undefined
  #drainTimer: NodeJS.Timeout | undefined
  #tellGone!: () => void
  readonly #gone = new Promise<void>((resolve) => {
    this.#tellGone = resolve
  })

  /** @param timing for tests: the delays between the steps of an end */
  constructor(options: StdioOptions, timing: Partial<StdioTiming> = {}) {
    this.#options = options
    this.#timing = { ...TIMING, ...timing }
    this.#log = new LogRelay(options.stderr ?? process.stderr)
    const maxBytes = options.maxMessageBytes ?? MAX_LINE_BYTES
    this.#reader = new LineReader({
      maxBytes,
      onLine: (line) => (looksLikeMessage(line) ? this.onframe?.(line) : this.#skip(line)),
      onOversize: (head) => {
        if (!looksLikeMessage(head)) return this.#skip(head)
        const { code, message } = reasons.too_large
        this.onerror?.(new FrameError(code, `${message}: over ${maxBytes} bytes from the upstream`, head))
      },
      onRunaway: () => {
        this.#fault = `over ${2 * maxBytes} bytes without a newline`
        this.#group?.kill()
      },
    })
  }

  get pid(): number | undefined {
    return this.#child?.pid
  }

  /** Null while the child runs, and where a signal ended it. */
  get exitCode(): number | null {
    return this.#child?.exitCode ?? null
  }

  get signal(): NodeJS.Signals | null {
    return this.#child?.signalCode ?? null
  }

  /** How many lines that are no messages the child wrote to its stdout. */
  get skippedLines(): number {
    return this.#skipped
  }

  get #alive(): boolean {
    return this.exitCode === null && this.signal === null
  }

  start(): Promise<void> {
    if (this.#closing && !this.#started) return Promise.reject(proxyError('shutting_down'))
    this.#started ??= new Promise((resolve, reject) => {
      const { command, args = [], cwd, env } = this.#options
      const refuse = (error: unknown) => void unreachable(error, command, cwd).then(reject)
      try {
        const child = spawn(command, args, {
          cwd,
          env: { ...inheritedEnv(), ...env },
          stdio: ['pipe', 'pipe', 'pipe'],
          detached: !isWindows,
          windowsHide: true,
        })
        child.once('error', refuse)
        child.once('spawn', () => {
          child.off('error', refuse)
          this.#attach(child)
          resolve()
        })
      } catch (error) {
        refuse(error)
      }
    })
    return this.#started
  }

  send(frame: Frame): Promise<void> | undefined {
    const sent = this.#writer?.open
      ? this.#writer.write(frame)?.catch(() => Promise.reject(this.#exited('sent')))
      : Promise.reject(this.#exited('not_sent'))
    sent?.catch(() => {})
    return sent
  }

  pause(): void {
    this.#paused = true
    if (this.#alive && !this.#closing) this.#child?.stdout?.pause()
  }

  resume(): void {
    this.#paused = false
    this.#child?.stdout?.resume()
  }

  /**
   * Ends the child's stdin; SIGTERM to its group 2 s later, SIGKILL after 2 s more. Resolves when none is left.
   * Urgent: SIGTERM at once, SIGKILL after 1 s; urgent again: SIGKILL.
   */
  close({ urgent = false }: CloseOptions = {}): Promise<void> {
    this.#closing ??= this.#close()
    if (urgent) void this.#hurry()
    return this.#closing
  }

  async #hurry(): Promise<void> {
    await this.#started?.catch(() => {})
    if (this.#hurried) this.#group?.kill()
    else this.#group?.terminate(this.#timing.terminate)
    this.#hurried = true
  }

  async #close(): Promise<void> {
    await this.#started?.catch(() => {})
    if (!this.#child) return
    this.#writer?.end()
    this.#child.stdout?.resume()
    if (!this.#finished) this.#termTimer = setTimeout(() => this.#terminate(), this.#timing.term)
    await this.#gone
  }

  #attach(child: ChildProcess): void {
    const { stdin, stdout, stderr } = child
    this.#child = child
    // Nobody is to wait for a child that survives even SIGKILL.
    this.#group = new ProcessGroup(child.pid!, () => this.#drain())
    this.#writer = new LineWriter(stdin!, () => this.#broken('it closed its stdin'))
    if (this.#paused) stdout!.pause()
    stdout!.on('data', (chunk: Buffer) => this.#reader.push(chunk))
    stdout!.on('end', () => this.#broken('it closed its stdout'))
    stdout!.on('error', (error) => this.onerror?.(error))
    stderr!.on('data', (chunk: Buffer) => {
      this.#tail = Buffer.concat([this.#tail, chunk.subarray(-STDERR_TAIL)]).subarray(-STDERR_TAIL)
      this.#log.push(chunk)
    })
    stderr!.on('error', (error) => this.onerror?.(error))
    child.on('error', (error) => this.onerror?.(error))
    // Node itself resumes what is paused of a child that ended.
    child.on('exit', () => this.#drain())
    child.on('close', () => this.#finish())
  }

  /** A child that does not listen, or cannot answer, would leave requests waiting: it is ended unless it just ends. */
  #broken(fault: string): void {
    if (this.#closing || !this.#alive) return
    const timer = setTimeout(() => {
      if (!this.#alive || this.#group?.isEnding) return
      this.#fault = fault
      this.#terminate()
    }, this.#timing.drain)
    timer.unref()
  }

  #terminate(): void {
    if (!this.#group?.isEnding) this.#group?.terminate(this.#timing.kill)
  }

  /** The immediate lets one more poll of the event loop read what the child wrote, however late the timer is. */
  #drain(): void {
    this.#drainTimer ??= setTimeout(() => setImmediate(() => this.#finish()), this.#timing.drain)
  }

  #finish(): void {
    if (this.#finished) return
    this.#finished = true
    clearTimeout(this.#drainTimer)
    clearTimeout(this.#termTimer)
    for (const stream of [this.#child!.stdin, this.#child!.stdout, this.#child!.stderr]) stream?.destroy()
    this.#child!.unref()
    const lost = this.#reader.end()
    this.#log.end()
    if (lost > 0) this.onerror?.(new Error(`${lost} bytes of an incomplete line from the upstream were discarded`))
    void this.#group!.reap(this.#timing.kill).then(this.#tellGone)
    this.onclose?.(this.#closing ? undefined : this.#exited('sent'))
  }

  #exited(phase: Phase): RpcError {
    const { exitCode, signal } = this
    const end = signal !== null ? `signal ${signal}` : exitCode !== null ? `exit code ${exitCode}` : undefined
    const detail = this.#fault ?? end ?? (this.#closing ? 'it is being closed' : 'its stdin is closed')
    const cause = new Error(`${this.#options.command}: ${end ?? detail}; stderr: ${printable(this.#tail) || '(empty)'}`)
    return proxyError('upstream_exited', { phase, detail, cause })
  }

  #skip(line: Buffer): void {
    this.#skipped++
    if (performance.now() - this.#warnedAt < WARN_INTERVAL) return
    this.#warnedAt = performance.now()
    const excerpt = printable(line.subarray(0, EXCERPT))
    this.onerror?.(
      new Error(`The upstream wrote to its stdout what is not JSON-RPC (${this.#skipped} lines): ${excerpt}`),
    )
  }
}
