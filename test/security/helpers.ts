import { once } from 'node:events'
import { request as httpRequest, type IncomingHttpHeaders } from 'node:http'
import { connect, type Socket } from 'node:net'
import { type AdmitRequest, Application, define, type HttpOptions, type Session, type Upstream } from 'open-mcp-proxy'
import { vi } from 'vitest'
import { closing } from '../fixtures/closing.js'
import { HandWire } from '../fixtures/played.js'

/** Says who it is by what a client cannot do without a key: here, a header. */
export const byHeader = define(
  {
    admit: ({ headers }: AdmitRequest) => {
      const user = headers['x-user']
      return typeof user === 'string' ? { principal: user } : undefined
    },
  },
  (_ctx, next) => next(),
)

/** A body as it is, or a message. */
export type Body = string | Buffer | object

export interface Reply {
  status: number
  headers: IncomingHttpHeaders
  body: string
}

/** A proxy that listens for the length of a test. */
export async function listen(
  upstream: Upstream,
  options: Partial<HttpOptions> = {},
  use: (app: Application) => unknown = () => {},
) {
  const app = new Application()
  const errors: string[] = []
  app.on('error', (error: Error) => errors.push(error.message))
  use(app)
  closing.push(() => app.close({ urgent: true }))
  const { address } = await app.listen(upstream, { port: 0, ...options })
  const { port, origin } = new URL(address!)
  return { app, errors, address, origin, port: Number(port) }
}

/** A server in the hands of a test: each session has a wire of its own, on which every request gets the same answer. */
export function server(answer: (message: Message) => object | undefined = () => ({ result: {} })) {
  const wires: HandWire[] = []
  const sessions: Session[] = []
  const open = (session: Session) => {
    const wire = new HandWire()
    wire.sending = (text) => {
      const message = JSON.parse(text) as Message
      const said = message.id === undefined || message.method === undefined ? undefined : answer(message)
      if (said) queueMicrotask(() => wire.say({ id: message.id, ...said }))
    }
    wires.push(wire)
    sessions.push(session)
    return wire
  }
  return {
    open,
    wires,
    sessions,
    /** All that it was sent, as it came. */
    heard: () => wires.flatMap(({ sent }) => sent),
    methods: () => wires.flatMap(({ sent }) => sent.map((text) => (JSON.parse(text) as Message).method)),
  }
}

export interface Message {
  id?: string | number
  method?: string
  params?: Record<string, unknown>
  result?: unknown
  error?: { code: number; message: string; data?: unknown }
}

/** What every POST to the endpoint has to have. */
export const ours = { 'content-type': 'application/json', accept: 'application/json, text/event-stream' }

export const initialize = (id: string | number = 0, protocolVersion = '2025-11-25') => ({
  jsonrpc: '2.0',
  id,
  method: 'initialize',
  params: { protocolVersion, capabilities: {}, clientInfo: { name: 'test', version: '1' } },
})

export const MODERN = {
  'io.modelcontextprotocol/protocolVersion': '2026-07-28',
  'io.modelcontextprotocol/clientCapabilities': {},
}

/** A request of 2026-07-28 and the headers that go with it. */
export function modern(id: string | number, method: string, params: Record<string, unknown> = {}, name?: string) {
  const headers: Record<string, string> = { ...ours, 'mcp-protocol-version': '2026-07-28', 'mcp-method': method }
  if (name !== undefined) headers['mcp-name'] = name
  const { _meta, ...rest } = params
  const body = { jsonrpc: '2.0', id, method, params: { ...rest, _meta: { ...MODERN, ...(_meta as object) } } }
  return { headers, body }
}

export interface Asked {
  method?: string
  path?: string
  /** Several of one name: an array. */
  headers?: Record<string, string | string[]>
  body?: Body
  /** Where the socket comes from. */
  localAddress?: string
}

/** One request on a connection of its own; resolves with the whole response. */
export async function ask(port: number, asked: Asked = {}): Promise<Reply> {
  const { reply, text } = await open(port, asked)
  const body = await text
  return { ...reply, body }
}

/** The same, as soon as the head of the response is there: what comes then is `heard`. `close` hangs up. */
export async function open(port: number, { method = 'POST', path = '/mcp', headers, body, localAddress }: Asked = {}) {
  const bytes = body === undefined ? undefined : bytesOf(body)
  const outgoing = httpRequest({ host: '127.0.0.1', port, method, path, agent: false, localAddress })
  for (const [name, value] of Object.entries(headers ?? ours)) outgoing.setHeader(name, value)
  if (bytes) outgoing.setHeader('content-length', bytes.length)
  outgoing.end(bytes)
  const [incoming] = (await once(outgoing, 'response')) as [import('node:http').IncomingMessage]
  closing.push(() => outgoing.destroy())
  outgoing.on('error', () => {})
  incoming.on('error', () => {})
  let heard = ''
  incoming.setEncoding('utf8').on('data', (chunk: string) => {
    heard += chunk
  })
  const text = new Promise<string>((resolve) => {
    incoming.once('close', () => resolve(heard))
  })
  return {
    reply: { status: incoming.statusCode!, headers: incoming.headers },
    text,
    heard: () => heard,
    /** The messages of an event stream, as far as they have come. */
    messages: () => eventsIn(heard).flatMap(({ data }) => (data === '' ? [] : [JSON.parse(data) as Message])),
    close: () => outgoing.destroy(),
  }
}

