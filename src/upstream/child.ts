import { spawn } from 'node:child_process'
import { stat } from 'node:fs/promises'
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

/** Returns whether anybody was there to get the signal; 0 only asks. */
export function signalGroup(pid: number, signal: NodeJS.Signals | 0): boolean {
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
