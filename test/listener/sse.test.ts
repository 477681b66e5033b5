import { describe, expect, it, vi } from 'vitest'
import { proxys } from '../fixtures/played.js'
import { type Answer, call, get, onPort, post } from '../fixtures/port.js'

/** A session of HTTP+SSE: its stream, and where to POST. */
async function open(port: Awaited<ReturnType<typeof onPort>>) {
  const { length } = port.upstreams
  const stream = await get(`${port.origin}/sse`)
  const { wire, session } = await port.upstream(length)
  await vi.waitFor(() => expect(stream.heard.length).toBeGreaterThan(0), { interval: 2 })
  const endpoint = (stream.heard[0] as { data: string }).data
  return { stream, wire, session, endpoint, post: (body: unknown) => post(new URL(endpoint, port.url).href, body) }
}

/** What came on the stream behind the `endpoint` event. */
const messages = ({ heard }: Answer) => heard.slice(1).flatMap((it) => ('data' in it ? [JSON.parse(it.data)] : []))
const until = (stream: Answer, count: number) =>
  vi.waitFor(() => {
    if (messages(stream).length < count) throw new Error(`expected ${count}, got ${JSON.stringify(stream.heard)}`)
    return messages(stream)
  })

describe('HTTP+SSE of 2024-11-05', () => {
  it('names its endpoint, takes what is POSTed there, and says everything on the one stream', async () => {
    const port = await onPort()
    const { stream, wire, endpoint, post } = await open(port)
    expect(endpoint).toMatch(/^\/messages\?sessionId=[\w-]{43}$/)
    const taken = await post(call(1))
    expect([taken.status, await taken.text]).toEqual([202, ''])
    expect(await port.sent(wire, 1)).toEqual([{ id: 1, method: 'tools/call', params: { name: 'a' } }])
    wire.say({ id: 'q', method: 'roots/list' })
    wire.say({ method: 'notifications/x' })
    wire.say({ id: 1, result: {} })
    expect(await until(stream, 3)).toEqual([
      { jsonrpc: '2.0', id: 'q', method: 'roots/list' },
      { jsonrpc: '2.0', method: 'notifications/x' },
      { jsonrpc: '2.0', id: 1, result: {} },
    ])
    await post({ jsonrpc: '2.0', id: 'q', result: { roots: [] } })
    expect(await port.sent(wire, 1)).toEqual([{ id: 'q', result: { roots: [] } }])
  })

  it('says on the stream what is wrong with a message, too, and takes batches', async () => {
    const port = await onPort()
    const { stream, wire, post } = await open(port)
    expect((await post('nonsense')).status).toBe(202)
    await post([call(1), { jsonrpc: '2.0', method: 'notifications/x' }])
    await post(call(1))
    expect(await port.sent(wire, 2)).toEqual([
      { id: 1, method: 'tools/call', params: { name: 'a' } },
      { method: 'notifications/x' },
    ])
    expect(await until(stream, 2)).toEqual([
      { jsonrpc: '2.0', error: { code: -32700, message: 'Parse error: Unexpected byte at offset 1' } },
      { jsonrpc: '2.0', id: 1, error: { code: -32600, message: 'Invalid request: id 1 is in use' } },
    ])
  })

  it('has the same bound of requests that wait', async () => {
    const port = await onPort({ maxPending: 1 })
    const { stream, wire, post } = await open(port)
    await post(call(1))
    await port.sent(wire, 1)
    await post(call(2))
    const error = proxys(-31005, 'Overloaded: too many requests wait', 'overloaded', 'not_sent', true)
    expect(await until(stream, 1)).toEqual([{ jsonrpc: '2.0', id: 2, error }])
  })

  it('is over with its stream: the upstream is closed, the address unknown', async () => {
    const port = await onPort()
    const { stream, wire, post } = await open(port)
    stream.leave()
    await vi.waitFor(() => expect(wire.log).toEqual(['start', 'close']))
    expect((await post(call(1))).status).toBe(404)
  })

  it('is over with its upstream: what waits is answered, then the stream ends', async () => {
    const port = await onPort()
    const { stream, wire, post } = await open(port)
    await post(call(1))
    await port.sent(wire, 1)
    wire.onclose?.()
    await stream.text
    const error = proxys(-31001, 'Upstream exited', 'upstream_exited', 'sent', true)
    expect(messages(stream)).toEqual([{ jsonrpc: '2.0', id: 1, error }])
  })

  it('is kept alive by comments', async () => {
    const { stream } = await open(await onPort({ keepAlive: 20 }))
    await vi.waitFor(() => expect(stream.heard).toContainEqual({ comment: 'keep-alive' }))
  })

  it.each(['', '?sessionId=', '?sessionId=x', '?sessionid=x'])('knows no session at /messages%s', async (query) => {
    const port = await onPort()
    await open(port)
    expect((await post(`${port.origin}/messages${query}`, call(1))).status).toBe(404)
  })
})
