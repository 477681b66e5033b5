import { describe, expect, it, vi } from 'vitest'
import { type Asked, good } from '../fixtures/faults/server-faulty.js'
import { legacyWays, named, through, type Way } from '../fixtures/faults/server-ways.js'
import { event, json } from '../fixtures/http-server.js'

const cancel = (requestId: string | number) => ({
  jsonrpc: '2.0',
  method: 'notifications/cancelled',
  params: { requestId },
})

const answer = (way: Way, asked: Asked, name: string) => {
  if (way.upstream === 'http') return json(asked.response, good(asked.id, name))
  if (!asked.response.headersSent) asked.response.writeHead(202).end()
  return asked.stream().write(event(good(asked.id, name)))
}

describe.each(named(legacyWays))('a cancellation of a %s', (_name, way) => {
  it.each([0, '', 3])('of the call %j: silence, the late answer goes to nobody, the id is free', async (id) => {
    const asked: Asked[] = []
    const { caller, server, app } = await through(way, { faults: { waits: (it) => void asked.push(it) } })
    caller.call(id, 'waits')
    await vi.waitFor(() => expect(asked).toHaveLength(1))
    caller.say(cancel(id))
    await vi.waitFor(() => expect(server.cancelled).toEqual([id]))
    answer(way, asked[0]!, 'late')
    caller.call(id, 'good')
    expect(await caller.until(1)).toEqual([good(id)])
    await vi.waitFor(() => expect(app.stats().pending).toBe(0))
    expect(caller.heard).toEqual([good(id)])
  })

  it('at the very time of the answer: one winner', async () => {
    const { caller, server, app } = await through(way)
    const rounds = 30
    for (let id = 1; id <= rounds; id++) {
      caller.call(id, 'good')
      caller.say(cancel(id))
    }
    await vi.waitFor(() => expect(app.stats()).toMatchObject({ pending: 0 }))
    caller.call('last', 'good')
    await vi.waitFor(() => expect(caller.heard.at(-1)).toEqual(good('last')))
    const answered = caller.heard.map(({ id }) => id)
    expect(new Set(answered).size).toBe(answered.length)
    expect(new Set(server.calls.map(({ id }) => id)).size).toBe(server.calls.length)
  })

  it('of nothing is nothing', async () => {
    const { caller, errors } = await through(way)
    caller.say(cancel('unknown'))
    caller.say(cancel(0))
    caller.call(1, 'good')
    expect(await caller.until(1)).toEqual([good(1)])
    expect(errors).toEqual([])
  })
})
