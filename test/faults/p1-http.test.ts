import { once } from 'node:events'
import { type AddressInfo, createServer, type Socket } from 'node:net'
import { describe, expect, it, vi } from 'vitest'
import { closing } from '../fixtures/closing.js'
import { named, proxyTo, shake, type Way } from '../fixtures/faults/server-ways.js'

const CALLS = 150

/** The same numbers for the same seed (mulberry32). */
function random(seed: number) {
  let state = seed
  return (below: number) => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below
  }
}

/** A server below HTTP that writes down each call before it does anything, and treats its connections badly. */
async function careless(seed: number) {
  const dice = random(seed)
  const journal: string[] = []
  const sockets = new Set<Socket>()
  const reply = (text: string) => {
    const { id, method, params } = JSON.parse(text)
    const isCall = method === 'tools/call'
    if (isCall) journal.push(params.name)
    const result =
      method === 'initialize' ? { protocolVersion: params.protocolVersion, capabilities: {}, serverInfo: {} } : {}
    const body =
      id === undefined ? '' : JSON.stringify({ jsonrpc: '2.0', id, result: isCall ? { said: params.name } : result })
    const status = id === undefined ? '202 Accepted' : '200 OK'
    const head = `HTTP/1.1 ${status}\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n`
    return { isCall, whole: head + body }
  }
  const server = createServer((socket) => {
    sockets.add(
      socket
        .on('error', () => {})
        .on('close', () => sockets.delete(socket))
        .setNoDelay(true),
    )
    let text = ''
    socket.on('data', (chunk) => {
      text += chunk
      const [, length, body] = /content-length: (\d+)\r\n.*?\r\n\r\n(.*)/is.exec(text) ?? []
      if (body === undefined || body.length < Number(length)) return
      text = ''
      const { isCall, whole } = reply(body)
      const fate = isCall ? dice(12) : 11
      if (fate === 0) socket.resetAndDestroy()
      else if (fate === 1) socket.end()
      else if (fate === 2) socket.end(whole.slice(0, -10))
      else if (fate === 3) socket.end('HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n')
      // An idle connection that is closed at any moment, as its client may be about to use it.
      else if (fate < 8)
        socket.write(whole, () => setTimeout(() => (fate === 4 ? socket.resetAndDestroy() : socket.end()), dice(4)))
      else socket.write(whole)
    })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  closing.push(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  const { port } = server.address() as AddressInfo
  return { url: new URL(`http://127.0.0.1:${port}/mcp`), journal }
}

const accounted: Way[] = [
  { client: 'stdio', upstream: 'http' },
  { client: 'http', upstream: 'http' },
  { client: 'sse', upstream: 'http' },
  { client: 'http', upstream: 'http', modern: true },
]

describe.each(named(accounted))('a careless server before a %s', (_name, way) => {
  it.each([1, 2])(
    'has each call answered once and run at most once, and none that is said not to be sent: seed %i',
    async (seed) => {
      const { url, journal } = await careless(seed)
      const { caller, app } = await proxyTo(way, url)
      if (!way.modern) await shake(caller)
      const dice = random(seed + 100)
      for (let id = 0; id < CALLS; id++) {
        caller.call(id, `token-${id}`)
        // Some are sent as connections are being closed, some many at once.
        if (dice(3) > 0) await new Promise((resolve) => setTimeout(resolve, dice(6)))
      }
      await caller.until(CALLS)
      await vi.waitFor(() => expect(app.stats().pending).toBe(0))
      const told = new Map(caller.heard.map((message) => [message.id, message]))
      expect([caller.heard.length, told.size]).toEqual([CALLS, CALLS])
      expect(new Set(journal).size).toBe(journal.length)
      const wrong = [...told.values()].filter(({ id, result, error }) => {
        const ran = journal.includes(`token-${id}`)
        if (error) return error.code > -31001 || error.code < -31011 || (error.data?.phase === 'not_sent' && ran)
        return !ran || (result as { said: string }).said !== `token-${id}`
      })
      expect(wrong).toEqual([])
      // Both happen, or nothing was tried.
      expect([...told.values()].filter(({ error }) => error).length).toBeGreaterThan(CALLS / 10)
      expect([...told.values()].filter(({ result }) => result).length).toBeGreaterThan(CALLS / 3)
    },
  )
})
