import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest'
import { closing, serve } from '../fixtures/closing.js'
import { omproxy } from '../fixtures/command.js'
import { event, type Handler, json, stream } from '../fixtures/http-server.js'
import { type Asked, ask, initialize, lines, modern, open, ours, type Reply, raw, sse } from './helpers.js'

/** What must not be seen, neither on stderr nor by a client. */
const secret = {
  token: 'canary-token-5e1f',
  header: 'canary-header-9c2b',
  bearer: 'canary-bearer-77d0',
  query: 'canary-query-1a2b',
  password: 'canary-password-3c4d',
  user: 'canary-user-8e9f',
}
/** What may pass between the two peers, but is not to be seen on stderr. */
const private_ = {
  argument: 'canary-argument-0b1c',
  client: 'canary-client-6f7a',
  body: 'canary-body-2d3e',
  upstream: 'canary-upstream-4a5b',
}

/** Escapes of a terminal, line breaks, marks that turn text around, and what hides it. */
const HOSTILE =
  '\u001b[2J\u001b]0;x\u0007\r\nomproxy: forged\n\u0085\u009b31m\u202e\u2066\u200b\u2028\u2029\ufeff\u0000\u007f'
const UNSEEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/u

/** Answers as the tool's name says. */
const hostile: Handler = (seen, response) => {
  if (seen.method === 'GET') {
    const told = { jsonrpc: '2.0', method: `notifications/${HOSTILE}`, params: { data: private_.upstream } }
    stream(response).write(event(told))
    response.write(event(`{"jsonrpc":"2.0","method":"x","method":"${private_.upstream}"}`))
    response.write(event(`${private_.upstream}\u001b[31m`))
    response.write(event({ jsonrpc: '2.0', id: `${private_.upstream}\u001b`, result: {} }))
    return
  }
  if (seen.method === 'DELETE') return response.writeHead(500).end(private_.upstream)
  const { id, method, params } = JSON.parse(seen.body)
  if (method === 'initialize') {
    const result = {
      protocolVersion: `2025-11-25`,
      capabilities: {},
      serverInfo: { name: HOSTILE, version: private_.upstream },
    }
    return json(response, { jsonrpc: '2.0', id, result }, 200, { 'mcp-session-id': 'canary-upstream-session' })
  }
  if (id === undefined)
    return method.endsWith('initialized')
      ? response.writeHead(202).end()
      : response.writeHead(500).end(private_.upstream)
  if (method === 'tools/list') return json(response, { jsonrpc: '2.0', id, result: { tools: [] } })
  const answers: Record<string, () => unknown> = {
    error: () => json(response, { jsonrpc: '2.0', id, error: { code: -32000, message: HOSTILE + private_.upstream } }),
    refusal: () => json(response, { jsonrpc: '2.0', id, error: { code: -32000, message: HOSTILE } }, 400),
    500: () => response.writeHead(500).end(private_.upstream),
    401: () =>
      response.writeHead(401, { 'www-authenticate': `Bearer x="${private_.upstream}"` }).end(private_.upstream),
    403: () => response.writeHead(403).end(seen.headers.authorization),
    html: () => response.writeHead(200, { 'content-type': 'text/html' }).end(`<p>${private_.upstream}`),
    'no-json': () => json(response, `{"jsonrpc":"2.0","id":1,${private_.upstream}\u001b[31m`),
    ambiguous: () => json(response, `{"jsonrpc":"2.0","id":${id},"result":{"x":"${private_.upstream}"},"result":{}}`),
    deep: () =>
      json(
        response,
        `{"jsonrpc":"2.0","id":${id},"result":${'['.repeat(600)}"${private_.upstream}"${']'.repeat(600)}}`,
      ),
    'wrong-id': () => json(response, { jsonrpc: '2.0', id: HOSTILE, result: {} }),
    redirect: () => response.writeHead(302, { location: `http://127.0.0.1:1/${private_.upstream}` }).end(),
    broken: () => response.destroy(),
    half: () => stream(response).write(`data: {"jsonrpc":"${private_.upstream}`, () => response.destroy()),
    encoded: () =>
      response
        .writeHead(200, { 'content-type': 'application/json', 'content-encoding': 'gzip' })
        .end(private_.upstream),
  }
  const answer = answers[params?.name]
  return answer ? answer() : json(response, { jsonrpc: '2.0', id, result: { content: [] } })
}

const names = [
  'error',
  'refusal',
  '500',
  '401',
  '403',
  'html',
  'no-json',
  'ambiguous',
  'deep',
  'wrong-id',
  'redirect',
  'broken',
  'half',
  'encoded',
]
const authorized = { authorization: `Bearer ${secret.token}` }
const client = { 'x-client': private_.client, cookie: `a=${private_.client}`, 'user-agent': private_.client }

