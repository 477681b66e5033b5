import { createServer } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { brotliCompressSync, deflateSync, gzipSync } from 'node:zlib'
import { describe, expect, it, vi } from 'vitest'
import { proxyError } from '../../src/error.js'
import { ToolHeaders } from '../../src/tools.js'
import { Endpoint, type HttpUpstreamOptions } from '../../src/upstream/endpoint.js'
import { HttpUpstream } from '../../src/upstream/http.js'
import { closing, serve } from '../fixtures/closing.js'
import {
  event,
  type Handler,
  json,
  listenTo,
  modern,
  notification,
  refusalOf,
  request,
  result,
  scripted,
  stream,
} from '../fixtures/http-server.js'

async function pair(handler: Handler, options: Partial<HttpUpstreamOptions> = {}) {
  const server = await serve(handler)
  const wire = new HttpUpstream({ url: server.url, ...options })
  closing.push(() => wire.close())
  return { server, wire, ...listenTo(wire) }
}

/** A server below HTTP: it answers what comes in with the text it is given, and ends the connection when told. */
async function rawServer(answer: (text: string) => string, { end = false } = {}) {
  const server = createServer((socket) => {
    socket.on('error', () => {})
    socket.on('data', (chunk) => (end ? socket.end(answer(chunk.toString())) : socket.write(answer(chunk.toString()))))
    closing.push(() => socket.destroy())
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  closing.push(() => server.close())
  const wire = new HttpUpstream({ url: `http://127.0.0.1:${(server.address() as { port: number }).port}/` })
  closing.push(() => wire.close())
  return { wire, ...listenTo(wire) }
}

const badResponse = (id: number, detail: string) => ({
  jsonrpc: '2.0',
  id,
  error: proxyError('upstream_bad_response', { phase: 'sent', detail }).toJSON(),
})
const initialize = request(0, 'initialize', { protocolVersion: '2025-11-25' })

/** Answers the handshake and leaves everything else to `rest`. */
const session =
  (rest: Handler): Handler =>
  (seen, response) => {
    const method = seen.method === 'POST' ? JSON.parse(seen.body).method : undefined
    const headers = { 'mcp-session-id': 'abc' }
    if (method === 'initialize') return json(response, result(0, { protocolVersion: '2025-11-25' }), 200, headers)
    if (method === 'notifications/initialized') return response.writeHead(202).end()
    return rest(seen, response)
  }

async function handshake({ wire, until }: Awaited<ReturnType<typeof pair>>) {
  await wire.send(initialize)
  await until(1)
  await wire.send(notification('notifications/initialized'))
}

describe('an answer', () => {
  const text = JSON.stringify(result(1))

  it.each<[string, Buffer, string?]>([
    ['gzip', gzipSync(text)],
    ['GZIP', gzipSync(text)],
    ['br', brotliCompressSync(text)],
    ['deflate', deflateSync(text)],
  ])('that is compressed unasked (%s) is read', async (coding, body) => {
    const { wire, until, frames } = await pair((_seen, response) => {
      response.writeHead(200, { 'content-type': 'application/json', 'content-encoding': coding }).end(body)
    })
    await wire.send(request(1, 'ping'))
    await until(1)
    expect(frames.map((frame) => frame.text)).toEqual([text])
  })

  it('whose compression is broken off or grows over the limit is no answer', async () => {
    const { wire, until } = await pair(
      (seen, response) => {
        response.writeHead(200, { 'content-type': 'application/json', 'content-encoding': 'gzip' })
        response.end(seen.body.includes('"id":1') ? gzipSync(text).subarray(0, 20) : gzipSync(Buffer.alloc(1e6, ' ')))
      },
      { maxMessageBytes: 1_000 },
    )
    await wire.send(request(1, 'ping'))
    await until(1)
    await wire.send(request(2, 'ping'))
    expect(await until(2)).toEqual([
      badResponse(1, 'broken connection'),
      { jsonrpc: '2.0', id: 2, error: proxyError('too_large', { phase: 'sent' }).toJSON() },
    ])
  })

  it.each([200, 400])('may begin with a byte order mark: %i', async (status) => {
    const body = status === 200 ? result(1) : { jsonrpc: '2.0', id: 1, error: { code: -32600, message: 'no' } }
    const { wire, until } = await pair((_seen, response) => {
      response.writeHead(status, { 'content-type': 'APPLICATION/JSON ; Charset="utf-8"' })
      response.end(`\ufeff${JSON.stringify(body)}\n`)
    })
    await wire.send(request(1, 'ping'))
    expect(await until(1)).toEqual([body])
  })

  it('that has no bytes is not decoded: its status counts', async () => {
    const { wire, until } = await pair((_seen, response) => {
      response.writeHead(401, { 'content-encoding': 'gzip', 'content-length': 0 }).end()
    })
    await wire.send(request(1, 'ping'))
    expect(await until(1)).toMatchObject([{ error: { code: -31010 } }])
  })

  it('that comes in very many pieces keeps no object for each', async () => {
    const text = JSON.stringify(result(1, { text: 'x'.repeat(30_000) }))
    const chunks = Array.from(text, (byte) => `1\r\n${byte}\r\n`).join('')
    const head = 'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n'
    const { wire, until, frames } = await rawServer(() => `${head}${chunks}0\r\n\r\n`)
    const concat = vi.spyOn(Buffer, 'concat')
    closing.push(() => concat.mockRestore())
    await wire.send(request(1, 'ping'))
    await until(1)
    expect(frames.map((frame) => frame.text)).toEqual([text])
    expect(Math.max(...concat.mock.calls.map(([list]) => list.length))).toBeLessThan(100)
  })

  it('that comes twice comes once', async () => {
    let first: Parameters<Handler>[1] | undefined
    const { wire, until, messages } = await pair((seen, response) => {
      if (seen.body.includes('first')) {
        first = stream(response)
        return first.write(event(result(1)))
      }
      return first?.end(event(result(1, { late: true })), () => json(response, result(1, { second: true })))
    })
    await wire.send(request(1, 'first'))
    await until(1)
    await wire.send(request(1, 'second'))
    await until(2)
    expect(messages()).toEqual([result(1), result(1, { second: true })])
  })

  it.each(['the stream of another request', 'the standalone stream'])('on %s is that of its request', async (where) => {
    let own: Parameters<Handler>[1] | undefined
    let standalone: Parameters<Handler>[1] | undefined
    const peer = await pair(
      session((seen, response) => {
        if (seen.method === 'DELETE') return response.end()
        if (seen.method === 'GET') {
          standalone = stream(response)
        } else if (seen.body.includes('first')) {
          own = stream(response)
        } else if (seen.body.includes('second')) {
          if (where === 'the standalone stream') standalone?.write(event(result(1)))
          stream(response).end(where === 'the standalone stream' ? event(result(2)) : event([result(1), result(2)]))
        } else {
          own?.end()
          own?.on('close', () => json(response, result(1, { again: true })))
        }
      }),
    )
    await handshake(peer)
    await vi.waitFor(() => expect(standalone).toBeDefined())
    await peer.wire.send(request(1, 'first'))
    await peer.wire.send(request(2, 'second'))
    await peer.until(3)
    await peer.wire.send(request(1, 'third'))
    const heard = (await peer.until(4)).slice(1) as { id: number }[]
    expect(heard.sort((a, b) => a.id - b.id)).toEqual([result(1), result(1, { again: true }), result(2)])
  })

  it('ends its stream, whatever the server does', async () => {
    const { wire, until, server } = await pair((_seen, response) => stream(response).write(event(result(1))))
    await wire.send(request(1, 'ping'))
    await until(1)
    await vi.waitFor(() => expect(server.sockets.size).toBe(0), { timeout: 10_000 })
  })
})

describe('no answer', () => {
  it('is another protocol (101)', async () => {
    const { wire, until } = await rawServer(
      () => 'HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n',
    )
    await wire.send(request(1, 'ping'))
    expect(await until(1)).toEqual([badResponse(1, 'broken connection')])
  })

  it.each([
    ['HPE_INVALID_CONSTANT', 'SSH-2.0-OpenSSH_9.6\r\n'],
    ['HPE_HEADER_OVERFLOW', `HTTP/1.1 200 OK\r\nx: ${'x'.repeat(100_000)}\r\n\r\n`],
  ])('is what is no HTTP: %s', async (code, text) => {
    const { wire, until } = await rawServer(() => text)
    await wire.send(request(1, 'ping'))
    expect(await until(1)).toEqual([badResponse(1, code)])
  })

  it('is missed where the server closes each connection behind its answer without saying so', async () => {
    const { wire, until } = await rawServer(
      (text) => {
        const body = JSON.stringify(result(Number(/"id":(\d+)/.exec(text)?.[1])))
        return `HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`
      },
      { end: true },
    )
    const { onframe } = wire
    wire.onframe = (frame, meta) => {
      onframe?.(frame, meta)
      const { id } = JSON.parse(Buffer.from(frame).toString())
      if (id < 20) void wire.send(request(id + 1, 'ping'))
    }
    await wire.send(request(1, 'ping'))
    expect(await until(20)).toEqual(Array.from({ length: 20 }, (_, index) => result(index + 1)))
  })
})

describe('a message without an answer', () => {
  it('is one of as many at a time as there are, and Node has nothing to say to that', async () => {
    const warned = vi.spyOn(process, 'emitWarning')
    closing.push(() => warned.mockRestore())
    const { wire } = await pair((_seen, response) => setTimeout(() => response.writeHead(202).end(), 20))
    await Promise.all(Array.from({ length: 20 }, () => wire.send(notification('notifications/x'))))
    expect(warned).not.toHaveBeenCalled()
  })

  it('holds up what follows only for so long: its server may want another answer first', async () => {
    const finish: (() => void)[] = []
    const { wire, errors } = await pair((seen, response) => {
      if (seen.body.includes('slow')) finish.push(() => response.writeHead(503).end())
      else response.writeHead(202).end()
    })
    await wire.send(notification('notifications/slow'))
    await wire.send(Buffer.from('{"jsonrpc":"2.0","id":"s1","result":{}}'))
    expect(errors).toEqual([])
    finish[0]?.()
    const late = proxyError('upstream_bad_response', { phase: 'sent', detail: 'HTTP 503', retryable: true })
    await vi.waitFor(() => expect(errors).toEqual([late]))
  })

  it('keeps no connection where its status has a body without end', async () => {
    const { wire, server } = await pair((_seen, response) => response.writeHead(202).write('and so on'))
    await wire.send(notification('notifications/x'))
    await vi.waitFor(() => expect(server.sockets.size).toBe(0), { timeout: 10_000 })
  })

  it('says that it may have been taken where the session is lost meanwhile', async () => {
    const peer = await pair(
      session((seen, response) => {
        if (seen.method === 'GET') response.writeHead(405).end()
        else if (seen.body.includes('ping')) response.writeHead(404).end()
      }),
    )
    await handshake(peer)
    const sent = refusalOf(peer.wire.send(notification('notifications/x')))
    await vi.waitFor(() => expect(peer.server.methods()).toContain('notifications/x'))
    await peer.wire.send(request(1, 'ping'))
    expect(await sent).toEqual(proxyError('upstream_session_lost', { phase: 'sent' }).toJSON())
  })
})

describe('a cancellation', () => {
  it('means the request that waits, not an earlier one of its id', async () => {
    const gone: number[] = []
    let count = 0
    const { wire, until } = await pair((_seen, response) => {
      count += 1
      const number = count
      response.on('close', () => gone.push(number))
      if (number === 1) stream(response).write(event(result(1)))
      else stream(response)
    })
    await wire.send(modern(1, 'first'))
    await until(1)
    await wire.send(modern(1, 'second'))
    await vi.waitFor(() => expect(count).toBe(2))
    await wire.send(notification('notifications/cancelled', { requestId: 1 }))
    await vi.waitFor(() => expect(gone.length).toBeGreaterThan(0), { interval: 5 })
    expect(gone).toEqual([2])
  })

  it('of a modern request that is answered already is not POSTed', async () => {
    const { wire, until, server } = await pair((seen, response) => json(response, result(JSON.parse(seen.body).id)))
    await wire.send(modern(1, 'ping'))
    await until(1)
    await wire.send(notification('notifications/cancelled', { requestId: 1 }))
    await wire.send(modern(2, 'ping'))
    await until(2)
    expect(server.methods()).toEqual(['ping', 'ping'])
  })
})

describe('the standalone stream', () => {
  it('that always ends at once is not asked for without a pause, whatever its server wants', async () => {
    let asked = 0
    const peer = await pair(
      session((seen, response) => {
        if (seen.method !== 'GET') return response.end()
        asked += 1
        return stream(response).end('retry: 0\n\n')
      }),
    )
    await handshake(peer)
    await vi.waitFor(() => expect(asked).toBeGreaterThan(2))
    await sleep(300)
    expect(asked).toBeLessThan(10)
  })
})

describe('the standalone stream of a server that is away', () => {
  it('is opened again when that is back, behind its last event', async () => {
    const nobody = await scripted(() => {})
    await nobody.close()
    let refusals = 0
    const opened: unknown[] = []
    const peer = await pair(
      session((seen, response) => {
        if (seen.method !== 'GET') return response.end()
        opened.push(seen.headers['last-event-id'])
        const message = { jsonrpc: '2.0', method: `notifications/${opened.length}` }
        return stream(response).end(opened.length > 2 ? '' : `retry: 1\n${event(message, `e${opened.length}`)}`)
      }),
      {
        fetch: (input, init) => {
          const away = init?.method === 'GET' && opened.length === 1 && refusals < 6
          if (away) refusals += 1
          return fetch(away ? nobody.url : input, init)
        },
      },
    )
    await handshake(peer)
    expect((await peer.until(3, 20_000)).slice(1)).toEqual(
      [1, 2].map((number) => ({ jsonrpc: '2.0', method: `notifications/${number}` })),
    )
    expect([refusals, opened.slice(0, 2)]).toEqual([6, [undefined, 'e1']])
  })
})

describe('close', () => {
  it.each(['headers', 'auth'])('does not wait for a function of ours: %s', async (name) => {
    let hangs = false
    const hang = () => (hangs ? new Promise<Record<string, string>>(() => {}) : {})
    const server = await scripted(
      session((_seen, response) => response.writeHead(name === 'auth' ? 401 : 405, {}).end()),
    )
    closing.push(server.close)
    const wire = new HttpUpstream({ url: server.url, [name]: hang })
    const { until } = listenTo(wire)
    await wire.send(initialize)
    await until(1)
    hangs = true
    const sent = refusalOf(wire.send(notification('notifications/x')))
    await wire.close()
    expect(await sent).toEqual(proxyError('shutting_down', { phase: 'sent' }).toJSON())
  })
})

describe('what is known of tools', () => {
  it('has bounds, however many names are made up', async () => {
    const tools = new ToolHeaders()
    const asked: string[] = []
    const ask = (name: string) =>
      tools.of(name, async () => {
        asked.push(name)
        return Buffer.from(JSON.stringify(result(1, { tools: [] })))
      })
    await ask('first')
    await ask('first')
    expect(asked).toEqual(['first'])
    for (let index = 0; index < 10_000; index += 1) await ask(String(index))
    await ask('9999')
    await ask('first')
    expect(asked.slice(10_000)).toEqual(['9999', 'first'])
  })
})

describe('an endpoint', () => {
  it('keeps what Node cannot time within bounds', () => {
    const { timeout, sseReadTimeout } = new Endpoint({ url: 'http://a/', timeout: 1e12, sseReadTimeout: 2 ** 31 })
    expect([timeout, sseReadTimeout]).toEqual([2 ** 31 - 1, 2 ** 31 - 1])
  })

  it.each([['node:http'], ['fetch']])('sends the credentials of its URL in a header, by %s too', async (by) => {
    const { server } = await pair((seen, response) => json(response, result(JSON.parse(seen.body).id)))
    const url = new URL(server.url)
    url.username = 'us%65r'
    url.password = 'p%40:ß'
    const wire = new HttpUpstream({ url, ...(by === 'fetch' && { fetch }) })
    closing.push(() => wire.close())
    const { until } = listenTo(wire)
    await wire.send(request(1, 'ping'))
    expect(await until(1)).toEqual([result(1)])
    expect(server.seen[0]?.headers.authorization).toBe(`Basic ${Buffer.from('user:p@:ß').toString('base64')}`)
    expect(new Endpoint({ url }).url.href).toBe(server.url.href)
  })
})
