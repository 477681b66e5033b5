import {
  type Application,
  createProxy,
  type Middleware,
  onExchange,
  onNotification,
  onRequest,
  onResponse,
  RpcError,
} from 'open-mcp-proxy'
import { testContext, testProxy } from 'open-mcp-proxy/testing'
import { describe, expect, it } from 'vitest'
import { deferred, HandWire, joined, turnOfLoop } from './fixtures/played.js'

const internal = { code: -32603, message: 'Internal error' }

describe('onRequest, onNotification, onResponse', () => {
  const log: string[] = []
  const heard = (name: string) => (ctx: { method: string }, next: () => unknown) => {
    log.push(`${name} ${ctx.method}`)
    return next()
  }

  it('run on their kind and methods only; all else passes', async () => {
    const proxy = testProxy(
      createProxy()
        .use(onRequest('a', heard('request')), onNotification('b', heard('notification')))
        .use(onResponse(['a', 'c'], heard('response')), onRequest(undefined, heard('any request')))
        .use(onNotification(undefined, heard('any notification')), onResponse(undefined, heard('any response'))),
    )
    for (const method of ['a', 'b', 'c']) {
      await proxy.fromClient({ id: method, method })
      await proxy.fromClient({ method })
    }
    for (const id of ['a', 'b', 'c']) {
      expect((await proxy.fromServer({ id, result: {} })).toClient).toEqual([{ jsonrpc: '2.0', id, result: {} }])
    }
    expect(log).toEqual([
      'request a',
      'any request a',
      'any notification a',
      'any request b',
      'notification b',
      'any notification b',
      'any request c',
      'any notification c',
      'any response a',
      'response a',
      'any response b',
      'any response c',
      'response c',
    ])
  })

  it('an answer that belongs to no request is none of theirs', async () => {
    const { ctx, next, deeds } = testContext({ error: { code: 1, message: 'x' } })
    await onResponse(undefined, () => expect.unreachable())(ctx, next)
    expect(deeds.passed.length).toBe(1)
  })
})

describe('who looks at other messages only', () => {
  const pass: Middleware = (_ctx, next) => next()

  it('is passed by, wherever it stands, and has seen what came after a change of the method', async () => {
    const log: string[] = []
    const sees =
      (name: string): Middleware =>
      (ctx, next) => {
        log.push(`${name} ${ctx.kind} ${ctx.method}`)
        return next()
      }
    const renames: Middleware = (ctx, next) => {
      if (ctx.isRequest()) ctx.message = { ...ctx.message, method: 'b' } as never
      return next()
    }
    const { client, server } = await joined((app) =>
      app
        .use(onRequest('a', sees('1')), onRequest('b', sees('2')), onResponse('b', sees('3')))
        .use(
          onRequest('a', renames),
          onRequest('a', sees('5')),
          onRequest('b', sees('6')),
          onResponse('a', sees('7')),
          onResponse('b', sees('8')),
          pass,
          onNotification('n', sees('10')),
        ),
    )
    client.say({ id: 1, method: 'a' })
    server.say({ id: 1, result: {} })
    server.say({ method: 'n' })
    server.say({ id: 2, method: 'c' })
    await turnOfLoop()
    expect(log).toEqual(['1 request a', '6 request b', '8 response b', '10 notification n'])
    expect([server.take(), client.take()]).toEqual([
      [{ id: 1, method: 'b' }],
      [{ id: 1, result: {} }, { method: 'n' }, { id: 2, method: 'c' }],
    ])
  })

  it('is not blamed for what is thrown behind it', async () => {
    const blamed: unknown[] = []
    const { client } = await joined((app) => {
      app.removeAllListeners('error')
      app.on('error', (_error, ctx) => blamed.push(ctx?.middleware))
      app.use(
        pass,
        onRequest('b', function innocent() {}),
        onResponse('b', function innocent() {}),
        function thrower() {
          throw new Error('no')
        },
      )
    })
    client.say({ id: 1, method: 'a' })
    await turnOfLoop()
    expect(blamed).toEqual(['thrower'])
  })

  for (const [name, first] of Object.entries<Middleware[]>({
    'whoever is before it': [pass],
    'the client, too, where nobody looks at it': [],
  })) {
    it(`a failed delivery is told by it to ${name}`, async () => {
      const codes: unknown[] = []
      const server = new HandWire()
      server.sending = () => Promise.reject(new RpcError(7, 'no'))
      const { client } = await joined(
        (app) =>
          app.use(
            ...first,
            onResponse('a', (ctx) => void codes.push(ctx.error?.code)),
            onRequest('b', () => {}),
          ),
        { server },
      )
      client.say({ id: 1, method: 'a' })
      await turnOfLoop()
      expect(codes).toEqual([7])
    })
  }
})

