import { describe, expect, test, vi } from 'vitest'
import {
  type AuthorizeOptions,
  type AuthorizeRequest,
  type AuthorizeRule,
  type AuthorizeUser,
  authorize,
} from '../../middleware/authorize.js'
import { createProxy, type Middleware } from '../../src/index.js'
import { testContext, testProxy, type Written } from '../../src/testing.js'
import { joined, turnOfLoop } from '../fixtures/played.js'

const jsonrpc = '2.0'

/** What `auth` does: each request says who sends it. */
const loggedIn: Middleware<{ user: AuthorizeUser }> = (ctx, next) => {
  const user = (ctx.params?._meta as { user?: AuthorizeUser } | undefined)?.user
  if (ctx.kind === 'request' && user) ctx.state.user = user
  return next()
}

const as = (user: AuthorizeUser) => ({ _meta: { user } })

function proxied(policy: Parameters<typeof authorize>[0], ...before: Middleware<never>[]) {
  const app = createProxy()
  const errors: string[] = []
  app.on('error', (error) => errors.push(error.message))
  return { ...testProxy(app.use(...(before as Middleware[]), authorize(policy))), errors }
}

const allowing = (...rules: AuthorizeRule[]): AuthorizeOptions => ({ rules })

const refusal = (id: unknown, kind: string) => ({
  jsonrpc,
  id,
  error: {
    code: -31006,
    message: `Denied: no permission to use this ${kind}`,
    data: { source: 'proxy', reason: 'denied', phase: 'not_sent', retryable: false },
  },
})

const passed = (message: object) => ({ toClient: [], toServer: [{ jsonrpc, ...message }] })
const refused = (id: unknown, kind: string) => ({ toClient: [refusal(id, kind)], toServer: [] })

const call = (name: unknown, id: unknown = 1) => ({ id, method: 'tools/call', params: { name, arguments: {} } })
const read = (uri: unknown, id: unknown = 1) => ({ id, method: 'resources/read', params: { uri } })

describe('a URI that a rule names as it is', () => {
  test.each([
    ['https://Example.com', ['https://example.com/', 'https://Example.com', 'https://example.com']],
    ['file:///docs/a b', ['file:///docs/a b', 'file:///docs/a%20b']],
    ['file:///docs/a%20b', ['file:///docs/a b', 'file:///docs/a%20b']],
  ])('%s stands for all ways to read it', async (uri, ways) => {
    const { fromClient } = proxied(allowing({ resources: [uri] }))
    for (const way of ways) expect(await fromClient(read(way, way))).toEqual(passed(read(way, way)))
    for (const other of [
      'https://example.com/x',
      'file:///docs/a',
      'file:///docs/a%2520b/..',
      'file:///docs/a b/../c',
    ]) {
      expect(await fromClient(read(other))).toEqual(refused(1, 'resource'))
    }
  })
})

