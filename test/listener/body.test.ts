import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { expect, it, vi } from 'vitest'
import { Face } from '../../src/listener/face.js'
import type { Accept, Served } from '../../src/listener/index.js'
import { settingsOf } from '../../src/listener/options.js'
import type { Session } from '../../src/session.js'
import { Spare } from '../../src/spare.js'
import type { Frame, Wire } from '../../src/wire.js'
import { closing } from '../fixtures/closing.js'
import { proxys } from '../fixtures/played.js'
import { modernPost } from '../fixtures/port.js'

const encode = (message: object): Frame => Buffer.from(JSON.stringify({ jsonrpc: '2.0', ...message }))

it('bodies have a bound in all: past it one is a 503, until another is answered, or its client is gone', async () => {
  const wires: Wire[] = []
  const accept: Accept = (wire) => {
    wires.push(wire)
    return { session: {} as Session, closed: new Promise(() => {}), close: async () => {} }
  }
  const served = { admit: async () => undefined, report: (error) => expect.fail(error.message) } as Partial<Served>
  const bodies = new Spare(2_000)
  const face = new Face(accept, served as Served, { ...settingsOf({}), bodies })
  const server = createServer(face.handle).listen(0, '127.0.0.1')
  await once(server, 'listening')
  closing.push(() => server.close().closeAllConnections())
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/mcp`
  const controller = new AbortController()
  const ask = (id: number, signal?: AbortSignal) =>
    modernPost(url, { id, method: 'x', params: { pad: 'x'.repeat(700) } }, {}, signal)
  const taken = (count: number) => vi.waitFor(() => expect(wires.length).toBe(count))
  const refused = async (id: number) => {
    const { status, headers, json } = await ask(id)
    const error = proxys(-31005, 'Overloaded', 'overloaded', 'not_sent', true)
    expect([status, headers.get('retry-after'), await json()]).toEqual([503, '1', { jsonrpc: '2.0', error }])
  }
  const first = ask(1)
  await taken(1)
  const second = ask(2, controller.signal).catch(() => 'gone')
  await taken(2)
  await refused(3)
  void wires[0]!.send(encode({ id: 1, result: {} }))
  expect((await first).status).toBe(200)
  const fourth = ask(4)
  await taken(3)
  await refused(5)
  controller.abort()
  expect(await second).toBe('gone')
  await vi.waitFor(() => expect(bodies.take(900)).toBe(true))
  bodies.give(900)
  void wires[2]!.send(encode({ id: 4, result: {} }))
  expect((await fourth).status).toBe(200)
  await vi.waitFor(() => expect(bodies.take(2_000)).toBe(true))
})
