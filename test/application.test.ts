import { InMemoryTransport } from '@modelcontextprotocol/sdk/inMemory.js'
import { Application, createProxy, define, type Listener, type Middleware, type Session } from 'open-mcp-proxy'
import { describe, expect, it, vi } from 'vitest'
import { HandWire, joined, turnOfLoop } from './fixtures/played.js'

const pass: Middleware = (_ctx, next) => next()

/** A listener whose clients a test brings. */
function listener() {
  const clients: HandWire[] = []
  let bring!: () => HandWire
  const listening: Listener = (accept) => {
    const sessions: { close(): Promise<void> }[] = []
    let end!: () => void
    const closed = new Promise<{ served: boolean }>((resolve) => {
      end = () => resolve({ served: true })
    })
    bring = () => {
      const client = new HandWire()
      clients.push(client)
      sessions.push(accept(client, { principal: 'alice' }))
      return client
    }
    return {
      address: 'memory:',
      closed,
      close: async () => {
        await Promise.all(sessions.map((it) => it.close()))
        end()
      },
    }
  }
  return { listening, clients, bring: () => bring() }
}

describe('use', () => {
  it('appends, and gives the application back', async () => {
    const log: string[] = []
    const mark =
      (name: string): Middleware =>
      (_ctx, next) => {
        log.push(name)
        return next()
      }
    const shared = [mark('c'), mark('d')]
    const app = createProxy()
    expect(app.use(mark('a')).use(mark('b'), ...shared)).toBe(app)
    const client = new HandWire()
    app.connect(client, new HandWire())
    await turnOfLoop()
    client.say({ id: 1, method: 'm' })
    expect(log).toEqual(['a', 'b', 'c', 'd'])
  })

  it('refuses what is no function, and says what came', async () => {
    const use = (value: unknown) => () => createProxy().use(value as Middleware)
    expect(use(undefined)).toThrow(
      new TypeError('use(): expected a middleware function (ctx, next) => …, got undefined'),
    )
    expect(use(null)).toThrow('got null')
    expect(use({})).toThrow('got object')
    expect(use([pass])).toThrow('got an array (spread it: use(...stack))')
    await expect(createProxy().replace('x' as never)).rejects.toThrow('got string')
  })
})

describe('connect', () => {
  it('joins wires and SDK transports alike, and emits the session', async () => {
    const [clientEnd, client] = InMemoryTransport.createLinkedPair()
    const server = new HandWire()
    const app = createProxy()
    const sessions: Session[] = []
    app.on('session', (session) => sessions.push(session))
    const session = app.connect(client, server, { principal: 'bob' })
    const back: unknown[] = []
    clientEnd.onmessage = (message) => back.push(message)
    await clientEnd.start()
    await clientEnd.send({ jsonrpc: '2.0', id: 1, method: 'ping' })
    await turnOfLoop()
    server.say({ id: 1, result: {} })
    await turnOfLoop()
    expect({ sent: server.take(), back }).toEqual({
      sent: [{ id: 1, method: 'ping' }],
      back: [{ jsonrpc: '2.0', id: 1, result: {} }],
    })
    expect(sessions).toEqual([session])
    expect({ principal: session.principal, upstream: session.upstream, era: session.era }).toEqual({
      principal: 'bob',
      upstream: 'transport',
      era: 'legacy',
    })
    await clientEnd.close()
    await vi.waitFor(() => expect(session.signal.aborted).toBe(true))
    await app.close()
    expect(server.log).toEqual(['start', 'close'])
  })

  it('two sessions know nothing of each other', async () => {
    const app = createProxy()
    const ends = [1, 2].map(() => ({ client: new HandWire(), server: new HandWire() }))
    const [a, b] = ends.map(({ client, server }) => app.connect(client, server))
    await turnOfLoop()
    for (const { client } of ends) client.say({ id: 1, method: 'm' })
    ends[1]?.server.say({ id: 1, result: {} })
    expect(ends.map(({ client }) => client.take())).toEqual([[], [{ id: 1, result: {} }]])
    expect(app.stats()).toMatchObject({ sessions: 2, pending: 1 })
    expect(a?.id).not.toBe(b?.id)
  })
})