describe('one policy', () => {
  const policy = allowing(
    { effect: 'deny', tools: ['delete_*'], resources: ['*secret*'] },
    { tools: ['*'], prompts: ['greet', 'sum*'], resources: ['demo://*', 'file:///srv/*'] },
  )

  test('decides over calls', async () => {
    const { fromClient } = proxied(policy)
    const use = (method: string, params: object, id = 1) => fromClient({ id, method, params })
    expect(await fromClient(call('get_note'))).toEqual(passed(call('get_note')))
    expect(await fromClient(call('delete_note', 2))).toEqual(refused(2, 'tool'))
    expect(await use('prompts/get', { name: 'summary' }, 3)).toEqual(
      passed({ id: 3, method: 'prompts/get', params: { name: 'summary' } }),
    )
    expect(await use('prompts/get', { name: 'greeting' }, 4)).toEqual(refused(4, 'prompt'))
    expect(await fromClient(read('demo://a/b', 5))).toEqual(passed(read('demo://a/b', 5)))
    for (const method of ['resources/read', 'resources/subscribe', 'resources/directory/read', 'skills/get']) {
      expect(await use(method, { uri: 'demo://secret' }, 6)).toEqual(refused(6, 'resource'))
      expect(await use(method, { uri: 'http://a/' }, 7)).toEqual(refused(7, 'resource'))
    }
    const unsubscribe = { id: 8, method: 'resources/unsubscribe', params: { uri: 'demo://secret' } }
    expect(await fromClient(unsubscribe)).toEqual(passed(unsubscribe))
  })

  test('decides over completions', async () => {
    const { fromClient } = proxied(policy)
    const complete = (ref: unknown) => ({ id: 1, method: 'completion/complete', params: { ref, argument: {} } })
    for (const ref of [
      { type: 'ref/prompt', name: 'greet' },
      { type: 'ref/resource', uri: 'demo://x/{id}' },
    ]) {
      const proxy = proxied(policy)
      expect(await proxy.fromClient(complete(ref))).toEqual(passed(complete(ref)))
    }
    for (const [ref, kind] of [
      [{ type: 'ref/prompt', name: 'rm' }, 'prompt'],
      [{ type: 'ref/resource', uri: 'demo://secret/{id}' }, 'resource'],
      [{ type: 'ref/resource', uri: 'demo://x', name: 'rm' }, 'prompt'],
      [{ type: 'ref/prompt', name: 'greet', uri: 'demo://secret' }, 'resource'],
      [{ type: 'ref/prompt', uri: 'demo://x' }, 'prompt'],
      [{ type: 'ref/other' }, 'prompt'],
      [{}, 'prompt'],
      [null, 'prompt'],
      [undefined, 'prompt'],
      ['greet', 'prompt'],
    ] as const) {
      expect(await fromClient(complete(ref))).toEqual(refused(1, kind))
    }
  })

  test('decides over a listen stream: one denied resource refuses it', async () => {
    const listen = (notifications: unknown) => ({ id: 1, method: 'subscriptions/listen', params: { notifications } })
    for (const wanted of [
      { toolsListChanged: true },
      { resourceSubscriptions: [] },
      { resourceSubscriptions: ['demo://a', 'file:///srv/x'] },
      {},
      undefined,
    ]) {
      expect(await proxied(policy).fromClient(listen(wanted))).toEqual(passed(listen(wanted)))
    }
    for (const resourceSubscriptions of [
      ['demo://a', 'demo://secret'],
      [1],
      ['demo://a', null],
      'demo://a',
      {},
      null,
    ]) {
      expect(await proxied(policy).fromClient(listen({ resourceSubscriptions }))).toEqual(refused(1, 'resource'))
    }
  })

  test('decides over lists: what stays keeps its order, and the cursor', async () => {
    const { fromClient, fromServer } = proxied(policy)
    const list = async (method: string, result: object) => {
      await fromClient({ id: 1, method, params: { uri: 'demo://' } })
      const { toClient, toServer } = await fromServer({ id: 1, result })
      expect(toServer).toEqual([])
      return (toClient[0] as { result: unknown }).result
    }
    expect(
      await list('tools/list', {
        tools: [{ name: 'c' }, { name: 'delete_a', title: 'A' }, { name: 'b', x: [1] }, { name: 'delete_b' }],
        nextCursor: 'n',
        more: 1,
      }),
    ).toEqual({ tools: [{ name: 'c' }, { name: 'b', x: [1] }], nextCursor: 'n', more: 1 })
    expect(await list('prompts/list', { prompts: [{ name: 'rm' }, { name: 'greet' }] })).toEqual({
      prompts: [{ name: 'greet' }],
    })
    const uris = ['demo://b', 'demo://secret', 'file:///etc/passwd', 'file:///srv/../etc', 'demo://a']
    for (const [method, member, name] of [
      ['resources/list', 'resources', 'uri'],
      ['resources/templates/list', 'resourceTemplates', 'uriTemplate'],
      ['skills/list', 'skills', 'uri'],
      ['resources/directory/read', 'resources', 'uri'],
    ] as const) {
      expect(await list(method, { [member]: uris.map((it) => ({ [name]: it, name: 'n' })) })).toEqual({
        [member]: [
          { [name]: 'demo://b', name: 'n' },
          { [name]: 'demo://a', name: 'n' },
        ],
      })
    }
    expect(await list('tools/list', { tools: [{ name: 'delete_a' }] })).toEqual({ tools: [] })
  })

  test('what stays of a list leaves byte for byte', async () => {
    const { client, server } = await joined((app) => app.use(authorize(policy)))
    const list = async (text: string) => {
      client.say({ id: 1, method: 'tools/list' })
      await turnOfLoop()
      server.say(text)
      await vi.waitFor(() => expect(client.sent).toHaveLength(1))
      return client.sent.splice(0)[0]
    }
    const tool = '{"x": 1e400, "name":"\\u0061" ,"n":9007199254740993,"d":1.0}'
    const whole = `{ "result":{"nextCursor" : "n","tools":[ ${tool} , {"name":"b"}]},"id":1,"jsonrpc":"2.0"}`
    expect(await list(whole)).toBe(whole)
    expect(await list(whole.replace('"b"', '"delete_b"'))).toBe(whole.replace(' , {"name":"b"}', ''))
  })

  test('decides over templates by their text', async () => {
    const { fromClient, fromServer } = proxied(allowing({ resources: ['test://t/{id}/data', 'file:///{+path}'] }))
    await fromClient({ id: 1, method: 'resources/templates/list' })
    const templates = ['test://t/{id}/data', 'test://t/{id}', 'file:///{+path}', 'file:///{path}']
    const { toClient } = await fromServer({
      id: 1,
      result: { resourceTemplates: templates.map((uriTemplate) => ({ uriTemplate })) },
    })
    expect(toClient).toMatchObject([
      { result: { resourceTemplates: [{ uriTemplate: templates[0] }, { uriTemplate: templates[2] }] } },
    ])
  })

  test('drops what a server tells of a denied resource', async () => {
    const { fromServer } = proxied(policy)
    const updated = (uri: unknown) => ({ method: 'notifications/resources/updated', params: { uri } })
    expect(await fromServer(updated('demo://a'))).toEqual({
      toServer: [],
      toClient: [{ jsonrpc, ...updated('demo://a') }],
    })
    for (const uri of ['demo://secret', 'demo://%73ecret', 5, null, undefined, ['demo://a']]) {
      expect(await fromServer(updated(uri))).toEqual({ toServer: [], toClient: [] })
    }
  })
})

