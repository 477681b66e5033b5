import { syncBuiltinESMExports } from 'node:module'
import { type Application, createProxy } from './application.js'
import { type Level, levels } from './config.js'
import type { Context, Middleware } from './context.js'
import { messageOf, OptionError } from './error.js'
import { type HttpOptions, type Listener, type Listening, stdioListener } from './listener/index.js'
import { printable } from './log.js'
import type { Log, Reloadable } from './reload.js'
import type { Upstream } from './upstream/index.js'
import { longestFirst, UsageError } from './values.js'

/** Exit codes of the command; 128 + the signal's number where one ended it. */
export const OK = 0
export const FAILURE = 1
export const USAGE = 2
/** EX_UNAVAILABLE of sysexits.h: the upstream could not be started or reached. */
export const UNAVAILABLE = 69
/** What ends the command, with the number that its exit code tells. */
export const SIGNALS = { SIGHUP: 1, SIGINT: 2, SIGTERM: 15 } as const
/** How long a second signal lets the upstream end before it is killed, in milliseconds. */
const LAST_GRACE = 700
/** How often it is looked whether whoever started us is still there, in milliseconds. */
const PARENT_POLL = 1_000

export interface ServeOptions {
  /** Where clients come to. @default this process's stdin and stdout */
  http?: HttpOptions
  /** Puts the middleware in. @throws (rejects) `UsageError` where one cannot be made */
  begin(app: Application): Promise<void>
  /** Makes the stack anew on SIGHUP. @default it never changes, and SIGHUP ends the process */
  reloadable?: Reloadable
  /** Makes it anew when one of its files changes, too. @default false */
  watch?: boolean
  /** Ends when whoever started the process is gone, as at the end of stdin. @default false */
  exitWithParent?: boolean
  /** @default 'warn' */
  logLevel?: Level
}

/** It begins where white space begins: a long run of it that holds no line feed is looked at once. */
const BREAK = /(?<!\s)\s*\n\s*/g

let hidden: readonly string[] = []

/** No line that is said from now on shows them, not even where they stand in quotes or one of their lines stands alone. */
export function hide(secrets: readonly string[]): void {
  const lines = secrets.flatMap((it) => [it, ...it.split(BREAK)])
  hidden = longestFirst([...hidden, ...lines, ...lines.map((it) => JSON.stringify(it).slice(1, -1))])
}

/** One line on stderr, without secrets and without control characters. */
export function say(text: string): void {
  let line = text.replaceAll(BREAK, ' ')
  for (const secret of hidden) line = line.replaceAll(secret, '***')
  process.stderr.write(`omproxy: ${printable(Buffer.from(line))}\n`)
}

/** What `--use` names. @throws (rejects) `UsageError` */
export async function used(use: readonly string[] = []): Promise<Middleware[]> {
  return use.length === 0 ? [] : (await import('./load.js')).loadUsed(use)
}

/**
 * Runs the proxy and sets `process.exitCode`: for the client on this process's stdin and stdout until it leaves or the
 * upstream ends, or for those on a port until a signal comes. The process is the command's: its stdout, its signals and its uncaught errors are taken.
 *
 * @throws (rejects) `UsageError` where a middleware cannot be made, or an address may not be opened to everybody; what
 * a middleware's `start` throws, or Node, where a port cannot be had.
 */
