import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { expect, test, vi } from 'vitest'
import { get, modernPost, onPort, openSession, post } from '../fixtures/port.js'

setFlagsFromString('--expose-gc')
const gc = runInNewContext('gc') as () => void

const timers = () => process.getActiveResourcesInfo().filter((it) => it === 'Timeout').length

/** Of so many sessions of each kind, opened, used and left, those that memory still holds. */
async function survivors(port: Awaited<ReturnType<typeof onPort>>, count: number): Promise<() => number> {
  const refs: WeakRef<object>[] = []
  for (let n = 0; n < count; n++) {
    const first = port.upstreams.length
    const legacy = await openSession(port)
    const answer = legacy.post({ jsonrpc: '2.0', id: 1, method: 'x' })
    await legacy.sent(1)
    legacy.wire.say({ id: 1, result: {} })
    await (await answer).json()
    legacy.wire.say({ id: 's', method: 'roots/list' })
    const sse = await get(`${port.origin}/sse`)
    await port.upstream(first + 1)
    sse.leave()
    const modern = modernPost(port.url, { id: 1, method: 'x' })
    const { wire } = await port.upstream(first + 2)
    await port.sent(wire, 1)
    wire.say({ id: 1, result: {} })
    await (await modern).json()
    for (const it of port.upstreams.splice(0)) refs.push(new WeakRef(it.session), new WeakRef(it.wire))
  }
  return () => refs.filter((it) => it.deref() !== undefined).length
}

test('of sessions that are over nothing is left: no timer, no entry, no memory', async () => {
  const port = await onPort({ idleTimeout: 1_000 })
  const baseline = timers()
  const left = await survivors(port, 100)
  await vi.waitFor(() => expect(port.app.stats()).toMatchObject({ sessions: 0, pending: 0 }), { timeout: 10_000 })
  expect((await post(port.url, { jsonrpc: '2.0', id: 1, method: 'x' })).status).toBe(400)
  await vi.waitFor(
    () => {
      gc()
      // What ran last may still be on somebody's stack.
      expect(left()).toBeLessThan(20)
      expect(timers()).toBeLessThanOrEqual(baseline + 2)
    },
    { timeout: 10_000 },
  )
}, 60_000)
