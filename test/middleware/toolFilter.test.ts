import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { type ToolFilterOptions, toolFilter } from '../../middleware/toolFilter.js'
import { createProxy, onRequest, onResponse } from '../../src/index.js'
import { type TestProxy, testProxy } from '../../src/testing.js'
import { joined, turnOfLoop } from '../fixtures/played.js'

const filtered = (first: ToolFilterOptions = {}, ...more: ToolFilterOptions[]) =>
  testProxy(createProxy().use(...[first, ...more].map((it) => toolFilter(it))))

const list = { id: 'l', method: 'tools/list' }
const call = (name: unknown, id: unknown = 1) => ({ id, method: 'tools/call', params: { name, arguments: { a: 1 } } })
const tool = (name: unknown, more: object = {}) => ({ name, inputSchema: { type: 'object' }, ...more })
const unknown = (name: string, id: unknown = 1) => ({
  toServer: [],
  toClient: [{ jsonrpc: '2.0', id, error: { code: -32602, message: `Unknown tool: ${name}` } }],
})

/** What the client sees of a list. */
async function shown(proxy: TestProxy, tools: unknown[], more: object = {}) {
  await proxy.fromClient(list)
  const { toClient } = await proxy.fromServer({ id: 'l', result: { tools, ...more } })
  return (toClient[0] as unknown as { result: { tools: { name: string }[] } }).result
}

const namesOf = async (proxy: TestProxy, ...names: unknown[]) =>
  (
    await shown(
      proxy,
      names.map((it) => tool(it)),
    )
  ).tools.map(({ name }) => name)

/** Under which name a call reaches the server; undefined where it does not. */
async function reached(proxy: TestProxy, name: unknown) {
  const { toServer } = await proxy.fromClient(call(name, 'c'))
  if (toServer.length === 0) return undefined
  await proxy.fromServer({ id: 'c', result: {} })
  return (toServer[0] as unknown as { params: { name: string } }).params.name
}

