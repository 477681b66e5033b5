import { Client as ClientV2, InMemoryTransport as InMemoryV2 } from '@modelcontextprotocol/client'
import { Client as ClientV1 } from '@modelcontextprotocol/sdk/client/index.js'
import { InMemoryTransport as InMemoryV1 } from '@modelcontextprotocol/sdk/inMemory.js'
import { McpServer as ServerV1 } from '@modelcontextprotocol/sdk/server/mcp.js'
import { CreateMessageRequestSchema } from '@modelcontextprotocol/sdk/types.js'
import { McpServer as ServerV2 } from '@modelcontextprotocol/server'
import { createProxy, type Middleware } from 'open-mcp-proxy'
import { expect, test } from 'vitest'
import { z } from 'zod'
import { path } from '../fixtures/command.js'
import { talkTo } from '../fixtures/talk.js'

const info = { name: 'test', version: '1.0.0' }
const inputSchema = z.object({ text: z.string() })
const sampled = { role: 'assistant', model: 'm', content: { type: 'text', text: 'Sampled.' } } as const
const ask = { messages: [{ role: 'user' as const, content: { type: 'text' as const, text: 'Say.' } }], maxTokens: 9 }
const say = (text: string) => ({ content: [{ type: 'text' as const, text }] })

function serverV1() {
  const server = new ServerV1(info)
  server.registerTool('ask', { inputSchema: inputSchema.shape }, async ({ text }) => {
    const { content } = await server.server.createMessage(ask)
    return say(`${text}: ${(content as { text: string }).text}`)
  })
  return server
}

function serverV2() {
  const server = new ServerV2(info)
  server.registerTool('ask', { inputSchema }, async ({ text }, ctx) => {
    const { content } = await ctx.mcpReq.requestSampling(ask)
    return say(`${text}: ${(content as { text: string }).text}`)
  })
  return server
}

function clientV1() {
  const client = new ClientV1(info, { capabilities: { sampling: {} } })
  client.setRequestHandler(CreateMessageRequestSchema, () => sampled)
  return client
}

function clientV2() {
  const client = new ClientV2(info, { capabilities: { sampling: {} } })
  client.setRequestHandler('sampling/createMessage', () => sampled)
  return client
}

/** Writes down what passes, and puts an exclamation mark behind what a tool is called with. */
function witness(log: string[]): Middleware {
  return function witness(ctx, next) {
    log.push([ctx.from, ctx.kind, ctx.method].join(' '))
    if (ctx.isRequest('tools/call')) (ctx.params?.arguments as { text: string }).text += '!'
    return next()
  }
}

test.each([
  ['v1', 'v1'],
  ['v1', 'v2'],
  ['v2', 'v1'],
  ['v2', 'v2'],
])('a client of %s and a server of %s need no wire', async (clientVersion, serverVersion) => {
  const client = clientVersion === 'v1' ? clientV1() : clientV2()
  const server = serverVersion === 'v1' ? serverV1() : serverV2()
  const [clientSide, nearClient] = (clientVersion === 'v1' ? InMemoryV1 : InMemoryV2).createLinkedPair()
  const [nearServer, serverSide] = (serverVersion === 'v1' ? InMemoryV1 : InMemoryV2).createLinkedPair()
  const log: string[] = []
  const app = createProxy().use(witness(log))
  app.on('error', (error) => log.push(error.message))

  await server.connect(serverSide as never)
  const session = app.connect(nearClient as never, nearServer as never)
  await client.connect(clientSide as never)
  const result = await client.callTool({ name: 'ask', arguments: { text: 'é👋' } })
  expect(result).toEqual(say('é👋!: Sampled.'))
  const closed = new Promise((resolve) => session.signal.addEventListener('abort', resolve))
  await client.close()
  await closed
  expect(log).toEqual([
    'client request initialize',
    'server response initialize',
    'client notification notifications/initialized',
    'client request tools/call',
    'server request sampling/createMessage',
    'client response sampling/createMessage',
    'server response tools/call',
  ])
  await app.close()
  expect(app.stats().sessions).toBe(0)
})

test('a factory of transports is an upstream too', async () => {
  const talk = await talkTo({ command: process.execPath, args: [path('../fixtures/in-process.mjs')] }, 'v1')
  expect(await talk.tool('echo', { text: 'loud' })).toEqual(say('LOUD'))
  await talk.close()
  expect(talk.complaints).toEqual([])
})
