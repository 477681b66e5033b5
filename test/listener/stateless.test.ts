import { onRequest, onResponse, RpcError } from 'open-mcp-proxy'
import { describe, expect, it, vi } from 'vitest'
import { proxys } from '../fixtures/played.js'
import { ask, modernPost, onPort, post } from '../fixtures/port.js'

const call = (id: string | number, params: Record<string, unknown> = {}) => ({
  id,
  method: 'tools/call',
  params: { name: 'a', ...params },
})
const answered = (id: string | number, value: object = {}) => ({ jsonrpc: '2.0', id, result: value })
const listen = { id: 'sub', method: 'subscriptions/listen', params: { notifications: {} } }

/** An upstream that knows no tools, and the message that it got beside the question for them. */
async function asked(port: Awaited<ReturnType<typeof onPort>>, index: number) {
  const { wire, session } = await port.upstream(index)
  const [list] = await port.sent(wire, 1)
  expect(list).toMatchObject({ method: 'tools/list' })
  wire.say({ id: list!.id, result: { tools: [] } })
  const [request] = await port.sent(wire, 1)
  return { wire, session, request: request as { id: string | number; params: Record<string, unknown> } }
}

describe('a request', () => {
  it('is whole in itself: an upstream connection for it alone, no session, whatever header names one', async () => {
    const port = await onPort()
    const answering = modernPost(port.url, { id: 1, method: 'prompts/list' }, { 'mcp-session-id': 'x' })
    const { wire, session } = await port.upstream(0)
    expect(await port.sent(wire, 1)).toMatchObject([{ id: 1, method: 'prompts/list' }])
    expect([session.era, session.protocolVersion]).toEqual(['modern', '2026-07-28'])
    wire.say({ id: 1, result: { prompts: [] } })
    const { status, headers, json } = await answering
    expect([status, headers.get('content-type'), headers.get('mcp-session-id')]).toEqual([
      200,
      'application/json',
      null,
    ])
    expect(await json()).toEqual(answered(1, { prompts: [] }))
    await vi.waitFor(() => expect([wire.log, port.app.stats().sessions]).toEqual([['start', 'close'], 0]))
  })

  it('becomes a stream as soon as something goes before its answer', async () => {
    const port = await onPort()
    const answering = modernPost(port.url, { id: 1, method: 'x' })
    const { wire } = await port.upstream(0)
    await port.sent(wire, 1)
    wire.say({ method: 'notifications/progress', params: { progressToken: 1, progress: 1 } })
    const answer = await answering
    wire.say({ id: 1, result: {} })
    await answer.text
    expect([answer.headers.get('content-type'), answer.headers.get('x-accel-buffering')]).toEqual([
      'text/event-stream',
      'no',
    ])
    expect(answer.heard).toEqual([
      { data: '{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1,"progress":1}}' },
      { data: '{"jsonrpc":"2.0","id":1,"result":{}}' },
    ])
  })

  it('becomes one when it takes long, so that comments keep it alive', async () => {
    const port = await onPort({ keepAlive: 20 })
    const answering = modernPost(port.url, { id: 1, method: 'x' })
    const { wire } = await port.upstream(0)
    await port.sent(wire, 1)
    const answer = await answering
    await vi.waitFor(() => expect(answer.heard).toContainEqual({ comment: 'keep-alive' }))
    wire.say({ id: 1, result: {} })
    expect(await answer.until(1)).toEqual([answered(1)])
  })

  it('is answered as an upstream over HTTP did: its stream and its headers, but for those of its own connection', async () => {
    const port = await onPort()
    const answering = modernPost(port.url, { id: 1, method: 'x' })
    const { wire } = await port.upstream(0)
    await port.sent(wire, 1)
    const headers = {
      'content-type': 'text/event-stream',
      'x-request-id': 'r',
      'set-cookie': ['a=b'],
      'mcp-session-id': 's',
      'www-authenticate': 'Basic',
      connection: 'close',
      'access-control-allow-origin': '*',
    }
    wire.onstream?.({ relatedRequestId: 1, type: 'open', headers })
    const answer = await answering
    wire.say({ id: 1, result: {} }, { status: 200, headers })
    expect(await answer.until(1)).toEqual([answered(1)])
    const got = Object.keys(headers).map((name) => [name, answer.headers.get(name)])
    expect(Object.fromEntries(got)).toEqual({
      'content-type': 'text/event-stream',
      'x-request-id': 'r',
      'set-cookie': null,
      'mcp-session-id': null,
      'www-authenticate': null,
      connection: 'keep-alive',
      'access-control-allow-origin': null,
    })
  })

  it.each([
    ['as the upstream said', -32602, 422, 422],
    ['of an unknown method', -32601, undefined, 404],
    ['of a header mismatch', -32020, undefined, 400],
    ['of a missing capability', -32021, undefined, 400],
    ['of an unsupported version', -32022, undefined, 400],
    ['of any other error', -32603, undefined, 200],
    ["of the proxy's own", -31003, 502, 200],
  ])('has the status %s', async (_what, code, upstream, status) => {
    const port = await onPort()
    const answering = modernPost(port.url, { id: 1, method: 'x' })
    const { wire } = await port.upstream(0)
    await port.sent(wire, 1)
    wire.say({ id: 1, error: { code, message: 'no' } }, { status: upstream })
    const answer = await answering
    expect([answer.status, await answer.json()]).toEqual([
      status,
      { jsonrpc: '2.0', id: 1, error: { code, message: 'no' } },
    ])
  })

  it('of any id: two with one id do not meet', async () => {
    const port = await onPort()
    const answers = [1, 1].map(() => modernPost(port.url, { id: 1, method: 'x' }))
    for (const index of [0, 1]) {
      const { wire } = await port.upstream(index)
      await port.sent(wire, 1)
    }
    for (const index of [1, 0]) port.upstreams[index]!.wire.say({ id: 1, result: { index } })
    const results = await Promise.all(answers.map(async (it) => (await it).json()))
    expect(results.map((it) => (it as { result: { index: number } }).result.index).sort()).toEqual([0, 1])
  })

  it('is failed where the upstream ends without an answer', async () => {
    const port = await onPort()
    const answering = modernPost(port.url, { id: 1, method: 'x' })
    const { wire } = await port.upstream(0)
    await port.sent(wire, 1)
    wire.onclose?.()
    const answer = await answering
    const error = proxys(-31001, 'Upstream exited', 'upstream_exited', 'sent', true)
    expect([answer.status, await answer.json()]).toEqual([200, { jsonrpc: '2.0', id: 1, error }])
  })

  it('is answered by middleware, with the status of its code', async () => {
    const port = await onPort({}, (app) =>
      app.use(
        onRequest('x', () => {
          throw new RpcError(-32601, 'hidden')
        }),
        onRequest('y', (ctx) => ctx.reply({ own: true })),
      ),
    )
    const hidden = await modernPost(port.url, { id: 1, method: 'x' })
    expect([hidden.status, await hidden.json()]).toEqual([
      404,
      { jsonrpc: '2.0', id: 1, error: { code: -32601, message: 'hidden' } },
    ])
    expect(await (await modernPost(port.url, { id: 'y', method: 'y' })).json()).toEqual(answered('y', { own: true }))
  })

  it("gets none of the server's own requests: they are refused", async () => {
    const port = await onPort()
    const answering = modernPost(port.url, { id: 1, method: 'x' })
    const { wire } = await port.upstream(0)
    await port.sent(wire, 1)
    wire.say({ id: 1, method: 'sampling/createMessage' })
    const error = proxys(-31011, 'The client takes no requests now', 'client_unreachable', 'not_sent', false)
    expect(await port.sent(wire, 1)).toEqual([{ id: 1, error }])
    wire.say({ id: 1, result: {} })
    expect(await (await answering).json()).toEqual(answered(1))
  })
})

