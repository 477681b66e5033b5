import { expect, it, vi } from 'vitest'
import { type Asked, type FaultyOptions, faulty } from '../fixtures/faults/server-faulty.js'
import { MODERN, proxyTo, shake, type Way, wayName, ways } from '../fixtures/faults/server-ways.js'
import { event } from '../fixtures/http-server.js'

const CLIENTS = 40
const ports = ways.filter(({ client }) => client !== 'stdio')

/** Progress under the token of the call, then its answer; all say whose tool it was. */
const answers = (way: Way, { id, name, response, stream: open }: Asked) => {
  if (way.upstream === 'sse') response.writeHead(202).end()
  const stream = open()
  const params = { progressToken: 'same', progress: 1, message: name }
  stream.write(event({ jsonrpc: '2.0', method: 'notifications/progress', params }))
  stream.write(event({ jsonrpc: '2.0', id, result: { said: name } }))
  if (way.upstream === 'http') stream.end()
}

it.each(ports.map((way) => [wayName(way), way] as const))(
  '40 of %s, with the same ids and tokens before one server: each gets its own',
  async (_name, way) => {
    const asked: Asked[] = []
    const faults: FaultyOptions['faults'] = {}
    for (let at = 0; at < CLIENTS; at++) faults[`tool ${at}`] = (it) => void asked.push(it)
    const server = await faulty(way.upstream, { faults })
    const { clients, app } = await clientsOf(way, server.url)
    const expected = clients.map((_caller, at) => [`tool ${at}`, `tool ${at}`])
    for (const [at, caller] of clients.entries()) {
      const _meta = { progressToken: 'same', ...(way.modern && MODERN) }
      caller.say({ jsonrpc: '2.0', id: 0, method: 'tools/call', params: { name: `tool ${at}`, _meta } })
    }
    await vi.waitFor(() => expect(asked).toHaveLength(CLIENTS))
    for (const it of asked.reverse()) answers(way, it)
    await Promise.all(clients.map((caller) => caller.until(2)))
    const heard = clients.map((caller) =>
      caller.heard.map(
        ({ params, result }) => (params as { message: string })?.message ?? (result as { said: string }).said,
      ),
    )
    expect(heard).toEqual(expected)
    expect(app.stats().pending).toBe(0)
  },
)

async function clientsOf(way: Way, url: URL) {
  const proxy = await proxyTo(way, url)
  const clients = [proxy.caller, ...(await Promise.all(Array.from({ length: CLIENTS - 1 }, () => proxy.another())))]
  if (!way.modern) await Promise.all(clients.map(shake))
  return { clients, app: proxy.app }
}
