import { execFile } from 'node:child_process'
import { createServer, type ServerResponse } from 'node:http'
import { buffer } from 'node:stream/consumers'
import { promisify } from 'node:util'
import { afterEach, beforeAll, describe, expect, test } from 'vitest'
import { omproxy, path, type Running } from '../fixtures/command.js'
import { corpus, type OddFrame } from '../fixtures/corpus.js'
import { notification, relay, request, result } from '../fixtures/relay.js'

const use = (...names: string[]) => names.flatMap((name) => ['--use', `${path('./middleware.mjs')}#${name}`])

const lines: Record<string, string[]> = {
  'no middleware': [],
  'one that reads the head': use('head'),
  'one that reads all': use('whole'),
  'five of all kinds': use('head', 'later', 'whole', 'whole', 'later'),
}

let run: Running | undefined

afterEach(() => run?.kill())

/** A server in the hands of the test. */
interface Server {
  upstream: string[]
  /** Resolves with the next message that the server gets. */
  next(): Promise<string>
  /** Sends a message; an answer goes where its request came from. */
  send(text: string): void
  close(): void
}

async function stdioServer(): Promise<Server> {
  const { command, far, close } = await relay()
  let count = 0
  return {
    upstream: ['stdio', '--', ...command],
    async next() {
      const server = await far
      await server.until(++count)
      return server.lines[count - 1]!.toString()
    },
    send: (text) => void far.then((server) => server.send(text)),
    close,
  }
}

/** Streamable HTTP: answers go as JSON or as the event of a stream, everything else to the standalone stream. */
async function httpServer(answers: 'json' | 'sse'): Promise<Server> {
  const bodies: string[] = []
  const waiting: ((body: string) => void)[] = []
  let asked: ServerResponse | undefined
  let standalone: (response: ServerResponse) => void
  const stream = new Promise<ServerResponse>((resolve) => {
    standalone = resolve
  })
  const server = createServer(async (incoming, response) => {
    if (incoming.method === 'GET') {
      response.writeHead(200, { 'content-type': 'text/event-stream' }).flushHeaders()
      standalone(response)
      return
    }
    if (incoming.method !== 'POST') {
      response.writeHead(200).end()
      return
    }
    const body = (await buffer(incoming)).toString()
    const message = JSON.parse(body)
    if ('id' in message && 'method' in message) asked = response
    else response.writeHead(202).end()
    const wake = waiting.shift()
    if (wake) wake(body)
    else bodies.push(body)
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as { port: number }
  return {
    upstream: ['http', '--url', `http://127.0.0.1:${port}/mcp`],
    next: async () => bodies.shift() ?? new Promise((resolve) => waiting.push(resolve)),
    send(text) {
      const isAnswer = !('method' in JSON.parse(text))
      if (!isAnswer || !asked) void stream.then((response) => response.write(`data: ${text}\n\n`))
      else {
        const type = answers === 'json' ? 'application/json' : 'text/event-stream'
        asked.writeHead(200, { 'content-type': type, 'mcp-session-id': 's' })
        asked.end(answers === 'json' ? text : `data: ${text}\n\n`)
        asked = undefined
      }
    },
    close() {
      server.close()
      server.closeAllConnections()
    },
  }
}

/** The token of a message's id, as it stands in the text. */
function idOf(text: string): string | undefined {
  const message = JSON.parse(text)
  if (!('id' in message) || message.id === null) return undefined
  const found = /"id"\s*:\s*("(?:[^"\\]|\\.)*"|-?[\d.eE+-]+)/.exec(text.replace(/"(result|params)"[\s\S]*/, ''))
  return found?.[1] ?? JSON.stringify(message.id)
}

/** Plays every frame through the proxy, each with what it takes around it, and gives what came out on the far side. */
async function play(proxy: Running, server: Server): Promise<Record<string, string>> {
  const came: Record<string, string> = {}
  let heard = 0
  const nextOfClient = async () => {
    await proxy.until(++heard)
    return proxy.lines[heard - 1]!.toString()
  }
  proxy.send(request('init', 'initialize', { protocolVersion: '2025-11-25' }))
  await server.next()
  server.send(JSON.stringify(result('init', { protocolVersion: '2025-11-25' })))
  await nextOfClient()
  proxy.send(notification('notifications/initialized'))
  await server.next()
  for (const { name, direction, text } of corpus) {
    const message = JSON.parse(text)
    const isRequest = 'method' in message && 'id' in message
    const id = idOf(text)
    if (direction === 'client-to-server') {
      proxy.send(text)
      came[name] = await server.next()
      if (!isRequest) continue
      server.send(`{"jsonrpc":"2.0","id":${id},"result":{}}`)
      expect(await nextOfClient()).toBe(`{"jsonrpc":"2.0","id":${id},"result":{}}`)
    } else {
      const isAnswer = !('method' in message) && id !== undefined
      if (isAnswer) {
        proxy.send(`{"jsonrpc":"2.0","id":${id},"method":"ping"}`)
        await server.next()
      }
      server.send(text)
      came[name] = await nextOfClient()
      if (!isRequest) continue
      proxy.send(`{"jsonrpc":"2.0","id":${id},"result":{}}`)
      expect(await server.next()).toBe(`{"jsonrpc":"2.0","id":${id},"result":{}}`)
    }
  }
  return came
}

/** What is to come out: a carriage return at the end of a line belongs to the line's framing. */
function expected(frames: readonly OddFrame[]) {
  return Object.fromEntries(frames.map(({ name, text }) => [name, text.replace(/\r$/, '')]))
}

async function check(server: Server, options: string[], node?: string): Promise<void> {
  const [how = '', ...rest] = server.upstream
  try {
    run = omproxy([how, ...options, ...rest], { node })
    expect(await play(run, server)).toEqual(expected(corpus))
    expect(await run.end()).toEqual({ code: 0, signal: null })
    expect({ odd: run.odd, said: run.said() }).toEqual({ odd: [], said: [] })
  } finally {
    server.close()
  }
}

describe.each(Object.entries(lines))(
  'each odd frame arrives as it was sent, byte for byte, through %s',
  (_, options) => {
    test('over stdio', async () => check(await stdioServer(), options))
    test('over HTTP that answers JSON', async () => check(await httpServer('json'), options))
    test('over HTTP that answers with streams', async () => check(await httpServer('sse'), options))
  },
)

describe.each([22, 24])('on Node %i', (version) => {
  let node: string | undefined

  beforeAll(async () => {
    const args = ['-y', `node@${version}`, '-p', 'process.execPath']
    const found = await promisify(execFile)('npx', args, { timeout: 60_000 }).catch(() => undefined)
    node = found?.stdout.trim()
  }, 70_000)

  test('each odd frame arrives as it was sent, byte for byte', async ({ skip }) => {
    if (node === undefined) return skip(`npx could not fetch Node ${version}`)
    await check(await stdioServer(), lines['five of all kinds']!, node)
  })
})
