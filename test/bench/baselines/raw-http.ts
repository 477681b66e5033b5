// What Node can do at best between stdio and HTTP: bodies are forwarded over sockets, of messages nothing is known, and nobody
// is ever held back. raw-http.js sse URL | http URL
import { type Answer, Client } from '../http.js'
import { Events, Lines } from '../lines.js'

const [mode, address = ''] = process.argv.slice(2)
const url = new URL(address)
const client = new Client(Number(url.port))
const NEWLINE = Buffer.from('\n')

function out(message: Buffer): void {
  process.stdout.write(Buffer.concat([message, NEWLINE]))
}

function error(error: Error): never {
  throw error
}

let path = mode === 'sse' ? undefined : url.pathname
let headers = ''
const early: Buffer[] = []

function send(message: Buffer): void {
  if (path === undefined) early.push(message)
  else client.send('POST', path, headers, message, mode === 'sse' ? { data() {}, end() {}, error } : answer())
}

function answer(): Answer {
  const parts: Buffer[] = []
  let events: Events | undefined
  return {
    head(_status, head) {
      const id = head.get('mcp-session-id')
      if (id !== undefined) headers ||= `mcp-session-id: ${id}\r\nmcp-protocol-version: 2025-06-18\r\n`
      if (head.get('content-type') === 'text/event-stream') events = new Events((_, data) => out(data))
    },
    data: (chunk) => (events ? events.push(chunk) : parts.push(chunk)),
    end() {
      if (parts.length > 0) out(Buffer.concat(parts))
    },
    error,
  }
}

if (mode === 'sse') {
  const events = new Events((type, data) => {
    if (type !== 'endpoint') return out(data)
    path = data.toString()
    for (const message of early) send(message)
  })
  client.send('GET', url.pathname, '', undefined, {
    data: (chunk) => events.push(chunk),
    end: () => process.exit(),
    error,
  })
}
const lines = new Lines(send)
process.stdin.on('data', (chunk) => lines.push(chunk)).once('end', () => process.exit())