test('the first rule that matches decides, then the default', async () => {
  const rules: AuthorizeRule[] = [
    { tools: ['a'] },
    { effect: 'deny', tools: ['a', 'b'] },
    { effect: 'allow', tools: ['b', 'c'] },
  ]
  const outcome = async (fallback?: 'allow' | 'deny') => {
    const allowed: string[] = []
    for (const name of ['a', 'b', 'c', 'd']) {
      const { toServer } = await proxied({ rules, default: fallback }).fromClient(call(name))
      if (toServer.length > 0) allowed.push(name)
    }
    return allowed
  }
  expect(await outcome()).toEqual(['a', 'c'])
  expect(await outcome('deny')).toEqual(['a', 'c'])
  expect(await outcome('allow')).toEqual(['a', 'c', 'd'])
})

test('a list of one kind says nothing of the others', async () => {
  const policy = allowing({ tools: ['x'] })
  expect((await proxied(policy).fromClient(call('x'))).toServer).toHaveLength(1)
  expect(await proxied(policy).fromClient(read('x'))).toEqual(refused(1, 'resource'))
  const get = { id: 1, method: 'prompts/get', params: { name: 'x' } }
  expect(await proxied(policy).fromClient(get)).toEqual(refused(1, 'prompt'))
})

describe('a call that names nothing is refused, whatever the default', () => {
  const names: unknown[] = [undefined, null, 5, true, ['rm'], { rm: 1 }, { toString: 'rm' }]
  test.each(['allow', 'deny'] as const)('%s', async (fallback) => {
    const policy = { rules: [{ effect: fallback, tools: ['*'], prompts: ['*'], resources: ['*'] }], default: fallback }
    for (const name of names) {
      expect(await proxied(policy).fromClient(call(name))).toEqual(refused(1, 'tool'))
      expect(await proxied(policy).fromClient(read(name))).toEqual(refused(1, 'resource'))
      const get = { id: 1, method: 'prompts/get', params: { name } }
      expect(await proxied(policy).fromClient(get)).toEqual(refused(1, 'prompt'))
    }
    for (const params of [undefined, null, [], ['rm'], 'rm', 5, { __proto__: null, name2: 'rm' }]) {
      const message = { id: 1, method: 'tools/call', params: params as object }
      expect(await proxied(policy).fromClient(message)).toEqual(refused(1, 'tool'))
    }
  })

  test('the URI of a tool call is not its name, nor the name of a read its URI', async () => {
    const policy = allowing({ tools: ['ok'], resources: ['ok'] })
    for (const params of [{ name: ['rm'], uri: 'ok' }, { uri: 'ok' }, { name: null, uri: 'ok' }]) {
      expect(await proxied(policy).fromClient({ id: 1, method: 'tools/call', params })).toEqual(refused(1, 'tool'))
    }
    const escaped = '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":["rm"],"\\u0075ri":"ok"}}'
    expect(await proxied(policy).fromClient(escaped)).toEqual(refused(1, 'tool'))
    const params = { name: 'ok', uri: 'rm' }
    expect(await proxied(policy).fromClient({ id: 1, method: 'resources/read', params })).toEqual(
      refused(1, 'resource'),
    )
    expect(await proxied(policy).fromClient({ id: 1, method: 'tools/call', params })).toEqual(
      passed({ id: 1, method: 'tools/call', params }),
    )
  })

  test('nor is what an object has only inherited', async () => {
    const inherit: Middleware = (ctx, next) => {
      if (ctx.kind === 'request') ctx.params = Object.create({ name: 'ok', uri: 'ok' })
      return next()
    }
    const policy = allowing({ tools: ['ok'], prompts: ['ok'], resources: ['ok'] })
    expect(await proxied(policy, inherit).fromClient(read('ok'))).toEqual(refused(1, 'resource'))
    expect(await proxied(policy, inherit).fromClient(call('ok'))).toEqual(refused(1, 'tool'))
  })

  test('nor is anything listed that has no name', async () => {
    const { fromClient, fromServer } = proxied({ rules: [], default: 'allow' })
    await fromClient({ id: 1, method: 'tools/list' })
    const tools = [{ name: 'a' }, {}, { name: 5 }, null, 'b', ['c'], { name: ['d'] }, { title: 'e' }]
    expect((await fromServer({ id: 1, result: { tools } })).toClient).toEqual([
      { jsonrpc, id: 1, result: { tools: [{ name: 'a' }] } },
    ])
  })
})

