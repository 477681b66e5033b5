// A server of MCP as fast as can be, which answers a call of `echo` with copied bytes: server.js stdio | sse PORT | http PORT |
// http-sse PORT. Only on stdio it has `flood`, too.
import { once } from 'node:events'
import type { Socket } from 'node:net'
import { DIGITS, getNumber, putNumber } from './call.js'
import { chunk, respond, serve, stream } from './http.js'
import { Lines } from './lines.js'

const ID = Buffer.from('"id":')
const TEXT = Buffer.from('"text":"#')
const BEFORE_ID = Buffer.from('{"jsonrpc":"2.0","id":')
const BEFORE_TEXT = Buffer.from(',"result":{"content":[{"type":"text","text":"')
const AFTER_TEXT = Buffer.from('"}]}}')
const EVENT = Buffer.from('event: message\ndata: ')
const END_OF_EVENT = Buffer.from('\n\n')
const NEWLINE = Buffer.from('\n')
const QUOTE = 34
const COMMA = 44
const BRACE = 125
/** Notifications are written in pieces of so many bytes. */
const PIECE = 65_536

/** What is answered to a message, in parts; nothing where it is a notification. */
function answer(message: Buffer): Buffer[] | undefined {
  return echo(message) ?? other(JSON.parse(message.toString()))
}

/** The answer to a call that the bench has made, wherever a proxy has moved its id; undefined where it is none. */
function echo(message: Buffer): Buffer[] | undefined {
  const before = message.subarray(0, 512).indexOf(TEXT)
  if (before < 0) return undefined
  const text = before + TEXT.length - 1
  const end = text + getNumber(message, text + 2 + DIGITS)
  if (message[end] !== QUOTE) return undefined
  const early = message.subarray(0, before).indexOf(ID)
  const id = (early < 0 ? message.indexOf(ID, end) : early) + ID.length
  let after = id
  while (message[after] !== COMMA && message[after] !== BRACE) after++
  return [BEFORE_ID, message.subarray(id, after), BEFORE_TEXT, message.subarray(text, end), AFTER_TEXT]
}

interface Request {
  id?: unknown
  method?: string
  params?: { protocolVersion?: string; name?: string; arguments?: { count: number; size: number } }
}

function other({ id, method, params }: Request): Buffer[] | undefined {
  if (id === undefined || method === undefined) return undefined
  const capabilities = { tools: {}, logging: {} }
  const serverInfo = { name: 'echo', version: '1' }
  const tools = ['echo', 'flood'].map((name) => ({ name, inputSchema: { type: 'object' } }))
  const results: Record<string, object> = {
    initialize: { protocolVersion: params?.protocolVersion, capabilities, serverInfo },
    'tools/list': { tools },
    'tools/call': { content: [] },
  }
  return [Buffer.from(JSON.stringify({ jsonrpc: '2.0', id, result: results[method] ?? {} }))]
}

/** Notifications with numbers, as fast as they are taken. */
async function flood({ count, size }: { count: number; size: number }): Promise<void> {
  const before = '{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"#'
  const room = size - before.length - DIGITS - 5
  const line = Buffer.from(`${before}${'0'.repeat(DIGITS)}#${'x'.repeat(Math.max(0, room))}"}}\n`)
  const most = Math.ceil(PIECE / line.length)
  for (let from = 0; from < count; from += most) {
    const piece = Buffer.concat(Array.from({ length: Math.min(most, count - from) }, () => line))
    for (let at = before.length, number = from; at < piece.length; at += line.length) putNumber(piece, at, number++)
    if (!process.stdout.write(piece)) await once(process.stdout, 'drain')
  }
}

function stdio(): void {
  let parts: Buffer[] = []
  const flush = () => {
    process.stdout.cork()
    // Small answers in one piece, large ones without a copy.
    const length = parts.reduce((sum, part) => sum + part.length, 0)
    if (length < 4 * PIECE) process.stdout.write(Buffer.concat(parts))
    else for (const part of parts) process.stdout.write(part)
    process.stdout.uncork()
    parts = []
  }
  const lines = new Lines((line) => {
    const echoed = echo(line)
    if (echoed) return void parts.push(...echoed, NEWLINE)
    const request: Request = JSON.parse(line.toString())
    const said = other(request)
    if (!said) return
    if (request.params?.name !== 'flood') parts.push(...said, NEWLINE)
    else void flood(request.params.arguments!).then(() => process.stdout.write(Buffer.concat([...said, NEWLINE])))
  })
  process.stdin.on('data', (chunk) => {
    lines.push(chunk)
    if (parts.length > 0) flush()
  })
  process.stdout.on('error', () => process.exit())
}

function sse(port: number): void {
  const streams: Socket[] = []
  serve(port, (head, body, socket) => {
    const [path = '', index] = head.word(1).split('?')
    if (path === '/sse') {
      stream(socket)
      chunk(socket, [Buffer.from(`event: endpoint\ndata: /message?${streams.push(socket) - 1}\n\n`)])
      return
    }
    if (path !== '/message') return respond(socket, 404, '')
    respond(socket, 202, '')
    const said = answer(body)
    if (said) chunk(streams[Number(index)]!, [EVENT, ...said, END_OF_EVENT])
  })
}

function streamable(port: number, type: string): void {
  let sessions = 0
  const isEvents = type === 'text/event-stream'
  serve(port, (head, body, socket) => {
    if (head.word(1) !== '/mcp') return respond(socket, 404, '')
    if (head.word(0) === 'GET') return stream(socket)
    if (head.word(0) === 'DELETE') return respond(socket, 200, '')
    const session = `mcp-session-id: ${head.get('mcp-session-id') ?? `session-${++sessions}`}\r\n`
    const said = answer(body)
    if (!said) return respond(socket, 202, session)
    respond(socket, 200, `${session}content-type: ${type}\r\n`, isEvents ? [EVENT, ...said, END_OF_EVENT] : said)
  })
}

const [mode, port] = process.argv.slice(2)
if (mode === 'stdio') stdio()
if (mode === 'sse') sse(Number(port))
if (mode === 'http') streamable(Number(port), 'application/json')
if (mode === 'http-sse') streamable(Number(port), 'text/event-stream')
