import { createProxy, http } from 'open-mcp-proxy'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type ToolFilterOptions, toolFilter } from '../../middleware/toolFilter.js'
import { behindPort, ended } from '../fixtures/behind-port.js'
import { closing, serve } from '../fixtures/closing.js'
import { stop } from '../fixtures/command.js'
import { json } from '../fixtures/http-server.js'
import { modernPost } from '../fixtures/port.js'
import { everything, type HttpServer, startEverything, startTarget, target } from '../fixtures/servers.js'
import { type Generation, proxied, type Talk, talkTo, type Where } from '../fixtures/talk.js'

const use = (options: ToolFilterOptions) => ['--use', `toolFilter=${JSON.stringify(options)}`]
const text = (it: unknown) => ({ content: [{ type: 'text', text: it }] })
const gone = (name: string) => ({ thrown: expect.stringContaining(`Unknown tool: ${name}`) })

const servers: { everything?: HttpServer; target?: HttpServer } = {}

beforeAll(async () => {
  servers.everything = await startEverything('streamableHttp')
  servers.target = await startTarget()
})

afterAll(() => Promise.all(Object.values(servers).map(({ child }) => stop(child))))

/** The client next to the command on stdio, and before its port. */
async function bothWays(
  where: Where,
  options: ToolFilterOptions,
  generation: Generation,
  run: (talk: Talk) => unknown,
) {
  const talk = await talkTo(proxied(where, ...use(options)), generation)
  await run(talk)
  expect(talk.complaints).toEqual([])
  await talk.close()
  const port = await behindPort(where, ...use(options))
  const other = await talkTo(port.http, generation)
  await run(other)
  expect(other.complaints).toEqual([])
  await other.close()
  expect(await port.end()).toEqual(ended)
}

describe('server-everything', () => {
  const options: ToolFilterOptions = {
    allow: ['echo', 'get-*', 'simulate-*'],
    deny: ['get-env', '*-image'],
    rename: { 'get-structured-content': 'weather', 'get-sum': 'echo/sum' },
    prefix: 'ev_',
    describe: { echo: 'Says it again' },
  }
  const wheres: Record<string, () => Where> = {
    stdio: () => ({ command: process.execPath, args: [everything, 'stdio'] }),
    HTTP: () => ({ http: `${servers.everything!.origin}/mcp` }),
  }

  async function converse(talk: Talk) {
    const { tools } = await talk.client.listTools()
    const names = tools.map(({ name }) => name)
    expect(names).toEqual(
      expect.arrayContaining(['ev_echo', 'ev_echo/sum', 'ev_weather', 'ev_simulate-research-query']),
    )
    expect(names.filter((it) => !/^ev_(echo|echo\/sum|weather|get-|simulate-)/.test(it))).toEqual([])
    expect(names.filter((it) => /env|image|ev_get-s/.test(it))).toEqual([])
    const [echo] = tools.filter(({ name }) => name === 'ev_echo')
    expect(echo).toMatchObject({ title: 'Echo Tool', description: 'Says it again' })

    expect(await talk.tool('ev_echo', { message: 'é👋' })).toMatchObject(text('Echo: é👋'))
    expect(await talk.tool('ev_echo/sum', { a: 1, b: 2 })).toMatchObject(text(expect.stringContaining('3')))
    // Both clients hold it against the schema that they were shown under the new name.
    expect(await talk.tool('ev_weather', { location: 'Chicago' })).toMatchObject({
      structuredContent: { conditions: expect.any(String), temperature: expect.any(Number) },
    })
    for (const name of ['echo', 'get-env', 'ev_get-env', 'ev_get-sum', 'weather', 'ev_get-tiny-image', 'ev_none']) {
      expect(await talk.tool(name)).toEqual(gone(name))
    }
    const prompts = await talk.client.listPrompts()
    expect(prompts.prompts.map(({ name }) => name)).toContain('simple-prompt')
  }

  for (const [name, where] of Object.entries(wheres)) {
    for (const generation of ['v1', 'v2'] as const) {
      test(`over ${name}, client ${generation}`, () => bothWays(where(), options, generation, converse))
    }
  }

  test('a tool that runs as a task', () =>
    bothWays(wheres.stdio!(), options, 'v1', async (talk) => {
      const call = (name: string) =>
        talk.ask('tools/call', { name, arguments: { topic: 'python', ambiguous: false }, task: { ttl: 60_000 } })
      const { task } = (await call('ev_simulate-research-query')) as { task: { taskId: string } }
      expect(await talk.ask('tasks/result', { taskId: task.taskId })).toMatchObject(
        text(expect.stringContaining('python')),
      )
      await expect(call('simulate-research-query')).rejects.toThrow('Unknown tool: simulate-research-query')
    }))

  test('two in a line', async () => {
    const line = [...use({ prefix: 'a_', deny: ['b_get-env'] }), ...use({ prefix: 'b_' })]
    const talk = await talkTo(proxied(wheres.stdio!(), ...line), 'v2')
    const { tools } = await talk.client.listTools()
    expect(tools.every(({ name }) => name.startsWith('a_b_'))).toBe(true)
    expect(await talk.tool('a_b_echo', { message: 'x' })).toMatchObject(text('Echo: x'))
    expect(await talk.tool('a_b_get-env')).toEqual(gone('a_b_get-env'))
    await talk.close()
  })
})