export async function serve(upstream: Upstream, options: ServeOptions): Promise<void> {
  const { http, logLevel = 'warn', reloadable } = options
  const { ppid } = process
  const tells = (at: Level) => levels.indexOf(at) <= levels.indexOf(logLevel)
  const log: Log = (at, text) => {
    if (tells(at)) say(text)
  }
  let told: Error | undefined
  const stdout = takeStdout()
  const app = createProxy()
  app.on('error', (error: Error, ctx?: Context) => {
    const where = ctx ? ` (${[ctx.middleware, ctx.direction, ctx.kind, ctx.method].filter(Boolean).join(' ')})` : ''
    log('warn', `${error.message}${where}`)
    log('debug', causeOf(error) ?? String(error.stack))
    if (tells('warn')) told = error
  })
  app.on('session', (session) => log('info', `session ${session.id} with ${session.upstream}`))
  handleErrors(app, log)
  await options.begin(app)
  const reloader = reloadable && new (await import('./reload.js')).Reloader(app, reloadable, log)
  const listening = await listen(app, upstream, http ?? stdioListener({ stdout }))
  const { SIGHUP, ...others } = SIGNALS
  const interrupted = handleSignals(app, log, http === undefined, reloader ? others : SIGNALS)
  if (reloader) process.on('SIGHUP', () => reloader.reload())
  if (options.watch) reloader?.watch()
  if (options.exitWithParent) watchParent(app, log, ppid)
  if (listening.address !== undefined) log('warn', `listening on ${listening.address}`)
  const { reason, served } = await listening.closed
  reloader?.close()
  await app.close()
  const signal = interrupted()
  if (signal !== undefined) process.exitCode = 128 + signal
  else if (!reason) process.exitCode = OK
  else {
    if (reason !== told) log('error', withCause(reason))
    process.exitCode = served ? FAILURE : UNAVAILABLE
  }
}

async function listen(app: Application, upstream: Upstream, on: HttpOptions | Listener): Promise<Listening> {
  try {
    return await app.listen(upstream, on)
  } catch (error) {
    if (typeof on === 'function') throw error
    const { code, message, syscall } = error as NodeJS.ErrnoException
    if (error instanceof OptionError) throw new UsageError(`--listen: ${message}`)
    if (syscall !== 'listen' && syscall !== 'getaddrinfo') throw error
    throw new Error(`could not listen on ${on.host ?? '127.0.0.1'} port ${on.port}: ${code}`)
  }
}

/** An orphan has another parent: nothing else tells a process without a stdin to end that it is one. */
function watchParent(app: Application, log: Log, parent: number): void {
  const poll = setInterval(() => {
    if (process.ppid === parent) return
    clearInterval(poll)
    log('info', 'the parent is gone: closing when the requests in flight are answered')
    void app.close()
  }, PARENT_POLL)
  poll.unref()
}

let taken: NodeJS.WriteStream | undefined

/** Nothing but JSON-RPC goes to stdout: what a middleware or a library of its writes there goes to stderr instead. */
export function takeStdout(): NodeJS.WriteStream {
  if (taken) return taken
  const { stdout } = process
  taken = stdout
  Object.defineProperty(process, 'stdout', { value: process.stderr, configurable: true, enumerable: true })
  syncBuiltinESMExports()
  return stdout
}

function causeOf(error: Error): string | undefined {
  return error.cause instanceof Error ? error.cause.message : undefined
}

export function withCause(error: Error): string {
  return [error.message, causeOf(error)].filter(Boolean).join(': ')
}

/** What a middleware did not catch: a lost promise harms nobody else, after anything else the state is unknown. */
function handleErrors(app: Application, log: Log): void {
  process.on('unhandledRejection', (error) => log('error', `unhandled rejection: ${messageOf(error)}`))
  process.on('uncaughtException', (error) => {
    log('error', `uncaught error: ${messageOf(error)}`)
    log('debug', String(error?.stack))
    void app.close({ urgent: true }).finally(() => process.exit(FAILURE))
  })
}

/**
 * The first signal drains, or ends at once where the client has left already: whoever sends it then has lost
 * patience. The second one ends at once. Gives the number of the signal that came.
 */
function handleSignals(
  app: Application,
  log: Log,
  isStdio: boolean,
  signals: Readonly<Record<string, number>>,
): () => number | undefined {
  let came: number | undefined
  for (const [name, number] of Object.entries(signals)) {
    process.on(name, () => {
      const urgent = came !== undefined || (isStdio && process.stdin.readableEnded)
      came ??= number
      log('info', `${name}: ${urgent ? 'closing now' : 'closing when the requests in flight are answered'}`)
      void app.close({ urgent })
      if (urgent) setTimeout(() => void app.close({ urgent }), LAST_GRACE).unref()
    })
  }
  return () => came
}