describe('closing the stream', () => {
  it.each(['before anything came', 'behind a message'])('cancels the request upstream, %s', async (when) => {
    const methods: (string | undefined)[] = []
    const port = await onPort({}, (app) =>
      app.use((ctx, next) => {
        methods.push(ctx.method)
        return next()
      }),
    )
    const controller = new AbortController()
    const answering = modernPost(port.url, { id: 'x', method: 'x' }, {}, controller.signal)
    answering.catch(() => {})
    const { wire, session } = await port.upstream(0)
    await port.sent(wire, 1)
    if (when === 'behind a message') {
      wire.say({ method: 'notifications/a' })
      await (await answering).until(1)
    }
    controller.abort()
    expect(await port.sent(wire, 1)).toEqual([{ method: 'notifications/cancelled', params: { requestId: 'x' } }])
    await vi.waitFor(() => expect(session.signal.aborted).toBe(true))
    expect(wire.log).toEqual(['start', 'close'])
    const between = when === 'behind a message' ? ['notifications/a'] : []
    expect(methods).toEqual(['x', ...between, 'notifications/cancelled'])
  })

  it('ends a subscription', async () => {
    const port = await onPort()
    const answering = modernPost(port.url, listen)
    const { wire } = await port.upstream(0)
    await port.sent(wire, 1)
    wire.say({ method: 'notifications/subscriptions/acknowledged' })
    const answer = await answering
    await answer.until(1)
    answer.leave()
    expect(await port.sent(wire, 1)).toEqual([{ method: 'notifications/cancelled', params: { requestId: 'sub' } }])
    await vi.waitFor(() => expect(port.app.stats()).toMatchObject({ sessions: 0, pending: 0 }))
  })

  it('by the server, with a notification instead of an answer, ends it too', async () => {
    const port = await onPort()
    const answering = modernPost(port.url, listen)
    const { wire } = await port.upstream(0)
    await port.sent(wire, 1)
    wire.say({ method: 'notifications/cancelled', params: { requestId: 'sub' } })
    const answer = await answering
    await answer.text
    expect(answer.messages()).toEqual([
      { jsonrpc: '2.0', method: 'notifications/cancelled', params: { requestId: 'sub' } },
    ])
    await vi.waitFor(() => expect(port.app.stats()).toMatchObject({ sessions: 0, pending: 0 }))
  })
})

