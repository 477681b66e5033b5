import { once } from 'node:events'
import { createServer } from 'node:http'
import { type AddressInfo, connect } from 'node:net'
import { type AdmitRequest, createProxy, define, type Middleware, type RequestHandler } from 'open-mcp-proxy'
import { describe, expect, it, vi } from 'vitest'
import { closing } from '../fixtures/closing.js'
import { HandWire } from '../fixtures/played.js'
import { ask, initialize, modernPost, onPort, post } from '../fixtures/port.js'

/** Bytes as a client writes them, and what comes back. */
async function raw(url: string, ...requests: string[]) {
  const { hostname, port } = new URL(url)
  const socket = connect(Number(port), hostname)
  closing.push(() => socket.destroy())
  let text = ''
  socket.on('data', (chunk) => {
    text += chunk
  })
  socket.on('error', () => {})
  await once(socket, 'connect')
  socket.write(requests.join(''))
  return {
    socket,
    text: () => text,
    until: (part: string) => vi.waitFor(() => expect(text).toContain(part), { timeout: 5_000, interval: 5 }),
  }
}

function http(method: string, path: string, headers: Record<string, string>, body = ''): string {
  const all = { host: 'localhost', 'content-length': String(Buffer.byteLength(body)), ...headers }
  const lines = Object.entries(all).map(([name, value]) => `${name}: ${value}\r\n`)
  return `${method} ${path} HTTP/1.1\r\n${lines.join('')}\r\n${body}`
}

const json = { accept: 'application/json, text/event-stream', 'content-type': 'application/json' }
const modern = (id: number) => {
  const _meta = {
    'io.modelcontextprotocol/protocolVersion': '2026-07-28',
    'io.modelcontextprotocol/clientCapabilities': {},
  }
  const headers = { ...json, 'mcp-protocol-version': '2026-07-28', 'mcp-method': 'x' }
  return http('POST', '/mcp', headers, JSON.stringify({ jsonrpc: '2.0', id, method: 'x', params: { _meta } }))
}

describe('requests one behind another on a connection', () => {
  it('are answered in their order', async () => {
    const port = await onPort()
    const { until, text } = await raw(port.url, modern(1), modern(2))
    for (const index of [0, 1]) {
      const { wire } = await port.upstream(index)
      const [request] = await port.sent(wire, 1)
      wire.say({ id: request!.id, result: { index } })
    }
    await until('{"jsonrpc":"2.0","id":2,"result":{"index":1}}')
    expect(text().indexOf('"id":1')).toBeLessThan(text().indexOf('"id":2'))
  })

  it('leave nothing behind where the connection breaks before their turn', async () => {
    const port = await onPort({ idleTimeout: 50 })
    const begin = http('POST', '/mcp', json, JSON.stringify(initialize()))
    const { socket } = await raw(port.url, modern(1), modern(2), begin)
    const { wire } = await port.upstream(0)
    await port.sent(wire, 1)
    socket.destroy()
    expect(await port.sent(wire, 1)).toEqual([{ method: 'notifications/cancelled', params: { requestId: 1 } }])
    await vi.waitFor(() => expect(port.app.stats()).toMatchObject({ sessions: 0, pending: 0 }))
    await port.app.close()
    expect(port.upstreams).toHaveLength(1)
  })
})

