import { type Context, type Middleware, type Next, RpcError } from 'open-mcp-proxy'
import { describe, expect, it } from 'vitest'
import { deferred, HandWire, joined, proxys, turnOfLoop } from '../fixtures/played.js'

const internal = { code: -32603, message: 'Internal error' }
const denied = (phase: 'sent' | 'not_sent') => proxys(-31006, 'Denied: dropped', 'denied', phase, false)

/** Only requests are of interest. */
const onRequests =
  (handler: Middleware): Middleware =>
  (ctx, next) =>
    ctx.kind === 'request' ? handler(ctx, next) : next()
const onResponses =
  (handler: Middleware): Middleware =>
  (ctx, next) =>
    ctx.kind === 'response' ? handler(ctx, next) : next()

/** What a request of the client leads to, before and after the server has answered it. */
async function asked(...middleware: Middleware[]) {
  const it = await joined((app) => app.use(...middleware))
  it.client.say({ id: 1, method: 'm' })
  await turnOfLoop()
  const before = { toServer: it.server.take(), toClient: it.client.take() }
  it.server.say({ id: 1, result: { from: 'server' } })
  await turnOfLoop()
  const pending = it.app.stats().pending
  return { before, after: { toServer: it.server.take(), toClient: it.client.take() }, errors: it.errors, pending }
}

const request = { id: 1, method: 'm' }
const served = { id: 1, result: { from: 'server' } }
const nothing = { toServer: [], toClient: [] }
/** The middleware gave the outcome, and the server never saw the request. */
const instead = (outcome: object, ...errors: string[]) => ({
  before: { toServer: [], toClient: [{ id: 1, ...outcome }] },
  after: nothing,
  errors,
  pending: 0,
})
/** The server saw the request and answered; the client got something else. */
const replaced = (outcome: object, ...errors: string[]) => ({
  before: { toServer: [request], toClient: [] },
  after: { toServer: [], toClient: [{ id: 1, ...outcome }] },
  errors,
  pending: 0,
})
/** The client had its outcome before the server answered. */
const overtaken = (outcome: object, ...errors: string[]) => ({
  before: { toServer: [request], toClient: [{ id: 1, ...outcome }] },
  after: nothing,
  errors,
  pending: 0,
})
const passed = (...errors: string[]) => ({
  before: { toServer: [request], toClient: [] },
  after: { toServer: [], toClient: [served] },
  errors,
  pending: 0,
})

