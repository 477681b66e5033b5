import { http, stdio } from 'open-mcp-proxy'
import { describe, expect, test, vi } from 'vitest'
import { closing, serve } from '../fixtures/closing.js'
import { type Handler, json, stream } from '../fixtures/http-server.js'
import { relay } from '../fixtures/relay.js'
import {
  ask,
  denied,
  eventsIn,
  initialize,
  invalidRequest,
  lines,
  listen,
  MODERN,
  modern,
  type Opened,
  open,
  ours,
  raw,
  server,
  session,
  sse,
  told,
} from './helpers.js'

/** Values that no header can carry as they are, or that would be read as something else. */
const awkward: Record<string, string> = {
  'a line break and a header': 'a\r\nX-Evil: 1',
  'a line break and a request': 'a\r\n\r\nGET /evil HTTP/1.1\r\nHost: x\r\n\r\n',
  'a line feed': 'a\nb',
  'a carriage return': 'a\rb',
  'a NUL': 'a\0b',
  'an escape': 'a\u001b[31mb',
  'a DEL': 'a\u007fb',
  'C1 controls': 'a\u0085\u009bb',
  'line separators': 'a\u2028\u2029b',
  'what ends up as a line break in Latin-1': 'a\u560d\u560ab',
  'another script': '工具/é👋',
  'a lone surrogate half is replaced': 'a\ufffdb',
  'space around it': ' a ',
  'a tab around it': '\ta',
  nothing: '',
  'a sentinel': '=?base64?YQ==?=',
  'a broken sentinel': '=?base64?!!?=',
}

const encoded = (value: string) => `=?base64?${Buffer.from(value).toString('base64')}?=`
/** Only a sentinel that cannot be decoded stays what it is. */
const plain = ['a b', 'a,b', 'a;b="c"', 'a:b', '__proto__', '=?base64?', '=?utf-8?Q?a?=']

const answering =
  (tools: object[] = []): Handler =>
  (seen, response) => {
    if (seen.method !== 'POST') return response.writeHead(405).end()
    const { id, method } = JSON.parse(seen.body)
    if (id === undefined) return response.writeHead(202).end()
    return json(response, { jsonrpc: '2.0', id, result: method === 'tools/list' ? { tools } : {} })
  }