describe('a body', () => {
  const expecting = { ...json, expect: '100-continue' }

  it('is asked for once its sender is known', async () => {
    const port = await onPort({ token: 's3cret-token' })
    const head = (authorization: string) => http('POST', '/mcp', { ...expecting, authorization, 'content-length': '9' })
    const bad = await raw(port.url, head('Bearer wrong'))
    await bad.until('HTTP/1.1 401')
    expect(bad.text()).not.toContain('100 Continue')
    const good = await raw(port.url, head('Bearer s3cret-token'))
    await good.until('HTTP/1.1 100 Continue')
    good.socket.write('{"a": 1}\n')
    await good.until('HTTP/1.1 400')
  })

  it('that a parser has taken before us is found, or missed at once', async () => {
    const app = createProxy()
    const wires: HandWire[] = []
    const handler = app.handler(() => {
      const wire = new HandWire()
      wires.push(wire)
      return wire
    })
    closing.push(() => app.close({ urgent: true }))
    const url = await mounted(async (request, response) => {
      const chunks: Buffer[] = []
      for await (const chunk of request) chunks.push(chunk as Buffer)
      if (request.headers['x-parsed']) Object.assign(request, { body: JSON.parse(Buffer.concat(chunks).toString()) })
      handler(request, response)
    })
    const missed = await post(url, initialize())
    expect([missed.status, await missed.json()]).toMatchObject([400, { error: { code: -32600 } }])
    const taken = post(url, initialize(), { 'x-parsed': '1' })
    await vi.waitFor(() => expect(wires[0]?.sent).toHaveLength(1))
    wires[0]!.say({ id: 'init', result: { protocolVersion: '2025-11-25' } })
    expect((await taken).status).toBe(200)
  })
})

describe('respond', () => {
  const card: Middleware = define(
    {
      admit: () => ({ status: 401 }),
      respond: ({ url, method }) => {
        if (url === '/broken') throw new Error('s3cret')
        return url === '/card' ? { status: 200, headers: { 'content-type': 'text/plain' }, body: method } : undefined
      },
    },
    (_ctx, next) => next(),
  )

  it('answers what is on none of our routes, before anybody is known, but not under every Host', async () => {
    const port = await onPort({ allowOrigins: ['https://app.example.com'] }, (app) => app.use(card))
    const origin = new URL(port.url).origin
    const page = { origin: 'https://app.example.com' }
    const answers = await Promise.all([
      fetch(`${origin}/card`, { headers: page }),
      fetch(`${origin}/other`),
      fetch(`${origin}/broken`),
      fetch(`${origin}/card`, { headers: { origin: 'https://evil.example.com' } }),
      fetch(`${origin}/card`, { method: 'OPTIONS', headers: { ...page, 'access-control-request-method': 'GET' } }),
      fetch(port.url, { method: 'POST' }),
    ])
    expect(answers.map(({ status }) => status)).toEqual([200, 404, 500, 403, 204, 401])
    expect(await Promise.all(answers.slice(0, 3).map((it) => it.text()))).toEqual([
      'GET',
      expect.stringContaining('nothing is served here'),
      '',
    ])
    expect(answers[0]!.headers.get('access-control-allow-origin')).toBe('https://app.example.com')
  })

  it('in a server of yours, what nobody answers goes on to it', async () => {
    const app = createProxy().use(card)
    app.on('error', () => {})
    closing.push(() => app.close({ urgent: true }))
    const handler = app.handler(() => new HandWire())
    const url = await mounted((request, response) => handler(request, response, () => response.end('yours')))
    const text = async (path: string) => (await fetch(`${new URL(url).origin}${path}`)).text()
    expect([await text('/card'), await text('/other')]).toEqual(['GET', 'yours'])
  })
})

