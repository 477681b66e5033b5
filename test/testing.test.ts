import { createProxy, type Middleware, RpcError } from 'open-mcp-proxy'
import { testContext, testProxy } from 'open-mcp-proxy/testing'
import { describe, expect, it, vi } from 'vitest'

const jsonrpc = '2.0'

describe('testProxy', () => {
  it('plays both ends; each step gives all that came out because of it', async () => {
    const proxy = testProxy(
      createProxy().use(async (ctx, next) => {
        await new Promise((resolve) => setTimeout(resolve, 2))
        if (ctx.kind === 'request') await ctx.notify('client', 'noted')
        await next()
      }),
    )
    expect(await proxy.fromClient({ id: 1, method: 'm' })).toEqual({
      toServer: [{ jsonrpc, id: 1, method: 'm' }],
      toClient: [{ jsonrpc, method: 'noted' }],
    })
    expect(await proxy.fromServer('{"jsonrpc":"2.0","id":1,"result":{"x":1.0}}')).toEqual({
      toServer: [],
      toClient: [{ jsonrpc, id: 1, result: { x: 1 } }],
    })
    expect(await proxy.settle()).toEqual({ toServer: [], toClient: [] })
  })

  it('does not wait for a peer: a call of a middleware is answered by the test', async () => {
    const proxy = testProxy(
      createProxy().use(async (ctx, next) => {
        if (ctx.isRequest('m')) await ctx.call('server', 'tools/list')
        return next()
      }),
    )
    const { toServer } = await proxy.fromClient({ id: 1, method: 'm' })
    expect(toServer).toEqual([{ jsonrpc, id: expect.any(String), method: 'tools/list' }])
    const [question] = toServer as unknown as [{ id: string }]
    expect(await proxy.fromServer({ id: question.id, result: {} })).toEqual({
      toServer: [{ jsonrpc, id: 1, method: 'm' }],
      toClient: [],
    })
  })

  it('a call of the test itself does not hide what is still on its way', async () => {
    const proxy = testProxy(
      createProxy().use(async (ctx, next) => {
        if (ctx.method === 'slow') await new Promise((resolve) => setTimeout(resolve, 5))
        return next()
      }),
    )
    const answer = proxy.session.call('server', 'x')
    const { toServer } = await proxy.fromClient({ method: 'slow' })
    expect(toServer).toEqual([
      { jsonrpc, id: expect.any(String), method: 'x' },
      { jsonrpc, method: 'slow' },
    ])
    await proxy.fromServer({ id: (toServer[0] as { id: string }).id, result: { done: true } })
    expect(await answer).toEqual({ done: true })
  })

  it('works under fake timers: settle gives what a timer brought', async () => {
    vi.useFakeTimers()
    try {
      const proxy = testProxy(
        createProxy().use((ctx, next) => {
          if (ctx.kind === 'request') setTimeout(() => void ctx.fail(new RpcError(7, 'slow')), 1000)
          return next()
        }),
      )
      expect((await proxy.fromClient({ id: 1, method: 'm' })).toClient).toEqual([])
      vi.advanceTimersByTime(1000)
      expect(await proxy.settle()).toEqual({
        toServer: [],
        toClient: [{ jsonrpc, id: 1, error: { code: 7, message: 'slow' } }],
      })
    } finally {
      vi.useRealTimers()
    }
  })

  it('either end may leave', async () => {
    const proxy = testProxy()
    await proxy.fromClient({ id: 1, method: 'm' })
    expect(await proxy.end('server')).toEqual({
      toServer: [],
      toClient: [{ jsonrpc, id: 1, error: expect.objectContaining({ code: -31001 }) }],
    })
    const other = testProxy(createProxy().on('error', () => {}))
    expect(await other.end('client', new Error('reset'))).toEqual({ toServer: [], toClient: [] })
    expect(other.session.signal.aborted).toBe(true)
  })
})

describe('testContext', () => {
  const call = { id: 1, method: 'tools/call', params: { name: 'a' } }

  it('takes note of what a middleware did', async () => {
    const { ctx, next, deeds } = testContext(call, {
      state: { user: 'u' },
      extra: { status: 200 },
      call: () => ({ tools: [] }),
    })
    const middleware: Middleware<{ user: string }> = async (it, hand) => {
      it.stepAside()
      if (it.isRequest('tools/call')) it.params.name = 'b'
      await it.notify('client', 'n', { user: it.state.user })
      expect(await it.call('server', 'tools/list')).toEqual({ tools: [] })
      await hand()
    }
    await middleware(ctx as never, next)
    expect(deeds).toEqual({
      passed: [{ jsonrpc, id: 1, method: 'tools/call', params: { name: 'b' } }],
      replies: [],
      dropped: false,
      steppedAside: true,
      notified: [{ to: 'client', method: 'n', params: { user: 'u' } }],
      called: [{ to: 'server', method: 'tools/list' }],
    })
  })

  it('of replies, errors and drops too', async () => {
    const replied = testContext(call)
    await replied.ctx.reply({ x: 1 })
    expect(() => replied.ctx.reply()).toThrow('outcome already')
    await expect(replied.next()).rejects.toThrow('next() after reply()')
    const failed = testContext(call)
    await failed.ctx.fail(new RpcError(7, 'no'))
    const broken = testContext(call)
    await broken.ctx.fail(new Error('secret'))
    const dropped = testContext(call)
    dropped.ctx.drop()
    expect([replied, failed, broken, dropped].map(({ deeds }) => [deeds.replies, deeds.dropped])).toEqual([
      [[{ result: { x: 1 } }], false],
      [[{ error: { code: 7, message: 'no' } }], false],
      [[{ error: { code: -32603, message: 'Internal error' } }], false],
      [[], true],
    ])
    expect(() => testContext({ method: 'n' }).ctx.reply()).toThrow(TypeError)
  })

  it('plays a response with its request', () => {
    const { ctx } = testContext({ id: 1, result: {} }, { request: call })
    expect([ctx.kind, ctx.direction, ctx.method, ctx.request?.params, ctx.request?.direction]).toEqual([
      'response',
      'server-to-client',
      'tools/call',
      { name: 'a' },
      'client-to-server',
    ])
  })

  it('has a signal that a test may abort, and a call that must be answered', async () => {
    const { ctx, abort } = testContext(call)
    abort(new Error('enough'))
    expect([ctx.signal.aborted, ctx.session.signal.aborted]).toEqual([true, true])
    await expect(ctx.call('server', 'x')).rejects.toThrow('testContext: expected options.call to answer x, got none')
  })
})