function command(kind: string[], url: URL, more: string[] = []) {
  url.username = secret.user
  url.password = secret.password
  url.search = `?key=${secret.query}`
  const running = omproxy(
    [
      ...kind,
      ...['--listen', '0', '--token-env', 'OMPROXY_TOKEN', '--log-level', 'debug', '--use', 'logger'],
      ...['--header', 'X-Key: $HEADER', '--headers', `authorization=Bearer ${secret.bearer}`],
      ...['--url', url.href],
      ...more,
    ],
    { env: { OMPROXY_TOKEN: secret.token, HEADER: secret.header } },
  )
  closing.push(() => running.kill())
  return running
}

async function portOf(running: ReturnType<typeof omproxy>): Promise<number> {
  const line = /listening on \S+:(\d+)\/mcp\n/
  await running.when(() => line.test(running.stderr), 'it listens')
  return Number(line.exec(running.stderr)![1])
}

async function finish(running: ReturnType<typeof omproxy>) {
  running.child.kill('SIGTERM')
  await running.exit
  return running.stderr
}

/** Every line is one that the proxy or its logger wrote, and shows nothing that it should not. */
function inspect(stderr: string, more: readonly string[] = []) {
  const found = [...Object.values(secret), ...Object.values(private_), ...more].filter((it) => stderr.includes(it))
  expect(found).toEqual([])
  const all = stderr.trimEnd().split('\n')
  expect(all.filter((line) => UNSEEN.test(line))).toEqual([])
  expect(all.filter((line) => !line.startsWith('omproxy: ') && !isEntry(line))).toEqual([])
  expect(all.filter((line) => line.startsWith('omproxy: forged'))).toEqual([])
}

function isEntry(line: string): boolean {
  try {
    return typeof JSON.parse(line).time === 'string'
  } catch {
    return false
  }
}

function inspectReplies(replies: readonly Partial<Reply>[]) {
  const text = JSON.stringify(replies)
  expect(Object.values(secret).filter((it) => text.includes(it))).toEqual([])
  // What belongs to a client's own message may come back to it; nothing of the head of its request does.
  expect(text).not.toContain(private_.client)
}