describe('admit', () => {
  const admitting = (admit: (request: AdmitRequest) => never) => define({ admit }, (_ctx, next) => next())

  it('sees the URL as its client wrote it, wherever a framework has mounted us', async () => {
    const urls: string[] = []
    const app = createProxy().use(
      define(
        {
          admit: ({ url }) => {
            urls.push(url)
            return { status: 401 }
          },
        },
        (_ctx, next) => next(),
      ),
    )
    closing.push(() => app.close({ urgent: true }))
    const handler = app.handler(() => new HandWire())
    const url = await mounted((request, response) => {
      const { url } = request
      handler(Object.assign(request, { originalUrl: `/tools${url}` }), response)
    })
    await post(`${url}?x=1`, initialize())
    expect(urls).toEqual(['/tools/mcp?x=1'])
  })

  it('sees the head of a request, and gives who it is', async () => {
    const seen: AdmitRequest[] = []
    const port = await onPort({}, (app) =>
      app.use(
        define(
          {
            admit: (request) => {
              seen.push(request)
              return { principal: 'ada', authInfo: { scopes: ['x'] } }
            },
          },
          (ctx, next) => {
            if (ctx.isRequest('x')) return ctx.reply({ ...(ctx.extra.authInfo as object), of: ctx.session.principal })
            return next()
          },
        ),
      ),
    )
    const answer = await modernPost(port.url, { id: 1, method: 'x' }, { 'x-key': 'k' })
    expect(await answer.json()).toEqual({ jsonrpc: '2.0', id: 1, result: { scopes: ['x'], of: 'ada' } })
    expect(seen).toMatchObject([{ method: 'POST', url: '/mcp', headers: { 'x-key': 'k' }, remoteAddress: '127.0.0.1' }])
  })

  it.each([
    ['turns away', () => ({ status: 429, headers: { 'retry-after': '7' } }), 429],
    ['gives headers that no header can be', () => ({ status: 401, headers: { 'www-authenticate': 'ключ' } }), 500],
    ['gives a status that is none', () => ({ status: 42 }), 500],
    [
      'throws',
      () => {
        throw new Error('s3cret')
      },
      500,
    ],
  ])('that %s', async (_what, admit, status) => {
    const port = await onPort({}, (app) => app.use(admitting(admit as never)))
    const answer = await post(port.url, initialize())
    const text = await answer.text
    expect([answer.status, JSON.parse(text)]).toMatchObject([status, { jsonrpc: '2.0', error: {} }])
    expect(text).not.toContain('s3cret')
    expect([port.errors.length, port.upstreams]).toEqual([status === 500 ? 1 : 0, []])
  })

  it('is demanded where others can reach the address, also once it was taken out', async () => {
    const known = define(
      { admit: ({ headers }) => (headers['x-key'] ? { principal: 'ada' } : undefined) },
      (_ctx, next) => next(),
    )
    const port = await onPort({ host: '0.0.0.0', allowHosts: ['0.0.0.0'] }, (app) => app.use(known))
    const status = async (headers: Record<string, string>) => {
      const { length } = port.upstreams
      const answer = post(port.url, initialize(), headers)
      await vi.waitFor(() => Promise.race([answer, port.upstream(length)]))
      port.upstreams[length]?.wire.say({ id: 'init', result: {} })
      return (await answer).status
    }
    expect([await status({}), await status({ 'x-key': 'k' })]).toEqual([401, 200])
    await port.app.replace()
    expect(await status({ 'x-key': 'k' })).toBe(401)
  })
})

describe('/healthz', () => {
  it('says nothing of the upstream that may be secret', async () => {
    const app = createProxy()
    closing.push(() => app.close({ urgent: true }))
    const { address } = await app.listen({ url: 'http://127.0.0.1:9/s/s3cret/mcp?key=s3cret' }, { port: 0 })
    const health = await ask(`${new URL(address as string).origin}/healthz`)
    expect(await health.json()).toMatchObject({ upstream: { name: 'http://127.0.0.1:9', state: 'unknown' } })
  })

  it('answers HEAD, and 503 while it closes', async () => {
    const port = await onPort()
    const answering = modernPost(port.url, { id: 1, method: 'x' })
    const { wire } = await port.upstream(0)
    await port.sent(wire, 1)
    const head = await ask(`${port.origin}/healthz`, { method: 'HEAD' })
    expect([head.status, await head.text]).toEqual([200, ''])
    const { socket, until } = await raw(port.url)
    const closed = port.app.close()
    socket.write(http('GET', '/healthz', {}))
    await until('HTTP/1.1 503')
    await until('"status":"closing"')
    wire.say({ id: 1, result: {} })
    expect((await answering).status).toBe(200)
    await closed
  })
})

