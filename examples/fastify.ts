/** A server that speaks stdio, behind routes of a Fastify application. */
import assert from 'node:assert/strict'
import { fileURLToPath } from 'node:url'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import fastify from 'fastify'
import { createProxy, stdio } from 'open-mcp-proxy'
import { logger } from 'open-mcp-proxy/middleware'

const everything = fileURLToPath(import.meta.resolve('@modelcontextprotocol/server-everything/dist/index.js'))

const proxy = createProxy().use(logger({ format: 'pretty' }))
const handler = proxy.handler(stdio(process.execPath, [everything]))
const app = fastify({ forceCloseConnections: true })
app.get('/', () => 'Home')
await app.register(async (scope) => {
  // The proxy reads bodies itself: messages pass as they came. The application's other routes keep their parsers.
  scope.removeAllContentTypeParsers()
  scope.addContentTypeParser('*', (_request, _body, done) => done(null))
  for (const path of ['/mcp', '/sse', '/messages', '/healthz']) {
    scope.all(path, (request, reply) => {
      reply.hijack()
      handler(request.raw, reply.raw)
    })
  }
})
// Ends the sessions and their servers with the application.
app.addHook('preClose', () => proxy.close())
const origin = await app.listen({ port: 0, host: '127.0.0.1' })

const client = new Client({ name: 'fastify-example', version: '1.0.0' })
const transport = new StreamableHTTPClientTransport(new URL(`${origin}/mcp`))
await client.connect(transport)
const { tools } = await client.listTools()
const { content } = await client.callTool({ name: 'echo', arguments: { message: 'through Fastify' } })
await transport.terminateSession()
await client.close()
const home = await (await fetch(origin)).text()
await app.close()

console.log('tools:', tools.map(({ name }) => name).join(', '))
console.log('echo:', content)
assert.deepEqual(content, [{ type: 'text', text: 'Echo: through Fastify' }])
assert.equal(home, 'Home')
