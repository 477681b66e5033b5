import type { Application, Middleware } from 'open-mcp-proxy'
import { describe, expect, it } from 'vitest'
import { corpus } from '../fixtures/corpus.js'
import { joined, turnOfLoop } from '../fixtures/played.js'

/** What leaves on the other side when the client, or the server, says a text. */
async function through(middleware: Middleware[], text: string, side: 'client' | 'server' = 'client') {
  const { client, server, errors } = await joined((app: Application) => app.use(...middleware))
  const [near, far] = side === 'client' ? [client, server] : [server, client]
  near.say(text)
  await turnOfLoop()
  return { sent: far.sent, back: near.take(), errors }
}

const odd =
  '{"jsonrpc":"2.0", "x":1.0,"id":1,"method":"tools/call","params":{"arguments":{"n":9007199254740993},"name":"a"}}'

describe('what no middleware changed leaves byte for byte', () => {
  const reading: Middleware = (ctx, next) => {
    JSON.stringify([ctx.message, ctx.params, ctx.result, ctx.error, ctx.raw, ctx.toJSON(), ctx.request?.message])
    return next()
  }
  const readingLate: Middleware = async (ctx, next) => {
    await turnOfLoop()
    void ctx.message
    await next()
    void ctx.message
  }

  for (const { name, direction, text } of corpus) {
    it(`${direction}: ${name}`, async () => {
      const side = direction === 'client-to-server' ? 'client' : 'server'
      const { client, server, errors } = await joined((app) => app.use(reading, readingLate, reading))
      const [near, far] = side === 'client' ? [client, server] : [server, client]
      const parsed = JSON.parse(text)
      // What answers something must have been asked for.
      if (!('method' in parsed) && 'id' in parsed && parsed.id !== null) {
        const token = /"id"\s*:\s*("(?:[^"\\]|\\.)*"|[^\s,}]+)/.exec(text)?.[1]
        far.say(`{"jsonrpc":"2.0","id":${token},"method":"ping"}`)
        await turnOfLoop()
        await turnOfLoop()
        near.take()
      }
      near.say(text)
      await turnOfLoop()
      await turnOfLoop()
      expect({ sent: far.sent, errors }).toEqual({ sent: [text], errors: [] })
    })
  }
})

describe('a change is sent and keeps the bytes of what did not change', () => {
  const cases: Record<string, Middleware> = {
    'in place': (ctx, next) => {
      if (ctx.isRequest('tools/call')) ctx.params.name = 'bb'
      return next()
    },
    'by assignment of params': (ctx, next) => {
      ctx.params = { ...ctx.params, name: 'bb' }
      return next()
    },
    'by assignment of the message': (ctx, next) => {
      const { message } = ctx as { message: { params: object } & typeof ctx.message }
      ctx.message = { ...message, params: { ...message.params, name: 'bb' } } as typeof ctx.message
      return next()
    },
    'after something was awaited': async (ctx, next) => {
      const { params } = ctx
      await turnOfLoop()
      if (params) params.name = 'bb'
      await next()
    },
    'in an object that was read before': (ctx, next) => {
      const message = ctx.message as unknown as { params: { name: string } }
      void ctx.params
      message.params.name = 'bb'
      return next()
    },
  }
  for (const [name, middleware] of Object.entries(cases)) {
    it(name, async () => {
      const { sent, errors } = await through([middleware], odd)
      await turnOfLoop()
      expect({ sent, errors }).toEqual({ sent: [odd.replace('"name":"a"', '"name":"bb"')], errors: [] })
    })
  }

  it('on notifications, of both sides', async () => {
    const change: Middleware = (ctx, next) => {
      ctx.params = { ...ctx.params, level: 'error' }
      return next()
    }
    const text = '{"jsonrpc":"2.0","method":"notifications/message","params":{"data":1.0,"level":"info"}}'
    for (const side of ['client', 'server'] as const) {
      expect((await through([change], text, side)).sent).toEqual([text.replace('info', 'error')])
    }
  })

  it('on responses: result, message, and an error in place of a result', async () => {
    const { client, server } = await joined((app) =>
      app.use((ctx, next) => {
        if (ctx.kind !== 'response') return next()
        if (ctx.id === 1) ctx.result = { ...ctx.result, y: 2 }
        if (ctx.id === 2) (ctx.result as { x: number }).x = 3
        if (ctx.id === 3) {
          ctx.message = { jsonrpc: '2.0', id: 3, error: { code: 1, message: 'no' } }
          expect(ctx.error).toEqual({ code: 1, message: 'no' })
        }
        return next()
      }),
    )
    for (const id of [1, 2, 3]) client.say({ id, method: 'm' })
    for (const id of [1, 2, 3]) server.say(`{"jsonrpc":"2.0","id":${id},"result":{"x":1.0,"z":1e400}}`)
    expect(client.sent).toEqual([
      '{"jsonrpc":"2.0","id":1,"result":{"x":1.0,"z":1e400,"y":2}}',
      '{"jsonrpc":"2.0","id":2,"result":{"x":3,"z":1e400}}',
      '{"jsonrpc":"2.0","id":3,"error":{"code":1,"message":"no"}}',
    ])
  })

  it('a later place sees it, and may change it further', async () => {
    const seen: unknown[] = []
    const add =
      (letter: string): Middleware =>
      (ctx, next) => {
        seen.push(ctx.name)
        if (ctx.isRequest('tools/call')) ctx.params.name += letter
        return next()
      }
    const { sent } = await through([add('b'), add('c')], odd)
    expect(seen).toEqual(['a', 'ab'])
    expect(sent).toEqual([odd.replace('"name":"a"', '"name":"abc"')])
  })
})