describe('what a client names cannot make headers for the upstream', () => {
  const methods: [method: string, member: string][] = [
    ['tools/call', 'name'],
    ['prompts/get', 'name'],
    ['resources/read', 'uri'],
    ['tasks/get', 'taskId'],
  ]

  test.each(methods)('%s', async (method, member) => {
    const target = await serve(answering())
    const { port } = await listen(http(target.url))
    for (const value of [...Object.values(awkward), ...plain]) {
      const header = plain.includes(value) ? value : encoded(value)
      const call = modern(1, method, { [member]: value }, header)
      expect(told(await ask(port, call))).toEqual({ status: 200, body: { jsonrpc: '2.0', id: 1, result: {} } })
      const { headers, body, path } = target.seen.at(-1)!
      const { 'mcp-name': name, 'mcp-method': said, ...rest } = headers
      expect([name, said, path]).toEqual([header, method, '/mcp'])
      expect(Object.keys(rest).sort()).toEqual([
        ...[
          'accept',
          'accept-encoding',
          'connection',
          'content-length',
          'content-type',
          'host',
          'mcp-protocol-version',
        ],
      ])
      expect(body).toBe(JSON.stringify(call.body))
    }
    expect(target.seen.filter(({ path, headers }) => path !== '/mcp' || 'x-evil' in headers)).toEqual([])
  })

  test('a method', async () => {
    const target = await serve(answering())
    const { port } = await listen(http(target.url))
    for (const method of Object.values(awkward)) {
      const { headers, body } = modern(1, method)
      const reply = await ask(port, { headers: { ...headers, 'mcp-method': encoded(method) }, body })
      expect(told(reply)).toEqual({ status: 200, body: { jsonrpc: '2.0', id: 1, result: {} } })
      expect(target.seen.at(-1)!.headers['mcp-method']).toBe(encoded(method))
    }
  })

  test('in a legacy session there is no such header at all', async () => {
    const target = await serve(answering())
    const { port } = await listen(http(target.url))
    const headers = { ...ours, 'mcp-session-id': await session(port) }
    for (const value of Object.values(awkward)) {
      for (const [method, member] of methods) {
        const body = { jsonrpc: '2.0', id: 1, method, params: { [member]: value, arguments: { a: value } } }
        expect((await ask(port, { headers, body })).status).toBe(200)
        expect(target.seen.at(-1)).toMatchObject({ path: '/mcp', body: JSON.stringify(body) })
        expect(Object.keys(target.seen.at(-1)!.headers).filter((it) => /^(mcp-|x-)/.test(it))).toEqual([])
      }
    }
  })

  test('arguments that a tool wants in headers', async () => {
    const inputSchema = { type: 'object', properties: { a: { type: 'string', 'x-mcp-header': 'A' } } }
    const target = await serve(answering([{ name: 'a', inputSchema }]))
    const { port } = await listen(http(target.url))
    for (const value of Object.values(awkward)) {
      const { headers, body } = modern(1, 'tools/call', { name: 'a', arguments: { a: value } }, 'a')
      const reply = await ask(port, { headers: { ...headers, 'mcp-param-a': encoded(value) }, body })
      expect(told(reply)).toEqual({ status: 200, body: { jsonrpc: '2.0', id: 1, result: {} } })
      const { headers: got } = target.seen.at(-1)!
      expect(got['mcp-param-a']).toBe(encoded(value))
      expect(Object.keys(got)).not.toContain('x-evil')
    }
  })

  test('what a server wants headers to be called', async () => {
    const names = ['A\r\nX-Evil', 'A B', 'A:', '', 'é', 'A\0', '__proto__', 'Good']
    const properties = Object.fromEntries(names.map((name, at) => [`a${at}`, { type: 'string', 'x-mcp-header': name }]))
    const target = await serve(answering([{ name: 'a', inputSchema: { type: 'object', properties } }]))
    const { port } = await listen(http(target.url))
    const args = Object.fromEntries(names.map((_, at) => [`a${at}`, 'v']))
    const { headers, body } = modern(1, 'tools/call', { name: 'a', arguments: args }, 'a')
    const reply = await ask(port, { headers: { ...headers, 'mcp-param-good': 'v', 'mcp-param-__proto__': 'v' }, body })
    expect(told(reply)).toEqual({ status: 200, body: { jsonrpc: '2.0', id: 1, result: {} } })
    const params = Object.entries(target.seen.at(-1)!.headers).filter(([name]) => /^(mcp-param|x-)/.test(name))
    expect(Object.fromEntries(params)).toEqual({ 'mcp-param-good': 'v', 'mcp-param-__proto__': 'v' })
  })
})

describe('a header that is not what it says', () => {
  const mismatch = (problem: string) => ({
    jsonrpc: '2.0',
    id: 1,
    error: { code: -32020, message: `Header mismatch: ${problem}` },
  })
  const call = (name: string) => JSON.stringify(modern(1, 'tools/call', { name }).body).replaceAll('é', '\\u00e9')
  const sent = (body: string, name: string) =>
    lines(
      'POST',
      '/mcp',
      [
        'Host: localhost',
        'Content-Type: application/json',
        'Accept: application/json, text/event-stream',
        'MCP-Protocol-Version: 2026-07-28',
        'Mcp-Method: tools/call',
        `Mcp-Name: ${name}`,
        `Content-Length: ${Buffer.byteLength(body)}`,
      ],
      body,
    )

  test.each([
    ['another name', 'a', 'b'],
    ['another case', 'a', 'A'],
    ['a name that goes on', 'a', 'a, b'],
    ['Latin-1 of it', 'é', '\u00e9'],
    ['its UTF-8', 'é', '\u00c3\u00a9'],
    ['no Base64', 'a', '=?base64?!!!!?='],
    ['Base64 without its end', 'a', '=?base64?YQ?='],
    ['Base64 of another', 'a', '=?base64?Yg==?='],
    ['Base64 of Base64', 'a', encoded(encoded('a'))],
  ])('is a 400: %s', async (_name, name, header) => {
    const upstream = server()
    const { port } = await listen(upstream.open)
    const got = await raw(port, sent(call(name), header))
    expect(got.status).toBe(400)
    expect([
      mismatch('the header mcp-name and the body differ'),
      mismatch('expected mcp-name in visible ASCII or as =?base64?…?=, got neither'),
    ]).toContainEqual(JSON.parse(got.body))
    expect(upstream.wires).toEqual([])
  })

  test.each(['\0', '\u0001', '\u0008', '\u001b', '\u007f', '\n', '\r'])(
    'is not even HTTP with %j in it',
    async (character) => {
      const upstream = server()
      const { port } = await listen(upstream.open)
      const got = await raw(port, sent(call('a'), `a${character}b`))
      expect(got.status).toBe(400)
      expect(upstream.wires).toEqual([])
    },
  )

  test.each([
    ['Latin-1', 'caf\u00e9'],
    ['C1 controls', 'a\u0085\u009bb'],
    ['a tab', 'a\tb'],
    ['a sentinel of a line break', encoded('a\r\nX-Evil: 1')],
  ])('of a parameter that nobody declared reaches the upstream as it is, or not: %s', async (_name, value) => {
    const target = await serve(answering())
    const { port } = await listen(http(target.url))
    const body = JSON.stringify(modern(1, 'ping').body)
    const head = lines(
      'POST',
      '/mcp',
      [
        'Host: localhost',
        'Content-Type: application/json',
        'Accept: application/json, text/event-stream',
        'MCP-Protocol-Version: 2026-07-28',
        'Mcp-Method: ping',
        `Mcp-Param-A: ${value}`,
        `Content-Length: ${body.length}`,
      ],
      body,
    )
    const got = await raw(port, head)
    // A single answer that a client understands, whichever it is.
    expect(JSON.parse(got.body)).toMatchObject({ jsonrpc: '2.0' })
    expect(got.status).toBeOneOf([200, 400])
    if (got.status === 200) expect(JSON.parse(got.body)).toEqual({ jsonrpc: '2.0', id: 1, result: {} })
    expect(target.seen.map(({ headers }) => headers['mcp-param-a'])).toEqual(got.status === 200 ? [value] : [])
  })
})

