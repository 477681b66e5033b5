#!/usr/bin/env node
import { Command, CommanderError, Option } from 'commander'
import pkg from '../package.json' with { type: 'json' }
import { type Application, createProxy } from './application.js'
import type { Context } from './context.js'
import { loadMiddleware, parseReference } from './load.js'
import type { Upstream } from './upstream/index.js'
import { parseHeader, parseHeaders, parseSeconds, parseUrl, parseVariable, UsageError } from './values.js'

const OK = 0
const FAILURE = 1
const USAGE = 2
/** EX_UNAVAILABLE of sysexits.h: the upstream could not be started or reached. */
const UNAVAILABLE = 69
/** How long a second signal lets the upstream end before it is killed, in milliseconds. */
const LAST_GRACE = 700
/** How long what a middleware left running may hold the process once all is closed, in milliseconds. */
const LINGER = 1_000

const levels = ['silent', 'error', 'warn', 'info', 'debug'] as const
type Level = (typeof levels)[number]

interface CommonOptions {
  use: string[]
  logLevel: Level
}

interface UrlOptions extends CommonOptions {
  url: string
  header: string[]
  headers: string[]
  timeout: string
  sseReadTimeout: string
}

interface StdioOptions extends CommonOptions {
  env: string[]
  cwd?: string
}

const secrets = new Set<string>()

/** One line on stderr, without secrets and without control characters. */
function say(text: string): void {
  let line = text
  for (const secret of secrets) line = line.replaceAll(secret, '***')
  // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is taken out
  process.stderr.write(`omproxy: ${line.replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]+/g, ' ')}\n`)
}

function logger(level: Level): (at: Level, text: string) => void {
  return (at, text) => {
    if (levels.indexOf(at) <= levels.indexOf(level)) say(text)
  }
}

async function serve(upstream: Upstream, { use, logLevel }: CommonOptions): Promise<void> {
  const log = logger(logLevel)
  const app = createProxy()
  app.on('error', (error: Error, ctx?: Context) => {
    const where = ctx ? ` (${[ctx.direction, ctx.kind, ctx.method].filter(Boolean).join(' ')})` : ''
    log('warn', `${error.message}${where}`)
    log('debug', String(causeOf(error) ?? error.stack))
  })
  app.on('session', (session) => log('info', `session ${session.id} with ${session.upstream}`))
  for (const text of use) app.use(...(await loadMiddleware(parseReference(text), process.cwd())))
  const interrupted = handleSignals(app, log)
  const listening = await app.listen(upstream)
  const { reason, served } = await listening.closed
  await app.close()
  const signal = interrupted()
  if (signal !== undefined) process.exitCode = 128 + signal
  else if (!reason) process.exitCode = OK
  else {
    log('error', `${reason.message}${causeOf(reason) ? `: ${causeOf(reason)}` : ''}`)
    process.exitCode = served ? FAILURE : UNAVAILABLE
  }
  setTimeout(() => process.exit(), LINGER).unref()
}

function causeOf(error: Error): string | undefined {
  return error.cause instanceof Error ? error.cause.message : undefined
}

/**
 * The first signal drains, or ends at once where the client has left already: whoever sends it then has lost
 * patience. The second one ends at once. Gives the number of the signal that came.
 */
function handleSignals(app: Application, log: ReturnType<typeof logger>): () => number | undefined {
  const numbers = { SIGHUP: 1, SIGINT: 2, SIGTERM: 15 } as const
  let came: number | undefined
  for (const [name, number] of Object.entries(numbers)) {
    process.on(name, () => {
      const urgent = came !== undefined || process.stdin.readableEnded
      came ??= number
      log('info', `${name}: ${urgent ? 'closing now' : 'closing when the requests in flight are answered'}`)
      void app.close({ urgent })
      if (urgent) setTimeout(() => void app.close({ urgent }), LAST_GRACE).unref()
    })
  }
  process.on('unhandledRejection', (error) => log('error', `unhandled rejection: ${messageOf(error)}`))
  process.on('uncaughtException', (error) => {
    log('error', `uncaught error: ${messageOf(error)}`)
    log('debug', String(error.stack))
    process.exitCode = FAILURE
    void app.close({ urgent: true }).finally(() => process.exit(FAILURE))
  })
  return () => came
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}