describe('onExchange', () => {
  const request = { id: 1, method: 'm' }
  const answer = { id: 1, result: { from: 'server' } }

  /** Both ends of a proxy with one exchange handler in the middle of its line. */
  async function around(
    handler: Parameters<typeof onExchange<'m'>>[1],
    options: { before?: Middleware[]; behind?: Middleware[]; server?: HandWire } = {},
  ) {
    const pass: Middleware = (_ctx, next) => next()
    return joined(
      (app: Application) =>
        app.use(...(options.before ?? [pass]), onExchange('m', handler as never), ...(options.behind ?? [pass])),
      options.server ? { server: options.server } : {},
    )
  }

  it('hands the request on and wakes with the response, at its own place', async () => {
    const log: unknown[] = []
    const { client, server } = await around(async (asked, next) => {
      log.push(asked.method)
      const response = await next()
      log.push(response.result, response.request.id)
      response.result = { from: 'handler' } as never
    })
    client.say(request)
    await turnOfLoop()
    expect({ sent: server.take(), log: [...log] }).toEqual({ sent: [request], log: ['m'] })
    server.say(answer)
    await turnOfLoop()
    expect({ back: client.take(), log }).toEqual({
      back: [{ id: 1, result: { from: 'handler' } }],
      log: ['m', { from: 'server' }, 1],
    })
  })

  it('nests like an onion', async () => {
    const log: string[] = []
    const ring = (name: string) =>
      onExchange('m', async (_request, next) => {
        log.push(`> ${name}`)
        await next()
        log.push(`< ${name}`)
      })
    const { client, server } = await joined((app) => app.use(ring('a'), ring('b'), ring('c')))
    client.say(request)
    await turnOfLoop()
    server.say(answer)
    await turnOfLoop()
    expect(client.take()).toEqual([answer])
    expect(log).toEqual(['> a', '> b', '> c', '< c', '< b', '< a'])
  })

  it('leaves the lane free while it sleeps', async () => {
    const { client, server } = await around(async (_request, next) => void (await next()))
    client.say(request)
    client.say({ id: 2, method: 'm' })
    client.say({ method: 'n' })
    await turnOfLoop()
    expect(server.take()).toEqual([request, { id: 2, method: 'm' }, { method: 'n' }])
    server.say({ id: 2, result: {} })
    await turnOfLoop()
    server.say(answer)
    await turnOfLoop()
    expect(client.take()).toEqual([{ id: 2, result: {} }, answer])
  })

  it('the response waits until the handler has finished', async () => {
    const gate = deferred()
    const { client, server } = await around(async (_request, next) => {
      await next()
      await gate.promise
    })
    client.say(request)
    await turnOfLoop()
    server.say(answer)
    await turnOfLoop()
    expect(client.take()).toEqual([])
    gate.resolve()
    await turnOfLoop()
    expect(client.take()).toEqual([answer])
  })

  it('a response that arrives inside next() wakes it', async () => {
    const server = new HandWire()
    server.sending = () => server.say(answer)
    const log: unknown[] = []
    const { client } = await around(async (_request, next) => void log.push((await next()).result), {
      server,
      before: [],
      behind: [],
    })
    client.say(request)
    await turnOfLoop()
    expect({ back: client.take(), log }).toEqual({ back: [answer], log: [{ from: 'server' }] })
  })

  it('an answer of a middleware behind it wakes it too', async () => {
    const log: unknown[] = []
    const { client } = await around(async (_request, next) => void log.push((await next()).result), {
      behind: [(ctx, next) => (ctx.kind === 'request' ? ctx.reply({ cached: true }) : next())],
    })
    client.say(request)
    await turnOfLoop()
    expect({ back: client.take(), log }).toEqual({
      back: [{ id: 1, result: { cached: true } }],
      log: [{ cached: true }],
    })
  })

  it('without next(): a reply, a throw, or forgotten', async () => {
    for (const [handler, outcome] of [
      [(it: { reply(r: object): unknown }) => it.reply({ x: 1 }), { result: { x: 1 } }],
      [
        (it: { throw(code: number, text: string): unknown }) => it.throw(7, 'no'),
        { error: { code: 7, message: 'no' } },
      ],
      [() => {}, { error: internal }],
    ] as const) {
      const { client, server } = await around(handler as never)
      client.say(request)
      await turnOfLoop()
      expect({ back: client.take(), sent: server.take() }).toEqual({ back: [{ id: 1, ...outcome }], sent: [] })
    }
  })

  it('a handler that does not wait for the answer lets it pass', async () => {
    const { client, server } = await around((_request, next) => void next())
    client.say(request)
    await turnOfLoop()
    server.say(answer)
    await turnOfLoop()
    expect({ sent: server.take(), back: client.take() }).toEqual({ sent: [request], back: [answer] })
  })

  it('a second next() rejects', async () => {
    const { client, server, errors } = await around(async (_request, next) => {
      await next()
      await next()
    })
    client.say(request)
    await turnOfLoop()
    server.say(answer)
    await turnOfLoop()
    expect({ back: client.take(), errors }).toEqual({
      back: [{ id: 1, error: internal }],
      errors: ['next() called multiple times'],
    })
  })

  it('a throw while it sleeps fails the request, the late answer is swallowed', async () => {
    const gate = deferred()
    const { client, server } = await around(async (asked, next) => {
      void next()
      await gate.promise
      asked.throw(-31002, 'Too slow')
    })
    client.say(request)
    await turnOfLoop()
    gate.resolve()
    await turnOfLoop()
    expect(client.take()).toEqual([{ id: 1, error: { code: -31002, message: 'Too slow' } }])
    server.say(answer)
    await turnOfLoop()
    expect(client.take()).toEqual([])
  })

  it('a throw after the answer: the requester gets the error', async () => {
    const { client, server } = await around(async (asked, next) => {
      await next()
      asked.throw(7, 'no')
    })
    client.say(request)
    await turnOfLoop()
    server.say(answer)
    await turnOfLoop()
    expect(client.take()).toEqual([{ id: 1, error: { code: 7, message: 'no' } }])
  })

  it('a reply to the response takes its place', async () => {
    const { client, server, errors } = await around(async (_request, next) => (await next()).reply({ x: 1 }))
    client.say(request)
    await turnOfLoop()
    server.say(answer)
    await turnOfLoop()
    expect({ back: client.take(), errors }).toEqual({ back: [{ id: 1, result: { x: 1 } }], errors: [] })
  })

  it('next() rejects when the delivery fails; the handler may reply', async () => {
    for (const [handler, outcome] of [
      [(_it: unknown, next: () => Promise<unknown>) => next(), { error: internal }],
      [
        (it: { reply(r: object): unknown }, next: () => Promise<unknown>) => next().catch(() => it.reply({ x: 1 })),
        { result: { x: 1 } },
      ],
      [(_it: unknown, next: () => Promise<unknown>) => void next(), { error: internal }],
    ] as const) {
      const server = new HandWire()
      server.sending = () => Promise.reject(new Error('broken'))
      const { client } = await around(handler as never, { server })
      client.say(request)
      await turnOfLoop()
      expect(client.take()).toEqual([{ id: 1, ...outcome }])
    }
  })

  it('next() rejects when the request is cancelled, asleep or held behind it; nobody is told', async () => {
    for (const behind of [[], [async () => new Promise<void>(() => {})]] as Middleware[][]) {
      const caught = deferred<unknown>()
      const { client, errors } = await around(
        async (_request, next) => {
          try {
            await next()
          } catch (error) {
            caught.resolve(error)
            throw error
          }
        },
        { behind },
      )
      client.say(request)
      await turnOfLoop()
      client.say({ method: 'notifications/cancelled', params: { requestId: 1 } })
      expect(await caught.promise).toEqual(new DOMException('The request was cancelled by its sender', 'AbortError'))
      await turnOfLoop()
      expect({ back: client.take(), errors }).toEqual({ back: [], errors: [] })
    }
  })

  it('next() rejects in a test context that is aborted, before it or after', async () => {
    const reasons: unknown[] = []
    const asks = onExchange('m', (_request, next) => next().catch((reason) => void reasons.push(reason)))
    const later = testContext(request)
    void asks(later.ctx, later.next)
    later.abort('later')
    const before = testContext(request)
    before.abort('before')
    void asks(before.ctx, before.next)
    await turnOfLoop()
    expect(reasons).toEqual(['later', 'before'])
  })

  it('next() rejects when the request was cancelled before it', async () => {
    const gate = deferred()
    const caught = deferred<unknown>()
    const { client, server, errors } = await around(async (_request, next) => {
      await gate.promise
      await next().catch(caught.resolve)
    })
    client.say(request)
    client.say({ method: 'notifications/cancelled', params: { requestId: 1 } })
    gate.resolve()
    expect(await caught.promise).toEqual(new DOMException('The request was cancelled by its sender', 'AbortError'))
    await turnOfLoop()
    expect({ sent: server.take(), back: client.take(), errors }).toEqual({ sent: [], back: [], errors: [] })
  })

  it('wakes with the error when the server is lost', async () => {
    const log: unknown[] = []
    const { client, server } = await around(async (_request, next) => void log.push((await next()).error?.code))
    client.say(request)
    await turnOfLoop()
    server.onclose?.()
    await turnOfLoop()
    expect({ back: client.take(), log }).toEqual({
      back: [{ id: 1, error: expect.objectContaining({ code: -31001 }) }],
      log: [-31001],
    })
  })

  it('next() rejects where a handler around it answers first', async () => {
    const inner = deferred<unknown>()
    const gate = deferred()
    const { client, server, errors } = await joined((app) =>
      app.use(
        onExchange('m', async (it, next) => {
          await Promise.race([next(), gate.promise])
          await it.reply({ impatient: true })
        }),
        onExchange('m', async (_request, next) => {
          await next().catch((error) => {
            inner.resolve(error)
            throw error
          })
        }),
      ),
    )
    client.say(request)
    await turnOfLoop()
    gate.resolve()
    expect(await inner.promise).toEqual(new DOMException('The request was answered before this place', 'AbortError'))
    server.say(answer)
    await turnOfLoop()
    expect({ back: client.take(), errors }).toEqual({ back: [{ id: 1, result: { impatient: true } }], errors: [] })
  })

  it('wakes with the error when the session closes over a response that is held behind it', async () => {
    const log: unknown[] = []
    const { client, server, app } = await joined(
      (it) =>
        it.use(
          onExchange('m', async (_request, next) => void log.push((await next()).error?.code)),
          (ctx, next) => (ctx.kind === 'response' ? new Promise(() => {}) : next()),
        ),
      { drainTimeout: 5 },
    )
    client.say(request)
    await turnOfLoop()
    server.say(answer)
    await turnOfLoop()
    await app.close()
    expect({ back: client.take(), log }).toEqual({
      back: [{ id: 1, error: expect.objectContaining({ code: -31008 }) }],
      log: [-31008],
    })
  })

  it('forgets whatever has its end', async () => {
    const waiting: unknown[] = []
    const { set } = Map.prototype
    const maps = new Set<Map<unknown, unknown>>()
    // The map is the handler's own: it is found by what is put into it.
    Map.prototype.set = function (this: Map<unknown, unknown>, key: unknown, value: unknown) {
      if (typeof value === 'object' && value !== null && 'wake' in value) maps.add(this)
      return set.call(this, key, value)
    }
    try {
      const { client, server } = await around(async (it, next) => {
        if (it.id === 2) {
          void next()
          it.throw(1, 'no')
        }
        if (it.id === 3) return void next()
        waiting.push(it.id)
        await next()
      })
      for (const id of [1, 2, 3, 4]) client.say({ id, method: 'm' })
      await turnOfLoop()
      expect([...maps].map((it) => it.size)).toEqual([2])
      server.say(answer)
      client.say({ method: 'notifications/cancelled', params: { requestId: 4 } })
      await turnOfLoop()
      expect(waiting).toEqual([1, 4])
      expect([...maps].map((it) => it.size)).toEqual([0])
    } finally {
      Map.prototype.set = set
    }
  })
})