describe('a message is one event, with the fields that we gave it', () => {
  /** White space between the tokens of a message, as a server may have it (RFC 8259, section 2). */
  const spaces: Record<string, string> = {
    'line feeds': '\n',
    'line breaks': '\r\n',
    'carriage returns': '\r',
    'empty lines': '\n\n',
    'empty lines of carriage returns': '\r\r',
    'empty lines of both': '\r\n\r\n',
    'a line feed, then a carriage return': '\n\r',
    tabs: '\t',
  }
  const told = { jsonrpc: '2.0', method: 'notifications/x', params: { a: [1, 'data: b', ':', 'id: 1'], c: {} } }
  const spaced = (message: unknown, space: string) =>
    JSON.stringify(message)
      .replace(/(?<=[{[,])(?=["[{\d])|(?<=["\]\d}])(?=[}\]])/g, space)
      .replace('"notifications/x",', `"notifications/x"${space},${space}`)
  const strings = {
    jsonrpc: '2.0',
    method: 'notifications/x',
    params: {
      a: '\n\ndata: {"jsonrpc":"2.0","id":1,"result":{}}\n\n',
      b: '\r\rid: 9-9\r\r',
      c: '\nevent: endpoint\ndata: /evil',
    },
  }

  /** The events that say something, once there are so many: a cursor alone has no data. */
  async function events(streamed: Opened, count: number) {
    const said = () => eventsIn(streamed.heard()).filter(({ data }) => data !== '')
    await vi.waitFor(() => expect(said().length).toBeGreaterThanOrEqual(count), { timeout: 3_000 })
    return said()
  }

  test.each(Object.entries(spaces))('over Streamable HTTP: %s', async (_name, space) => {
    const upstream = server()
    const { port } = await listen(upstream.open)
    const headers = { accept: 'text/event-stream', 'mcp-session-id': await session(port) }
    const streamed = await open(port, { method: 'GET', headers })
    const text = spaced(told, space)
    expect(JSON.parse(text)).toEqual(told)
    expect(text.length).toBeGreaterThan(JSON.stringify(told).length)
    upstream.wires[0]!.say(text)
    upstream.wires[0]!.say(strings)
    upstream.wires[0]!.say({ method: 'notifications/last' })
    const got = await events(streamed, 3)
    expect(got.map(({ data, ...fields }) => ({ ...fields, data: JSON.parse(data) }))).toEqual([
      { id: '0-1', data: told },
      { id: '0-2', data: strings },
      { id: '0-3', data: { jsonrpc: '2.0', method: 'notifications/last' } },
    ])
  })

  test.each(Object.entries(spaces))('over HTTP+SSE: %s', async (_name, space) => {
    const upstream = server()
    const { port } = await listen(upstream.open)
    const streamed = await sse(port)
    await vi.waitFor(() => expect(upstream.wires).toHaveLength(1))
    upstream.wires[0]!.say(spaced(told, space))
    upstream.wires[0]!.say(strings)
    const got = await events(streamed, 3)
    expect(got.map(({ data, ...fields }) => ({ ...fields, data: fields.event ? data : JSON.parse(data) }))).toEqual([
      { event: 'endpoint', data: streamed.endpoint },
      { data: told },
      { data: strings },
    ])
  })

  test.each(Object.entries(spaces))('of a modern request: %s', async (_name, space) => {
    const upstream = server(({ method }) => (method === 'ask' ? undefined : { result: {} }))
    const { port } = await listen(upstream.open)
    const asked = ask(port, modern(1, 'ask'))
    await vi.waitFor(() => expect(upstream.wires).toHaveLength(1))
    const meta = { relatedRequestId: 1, headers: { 'content-type': 'text/event-stream' } }
    await vi.waitFor(() => expect(upstream.heard()).toHaveLength(1))
    upstream.wires[0]!.say(spaced(told, space), meta)
    upstream.wires[0]!.say(spaced({ jsonrpc: '2.0', id: 1, result: { a: 1 } }, space), meta)
    const { headers, body } = await asked
    expect(headers['content-type']).toBe('text/event-stream')
    expect(eventsIn(body).map(({ data, ...fields }) => ({ ...fields, data: JSON.parse(data) }))).toEqual([
      { data: told },
      { data: { jsonrpc: '2.0', id: 1, result: { a: 1 } } },
    ])
  })

  test('a carriage return between tokens of a line of a child’s', async () => {
    const child = await relay()
    closing.push(() => child.close())
    const [command, ...args] = child.command
    const { port } = await listen(stdio(command!, args))
    const accept = 'text/event-stream, application/json'
    const asked = ask(port, { headers: { ...ours, accept }, body: initialize(1) })
    const far = await child.far
    await far.until(1)
    far.send('{"jsonrpc":"2.0",\r"id":1,\r\r"result":{}}')
    const { headers, body } = await asked
    expect(headers['content-type']).toBe('text/event-stream')
    const said = eventsIn(body).filter(({ data }) => data !== '')
    expect(said.map(({ data }) => JSON.parse(data))).toEqual([{ jsonrpc: '2.0', id: 1, result: {} }])
  })

  test('an upstream’s own event types, ids, comments and times stay with it', async () => {
    const target = await serve((seen, response) => {
      if (seen.method !== 'POST') return response.writeHead(405).end()
      const { id } = JSON.parse(seen.body)
      stream(response).end(
        `: comment\nretry: 1\nid: evil\0id\nevent: endpoint\ndata: /evil\n\n` +
          `id: 0-7\nevent: message\ndata: ${JSON.stringify(told)}\n\n` +
          `id: ../../x\ndata: {"jsonrpc":"2.0",\ndata: "id":${id},\ndata: "result":{}}\n\n`,
      )
    })
    const { port } = await listen(http(target.url))
    const { body } = await ask(port, { body: initialize(1) })
    expect(eventsIn(body).map(({ data, ...fields }) => ({ ...fields, data: data && JSON.parse(data) }))).toEqual([
      { id: expect.stringMatching(/^1-0\.\d+$/), retry: '1000', data: '' },
      { id: '1-1', data: told },
      { id: '1-2', data: { jsonrpc: '2.0', id: 1, result: {} } },
    ])
    expect(body).not.toMatch(/evil|comment|\.\./)
  })
})

