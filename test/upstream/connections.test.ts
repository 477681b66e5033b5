import { once } from 'node:events'
import { createServer, type Socket } from 'node:net'
import { setImmediate as halfTurn } from 'node:timers/promises'
import { createServer as createTls } from 'node:tls'
import { afterEach, describe, expect, it, vi } from 'vitest'
import { proxyError } from '../../src/error.js'
import { detect } from '../../src/upstream/detect.js'
import { HttpUpstream } from '../../src/upstream/http.js'
import { closing, serve } from '../fixtures/closing.js'
import { selfSigned } from '../fixtures/faults/server-certificate.js'
import { json, listenTo, modern, notification, request, result, scripted } from '../fixtures/http-server.js'

const answer = (id: unknown, headers = '') => {
  const body = JSON.stringify(result(id as number))
  return `HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n${headers}content-length: ${body.length}\r\n\r\n${body}`
}

/** A server below HTTP, which is told of each whole request and of the connection that it came over. */
async function server(onRequest: (id: number, socket: Socket, connection: number) => unknown, secure = false) {
  const sockets: Socket[] = []
  const asked: [connection: number, id: unknown][] = []
  const onSocket = (socket: Socket) => {
    const connection = sockets.push(socket)
    socket.on('error', () => {})
    let text = ''
    socket.on('data', (chunk) => {
      text += chunk
      const [head, body = ''] = text.split('\r\n\r\n')
      if (body.length < Number(/content-length: (\d+)/.exec(head!)?.[1] ?? 0)) return
      text = ''
      const { id } = JSON.parse(body)
      asked.push([connection, id])
      onRequest(id, socket, connection)
    })
  }
  const it = secure ? createTls(selfSigned, onSocket) : createServer(onSocket)
  it.listen(0, '127.0.0.1')
  await once(it, 'listening')
  closing.push(() => {
    for (const socket of sockets) socket.destroy()
    it.close()
  })
  const { port } = it.address() as { port: number }
  const wire = new HttpUpstream({ url: `http${secure ? 's' : ''}://127.0.0.1:${port}/` })
  closing.push(() => wire.close())
  return { wire, sockets, asked, ...listenTo(wire) }
}

afterEach(() => {
  vi.unstubAllEnvs()
})

describe('a connection', () => {
  it('serves one request after another, and as many as there are at a time', async () => {
    const waiting: (() => void)[] = []
    const { wire, asked, until } = await server((id, socket) => {
      if (id === 2) waiting.push(() => socket.write(answer(id)))
      else socket.write(answer(id))
    })
    await wire.send(request(1, 'ping'))
    await until(1)
    await wire.send(request(2, 'ping'))
    await vi.waitFor(() => expect(waiting).toHaveLength(1))
    await wire.send(request(3, 'ping'))
    await until(2)
    waiting[0]?.()
    await until(3)
    await wire.send(request(4, 'ping'))
    await until(4)
    expect(asked).toEqual([
      [1, 1],
      [1, 2],
      [2, 3],
      [1, 4],
    ])
  })

  it('that is idle takes what is said in one turn in the order it was said', async () => {
    const { wire, asked, until } = await server((id, socket) => socket.write(answer(id)))
    const ids = [1, 2, 3, 4, 5, 6]
    await Promise.all(ids.map((id) => wire.send(request(id, 'ping'))))
    await until(6)
    const sent = ids.map((id) => wire.send(request(id + 6, 'ping')))
    expect(sent).toEqual(ids.map(() => undefined))
    await until(12)
    expect(asked.slice(6).map(([, id]) => id)).toEqual([7, 8, 9, 10, 11, 12])
    expect(Math.max(...asked.map(([connection]) => connection))).toBe(6)
  })

  it.each([
    ['says that it is the last answer', 'connection: close\r\n'],
    ['keeps it so long that no request is safe', 'keep-alive: timeout=1\r\n'],
  ])('is not used again where its server %s', async (_what, headers) => {
    const { wire, asked, until, sockets } = await server((id, socket) => socket.write(answer(id, headers)))
    await wire.send(request(1, 'ping'))
    await until(1)
    await wire.send(request(2, 'ping'))
    expect(await until(2)).toEqual([result(1), result(2)])
    expect(asked).toEqual([
      [1, 1],
      [2, 2],
    ])
    await vi.waitFor(() => expect(sockets.map((it) => it.readableEnded)).toEqual([true, true]))
  })

  it.each([
    ['at once', (socket: Socket, text: string) => socket.write(answer(1) + text)],
    [
      'a little later',
      (socket: Socket, text: string) => socket.write(answer(1), () => setTimeout(() => socket.write(text), 5)),
    ],
  ])('on which something comes that nobody asked for (%s) answers nothing more', async (_when, write) => {
    const { wire, asked, until, sockets } = await server((id, socket, connection) => {
      if (connection === 1) write(socket, answer(2).replace('{}', '{"false":1}'))
      else socket.write(answer(id))
    })
    await wire.send(request(1, 'ping'))
    await until(1)
    await vi.waitFor(() => expect(sockets[0]?.readableEnded).toBe(true))
    await wire.send(request(2, 'ping'))
    expect(await until(2)).toEqual([result(1), result(2)])
    expect(asked).toEqual([
      [1, 1],
      [2, 2],
    ])
  })

  it('that was answered before it had the whole request is not used again', async () => {
    const sockets: Socket[] = []
    const early = createServer((socket) => {
      sockets.push(socket.on('error', () => {}))
      socket.once('data', () => {
        socket.pause()
        socket.write('HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n')
      })
    }).listen(0, '127.0.0.1')
    await once(early, 'listening')
    closing.push(() => early.close())
    const wire = new HttpUpstream({ url: `http://127.0.0.1:${(early.address() as { port: number }).port}/` })
    closing.push(() => wire.close())
    const { until } = listenTo(wire)
    await wire.send(request(1, 'ping', { text: 'x'.repeat(20_000_000) }))
    expect(await until(1)).toMatchObject([{ id: 1, error: { message: 'Bad response from upstream: HTTP 413' } }])
    sockets[0]?.resume()
    await vi.waitFor(() => expect(sockets[0]?.destroyed).toBe(true))
  })

  it('that its server closes as the next request is said costs nobody an answer', async () => {
    const { wire, asked, until, sockets } = await server((id, socket) => socket.write(answer(id)))
    await Promise.all([1, 2].map((id) => wire.send(request(id, 'ping'))))
    await until(2)
    for (const socket of sockets) socket.end()
    expect([3, 4].map((id) => wire.send(request(id, 'ping')))).toEqual([undefined, undefined])
    await until(4)
    expect(
      asked
        .slice(2)
        .map(([connection]) => connection)
        .sort(),
    ).toEqual([3, 4])
  })

  it('is opened anew then; where nobody is there any more, the request is told that it was not sent', async () => {
    const server = await scripted((seen, response) => json(response, result(JSON.parse(seen.body).id)))
    const wire = new HttpUpstream({ url: server.url })
    closing.push(() => wire.close())
    const { until } = listenTo(wire)
    await wire.send(request(1, 'ping'))
    await until(1)
    const gone = server.close()
    expect(wire.send(request(2, 'ping'))).toBeUndefined()
    await gone
    expect((await until(2)).slice(1)).toEqual([
      { jsonrpc: '2.0', id: 2, error: proxyError('upstream_unreachable', { detail: 'ECONNREFUSED' }).toJSON() },
    ])
  })

  it('over TLS serves as one over TCP does', async () => {
    vi.stubEnv('NODE_TLS_REJECT_UNAUTHORIZED', '0')
    const warned = vi.spyOn(process, 'emitWarning').mockImplementation(() => {})
    closing.push(() => warned.mockRestore())
    const { wire, asked, until } = await server((id, socket) => socket.write(answer(id)), true)
    for (const id of [1, 2, 3]) {
      await wire.send(request(id, 'ping'))
      await until(id)
    }
    expect(asked).toEqual([
      [1, 1],
      [1, 2],
      [1, 3],
    ])
  })
})

