import { setTimeout as sleep } from 'node:timers/promises'
import { createProxy, type Middleware, onRequest, RpcError } from 'open-mcp-proxy'
import { error, request, result, type TestClock, testClock, testProxy } from 'open-mcp-proxy/testing'
import { afterEach, beforeEach, expect, test } from 'vitest'

const real = { setTimeout, setInterval, clearTimeout, Date, now: performance.now }
const nothing = { toClient: [], toServer: [] }
let clock: TestClock

beforeEach(() => {
  clock = testClock(new Date('2026-01-02T03:04:05Z'))
})

afterEach(() => clock.restore())

const waiting = (wait: () => Promise<unknown>): Middleware =>
  onRequest(undefined, async (_ctx, next) => {
    await wait()
    return next()
  })

test.each<[string, () => Promise<unknown>]>([
  ['setTimeout', () => new Promise((resolve) => setTimeout(resolve, 1_000))],
  ['node:timers/promises', () => sleep(1_000)],
  ['several timers', async () => [await sleep(400), await sleep(600)]],
])('what %s holds leaves when the clock has come so far', async (_, wait) => {
  const proxy = testProxy().use(waiting(wait))
  expect(await proxy.fromClient(request(1, 'x'))).toEqual(nothing)
  await clock.advance(999)
  expect(await proxy.settle()).toEqual(nothing)
  await clock.advance(1)
  expect(await proxy.settle()).toEqual({ toClient: [], toServer: [request(1, 'x')] })
})

test('the timeout of a call of the proxy is on the clock', async () => {
  const proxy = testProxy().use(
    onRequest('x', async (ctx, next) => {
      await ctx.call('server', 'y', undefined, { timeout: 5_000 })
      return next()
    }),
  )
  expect((await proxy.fromClient(request(1, 'x'))).toClient).toEqual([])
  await clock.advance(5_000)
  const { toClient } = await proxy.settle()
  expect(toClient).toEqual([error(1, -31002, 'Upstream timed out', expect.objectContaining({ phase: 'sent' }))])
})

test('a scripted end goes by it, too', async () => {
  const proxy = testProxy({ server: { ping: () => sleep(1_000, {}) } })
  expect((await proxy.fromClient(request(1, 'ping'))).toClient).toEqual([])
  await clock.advance(1_000)
  expect((await proxy.settle()).toClient).toEqual([result(1)])
})

test('what waits for a file is waited for', async () => {
  const { readFile } = await import('node:fs/promises')
  const read = async () => {
    for (let n = 0; n < 100; n++) await readFile(new URL(import.meta.url))
  }
  const idle = setTimeout(() => {}, 60_000)
  const proxy = testProxy().use(waiting(read))
  expect((await proxy.fromClient(request(1, 'x'))).toServer).toEqual([request(1, 'x')])
  clearTimeout(idle)
})

test('dates, intervals and timestamps', async () => {
  const timestamps: number[] = []
  const app = createProxy().use((ctx, next) => {
    timestamps.push(Math.round(ctx.timestamp))
    return next()
  })
  const proxy = testProxy(app)
  let ticks = 0
  const interval = setInterval(() => ticks++, 100)
  const start = Date.UTC(2026, 0, 2, 3, 4, 5)
  expect([clock.now, Date.now(), clock.timers]).toEqual([start, start, 1])
  expect(new Date().toISOString()).toBe('2026-01-02T03:04:05.000Z')
  await proxy.fromClient(request(1, 'x'))
  await clock.advance(1_000)
  await proxy.fromClient(request(2, 'x'))
  clearInterval(interval)
  expect([clock.now - start, performance.now(), ticks, clock.timers]).toEqual([1_000, 1_000, 10, 0])
  expect(timestamps).toEqual([start, start + 1_000])
})

test('what the proxy needs is real; so is everything afterwards', async () => {
  await new Promise((resolve) => setImmediate(resolve))
  await new Promise((resolve) => process.nextTick(resolve))
  expect(globalThis.setTimeout).not.toBe(real.setTimeout)
  clock.restore()
  clock.restore()
  expect({ setTimeout, setInterval, clearTimeout, Date, now: performance.now }).toEqual(real)
  await sleep(1)
})

test('there is one at a time, which `using` gives back', async () => {
  expect(() => testClock()).toThrow(TypeError)
  clock.restore()
  const before = Date.now()
  {
    using inner = testClock()
    expect(inner.now).toBeGreaterThanOrEqual(before)
    expect(setTimeout).not.toBe(real.setTimeout)
  }
  expect(setTimeout).toBe(real.setTimeout)
})

test('an error of a timer is told as ever', async () => {
  const proxy = testProxy().use((ctx, next) => {
    if (ctx.kind === 'request') setTimeout(() => void ctx.fail(new RpcError(7, 'slow')), 1_000)
    return next()
  })
  await proxy.fromClient(request(1, 'x'))
  await clock.advance(1_000)
  expect((await proxy.settle()).toClient).toEqual([error(1, 7, 'slow')])
})
