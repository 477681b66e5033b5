import fc from 'fast-check'
import type { Middleware } from 'open-mcp-proxy'
import { describe, expect, it } from 'vitest'
import { Lane, type Turn } from '../../src/lane.js'
import { HandWire, joined, turnOfLoop } from '../fixtures/played.js'
import { many, runs } from './search.js'

const kind = fc.constantFrom<'request' | 'notification' | 'response'>('request', 'notification', 'response')

interface Taken {
  kind: 'request' | 'notification' | 'response'
  turn: Turn
  bytes: number
  ready: boolean
  mayGo: boolean
  released: boolean
}

/** What must have gone before the turn at `index` comes. */
const before = (taken: readonly Taken[], index: number) =>
  taken.slice(0, index).filter(({ kind }) => taken[index]?.kind !== 'response' || kind !== 'request')

describe('a lane', () => {
  it('gives each message its turn when what it waits for has gone, whenever it is ready or gone', async () => {
    const deed = fc.oneof(
      fc.record({ take: kind, bytes: fc.nat(9) }),
      fc.record({ ready: fc.nat() }),
      fc.record({ release: fc.nat() }),
    )
    await fc.assert(
      fc.asyncProperty(many(deed, 24), async (deeds) => {
        const lane = new Lane()
        let released = 0
        lane.onrelease = () => released++
        const all: Taken[] = []
        for (const it of deeds) {
          if ('take' in it) {
            const turn = lane.take(it.take, it.bytes)
            all.push({ kind: it.take, turn, bytes: it.bytes, ready: false, mayGo: false, released: false })
          } else if (all.length > 0) {
            const one = all[('ready' in it ? it.ready : it.release) % all.length]!
            if ('release' in it) {
              one.turn.release()
              one.released = true
            } else if (!one.ready && !one.released) {
              one.ready = true
              const turn = one.turn.wait()
              const begin = () => {
                one.mayGo = true
              }
              if (turn) void turn.then(begin)
              else begin()
            }
          }
          await turnOfLoop()
          for (const [index, { ready, mayGo, released }] of all.entries()) {
            if (ready && !released) expect(mayGo).toBe(before(all, index).every((it) => it.released))
          }
          const held = all.filter((it) => !it.released)
          expect([lane.size, lane.bytes]).toEqual([held.length, held.reduce((sum, { bytes }) => sum + bytes, 0)])
          expect(released).toBe(all.length - held.length)
        }
      }),
      runs(300),
    )
  })
})

describe('a line', () => {
  const event = fc.record({
    side: fc.constantFrom<'client' | 'server'>('client', 'server'),
    kind,
    /** How many of those who wait may go on, before the next event. */
    progress: fc.nat(3),
  })

  it('lets them leave in the order in which they came, but a response before a request that is held', async () => {
    await fc.assert(
      fc.asyncProperty(fc.scheduler(), many(event, 24), async (scheduler, events) => {
        const delay: Middleware = async (_ctx, next) => {
          await scheduler.schedule(Promise.resolve())
          await next()
        }
        const client = new HandWire()
        const server = new HandWire()
        for (const wire of [client, server]) wire.sending = () => scheduler.schedule(Promise.resolve())
        const { app } = await joined((it) => it.use(delay, (_ctx, next) => next(), delay), { client, server })
        const ends = {
          client: { wire: client, said: [] as string[], left: [] as string[], asked: [] as unknown[] },
          server: { wire: server, said: [] as string[], left: [] as string[], asked: [] as unknown[] },
        }
        /** What has left towards an end, in order. */
        const collect = () => {
          for (const side of ['client', 'server'] as const) {
            for (const { id, method, params } of ends[side].wire.take()) {
              if (id !== undefined && method !== undefined) ends[side].asked.push(id)
              const far = ends[side === 'client' ? 'server' : 'client']
              far.left.push(
                method === undefined
                  ? `response ${id}`
                  : id === undefined
                    ? `notification ${params && (params as { n: number }).n}`
                    : `request ${id}`,
              )
            }
          }
        }
        for (const [n, { side, kind, progress }] of events.entries()) {
          const end = ends[side]
          if (kind === 'request') end.wire.say({ id: n, method: 'm' })
          if (kind === 'notification') end.wire.say({ method: 'n', params: { n } })
          const id = kind === 'response' ? end.asked.shift() : n
          if (kind === 'response' && id !== undefined) end.wire.say({ id, result: {} })
          if (id !== undefined) end.said.push(`${kind} ${id}`)
          for (let left = progress; left > 0 && scheduler.count() > 0; left--) {
            await scheduler.waitOne()
            await turnOfLoop()
          }
          collect()
        }
        do {
          await scheduler.waitIdle()
          await turnOfLoop()
        } while (scheduler.count() > 0)
        collect()
        for (const { said, left } of Object.values(ends)) {
          expect(left.toSorted()).toEqual(said.toSorted())
          for (const [index, early] of left.entries()) {
            for (const late of left.slice(index + 1)) {
              const isTurnedRound = said.indexOf(late) < said.indexOf(early)
              if (isTurnedRound)
                expect([early, late]).toEqual([expect.stringMatching(/^response/), expect.stringMatching(/^request/)])
            }
          }
        }
        expect(app.stats().lanes).toEqual({ 'client-to-server': 0, 'server-to-client': 0 })
      }),
      runs(150),
    )
  })
})
