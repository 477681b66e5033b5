import { http, type Session } from 'open-mcp-proxy'
import { describe, expect, test, vi } from 'vitest'
import { type Authenticated, auth } from '../../middleware/auth.js'
import { authorize } from '../../middleware/authorize.js'
import { toolFilter } from '../../middleware/toolFilter.js'
import { serve } from '../fixtures/closing.js'
import { json } from '../fixtures/http-server.js'
import { bearer } from '../fixtures/issuer.js'
import { HandWire } from '../fixtures/played.js'
import { ask, byHeader, eventsIn, listen, type Message, modern, type Opened, open, session, told } from './helpers.js'

/** A server that tells each user something else, and notes what it was asked for whom. */
function personal(answer: (message: Message, user: string | undefined) => object) {
  const asked: string[] = []
  const wires: { user?: string; wire: HandWire }[] = []
  return {
    asked,
    wires,
    open({ principal }: Session) {
      const wire = new HandWire()
      wire.sending = (text) => {
        const message = JSON.parse(text) as Message
        if (message.id === undefined || message.method === undefined) return
        asked.push(`${principal} ${message.method}`)
        const said = answer(message, principal)
        queueMicrotask(() => wire.say({ id: message.id, ...said }))
      }
      wires.push({ user: principal, wire })
      return wire
    },
  }
}

const users = ['alice', 'bob', undefined, 'Alice', '__proto__', 'constructor']
const as = (user: string | undefined): Record<string, string> => (user === undefined ? {} : { 'x-user': user })

describe('what is known of tools', () => {
  /** The header that a tool's argument is to stand in is the user's own. */
  const headerOf = (user: string | undefined) => `Of-${String(user).replaceAll('_', '-')}`
  const upstream = () =>
    personal(({ method }, user) =>
      method === 'tools/list'
        ? {
            result: {
              tools: [
                {
                  name: 'a',
                  inputSchema: {
                    type: 'object',
                    properties: { x: { type: 'string', 'x-mcp-header': headerOf(user) } },
                  },
                },
              ],
            },
          }
        : { result: { for: user ?? 'nobody' } },
    )

  test('is known for each user alone: nobody’s call is held against what another was shown', async () => {
    const { open, asked } = upstream()
    const { port } = await listen(open, {}, (app) => app.use(byHeader))
    const call = modern(1, 'tools/call', { name: 'a', arguments: { x: 'v' } }, 'a')
    const calling = async (user: string | undefined, header: string | undefined) => {
      const param: Record<string, string> = header === undefined ? {} : { [`mcp-param-${header}`]: 'v' }
      return told(await ask(port, { ...call, headers: { ...call.headers, ...as(user), ...param } }))
    }
    for (let round = 0; round < 2; round++) {
      for (const user of users) {
        expect(await calling(user, headerOf(user))).toEqual({
          status: 200,
          body: { jsonrpc: '2.0', id: 1, result: { for: user ?? 'nobody' } },
        })
        const other = users.find((it) => headerOf(it).toLowerCase() !== headerOf(user).toLowerCase())
        expect(await calling(user, headerOf(other))).toMatchObject({ status: 400, body: { error: { code: -32020 } } })
      }
    }
    for (const user of users) expect(asked).toContain(`${user} tools/list`)
  })

  test('of one user excuses no other: who was shown a header must send it', async () => {
    const { open } = personal(({ method }, user) => {
      const x = { type: 'string', ...(user === 'bob' && { 'x-mcp-header': 'X' }) }
      const tools = [{ name: 'a', inputSchema: { type: 'object', properties: { x } } }]
      return { result: method === 'tools/list' ? { tools } : {} }
    })
    const { port } = await listen(open, {}, (app) => app.use(byHeader))
    const call = modern(1, 'tools/call', { name: 'a', arguments: { x: 'v' } }, 'a')
    const statuses: number[] = []
    for (const user of ['alice', 'bob', 'alice', 'bob', undefined]) {
      statuses.push((await ask(port, { ...call, headers: { ...call.headers, ...as(user) } })).status)
    }
    expect(statuses).toEqual([200, 400, 200, 400, 200])
  })

  test('never is an answer: each list comes from the server', async () => {
    const { open, asked } = upstream()
    const { port } = await listen(open, {}, (app) => app.use(byHeader, toolFilter({ deny: ['rm'] })))
    const list = modern(1, 'tools/list')
    for (const user of [...users, ...users]) {
      const reply = await ask(port, { ...list, headers: { ...list.headers, ...as(user) } })
      expect(reply.body).toContain(`"${headerOf(user)}"`)
      for (const other of users.filter((it) => it !== user)) expect(reply.body).not.toContain(`"${headerOf(other)}"`)
    }
    expect(asked).toEqual([...users, ...users].map((user) => `${user} tools/list`))
  })

  test('of a server over HTTP is of the server: what it makes headers of is the caller’s own', async () => {
    const target = await serve((seen, response) => {
      const { id, method } = JSON.parse(seen.body) as Message
      const inputSchema = { type: 'object', properties: { x: { type: 'string', 'x-mcp-header': 'X' } } }
      json(response, {
        jsonrpc: '2.0',
        id,
        result: method === 'tools/list' ? { tools: [{ name: 'a', inputSchema }] } : {},
      })
    })
    const { port } = await listen(http(target.url), {}, (app) => app.use(byHeader))
    for (const user of ['alice', 'bob', 'alice']) {
      const call = modern(1, 'tools/call', { name: 'a', arguments: { x: `secret-of-${user}` } }, 'a')
      const headers = { ...call.headers, ...as(user), 'mcp-param-x': `secret-of-${user}` }
      expect((await ask(port, { ...call, headers })).status).toBe(200)
      const { headers: came, body } = target.seen.at(-1)!
      expect(came['mcp-param-x']).toBe(`secret-of-${user}`)
      expect(JSON.stringify([came, body])).not.toContain(user === 'bob' ? 'of-alice' : 'of-bob')
    }
  })
})

