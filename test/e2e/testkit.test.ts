import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js'
import { createProxy, type Middleware, stdio } from 'open-mcp-proxy'
import { request, testProxy } from 'open-mcp-proxy/testing'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { everything } from '../fixtures/servers.js'

let client: Client

beforeAll(async () => {
  client = new Client({ name: 'test', version: '1' })
  await client.connect(new StdioClientTransport({ command: process.execPath, args: [everything], stderr: 'ignore' }))
})

afterAll(() => client.close())

const prefix: Middleware = (ctx, next) => {
  if (ctx.isRequest('tools/call')) ctx.params.name = ctx.params.name.slice(2)
  if (ctx.isResponse('tools/list')) for (const tool of ctx.result?.tools ?? []) tool.name = `a_${tool.name}`
  return next()
}

test('what the kit shows is what a real server and a real client get', async () => {
  const list = await client.listTools()
  const call = await client.callTool({ name: 'echo', arguments: { message: 'hi' } })
  const proxy = testProxy({ server: { 'tools/list': list, 'tools/call': call as never } }).use(prefix)
  const played = [
    ...(await proxy.fromClient(request(1, 'tools/list'))).toClient,
    ...(await proxy.fromClient(request(2, 'tools/call', { name: 'a_echo', arguments: { message: 'hi' } }))).toClient,
  ].map((it) => ('result' in it ? it.result : it))

  const app = createProxy().use(prefix)
  const { address } = await app.listen(stdio(process.execPath, [everything]), { port: 0 })
  try {
    const { StreamableHTTPClientTransport } = await import('@modelcontextprotocol/sdk/client/streamableHttp.js')
    const other = new Client({ name: 'test', version: '1' })
    await other.connect(new StreamableHTTPClientTransport(new URL(address)) as never)
    const real = [await other.listTools(), await other.callTool({ name: 'a_echo', arguments: { message: 'hi' } })]
    await other.close()
    expect(played).toEqual(real)
  } finally {
    await app.close({ urgent: true })
  }
})
