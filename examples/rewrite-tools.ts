/** Shows the server's tools under a prefix. Two of them compose, since the way back is the way out reversed. */
import assert from 'node:assert/strict'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { InMemoryTransport } from '@modelcontextprotocol/sdk/inMemory.js'
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js'
import { createProxy, type Middleware } from 'open-mcp-proxy'

/** What `tools/list` puts before each name, `tools/call` takes off again; the arguments are not touched. */
function prefix(text: string): Middleware {
  return function prefix(ctx, next) {
    if (ctx.isResponse('tools/list')) {
      for (const tool of ctx.result?.tools ?? []) tool.name = text + tool.name
    } else if (ctx.isRequest('tools/call')) {
      const { name } = ctx.params
      if (!name.startsWith(text)) ctx.throw(-32602, `Unknown tool: ${name}`)
      ctx.params.name = name.slice(text.length)
    }
    return next()
  }
}

const server = new McpServer({ name: 'clock', version: '1.0.0' })
for (const zone of ['utc', 'cet']) {
  server.registerTool(zone, {}, () => ({ content: [{ type: 'text', text: `It is noon, ${zone}.` }] }))
}

const app = createProxy().use(prefix('a_')).use(prefix('b_'))
const [clientEnd, proxyFront] = InMemoryTransport.createLinkedPair()
const [proxyBack, serverEnd] = InMemoryTransport.createLinkedPair()
await server.connect(serverEnd)
app.connect(proxyFront, proxyBack)
const client = new Client({ name: 'example', version: '1.0.0' })
await client.connect(clientEnd)

const names = (await client.listTools()).tools.map(({ name }) => name)
const { content } = await client.callTool({ name: 'a_b_utc' })
const refusal = await client.callTool({ name: 'utc' }).catch((error: Error) => error.message)
await client.close()
await app.close()

console.log({ names, content, refusal })
assert.deepEqual(names, ['a_b_utc', 'a_b_cet'])
assert.deepEqual(content, [{ type: 'text', text: 'It is noon, utc.' }])
assert.equal(refusal, 'MCP error -32602: Unknown tool: utc')
