import { FrameError } from 'open-mcp-proxy'
import { describe, expect, it } from 'vitest'
import { deferred, joined, proxys, turnOfLoop } from '../fixtures/played.js'

const inUse = (id: unknown) => ({ code: -32600, message: `Invalid request: id ${JSON.stringify(id)} is in use` })

describe('an id in flight', () => {
  it('is refused with -32600; the first is not affected', async () => {
    const { client, server } = await joined()
    client.say({ id: 1, method: 'a' })
    client.say({ id: 1, method: 'b' })
    await turnOfLoop()
    expect(client.take()).toEqual([{ id: 1, error: inUse(1) }])
    server.say({ id: 1, result: { of: 'a' } })
    await turnOfLoop()
    expect({ sent: server.take(), back: client.take() }).toEqual({
      sent: [{ id: 1, method: 'a' }],
      back: [{ id: 1, result: { of: 'a' } }],
    })
  })

  it('is refused while held, and while its answer is on its way', async () => {
    const gate = deferred()
    const { client, server } = await joined((app) => app.use((_ctx, next) => gate.promise.then(next)))
    client.say({ id: 'x', method: 'a' })
    client.say({ id: 'x', method: 'b' })
    await turnOfLoop()
    expect({ sent: server.take(), back: client.take() }).toEqual({ sent: [], back: [{ id: 'x', error: inUse('x') }] })
    gate.resolve()
  })

  it('of one side says nothing of the other side, and 1 nothing of "1"', async () => {
    const { client, server } = await joined()
    client.say({ id: 1, method: 'a' })
    client.say({ id: '1', method: 'b' })
    server.say({ id: 1, method: 'c' })
    await turnOfLoop()
    expect({ sent: server.take(), back: client.take() }).toEqual({
      sent: [
        { id: 1, method: 'a' },
        { id: '1', method: 'b' },
      ],
      back: [{ id: 1, method: 'c' }],
    })
  })

  it('may be used again after its answer', async () => {
    const { client, server } = await joined()
    for (let n = 0; n < 3; n++) {
      client.say({ id: 1, method: 'a' })
      server.say({ id: 1, result: { n } })
    }
    await turnOfLoop()
    expect(server.take()).toEqual(Array(3).fill({ id: 1, method: 'a' }))
    expect(client.take()).toEqual([0, 1, 2].map((n) => ({ id: 1, result: { n } })))
  })
})

describe('what the client says that is no message', () => {
  const cases: [string, string, object | undefined][] = [
    ['no JSON', '{"jsonrpc":', { error: { code: -32700, message: 'Parse error: Unexpected end of JSON text' } }],
    ['no object', '42', { error: { code: -32600, message: 'Invalid request: expected an object' } }],
    ['an empty batch', '[]', { error: { code: -32600, message: 'Invalid request: empty batch' } }],
    [
      'an ambiguous request',
      '{"jsonrpc":"2.0","id":7,"method":"a","method":"b"}',
      { id: 7, error: { code: -32600, message: 'Invalid request: ambiguous member "method"' } },
    ],
    [
      'an ambiguous id',
      '{"jsonrpc":"2.0","id":7,"ID":8,"method":"a"}',
      { error: { code: -32600, message: 'Invalid request: ambiguous member "id"' } },
    ],
    ['an ambiguous notification', '{"jsonrpc":"2.0","method":"a","METHOD":"b"}', undefined],
  ]
  for (const [name, text, told] of cases) {
    it(name, async () => {
      const { client, server, app, errors } = await joined((it) => it.use(() => expect.unreachable()))
      client.say(text)
      await turnOfLoop()
      expect({ back: client.take(), sent: server.take() }).toEqual({ back: told ? [told] : [], sent: [] })
      expect(app.stats().dropped).toBe(told ? 0 : 1)
      expect(errors.length).toBe(told ? 0 : 1)
    })
  }

  it('an answer: the server, which asked, is told', async () => {
    const { client, server } = await joined()
    server.say({ id: 1, method: 'roots/list' })
    client.say('{"jsonrpc":"2.0","id":1,"result":{},"Result":{}}')
    await turnOfLoop()
    expect(server.take()).toEqual([
      {
        id: 1,
        error: proxys(
          -31003,
          'Bad response from upstream: Invalid request: ambiguous member "result"',
          'upstream_bad_response',
          'sent',
          false,
        ),
      },
    ])
  })
})