describe('a message that is no request', () => {
  it('a notification is taken, and handed on', async () => {
    const port = await onPort()
    const headers = { 'mcp-protocol-version': '2026-07-28' }
    const answer = await post(port.url, { jsonrpc: '2.0', method: 'notifications/x' }, headers)
    expect([answer.status, await answer.text]).toEqual([202, ''])
    const { wire } = await port.upstream(0)
    expect(await port.sent(wire, 1)).toEqual([{ method: 'notifications/x' }])
    await vi.waitFor(() => expect(port.app.stats().sessions).toBe(0))
  })

  it.each([
    ['an answer', { jsonrpc: '2.0', id: 1, result: {} }],
    ['a batch', [{ jsonrpc: '2.0', id: 1, method: 'x' }]],
  ])('%s is refused', async (_what, body) => {
    const port = await onPort()
    expect((await post(port.url, body, { 'mcp-protocol-version': '2026-07-28' })).status).toBe(400)
    expect(port.upstreams).toEqual([])
  })

  it.each(['GET', 'DELETE'])('%s is not what this revision knows', async (method) => {
    const port = await onPort()
    const { status, headers } = await ask(port.url, { method, headers: { 'mcp-protocol-version': '2026-07-28' } })
    expect([status, headers.get('allow')]).toEqual([405, 'POST'])
  })
})

