import type { ServerResponse } from 'node:http'
import { describe, expect, it, vi } from 'vitest'
import { proxyError } from '../../src/error.js'
import type { HttpUpstreamOptions } from '../../src/upstream/endpoint.js'
import { SseUpstream } from '../../src/upstream/sse.js'
import { FrameError } from '../../src/wire.js'
import { closing } from '../fixtures/closing.js'
import {
  event,
  type Handler,
  json,
  listenTo,
  notification,
  refusalOf,
  request,
  result,
  scripted,
  stream,
} from '../fixtures/http-server.js'

const endpoint = (address: string) => `event: endpoint\ndata: ${address}\n\n`

/** A server whose stream is in the test's hands; POSTs go to `post`. */
async function serve(post: Handler, first = endpoint('/messages?s=1')) {
  const open: ServerResponse[] = []
  const server = await scripted((seen, response) => {
    if (seen.method === 'POST') return post(seen, response)
    open.push(stream(response))
    return response.write(first)
  })
  closing.push(server.close)
  return { ...server, open }
}

function client(url: URL, options: Partial<HttpUpstreamOptions> = {}) {
  const wire = new SseUpstream({ url, ...options })
  const heard = listenTo(wire)
  closing.push(() => wire.close())
  return { wire, ...heard }
}

const accept: Handler = (_seen, response) => response.writeHead(202).end('Accepted')

async function pair(post: Handler = accept, options: Partial<HttpUpstreamOptions> = {}) {
  const server = await serve(post)
  const peer = client(server.url, options)
  await peer.wire.start()
  return { server, stream: server.open[0]!, ...peer }
}

const failure = (id: number, ...[reason, options]: Parameters<typeof proxyError>) => ({
  jsonrpc: '2.0',
  id,
  error: proxyError(reason, options).toJSON(),
})

