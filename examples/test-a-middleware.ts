/** How to test a middleware: play both ends of a whole proxy, or hand it one message. No sockets, no sleeps. */
import assert from 'node:assert/strict'
import { type Middleware, onRequest } from 'open-mcp-proxy'
import { error, request, result, testContext, testProxy } from 'open-mcp-proxy/testing'

/** The middleware under test. */
function deny(...tools: string[]): Middleware {
  return onRequest('tools/call', (ctx, next) =>
    tools.includes(ctx.params.name) ? ctx.throw(-31006, 'Denied') : next(),
  )
}

const call = (id: number, name: string) => request(id, 'tools/call', { name })

// All that comes out on both sides is compared: a message too many is a failure, too.
const proxy = testProxy().use(deny('rm'))
assert.deepEqual(await proxy.fromClient(call(1, 'rm')), { toServer: [], toClient: [error(1, -31006, 'Denied')] })
assert.deepEqual(await proxy.fromClient(call(2, 'ls')), { toServer: [call(2, 'ls')], toClient: [] })
assert.deepEqual(await proxy.fromServer(result(2)), { toServer: [], toClient: [result(2)] })

// A server with a script answers by itself; the conversation is all that was said, in its order.
const scripted = testProxy({ server: { 'tools/call': ({ name }) => ({ content: [{ type: 'text', text: name }] }) } })
await scripted.use(deny('rm')).fromClient(call(1, 'ls'))
assert.deepEqual(await scripted.conversation(), [
  { fromClient: call(1, 'ls') },
  { toServer: call(1, 'ls') },
  { fromServer: result(1, { content: [{ type: 'text', text: 'ls' }] }) },
  { toClient: result(1, { content: [{ type: 'text', text: 'ls' }] }) },
])

// One message, one middleware: what it did is written down.
const { ctx, next, deeds } = testContext(call(3, 'ls'))
await deny('rm')(ctx, next)
assert.deepEqual(deeds.passed, [call(3, 'ls')])
assert.deepEqual(deeds.replies, [])

console.log('deny() does what it should')
