import { describe, expect, it, vi } from 'vitest'
import { type Asked, good } from '../fixtures/faults/server-faulty.js'
import { type Message, named, through, ways } from '../fixtures/faults/server-ways.js'
import { event } from '../fixtures/http-server.js'

const note = (id: unknown, at: number) => ({
  jsonrpc: '2.0',
  method: 'notifications/message',
  params: { level: 'info', data: { id, at } },
})

describe.each(named(ways))('answers to a %s', (_name, way) => {
  it('come as they come, each behind what was said before it', async () => {
    const asked: Asked[] = []
    const { caller } = await through(way, { faults: { waits: (it) => void asked.push(it) } })
    for (const id of [1, 2, 3]) caller.call(id, 'waits')
    await vi.waitFor(() => expect(asked).toHaveLength(3))
    for (const id of [3, 1, 2]) {
      const it = asked.find((one) => one.id === id)!
      if (way.upstream === 'sse') it.response.writeHead(202).end()
      const stream = it.stream()
      for (let at = 0; at < 20; at++) stream.write(event(note(id, at)))
      stream.write(event(good(id)))
      if (way.upstream === 'http') stream.end()
      await vi.waitFor(() => expect(caller.heard.some((message) => message.id === id)).toBe(true))
    }
    // What belongs to no request goes on a stream of its own, where the wire does not tell.
    const isApart = way.upstream === 'sse' && way.client === 'http'
    const said = (id: number) => [...Array.from({ length: isApart ? 0 : 20 }, (_, at) => note(id, at)), good(id)]
    expect(caller.heard).toEqual([...said(3), ...said(1), ...said(2)] as Message[])
  })
})
