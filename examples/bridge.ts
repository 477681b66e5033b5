/** A client that speaks stdio alone uses a server that speaks HTTP+SSE: the command is the bridge between them. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createServer } from 'node:net'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js'

const omproxy = fileURLToPath(new URL('../dist/cli.js', import.meta.url))
const everything = fileURLToPath(import.meta.resolve('@modelcontextprotocol/server-everything/dist/index.js'))

const port = await freePort()
const server = spawn(process.execPath, [everything, 'sse'], {
  env: { ...process.env, PORT: String(port) },
  stdio: ['ignore', 'ignore', 'pipe'],
})
try {
  for await (const line of createInterface(server.stderr)) if (line.includes('running on port')) break

  const client = new Client({ name: 'bridge-example', version: '1.0.0' })
  const url = `http://127.0.0.1:${port}/sse`
  await client.connect(
    new StdioClientTransport({ command: process.execPath, args: [omproxy, 'sse', '--url', url], stderr: 'inherit' }),
  )
  const { tools } = await client.listTools()
  const { content } = await client.callTool({ name: 'echo', arguments: { message: 'over SSE' } })
  await client.close()

  console.log('tools:', tools.map(({ name }) => name).join(', '))
  console.log('echo:', content)
  assert.deepEqual(content, [{ type: 'text', text: 'Echo: over SSE' }])
} finally {
  server.kill()
}

async function freePort(): Promise<number> {
  const probe = createServer().listen(0, '127.0.0.1')
  await once(probe, 'listening')
  const { port } = probe.address() as { port: number }
  probe.close()
  await once(probe, 'close')
  return port
}
