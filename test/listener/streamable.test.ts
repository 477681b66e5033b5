import { type EventStore, MemoryEventStore, onRequest } from 'open-mcp-proxy'
import { describe, expect, it, vi } from 'vitest'
import { deferred, proxys } from '../fixtures/played.js'
import { ask, call, get, initialize, onPort, openSession, post } from '../fixtures/port.js'

const answered = (id: string | number, value: object = {}) => ({ jsonrpc: '2.0', id, result: value })
const progress = (progressToken: string | number, n: number) => ({
  method: 'notifications/progress',
  params: { progressToken, progress: n },
})
const whole = (message: object) => ({ jsonrpc: '2.0', ...message })
const withToken = (id: string | number, progressToken: string | number) => call(id, 'a', { _meta: { progressToken } })

describe('a session', () => {
  it('begins with the answer to initialize, and has an upstream of its own', async () => {
    const port = await onPort()
    const one = await openSession(port)
    const two = await openSession(port)
    expect([one.id, two.id].map((id) => /^[\w-]{43}$/.test(id))).toEqual([true, true])
    expect(one.id).not.toBe(two.id)
    const answers = [one.post(call(1, 'first')), two.post(call(1, 'second'))]
    expect(await one.sent(1)).toEqual([{ id: 1, method: 'tools/call', params: { name: 'first' } }])
    expect(await two.sent(1)).toEqual([{ id: 1, method: 'tools/call', params: { name: 'second' } }])
    two.wire.say({ id: 1, result: { to: 'second' } })
    one.wire.say({ id: 1, result: { to: 'first' } })
    expect(await Promise.all(answers.map(async (it) => (await it).json()))).toEqual([
      answered(1, { to: 'first' }),
      answered(1, { to: 'second' }),
    ])
    expect(port.app.stats().sessions).toBe(2)
  })

  it('is none where initialize fails: no id, and its upstream is closed', async () => {
    const port = await onPort()
    const answer = post(port.url, initialize())
    const { wire } = await port.upstream(0)
    await port.sent(wire, 1)
    wire.say({ id: 'init', error: { code: -32602, message: 'no' } })
    const { status, headers, json } = await answer
    expect({ status, id: headers.get('mcp-session-id'), body: await json() }).toEqual({
      status: 200,
      id: null,
      body: { jsonrpc: '2.0', id: 'init', error: { code: -32602, message: 'no' } },
    })
    await vi.waitFor(() => expect(wire.log).toEqual(['start', 'close']))
    await vi.waitFor(() => expect(port.app.stats().sessions).toBe(0))
  })

  it('is none where nobody waited for the answer to initialize: its id is not known', async () => {
    const port = await onPort()
    const controller = new AbortController()
    post(port.url, initialize(), {}, controller.signal).catch(() => {})
    const { wire } = await port.upstream(0)
    await port.sent(wire, 1)
    controller.abort()
    await vi.waitFor(() => expect([wire.log, port.app.stats().sessions]).toEqual([['start', 'close'], 0]), {
      timeout: 5_000,
    })
  })

  it('is none where the upstream cannot be reached', async () => {
    const port = await onPort({}, (app) => app.use(onRequest('initialize', (_ctx, next) => next())))
    const answer = post(port.url, initialize())
    const { wire } = await port.upstream(0)
    await port.sent(wire, 1)
    wire.onclose?.(new Error('gone'))
    const { status, headers, json } = await answer
    expect({ status, id: headers.get('mcp-session-id'), body: await json() }).toEqual({
      status: 200,
      id: null,
      body: { jsonrpc: '2.0', id: 'init', error: proxys(-31001, 'Upstream exited', 'upstream_exited', 'sent', true) },
    })
  })

  it.each([
    ['without an id', {}, 400],
    ['with one that nobody has', { 'mcp-session-id': 'x' }, 404],
  ])('%s there is none', async (_what, headers, status) => {
    const port = await onPort()
    for (const answer of [
      await post(port.url, call(1), headers),
      await get(port.url, headers),
      await ask(port.url, { method: 'DELETE', headers }),
    ]) {
      expect(answer.status).toBe(status)
    }
    expect(port.upstreams).toEqual([])
  })

  it('goes on when a later request fails under the id of its handshake, or is cancelled', async () => {
    const session = await openSession(await onPort())
    const failing = session.post(call('init'))
    await session.sent(1)
    session.wire.say({ id: 'init', error: { code: -1, message: 'no' } })
    expect([(await failing).status, (await failing).headers.get('mcp-session-id')]).toEqual([200, session.id])
    const cancelled = session.post(call('init'))
    await session.sent(1)
    await session.post({ jsonrpc: '2.0', method: 'notifications/cancelled', params: { requestId: 'init' } })
    expect((await cancelled).status).toBe(202)
    // A second handshake is for the server to judge.
    const again = session.post(initialize())
    const [, handshake] = await session.sent(2)
    session.wire.say({ id: handshake!.id, error: { code: -1, message: 'no' } })
    expect((await again).status).toBe(200)
    expect((await session.post({ jsonrpc: '2.0', method: 'notifications/x' })).status).toBe(202)
  })

  it('ends with DELETE: requests in flight are answered, the upstream is closed, the id is unknown', async () => {
    const port = await onPort()
    const session = await openSession(port)
    const answer = session.post(call(1))
    await session.sent(1)
    expect((await session.delete()).status).toBe(200)
    expect((await session.post(call(2))).status).toBe(404)
    session.wire.say({ id: 1, result: {} })
    expect(await (await answer).json()).toEqual(answered(1))
    await vi.waitFor(() => expect(session.wire.log).toEqual(['start', 'close']))
    expect((await session.delete()).status).toBe(404)
  })

  it('ends with its upstream: its streams end, requests get their error, its client must begin anew', async () => {
    const port = await onPort()
    const session = await openSession(port)
    const stream = await session.get()
    const answer = session.post(call(1))
    await session.sent(1)
    session.wire.onclose?.()
    expect(await (await answer).json()).toEqual(
      whole({ id: 1, error: proxys(-31001, 'Upstream exited', 'upstream_exited', 'sent', true) }),
    )
    await stream.text
    expect((await session.post(call(2))).status).toBe(404)
  })

  it('ends when it had no connection for so long, not while one is open', async () => {
    const port = await onPort({ idleTimeout: 100 })
    const [idle, busy, listening] = [await openSession(port), await openSession(port), await openSession(port)]
    const answer = busy.post(call(1))
    const stream = await listening.get()
    await vi.waitFor(() => expect(idle.wire.log).toEqual(['start', 'close']), { timeout: 5_000 })
    expect((await idle.post(call(1))).status).toBe(404)
    expect([busy.wire.log, listening.wire.log]).toEqual([['start'], ['start']])
    await busy.sent(1)
    busy.wire.say({ id: 1, result: {} })
    expect((await answer).status).toBe(200)
    stream.leave()
    await vi.waitFor(() => expect([busy.wire.log.at(-1), listening.wire.log.at(-1)]).toEqual(['close', 'close']), {
      timeout: 5_000,
    })
  })

  it.each(['2026-07-29', '1900-01-01', 'nonsense', ''])('takes no %j as MCP-Protocol-Version', async (version) => {
    const port = await onPort()
    const session = await openSession(port)
    const headers = { 'mcp-protocol-version': version }
    const { status, json } = await session.post(call(1), headers)
    expect(status).toBe(400)
    expect(await json()).toMatchObject({
      jsonrpc: '2.0',
      error: { code: version > '2026' && version < '3' ? -32602 : -32600 },
    })
    expect((await session.get(headers)).status).toBe(version === '2026-07-29' ? 405 : 400)
  })
})

