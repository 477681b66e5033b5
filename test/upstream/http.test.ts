import { once } from 'node:events'
import { describe, expect, it, vi } from 'vitest'
import { proxyError } from '../../src/error.js'
import { detect } from '../../src/upstream/detect.js'
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

async function connect(url: URL, options: Partial<HttpUpstreamOptions> = {}) {
  const wire = new HttpUpstream({ url, ...options })
  const heard = listenTo(wire)
  closing.push(() => wire.close())
  await wire.start()
  return { wire, ...heard }
}

/** A server and a wire to it that takes what `handler` answers. */
async function pair(handler: Handler, options: Partial<HttpUpstreamOptions> = {}) {
  const server = await serve(handler)
  return { server, ...(await connect(server.url, options)) }
}

const failure = (id: number | string, ...[reason, options]: Parameters<typeof proxyError>) => ({
  jsonrpc: '2.0',
  id,
  error: proxyError(reason, options).toJSON(),
})
const initialize = request(0, 'initialize', { protocolVersion: '2025-06-18' })
const initialized = notification('notifications/initialized')
const answerTo = (body: string, value?: unknown) => result(JSON.parse(body).id, value)

/** Answers the handshake and leaves everything else to `rest`. */
const session =
  (rest: Handler, id: string | null = 'abc'): Handler =>
  (seen, response) => {
    const method = seen.method === 'POST' ? JSON.parse(seen.body).method : undefined
    const headers: Record<string, string> = id === null ? {} : { 'mcp-session-id': id }
    if (method === 'initialize') return json(response, result(0, { protocolVersion: '2025-06-18' }), 200, headers)
    if (method === 'notifications/initialized') return response.writeHead(202).end()
    return rest(seen, response)
  }

const noStream: Handler = (_seen, response) => response.writeHead(405).end()

async function handshake({ wire, until }: Awaited<ReturnType<typeof pair>>) {
  await wire.send(initialize)
  await until(1)
  await wire.send(initialized)
}

describe('an answer', () => {
  it('comes as JSON, with its bytes, status, headers and request', async () => {
    const text = '{"jsonrpc":"2.0", "id":1,\n"result":{"n":9007199254740993,"f":1.0}}'
    const { wire, until, frames } = await pair((_seen, response) => json(response, text, 200, { 'x-made': 'here' }))
    await wire.send(request(1, 'ping'))
    await until(1)
    expect(frames[0]?.text).toBe(text)
    expect(frames[0]?.meta).toMatchObject({ relatedRequestId: 1, status: 200, headers: { 'x-made': 'here' } })
  })

  it('comes on an event stream, behind the messages that belong to it', async () => {
    const progress = { jsonrpc: '2.0', method: 'notifications/progress', params: { progress: 1 } }
    const { wire, until, frames } = await pair((seen, response) => {
      stream(response).end(`: hello\n\nid: 1\ndata:\n\n${event(progress)}${event(answerTo(seen.body))}`)
    })
    await wire.send(request('a', 'tools/call', { name: 't' }))
    expect(await until(2)).toEqual([progress, result('a')])
    expect(frames.map(({ meta }) => meta?.relatedRequestId)).toEqual(['a', 'a'])
  })

  it('may be one of a batch, as JSON and as an event', async () => {
    const { wire, until } = await pair((seen, response) => {
      const batch = [{ jsonrpc: '2.0', method: 'notifications/message' }, answerTo(seen.body)]
      if (JSON.parse(seen.body).id === 1) json(response, batch)
      else stream(response).end(event(batch))
    })
    await wire.send(request(1, 'ping'))
    await until(2)
    await wire.send(request(2, 'ping'))
    expect((await until(4)).slice(2)).toEqual([{ jsonrpc: '2.0', method: 'notifications/message' }, result(2)])
  })

  it('is not waited for by send, nor does it hold up what is sent next', async () => {
    let finish = () => {}
    const { wire, until, server } = await pair((seen, response) => {
      const { id, method } = JSON.parse(seen.body)
      if (method === undefined) {
        response.writeHead(202).end()
        finish()
      } else {
        finish = () => json(response, result(id))
      }
    })
    await wire.send(request(1, 'tools/call', { name: 'asks' }))
    await vi.waitFor(() => expect(server.seen).toHaveLength(1))
    await wire.send(Buffer.from('{"jsonrpc":"2.0","id":"s1","result":{}}'))
    expect(await until(1)).toEqual([result(1)])
  })

  it('has the bytes of the frame as its POST body', async () => {
    const frame = Buffer.from('{"jsonrpc":"2.0","id":1,"method":"x","params":{"n":1.0,"n2":9007199254740993 } }')
    const { wire, until, server } = await pair((_seen, response) => json(response, result(1)))
    await wire.send(frame)
    await until(1)
    expect(server.seen[0]).toMatchObject({
      method: 'POST',
      body: frame.toString(),
      headers: {
        accept: 'application/json, text/event-stream',
        'accept-encoding': 'identity',
        'content-type': 'application/json',
        'content-length': String(frame.length),
      },
    })
  })
})

