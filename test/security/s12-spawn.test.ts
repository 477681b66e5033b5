import { existsSync, readFileSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { stdio } from 'open-mcp-proxy'
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest'
import { closing } from '../fixtures/closing.js'
import { gone, omproxy } from '../fixtures/command.js'
import { ask, initialize, listen, modern, ours, session, told } from './helpers.js'

/** What is in our environment, and is to be in no child's that serves others. */
const canaries: Record<string, string> = {
  AWS_SECRET_ACCESS_KEY: 'canary-aws',
  GITHUB_TOKEN: 'canary-github',
  NPM_TOKEN: 'canary-npm',
  OPENAI_API_KEY: 'canary-openai',
  OMPROXY_TOKEN: 'canary-own-token',
  DATABASE_URL: 'postgres://canary',
  SSH_AUTH_SOCK: '/tmp/canary.sock',
  LD_LIBRARY_PATH: '/tmp/canary',
  NODE_PATH: '/tmp/canary',
  NODE_EXTRA_CA_CERTS: '/tmp/canary.pem',
  HTTP_PROXY: 'http://canary.example',
  PROMPT_COMMAND: 'canary',
  BASH_ENV: '/tmp/canary',
  __proto__x: 'canary',
  lower_case: 'canary',
}
// It works on us, too: so it is one that does nothing.
const OPTIONS = '--no-deprecation'
const ALLOWED = ['HOME', 'LOGNAME', 'PATH', 'SHELL', 'TERM', 'USER']

/** Answers each request with what it was started with. */
const SERVER = `
require('node:readline').createInterface(process.stdin).on('line', (line) => {
  const { id } = JSON.parse(line)
  const { env, argv, pid, ppid, execArgv } = process
  let group
  try { group = Number(require('node:fs').readFileSync('/proc/self/stat', 'utf8').split(') ')[1].split(' ')[2]) } catch {}
  if (id !== undefined) console.log(JSON.stringify({ jsonrpc: '2.0', id, result: { env, argv, pid, group, ppid, execArgv } }))
})`

interface Told {
  env: Record<string, string>
  argv: string[]
  pid: number
  ppid: number
  group?: number
}

const before = { ...process.env }
let directory: string
let script: string

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'omproxy-s12-'))
  script = join(directory, 'server.cjs')
  await writeFile(script, SERVER)
})
afterAll(() => rm(directory, { recursive: true, force: true }))
afterEach(() => {
  for (const name of Object.keys(process.env)) if (!(name in before)) delete process.env[name]
})

/** What a child of a port says of itself, in a legacy session and to a modern request, which have one each. */
async function askBoth(port: number, headers: Record<string, string> = {}): Promise<Told[]> {
  const inSession = { ...ours, ...headers, 'mcp-session-id': await session(port, headers) }
  const ping = { jsonrpc: '2.0', id: 1, method: 'ping' }
  const asked = modern(1, 'ping')
  const replies = [
    await ask(port, { headers: inSession, body: ping }),
    await ask(port, { ...asked, headers: { ...asked.headers, ...headers } }),
  ]
  return replies.map((it) => (told(it).body as { result: Told }).result)
}

const names = ({ env }: Told) =>
  Object.keys(env)
    .filter((it) => !it.startsWith('__CF'))
    .sort()
const inherited = () => ALLOWED.filter((it) => process.env[it] !== undefined)

describe('the environment of a child', () => {
  test('of the library has six variables of ours, and what it is given', async () => {
    Object.assign(process.env, canaries, { TERM: '() { :; }; echo canary', NODE_OPTIONS: OPTIONS })
    const { port } = await listen(stdio(process.execPath, [script], { env: { GIVEN: '1', HOME: '/given' } }))
    const both = await askBoth(port)
    if (before.NODE_OPTIONS === undefined) delete process.env.NODE_OPTIONS
    else process.env.NODE_OPTIONS = before.NODE_OPTIONS
    process.env.TERM = before.TERM ?? ''
    if (before.TERM === undefined) delete process.env.TERM
    for (const it of both) {
      // A shell function is not a value.
      expect(names(it)).toEqual([...new Set([...inherited(), 'HOME', 'GIVEN'])].filter((it) => it !== 'TERM').sort())
      expect([it.env.GIVEN, it.env.HOME, it.env.PATH]).toEqual(['1', '/given', process.env.PATH])
      expect(JSON.stringify(it.env)).not.toContain('canary')
    }
  })

  const env = { ...canaries, NODE_OPTIONS: OPTIONS, SECRET: 'of-the-file' }

  async function portOf(running: ReturnType<typeof omproxy>) {
    closing.push(() => running.kill())
    const line = /listening on \S+:(\d+)\/mcp\n/
    await running.when(() => line.test(running.stderr), 'it listens')
    return Number(line.exec(running.stderr)![1])
  }

  const right = { authorization: 'Bearer canary-own-token' }

  test('of the command behind a port has no more, and --env', async () => {
    const options = ['--listen', '0', '--token-env', 'OMPROXY_TOKEN', '--env', 'GIVEN=1']
    const port = await portOf(omproxy(['stdio', ...options, '--', process.execPath, script], { env }))
    for (const it of await askBoth(port, right)) {
      expect(names(it)).toEqual([...inherited(), 'GIVEN'].sort())
      expect(JSON.stringify(it)).not.toContain('canary')
    }
  })

  test('of a configuration file behind a port has no more, and what the file gives', async () => {
    const file = join(directory, 'port.json')
    const upstream = { command: process.execPath, args: [script], env: { GIVEN: '$SECRET' } }
    await writeFile(file, JSON.stringify({ upstream, listen: 0 }))
    const port = await portOf(omproxy(['--config', file], { env }))
    for (const it of await askBoth(port)) {
      expect(names(it)).toEqual([...inherited(), 'GIVEN'].sort())
      expect(it.env.GIVEN).toBe('of-the-file')
      expect(JSON.stringify(it)).not.toContain('canary')
    }
  })

  test('of the command that one client has started for one server is the whole: it was set for it', async () => {
    const file = join(directory, 'stdio.json')
    await writeFile(file, JSON.stringify({ upstream: { command: process.execPath, args: [script] } }))
    for (const args of [
      ['stdio', '--env', 'GIVEN=1', '--', process.execPath, script],
      ['--config', file],
    ]) {
      const running = omproxy(args, { env })
      closing.push(() => running.kill())
      running.send(initialize(1))
      await running.until(1)
      const [{ result }] = running.messages() as [{ result: Told }]
      expect(result.env).toMatchObject(env)
      await running.end()
    }
  })
})