export type Opened = Awaited<ReturnType<typeof open>>

function bytesOf(body: Body): Buffer {
  if (Buffer.isBuffer(body)) return body
  return Buffer.from(typeof body === 'string' ? body : JSON.stringify(body))
}

/** A connection of which the test writes every byte (Latin-1). */
export async function dial(port: number, options: { host?: string; localAddress?: string } = {}) {
  const socket = connect({ port, host: '127.0.0.1', ...options })
  closing.push(() => socket.destroy())
  socket.on('error', () => {})
  let heard = ''
  let over = false
  socket.setEncoding('latin1').on('data', (chunk: string) => {
    heard += chunk
  })
  const closed = new Promise<string>((resolve) => {
    socket.once('close', () => {
      over = true
      resolve(heard)
    })
  })
  await Promise.race([once(socket, 'connect'), closed])
  return {
    socket: socket as Socket,
    write: (text: string) => void socket.write(text, 'latin1'),
    heard: () => heard,
    isOver: () => over,
    /** Resolves with all that was heard when the other end has closed. */
    closed,
    /** Resolves when so much of a text was heard; rejects when the connection ends without it. */
    until: (text: string) =>
      vi.waitFor(
        () => {
          if (!heard.includes(text)) throw new Error(`expected ${JSON.stringify(text)}, got ${JSON.stringify(heard)}`)
        },
        { timeout: 10_000, interval: 5 },
      ),
  }
}

/** Sends bytes and resolves with the status, headers and body that came until the other end closed. */
export async function raw(port: number, text: string): Promise<{ status: number; head: string; body: string }> {
  const line = await dial(port)
  line.write(text)
  const all = await line.closed
  const [head = '', ...rest] = all.split('\r\n\r\n')
  return {
    status: Number(/^HTTP\/1\.1 (\d{3})/.exec(head)?.[1] ?? 0),
    head,
    body: Buffer.from(rest.join('\r\n\r\n'), 'latin1').toString(),
  }
}

/** A request with every header line as it stands here. */
export function lines(method: string, path: string, headers: readonly string[], body = ''): string {
  return [`${method} ${path} HTTP/1.1`, ...headers, 'Connection: close', '', body].join('\r\n')
}

export interface StreamedEvent {
  event?: string
  id?: string
  retry?: string
  data: string
}

/** The events of a stream, read as WHATWG HTML (section 9.2) has it: a carriage return alone ends a line, too. */
export function eventsIn(text: string): StreamedEvent[] {
  const found: StreamedEvent[] = []
  let fields: [string, string][] = []
  for (const line of text.split(/\r\n|\n|\r/)) {
    if (line !== '') {
      const [, name = '', value = ''] = /^([^:]*):? ?(.*)$/s.exec(line) ?? []
      if (name !== '') fields.push([name, value])
      continue
    }
    if (fields.length > 0) {
      const data = fields.filter(([name]) => name === 'data').map(([, value]) => value)
      const { data: _, ...rest } = Object.fromEntries(fields)
      found.push({ ...rest, data: data.join('\n') })
    }
    fields = []
  }
  return found
}

/** Opens a legacy session and resolves with its id. */
export async function session(port: number, headers: Record<string, string> = {}): Promise<string> {
  const { status, headers: came, body } = await ask(port, { headers: { ...ours, ...headers }, body: initialize() })
  const id = came['mcp-session-id']
  if (status !== 200 || typeof id !== 'string') throw new Error(`expected a session, got ${status}: ${body}`)
  return id
}

/** Opens a stream of HTTP+SSE and resolves with it and the path to POST to. */
export async function sse(port: number, headers: Record<string, string> = {}) {
  const stream = await open(port, { method: 'GET', path: '/sse', headers: { accept: 'text/event-stream', ...headers } })
  if (stream.reply.status !== 200) throw new Error(`expected a stream, got ${stream.reply.status}`)
  await vi.waitFor(
    () => {
      if (!stream.heard().includes('\n\n')) throw new Error('expected the event endpoint')
    },
    { timeout: 10_000, interval: 5 },
  )
  const [first] = eventsIn(stream.heard())
  const messages = () =>
    eventsIn(stream.heard())
      .slice(1)
      .map(({ data }) => JSON.parse(data) as Message)
  return { ...stream, messages, endpoint: first!.data, id: first!.data.split('sessionId=')[1]! }
}

/** An error of the proxy's own, as a body or on a stream. */
export function denied(detail: string) {
  return {
    jsonrpc: '2.0',
    error: {
      code: -31006,
      message: detail === '' ? 'Denied' : `Denied: ${detail}`,
      data: { source: 'proxy', reason: 'denied', phase: 'not_sent', retryable: false },
    },
  }
}

export function invalidRequest(problem: string, id?: string | number) {
  return {
    jsonrpc: '2.0',
    ...(id !== undefined && { id }),
    error: { code: -32600, message: `Invalid request: ${problem}` },
  }
}

/** A refusal, whole. */
export const told = ({ status, body }: { status: number; body: string }) => ({ status, body: parsed(body) })

function parsed(body: string): unknown {
  try {
    return JSON.parse(body)
  } catch {
    return body
  }
}