describe('names', () => {
  test('a prefix is put on in the list and taken off in a call', async () => {
    const proxy = filtered({ prefix: 'fs_' })
    expect(await proxy.fromClient(list)).toEqual({ toServer: [{ jsonrpc: '2.0', ...list }], toClient: [] })
    const tools = [tool('read', { title: 'Read' }), tool('write')]
    expect(await proxy.fromServer({ id: 'l', result: { tools, nextCursor: 'n', _meta: { a: 1 } } })).toEqual({
      toServer: [],
      toClient: [
        {
          jsonrpc: '2.0',
          id: 'l',
          result: { tools: [tool('fs_read', { title: 'Read' }), tool('fs_write')], nextCursor: 'n', _meta: { a: 1 } },
        },
      ],
    })
    expect(await proxy.fromClient(call('fs_read'))).toEqual({
      toServer: [{ jsonrpc: '2.0', ...call('read') }],
      toClient: [],
    })
    expect(await proxy.fromServer({ id: 1, result: { content: [{ type: 'text', text: 'read' }] } })).toEqual({
      toServer: [],
      toClient: [{ jsonrpc: '2.0', id: 1, result: { content: [{ type: 'text', text: 'read' }] } }],
    })
  })

  test('as they were before they are unknown', async () => {
    const proxy = filtered({ prefix: 'p_', rename: { a: 'b' } })
    for (const name of ['a', 'b', 'x', 'p_a', 'p', '', 'P_b', ' p_b']) {
      expect(await proxy.fromClient(call(name))).toEqual(unknown(name))
    }
    expect(await reached(proxy, 'p_b')).toBe('a')
    expect(await reached(proxy, 'p_x')).toBe('x')
    expect(await reached(proxy, 'p_p_b')).toBe('p_b')
  })

  test('may be changed for each other, and in a circle', async () => {
    const proxy = filtered({ rename: { a: 'b', b: 'c', c: 'a' } })
    expect(await namesOf(proxy, 'a', 'b', 'c', 'd')).toEqual(['b', 'c', 'a', 'd'])
    for (const [name, own] of Object.entries({ b: 'a', c: 'b', a: 'c', d: 'd' })) {
      expect(await reached(proxy, name)).toBe(own)
    }
  })

  test('a tool that is called as another one is called now is hidden', async () => {
    const proxy = filtered({ rename: { a: 'b' } })
    expect(await namesOf(proxy, 'b', 'a', 'c')).toEqual(['b', 'c'])
    expect(await reached(proxy, 'b')).toBe('a')
    expect(await reached(proxy, 'a')).toBeUndefined()
  })

  test('of the prototype are names as others', async () => {
    const rename = JSON.parse('{"__proto__":"constructor","constructor":"toString","hasOwnProperty":"__proto__"}')
    const proxy = filtered({ rename, describe: JSON.parse('{"__proto__":"P"}') })
    const { tools } = await shown(
      proxy,
      ['__proto__', 'constructor', 'hasOwnProperty', 'valueOf', 'toString'].map((it) => tool(it)),
    )
    const names = ['constructor', 'toString', '__proto__', 'valueOf']
    expect(tools).toEqual(names.map((it, at) => tool(it, at === 0 ? { description: 'P' } : {})))
    expect(
      await Promise.all(names.map((it, at) => reached(filtered({ rename }), it).then((own) => [at, own]))),
    ).toEqual(['__proto__', 'constructor', 'hasOwnProperty', 'valueOf'].map((own, at) => [at, own]))
    for (const name of ['hasOwnProperty', '__defineGetter__']) {
      expect(await reached(filtered({ rename, deny: ['__d*'] }), name)).toBeUndefined()
    }
  })

  test('two filters compose: the one next to the client has the last word', async () => {
    const proxy = filtered({ prefix: 'a_', deny: ['b_rm'] }, { prefix: 'b_', rename: { x: 'y' } })
    expect(await namesOf(proxy, 'x', 'rm', 'z', 'y')).toEqual(['a_b_y', 'a_b_z'])
    expect(await reached(proxy, 'a_b_y')).toBe('x')
    for (const name of ['a_b_x', 'a_b_rm', 'b_y', 'a_y', 'y', 'b_a_y'])
      expect(await reached(proxy, name)).toBeUndefined()
  })

  test('what asks itself, from before the filter, sees what a client sees', async () => {
    const asked: unknown[] = []
    const app = createProxy()
      .use(
        onRequest('ask', async (ctx) => {
          asked.push(await ctx.call('server', 'tools/list'))
          await ctx.reply({})
        }),
      )
      .use(toolFilter({ prefix: 'p_', deny: ['rm'] }))
    const proxy = testProxy(app)
    const { toServer } = await proxy.fromClient({ id: 1, method: 'ask' })
    const { id } = toServer[0] as { id: string }
    await proxy.fromServer({ id, result: { tools: [tool('a'), tool('rm')] } })
    expect(asked).toEqual([{ tools: [tool('p_a')] }])
  })
})

