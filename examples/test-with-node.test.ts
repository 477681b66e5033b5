/** A middleware tested with node:test: `node --import tsx --test examples/test-with-node.test.ts`. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { type Middleware, onRequest } from 'open-mcp-proxy'
import { contract, request, testClock, testProxy } from 'open-mcp-proxy/testing'

const delay = (milliseconds: number): Middleware =>
  onRequest('tools/call', async (ctx, next) => {
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, milliseconds)
      ctx.signal.addEventListener('abort', () => {
        clearTimeout(timer)
        resolve()
      })
    })
    return next()
  })

test('delay: three lines', async () => {
  const proxy = testProxy().use(delay(0))
  const { toServer } = await proxy.fromClient(request(1, 'tools/call', { name: 'ls' }))
  assert.deepEqual(toServer, [request(1, 'tools/call', { name: 'ls' })])
})

test('delay: a clock that the test moves', async (t) => {
  const clock = testClock()
  t.after(() => clock.restore())
  const proxy = testProxy().use(delay(60_000))
  assert.deepEqual(await proxy.fromClient(request(1, 'tools/call', { name: 'ls' })), { toClient: [], toServer: [] })
  await clock.advance(60_000)
  assert.deepEqual((await proxy.settle()).toServer, [request(1, 'tools/call', { name: 'ls' })])
})

for (const { name, run } of contract(() => delay(5))) test(`delay keeps: ${name}`, run)
