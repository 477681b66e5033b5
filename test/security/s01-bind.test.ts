import { existsSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { connect } from 'node:net'
import { hostname, networkInterfaces, tmpdir } from 'node:os'
import { join } from 'node:path'
import { define, type HttpOptions } from 'open-mcp-proxy'
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest'
import { closing } from '../fixtures/closing.js'
import { type CommandOptions, omproxy } from '../fixtures/command.js'
import { ask, initialize, listen, server, session } from './helpers.js'

/** Every address of this machine but 127.0.0.1; link-local ones need a zone to be reached. */
const others = Object.values(networkInterfaces())
  .flatMap((all) => all ?? [])
  .filter(({ address, family }) => address !== '127.0.0.1' && !(family === 'IPv6' && /^fe[89ab]/i.test(address)))
  .map(({ address }) => address)
// All of 127.0.0.0/8 is this machine on Linux.
if (process.platform === 'linux') others.push('127.0.0.2', '127.255.255.254')
const hasIpv6 = others.includes('::1')
const loopback = ['127.0.0.1', 'localhost', ...others.filter((it) => it === '::1' || it.startsWith('127.'))]

/** How an attempt to connect ended. */
function attempt(host: string, port: number): Promise<string> {
  return new Promise((resolve) => {
    const socket = connect({ host, port })
    socket.setTimeout(5_000, () => {
      resolve('timeout')
      socket.destroy()
    })
    socket.once('connect', () => {
      resolve('connected')
      socket.destroy()
    })
    socket.once('error', ({ code }: NodeJS.ErrnoException) => resolve(code ?? 'error'))
  })
}

const attempts = async (port: number, hosts: readonly string[]) =>
  Object.fromEntries(await Promise.all(hosts.map(async (host) => [host, await attempt(host, port)] as const)))
const refused = (hosts: readonly string[]) => Object.fromEntries(hosts.map((host) => [host, 'ECONNREFUSED']))

/** Where others may come in, and what looks like the loopback but need not be it. */
const reachable = [
  '0.0.0.0',
  '::',
  '::0',
  '0:0:0:0:0:0:0:0',
  '::ffff:0.0.0.0',
  '',
  '0',
  hostname(),
  'mcp.lan',
  'localhost.lan',
  'localhost.',
  '127.0.0.1.nip.io',
  '192.168.0.1',
  '169.254.1.1',
  'fe80::1',
  '127.0.0.256',
  '127.0.0.1.1',
  '1127.0.0.1',
].filter((host) => host !== 'localhost')

describe('in a program', () => {
  test('by default nothing but 127.0.0.1 is listened on', async () => {
    const { address, port } = await listen(server().open)
    expect(address).toBe(`http://127.0.0.1:${port}/mcp`)
    expect(await attempt('127.0.0.1', port)).toBe('connected')
    expect(await attempts(port, others)).toEqual(refused(others))
  })

  test.each(loopback)('%s needs nothing more', async (host) => {
    const { address, port } = await listen(server().open, { host })
    expect(new URL(address!).hostname).toMatch(/^(127\.\d+\.\d+\.\d+|\[::1\])$/)
    const outside = others.filter((it) => it !== '::1' && !it.startsWith('127.'))
    expect(await attempts(port, outside)).toEqual(refused(outside))
  })

  test.each(reachable)('%j is a TypeError where nobody authenticates', async (host) => {
    const upstream = server()
    const use = (options: Partial<HttpOptions>) => listen(upstream.open, { host, ...options })
    const message = `expected a token, middleware that authenticates, or allowUnauthenticated; got host ${JSON.stringify(host)}, which other machines can reach`
    await expect(use({})).rejects.toThrow(new TypeError(message))
    await expect(use({ token: undefined, allowUnauthenticated: false })).rejects.toThrow(new TypeError(message))
    await expect(use({ allowHosts: [host], allowOrigins: ['http://mcp.lan'] })).rejects.toThrow(TypeError)
    expect(upstream.wires).toEqual([])
  })

  test('an empty token protects nothing', async () => {
    await expect(listen(server().open, { host: '0.0.0.0', token: '' })).rejects.toThrow(TypeError)
  })

  test('nothing listens where it was refused', async () => {
    const listening = () => process.getActiveResourcesInfo().filter((it) => it === 'TCPServerWrap').length
    const before = listening()
    await expect(listen(server().open, { host: '0.0.0.0' })).rejects.toThrow(TypeError)
    expect(listening()).toBe(before)
    await listen(server().open)
    expect(listening()).toBe(before + 1)
  })

  test.each<[string, Partial<HttpOptions>, boolean]>([
    ['a token', { token: 'a-token' }, false],
    ['allowUnauthenticated', { allowUnauthenticated: true }, false],
    ['a middleware that authenticates', {}, true],
  ])('%s opens it', async (_name, options, authenticates) => {
    for (const host of hasIpv6 ? ['0.0.0.0', '::'] : ['0.0.0.0']) {
      const use = define(authenticates ? { admit: () => ({ principal: 'a' }) } : {}, (_ctx, next) => next())
      const { port } = await listen(server().open, { host, ...options }, (app) => app.use(use))
      expect(await attempt('127.0.0.1', port)).toBe('connected')
      // The names of others are still not taken for ours.
      const headers = { host: 'mcp.lan', authorization: 'Bearer a-token' }
      expect((await ask(port, { method: 'GET', path: '/healthz', headers })).status).toBe(403)
    }
  })

  test('a middleware that authenticates lets nobody in where it says nothing', async () => {
    const upstream = server()
    const use = define({ admit: () => undefined }, (_ctx, next) => next())
    for (const host of ['0.0.0.0', '127.0.0.1']) {
      const { port } = await listen(upstream.open, { host }, (app) => app.use(use))
      expect((await ask(port, { body: initialize() })).status).toBe(host === '0.0.0.0' ? 401 : 200)
      expect(upstream.wires).toHaveLength(host === '0.0.0.0' ? 0 : 1)
    }
  })

  test('a middleware that does not look at requests authenticates nobody', async () => {
    const use = define({ role: 'authenticate' }, (_ctx, next) => next())
    await expect(listen(server().open, { host: '0.0.0.0' }, (app) => app.use(use))).rejects.toThrow(TypeError)
  })
})

describe('the command', () => {
  let directory: string
  let marker: string
  let upstream: string[]
  let admit: string

  beforeAll(async () => {
    directory = await mkdtemp(join(tmpdir(), 'omproxy-s01-'))
    marker = join(directory, 'started')
    admit = join(directory, 'admit.mjs')
    const script = join(directory, 'server.cjs')
    await writeFile(
      script,
      `require('node:fs').writeFileSync(process.argv[2], '')
       require('node:readline').createInterface(process.stdin).on('line', (line) => {
         const { id } = JSON.parse(line)
         if (id !== undefined) console.log(JSON.stringify({ jsonrpc: '2.0', id, result: {} }))
       })`,
    )
    await writeFile(
      admit,
      `export default () => Object.assign((ctx, next) => next(), {
         admit: ({ headers }) => headers['x-key'] === 'a' ? { principal: 'a' } : { status: 401 },
       })`,
    )
    upstream = [process.execPath, script, marker]
  })

  afterAll(() => rm(directory, { recursive: true, force: true }))

  function run(listenOn: string, more: string[] = [], options?: CommandOptions) {
    const command = omproxy(['stdio', '--listen', listenOn, ...more, '--', ...upstream], options)
    closing.push(() => command.kill())
    return command
  }

  /** Resolves with the address that it says. */
  async function started(command: ReturnType<typeof run>): Promise<URL> {
    const line = /listening on (\S+)\n/
    await command.when(() => line.test(command.stderr), 'it listens')
    return new URL(line.exec(command.stderr)![1]!)
  }

  test('listens on 127.0.0.1 alone where it is told a port', async () => {
    const command = run('0')
    const { hostname, port } = await started(command)
    expect(hostname).toBe('127.0.0.1')
    expect(await attempts(Number(port), ['127.0.0.1', ...others])).toEqual({
      ...refused(others),
      '127.0.0.1': 'connected',
    })
    expect((await ask(Number(port), { method: 'GET', path: '/healthz', headers: {} })).status).toBe(200)
    expect(existsSync(marker)).toBe(false)
    command.child.kill('SIGTERM')
    expect(await command.exit).toEqual({ code: 143, signal: null })
  })

  test.each([
    ['0.0.0.0:0', '0.0.0.0'],
    ['[::]:0', '::'],
    ['mcp.lan:0', 'mcp.lan'],
    ['127.0.0.1.nip.io:0', '127.0.0.1.nip.io'],
    ['localhost.:0', 'localhost.'],
    ['0:0', '0'],
  ])('--listen %s where nobody authenticates: exit code 2, one line, nothing started', async (listenOn, host) => {
    for (const more of [[], ['--allow-host', 'mcp.lan', '--allow-origin', 'http://mcp.lan'], ['--use', 'logger']]) {
      const command = run(listenOn, more)
      expect(await command.exit).toEqual({ code: 2, signal: null })
      expect(command.texts()).toEqual([])
      expect(command.stderr).toBe(
        `omproxy: --listen: expected a token, middleware that authenticates, or allowUnauthenticated; got host "${host}", which other machines can reach\n`,
      )
      expect(existsSync(marker)).toBe(false)
    }
  })

  test.each([
    ':0',
    '::0',
    ':::0',
    '*:0',
    'a b:0',
    '0.0.0.0',
    '0.0.0.0:',
    'http://127.0.0.1:0',
    '127.0.0.1:65536',
    '-1',
  ])('--listen %s is nothing to listen on: exit code 2, one line', async (listenOn) => {
    const command = run(listenOn)
    const { code } = await command.exit
    expect([code, command.texts(), existsSync(marker)]).toEqual([2, [], false])
    expect(command.stderr).toMatch(/^omproxy: --listen: [^\n]+\n$/)
  })

  test.each<[string, string[], CommandOptions | undefined]>([
    ['an empty --token', ['--token', ''], undefined],
    ['an empty variable', ['--token-env', 'OMPROXY_TOKEN'], { env: { OMPROXY_TOKEN: '' } }],
    ['a variable that is not set', ['--token-env', 'OMPROXY_TOKEN_UNSET'], undefined],
    ['a token twice', ['--token', 'canary', '--token-env', 'OMPROXY_TOKEN'], { env: { OMPROXY_TOKEN: 'canary' } }],
  ])('%s opens nothing: exit code 2, one line', async (_name, more, options) => {
    const command = run('0.0.0.0:0', more, options)
    const { code } = await command.exit
    expect([code, command.texts(), existsSync(marker)]).toEqual([2, [], false])
    expect(command.stderr).toMatch(/^omproxy: [^\n]+\n$/)
    expect(command.stderr).not.toContain('canary')
  })

  test.each<[string, string, () => string[], Record<string, string>, number]>([
    ['--token', '0.0.0.0:0', () => ['--token', 'a-long-token'], { authorization: 'Bearer a-long-token' }, 401],
    [
      '--token-env',
      hasIpv6 ? '[::]:0' : '0.0.0.0:0',
      () => ['--token-env', 'OMPROXY_TOKEN'],
      { authorization: 'Bearer from-the-env' },
      401,
    ],
    ['--allow-unauthenticated', '0.0.0.0:0', () => ['--allow-unauthenticated'], {}, 200],
    ['a middleware that authenticates', '0.0.0.0:0', () => ['--use', admit], { 'x-key': 'a' }, 401],
  ])('%s opens it', async (_name, listenOn, more, headers, without) => {
    const command = run(listenOn, more(), { env: { OMPROXY_TOKEN: 'from-the-env' } })
    const { port } = await started(command)
    expect((await ask(Number(port), { body: initialize() })).status).toBe(without)
    if (without === 401) expect(existsSync(marker)).toBe(false)
    expect(await session(Number(port), headers)).toMatch(/^[\w-]{43}$/)
    await vi.waitFor(() => expect(existsSync(marker)).toBe(true))
    command.child.kill('SIGTERM')
    expect(await command.exit).toEqual({ code: 143, signal: null })
    await rm(marker)
  })
})
