import { expect, it } from 'vitest'
import { Rest } from '../src/rest.js'
import { deferred } from './fixtures/played.js'

it('is quiet while whatever is on its way waits for something else', async () => {
  const rest = new Rest()
  expect(rest.isQuiet).toBe(true)
  rest.begin()
  expect([rest.active, rest.isQuiet]).toEqual([1, false])
  const gate = deferred<number>()
  const waiting = rest.waiting(gate.promise)
  expect(rest.isQuiet).toBe(true)
  gate.resolve(7)
  expect(await waiting).toBe(7)
  expect(rest.isQuiet).toBe(false)
  rest.end()
  expect([rest.active, rest.isQuiet]).toEqual([0, true])
})

it('until resolves as soon as the condition holds, not before', async () => {
  const rest = new Rest()
  let ready = false
  const log: string[] = []
  const until = rest.until(() => ready).then(() => log.push('until'))
  rest.check()
  await Promise.resolve()
  expect(log).toEqual([])
  ready = true
  rest.check()
  await until
  expect(log).toEqual(['until'])
  await rest.until(() => true)
})

it('within waits no longer than it was told, however long that may be', async () => {
  const rest = new Rest()
  await rest.within(1, () => false)
  let ready = false
  const within = rest.within(Number.POSITIVE_INFINITY, () => ready)
  await new Promise((resolve) => setTimeout(resolve, 5))
  const first = await Promise.race([within.then(() => 'over'), Promise.resolve('waiting')])
  ready = true
  rest.check()
  await within
  expect(first).toBe('waiting')
})
