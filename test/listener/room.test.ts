import { expect, it } from 'vitest'
import { Room } from '../../src/listener/room.js'

/** Enters under a name, and writes down who came in. */
function entering() {
  const room = new Room()
  const came: string[] = []
  const enter = (name: string, bytes = 1) =>
    room.enter(bytes).then((entered) => {
      came.push(entered ? name : `not ${name}`)
    })
  return { room, came, enter }
}

it('lets everybody in while there is room', async () => {
  const { came, enter } = entering()
  await Promise.all([enter('a'), enter('b')])
  expect(came).toEqual(['a', 'b'])
})

it('holds back what comes while there is none, and keeps the order', async () => {
  const { room, came, enter } = entering()
  room.pause()
  room.pause()
  const all = [enter('a'), enter('b')]
  room.resume()
  all.push(enter('c'))
  room.pause()
  all.push(enter('d'))
  room.resume()
  await Promise.all(all)
  expect(came).toEqual(['a', 'b', 'c', 'd'])
})

it('has a bound of what may wait', async () => {
  const { room, came, enter } = entering()
  room.pause()
  const first = enter('a', 10 << 20)
  await enter('b', 10 << 20)
  room.resume()
  await first
  await enter('c', 10 << 20)
  expect(came).toEqual(['not b', 'a', 'c'])
})
