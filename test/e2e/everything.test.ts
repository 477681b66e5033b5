import { afterAll, beforeAll, expect, test } from 'vitest'
import { stop } from '../fixtures/command.js'
import { converse, unrepeated } from '../fixtures/everything-talk.js'
import { everything, type HttpServer, startEverything } from '../fixtures/servers.js'
import { type Generation, normalised, proxied, talkTo, type Where } from '../fixtures/talk.js'

let sse: HttpServer
let http: HttpServer

beforeAll(async () => {
  ;[sse, http] = await Promise.all([startEverything('sse'), startEverything('streamableHttp')])
})

afterAll(async () => {
  await Promise.all([sse, http].map(({ child }) => stop(child)))
})

async function record(where: Where, generation: Generation) {
  const talk = await talkTo(where, generation)
  try {
    return { conversation: await converse(talk), complaints: talk.complaints }
  } finally {
    await talk.close()
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
