import { afterEach, beforeEach, expect, it, vi } from 'vitest'
import { Silence } from '../src/quiet.js'

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] })
})
afterEach(() => {
  vi.useRealTimers()
})

/** Those that were told, and when. */
function watched(milliseconds: number) {
  const silence = new Silence(milliseconds)
  const told: [name: string, at: number][] = []
  const started = performance.now()
  const quiet = (name: string) => ({ late: () => told.push([name, performance.now() - started]) })
  return { silence, told, quiet }
}

it('tells each when its own time is over, and nobody who has ended before', () => {
  const { silence, told, quiet } = watched(100)
  const [a, b, c] = [quiet('a'), quiet('b'), quiet('c')]
  silence.begin(a)
  vi.advanceTimersByTime(40)
  const second = silence.begin(b)
  silence.begin(c)
  silence.end(second)
  vi.advanceTimersByTime(200)
  silence.begin(b)
  vi.advanceTimersByTime(200)
  expect(told).toEqual([
    ['a', 100],
    ['c', 140],
    ['b', 340],
  ])
})

it('has one timer for all, and none for nobody', () => {
  const { silence, told, quiet } = watched(100)
  const all = Array.from({ length: 10 }, (_, index) => quiet(String(index)))
  const numbers = all.map((it) => silence.begin(it))
  expect(vi.getTimerCount()).toBe(1)
  for (const it of numbers) silence.end(it)
  vi.advanceTimersByTime(100)
  expect([vi.getTimerCount(), told]).toEqual([0, []])
})

it('0 is off', () => {
  const { silence, told, quiet } = watched(0)
  silence.begin(quiet('a'))
  expect(vi.getTimerCount()).toBe(0)
  vi.advanceTimersByTime(1_000)
  expect(told).toEqual([])
})
