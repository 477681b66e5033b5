import {
  trace as api,
  type Context,
  context,
  diag,
  propagation,
  ROOT_CONTEXT,
  SpanKind,
  SpanStatusCode,
} from '@opentelemetry/api'
import { AsyncLocalStorageContextManager } from '@opentelemetry/context-async-hooks'
import { suppressTracing, W3CBaggagePropagator } from '@opentelemetry/core'
import {
  AlwaysOffSampler,
  AlwaysOnSampler,
  BasicTracerProvider,
  InMemorySpanExporter,
  ParentBasedSampler,
  type ReadableSpan,
  SimpleSpanProcessor,
} from '@opentelemetry/sdk-trace-base'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest'
import { type TraceOptions, trace } from '../../middleware/trace.js'
import { createProxy, type FrameMeta, type Middleware, onRequest, onResponse, proxyError } from '../../src/index.js'
import { testContext, testProxy } from '../../src/testing.js'
import { deferred, HandWire, joined, turnOfLoop } from '../fixtures/played.js'

const exporter = new InMemorySpanExporter()
const sdk = (sampler = new ParentBasedSampler({ root: new AlwaysOnSampler() }) as object) =>
  new BasicTracerProvider({ sampler: sampler as AlwaysOnSampler, spanProcessors: [new SimpleSpanProcessor(exporter)] })

const TRACE = '4bf92f3577b34da6a3ce929d0e0e4736'
const PARENT = '00f067aa0ba902b7'
const traceparent = `00-${TRACE}-${PARENT}-01`
const OTHER = '0af7651916cd43dd8448eb211c80319c'
const otherparent = `00-${OTHER}-b7ad6b7169203331-01`
const thirtyTwo = Array.from({ length: 32 }, (_, at) => `k${at}=1`).join()
const ours = expect.stringMatching(/^00-[\da-f]{32}-[\da-f]{16}-01$/)

beforeAll(() => {
  context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable())
})
beforeEach(() => {
  api.setGlobalTracerProvider(sdk())
})
afterEach(() => {
  exporter.reset()
  api.disable()
  propagation.disable()
})
afterAll(() => context.disable())

/** A proxy whose first middleware is a trace. */
const traced = (options: TraceOptions = {}, ...behind: Middleware[]) =>
  testProxy(createProxy().use(trace(options), ...behind))

/** What has ended, in order. */
const spans = () =>
  exporter.getFinishedSpans().map((it) => ({
    name: it.name,
    kind: it.kind,
    status: it.status,
    attributes: it.attributes,
    parent: it.parentSpanContext?.spanId,
    links: it.links.map((link) => link.context.spanId),
  }))
const ended = (): ReadableSpan => {
  expect(exporter.getFinishedSpans()).toHaveLength(1)
  return exporter.getFinishedSpans()[0]!
}
const written = ({ toServer }: { toServer: object[] }) =>
  (toServer[0] as { params?: { _meta?: Record<string, unknown> } }).params?._meta

const call = (id: string | number = 7, _meta?: object) => ({
  id,
  method: 'tools/call',
  params: { name: 'add', arguments: { key: 's3cret' }, ...(_meta && { _meta }) },
})
const ok = (id: string | number = 7) => ({ id, result: { content: [] } })

/** Runs one exchange with this message, and gives what went on and the span. */
async function exchange(message: object | string, options: TraceOptions = {}, meta?: FrameMeta) {
  const proxy = traced(options)
  const traffic = await proxy.fromClient(message as object, meta)
  await proxy.fromServer(ok())
  return { meta: written(traffic), span: ended() }
}

const unset = { code: SpanStatusCode.UNSET }
const http = { 'network.transport': 'tcp', 'network.protocol.name': 'http' }