describe('who somebody is', () => {
  const tokens = Array.from({ length: 20 }, (_, at) => ({ token: `t${at}`, id: `u${at}`, scopes: [`s${at}`] }))

  test('is never taken from another’s request, however they mix', async () => {
    const { open } = personal((_message, user) => ({ result: { for: user } }))
    const seen: string[] = []
    const { port } = await listen(open, {}, (app) =>
      app.use(auth({ tokens })).use<Authenticated>(async (ctx, next) => {
        // Somebody else's middleware runs in between.
        await new Promise((resolve) => setTimeout(resolve, Math.random() * 5))
        const { id, scopes } = ctx.state.user!
        seen.push([ctx.kind, ctx.id, ctx.session.principal, id, ...scopes].join(' '))
        return next()
      }),
    )
    const asked = tokens.map(async ({ token }, at) => {
      const ping = modern(at, 'ping')
      const reply = await ask(port, { ...ping, headers: { ...ping.headers, ...bearer(token) } })
      return (JSON.parse(reply.body) as Message).result
    })
    expect(await Promise.all(asked)).toEqual(tokens.map(({ id }) => ({ for: id })))
    const expected = tokens.flatMap(({ id }, at) => [
      `request ${at} ${id} ${id} s${at}`,
      `response ${at} ${id} ${id} s${at}`,
    ])
    expect(seen.sort()).toEqual(expected.sort())
  })

  test('decides over what the server says by itself, too: each session by its own', async () => {
    const tokens = [
      { token: 'a', id: 'alice' },
      { token: 'b', id: 'bob' },
    ]
    const rules = [
      { users: ['alice'], resources: ['file:///alice/*'] },
      { users: ['bob'], resources: ['file:///bob/*'] },
    ]
    const { open: opened, wires } = personal(() => ({ result: {} }))
    const { port } = await listen(opened, {}, (app) => app.use(authorize({ rules }), auth({ tokens })))
    const { port: behind } = await listen(opened, {}, (app) => app.use(auth({ tokens }), authorize({ rules })))
    for (const at of [port, behind]) {
      wires.length = 0
      const streams: Opened[] = []
      for (const { token } of tokens) {
        const headers = {
          ...bearer(token),
          accept: 'text/event-stream',
          'mcp-session-id': await session(at, bearer(token)),
        }
        streams.push(await open(at, { method: 'GET', headers }))
      }
      for (const { wire } of wires) {
        for (const user of ['alice', 'bob', 'eve']) {
          wire.say({ method: 'notifications/resources/updated', params: { uri: `file:///${user}/x` } })
        }
        wire.say({ method: 'notifications/last' })
      }
      const said = (text: string) =>
        eventsIn(text).flatMap(({ data }) => (data === '' ? [] : [JSON.parse(data) as Message]))
      await vi.waitFor(() => {
        for (const it of streams) expect(said(it.heard()).at(-1)?.method).toBe('notifications/last')
      })
      expect(streams.map((it) => said(it.heard()).map(({ params }) => params?.uri))).toEqual([
        ['file:///alice/x', undefined],
        ['file:///bob/x', undefined],
      ])
    }
  })
})

