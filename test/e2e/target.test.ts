import { afterAll, beforeAll, expect, test, vi } from 'vitest'
import { cli, stop } from '../fixtures/command.js'
import { type HttpServer, startTarget, target } from '../fixtures/servers.js'
import {
  type Conversation,
  type Generation,
  normalised,
  proxied,
  type Talk,
  talkTo,
  type Where,
} from '../fixtures/talk.js'

interface Abilities {
  /** What a server of this kind can send beside its answers: nothing where it answers JSON. */
  streams: boolean
  /** It remembers its client between two requests, and can ask it something. */
  sessions: boolean
}

const all: Abilities = { streams: true, sessions: true }

const servers: Record<string, { args: string[]; path: string; can: Abilities; eras: ('legacy' | 'modern')[] }> = {
  'HTTP of both eras': { args: [], path: '/mcp', can: all, eras: ['legacy', 'modern'] },
  'legacy HTTP': { args: ['--era', 'legacy'], path: '/mcp', can: all, eras: ['legacy'] },
  'modern HTTP': { args: ['--era', 'modern'], path: '/mcp', can: all, eras: ['modern'] },
  'HTTP that answers JSON': {
    args: ['--json'],
    path: '/mcp',
    can: { streams: false, sessions: false },
    eras: ['legacy', 'modern'],
  },
  'HTTP without sessions': {
    args: ['--no-session'],
    path: '/mcp',
    can: { streams: true, sessions: false },
    eras: ['legacy', 'modern'],
  },
  SSE: { args: ['--sse', '--era', 'legacy'], path: '/sse', can: all, eras: ['legacy'] },
}

const started = new Map<string, HttpServer>()

beforeAll(async () => {
  await Promise.all(
    Object.entries(servers).map(async ([name, { args }]) => started.set(name, await startTarget(...args))),
  )
})

afterAll(() => Promise.all([...started.values()].map(({ child }) => stop(child))))

const asks = /sampling|elicitation|input_required|capability/
/** Tools that have a part of their own below, or that say what the transport looked like. */
const apart = /^(slow|cancelled_count|seen|big|burst|test_reconnection|test_trigger_.*|test_header_params)$/
const changes = ['tools', 'prompts'] as const

async function converse(talk: Talk, can: Abilities, modern: boolean): Promise<Conversation> {
  const { client } = talk
  const { tools } = await client.listTools()
  const { prompts } = await client.listPrompts()
  const { resources } = await client.listResources()
  await client.listResourceTemplates()
  const mayAsk = modern || can.sessions
  for (const { name, inputSchema } of tools) {
    if (apart.test(name) || (asks.test(name) && !mayAsk)) continue
    const args = Object.fromEntries(Object.keys(inputSchema.properties ?? {}).map((it) => [it, 'é👋']))
    await talk.tool(name, args)
  }
  await talk.tool('echo', { n: 1.5, deep: { list: [null, true, 'é👋\u2028'] } })
  await talk.tool('big', { bytes: 3 << 20 })
  await talk.tool('burst', { n: 200 }, { onprogress: () => {} })
  await talk.tool('no-such-tool')
  await Promise.all(Array.from({ length: 20 }, (_, n) => talk.tool('echo', { n })))
  if (can.streams) expect(talk.conversation.heard['notifications/progress']).toHaveLength(200)

  for (const { name } of prompts) {
    if (name.includes('input_required') && !mayAsk) continue
    await client.getPrompt({ name, arguments: { arg1: 'one', arg2: 'zwei é', resourceUri: 'test://a' } })
  }
  await client.getPrompt({ name: 'no-such-prompt' }).catch(() => {})
  for (const { uri } of [...resources, { uri: 'test://template/7/data' }]) await client.readResource({ uri })
  await client.readResource({ uri: 'test://no-such' }).catch(() => {})
  const ref = { type: 'ref/prompt', name: 'test_prompt_with_arguments' } as const
  await client.complete({ ref, argument: { name: 'arg1', value: 'par' } })
  const unknown = () => expect(talk.ask('no/such-method')).rejects.toThrow()
  // Over HTTP a modern server says so with status 404, and the client does not look at what else it says.
  if (modern) await talk.quietly(unknown)
  else await unknown()

  if (modern) await follow(talk)
  else await subscribe(talk, can)
  return talk.conversation
}

