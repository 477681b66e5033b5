/** A server in this very process, served to clients on a port: an upstream may be a function that gives a transport. */
import assert from 'node:assert/strict'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import { InMemoryTransport } from '@modelcontextprotocol/sdk/inMemory.js'
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js'
import { createProxy, onRequest } from 'open-mcp-proxy'

/** Each session gets a server of its own, so that two clients never share what it remembers. */
async function counter() {
  let count = 0
  const server = new McpServer({ name: 'counter', version: '1.0.0' })
  server.registerTool('next', {}, () => ({ content: [{ type: 'text', text: String(++count) }] }))
  server.registerTool('reset', {}, () => {
    count = 0
    return { content: [] }
  })
  const [proxyEnd, serverEnd] = InMemoryTransport.createLinkedPair()
  await server.connect(serverEnd)
  return proxyEnd
}

const app = createProxy().use(
  onRequest('tools/call', (ctx, next) => (ctx.name === 'reset' ? ctx.throw(-31006, 'Not here') : next())),
)
const { address } = await app.listen(counter, { port: 0 })

async function connect(): Promise<Client> {
  const client = new Client({ name: 'in-process-example', version: '1.0.0' })
  await client.connect(new StreamableHTTPClientTransport(new URL(address)))
  return client
}

const [ada, bob] = [await connect(), await connect()]
const counts: unknown[] = []
for (const client of [ada, ada, bob, ada]) {
  const { content } = await client.callTool({ name: 'next' })
  counts.push((content as { text: string }[])[0]?.text)
}
const refusal = await bob.callTool({ name: 'reset' }).catch((error: Error) => error.message)
await ada.close()
await bob.close()
await app.close()

console.log({ counts, refusal })
assert.deepEqual(counts, ['1', '2', '1', '3'])
assert.equal(refusal, 'MCP error -31006: Not here')