describe('a span', () => {
  test('per exchange, whoever asks, and none per notification', async () => {
    const proxy = traced()
    const session = { 'mcp.session.id': proxy.session.id }
    const params = { protocolVersion: '2025-11-25', capabilities: {}, clientInfo: {} }
    await proxy.fromClient({ id: 'first', method: 'initialize', params })
    await proxy.fromServer({ id: 'first', result: { protocolVersion: '2025-11-25', capabilities: {} } })
    await proxy.fromClient({ method: 'notifications/initialized' })
    await proxy.fromClient(call(0), { headers: {} })
    await proxy.fromServer({ id: 0, method: 'sampling/createMessage', params: {} })
    await proxy.fromServer({ method: 'notifications/progress', params: { progressToken: 1, progress: 1 } })
    await proxy.fromClient({ id: 0, result: {} })
    await proxy.fromServer(ok(0))
    await proxy.fromClient({ id: '0', method: 'prompts/get', params: { name: 'greet' } })
    await proxy.fromServer({ id: '0', result: {} })
    await proxy.fromClient({ id: '', method: 'resources/read', params: { uri: 'demo://a', name: 'not it' } })
    await proxy.fromServer({ id: '', result: {} })
    const version = { 'mcp.protocol.version': '2025-11-25' }
    const root = { kind: SpanKind.SERVER, status: unset, parent: undefined, links: [] }
    const about = (method: string, id: string, more: object = {}) => ({
      attributes: { 'mcp.method.name': method, 'jsonrpc.request.id': id, ...session, ...version, ...more },
    })
    expect(spans()).toEqual([
      { ...root, name: 'initialize', ...about('initialize', 'first') },
      { ...root, name: 'sampling/createMessage', ...about('sampling/createMessage', '0') },
      {
        ...root,
        name: 'tools/call add',
        ...about('tools/call', '0', { 'gen_ai.operation.name': 'execute_tool', 'gen_ai.tool.name': 'add', ...http }),
      },
      { ...root, name: 'prompts/get greet', ...about('prompts/get', '0', { 'gen_ai.prompt.name': 'greet' }) },
      { ...root, name: 'resources/read', ...about('resources/read', '', { 'mcp.resource.uri': 'demo://a' }) },
    ])
  })

  test('of the modern era has a version and no session', async () => {
    const { span } = await exchange(call(7, { 'io.modelcontextprotocol/protocolVersion': '2026-07-28' }))
    expect(span.attributes).toEqual({
      'mcp.method.name': 'tools/call',
      'jsonrpc.request.id': '7',
      'mcp.protocol.version': '2026-07-28',
      'gen_ai.operation.name': 'execute_tool',
      'gen_ai.tool.name': 'add',
    })
  })

  test('lasts from the request to its response', async () => {
    const proxy = traced()
    await proxy.fromClient(call())
    expect(spans()).toEqual([])
    await proxy.fromServer(ok())
    expect(spans()).toHaveLength(1)
  })

  test('belongs to its own session, where ids are the same', async () => {
    const middleware = trace()
    const [one, two] = [testProxy(createProxy().use(middleware)), testProxy(createProxy().use(middleware))]
    await one.fromClient({ id: 1, method: 'first' })
    await two.fromClient({ id: 1, method: 'second' })
    await two.fromServer({ id: 1, error: { code: -5, message: 'no' } })
    await one.fromServer({ id: 1, result: {} })
    expect(spans()).toMatchObject([
      { name: 'second', status: { code: SpanStatusCode.ERROR }, attributes: { 'mcp.session.id': two.session.id } },
      { name: 'first', status: unset, attributes: { 'mcp.session.id': one.session.id } },
    ])
  })

  test('holds arguments and results only where asked for', async () => {
    await exchange(call())
    expect(JSON.stringify(spans())).not.toContain('s3cret')
    exporter.reset()
    const { span } = await exchange(call(), { arguments: true, results: true })
    expect(span.attributes).toMatchObject({
      'gen_ai.tool.call.arguments': '{"key":"s3cret"}',
      'gen_ai.tool.call.result': '{"content":[]}',
    })
  })

  test('has no result of a tool that failed', async () => {
    const proxy = traced({ results: true })
    await proxy.fromClient(call())
    await proxy.fromServer({ id: 7, result: { content: [{ type: 'text', text: 's3cret' }], isError: true } })
    expect(Object.keys(ended().attributes)).not.toContain('gen_ai.tool.call.result')
  })

  test.each(['__proto__', 'constructor', 'x'.repeat(10_240), '\u001b[31m\n\u202e'])(
    'of a method and a tool with a hostile name: %#',
    async (name) => {
      const proxy = traced()
      await proxy.fromClient({ id: 1, method: name, params: { name } })
      await proxy.fromServer({ id: 1, result: {} })
      await proxy.fromClient({ ...call(2), params: { name, arguments: {} } })
      await proxy.fromServer(ok(2))
      expect(spans()).toMatchObject([
        { name: name.slice(0, 256), attributes: { 'mcp.method.name': name } },
        { name: `tools/call ${name}`.slice(0, 256), attributes: { 'gen_ai.tool.name': name } },
      ])
    },
  )
})

