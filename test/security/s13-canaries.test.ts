import { createHash, createHmac } from 'node:crypto'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import { createRequire } from 'node:module'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { pathToFileURL } from 'node:url'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { closing, serve } from '../fixtures/closing.js'
import { omproxy } from '../fixtures/command.js'
import { event, type Handler, json, stream } from '../fixtures/http-server.js'
import { type Asked, ask, initialize, modern, open, ours } from './helpers.js'

/** All that leaves the proxy. `server` is what reaches the upstream. */
type Output = 'client' | 'server' | 'stderr' | 'audit' | 'recording' | 'metrics' | 'traces' | 'health'

let directory: string
let traces = ''
let collector: string

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'omproxy-s13-'))
  traces = ''
  const receiver = createServer(async (request, response) => {
    traces += await text(request)
    response.writeHead(200, { 'content-type': 'application/json' }).end('{}')
  })
  await new Promise<void>((resolve) => receiver.listen(0, '127.0.0.1', resolve))
  collector = `http://127.0.0.1:${(receiver.address() as AddressInfo).port}/v1/traces`
  closing.push(() => {
    receiver.close()
    receiver.closeAllConnections()
  })
})
afterEach(() => rm(directory, { recursive: true, force: true }))

/** What a whole deployment has: its stack, its configuration in a file, its secrets in the environment. */
async function deployed(upstream: object, env: Record<string, string>) {
  const use = [
    { metrics: { port: 0, tools: true } },
    {
      auth: {
        tokens: [{ token: '$OWN_TOKEN', id: 'ada' }],
        apiKeys: [{ hash: createHash('sha256').update('canary-api-key').digest('hex'), id: 'robot' }],
        jwt: { issuer: 'https://id.example', audience: 'us', secret: '$JWT_SECRET' },
      },
    },
    { audit: { file: 'audit.jsonl' } },
    { record: { file: 'recording.jsonl' } },
    'trace',
    'logger',
    { './throws.mjs': { secret: '$THROWN_SECRET' } },
  ]
  const throws = `export default ({ secret }) => (ctx, next) => {
    if (ctx.name === 'throws' && ctx.kind === 'request') throw new Error('canary-thrown-text with ' + secret + ' and ' + process.env.OWN_TOKEN)
    return next()
  }`
  await writeFile(join(directory, 'throws.mjs'), throws)
  const config = { upstream, listen: { port: 0 }, use, logLevel: 'debug' }
  await writeFile(join(directory, 'proxy.config.json'), JSON.stringify(config))
  const at = (name: string) => pathToFileURL(createRequire(import.meta.url).resolve(name)).href
  const register = `
    import api from '${at('@opentelemetry/api')}'
    import sdk from '${at('@opentelemetry/sdk-trace-base')}'
    import otlp from '${at('@opentelemetry/exporter-trace-otlp-http')}'
    const spanProcessors = [new sdk.SimpleSpanProcessor(new otlp.OTLPTraceExporter({ url: '${collector}' }))]
    api.trace.setGlobalTracerProvider(new sdk.BasicTracerProvider({ spanProcessors }))`
  await writeFile(join(directory, 'telemetry.mjs'), register)
  const NODE_OPTIONS = `--import=${pathToFileURL(join(directory, 'telemetry.mjs')).href}`
  const running = omproxy(['--config', 'proxy.config.json'], { cwd: directory, env: { ...env, NODE_OPTIONS } })
  closing.push(() => running.kill())
  const addressed = (what: string) => new RegExp(`${what}: listening on http://127\\.0\\.0\\.1:(\\d+)/`)
  for (const what of ['omproxy', 'metrics']) await running.when(() => addressed(what).test(running.stderr), what)
  const portOf = (what: string) => Number(addressed(what).exec(running.stderr)![1])
  const port = portOf('omproxy')
  let client = ''
  const asks = async (asked: Asked) => {
    const reply = await ask(port, asked)
    client += JSON.stringify(reply)
    return reply
  }
  const hear = (text: string) => {
    client += text
  }
  const get = async (port: number, path: string) => (await ask(port, { method: 'GET', path, headers: {} })).body
  /** Ends it, and gives all that it let out. */
  async function outputs(server: string): Promise<Record<Output, string>> {
    const metrics = await get(portOf('metrics'), '/metrics')
    const health = await get(port, '/healthz')
    running.child.kill('SIGTERM')
    await running.exit
    const file = (name: string) => readFile(join(directory, name), 'utf8')
    const [audit, recording] = [await file('audit.jsonl'), await file('recording.jsonl')]
    return { client, server, stderr: running.stderr, audit, recording, metrics, traces, health }
  }
  return { port, asks, outputs, hear }
}