describe('over HTTP, in front of a server over HTTP', () => {
  test('nothing private shows, whatever goes wrong', async () => {
    const target = await serve(hostile)
    const running = command(['http'], target.url)
    const port = await portOf(running)
    const replies: Partial<Reply>[] = []
    const asks = async (asked: Asked) => {
      const reply = await ask(port, { ...asked, headers: { ...client, ...(asked.headers ?? ours) } })
      replies.push(reply)
      return reply
    }
    const ids: string[] = []
    const session = async () => {
      const { headers } = await asks({ headers: { ...ours, ...authorized }, body: initialize(HOSTILE) })
      const id = headers['mcp-session-id'] as string
      ids.push(id)
      return { ...ours, ...authorized, 'mcp-session-id': id }
    }

    // At the door.
    for (const authorization of ['Bearer canary-client-6f7a', `Basic ${secret.token}`, secret.token]) {
      await asks({ headers: { ...ours, authorization }, body: initialize() })
    }
    await asks({ headers: { ...ours, host: `${private_.client}.example` }, body: initialize() })
    await asks({ headers: { ...ours, origin: `https://${private_.client}.example` }, body: initialize() })
    await asks({ path: `/${private_.client}?token=${secret.token}`, body: initialize() })
    await asks({
      path: `/messages?sessionId=${private_.client}`,
      headers: { ...ours, ...authorized },
      body: initialize(),
    })
    await asks({ headers: { ...ours, ...authorized, 'mcp-session-id': private_.client }, body: initialize() })
    await asks({ headers: { ...ours, ...authorized, 'mcp-protocol-version': private_.client }, body: initialize() })
    await asks({ headers: { ...ours, ...authorized, 'content-type': private_.client }, body: private_.body })
    await asks({ headers: { ...ours, ...authorized, accept: private_.client }, body: private_.body })
    await asks({ headers: { ...ours, ...authorized }, body: `${private_.body}\u001b[31m` })
    await asks({
      headers: { ...ours, ...authorized },
      body: `{"jsonrpc":"2.0","id":1,"id":"${private_.body}","method":"x"}`,
    })
    await asks({ headers: { ...ours, ...authorized }, body: Buffer.from(`{"${private_.body}":"\xff\xfe"}`, 'latin1') })
    await asks({ method: 'GET', path: '/healthz', headers: {} })
    const odd = ['Host: localhost', `Authorization: Bearer ${secret.token}`]
    for (const more of [
      [`Authorization: Bearer ${secret.token}`],
      [`Mcp-Name: ${private_.client}`, `Mcp-Name: ${private_.client}`],
      [`X-${private_.client}: a\0b`],
      [`X-A: ${private_.client.repeat(1_000)}`],
      ['Content-Length: 99999999999', 'Content-Type: application/json', 'Accept: */*'],
    ]) {
      const { body, head } = await raw(port, lines('POST', '/mcp', [...odd, ...more], private_.body))
      replies.push({ body, headers: { head: head.replaceAll('\r\n', '\n') } })
    }

    // In a legacy session.
    const headers = await session()
    await asks({ headers, body: { jsonrpc: '2.0', method: 'notifications/initialized' } })
    const listening = await open(port, { method: 'GET', headers: { ...headers, accept: 'text/event-stream' } })
    for (const name of names) {
      const params = { name, arguments: { a: private_.argument, [private_.argument]: HOSTILE } }
      await asks({ headers, body: { jsonrpc: '2.0', id: 1, method: 'tools/call', params } })
    }
    for (const method of [HOSTILE, `tools/${HOSTILE}`, 'tools/call', 'resources/read', '__proto__']) {
      const params = { name: HOSTILE, uri: `file:///${HOSTILE}`, arguments: { a: private_.argument } }
      await asks({ headers, body: { jsonrpc: '2.0', id: HOSTILE, method, params } })
      await asks({ headers, body: { jsonrpc: '2.0', method, params } })
    }
    await asks({ headers, body: { jsonrpc: '2.0', id: 'nobody asked', result: { a: private_.body } } })
    await asks({ headers: { ...headers, 'last-event-id': private_.client }, method: 'GET' })
    listening.close()
    await asks({ headers, method: 'DELETE' })

    // Modern requests.
    for (const name of names) {
      const call = modern(1, 'tools/call', { name, arguments: { a: private_.argument } }, name)
      await asks({ ...call, headers: { ...call.headers, ...authorized, 'mcp-param-a': private_.client } })
    }
    const mismatched = modern(1, 'tools/call', { name: 'a', arguments: { a: private_.argument } }, private_.client)
    await asks({ ...mismatched, headers: { ...mismatched.headers, ...authorized } })

    // Over HTTP+SSE.
    const old = await sse(port, { ...client, ...authorized })
    ids.push(old.id)
    for (const body of [
      initialize(1),
      `${private_.body}\u001b[31m`,
      { jsonrpc: '2.0', id: 2, method: HOSTILE, params: { arguments: private_.argument } },
      `{"jsonrpc":"2.0","id":3,"Id":"${private_.body}","method":"x"}`,
    ]) {
      await asks({ path: old.endpoint, headers: { ...ours, ...authorized }, body })
    }
    await vi.waitFor(() => expect(old.messages().length).toBeGreaterThanOrEqual(3))
    old.close()

    const stderr = await finish(running)
    // There was something to see.
    expect(target.methods()).toContain('tools/call')
    expect(stderr.split('\n').length).toBeGreaterThan(80)
    inspect(stderr, [...ids, 'canary-upstream-session'])
    inspectReplies(replies)
    inspectReplies([{ body: old.heard() }, { body: listening.heard() }])
  })

  test.each([
    ['http', ['http']],
    ['sse', ['sse']],
    ['one that is to be found out', []],
  ])('nothing private shows of a server that cannot be reached: %s', async (_name, kind) => {
    const target = await serve(() => {})
    await closing.pop()!()
    const running = command(kind, target.url)
    const port = await portOf(running)
    const call = modern(1, 'ping')
    const replies = [
      await ask(port, { headers: { ...ours, ...client, ...authorized }, body: initialize() }),
      await ask(port, { ...call, headers: { ...call.headers, ...client, ...authorized } }),
    ]
    expect(replies.map(({ body }) => JSON.parse(body).error.code)).toEqual([-31009, -31009])
    inspect(await finish(running))
    inspectReplies(replies)
  })

  test.each([
    ['sse', ['sse']],
    ['one that is to be found out', []],
  ])('nothing private shows of a server that is none: %s', async (_name, kind) => {
    const target = await serve((seen, response) => {
      const text = `${private_.upstream} ${seen.headers.authorization} ${seen.path}\u001b[31m`
      response.writeHead(404, { 'content-type': 'text/plain', 'x-a': private_.upstream }).end(text)
    })
    const running = command(kind, target.url)
    const port = await portOf(running)
    const replies = [await ask(port, { headers: { ...ours, ...client, ...authorized }, body: initialize() })]
    expect(JSON.parse(replies[0]!.body)).toHaveProperty('error')
    inspect(await finish(running))
    inspectReplies(replies)
  })
})

