import { createProxy, RpcError } from 'open-mcp-proxy'
import { error, modern, notification, request, result, type Script, testProxy } from 'open-mcp-proxy/testing'
import { describe, expect, expectTypeOf, test } from 'vitest'

const call = request(1, 'tools/call', { name: 'a', _meta: { progressToken: 'p' } })

test('a whole conversation: progress, and a question in the middle of a call', async () => {
  const proxy = testProxy(createProxy(), {
    server: {
      'tools/call': async ({ name }, server) => {
        server.progress(1, 2)
        const { content } = await server.call('sampling/createMessage', { messages: [], maxTokens: 1 })
        server.notify('notifications/message', { level: 'info', data: name })
        return { content: [content] as never }
      },
    },
    client: { 'sampling/createMessage': { role: 'assistant', model: 'm', content: { type: 'text', text: 'b' } } },
  })
  const sampling = request('server-1', 'sampling/createMessage', { messages: [], maxTokens: 1 })
  const sampled = result('server-1', { role: 'assistant', model: 'm', content: { type: 'text', text: 'b' } })
  const progress = notification('notifications/progress', { progressToken: 'p', progress: 1, total: 2 })
  const log = notification('notifications/message', { level: 'info', data: 'a' })
  const answer = result(1, { content: [{ type: 'text', text: 'b' }] })
  expect(await proxy.fromClient(call)).toEqual({
    toServer: [call, sampled],
    toClient: [progress, sampling, log, answer],
  })
  expect(await proxy.conversation()).toEqual([
    { fromClient: call },
    { toServer: call },
    { fromServer: progress },
    { toClient: progress },
    { fromServer: sampling },
    { toClient: sampling },
    { fromClient: sampled },
    { toServer: sampled },
    { fromServer: log },
    { toClient: log },
    { fromServer: answer },
    { toClient: answer },
  ])
})

describe('an answer', () => {
  const asked = async (server: Script) => (await testProxy({ server }).fromClient(call)).toClient

  test('is a value, or made: at once, later, or not at all', async () => {
    expect(await asked({ 'tools/call': { content: [] } })).toEqual([result(1, { content: [] })])
    expect(await asked({ 'tools/call': () => ({ content: [] }) })).toEqual([result(1, { content: [] })])
    const later = async () => {
      await new Promise(setImmediate)
      return { content: [] }
    }
    expect(await asked({ 'tools/call': later })).toEqual([result(1, { content: [] })])
    expect(await asked({ 'tools/call': () => new Promise<never>(() => {}) })).toEqual([])
  })

  test('may be an error', async () => {
    const throws = () => {
      throw new RpcError(7, 'no', { a: 1 })
    }
    expect(await asked({ 'tools/call': throws })).toEqual([error(1, 7, 'no', { a: 1 })])
  })

  test('is -32601 where the script has none, whatever the name', async () => {
    expect(await asked({})).toEqual([error(1, -32601, 'Method not found: tools/call')])
    for (const method of ['constructor', '__proto__', 'toString']) {
      const { toClient } = await testProxy({ server: {} }).fromClient(request(1, method))
      expect(toClient).toEqual([error(1, -32601, `Method not found: ${method}`)])
    }
  })

  test('is not given to a request that was cancelled', async () => {
    let signal: AbortSignal | undefined
    const server: Script = {
      'tools/call': (_, player) => {
        signal = player.signal
        return new Promise((resolve) => signal?.addEventListener('abort', () => resolve({ content: [] })))
      },
    }
    const proxy = testProxy({ server })
    const cancelled = notification('notifications/cancelled', { requestId: 1 })
    await proxy.fromClient(call)
    expect(signal?.aborted).toBe(false)
    expect(await proxy.fromClient(cancelled)).toEqual({ toServer: [cancelled], toClient: [] })
    expect(signal?.aborted).toBe(true)
    expect(await proxy.conversation()).toHaveLength(4)
  })

  test('is one function for all, if that is what the test wants', async () => {
    const proxy = testProxy({ server: ({ method }) => ({ method }) })
    expect((await proxy.fromClient(request(1, 'x'))).toClient).toEqual([result(1, { method: 'x' })])
  })
})