describe('a request that is not answered', () => {
  it.each<[string, string, Handler]>([
    ['202', 'HTTP 202 without an answer', (_seen, response) => response.writeHead(202).end()],
    ['204', 'HTTP 204 without an answer', (_seen, response) => response.writeHead(204).end()],
    ['an empty 200', 'HTTP 200 without the answer', (_seen, response) => json(response, '')],
    [
      'HTML',
      'HTTP 200 without an answer',
      (_seen, response) => response.setHeader('content-type', 'text/html').end('<p>'),
    ],
    ['a stream that ends', 'stream ended without the answer', (_seen, response) => stream(response).end(': bye\n\n')],
    [
      'a stream cut off',
      'stream ended without the answer',
      (_seen, response) => {
        stream(response).write('data: {"jsonrpc":"2.0","id":1,', () => response.destroy())
      },
    ],
    ['a broken connection', 'ECONNRESET', (_seen, response) => response.destroy()],
    [
      'half a JSON body',
      'broken connection',
      (_seen, response) => {
        response.writeHead(200, { 'content-type': 'application/json', 'content-length': '100' })
        response.write('{"jsonrpc"', () => response.destroy())
      },
    ],
  ])('gets -31003 at once: %s', async (_name, detail, handler) => {
    const { wire, until } = await pair(handler)
    await wire.send(request(1, 'ping'))
    expect(await until(1, 1_000)).toEqual([failure(1, 'upstream_bad_response', { phase: 'sent', detail })])
  })

  it('gets -31003 behind what is no JSON', async () => {
    const { wire } = await pair((_seen, response) => json(response, '{"jsonrpc":"2.0","id":1,"result":'))
    const parts: string[] = []
    wire.onframe = (frame) => parts.push(Buffer.from(frame).toString())
    await wire.send(request(1, 'ping'))
    await vi.waitFor(() => expect(parts).toHaveLength(2))
    expect(JSON.parse(parts[1]!)).toEqual(
      failure(1, 'upstream_bad_response', { phase: 'sent', detail: 'HTTP 200 without the answer' }),
    )
  })

  it('gets -31003 behind an answer under a wrong id', async () => {
    const { wire, until } = await pair((_seen, response) => json(response, result('1')))
    await wire.send(request(1, 'ping'))
    expect(await until(2)).toEqual([
      result('1'),
      failure(1, 'upstream_bad_response', { phase: 'sent', detail: 'HTTP 200 without the answer' }),
    ])
  })

  it.each([
    ['as JSON', (response: Parameters<Handler>[1], body: unknown) => json(response, body)],
    ['on a stream', (response: Parameters<Handler>[1], body: unknown) => stream(response).write(event(body))],
  ])('gets -31007 for an answer over the limit, %s', async (_name, send) => {
    const { wire, until } = await pair((_seen, response) => send(response, result(1, { text: 'x'.repeat(100_000) })), {
      maxMessageBytes: 50_000,
    })
    await wire.send(request(1, 'ping'))
    expect(await until(1)).toEqual([failure(1, 'too_large', { phase: 'sent' })])
  })

  it('rejects send when nobody listens: it was certainly not sent', async () => {
    const server = await scripted(noStream)
    await server.close()
    const { wire, frames } = await connect(server.url)
    expect(await refusalOf(wire.send(request(1, 'ping')))).toEqual(
      proxyError('upstream_unreachable', { detail: 'ECONNREFUSED' }).toJSON(),
    )
    expect(frames).toEqual([])
  })
})

describe('a refusal', () => {
  it.each([
    [500, false, undefined],
    [502, false, undefined],
    [504, false, undefined],
    [408, true, undefined],
    [429, true, '7'],
    [503, true, 'Fri, 31 Dec 1999 23:59:59 GMT'],
  ])('%i without a JSON-RPC body is -31003', async (status, retryable, retryAfter) => {
    const { wire, until, frames } = await pair((_seen, response) => {
      if (retryAfter !== undefined) response.setHeader('retry-after', retryAfter)
      response.writeHead(status).end('<html>')
    })
    await wire.send(request(1, 'ping'))
    const options = { phase: 'sent' as const, detail: `HTTP ${status}`, retryable, retryAfter }
    expect(await until(1)).toEqual([failure(1, 'upstream_bad_response', options)])
    expect(frames[0]?.meta).toMatchObject({ status, relatedRequestId: 1 })
  })

  it('with a JSON-RPC error is handed on as it is', async () => {
    const text = '{"jsonrpc":"2.0","id":1,"error":{"code":-32022,"message":"no","data":{"supported":["x"],"n":1.0}}}'
    const { wire, until, frames } = await pair((_seen, response) => json(response, text, 400, { 'x-a': 'b' }))
    await wire.send(modern(1, 'tools/list'))
    await until(1)
    expect(frames[0]).toMatchObject({ text, meta: { status: 400, relatedRequestId: 1, headers: { 'x-a': 'b' } } })
  })

  it.each([
    ['null', '{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"no"}}'],
    ['absent', '{"jsonrpc":"2.0","error":{"code":-32600,"message":"no"}}'],
  ])('whose error has an id that is %s gets that of the request', async (_name, text) => {
    const { wire, until } = await pair((_seen, response) => json(response, text, 400))
    await wire.send(request('r', 'ping'))
    expect(await until(1)).toEqual([{ jsonrpc: '2.0', id: 'r', error: { code: -32600, message: 'no' } }])
  })

  it('of a notification rejects send', async () => {
    const { wire, server } = await pair((seen, response) => {
      if (seen.body.includes('/a')) json(response, '{"jsonrpc":"2.0","error":{"code":-32600,"message":"no"}}', 400)
      else response.writeHead(500).end()
    })
    expect(await refusalOf(wire.send(notification('notifications/a')))).toEqual({ code: -32600, message: 'no' })
    expect(await refusalOf(wire.send(notification('notifications/b')))).toEqual(
      proxyError('upstream_bad_response', { phase: 'sent', detail: 'HTTP 500' }).toJSON(),
    )
    expect(server.seen).toHaveLength(2)
  })

  it.each([401, 403])('%i is -31010', async (status) => {
    const { wire, until } = await pair((_seen, response) => response.writeHead(status).end())
    await wire.send(request(1, 'ping'))
    expect(await until(1)).toEqual([failure(1, 'upstream_auth', { phase: 'sent', detail: `HTTP ${status}` })])
  })
})

