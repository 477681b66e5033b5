export function quantile(values: ArrayLike<number>, at: number): number {
  const sorted = Float64Array.from(values).sort()
  const index = (sorted.length - 1) * at
  const below = sorted[Math.floor(index)] ?? Number.NaN
  const above = sorted[Math.ceil(index)] ?? Number.NaN
  return below + (above - below) * (index % 1)
}

export const median = (values: ArrayLike<number>) => quantile(values, 0.5)

/** The values of one metric, by the round in which they were measured. */
export type Samples = Map<number, number>

/**
 * The median of the ratios of each round: what disturbs one round disturbs both. And the ratio of the best of each: what
 * disturbs only slows. Where they disagree it was the machine.
 */
export function ratio(of: Samples, to: Samples, isMoreBetter: boolean): { median: number; best: number } | undefined {
  const ratios = [...of].flatMap(([round, value]) => {
    const other = to.get(round)
    return other ? [value / other] : []
  })
  if (ratios.length === 0) return undefined
  const best = (all: Samples) => (isMoreBetter ? Math.max : Math.min)(...all.values())
  return { median: median(ratios), best: best(of) / best(to) }
}