describe('an answer', () => {
  it('is JSON where it is all there is', async () => {
    const session = await openSession(await onPort())
    const answer = session.post(call(1))
    await session.sent(1)
    session.wire.say('{"jsonrpc":"2.0", "id":1 ,"result":{"n":1.0,"big":9007199254740993}}')
    const { status, headers, text } = await answer
    expect([status, headers.get('content-type'), headers.get('mcp-session-id')]).toEqual([
      200,
      'application/json',
      session.id,
    ])
    expect(await text).toBe('{"jsonrpc":"2.0", "id":1 ,"result":{"n":1.0,"big":9007199254740993}}')
  })

  it('is a stream as soon as something goes before it, which ends with it', async () => {
    const session = await openSession(await onPort())
    const answering = session.post(withToken(1, 'tok'))
    await session.sent(1)
    session.wire.say(progress('tok', 1))
    const answer = await answering
    session.wire.say(progress('tok', 2))
    session.wire.say({ id: 1, result: {} })
    await answer.text
    expect(answer.headers.get('content-type')).toBe('text/event-stream')
    expect(answer.heard).toEqual([
      { retry: 1000 },
      { id: '1-0.1', data: '' },
      { id: '1-1', data: JSON.stringify(whole(progress('tok', 1))) },
      { id: '1-2', data: JSON.stringify(whole(progress('tok', 2))) },
      { id: '1-3', data: JSON.stringify(answered(1)) },
    ])
  })

  it('to a client that knows no event without data, or names no revision of its own, begins with none', async () => {
    const session = await openSession(await onPort(), '2025-06-18')
    const answering = session.post(withToken(1, 'tok'))
    await session.sent(1)
    session.wire.say(progress('tok', 1))
    session.wire.say({ id: 1, result: {} })
    const { heard, text } = await answering
    await text
    expect(heard.map((it) => ('id' in it ? it.id : it))).toEqual(['1-1', '1-2'])
  })

  it('is a stream for a client that names that first', async () => {
    const session = await openSession(await onPort())
    const answering = session.post(call(1), { accept: 'text/event-stream, application/json' })
    await session.sent(1)
    session.wire.say({ id: 1, result: {} })
    const { headers, until } = await answering
    expect(headers.get('content-type')).toBe('text/event-stream')
    expect(await until(1)).toEqual([answered(1)])
  })

  it('on a stream keeps its line breaks to itself, whichever they are', async () => {
    const session = await openSession(await onPort())
    const answering = session.post(call(1), { accept: 'text/event-stream, application/json' })
    await session.sent(1)
    session.wire.say('{"jsonrpc":"2.0",\r"id":1,\r\n"result":\n{}}')
    const { heard, text } = await answering
    await text
    expect(heard.at(-1)).toEqual({ id: '1-1', data: '{"jsonrpc":"2.0", "id":1,  "result": {}}' })
  })

  it('stays JSON where nothing is to be kept alive', async () => {
    const session = await openSession(await onPort({ keepAlive: 0 }))
    const answering = session.post(call(1))
    await session.sent(1)
    session.wire.say({ id: 1, result: {} })
    expect((await answering).headers.get('content-type')).toBe('application/json')
  })

  it('becomes a stream when it takes long, so that comments keep it alive', async () => {
    const session = await openSession(await onPort({ keepAlive: 20 }))
    const answering = session.post(call(1))
    await session.sent(1)
    const answer = await answering
    await vi.waitFor(() => expect(answer.heard).toContainEqual({ comment: 'keep-alive' }))
    session.wire.say({ id: 1, result: {} })
    expect(await answer.until(1)).toEqual([answered(1)])
  })

  it('as an upstream over HTTP has chosen: the stream before anything is said, JSON at any rate', async () => {
    const session = await openSession(await onPort())
    const streamed = session.post(call(1))
    const plain = session.post(call(2), { accept: 'text/event-stream, application/json' })
    await session.sent(2)
    session.wire.onstream?.({ relatedRequestId: 1, type: 'open' })
    const answer = await streamed
    expect(answer.headers.get('content-type')).toBe('text/event-stream')
    expect(answer.messages()).toEqual([])
    session.wire.say({ id: 1, result: {} }, { headers: { 'content-type': 'text/event-stream' } })
    session.wire.say({ id: 2, result: {} }, { headers: { 'content-type': 'application/json; charset=utf-8' } })
    expect(await answer.until(1)).toEqual([answered(1)])
    expect((await plain).headers.get('content-type')).toBe('application/json')
  })

  it('is silence for a request that was cancelled, whose id is free then', async () => {
    const session = await openSession(await onPort())
    const plain = session.post(call(1))
    const streaming = session.post(withToken(2, 'tok'))
    await session.sent(2)
    session.wire.say(progress('tok', 1))
    const stream = await streaming
    for (const requestId of [1, 2]) {
      const cancel = { jsonrpc: '2.0', method: 'notifications/cancelled', params: { requestId } }
      expect((await session.post(cancel)).status).toBe(202)
    }
    expect((await plain).status).toBe(202)
    await stream.text
    expect(stream.messages()).toEqual([whole(progress('tok', 1))])
    await session.sent(2)
    const again = session.post(call(1))
    const [request] = await session.sent(1)
    session.wire.say({ id: 1, result: { late: true } })
    session.wire.say({ id: request!.id, result: { late: false } })
    expect(await (await again).json()).toEqual(answered(1, { late: false }))
  })

  it('to a second request with an id in use is -32600, and the first still gets its own', async () => {
    const session = await openSession(await onPort())
    const first = session.post(call('1'))
    await session.sent(1)
    const second = await session.post(call('1'))
    expect([second.status, await second.json()]).toEqual([
      400,
      { jsonrpc: '2.0', id: '1', error: { code: -32600, message: 'Invalid request: id "1" is in use' } },
    ])
    const other = session.post(call(1))
    await session.sent(1)
    session.wire.say({ id: '1', result: { to: 'text' } })
    session.wire.say({ id: 1, result: { to: 'number' } })
    expect([await (await first).json(), await (await other).json()]).toEqual([
      answered('1', { to: 'text' }),
      answered(1, { to: 'number' }),
    ])
  })

  it('past the bound of requests that wait is -31005', async () => {
    const session = await openSession(await onPort({ maxPending: 1 }))
    const first = session.post(call(1))
    await session.sent(1)
    const second = await session.post(call(2))
    expect([second.status, await second.json()]).toEqual([
      200,
      whole({ id: 2, error: proxys(-31005, 'Overloaded: too many requests wait', 'overloaded', 'not_sent', true) }),
    ])
    session.wire.say({ id: 1, result: {} })
    expect((await first).status).toBe(200)
  })
})

