#!/usr/bin/env node
import { createRequire } from 'node:module'
import { Command, CommanderError, Option } from 'commander'
import type { HttpOptions } from './listener/index.js'
import type { ReplayCommandOptions } from './rerun.js'
import { FAILURE, type Level, levels, messageOf, say, serve, USAGE } from './serve.js'
import type { Upstream } from './upstream/index.js'
import {
  parseCount,
  parseHeader,
  parseHeaders,
  parseListen,
  parseSeconds,
  parseUrl,
  parseVariable,
  secretsOf,
  UsageError,
} from './values.js'

/** How long what a middleware left running may hold the process once all is closed, in milliseconds. */
const LINGER = 1_000

const COMMANDS = 'stdio, sse, http or --url URL'
/** The hidden command that `--url` without one stands for. */
const DETECT = 'detect'

const { version } = createRequire(import.meta.url)('../package.json') as { version: string }

interface CommonOptions {
  use?: string[]
  logLevel: Level
  listen?: string
  path?: string
  allowOrigin?: string[]
  allowHost?: string[]
  maxSessions?: string
  idleTimeout?: string
  token?: string
  tokenEnv?: string
  allowUnauthenticated?: boolean
}

interface UrlOptions extends CommonOptions {
  url?: string
  header?: string[]
  headers?: string[]
  timeout: string
  sseReadTimeout: string
}

interface StdioOptions extends CommonOptions {
  env?: string[]
  cwd?: string
}

/** What only makes sense with `--listen`, as commander names it. */
const ofListener = [
  ...(['path', 'allowOrigin', 'allowHost', 'maxSessions', 'idleTimeout', 'token', 'tokenEnv'] as const),
  'allowUnauthenticated',
] as const

function httpOf(options: CommonOptions): HttpOptions | undefined {
  const { listen, path, allowOrigin, allowHost, maxSessions, idleTimeout, allowUnauthenticated } = options
  if (listen === undefined) {
    const [lost] = ofListener.filter((name) => options[name] !== undefined)
    if (lost === undefined) return undefined
    throw new UsageError(
      `--${lost.replace(/[A-Z]/g, (it) => `-${it.toLowerCase()}`)}: expected --listen with it, got none`,
    )
  }
  return {
    ...parseListen(listen),
    path,
    allowUnauthenticated,
    token: tokenOf(options),
    allowOrigins: allowOrigin,
    allowHosts: allowHost,
    maxSessions: maxSessions === undefined ? undefined : parseCount('--max-sessions', maxSessions),
    idleTimeout: idleTimeout === undefined ? undefined : parseSeconds('--idle-timeout', idleTimeout),
  }
}

function tokenOf({ token, tokenEnv }: CommonOptions): string | undefined {
  if (token !== undefined && tokenEnv !== undefined) throw new UsageError('expected --token or --token-env, got both')
  if (tokenEnv === undefined) return token
  const value = process.env[tokenEnv]
  if (value) return value
  throw new UsageError(`--token-env: expected a variable with a token in it, ${tokenEnv} is not set`)
}

async function serveUrl(options: UrlOptions, type?: 'http' | 'sse'): Promise<void> {
  if (options.url === undefined) throw new UsageError('expected --url URL, got none')
  const headers = Object.fromEntries([
    ...(options.headers ?? []).flatMap((text) => parseHeaders(text)),
    ...(options.header ?? []).map((text) => parseHeader(text, process.env)),
  ])
  const url = parseUrl(options.url)
  const timeout = parseSeconds('--timeout', options.timeout)
  const sseReadTimeout = parseSeconds('--sse-read-timeout', options.sseReadTimeout, { zero: true })
  const upstream: Upstream = { url, type, headers, timeout, sseReadTimeout }
  const http = httpOf(options)
  return serve(upstream, { ...options, http, secrets: secretsOf(headers, url, http?.token) })
}

/** An option that may be given several times. */
function several(flags: string, description: string): Option {
  return new Option(flags, `${description} (repeat)`).argParser((value: string, before: string[] | undefined) => [
    ...(before ?? []),
    value,
  ])
}