describe('auth', () => {
  const guarded: Handler = (seen, response) => {
    if (seen.headers.authorization === 'Bearer new') return json(response, answerTo(seen.body))
    return response.writeHead(401, { 'www-authenticate': 'Bearer scope="mcp"' }).end()
  }

  it('is asked once for all who wait, and they are sent once more', async () => {
    const auth = vi.fn(async () => {
      await vi.waitFor(() => expect(server.seen).toHaveLength(2))
      return { Authorization: 'Bearer new' }
    })
    const { wire, until, server } = await pair(guarded, { auth, headers: { Authorization: 'Bearer old' } })
    await Promise.all([wire.send(request(1, 'ping')), wire.send(request(2, 'ping'))])
    expect((await until(2)).map((message) => (message as { id: number }).id).sort()).toEqual([1, 2])
    await wire.send(request(3, 'ping'))
    await until(3)
    expect(auth.mock.calls).toEqual([[{ status: 401, wwwAuthenticate: 'Bearer scope="mcp"' }]])
    expect(server.seen).toHaveLength(5)
  })

  it('is not asked twice for one request', async () => {
    const auth = vi.fn(async () => ({ authorization: 'Bearer wrong' }))
    const { wire, until, server } = await pair(guarded, { auth })
    await wire.send(request(1, 'ping'))
    expect(await until(1)).toEqual([failure(1, 'upstream_auth', { phase: 'sent', detail: 'HTTP 401' })])
    expect(server.seen).toHaveLength(2)
    expect(auth).toHaveBeenCalledTimes(1)
  })

  it('that throws is -31010, without its text', async () => {
    const { wire, until } = await pair(guarded, { auth: () => Promise.reject(new Error('secret')) })
    await wire.send(request(1, 'ping'))
    expect(await until(1)).toEqual([failure(1, 'upstream_auth', { phase: 'sent' })])
  })

  it('is told what the headers function says for each request', async () => {
    let count = 0
    const { wire, until, server } = await pair((seen, response) => json(response, answerTo(seen.body)), {
      headers: async () => ({ 'X-Count': String(++count) }),
    })
    await wire.send(request(1, 'ping'))
    await wire.send(request(2, 'ping'))
    await until(2)
    expect(server.seen.map(({ headers }) => headers['x-count'])).toEqual(['1', '2'])
  })
})

describe('a redirect', () => {
  it.each([307, 308])('%i within the origin keeps method and body', async (status) => {
    const { wire, until, server } = await pair((seen, response) => {
      if (seen.path === '/mcp') response.writeHead(status, { location: '/there' }).end()
      else json(response, answerTo(seen.body))
    })
    await wire.send(request(1, 'ping'))
    expect(await until(1)).toEqual([result(1)])
    expect(server.seen.map(({ method, path, body }) => [method, path, body])).toEqual(
      ['/mcp', '/there'].map((path) => ['POST', path, request(1, 'ping').toString()]),
    )
  })

  it.each([
    [307, 'http://localhost:1/', 'HTTP 307 to another origin'],
    [308, 'javascript:alert(1)', 'HTTP 308 to another origin'],
    [302, '/there', 'HTTP 302 would drop the body'],
    [307, '/mcp', 'HTTP 307 too many times'],
  ])('%i to %s is not followed', async (status, location, detail) => {
    const { wire, until, server } = await pair((_seen, response) => response.writeHead(status, { location }).end())
    await wire.send(request(1, 'ping'))
    expect(await until(1)).toEqual([failure(1, 'upstream_bad_response', { phase: 'sent', detail })])
    expect(server.seen.length).toBe(location === '/mcp' ? 4 : 1)
  })
})