describe('a request', () => {
  it('that is cancelled before it is written is never written', async () => {
    const { wire, asked, until } = await server((id, socket) => socket.write(answer(id)))
    await wire.send(modern(1, 'ping'))
    await until(1)
    void wire.send(modern(2, 'ping'))
    void wire.send(notification('notifications/cancelled', { requestId: 2 }))
    await halfTurn()
    await halfTurn()
    await wire.send(modern(3, 'ping'))
    await until(2)
    expect(asked).toEqual([
      [1, 1],
      [1, 3],
    ])
  })

  it('of 2026-07-28 leaves at once too, as soon as its tool is known', async () => {
    const upstream = await serve((seen, response) => {
      const { id, method } = JSON.parse(seen.body)
      json(response, result(id, method === 'tools/list' ? { tools: [{ name: 'echo', inputSchema: {} }] } : {}))
    })
    const wire = new HttpUpstream({ url: upstream.url })
    closing.push(() => wire.close())
    const { until } = listenTo(wire)
    await wire.send(modern(1, 'tools/call', { name: 'echo', arguments: {} }))
    await until(1)
    expect(wire.send(modern(2, 'tools/call', { name: 'echo', arguments: {} }))).toBeUndefined()
    await until(2)
    expect(upstream.methods()).toEqual(['tools/list', 'tools/call', 'tools/call'])
    expect(upstream.sockets.size).toBe(1)
  })

  it('leaves at once where its transport had to be found out, behind the handshake', async () => {
    const upstream = await serve((seen, response) => {
      const { id } = JSON.parse(seen.body)
      json(response, result(id, id === 0 ? { protocolVersion: '2025-11-25' } : {}))
    })
    const wire = detect({ url: upstream.url })
    closing.push(() => wire.close())
    const { until } = listenTo(wire)
    await wire.start()
    await wire.send(request(0, 'initialize', { protocolVersion: '2025-11-25' }))
    await until(1)
    expect(wire.send(request(1, 'ping'))).toBeUndefined()
    expect(await until(2)).toHaveLength(2)
  })

  it('that is big has left when its connection has taken it', async () => {
    const { wire, until } = await server((id, socket) => socket.write(answer(id)))
    await wire.send(request(1, 'ping'))
    await until(1)
    const sent = wire.send(request(2, 'ping', { text: 'x'.repeat(100_000) }))
    expect(sent).toBeInstanceOf(Promise)
    await sent
    expect(await until(2)).toEqual([result(1), result(2)])
  })
})