describe('allow and deny', () => {
  test('deny wins', async () => {
    const proxy = filtered({ allow: ['get*', 'echo'], deny: ['*-env'] })
    expect(await namesOf(proxy, 'get', 'get-env', 'echo', 'set', 'get-sum')).toEqual(['get', 'echo', 'get-sum'])
    for (const name of ['get', 'echo', 'get-sum']) expect(await reached(proxy, name)).toBe(name)
    for (const name of [
      'get-env',
      'set',
      'Get',
      'GET',
      'echo ',
      ' echo',
      'echo\u0000',
      'еcho',
      'ｅcho',
      'echo\u200b',
    ]) {
      expect(await proxy.fromClient(call(name))).toEqual(unknown(name))
    }
  })

  test('they speak of what the server calls its tools', async () => {
    const proxy = filtered({ deny: ['rm'], rename: { rm: 'tidy', ls: 'rm' }, prefix: 'x-' })
    expect(await namesOf(proxy, 'rm', 'ls')).toEqual(['x-rm'])
    expect(await reached(proxy, 'x-rm')).toBe('ls')
    expect(await reached(proxy, 'x-tidy')).toBeUndefined()
  })

  test('nothing allowed is nothing', async () => {
    const proxy = filtered({ allow: [] })
    expect(await namesOf(proxy, 'a', 'b')).toEqual([])
    expect(await reached(proxy, 'a')).toBeUndefined()
  })

  const globs: [glob: string, matches: string[], others: string[]][] = [
    ['*', ['a', '.a', 'a/b', 'a/../b', './a', 'a.b-c', '-', 'a\nb', '\u2028', '__proto__', ' ', 'é👋'], []],
    ['*delete*', ['delete', 'fs/delete', 'fs.delete-all', '.delete', 'a/b/delete/c', 'x\ndelete\n'], ['del', 'Delete']],
    ['fs/*', ['fs/a', 'fs/a/b', 'fs/.a', 'fs/'], ['fs', 'fsa', 'x/fs/a']],
    ['**', ['a', 'a/b', '.a/.b'], []],
    ['a.b', ['a.b'], ['axb', 'a.b ', 'a.b\n', 'a.bc', 'xa.b']],
    ['a?b', ['a-b', 'a/b', 'a.b'], ['ab', 'a--b']],
    ['{get,set}-{a,c}', ['get-a', 'set-c'], ['get-d', 'get', '{get,set}-{a,c}']],
    ['c++', ['c++'], ['c', 'ccc']],
    ['a\\*', ['a*'], ['ab', 'a\\*b']],
    ['a\\|b', ['a|b'], ['a', 'b']],
    ['^a$', ['^a$'], ['a']],
    ['./a', ['./a'], ['a']],
  ]
  test.each(globs)('the glob %j', async (glob, matches, others) => {
    expect(await namesOf(filtered({ allow: [glob] }), ...matches, ...others)).toEqual(matches)
    expect(await namesOf(filtered({ deny: [glob] }), ...matches, ...others)).toEqual(others)
    for (const name of others) expect(await reached(filtered({ allow: [glob] }), name)).toBeUndefined()
    for (const name of matches) expect(await reached(filtered({ deny: [glob] }), name)).toBeUndefined()
  })

  test('a pattern of many stars is not kept busy by a long name', async () => {
    const proxy = filtered({ deny: ['*a*a*a*b'] })
    const { toServer } = await proxy.fromClient(call('a'.repeat(1_000_000)))
    expect(toServer.length).toBe(1)
  })

  test('functions are given the name', async () => {
    const seen: string[] = []
    const note = (name: string) => seen.push(name) > 0
    const proxy = filtered({ allow: note, deny: (name) => name.startsWith('x'), prefix: 'p_' })
    expect(await namesOf(proxy, 'a', 'xa')).toEqual(['p_a'])
    expect(await reached(proxy, 'p_a')).toBe('a')
    expect(await reached(proxy, 'p_xa')).toBeUndefined()
    expect(seen).toEqual(['a', 'xa', 'a', 'xa'])
  })

  test('a function that does not say yes or no is an error, to both', async () => {
    for (const answer of [Promise.resolve(true), 1, undefined]) {
      for (const option of ['allow', 'deny'] as const) {
        const { app, client, server, errors } = await joined()
        app.use(toolFilter({ [option]: () => answer as unknown as boolean }))
        const other = testProxy(app)
        const internal = { error: { code: -32603, message: 'Internal error' } }
        expect(await other.fromClient(call('a'))).toMatchObject({ toServer: [], toClient: [internal] })
        await other.fromClient(list)
        expect(await other.fromServer({ id: 'l', result: { tools: [tool('a')] } })).toMatchObject({
          toClient: [internal],
        })
        const got = typeof answer === 'number' ? '1' : typeof answer
        expect(errors).toEqual(Array(2).fill(`toolFilter: expected ${option} to return a boolean, got ${got}`))
        expect([client.sent, server.sent]).toEqual([[], []])
      }
    }
  })
})

