import { describe, expect, test, vi } from 'vitest'
import { type ToolFilterOptions, toolFilter } from '../../middleware/toolFilter.js'
import { Context } from '../../src/context.js'
import { joined, turnOfLoop } from '../fixtures/played.js'
import { ask, invalidRequest, listen, type Message, modern, ours, server, session, told } from './helpers.js'

const A = '{"name":"a"}'
const RM = '{"name":"rm"}'

/** What the client gets, byte for byte, where the server says `result`. */
async function through(result: string, ...line: ToolFilterOptions[]): Promise<string> {
  const { client, server, errors } = await joined((app) => app.use(...line.map((it) => toolFilter(it))))
  client.say({ id: 1, method: 'tools/list' })
  await turnOfLoop()
  server.say(`{"jsonrpc":"2.0","id":1,"result":${result}}`)
  await turnOfLoop()
  expect(errors).toEqual([])
  expect(client.sent).toHaveLength(1)
  return client.sent[0]!
}

describe('a list of which two readers see different tools shows nobody one that is hidden', () => {
  const only = `{"tools":[${A}]}`
  const hostile: [said: string, shown: string][] = [
    [`{"tools":[${A}],"tools":[${RM}]}`, '{"tools":[]}'],
    [`{"tools":[${RM}],"tools":[${A}]}`, only],
    [`{"tools":[${RM}],"tools":[${RM}],"tools":[${A}]}`, only],
    [`{"t\\u006fols":[${RM}],"tools":[${A}]}`, only],
    [`{"tools":[${RM}],"t\\u006fols":[${A}]}`, only],
    [`{"tools":{"x":${RM}},"tools":[${A}]}`, only],
    [`{"tools":[[${RM}]],"tools":[${A}]}`, only],
    [`{"tools":5,"tools":[${RM},${A}],"tools":[${RM},${A}]}`, only],
    [`{"Tools":[${RM}],"tools":[${A}]}`, only],
    [`{"tools":[${A}],"TOOLS":[${RM}]}`, only],
    [`{"tools":[${A}],"toolſ":[${RM}],"tool\\u017f":[${RM}]}`, only],
    [`{"tools":[${A}],"tools\\u0000":[${RM}]}`, only],
    [`{"\\u0000tools":[${RM}],"tools":[${A}],"to\\u0000ols":[${RM}],"Tools\\u0000x":[${RM}]}`, only],
    ['{"tools":[{"name":"rm","name":"a"}]}', only],
    [`{"tools":[{"name":"a","name":"rm"},${A}]}`, only],
    ['{"tools":[{"n\\u0061me":"rm","x":{"name":1},"name":"a"}]}', '{"tools":[{"name":"a","x":{"name":1}}]}'],
    ['{"tools":[{"name":["rm"],"name":"a"}]}', only],
    ['{"tools":[{"name":"a","Name":"rm"}]}', only],
    ['{"tools":[{"NAME":"rm","name":"a","name\\u0000":"rm","\\u0000name":"rm"}]}', only],
    [`{"tools":[{"NAME":"a"},${A}]}`, only],
    [
      '{"tools":[{"title":"\\"\\\\\\"{[","name":"rm","x":"]}\\\\","name":"a"}]}',
      '{"tools":[{"title":"\\"\\\\\\"{[","name":"a","x":"]}\\\\"}]}',
    ],
    [
      '{"x":[{"b":[]}],"tools":[{"x":[[]],"y":{"name":"z"},"name":"rm","name":"a"}]}',
      '{"x":[{"b":[]}],"tools":[{"x":[[]],"y":{"name":"z"},"name":"a"}]}',
    ],
  ]

  test.each(hostile)('%s', async (said, shown) => {
    const message = (result: string) => `{"jsonrpc":"2.0","id":1,"result":${result}}`
    expect(await through(said, { deny: ['rm'] })).toBe(message(shown))
    const renamed = shown.replace('"a"', '"p_a"')
    const exact = await through(said, { deny: ['rm'], prefix: 'p_' })
    expect(JSON.parse(exact)).toEqual(JSON.parse(message(renamed)))
    expect(exact).toHaveLength(message(renamed).length)
    const twice = await through(said, { prefix: 'p_' }, { deny: ['rm'] })
    expect(twice).toBe(message(renamed))
  })

  test('also where there is no list in the end', async () => {
    for (const last of ['null', '5', '{"a":1}']) {
      expect(await through(`{"tools":[${RM}],"tools":${last}}`, { deny: ['rm'] })).not.toContain('"rm"')
    }
    expect(await through(`{"Tools":[${RM}]}`, { deny: ['rm'] })).toBe('{"jsonrpc":"2.0","id":1,"result":{}}')
  })

  test('twins elsewhere are nobody’s business', async () => {
    const same = `{"a":1,"a":2,"Names":1,"tools":[{"name":"a","inputSchema":{"name":1,"name":"rm","tools":1,"tools":2,"Name":3},"x":1,"x":2,"description":"\\"name\\":1,\\"name\\":2"},{"name":"b"}],"_meta":{"tools":[{"name":1,"name":2}],"tools":1}}`
    expect(await through(same, { deny: ['rm'] })).toBe(`{"jsonrpc":"2.0","id":1,"result":${same}}`)
  })

  test('a long list with many escapes is read in one go', async () => {
    const long = `{"tools":[{"name":"rm","description":"${'\\"'.repeat(2_000_000)}","name":"a"}]}`
    const text = await through(long, { deny: ['rm'] })
    expect([text.includes('"rm"'), text.length > 4_000_000]).toEqual([false, true])
  })
})