describe('the arguments of a child', () => {
  const odd = [
    'a b',
    '',
    '"',
    "'",
    '`touch MARK`',
    '$(touch MARK)',
    '; touch MARK',
    '&& touch MARK',
    '| touch MARK',
    '> MARK',
    '*',
    '~',
    '$HOME',
    '%PATH%',
    '!x',
    '\\',
    'a\nb',
    '\u001b[2J',
    '--',
    '-e',
    'é\u202e',
  ]

  test('are an array: no shell reads them', async () => {
    const mark = join(directory, 'mark')
    const args = odd.map((it) => it.replace('MARK', mark))
    const { port } = await listen(stdio(process.execPath, [script, ...args]))
    for (const { argv } of await askBoth(port)) expect(argv.slice(2)).toEqual(args)
    const running = omproxy(['stdio', '--', process.execPath, script, ...args])
    closing.push(() => running.kill())
    running.send(initialize(1))
    await running.until(1)
    expect((running.messages() as [{ result: Told }])[0].result.argv.slice(2)).toEqual(args)
    await running.end()
    expect(existsSync(mark)).toBe(false)
  })

  test.each(['node; touch MARK', 'node && touch MARK', '$(touch MARK)', '`touch MARK`', 'node MARK', ''])(
    'nor the name of the program: %j',
    async (command) => {
      const mark = join(directory, 'mark')
      const { port } = await listen(stdio(command.replace('MARK', mark)))
      const reply = told(await ask(port, { body: initialize(1) }))
      expect(reply).toMatchObject({ status: 200, body: { error: { code: -31009, data: { phase: 'not_sent' } } } })
      expect(JSON.stringify(reply)).not.toContain(directory)
      expect(existsSync(mark)).toBe(false)
    },
  )

  test('come from the configuration alone: nothing that a client says starts anything else', async () => {
    const mark = join(directory, 'by-client')
    const { port } = await listen(stdio(process.execPath, [script]))
    const evil = { command: 'touch', args: [mark], env: { PATH: mark, NODE_OPTIONS: `--require ${mark}` }, cwd: '/' }
    const params = { ...initialize().params, ...evil, _meta: evil, capabilities: { experimental: evil } }
    const headers = { ...ours, 'x-command': `touch ${mark}`, command: 'touch', args: mark }
    const reply = told(await ask(port, { headers, body: { ...initialize(1), params } }))
    const { env, argv } = (reply.body as { result: Told }).result
    expect(argv).toEqual([process.execPath, script])
    expect(JSON.stringify(env)).not.toContain(mark)
    expect(existsSync(mark)).toBe(false)
  })
})

describe.runIf(process.platform === 'linux')('the process group of a child', () => {
  test('is its own: nothing that is sent to ours reaches it, and none of its helpers outlives it', async () => {
    const helper = `
      const child = require('node:child_process').spawn(process.execPath, ['-e', 'setInterval(() => {}, 1000)'])
      require('node:fs').writeFileSync(process.argv[1], String(child.pid))
      ${SERVER}`
    const file = join(directory, 'helper')
    const { port, app } = await listen(stdio(process.execPath, ['-e', helper, file]))
    const reply = told(await ask(port, { body: initialize(1) }))
    const { pid, group } = (reply.body as { result: Told }).result
    expect(group).toBe(pid)
    const own = readFileSync('/proc/self/stat', 'utf8').split(') ')[1]!.split(' ')[2]
    expect(String(group)).not.toBe(own)
    const helperPid = Number(readFileSync(file, 'utf8'))
    await app.close({ urgent: true })
    await gone(pid)
    await gone(helperPid)
  })
})
