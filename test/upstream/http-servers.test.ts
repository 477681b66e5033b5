import { randomUUID } from 'node:crypto'
import type { ServerResponse } from 'node:http'
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js'
import { SSEServerTransport } from '@modelcontextprotocol/sdk/server/sse.js'
import { StreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/streamableHttp.js'
import { describe, expect, it, vi } from 'vitest'
import { proxyError } from '../../src/error.js'
import { detect } from '../../src/upstream/detect.js'
import { HttpUpstream } from '../../src/upstream/http.js'
import { SseUpstream } from '../../src/upstream/sse.js'
import type { Wire } from '../../src/wire.js'
import { closing } from '../fixtures/closing.js'
import { listenTo, modern, notification, request } from '../fixtures/http-server.js'
import { host, target } from '../fixtures/http-target.js'

interface Message {
  id?: string | number
  method?: string
  params?: { data?: string; progress?: number }
  result?: { content?: { text: string }[]; tools?: { name: string }[]; protocolVersion?: string }
}

const opened = <T extends { close: () => Promise<void> }>(thing: T): T => {
  closing.push(() => thing.close())
  return thing
}

/** Plays the client of a wire: the messages in order, those that it asks for by id. */
async function play(wire: Wire) {
  const heard = listenTo(opened(wire))
  await wire.start()
  const messages = () => heard.messages() as Message[]
  const answer = (id: string | number) =>
    vi.waitFor(
      () => {
        const found = messages().find((message) => message.id === id && message.method === undefined)
        if (!found) throw new Error(`expected an answer to ${id}`)
        return found
      },
      { timeout: 10_000, interval: 5 },
    )
  return {
    ...heard,
    messages,
    answer,
    async text(id: string | number) {
      return (await answer(id)).result?.content?.[0]?.text
    },
    async initialize(protocolVersion = '2025-11-25', capabilities: object = {}) {
      const clientInfo = { name: 'test', version: '1' }
      await wire.send(request('init', 'initialize', { protocolVersion, capabilities, clientInfo }))
      const { result } = await answer('init')
      await wire.send(notification('notifications/initialized'))
      return result?.protocolVersion
    },
  }
}

const call = (id: number, name: string, args: object = {}) => request(id, 'tools/call', { name, arguments: args })

describe.each([
  ['the target over Streamable HTTP', [], '2025-11-25', 'mcp', HttpUpstream],
  ['the target over Streamable HTTP without sessions', ['--no-session'], '2025-11-25', 'mcp', HttpUpstream],
  ['the target over Streamable HTTP, 2025-03-26', [], '2025-03-26', 'mcp', HttpUpstream],
  ['the target over HTTP+SSE', ['--sse'], '2024-11-05', 'sse', SseUpstream],
] as const)('%s', (_name, args, version, route, Upstream) => {
  it('answers calls, with the notifications that come before', async () => {
    const server = opened(await target(...args))
    const wire = new Upstream({ url: server.url(route) })
    const { initialize, text, messages } = await play(wire)
    expect(await initialize(version)).toBe(version)
    await wire.send(call(1, 'echo', { a: [1, 2] }))
    expect(await text(1)).toBe('{"a":[1,2]}')
    await wire.send(request(2, 'tools/call', { name: 'burst', arguments: { n: 50 }, _meta: { progressToken: 'p' } }))
    expect(await text(2)).toBe('burst done')
    const progress = messages().flatMap(({ method, params }) =>
      method === 'notifications/progress' ? params?.progress : [],
    )
    expect(progress).toEqual(Array.from({ length: 50 }, (_, index) => index + 1))
    await wire.send(call(3, 'big', { bytes: 3_000_000 }))
    expect(await text(3)).toHaveLength(3_000_000)
  })
})

describe.each([
  ['the target over Streamable HTTP', [], 'mcp', HttpUpstream],
  ['the target over HTTP+SSE', ['--sse'], 'sse', SseUpstream],
] as const)('%s', (_name, args, route, Upstream) => {
  it('asks the client in the middle of a call', async () => {
    const server = opened(await target(...args))
    const wire = new Upstream({ url: server.url(route) })
    const { initialize, text, messages } = await play(wire)
    await initialize('2025-06-18', { sampling: {} })
    await wire.send(call(1, 'test_sampling', { prompt: 'hi' }))
    const asked = await vi.waitFor(() => {
      const found = messages().find(({ method }) => method === 'sampling/createMessage')
      if (found?.id === undefined) throw new Error('expected a request of the server')
      return found
    })
    const sampled = { role: 'assistant', model: 'm', content: { type: 'text', text: 'hello' } }
    await wire.send(Buffer.from(JSON.stringify({ jsonrpc: '2.0', id: asked.id, result: sampled })))
    expect(await text(1)).toBe('LLM response: hello')
  })

  it('cancels a call that it is told to', async () => {
    const server = opened(await target(...args))
    const wire = new Upstream({ url: server.url(route) })
    const { initialize, text } = await play(wire)
    await initialize()
    await wire.send(call(1, 'slow', { ms: 60_000 }))
    await vi.waitFor(async () => {
      await wire.send(notification('notifications/cancelled', { requestId: 1 }))
      const id = String(Math.random())
      await wire.send(request(id, 'tools/call', { name: 'cancelled_count', arguments: {} }))
      expect(await text(id)).toBe('1')
    })
  })
})

describe('the target', () => {
  it('answers as JSON', async () => {
    const server = opened(await target('--json'))
    const wire = new HttpUpstream({ url: server.url('mcp') })
    const { initialize, text, frames } = await play(wire)
    await initialize()
    await wire.send(call(1, 'echo', { a: 1 }))
    expect(await text(1)).toBe('{"a":1}')
    expect(frames.at(-1)?.meta?.headers?.['content-type']).toBe('application/json')
  })

  it('closes the stream of a call and has it polled', async () => {
    const server = opened(await target())
    const wire = new HttpUpstream({ url: server.url('mcp') })
    const { initialize, text } = await play(wire)
    await initialize('2025-11-25')
    await wire.send(call(1, 'test_reconnection'))
    expect(await text(1)).toBe('Reconnection test completed successfully')
  })

  it('forgets a session that is closed, and says so to who still uses it', async () => {
    const server = opened(await target())
    const url = server.url('mcp')
    const wire = new HttpUpstream({ url })
    const { initialize, text, answer, closes, frames } = await play(wire)
    await initialize()
    const session = frames[0]?.meta?.headers?.['mcp-session-id'] as string
    await wire.send(call(1, 'seen'))
    expect(JSON.parse((await text(1)) ?? '')).toMatchObject({
      session,
      headers: { 'mcp-protocol-version': '2025-11-25' },
    })
    expect((await fetch(url, { method: 'DELETE', headers: { 'mcp-session-id': session } })).status).toBe(200)
    await wire.send(call(2, 'seen'))
    expect(await answer(2)).toMatchObject({ error: proxyError('upstream_session_lost').toJSON() })
    expect(closes).toEqual([proxyError('upstream_session_lost', { phase: 'sent' })])
  })

  it('of 2026-07-28 finds all headers that it demands', async () => {
    const server = opened(await target('--era', 'modern'))
    const wire = new HttpUpstream({ url: server.url('mcp') })
    const { text, answer, messages } = await play(wire)
    await wire.send(modern(1, 'tools/call', { name: 'test_header_params', arguments: { region: 'öst', query: 'q' } }))
    expect(await text(1)).toBe('{"region":"öst","query":"q"}')
    await wire.send(modern(2, 'resources/read', { uri: 'test://static-text' }))
    expect((await answer(2)).result).toBeDefined()
    await wire.send(modern(3, 'tools/call', { name: 'slow', arguments: { ms: 60_000 } }))
    // What is cancelled before it was written is not written: behind the answer to a later one, it was.
    await wire.send(modern(5, 'resources/read', { uri: 'test://static-text' }))
    await answer(5)
    await wire.send(notification('notifications/cancelled', { requestId: 3 }))
    await vi.waitFor(async () => {
      const id = String(Math.random())
      await wire.send(modern(id, 'tools/call', { name: 'cancelled_count', arguments: {} }))
      expect(await text(id)).toBe('1')
    })
    await wire.send(modern(4, 'no/such/method'))
    expect(await answer(4)).toMatchObject({ error: { code: -32601 } })
    expect(messages().filter(({ id }) => id === 3)).toEqual([])
  })

  it('is found out where only its URL is known', async () => {
    const server = opened(await target('--sse'))
    for (const route of ['mcp', 'sse']) {
      const wire = detect({ url: server.url(route) })
      const { initialize, text } = await play(wire)
      await initialize('2024-11-05')
      await wire.send(call(1, 'echo', { route }))
      expect(await text(1)).toBe(JSON.stringify({ route }))
    }
  })
})

describe('a server of the SDK', () => {
  function asking() {
    const server = new McpServer({ name: 'sdk', version: '1' })
    server.registerTool('ask', {}, async () => {
      const { content } = await server.server.createMessage({
        messages: [{ role: 'user', content: { type: 'text', text: 'hi' } }],
        maxTokens: 1,
      })
      return { content: [{ type: 'text', text: content.type === 'text' ? content.text : '?' }] }
    })
    return server
  }

  async function asked(wire: Wire, ready = async () => {}) {
    const { initialize, text, messages } = await play(wire)
    await initialize('2025-06-18', { sampling: {} })
    await ready()
    await wire.send(call(1, 'ask'))
    const { id } = await vi.waitFor(
      () => {
        const found = messages().find(({ method }) => method === 'sampling/createMessage')
        if (!found) throw new Error('expected a request of the server')
        return found
      },
      { timeout: 10_000 },
    )
    const sampled = { role: 'assistant', model: 'm', content: { type: 'text', text: 'hello' } }
    await wire.send(Buffer.from(JSON.stringify({ jsonrpc: '2.0', id, result: sampled })))
    return text(1)
  }

  it.each([false, true])(
    'asks during a call over Streamable HTTP, answering as JSON: %s',
    async (enableJsonResponse) => {
      const transport = new StreamableHTTPServerTransport({ sessionIdGenerator: randomUUID, enableJsonResponse })
      const mcp = asking()
      await mcp.connect(transport)
      closing.push(() => mcp.close())
      let get: ServerResponse | undefined
      const server = opened(
        await host((incoming, response) => {
          if (incoming.method === 'GET') get = response
          return transport.handleRequest(incoming, response)
        }),
      )
      // The SDK drops what it cannot deliver: its question needs the stream to be open.
      const ready = () => vi.waitFor(() => expect(get?.headersSent).toBe(true))
      expect(await asked(new HttpUpstream({ url: server.url('mcp') }), ready)).toBe('hello')
    },
  )

  it('asks during a call over HTTP+SSE', async () => {
    const mcp = asking()
    let transport: SSEServerTransport | undefined
    const server = opened(
      await host(async (incoming, response) => {
        if (incoming.method === 'POST') return transport?.handlePostMessage(incoming, response)
        transport = new SSEServerTransport('/messages', response)
        await mcp.connect(transport)
      }),
    )
    closing.push(() => mcp.close())
    expect(await asked(new SseUpstream({ url: server.url('sse') }))).toBe('hello')
  })
})
