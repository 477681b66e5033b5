import type { ServerResponse } from 'node:http'
import { describe, expect, it, vi } from 'vitest'
import { type Faults, good } from '../fixtures/faults/server-faulty.js'
import { failure, httpWays, legacyWays, modernWays, named, sseWays, through } from '../fixtures/faults/server-ways.js'
import { event, stream } from '../fixtures/http-server.js'

const progress = { jsonrpc: '2.0', method: 'notifications/message', params: { level: 'info', data: 1 } }

const faults: Faults = {
  'ends without the answer': (asked) => asked.stream().end(),
  'ends behind a message': (asked) => asked.stream().end(event(progress)),
  'is cut in the middle of an event': (asked) => {
    asked.stream().write(`${event(progress)}data: {"jsonrpc":"2.0","id":1,`, () => asked.response.destroy())
  },
  'ends in the middle of an event': (asked) => asked.stream().end(`${event(progress)}data: ${JSON.stringify(good(1))}`),
}
const told = failure(1, 'upstream_bad_response', { phase: 'sent', detail: 'stream ended without the answer' })

describe.each(named(httpWays))('a stream to a %s', (_name, way) => {
  it.each(Object.keys(faults))('%s: one -31003, and the next call is answered', async (fault) => {
    const { caller, server } = await through(way, { faults })
    caller.call(1, fault)
    const before = fault === 'ends without the answer' ? [] : [progress]
    expect(await caller.until(before.length + 1)).toEqual([...before, told])
    caller.call(2, 'good')
    expect((await caller.until(before.length + 2)).slice(-1)).toEqual([good(2)])
    expect(server.calls).toEqual([
      { id: 1, name: fault },
      { id: 2, name: 'good' },
    ])
  })

  it.each([
    ['before a word of the answer', 'ECONNRESET', (response) => response.destroy()],
    [
      'within its JSON',
      'broken connection',
      (response) => {
        response.writeHead(200, { 'content-type': 'application/json', 'content-length': '100' })
        response.write('{"jsonrpc":"2.0","id":1,', () => response.destroy())
      },
    ],
  ] as [string, string, (response: ServerResponse) => void][])('breaks %s: the same', async (_when, detail, cut) => {
    const { caller, server } = await through(way, { faults: { cut: ({ response }) => cut(response) } })
    caller.call(1, 'cut')
    expect(await caller.until(1)).toEqual([failure(1, 'upstream_bad_response', { phase: 'sent', detail })])
    expect(server.calls).toHaveLength(1)
  })
})

const resumable: Faults = {
  cut: (asked) => {
    const first = `retry: 20\n${event(progress, 'e1')}data: {"jsonrpc":"2.0",`
    asked.stream().write(first, () => asked.response.destroy())
  },
}

describe.each(named(legacyWays.filter(({ upstream }) => upstream === 'http')))(
  'a stream with cursors to a %s',
  (_name, way) => {
    it('is taken up behind its last event; the call is not sent again', async () => {
      let at = 0
      const { caller, server } = await through(way, {
        faults: resumable,
        get: ({ headers }, response) => {
          if (headers['last-event-id'] === undefined) return response.writeHead(405).end()
          at = performance.now()
          return stream(response).end(event(good(1), 'e2'))
        },
      })
      caller.call(1, 'cut')
      await caller.until(1)
      const cutAt = performance.now()
      expect(await caller.until(2)).toEqual([progress, good(1)])
      // Node may fire a timer up to a millisecond early, and what is read here was written a moment before.
      expect(at - cutAt).toBeGreaterThan(5)
      expect(server.gets().at(-1)?.headers).toMatchObject({ 'last-event-id': 'e1', 'mcp-session-id': 'upstream-1' })
      expect(server.calls).toEqual([{ id: 1, name: 'cut' }])
    })

    it('is given up when it cannot be taken up: one -31003', async () => {
      const { caller, server } = await through(way, {
        faults: resumable,
        get: ({ headers }, response) => response.writeHead(headers['last-event-id'] === undefined ? 405 : 503).end(),
      })
      caller.call(1, 'cut')
      expect(await caller.until(2)).toEqual([progress, told])
      const resumed = server.gets().filter(({ headers }) => headers['last-event-id'] !== undefined)
      expect(resumed).toHaveLength(3)
      expect(server.calls).toHaveLength(1)
    })
  },
)

describe.each(named(modernWays))('a stream with cursors to a %s', (_name, way) => {
  it('is not taken up: this revision knows no such thing', async () => {
    const { caller, server } = await through(way, { faults: resumable })
    caller.call(1, 'cut')
    expect(await caller.until(2)).toEqual([progress, told])
    expect(server.gets()).toEqual([])
    expect(server.calls).toHaveLength(1)
  })
})

describe.each(named(sseWays))('the stream of a session to a %s', (_name, way) => {
  it.each<[string, (session: ServerResponse) => unknown]>([
    ['ends', (session) => session.end()],
    ['is cut in the middle of an event', (session) => session.write('data: {"jsonrpc":', () => session.destroy())],
  ])('%s: every call that waits gets one -31004', async (_how, cut) => {
    const { caller, server, app } = await through(way, {
      faults: { waits: ({ response }) => response.writeHead(202).end() },
    })
    caller.call(1, 'waits')
    caller.call('1', 'waits')
    await vi.waitFor(() => expect(server.calls).toHaveLength(2))
    cut(server.streams.at(-1)!)
    const heard = await caller.until(2)
    const lost = { phase: 'sent' } as const
    expect(new Set(heard)).toEqual(
      new Set([failure(1, 'upstream_session_lost', lost), failure('1', 'upstream_session_lost', lost)]),
    )
    // The session goes on, on a new stream.
    await vi.waitFor(() => expect(server.streams).toHaveLength(2))
    expect(app.stats()).toMatchObject({ sessions: 1, pending: 0 })
    expect(caller.heard).toHaveLength(2)
  })
})
