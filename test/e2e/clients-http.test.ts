import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import { expect, test, vi } from 'vitest'
import {
  type BehindPort,
  behindPort,
  callStateless,
  ended,
  events,
  openSession,
  recorded,
  whole,
} from '../fixtures/behind-port.js'
import { isAlive, stop } from '../fixtures/command.js'
import * as everythingTalk from '../fixtures/everything-talk.js'
import { everything, type HttpServer, startEverything, startTarget, target } from '../fixtures/servers.js'
import { type Conversation, type Generation, normalised, type Talk, talkTo, type Where } from '../fixtures/talk.js'
import * as targetTalk from '../fixtures/target-talk.js'

interface Kind {
  /** Starts it, where it is not for its client to do. */
  start?: () => Promise<HttpServer>
  where: (origin: string) => Where
  /** Speaks 2026-07-28. */
  modern: boolean
  converse(talk: Talk, modern: boolean): Promise<Conversation>
  /** Without what depends on the transport. */
  shaped(conversation: Conversation, generation: Generation): Conversation
}

const ofTarget = {
  async converse(talk: Talk, modern: boolean) {
    // Where it can, the server ends the stream that it will answer on.
    await talk.tool('test_reconnection')
    return targetTalk.converse(talk, { streams: true, sessions: true }, modern)
  },
  shaped: targetTalk.shaped,
}
const ofEverything = { modern: false, converse: everythingTalk.converse, shaped: unprobed }

function unprobed(conversation: Conversation): Conversation {
  const exchanges = conversation.exchanges.filter((it) => !targetTalk.isProbe(it))
  return normalised({ ...conversation, exchanges })
}

/** The port of its own that the server tells of with `get-env`. */
function unported(conversation: Conversation): Conversation {
  return JSON.parse(JSON.stringify(conversation).replace(/(?<=PORT\\": \\")\d+/g, '<port>'))
}

const kinds: Record<string, Kind> = {
  'the target over HTTP': {
    ...ofTarget,
    start: () => startTarget(),
    where: (origin) => ({ http: `${origin}/mcp` }),
    modern: true,
  },
  'the target over stdio': {
    ...ofTarget,
    where: () => ({ command: process.execPath, args: [target, '--stdio'] }),
    modern: true,
  },
  'the target over SSE': {
    ...ofTarget,
    start: () => startTarget('--sse', '--era', 'legacy'),
    where: (origin) => ({ sse: `${origin}/sse` }),
    modern: false,
  },
  'server-everything over stdio': {
    ...ofEverything,
    where: () => ({ command: process.execPath, args: [everything, 'stdio'] }),
  },
  'server-everything over HTTP': {
    ...ofEverything,
    // As in its own test, a v1 client that is next to this server over HTTP gets things twice.
    shaped: (it, generation) => unported(generation === 'v1' ? everythingTalk.unrepeated(it) : unprobed(it)),
    start: () => startEverything('streamableHttp'),
    where: (origin) => ({ http: `${origin}/mcp` }),
  },
}

const clients: Record<string, { generation: Generation; at: (port: BehindPort) => Where }> = {
  'v1 over HTTP': { generation: 'v1', at: ({ http }) => http },
  'v1 over SSE': { generation: 'v1', at: ({ sse }) => sse },
  'v2 over HTTP': { generation: 'v2', at: ({ http }) => http },
  'v2 of 2026-07-28': { generation: 'v2-modern', at: ({ http }) => http },
}

/** Over HTTP a modern server says with a 404 that it does not know a method: its client takes that for the transport's. */
const unknownMethod =
  /^Error POSTing to endpoint: \{"jsonrpc":"2.0","id":\d+,"error":\{"code":-32601,"message":"Method not found: no\/such-method"\}\}$/

async function record(kind: Kind, where: Where, generation: Generation, model?: Conversation) {
  const isModern = kind.modern && generation === 'v2-modern'
  const { conversation, complaints } = await recorded(where, generation, (talk) => kind.converse(talk, isModern), model)
  return { conversation: kind.shaped(conversation, generation), complaints }
}

/** The same server without the proxy, over its own transport. */
const direct = new Map<string, ReturnType<typeof record>>()

