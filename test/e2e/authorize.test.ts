import { type AdmitRequest, createProxy, define, http, stdio, type Upstream } from 'open-mcp-proxy'
import { type AuthorizeOptions, type AuthorizeRequest, authorize } from 'open-mcp-proxy/middleware/authorize'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { behindPort } from '../fixtures/behind-port.js'
import { closing } from '../fixtures/closing.js'
import { stop } from '../fixtures/command.js'
import { modernPost } from '../fixtures/port.js'
import { everything, type HttpServer, startEverything, startTarget, target } from '../fixtures/servers.js'
import { type Generation, proxied, type Talk, talkTo, type Where } from '../fixtures/talk.js'

const DENIED = -31006

let everythingHttp: HttpServer
let targetHttp: HttpServer

beforeAll(async () => {
  ;[everythingHttp, targetHttp] = await Promise.all([startEverything('streamableHttp'), startTarget()])
})

afterAll(() => Promise.all([everythingHttp, targetHttp].map((it) => it && stop(it.child))))

const asked = (options: AuthorizeOptions) => ['--use', `authorize=${JSON.stringify(options)}`]

/** A client of the server, with the policy between them: over stdio, and over HTTP before either upstream. */
async function* talks(generation: Generation, wheres: Where[], policy: AuthorizeOptions): AsyncGenerator<Talk> {
  for (const where of wheres) {
    const direct = await talkTo(proxied(where, ...asked(policy)), generation)
    yield direct
    expect(direct.complaints).toEqual([])
    await direct.close()
    const port = await behindPort(where, ...asked(policy))
    closing.push(port.kill)
    const served = await talkTo(port.http, generation)
    yield served
    await served.close()
    expect(port.complaints()).toEqual([])
  }
}

/** The code that a request is refused with. */
const codeOf = (request: Promise<unknown>) =>
  request.then(
    () => undefined,
    (error: { code?: number }) => error.code,
  )

const namesOf = (result: Record<string, unknown>, member: string, name = 'name') =>
  (result[member] as Record<string, string>[]).map((it) => it[name])

describe('the reference server', () => {
  const policy: AuthorizeOptions = {
    rules: [
      { effect: 'deny', tools: ['get-env'], resources: ['*/startup.md'] },
      { tools: ['echo', 'get-*'], prompts: ['simple-prompt', 'completable-*'] },
      { resources: ['demo://resource/static/*', 'demo://resource/dynamic/text/*'] },
    ],
  }
  const wheres = (): Where[] => [
    { command: process.execPath, args: [everything] },
    { http: `${everythingHttp.origin}/mcp` },
  ]

  test.each(['v1', 'v2'] as const)(
    'shows and does what the policy allows, to a client of %s',
    async (generation) => {
      for await (const talk of talks(generation, wheres(), policy)) {
        const { client } = talk
        const tools = namesOf(await talk.ask('tools/list'), 'tools')
        expect(tools).toContain('echo')
        expect(tools.filter((it) => it !== 'echo' && !it?.startsWith('get-'))).toEqual([])
        expect(tools).not.toContain('get-env')
        expect(await talk.tool('echo', { message: 'é👋' })).toMatchObject({ content: [{ text: 'Echo: é👋' }] })
        for (const name of ['get-env', 'gzip-file-as-resource', 'no-such-tool', 'Echo', 'echo ']) {
          expect(await codeOf(talk.ask('tools/call', { name, arguments: {} }))).toBe(DENIED)
        }

        expect(namesOf(await talk.ask('prompts/list'), 'prompts')).toEqual(['simple-prompt', 'completable-prompt'])
        expect(await talk.ask('prompts/get', { name: 'simple-prompt' })).toHaveProperty('messages')
        expect(await codeOf(talk.ask('prompts/get', { name: 'args-prompt', arguments: { city: 'x' } }))).toBe(DENIED)

        const uris = namesOf(await talk.ask('resources/list'), 'resources', 'uri')
        expect(uris).toContain('demo://resource/static/document/features.md')
        expect(uris).not.toContain('demo://resource/static/document/startup.md')
        expect(namesOf(await talk.ask('resources/templates/list'), 'resourceTemplates', 'uriTemplate')).toEqual([
          'demo://resource/dynamic/text/{resourceId}',
        ])
        expect(await talk.ask('resources/read', { uri: uris[0] })).toHaveProperty('contents')
        expect(await talk.ask('resources/read', { uri: 'demo://resource/dynamic/text/1' })).toHaveProperty('contents')
        for (const uri of [
          'demo://resource/static/document/startup.md',
          'demo://resource/static/document/%73tartup.md',
          'demo://resource/static/document/x/../startup.md',
          'demo://resource/dynamic/text/../blob/1',
          'demo://resource/dynamic/blob/1',
        ]) {
          expect(await codeOf(client.readResource({ uri }))).toBe(DENIED)
          expect(await codeOf(client.subscribeResource({ uri }))).toBe(DENIED)
        }
        expect(await codeOf(client.subscribeResource({ uri: uris[0]! }))).toBeUndefined()

        const argument = { name: 'department', value: 'E' }
        const complete = (name: string) => client.complete({ ref: { type: 'ref/prompt', name }, argument })
        expect((await complete('completable-prompt')).completion.values).toContain('Engineering')
        expect(await codeOf(complete('args-prompt'))).toBe(DENIED)
      }
    },
    60_000,
  )
})

