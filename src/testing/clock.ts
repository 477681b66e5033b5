import { createRequire, syncBuiltinESMExports } from 'node:module'

/** The time, as far as a middleware can tell, in the hands of a test. */
export interface TestClock {
  /** Milliseconds since 1970; the same as `Date.now()`. */
  readonly now: number
  /** Timers that have not fired. */
  readonly timers: number
  /** Lets time pass, in milliseconds: timers fire in their order, and what they set off runs. */
  advance(milliseconds: number): Promise<void>
  /** Gives the real time back. */
  restore(): void
  [Symbol.dispose](): void
}

/** What the proxy needs to come to rest is not faked: `setImmediate`, `nextTick`, `queueMicrotask`. */
const faked = ['setTimeout', 'clearTimeout', 'setInterval', 'clearInterval', 'Date', 'performance'] as const

let current: TestClock | undefined

/** The clock that is installed. */
export function currentClock(): TestClock | undefined {
  return current
}

/**
 * Stops the time of this process until the test moves it: `setTimeout`, `setInterval` (of `node:timers/promises`, too),
 * `Date` and `performance.now`. A message that a middleware holds for a second then waits for `advance(1000)`, and
 * `testProxy` takes it as resting until then. `AbortSignal.timeout` goes by the real time: nobody can fake it.
 *
 * @param now milliseconds since 1970, or a date. @default the time it is
 * @throws `TypeError` where a clock is installed already
 * @example
 * using clock = testClock()
 * await proxy.fromClient(request(1, 'tools/list')) // is held
 * await clock.advance(1000)
 * expect((await proxy.settle()).toServer).toEqual([request(1, 'tools/list')])
 */
export function testClock(now: number | Date = Date.now()): TestClock {
  // Half as much again as the rest of the test kit takes to load, for something that few tests need.
  const { install } = createRequire(import.meta.url)('@sinonjs/fake-timers') as typeof import('@sinonjs/fake-timers')
  const fake = install({ now, toFake: [...faked] })
  syncBuiltinESMExports()
  const restore = () => {
    if (current !== clock) return
    current = undefined
    fake.uninstall()
    syncBuiltinESMExports()
  }
  const clock: TestClock = {
    get now() {
      return fake.now
    },
    get timers() {
      return fake.countTimers()
    },
    async advance(milliseconds) {
      await fake.tickAsync(milliseconds)
    },
    restore,
    [Symbol.dispose]: restore,
  }
  current = clock
  return clock
}