describe('a request', () => {
  const cases: Record<string, [Middleware, unknown]> = {
    'handed on': [(_ctx, next) => next(), passed()],
    'handed on, not awaited': [
      (_ctx, next) => {
        void next()
      },
      passed(),
    ],
    'handed on, something else returned': [(_ctx, next) => next().then(() => 42), passed()],
    'replied to': [(ctx) => ctx.reply({ x: 1 }), instead({ result: { x: 1 } })],
    'replied to without a result': [(ctx) => ctx.reply(), instead({ result: {} })],
    'replied to synchronously': [
      (ctx) => {
        void ctx.reply({ x: 1 })
      },
      instead({ result: { x: 1 } }),
    ],
    'failed with an RpcError': [
      (ctx) => ctx.fail(new RpcError(7, 'no', { a: 1 })),
      instead({ error: { code: 7, message: 'no', data: { a: 1 } } }),
    ],
    'failed with an error object': [
      (ctx) => ctx.fail({ code: 7, message: 'no' }),
      instead({ error: { code: 7, message: 'no' } }),
    ],
    'failed with any error': [(ctx) => ctx.fail(new Error('secret')), instead({ error: internal }, 'secret')],
    dropped: [(ctx) => ctx.drop(), instead({ error: denied('not_sent') })],
    'thrown at by ctx.throw': [
      (ctx) => ctx.throw(-31006, 'Denied', { why: 1 }),
      instead({ error: { code: -31006, message: 'Denied', data: { why: 1 } } }),
    ],
    'thrown at by a TypeError': [
      () => {
        throw new TypeError('secret')
      },
      instead({ error: internal }, 'secret'),
    ],
    'rejected with a string': [
      () => Promise.reject('secret'),
      instead({ error: internal }, 'a middleware threw secret'),
    ],
    'thrown undefined': [
      () => {
        throw undefined
      },
      instead({ error: internal }, 'a middleware threw undefined'),
    ],
    'thrown an object that looks like an error of JSON-RPC': [
      () => Promise.reject({ code: 1, message: 'secret' }),
      instead({ error: internal }, 'a middleware threw [object Object]'),
    ],
    forgotten: [
      () => {},
      instead({ error: internal }, 'a middleware forgot a request: it neither called next() nor replied'),
    ],
    'forgotten, with a value': [
      () => 'x',
      instead({ error: internal }, 'a middleware forgot a request: it neither called next() nor replied'),
    ],
    'replied to twice': [
      (ctx) => {
        void ctx.reply({ x: 1 })
        void ctx.reply({ x: 2 })
      },
      instead({ result: { x: 1 } }, 'ctx.reply(): this request has its outcome already'),
    ],
    'replied to, then handed on': [
      async (ctx, next) => {
        await ctx.reply({ x: 1 })
        await next()
      },
      instead({ result: { x: 1 } }, 'next() after reply()'),
    ],
    'replied to, then thrown at': [
      async (ctx) => {
        await ctx.reply({ x: 1 })
        ctx.throw(7, 'late')
      },
      instead({ result: { x: 1 } }, 'late'),
    ],
    'handed on twice': [
      async (_ctx, next) => {
        await next()
        await next()
      },
      passed('next() called multiple times'),
    ],
    'handed on, then replied to': [
      async (ctx, next) => {
        await next()
        await ctx.reply({ x: 1 })
      },
      overtaken({ result: { x: 1 } }),
    ],
    'handed on, then dropped': [
      async (ctx, next) => {
        await next()
        ctx.drop()
      },
      overtaken({ error: denied('sent') }),
    ],
    'handed on, then thrown at': [
      async (ctx, next) => {
        await next()
        ctx.throw(7, 'late')
      },
      passed('late'),
    ],
    'replied to with what JSON cannot write': [
      (ctx) => ctx.reply({ n: 1n }),
      instead({ error: internal }, 'Do not know how to serialize a BigInt'),
    ],
    'thrown at with what JSON cannot write': [
      (ctx) => ctx.throw(7, 'no', 1n),
      instead({ error: internal }, 'Do not know how to serialize a BigInt'),
    ],
  }
  for (const [name, [middleware, expected]] of Object.entries(cases)) {
    it(name, async () => expect(await asked(onRequests(middleware))).toEqual(expected))
    it(`${name}, between others`, async () => {
      const pass: Middleware = (_ctx, next) => next()
      const passAsync: Middleware = async (_ctx, next) => {
        await next()
      }
      expect(await asked(pass, passAsync, onRequests(middleware), passAsync, pass)).toEqual(expected)
    })
  }
})