describe('start', () => {
  it.each(['/messages?s=1', 'messages?s=1', 'SAME/messages?s=1'])('takes the endpoint %s', async (address) => {
    const server = await serve(accept, ': hello\n\n')
    const { wire } = client(server.url, { headers: { 'X-Key': 'k' } })
    const started = wire.start()
    await vi.waitFor(() => expect(server.open).toHaveLength(1))
    server.open[0]?.write(endpoint(address.replace('SAME', server.url.origin)))
    await started
    await wire.send(request(1, 'ping'))
    await vi.waitFor(() => expect(server.seen).toHaveLength(2))
    expect(server.seen).toMatchObject([
      { method: 'GET', path: '/mcp', headers: { accept: 'text/event-stream', 'x-key': 'k' } },
      {
        method: 'POST',
        path: '/messages?s=1',
        headers: { 'content-type': 'application/json', 'x-key': 'k' },
        body: request(1, 'ping').toString(),
      },
    ])
  })

  it.each(['http://evil.example/messages', 'javascript:alert(1)', 'https://user@[', '//localhost:1/x'])(
    'refuses the endpoint %s',
    async (address) => {
      const server = await serve(accept, endpoint(address))
      const { wire } = client(server.url)
      expect(await refusalOf(wire.start())).toEqual(
        proxyError('upstream_bad_response', { detail: 'endpoint of another origin' }).toJSON(),
      )
      await vi.waitFor(() => expect(server.sockets.size).toBe(0))
    },
  )

  it.each<[string, Handler, ReturnType<typeof proxyError>]>([
    [
      '401',
      (_seen, response) => response.writeHead(401).end(),
      proxyError('upstream_auth', { phase: 'sent', detail: 'HTTP 401' }),
    ],
    [
      '403',
      (_seen, response) => response.writeHead(403).end(),
      proxyError('upstream_auth', { phase: 'sent', detail: 'HTTP 403' }),
    ],
    [
      '500',
      (_seen, response) => response.writeHead(500).end(),
      proxyError('upstream_unreachable', { detail: 'HTTP 500, no event stream' }),
    ],
    [
      'JSON',
      (_seen, response) => json(response, {}),
      proxyError('upstream_unreachable', { detail: 'HTTP 200, no event stream' }),
    ],
    [
      'a stream that ends',
      (_seen, response) => stream(response).end(),
      proxyError('upstream_unreachable', { detail: 'stream ended' }),
    ],
    [
      'a redirect to another origin',
      (_seen, response) => response.writeHead(302, { location: 'http://localhost:1/' }).end(),
      proxyError('upstream_bad_response', { phase: 'sent', detail: 'HTTP 302 to another origin' }),
    ],
  ])('fails on %s', async (_name, handler, error) => {
    const server = await scripted(handler)
    closing.push(server.close)
    const { wire } = client(server.url)
    expect(await refusalOf(wire.start())).toEqual(error.toJSON())
    expect(server.seen).toHaveLength(1)
  })

  it('fails when nobody listens', async () => {
    const server = await scripted(accept)
    await server.close()
    expect(await refusalOf(client(server.url).wire.start())).toEqual(
      proxyError('upstream_unreachable', { detail: 'ECONNREFUSED' }).toJSON(),
    )
  })

  it('fails when the endpoint does not come in time', async () => {
    const server = await serve(accept, ': waiting\n\n')
    const { wire } = client(server.url, { timeout: 50 })
    expect(await refusalOf(wire.start())).toEqual(
      proxyError('upstream_unreachable', { detail: 'no endpoint event' }).toJSON(),
    )
    await vi.waitFor(() => expect(server.sockets.size).toBe(0))
  })

  it('minds no case, no parameter and no CR in what the server says', async () => {
    const server = await scripted((_seen, response) => {
      response.writeHead(200, { 'content-type': 'Text/Event-Stream; Charset=UTF-8' })
      return response.write('event: endpoint\rdata: /m\r\r')
    })
    closing.push(server.close)
    await client(server.url).wire.start()
  })

  it('keeps the credentials of its URL where the endpoint is absolute', async () => {
    const server = await scripted((seen, response) => {
      if (seen.method === 'POST') return response.writeHead(202).end()
      return stream(response).write(endpoint(`${server.url.origin}/m`))
    })
    closing.push(server.close)
    const url = new URL(server.url)
    url.username = 'me'
    url.password = 'secret'
    const { wire } = client(url)
    await wire.start()
    await wire.send(notification('notifications/initialized'))
    const authorization = `Basic ${Buffer.from('me:secret').toString('base64')}`
    expect(server.seen.map(({ headers }) => headers.authorization)).toEqual([authorization, authorization])
  })

  it('has no time limit that Node would make 1 ms', async () => {
    const server = await serve(accept, ': hello\n\n')
    const { wire } = client(server.url, { timeout: 2 ** 31, sseReadTimeout: 2 ** 31 })
    const started = wire.start()
    await vi.waitFor(() => expect(server.open).toHaveLength(1))
    setTimeout(() => server.open[0]?.write(endpoint('/m')), 50)
    await started
  })

  it('is refused behind close', async () => {
    const { wire } = client(new URL('http://127.0.0.1:1/'))
    await wire.close()
    expect(await refusalOf(wire.start())).toEqual(proxyError('shutting_down').toJSON())
  })

  it('answers a 401 with new headers, once', async () => {
    const server = await scripted((seen, response) => {
      if (seen.headers.authorization !== 'Bearer new') return response.writeHead(401).end()
      if (seen.method === 'POST') return response.writeHead(202).end()
      return stream(response).write(endpoint('/m'))
    })
    closing.push(server.close)
    const auth = vi.fn(() => ({ authorization: 'Bearer new' }))
    const { wire } = client(server.url, { auth })
    await wire.start()
    await wire.send(notification('notifications/initialized'))
    expect(auth).toHaveBeenCalledTimes(1)
    expect(server.seen).toHaveLength(3)
  })
})