describe('the context', () => {
  test('of the client is the parent, and ours goes on at its place', async () => {
    const { meta, span } = await exchange(call(7, { a: 1, traceparent, tracestate: 'rojo=1,congo=2', z: [] }))
    const own = `00-${TRACE}-${span.spanContext().spanId}-01`
    expect(span.parentSpanContext).toMatchObject({ traceId: TRACE, spanId: PARENT, isRemote: true })
    expect(meta).toEqual({ a: 1, traceparent: own, tracestate: 'rojo=1,congo=2', z: [] })
    expect(Object.keys(meta ?? {})).toEqual(['a', 'traceparent', 'tracestate', 'z'])
  })

  test('of a server that asks is the parent of its request, and ours goes to the client', async () => {
    const proxy = traced()
    const { toClient } = await proxy.fromServer({ id: 1, method: 'roots/list', params: { _meta: { traceparent } } })
    await proxy.fromClient({ id: 1, result: { roots: [] } })
    const own = { _meta: { traceparent: `00-${TRACE}-${ended().spanContext().spanId}-01` } }
    expect(toClient).toEqual([{ jsonrpc: '2.0', id: 1, method: 'roots/list', params: own }])
    expect(ended().parentSpanContext?.spanId).toBe(PARENT)
  })

  test('begins here where nobody has any', async () => {
    const { meta, span } = await exchange(call())
    const { traceId, spanId } = span.spanContext()
    expect(meta).toEqual({ traceparent: `00-${traceId}-${spanId}-01` })
    expect(span.parentSpanContext).toBeUndefined()
  })

  test('changes no byte of anything else', async () => {
    const { client, server } = await joined((app) => app.use(trace()))
    const args = '{"n":1e400, "k":1,"k":9007199254740993,"t":"\\u0041\\/"}'
    client.say(
      `{ "id":1.0,"jsonrpc":"2.0", "method":"x","params":{"arguments":${args},"_meta":{"traceparent":"-" , "n":1.0}} }`,
    )
    client.say(`{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"arguments": ${args}}}`)
    client.say('{"jsonrpc":"2.0","id":3,"method":"ping"}')
    client.say('{"jsonrpc":"2.0","id":4,"method":"ping","params":{}}')
    await turnOfLoop()
    const own = (text: string) => text.replace(/00-[\da-f]{32}-[\da-f]{16}-01/, 'OURS')
    expect(server.sent.map(own)).toEqual([
      `{ "id":1.0,"jsonrpc":"2.0", "method":"x","params":{"arguments":${args},"_meta":{"traceparent":"OURS" , "n":1.0}} }`,
      `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"arguments": ${args},"_meta":{"traceparent":"OURS"}}}`,
      '{"jsonrpc":"2.0","id":3,"method":"ping","params":{"_meta":{"traceparent":"OURS"}}}',
      '{"jsonrpc":"2.0","id":4,"method":"ping","params":{"_meta":{"traceparent":"OURS"}}}',
    ])
  })

  test.each(['null', '[]', '[1]', '"x"', '7', '{"_meta":null}', '{"_meta":[]}', '{"_meta":"x"}', '{"_meta":0}'])(
    'is not written where there is no place for it: params %s',
    async (params) => {
      const { client, server } = await joined((app) => app.use(trace()))
      const text = `{"jsonrpc":"2.0","id":1,"method":"x","params": ${params}}`
      client.say(text)
      await turnOfLoop()
      if (server.sent.length === 0) expect(JSON.parse(client.sent[0]!).error.code).toBe(-32600)
      else expect(server.sent).toEqual([text])
      client.onclose?.()
    },
  )

  test('of a request that is not sampled goes on, and says so', async () => {
    const { meta } = await (async () => {
      const proxy = traced()
      const traffic = await proxy.fromClient(call(7, { traceparent: `00-${TRACE}-${PARENT}-00` }))
      await proxy.fromServer(ok())
      return { meta: written(traffic) }
    })()
    expect(meta).toEqual({
      traceparent: expect.stringMatching(new RegExp(`^00-${TRACE}-(?!${PARENT})[\\da-f]{16}-00$`)),
    })
    api.disable()
    api.setGlobalTracerProvider(sdk(new AlwaysOffSampler()))
    const proxy = traced()
    const begun = written(await proxy.fromClient(call()))
    expect(begun).toEqual({ traceparent: expect.stringMatching(/^00-[\da-f]{32}-[\da-f]{16}-00$/) })
    await proxy.fromServer(ok())
    expect(spans()).toEqual([])
  })

  test('is not written with propagate: false', async () => {
    const { meta, span } = await exchange(call(7, { traceparent, tracestate: 'a=1' }), { propagate: false })
    expect(meta).toEqual({ traceparent, tracestate: 'a=1' })
    expect(span.parentSpanContext?.spanId).toBe(PARENT)
  })

  test.each([
    ['a later version, with more behind it', `cc-${TRACE}-${PARENT}-09-what-follows`],
    ['flags that nobody knows yet', `00-${TRACE}-${PARENT}-ff`],
  ])('is read from %s', async (_, text) => {
    const { meta, span } = await exchange(call(7, { traceparent: text }))
    expect(span.parentSpanContext?.spanId).toBe(PARENT)
    expect(meta?.traceparent).toBe(`00-${TRACE}-${span.spanContext().spanId}-01`)
  })

  test.each([
    ['', 'empty'],
    [traceparent.toUpperCase(), 'upper case'],
    [` ${traceparent}`, 'white space'],
    [`${traceparent}\n`, 'a newline'],
    [`ff-${TRACE}-${PARENT}-01`, 'version ff'],
    [`00-${'0'.repeat(32)}-${PARENT}-01`, 'no trace'],
    [`00-${TRACE}-${'0'.repeat(16)}-01`, 'no span'],
    [`${traceparent}-more`, 'more than version 00 has'],
    [`00-${TRACE}-${PARENT}`, 'no flags'],
    [`00-${TRACE}-${PARENT}-1`, 'short flags'],
    [traceparent.repeat(200), '11 KB'],
    [7, 'a number'],
    [[traceparent], 'an array'],
    [null, 'null'],
  ] as [unknown, string][])('that is malformed is replaced, its tracestate gone: %j', async (text, _) => {
    const { meta, span } = await exchange(call(7, { traceparent: text, tracestate: 'a=1', b: 2 }))
    expect(span.parentSpanContext).toBeUndefined()
    expect(meta).toEqual({ traceparent: ours, b: 2 })
  })

  test.each([
    ['10 KB', `a=${'x'.repeat(10_240)}`, undefined],
    ['more than 512 characters', Array.from({ length: 30 }, (_, at) => `key${at}=${'v'.repeat(14)}`).join(), undefined],
    ['a member that is none', 'a=1,B C,c=3', 'a=1,c=3'],
    ['more than 32 members', Array.from({ length: 40 }, (_, at) => `k${at}=1`).join(), undefined],
    ['a newline', 'a=1\n,b=\n2,c=3', 'a=1,c=3'],
    ['32 members', thirtyTwo, thirtyTwo],
    ['an object', { a: 1 }, undefined],
    ['members of the prototype', '__proto__=1,constructor=2', 'constructor=2'],
  ])('has of a tracestate what is legal: %s', async (_, tracestate, expected) => {
    const { meta, span } = await exchange(call(7, { traceparent, tracestate }))
    expect(span.parentSpanContext?.spanId).toBe(PARENT)
    expect(meta?.tracestate).toBe(expected)
  })

  test('does not come from a member called __proto__', async () => {
    const text = `{"jsonrpc":"2.0","id":7,"method":"x","params":{"_meta":{"__proto__":{"traceparent":"${traceparent}"}}}}`
    const { span } = await exchange(text)
    expect(span.parentSpanContext).toBeUndefined()
    expect(({} as { traceparent?: string }).traceparent).toBeUndefined()
  })
})