describe('a batch', () => {
  it('walks one by one, and is answered by a batch', async () => {
    const names: unknown[] = []
    const port = await onPort({}, (app) =>
      app.use((ctx, next) => {
        names.push(ctx.method)
        return next()
      }),
    )
    const session = await openSession(port, '2025-03-26')
    names.length = 0
    const answering = session.post([
      call(1),
      { jsonrpc: '2.0', method: 'notifications/x' },
      call('1'),
      { jsonrpc: '2.0', id: 3, method: 'a', METHOD: 'b' },
      call(1),
    ])
    expect(await session.sent(3)).toEqual([
      { id: 1, method: 'tools/call', params: { name: 'a' } },
      { method: 'notifications/x' },
      { id: '1', method: 'tools/call', params: { name: 'a' } },
    ])
    expect(names).toEqual(['tools/call', 'notifications/x', 'tools/call'])
    session.wire.say({ id: '1', result: {} })
    session.wire.say({ id: 1, result: {} })
    const { status, headers, json } = await answering
    expect([status, headers.get('content-type')]).toEqual([200, 'application/json'])
    expect(await json()).toEqual([
      { jsonrpc: '2.0', id: 3, error: { code: -32600, message: 'Invalid request: ambiguous member "method"' } },
      { jsonrpc: '2.0', id: 1, error: { code: -32600, message: 'Invalid request: id 1 is in use' } },
      answered('1'),
      answered(1),
    ])
  })

  it('is answered by a stream as soon as something goes before', async () => {
    const session = await openSession(await onPort(), '2025-03-26')
    const answering = session.post([withToken(1, 'tok'), call(2)])
    await session.sent(2)
    session.wire.say({ id: 2, result: {} })
    session.wire.say(progress('tok', 1))
    session.wire.say({ id: 1, result: {} })
    const answer = await answering
    await answer.text
    expect(answer.messages()).toEqual([answered(2), whole(progress('tok', 1)), answered(1)])
  })

  it.each([
    ['of no request', [{ jsonrpc: '2.0', method: 'notifications/x' }], 202],
    ['that is empty', [], 400],
    ['with initialize in it', [initialize(), call(1)], 400],
  ])('%s', async (_what, body, status) => {
    const session = await openSession(await onPort(), '2025-03-26')
    expect((await session.post(body)).status).toBe(status)
  })

  it('of more than may wait is answered one by one, too', async () => {
    const session = await openSession(await onPort({ maxPending: 1 }), '2025-03-26')
    const answering = session.post([call(1), call(2)])
    await session.sent(1)
    session.wire.say({ id: 1, result: {} })
    const error = proxys(-31005, 'Overloaded: too many requests wait', 'overloaded', 'not_sent', true)
    expect(await (await answering).json()).toEqual([whole({ id: 2, error }), answered(1)])
  })

  it('of nothing but what is no message is answered by errors', async () => {
    const session = await openSession(await onPort(), '2025-03-26')
    const { status, json } = await session.post([1, { jsonrpc: '1.0', id: 1, method: 'a' }])
    expect([status, await json()]).toEqual([
      200,
      [
        { jsonrpc: '2.0', error: { code: -32600, message: 'Invalid request: expected an object' } },
        { jsonrpc: '2.0', id: 1, error: { code: -32600, message: 'Invalid request: expected jsonrpc "2.0"' } },
      ],
    ])
  })
})