describe('messages', () => {
  it('come as they are', async () => {
    const { stream, until, frames } = await pair()
    const text = '{"jsonrpc":"2.0","id":1,"result":{"n":9007199254740993,"f":1.0,"s":"ü漢😀"}}'
    const bytes = Buffer.from(`: life\n\nevent: message\ndata: ${text}\n\nevent: other\ndata: {}\n\n`)
    const half = bytes.indexOf('漢') + 1
    stream.write(bytes.subarray(0, half))
    await new Promise(setImmediate)
    stream.write(bytes.subarray(half))
    stream.write(`data: {"jsonrpc":"2.0",\ndata: "method":"x"}\n\n`)
    await until(2)
    expect(frames.map((frame) => frame.text)).toEqual([text, '{"jsonrpc":"2.0",\n"method":"x"}'])
  })

  it("of another kind are nobody's business, whatever that is called", async () => {
    const { stream, until, closes } = await pair()
    stream.write('event: error\ndata: {}\n\nevent: open\ndata: {}\n\n')
    stream.write(event(result(1)))
    expect(await until(1)).toEqual([result(1)])
    expect(closes).toEqual([])
  })

  it('that are not UTF-8 keep their bytes too', async () => {
    const { stream, wire } = await pair()
    const arrived = new Promise<Uint8Array>((resolve) => {
      wire.onframe = resolve
    })
    stream.write(Buffer.concat([Buffer.from('data: "'), Buffer.from([0xff, 0xc3]), Buffer.from('"\n\n')]))
    expect(Buffer.from(await arrived)).toEqual(Buffer.from([0x22, 0xff, 0xc3, 0x22]))
  })

  it('over the limit are reported and skipped', async () => {
    const { stream, until, errors, messages } = await pair(accept, { maxMessageBytes: 1_000 })
    stream.write(event(result(1, { text: 'x'.repeat(2_000) })))
    stream.write(event(result(2)))
    await until(1)
    expect(messages()).toEqual([result(2)])
    expect(errors).toEqual([expect.any(FrameError)])
    expect((errors[0] as FrameError).code).toBe(-31007)
    expect(Buffer.from((errors[0] as FrameError).head!).toString()).toContain('"id":1')
  })

  it('are not read while the wire is paused', async () => {
    const { stream, until, frames, wire } = await pair((_seen, response) => {
      stream.write(event(result(1)), () => response.writeHead(202).end())
    })
    wire.pause()
    await wire.send(notification('notifications/x'))
    expect(frames).toEqual([])
    wire.resume()
    expect(await until(1)).toEqual([result(1)])
  })
})

describe('a request', () => {
  it('is not waited for', async () => {
    const { wire, server } = await pair(() => {})
    await wire.send(request(1, 'ping'))
    await wire.send(request(2, 'ping'))
    await vi.waitFor(() => expect(server.seen).toHaveLength(3))
  })

  it.each<[string, Handler, unknown, unknown]>([
    [
      '500',
      (_seen, response) => response.writeHead(500).end('oops'),
      failure(1, 'upstream_bad_response', { phase: 'sent', detail: 'HTTP 500' }),
      { status: 500, relatedRequestId: 1 },
    ],
    [
      '403',
      (_seen, response) => response.writeHead(403).end(),
      failure(1, 'upstream_auth', { phase: 'sent', detail: 'HTTP 403' }),
      { status: 403 },
    ],
    [
      'a broken connection',
      (_seen, response) => response.destroy(),
      failure(1, 'upstream_bad_response', { phase: 'sent', detail: 'ECONNRESET' }),
      { relatedRequestId: 1 },
    ],
    [
      'a JSON-RPC error',
      (_seen, response) => json(response, { jsonrpc: '2.0', id: null, error: { code: -32600, message: 'no' } }, 400),
      { jsonrpc: '2.0', id: 1, error: { code: -32600, message: 'no' } },
      { status: 400 },
    ],
  ])('that is refused with %s gets an error', async (_name, post, expected, meta) => {
    const { wire, until, frames, closes } = await pair(post)
    await wire.send(request(1, 'ping'))
    expect(await until(1)).toEqual([expected])
    expect(frames[0]?.meta).toMatchObject(meta as object)
    expect(closes).toEqual([])
  })

  it('that meets a 404 has lost its session, if it has no answer either', async () => {
    const { wire, closes } = await pair((_seen, response) => response.writeHead(404).end())
    const unread = proxyError('upstream_session_lost').toJSON()
    expect(await refusalOf(wire.send(notification('notifications/initialized')))).toEqual(unread)
    await vi.waitFor(() => expect(closes).toEqual([proxyError('upstream_session_lost', { phase: 'sent' })]))
  })

  it('that meets a 404 has lost its session', async () => {
    const { wire, until, closes } = await pair((_seen, response) => response.writeHead(404).end())
    await wire.send(request(1, 'ping'))
    expect(await until(1)).toEqual([failure(1, 'upstream_session_lost')])
    expect(closes).toEqual([proxyError('upstream_session_lost', { phase: 'sent' })])
    expect(await refusalOf(wire.send(request(2, 'ping')))).toEqual(proxyError('upstream_session_lost').toJSON())
  })

  it('that cannot be sent rejects', async () => {
    let value = 'fine'
    const { wire, server } = await pair(accept, { headers: () => ({ 'x-key': value }) })
    value = 'line\nbreak'
    expect(await refusalOf(wire.send(request(1, 'ping')))).toEqual(
      proxyError('upstream_unreachable', { detail: 'ERR_INVALID_CHAR' }).toJSON(),
    )
    expect(server.seen).toHaveLength(1)
  })
})