const options: ToolFilterOptions = { deny: ['rm'], rename: { search: 'find' }, prefix: 'p_' }
const unknownTool = (name: string, id: unknown = 1) => ({
  jsonrpc: '2.0',
  id,
  error: { code: -32602, message: `Unknown tool: ${name}` },
})

describe('a tool that is hidden is one that does not exist', () => {
  const names = ['rm', 'search', 'find', 'p_rm', 'p_search', 'never', 'RM', 'P_find', 'p_find2'.slice(1), 'pp_find']

  test('the answer is the same whether or not the server has it, and the server is not asked', async () => {
    const upstream = server(() => ({ result: { tools: [{ name: 'rm' }, { name: 'search' }] } }))
    const { port } = await listen(upstream.open, {}, (app) => app.use(toolFilter(options)))
    const headers = { ...ours, 'mcp-session-id': await session(port) }
    await ask(port, { headers, body: { jsonrpc: '2.0', id: 'l', method: 'tools/list' } })
    const before = upstream.heard().length
    for (const name of names) {
      const body = { jsonrpc: '2.0', id: 1, method: 'tools/call', params: { name } }
      expect(told(await ask(port, { headers, body }))).toEqual({ status: 200, body: unknownTool(name) })
    }
    expect(upstream.heard()).toHaveLength(before)
  })

  test('as a stateless request, whatever its headers say', async () => {
    const upstream = server()
    const { port } = await listen(upstream.open, {}, (app) => app.use(toolFilter(options)))
    for (const name of names) {
      const { headers, body } = modern(1, 'tools/call', { name }, name)
      expect(told(await ask(port, { headers, body }))).toEqual({ status: 200, body: unknownTool(name) })
      const other = modern(1, 'tools/call', { name }, 'p_find')
      expect(told(await ask(port, { headers: other.headers, body: other.body }))).toMatchObject({
        status: 400,
        body: { error: { code: -32020 } },
      })
    }
    expect(upstream.methods()).not.toContain('tools/call')
  })

  test('in a batch, too', async () => {
    const upstream = server()
    const { port } = await listen(upstream.open, {}, (app) => app.use(toolFilter(options)))
    const headers = { ...ours, 'mcp-session-id': await session(port) }
    const body = names.map((name, id) => ({ jsonrpc: '2.0', id, method: 'tools/call', params: { name } }))
    const reply = told(await ask(port, { headers, body })) as { status: number; body: Message[] }
    expect(reply.body.sort((one, two) => Number(one.id) - Number(two.id))).toEqual(names.map(unknownTool))
    expect(upstream.methods()).not.toContain('tools/call')
  })
})