describe('what belongs to no request', () => {
  it('goes on the stream of the GET, and waits for one', async () => {
    const session = await openSession(await onPort())
    session.wire.say({ method: 'notifications/tools/list_changed' })
    session.wire.say({ id: 'q', method: 'sampling/createMessage', params: {} })
    const stream = await session.get()
    expect(await stream.until(2)).toEqual([
      whole({ method: 'notifications/tools/list_changed' }),
      whole({ id: 'q', method: 'sampling/createMessage', params: {} }),
    ])
    session.wire.say({ method: 'notifications/prompts/list_changed' })
    await stream.until(3)
    expect(stream.heard.map((it) => ('id' in it ? it.id : it))).toEqual([{ retry: 1000 }, '0-0.1', '0-1', '0-2', '0-3'])
    expect((await session.post({ jsonrpc: '2.0', id: 'q', result: { ok: 1 } })).status).toBe(202)
    expect(await session.sent(1)).toEqual([{ id: 'q', result: { ok: 1 } }])
  })

  it('one stream of a session at a time', async () => {
    const session = await openSession(await onPort())
    const stream = await session.get()
    expect((await session.get()).status).toBe(409)
    stream.leave()
    await vi.waitFor(async () => expect((await session.get()).status).toBe(200))
  })

  it('a request of the server, when nobody comes, is answered with an error, and never said', async () => {
    const session = await openSession(await onPort({ streamTimeout: 30 }))
    session.wire.say({ id: 7, method: 'sampling/createMessage' })
    const error = proxys(-31011, 'The client takes no requests now', 'client_unreachable', 'not_sent', false)
    expect(await session.sent(1)).toEqual([{ id: 7, error }])
    session.wire.say({ method: 'notifications/x' })
    const stream = await session.get()
    expect(await stream.until(1)).toEqual([whole({ method: 'notifications/x' })])
  })

  it('a request of the server that the store could not keep is answered with an error as soon as that shows', async () => {
    const store = new MemoryEventStore({ maxSessionEvents: 2 })
    const session = await openSession(await onPort({ eventStore: store, streamTimeout: 60_000 }))
    session.wire.say({ id: 7, method: 'sampling/createMessage' })
    for (const n of [1, 2, 3]) session.wire.say({ method: `notifications/${n}` })
    const stream = await session.get()
    expect(await stream.until(2)).toEqual([2, 3].map((n) => whole({ method: `notifications/${n}` })))
    const error = proxys(-31011, 'The client takes no requests now', 'client_unreachable', 'not_sent', false)
    expect(await session.sent(1)).toEqual([{ id: 7, error }])
  })

  it('a request of the server that came with that of a client goes on its stream', async () => {
    const session = await openSession(await onPort())
    const answering = session.post(call(1))
    await session.sent(1)
    session.wire.say({ id: 'q', method: 'elicitation/create' }, { relatedRequestId: 1 })
    const answer = await answering
    expect(await answer.until(1)).toEqual([whole({ id: 'q', method: 'elicitation/create' })])
    await session.post({ jsonrpc: '2.0', id: 'q', result: {} })
    expect(await session.sent(1)).toEqual([{ id: 'q', result: {} }])
    session.wire.say({ id: 1, result: {} })
    expect(await answer.until(2)).toEqual([whole({ id: 'q', method: 'elicitation/create' }), answered(1)])
  })

  it('an error without an id goes to the one that waits', async () => {
    const session = await openSession(await onPort())
    const answering = session.post(call(1))
    await session.sent(1)
    session.wire.say({ error: { code: -32700, message: 'Parse error' } })
    const answer = await answering
    expect(await answer.until(1)).toEqual([whole({ error: { code: -32700, message: 'Parse error' } })])
    session.wire.say({ id: 1, result: {} })
    await answer.until(2)
  })
})