describe('descriptions', () => {
  test('by name', async () => {
    const proxy = filtered({ describe: { a: 'New', b: '' }, rename: { a: 'z' } })
    const tools = [tool('a', { description: 'Old', title: 'A' }), tool('b', { description: 'B' }), tool('c'), tool('z')]
    expect((await shown(proxy, tools)).tools).toEqual([
      tool('z', { description: 'New', title: 'A' }),
      tool('b', { description: '' }),
      tool('c'),
    ])
  })

  test('by a function', async () => {
    const proxy = filtered({
      describe: (name, description) => (description === undefined ? undefined : `${name}: ${description}`),
      prefix: 'p_',
    })
    const tools = [tool('a', { description: 'Old' }), tool('b'), tool('c', { description: 5 })]
    expect((await shown(proxy, tools)).tools).toEqual([
      tool('p_a', { description: 'a: Old' }),
      tool('p_b'),
      tool('p_c', { description: 5 }),
    ])
  })

  test('a function that gives anything else is an error', async () => {
    const { app, errors } = await joined()
    app.use(toolFilter({ describe: (async () => 'x') as unknown as () => string }))
    const proxy = testProxy(app)
    await proxy.fromClient(list)
    expect(await proxy.fromServer({ id: 'l', result: { tools: [tool('a')] } })).toMatchObject({
      toClient: [{ error: { code: -32603 } }],
    })
    expect(errors).toEqual(['toolFilter: expected describe to return a string or undefined, got object'])
  })
})

describe('what is no list of tools passes', () => {
  const proxy = filtered({ allow: ['a'], prefix: 'p_' })
  test.each([
    { error: { code: -32601, message: 'Method not found' } },
    { error: null },
    { result: null },
    { result: [] },
    { result: 'text' },
    { result: {} },
    { result: { tools: null } },
    { result: { tools: { a: tool('b') } } },
    { result: { resultType: 'input_required', inputRequests: {} } },
  ])('%j', async (answer) => {
    await proxy.fromClient(list)
    expect(await proxy.fromServer({ id: 'l', ...(answer as object) })).toEqual({
      toServer: [],
      toClient: [{ jsonrpc: '2.0', id: 'l', ...answer }],
    })
  })

  test('a tool without a name is hidden', async () => {
    const tools = [null, 5, 'a', [], ['a'], {}, { name: null }, { name: ['a'] }, { name: { name: 'a' } }, tool('a')]
    expect((await shown(proxy, tools)).tools).toEqual([tool('p_a')])
    expect((await shown(filtered(), tools)).tools).toEqual([tool('a')])
  })
})