describe('beside _meta', () => {
  const headers = { traceparent: otherparent, tracestate: 'h=1', baggage: 'user=ada' }

  test('HTTP headers are the parent where _meta says nothing', async () => {
    const { meta, span } = await exchange(call(), {}, { headers })
    expect(span.parentSpanContext?.traceId).toBe(OTHER)
    const own = `00-${OTHER}-${span.spanContext().spanId}-01`
    expect(meta).toEqual({ traceparent: own, tracestate: 'h=1', baggage: 'user=ada' })
  })

  test('they are not looked at where it does', async () => {
    const { meta, span } = await exchange(call(7, { traceparent, baggage: 'user=bob' }), {}, { headers })
    expect(span.parentSpanContext?.spanId).toBe(PARENT)
    expect(span.links).toEqual([])
    expect(meta).toEqual({ traceparent: expect.stringContaining(TRACE), baggage: 'user=bob' })
  })

  test('they are malformed without effect', async () => {
    const bad = { traceparent: `${otherparent}, ${otherparent}`, tracestate: ['a', 'b'], baggage: 'x'.repeat(9_000) }
    const { meta, span } = await exchange(call(), {}, { headers: bad })
    expect(span.parentSpanContext).toBeUndefined()
    expect(meta).toEqual({ traceparent: ours })
  })

  /** Runs one exchange in which this context is active. */
  async function within(lineage: Context, _meta?: object, meta?: FrameMeta, options: TraceOptions = {}) {
    const outer: Middleware = (ctx, next) => (ctx.kind === 'request' ? context.with(lineage, next) : next())
    const proxy = testProxy(createProxy().use(outer, trace(options)))
    await proxy.fromClient(call(7, _meta), meta)
    await proxy.fromServer(ok())
    return exporter.getFinishedSpans().at(-1)!
  }
  const started = () => {
    const span = api.getTracer('test').startSpan('ambient')
    return { span, spanId: span.spanContext().spanId, lineage: api.setSpan(ROOT_CONTEXT, span) }
  }

  test('a span that is active is the parent, before the headers', async () => {
    const { lineage, spanId } = started()
    expect((await within(lineage, undefined, { headers })).parentSpanContext?.spanId).toBe(spanId)
  })

  test('it is linked where _meta has a parent', async () => {
    const { lineage, spanId } = started()
    const span = await within(lineage, { traceparent })
    expect(span.parentSpanContext?.spanId).toBe(PARENT)
    expect(span.links.map((link) => link.context.spanId)).toEqual([spanId])
  })

  test('one that has ended is neither', async () => {
    const { lineage, span } = started()
    span.end()
    expect((await within(lineage)).parentSpanContext).toBeUndefined()
    expect((await within(lineage, { traceparent })).links).toEqual([])
    expect((await within(lineage, undefined, { headers })).parentSpanContext?.traceId).toBe(OTHER)
    expect((await within(lineage, undefined, undefined, { remote: 'link' })).parentSpanContext).toBeUndefined()
  })

  test('one that is not sampled has children that are not either', async () => {
    const lineage = api.setSpanContext(ROOT_CONTEXT, { traceId: OTHER, spanId: PARENT, traceFlags: 0 })
    expect(await within(lineage)).toBeUndefined()
  })

  test('one of elsewhere that the application made active counts', async () => {
    const told = { traceId: OTHER, spanId: PARENT, traceFlags: 1, isRemote: true }
    const span = await within(api.setSpanContext(ROOT_CONTEXT, told))
    expect(span.spanContext().traceId).toBe(OTHER)
  })

  test('where tracing is suppressed nothing happens', async () => {
    const text = '{"jsonrpc":"2.0","id":7,"method":"x","params":{"_meta":{"traceparent":"bad"}}}'
    const { client, server } = await joined((app) => {
      app.use((_, next) => context.with(suppressTracing(context.active()), next)).use(trace())
    })
    client.say(text)
    server.say(ok())
    await turnOfLoop()
    expect(server.sent).toEqual([text])
    expect(spans()).toEqual([])
  })

  test('an edge links what it does not trust, or ignores it', async () => {
    const hostile = { traceparent, tracestate: 'a=1', baggage: 'admin=true', progressToken: 1 }
    const flags = `00-${TRACE}-${PARENT}-ff`
    const linked = await exchange(call(7, { ...hostile, traceparent: flags }), { remote: 'link' })
    expect(linked.span.parentSpanContext).toBeUndefined()
    expect(linked.span.spanContext().traceId).not.toBe(TRACE)
    expect(linked.span.links.map((link) => link.context.spanId)).toEqual([PARENT])
    expect(linked.meta).toEqual({ traceparent: ours, progressToken: 1 })
    expect(linked.span.links[0]?.context.traceFlags).toBe(1)
    exporter.reset()
    const nowhere = await exchange(call(7, { traceparent: `00-${TRACE}-${'0'.repeat(16)}-01` }), { remote: 'link' })
    expect(nowhere.span.links).toEqual([])
    exporter.reset()
    const ignored = await exchange(call(7, hostile), { remote: 'ignore' }, { headers })
    expect(ignored.span.parentSpanContext).toBeUndefined()
    expect(ignored.span.links).toEqual([])
    expect(ignored.meta).toEqual({ traceparent: ours, progressToken: 1 })
    exporter.reset()
    const byHeader = await exchange(call(), { remote: 'link' }, { headers })
    expect(byHeader.span.links.map((link) => link.context.traceId)).toEqual([OTHER])
    expect(byHeader.meta).toEqual({ traceparent: ours })
  })

  test('it begins a trace that hangs on a span of its own process', async () => {
    const { lineage, spanId } = started()
    const span = await within(lineage, { traceparent }, undefined, { remote: 'link' })
    expect(span.parentSpanContext?.spanId).toBe(spanId)
    expect(span.links.map((link) => link.context.spanId)).toEqual([PARENT])
  })
})

