import { afterAll, beforeAll, expect, test } from 'vitest'
import { stop } from '../fixtures/command.js'
import { everything, type HttpServer, startEverything } from '../fixtures/servers.js'
import {
  type Conversation,
  type Generation,
  normalised,
  proxied,
  type Talk,
  talkTo,
  type Where,
} from '../fixtures/talk.js'

const LOG = 'notifications/message'
const UPDATED = 'notifications/resources/updated'

let sse: HttpServer
let http: HttpServer

beforeAll(async () => {
  ;[sse, http] = await Promise.all([startEverything('sse'), startEverything('streamableHttp')])
})

afterAll(async () => {
  await Promise.all([sse, http].map(({ child }) => stop(child)))
})

/** What each tool of the server is called with. */
const calls: Record<string, object[]> = {
  echo: [{ message: 'é👋\u2028"\\' }, {}],
  'get-annotated-message': [{ messageType: 'error', includeImage: true }, { messageType: 'debug' }],
  'get-env': [{}],
  'get-resource-links': [{ count: 4 }],
  'get-resource-reference': [
    { resourceType: 'Text', resourceId: 1 },
    { resourceType: 'Blob', resourceId: 2 },
  ],
  'get-structured-content': [{ location: 'Chicago' }, { location: 'nowhere' }],
  'get-sum': [{ a: 1.5, b: -2 }],
  'get-tiny-image': [{}],
  'get-roots-list': [{}],
  'trigger-elicitation-request': [{}],
  'trigger-sampling-request': [{ prompt: 'Say something', maxTokens: 10 }],
  'trigger-sampling-request-async': [{ prompt: 'Say something', maxTokens: 10 }],
  'trigger-elicitation-request-async': [{}],
  'trigger-url-elicitation': [
    { url: 'https://example.com/a', elicitationId: 'one' },
    { url: 'https://example.com/b', elicitationId: 'two', errorPath: true },
    { url: 'https://example.com/b', elicitationId: 'two', errorPath: true },
  ],
  'simulate-research-query': [{ topic: 'not as a task' }],
  // These have a part of their own below.
  'gzip-file-as-resource': [],
  'toggle-simulated-logging': [],
  'toggle-subscriber-updates': [],
  'trigger-long-running-operation': [],
}

/** Goes through all that the server can do. */
async function converse(talk: Talk): Promise<Conversation> {
  const { client } = talk
  // The server asks for the roots when the client has been there for a while, and says so.
  await talk.heard(LOG, 1)
  await client.ping()
  const { tools } = await client.listTools()
  const { resources } = await client.listResources()
  const { resourceTemplates } = await client.listResourceTemplates()
  const { prompts } = await client.listPrompts()
  expect([tools.length, resources.length, resourceTemplates.length, prompts.length].every((it) => it > 0)).toBe(true)
  expect(tools.map(({ name }) => name).filter((name) => !calls[name])).toEqual([])
  for (const { name } of tools) for (const args of calls[name]!) await talk.tool(name, args)
  await talk.tool('no-such-tool')
  await Promise.all(Array.from({ length: 10 }, (_, n) => talk.tool('echo', { message: String(n) })))

  // The server keeps such a resource until another session makes one of the same name.
  const data = 'data:text/plain,hello'
  await talk.tool('gzip-file-as-resource', { name: `${talk.generation}.gz`, data })
  await talk.heard('notifications/resources/list_changed', 1)
  for (const { uri } of [...resources, { uri: `demo://resource/session/${talk.generation}.gz` }]) {
    await client.readResource({ uri })
  }
  for (const uri of ['demo://resource/dynamic/text/3', 'demo://resource/dynamic/blob/4', 'demo://no-such']) {
    await client.readResource({ uri }).catch(() => {})
  }

  await client.getPrompt({ name: 'simple-prompt' })
  await client.getPrompt({ name: 'args-prompt', arguments: { city: 'Zürich' } })
  await client.getPrompt({ name: 'completable-prompt', arguments: { department: 'Sales', name: 'Eve' } })
  await client.getPrompt({ name: 'resource-prompt', arguments: { resourceType: 'Text', resourceId: '1' } })
  await client.getPrompt({ name: 'args-prompt' }).catch(() => {})

  const argument = { name: 'name', value: '' }
  await client.complete({
    ref: { type: 'ref/prompt', name: 'completable-prompt' },
    argument,
    context: { arguments: { department: 'Engineering' } },
  })
  await client.complete({
    ref: { type: 'ref/resource', uri: 'demo://resource/dynamic/text/{resourceId}' },
    argument: { name: 'resourceId', value: '7' },
  })

  const uris = ['demo://resource/dynamic/text/1', 'demo://resource/dynamic/blob/2']
  for (const uri of uris) await client.subscribeResource({ uri })
  await talk.tool('toggle-subscriber-updates')
  await talk.heard(UPDATED, 2)
  await talk.tool('toggle-subscriber-updates')
  for (const uri of uris) await client.unsubscribeResource({ uri })

  await client.setLoggingLevel('debug')
  // Of the roots, two subscriptions and two ends of them; over HTTP these do not come on the streams of the answers.
  await talk.heard(LOG, 5)
  await talk.tool('toggle-simulated-logging')
  await talk.heard(LOG, 6)
  await talk.tool('toggle-simulated-logging')
  await client.setLoggingLevel('info')

  await client.sendRootsListChanged()
  await talk.heard(LOG, 7)

  await talk.tool('trigger-long-running-operation', { duration: 0.2, steps: 4 }, { onprogress: () => {} })
  const cancel = new AbortController()
  const progress = talk.conversation.heard['notifications/progress']!.length
  const cancelled = talk.tool(
    'trigger-long-running-operation',
    { duration: 0.4, steps: 2 },
    { signal: cancel.signal, onprogress: () => cancel.abort('enough') },
  )
  expect(await cancelled).toHaveProperty('thrown')
  await talk.heard('notifications/progress', progress + 2)

  await talk.ask('no/such-method').catch(() => {})
  if (talk.generation === 'v1') await research(talk)
  return talk.conversation
}