describe('what the server says that is no message', () => {
  it('garbage is dropped, reported and counted; the session goes on', async () => {
    const { client, server, app, errors } = await joined()
    server.say('Listening on port 3000')
    server.say('[]')
    server.say({ method: 'n' })
    await turnOfLoop()
    expect({ back: client.take(), sent: server.take(), errors }).toEqual({
      back: [{ method: 'n' }],
      sent: [],
      errors: [
        'a message of the server was dropped: Parse error: Unexpected byte at offset 0',
        'a message of the server was dropped: Invalid request: empty batch',
      ],
    })
    expect(app.stats().dropped).toBe(2)
  })

  it('an ambiguous answer: whoever asked is told -31003, through the line', async () => {
    const seen: unknown[] = []
    const { client, server, session } = await joined((app) =>
      app.use((ctx, next) => {
        if (ctx.kind === 'response') seen.push(ctx.error?.code)
        return next()
      }),
    )
    client.say({ id: 1, method: 'm' })
    server.say('{"jsonrpc":"2.0","id":1,"result":{},"result":{}}')
    server.say('{"jsonrpc":"2.0","id":2,"result":{},"result":{}}')
    await turnOfLoop()
    expect(client.take()).toEqual([{ id: 1, error: expect.objectContaining({ code: -31003 }) }])
    const own = session.call('server', 'x').catch((error) => error.code)
    const [, question] = server.take()
    server.say(`{"jsonrpc":"2.0","id":${JSON.stringify(question?.id)},"error":{},"ERROR":{}}`)
    expect(await own).toBe(-31003)
    expect(seen).toEqual([-31003, -31003])
  })

  it('an ambiguous request: the server is told', async () => {
    const { client, server } = await joined()
    server.say('{"jsonrpc":"2.0","id":3,"method":"roots/list","params":{"name":1,"Name":2}}')
    await turnOfLoop()
    expect({ back: client.take(), sent: server.take() }).toEqual({
      back: [],
      sent: [{ id: 3, error: { code: -32600, message: 'Invalid request: ambiguous member "name" in params' } }],
    })
  })

  it('an answer that nobody waits for is counted', async () => {
    const { client, server, app } = await joined()
    client.say({ id: 1, method: 'm' })
    server.say({ id: '1', result: {} })
    server.say({ id: 1, result: {} })
    server.say({ id: 1, result: {} })
    await turnOfLoop()
    expect(client.take()).toEqual([{ id: 1, result: {} }])
    expect(app.stats().dropped).toBe(2)
  })

  it("an answer before the question was sent is nobody's", async () => {
    const gate = deferred()
    const { client, server } = await joined((app) =>
      app.use((ctx, next) => (ctx.kind === 'request' ? gate.promise.then(next) : next())),
    )
    client.say({ id: 1, method: 'm' })
    server.say({ id: 1, result: { guessed: true } })
    gate.resolve()
    await turnOfLoop()
    server.say({ id: 1, result: {} })
    await turnOfLoop()
    expect(client.take()).toEqual([{ id: 1, result: {} }])
  })
})

it('a batch is split, each element on its own', async () => {
  const { client, server } = await joined()
  client.say(
    '[{"jsonrpc":"2.0","id":1,"method":"a"}, [{"jsonrpc":"2.0","id":2,"method":"a"}],{"jsonrpc":"2.0","method":"n"} ,{"jsonrpc":"2.0","id":1,"method":"b"}]',
  )
  await turnOfLoop()
  expect(server.sent).toEqual(['{"jsonrpc":"2.0","id":1,"method":"a"}', '{"jsonrpc":"2.0","method":"n"}'])
  expect(client.take()).toEqual([
    { error: { code: -32600, message: 'Invalid request: expected an object' } },
    { id: 1, error: inUse(1) },
  ])
})

describe('a frame that the wire could not take', () => {
  const head = (text: string) => new TextEncoder().encode(text)
  const tooLarge = (text?: string) =>
    new FrameError(-31007, 'Message too large: over 10 bytes', text === undefined ? undefined : head(text))
  const told = (phase: 'sent' | 'not_sent') =>
    proxys(-31007, 'Message too large: over 10 bytes', 'too_large', phase, false)

  it('a request: its sender is told', async () => {
    const { client, server, errors } = await joined()
    client.onerror?.(tooLarge('{"jsonrpc":"2.0","id":1,"method":"m","params":{'))
    server.onerror?.(tooLarge('{"jsonrpc":"2.0","id":2,"method":"m","params":{'))
    client.onerror?.(tooLarge())
    await turnOfLoop()
    expect({ back: client.take(), sent: server.take(), errors }).toEqual({
      back: [{ id: 1, error: told('not_sent') }, { error: told('not_sent') }],
      sent: [{ id: 2, error: told('not_sent') }],
      errors: [],
    })
  })

  it('of the client, no text: -32700', async () => {
    const { client } = await joined()
    client.onerror?.(new FrameError(-32700, 'Parse error: not UTF-8'))
    await turnOfLoop()
    expect(client.take()).toEqual([{ error: { code: -32700, message: 'Parse error: not UTF-8' } }])
  })

  it('an answer: whoever asked is told', async () => {
    const { client, server, errors, app } = await joined()
    client.say({ id: 1, method: 'm' })
    client.say({ id: 2, method: 'm' })
    server.onerror?.(tooLarge('{"jsonrpc":"2.0","id":2,"result":{'))
    await turnOfLoop()
    expect({ back: client.take(), errors }).toEqual({
      back: [{ id: 2, error: told('sent') }],
      errors: ['Message too large: over 10 bytes'],
    })
    expect(app.stats()).toMatchObject({ pending: 1, dropped: 1 })
  })

  it('of the server, unknown: everybody whom it owes an answer is told', async () => {
    const { client, server } = await joined()
    client.say({ id: 1, method: 'm' })
    client.say({ id: 2, method: 'm' })
    server.onerror?.(tooLarge())
    await turnOfLoop()
    expect(client.take()).toEqual([1, 2].map((id) => ({ id, error: told('sent') })))
  })

  it('any other error of a wire is reported', async () => {
    const { client, server, errors } = await joined()
    client.onerror?.(new Error('a'))
    server.onerror?.(new Error('b'))
    expect(errors).toEqual(['a', 'b'])
  })
})