describe('in front of a child', () => {
  let directory: string
  let script: string

  beforeAll(async () => {
    directory = await mkdtemp(join(tmpdir(), 'omproxy-s13-'))
    script = join(directory, 'server.cjs')
    await writeFile(
      script,
      `
const hostile = JSON.parse(process.argv[2])
require('node:readline').createInterface(process.stdin).on('line', (line) => {
  const { id, params } = JSON.parse(line)
  if (params?.name === 'stdout') process.stdout.write(hostile + '\\n')
  if (params?.name === 'stderr') process.stderr.write(hostile + '\\n')
  if (params?.name === 'exit') {
    process.stderr.write(hostile + '\\n')
    process.exit(3)
  }
  if (params?.name === 'told') {
    console.log(JSON.stringify({ jsonrpc: '2.0', method: hostile, params: {} }))
    console.log('{"jsonrpc":"2.0","method":"x","params":{"name":1,"Name":' + JSON.stringify(hostile) + '}}')
    console.log(JSON.stringify({ jsonrpc: '2.0', id: hostile, method: hostile }))
  }
  if (id !== undefined) console.log(JSON.stringify({ jsonrpc: '2.0', id, result: {} }))
})`,
    )
  })

  afterAll(() => rm(directory, { recursive: true, force: true }))

  function start(more: string[] = ['--use', 'logger']) {
    const args = ['stdio', '--listen', '0', '--token', secret.token, '--log-level', 'debug', ...more]
    const running = omproxy([...args, '--', process.execPath, script, JSON.stringify(HOSTILE)])
    closing.push(() => running.kill())
    return running
  }

  const call = (name: string) => ({
    jsonrpc: '2.0',
    id: 1,
    method: 'tools/call',
    params: { name, arguments: { a: private_.argument } },
  })

  /** Has the child do it in a legacy session and for a modern request; resolves with the lines on stderr. */
  async function has(name: string): Promise<string[]> {
    const running = start()
    const port = await portOf(running)
    const { headers } = await ask(port, { headers: { ...ours, ...authorized }, body: initialize() })
    const session = { ...ours, ...authorized, 'mcp-session-id': headers['mcp-session-id'] as string }
    const replies = [await ask(port, { headers: session, body: call(name) })]
    const asked = modern(2, 'tools/call', { name, arguments: { a: private_.argument } }, name)
    replies.push(await ask(port, { ...asked, headers: { ...asked.headers, ...authorized } }))
    inspectReplies(replies)
    const stderr = await finish(running)
    const found = Object.values({ ...secret, ...private_ }).filter((it) => stderr.includes(it))
    expect(found).toEqual([])
    return stderr.split('\n')
  }

  test.each(['stdout', 'told', 'exit', 'stderr'])('what the proxy says of it is on one line: %s', async (name) => {
    const own = (await has(name)).filter((line) => line.startsWith('omproxy: ') || line.startsWith('{'))
    expect(own.length).toBeGreaterThan(4)
    expect(own.filter((line) => UNSEEN.test(line))).toEqual([])
  })

  test('its stderr does nothing to a terminal', async () => {
    const all = await has('stderr')
    expect(all.some((line) => line.includes('[2J'))).toBe(true)
    expect(all.filter((line) => UNSEEN.test(line))).toEqual([])
  })

  test('a token of the command line is masked in the text of an error', async () => {
    const middleware = join(directory, 'tells.mjs')
    await writeFile(
      middleware,
      `export default () => (ctx, next) => {
         if (ctx.kind === 'request') throw new Error('with ' + JSON.stringify(ctx.meta?.headers ?? {}) + ${JSON.stringify(secret.token)})
         return next()
       }`,
    )
    const running = start(['--use', middleware])
    const port = await portOf(running)
    const reply = await ask(port, { headers: { ...ours, ...authorized }, body: initialize() })
    expect(JSON.parse(reply.body)).toEqual({
      jsonrpc: '2.0',
      id: 0,
      error: { code: -32603, message: 'Internal error' },
    })
    const stderr = await finish(running)
    expect(stderr).toContain('with ')
    expect(stderr).not.toContain(secret.token)
  })
})

test('a health check tells nothing that is secret', async () => {
  const target = await serve(hostile)
  const running = command(['http'], target.url)
  const port = await portOf(running)
  const reply = await ask(port, { method: 'GET', path: '/healthz', headers: {} })
  expect(JSON.parse(reply.body)).toEqual({
    status: 'ok',
    uptime: expect.any(Number),
    sessions: 0,
    pending: 0,
    upstream: { name: expect.stringMatching(new RegExp(`^http://${target.url.host}(/mcp)?$`)), state: 'unknown' },
  })
  inspect(await finish(running))
})
