import fc from 'fast-check'
import { vi } from 'vitest'

/** `FC_RUNS=100` searches a hundred times as long as the suite does. */
const factor = Number(process.env.FC_RUNS ?? 1)

vi.setConfig({ testTimeout: Math.max(30_000, factor * 60_000) })

/** So many runs, or as many more as were asked for. */
export const runs = (usual: number) => ({ numRuns: Math.ceil(usual * factor) })

/** Up to so many, and often as many: of its own fast-check rarely makes more than ten. */
export const many = <T>(one: fc.Arbitrary<T>, maxLength: number) => fc.array(one, { maxLength, size: 'max' })

/** How a stream of bytes comes: cut at any place, also inside a character. */
export const sizes = fc.array(fc.integer({ min: 1, max: 24 }), { minLength: 1, maxLength: 12 })

export function cut(bytes: Buffer, sizes: readonly number[]): Buffer[] {
  const chunks: Buffer[] = []
  for (let at = 0, turn = 0; at < bytes.length; turn++) {
    const size = sizes[turn % sizes.length]!
    chunks.push(bytes.subarray(at, at + size))
    at += size
  }
  return chunks
}