describe('the conformance target', () => {
  const policy: AuthorizeOptions = {
    rules: [
      { effect: 'deny', tools: ['*sampling*'] },
      { tools: ['test_*'], prompts: ['test_simple_prompt'] },
      { resources: ['test://static-text', 'test://watched-*', 'test://template/{id}/data', 'test://template/7/*'] },
    ],
  }
  const wheres = (): Where[] => [
    { command: process.execPath, args: [target, '--stdio'] },
    { http: `${targetHttp.origin}/mcp` },
  ]

  test.each(['v1', 'v2-modern'] as const)(
    'shows and does what the policy allows, to a client of %s',
    async (generation) => {
      for await (const talk of talks(generation, wheres(), policy)) {
        const { client } = talk
        const { tools } = await client.listTools()
        const names = tools.map(({ name }) => name)
        expect(names).toContain('test_simple_text')
        expect(names.filter((it) => !it.startsWith('test_') || it.includes('sampling'))).toEqual([])
        expect((await client.listPrompts()).prompts.map(({ name }) => name)).toEqual(['test_simple_prompt'])
        expect((await client.listResources()).resources.map(({ uri }) => uri)).toEqual([
          'test://static-text',
          'test://watched-resource',
        ])
        expect((await client.listResourceTemplates()).resourceTemplates).toHaveLength(1)

        expect(await talk.tool('test_simple_text')).toMatchObject({ content: [{ type: 'text' }] })
        for (const name of ['echo', 'test_sampling']) {
          expect(await codeOf(talk.ask('tools/call', { name, arguments: {} }))).toBe(DENIED)
        }
        expect(await client.getPrompt({ name: 'test_simple_prompt' })).toHaveProperty('messages')
        expect(await codeOf(client.getPrompt({ name: 'test_prompt_with_image' }))).toBe(DENIED)
        expect(await client.readResource({ uri: 'test://static-text' })).toHaveProperty('contents')
        expect(await client.readResource({ uri: 'test://template/7/data' })).toHaveProperty('contents')
        for (const uri of [
          'test://static-binary',
          'test://template/8/data',
          'test://template/7/../8/data',
          'TEST://x',
        ]) {
          expect(await codeOf(client.readResource({ uri }))).toBe(DENIED)
        }
      }
    },
    60_000,
  )

  test('a modern client hears of what it may read, and of nothing else', async () => {
    for await (const talk of talks('v2-modern', wheres(), policy)) {
      const uri = 'test://watched-resource'
      await expect(talk.client.listen({ resourceSubscriptions: [uri, 'test://static-binary'] })).rejects.toThrow(
        'Denied',
      )
      const subscription = await talk.client.listen({ toolsListChanged: true, resourceSubscriptions: [uri] })
      await talk.tool('test_trigger_resource_update', { uri: 'test://static-binary' })
      await talk.tool('test_trigger_resource_update', { uri })
      await talk.heard('notifications/resources/updated', 1)
      expect(talk.conversation.heard['notifications/resources/updated']).toMatchObject([{ uri }])
      await subscription.close()
    }
  }, 60_000)

  /** Says who it is by what a client cannot do without a key: here, a header. */
  const byHeader = define(
    {
      admit: ({ headers }: AdmitRequest) => {
        const user = headers['x-user']
        return typeof user === 'string' ? { principal: user } : undefined
      },
    },
    (_ctx, next) => next(),
  )

  async function served(upstream: Upstream, policy: Parameters<typeof authorize>[0]): Promise<string> {
    const app = createProxy().use(byHeader, authorize(policy))
    closing.push(() => app.close({ urgent: true }))
    return (await app.listen(upstream, { port: 0 })).address as string
  }

  const upstreams: Record<string, () => Upstream> = {
    stdio: () => stdio(process.execPath, [target, '--stdio']),
    HTTP: () => http(`${targetHttp.origin}/mcp`),
  }

  test.each(Object.keys(upstreams))(
    'over %s: each user has a list of their own, which nobody else may be given',
    async (over) => {
      const url = await served(upstreams[over]!(), {
        rules: [
          { users: ['ada'], tools: ['*'], resources: ['*'] },
          { users: ['*'], tools: ['test_simple_*'], resources: ['test://static-text'] },
        ],
      })
      const listed = async (user: Record<string, string>) => {
        const answer = await modernPost(url, { id: 1, method: 'tools/list' }, user)
        return ((await lastOf(answer)) as { result: { tools: { name: string }[]; cacheScope: string; ttlMs: number } })
          .result
      }
      const [ada, bob, nobody] = [
        await listed({ 'x-user': 'ada' }),
        await listed({ 'x-user': 'bob' }),
        await listed({}),
      ]
      expect(ada.tools.length).toBeGreaterThan(10)
      expect(bob.tools.map(({ name }) => name)).toEqual(['test_simple_text'])
      expect(nobody.tools).toEqual([])
      for (const { cacheScope, ttlMs } of [ada, bob, nobody]) expect([cacheScope, ttlMs]).toEqual(['private', 1000])
      const read = (user: string, uri: string) =>
        modernPost(url, { id: 2, method: 'resources/read', params: { uri } }, { 'x-user': user }).then(lastOf)
      expect(await read('bob', 'test://static-text')).toMatchObject({ result: { cacheScope: 'private', ttlMs: 1000 } })
      expect(await read('bob', 'test://static-binary')).toMatchObject({ error: { code: DENIED } })
      expect(await read('ada', 'test://static-binary')).toMatchObject({ result: { cacheScope: 'private' } })
    },
  )

  test.each(Object.keys(upstreams))('over %s: the answer to what a tool asked for is judged again', async (over) => {
    const requests: AuthorizeRequest[] = []
    let open = true
    const url = await served(upstreams[over]!(), (request) => {
      // The proxy itself asks for the list of tools: for the headers that they declare.
      if (request.action === 'use') requests.push(request)
      return open
    })
    const _meta = { 'io.modelcontextprotocol/clientCapabilities': { elicitation: {} } }
    const name = 'test_input_required_result_elicitation'
    const call = (id: number, params: object = {}) =>
      modernPost(url, { id, method: 'tools/call', params: { name, arguments: {}, _meta, ...params } }).then(lastOf)
    const inputResponses = { user_name: { action: 'accept', content: { name: 'Ada' } } }
    expect(await call(1)).toMatchObject({ result: { resultType: 'input_required' } })
    expect(await call(2, { inputResponses })).toMatchObject({ result: { content: [{ text: 'Hello, Ada!' }] } })
    open = false
    expect(await call(3, { inputResponses })).toMatchObject({ id: 3, error: { code: DENIED } })
    expect(requests.map((it) => [it.kind, it.name])).toEqual(Array(3).fill(['tool', name]))
  })
})

/** The answer, in whichever form it came. */
async function lastOf(answer: Awaited<ReturnType<typeof modernPost>>): Promise<unknown> {
  const text = await answer.text
  return answer.messages().at(-1) ?? JSON.parse(text)
}