describe('behind it', () => {
  test('our span is active, and the baggage of the client', async () => {
    propagation.setGlobalPropagator(new W3CBaggagePropagator())
    const seen: unknown[] = []
    const work: Middleware = async (ctx, next) => {
      if (ctx.kind !== 'request') return next()
      const span = api.getTracer('test').startSpan('work')
      await Promise.resolve()
      seen.push(propagation.getActiveBaggage()?.getEntry('user')?.value)
      api.getTracer('test').startSpan('later').end()
      span.end()
      return next()
    }
    const proxy = traced({}, work)
    await proxy.fromClient(call(7, { traceparent, baggage: 'user=ada' }))
    await proxy.fromServer(ok())
    const [later, inner, own] = spans()
    const { spanId } = exporter.getFinishedSpans()[2]!.spanContext()
    expect([later, inner]).toMatchObject([
      { name: 'later', parent: spanId },
      { name: 'work', parent: spanId },
    ])
    expect(own).toMatchObject({ name: 'tools/call add', parent: PARENT })
    expect(seen).toEqual(['ada'])
    expect(api.getActiveSpan()).toBeUndefined()
  })

  test('another one makes a child of it, linked to nothing', async () => {
    const proxy = traced({}, trace())
    const traffic = await proxy.fromClient(call(7, { traceparent }))
    await proxy.fromServer(ok())
    const [inner, outer] = exporter.getFinishedSpans()
    expect(spans()).toMatchObject([
      { parent: outer!.spanContext().spanId, links: [] },
      { parent: PARENT, links: [] },
    ])
    expect(written(traffic)?.traceparent).toBe(`00-${TRACE}-${inner!.spanContext().spanId}-01`)
  })
})

