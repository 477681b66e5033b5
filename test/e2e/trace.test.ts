import { createServer, type RequestListener } from 'node:http'
import { createRequire } from 'node:module'
import type { AddressInfo } from 'node:net'
import { json } from 'node:stream/consumers'
import { pathToFileURL } from 'node:url'
import { toNodeHandler } from '@modelcontextprotocol/node'
import { createMcpHandler, McpServer } from '@modelcontextprotocol/server'
import { context } from '@opentelemetry/api'
import { AsyncLocalStorageContextManager } from '@opentelemetry/context-async-hooks'
import { OTLPTraceExporter } from '@opentelemetry/exporter-trace-otlp-http'
import { BasicTracerProvider, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-base'
import { createProxy, type Upstream } from 'open-mcp-proxy'
import { afterAll, beforeAll, beforeEach, expect, test, vi } from 'vitest'
import { trace } from '../../middleware/trace.js'
import { path, stop } from '../fixtures/command.js'
import { everything, startHttp, target } from '../fixtures/servers.js'
import { type Generation, proxied, talkTo, type Where } from '../fixtures/talk.js'
import { converse, shaped } from '../fixtures/target-talk.js'

/** A span as it comes to a collector. */
interface Collected {
  traceId: string
  spanId: string
  parentSpanId?: string
  name: string
  kind: number
  attributes: { key: string; value: { stringValue?: string } }[]
  status: { code?: number; message?: string }
}

const TRACE = '4bf92f3577b34da6a3ce929d0e0e4736'
const CLIENT = '00f067aa0ba902b7'
const traceparent = `00-${TRACE}-${CLIENT}-01`
/** A parent in W3C format, of a span. */
const asParent = ({ traceId, spanId }: Collected) => `00-${traceId}-${spanId}-01`

const closing: (() => unknown)[] = []
let spans: Collected[] = []
let collector: string
let server: string

/** Serves on a free port of this machine; gives its origin. */
async function listening(handler: RequestListener): Promise<string> {
  const http = createServer(handler)
  await new Promise<void>((resolve) => http.listen(0, '127.0.0.1', resolve))
  closing.push(() => {
    http.close()
    http.closeAllConnections()
  })
  return `http://127.0.0.1:${(http.address() as AddressInfo).port}`
}

/** The spans of the tool call, once so many came; the client's child first. */
async function collected(count: number): Promise<Collected[]> {
  await vi.waitFor(() => expect(calls()).toHaveLength(count), { timeout: 5_000, interval: 5 })
  return calls().sort((one) => (one.parentSpanId === CLIENT ? -1 : 1))
}
const calls = () => spans.filter(({ name }) => name === 'tools/call meta')

/** A server of both eras, whose tool gives the `_meta` that it was called with. */
function metaServer() {
  const it = new McpServer({ name: 'meta', version: '1.0.0' })
  it.registerTool('meta', {}, (ctx) => ({ content: [{ type: 'text', text: JSON.stringify(ctx.mcpReq._meta) }] }))
  return it
}

/** The same, to be run by Node. */
const metaScript = `
import { McpServer } from '@modelcontextprotocol/server'
import { serveStdio } from '@modelcontextprotocol/server/stdio'
serveStdio(() => {
  const it = new McpServer({ name: 'meta', version: '1.0.0' })
  it.registerTool('meta', {}, (ctx) => ({ content: [{ type: 'text', text: JSON.stringify(ctx.mcpReq._meta) }] }))
  return it
})`
const stdio = { command: process.execPath, args: ['--input-type=module', '-e', metaScript] }

beforeAll(async () => {
  const collect: RequestListener = async (request, response) => {
    const { resourceSpans } = (await json(request)) as { resourceSpans: { scopeSpans: { spans: Collected[] }[] }[] }
    spans.push(...resourceSpans.flatMap((it) => it.scopeSpans.flatMap((scope) => scope.spans)))
    response.writeHead(200, { 'content-type': 'application/json' }).end('{}')
  }
  collector = `${await listening(collect)}/v1/traces`
  server = `${await listening(toNodeHandler(createMcpHandler(metaServer)))}/mcp`
})
beforeEach(() => {
  spans = []
})
afterAll(() => Promise.all(closing.map((close) => close())))

/** What an application does at its start, as a module: it registers the SDK. */
function registration(): string {
  const at = (name: string) => pathToFileURL(createRequire(import.meta.url).resolve(name)).href
  const code = `
    import api from '${at('@opentelemetry/api')}'
    import sdk from '${at('@opentelemetry/sdk-trace-base')}'
    import otlp from '${at('@opentelemetry/exporter-trace-otlp-http')}'
    const exporter = new otlp.OTLPTraceExporter({ url: '${collector}' })
    const spanProcessors = [new sdk.SimpleSpanProcessor(exporter)]
    api.trace.setGlobalTracerProvider(new sdk.BasicTracerProvider({ spanProcessors }))`
  return `data:text/javascript;base64,${Buffer.from(code).toString('base64')}`
}

/** The same server, through the command with a trace. */
function traced(where: Where): Where {
  const { command, args } = proxied(where, '--use', 'trace') as { command: string; args: string[] }
  return { command, args: ['--import', registration(), ...args] }
}

/** Calls the tool with this `_meta`; gives the `_meta` that came to the server, but for what the era adds. */
async function called(where: Where, generation: Generation, _meta: object) {
  const talk = await talkTo(where, generation)
  closing.push(() => talk.close())
  const { content } = await talk.ask('tools/call', { name: 'meta', arguments: {}, _meta })
  const came = JSON.parse((content as { text: string }[])[0]!.text) as Record<string, unknown>
  expect(talk.complaints).toEqual([])
  return Object.fromEntries(Object.entries(came).filter(([key]) => !key.startsWith('io.modelcontextprotocol/')))
}

/** The server on a port of this process, with a trace. */
async function port(upstream: Upstream): Promise<string> {
  const exporter = new OTLPTraceExporter({ url: collector })
  const tracerProvider = new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] })
  const app = createProxy().use(trace({ tracerProvider }))
  const { address } = await app.listen(upstream, { port: 0 })
  closing.push(() => app.close({ urgent: true }))
  return address
}

