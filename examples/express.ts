/** A server that speaks stdio, behind a route of an Express application; the application's own routes stay its own. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { fileURLToPath } from 'node:url'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import express from 'express'
import { createProxy, stdio } from 'open-mcp-proxy'
import { logger } from 'open-mcp-proxy/middleware'

const everything = fileURLToPath(import.meta.resolve('@modelcontextprotocol/server-everything/dist/index.js'))

const proxy = createProxy().use(logger({ format: 'pretty' }))
const app = express()
// Serves /tools/mcp, /tools/sse with /tools/messages, and /tools/healthz. No body parser before it: messages pass as they came.
app.use('/tools', proxy.handler(stdio(process.execPath, [everything])))
app.get('/', (_request, response) => void response.send('Home'))
const server = app.listen(0, '127.0.0.1')
await once(server, 'listening')
const origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`

const client = new Client({ name: 'express-example', version: '1.0.0' })
const transport = new StreamableHTTPClientTransport(new URL(`${origin}/tools/mcp`))
await client.connect(transport)
const { tools } = await client.listTools()
const { content } = await client.callTool({ name: 'echo', arguments: { message: 'through Express' } })
await transport.terminateSession()
await client.close()
const home = await (await fetch(origin)).text()
await proxy.close()
server.close()
// Clients keep their connections.
server.closeAllConnections()

console.log('tools:', tools.map(({ name }) => name).join(', '))
console.log('echo:', content)
assert.deepEqual(content, [{ type: 'text', text: 'Echo: through Express' }])
assert.equal(home, 'Home')
