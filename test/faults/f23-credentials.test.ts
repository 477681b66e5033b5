import { describe, expect, it, vi } from 'vitest'
import { type Faults, good } from '../fixtures/faults/server-faulty.js'
import { failure, named, through, ways } from '../fixtures/faults/server-ways.js'
import { deferred } from '../fixtures/played.js'

const INSUFFICIENT = 'Bearer error="insufficient_scope", scope="admin"'
const faults: Faults = {
  guarded: ({ id, name, headers, response, stream }) => {
    if (headers.authorization !== 'Bearer new') {
      return response.writeHead(401, { 'www-authenticate': 'Bearer realm="secret"' }).end()
    }
    if (!headers['x-sse']) return response.writeHead(200, JSON_TYPE).end(JSON.stringify(good(id, name)))
    response.writeHead(202).end()
    return stream().write(`data: ${JSON.stringify(good(id, name))}\n\n`)
  },
  forbidden: ({ response }) => response.writeHead(403, { 'www-authenticate': INSUFFICIENT }).end(),
}
const JSON_TYPE = { 'content-type': 'application/json' }
const refused = (id: number, status: number) =>
  failure(id, 'upstream_auth', { phase: 'sent', detail: `HTTP ${status}` })

describe.each(named(ways))('credentials that the server refuses to a %s', (_name, way) => {
  const headers: Record<string, string> = way.upstream === 'sse' ? { 'x-sse': '1' } : {}

  it('are renewed once for all who wait, and each call is sent once more', async () => {
    const renewed = deferred<Record<string, string>>()
    const auth = vi.fn(() => renewed.promise)
    const { caller, server } = await through(way, { faults }, { auth, headers })
    for (const id of [1, 2, 3]) caller.call(id, 'guarded')
    await vi.waitFor(() => expect(server.calls).toHaveLength(3))
    expect(caller.heard).toEqual([])
    renewed.resolve({ Authorization: 'Bearer new' })
    const heard = await caller.until(3)
    expect(heard.map(({ id }) => id).sort()).toEqual([1, 2, 3])
    for (const message of heard) expect(message).toEqual(good(message.id as number, 'guarded'))
    expect(auth.mock.calls).toEqual([[{ status: 401, wwwAuthenticate: 'Bearer realm="secret"' }]])
    expect(server.calls).toHaveLength(6)
  })

  it('and that are no better when renewed: one -31010, which says nothing of its challenge', async () => {
    const auth = vi.fn(async () => ({ Authorization: 'Bearer wrong' }))
    const { caller, server } = await through(way, { faults }, { auth, headers })
    caller.call(1, 'guarded')
    expect(await caller.until(1)).toEqual([refused(1, 401)])
    expect(auth).toHaveBeenCalledTimes(1)
    expect(server.calls).toHaveLength(2)
  })

  it('where there are no others: one -31010', async () => {
    const { caller, server } = await through(way, { faults }, { headers })
    caller.call(1, 'guarded')
    expect(await caller.until(1)).toEqual([refused(1, 401)])
    caller.call(2, 'good')
    expect((await caller.until(2)).slice(1)).toEqual([good(2)])
    expect(server.calls).toHaveLength(2)
  })

  it('for their scope (403): one -31010, and nobody is asked for others', async () => {
    const auth = vi.fn(async () => ({ Authorization: 'Bearer new' }))
    const { caller, server } = await through(way, { faults }, { auth, headers })
    caller.call(1, 'forbidden')
    expect(await caller.until(1)).toEqual([refused(1, 403)])
    expect(auth).not.toHaveBeenCalled()
    expect(server.calls).toHaveLength(1)
  })
})
