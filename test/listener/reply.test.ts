import { once } from 'node:events'
import { createServer, request, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { expect, it } from 'vitest'
import { EventStream } from '../../src/listener/reply.js'
import { Spare } from '../../src/spare.js'
import { closing } from '../fixtures/closing.js'

const MiB = 1 << 20
const frame = Buffer.alloc(MiB / 4, 'x')

/** A stream that nobody reads until it is asked for. */
async function stream(spare?: Spare) {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const outgoing = request({ port: (server.address() as AddressInfo).port, agent: false }).end()
  outgoing.on('error', () => {})
  closing.push(() => {
    outgoing.destroy()
    server.close()
  })
  const [, response] = (await once(server, 'request')) as [unknown, ServerResponse]
  const events = new EventStream(response, {}, { keepAlive: 0, readTimeout: 30_000, spare })
  const [incoming] = await once(outgoing, 'response')
  /** What waits when it is first asked to. */
  const fill = async () => {
    let ready = events.message(frame)
    while (!ready) {
      await new Promise(setImmediate)
      ready = events.message(frame)
    }
    return { ready, waits: Math.floor(response.writableLength / MiB) }
  }
  return { fill, read: () => incoming.resume() }
}

it('a stream whose source is its own waits past 1 MiB', async () => {
  const { fill, read } = await stream()
  const { ready, waits } = await fill()
  expect(waits).toBe(1)
  read()
  await ready
})

it('one whose source is that of others waits past 4 MiB, or when nothing is left to spare; who reads gives it back', async () => {
  const spare = new Spare(5 * MiB)
  const first = await stream(spare)
  const second = await stream(spare)
  const [one, other] = [await first.fill(), await second.fill()]
  expect([one.waits, other.waits]).toEqual([4, 2])
  first.read()
  await one.ready
  const third = await stream(spare)
  const { ready, waits } = await third.fill()
  expect(waits).toBe(4)
  second.read()
  third.read()
  await Promise.all([other.ready, ready])
})