describe('a response', () => {
  const cases: Record<string, [Middleware, unknown]> = {
    'handed on': [(_ctx, next) => next(), passed()],
    'replied to': [(ctx) => ctx.reply({ x: 1 }), replaced({ result: { x: 1 } })],
    failed: [(ctx) => ctx.fail(new RpcError(7, 'no')), replaced({ error: { code: 7, message: 'no' } })],
    dropped: [(ctx) => ctx.drop(), replaced({ error: denied('sent') })],
    'thrown at': [(ctx) => ctx.throw(7, 'no'), replaced({ error: { code: 7, message: 'no' } })],
    'thrown at by any error': [() => Promise.reject(new Error('secret')), replaced({ error: internal }, 'secret')],
    forgotten: [
      () => {},
      replaced({ error: internal }, 'a middleware forgot a response: it neither called next() nor replied'),
    ],
    'replied to twice': [
      (ctx) => {
        void ctx.reply({ x: 1 })
        void ctx.reply({ x: 2 })
      },
      replaced({ result: { x: 1 } }, 'ctx.reply(): this response was handed on or replaced already'),
    ],
    'replied to, then handed on': [
      async (ctx, next) => {
        await ctx.reply({ x: 1 })
        await next()
      },
      replaced({ result: { x: 1 } }, 'next() after reply()'),
    ],
    'handed on, then replied to': [
      async (ctx, next) => {
        await next()
        await ctx.reply({})
      },
      passed('ctx.reply(): this response was handed on or replaced already'),
    ],
    'handed on, then thrown at': [
      async (ctx, next) => {
        await next()
        ctx.throw(7, 'late')
      },
      passed('late'),
    ],
    'handed on twice': [
      async (_ctx, next) => {
        await next()
        await next()
      },
      passed('next() called multiple times'),
    ],
  }
  for (const [name, [middleware, expected]] of Object.entries(cases)) {
    it(name, async () => expect(await asked(onResponses(middleware))).toEqual(expected))
  }

  it('that replaces another walks on from its place, and may be replaced again', async () => {
    const log: unknown[] = []
    const wrap = (name: string) =>
      onResponses((ctx) => {
        log.push([name, ctx.result])
        return ctx.reply({ name, was: ctx.result })
      })
    expect(await asked(wrap('a'), wrap('b'))).toEqual(
      replaced({ result: { name: 'a', was: { name: 'b', was: { from: 'server' } } } }),
    )
    expect(log).toEqual([
      ['b', { from: 'server' }],
      ['a', { name: 'b', was: { from: 'server' } }],
    ])
  })

  it('to the server, which asked, obeys the same rules', async () => {
    const it = await joined((app) => app.use(onResponses((ctx) => ctx.throw(7, 'no'))))
    it.server.say({ id: 's', method: 'roots/list' })
    it.client.say({ id: 's', result: {} })
    await turnOfLoop()
    expect({ toServer: it.server.take(), toClient: it.client.take() }).toEqual({
      toServer: [{ id: 's', error: { code: 7, message: 'no' } }],
      toClient: [{ id: 's', method: 'roots/list' }],
    })
  })

  it("without an id is nobody's: it passes, or is dropped", async () => {
    const error = { error: { code: -32700, message: 'Parse error' } }
    for (const [middleware, sent] of [
      [(_ctx: unknown, next: () => unknown) => next(), [error]],
      [(ctx: { drop(): void }) => ctx.drop(), []],
    ] as const) {
      const { client, server, errors } = await joined((app) => app.use(middleware))
      server.say(error)
      await turnOfLoop()
      expect({ sent: client.take(), errors }).toEqual({ sent, errors: [] })
    }
  })
})

describe('a notification', () => {
  const cases: Record<string, [Middleware, string[], boolean]> = {
    'handed on': [(_ctx, next) => next(), [], true],
    'handed on, not awaited': [(_ctx, next) => void next(), [], true],
    dropped: [(ctx) => ctx.drop(), [], false],
    'not handed on': [() => {}, [], false],
    'dropped, then handed on': [
      (ctx, next) => {
        ctx.drop()
        return next()
      },
      ['next() after drop()'],
      false,
    ],
    'thrown at': [(ctx) => ctx.throw(7, 'no'), ['no'], false],
    'replied to': [(ctx) => ctx.reply({}), ['ctx.reply(): a notification without a request has no answer'], false],
    failed: [
      (ctx) => ctx.fail(new Error('secret')),
      ['ctx.fail(): a notification without a request has no answer'],
      false,
    ],
  }
  for (const [name, [middleware, expected, leaves]] of Object.entries(cases)) {
    it(name, async () => {
      const { client, server, errors } = await joined((app) => app.use(middleware))
      client.say({ method: 'notifications/x' })
      await turnOfLoop()
      expect({ sent: server.take(), back: client.take(), errors }).toEqual({
        sent: leaves ? [{ method: 'notifications/x' }] : [],
        back: [],
        errors: expected,
      })
    })
  }
})

