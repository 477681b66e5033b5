/** How to test a middleware: play both ends of a whole proxy, or hand it one message. No sockets, no sleeps. */
import assert from 'node:assert/strict'
import { createProxy, type Middleware, onRequest } from 'open-mcp-proxy'
import { testContext, testProxy } from 'open-mcp-proxy/testing'

/** The middleware under test. */
function deny(...tools: string[]): Middleware {
  return onRequest('tools/call', (ctx, next) =>
    tools.includes(ctx.params.name) ? ctx.throw(-31006, 'Denied') : next(),
  )
}

const call = (id: number, name: string) => ({ id, method: 'tools/call', params: { name } })

// All that comes out on both sides is compared: a message too many is a failure, too.
const proxy = testProxy(createProxy().use(deny('rm')))
assert.deepEqual(await proxy.fromClient(call(1, 'rm')), {
  toServer: [],
  toClient: [{ jsonrpc: '2.0', id: 1, error: { code: -31006, message: 'Denied' } }],
})
assert.deepEqual(await proxy.fromClient(call(2, 'ls')), {
  toServer: [{ jsonrpc: '2.0', ...call(2, 'ls') }],
  toClient: [],
})
assert.deepEqual(await proxy.fromServer({ id: 2, result: { content: [] } }), {
  toServer: [],
  toClient: [{ jsonrpc: '2.0', id: 2, result: { content: [] } }],
})

// One message, one middleware: what it did is written down.
const { ctx, next, deeds } = testContext(call(3, 'ls'))
await deny('rm')(ctx, next)
assert.deepEqual(deeds.passed, [{ jsonrpc: '2.0', ...call(3, 'ls') }])
assert.deepEqual(deeds.replies, [])

console.log('deny() does what it should')