/** A tool that runs as a task and asks the user in the middle. */
async function research(talk: Talk): Promise<void> {
  const { task } = await talk.ask('tools/call', {
    name: 'simulate-research-query',
    arguments: { topic: 'python', ambiguous: true },
    task: { ttl: 60_000 },
  })
  const { taskId } = task as { taskId: string }
  await talk.ask('tasks/result', { taskId })
  await talk.ask('tasks/get', { taskId })
  await talk.ask('tasks/list')
}

async function record(where: Where, generation: Generation) {
  const talk = await talkTo(where, generation)
  try {
    return { conversation: await converse(talk), complaints: talk.complaints }
  } finally {
    await talk.close()
  }
}

/**
 * Without what came twice: over HTTP the v1 client resumes every stream that ended with an error, whereupon this server
 * replays all that it ever sent.
 */
function unrepeated(conversation: Conversation): Conversation {
  const { exchanges, asked, heard, told } = normalised(conversation)
  const each = <T>(lists: Record<string, T[]>, key: (it: T) => unknown) =>
    Object.fromEntries(
      Object.entries(lists).map(([method, list]) => {
        const first = new Map(list.map((it) => [JSON.stringify(key(it)), it] as const).reverse())
        return [method, [...first.values()].reverse()]
      }),
    )
  return {
    exchanges,
    asked: each(asked, (it) => it.request),
    heard: each(heard, (it) => it),
    told: told.filter((it) => (it as { method: string }).method !== 'notifications/tasks/status'),
  }
}

const wheres: Record<string, () => Where> = {
  stdio: () => ({ command: process.execPath, args: [everything, 'stdio'] }),
  sse: () => ({ sse: `${sse.origin}/sse` }),
  http: () => ({ http: `${http.origin}/mcp` }),
}

for (const generation of ['v1', 'v2'] as const) {
  for (const [transport, where] of Object.entries(wheres)) {
    test.concurrent(`server-everything over ${transport}, client ${generation}: through the proxy as without`, async () => {
      const direct = await record(where(), generation)
      const through = await record(proxied(where()), generation)
      expect(through.complaints).toEqual([])
      const shape = generation === 'v1' && transport === 'http' ? unrepeated : normalised
      expect(shape(through.conversation)).toEqual(shape(direct.conversation))
    }, 60_000)
  }
}
