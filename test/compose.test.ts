import { describe, expect, it } from 'vitest'
import { compose, Stack, type Step } from '../src/compose.js'

const step =
  (name: string): Step<string[]> =>
  async (log, next) => {
    log.push(`> ${name}`)
    await next()
    log.push(`< ${name}`)
  }

describe('compose', () => {
  it('runs the steps in order, then the last', async () => {
    const log: string[] = []
    await compose([step('a'), step('b')])(log, (it) => it.push('last'))
    expect(log).toEqual(['> a', '> b', 'last', '< b', '< a'])
  })

  it('a second next() of a step rejects', async () => {
    const twice: Step<string[]> = async (_log, next) => {
      await next()
      await next()
    }
    const log: string[] = []
    await expect(compose([twice])(log, (it) => it.push('last'))).rejects.toThrow('next() called multiple times')
    expect(log).toEqual(['last'])
  })

  it('what a step throws rejects, synchronously or not', async () => {
    const throws: Step<unknown> = () => {
      throw new Error('no')
    }
    await expect(compose([throws])(undefined, () => {})).rejects.toThrow('no')
    await expect(
      compose([(_it: unknown, next) => next()])(undefined, () => Promise.reject(new Error('last'))),
    ).rejects.toThrow('last')
  })
})

describe('Stack', () => {
  const stack = new Stack<string[]>([() => {}, () => {}, () => {}], (_middleware, place) => step(String(place)))
  const walk = async (from: number, to: number) => {
    const log: string[] = []
    await stack.between(from, to)?.(log, () => {})
    return log
      .filter((it) => it.startsWith('>'))
      .map((it) => it.slice(2))
      .join(' ')
  }

  it('gives the chain between any two places, both excluded', async () => {
    expect(stack.size).toBe(3)
    expect(await walk(-1, 3)).toBe('0 1 2')
    expect(await walk(3, -1)).toBe('2 1 0')
    expect(await walk(0, 3)).toBe('1 2')
    expect(await walk(2, -1)).toBe('1 0')
    expect(await walk(-1, 1)).toBe('0')
    expect(await walk(3, 0)).toBe('2 1')
  })

  it('gives nothing where nothing lies between', () => {
    for (const [from, to] of [
      [0, 1],
      [1, 0],
      [0, 0],
      [2, 3],
      [0, -1],
    ] as const)
      expect(stack.between(from, to)).toBeUndefined()
    expect(new Stack<unknown>([], () => () => {}).between(-1, 0)).toBeUndefined()
  })

  it('passes by what does not concern a message, all of it without a chain where nothing does', async () => {
    const some = new Stack<string[]>([() => {}, () => {}, () => {}, () => {}], (_middleware, place) => {
      const it = step(String(place))
      if (place < 3) it.concerns = (log) => log[0] === `for ${place}`
      return it
    })
    const walk = async (log: string[], to: number) => {
      const chain = some.between(-1, to)
      await chain?.(log, () => {})
      return [chain?.concerns?.(log), log.filter((it) => it.startsWith('>')).join(' ')]
    }
    expect(await walk(['for 1'], 3)).toEqual([true, '> 0 > 1 > 2'])
    expect(await walk(['for none'], 3)).toEqual([false, ''])
    expect(await walk(['for none'], 4)).toEqual([undefined, '> 3'])
    expect([0, 1, 3].map((place) => some.concerns(place, ['for 1']))).toEqual([false, true, true])
  })

  it('makes each chain once', () => {
    expect(stack.between(-1, 3)).toBe(stack.between(-1, 3))
    expect(stack.between(-1, 2)).not.toBe(stack.between(2, -1))
  })
})