/** Where each canary was let out. */
function sightings(canaries: Record<string, readonly Output[]>, outputs: Record<Output, string>) {
  // None of them is there by being absent.
  for (const [name, text] of Object.entries(outputs)) expect([name, text.length > 10]).toEqual([name, true])
  const seen = (canary: string) =>
    Object.entries(outputs).flatMap(([name, text]) => (text.includes(canary) ? [name] : []))
  return Object.fromEntries(Object.keys(canaries).map((canary) => [canary, seen(canary).sort()]))
}

const sorted = (canaries: Record<string, readonly Output[]>) =>
  Object.fromEntries(Object.entries(canaries).map(([name, where]) => [name, [...where].sort()]))

function jwt(secret: string): string {
  const part = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url')
  const exp = Math.floor(Date.now() / 1_000) + 600
  const claims = { iss: 'https://id.example', aud: 'us', sub: 'eve', exp, claim: 'canary-claim' }
  const input = `${part({ alg: 'HS256' })}.${part(claims)}`
  return `${input}.${createHmac('sha256', secret).update(input).digest('base64url')}`
}

const secret = {
  OWN_TOKEN: 'canary-own-token',
  JWT_SECRET: 'canary-jwt-secret-of-more-than-32-bytes',
  THROWN_SECRET: 'canary-thrown-secret',
  UPSTREAM_HEADER: 'canary-upstream-header',
  CHILD_SECRET: 'canary-child-secret',
  UNUSED_SECRET: 'canary-unused-secret',
}
const right = { authorization: `Bearer ${secret.OWN_TOKEN}` }
const call = (id: unknown, name: string, args: object = {}, more: object = {}) => ({
  jsonrpc: '2.0',
  id,
  method: 'tools/call',
  params: { name, arguments: args, ...more },
})

