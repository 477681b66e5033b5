import assert from 'node:assert/strict'
import { invariants } from './invariants.js'
import { type ContractOptions, type MakeStack, Trial } from './trial.js'
import { Watch } from './watch.js'

/** One thing that the proxy promises and a middleware could break. */
export interface Invariant {
  readonly name: string
  /** @throws (rejects) `AssertionError` where it is broken */
  readonly run: () => Promise<void>
}

/**
 * What every middleware must leave intact, as a list of tests: each request gets exactly one outcome, its own; order;
 * bytes; cancellation; either end gone; sessions apart; nothing left behind. A request that the middleware answers itself
 * is no breach.
 *
 * @param stack makes what is to be tested, anew for each test
 * @example for (const { name, run } of contract(() => cache({ ttl: 60 }))) test(name, run)
 * @example contract(guard, { principal: 'ada', requests: [{ method: 'tools/call', params: { name: 'allowed' } }] })
 */
export function contract(stack: MakeStack, options: ContractOptions = {}): Invariant[] {
  return invariants.map(([name, play]) => ({
    name,
    run: async () => {
      const watch = new Watch()
      await watch.over(async () => {
        const trial = new Trial(stack, options, watch)
        try {
          await trial.start()
          await play(trial, stack)
          await trial.stop()
          await trial.clean()
          assert.deepEqual(trial.errors, [], 'expected no error to be reported')
        } catch (error) {
          trial.abandon()
          if (error instanceof assert.AssertionError && trial.errors.length > 0) {
            error.message += `\nThe application reported: ${[...new Set(trial.errors)].join('; ')}`
          }
          throw error
        }
      })
    },
  }))
}