describe('headers and body', () => {
  const own = { 'mcp-protocol-version': '2026-07-28', 'mcp-method': 'tools/call', 'mcp-name': 'a' }
  const meta = {
    'io.modelcontextprotocol/protocolVersion': '2026-07-28',
    'io.modelcontextprotocol/clientCapabilities': {},
  }
  const body = (params: object) => ({ jsonrpc: '2.0', id: 'é', method: 'tools/call', params: { name: 'a', ...params } })

  it.each([
    ['no _meta', {}, '_meta["io.modelcontextprotocol/protocolVersion"], a string'],
    [
      'no version',
      { _meta: { 'io.modelcontextprotocol/clientCapabilities': {} } },
      '_meta["io.modelcontextprotocol/protocolVersion"], a string',
    ],
    [
      'a version that is no text',
      { _meta: { ...meta, 'io.modelcontextprotocol/protocolVersion': 7 } },
      '_meta["io.modelcontextprotocol/protocolVersion"], a string',
    ],
    [
      'capabilities that are none',
      { _meta: { ...meta, 'io.modelcontextprotocol/clientCapabilities': [] } },
      '_meta["io.modelcontextprotocol/clientCapabilities"], an object',
    ],
  ])('%s: -32602, HTTP 400', async (_what, params, expected) => {
    const port = await onPort()
    const answer = await post(port.url, body(params), own)
    expect([answer.status, await answer.json()]).toEqual([
      400,
      { jsonrpc: '2.0', id: 'é', error: { code: -32602, message: `Invalid params: expected ${expected}` } },
    ])
    expect(port.upstreams).toEqual([])
  })

  it.each([
    ['no version', { 'mcp-protocol-version': undefined }, 'expected a header mcp-protocol-version, got none'],
    [
      'another version',
      { 'mcp-protocol-version': '2026-07-29' },
      'the header mcp-protocol-version and the body differ',
    ],
    ['no method', { 'mcp-method': undefined }, 'expected a header mcp-method, got none'],
    ['a method in other case', { 'mcp-method': 'Tools/Call' }, 'the header mcp-method and the body differ'],
    ['no name', { 'mcp-name': undefined }, 'expected a header mcp-name, got none'],
    ['another name', { 'mcp-name': 'b' }, 'the header mcp-name and the body differ'],
    [
      'bad Base64',
      { 'mcp-name': '=?base64?YQ?=' },
      'expected mcp-name in visible ASCII or as =?base64?…?=, got neither',
    ],
  ])('%s: -32020, HTTP 400', async (_what, headers, problem) => {
    const port = await onPort()
    const all = Object.entries({ ...own, ...headers }).filter(([, value]) => value !== undefined)
    const answer = await post(port.url, body({ _meta: meta }), Object.fromEntries(all) as Record<string, string>)
    expect([answer.status, await answer.json()]).toEqual([
      400,
      { jsonrpc: '2.0', id: 'é', error: { code: -32020, message: `Header mismatch: ${problem}` } },
    ])
    expect(port.upstreams).toEqual([])
  })

  it('a name that no header can carry comes encoded', async () => {
    const port = await onPort()
    const encoded = { 'mcp-name': `=?base64?${Buffer.from('ä').toString('base64')}?=` }
    const answering = modernPost(port.url, call(1, { name: 'ä' }), encoded)
    const { wire, request } = await asked(port, 0)
    expect(request.params.name).toBe('ä')
    wire.say({ id: 1, result: {} })
    expect((await answering).status).toBe(200)
  })

  const tools = (...annotated: string[]) => [
    {
      name: 'a',
      inputSchema: {
        type: 'object',
        properties: Object.fromEntries(annotated.map((it) => [it, { type: 'integer', 'x-mcp-header': it }])),
      },
    },
  ]

  it('arguments are held against the schemas that the client was shown, which are asked for once', async () => {
    const port = await onPort({}, (app) =>
      app.use(
        onRequest('tools/call', (ctx, next) => {
          ctx.params.name = ctx.params.name.replace('shown_', '')
          return next()
        }),
        onResponse('tools/list', (ctx, next) => {
          for (const tool of ctx.result?.tools ?? []) tool.name = `shown_${tool.name}`
          return next()
        }),
      ),
    )
    const params = { name: 'shown_a', arguments: { n: 42, m: null } }
    const answering = modernPost(port.url, call(1, params), { 'mcp-param-n': '42.0' })
    const { wire } = await port.upstream(0)
    const [list] = await port.sent(wire, 1)
    expect(list).toMatchObject({ method: 'tools/list', params: { _meta: meta } })
    wire.say({ id: list!.id, result: { tools: tools('n', 'm') } })
    expect(await port.sent(wire, 1)).toMatchObject([{ id: 1, params: { name: 'a', arguments: { n: 42, m: null } } }])
    expect(wire.metas.at(-1)?.headers).toMatchObject({ 'mcp-param-n': '42.0' })
    wire.say({ id: 1, result: {} })
    expect((await answering).status).toBe(200)

    // Known by now: only what differs is asked for again.
    const again = modernPost(port.url, call(2, params), { 'mcp-param-n': '42' })
    const second = await port.upstream(1)
    expect(await port.sent(second.wire, 1)).toMatchObject([{ id: 2, method: 'tools/call' }])
    second.wire.say({ id: 2, result: {} })
    expect((await again).status).toBe(200)
  })

  it('a refusal finds its way where the schemas took so long that comments were sent', async () => {
    const port = await onPort({ keepAlive: 20 })
    const answering = modernPost(port.url, call(1, { arguments: { n: 42 } }))
    const { wire } = await port.upstream(0)
    const [first] = await port.sent(wire, 1)
    const answer = await answering
    await vi.waitFor(() => expect(answer.heard).toContainEqual({ comment: 'keep-alive' }))
    wire.say({ id: first!.id, result: { tools: tools('n') } })
    const [second] = await port.sent(wire, 1)
    wire.say({ id: second!.id, result: { tools: tools('n') } })
    await answer.text
    expect(answer.messages()).toMatchObject([{ id: 1, error: { code: -32020 } }])
    await vi.waitFor(() => expect(port.app.stats().sessions).toBe(0))
    expect(wire.sent).toEqual([])
  })

  it('a client that leaves while the schemas are asked for takes nothing from the next one', async () => {
    const port = await onPort()
    const controller = new AbortController()
    modernPost(port.url, call(1, { arguments: { n: 42 } }), {}, controller.signal).catch(() => {})
    const first = await port.upstream(0)
    await port.sent(first.wire, 1)
    controller.abort()
    await vi.waitFor(() => expect(port.app.stats().sessions).toBe(0))
    const answering = modernPost(port.url, call(2, { arguments: { n: 42 } }))
    const { wire } = await port.upstream(1)
    for (const _time of [1, 2]) {
      const [list] = await port.sent(wire, 1)
      wire.say({ id: list!.id, result: { tools: tools('n') } })
    }
    expect((await answering).status).toBe(400)
  })

  it('a server that does not list its tools in time is not asked before every call; what is known is still held', async () => {
    const port = await onPort()
    const first = modernPost(port.url, call(1, { arguments: { n: 42 } }), { 'mcp-param-n': '42' })
    const one = await port.upstream(0)
    const [list] = await port.sent(one.wire, 1)
    one.wire.say({ id: list!.id, result: { tools: tools('n') } })
    await port.sent(one.wire, 1)
    one.wire.say({ id: 1, result: {} })
    expect((await first).status).toBe(200)

    const unknown = modernPost(port.url, call(2, { name: 'b' }))
    const two = await port.upstream(1)
    const [question] = await port.sent(two.wire, 1)
    two.wire.say(`{"jsonrpc":"2.0","id":"${question!.id}","result":{},"RESULT":{}}`)
    await port.sent(two.wire, 1)
    two.wire.say({ id: 2, result: {} })
    expect((await unknown).status).toBe(200)

    const again = modernPost(port.url, call(3, { name: 'c' }))
    const three = await port.upstream(2)
    expect(await port.sent(three.wire, 1)).toMatchObject([{ id: 3, method: 'tools/call' }])
    three.wire.say({ id: 3, result: {} })
    expect((await again).status).toBe(200)
    expect((await modernPost(port.url, call(4, { arguments: { n: 42 } }), { 'mcp-param-n': '41' })).status).toBe(400)
  })

  it('a notification has no arguments to look at, whatever it is called', async () => {
    const port = await onPort()
    const params = { name: 'a' }
    const answer = await post(port.url, { jsonrpc: '2.0', method: 'tools/call', params }, own)
    expect(answer.status).toBe(202)
    const { wire } = await port.upstream(0)
    expect(await port.sent(wire, 1)).toEqual([{ method: 'tools/call', params }])
  })

  it.each([
    ['one that is missing', {}, 'expected a header mcp-param-n, got none'],
    ['one that differs', { 'mcp-param-n': '41' }, 'the header mcp-param-n and the body differ'],
    [
      'one that says what is not there',
      { 'mcp-param-n': '42', 'mcp-param-m': 'x' },
      'expected no header mcp-param-m: the body has no such value',
    ],
  ])('%s: -32020 behind a second look at the schemas; nothing is called', async (_what, headers, problem) => {
    const port = await onPort()
    const answering = modernPost(port.url, call(1, { arguments: { n: 42 } }), headers as Record<string, string>)
    const { wire } = await port.upstream(0)
    for (const _time of [1, 2]) {
      const [list] = await port.sent(wire, 1)
      wire.say({ id: list!.id, result: { tools: tools('n', 'm') } })
    }
    const answer = await answering
    expect([answer.status, await answer.json()]).toEqual([
      400,
      { jsonrpc: '2.0', id: 1, error: { code: -32020, message: `Header mismatch: ${problem}` } },
    ])
    await vi.waitFor(() => expect(wire.log).toEqual(['start', 'close']))
    expect(wire.sent).toEqual([])
  })
})

describe('room', () => {
  it('past the bound of sessions there is none, and it is said when to come again', async () => {
    const port = await onPort({ maxSessions: 1 })
    const first = modernPost(port.url, { id: 1, method: 'x' })
    const { wire } = await port.upstream(0)
    await port.sent(wire, 1)
    const second = await modernPost(port.url, { id: 2, method: 'x' })
    const error = proxys(-31005, 'Overloaded: too many sessions', 'overloaded', 'not_sent', true)
    expect([second.status, second.headers.get('retry-after'), await second.json()]).toEqual([
      503,
      '5',
      { jsonrpc: '2.0', id: 2, error },
    ])
    wire.say({ id: 1, result: {} })
    expect((await first).status).toBe(200)
  })
})