const attributesOf = ({ attributes }: Collected) =>
  Object.fromEntries(attributes.map(({ key, value }) => [key, value.stringValue]))

const generations: Generation[] = ['v1', 'v2', 'v2-modern']
const via = { stdio: () => stdio, HTTP: () => ({ http: server, url: server }) }

for (const [wire, where] of Object.entries(via)) {
  test.each(generations)(
    `client, two commands in a row and a server over ${wire} make one trace: %s`,
    async (client) => {
      const meta = await called(traced(traced(where())), client, {
        traceparent,
        tracestate: 'rojo=1',
        baggage: 'user=ada',
        n: 1,
      })
      const [outer, inner] = await collected(2)
      expect(outer).toMatchObject({ traceId: TRACE, parentSpanId: CLIENT, kind: 2, status: { code: 0 } })
      expect(inner).toMatchObject({ traceId: TRACE, parentSpanId: outer!.spanId, kind: 2, status: { code: 0 } })
      expect(meta).toEqual({ traceparent: asParent(inner!), tracestate: 'rojo=1', baggage: 'user=ada', n: 1 })
      expect(attributesOf(outer!)).toEqual({
        'mcp.method.name': 'tools/call',
        'jsonrpc.request.id': expect.stringMatching(/^\d+$/),
        'mcp.protocol.version': client === 'v2-modern' ? '2026-07-28' : '2025-11-25',
        'gen_ai.operation.name': 'execute_tool',
        'gen_ai.tool.name': 'meta',
        ...(client !== 'v2-modern' && { 'mcp.session.id': expect.stringMatching(/^[\da-f-]{36}$/) }),
      })
    },
  )

  test.each(generations)(`a client on a port, before a server over ${wire}: %s`, async (client) => {
    const address = await port(where())
    const meta = await called({ http: address }, client, { traceparent, n: 1 })
    const [span] = await collected(1)
    expect(span).toMatchObject({ traceId: TRACE, parentSpanId: CLIENT })
    expect(attributesOf(span!)).toMatchObject({ 'network.transport': 'tcp', 'network.protocol.name': 'http' })
    expect(meta).toEqual({ traceparent: asParent(span!), n: 1 })
  })
}

