import { once } from 'node:events'
import { describe, expect, it, vi } from 'vitest'
import { path } from '../fixtures/command.js'
import {
  floodedPort,
  floodedStdio,
  MiB,
  memoryOf,
  type UpstreamKind,
  unread,
  upstreams,
  type Wrote,
} from '../fixtures/deaf.js'
import { initialize } from '../fixtures/port.js'

/** MiB of the flood; the README's figures are those of 200. */
const FLOOD = Number(process.env.FLOOD ?? 48)
const SIZE = 16 << 10
const COUNT = (FLOOD * MiB) / SIZE

const JSON_OR_STREAM = { accept: 'application/json, text/event-stream', 'content-type': 'application/json' }
const MODERN = {
  'io.modelcontextprotocol/protocolVersion': '2026-07-28',
  'io.modelcontextprotocol/clientCapabilities': {},
}

const flood = (meta: object = { progressToken: 't' }) => ({
  jsonrpc: '2.0',
  id: 'flood',
  method: 'tools/call',
  params: { name: 'flood', arguments: { bytes: FLOOD * MiB, size: SIZE }, _meta: meta },
})
const initialized = { jsonrpc: '2.0', method: 'notifications/initialized' }

type Heard = ReturnType<Awaited<ReturnType<typeof unread>>['read']>

/** A client that has asked for a flood, and reads nothing of it. */
interface Deaf extends Wrote {
  pid: number
  /** Reads on; resolves when all has come. */
  read(): Promise<Heard>
}

async function all(heard: Heard): Promise<Heard> {
  const isOver = () => heard.last?.id === 'flood' || heard.over
  await vi.waitFor(() => expect(isOver()).toBe(true), { timeout: 25_000, interval: 10 })
  return heard
}

const post = (url: string, body: object, headers = {}) =>
  fetch(url, { method: 'POST', headers: { ...JSON_OR_STREAM, ...headers }, body: JSON.stringify(body) })

async function opened(url: string): Promise<Record<string, string>> {
  const answer = await post(url, initialize())
  await answer.text()
  const session = answer.headers.get('mcp-session-id')!
  const headers = { ...JSON_OR_STREAM, 'mcp-session-id': session, 'mcp-protocol-version': '2025-11-25' }
  await post(url, initialized, headers)
  return headers
}

const clients: Record<string, (upstream: UpstreamKind) => Promise<Deaf>> = {
  async stdio(upstream) {
    const { say, read, ...it } = await floodedStdio(upstream)
    say(initialize())
    say(initialized)
    say(flood())
    return { ...it, read: () => all(read()) }
  },
  async 'a POST of Streamable HTTP'(upstream) {
    const { url, ...it } = await floodedPort(upstream)
    const { read } = await unread(url, { method: 'POST', headers: await opened(url), body: flood() })
    return { ...it, read: () => all(read()) }
  },
  async 'the GET of Streamable HTTP'(upstream) {
    const { url, ...it } = await floodedPort(upstream)
    const headers = await opened(url)
    const { read } = await unread(url, { headers: { ...headers, accept: 'text/event-stream' } })
    const answer = post(url, flood({}), headers).then((response) => response.text())
    return {
      ...it,
      async read() {
        const heard = read()
        const last = JSON.parse(/\{.*\}/.exec(await answer)![0])
        await vi.waitFor(() => expect(heard.messages).toBe(COUNT), { timeout: 25_000, interval: 10 })
        return { ...heard, last }
      },
    }
  },
  async 'HTTP+SSE'(upstream) {
    const { origin, ...it } = await floodedPort(upstream)
    const { response, read } = await unread(`${origin}/sse`)
    const [head] = (await once(response, 'data')) as [Buffer]
    response.pause()
    const endpoint = new URL(/data: (\S+)/.exec(head.toString())![1]!, origin).href
    for (const message of [initialize(), initialized, flood()]) await post(endpoint, message)
    return { ...it, read: () => all(read()) }
  },
  async 'a stateless POST'(upstream) {
    const { url, ...it } = await floodedPort(upstream)
    const headers = { 'mcp-protocol-version': '2026-07-28', 'mcp-method': 'tools/call', 'mcp-name': 'flood' }
    const body = flood({ ...MODERN, progressToken: 't' })
    const { read } = await unread(url, { method: 'POST', headers: { ...JSON_OR_STREAM, ...headers }, body })
    return { ...it, read: () => all(read()) }
  },
}

/** Resolves when the upstream writes no more, or all is written. */
async function stopped({ wrote }: Wrote): Promise<number> {
  let before = -1
  for (let same = 0; same < 4; ) {
    await new Promise((resolve) => setTimeout(resolve, 50))
    same = wrote() === before && before > 0 ? same + 1 : 0
    before = wrote()
  }
  return before
}

const mib = (bytes: number) => Math.round(bytes / MiB)

describe(`${FLOOD} MiB at a client that does not read stop at their source, and come when it reads:`, () => {
  const pairs = Object.keys(clients).flatMap((client) => upstreams.map((upstream) => [client, upstream] as const))
  // HTTP+SSE knows sessions alone.
  const served = pairs.filter(([client, upstream]) => client !== 'a stateless POST' || upstream !== 'sse')

  it.each(served)('%s before %s', async (client, upstream) => {
    const deaf = await clients[client]!(upstream)
    const wrote = await stopped(deaf)
    const held = memoryOf(deaf.pid)
    const { messages, last } = await deaf.read()
    const { peak } = memoryOf(deaf.pid)
    console.info(
      `| ${client} | ${upstream} | ${wrote} MiB | ${mib(held.now)} MiB | ${mib(held.peak)} MiB | ${mib(peak)} MiB |`,
    )
    expect(last).toEqual({ jsonrpc: '2.0', id: 'flood', result: { n: COUNT } })
    expect(messages).toBeGreaterThanOrEqual(COUNT)
    expect(wrote).toBeLessThan(40)
    expect(mib(held.peak)).toBeLessThan(150)
  })
})

describe('a client on stdio that never reads', () => {
  it('is cut off: its child ends, and the command, with 1', async () => {
    const deaf = await floodedStdio('stdio', ['--import', path('hasty.mjs')])
    deaf.say(initialize())
    deaf.say(initialized)
    deaf.say(flood())
    expect(await deaf.exit).toEqual([1, null])
    const said = deaf
      .stderr()
      .split('\n')
      .filter((line) => line.startsWith('omproxy:'))
    expect(said).toEqual(['omproxy: the client was cut off: it has read nothing for 30 s'])
  })
})
