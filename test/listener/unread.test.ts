import { once } from 'node:events'
import { type IncomingMessage, request } from 'node:http'
import { text as textOf } from 'node:stream/consumers'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { describe, expect, it, vi } from 'vitest'
import { closing } from '../fixtures/closing.js'
import { proxys, turnOfLoop } from '../fixtures/played.js'
import { call, onPort, openSession } from '../fixtures/port.js'

setFlagsFromString('--expose-gc')
const gc = runInNewContext('gc') as () => void

const MUCH = 'x'.repeat(1 << 20)

/** Says so much that neither sockets nor the proxy take more of it at once. Gives how often it said something. */
async function fill(port: Awaited<ReturnType<typeof onPort>>, say: (n: number) => void): Promise<number> {
  for (let n = 1; ; n++) {
    say(n)
    for (let turns = 0; port.app.stats().lanes['server-to-client'] > 0; turns++) {
      if (turns === 20) return n
      await turnOfLoop()
    }
  }
}

/** A response whose body nobody reads, until it is asked for. */
async function unread(url: string, headers: Record<string, string>, body?: object) {
  const method = body ? 'POST' : 'GET'
  const accept = body ? 'application/json, text/event-stream' : 'text/event-stream'
  const outgoing = request(url, {
    method,
    headers: { accept, 'content-type': 'application/json', ...headers },
    agent: false,
  })
  outgoing.on('error', () => {})
  outgoing.end(body && JSON.stringify(body))
  closing.push(() => outgoing.destroy())
  const [response] = (await once(outgoing, 'response')) as [IncomingMessage]
  return { response, rest: () => textOf(response).catch(() => 'cut') }
}

const modern = { 'mcp-protocol-version': '2026-07-28', 'mcp-method': 'x' }
const _meta = {
  'io.modelcontextprotocol/protocolVersion': '2026-07-28',
  'io.modelcontextprotocol/clientCapabilities': {},
}
const cancelled = (requestId: string | number) => ({ method: 'notifications/cancelled', params: { requestId } })

describe('a client that never reads is cut off, and what it asked for is cancelled:', () => {
  it('the stream of a POST of a session; who comes back is told, and the session goes on', async () => {
    const port = await onPort({ readTimeout: 200 })
    const session = await openSession(port)
    const deaf = unread(port.url, session.headers, call(1, 'a', { _meta: { progressToken: 't' } }))
    await session.sent(1)
    const count = await fill(port, (progress) => {
      const params = { progressToken: 't', progress, message: MUCH }
      session.wire.say({ method: 'notifications/progress', params })
    })
    expect(await session.sent(1)).toEqual([cancelled(1)])
    expect(await (await deaf).rest()).toBe('cut')
    expect(port.errors).toEqual(['the client was cut off: it has read nothing for 0.2 s'])
    const back = await session.get({ 'last-event-id': `1-${count}` })
    await back.text
    const error = proxys(-31005, 'Overloaded: its stream was not read', 'overloaded', 'sent', true)
    expect(back.messages()).toEqual([{ jsonrpc: '2.0', id: 1, error }])
    const answer = session.post(call(2))
    expect(await session.sent(1)).toEqual([{ id: 2, method: 'tools/call', params: { name: 'a' } }])
    session.wire.say({ id: 2, result: {} })
    expect(await (await answer).json()).toEqual({ jsonrpc: '2.0', id: 2, result: {} })
  })

  it('the stream of a GET, whose session goes on and has lost nothing that is kept', async () => {
    const port = await onPort({ readTimeout: 200 })
    const session = await openSession(port)
    const deaf = await unread(port.url, session.headers)
    const count = await fill(port, (n) => session.wire.say({ method: 'notifications/message', params: { n, MUCH } }))
    const answer = session.post(call(1))
    await session.sent(1)
    session.wire.say({ id: 1, result: {} })
    expect(await (await answer).json()).toEqual({ jsonrpc: '2.0', id: 1, result: {} })
    expect(await deaf.rest()).toBe('cut')
    const back = await session.get({ 'last-event-id': `0-${count - 2}` })
    expect((await back.until(2)).map((it) => (it as { params: { n: number } }).params.n)).toEqual([count - 1, count])
    expect(session.wire.log).not.toContain('close')
  })

  it('the stream of HTTP+SSE, which is its session', async () => {
    const port = await onPort({ readTimeout: 200 })
    const sse = await unread(`${port.origin}/sse`, {})
    const [head] = (await once(sse.response, 'data')) as [Buffer]
    sse.response.pause()
    const endpoint = new URL(/data: (\S+)/.exec(head.toString())![1]!, port.origin).href
    const { wire } = await port.upstream(0)
    await fetch(endpoint, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(call(1)),
    })
    await port.sent(wire, 1)
    await fill(port, (n) => wire.say({ method: 'notifications/message', params: { n, MUCH } }))
    expect(await port.sent(wire, 1)).toEqual([cancelled(1)])
    expect(await sse.rest()).toBe('cut')
    await vi.waitFor(() => expect(wire.log.at(-1)).toBe('close'))
    expect(port.errors).toEqual(['the client was cut off: it has read nothing for 0.2 s'])
  })

  it('the answer to a stateless POST', async () => {
    const port = await onPort({ readTimeout: 200 })
    const deaf = unread(port.url, modern, { jsonrpc: '2.0', id: 1, method: 'x', params: { _meta } })
    const { wire } = await port.upstream(0)
    await port.sent(wire, 1)
    await fill(port, (n) => wire.say({ method: 'notifications/message', params: { n, MUCH } }, { relatedRequestId: 1 }))
    expect(await port.sent(wire, 1)).toEqual([cancelled(1)])
    expect(await (await deaf).rest()).toBe('cut')
  })
})