describe('a legacy session', () => {
  it('carries its id and version once they are known, and ends with DELETE', async () => {
    const peer = await pair(
      session((seen, response) =>
        seen.method === 'POST' ? json(response, answerTo(seen.body)) : noStream(seen, response),
      ),
    )
    await handshake(peer)
    await peer.wire.send(request(1, 'ping'))
    await peer.until(2)
    await vi.waitFor(() => expect(peer.server.seen).toHaveLength(4))
    await peer.wire.close()
    await peer.wire.close()
    expect(
      peer.server.seen
        .map(({ method, headers, body }) => [
          method,
          body === '' ? '' : JSON.parse(body).method,
          headers['mcp-session-id'],
          headers['mcp-protocol-version'],
        ])
        .sort(),
    ).toEqual(
      [
        ['POST', 'initialize', undefined, undefined],
        ['POST', 'notifications/initialized', 'abc', '2025-06-18'],
        ['GET', '', 'abc', '2025-06-18'],
        ['POST', 'ping', 'abc', '2025-06-18'],
        ['DELETE', '', 'abc', '2025-06-18'],
      ].sort(),
    )
    expect(peer.closes).toEqual([undefined])
  })

  it('has a stream of its own, which is opened again behind its last event', async () => {
    const opened: (string | undefined)[] = []
    const peer = await pair(
      session((seen, response) => {
        if (seen.method !== 'GET') return response.writeHead(200).end()
        opened.push(seen.headers['last-event-id'] as string | undefined)
        const message = { jsonrpc: '2.0', method: `notifications/${opened.length}` }
        const open = stream(response)
        if (opened.length === 3) open.write(event(message))
        else open.end(`retry: 10\n${event(message, `é→${opened.length}`)}`)
      }),
    )
    await handshake(peer)
    await peer.until(4)
    expect(
      peer.frames.slice(1).map(({ message, meta }) => [(message as { method: string }).method, meta?.relatedRequestId]),
    ).toEqual([
      ['notifications/1', undefined],
      ['notifications/2', undefined],
      ['notifications/3', undefined],
    ])
    const ids = opened.map((id) => id && Buffer.from(id, 'latin1').toString())
    expect(ids).toEqual([undefined, 'é→1', 'é→2'])
  })

  it.each([400, 404, 405])('does without that stream where the server says %i', async (status) => {
    const peer = await pair(
      session((seen, response) => {
        if (seen.method === 'POST') json(response, answerTo(seen.body))
        else response.writeHead(seen.method === 'GET' ? status : 200).end()
      }),
    )
    await handshake(peer)
    await vi.waitFor(() => expect(peer.server.seen.map(({ method }) => method)).toContain('GET'))
    await peer.wire.send(request(1, 'ping'))
    expect((await peer.until(2))[1]).toEqual(result(1))
    expect(peer.closes).toEqual([])
  })

  it('that is gone (404) is told to the request, then closes', async () => {
    const order: string[] = []
    const peer = await pair(
      session((seen, response) => {
        if (seen.method !== 'POST') return noStream(seen, response)
        return json(response, '{"jsonrpc":"2.0","id":null,"error":{"code":-32001,"message":"Session not found"}}', 404)
      }),
    )
    await handshake(peer)
    const { onframe, onclose } = peer.wire
    peer.wire.onframe = (frame, meta) => {
      order.push('frame')
      onframe?.(frame, meta)
    }
    peer.wire.onclose = (reason) => {
      order.push('close')
      onclose?.(reason)
    }
    await peer.wire.send(request(1, 'ping'))
    expect((await peer.until(2))[1]).toEqual(failure(1, 'upstream_session_lost'))
    expect(order).toEqual(['frame', 'close'])
    expect(peer.closes).toEqual([proxyError('upstream_session_lost', { phase: 'sent' })])
    expect(await refusalOf(peer.wire.send(request(2, 'ping')))).toEqual(proxyError('upstream_session_lost').toJSON())
    await peer.wire.close()
    expect(peer.closes).toHaveLength(1)
    expect(peer.server.seen.map(({ method }) => method)).not.toContain('DELETE')
  })

  it('that is gone is told to a notification too', async () => {
    const peer = await pair(session((_seen, response) => response.writeHead(404).end()))
    await handshake(peer)
    expect(await refusalOf(peer.wire.send(notification('notifications/x')))).toEqual(
      proxyError('upstream_session_lost').toJSON(),
    )
    expect(peer.closes).toEqual([proxyError('upstream_session_lost', { phase: 'sent' })])
  })

  it('reports a message over the limit on its own stream and reads on', async () => {
    const peer = await pair(
      session((seen, response) => {
        if (seen.method !== 'GET') return response.writeHead(200).end()
        const small = { jsonrpc: '2.0', method: 'notifications/small' }
        const big = { jsonrpc: '2.0', method: 'notifications/big', params: { text: 'x'.repeat(2_000) } }
        return stream(response).write(event(big) + event([small, small]))
      }),
      { maxMessageBytes: 1_000 },
    )
    await handshake(peer)
    expect((await peer.until(3)).slice(1)).toEqual(
      [1, 2].map(() => ({ jsonrpc: '2.0', method: 'notifications/small' })),
    )
    expect(peer.errors).toEqual([expect.objectContaining({ name: 'FrameError', code: -31007 })])
  })

  it('without an id lives through a 404', async () => {
    const peer = await pair(session((_seen, response) => response.writeHead(404).end(), null))
    await handshake(peer)
    await peer.wire.send(request(1, 'ping'))
    expect((await peer.until(2))[1]).toEqual(failure(1, 'upstream_bad_response', { phase: 'sent', detail: 'HTTP 404' }))
    expect(peer.closes).toEqual([])
  })

  it('is POSTed a cancellation, and the stream that then ends is no failure', async () => {
    let open: Parameters<Handler>[1] | undefined
    const peer = await pair(
      session((seen, response) => {
        if (seen.method !== 'POST') return noStream(seen, response)
        if (seen.body.includes('cancelled')) {
          response.writeHead(202).end()
          open?.end()
        } else if (seen.body.includes('ping')) {
          json(response, answerTo(seen.body))
        } else {
          open = stream(response)
          open.write('id: 1\nretry: 1\ndata:\n\n')
        }
      }),
    )
    await handshake(peer)
    await peer.wire.send(request(1, 'tools/call', { name: 't' }))
    await vi.waitFor(() => expect(open).toBeDefined())
    await peer.wire.send(notification('notifications/cancelled', { requestId: 1 }))
    await peer.wire.send(request(2, 'ping'))
    expect((await peer.until(2)).slice(1)).toEqual([result(2)])
    expect(peer.server.methods()).toContain('notifications/cancelled')
  })
})

