#!/usr/bin/env node
import { readFileSync } from 'node:fs'
import { Command, CommanderError, Option } from 'commander'
import type { Application } from './application.js'
import { type Level, levels } from './config.js'
import { messageOf } from './error.js'
import { examples, synopsis } from './help.js'
import type { HttpOptions } from './listener/index.js'
import type { ReplayCommandOptions } from './rerun.js'
import { FAILURE, hide, say, serve, takeStdout, USAGE, used } from './serve.js'
import type { CommandUpstream, Restart, UrlUpstream } from './upstream/index.js'
import {
  parseCount,
  parseListen,
  parseSeconds,
  parseServer,
  parseVariable,
  secretsOf,
  type UrlFlags,
  UsageError,
} from './values.js'

/** How long what a middleware left running may hold the process once all is closed, in milliseconds. */
const LINGER = 1_000

const COMMANDS = 'stdio, sse, http or --url URL'
/** The hidden command that options without one stand for: `--url`, or a configuration file. */
const DETECT = 'detect'

const { version } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')) as { version: string }

interface CommonOptions {
  use?: string[]
  restart?: Restart
  logLevel?: Level
  exitWithParent?: boolean
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

interface UrlOptions extends CommonOptions, UrlFlags {}

interface FileOptions extends UrlOptions {
  config?: string
  server?: string
  watch?: boolean
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

function serveOne(
  upstream: CommandUpstream | UrlUpstream,
  options: CommonOptions,
  headers: Record<string, string> = {},
): Promise<void> {
  const { use, logLevel, restart, exitWithParent } = options
  const http = httpOf(options)
  const url = 'url' in upstream ? new URL(upstream.url) : undefined
  hide(secretsOf(headers, url, http?.token))
  const begin = async (app: Application) => void app.use(...(await used(use)))
  return serve({ ...upstream, restart }, { http, begin, logLevel, exitWithParent })
}

/** What a file says; what the command line says of the same stands before it. */
async function serveFile(options: FileOptions): Promise<void> {
  const { config: file, server, watch } = options
  const [lost] = (['header', 'headers', 'restart'] as const).filter((name) => options[name] !== undefined)
  if (lost !== undefined) throw new UsageError(`--${lost}: expected --url with it, got none`)
  // The file may be code, which may print.
  takeStdout()
  const { ConfigStack } = await import('./configuration/index.js')
  const http = httpOf(options)
  const live = await ConfigStack.open({ file, server, http, env: process.env, hide, directory: process.cwd() })
  if (!live)
    throw new UsageError(`expected ${COMMANDS}, or a proxy.config.{ts,js,json} here, got neither; see omproxy --help`)
  const { upstream, http: listen, logLevel } = live.configuration
  await serve(upstream, {
    http: listen,
    begin: async (app) => live.begin(app, await used(options.use)),
    reloadable: live,
    watch,
    exitWithParent: options.exitWithParent,
    logLevel: options.logLevel ?? logLevel,
  })
}

async function serveUrl(options: UrlOptions, type?: 'http' | 'sse'): Promise<void> {
  const server = parseServer(options, process.env)
  return serveOne({ ...server, type }, options, server.headers)
}

async function serveNoFile(options: FileOptions): Promise<void> {
  const [lost] = (['config', 'server', 'watch'] as const).filter((name) => options[name] !== undefined)
  if (lost !== undefined) throw new UsageError(`--${lost}: expected a configuration file instead of --url, got both`)
  return serveUrl(options)
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
    .addOption(new Option('--log-level <level>', 'what goes to stderr (default: "warn")').choices(levels))
    .option('--exit-with-parent', 'end when the process that started this one has ended')
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

function restarts(command: Command): Command {
  return command.addOption(
    new Option(
      '--restart <when>',
      'start or reach the server again when it is lost (default: "on-failure"; "never" for stdio without --listen)',
    ).choices(['on-failure', 'never']),
  )
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
  restarts(common(root.command('stdio')))
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
      const own = Object.fromEntries((options.env ?? []).map(parseVariable))
      // Who started us to speak to one server set our environment for it. Behind a port it is ours alone.
      const env = options.listen === undefined ? { ...process.env, ...own } : own
      await serveOne({ command, args, env, cwd: options.cwd }, options)
    })
  restarts(overUrl(root.command('sse')))
    .description('a server that speaks the HTTP+SSE transport of 2024-11-05')
    .action((options: UrlOptions) => serveUrl(options, 'sse'))
  restarts(overUrl(root.command('http')))
    .description('a server that speaks Streamable HTTP')
    .action((options: UrlOptions) => serveUrl(options, 'http'))
  restarts(overUrl(root.command(DETECT, { hidden: true })))
    .description(
      'a server that speaks Streamable HTTP, or else the HTTP+SSE transport of 2024-11-05; or what a file says',
    )
    .option('--config <file>', 'a configuration file (default: proxy.config.{ts,js,json} in this directory)')
    .option('--server <name>', 'one of its mcpServers')
    .option('--watch', 'reload its stack when it changes')
    .action((options: FileOptions) => (options.url === undefined ? serveFile(options) : serveNoFile(options)))
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

/** Options alone, or nothing, without a word before them: the transport is found out, or a file says all. */
function withCommand(args: string[]): string[] {
  const [first] = args
  const isOption = first?.startsWith('-') && !['-h', '--help', '-V', '--version'].includes(first)
  return isOption || first === undefined ? [DETECT, ...args] : args
}

/** What commander found wrong, in one line: what was expected and what came, but no value, which may be secret. */
function usageOf({ code, message }: CommanderError): string {
  const text = message.replace(/^error: /, '').replace(/'(--[^'=]+)=[^']*'/, "'$1'")
  const [count] = /\d+(?=\.$)/.exec(text) ?? []
  const known: Record<string, string> = {
    'commander.unknownCommand': `expected ${COMMANDS}, got ${text}`,
    'commander.unknownOption': `expected an option that --help shows, got ${text}`,
    'commander.missingArgument': `expected a ${text.includes("'file'") ? 'FILE that record wrote' : 'COMMAND that starts the server'}, got none`,
    'commander.excessArguments': `expected options alone, got arguments: ${count} (stdio, sse and http come first)`,
  }
  return known[code] ?? text
}

async function main(args: string[]): Promise<void> {
  try {
    await program().parseAsync(withCommand(args), { from: 'user' })
  } catch (error) {
    if (error instanceof CommanderError && error.exitCode === 0) return
    say(error instanceof CommanderError ? usageOf(error) : messageOf(error))
    process.exitCode = error instanceof CommanderError || error instanceof UsageError ? USAGE : FAILURE
  }
}

// Who reads may leave: `omproxy --help | head`.
for (const stream of [process.stdout, process.stderr]) stream.on('error', () => {})
await main(process.argv.slice(2))
setTimeout(() => process.exit(), LINGER).unref()