describe('calls', () => {
  test('without a name that is a string are calls of no tool', async () => {
    const proxy = filtered({ allow: ['a'] })
    const error = { code: -32602, message: 'Unknown tool' }
    const refused = { toServer: [], toClient: [{ jsonrpc: '2.0', id: 0, error }] }
    for (const params of [undefined, null, [], ['a'], 'a', 5, {}, { name: ['a'] }, { name: null }, { name: {} }]) {
      expect(await proxy.fromClient({ id: 0, method: 'tools/call', params: params as object })).toEqual(refused)
    }
    // What other middleware knows as `ctx.name`.
    for (const params of [{ uri: 'a' }, { uri: 'a', name: ['rm'] }, { uri: 'a', name: 5 }]) {
      expect(await proxy.fromClient({ id: 0, method: 'tools/call', params })).toEqual(refused)
    }
  })

  test('one that wants no answer gets none', async () => {
    const proxy = filtered({ deny: ['rm'], prefix: 'p_' })
    const told = (name: string) => ({ method: 'tools/call', params: { name } })
    expect(await proxy.fromClient(told('p_rm'))).toEqual({ toServer: [], toClient: [] })
    expect(await proxy.fromClient(told('rm'))).toEqual({ toServer: [], toClient: [] })
    expect(await proxy.fromClient(told('p_a'))).toEqual({ toServer: [{ jsonrpc: '2.0', ...told('a') }], toClient: [] })
  })

  test('as a task, and as the next round of one that wants input', async () => {
    const proxy = filtered({ prefix: 'p_', deny: ['rm'] })
    const extras = [
      { task: { ttl: 1 }, _meta: { progressToken: 1 } },
      { inputResponses: { q: { action: 'accept' } }, requestState: 'p_a', _meta: {} },
    ]
    for (const [id, extra] of extras.entries()) {
      const asked = (name: string) => ({ id, method: 'tools/call', params: { name, ...extra } })
      expect(await proxy.fromClient(asked('p_a'))).toEqual({
        toServer: [{ jsonrpc: '2.0', ...asked('a') }],
        toClient: [],
      })
      const round = { resultType: 'input_required', inputRequests: { q: { method: 'roots/list' } }, requestState: 'a' }
      expect(await proxy.fromServer({ id, result: round })).toEqual({
        toServer: [],
        toClient: [{ jsonrpc: '2.0', id, result: round }],
      })
      expect(await proxy.fromClient(asked('p_rm'))).toEqual(unknown('p_rm', id))
    }
  })

  test.each([0, '0', '', 'a'])('with the id %j', async (id) => {
    const proxy = filtered({ allow: ['a'] })
    expect(await proxy.fromClient(call('b', id))).toEqual(unknown('b', id))
    expect(await proxy.fromClient(call('a', id))).toMatchObject({ toServer: [{ id }] })
  })

  test('a name comes back in the error as it came', async () => {
    const proxy = filtered({ allow: ['a'] })
    for (const name of ['\u001b[31mred', 'a\nb', '__proto__', '"', 'x'.repeat(10_000)]) {
      expect(await proxy.fromClient(call(name))).toEqual(unknown(name))
    }
  })
})

test('two requests at once: each answer is taken for what it answers', async () => {
  const proxy = filtered({ prefix: 'p_' })
  await proxy.fromClient({ id: 1, method: 'tools/list' })
  await proxy.fromClient({ id: '1', method: 'prompts/list' })
  const said = { tools: [tool('a')] }
  expect(await proxy.fromServer({ id: '1', result: said })).toMatchObject({ toClient: [{ result: said }] })
  expect(await proxy.fromServer({ id: 1, result: said })).toMatchObject({
    toClient: [{ result: { tools: [tool('p_a')] } }],
  })
})

test('everything else passes, in both directions', async () => {
  const proxy = filtered({ allow: [], prefix: 'p_', rename: { a: 'b' } })
  const fromClient = [
    { id: 1, method: 'prompts/get', params: { name: 'a' } },
    { id: 2, method: 'completion/complete', params: { ref: { type: 'ref/prompt', name: 'a' } } },
    { id: 3, method: 'tools/lists', params: { name: 'a' } },
    { id: 4, method: 'initialize', params: {} },
    { method: 'notifications/cancelled', params: { requestId: 9 } },
  ]
  for (const it of fromClient) {
    expect(await proxy.fromClient(it)).toEqual({ toServer: [{ jsonrpc: '2.0', ...it }], toClient: [] })
  }
  const fromServer = [
    { id: 1, result: { tools: [tool('a')] } },
    { id: 4, result: { capabilities: { tools: { listChanged: true } } } },
    { method: 'notifications/tools/list_changed' },
    { id: 'a', method: 'sampling/createMessage', params: { tools: [tool('a')] } },
    { id: 'b', method: 'tools/call', params: { name: 'a' } },
    { id: 'c', method: 'tools/list' },
  ]
  for (const it of fromServer) {
    expect(await proxy.fromServer(it)).toEqual({ toServer: [], toClient: [{ jsonrpc: '2.0', ...it }] })
  }
  const answers = [
    { id: 'a', result: { content: [{ type: 'tool_use', name: 'a', id: 't', input: {} }] } },
    { id: 'c', result: { tools: [tool('a')] } },
  ]
  for (const it of answers) {
    expect(await proxy.fromClient(it)).toEqual({ toServer: [{ jsonrpc: '2.0', ...it }], toClient: [] })
  }
})

