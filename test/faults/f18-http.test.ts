import { describe, expect, it, vi } from 'vitest'
import { type Asked, type Faults, good } from '../fixtures/faults/server-faulty.js'
import { failure, httpWays, named, sseWays, through } from '../fixtures/faults/server-ways.js'
import { event, json } from '../fixtures/http-server.js'

/** The id that stands for this one where a number is a text. */
const other = (id: string | number) => (typeof id === 'number' ? String(id) : Number(id))

const says =
  (...answers: ((asked: Asked) => object)[]) =>
  (asked: Asked) =>
    asked.stream().end(answers.map((it) => event(it(asked))).join(''))

const faults: Faults = {
  'another id, as JSON': ({ response }) => json(response, good(77)),
  'its id of another type, as JSON': ({ id, response }) => json(response, good(other(id))),
  'another id, on a stream': says(() => good(77)),
  'its id of another type, on a stream': says(({ id }) => good(other(id))),
  'the wrong ones, and then its own': says(
    ({ id }) => good(other(id), 'wrong'),
    () => good(77, 'wrong'),
    ({ id }) => good(id, 'right'),
  ),
  'its own twice': says(
    ({ id }) => good(id, 'first'),
    ({ id }) => good(id, 'second'),
  ),
  'its own, and then an error': says(
    ({ id }) => good(id, 'first'),
    ({ id }) => ({ jsonrpc: '2.0', id, error: { code: 1, message: 'late' } }),
  ),
}
const bad = (id: string | number, detail: string) => failure(id, 'upstream_bad_response', { phase: 'sent', detail })
const expected = (id: string | number): [string, object][] => [
  ['another id, as JSON', bad(id, 'HTTP 200 without the answer')],
  ['its id of another type, as JSON', bad(id, 'HTTP 200 without the answer')],
  ['another id, on a stream', bad(id, 'stream ended without the answer')],
  ['its id of another type, on a stream', bad(id, 'stream ended without the answer')],
  ['the wrong ones, and then its own', good(id, 'right')],
  ['its own twice', good(id, 'first')],
  ['its own, and then an error', good(id, 'first')],
]

describe.each(named(httpWays))('an answer to a %s under', (_name, way) => {
  it.each(expected(1))('%s: one outcome, its own', async (fault, outcome) => {
    const { caller, server } = await through(way, { faults })
    caller.call(1, fault)
    expect(await caller.until(1)).toEqual([outcome])
    caller.call(1, 'good')
    expect(await caller.until(2)).toEqual([outcome, good(1)])
    expect(server.calls).toHaveLength(2)
  })

  it.each(['1', '', '0'])('the number for the text %j is nobody’s', async (id) => {
    const { caller } = await through(way, { faults })
    caller.call(id, 'its id of another type, as JSON')
    expect(await caller.until(1)).toEqual([bad(id, 'HTTP 200 without the answer')])
  })
})

describe.each(named(sseWays))('on the stream of a %s', (_name, way) => {
  it('what nobody has asked for is counted and dropped, a second answer too; each call gets its own', async () => {
    const { caller, app } = await through(way, {
      faults: {
        odd: (asked) => {
          asked.response.writeHead(202).end()
          const answers = [good(other(asked.id), 'wrong'), good(77, 'wrong'), good(asked.id), good(asked.id, 'second')]
          asked.stream().write(answers.map((it) => event(it)).join(''))
        },
      },
    })
    caller.call(1, 'odd')
    expect(await caller.until(1)).toEqual([good(1)])
    caller.call(1, 'good')
    expect(await caller.until(2)).toEqual([good(1), good(1)])
    await vi.waitFor(() => expect(app.stats()).toMatchObject({ dropped: 3, pending: 0 }))
  })
})