describe('what may not change', () => {
  const internal = { code: -32603, message: 'Internal error' }
  const illegal: Record<string, [(message: Record<string, unknown>) => void, string]> = {
    id: [(it) => (it.id = 2), 'a middleware may not change the id of a message: expected 1, got 2'],
    'the type of the id': [
      (it) => (it.id = '1'),
      'a middleware may not change the id of a message: expected 1, got "1"',
    ],
    kind: [
      (it) => delete it.id,
      'a middleware may not change the kind of a message: expected request, got notification',
    ],
    version: [
      (it) => delete it.jsonrpc,
      'a middleware made a message illegal: Invalid request: expected jsonrpc "2.0"',
    ],
  }
  for (const [name, [change, problem]] of Object.entries(illegal)) {
    it(`${name}: -32603 to the client, the problem to 'error'`, async () => {
      const { sent, back, errors } = await through(
        [
          (ctx, next) => {
            change(ctx.message as unknown as Record<string, unknown>)
            return next()
          },
        ],
        odd,
      )
      expect({ sent, back, errors }).toEqual({ sent: [], back: [{ id: 1, error: internal }], errors: [problem] })
    })
  }

  it('of a response: its requester gets -32603', async () => {
    const { client, server, errors } = await joined((app) =>
      app.use((ctx, next) => {
        if (ctx.kind === 'response') (ctx.message as unknown as { id: number }).id = 7
        return next()
      }),
    )
    client.say({ id: 1, method: 'm' })
    server.say({ id: 1, result: {} })
    await turnOfLoop()
    expect({ to: client.take(), errors }).toEqual({
      to: [{ id: 1, error: internal }],
      errors: ['a middleware may not change the id of a message: expected 1, got 7'],
    })
  })

  it('a second next() does not send the original after all', async () => {
    const { sent } = await through(
      [
        async (ctx, next) => {
          ;(ctx.message as unknown as { id: number }).id = 7
          await next().catch(() => {})
          await next().catch(() => {})
        },
      ],
      odd,
    )
    await turnOfLoop()
    expect(sent).toEqual([])
  })
})

describe('after next()', () => {
  it('a change in place has no effect, on any place', async () => {
    for (const places of [1, 2]) {
      const seen: unknown[] = []
      const late: Middleware = async (ctx, next) => {
        if (ctx.kind === 'response') {
          seen.push(ctx.request?.params?.name)
          return next()
        }
        void ctx.message
        await next()
        if (ctx.params) ctx.params.name = 'late'
      }
      const { client, server } = await joined((app) => app.use(...Array.from({ length: places }, () => late)))
      client.say(odd)
      await turnOfLoop()
      server.say({ id: 1, result: {} })
      await turnOfLoop()
      expect({ sent: server.sent, seen }).toEqual({ sent: [odd], seen: Array.from({ length: places }, () => 'a') })
    }
  })

  it('an assignment throws, since nothing would come of it', async () => {
    const errors: string[] = []
    const { client, server } = await joined((app) =>
      app.use(async (ctx, next) => {
        await next()
        for (const assign of [
          () => (ctx.params = {}),
          () => (ctx.result = {}),
          () => (ctx.message = { jsonrpc: '2.0', id: 1, method: 'x' }),
        ]) {
          try {
            assign()
          } catch (error) {
            errors.push((error as Error).message)
          }
        }
      }),
    )
    client.say(odd)
    await turnOfLoop()
    expect(server.sent).toEqual([odd])
    expect(errors).toEqual(Array(3).fill('the message was handed on already: change it before next()'))
  })
})

it('ctx.text is the text as it came to a place, ctx.raw as it came to the proxy', async () => {
  const seen: [string, string][] = []
  const note: Middleware = (ctx, next) => {
    seen.push([ctx.text, ctx.raw])
    return next()
  }
  const rename: Middleware = (ctx, next) => {
    if (ctx.params) ctx.params.name = 'b'
    return next()
  }
  await through([note, rename, note], odd)
  expect(seen).toEqual([
    [odd, odd],
    [odd.replace('"name":"a"', '"name":"b"'), odd],
  ])
})