describe('a throw', () => {
  it('travels out through the middleware already entered, which may catch it', async () => {
    const log: string[] = []
    const catching = onRequests(async (ctx, next) => {
      try {
        await next()
      } catch (error) {
        log.push((error as Error).message)
        await ctx.reply({ caught: true })
      }
    })
    const cleaning = onRequests(async (_ctx, next) => {
      try {
        await next()
      } finally {
        log.push('cleaned')
      }
    })
    expect(
      await asked(
        catching,
        cleaning,
        onRequests((ctx) => ctx.throw(7, 'no')),
      ),
    ).toEqual(instead({ result: { caught: true } }))
    expect(log).toEqual(['cleaned', 'no'])
  })

  it('becomes the answer from the deepest place reached', async () => {
    const log: string[] = []
    const see = (name: string) =>
      onResponses((ctx, next) => {
        log.push(`${name}: ${ctx.error?.message}`)
        return next()
      })
    await asked(
      see('a'),
      see('b'),
      onRequests((ctx) => ctx.throw(7, 'no')),
      see('d'),
    )
    expect(log).toEqual(['b: no', 'a: no'])
  })

  it('that is swallowed leaves a request forgotten', async () => {
    const swallow = onRequests((_ctx, next) => next().catch(() => {}))
    expect(
      await asked(
        swallow,
        onRequests((ctx) => ctx.throw(7, 'no')),
      ),
    ).toEqual(instead({ error: internal }, 'a middleware forgot a request: it neither called next() nor replied'))
  })

  it('at one that did not wait for it is told of as the cause', async () => {
    const told: unknown[] = []
    const { app, client } = await joined((it) =>
      it.use(
        (_ctx, next) => void next(),
        () => Promise.reject(new Error('secret')),
      ),
    )
    app.on('error', ({ message, cause }: Error) => told.push([message, cause]))
    client.say({ id: 1, method: 'm' })
    await turnOfLoop()
    expect([client.take(), told]).toEqual([
      [{ id: 1, error: internal }],
      [['a middleware forgot a request: it neither called next() nor replied', new Error('secret')]],
    ])
  })
})