describe('the target of 2026-07-28', () => {
  const mrtr = 'test_input_required_result_'
  const options: ToolFilterOptions = {
    deny: ['test_error_*', 'seen'],
    rename: { test_header_params: 'where', [`${mrtr}elicitation`]: 'hello', test_simple_text: 'é👋' },
    prefix: 't.',
  }
  const wheres: Record<string, () => Where> = {
    stdio: () => ({ command: process.execPath, args: [target, '--stdio'] }),
    HTTP: () => ({ http: `${servers.target!.origin}/mcp` }),
  }

  async function converse(talk: Talk) {
    const { tools } = await talk.client.listTools()
    const names = tools.map(({ name }) => name)
    expect(names).toEqual(expect.arrayContaining(['t.where', 't.hello', 't.é👋', 't.echo']))
    expect(names.filter((it) => !it.startsWith('t.') || /error|seen|header|simple/.test(it))).toEqual([])

    // The server holds `Mcp-Name` and `Mcp-Param-Region` against its own names.
    expect(await talk.tool('t.é👋')).toMatchObject(text('This is a simple text response for testing.'))
    for (const region of ['west', 'é👋']) {
      const args = { region, query: 'q' }
      expect(await talk.tool('t.where', args)).toMatchObject(text(JSON.stringify(args)))
    }
    expect(await talk.tool('t.hello')).toMatchObject(text(expect.stringMatching(/^Hello, /)))
    const asked = talk.conversation.exchanges.filter(({ request }) => JSON.stringify(request).includes('"t.hello"'))
    expect(asked).toMatchObject([
      { request: { params: { name: 't.hello' } }, outcome: { resultType: 'input_required' } },
      { request: { params: { name: 't.hello', inputResponses: {} } }, outcome: { resultType: 'complete' } },
    ])
    for (const name of ['t.test_error_handling', 'test_header_params', 't.test_header_params', 'echo', 't.nothing']) {
      const answer = (await talk.tool(name)) as { thrown: string }
      // Of a name that no rule speaks of the server itself says that it has no such tool.
      expect(answer.thrown).toMatch(/Unknown tool/i)
    }
  }

  for (const [name, where] of Object.entries(wheres)) {
    test(`over ${name}`, () => bothWays(where(), options, 'v2-modern', converse))
  }

  test('is told of a change of its list, and sees the new one through the filter', () =>
    bothWays(wheres.HTTP!(), options, 'v2-modern', async (talk) => {
      const subscription = await talk.client.listen({ toolsListChanged: true })
      await talk.tool('t.test_trigger_tool_change')
      await talk.heard('notifications/tools/list_changed', 1)
      await subscription.close()
      const { tools } = await talk.client.listTools()
      expect(tools.every(({ name }) => name.startsWith('t.'))).toBe(true)
    }))
})

test('the headers of a stateless request are made from what leaves the filter', async () => {
  const schema = { type: 'object', properties: { region: { type: 'string', 'x-mcp-header': 'Region' } } }
  const upstream = await serve((seen, response) => {
    const { id, method } = JSON.parse(seen.body)
    const tools = [
      { name: 'search', inputSchema: schema },
      { name: 'rm', inputSchema: schema },
    ]
    const list = { resultType: 'complete', tools, ttlMs: 60_000, cacheScope: 'public' }
    json(response, { jsonrpc: '2.0', id, result: method === 'tools/list' ? list : { content: [] } })
  })
  const app = createProxy().use(toolFilter({ rename: { search: 'find' }, deny: ['rm'], prefix: 'p é' }))
  closing.push(() => app.close({ urgent: true }))
  const { address } = await app.listen(http(upstream.url), { port: 0 })
  const encoded = `=?base64?${Buffer.from('p éfind').toString('base64')}?=`
  const call = (id: number, region: string, headers: Record<string, string>) =>
    modernPost(address!, { id, method: 'tools/call', params: { name: 'p éfind', arguments: { region } } }, headers)

  const list = await modernPost(address!, { id: 1, method: 'tools/list' })
  expect(await list.json()).toEqual({
    jsonrpc: '2.0',
    id: 1,
    result: {
      resultType: 'complete',
      tools: [{ name: 'p éfind', inputSchema: schema }],
      ttlMs: 60_000,
      cacheScope: 'public',
    },
  })
  const answer = await call(2, 'west', { 'mcp-name': encoded, 'mcp-param-region': 'west' })
  expect([answer.status, await answer.json()]).toEqual([200, { jsonrpc: '2.0', id: 2, result: { content: [] } }])
  const called = upstream.seen.filter(({ body }) => JSON.parse(body).method === 'tools/call')
  expect(
    called.map(({ headers, body }) => [headers['mcp-name'], headers['mcp-param-region'], JSON.parse(body).params.name]),
  ).toEqual([['search', 'west', 'search']])

  // Held against the schema that the client was shown, under the name that it was shown.
  const differs = await call(3, 'west', { 'mcp-name': encoded, 'mcp-param-region': 'east' })
  expect([differs.status, (await differs.json()) as object]).toMatchObject([400, { error: { code: -32020 } }])
  const without = await call(4, 'west', { 'mcp-name': encoded })
  expect([without.status, (await without.json()) as object]).toMatchObject([400, { error: { code: -32020 } }])
  const servers = await call(5, 'west', { 'mcp-name': 'search', 'mcp-param-region': 'west' })
  expect([servers.status, (await servers.json()) as object]).toMatchObject([400, { error: { code: -32020 } }])
  const hidden = await modernPost(address!, { id: 6, method: 'tools/call', params: { name: 'rm' } })
  expect(await hidden.json()).toEqual({ jsonrpc: '2.0', id: 6, error: { code: -32602, message: 'Unknown tool: rm' } })
  expect(upstream.methods().filter((it) => it === 'tools/call')).toHaveLength(1)
})
