/** A middleware tested with vitest: `npx vitest run examples/test-with-vitest.test.ts`. */
import { type Middleware, onRequest } from 'open-mcp-proxy'
import { contract, error, request, result, testProxy } from 'open-mcp-proxy/testing'
import { describe, expect, test } from 'vitest'

const deny = (tool: string): Middleware =>
  onRequest('tools/call', (ctx, next) => (ctx.name === tool ? ctx.throw(-31006, 'Denied') : next()))

test('deny: three lines', async () => {
  const proxy = testProxy().use(deny('rm'))
  const { toClient, toServer } = await proxy.fromClient(request(1, 'tools/call', { name: 'rm' }))
  expect({ toClient, toServer }).toEqual({ toClient: [error(1, -31006, 'Denied')], toServer: [] })
})

test('deny: a whole conversation', async () => {
  const proxy = testProxy({ server: { 'tools/call': { content: [] } } }).use(deny('rm'))
  await proxy.fromClient(request(1, 'tools/call', { name: 'rm' }))
  await proxy.fromClient(request(2, 'tools/call', { name: 'ls' }))
  expect(await proxy.conversation()).toEqual([
    { fromClient: request(1, 'tools/call', { name: 'rm' }) },
    { toClient: error(1, -31006, 'Denied') },
    { fromClient: request(2, 'tools/call', { name: 'ls' }) },
    { toServer: request(2, 'tools/call', { name: 'ls' }) },
    { fromServer: result(2, { content: [] }) },
    { toClient: result(2, { content: [] }) },
  ])
})

describe('deny keeps what the proxy promises', () => {
  for (const { name, run } of contract(() => deny('rm'))) test(name, run)
})
