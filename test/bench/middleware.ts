// What may stand in the line while it is measured: `--use test/bench/dist/middleware.js#NAME`.
import { type Context, type Middleware, type Next, onExchange, onRequest } from 'open-mcp-proxy'

const five = (make: () => Middleware) => Array.from({ length: 5 }, make)

/** What they have read, so that nobody can do without the reading. */
export let seen = 0

/** Five that read what is known without parsing. */
export const reads = () =>
  five(
    () =>
      function read(ctx: Context, next: Next) {
        const { kind, method, id, name } = ctx
        seen += kind.length + String(id).length + (method?.length ?? 0) + (name?.length ?? 0)
        return next()
      },
  )

/** One that reads the whole message. */
export const whole = () =>
  function whole(ctx: Context, next: Next) {
    seen += Object.keys(ctx.message).length
    return next()
  }

/** One that changes it. */
export const changes = () =>
  onRequest('tools/call', function change(ctx, next) {
    ctx.params.name = 'say'
    return next()
  })

/** One that waits for the answer. */
export const exchange = () =>
  onExchange('tools/call', async (_request, next) => {
    await next()
    seen++
  })

/** Five that are for other messages. */
export const others = () => five(() => onRequest('x/y', (_ctx, next) => next()))