describe('Last-Event-ID', () => {
  const odd = [
    '',
    '0',
    '-',
    '0-',
    '-1',
    '0--1',
    '0-+1',
    '0- 1',
    '0-1e0',
    '0-0x1',
    '0-1.0x',
    '0-1.',
    '0-99',
    '0-999999999999999',
    '0-9999999999999999',
    `0-${'9'.repeat(400)}`,
    'NaN',
    'null',
    'undefined',
    '__proto__-0',
    'constructor-0',
    'toString-0',
    '../0-1',
    '0-1/../..',
    '0-1,0-2',
    '0-1;x',
    '0-1"',
    "0-1' OR '1'='1",
    '1-0',
    'zzzzzzzzzzzz-0',
    'zzzzzzzzzzzzz-0',
    '0-1\u00e9',
    '\u00b2-1',
    '0-1\t0-1',
    'a'.repeat(8_000),
  ]

  test('that is none of this session’s is a 400, and changes nothing', async () => {
    const upstream = server()
    const { port } = await listen(upstream.open)
    const other = await session(port)
    const id = await session(port)
    upstream.wires[0]!.say({ method: 'notifications/other' })
    upstream.wires[1]!.say({ method: 'notifications/x' })
    const get = (value: string) =>
      raw(
        port,
        lines('GET', '/mcp', [
          'Host: localhost',
          `Mcp-Session-Id: ${id}`,
          `Last-Event-ID: ${value}`,
          'Accept: text/event-stream',
        ]),
      )
    const found: Record<string, unknown> = {}
    for (const value of odd) found[value] = told(await get(value))
    const expected = { status: 400, body: invalidRequest('no events are kept behind this Last-Event-ID') }
    expect(found).toEqual(Object.fromEntries(odd.map((value) => [value, expected])))
    for (const value of ['0-1\0', '0-1\u0001', '0-1\r']) expect((await get(value)).status).toBe(400)
    // What was said is still there for who asks as it should be.
    for (const [key, method] of [
      [id, 'notifications/x'],
      [other, 'notifications/other'],
    ] as const) {
      const headers = { accept: 'text/event-stream', 'mcp-session-id': key, 'last-event-id': '0-0' }
      const streamed = await open(port, { method: 'GET', headers })
      await vi.waitFor(() => expect(eventsIn(streamed.heard())).toHaveLength(1))
      const [said] = eventsIn(streamed.heard())
      expect([said!.id, JSON.parse(said!.data)]).toEqual(['0-1', { jsonrpc: '2.0', method }])
    }
  })
})

