import { afterAll, afterEach, beforeAll, expect, test } from 'vitest'
import { omproxy, path, type Running, stop } from '../fixtures/command.js'
import { notification, relay, request } from '../fixtures/relay.js'
import { type HttpServer, startHttp } from '../fixtures/servers.js'
import { proxied, talkTo, type Where } from '../fixtures/talk.js'

const asking = path('../fixtures/asking-server.mjs')
const jitter = ['--use', `${path('../fixtures/middleware.mjs')}#jitter={"most":20}`]

let sse: HttpServer
let json: HttpServer

beforeAll(async () => {
  const start = (mode: string) => startHttp(asking, [mode, 'PORT'], /listening/)
  ;[sse, json] = await Promise.all([start('sse'), start('json')])
})

afterAll(() => Promise.all([sse, json].map(({ child }) => stop(child))))

const wheres: Record<string, () => Where> = {
  stdio: () => ({ command: process.execPath, args: [asking, 'stdio'] }),
  'HTTP that answers with streams': () => ({ http: `${sse.origin}/mcp` }),
  'HTTP that answers JSON': () => ({ http: `${json.origin}/mcp` }),
}

const numbers = Array.from({ length: 10 }, (_, n) => n)

for (const generation of ['v1', 'v2'] as const) {
  test.concurrent.each(Object.entries(wheres))(
    `ten calls at once, each of which samples, elicits and tells its progress: over %s, client ${generation}`,
    async (_, where) => {
      const talk = await talkTo(proxied(where(), ...jitter), generation)
      try {
        const results = await Promise.all(numbers.map((n) => talk.tool('ask', { n }, { onprogress: () => {} })))
        expect(results).toEqual(
          numbers.map((n) => ({ content: [{ type: 'text', text: `${n}: Sampled. {"answer":"a value"}` }] })),
        )
        // An answer in JSON may overtake what goes to the standalone stream.
        await talk.heard('notifications/progress', 30)
        const { asked, heard, exchanges } = talk.conversation
        const sampled = asked['sampling/createMessage']!.map((it) => textOf(it.request))
        const elicited = asked['elicitation/create']!.map((it) => textOf(it.request))
        expect([sampled.sort(), elicited.sort()]).toEqual([numbers.map(String), numbers.map(String)])
        const calls = exchanges.map((it) => it.request as Call).filter(({ method }) => method === 'tools/call')
        const steps = heard['notifications/progress'] as { progressToken: unknown; progress: number }[]
        for (const { params } of calls) {
          const own = steps.filter((it) => it.progressToken === params._meta.progressToken)
          expect(own.map(({ progress }) => progress)).toEqual([1, 2, 3])
        }
        expect(steps).toHaveLength(30)
        expect(talk.complaints).toEqual([])
      } finally {
        await talk.close()
      }
    },
  )
}

interface Call {
  method: string
  params: { _meta: { progressToken: unknown } }
}

/** What the server asks with. */
function textOf(asked: unknown): string {
  const { params } = asked as { params: { message?: string; messages?: { content: { text: string } }[] } }
  return params.message ?? params.messages![0]!.content.text
}

let run: Running | undefined
let close = () => {}

afterEach(() => {
  run?.kill()
  close()
})

test('messages leave in the order in which they came, however long the middleware hold them', async () => {
  const server = await relay()
  close = server.close
  run = omproxy(['stdio', ...jitter, ...jitter, '--', ...server.command])
  const far = await server.far
  const many = Array.from({ length: 200 }, (_, n) => n)
  const fromClient = many.map((n) => (n % 3 ? request(n) : notification('notifications/vendor', { n })))
  const fromServer = many.map((n) =>
    n % 3 ? request(`s${n}`, 'ping', {}) : notification('notifications/message', { n }),
  )
  run.send(...fromClient)
  far.send(...fromServer)
  await Promise.all([far.until(many.length), run.until(many.length)])
  expect(far.lines.map((line) => JSON.parse(line.toString()))).toEqual(fromClient)
  expect(run.messages()).toEqual(fromServer)
  expect(run.odd).toEqual([])
})