test('names that look alike are other names', async () => {
  const alike = [
    'RM',
    'Rm',
    'rm ',
    ' rm',
    'rm\n',
    'rm\u0000',
    'r\u200bm',
    'ｒm',
    'r\u00adm',
    '\ufeffrm',
    'rm\u0301',
    'rm/',
  ]
  const { client, server, errors } = await joined((app) => app.use(toolFilter({ allow: ['rm'] })))
  for (const [id, name] of alike.entries()) client.say({ id, method: 'tools/call', params: { name } })
  await turnOfLoop()
  expect(server.sent).toEqual([])
  expect(client.sent.map((it) => JSON.parse(it))).toEqual(alike.map(unknownTool))
  expect(errors).toEqual([])
})

describe('a call that two readers would read differently does not get as far as the filter', () => {
  const calls = [
    '"name":"p_find","name":"rm"',
    '"name":"rm","name":"p_find"',
    '"name":"p_find","Name":"rm"',
    '"name":"p_find","NAME":"rm"',
    '"name":"p_find","n\\u0061me":"rm"',
    '"name":"p_find","name\\u0000":"rm"',
    '"\\u0000name":"rm","name":"p_find"',
  ]

  test.each(calls)('%s', async (params) => {
    const upstream = server()
    const { port } = await listen(upstream.open, {}, (app) => app.use(toolFilter(options)))
    const headers = { ...ours, 'mcp-session-id': await session(port) }
    const before = upstream.heard().length
    const body = `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{${params}}}`
    const refused = { status: 400, body: invalidRequest('ambiguous member "name" in params', 1) }
    expect(told(await ask(port, { headers, body }))).toEqual(refused)
    expect(upstream.heard()).toHaveLength(before)
  })

  test('a name that hides behind another member is no name', async () => {
    const { client, server } = await joined((app) => app.use(toolFilter({ allow: ['ok'] })))
    for (const params of [{ uri: 'ok', name: ['rm'] }, { uri: 'ok', name: { rm: 1 } }, { uri: 'ok' }]) {
      client.say({ id: 1, method: 'tools/call', params })
      await turnOfLoop()
      expect(client.take()).toEqual([{ id: 1, error: { code: -32602, message: 'Unknown tool' } }])
    }
    expect(server.sent).toEqual([])
  })
})

test('what the server calls its tools stands in no message that the filter makes', async () => {
  const upstream = server(({ method }) =>
    method === 'tools/list' ? { result: { tools: [{ name: 'secret-tool' }, { name: 'search' }] } } : { result: {} },
  )
  const { port } = await listen(upstream.open, {}, (app) =>
    app.use(toolFilter({ deny: ['*secret*'], rename: { search: 'find' } })),
  )
  const headers = { ...ours, 'mcp-session-id': await session(port) }
  const list = await ask(port, { headers, body: { jsonrpc: '2.0', id: 1, method: 'tools/list' } })
  expect(told(list)).toEqual({ status: 200, body: { jsonrpc: '2.0', id: 1, result: { tools: [{ name: 'find' }] } } })
  const called = await ask(port, {
    headers,
    body: { jsonrpc: '2.0', id: 2, method: 'tools/call', params: { name: 'find' } },
  })
  expect(told(called)).toEqual({ status: 200, body: { jsonrpc: '2.0', id: 2, result: {} } })
  expect(JSON.parse(upstream.heard().at(-1)!).params).toEqual({ name: 'search' })
})

test('what is no call and no list is not even parsed', async () => {
  const parsed = vi.spyOn(Context.prototype, 'message', 'get')
  const { client, server } = await joined((app) => app.use(toolFilter(options)))
  const text = (it: string) => `{"jsonrpc":"2.0",${it}}`
  client.say(text('"id":1,"method":"prompts/get","params":{"name":"rm"}'))
  client.say(text('"method":"notifications/x","params":{}'))
  await turnOfLoop()
  server.say(text('"id":1,"result":{"tools":[]}'))
  server.say(text('"method":"notifications/tools/list_changed"'))
  server.say(text('"id":"s","method":"tools/list"'))
  await turnOfLoop()
  client.say(text('"id":"s","result":{"tools":[]}'))
  await turnOfLoop()
  expect([client.sent.length, server.sent.length]).toEqual([3, 3])
  expect(parsed).not.toHaveBeenCalled()
  parsed.mockRestore()
})
