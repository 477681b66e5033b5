import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { describe, expect, it, vi } from 'vitest'
import { closing } from '../fixtures/closing.js'
import { type Asked, good } from '../fixtures/faults/server-faulty.js'
import { modernWays, named, through, type Way } from '../fixtures/faults/server-ways.js'
import { event } from '../fixtures/http-server.js'
import { call, get, initialize, post } from '../fixtures/port.js'

const progress = (step: number) => ({
  jsonrpc: '2.0',
  method: 'notifications/progress',
  params: { progressToken: 't', progress: step },
})

/** A call that tells its progress, and is answered when the test says so. */
function slow(way: Way) {
  const asked: Asked[] = []
  const streams: ReturnType<Asked['stream']>[] = []
  const waits = (it: Asked) => {
    asked.push(it)
    if (way.upstream === 'sse') it.response.writeHead(202).end()
    const stream = it.stream()
    streams.push(stream)
    stream.write(event(progress(1)))
  }
  const finish = () => {
    const [it] = asked
    streams[0]!.write(event(progress(2)) + event(good(it!.id)))
    if (way.upstream === 'http') streams[0]!.end()
  }
  return { faults: { waits, silent: (it: Asked) => void asked.push(it) }, asked, finish }
}

/** Nobody reads what a call would be answered on. */
const isOver = (asked: Asked) => asked.stream().destroyed

describe.each(
  named([
    { client: 'http', upstream: 'http' },
    { client: 'http', upstream: 'sse' },
  ]),
)('a client that vanishes without DELETE, a session of a %s', (_name, way) => {
  const open = async (url: string) => {
    const opened = await post(url, initialize())
    const headers = { 'mcp-protocol-version': '2025-11-25', 'mcp-session-id': opened.headers.get('mcp-session-id')! }
    await post(url, { jsonrpc: '2.0', method: 'notifications/initialized' }, headers)
    return headers
  }

  it('has its call run on, and finds what it missed when it comes back', async () => {
    const { faults, asked, finish } = slow(way)
    const { url, server } = await through(way, { faults })
    const headers = await open(url)
    const answer = await post(url, call(1, 'waits', { _meta: { progressToken: 't' } }), headers)
    await answer.until(1)
    const last = answer.heard.findLast((it) => 'id' in it) as { id: string }
    answer.leave()
    await answer.text
    finish()
    const rest = await get(url, { ...headers, 'last-event-id': last.id })
    expect([...answer.messages(), ...(await rest.until(2))]).toEqual([progress(1), progress(2), good(1)])
    expect(asked[0]?.response.errored).toBeNull()
    expect(server.cancelled).toEqual([])
    expect(server.calls).toHaveLength(1)
  })

  it('is forgotten after the idle time, the call that waits with it', async () => {
    const { faults, asked } = slow(way)
    const { url, server, app, caller } = await through(
      way,
      { faults },
      { drainTimeout: 100, listener: { idleTimeout: 200 } },
    )
    const headers = await open(url)
    const controller = new AbortController()
    const answer = post(url, call(1, 'waits'), headers, controller.signal).catch(() => {})
    await vi.waitFor(() => expect(asked).toHaveLength(1))
    controller.abort()
    await answer
    caller.vanish()
    await vi.waitFor(() => expect(app.stats()).toMatchObject({ sessions: 0, pending: 0 }), { timeout: 10_000 })
    await vi.waitFor(() => expect(isOver(asked[0]!)).toBe(true), { timeout: 10_000 })
    const deletes = server.seen.filter(({ method }) => method === 'DELETE')
    expect(deletes).toHaveLength(way.upstream === 'http' ? 2 : 0)
    expect((await post(url, call(2), headers)).status).toBe(404)
  })
})

describe.each(
  named([
    { client: 'sse', upstream: 'http' },
    { client: 'sse', upstream: 'sse' },
  ]),
)('a client that vanishes, a %s', (_name, way) => {
  it('has lost its session with its stream: nothing of it is left', async () => {
    const { faults, asked } = slow(way)
    const { caller, app } = await through(way, { faults }, { drainTimeout: 100 })
    caller.call(1, 'waits')
    await vi.waitFor(() => expect(asked).toHaveLength(1))
    caller.vanish()
    await vi.waitFor(() => expect(app.stats()).toMatchObject({ sessions: 0, pending: 0 }), { timeout: 10_000 })
    await vi.waitFor(() => expect(isOver(asked[0]!)).toBe(true), { timeout: 10_000 })
  })
})

describe.each(named(modernWays.filter(({ client }) => client === 'http')))(
  'a client that vanishes, a %s',
  (_name, way) => {
    const vanish: Record<string, (socket: Socket) => unknown> = {
      'closes its half of the connection': (socket) => socket.end(),
      'closes the connection': (socket) => socket.destroy(),
      'resets the connection': (socket) => socket.resetAndDestroy(),
    }

    it.each(['silent', 'waits'].flatMap((tool) => Object.keys(vanish).map((how) => [how, tool] as const)))(
      'and %s has its call cancelled: %s',
      async (how, tool) => {
        const { faults, asked } = slow(way)
        const { url, app, server } = await through(way, { faults })
        const socket = await posting(url, tool)
        await vi.waitFor(() => expect(asked).toHaveLength(1))
        const closed = once(asked[0]!.response, 'close')
        const left = performance.now()
        vanish[how]!(socket)
        await closed
        expect(performance.now() - left).toBeLessThan(5_000)
        await vi.waitFor(() => expect(app.stats()).toMatchObject({ sessions: 0, pending: 0 }))
        expect(server.calls).toHaveLength(1)
        expect(server.cancelled).toEqual([])
      },
    )
  },
)

/** POSTs a call of 2026-07-28 over a connection of its own. */
async function posting(url: string, name: string): Promise<Socket> {
  const { port, host } = new URL(url)
  const socket = connect(Number(port), '127.0.0.1')
  socket.on('error', () => {}).resume()
  closing.push(() => socket.destroy())
  await once(socket, 'connect')
  const _meta = {
    'io.modelcontextprotocol/protocolVersion': '2026-07-28',
    'io.modelcontextprotocol/clientCapabilities': {},
  }
  const body = JSON.stringify(call(1, name, { _meta }))
  const head = [
    'POST /mcp HTTP/1.1',
    `Host: ${host}`,
    'Content-Type: application/json',
    'Accept: application/json, text/event-stream',
    'MCP-Protocol-Version: 2026-07-28',
    'Mcp-Method: tools/call',
    `Mcp-Name: ${name}`,
    `Content-Length: ${body.length}`,
  ]
  socket.write(`${head.join('\r\n')}\r\n\r\n${body}`)
  return socket
}