describe('an application', () => {
  const upstream = () => new HandWire()

  it('that is closed while it begins to listen does not listen', async () => {
    let go = () => {}
    const started = new Promise<void>((resolve) => {
      go = resolve
    })
    const app = createProxy().use(define({ start: () => started }, (_ctx, next) => next()))
    const listening = app.listen(upstream, { port: 0 })
    await app.close()
    go()
    await expect(listening).rejects.toThrow('expected an application that is open')
    await expect(app.listen(upstream, { port: 0 })).rejects.toThrow('this one was closed')
  })

  it('listens on two ports, in front of two upstreams; the first that closes leaves the other', async () => {
    const app = createProxy()
    closing.push(() => app.close({ urgent: true }))
    const [one, two] = [await app.listen(upstream, { port: 0 }), await app.listen(upstream, { port: 0, path: '/x/y' })]
    expect(new URL(two.address as string).pathname).toBe('/x/y')
    await one.close()
    await one.close({ urgent: true })
    await expect(fetch(one.address as string)).rejects.toThrow('fetch failed')
    expect((await ask(two.address as string, { method: 'PUT' })).status).toBe(405)
  })

  it('checks its options before it does anything', async () => {
    const bad = [
      [{ path: '/sse' }, 'path: expected one as /mcp, other than /sse, /messages, /healthz, got "/sse"'],
      [{ path: '/a?b' }, 'path: expected one as /mcp'],
      [{ token: 'two words' }, 'token: expected visible ASCII without spaces, got none, or something else'],
      [{ idleTimeout: 0 }, 'idleTimeout: expected a number from 1, got 0'],
      [{ maxBodyBytes: Number.NaN }, 'maxBodyBytes: expected a number from 1, got null'],
      [{ maxPending: 0 }, 'maxPending: expected a number from 1, got 0'],
      [{ keepAlive: -1 }, 'keepAlive: expected a number from 0, got -1'],
      [{ maxSessions: '7' as never }, 'maxSessions: expected a number from 1, got "7"'],
      [{ allowHosts: ['a b'] }, 'allowHosts: expected a host, or host:port, got "a b"'],
    ] as const
    for (const [options, text] of bad) {
      const app = createProxy()
      expect(() => app.handler(upstream, options)).toThrow(text)
      await expect(app.listen(upstream, { port: 0, ...options })).rejects.toThrow(text)
    }
  })

  it('is reached by the address that it listens on', async () => {
    const app = createProxy()
    closing.push(() => app.close({ urgent: true }))
    const { address } = await app.listen(upstream, { port: 0, host: '127.0.0.2' })
    expect(new URL(address).hostname).toBe('127.0.0.2')
    expect((await ask(`${new URL(address).origin}/healthz`)).status).toBe(200)
  })

  it('is not stopped by what listens to its sessions', async () => {
    const port = await onPort({}, (app) =>
      app.on('session', () => {
        throw new Error('no')
      }),
    )
    const answering = modernPost(port.url, { id: 1, method: 'x' })
    const { wire } = await port.upstream(0)
    await port.sent(wire, 1)
    wire.say({ id: 1, result: {} })
    expect([(await answering).status, port.errors]).toEqual([200, ['no']])
  })

  it("whose handler is slow to start, or cannot, holds up nobody else's routes", async () => {
    let go = () => {}
    const start = () =>
      new Promise<void>((_resolve, reject) => {
        go = () => reject(new Error('no file'))
      })
    const app = createProxy().use(define({ start }, (_ctx, next) => next()))
    app.on('error', () => {})
    const handler = app.handler(upstream)
    const url = await mounted((request, response) => handler(request, response, () => response.end('theirs')))
    const theirs = async () => (await ask(new URL('/theirs', url).href)).text
    expect(await theirs()).toBe('theirs')
    const ours = post(url, initialize())
    go()
    expect([(await ours).status, await theirs()]).toEqual([503, 'theirs'])
  })

  it('whose handler cannot start answers 503, and says why to whom it may concern', async () => {
    const app = createProxy().use(
      define(
        {
          start: () => {
            throw new Error('no file')
          },
        },
        (_ctx, next) => next(),
      ),
    )
    const errors: string[] = []
    app.on('error', ({ message }) => errors.push(message))
    const url = await mounted(app.handler(upstream))
    expect((await post(url, initialize())).status).toBe(503)
    expect(errors).toEqual(['no file'])
    expect(() => app.handler(7 as never)).toThrow(TypeError)
  })
})

/** A server of somebody else's, with our handler in it. */
async function mounted(handler: RequestHandler): Promise<string> {
  const server = createServer((request, response) => handler(request, response)).listen(0, '127.0.0.1')
  await once(server, 'listening')
  closing.push(() => {
    server.close()
    server.closeAllConnections()
  })
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}/mcp`
}
