import { expect, it } from 'vitest'
import { LastGood } from '../../src/listener/good.js'

it('finds good what is, asks again for another value, and takes nothing for good that was not looked at', () => {
  const asked: unknown[] = []
  const good = new LastGood((value: string | undefined) => {
    asked.push(value)
    return value?.startsWith('g') === true
  })
  const values = [undefined, 'ga', 'ga', 'bad', 'ga', 'gb', 'ga', undefined]
  expect(values.map((it) => good.has(it))).toEqual([false, true, true, false, true, true, true, false])
  expect(asked).toEqual([undefined, 'ga', 'bad', 'gb', 'ga', undefined])
})
