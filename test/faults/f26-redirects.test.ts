import { describe, expect, it } from 'vitest'
import { serve } from '../fixtures/closing.js'
import { faulty, good } from '../fixtures/faults/server-faulty.js'
import { failure, httpWays, named, proxyTo, through, ways } from '../fixtures/faults/server-ways.js'
import { initialize } from '../fixtures/port.js'

const secrets = { Authorization: 'Bearer secret', 'X-Api-Key': 'secret' }

/** A server that must not be found. */
const elsewhere = () => serve((_seen, response) => response.writeHead(200).end())

describe.each(named(ways))('a call of a %s', (_name, way) => {
  it.each([301, 302, 303, 307, 308])('that is sent to another origin (%i) does not go there', async (status) => {
    const other = await elsewhere()
    const { caller, server } = await through(
      way,
      { faults: { away: ({ response }) => response.writeHead(status, { location: other.url.href }).end() } },
      { headers: secrets },
    )
    caller.call(1, 'away')
    const detail = `HTTP ${status} to another origin`
    expect(await caller.until(1)).toEqual([failure(1, 'upstream_bad_response', { phase: 'sent', detail })])
    caller.call(2, 'good')
    expect((await caller.until(2)).slice(1)).toEqual([good(2)])
    expect(other.seen).toEqual([])
    expect(server.calls).toHaveLength(2)
  })
})

describe.each(named(httpWays))('a call of a %s', (_name, way) => {
  it.each([307, 308])(
    'that is sent elsewhere within the origin (%i) is answered there, with what it was',
    async (status) => {
      const server = await faulty('http')
      const front = await serve((seen, response) => {
        if (seen.path === '/mcp') return response.writeHead(status, { location: '/there' }).end()
        return fetch(server.url, { method: seen.method, headers: head(seen.headers), body: seen.body }).then(
          async (answer) => response.writeHead(answer.status, head(answer.headers)).end(await answer.text()),
        )
      })
      const { caller } = await proxyTo(way, front.url, { headers: secrets })
      if (!way.modern) {
        caller.say(initialize())
        await caller.until(1)
      }
      caller.call(1, 'good')
      expect((await caller.until(way.modern ? 1 : 2)).at(-1)).toEqual(good(1))
      expect(server.seen.at(-1)?.headers).toMatchObject({ authorization: 'Bearer secret', 'x-api-key': 'secret' })
    },
  )
})

/** Those headers that belong to a message, not to a connection. */
function head(headers: Headers | Record<string, unknown>): Record<string, string> {
  const all = headers instanceof Headers ? Object.fromEntries(headers) : headers
  const own = Object.entries(all).filter(([name]) => /^(content-type|accept|authorization|x-|mcp-)/.test(name))
  return Object.fromEntries(own.map(([name, value]) => [name, String(value)]))
}