test('the headers of a client without _meta are the parent', async () => {
  const address = await port({ url: server })
  const _meta = {
    'io.modelcontextprotocol/protocolVersion': '2026-07-28',
    'io.modelcontextprotocol/clientCapabilities': {},
  }
  const message = { jsonrpc: '2.0', id: 1, method: 'tools/call', params: { name: 'meta', arguments: {}, _meta } }
  const response = await fetch(address, {
    method: 'POST',
    headers: {
      'content-type': 'application/json',
      accept: 'application/json, text/event-stream',
      'mcp-protocol-version': '2026-07-28',
      'mcp-method': 'tools/call',
      'mcp-name': 'meta',
      traceparent,
      tracestate: 'rojo=1',
    },
    body: JSON.stringify(message),
  })
  const answer = await response.text()
  const [span] = await collected(1)
  expect(span).toMatchObject({ traceId: TRACE, parentSpanId: CLIENT })
  expect(answer).toContain(JSON.stringify(JSON.stringify(asParent(span!))).slice(1, -1))
  expect(attributesOf(span!)).not.toHaveProperty('mcp.session.id')
})

/** What a peer said, without what the trace wrote into it. */
const untraced = <T>(value: T): T =>
  JSON.parse(JSON.stringify(value, (_, it) => (it && typeof it === 'object' && 'traceparent' in it ? without(it) : it)))

function without({ traceparent: _, ...rest }: { traceparent?: unknown }): object | undefined {
  return Object.keys(rest).length > 0 ? rest : undefined
}

test.each(generations)('the target says through a trace what it says without: %s', async (generation) => {
  const where: Where = { command: process.execPath, args: [target, '--stdio'] }
  const record = async (at: Where) => {
    const talk = await talkTo(at, generation)
    try {
      const conversation = await converse(talk, { streams: true, sessions: true }, generation === 'v2-modern')
      return { conversation: shaped(conversation), complaints: talk.complaints }
    } finally {
      await talk.close()
    }
  }
  const through = await record(traced(where))
  expect(untraced(through)).toEqual(untraced(await record(where)))
  await vi.waitFor(() => expect(spans.some(({ status }) => status.code === 2)).toBe(true), { timeout: 5_000 })
})

test('a tool of the everything server that fails, and a sampling request of its own', async () => {
  const talk = await talkTo(traced({ command: process.execPath, args: [everything] }), 'v1')
  closing.push(() => talk.close())
  await talk.tool('no-such-tool')
  await talk.tool('trigger-sampling-request', { prompt: 'Say.', maxTokens: 9 })
  await vi.waitFor(() => expect(spans.map(({ name }) => name)).toContain('tools/call trigger-sampling-request'), {
    timeout: 5_000,
    interval: 5,
  })
  const named = (name: string) => spans.filter((it) => it.name === name)
  expect(named('tools/call no-such-tool')).toMatchObject([{ status: { code: 2 } }])
  const [sampling] = named('sampling/createMessage')
  expect(talk.conversation.asked['sampling/createMessage']).toMatchObject([
    { request: { params: { _meta: { traceparent: asParent(sampling!) } } } },
  ])
})

test('what a server asks on the HTTP stream of a call is a child of the call', async () => {
  const asking = await startHttp(path('./asking-server.mjs'), ['sse', 'PORT'], /listening/)
  closing.push(() => stop(asking.child))
  const manager = new AsyncLocalStorageContextManager().enable()
  context.setGlobalContextManager(manager)
  closing.push(() => context.disable())
  const talk = await talkTo({ http: await port({ url: `${asking.origin}/mcp` }) }, 'v1')
  closing.push(() => talk.close())
  await talk.tool('ask', { n: 1 }, { onprogress: () => {} })
  await vi.waitFor(() => expect(spans.map(({ name }) => name)).toContain('tools/call ask'), {
    timeout: 5_000,
    interval: 5,
  })
  const named = (name: string) => spans.find((it) => it.name === name)
  const { traceId, spanId } = named('tools/call ask')!
  expect(named('sampling/createMessage')).toMatchObject({ traceId, parentSpanId: spanId })
  expect(named('elicitation/create')).toMatchObject({ traceId, parentSpanId: spanId })
})