describe('a delivery that fails', () => {
  const refused = new RpcError(-31009, 'Unreachable', {
    source: 'proxy',
    reason: 'upstream_unreachable',
    phase: 'not_sent',
    retryable: true,
  })
  const failing = (error: unknown, how: 'rejects' | 'throws') => {
    const server = new HandWire()
    server.sending = (text) => {
      if (!text.includes('"m"')) return
      if (how === 'throws') throw error
      return Promise.reject(error)
    }
    return server
  }

  for (const how of ['rejects', 'throws'] as const) {
    it(`${how} next(); uncaught it is the answer`, async () => {
      const seen: unknown[] = []
      const { client, errors } = await joined(
        (app) =>
          app.use(
            onRequests(async (_ctx, next) => {
              await next().catch((error) => {
                seen.push(error)
                throw error
              })
            }),
          ),
        { server: failing(refused, how) },
      )
      client.say(request)
      await turnOfLoop()
      expect({ sent: client.take(), seen, errors }).toEqual({
        sent: [{ id: 1, error: refused.toJSON() }],
        seen: [refused],
        errors: [],
      })
    })

    it(`${how} next(); a middleware may reply instead`, async () => {
      const { client, errors } = await joined(
        (app) => app.use(onRequests((ctx, next) => next().catch(() => ctx.reply({ fallback: true })))),
        { server: failing(refused, how) },
      )
      client.say(request)
      await turnOfLoop()
      expect({ sent: client.take(), errors }).toEqual({ sent: [{ id: 1, result: { fallback: true } }], errors: [] })
    })

    it(`${how}: without any middleware the requester is told`, async () => {
      const { client, app } = await joined(undefined, { server: failing(refused, how) })
      client.say(request)
      await turnOfLoop()
      expect(client.take()).toEqual([{ id: 1, error: refused.toJSON() }])
      expect(app.stats()).toEqual({
        sessions: 1,
        pending: 0,
        dropped: 0,
        lanes: { 'client-to-server': 0, 'server-to-client': 0 },
      })
    })
  }

  it('of any other error stays home', async () => {
    const { client, errors } = await joined(undefined, { server: failing(new Error('EPIPE /secret'), 'rejects') })
    client.say(request)
    await turnOfLoop()
    expect({ sent: client.take(), errors }).toEqual({ sent: [{ id: 1, error: internal }], errors: ['EPIPE /secret'] })
  })

  it('releases its turn at once, also where a middleware goes on', async () => {
    const gate = deferred()
    const { client, server } = await joined(
      (app) => app.use(onRequests((ctx, next) => next().catch(() => gate.promise.then(() => ctx.reply({}))))),
      { server: failing(refused, 'rejects') },
    )
    client.say(request)
    client.say({ method: 'notifications/x' })
    await turnOfLoop()
    expect(server.take()).toEqual([request, { method: 'notifications/x' }])
    gate.resolve()
    await turnOfLoop()
    expect(client.take()).toEqual([{ id: 1, result: {} }])
  })

  it('that nobody awaits ends no process, and the requester is told', async () => {
    const { client } = await joined((app) => app.use((_ctx, next) => void next()), {
      server: failing(refused, 'rejects'),
    })
    client.say(request)
    await turnOfLoop()
    expect(client.take()).toEqual([{ id: 1, error: internal }])
  })

  it("of a notification goes to 'error'", async () => {
    const server = new HandWire()
    server.sending = () => Promise.reject(new Error('broken'))
    const { client, errors } = await joined(undefined, { server })
    client.say({ method: 'notifications/x' })
    await turnOfLoop()
    expect({ sent: client.take(), errors }).toEqual({ sent: [], errors: ['broken'] })
  })

  it("of a response ends the exchange and goes to 'error'", async () => {
    const client = new HandWire()
    client.sending = () => Promise.reject(new Error('broken'))
    const { server, errors, app } = await joined(undefined, { client })
    client.say(request)
    await turnOfLoop()
    server.say(served)
    await turnOfLoop()
    expect({ errors, pending: app.stats().pending }).toEqual({ errors: ['broken'], pending: 0 })
  })
})

describe('an id that may still be answered late', () => {
  /** The first request is answered by the proxy after it was sent; the second is left alone. */
  const hasty = () => {
    let first = true
    return onRequests(async (ctx, next) => {
      await next()
      if (!first) return
      first = false
      await ctx.reply({ hasty: true })
    })
  }

  it('goes out under another one when it is used again, and comes back as it was', async () => {
    const { client, server, app } = await joined((it) => it.use(hasty()))
    client.say(request)
    await turnOfLoop()
    client.say(request)
    await turnOfLoop()
    const [one, two] = server.take()
    expect(one).toEqual(request)
    expect(two).toEqual({ id: expect.stringMatching(/^omp-[0-9a-f]{12}-1$/), method: 'm' })
    expect(client.take()).toEqual([{ id: 1, result: { hasty: true } }])

    server.say({ id: 1, result: { late: true } })
    await turnOfLoop()
    expect(client.take()).toEqual([])
    server.say({ id: two?.id, result: { own: true } })
    await turnOfLoop()
    expect(client.take()).toEqual([{ id: 1, result: { own: true } }])
    expect(app.stats()).toMatchObject({ pending: 0, dropped: 1 })

    // Nothing is owed any more: the id goes out as it is.
    client.say(request)
    await turnOfLoop()
    expect(server.take()).toEqual([request])
  })

  it('its cancellation names the id that the server knows', async () => {
    const { client, server } = await joined((it) => it.use(hasty()))
    client.say(request)
    await turnOfLoop()
    client.say(request)
    await turnOfLoop()
    client.say({ method: 'notifications/cancelled', params: { reason: 'x', requestId: 1 } })
    await turnOfLoop()
    const [, second, cancel] = server.take()
    expect(cancel).toEqual({ method: 'notifications/cancelled', params: { reason: 'x', requestId: second?.id } })
    server.say({ id: second?.id, result: {} })
    await turnOfLoop()
    expect(client.take()).toEqual([{ id: 1, result: { hasty: true } }])
  })

  it('is what it relates to on the way back', async () => {
    const { client, server } = await joined((it) => it.use(hasty()))
    client.say(request)
    await turnOfLoop()
    client.say(request)
    await turnOfLoop()
    const [, second] = server.take()
    client.take()
    server.say({ method: 'notifications/progress' }, { relatedRequestId: second?.id as string })
    server.say({ method: 'notifications/message' }, { relatedRequestId: 'other' })
    await turnOfLoop()
    expect(client.metas.slice(-2)).toEqual([{ relatedRequestId: 1 }, { relatedRequestId: 'other' }])
  })
})