describe('bytes', () => {
  const exact = '"maximum":1e400,"big":9007199254740993,"\\u0065":1.0, "type":"\\u006f"'
  const schema = `{${exact},"a":1,"a":2,"name":1,"name":"rm"}`
  const raw = (name: string, more = '', input = schema) => `{"inputSchema":${input} ,"name":"${name}"${more}}`
  const page = (tools: string[], more = '') =>
    `{"jsonrpc":"2.0","id":1,"result":{ "ttlMs":1.0,"cacheScope":"public","tools":[${tools.join(' , ')}],"nextCursor":"a\\u0062"${more}}}`

  async function through(options: ToolFilterOptions, said: string) {
    const { client, server } = await joined((app) => app.use(toolFilter(options)))
    client.say({ id: 1, method: 'tools/list', params: { cursor: 'rm' } })
    await turnOfLoop()
    server.say(said)
    await turnOfLoop()
    expect(server.take()).toEqual([{ id: 1, method: 'tools/list', params: { cursor: 'rm' } }])
    return client.sent[0]
  }

  test('a list of which nothing is changed leaves as it came', async () => {
    const said = page([raw('a'), raw('b', ',"description":"\\u0061"')])
    expect(await through({ deny: ['rm'], rename: { rm: 'x' }, describe: { rm: '' } }, said)).toBe(said)
  })

  test('only a name changes', async () => {
    const said = page([raw('a'), raw('b')])
    expect(await through({ prefix: 'p_' }, said)).toBe(page([raw('p_a'), raw('p_b')]))
    expect(await through({ rename: { b: 'é"' } }, said)).toBe(page([raw('a'), raw('é\\"')]))
    const described = page([raw('a'), raw('b', ' ,"description":"New"')])
    expect(await through({ describe: { b: 'New' } }, said)).toBe(described)
  })

  test('only a tool goes', async () => {
    const it = (name: string) => raw(name, '', `{${exact}}`)
    expect(await through({ deny: ['rm'] }, page([it('a'), it('rm'), it('b')]))).toBe(page([it('a'), it('b')]))
    expect(await through({ allow: ['b'] }, page([it('a'), it('b')]))).toBe(page([it('b')]))
    expect(await through({ allow: [] }, page([it('a'), it('b')]))).toBe(page([]))
  })

  test('a call keeps its arguments', async () => {
    const { client, server } = await joined((app) => app.use(toolFilter({ prefix: 'p_' })))
    const said = (name: string) =>
      `{"id":1.0,"params":{"arguments":${schema},"name":"${name}" },"method":"tools/call","jsonrpc":"2.0"}`
    client.say(said('p_a'))
    await turnOfLoop()
    expect(server.sent).toEqual([said('a')])
  })
})

