import { afterAll, beforeAll, expect, test } from 'vitest'
import { cli, stop } from '../fixtures/command.js'
import { type HttpServer, startTarget, target } from '../fixtures/servers.js'
import { type Generation, proxied, talkTo, type Where } from '../fixtures/talk.js'
import { type Abilities, converse, shaped } from '../fixtures/target-talk.js'

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
