import { describe, expect, test, vi } from 'vitest'
import { clientOf, exited, seeded, ways } from '../fixtures/faults/child-ways.js'
import { modernPost } from '../fixtures/port.js'

describe.each(ways)('over %s', (way) => {
  test('F18: an answer under an id of another type answers nobody', async () => {
    const client = await clientOf(way)
    const waiting = client.call('otherType')
    expect((await client.call('echo', { n: 1 })).result).toMatchObject({ n: 1 })
    const last = client.call('exit', { code: 0 })
    expect([await waiting, await last].map(({ error }) => error)).toEqual([
      exited('exit code 0'),
      exited('exit code 0'),
    ])
  })

  test('F18: a second answer, and answers under ids that nobody used, are dropped', async () => {
    const client = await clientOf(way)
    const answers = []
    for (const name of ['twice', 'unknown', 'twice']) answers.push((await client.call(name)).result)
    expect(answers).toEqual([{ n: 1 }, { n: 1 }, { n: 1 }])
    expect((await client.call('echo', { n: 3 })).result).toMatchObject({ n: 3 })
    if (way === 'stdio') expect(client.run.messages().map(({ id }) => id)).toEqual([1, 2, 3, 4])
  })

  test('F19: answers come as their server gives them', async () => {
    const client = await clientOf(way)
    const order: string[] = []
    const asked = [1, 2].map((n) => client.told(`${n}`, 'behind').then(() => order.push(`asked ${n}`)))
    await vi.waitFor(() => expect(client.journal()).toHaveLength(2))
    await Promise.all([...asked, client.call('echo').then(() => order.push('asked last'))])
    expect(order.sort()).toEqual(['asked 1', 'asked 2', 'asked last'])
    if (way === 'stdio') expect(client.run.messages().map(({ id }) => id)).toEqual([3, 2, 1])
  })
})

test('F20: a second request under an id in flight is refused, the first is answered, then the id is free', async () => {
  const { run } = await clientOf('stdio')
  const call = (name: string) => ({ jsonrpc: '2.0', id: 0, method: 'tools/call', params: { name, arguments: {} } })
  run.send(call('behind'), call('echo'), { ...call('echo'), id: '0' })
  await run.until(3)
  run.send(call('echo'))
  await run.until(4)
  const [refused, other, first, again] = run.messages()
  expect([refused, other]).toMatchObject([
    { id: 0, error: { code: -32600 } },
    { id: '0', result: {} },
  ])
  expect(first).toEqual({ jsonrpc: '2.0', id: 0, result: { behind: true } })
  expect(again).toMatchObject({ id: 0, result: { pid: other.result.pid } })
})

test('F22: where a cancellation and its answer race, one of them wins', async () => {
  const { run, journal } = await clientOf('stdio')
  const { seed, random } = seeded()
  const cancelled = new Set<number>()
  const cancel = (id: number) => {
    cancelled.add(id)
    run.send({ jsonrpc: '2.0', method: 'notifications/cancelled', params: { requestId: id } })
  }
  const calls = 300
  for (let id = 0; id < calls; id++) {
    const name = random() < 0.3 ? 'never' : 'echo'
    run.send({ jsonrpc: '2.0', id, method: 'tools/call', params: { name, arguments: { token: `t${id}` } } })
    if (name === 'never' || random() < 0.5) {
      if (random() < 0.5) cancel(id)
      else setImmediate(cancel, id)
    }
    if (random() < 0.2) await new Promise(setImmediate)
  }
  await new Promise(setImmediate)
  const ended = await run.end()
  const answered = run.messages().map(({ id }) => id as number)
  const silent = Array.from({ length: calls }, (_, id) => id).filter((id) => !answered.includes(id))
  expect({ seed, ended, twice: answered.length - new Set(answered).size }).toEqual({
    seed,
    ended: { code: 0, signal: null },
    twice: 0,
  })
  expect(silent.filter((id) => !cancelled.has(id))).toEqual([])
  expect(run.messages().filter(({ error }) => error)).toEqual([])
  const tokens = journal().filter((it) => it !== 'cancelled')
  expect(new Set(tokens).size).toBe(tokens.length)
})

test('F22: a stateless client that leaves takes its request back, whatever its child does then', async () => {
  const client = await clientOf('modern HTTP')
  const { pid } = (await client.call('echo')).result!
  const left = Array.from({ length: 20 }, (_, n) => {
    const controller = new AbortController()
    const params = { name: 'never', arguments: { token: `${n}` } }
    const asked = modernPost(`${client.origin}/mcp`, { id: 1, method: 'tools/call', params }, {}, controller.signal)
    return { controller, asked }
  })
  await vi.waitFor(() => expect(client.journal().length).toBe(20))
  for (const { controller } of left) controller.abort()
  await Promise.allSettled(left.map(({ asked }) => asked))
  await vi.waitFor(() => expect(client.journal().filter((it) => it === 'cancelled')).toHaveLength(20))
  expect((await client.call('echo')).result).toEqual({ pid })
})