describe('a notification', () => {
  it('resolves when it is accepted and rejects when it is not', async () => {
    let status = 202
    const { wire } = await pair((_seen, response) => response.writeHead(status).end())
    await wire.send(notification('notifications/initialized'))
    status = 503
    expect(await refusalOf(wire.send(notification('notifications/initialized')))).toEqual(
      proxyError('upstream_bad_response', { phase: 'sent', detail: 'HTTP 503', retryable: true }).toJSON(),
    )
  })
})

describe('what has no answer', () => {
  it('is refused with the error of the server, behind a byte order mark too', async () => {
    const error = { code: -32600, message: 'Not now' }
    const body = `\ufeff${JSON.stringify({ jsonrpc: '2.0', error })}`
    const { wire } = await pair((_seen, response) => response.writeHead(400).end(body))
    expect(await refusalOf(wire.send(notification('notifications/x')))).toEqual(error)
  })

  it('may have been taken where the stream ends meanwhile', async () => {
    const { wire, stream } = await pair(() => stream.end())
    expect(await refusalOf(wire.send(notification('notifications/x')))).toEqual(
      proxyError('upstream_session_lost', { phase: 'sent' }).toJSON(),
    )
  })

  it('holds up what follows only for so long', async () => {
    let finish = () => {}
    const { wire, errors } = await pair((seen, response) => {
      if (seen.body.includes('slow')) finish = () => response.writeHead(500).end()
      else response.writeHead(202).end()
    })
    await wire.send(notification('notifications/slow'))
    await wire.send(Buffer.from('{"jsonrpc":"2.0","id":"s1","result":{}}'))
    finish()
    const late = proxyError('upstream_bad_response', { phase: 'sent', detail: 'HTTP 500' })
    await vi.waitFor(() => expect(errors).toEqual([late]))
  })
})

describe('the session is lost', () => {
  const lost = [proxyError('upstream_session_lost', { phase: 'sent' })]

  it.each<[string, (stream: ServerResponse) => void]>([
    ['when the stream ends', (stream) => stream.end()],
    ['when the connection breaks', (stream) => stream.destroy()],
    ['when a second endpoint comes', (stream) => stream.write(endpoint('/messages?s=2'))],
  ])('%s', async (_name, act) => {
    const { stream, closes, server, wire } = await pair()
    act(stream)
    await vi.waitFor(() => expect(closes).toEqual(lost))
    expect(await refusalOf(wire.send(request(1, 'ping')))).toEqual(proxyError('upstream_session_lost').toJSON())
    await wire.close()
    expect(closes).toEqual(lost)
    expect(server.seen).toHaveLength(1)
  })

  it('after so much silence as was allowed, comments being no silence', async () => {
    const { stream, closes, until } = await pair(accept, { sseReadTimeout: 400 })
    const beat = setInterval(() => stream.write(': beat\n\n'), 20)
    const message = setTimeout(() => stream.write(event(result(1))), 800)
    try {
      await until(1)
      expect(closes).toEqual([])
    } finally {
      clearInterval(beat)
      clearTimeout(message)
    }
    await vi.waitFor(() => expect(closes).toEqual(lost), { timeout: 5_000 })
  })
})

describe('close', () => {
  it('ends the stream and what is in flight, twice as well as once', async () => {
    const { wire, server, closes, frames } = await pair(() => {})
    await wire.send(request(1, 'ping'))
    await vi.waitFor(() => expect(server.seen).toHaveLength(2))
    await Promise.all([wire.close(), wire.close()])
    await vi.waitFor(() => expect(server.sockets.size).toBe(0))
    expect(closes).toEqual([undefined])
    expect(frames).toEqual([])
    expect(await refusalOf(wire.send(request(2, 'ping')))).toEqual(proxyError('shutting_down').toJSON())
  })
})
