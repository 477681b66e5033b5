/** The main job: a real client talks to a real server through the command, the logger's lines on the terminal. */
import assert from 'node:assert/strict'
import { fileURLToPath } from 'node:url'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js'

const omproxy = fileURLToPath(new URL('../dist/cli.js', import.meta.url))
const server = fileURLToPath(import.meta.resolve('@modelcontextprotocol/server-everything/dist/index.js'))

const client = new Client({ name: 'demo', version: '1.0.0' })
await client.connect(
  new StdioClientTransport({
    command: process.execPath,
    args: [omproxy, 'stdio', '--use', 'logger={"format":"pretty"}', '--', process.execPath, server],
    stderr: 'inherit',
  }),
)

const { tools } = await client.listTools()
const { content } = await client.callTool({ name: 'get-sum', arguments: { a: 19, b: 23 } })
await client.close()

console.log(`\n${tools.length} tools: ${tools.map(({ name }) => name).join(', ')}`)
console.log('get-sum of 19 and 23:', content)
assert.deepEqual(content, [{ type: 'text', text: 'The sum of 19 and 23 is 42.' }])