describe('a list that depends on the user', () => {
  const result = { tools: [{ name: 'ok' }, { name: 'rm' }], cacheScope: 'public', ttlMs: 60_000 }
  const { open } = personal(() => ({ result }))
  const list = modern(1, 'tools/list')

  test.each([
    ['rules for users', authorize({ rules: [{ users: ['alice'], tools: ['*'] }, { tools: ['ok'] }] })],
    ['a function', authorize(({ user, name }) => user?.id === 'alice' || name === 'ok')],
  ])('is for no cache that others share: %s', async (_name, policy) => {
    const { port } = await listen(open, {}, (app) => app.use(byHeader, policy))
    const shown: unknown[] = []
    for (const user of ['alice', 'bob', undefined, 'alice']) {
      const { body } = await ask(port, { ...list, headers: { ...list.headers, ...as(user) } })
      const { tools, cacheScope } = (JSON.parse(body) as { result: typeof result }).result
      shown.push([user, cacheScope, tools.map(({ name }) => name)])
    }
    expect(shown).toEqual([
      ['alice', 'private', ['ok', 'rm']],
      ['bob', 'private', ['ok']],
      [undefined, 'private', ['ok']],
      ['alice', 'private', ['ok', 'rm']],
    ])
  })

  test('and one that does not stays as it was', async () => {
    const { port } = await listen(open, {}, (app) => app.use(byHeader, authorize({ rules: [{ tools: ['ok'] }] })))
    const { body } = await ask(port, list)
    expect((JSON.parse(body) as { result: object }).result).toEqual({ ...result, tools: [{ name: 'ok' }] })
  })
})

test('what a modern server asks back, and what it gave to remember, is answered from no memory', async () => {
  let serial = 0
  const { open, asked } = personal((_message, user) => {
    serial++
    return { result: { resultType: 'input_required', requestState: `${user} ${serial}`, inputRequests: {} } }
  })
  const { port } = await listen(open, {}, (app) => app.use(byHeader))
  const states: string[] = []
  for (const user of ['alice', 'bob', 'alice', 'bob']) {
    const call = modern(1, 'tools/call', { name: 'a', arguments: {} }, 'a')
    const { body } = await ask(port, { ...call, headers: { ...call.headers, ...as(user) } })
    states.push((JSON.parse(body) as { result: { requestState: string } }).result.requestState)
  }
  const of = states.map((it) => it.split(' ')[0])
  expect([of, new Set(states).size]).toEqual([['alice', 'bob', 'alice', 'bob'], 4])
  expect(asked.filter((it) => it.endsWith('tools/call'))).toHaveLength(4)
})