describe('a cancellation', () => {
  it('does not overtake its request', async () => {
    const order: string[] = []
    const { wire } = await pair((seen, response) => {
      if (seen.body.includes('cancelled')) {
        order.push('cancelled')
        return response.writeHead(202).end()
      }
      return setTimeout(() => {
        order.push('underway')
        stream(response)
      }, 20)
    })
    await wire.send(request(1, 'tools/call', { name: 't' }))
    await wire.send(notification('notifications/cancelled', { requestId: 1 }))
    expect(order).toEqual(['underway', 'cancelled'])
  })
})

describe('a stream that breaks', () => {
  it('is resumed behind its last event, after the time the server asked for', async () => {
    let at = 0
    const waited: number[] = []
    const peer = await pair(
      session((seen, response) => {
        if (seen.method === 'GET' && seen.headers['last-event-id'] === undefined) return noStream(seen, response)
        if (seen.method === 'DELETE') return response.writeHead(200).end()
        if (seen.method === 'POST') {
          at = performance.now()
          return stream(response).end('id: e1\nretry: 40\ndata:\n\n')
        }
        waited.push(performance.now() - at)
        at = performance.now()
        if (waited.length === 1) return stream(response).end(event({ jsonrpc: '2.0', method: 'notifications/x' }, 'e2'))
        expect(seen.headers).toMatchObject({ 'last-event-id': 'e2', 'mcp-session-id': 'abc' })
        return stream(response).end(event(result(1)))
      }),
    )
    await handshake(peer)
    await peer.wire.send(request(1, 'tools/call', { name: 't' }))
    expect((await peer.until(3)).slice(1)).toEqual([{ jsonrpc: '2.0', method: 'notifications/x' }, result(1)])
    expect(peer.frames[2]?.meta?.relatedRequestId).toBe(1)
    expect(waited.every((milliseconds) => milliseconds >= 38)).toBe(true)
  })

  it('is given up after three tries that bring nothing', async () => {
    let tries = 0
    const peer = await pair((seen, response) => {
      if (seen.method === 'POST') return stream(response).end('id: e1\nretry: 1\ndata:\n\n')
      tries += 1
      return stream(response).end()
    })
    await peer.wire.send(request(1, 'tools/call', { name: 't' }))
    expect(await peer.until(1)).toEqual([
      failure(1, 'upstream_bad_response', { phase: 'sent', detail: 'stream ended without the answer' }),
    ])
    expect(tries).toBe(3)
  })

  it('is lost after so much silence as was allowed', async () => {
    const peer = await pair((_seen, response) => stream(response), { sseReadTimeout: 30 })
    await peer.wire.send(request(1, 'tools/call', { name: 't' }))
    expect(await peer.until(1)).toEqual([
      failure(1, 'upstream_bad_response', { phase: 'sent', detail: 'stream ended without the answer' }),
    ])
  })
})