function common(command: Command): Command {
  return command
    .addOption(several('--use <module>', 'middleware, in order: MODULE[#EXPORT][=JSON]'))
    .addOption(new Option('--log-level <level>', 'what goes to stderr').choices(levels).default('warn'))
    .option('--listen <address>', 'serve clients over HTTP at [HOST:]PORT, not the one on stdin and stdout')
    .option('--path <path>', 'where Streamable HTTP is served (default: "/mcp"); also /sse, /messages, /healthz')
    .addOption(several('--allow-origin <origin>', 'a web page of this origin may use the proxy'))
    .addOption(several('--allow-host <host>', 'what Host may say beside localhost, 127.0.0.1 and [::1]'))
    .option('--max-sessions <count>', 'sessions at once (default: "10000")')
    .option('--idle-timeout <seconds>', 'for sessions without a connection (default: "1800")')
    .option('--token <token>', 'what clients must send as Authorization: Bearer')
    .option('--token-env <name>', 'the environment variable that holds the token')
    .option('--allow-unauthenticated', 'let any client in, also where other machines can reach the address')
    .helpOption('-h, --help', 'show this help')
    .allowExcessArguments(false)
}

function overUrl(command: Command): Command {
  return common(
    command
      .option('--url <url>', 'the server')
      .addOption(several('--header <header>', "'Name: value'; $NAME comes from the environment, $$ is a $"))
      .addOption(several('--headers <pairs>', 'k=v,k2=v2, as they are'))
      .option('--timeout <seconds>', 'for connecting', '5')
      .option('--sse-read-timeout <seconds>', 'silence after which a stream counts as lost; 0: never', '0'),
  )
}

const synopsis = `stdio [options] [--] COMMAND [ARGS...]
       omproxy sse --url URL [options]
       omproxy http --url URL [options]
       omproxy --url URL [options]     (finds out which of the two transports it is)`

const examples = `
omproxy stdio --help, omproxy sse --help, omproxy http --help: their options.

Examples:
  omproxy stdio -- npx -y @modelcontextprotocol/server-everything
  omproxy stdio --use logger --env LOG=1 -- python -m my_server --verbose
  omproxy sse --url https://mcp.example.com/sse --header 'Authorization: Bearer $TOKEN'
  omproxy sse --url http://localhost:8080/sse --headers k=v,k2=v2 --timeout 5 --sse-read-timeout 300
  omproxy http --url https://mcp.example.com/mcp --use ./redact.js --use 'logger={"arguments":true}'
  omproxy --url https://mcp.example.com/mcp --log-level debug
  omproxy stdio --listen 3000 --use logger -- npx -y @modelcontextprotocol/server-everything
  omproxy http --listen 0.0.0.0:3000 --token-env TOKEN --allow-host mcp.lan --url https://mcp.example.com/mcp

Middleware: 'logger' is one of this package's, './redact.js' a file, 'pkg/audit#audit={"file":"a.jsonl"}' an
export of a package's module, called with the options after '='. The first --use is next to the client.

Exit codes: 0 the client left, 1 failure, 2 usage, 69 the server could not be started or reached, 128 + signal.`

