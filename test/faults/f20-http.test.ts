import { describe, expect, it, vi } from 'vitest'
import { type Asked, good } from '../fixtures/faults/server-faulty.js'
import { legacyWays, modernWays, named, through, type Way } from '../fixtures/faults/server-ways.js'
import { event, json } from '../fixtures/http-server.js'

const answer = (way: Way, asked: Asked, name: string) => {
  if (way.upstream === 'http') return json(asked.response, good(asked.id, name))
  asked.response.writeHead(202).end()
  return asked.stream().write(event(good(asked.id, name)))
}

const inUse = (id: string | number) => ({
  jsonrpc: '2.0',
  id,
  error: { code: -32600, message: `Invalid request: id ${JSON.stringify(id)} is in use` },
})

const sessions = [...legacyWays, ...modernWays.filter(({ client }) => client === 'stdio')]

describe.each(named(sessions))('an id in use, of a %s', (_name, way) => {
  it.each([7, 0, '', '7'])(
    '%j is refused, the first is unaffected, and it is free again behind its answer',
    async (id) => {
      const asked: Asked[] = []
      const { caller, server } = await through(way, { faults: { waits: (it) => void asked.push(it) } })
      caller.call(id, 'waits')
      await vi.waitFor(() => expect(asked).toHaveLength(1))
      const before = caller.statuses.length
      caller.call(id, 'waits')
      expect(await caller.until(1)).toEqual([inUse(id)])
      if (way.client === 'http') expect(caller.statuses.slice(before)).toEqual([400])
      answer(way, asked[0]!, 'first')
      expect(await caller.until(2)).toEqual([inUse(id), good(id, 'first')])
      caller.call(id, 'good')
      expect((await caller.until(3)).slice(2)).toEqual([good(id)])
      expect(server.calls.map(({ name }) => name)).toEqual(['waits', 'good'])
    },
  )
})

describe.each(named(modernWays.filter(({ client }) => client === 'http')))(
  'the same id twice, of a %s',
  (_name, way) => {
    it('is two requests: each is whole in itself', async () => {
      const asked: Asked[] = []
      const { caller } = await through(way, { faults: { waits: (it) => void asked.push(it) } })
      caller.call(7, 'waits')
      await vi.waitFor(() => expect(asked).toHaveLength(1))
      caller.call(7, 'waits')
      await vi.waitFor(() => expect(asked).toHaveLength(2))
      answer(way, asked[1]!, 'second')
      await caller.until(1)
      answer(way, asked[0]!, 'first')
      expect(await caller.until(2)).toEqual([good(7, 'second'), good(7, 'first')])
    })
  },
)