describe('listen', () => {
  it('starts the middleware in order, serves, and closes it when all is over', async () => {
    const log: string[] = []
    const framed = (name: string) =>
      define(
        {
          start: async (app) => {
            await turnOfLoop()
            log.push(`start ${name} ${app instanceof Application}`)
          },
          close: async () => {
            await turnOfLoop()
            log.push(`close ${name}`)
          },
        },
        (_ctx, next) => next(),
      )
    const { listening, bring } = listener()
    const app = createProxy().use(framed('a'), pass, framed('b'))
    app.on('start', () => log.push('start'))
    app.on('close', (error) => log.push(`close ${error}`))
    const server = new HandWire()
    const handle = await app.listen(() => server, listening)
    expect(handle.address).toBe('memory:')
    const client = bring()
    await turnOfLoop()
    client.say({ id: 1, method: 'm' })
    await turnOfLoop()
    server.say({ id: 1, result: {} })
    await app.close()
    await app.close()
    expect(log).toEqual(['start a true', 'start b true', 'start', 'close a', 'close b', 'close undefined'])
    expect({ sent: server.take(), back: client.take(), server: server.log }).toEqual({
      sent: [{ id: 1, method: 'm' }],
      back: [{ id: 1, result: {} }],
      server: ['start', 'close'],
    })
  })

  it('replace() starts what is new before it takes over, and close() closes all that was started', async () => {
    const log: string[] = []
    const framed = (name: string, broken = false) =>
      define(
        {
          start: () => {
            log.push(`start ${name}`)
            if (broken) throw new Error(`${name} is broken`)
          },
          close: () => log.push(`close ${name}`),
        },
        (ctx, next) => {
          log.push(`${name} ${ctx.kind}`)
          return next()
        },
      )
    const { listening, bring } = listener()
    const [a, b] = [framed('a'), framed('b')]
    const app = createProxy().use(a)
    const server = new HandWire()
    await app.listen(() => server, listening)
    const client = bring()
    await turnOfLoop()
    client.say({ id: 1, method: 'm' })
    await app.replace(b, a)
    await expect(app.replace(framed('c', true))).rejects.toThrow('c is broken')
    client.say({ id: 2, method: 'm' })
    server.say({ id: 1, result: {} })
    server.say({ id: 2, result: {} })
    await turnOfLoop()
    await app.close()
    expect(log).toEqual([
      'start a',
      'a request',
      'start b',
      'start c',
      'b request',
      'a request',
      'a response',
      'a response',
      'b response',
      'close a',
      'close b',
    ])
  })

  it('replace() of an application that closes meanwhile leaves nothing started', async () => {
    const log: string[] = []
    let begin: (() => void) | undefined
    const framed = (name: string, start?: () => unknown) =>
      define({ start, close: () => void log.push(`close ${name}`) }, (_ctx, next) => next())
    const app = createProxy()
    await app.listen(() => new HandWire(), listener().listening)
    const slow = () =>
      new Promise<void>((resolve) => {
        begin = resolve
      })
    const replaced = app.replace(
      framed('a'),
      framed('b', slow),
      framed('c', () => log.push('start c')),
    )
    await vi.waitFor(() => expect(begin).toBeDefined())
    await app.close()
    begin?.()
    await expect(replaced).rejects.toThrow('expected an application that is open')
    expect(log).toEqual(['close a', 'close b'])
  })

  it('replace() closes what it took out when nothing goes through it any more', async () => {
    const log: string[] = []
    const framed = (name: string, fails = false) =>
      define(
        {
          start: () => {
            log.push(`start ${name}`)
            if (fails) throw new Error(`${name} fails`)
          },
          close: () => log.push(`close ${name}`),
        },
        (_ctx, next) => next(),
      )
    const { listening, bring } = listener()
    const [a, b, c] = [framed('a'), framed('b'), framed('c')]
    const app = createProxy().use(a, b)
    const server = new HandWire()
    await app.listen(() => server, listening)
    const client = bring()
    await turnOfLoop()
    client.say({ id: 1, method: 'm' })
    await turnOfLoop()
    await app.replace(c, b)
    await turnOfLoop()
    expect(log).toEqual(['start a', 'start b', 'start c'])
    server.say({ id: 1, result: {} })
    await turnOfLoop()
    expect(log.splice(0)).toEqual(['start a', 'start b', 'start c', 'close a'])
    await expect(app.replace(a, framed('d', true))).rejects.toThrow('d fails')
    await app.replace(a)
    await app.replace(b)
    await turnOfLoop()
    await app.close()
    expect(log.slice(0, 4)).toEqual(['start a', 'start d', 'close a', 'start a'])
    // b came back before it was closed, and went on.
    expect(log.slice(4).sort()).toEqual(['close a', 'close b', 'close c'])
  })

  it('each client gets an upstream of its own, made for its session', async () => {
    const { listening, bring } = listener()
    const app = createProxy({ drainTimeout: 5 })
    const made: [Session, HandWire][] = []
    await app.listen(async function memory(session) {
      const wire = new HandWire()
      made.push([session, wire])
      return wire
    }, listening)
    const [a, b] = [bring(), bring()]
    await turnOfLoop()
    a.say({ id: 1, method: 'a' })
    b.say({ id: 1, method: 'b' })
    await turnOfLoop()
    expect(made.map(([, wire]) => wire.take())).toEqual([[{ id: 1, method: 'a' }], [{ id: 1, method: 'b' }]])
    expect(made.map(([{ principal, upstream }]) => [principal, upstream])).toEqual(Array(2).fill(['alice', 'memory']))
    await app.close()
  })

  it('an upstream that throws: the client is told -31009', async () => {
    const { listening, bring } = listener()
    const app = createProxy()
    await app.listen(() => {
      throw new Error('secret')
    }, listening)
    const client = bring()
    client.say({ id: 1, method: 'm' })
    await turnOfLoop()
    expect(client.take()).toEqual([
      { id: 1, error: expect.objectContaining({ code: -31009, message: 'Upstream unreachable' }) },
    ])
    await app.close()
  })

  it('rejects what cannot be understood with a TypeError, before anything starts', async () => {
    const app = createProxy().use(define({ start: () => expect.unreachable() }, pass))
    const cases: [unknown, string][] = [
      [undefined, 'listen(): expected { command }, { url } or a function that makes a transport, got undefined'],
      [{ cmd: 'x' }, 'got an object with cmd'],
      [{ url: 'ftp://x' }, 'listen(): expected an http: or https: URL, got one with ftp:'],
      [{ url: 'user:secret' }, 'listen(): expected an http: or https: URL, got one with user:'],
      [{ url: 'http://x', type: 'ws' }, 'listen(): expected type "http" or "sse", got "ws"'],
      [{ url: 'http://x', restart: 'always' }, 'listen(): expected restart "on-failure" or "never", got "always"'],
      [{ command: 'x', restart: true }, 'listen(): expected restart "on-failure" or "never", got true'],
    ]
    for (const [upstream, text] of cases) {
      const failure = await app.listen(upstream as never).catch((error) => error)
      expect(failure).toBeInstanceOf(TypeError)
      expect(failure.message).toContain(text)
    }
  })

  it('fails with what start() throws', async () => {
    const app = createProxy().use(
      define(
        {
          start: () => {
            throw new Error('no database')
          },
        },
        pass,
      ),
    )
    await expect(
      app.listen(
        () => new HandWire(),
        () => expect.unreachable(),
      ),
    ).rejects.toThrow('no database')
  })

  it("a close() that throws goes to 'error', the others are closed all the same", async () => {
    const log: string[] = []
    const app = createProxy().use(
      define(
        {
          close: () => {
            throw new Error('first')
          },
        },
        (_ctx, next) => next(),
      ),
      define({ close: () => log.push('second') }, (_ctx, next) => next()),
    )
    app.on('error', (error) => log.push(error.message))
    app.on('close', () => log.push('closed'))
    await app.close()
    expect(log).toEqual(['first', 'second', 'closed'])
  })

  it("'close' tells why, when the listener ends by itself", async () => {
    const app = createProxy()
    const why = new Error('upstream ended')
    const closed = new Promise((resolve) => app.once('close', resolve))
    await app.listen(
      () => new HandWire(),
      () => ({ closed: Promise.resolve({ reason: why, served: true }), close: async () => {} }),
    )
    expect(await closed).toBe(why)
  })
})