describe('a modern request', () => {
  it('is mirrored into headers and knows no session', async () => {
    const { wire, until, server } = await pair((seen, response) =>
      json(response, answerTo(seen.body), 200, { 'mcp-session-id': 'ignored' }),
    )
    await wire.send(modern(1, 'resources/read', { uri: 'file:///ä' }))
    await wire.send(modern(2, 'prompts/get', { name: 'hello' }))
    await wire.send(modern(3, 'tasks/get', { taskId: 't7' }))
    await wire.send(modern(4, 'server/discover'))
    await until(4)
    const mirrored = server.seen.map(({ headers }) => [
      headers['mcp-method'],
      headers['mcp-name'],
      headers['mcp-protocol-version'],
      headers['mcp-session-id'],
    ])
    expect(mirrored.sort()).toEqual(
      [
        ['resources/read', '=?base64?ZmlsZTovLy/DpA==?=', '2026-07-28', undefined],
        ['prompts/get', 'hello', '2026-07-28', undefined],
        ['tasks/get', 't7', '2026-07-28', undefined],
        ['server/discover', undefined, '2026-07-28', undefined],
      ].sort(),
    )
    await wire.close()
    expect(server.seen.map(({ method }) => method)).toEqual(['POST', 'POST', 'POST', 'POST'])
  })

  const annotated = (name: string) => ({
    name: 'sql',
    inputSchema: { type: 'object', properties: { region: { type: 'string', 'x-mcp-header': name } } },
  })
  const call = (id: number) => modern(id, 'tools/call', { name: 'sql', arguments: { region: 'west' } })

  it('asks once for the schema of a tool it does not know, all pages of it, and shows nobody', async () => {
    const { wire, until, server } = await pair((seen, response) => {
      const { method, params } = JSON.parse(seen.body)
      if (method !== 'tools/list') json(response, answerTo(seen.body))
      else if (params.cursor === undefined) json(response, answerTo(seen.body, { tools: [], nextCursor: 'p2' }))
      else stream(response).end(event(answerTo(seen.body, { tools: [annotated('Region')] })))
    })
    await wire.send(call(1))
    await wire.send(call(2))
    expect(await until(2)).toEqual([result(1), result(2)])
    expect(server.methods()).toEqual(['tools/list', 'tools/list', 'tools/call', 'tools/call'])
    expect(server.seen.map(({ headers }) => headers['mcp-param-region'])).toEqual([
      undefined,
      undefined,
      'west',
      'west',
    ])
    expect(JSON.parse(server.seen[1]!.body).params).toEqual({
      cursor: 'p2',
      _meta: JSON.parse(call(1).toString()).params._meta,
    })
  })

  it('learns the schemas from the lists that pass', async () => {
    const { wire, until, server } = await pair((seen, response) => {
      const list = JSON.parse(seen.body).method === 'tools/list'
      json(response, answerTo(seen.body, list ? { tools: [annotated('Region')] } : {}))
    })
    await wire.send(modern(1, 'tools/list'))
    await until(1)
    await wire.send(call(2))
    await until(2)
    expect(server.methods()).toEqual(['tools/list', 'tools/call'])
    expect(server.seen[1]?.headers['mcp-param-region']).toBe('west')
  })

  it('asks anew and is sent once more after a HeaderMismatch, but only once', async () => {
    let header = 'Old'
    const mismatch = (id: number) => ({ jsonrpc: '2.0', id, error: { code: -32020, message: 'Header mismatch' } })
    const { wire, until, server } = await pair((seen, response) => {
      const { method, id } = JSON.parse(seen.body)
      if (method === 'tools/list') json(response, answerTo(seen.body, { tools: [annotated(header)] }))
      else if (seen.headers['mcp-param-new'] === 'west') json(response, result(id))
      else json(response, mismatch(id), 400)
    })
    await wire.send(call(1))
    expect(await until(1)).toEqual([mismatch(1)])
    header = 'New'
    await wire.send(call(2))
    expect(await until(2)).toEqual([mismatch(1), result(2)])
    expect(server.methods()).toEqual([
      ...['tools/list', 'tools/call', 'tools/list', 'tools/call'],
      ...['tools/call', 'tools/list', 'tools/call'],
    ])
  })

  it('is cancelled by closing its stream: nothing is POSTed, nothing more is heard', async () => {
    let gone = false
    const { wire, until, server, messages } = await pair((seen, response) => {
      if (seen.body.includes('ping')) return json(response, answerTo(seen.body))
      response.on('close', () => {
        gone = true
      })
      return stream(response).write(': working\n\n')
    })
    await wire.send(modern(1, 'subscriptions/listen'))
    await vi.waitFor(() => expect(server.seen).toHaveLength(1))
    await wire.send(notification('notifications/cancelled', { requestId: 1 }))
    await vi.waitFor(() => expect(gone).toBe(true))
    await wire.send(modern(2, 'ping'))
    await until(1)
    expect(messages()).toEqual([result(2)])
    expect(server.methods()).toEqual(['subscriptions/listen', 'ping'])
  })

  it('is not resumed', async () => {
    const { wire, until, server } = await pair((_seen, response) => stream(response).end('id: 1\nretry: 1\ndata:\n\n'))
    await wire.send(modern(1, 'ping'))
    expect(await until(1)).toEqual([
      failure(1, 'upstream_bad_response', { phase: 'sent', detail: 'stream ended without the answer' }),
    ])
    expect(server.seen).toHaveLength(1)
  })

  it('hands on the 404 of an unknown method', async () => {
    const unknown = { jsonrpc: '2.0', id: 1, error: { code: -32601, message: 'Method not found' } }
    const { wire, until, closes } = await pair((_seen, response) => json(response, unknown, 404))
    await wire.send(modern(1, 'nope'))
    expect(await until(1)).toEqual([unknown])
    expect(closes).toEqual([])
  })

  it('of a notification carries its version', async () => {
    const { wire, server } = await pair((_seen, response) => response.writeHead(202).end())
    await wire.send(
      notification('notifications/x', { _meta: { 'io.modelcontextprotocol/protocolVersion': '2026-07-28' } }),
    )
    expect(server.seen[0]?.headers['mcp-protocol-version']).toBe('2026-07-28')
  })
})