test('an assertion that fails in a script fails the test', async () => {
  const server: Script = { 'tools/call': ({ name }) => expect(name).toBe('b') as never }
  const proxy = testProxy({ server })
  await expect(proxy.fromClient(call)).rejects.toThrow("expected 'a' to be 'b'")
  expect((await proxy.settle()).toClient).toEqual([error(1, -32603, 'Internal error')])
})

test('a question may be refused; no token, no progress', async () => {
  const server: Script = {
    'tools/call': async (_, player) => {
      player.progress(1)
      await player.call('roots/list')
      return { content: [] }
    },
  }
  const proxy = testProxy({ server, client: {} })
  expect(await proxy.fromClient(request(1, 'tools/call', { name: 'a' }))).toEqual({
    toServer: [request(1, 'tools/call', { name: 'a' }), error('server-1', -32601, 'Method not found: roots/list')],
    toClient: [request('server-1', 'roots/list'), error(1, -32601, 'Method not found: roots/list')],
  })
})

test('a function hears a notification; nothing answers it', async () => {
  const heard: unknown[] = []
  const proxy = testProxy({ server: { 'notifications/initialized': (_, { message }) => heard.push(message) } })
  const said = notification('notifications/initialized')
  expect(await proxy.fromClient(said)).toEqual({ toServer: [said], toClient: [] })
  expect(heard).toEqual([said])
})

test('modern: a stream that stays open, and a round of input', async () => {
  const proxy = testProxy({
    server: {
      'subscriptions/listen': (_, server) => {
        server.notify('notifications/subscriptions/acknowledged')
        return new Promise<never>(() => {})
      },
      'tools/call': (params) =>
        'inputResponses' in params ? { content: [] } : { resultType: 'input_required', requestState: 's' },
    },
  })
  const listen = modern(request(1, 'subscriptions/listen'))
  expect(await proxy.fromClient(listen)).toEqual({
    toServer: [listen],
    toClient: [notification('notifications/subscriptions/acknowledged')],
  })
  const first = modern(request(2, 'tools/call', { name: 'a' }))
  expect((await proxy.fromClient(first)).toClient).toEqual([
    result(2, { resultType: 'input_required', requestState: 's' }),
  ])
  const second = modern(request(3, 'tools/call', { name: 'a', inputResponses: {}, requestState: 's' }))
  expect((await proxy.fromClient(second)).toClient).toEqual([result(3, { content: [] })])
})

test('a scripted end may also be played by hand', async () => {
  const proxy = testProxy({ server: { ping: {} } })
  const changed = notification('notifications/tools/list_changed')
  expect(await proxy.fromServer(changed)).toEqual({ toServer: [], toClient: [changed] })
  expect((await proxy.fromClient(request(1, 'ping'))).toClient).toEqual([result(1)])
})

test('raw shows the bytes, the conversation what is no JSON, too', async () => {
  const proxy = testProxy()
  const text = '{ "id":1,"jsonrpc":"2.0","method":"x","params":{"a":9007199254740993,"b":1.0} }'
  await proxy.fromClient(text)
  expect(await proxy.raw()).toEqual([{ fromClient: text }, { toServer: text }])
  await proxy.fromClient('{')
  expect((await proxy.conversation()).slice(2)).toEqual([
    { fromClient: '{' },
    { toClient: { jsonrpc: '2.0', error: { code: -32700, message: expect.any(String) } } },
  ])
})

test('the principal is at the client end', () => {
  expect(testProxy({ principal: 'ada' }).session.principal).toBe('ada')
})

test('params and results are those of their method', () => {
  const script: Script = {
    'tools/call': (params, server) => {
      expectTypeOf(params.name).toEqualTypeOf<string>()
      expectTypeOf(server.call('roots/list')).resolves.toHaveProperty('roots')
      return { content: [] }
    },
    'notifications/progress': (params) => expectTypeOf(params.progress).toEqualTypeOf<number>(),
    'vendor/x': { anything: 1 },
    // @ts-expect-error: prompts/get has messages
    'prompts/get': () => ({ nothing: true }),
  }
  void script
})