describe('users', () => {
  const policy = allowing(
    { users: ['ada', 'team-*'], tools: ['a'] },
    { scopes: ['read', 'write'], tools: ['b'] },
    { users: ['*'], tools: ['c'] },
    { tools: ['d'] },
  )
  const allowed = async (user?: unknown) => {
    const found: string[] = []
    for (const name of ['a', 'b', 'c', 'd']) {
      const message = { id: 1, method: 'tools/call', params: { name, ...(user !== undefined && as(user as never)) } }
      if ((await proxied(policy, loggedIn).fromClient(message)).toServer.length > 0) found.push(name)
    }
    return found.join('')
  }

  test('by their id, and all the scopes that a rule wants', async () => {
    expect(await allowed({ id: 'ada' })).toBe('acd')
    expect(await allowed({ id: 'team-x', scopes: ['read'] })).toBe('acd')
    expect(await allowed({ id: 'bob', scopes: ['write', 'other', 'read'] })).toBe('bcd')
    expect(await allowed({ id: 'bob', scopes: ['read write', 'readwrite'] })).toBe('cd')
    expect(await allowed({ id: '' })).toBe('cd')
    expect(await allowed()).toBe('d')
  })

  test.each(['Ada', 'ada ', 'ada\u0000', 'аda', 'ada\n', 'ada\u200b', 'ADA', 'constructor', '__proto__'])(
    '%j is somebody else',
    async (id) => {
      expect(await allowed({ id })).toBe('cd')
    },
  )

  test('an id that is too long to compare is allowed nothing', async () => {
    expect(await allowed({ id: `team-${'x'.repeat(2_043)}` })).toBe('acd')
    expect(await allowed({ id: `team-${'x'.repeat(2_044)}` })).toBe('')
  })

  test('what is no user fails the request: nobody is taken for somebody else', async () => {
    for (const user of ['ada', 5, null, {}, { id: 5 }, { id: 'ada', scopes: 'read' }, { id: 'ada', scopes: [5] }]) {
      const bad: Middleware<{ user: unknown }> = (ctx, next) => {
        ctx.state.user = user
        return next()
      }
      const { fromClient, errors } = proxied(policy, bad as Middleware<never>)
      expect(await fromClient(call('d'))).toEqual({
        toServer: [],
        toClient: [{ jsonrpc, id: 1, error: { code: -32603, message: 'Internal error' } }],
      })
      expect(errors).toEqual([expect.stringMatching(/^authorize: expected ctx\.state\.user as \{ id: string/)])
    }
  })

  test('each sees a list of their own', async () => {
    const { fromClient, fromServer } = proxied(policy, loggedIn)
    const tools = ['d', 'c', 'b', 'a'].map((name) => ({ name }))
    const users: [number, AuthorizeUser][] = [
      [1, { id: 'ada' }],
      [2, { id: 'bob', scopes: ['read', 'write'] }],
    ]
    for (const [id, user] of users) await fromClient({ id, method: 'tools/list', params: as(user) })
    const seen = []
    for (const [id] of users.toReversed()) {
      const { toClient } = await fromServer({ id, result: { tools } })
      seen.push(
        (toClient[0] as unknown as { result: { tools: typeof tools } }).result.tools.map(({ name }) => name).join(''),
      )
    }
    expect(seen).toEqual(['dcb', 'dca'])
  })

  test('an update goes by who sent the newest request', async () => {
    const { fromClient, fromServer } = proxied(allowing({ users: ['ada'], resources: ['demo://a'] }), loggedIn)
    const updated = { method: 'notifications/resources/updated', params: { uri: 'demo://a' } }
    const told = async () => (await fromServer(updated)).toClient.length
    expect(await told()).toBe(0)
    await fromClient({ id: 1, method: 'ping', params: as({ id: 'ada' }) })
    expect(await told()).toBe(1)
    await fromClient({ id: 2, method: 'ping', params: as({ id: 'bob' }) })
    expect(await told()).toBe(0)
  })
})

describe('a function', () => {
  const asked = (requests: AuthorizeRequest[]) => requests.map(({ ctx: _, ...request }) => request)

  test('is asked with all there is to know', async () => {
    const requests: AuthorizeRequest[] = []
    const { fromClient, fromServer } = proxied((request) => requests.push(request) > 0, loggedIn)
    const user = { id: 'ada', scopes: ['a'] }
    await fromClient({ id: 1, method: 'tools/call', params: { name: 'x', ...as(user) } })
    await fromClient({ id: 2, method: 'prompts/list', params: as(user) })
    await fromServer({ id: 2, result: { prompts: [{ name: 'p' }, { name: 'q' }] } })
    await fromClient(read('demo://a', 3))
    await fromServer({ method: 'notifications/resources/updated', params: { uri: 'demo://b' } })
    expect(asked(requests)).toEqual([
      { user, kind: 'tool', name: 'x', action: 'use' },
      { user, kind: 'prompt', name: 'p', action: 'list' },
      { user, kind: 'prompt', name: 'q', action: 'list' },
      { kind: 'resource', name: 'demo://a', action: 'use' },
      { user, kind: 'resource', name: 'demo://b', action: 'use' },
    ])
    expect(requests.map(({ ctx }) => ctx.method)).toEqual([
      'tools/call',
      'prompts/list',
      'prompts/list',
      'resources/read',
      'notifications/resources/updated',
    ])
  })

  test('may take its time, and only true allows', async () => {
    for (const answer of [true, false, undefined, 1, 'yes', {}, null]) {
      const { fromClient } = proxied(async () => {
        await new Promise(setImmediate)
        return answer as boolean
      })
      expect(await fromClient(call('x'))).toEqual(answer === true ? passed(call('x')) : refused(1, 'tool'))
    }
  })

  test('that throws fails the call, and the whole list', async () => {
    const policy = ({ name }: AuthorizeRequest) => {
      if (name === 'bad') throw new Error('the database is at 10.0.0.1')
      return true
    }
    const { fromClient, fromServer, errors } = proxied(policy)
    const failed = (id: number) => [{ jsonrpc, id, error: { code: -32603, message: 'Internal error' } }]
    expect(await fromClient(call('bad'))).toEqual({ toServer: [], toClient: failed(1) })
    await fromClient({ id: 2, method: 'tools/list' })
    expect(await fromServer({ id: 2, result: { tools: [{ name: 'ok' }, { name: 'bad' }] } })).toEqual({
      toServer: [],
      toClient: failed(2),
    })
    expect(await fromServer({ method: 'notifications/resources/updated', params: { uri: 'bad' } })).toEqual({
      toServer: [],
      toClient: [],
    })
    expect(errors).toEqual(Array(3).fill('the database is at 10.0.0.1'))
  })

  test('is asked about a URI in each way that it can be read, until it says no', async () => {
    const names: string[] = []
    const policy = ({ name }: AuthorizeRequest) => names.push(name) > 0 && name.startsWith('file:///srv/')
    const { fromClient } = proxied(policy)
    expect(await fromClient(read('file:///srv/%2e%2e/etc/passwd'))).toEqual(refused(1, 'resource'))
    expect(names[0]).toBe('file:///srv/%2e%2e/etc/passwd')
    expect(names.at(-1)).toBe('file:///etc/passwd')
  })

  test('an answer for a call that was cancelled meanwhile lets nothing pass', async () => {
    const asked: ((allowed: boolean) => void)[] = []
    const { fromClient } = proxied(() => new Promise<boolean>((resolve) => asked.push(resolve)))
    const called = fromClient(call('x'))
    await vi.waitFor(() => expect(asked).toHaveLength(1))
    const cancelled = fromClient({ method: 'notifications/cancelled', params: { requestId: 1 } })
    asked[0]!(true)
    expect([await called, await cancelled]).toEqual(Array(2).fill({ toClient: [], toServer: [] }))
  })
})

describe('what may be cached', () => {
  const tools = [{ name: 'a' }]
  const meta = { 'io.modelcontextprotocol/protocolVersion': '2026-07-28' }
  const answered = async (policy: Parameters<typeof authorize>[0], method: string, result: object) => {
    const { fromClient, fromServer } = proxied(policy)
    await fromClient({ id: 1, method, params: { uri: 'a', _meta: meta } })
    return ((await fromServer({ id: 1, result })).toClient[0] as { result: unknown }).result
  }
  const personal: AuthorizeOptions = {
    rules: [
      { users: ['ada'], tools: ['b'] },
      { tools: ['a'], resources: ['a'] },
    ],
  }

  test('by anybody is for the user alone once users differ', async () => {
    for (const policy of [
      personal,
      () => true,
      allowing({ scopes: ['x'], tools: ['b'] }, { tools: ['a'], resources: ['a'] }),
    ]) {
      for (const [method, result] of [
        ['tools/list', { tools }],
        ['resources/read', { contents: [] }],
      ] as const) {
        expect(await answered(policy, method, { ...result, ttlMs: 5, cacheScope: 'public' })).toEqual({
          ...result,
          ttlMs: 5,
          cacheScope: 'private',
        })
        expect(await answered(policy, method, { ...result, ttlMs: 5 })).toEqual({ ...result, ttlMs: 5 })
      }
    }
  })

  test('stays for anybody where it is the same for all', async () => {
    const result = { tools: [{ name: 'rm' }, ...tools], ttlMs: 5, cacheScope: 'public' }
    expect(await answered(allowing({ tools: ['a'] }), 'tools/list', result)).toEqual({ ...result, tools })
  })

  test('of a resource stays for anybody where users are alike, and in sessions, whose revisions know no such thing', async () => {
    const result = { contents: [], ttlMs: 5, cacheScope: 'public' }
    expect(await answered(allowing({ resources: ['a'] }), 'resources/read', result)).toEqual(result)
    const { fromClient, fromServer } = proxied(() => true)
    await fromClient(read('a'))
    expect((await fromServer({ id: 1, result })).toClient).toEqual([{ jsonrpc, id: 1, result }])
  })

  test('is not looked at in other answers', async () => {
    const { fromClient, fromServer } = proxied(() => true)
    await fromClient(call('a'))
    const answer = { id: 1, result: { content: [], cacheScope: 'public' } }
    expect(await fromServer(answer)).toEqual({ toServer: [], toClient: [{ jsonrpc, ...answer }] })
  })
})

describe('none of its business', () => {
  test('any other method, either way, in any shape', async () => {
    const policy = () => {
      throw new Error('asked')
    }
    const { fromClient, fromServer } = proxied(policy)
    for (const message of [
      { id: 1, method: 'initialize', params: { name: 'x' } },
      { id: 2, method: 'tasks/get', params: { taskId: 't', name: 'x' } },
      { id: 3, method: '__proto__', params: { name: 'x' } },
      { id: 4, method: 'constructor' },
      { id: 5, method: 'toString' },
      { id: 6, method: 'resources/unsubscribe', params: { uri: 'x' } },
      { method: 'notifications/initialized' },
    ]) {
      expect(await fromClient(message)).toEqual(passed(message))
    }
    for (const message of [
      { id: 1, method: 'sampling/createMessage', params: { name: 'x' } },
      { id: 2, method: 'tools/call', params: { name: 'x' } },
      { id: 3, method: 'tools/list' },
      { method: 'notifications/message', params: { uri: 'x' } },
    ]) {
      expect(await fromServer(message)).toEqual({ toServer: [], toClient: [{ jsonrpc, ...message }] })
    }
    // The server's questions share their names with the client's: their answers are not its lists.
    expect(await fromClient({ id: 3, result: { tools: [{ name: 'x' }] } })).toEqual(
      passed({ id: 3, result: { tools: [{ name: 'x' }] } }),
    )
    expect(await fromClient({ id: 2, result: { content: [] } })).toEqual(passed({ id: 2, result: { content: [] } }))
    expect(await fromServer({ id: 2, result: { tools: 5, cacheScope: 'public' } })).toEqual({
      toServer: [],
      toClient: [{ jsonrpc, id: 2, result: { tools: 5, cacheScope: 'public' } }],
    })
  })

  test('is not parsed, and neither is a call', async () => {
    for (const text of [
      '{"jsonrpc":"2.0","id":1,"method":"ping","params":{"name":"a"}}',
      '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":{"n":1e400}}}',
    ]) {
      const { ctx, next, deeds } = testContext(text)
      Object.defineProperty(ctx, 'message', { get: () => expect.unreachable('it was parsed') })
      await authorize(allowing({ tools: ['a'] }))(ctx, next)
      expect(deeds.passed).toHaveLength(1)
    }
  })

  test('the error of a list', async () => {
    const { fromClient, fromServer } = proxied(allowing({ tools: ['a'] }))
    await fromClient({ id: 1, method: 'tools/list' })
    const error = { id: 1, error: { code: -1, message: 'tools' } }
    expect(await fromServer(error)).toEqual({ toServer: [], toClient: [{ jsonrpc, ...error }] })
  })
})

describe('patterns', () => {
  const fits = async (pattern: string, name: string) =>
    (await proxied(allowing({ tools: [pattern] })).fromClient(call(name))).toServer.length > 0

  test.each([
    ['*', ['', 'a', 'a/b', '.', '..', '.a', 'a\nb', '__proto__', '!', '👋', 'a'.repeat(2_048)], []],
    ['a*', ['a', 'a.b/c', 'a\u2028'], ['', 'ba', 'A']],
    ['*a', ['a', 'ba', 'aa'], ['ab', '']],
    ['a**b', ['ab', 'a/x/b'], ['a']],
    ['a*b*c', ['abc', 'abbcbc', 'a/b/c'], ['acb', 'ab', 'xabc', 'abcx']],
    ['*ab*ab', ['abab', 'aabxab'], ['ab', 'aab', 'abx']],
    ['?', ['a', '/', '👋', '\n'], ['', 'ab']],
    ['{a,b}_{c,d}', ['a_c', 'b_d'], ['a_', '{a,b}_{c,d}', 'ab_cd']],
    ['x{,y{1,2*}}', ['x', 'xy1', 'xy2', 'xy23'], ['xy', 'xy13']],
    ['{a}', ['{a}'], ['a']],
    ['a,b', ['a,b'], ['a']],
    ['\\*\\?\\{a,b\\}\\\\', ['*?{a,b}\\'], ['x']],
    ['\\!\\[a\\]\\(b\\|c\\)', ['![a](b|c)'], ['a']],
    ['a!b', ['a!b'], ['ab']],
    ['a.b+^$-#"@', ['a.b+^$-#"@'], ['axb+^$-#"@']],
    ['', [''], ['a']],
    ['toString', ['toString'], ['constructor', '__proto__', '']],
    ['__proto__', ['__proto__'], ['constructor', 'proto']],
  ] as [string, string[], string[]][])('%s', async (pattern, fitting, others) => {
    for (const name of fitting) expect([name, await fits(pattern, name)]).toEqual([name, true])
    for (const name of others) expect([name, await fits(pattern, name)]).toEqual([name, false])
  })

  test('no name takes long, and none is too long to be denied', async () => {
    const hard = allowing({ effect: 'deny', tools: ['*a*a*a*a*a*a*a*a*b'] }, { tools: ['*'] })
    const name = 'a'.repeat(2_048)
    expect(await proxied(hard).fromClient(call(name))).toEqual(passed(call(name)))
    for (const fallback of ['allow', 'deny'] as const) {
      const policy: AuthorizeOptions = { rules: [{ tools: ['*'], resources: ['*'] }], default: fallback }
      expect(await proxied(policy).fromClient(call(`${name}a`))).toEqual(refused(1, 'tool'))
      expect(await proxied(policy).fromClient(read(`${name}a`))).toEqual(refused(1, 'resource'))
    }
  })
})

describe('what it cannot take it tells', () => {
  const rule = { tools: ['a'] }
  test.each([
    [undefined, 'a function or { rules }, got undefined'],
    [null, 'a function or { rules }, got null'],
    ['deny', 'a function or { rules }, got "deny"'],
    [[], 'a function or { rules }, got []'],
    [{}, 'rules as an array, got undefined'],
    [{ rules: {} }, 'rules as an array, got {}'],
    [{ rules: [], defaults: 'allow' }, 'a function or { rules } with rules, default alone, got "defaults"'],
    [{ rules: [], default: 'Allow' }, 'default "allow" or "deny", got "Allow"'],
    [{ rules: [rule, 5] }, 'rules[1] as an object, got 5'],
    [{ rules: [{}] }, 'rules[0] with tools, prompts or resources, got {}'],
    [{ rules: [{ users: ['a'] }] }, 'rules[0] with tools, prompts or resources, got {"users":["a"]}'],
    [{ rules: [{ tool: ['a'] }] }, 'rules[0] with effect, users, scopes, tools, prompts, resources alone, got "tool"'],
    [
      JSON.parse('{"rules":[{"tools":["a"],"__proto__":{"effect":"deny"}}]}'),
      'rules[0] with effect, users, scopes, tools, prompts, resources alone, got "__proto__"',
    ],
    [{ rules: [{ ...rule, effect: 'block' }] }, 'rules[0].effect "allow" or "deny", got "block"'],
    [{ rules: [{ tools: 'a' }] }, 'rules[0].tools as an array of at least one string, got "a"'],
    [{ rules: [{ tools: [] }] }, 'rules[0].tools as an array of at least one string, got []'],
    [{ rules: [{ ...rule, users: [5] }] }, 'rules[0].users as an array of at least one string, got [5]'],
    [{ rules: [{ ...rule, scopes: [] }] }, 'rules[0].scopes as an array of at least one string, got []'],
    [
      { rules: [{ tools: ['!a'] }] },
      'rules[0].tools to have a pattern without ! (\\! is the character itself), got "!a"',
    ],
    [
      { rules: [{ prompts: ['[ab]'] }] },
      'rules[0].prompts to have a pattern without [ (\\[ is the character itself), got "[ab]"',
    ],
    [
      { rules: [{ tools: ['+(a)'] }] },
      'rules[0].tools to have a pattern without ( (\\( is the character itself), got "+(a)"',
    ],
    [
      { rules: [{ resources: ['{a'] }] },
      'rules[0].resources to have a pattern with every { closed (\\{ is the character itself), got "{a"',
    ],
    [
      { rules: [{ resources: ['a}'] }] },
      'rules[0].resources to have a pattern with every { closed (\\{ is the character itself), got "a}"',
    ],
    [
      { rules: [{ resources: ['a\\'] }] },
      'rules[0].resources to have a pattern with a character after each \\, got "a\\\\"',
    ],
  ])('%j', (options, text) => {
    expect(() => authorize(options as AuthorizeOptions)).toThrow(new TypeError(`authorize: expected ${text}`))
  })

  test('alternatives that would fill the memory', () => {
    const options = allowing({ tools: ['{a,b}'.repeat(30)] })
    expect(() => authorize(options)).toThrow('with 1000 alternatives at most')
  })
})

test('is plain data: what a file holds', async () => {
  const options = JSON.parse('{"rules":[{"effect":"deny","tools":["rm"]},{"tools":["*"]}],"default":"deny"}')
  expect(await proxied(options).fromClient(call('rm'))).toEqual(refused(1, 'tool'))
  expect(await proxied(options).fromClient(call('ls'))).toEqual(passed(call('ls')))
})

test('a denied call without an id is dropped: a server might run it', async () => {
  const { fromClient, errors } = proxied(allowing({ tools: ['ok'] }))
  const note = (name: string): Written => ({ method: 'tools/call', params: { name } })
  expect(await fromClient(note('rm'))).toEqual({ toClient: [], toServer: [] })
  expect(await fromClient(note('ok'))).toEqual({ toClient: [], toServer: [{ jsonrpc, ...(note('ok') as object) }] })
  expect(errors).toEqual([])
})

test('it authorises', () => {
  expect(authorize(allowing())).toHaveProperty('role', 'authorise')
  expect(authorize(allowing())).toHaveProperty('name', 'authorize')
})
