/** Records a session once; then a client has it again without the server, and a server is held against it. */
import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { InMemoryTransport } from '@modelcontextprotocol/sdk/inMemory.js'
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js'
import { createProxy, type Session, type UpstreamFactory, type Wire } from 'open-mcp-proxy'
import { record } from 'open-mcp-proxy/middleware/record'
import { replay, rerun } from 'open-mcp-proxy/middleware/replay'

/** An upstream in this process: a server whose one tool says a greeting. */
function greeter(greeting: string): UpstreamFactory {
  return async function greeter() {
    const server = new McpServer({ name: 'greeter', version: '1.0.0' })
    server.registerTool('greet', {}, () => ({ content: [{ type: 'text', text: greeting }] }))
    const [near, far] = InMemoryTransport.createLinkedPair()
    await server.connect(far)
    return near
  }
}

const directory = await mkdtemp(join(tmpdir(), 'record-and-replay-'))
const file = join(directory, 'session.jsonl')

/** What a client hears that calls the tool. */
async function greeted(upstream: UpstreamFactory, app = createProxy()) {
  const [clientEnd, proxyFront] = InMemoryTransport.createLinkedPair()
  app.connect(proxyFront, (await upstream({} as Session)) as Wire)
  const client = new Client({ name: 'example', version: '1.0.0' })
  await client.connect(clientEnd)
  const { content } = await client.callTool({ name: 'greet' })
  await client.close()
  await app.close()
  return content
}

const original = await greeted(greeter('Hello'), createProxy().use(record({ file })))
const replayed = await greeted(replay({ file }))
const same = await rerun({ file, upstream: greeter('Hello') })
const changed = await rerun({ file, upstream: greeter('Good day') })
await rm(directory, { recursive: true })

console.log('replayed:', replayed)
for (const { method, name, path, expected, came } of changed) console.log(method, name, path, { expected, came })
assert.deepEqual(replayed, original)
assert.deepEqual(same, [])
assert.deepEqual(
  changed.map(({ path, expected, came }) => ({ path, expected, came })),
  [{ path: 'result.content[0].text', expected: 'Hello', came: 'Good day' }],
)