describe('an error', () => {
  const refused = (code: number, message: string) => ({
    status: { code: SpanStatusCode.ERROR, message },
    type: String(code),
    rpc: String(code),
  })
  const outcome = () => {
    const { status, attributes } = ended()
    return { status, type: attributes['error.type'], rpc: attributes['rpc.response.status_code'] }
  }

  test.each([
    ['none', { result: { content: [] } }, { status: unset }],
    ['isError false', { result: { isError: false } }, { status: unset }],
    ['of the tool', { result: { isError: true } }, { status: { code: SpanStatusCode.ERROR }, type: 'tool_error' }],
    ['isError "true"', { result: { isError: 'true' } }, { status: unset }],
    ['of the protocol', { error: { code: -32602, message: 'Bad params' } }, refused(-32602, 'Bad params')],
    ['with a long text', { error: { code: 1, message: 'x'.repeat(10_240) } }, refused(1, 'x'.repeat(1_024))],
    ['without a code', { error: { message: 7 } }, { status: { code: SpanStatusCode.ERROR }, type: '_OTHER' }],
    ['input required', { result: { resultType: 'input_required', inputRequests: {} } }, { status: unset }],
  ])('in the answer: %s', async (_, answer, expected) => {
    const proxy = traced()
    await proxy.fromClient(call())
    await proxy.fromServer({ id: 7, ...answer })
    expect(outcome()).toEqual(expected)
  })

  test('in a large result is found, too', async () => {
    const proxy = traced()
    for (const isError of [true, false]) {
      await proxy.fromClient(call())
      await proxy.fromServer({ id: 7, result: { content: [{ type: 'text', text: 'x'.repeat(100_000) }], isError } })
    }
    expect(spans().map((it) => it.attributes['error.type'])).toEqual(['tool_error', undefined])
  })

  test('isError counts in tool calls alone', async () => {
    const proxy = traced()
    await proxy.fromClient({ id: 7, method: 'other' })
    await proxy.fromServer({ id: 7, result: { isError: true } })
    expect(outcome()).toEqual({ status: unset })
  })

  test.each<[string, Middleware, object]>([
    [
      'it throws for the peer',
      onRequest('tools/call', (ctx) => ctx.throw(-31006, 'Denied')),
      refused(-31006, 'Denied'),
    ],
    [
      'it throws',
      onRequest('tools/call', () => {
        throw new TypeError('at home')
      }),
      refused(-32603, 'Internal error'),
    ],
    ['it forgets', onRequest('tools/call', () => {}), refused(-32603, 'Internal error')],
    ['it drops', onRequest('tools/call', (ctx) => ctx.drop()), refused(-31006, expect.stringContaining('') as never)],
    ['it fails', onRequest('tools/call', (ctx) => void ctx.fail({ code: 5, message: 'no' })), refused(5, 'no')],
    ['it replies', onRequest('tools/call', (ctx) => void ctx.reply({ content: [] })), { status: unset }],
    [
      'it goes on after a reply',
      onRequest('tools/call', async (ctx, next) => {
        void ctx.reply({ content: [] })
        await next()
      }),
      { status: unset },
    ],
  ])('of a middleware behind: %s', async (_, behind, expected) => {
    const app = createProxy().use(trace(), behind)
    app.on('error', () => {})
    const proxy = testProxy(app)
    const { toClient } = await proxy.fromClient(call())
    expect(toClient).toHaveLength(1)
    expect(outcome()).toEqual(expected)
  })

  test('of a middleware behind, on the way back', async () => {
    const proxy = traced(
      {},
      onResponse('tools/call', (ctx) => ctx.throw(-9, 'changed')),
    )
    await proxy.fromClient(call())
    await proxy.fromServer(ok())
    expect(outcome()).toEqual(refused(-9, 'changed'))
  })

  test('cancelled by its sender', async () => {
    const proxy = traced()
    await proxy.fromClient(call())
    await proxy.fromClient({ method: 'notifications/cancelled', params: { requestId: 7 } })
    expect(outcome()).toEqual({ status: { code: SpanStatusCode.ERROR }, type: 'cancelled' })
    await proxy.fromServer(ok())
    expect(spans()).toHaveLength(1)
  })

  test('of a session that closes while the answer is held before this place comes too late', async () => {
    const complaints: string[] = []
    const complain = (text: string) => void complaints.push(text)
    diag.setLogger({ error: complain, warn: complain, info: () => {}, debug: () => {}, verbose: () => {} })
    const held = deferred()
    const holder: Middleware = onResponse('tools/call', (_, next) => held.promise.then(next))
    const { client, server, session } = await joined((app) => app.use(holder, trace()), { drainTimeout: 0 })
    client.say(call())
    server.say(ok())
    await turnOfLoop()
    client.onclose?.()
    await vi.waitFor(() => expect(session.signal.aborted).toBe(true))
    held.resolve()
    await turnOfLoop()
    diag.disable()
    expect(outcome()).toEqual({ status: unset })
    expect(complaints).toEqual([])
  })

  test('of next() after a reply that is still on its way is none', async () => {
    const held = deferred()
    const holder: Middleware = onResponse('tools/call', (_, next) => held.promise.then(next))
    const replier: Middleware = onRequest('tools/call', async (ctx, next) => {
      void ctx.reply({ content: [] })
      await next()
    })
    const { client } = await joined((app) => app.use(trace(), holder, replier))
    client.say(call())
    await turnOfLoop()
    held.resolve()
    await turnOfLoop()
    expect(client.take()).toEqual([{ id: 7, result: { content: [] } }])
    expect(outcome()).toEqual({ status: unset })
  })

  test('of an upstream that never came', async () => {
    const server = new HandWire()
    server.starting = () => new Promise(() => {})
    const { client } = await joined((app) => app.use(trace()), { server })
    client.say(call())
    await turnOfLoop()
    server.onclose?.()
    await turnOfLoop()
    expect(client.take()).toMatchObject([{ id: 7, error: { code: -31001 } }])
    expect(outcome()).toMatchObject({ type: '-31001', rpc: '-31001' })
  })

  test('of a request that is cancelled already', async () => {
    const { ctx, next, abort } = testContext(call())
    abort(new DOMException('The request was cancelled by its sender', 'AbortError'))
    await trace()(ctx, next)
    expect(outcome()).toMatchObject({ type: 'cancelled' })
  })

  test('answered before this place', async () => {
    let answer = () => {}
    const outer: Middleware = onRequest('tools/call', (ctx, next) => {
      answer = () => void ctx.reply({ content: [] })
      return next()
    })
    const proxy = testProxy(createProxy().use(outer, trace()))
    await proxy.fromClient(call())
    answer()
    await proxy.settle()
    await proxy.fromServer(ok())
    expect(outcome()).toEqual({ status: { code: SpanStatusCode.ERROR }, type: 'cancelled' })
  })

  test('of a middleware behind, caught before this place', async () => {
    const caught: Middleware = onRequest('tools/call', (ctx, next) =>
      next().catch(() => void ctx.reply({ content: [] })),
    )
    const thrower: Middleware = onRequest('tools/call', () => {
      throw proxyError('denied', { detail: 'x' })
    })
    const proxy = testProxy(createProxy().use(caught, trace(), thrower))
    await proxy.fromClient(call())
    expect(outcome()).toMatchObject({ type: '-31006', rpc: '-31006' })
  })

  test('the upstream ends', async () => {
    const proxy = traced()
    await proxy.fromClient(call())
    await proxy.end('server')
    expect(outcome()).toMatchObject({ type: '-31001', rpc: '-31001' })
  })

  test('the client leaves', async () => {
    const app = createProxy({ drainTimeout: 0 }).use(trace())
    const proxy = testProxy(app)
    await proxy.fromServer({ id: 1, method: 'roots/list' })
    await proxy.end('client')
    expect(outcome()).toMatchObject({ type: '-31008', rpc: '-31008' })
  })

  test('it could not be delivered', async () => {
    const { client, server, errors } = await joined((app) => app.use(trace()))
    server.sending = () => Promise.reject(proxyError('upstream_unreachable'))
    client.say(call())
    await turnOfLoop()
    expect(client.take()).toMatchObject([{ id: 7, error: { code: -31009 } }])
    expect(outcome()).toMatchObject({ type: '-31009', rpc: '-31009' })
    expect(errors).toEqual([])
  })

  test('a stream that its server took back ends with the session', async () => {
    const proxy = traced()
    const _meta = { 'io.modelcontextprotocol/protocolVersion': '2026-07-28' }
    await proxy.fromClient({ id: 1, method: 'subscriptions/listen', params: { _meta } })
    await proxy.fromServer({ method: 'notifications/cancelled', params: { requestId: 1 } })
    await proxy.end('client')
    expect(spans()).toMatchObject([{ name: 'subscriptions/listen' }])
  })

  test('nothing is left when many are cancelled at once', async () => {
    const warnings: Error[] = []
    const onWarning = (warning: Error) => warnings.push(warning)
    process.on('warning', onWarning)
    const proxy = traced()
    for (let id = 0; id < 50; id++) await proxy.fromClient(call(id))
    for (let requestId = 0; requestId < 50; requestId++) {
      await proxy.fromClient({ method: 'notifications/cancelled', params: { requestId } })
    }
    await turnOfLoop()
    process.off('warning', onWarning)
    expect(spans()).toHaveLength(50)
    expect(warnings).toEqual([])
  })
})