function program(): Command {
  const root = new Command('omproxy')
    .usage(synopsis)
    .description(
      'A proxy for the Model Context Protocol: speaks to the client on stdin and stdout, or with --listen to many over ' +
        'HTTP, to the server on stdio, SSE or Streamable HTTP, and runs your middleware on every message in between.',
    )
    .version(version, '-V, --version', 'show the version')
    .helpOption('-h, --help', 'show this help')
    .helpCommand('help [command]', 'show the help of a command')
    .enablePositionalOptions()
    .addHelpText('after', examples)
  common(root.command('stdio'))
    .description('start a server and speak to it over its stdin and stdout')
    .usage('[options] [--] COMMAND [ARGS...]')
    .argument('<command>', 'the program to run, without a shell')
    .argument('[args...]', 'its arguments, options among them')
    .addOption(
      several('--env <variable>', 'NAME=VALUE for the server, which without --listen has the whole environment anyway'),
    )
    .option('--cwd <directory>', 'where to start the server')
    .passThroughOptions()
    .action(async (command: string, args: string[], options: StdioOptions) => {
      const http = httpOf(options)
      const own = Object.fromEntries((options.env ?? []).map(parseVariable))
      // Who started us to speak to one server set our environment for it. Behind a port it is ours alone.
      const env = http ? own : { ...process.env, ...own }
      await serve(
        { command, args, env, cwd: options.cwd },
        { ...options, http, secrets: secretsOf({}, undefined, http?.token) },
      )
    })
  overUrl(root.command('sse'))
    .description('a server that speaks the HTTP+SSE transport of 2024-11-05')
    .action((options: UrlOptions) => serveUrl(options, 'sse'))
  overUrl(root.command('http'))
    .description('a server that speaks Streamable HTTP')
    .action((options: UrlOptions) => serveUrl(options, 'http'))
  overUrl(root.command(DETECT, { hidden: true }))
    .description('a server that speaks Streamable HTTP, or else the HTTP+SSE transport of 2024-11-05')
    .action((options: UrlOptions) => serveUrl(options))
  overUrl(root.command('replay'))
    .description('answer a client from a recording, or hold a server against it')
    .usage(
      '[options] FILE\n       omproxy replay [options] FILE -- COMMAND [ARGS...]\n       omproxy replay [options] FILE --url URL',
    )
    .argument('<file>', 'what the middleware record wrote')
    .argument('[command...]', 'the server that is held against it')
    .addOption(
      new Option('--match <how>', 'in the recorded order, or any (default: "strict")').choices(['strict', 'call']),
    )
    .option('--session <session>', 'the one to take: its id, or its place in the file')
    .addOption(several('--ignore <path>', '[METHOD:]PATH of what may differ, as in result.content[*].text'))
    .option('--answer-timeout <seconds>', "for each of the server's messages", '30')
    .action(async (file: string, command: string[], options: ReplayCommandOptions & CommonOptions) => {
      await (await import('./rerun.js')).replayCommand(file, command, options, httpOf(options))
    })
  for (const command of [root, ...root.commands]) command.exitOverride().configureOutput({ outputError: () => {} })
  return root
}

/** `--url` alone, without a word before it, lets the transport be found out. */
function withCommand(args: string[]): string[] {
  const [first] = args
  const isOption = first?.startsWith('-') && !['-h', '--help', '-V', '--version'].includes(first)
  return isOption ? [DETECT, ...args] : args
}

/** What commander found wrong, in one line: what was expected and what came, but no value, which may be secret. */
function usageOf({ code, message }: CommanderError): string {
  const text = message.replace(/^error: /, '').replace(/'(--[^'=]+)=[^']*'/, "'$1'")
  const [count] = /\d+(?=\.$)/.exec(text) ?? []
  const known: Record<string, string> = {
    'commander.unknownCommand': `expected ${COMMANDS}, got ${text}`,
    'commander.unknownOption': `expected an option that --help shows, got ${text}`,
    'commander.missingArgument': 'expected a COMMAND that starts the server, got none',
    'commander.excessArguments': `expected options alone, got arguments: ${count} (stdio, sse and http come first)`,
  }
  return known[code] ?? text
}

async function main(args: string[]): Promise<void> {
  try {
    if (args.length === 0) throw new UsageError(`expected ${COMMANDS}, got nothing; see omproxy --help`)
    await program().parseAsync(withCommand(args), { from: 'user' })
  } catch (error) {
    if (error instanceof CommanderError && error.exitCode === 0) return
    say(error instanceof CommanderError ? usageOf(error) : messageOf(error))
    process.exitCode = error instanceof CommanderError || error instanceof UsageError ? USAGE : FAILURE
  }
}

process.stderr.on('error', () => {})
await main(process.argv.slice(2))
setTimeout(() => process.exit(), LINGER).unref()