it('ids keep their exact token: 0, "", 1 and "1" are four, 1.0 comes back as 1.0', async () => {
  const { client, server } = await joined()
  const tokens = ['0', '""', '1', '"1"', '2.0', '9007199254740993', '"\\u0061"']
  for (const token of tokens) client.say(`{"jsonrpc":"2.0","id":${token},"method":"m"}`)
  for (const token of ['0', '""', '1', '"1"', '2', '9007199254740992', '"a"']) {
    server.say(`{"jsonrpc":"2.0","id":${token},"result":{}}`)
  }
  await turnOfLoop()
  expect(client.sent).toEqual(tokens.map((token) => `{"jsonrpc":"2.0","id":${token},"result":{}}`))
})

it("'error' tells of the message; its listener may throw and harms nobody", async () => {
  const { app, client } = await joined((it) =>
    it.use(() => {
      throw new Error('mine')
    }),
  )
  const seen: unknown[] = []
  app.on('error', (error, ctx) => {
    seen.push([error.message, ctx?.toJSON()])
    throw new Error('and mine')
  })
  const written: string[] = []
  const { write } = process.stderr
  process.stderr.write = ((text: string) => written.push(text) > 0) as typeof write
  try {
    client.say(request)
    await turnOfLoop()
  } finally {
    process.stderr.write = write
  }
  expect(client.take()).toEqual([{ id: 1, error: internal }])
  expect(seen).toEqual([
    ['mine', expect.objectContaining({ direction: 'client-to-server', kind: 'request', id: 1, method: 'm' })],
  ])
  expect(written).toEqual(['open-mcp-proxy: and mine\n'])
})

describe("'error' names the middleware that threw", () => {
  const passes = function passes(_ctx: Context, next: Next) {
    return next()
  }
  const before = function before() {
    throw new Error('before')
  }
  const after = async function after(_ctx: Context, next: Next) {
    await next()
    throw new Error('after')
  }
  const instead = async function instead(_ctx: Context, next: Next) {
    await next().catch(() => {})
    throw new Error('instead')
  }
  it.each<[string, Middleware[], string[]]>([
    ['the first', [before, passes], ['before: before']],
    ['one in the middle', [passes, before, passes], ['before: before']],
    ['the last', [passes, passes, before], ['before: before']],
    ['one behind whose back it has left', [passes, after, passes], ['after: after']],
    ['one that threw something else', [passes, instead, before], ['instead: instead']],
    [
      'one without a name',
      [
        passes,
        (
          () => () =>
            before()
        )(),
      ],
      ['undefined: before'],
    ],
  ])('%s', async (_what, line, expected) => {
    for (const [side, message] of [
      ['client', { method: 'n' }],
      ['server', { method: 'n' }],
    ] as const) {
      const { app, client, server } = await joined((it) => it.use(...(side === 'client' ? line : line.toReversed())))
      const told: string[] = []
      app.on('error', (error, ctx) => told.push(`${ctx?.middleware}: ${error.message}`))
      const ends = { client, server }
      ends[side].say(message)
      await turnOfLoop()
      expect(told).toEqual(expected)
    }
  })
})
