// What anybody would write with the SDK's own transports, back to back.
// sdk.js stdio COMMAND ARGS… | sse URL | http URL | listen PORT COMMAND ARGS…
import { randomUUID } from 'node:crypto'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { SSEClientTransport } from '@modelcontextprotocol/sdk/client/sse.js'
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import { SSEServerTransport } from '@modelcontextprotocol/sdk/server/sse.js'
import { StdioServerTransport } from '@modelcontextprotocol/sdk/server/stdio.js'
import { StreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/streamableHttp.js'
import type { Transport } from '@modelcontextprotocol/sdk/shared/transport.js'

/** Else the SDK takes no line of 16 MiB. */
const LARGE = { maxBufferSize: 64 << 20 }

async function join(client: Transport, server: Transport): Promise<void> {
  client.onmessage = (message) => {
    if ('method' in message && message.method === 'notifications/initialized') server.setProtocolVersion?.('2025-06-18')
    server.send(message).catch(console.error)
  }
  server.onmessage = (message) => {
    client.send(message).catch(console.error)
  }
  client.onerror = server.onerror = console.error
  await server.start()
  await client.start()
}

const child = (command = '', ...args: string[]) => new StdioClientTransport({ command, args, ...LARGE })

const streams = new Map<unknown, StreamableHTTPServerTransport>()
const events = new Map<unknown, SSEServerTransport>()

async function handle(request: IncomingMessage, response: ServerResponse, command: string[]): Promise<void> {
  const { pathname, searchParams } = new URL(request.url!, 'http://localhost')
  if (pathname === '/mcp') return (await streamOf(request, command)).handleRequest(request, response)
  if (pathname === '/message') return events.get(searchParams.get('sessionId'))?.handlePostMessage(request, response)
  const transport = new SSEServerTransport('/message', response)
  const server = child(...command)
  events.set(transport.sessionId, transport)
  transport.onclose = () => server.close()
  await join(transport, server)
}

async function streamOf(request: IncomingMessage, command: string[]): Promise<StreamableHTTPServerTransport> {
  const known = streams.get(request.headers['mcp-session-id'])
  if (known) return known
  const onsessioninitialized = (id: string) => void streams.set(id, transport)
  const transport = new StreamableHTTPServerTransport({ sessionIdGenerator: randomUUID, onsessioninitialized })
  const server = child(...command)
  transport.onclose = () => server.close()
  await join(transport as Transport, server)
  return transport
}

const [mode, where = '', ...args] = process.argv.slice(2)
if (mode === 'listen') {
  createServer((request, response) => void handle(request, response, args)).listen(Number(where), '127.0.0.1')
} else {
  const url = () => new URL(where)
  const http = () => (mode === 'sse' ? new SSEClientTransport(url()) : new StreamableHTTPClientTransport(url()))
  const server: Transport = mode === 'stdio' ? child(where, ...args) : http()
  server.onclose = () => process.exit()
  await join(new StdioServerTransport(undefined, undefined, LARGE), server)
  process.stdin.once('end', () => server.close())
}