describe('the wire', () => {
  it.each<[string, (response: Parameters<Handler>[1], body: unknown) => unknown]>([
    ['JSON', (response, body) => json(response, body)],
    ['a stream', (response, body) => stream(response).end(event(body))],
  ])('reads nothing while it is paused: %s', async (_name, answer) => {
    const answered: Promise<unknown>[] = []
    const { wire, until, frames } = await pair(async (seen, response) => {
      if (seen.body.includes('ping')) {
        answered.push(once(response, 'finish'))
        answer(response, answerTo(seen.body))
      } else {
        await vi.waitFor(() => expect(answered).toHaveLength(1))
        await answered[0]
        response.writeHead(202).end()
      }
    })
    wire.pause()
    await wire.send(request(1, 'ping'))
    await wire.send(notification('notifications/x'))
    await wire.send(notification('notifications/x'))
    expect(frames).toEqual([])
    wire.resume()
    expect(await until(1)).toEqual([result(1)])
  })

  it('aborts what is in flight when it closes, and says so once', async () => {
    const { wire, server, closes, frames } = await pair((_seen, response) => stream(response))
    await wire.send(request(1, 'tools/call', { name: 't' }))
    await vi.waitFor(() => expect(server.sockets.size).toBe(1))
    await wire.close()
    await vi.waitFor(() => expect(server.sockets.size).toBe(0))
    expect(closes).toEqual([undefined])
    expect(frames).toEqual([])
    expect(await refusalOf(wire.send(request(2, 'ping')))).toEqual(proxyError('shutting_down').toJSON())
  })

  it('keeps its connection for the next request', async () => {
    const ports = new Set<number | undefined>()
    const { wire, until } = await pair((seen, response) => {
      ports.add(response.socket?.remotePort)
      json(response, answerTo(seen.body))
    })
    for (const id of [1, 2, 3]) {
      await wire.send(request(id, 'ping'))
      await until(id)
    }
    expect(ports.size).toBe(1)
  })

  it('shares connections, credentials and schemas with others of its endpoint, and leaves them theirs', async () => {
    const ports = new Set<number | undefined>()
    const server = await serve((seen, response) => {
      ports.add(response.socket?.remotePort)
      if (seen.headers.authorization === undefined) response.writeHead(401).end()
      else json(response, answerTo(seen.body, { tools: [] }))
    })
    const auth = vi.fn(() => ({ authorization: 'Bearer x' }))
    const endpoint = new Endpoint({ url: server.url, auth })
    closing.push(async () => endpoint.close())
    for (const id of [1, 2]) {
      const wire = new HttpUpstream(endpoint)
      const { until } = listenTo(wire)
      await wire.send(modern(id, 'tools/call', { name: 't' }))
      await until(1)
      await wire.close()
    }
    expect(auth).toHaveBeenCalledTimes(1)
    expect(server.methods()).toEqual(['tools/list', 'tools/list', 'tools/call', 'tools/call'])
    expect(ports.size).toBeLessThan(server.seen.length)
  })

  it('uses a fetch when it is given one', async () => {
    const asked: unknown[] = []
    const custom: typeof fetch = (input, init) => {
      asked.push([String(input), init?.method, init?.redirect])
      return fetch(input, init)
    }
    const { wire, until, server } = await pair((seen, response) => stream(response).end(event(answerTo(seen.body))), {
      fetch: custom,
    })
    await wire.send(request(1, 'ping'))
    expect(await until(1)).toEqual([result(1)])
    expect(asked).toEqual([[server.url.href, 'POST', 'manual']])
    await server.close()
    await wire.send(request(2, 'ping'))
    expect((await until(2))[1]).toMatchObject({ id: 2, error: { data: { source: 'proxy' } } })
  })

  it('refuses a URL that is not HTTP', () => {
    expect(() => new HttpUpstream({ url: 'file:///etc/passwd' })).toThrow(TypeError)
  })
})