describe("'error' without a listener", () => {
  it('goes to stderr, in one line, whatever is in it', async () => {
    const written: string[] = []
    const { write } = process.stderr
    process.stderr.write = ((text: string) => written.push(text) > 0) as typeof write
    try {
      const client = new HandWire()
      const app = createProxy().use(() => {
        throw new Error('two\nlines \u001b[31mred\u202e')
      })
      app.connect(client, new HandWire())
      await turnOfLoop()
      client.say({ id: 1, method: 'm' })
      await turnOfLoop()
    } finally {
      process.stderr.write = write
    }
    expect(written).toEqual(['open-mcp-proxy: two\\nlines \\u{1b}[31mred\\u{202e}\n'])
  })
})

it('stats count what goes on, and what was dropped in sessions that are over', async () => {
  const { app, client, server } = await joined()
  client.say({ id: 1, method: 'm' })
  server.say({ id: 's', method: 'roots/list' })
  server.say({ id: 9, result: {} })
  server.sending = () => new Promise(() => {})
  client.say({ id: 2, method: 'm' })
  expect(app.stats()).toEqual({
    sessions: 1,
    pending: 3,
    dropped: 1,
    lanes: { 'client-to-server': 1, 'server-to-client': 0 },
  })
  await app.close({ urgent: true })
  expect(app.stats()).toMatchObject({ sessions: 0, dropped: 1 })
})
