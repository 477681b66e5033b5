import { mkdtemp, realpath, rm, writeFile } from 'node:fs/promises'
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