describe('detect', () => {
  async function detecting(handler: Handler) {
    const server = await serve(handler)
    const wire = detect({ url: server.url })
    const heard = listenTo(wire)
    closing.push(() => wire.close())
    await wire.start()
    return { server, wire, ...heard }
  }

  it.each([400, 404, 405])('falls back to HTTP+SSE on a %i, and stays there', async (status) => {
    let open: Parameters<Handler>[1] | undefined
    const { wire, until, server } = await detecting((seen, response) => {
      if (seen.method === 'GET') {
        open = stream(response)
        return open.write('event: endpoint\ndata: /post\n\n')
      }
      if (seen.path !== '/post') return response.writeHead(status).end()
      response.writeHead(202).end()
      return open?.write(event(answerTo(seen.body)))
    })
    await wire.send(initialize)
    expect(await until(1)).toEqual([result(0)])
    await wire.send(request(1, 'ping'))
    expect(await until(2)).toEqual([result(0), result(1)])
    expect(server.seen.map(({ method, path }) => [method, path])).toEqual([
      ['POST', '/mcp'],
      ['GET', '/mcp'],
      ['POST', '/post'],
      ['POST', '/post'],
    ])
  })

  it('says so when the server of the stream then refuses', async () => {
    const { wire, until } = await detecting((seen, response) => {
      if (seen.method === 'GET') return stream(response).write('event: endpoint\ndata: /post\n\n')
      return response.writeHead(seen.path === '/post' ? 500 : 405).end()
    })
    await wire.send(initialize)
    expect(await until(1)).toEqual([failure(0, 'upstream_bad_response', { phase: 'sent', detail: 'HTTP 500' })])
  })

  it('stays paused over the change', async () => {
    let open: Parameters<Handler>[1] | undefined
    const { wire, until, frames } = await detecting((seen, response) => {
      if (seen.method === 'GET') {
        wire.pause()
        open = stream(response)
        return open.write('event: endpoint\ndata: /post\n\n')
      }
      if (seen.path !== '/post') return response.writeHead(404).end()
      if (!seen.body.includes('initialize')) return response.writeHead(202).end()
      return open?.write(event(answerTo(seen.body)), () => response.writeHead(202).end())
    })
    await wire.send(initialize)
    await vi.waitFor(() => expect(open).toBeDefined())
    await wire.send(notification('notifications/x'))
    await wire.send(notification('notifications/x'))
    expect(frames).toEqual([])
    wire.resume()
    expect(await until(1)).toEqual([result(0)])
  })

  it.each(['busy', 'away'])('learns nothing from a server that is %s', async (how) => {
    let open: Parameters<Handler>[1] | undefined
    let tries = 0
    const { wire, until, server } = await detecting((seen, response) => {
      if (seen.method === 'GET') {
        open = stream(response)
        return open.write('event: endpoint\ndata: /post\n\n')
      }
      if (seen.path === '/post') {
        response.writeHead(202).end()
        return open?.write(event(answerTo(seen.body)))
      }
      tries += 1
      if (tries > 1) return response.writeHead(405).end()
      return how === 'busy' ? response.writeHead(503).end() : response.destroy()
    })
    await wire.send(initialize)
    await until(1)
    await wire.send(request(1, 'initialize'))
    expect((await until(2))[1]).toEqual(result(1))
    expect(server.seen.map(({ path }) => path)).toEqual(['/mcp', '/mcp', '/mcp', '/post'])
  })

  it('tries again after nobody was there', async () => {
    const server = await scripted((seen, response) => {
      if (seen.method === 'POST') return response.writeHead(405).end()
      return stream(response).end()
    })
    closing.push(server.close)
    let away = true
    const headers = () => {
      if (away) throw new Error('not yet')
      return {}
    }
    const wire = detect({ url: server.url, headers })
    const { until } = listenTo(wire)
    closing.push(() => wire.close())
    await wire.start()
    expect(await refusalOf(wire.send(initialize))).toEqual(proxyError('upstream_auth').toJSON())
    away = false
    await wire.send(request(1, 'initialize'))
    await until(1)
    expect(server.seen.map(({ method }) => method)).toEqual(['POST', 'GET'])
  })

  it('leaves other requests the answers that they get', async () => {
    let open: Parameters<Handler>[1] | undefined
    let refuse = () => {}
    const { wire, until } = await detecting((seen, response) => {
      if (seen.method === 'GET') {
        open = stream(response)
        return open.write('event: endpoint\ndata: /post\n\n')
      }
      if (seen.path === '/post') {
        response.writeHead(202).end()
        return open?.write(event(answerTo(seen.body)), refuse)
      }
      if (seen.body.includes('initialize')) return response.writeHead(405).end()
      refuse = () => response.writeHead(405).end()
      return undefined
    })
    await wire.send(request(7, 'ping'))
    await wire.send(initialize)
    expect(await until(2)).toEqual([
      result(0),
      failure(7, 'upstream_bad_response', { phase: 'sent', detail: 'HTTP 405' }),
    ])
  })

  it('keeps the first refusal where there is no such stream either', async () => {
    const { wire, until } = await detecting((seen, response) =>
      response.writeHead(seen.method === 'GET' ? 405 : 404).end(),
    )
    await wire.send(initialize)
    expect(await until(1)).toEqual([failure(0, 'upstream_bad_response', { phase: 'sent', detail: 'HTTP 404' })])
  })

  it('does not fall back on a modern error, nor later', async () => {
    const unsupported = { jsonrpc: '2.0', id: 0, error: { code: -32022, message: 'Unsupported protocol version' } }
    const { wire, until, server } = await detecting((seen, response) => {
      if (seen.body.includes('initialize')) json(response, unsupported, 400)
      else response.writeHead(404).end()
    })
    await wire.send(initialize)
    expect(await until(1)).toEqual([unsupported])
    await wire.send(request(1, 'ping'))
    await until(2)
    expect(server.seen.map(({ method }) => method)).toEqual(['POST', 'POST'])
  })
})
