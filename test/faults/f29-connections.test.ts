import dns from 'node:dns'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { createServer as createHttps } from 'node:https'
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net'
import { describe, expect, it, vi } from 'vitest'
import { closing } from '../fixtures/closing.js'
import { selfSigned } from '../fixtures/faults/server-certificate.js'
import { good } from '../fixtures/faults/server-faulty.js'
import {
  type Caller,
  failure,
  httpWays,
  MODERN,
  named,
  proxyTo,
  through,
  type Way,
  ways,
} from '../fixtures/faults/server-ways.js'
import { initialize } from '../fixtures/port.js'
import { freePort } from '../fixtures/servers.js'

/** A server below HTTP, for the length of a test. */
async function below(onSocket: (socket: Socket) => unknown = () => {}, server: Server = createServer()) {
  const sockets = new Set<Socket>()
  server.on('connection', (socket: Socket) => {
    sockets.add(socket.on('error', () => {}).on('close', () => sockets.delete(socket)))
    onSocket(socket)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  closing.push(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  return { port: (server.address() as AddressInfo).port, sockets }
}

/** The first request of a client. */
const begin = (way: Way, caller: Caller) =>
  caller.say(
    way.modern ? { jsonrpc: '2.0', id: 'init', method: 'tools/list', params: { _meta: MODERN } } : initialize(),
  )

const unreachable = (detail: string) => failure('init', 'upstream_unreachable', { detail })

describe.each(named(ways))('a server that cannot be reached, before a %s', (_name, way) => {
  const told = async (url: string, options = {}) => {
    const { caller, app } = await proxyTo(way, new URL(url), options)
    begin(way, caller)
    const heard = await caller.until(1)
    await vi.waitFor(() => expect(app.stats().pending).toBe(0))
    return heard
  }

  it('as nobody listens: -31009, it was not sent', async () => {
    expect(await told(`http://127.0.0.1:${await freePort()}/mcp`)).toEqual([unreachable('ECONNREFUSED')])
  })

  it.each(['ENOTFOUND', 'EAI_AGAIN'])('as nobody knows its name (%s): the same', async (code) => {
    const { lookup } = dns
    const spy = vi.spyOn(dns, 'lookup').mockImplementation(((name: string, ...rest: unknown[]) => {
      if (name !== 'mcp.example') return (lookup as (...all: unknown[]) => void)(name, ...rest)
      const done = rest.at(-1) as (error: Error) => void
      return process.nextTick(done, Object.assign(new Error(`getaddrinfo ${code} ${name}`), { code }))
    }) as typeof lookup)
    closing.push(() => spy.mockRestore())
    expect(await told('http://mcp.example/mcp')).toEqual([unreachable(code)])
    expect(spy.mock.calls.map(([name]) => name)).toContain('mcp.example')
  })

  it('as its certificate is nobody’s: the same, and it hears nothing', async () => {
    const heard: unknown[] = []
    const server = createHttps(selfSigned, (request) => heard.push(request.url))
    const { port } = await below(undefined, server)
    expect(await told(`https://127.0.0.1:${port}/mcp`)).toEqual([unreachable('DEPTH_ZERO_SELF_SIGNED_CERT')])
    expect(heard).toEqual([])
  })

  it('as it speaks no TLS: the same', async () => {
    const { port } = await below((socket) => socket.end('HTTP/1.1 400 Bad Request\r\n\r\n'))
    const [message] = await told(`https://127.0.0.1:${port}/mcp`)
    expect(message).toEqual(
      unreachable(/(EPROTO|ERR_SSL_\w+)$/.exec(message?.error?.message ?? '')?.[0] ?? 'a code of TLS'),
    )
  })

  it('as its connection never stands: the same, after the time it has for that', async () => {
    const { port, sockets } = await below((socket) => socket.resume())
    const begun = performance.now()
    expect(await told(`https://127.0.0.1:${port}/mcp`, { timeout: 150 })).toEqual([
      unreachable(way.upstream === 'sse' && !way.detected ? 'no endpoint event' : 'connect timeout'),
    ])
    expect(performance.now() - begun).toBeGreaterThan(100)
    await vi.waitFor(() => expect(sockets.size).toBe(0))
  })
})

describe.each(named(httpWays))('a server that goes, before a %s', (_name, way) => {
  it('and comes back: what was said meanwhile was not sent, and the next call is answered', async () => {
    const { caller, server } = await through(way)
    caller.call(1, 'good')
    expect(await caller.until(1)).toEqual([good(1)])
    const comeBack = await server.away()
    caller.call('init', 'good')
    expect((await caller.until(2)).slice(1)).toEqual([unreachable('ECONNREFUSED')])
    await comeBack()
    caller.call(3, 'good')
    expect((await caller.until(3)).slice(2)).toEqual([good(3)])
    expect(server.calls.map(({ id }) => id)).toEqual([1, 3])
  })
})

describe.each(named(httpWays))('a server that takes a request and says nothing, before a %s', (_name, way) => {
  it('is waited for; who closes the proxy has it answered: one -31008', async () => {
    const { port, sockets } = await below((socket) => socket.resume())
    const { caller, app } = await proxyTo(way, new URL(`http://127.0.0.1:${port}/mcp`), { drainTimeout: 100 })
    begin(way, caller)
    await vi.waitFor(() => expect(sockets.size).toBe(1))
    if (process.platform === 'linux') expect(timersTo(port)).toEqual([KEEPALIVE])
    await app.close()
    expect(await caller.until(1)).toEqual([failure('init', 'shutting_down', { phase: 'sent' })])
    await vi.waitFor(() => expect(sockets.size).toBe(0))
  })
})

it('a call that waits for the schemas of such a server was not sent, and is told so under its id', async () => {
  const { port, sockets } = await below((socket) => socket.resume())
  const way = { client: 'http', upstream: 'http', modern: true } as const
  const { caller, app } = await proxyTo(way, new URL(`http://127.0.0.1:${port}/mcp`), { drainTimeout: 100 })
  caller.call(0, 'good')
  await vi.waitFor(() => expect(sockets.size).toBe(1))
  await app.close()
  expect(await caller.until(1)).toEqual([failure(0, 'shutting_down')])
  expect(caller.statuses).toEqual([503])
})

/** How Linux calls the timer of a connection that it probes when it is idle. */
const KEEPALIVE = '02'

/** The timers that Linux runs for our connections to a port (proc_net_tcp). */
function timersTo(port: number): string[] {
  const remote = `0100007F:${port.toString(16).toUpperCase().padStart(4, '0')}`
  const rows = readFileSync('/proc/net/tcp', 'utf8')
    .split('\n')
    .map((line) => line.trim().split(/\s+/))
  const STANDS = '01'
  return rows.filter(([, , to, state]) => to === remote && state === STANDS).map((row) => row[5]!.slice(0, 2))
}
