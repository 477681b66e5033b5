import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import fc from 'fast-check'
import { expect, it } from 'vitest'
import { Ledger } from '../src/ledger.js'

setFlagsFromString('--expose-gc')
const gc = runInNewContext('gc') as (options?: { type: 'minor' }) => void

it('holds what a Map would, in the same order', () => {
  const key = fc.integer({ min: 0, max: 40 })
  const step = fc.oneof(
    { weight: 3, arbitrary: fc.tuple(fc.constant('set' as const), key) },
    { weight: 3, arbitrary: fc.tuple(fc.constant('delete' as const), key) },
    { weight: 1, arbitrary: fc.tuple(fc.constant('clear' as const), key) },
  )
  fc.assert(
    fc.property(fc.array(step, { maxLength: 1_000, size: 'max' }), (steps) => {
      const [ledger, map] = [new Ledger<number, { at: number }>(), new Map<number, { at: number }>()]
      for (const [at, [verb, key]] of steps.entries()) {
        if (verb === 'clear') {
          if (at % 10 > 0) continue
          ledger.clear()
          map.clear()
        } else if (verb === 'set') {
          ledger.set(key, { at })
          map.set(key, { at })
        } else expect(ledger.delete(key)).toBe(map.delete(key))
        expect([ledger.size, ledger.has(key), ledger.get(key)]).toEqual([map.size, map.has(key), map.get(key)])
      }
      expect([ledger.entries(), ledger.keys(), ledger.values()]).toEqual([[...map], [...map.keys()], [...map.values()]])
    }),
  )
})

it('tells keys apart as a Map does', () => {
  const ledger = new Ledger<unknown, { of: unknown }>()
  for (const key of [0, '', 1, '1', undefined]) ledger.set(key, { of: key })
  expect([0, '', 1, '1', undefined].map((key) => ledger.get(key))).toEqual(
    [0, '', 1, '1', undefined].map((of) => ({ of })),
  )
})

it('keeps nothing of what went but a few of its keys', () => {
  const ledger = new Ledger<object, object>()
  const [keys, values]: WeakRef<object>[][] = [[], []]
  for (let n = 0; n < 1_000; n++) {
    const [key, value] = [{ n }, { n }]
    keys!.push(new WeakRef(key))
    values!.push(new WeakRef(value))
    ledger.set(key, value)
    if (n > 0) ledger.delete(keys![n - 1]!.deref()!)
  }
  return new Promise<void>((resolve) => setImmediate(resolve)).then(() => {
    gc()
    const left = (refs: WeakRef<object>[] = []) => refs.filter((it) => it.deref() !== undefined).length
    expect([left(values), left(keys) < 200, ledger.size]).toEqual([1, true, 1])
  })
})