describe('a client that drops a stream', () => {
  it('cancels nothing, and finds the rest behind its last event', async () => {
    const session = await openSession(await onPort())
    const answering = session.post(withToken(1, 'tok'))
    await session.sent(1)
    session.wire.say(progress('tok', 1))
    const answer = await answering
    await answer.until(1)
    answer.leave()
    session.wire.say(progress('tok', 2))
    session.wire.say({ id: 1, result: {} })
    const behind = (id: string) => session.get({ 'last-event-id': id })
    const resumed = await behind('1-1')
    await resumed.text
    expect(resumed.heard).toEqual([
      { id: '1-2', data: JSON.stringify(whole(progress('tok', 2))) },
      { id: '1-3', data: JSON.stringify(answered(1)) },
    ])
    const fromTheStart = await behind('1-0.1')
    await fromTheStart.text
    expect(fromTheStart.messages()).toEqual([whole(progress('tok', 1)), whole(progress('tok', 2)), answered(1)])
    expect(session.wire.sent).toEqual([])
    // All of it was said: whoever asks again is told to stop.
    expect((await behind('1-3')).status).toBe(204)
  })

  it('hears an answer that comes while the store is asked', async () => {
    const memory = new MemoryEventStore()
    let asked = () => {}
    const go = deferred()
    const store: EventStore = {
      append: (...args) => memory.append(...args),
      after: async (...args) => {
        const replay = memory.after(...args)
        asked()
        await go.promise
        return replay
      },
      forget: (...args) => memory.forget(...args),
    }
    const session = await openSession(await onPort({ eventStore: store }))
    const answering = session.post(withToken(1, 'tok'))
    await session.sent(1)
    session.wire.say(progress('tok', 1))
    const answer = await answering
    await answer.until(1)
    answer.leave()
    const reading = new Promise<void>((resolve) => {
      asked = resolve
    })
    const resuming = session.get({ 'last-event-id': '1-1' })
    await reading
    session.wire.say({ id: 1, result: {} })
    go.resolve()
    const resumed = await resuming
    await resumed.text
    expect([resumed.status, resumed.messages()]).toEqual([200, [answered(1)]])
  })

  it('hears what comes after it has come back', async () => {
    const session = await openSession(await onPort())
    const answering = session.post(withToken(1, 'tok'))
    await session.sent(1)
    session.wire.say(progress('tok', 1))
    const answer = await answering
    await answer.until(1)
    answer.leave()
    const resumed = await session.get({ 'last-event-id': '1-1' })
    session.wire.say({ id: 1, result: {} })
    expect(await resumed.until(1)).toEqual([answered(1)])
    await resumed.text
  })

  it('of the GET hears on the next one what it missed', async () => {
    const session = await openSession(await onPort())
    const stream = await session.get()
    session.wire.say({ method: 'notifications/a' })
    await stream.until(1)
    stream.leave()
    await vi.waitFor(async () => {
      session.wire.say({ method: 'notifications/b' })
      const next = await session.get()
      expect(next.status).toBe(200)
      next.leave()
    })
    const resumed = await session.get({ 'last-event-id': '0-1' })
    const [first] = await resumed.until(1)
    expect(first).toEqual(whole({ method: 'notifications/b' }))
  })

  it.each(['1-9', '7-0', 'x', '0-', '-1-1', '0-1; DROP', '../0-0'])(
    'with %j as its last event is refused',
    async (id) => {
      const session = await openSession(await onPort())
      expect((await session.get({ 'last-event-id': id })).status).toBe(400)
    },
  )

  it('that the upstream wants to poll is sent away, where it knows how to', async () => {
    const session = await openSession(await onPort())
    const answering = session.post(call(1))
    await session.sent(1)
    session.wire.onstream?.({ relatedRequestId: 1, type: 'open' })
    const answer = await answering
    session.wire.onstream?.({ relatedRequestId: 1, type: 'detach', retry: 300 })
    await answer.text
    expect(answer.heard).toEqual([{ retry: 1000 }, { id: '1-0.1', data: '' }, { retry: 300 }])
    session.wire.say({ id: 1, result: {} })
    const resumed = await session.get({ 'last-event-id': '1-0.1' })
    await resumed.text
    expect(resumed.messages()).toEqual([answered(1)])

    const older = await openSession(await onPort(), '2025-06-18')
    const stays = older.post(call(1))
    await older.sent(1)
    older.wire.onstream?.({ relatedRequestId: 1, type: 'open' })
    older.wire.onstream?.({ relatedRequestId: 1, type: 'detach' })
    older.wire.say({ id: 1, result: {} })
    expect(await (await stays).until(1)).toEqual([answered(1)])
  })
})