async function recordDirect(kind: Kind, generation: Generation) {
  const server = await kind.start?.()
  try {
    return await record(kind, kind.where(server?.origin ?? ''), generation)
  } finally {
    if (server) await stop(server.child)
  }
}

for (const [name, kind] of Object.entries(kinds)) {
  for (const [client, { generation, at }] of Object.entries(clients)) {
    test.concurrent(`${name}, client ${client}: through the port as without`, async ({ onTestFinished }) => {
      // A client that may speak 2026-07-28 finds out that its server does not.
      const key = `${name} ${generation}`
      if (!direct.has(key)) direct.set(key, recordDirect(kind, generation))
      const model = await direct.get(key)!
      const server = await kind.start?.()
      onTestFinished(() => server && stop(server.child))
      const port = await behindPort(kind.where(server?.origin ?? ''))
      onTestFinished(port.kill)
      const through = await record(kind, at(port), generation, model.conversation)
      const isModern = kind.modern && generation === 'v2-modern'
      const complaints = isModern ? [expect.stringMatching(unknownMethod)] : []
      expect(through).toEqual({ ...model, complaints })
      expect(await port.end()).toEqual(ended)
    }, 60_000)
  }
}

/** What stands between the clients and a port, and cuts all connections where a text first comes from the port. */
async function cutter(origin: string, text: string) {
  const sockets: Socket[] = []
  let asked = ''
  let isCut = false
  const server = createServer((client) => {
    const far = connect(Number(new URL(origin).port), '127.0.0.1')
    sockets.push(client, far)
    for (const socket of [client, far]) socket.on('error', () => {}).setNoDelay(true)
    client.on('data', (chunk) => {
      asked += chunk
    })
    client.pipe(far)
    client.on('close', () => far.destroy())
    far.on('close', () => client.destroy())
    far.on('data', (chunk) => {
      const last = !isCut && chunk.includes(text)
      client.write(chunk, () => {
        if (last) for (const socket of sockets) socket.destroy()
      })
      isCut ||= last
    })
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    http: { http: `http://127.0.0.1:${(server.address() as AddressInfo).port}/mcp` },
    /** What clients came back with. */
    lastEventIds: () => [...asked.matchAll(/^last-event-id: (.+)\r$/gim)].map(([, id]) => id),
    close() {
      for (const socket of sockets) socket.destroy()
      server.close()
    },
  }
}

const twice = ['the target over HTTP', 'the target over stdio']

for (const generation of ['v1', 'v2'] as const) {
  test.concurrent.for(twice)(
    `%s, client ${generation}: its connections are cut in the middle of a call, and nothing is lost`,
    async (name, { onTestFinished }) => {
      const kind = kinds[name]!
      const server = await kind.start?.()
      onTestFinished(() => server && stop(server.child))
      const port = await behindPort(kind.where(server?.origin ?? ''))
      onTestFinished(port.kill)
      const cut = await cutter(port.origin, '"message":"Completed step 0 of 100"')
      onTestFinished(cut.close)
      const talk = await talkTo(cut.http, generation)
      await talk.client.listTools()
      const result = await talk.tool('test_tool_with_progress', {}, { onprogress: () => {} })
      await talk.tool('test_tool_with_logging')
      await talk.heard('notifications/message', 3)
      const { exchanges, heard } = talk.conversation
      const { id } = exchanges[2]!.request as { id: number }
      const step = (progress: number) => ({
        progressToken: id,
        progress,
        total: 100,
        message: `Completed step ${progress} of 100`,
      })
      expect(result).toEqual(text(String(id)))
      expect(heard['notifications/progress']).toEqual([0, 50, 100].map(step))
      expect((heard['notifications/message'] as { data: string }[]).map(({ data }) => data)).toEqual([
        'Tool execution started',
        'Tool processing data',
        'Tool execution completed',
      ])
      // The stream of the call, and the one that belongs to none.
      expect(new Set(cut.lastEventIds()).size).toBe(2)
      await talk.close()
      await nothingLeft(port)
      expect(await port.end()).toEqual(ended)
    },
  )
}

test.concurrent.for(twice)(
  '%s, client of 2026-07-28: it is told that a header is missing, and learns which',
  async (name, { onTestFinished }) => {
    const kind = kinds[name]!
    const server = await kind.start?.()
    onTestFinished(() => server && stop(server.child))
    const port = await behindPort(kind.where(server?.origin ?? ''))
    onTestFinished(port.kill)
    const talk = await talkTo(port.http, 'v2-modern')
    for (const region of ['é👋', 'b']) await talk.tool('test_header_params', { region, query: 'x' })
    const exchanges = talk.conversation.exchanges.filter((it) => !targetTalk.isProbe(it))
    const called = (region: string) => expect.objectContaining(text(JSON.stringify({ region, query: 'x' })))
    expect(exchanges.map(({ outcome }) => outcome)).toEqual([
      { code: -32020, message: expect.stringMatching(/^Header mismatch: /) },
      expect.objectContaining({ tools: expect.any(Array) }),
      called('é👋'),
      called('b'),
    ])
    await talk.close()
    expect(await port.end()).toEqual(ended)
  },
)

const numbers = Array.from({ length: 200 }, (_, n) => n)
/** Of all clients the same, as they are written. */
const idTexts = ['0', '"0"', '1', '"1"', '"__proto__"']
const TOKEN = 'of everybody'
const text = (it: string) => ({ content: [{ type: 'text', text: it }] })

interface Call {
  idText: string
  tool: 'echo' | 'burst'
  args: object
  /** What comes of it, byte for byte. */
  texts: string[]
}

/** Two calls with one id, one after the other; what they say is theirs alone. */
function callsOf(n: number, idText: string, resultText: (result: object) => string): Call[] {
  const k = idTexts.indexOf(idText)
  const payload = { client: n, id: JSON.parse(idText) }
  const total = 2 + (n * idTexts.length + k + 1) / 10_000
  const answer = (result: object) => `{"jsonrpc":"2.0","id":${idText},"result":${resultText(result)}}`
  const steps = [1, 2].map((progress) => {
    const params = { progressToken: TOKEN, progress, total }
    return JSON.stringify({ jsonrpc: '2.0', method: 'notifications/progress', params })
  })
  const echoed = { ...text(JSON.stringify(payload)), structuredContent: payload }
  const calls: Call[] = [
    { idText, tool: 'echo', args: payload, texts: [answer(echoed)] },
    { idText, tool: 'burst', args: { n: total }, texts: [...steps, answer(text('burst done'))] },
  ]
  return (n + k) % 2 === 0 ? calls : calls.reverse()
}

/** Has one client make all its calls, and resolves with those of which something else came than should have. */
async function astray(n: number, send: (call: Call) => Promise<Response>, resultText: (result: object) => string) {
  const wrong: object[] = []
  const ofId = async (idText: string) => {
    for (const call of callsOf(n, idText, resultText)) {
      const { status, texts } = await whole(await send(call))
      if (status !== 200 || texts.join('\n') !== call.texts.join('\n')) wrong.push({ n, call, status, texts })
    }
  }
  await Promise.all(idTexts.map(ofId))
  return wrong
}

async function health(port: BehindPort) {
  const response = await fetch(`${port.origin}/healthz`)
  const { sessions, pending } = (await response.json()) as { sessions: number; pending: number }
  return { sessions, pending }
}

const nothingLeft = (port: BehindPort) =>
  vi.waitFor(async () => expect(await health(port)).toEqual({ sessions: 0, pending: 0 }), { timeout: 10_000 })

test('200 sessions at once, with the same ids and the same token: nothing goes astray', async ({ onTestFinished }) => {
  const server = await startTarget()
  onTestFinished(() => stop(server.child))
  const port = await behindPort({ http: `${server.origin}/mcp` })
  onTestFinished(port.kill)
  const url = port.http.http
  const sessions = await Promise.all(numbers.map(() => openSession(url)))
  // What belongs to nobody's request would come here.
  const standalone = await Promise.all(
    sessions.map(({ headers }) => fetch(url, { headers: { ...headers, accept: 'text/event-stream' } })),
  )
  expect(await health(port)).toEqual({ sessions: numbers.length, pending: 0 })
  const wrong = await Promise.all(
    sessions.map(({ call }, n) =>
      astray(n, ({ idText, tool, args }) => call(idText, tool, args, TOKEN), JSON.stringify),
    ),
  )
  expect(wrong.flat()).toEqual([])
  await Promise.all(sessions.map(({ leave }) => leave()))
  const rest = await Promise.all(standalone.map(whole))
  expect(rest.filter(({ status, texts }) => status !== 200 || texts.length > 0)).toEqual([])
  await nothingLeft(port)
  expect(await port.end()).toEqual(ended)
}, 60_000)

test('200 stateless clients at once before one child, with the same ids and the same token: nothing goes astray', async ({
  onTestFinished,
}) => {
  const port = await behindPort({ command: process.execPath, args: [target, '--stdio'] })
  onTestFinished(port.kill)
  const url = port.http.http
  const serverInfo = { name: 'proxy-target', version: '1.0.0' }
  const modern = (result: object) =>
    JSON.stringify({ resultType: 'complete', ...result, _meta: { 'io.modelcontextprotocol/serverInfo': serverInfo } })
  const wrong = await Promise.all(
    numbers.map((n) => astray(n, ({ idText, tool, args }) => callStateless(url, idText, tool, args, TOKEN), modern)),
  )
  expect(wrong.flat()).toEqual([])
  const seen = await Promise.all(numbers.map(async () => whole(await callStateless(url, '0', 'seen', {}))))
  const pids = new Set(seen.map(({ texts }) => /pid\\":(\d+)/.exec(texts[0]!)?.[1]))
  expect([...pids]).toEqual([expect.stringMatching(/^\d+$/)])
  await nothingLeft(port)
  expect(await port.end()).toEqual(ended)
  expect(isAlive(Number([...pids][0]))).toBe(false)
}, 60_000)

test('an id in use is refused, and free again when its request is over or taken back', async ({ onTestFinished }) => {
  const server = await startTarget()
  onTestFinished(() => stop(server.child))
  const port = await behindPort({ http: `${server.origin}/mcp` })
  onTestFinished(port.kill)
  const session = await openSession(port.http.http, { elicitation: {} })
  const other = await openSession(port.http.http)
  for (const idText of ['7', '"7"', '"__proto__"']) {
    const echoed = {
      status: 200,
      texts: [
        `{"jsonrpc":"2.0","id":${idText},"result":${JSON.stringify({ ...text('{"n":1}'), structuredContent: { n: 1 } })}}`,
      ],
    }
    const refused = {
      status: 400,
      texts: [
        expect.stringMatching(`^\\{"jsonrpc":"2.0","id":${idText},"error":\\{"code":-32600,"message":"[^{}]+"\\}\\}$`),
      ],
    }
    const echo = async (by = session) => {
      const { status, texts } = await whole(await by.call(idText, 'echo', { n: 1 }))
      return { status, texts }
    }

    const asking = events(await session.call(idText, 'test_elicitation', { message: 'Name?' }))
    const { value: question } = await asking.next()
    expect(question).toContain('"method":"elicitation/create"')
    expect(await echo()).toEqual(refused)
    expect(await echo()).toEqual(refused)
    // Another type of it is another id, and so is everything of another session.
    expect(await echo(other)).toEqual(echoed)
    const twin = idText === '7' ? '"7"' : '7'
    expect((await whole(await session.call(twin, 'echo', {}))).status).toBe(200)
    const { id } = JSON.parse(question!)
    await session.say({ jsonrpc: '2.0', id, result: { action: 'accept', content: { username: 'a', email: 'b' } } })
    const answer = text('User response: action: accept, content: {"username":"a","email":"b"}')
    expect(await asking.next()).toEqual({
      done: false,
      value: `{"jsonrpc":"2.0","id":${idText},"result":${JSON.stringify(answer)}}`,
    })
    expect((await asking.next()).done).toBe(true)
    expect(await echo()).toEqual(echoed)

    const slow = await session.call(idText, 'slow', { ms: 60_000 })
    expect(await echo()).toEqual(refused)
    const cancel = `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":${idText}}}`
    expect((await session.say(cancel)).status).toBe(202)
    expect(await echo()).toEqual(echoed)
    expect((await whole(slow)).texts).toEqual([])
  }
  await vi.waitFor(async () => {
    const { texts } = await whole(await session.call('"count"', 'cancelled_count', {}))
    expect(texts).toEqual([expect.stringContaining('"text":"3"')])
  })
  await Promise.all([session.leave(), other.leave()])
  await nothingLeft(port)
  expect(await port.end()).toEqual(ended)
})
