import { createProxy, onExchange } from 'open-mcp-proxy'
import { testProxy } from 'open-mcp-proxy/testing'
import { expect, test } from 'vitest'

test('a message walks the line, there and back', async () => {
  const seen: string[] = []
  const app = createProxy()
    .use(async function a(ctx, next) { seen.push('a ' + ctx.direction + ctx.method); await next(); seen.push('a done') })
    .use(onExchange('tools/call', async (request, next) => {
      seen.push('x ' + request.params.name)
      const response = await next()
      response.result = { ...response.result, hi: 1 } as never
      seen.push('x back')
    }))
  const proxy = testProxy(app)
  expect(await proxy.fromClient({ id: 1, method: 'tools/call', params: { name: 'e' } })).toEqual({ toClient: [], toServer: [{ jsonrpc: '2.0', id: 1, method: 'tools/call', params: { name: 'e' } }] })
  expect(await proxy.fromServer({ id: 1, result: { content: [] } })).toEqual({ toServer: [], toClient: [{ jsonrpc: '2.0', id: 1, result: { content: [], hi: 1 } }] })
  expect(seen).toEqual([])
})