describe('an upstream that is behind', () => {
  it('makes its client wait, and loses nothing', async () => {
    const port = await onPort()
    const session = await openSession(port)
    const gate = deferred()
    session.wire.sending = () => gate.promise
    const large = Array.from({ length: 6 }, (_, id) => session.post(call(id, 'a', { pad: 'x'.repeat(300_000) })))
    await vi.waitFor(() => expect(port.app.stats().lanes['client-to-server']).toBeGreaterThan(3))
    const small = session.post({ jsonrpc: '2.0', method: 'notifications/x' })
    gate.resolve()
    expect((await small).status).toBe(202)
    const sent = await session.sent(7)
    for (const { id } of sent) if (id !== undefined) session.wire.say({ id, result: {} })
    expect((await Promise.all(large)).map(({ status }) => status)).toEqual(Array.from({ length: 6 }, () => 200))
  })

  it('refuses what is too much to wait', async () => {
    const port = await onPort()
    const session = await openSession(port)
    const gate = deferred()
    session.wire.sending = () => gate.promise
    const pad = 'x'.repeat(6 << 20)
    const posts = Array.from({ length: 6 }, (_, id) => session.post(call(id, 'a', { pad })))
    const { status, headers, json } = await Promise.race(posts)
    expect([status, headers.get('retry-after'), await json()]).toMatchObject([503, '1', { error: { code: -31005 } }])
    gate.resolve()
    session.wire.sending = (text) => {
      const { id } = JSON.parse(text)
      queueMicrotask(() => session.wire.say({ id, result: {} }))
    }
    for (const { id } of session.wire.take()) session.wire.say({ id, result: {} })
    const outcomes = await Promise.all(
      posts.map(async (it) => [(await it).status, 'result' in ((await (await it).json()) as object)]),
    )
    const refusals = outcomes.filter(([status]) => status === 503)
    expect(outcomes.filter(([, answered]) => answered)).toHaveLength(6 - refusals.length)
    expect(refusals.length).toBeGreaterThan(0)
  })

  it('is left with its session', async () => {
    const port = await onPort()
    const session = await openSession(port)
    const gate = deferred()
    session.wire.sending = () => gate.promise
    const pad = 'x'.repeat(2 << 20)
    const first = session.post(call(1, 'a', { pad }))
    await session.sent(1)
    const second = session.post(call(2))
    await vi.waitFor(() => expect(port.app.stats().lanes['client-to-server']).toBe(1))
    await session.delete()
    expect((await second).status).toBe(404)
    gate.resolve()
    session.wire.say({ id: 1, result: {} })
    expect((await first).status).toBe(200)
  })
})