it('of what waited for clients that were cut off nothing is left', async () => {
  const held = () => {
    gc()
    return process.memoryUsage().arrayBuffers
  }
  const port = await onPort({ readTimeout: 1_000 })
  // What the tests before this one held is let go first.
  let before = held()
  for (let last = Number.POSITIVE_INFINITY; before < last; before = held()) {
    last = before
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
  for (let n = 0; n < 4; n++) {
    const session = await openSession(port)
    const deaf = await unread(port.url, session.headers)
    await fill(port, (at) => session.wire.say({ method: 'notifications/message', params: { at, MUCH } }))
    expect(held() - before).toBeGreaterThan(4 << 20)
    await vi.waitFor(() => expect(port.errors.length).toBe(n + 1), { timeout: 10_000 })
    expect(await deaf.rest()).toBe('cut')
    await session.delete()
  }
  await vi.waitFor(() => expect(held() - before).toBeLessThan(2 << 20), { timeout: 10_000 })
})

describe('a client that reads slowly', () => {
  it('gets everything, however long it takes', async () => {
    const port = await onPort({ readTimeout: 1_500 })
    const session = await openSession(port)
    const slow = await unread(port.url, session.headers)
    const count = await fill(port, (n) => session.wire.say({ method: 'notifications/message', params: { n, MUCH } }))
    let bytes = 0
    let text = ''
    // Longer in all than it may take nothing.
    const started = performance.now()
    for await (const chunk of slow.response) {
      bytes += chunk.length
      text += chunk.toString('latin1').replaceAll('x', '')
      if (bytes > count << 20) break
      if (performance.now() - started < 2_500) await new Promise((resolve) => setTimeout(resolve, 100))
    }
    expect([...text.matchAll(/"n":(\d+)/g)].map(([, n]) => Number(n))).toEqual(
      [...Array(count).keys()].map((n) => n + 1),
    )
    expect(port.errors).toEqual([])
  })
})

describe('a stream of a session that is not read', () => {
  it('holds up the others when too much waits for it, until it is read: nothing is lost', async () => {
    const port = await onPort()
    const session = await openSession(port)
    const deaf = await unread(port.url, session.headers)
    const answered = async (id: number) => {
      const answer = session.post(call(id))
      await session.sent(1)
      session.wire.say({ id, result: {} })
      return (await answer).json()
    }
    const say = (n: number) => session.wire.say({ method: 'notifications/message', params: { n, MUCH } })
    const count = await fill(port, say)
    const late = answered(1)
    const first = await Promise.race([
      late,
      turnOfLoop()
        .then(turnOfLoop)
        .then(() => 'waits'),
    ])
    const read = deaf.rest()
    expect([first, await late]).toEqual(['waits', { jsonrpc: '2.0', id: 1, result: {} }])
    await session.delete()
    expect((await read).split('\n').filter((it) => it.startsWith('data: {')).length).toBe(count)
  })
})
