/** A middleware that finds out who calls, one that decides what they may, and the logger before both. */
import assert from 'node:assert/strict'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { InMemoryTransport } from '@modelcontextprotocol/sdk/inMemory.js'
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js'
import { createProxy, onRequest } from 'open-mcp-proxy'
import { logger } from 'open-mcp-proxy/middleware'

interface Login {
  user: string
}

const TOKEN = 'example.com/token'

/** Knows the caller by a token in `_meta`, and takes it out: it is not the server's business. */
function auth(users: ReadonlyMap<unknown, string>) {
  return onRequest<'tools/call', Login>('tools/call', (ctx, next) => {
    const user = users.get(ctx.params._meta?.[TOKEN])
    if (user === undefined) ctx.throw(-31006, 'Denied: who are you?')
    delete ctx.params._meta?.[TOKEN]
    ctx.state.user = user
    return next()
  })
}

/** `ctx.state.user` is typed; it is set by the time that a request gets here. */
const onlyAda = onRequest<'tools/call', Login>('tools/call', (ctx, next) => {
  if (ctx.state.user !== 'ada' && ctx.params.name === 'launch') ctx.throw(-31006, `Denied to ${ctx.state.user}`)
  return next()
})

const app = createProxy()
  .use(logger({ format: 'pretty' }))
  .use(
    auth(
      new Map([
        ['token-of-ada', 'ada'],
        ['token-of-bob', 'bob'],
      ]),
    ),
  )
  .use(onlyAda)

const server = new McpServer({ name: 'rockets', version: '1.0.0' })
server.registerTool('launch', { description: 'Launches the rocket.' }, ({ _meta }) => ({
  content: [{ type: 'text', text: `Launched. The server saw ${JSON.stringify(Object.keys(_meta ?? {}))}.` }],
}))

const [clientEnd, proxyFront] = InMemoryTransport.createLinkedPair()
const [proxyBack, serverEnd] = InMemoryTransport.createLinkedPair()
await server.connect(serverEnd)
app.connect(proxyFront, proxyBack)
const client = new Client({ name: 'example', version: '1.0.0' })
await client.connect(clientEnd)

const launch = (token?: string) =>
  client.callTool({ name: 'launch', _meta: token ? { [TOKEN]: token } : {} }).then(
    ({ content }) => content,
    (error: Error) => error.message,
  )
const outcomes = [await launch(), await launch('token-of-bob'), await launch('token-of-ada')]
await client.close()
await app.close()

console.log(outcomes)
assert.deepEqual(outcomes, [
  'MCP error -31006: Denied: who are you?',
  'MCP error -31006: Denied to bob',
  [{ type: 'text', text: 'Launched. The server saw [].' }],
])
