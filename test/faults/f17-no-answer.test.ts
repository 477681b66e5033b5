import { describe, expect, it } from 'vitest'
import { type Faults, good } from '../fixtures/faults/server-faulty.js'
import { failure, httpWays, named, sseWays, through } from '../fixtures/faults/server-ways.js'
import { event, json } from '../fixtures/http-server.js'

const faults: Faults = {
  'HTTP 202': ({ response }) => response.writeHead(202).end(),
  'HTTP 204': ({ response }) => response.writeHead(204).end(),
  'a 200 of no type': ({ response }) => response.writeHead(200).end(),
  HTML: ({ response }) => response.writeHead(200, { 'content-type': 'text/html' }).end('<h1>Sign in</h1>'),
  'an empty 200': ({ response }) => json(response, ''),
  null: ({ response }) => json(response, 'null'),
  'an object that is no message': ({ response }) => json(response, { ok: true }),
  'half a message': ({ id, response }) => json(response, `{"jsonrpc":"2.0","id":${id},"result":`),
}
const details: Record<string, string> = {
  'HTTP 202': 'HTTP 202 without an answer',
  'HTTP 204': 'HTTP 204 without an answer',
  'a 200 of no type': 'HTTP 200 without an answer',
  HTML: 'HTTP 200 without an answer',
}

describe.each(named(httpWays))('a call of a %s', (_name, way) => {
  it.each(Object.keys(faults))('that gets %s: one -31003 at once, and the next one is answered', async (fault) => {
    const { caller, server, app } = await through(way, { faults })
    caller.call(1, fault)
    const detail = details[fault] ?? 'HTTP 200 without the answer'
    expect(await caller.until(1)).toEqual([failure(1, 'upstream_bad_response', { phase: 'sent', detail })])
    expect(app.stats().pending).toBe(0)
    caller.call(1, 'good')
    expect((await caller.until(2)).slice(1)).toEqual([good(1)])
    expect(server.calls).toEqual([
      { id: 1, name: fault },
      { id: 1, name: 'good' },
    ])
  })
})

describe.each(named(sseWays))('a call of a %s', (_name, way) => {
  it.each([200, 202, 204])('is answered on the stream, whatever its POST is taken with: %i', async (status) => {
    const { caller } = await through(way, {
      faults: {
        taken: (asked) => {
          asked.response.writeHead(status).end()
          asked.stream().write(event(good(asked.id)))
        },
      },
    })
    caller.call(1, 'taken')
    expect(await caller.until(1)).toEqual([good(1)])
  })
})
