import { once } from 'node:events'
import { connect } from 'node:net'
import { expect, it } from 'vitest'
import { closing } from '../fixtures/closing.js'
import { good } from '../fixtures/faults/server-faulty.js'
import { through, type Way } from '../fixtures/faults/server-ways.js'
import { call } from '../fixtures/port.js'

// What is slow, too large or ambiguous on a connection is in test/security: s02 (two of a header), s04 (times, sizes,
// framing). Here: connections that break off before there is a request.

const way: Way = { client: 'http', upstream: 'http' }
const body = JSON.stringify(call(1, 'good'))
const head = [
  'POST /mcp HTTP/1.1',
  'Host: localhost',
  'Content-Type: application/json',
  `Content-Length: ${body.length}`,
]
const whole = `${head.join('\r\n')}\r\n\r\n${body}`

it('a connection that breaks off anywhere in a request leaves nothing, and hurts nobody', async () => {
  const { url, caller, server, app } = await through(way)
  const before = app.stats()
  const cuts = Array.from({ length: 40 }, (_, at) => Math.floor((at * whole.length) / 40))
  await Promise.all(
    cuts.map(async (cut) => {
      const socket = connect(Number(new URL(url).port), '127.0.0.1')
      closing.push(() => socket.destroy())
      socket.on('error', () => {})
      await once(socket, 'connect')
      await new Promise((resolve) => socket.write(whole.slice(0, cut), resolve))
      if (cut % 2 === 0) socket.resetAndDestroy()
      else socket.end().resume()
      if (!socket.closed) await once(socket, 'close')
    }),
  )
  caller.call(1, 'good')
  expect(await caller.until(1)).toEqual([good(1)])
  expect(server.calls).toHaveLength(1)
  expect(app.stats()).toEqual(before)
})
