import { mkdir, mkdtemp, realpath, rename, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import { ToolListChangedNotificationSchema } from '@modelcontextprotocol/sdk/types.js'
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest'
import { type CommandOptions, omproxy, type Running } from '../fixtures/command.js'
import { everything } from '../fixtures/servers.js'

/** Renames a tool on its way to the server, and hides nothing. */
const shout = (mark: string) => `
  export default ({ mark = '${mark}' } = {}) => (ctx, next) => {
    if (ctx.isRequest('tools/call') && ctx.name === 'echo') ctx.params.arguments.message += mark
    return next()
  }`

let directory: string
const runs: Running[] = []

beforeAll(async () => {
  directory = await realpath(await mkdtemp(join(tmpdir(), 'omproxy-file-')))
})

afterAll(() => rm(directory, { recursive: true, force: true }))

afterEach(() => {
  for (const run of runs.splice(0)) {
    run.kill()
    expect(run.odd).toEqual([])
  }
})

const put = (name: string, content: string | object) =>
  writeFile(join(directory, name), typeof content === 'string' ? content : JSON.stringify(content))

function run(args: string[], options?: CommandOptions): Running {
  const command = omproxy(args, options)
  runs.push(command)
  return command
}

const upstream = { command: process.execPath, args: [everything] }

const initialize = {
  jsonrpc: '2.0',
  id: 'init',
  method: 'initialize',
  params: { protocolVersion: '2025-11-25', capabilities: {}, clientInfo: { name: 'test', version: '1' } },
}

/** The command behind a port, with a client that has a session. */
async function served(name: string, ...options: string[]) {
  const command = run(['--config', join(directory, name), ...options])
  await command.when(() => /listening on \S+\/mcp/.test(command.stderr), 'it listens')
  const [url] = /http:\S+/.exec(command.stderr) as unknown as [string]
  const client = new Client({ name: 'test', version: '1' })
  let changes = 0
  client.setNotificationHandler(ToolListChangedNotificationSchema, () => void changes++)
  const transport = new StreamableHTTPClientTransport(new URL(url))
  await client.connect(transport)
  const echo = async () => {
    const { content } = await client.callTool({ name: 'echo', arguments: { message: 'x' } })
    return (content as { text: string }[])[0]?.text
  }
  const says = (text: string, times = 1) =>
    command.when(() => command.said().filter((it) => it.includes(text)).length >= times, text)
  return { command, client, transport, echo, says, url, changes: () => changes }
}

test('SIGHUP makes the stack anew without dropping a session; a broken file keeps the old one and says why', async () => {
  await put('shout.mjs', shout('!'))
  const file = { upstream, listen: 0, use: ['./shout.mjs'] }
  await put('hup.json', file)
  const { command, client, transport, echo, says, changes } = await served('hup.json')
  const session = transport.sessionId
  expect(await echo()).toBe('Echo: x!')

  await put('hup.json', { ...file, use: [{ './shout.mjs': { mark: '?' } }, './shout.mjs'] })
  command.child.kill('SIGHUP')
  await says('reloaded the stack')
  expect(await echo()).toBe('Echo: x?!')

  await put('hup.json', { ...file, use: ['./no-such.mjs'] })
  command.child.kill('SIGHUP')
  await says('the old stack stays')
  expect(await echo()).toBe('Echo: x?!')
  await put('hup.json', '{')
  command.child.kill('SIGHUP')
  await says('the old stack stays', 2)
  expect(await echo()).toBe('Echo: x?!')

  await put('hup.json', { ...file, upstream: { command: 'other' }, use: [] })
  command.child.kill('SIGHUP')
  await says('reloaded the stack; upstream: from the next start on')
  expect(await echo()).toBe('Echo: x')
  expect(transport.sessionId).toBe(session)
  expect(changes()).toBe(3)
  expect(command.said().slice(1)).toEqual([
    'omproxy: reloaded the stack',
    `omproxy: hup.json: use[0] (./no-such.mjs): expected a module in ${directory} (a path begins with ./, ../ or /), found none; the old stack stays`,
    'omproxy: hup.json: expected JSON, got what does not parse at position 1; the old stack stays',
    'omproxy: reloaded the stack; upstream: from the next start on',
  ])
  await client.close()
  command.child.kill('SIGTERM')
  expect(await command.exit).toEqual({ code: 143, signal: null })
})

test('--watch makes it anew when the file, or one of its modules, changes', async () => {
  await put('watched.mjs', shout('1'))
  await put('watch.json', { upstream, listen: 0, use: ['./watched.mjs'] })
  const { command, client, echo, says } = await served('watch.json', '--watch')
  expect(await echo()).toBe('Echo: x1')
  await put('watched.mjs', shout('2'))
  await says('reloaded the stack')
  expect(await echo()).toBe('Echo: x2')
  await put('watch.json', { upstream, listen: 0, use: ['./watched.mjs', './watched.mjs'] })
  await says('reloaded the stack', 2)
  expect(await echo()).toBe('Echo: x22')
  await client.close()
  command.child.kill('SIGTERM')
  expect(await command.exit).toEqual({ code: 143, signal: null })
})

test('--watch sees a file that takes the place of another, behind a link too, and one that is repaired', async () => {
  for (const version of ['v1', 'v2']) {
    await mkdir(join(directory, version))
    await put(`${version}/linked.mjs`, shout(version))
    await put(`${version}/linked.json`, { upstream, listen: 0, use: [{ './linked.mjs': { mark: version } }] })
  }
  await symlink('v1', join(directory, 'now'))
  await symlink('now/linked.json', join(directory, 'linked.json'))
  await symlink('now/linked.mjs', join(directory, 'linked.mjs'))
  const { client, echo, says } = await served('linked.json', '--watch')
  expect(await echo()).toBe('Echo: xv1')
  await symlink('v2', join(directory, 'then'))
  await rename(join(directory, 'then'), join(directory, 'now'))
  await says('reloaded the stack')
  expect(await echo()).toBe('Echo: xv2')

  await put('next.json', { upstream, listen: 0, use: ['./new.mjs'] })
  await put('new.mjs', 'export default (')
  await rename(join(directory, 'next.json'), join(directory, 'linked.json'))
  await says('the old stack stays')
  await put('new.mjs', shout('new'))
  await says('reloaded the stack', 2)
  expect(await echo()).toBe('Echo: xnew')
  await client.close()
})

test('a start that never ends holds neither what is served nor the end', async () => {
  await put(
    'slow.mjs',
    `export default () => Object.assign((ctx, next) => next(), { start: () => new Promise(() => {}) })`,
  )
  await put('slow.json', { upstream, listen: 0 })
  const { command, client, echo } = await served('slow.json', '--log-level', 'info')
  await put('slow.json', { upstream, listen: 0, use: ['./slow.mjs'] })
  command.child.kill('SIGHUP')
  expect(await echo()).toBe('Echo: x')
  await client.close()
  command.child.kill('SIGTERM')
  expect(await command.exit).toEqual({ code: 143, signal: null })
})

test('a client that does not read holds up no reload', async () => {
  await put(
    'flood.mjs',
    `export default () => (ctx, next) => {
    if (ctx.method === 'flood') for (let i = 0; i < 40; i++) ctx.session.notify('client', 'n', { text: 'x'.repeat(1e5) }).catch(() => {})
    return next()
  }`,
  )
  await put('flood.json', { upstream, use: ['./flood.mjs'] })
  const command = run(['--config', join(directory, 'flood.json')])
  command.send(initialize)
  await command.until(1)
  command.child.stdout.pause()
  command.send({ jsonrpc: '2.0', method: 'flood' })
  for (const times of [1, 2, 3]) {
    command.child.kill('SIGHUP')
    await command.when(() => command.said().filter((it) => it.includes('reloaded')).length >= times, `reload ${times}`)
  }
  command.child.stdout.resume()
  await command.until(1 + 40 + 9)
  expect(await command.end()).toEqual({ code: 0, signal: null })
})

test('no error shows what came from the environment, at the start or later', async () => {
  const env = { TOKEN: 's3cret-token', KEY: 'first "line"\nsecond line', OLD: 's3cret-old' }
  await put(
    'quoting.mjs',
    `export default (text) => { if (text === 's3cret-old') return (ctx, next) => next(); throw new Error('got ' + JSON.stringify(text)) }`,
  )
  const asks = (use: string, more: object = {}) => ({ upstream, listen: 0, use: [{ './quoting.mjs': use }], ...more })
  const refused: [object, string][] = [
    [asks('$TOKEN'), 'use[0] (./quoting.mjs): default(options) failed: got "***"'],
    [asks('$KEY'), 'use[0] (./quoting.mjs): default(options) failed: got "***"'],
    [asks('', { listen: '$TOKEN' }), 'listen: expected PORT or HOST:PORT, with a port from 0 to 65535, got "***"'],
  ]
  for (const [file, text] of refused) {
    await put('secret.json', file)
    const command = run(['--config', join(directory, 'secret.json')], { env })
    expect(await command.exit).toEqual({ code: 2, signal: null })
    expect(command.stderr).toBe(`omproxy: secret.json: ${text}\n`)
  }
  await put('secret.json', asks('$OLD'))
  const command = run(['--config', join(directory, 'secret.json')], { env })
  await command.when(() => command.stderr.includes('listening'), 'it listens')
  for (const [at, [file, text]] of refused.entries()) {
    await put('secret.json', file)
    command.child.kill('SIGHUP')
    await command.when(() => command.said().length === at + 2, text)
    expect(command.said().at(-1)).toBe(`omproxy: secret.json: ${text}; the old stack stays`)
  }
})

test('over stdio: what a file prints goes to stderr, the environment to the server, and it ends with its client', async () => {
  await put(
    'printing.ts',
    `import { defineProxy, onRequest } from 'open-mcp-proxy'
     console.log('from the file')
     export default defineProxy({
       mcpServers: { one: { command: 'no-such' }, two: { command: process.execPath, args: [${JSON.stringify(everything)}], env: { SECRET: '$TOKEN' } } },
       upstream: 'one',
       use: [onRequest('tools/list', () => { throw new Error('with ' + process.env.TOKEN) })],
       logLevel: 'info',
     })`,
  )
  const options = { env: { TOKEN: 's3cret-token' } }
  const command = run(['--config', join(directory, 'printing.ts'), '--server', 'two', '--watch'], options)
  const call = { jsonrpc: '2.0', id: 1, method: 'tools/call', params: { name: 'get-env', arguments: {} } }
  command.send(call, { jsonrpc: '2.0', id: 2, method: 'tools/list' })
  await command.until(2)
  expect(await command.end()).toEqual({ code: 0, signal: null })
  const answers = new Map(command.messages().map((it) => [it.id, it]))
  expect(JSON.parse(answers.get(1).result.content[0].text)).toMatchObject({
    SECRET: 's3cret-token',
    PATH: process.env.PATH,
  })
  expect(answers.get(2)).toMatchObject({ error: { code: -32603, message: 'Internal error' } })
  expect(command.stderr).toContain('from the file\n')
  expect(command.said().join('\n')).toContain('omproxy: with *** (client-to-server request tools/list)')
  expect(command.said().join('\n')).not.toContain('s3cret-token')
})

test('the command line stands before the file: where it listens, what it says, what is next to the client', async () => {
  await put('first.mjs', shout('<'))
  await put('over.json', { upstream, use: [{ './first.mjs': { mark: '>' } }], logLevel: 'silent' })
  const use = ['--use', join(directory, 'first.mjs')]
  const { command, client, echo } = await served('over.json', '--listen', '0', '--log-level', 'warn', ...use)
  expect(await echo()).toBe('Echo: x<>')
  await client.close()
  command.child.kill('SIGTERM')
  await command.exit
})

test('proxy.config.json of the working directory needs no option; what is wrong with it is a usage error', async () => {
  const cwd = await mkdtemp(join(directory, 'cwd-'))
  await writeFile(join(cwd, 'proxy.config.json'), JSON.stringify({ upstream, use: ['logger'] }))
  const command = run([], { cwd })
  command.send({ jsonrpc: '2.0', id: 1, method: 'ping' })
  await command.until(1)
  expect(await command.end()).toEqual({ code: 0, signal: null })
  expect(command.stderr).toContain('"method":"ping"')
  await writeFile(join(cwd, 'proxy.config.json'), JSON.stringify({ upstream, use: [{ logger: { format: 1 } }] }))
  const broken = run([], { cwd })
  expect(await broken.exit).toEqual({ code: 2, signal: null })
  expect(broken.stderr).toBe(
    'omproxy: proxy.config.json: use[0].logger.format: expected one of "pretty", "json", got a number\n',
  )
})

test('without a file SIGHUP ends it, as ever', async () => {
  const command = run(['stdio', '--listen', '0', '--', process.execPath, everything])
  await command.when(() => command.stderr.includes('listening'), 'it listens')
  command.child.kill('SIGHUP')
  expect(await command.exit).toEqual({ code: 129, signal: null })
})
