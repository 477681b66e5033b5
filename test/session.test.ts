import { createProxy, type Session } from 'open-mcp-proxy'
import { testProxy } from 'open-mcp-proxy/testing'
import { describe, expect, it } from 'vitest'
import { joined } from './fixtures/played.js'

const modern = (id: number, version = '2026-07-28') => ({
  id,
  method: 'tools/list',
  params: { _meta: { 'io.modelcontextprotocol/protocolVersion': version } },
})
const told = ({ era, protocolVersion }: Session) => ({ era, protocolVersion })

describe('era and protocolVersion', () => {
  it('a handshake: legacy, with the version that was settled', async () => {
    const proxy = testProxy()
    expect(told(proxy.session)).toEqual({ era: 'legacy', protocolVersion: undefined })
    await proxy.fromClient({ id: 0, method: 'initialize', params: { protocolVersion: '2025-11-25' } })
    expect(told(proxy.session)).toEqual({ era: 'legacy', protocolVersion: undefined })
    await proxy.fromServer({ id: 0, result: { protocolVersion: '2025-06-18', capabilities: {} } })
    expect(told(proxy.session)).toEqual({ era: 'legacy', protocolVersion: '2025-06-18' })
    await proxy.fromClient(modern(1))
    expect(told(proxy.session)).toEqual({ era: 'legacy', protocolVersion: '2025-06-18' })
  })

  it('the version is what left, whatever a middleware made of it', async () => {
    const proxy = testProxy(
      createProxy().use((ctx, next) => {
        if (ctx.isResponse('initialize') && ctx.result) ctx.result.protocolVersion = '2024-11-05'
        return next()
      }),
    )
    await proxy.fromClient({ id: 0, method: 'initialize', params: {} })
    await proxy.fromServer({ id: 0, result: { protocolVersion: '2025-06-18' } })
    expect(proxy.session.protocolVersion).toBe('2024-11-05')
  })

  it('requests that carry their version: modern', async () => {
    const proxy = testProxy()
    await proxy.fromClient(modern(1))
    expect(told(proxy.session)).toEqual({ era: 'modern', protocolVersion: '2026-07-28' })
  })

  it('a handshake after an unanswered probe: legacy', async () => {
    const proxy = testProxy()
    await proxy.fromClient(modern(1))
    await proxy.fromClient({ id: 2, method: 'initialize', params: {} })
    expect(proxy.session.era).toBe('legacy')
  })

  it('a refused handshake settles nothing', async () => {
    const proxy = testProxy()
    await proxy.fromClient({ id: 0, method: 'initialize', params: {} })
    await proxy.fromServer({ id: 0, error: { code: -32602, message: 'no' } })
    expect(proxy.session.protocolVersion).toBeUndefined()
  })
})

it("state is the session's own, ids are unique", async () => {
  const [{ session: a }, { session: b }] = [await joined(), await joined()]
  a.state.user = 'alice'
  expect(b.state).toEqual({})
  expect(a.id).toMatch(/^[\w-]{36}$/)
  expect(a.id).not.toBe(b.id)
})

it("takes 'restart' listeners", async () => {
  const { session } = await joined()
  let restarts = 0
  session.on('restart', () => restarts++)
  session.emit('restart')
  expect(restarts).toBe(1)
})