test('what is secret is let out nowhere, and what is private only to whom it belongs: a server over HTTP', async () => {
  const answers: Record<string, Handler> = {
    error: (seen, response) =>
      json(response, { jsonrpc: '2.0', id: JSON.parse(seen.body).id, error: { code: -1, message: 'canary-error' } }),
    refuses: (_seen, response) =>
      response.writeHead(403, { 'www-authenticate': 'Bearer x="canary-challenge"' }).end('canary-refusal'),
    fails: (_seen, response) => response.writeHead(500, { 'x-a': 'canary-foreign-header' }).end('canary-failure'),
    redirects: (_seen, response) => response.writeHead(302, { location: 'http://127.0.0.1:1/canary-location' }).end(),
    babbles: (_seen, response) => json(response, '{"jsonrpc":"2.0","id":9,canary-no-json'),
    doubts: (_seen, response) =>
      json(response, '{"jsonrpc":"2.0","id":9,"result":{"a":"canary-ambiguous"},"result":{}}'),
  }
  const target = await serve((seen, response) => {
    if (seen.method === 'GET') {
      const data = {
        jsonrpc: '2.0',
        method: 'notifications/message',
        params: { level: 'info', data: 'canary-server-log' },
      }
      return stream(response).write(event(data))
    }
    if (seen.method === 'DELETE') return response.writeHead(200).end()
    const { id, method, params } = JSON.parse(seen.body)
    if (id === undefined) return response.writeHead(202).end()
    const answer = answers[params?.name]
    if (answer) return answer(seen, response)
    const result =
      method === 'initialize'
        ? { protocolVersion: '2025-11-25', capabilities: {}, serverInfo: { name: 'canary-server-name', version: '1' } }
        : { content: [{ type: 'text', text: 'canary-result-text' }], token: 'canary-result-secret' }
    return json(response, { jsonrpc: '2.0', id, result }, 200, { 'mcp-session-id': 'canary-upstream-session' })
  })
  const { url } = target
  url.username = 'canary-user'
  url.password = 'canary-password'
  url.search = '?key=canary-url-query'
  const upstream = { url: url.href, type: 'http', headers: { 'X-Key': '$UPSTREAM_HEADER' } }
  const { port, asks, outputs, hear } = await deployed(upstream, secret)

  const client = { cookie: 'a=canary-cookie', 'x-any': 'canary-client-header', 'user-agent': 'canary-agent' }
  const { headers } = await asks({
    path: '/mcp?q=canary-client-query',
    headers: { ...ours, ...right, ...client },
    body: initialize(0),
  })
  const id = String(headers['mcp-session-id'])
  const session = { ...ours, ...right, ...client, 'mcp-session-id': id }
  await asks({ headers: session, body: { jsonrpc: '2.0', method: 'notifications/initialized' } })
  const listening = await open(port, { method: 'GET', headers: { ...session, accept: 'text/event-stream' } })
  await vi.waitFor(() => expect(listening.heard()).toContain('canary-server-log'))
  const args = { a: 'canary-argument-text', password: 'canary-argument-secret', text: 'Bearer canary-argument-bearer' }
  await asks({ headers: session, body: call(1, 'canary-tool', args, { _meta: { a: 'canary-meta' } }) })
  for (const name of [...Object.keys(answers), 'throws']) await asks({ headers: session, body: call(9, name, args) })
  const asked = modern(2, 'tools/call', { name: 'throws', arguments: args }, 'throws')
  await asks({ ...asked, headers: { ...asked.headers, ...right, ...client, 'mcp-param-a': 'canary-param' } })
  // Who is somebody else, and who is nobody.
  const key = { 'x-api-key': 'canary-api-key' }
  const token = jwt(secret.JWT_SECRET)
  for (const who of [key, { authorization: `Bearer ${token}` }])
    await asks({ headers: { ...ours, ...who }, body: initialize(0) })
  const nobody: Asked[] = [
    { headers: { ...ours, authorization: 'Bearer canary-wrong-token' }, body: initialize(0) },
    { headers: { ...ours, authorization: 'Basic canary-wrong-scheme' }, body: initialize(0) },
    { headers: { ...ours, 'x-api-key': 'canary-wrong-key' }, body: initialize(0) },
    { headers: { ...ours, ...right, ...key }, body: initialize(0) },
    { headers: { ...ours, ...right, host: 'canary-host.example' }, body: initialize(0) },
    { headers: { ...ours, ...right, origin: 'https://canary-origin.example' }, body: initialize(0) },
    { path: '/canary-path', headers: { ...ours, ...right }, body: initialize(0) },
    { headers: { ...ours, ...right, 'mcp-session-id': 'canary-wrong-session' }, body: initialize(0) },
    { headers: session, body: '{"canary-no-body' },
    { headers: session, body: '{"jsonrpc":"2.0","id":1,"id":"canary-two-ids","method":"x"}' },
    { headers: session, body: { jsonrpc: '2.0', id: 'x', result: { a: 'canary-nobodys-answer' } } },
    { method: 'GET', headers: { ...session, 'last-event-id': 'canary-event-id' } },
  ]
  for (const it of nobody) await asks(it)
  await vi.waitFor(() => expect(traces).toContain('throws'), { timeout: 10_000 })
  hear(listening.heard())
  listening.close()

  const canaries: Record<string, Output[]> = {
    // Ours, and those of a client's own request.
    'canary-own-token': [],
    'canary-jwt-secret': [],
    'canary-thrown-secret': [],
    'canary-unused-secret': [],
    'canary-api-key': [],
    [token.split('.')[2]!]: [],
    'canary-claim': [],
    'canary-cookie': [],
    'canary-client-header': [],
    'canary-client-query': [],
    'canary-agent': [],
    'canary-param': [],
    // What nobody was let in with.
    'canary-wrong-token': [],
    'canary-wrong-scheme': [],
    'canary-wrong-key': [],
    'canary-wrong-session': [],
    'canary-host': [],
    'canary-origin': [],
    'canary-path': [],
    'canary-no-body': [],
    'canary-two-ids': [],
    'canary-nobodys-answer': [],
    'canary-event-id': [],
    // What is for the server alone.
    'canary-upstream-header': ['server'],
    [Buffer.from('canary-user:canary-password').toString('base64')]: ['server'],
    'canary-password': [],
    'canary-url-query': ['server'],
    'canary-upstream-session': ['server'],
    'canary-argument-secret': ['server'],
    'canary-argument-bearer': ['server'],
    // What is said between the two, of which a recording is made.
    'canary-argument-text': ['server', 'recording'],
    'canary-meta': ['server', 'recording'],
    'canary-result-text': ['client', 'recording'],
    'canary-result-secret': ['client'],
    'canary-server-log': ['client', 'recording'],
    'canary-server-name': ['client', 'recording'],
    'canary-error': ['client', 'recording', 'traces'],
    // What a server says where it should have answered.
    'canary-challenge': [],
    'canary-refusal': [],
    'canary-foreign-header': [],
    'canary-failure': [],
    'canary-location': [],
    'canary-no-json': [],
    'canary-ambiguous': [],
    // The words of a middleware's error are for whoever runs the proxy.
    'canary-thrown-text': ['stderr'],
    // The name of a tool is what logs are about. One that has answered is a label of metrics where that was asked for.
    'canary-tool': ['server', 'stderr', 'audit', 'recording', 'traces', 'metrics'],
    [id]: ['client'],
  }
  const heard = target.seen.map(({ path, headers, body }) => JSON.stringify([path, headers]) + body).join()
  expect(sightings(canaries, await outputs(heard))).toEqual(sorted(canaries))
})

