import { mkdirSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { createProxy } from 'open-mcp-proxy'
import { audit } from 'open-mcp-proxy/middleware'
import { afterEach, expect, test, vi } from 'vitest'
import { request, result, testProxy } from '../../src/testing.js'
import { closing } from '../fixtures/closing.js'
import { temporary } from '../fixtures/faults/child-ways.js'
import { joined } from '../fixtures/played.js'
import { call, onPort, openSession } from '../fixtures/port.js'

const HOUR = 3_600_000
const jumps = [HOUR, -HOUR]

/** The clock on the wall alone: timers go on. */
function jump(by: number) {
  vi.useFakeTimers({ toFake: ['Date'], now: Date.now() + by })
}
afterEach(() => void vi.useRealTimers())

test.each(jumps)('a clock that jumps by %i ms ends no session and no call, and keeps none', async (by) => {
  const port = await onPort({ idleTimeout: 60_000 })
  const session = await openSession(port)
  const waiting = session.post(call(1))
  await session.sent(1)
  jump(by)
  const next = session.post(call(2))
  await session.sent(1)
  session.wire.say({ id: 2, result: {} })
  session.wire.say({ id: 1, result: {} })
  expect(await Promise.all([waiting, next].map(async (it) => (await it).json()))).toMatchObject([
    { id: 1, result: {} },
    { id: 2, result: {} },
  ])
})

test.each(jumps)('a clock that jumps by %i ms is nothing to the timeout of a call', async (by) => {
  const { session, server } = await joined()
  const long = session.call('server', 'long', undefined, { timeout: HOUR / 2 })
  const short = session.call('server', 'short', undefined, { timeout: 200 })
  jump(by)
  await expect(short).rejects.toMatchObject({ code: -31002 })
  server.say({ id: JSON.parse(server.sent[0]!).id, result: {} })
  expect(await long).toEqual({})
})

test.each(jumps)('a clock that jumps by %i ms does not keep an audit trail from its file', async (by) => {
  const file = join(dirname(temporary('x')), 'later', 'audit.jsonl')
  vi.spyOn(process, 'emitWarning').mockImplementation(() => {})
  const app = createProxy({ drainTimeout: 0 }).use(audit({ file, onFull: 'deny' }))
  closing.push(() => app.close({ urgent: true }))
  const proxy = testProxy(app, { server: { 'tools/call': { content: [] } } })
  const tool = (id: number) => request(id, 'tools/call', { name: 'a' })
  const { toClient } = await proxy.fromClient(tool(1))
  expect(toClient).toMatchObject([{ id: 1, error: { code: -31005 } }])
  mkdirSync(dirname(file))
  jump(by)
  let id = 1
  await vi.waitFor(async () => {
    id += 1
    expect((await proxy.fromClient(tool(id))).toClient).toEqual([result(id, { content: [] })])
  }, 10_000)
})
