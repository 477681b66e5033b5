import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { describe, expect, it } from 'vitest'
import { Lane, type Turn } from '../src/lane.js'
import { turnOfLoop } from './fixtures/played.js'

setFlagsFromString('--expose-gc')
const collect = runInNewContext('gc') as () => void

/** Takes turns by name; `log` holds the names of those whose turn has come. */
function lane() {
  const lane = new Lane()
  const log: string[] = []
  const take = (kind: 'request' | 'notification' | 'response', name: string) => {
    const turn = lane.take(kind, name.length)
    const wait = turn.wait()
    if (wait) void wait.then(() => log.push(name))
    else log.push(name)
    return turn
  }
  const release = async (...turns: Turn[]) => {
    for (const turn of turns) turn.release()
    await turnOfLoop()
  }
  return { lane, log, take, release }
}

describe('turns', () => {
  it('one that was released keeps nobody waiting who comes for it later', async () => {
    const { lane: it, log, take, release } = lane()
    const first = take('request', 'a')
    const given = it.take('notification', 1)
    await release(given)
    expect(given.wait()).toBeUndefined()
    await release(first)
    expect([it.size, it.bytes, log]).toEqual([0, 0, ['a']])
  })

  it('the first one waits for nothing, each other one for the one before it', async () => {
    const { lane: it, log, take, release } = lane()
    const [a, b, c] = [take('request', 'a'), take('notification', 'b'), take('request', 'c')]
    await turnOfLoop()
    expect(log).toEqual(['a'])
    await release(a)
    expect(log).toEqual(['a', 'b'])
    await release(b)
    expect(log).toEqual(['a', 'b', 'c'])
    await release(c)
    expect([it.size, it.bytes]).toEqual([0, 0])
  })

  it('an empty lane is free at once, again and again', async () => {
    const { log, take } = lane()
    for (const name of ['a', 'b', 'c']) take('request', name).release()
    expect(log).toEqual(['a', 'b', 'c'])
  })

  it('a turn released before it came is passed over', async () => {
    const { log, take, release } = lane()
    const [a, b] = [take('request', 'a'), take('request', 'b')]
    take('request', 'c')
    await release(b)
    expect(log).toEqual(['a'])
    await release(a)
    expect(log).toEqual(['a', 'b', 'c'])
  })

  it('to release it again does nothing', async () => {
    const { lane: it, take } = lane()
    let released = 0
    it.onrelease = () => released++
    const a = take('request', 'a')
    take('request', 'b')
    a.release()
    a.release()
    expect([it.size, it.bytes, released]).toEqual([1, 1, 1])
  })
})

describe('a response', () => {
  it('does not wait for requests', async () => {
    const { log, take } = lane()
    take('request', 'a')
    take('request', 'b')
    take('response', 'r')
    expect(log).toEqual(['a', 'r'])
  })

  it('waits for notifications and responses before it, whatever order they are released in', async () => {
    const { log, take, release } = lane()
    const n = take('notification', 'n')
    const q = take('response', 'q')
    take('response', 'r')
    await release(q)
    expect(log).toEqual(['n'])
    await release(n)
    expect(log).toEqual(['n', 'q', 'r'])
  })

  it('waits for a notification that waits for a request: neither may overtake', async () => {
    const { log, take, release } = lane()
    const a = take('request', 'a')
    const n = take('notification', 'n')
    take('response', 'r')
    expect(log).toEqual(['a'])
    await release(a)
    expect(log).toEqual(['a', 'n'])
    await release(n)
    expect(log).toEqual(['a', 'n', 'r'])
  })

  it('does not wait for a notification that was dropped behind a held request', async () => {
    const { log, take, release } = lane()
    take('request', 'a')
    const n = take('notification', 'n')
    take('response', 'r')
    await release(n)
    expect(log).toEqual(['a', 'r'])
  })

  it('still waits for what is before a dropped one', async () => {
    const { log, take, release } = lane()
    const m = take('notification', 'm')
    const n = take('notification', 'n')
    take('response', 'r')
    await release(n)
    expect(log).toEqual(['m'])
    await release(m)
    expect(log.filter((it) => it !== 'n')).toEqual(['m', 'r'])
  })

  it('a request behind it waits for it', async () => {
    const { log, take, release } = lane()
    const a = take('request', 'a')
    const r = take('response', 'r')
    take('request', 'b')
    await release(a)
    expect(log).toEqual(['a', 'r'])
    await release(r)
    expect(log).toEqual(['a', 'r', 'b'])
  })
})

describe('a held request', () => {
  it('keeps nothing of what came and went behind it', async () => {
    const { lane: it, take, release } = lane()
    const held = take('request', 'held')
    const goes = (kind: 'request' | 'notification' | 'response') => {
      const turn = it.take(kind, 1)
      turn.release()
      return new WeakRef(turn)
    }
    const gone = (['response', 'notification', 'request'] as const).flatMap((kind) =>
      Array.from({ length: 100 }, () => goes(kind)),
    )
    await turnOfLoop()
    collect()
    expect([it.size, gone.filter((it) => it.deref()).length]).toEqual([1, 0])
    await release(held)
  })

  it('those who come while others wait for it keep their order, whenever they are ready', async () => {
    const { lane: it, log, take, release } = lane()
    const held = take('request', 'held')
    const b = take('request', 'b')
    const [c, d] = [it.take('request', 1), it.take('request', 1)]
    const e = take('request', 'e')
    await release(held)
    expect(log).toEqual(['held', 'b'])
    void d.wait()?.then(() => log.push('d'))
    await release(b)
    expect(log).toEqual(['held', 'b'])
    expect(c.wait()).toBeUndefined()
    await release(c)
    expect(log).toEqual(['held', 'b', 'd'])
    await release(d)
    expect(log).toEqual(['held', 'b', 'd', 'e'])
    await release(e)
    expect([it.size, it.bytes]).toEqual([0, 0])
  })
})

it('counts messages and bytes', () => {
  const { lane: it, take } = lane()
  const turns = [take('request', 'aa'), take('response', 'bbb')]
  expect([it.size, it.bytes]).toEqual([2, 5])
  for (const turn of turns) turn.release()
  expect([it.size, it.bytes]).toEqual([0, 0])
})