describe('a refusal', () => {
  test('shows nothing of the text that it refuses, and is JSON with its own headers', async () => {
    const upstream = server()
    const { port } = await listen(upstream.open, { token: 'a-token' })
    const evil = 'canary"\\<script>alert(1)</script>'
    const headers = { ...ours, authorization: 'Bearer a-token' }
    for (const asked of [
      { path: `/${encodeURIComponent(evil)}`, headers },
      { path: '/mcp', headers: { ...headers, 'mcp-session-id': evil }, body: initialize(1) },
      { path: '/mcp', headers: { ...headers, 'mcp-protocol-version': evil }, body: initialize(1) },
      { path: '/mcp', headers: { ...headers, 'content-type': evil }, body: initialize(1) },
      { path: '/mcp', headers, body: evil },
      { path: '/mcp', headers, body: { [evil]: 1 } },
      { path: '/mcp', headers: { ...ours, authorization: `Bearer ${evil}` }, body: initialize(1) },
      { path: '/mcp', headers: { ...headers, host: 'canary.example' }, body: initialize(1) },
    ]) {
      const reply = await ask(port, asked)
      expect(reply.status).toBeGreaterThanOrEqual(400)
      expect(reply.headers['content-type']).toBe('application/json')
      expect(JSON.stringify(reply)).not.toContain('canary')
    }
    expect(upstream.wires).toEqual([])
  })

  test('keeps the id of its request as it was written', async () => {
    const { port } = await listen(server().open)
    for (const id of ['"\\r\\ndata: x"', '"\\u0000"', '1e2', '9007199254740993', '"</script>"']) {
      const body = `{"jsonrpc":"2.0","id":${id},"method":"ping"}`
      const reply = await ask(port, { headers: { ...ours, 'mcp-session-id': 'x' }, body })
      expect(reply.body).toBe(
        `{"jsonrpc":"2.0","id":${id},"error":{"code":-32600,"message":"Invalid request: unknown session"}}`,
      )
    }
  })
})

test('what a modern request says of itself reaches the upstream as it was said', async () => {
  const target = await serve(answering())
  const { port } = await listen(http(target.url))
  const version = '2026-07-28\r\nX-Evil: 1'
  const meta = { ...MODERN, 'io.modelcontextprotocol/protocolVersion': version }
  const { headers } = modern(1, 'ping')
  const body = { jsonrpc: '2.0', id: 1, method: 'ping', params: { _meta: meta } }
  const reply = await ask(port, { headers, body })
  expect(told(reply)).toEqual({
    status: 400,
    body: {
      jsonrpc: '2.0',
      id: 1,
      error: { code: -32020, message: 'Header mismatch: the header mcp-protocol-version and the body differ' },
    },
  })
  expect(told(await ask(port, { headers: { ...headers, host: 'x' }, body }))).toEqual({
    status: 403,
    body: denied('this Host is not allowed'),
  })
  expect(target.seen).toEqual([])
})