describe('options', () => {
  const bad: [options: unknown, text: string][] = [
    [null, 'options to be an object, got null'],
    [[], 'options to be an object, got object'],
    [{ alow: [] }, 'one of allow, deny, rename, prefix, describe, got "alow"'],
    [{ allow: 'a' }, 'allow to be an array of patterns or a function, got "a"'],
    [{ deny: null }, 'deny to be an array of patterns or a function, got null'],
    [{ deny: [5] }, 'deny to have a pattern that is a string, got 5'],
    [{ deny: ['a', '[b'] }, 'deny to have a pattern without [ (\\[ is the character itself), got "[b"'],
    [{ deny: ['!a'] }, 'deny to have a pattern without ! (\\! is the character itself), got "!a"'],
    [{ rename: [] }, 'rename to be an object, got object'],
    [{ rename: { a: 5 } }, 'rename "a" to be a string, got 5'],
    [{ rename: { a: '' } }, 'rename "a" to give a name, got ""'],
    [{ rename: { a: 'x', b: 'x' } }, 'rename to give each tool its own name, got one for "a" and "b"'],
    [{ prefix: 5 }, 'prefix to be a string, got 5'],
    [{ describe: 'a' }, 'describe to be an object, got "a"'],
    [{ describe: { a: null } }, 'describe "a" to be a string, got null'],
  ]
  test.each(bad)('%j', (options, text) => {
    expect(() => toolFilter(options as ToolFilterOptions)).toThrow(new TypeError(`toolFilter: expected ${text}`))
  })

  test('none change nothing', async () => {
    expect(await namesOf(filtered(), 'a', 'b')).toEqual(['a', 'b'])
    expect(await reached(testProxy(createProxy().use(toolFilter())), 'a')).toBe('a')
  })

  test('it changes', () => {
    expect(toolFilter()).toHaveProperty('role', 'change')
    expect(toolFilter().name).toBe('toolFilter')
  })
})

test('what is listed is called by the name that it is listed under, and nothing else is', async () => {
  const name = fc.oneof(
    fc.constantFrom('a', 'b', 'ab', 'p_a', 'p_', 'a/b', 'a.b', '-', '__proto__', 'constructor', '', '.', 'A', 'a '),
    fc.string({ maxLength: 4, unit: fc.constantFrom('a', 'b', '_', 'p', '/', '.', '*', '\\', '\n') }),
    fc.string({ maxLength: 3, unit: 'binary' }),
  )
  const glob = fc.constantFrom('*', 'a*', '*b', '?', 'p_*', '*/*', '.*', 'a', '{a,b}', '{p_,}a*', '*_*')
  const options = fc
    .record(
      {
        allow: fc.array(glob, { maxLength: 3 }),
        deny: fc.array(glob, { maxLength: 2 }),
        rename: fc.uniqueArray(fc.tuple(name, name), { maxLength: 4, selector: ([, it]) => it }).map((pairs) => {
          const renaming = new Map(pairs.filter(([, it]) => it !== ''))
          return Object.fromEntries(renaming)
        }),
        prefix: fc.constantFrom('', 'p_', 'a', '/'),
      },
      { requiredKeys: [] },
    )
    .map((it) => it as ToolFilterOptions)
  await fc.assert(
    fc.asyncProperty(
      fc.array(options, { minLength: 1, maxLength: 3 }),
      fc.uniqueArray(name, { maxLength: 8 }),
      fc.array(name, { maxLength: 8 }),
      async (line, owned, guesses) => {
        const proxy = filtered(...line)
        // Each tool says who it is, where no filter looks.
        const { tools } = await shown(
          proxy,
          owned.map((it) => ({ name: it, title: it })),
        )
        const listed = new Map(tools.map((it) => [it.name, (it as unknown as { title: string }).title]))
        expect(listed.size).toBe(tools.length)
        for (const [seen, own] of listed) expect(await reached(proxy, seen)).toBe(own)
        for (const guess of [...guesses, ...owned, ...owned.map((it) => `p_${it}`)]) {
          if (listed.has(guess)) continue
          const own = await reached(proxy, guess)
          // No tool of the server's, or the filter would have listed it.
          if (own !== undefined) expect(owned).not.toContain(own)
        }
      },
    ),
    { numRuns: 300 },
  )
})

test('a middleware behind it sees what the server knows, one before it what the client does', async () => {
  const seen: unknown[] = []
  const note = (where: string) =>
    onResponse('tools/call', (ctx, next) => {
      seen.push([where, ctx.name])
      return next()
    })
  const proxy = testProxy(
    createProxy()
      .use(note('before'))
      .use(toolFilter({ prefix: 'p_' }))
      .use(note('behind')),
  )
  await proxy.fromClient(call('p_a'))
  await proxy.fromServer({ id: 1, result: {} })
  expect(seen).toEqual([
    ['behind', 'a'],
    ['before', 'p_a'],
  ])
})