test('what is secret is let out nowhere, and what is private only to whom it belongs: a child', async () => {
  const log = join(directory, 'heard')
  const script = `
    const { appendFileSync } = require('node:fs')
    require('node:readline').createInterface(process.stdin).on('line', (line) => {
      appendFileSync(process.argv[2], line + '\\n')
      const { id, params } = JSON.parse(line)
      if (id === undefined) return
      if (params.name === 'stdout') console.log('canary-stdout-noise')
      if (params.name === 'stderr') console.error('canary-stderr')
      if (params.name === 'exit') {
        console.error('canary-last-words')
        process.exit(3)
      }
      const secret = params.name === 'environment' ? process.env.CHILD_SECRET : 'none'
      console.log(JSON.stringify({ jsonrpc: '2.0', id, result: { content: [], secret } }))
    })`
  await writeFile(join(directory, 'server.cjs'), script)
  const upstream = {
    command: process.execPath,
    args: [join(directory, 'server.cjs'), log, '--key=canary-argv'],
    env: { CHILD_SECRET: '$CHILD_SECRET' },
  }
  const { asks, outputs } = await deployed(upstream, secret)
  const initialized = async () => {
    const { headers } = await asks({ headers: { ...ours, ...right }, body: initialize(0) })
    return { ...ours, ...right, 'mcp-session-id': String(headers['mcp-session-id']) }
  }
  const session = await initialized()
  const args = { a: 'canary-argument-text', apiKey: 'canary-argument-secret' }
  for (const name of ['environment', 'stdout', 'stderr', 'throws', 'exit']) {
    await asks({ headers: session, body: call(1, name, args) })
    const asked = modern(2, 'tools/call', { name, arguments: args }, name)
    await asks({ ...asked, headers: { ...asked.headers, ...right } })
  }
  await vi.waitFor(() => expect(traces).toContain('exit'), { timeout: 10_000 })
  const canaries: Record<string, Output[]> = {
    'canary-own-token': [],
    'canary-jwt-secret': [],
    'canary-thrown-secret': [],
    'canary-unused-secret': [],
    'canary-argv': [],
    // It has told its client itself.
    'canary-child-secret': ['client'],
    'canary-argument-text': ['server', 'recording'],
    'canary-argument-secret': ['server'],
    'canary-stdout-noise': ['stderr'],
    'canary-stderr': ['stderr'],
    'canary-last-words': ['stderr'],
    'canary-thrown-text': ['stderr'],
    [session['mcp-session-id']]: ['client'],
  }
  expect(sightings(canaries, await outputs(await readFile(log, 'utf8')))).toEqual(sorted(canaries))
})
