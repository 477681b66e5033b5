import type { CallToolRequest, CallToolResult, RequestId } from '@modelcontextprotocol/sdk/types.js'
import {
  type Application,
  type Context,
  createProxy,
  define,
  type Middleware,
  onExchange,
  onNotification,
  onRequest,
  onResponse,
  type Params,
  type RequestContext,
  type Result,
} from 'open-mcp-proxy'
import { testProxy } from 'open-mcp-proxy/testing'
import { describe, expectTypeOf, it } from 'vitest'

interface User {
  user: string
}
interface Trace {
  trace: number
}
const auth: Middleware<User> = (_ctx, next) => next()
const trace: Middleware<Trace> = (_ctx, next) => next()
const plain: Middleware = (_ctx, next) => next()

// What is written here is checked by tsc; to run it shows that nothing of it throws.
describe('state', () => {
  it('adds up along use', () => {
    const app = createProxy().use(auth).use(trace)
    expectTypeOf(app).toExtend<Application<User & Trace>>()
    app.use((ctx, next) => {
      expectTypeOf(ctx.state.user).toEqualTypeOf<string | undefined>()
      expectTypeOf(ctx.state.trace).toEqualTypeOf<number | undefined>()
      // @ts-expect-error: nobody said that there is such a key
      void ctx.state.other
      return next()
    })
  })

  it('adds up within one use', () => {
    createProxy()
      .use(auth, trace)
      .use((ctx, next) => {
        expectTypeOf(ctx.state).toExtend<Partial<User & Trace>>()
        return next()
      })
    createProxy().use(plain, plain, plain, plain)
    createProxy().use(...[plain, plain])
  })

  it('is kept by middleware that adds none, and by define', () => {
    const app = createProxy()
      .use(auth)
      .use(plain)
      .use(define({ role: 'observe' }, (_ctx, next) => next()))
    app.use((ctx, next) => {
      expectTypeOf(ctx.state.user).toEqualTypeOf<string | undefined>()
      return next()
    })
  })

  it('an application of any state can be tested', () => {
    testProxy(createProxy())
    testProxy(createProxy().use(auth).use(trace))
  })
})

describe('a context', () => {
  it('narrows by kind and method', () => {
    createProxy().use((ctx, next) => {
      expectTypeOf(ctx.params).toEqualTypeOf<Params | undefined>()
      expectTypeOf(ctx.id).toEqualTypeOf<RequestId | undefined>()
      if (ctx.isRequest('tools/call')) {
        expectTypeOf(ctx.kind).toEqualTypeOf<'request'>()
        expectTypeOf(ctx.id).toEqualTypeOf<RequestId>()
        expectTypeOf(ctx.method).toEqualTypeOf<'tools/call'>()
        expectTypeOf(ctx.params.name).toEqualTypeOf<string>()
        expectTypeOf<CallToolRequest['params']>().toExtend<typeof ctx.params>()
      }
      if (ctx.isNotification('notifications/progress')) expectTypeOf(ctx.params.progress).toEqualTypeOf<number>()
      if (ctx.isResponse('tools/call')) {
        expectTypeOf(ctx.request.params.name).toEqualTypeOf<string>()
        expectTypeOf(ctx.result).toExtend<CallToolResult | undefined>()
      }
      if (ctx.isRequest('vendor/x')) expectTypeOf(ctx.params).toEqualTypeOf<Params | undefined>()
      return next()
    })
  })

  it('narrows with its state', () => {
    createProxy()
      .use(auth)
      .use((ctx, next) => {
        if (ctx.isRequest('tools/call')) expectTypeOf(ctx.state.user).toEqualTypeOf<string | undefined>()
        return next()
      })
  })

  it('what is read only cannot be assigned', () => {
    const check = (ctx: Context) => {
      // @ts-expect-error: an id cannot be changed
      ctx.id = 2
      // @ts-expect-error: nor a direction
      ctx.direction = 'client-to-server'
      // @ts-expect-error: nor an error
      ctx.error = { code: 1, message: 'x' }
    }
    void check
  })

  it('call knows the result of known methods', () => {
    const check = async (ctx: Context) => {
      expectTypeOf((await ctx.call('server', 'tools/list')).tools).toBeArray()
      expectTypeOf(await ctx.call('server', 'vendor/x')).toEqualTypeOf<Result>()
      expectTypeOf(ctx.throw).returns.toBeNever()
    }
    void check
  })
})

describe('matchers', () => {
  it('know their method', () => {
    onRequest('tools/call', (ctx) => expectTypeOf(ctx.params.name).toEqualTypeOf<string>())
    onRequest(['tools/call', 'prompts/get'], (ctx) =>
      expectTypeOf(ctx.method).toEqualTypeOf<'tools/call' | 'prompts/get'>(),
    )
    onRequest(undefined, (ctx) => expectTypeOf(ctx).toExtend<RequestContext>())
    onNotification('notifications/message', (ctx) => expectTypeOf(ctx.params.data).toBeUnknown())
    onResponse('tools/list', (ctx) => expectTypeOf(ctx.result?.tools).exclude<undefined>().toBeArray())
    onExchange('tools/call', async (ctx, next) => {
      expectTypeOf(ctx.params.name).toEqualTypeOf<string>()
      const response = await next()
      expectTypeOf(response.request.params.name).toEqualTypeOf<string>()
      expectTypeOf(response.result?.content).exclude<undefined>().toBeArray()
    })
  })

  it('fit into a line', () => {
    createProxy()
      .use(auth)
      .use(onRequest('tools/call', (ctx, next) => (ctx.params.name === 'rm' ? ctx.throw(-31006, 'Denied') : next())))
      .use(onExchange('tools/call', (_ctx, next) => next()))
      .use((ctx, next) => {
        expectTypeOf(ctx.state.user).toEqualTypeOf<string | undefined>()
        return next()
      })
  })
})