describe('a provider', () => {
  const text =
    '{"jsonrpc":"2.0","id":7,"method":"x","params":{"_meta":{"traceparent":"bad","tracestate":"a=1","baggage":"b=2"}}}'
  const passed = async (options: TraceOptions) => {
    const { client, server } = await joined((app) => app.use(trace(options)))
    client.say(text)
    server.say({ id: 7, result: {} })
    await turnOfLoop()
    expect(client.take()).toEqual([{ id: 7, result: {} }])
    return server.sent
  }

  test.each<TraceOptions>([{}, { remote: 'link' }, { remote: 'ignore' }])(
    'that is not there changes no byte: %j',
    async (options) => {
      api.disable()
      expect(await passed(options)).toEqual([text])
    },
  )

  test('that is not there costs no parsing, nor does an answer that is not sampled', async () => {
    const parse = vi.spyOn(JSON, 'parse')
    try {
      api.disable()
      await trace()(testContext(call()).ctx, async () => {})
      expect(parse).not.toHaveBeenCalled()
      api.setGlobalTracerProvider(sdk(new AlwaysOffSampler()))
      const { client, server } = await joined((app) => app.use(trace()))
      client.say(call())
      await turnOfLoop()
      expect(server.sent).toHaveLength(1)
      parse.mockClear()
      server.say(ok())
      await turnOfLoop()
      expect(client.sent).toHaveLength(1)
      expect(parse).not.toHaveBeenCalled()
    } finally {
      parse.mockRestore()
    }
  })

  test('that does nothing changes no byte', async () => {
    const { traceId, spanId } = { traceId: TRACE, spanId: PARENT }
    const idle = {
      startSpan: () => api.wrapSpanContext({ traceId: '0'.repeat(32), spanId: '0'.repeat(16), traceFlags: 0 }),
    }
    expect(await passed({ tracerProvider: { getTracer: () => idle as never } })).toEqual([text])
    const echo = { startSpan: () => api.wrapSpanContext({ traceId, spanId, traceFlags: 1 }) }
    const proxy = traced({ tracerProvider: { getTracer: () => echo as never } })
    expect(written(await proxy.fromClient(call(7, { traceparent, tracestate: 'a=1 ' })))).toEqual({
      traceparent,
      tracestate: 'a=1 ',
    })
  })

  test('may come later, or be given', async () => {
    api.disable()
    const proxy = traced()
    expect(written(await proxy.fromClient(call(1)))).toBeUndefined()
    api.setGlobalTracerProvider(sdk())
    expect(written(await proxy.fromClient(call(2)))).toEqual({ traceparent: ours })
    await proxy.fromServer(ok(1))
    await proxy.fromServer(ok(2))
    expect(spans()).toHaveLength(1)
    api.disable()
    const given = traced({ tracerProvider: sdk() })
    expect(written(await given.fromClient(call(3)))).toEqual({ traceparent: ours })
  })
})

test.each([
  [{ remote: 'child' }, 'trace: expected remote "parent", "link" or "ignore", got "child"'],
  [{ remote: true }, 'trace: expected remote "parent", "link" or "ignore", got true'],
  [{ propagate: 'no' }, 'trace: expected propagate true or false, got "no"'],
  [{ arguments: 1 }, 'trace: expected arguments true or false, got 1'],
  [{ results: null }, 'trace: expected results true or false, got null'],
  [{ tracerProvider: {} }, 'trace: expected tracerProvider with a method getTracer, got {}'],
  [{ tracerProvider: null }, 'trace: expected tracerProvider with a method getTracer, got null'],
])('refuses %j', (options, message) => {
  expect(() => trace(options as never)).toThrow(new TypeError(message))
})

test('is an observer with a name', () => {
  expect({ ...trace(), name: trace().name }).toEqual({ role: 'observe', name: 'trace' })
})