function urlUpstream(options: UrlOptions, type?: 'http' | 'sse'): Upstream {
  const headers = Object.fromEntries([
    ...options.headers.flatMap((text) => parseHeaders(text)),
    ...options.header.map((text) => parseHeader(text, process.env)),
  ])
  for (const value of Object.values(headers)) {
    for (const secret of [value, value.replace(/^\S+\s+/, '')]) if (secret.length >= 6) secrets.add(secret)
  }
  const url = parseUrl(options.url)
  if (url.password !== '') secrets.add(decodeURIComponent(url.password))
  return {
    url,
    type,
    headers,
    timeout: parseSeconds('--timeout', options.timeout),
    sseReadTimeout: parseSeconds('--sse-read-timeout', options.sseReadTimeout, { zero: true }),
  }
}

function collect(value: string, before: string[]): string[] {
  return [...before, value]
}

function common(command: Command): Command {
  return command
    .option('--use <module>', 'middleware, in order: MODULE[#EXPORT][=JSON] (repeat)', collect, [])
    .addOption(new Option('--log-level <level>', 'what goes to stderr').choices(levels).default('warn'))
    .helpOption('-h, --help', 'show this help')
    .allowExcessArguments(false)
}

function overUrl(command: Command): Command {
  return common(
    command
      .requiredOption('--url <url>', 'the server')
      .option('--header <header>', "'Name: value'; $NAME comes from the environment, $$ is $ (repeat)", collect, [])
      .option('--headers <pairs>', 'k=v,k2=v2 (repeat)', collect, [])
      .option('--timeout <seconds>', 'for connecting', '5')
      .option('--sse-read-timeout <seconds>', 'silence after which a stream counts as lost; 0 is off', '0'),
  )
}

function program(): Command {
  const root = new Command('omproxy')
    .description(
      'A proxy for the Model Context Protocol: speaks to the client on stdin and stdout, to the server on\n' +
        'stdio, SSE or Streamable HTTP, and runs your middleware on every message in between.',
    )
    .version(pkg.version, '-V, --version', 'show the version')
    .enablePositionalOptions()
    .addHelpText(
      'after',
      `
Examples:
  omproxy stdio -- npx -y @modelcontextprotocol/server-everything
  omproxy stdio --use logger -- python -m my_server
  omproxy sse --url https://mcp.example.com/sse --header 'Authorization: Bearer $TOKEN'
  omproxy http --url https://mcp.example.com/mcp --use ./redact.js --use 'logger={"arguments":true}'
  omproxy --url https://mcp.example.com/mcp        (finds out which of the two transports it is)`,
    )
  common(root.command('stdio'))
    .description('start a server and speak to it over its stdin and stdout')
    .usage('[options] [--] COMMAND [ARGS...]')
    .argument('<command>', 'the program to run')
    .argument('[args...]', 'its arguments')
    .option('--env <variable>', 'NAME=VALUE for the server, beside the whole environment (repeat)', collect, [])
    .option('--cwd <directory>', 'where to start the server')
    .passThroughOptions()
    .action(async (command: string, args: string[], options: StdioOptions) => {
      const env = { ...process.env, ...Object.fromEntries(options.env.map(parseVariable)) }
      await serve({ command, args, env, cwd: options.cwd }, options)
    })
  overUrl(root.command('sse'))
    .description('a server that speaks the HTTP+SSE transport of 2024-11-05')
    .action((options: UrlOptions) => serve(urlUpstream(options, 'sse'), options))
  overUrl(root.command('http'))
    .description('a server that speaks Streamable HTTP')
    .action((options: UrlOptions) => serve(urlUpstream(options, 'http'), options))
  overUrl(root.command('detect', { hidden: true })).action((options: UrlOptions) =>
    serve(urlUpstream(options), options),
  )
  for (const command of [root, ...root.commands]) {
    command
      .exitOverride()
      .configureOutput({ outputError: () => {} })
      .showSuggestionAfterError()
  }
  return root
}

/** `--url` alone, without a word before it, lets the transport be found out. */
function withCommand(args: string[]): string[] {
  const [first] = args
  const isOption = first?.startsWith('-') && !['-h', '--help', '-V', '--version'].includes(first)
  return isOption ? ['detect', ...args] : args
}

async function main(args: string[]): Promise<void> {
  try {
    if (args.length === 0)
      throw new UsageError('expected a command (stdio, sse, http) or --url URL, got nothing; see omproxy --help')
    await program().parseAsync(withCommand(args), { from: 'user' })
  } catch (error) {
    if (error instanceof CommanderError && error.exitCode === 0) return
    if (error instanceof CommanderError || error instanceof UsageError) {
      say(error.message.replace(/^error: /, ''))
      process.exitCode = USAGE
      return
    }
    say(messageOf(error))
    process.exitCode = FAILURE
  }
}

process.stderr.on('error', () => {})
await main(process.argv.slice(2))