describe('middleware', () => {
  it('that answers, fails, drops and notifies is heard by the client of the request', async () => {
    const port = await onPort({}, (app) =>
      app.use(
        onRequest('tools/call', async (ctx, next) => {
          if (ctx.name === 'reply') return ctx.reply({ own: true })
          if (ctx.name === 'throw') ctx.throw(-5, 'no')
          if (ctx.name === 'drop') return ctx.drop()
          if (ctx.name === 'forget') return
          await ctx.notify('client', 'notifications/own')
          return next()
        }),
      ),
    )
    const session = await openSession(port)
    const outcome = async (name: string) => (await session.post(call(name, name))).json()
    expect(await Promise.all(['reply', 'throw', 'drop', 'forget'].map(outcome))).toEqual([
      answered('reply', { own: true }),
      whole({ id: 'throw', error: { code: -5, message: 'no' } }),
      whole({ id: 'drop', error: proxys(-31006, 'Denied: dropped', 'denied', 'not_sent', false) }),
      whole({ id: 'forget', error: { code: -32603, message: 'Internal error' } }),
    ])
    const answer = session.post(call(1, 'notify'))
    await session.sent(1)
    session.wire.say({ id: 1, result: {} })
    expect(await (await answer).until(2)).toEqual([whole({ method: 'notifications/own' }), answered(1)])
  })

  it('that asks the client something in the middle of a call does so on its stream', async () => {
    const port = await onPort({}, (app) =>
      app.use(
        onRequest('tools/call', async (ctx) => {
          ctx.stepAside()
          return ctx.reply(await ctx.call('client', 'elicitation/create', { message: 'Sure?' }))
        }),
      ),
    )
    const session = await openSession(port)
    const answer = await session.post(call(1))
    const [question] = (await answer.until(1)) as [{ id: string }]
    expect(question).toEqual(whole({ id: question.id, method: 'elicitation/create', params: { message: 'Sure?' } }))
    await session.post({ jsonrpc: '2.0', id: question.id, result: { action: 'accept' } })
    expect(await answer.until(2)).toEqual([question, answered(1, { action: 'accept' })])
  })
})