/** Updates and changes of a legacy session. */
async function subscribe(talk: Talk, can: Abilities): Promise<void> {
  const { client } = talk
  await client.ping()
  await client.setLoggingLevel('error')
  await talk.tool('test_logging_tool')
  const uri = 'test://watched-resource'
  await client.subscribeResource({ uri })
  if (can.sessions) await trigger(talk, uri)
  await client.unsubscribeResource({ uri })
  if (can.sessions) await cancel(talk)
}

/** Updates and changes of a modern listen stream. */
async function follow(talk: Talk): Promise<void> {
  const uri = 'test://watched-resource'
  const filter = { toolsListChanged: true, promptsListChanged: true, resourceSubscriptions: [uri] }
  const subscription = await talk.client.listen(filter)
  await trigger(talk, uri)
  await subscription.close()
  await cancel(talk)
}

async function trigger(talk: Talk, uri: string): Promise<void> {
  const { heard } = talk.conversation
  await talk.tool('test_trigger_resource_update', { uri })
  await talk.heard('notifications/resources/updated', 1)
  for (const kind of changes) {
    const method = `notifications/${kind}/list_changed`
    const before = heard[method]?.length ?? 0
    await talk.tool(`test_trigger_${kind.slice(0, -1)}_change`)
    await talk.heard(method, before + 1)
  }
}

/** Cancels a call, and waits until the server says that it has noticed. */
async function cancel(talk: Talk): Promise<void> {
  const count = async () => JSON.stringify(await talk.tool('cancelled_count'))
  await talk.quietly(async () => {
    const before = await count()
    const controller = new AbortController()
    const call = talk.tool('slow', { ms: 60_000 }, { signal: controller.signal })
    // An exchange behind it: the call has arrived.
    await talk.tool('echo')
    controller.abort('enough')
    expect(await call).toHaveProperty('thrown')
    await vi.waitFor(async () => {
      if ((await count()) === before) throw new Error('the server has not noticed')
    })
  })
}

/**
 * Without what depends on the client's own transport: over HTTP a modern client cancels by closing a stream, and asks
 * for the server's era on the connection that it keeps.
 */
function shaped({ exchanges, asked, heard, told }: Conversation) {
  const isProbe = ({ request }: { request: unknown }) => /"id":"server-discover-probe/.test(JSON.stringify(request))
  return normalised({
    exchanges: exchanges.filter((it) => !isProbe(it)),
    asked,
    heard,
    told: told.filter((it) => (it as { method: string }).method !== 'notifications/cancelled'),
  })
}

async function record(where: Where, generation: Generation, can: Abilities) {
  const talk = await talkTo(where, generation)
  try {
    const conversation = await converse(talk, can, generation === 'v2-modern')
    return { conversation: shaped(conversation), complaints: talk.complaints }
  } finally {
    await talk.close()
  }
}

/** Through a proxy that has to find out the transport. */
function detected(where: Where): Where {
  if ('command' in where) return proxied(where)
  return { command: process.execPath, args: [cli, '--url', 'sse' in where ? where.sse : where.http] }
}

const stdio = { path: '', can: all, eras: ['legacy', 'modern'] }

// A change of its lists is told to all clients of a server: one conversation at a time.
for (const [name, { path, can, eras }] of Object.entries({ ...servers, stdio })) {
  test.concurrent(`the target over ${name}: through the proxy as without`, async () => {
    for (const generation of ['v1', 'v2', 'v2-modern'] as const) {
      if (!eras.includes(generation === 'v2-modern' ? 'modern' : 'legacy')) continue
      const url = `${started.get(name)?.origin}${path}`
      const where: Where =
        path === ''
          ? { command: process.execPath, args: [target, '--stdio'] }
          : path === '/sse'
            ? { sse: url }
            : { http: url }
      const direct = await record(where, generation, can)
      const through = await record(generation === 'v2' ? detected(where) : proxied(where), generation, can)
      expect({ generation, ...through }).toEqual({ generation, ...direct, complaints: [] })
    }
  }, 60_000)
}
