import { describe, expect, it } from 'vitest'
import { type Faults, good } from '../fixtures/faults/server-faulty.js'
import { failure, named, through, ways } from '../fixtures/faults/server-ways.js'

const RETRYABLE = new Set([408, 429, 503])
const DATE = 'Fri, 31 Dec 2027 23:59:59 GMT'
const after: Record<number, string> = { 429: '7', 503: DATE, 502: '30' }
const statuses = [400, 405, 408, 418, 429, 500, 502, 503, 504]

const faults: Faults = Object.fromEntries(
  statuses.map((status) => [
    `HTTP ${status}`,
    ({ response }) => {
      const headers = after[status] === undefined ? {} : { 'retry-after': after[status] }
      response.writeHead(status, { 'content-type': 'text/html', ...headers }).end('<h1>upstream-7.internal</h1>')
    },
  ]),
)

describe.each(named(ways))('a status that is no success, to a %s', (_name, way) => {
  it.each(statuses)('%i: one -31003 that says whether it is worth another try, and none is made', async (status) => {
    const { caller, server } = await through(way, { faults })
    caller.call(1, `HTTP ${status}`)
    const retryAfter = after[status]
    const told = failure(1, 'upstream_bad_response', {
      phase: 'sent',
      detail: `HTTP ${status}`,
      retryable: RETRYABLE.has(status),
      ...(retryAfter !== undefined && { retryAfter }),
    })
    expect(await caller.until(1)).toEqual([told])
    if (way.client === 'http') expect(caller.statuses.at(-1)).toBe(200)
    caller.call(2, 'good')
    expect(await caller.until(2)).toEqual([told, good(2)])
    expect(server.calls).toHaveLength(2)
  })
})
