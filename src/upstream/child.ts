import { spawn } from 'node:child_process'
import { stat } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { proxyError, type RpcError } from '../error.js'

export const isWindows = process.platform === 'win32'

const INHERITED = isWindows
  ? [
      'APPDATA',
      'HOMEDRIVE',
      'HOMEPATH',
      'LOCALAPPDATA',
      'PATH',
      'PROCESSOR_ARCHITECTURE',
      'PROGRAMFILES',
      'SYSTEMDRIVE',
      'SYSTEMROOT',
      'TEMP',
      'USERNAME',
      'USERPROFILE',
    ]
  : ['HOME', 'LOGNAME', 'PATH', 'SHELL', 'TERM', 'USER']

/** What the specification's SDK lets a child inherit; a value that begins with "()" is a shell function. */
export function inheritedEnv(): Record<string, string> {
  const env: Record<string, string> = {}
  for (const name of INHERITED) {
    const value = process.env[name]
    if (value !== undefined && !value.startsWith('()')) env[name] = value
  }
  return env
}

/** Milliseconds. */
const GROUP_POLL = 20

/** A child and its helpers, and how they are made to end. */
export class ProcessGroup {
  readonly #pid: number
  readonly #onKill: () => void
  #timer: NodeJS.Timeout | undefined
  #killed = false
  #gone = false

  constructor(pid: number, onKill: () => void) {
    this.#pid = pid
    this.#onKill = onKill
  }

  /** Whether it was told to end. */
  get isEnding(): boolean {
    return this.#timer !== undefined || this.#killed
  }

  /** SIGTERM, and SIGKILL after `grace` milliseconds. */
  terminate(grace: number): void {
    if (this.#gone) return
    clearTimeout(this.#timer)
    signalGroup(this.#pid, 'SIGTERM')
    this.#timer = setTimeout(() => this.kill(), grace)
  }

  kill(): void {
    if (this.#gone) return
    this.#killed = true
    signalGroup(this.#pid, 'SIGKILL')
    this.#onKill()
  }

  /** Ends what is left once the child itself is gone. Resolves when nothing is. */
  async reap(grace: number): Promise<void> {
    while (!this.#killed && signalGroup(this.#pid, 0)) {
      if (!this.isEnding) this.terminate(grace)
      await sleep(GROUP_POLL)
    }
    clearTimeout(this.#timer)
    this.#gone = true
  }
}

/** Returns whether anybody was there to get the signal; 0 only asks. */
function signalGroup(pid: number, signal: NodeJS.Signals | 0): boolean {
  if (isWindows) {
    if (signal !== 0) spawn('taskkill', ['/pid', `${pid}`, '/T', '/F'], { stdio: 'ignore' }).on('error', () => {})
    return false
  }
  try {
    return process.kill(-pid, signal)
  } catch {
    return false
  }
}

/** What may be otherwise when tried again. */
const TRANSIENT = new Set(['EAGAIN', 'EMFILE', 'ENFILE', 'ENOMEM'])

const startFaults: Record<string, string> = {
  ENOENT: 'the command was not found',
  EACCES: 'the command may not be run',
  EPERM: 'the command may not be run',
}

/** Node says ENOENT of the command also where the working directory is the one that is missing. */
export async function unreachable(error: unknown, command: string, cwd: string | undefined): Promise<RpcError> {
  const code = (error as NodeJS.ErrnoException).code ?? 'unknown error'
  const inDirectory =
    cwd === undefined ||
    (await stat(cwd)
      .then((found) => found.isDirectory())
      .catch(() => false))
  const detail = inDirectory ? (startFaults[code] ?? 'the command could not be run') : 'no such working directory'
  // Not the error itself: it carries the arguments, which may hold secrets.
  const cause = new Error(`spawn ${command}${inDirectory ? '' : ` in ${cwd}`}: ${code}`)
  return proxyError('upstream_unreachable', { detail, cause, retryable: TRANSIENT.has(code) })
}
