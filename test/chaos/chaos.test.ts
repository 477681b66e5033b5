import { randomInt } from 'node:crypto'
import { describe, expect, test } from 'vitest'
import { Account } from './checker.js'
import { planOf, rows } from './plan.js'
import { runStage } from './stage.js'

const random = randomInt(2 ** 31)

/** Its first wave, which is long enough to be seen. */
async function run(seed: number, index: number) {
  const plan = planOf(seed, index)
  return runStage({ ...plan, waves: plan.waves.slice(0, 1) }, new Account())
}

describe('every way through the proxy keeps its promises when everything breaks', () => {
  test.each(rows.map(({ name }, index) => ({ name, index })))('$name', async ({ index }) => {
    expect(await run(5, index)).toEqual([])
  })

  test(`one that nobody has seen before: npm run chaos -- --seed ${random} --stage ${random % rows.length}`, async () => {
    expect(await run(random, random % rows.length)).toEqual([])
  })
})

test('the same seed plans the same', () => {
  expect(planOf(7, 3)).toEqual(planOf(7, 3))
  expect(planOf(8, 3)).not.toEqual(planOf(7, 3))
})
