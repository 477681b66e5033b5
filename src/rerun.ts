import type { Application } from './application.js'
import type { Level } from './config.js'
import { messageOf, RpcError } from './error.js'
import type { HttpOptions } from './listener/index.js'
import { moduleUrl } from './load.js'
import { printable } from './log.js'
import { hide, OK, SIGNALS, say, serve, UNAVAILABLE, used, withCause } from './serve.js'
import type { Upstream, UpstreamFactory } from './upstream/index.js'
import { parseSeconds, parseServer, secretsOf, type UrlFlags, UsageError } from './values.js'

/** Exit code where the server said something else than was recorded. */
const DIFFERENT = 1
/** Characters of a value that a line shows. */
const SHOWN = 200

export interface ReplayCommandOptions extends UrlFlags {
  match?: 'strict' | 'call'
  session?: string
  ignore?: string[]
  answerTimeout: string
  use?: string[]
  logLevel?: Level
  exitWithParent?: boolean
}

/** What the command asks of the middleware that it is made of. */
interface Replay {
  readRecording(file: string, session?: string | number): Promise<unknown>
  replay(options: { file: string; session?: string | number; match?: string }): UpstreamFactory
  rerun(options: {
    file: string
    session?: string | number
    upstream: Upstream
    ignore?: string[]
    timeout: number
    signal: AbortSignal
  }): Promise<Difference[]>
}

interface Difference {
  line: number
  method: string
  name?: string
  path: string
  expected: unknown
  came: unknown
}

/**
 * Plays a recording: without a server to the client on stdin and stdout (or those on a port), else to that server as its
 * client, and writes to stdout where it differs. Sets `process.exitCode`.
 *
 * @throws (rejects) `UsageError` where options contradict each other or the recording cannot be read.
 */
export async function replayCommand(
  file: string,
  command: readonly string[],
  options: ReplayCommandOptions,
  http: HttpOptions | undefined,
): Promise<void> {
  const upstream = upstreamOf(command, options)
  refuseLost(options, http, upstream !== undefined)
  const session = /^\d+$/.test(options.session ?? '') ? Number(options.session) : options.session
  const shelf = (await import(moduleUrl('open-mcp-proxy/middleware/replay').href)) as Replay
  try {
    await shelf.readRecording(file, session)
  } catch (error) {
    throw new UsageError(messageOf(error))
  }
  if (!upstream) {
    const { match, use, logLevel, exitWithParent } = options
    const served = shelf.replay({ file, session, match })
    hide(secretsOf({}, undefined, http?.token))
    const begin = async (app: Application) => void app.use(...(await used(use)))
    return serve(served, { begin, logLevel, exitWithParent, http })
  }
  const timeout = parseSeconds('--answer-timeout', options.answerTimeout)
  const { signal, number } = interrupted()
  try {
    const found = await shelf.rerun({ file, session, upstream, ignore: options.ignore, timeout, signal })
    for (const it of found) process.stdout.write(`${lineOf(it)}\n`)
    process.exitCode = found.length > 0 ? DIFFERENT : OK
  } catch (error) {
    if (signal.aborted) process.exitCode = 128 + number()
    else if (error instanceof RpcError) {
      say(withCause(error))
      process.exitCode = UNAVAILABLE
    } else throw error
  }
}

function upstreamOf([program, ...args]: readonly string[], options: ReplayCommandOptions): Upstream | undefined {
  if (program !== undefined && options.url !== undefined)
    throw new UsageError('expected a COMMAND or --url URL, got both')
  if (program !== undefined) return { command: program, args, env: process.env }
  if (options.url === undefined) return undefined
  const server = parseServer(options, process.env)
  hide(secretsOf(server.headers, server.url))
  return server
}

/** Options that would do nothing. */
function refuseLost(options: ReplayCommandOptions, http: HttpOptions | undefined, isClient: boolean) {
  const { match, use, ignore, exitWithParent } = options
  const wrong = isClient
    ? Object.entries({ match, use, listen: http, 'exit-with-parent': exitWithParent }).find(
        ([, value]) => value !== undefined,
      )
    : Object.entries({ ignore }).find(([, value]) => value !== undefined)
  if (!wrong) return
  const expected = isClient ? 'no server to hold the recording against' : 'a COMMAND or --url URL with it'
  throw new UsageError(`--${wrong[0]}: expected ${expected}, got ${isClient ? 'one' : 'none'}`)
}

/** A signal ends it in good order. */
function interrupted(): { signal: AbortSignal; number: () => number } {
  const controller = new AbortController()
  let came = 0
  for (const [name, number] of Object.entries(SIGNALS)) {
    process.on(name, () => {
      if (came !== 0) process.exit(128 + number)
      came = number
      controller.abort(new Error(name))
    })
  }
  return { signal: controller.signal, number: () => came }
}

function lineOf({ line, method, name, path, expected, came }: Difference): string {
  const what = name === undefined ? method : `${method} ${shown(name)}`
  return `line ${line}: ${plain(what)}${path === '' ? '' : ` ${plain(path)}`}: expected ${shown(expected)}, got ${shown(came)}`
}

function shown(value: unknown): string {
  const text = JSON.stringify(value) ?? 'nothing'
  return plain(text.length > SHOWN ? `${text.slice(0, SHOWN)}…` : text)
}

/** A server must not move the cursor, hide or forge a line. */
function plain(text: string): string {
  return printable(Buffer.from(text))
}
