import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest'
import { record } from '../../middleware/record.js'
import { type ReplayOptions, replay, rerun } from '../../middleware/replay.js'
import { createProxy, type Session, type Upstream, type Wire } from '../../src/index.js'
import { testProxy } from '../../src/testing.js'
import { closing } from '../fixtures/closing.js'
import { HandWire } from '../fixtures/played.js'

let directory: string
let file: string
let serial = 0

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'omproxy-replay-'))
})

beforeEach(() => {
  file = join(directory, `${++serial}.jsonl`)
})

afterAll(() => rm(directory, { recursive: true, force: true }))

type Said = [from: 'client' | 'server', message: string | object, related?: unknown]

/** Writes a recording, as `record` does. */
async function written(...sessions: Said[][]) {
  const lines = sessions.flatMap((messages, index) => {
    const session = `session-${index + 1}`
    const head = { type: 'session', version: 1, session, time: '2026-01-02T03:04:05.678Z', upstream: 'test' }
    const said = messages.map(([from, message, related], at) => {
      const line = JSON.stringify({ type: 'message', session, seq: at + 1, time: at, from, related })
      const text = typeof message === 'string' ? message : JSON.stringify({ jsonrpc: '2.0', ...message })
      return `${line.slice(0, -1)},"message":${text}}`
    })
    return [JSON.stringify(head), ...said]
  })
  await writeFile(file, `${lines.join('\n')}\n`)
}

const turn = () => new Promise(setImmediate)

/** A client before the recording; `sent` at the client's wire is what the recording says. */
async function played(options: Partial<ReplayOptions> = {}, upstream = replay({ file, ...options })) {
  const app = createProxy()
  const errors: string[] = []
  app.on('error', (error) => errors.push(error.message))
  const client = new HandWire()
  await app.connect(client, (await upstream({} as Session)) as Wire)
  closing.push(() => app.close({ urgent: true }))
  await turn()
  return {
    client,
    errors,
    /** Says something; gives all that came because of it, without `jsonrpc`. */
    async say(...messages: (object | string)[]) {
      for (const it of messages) client.say(it)
      for (let n = 0; n < 5; n++) await turn()
      return client.take()
    },
  }
}

const initialize = (id: unknown = 0) => ({ id, method: 'initialize', params: { protocolVersion: '2025-11-25' } })
const welcome = (id: unknown = 0) => ({ id, result: { protocolVersion: '2025-11-25', capabilities: {} } })
const call = (id: unknown, name: string, args: object = {}, _meta?: object) => ({
  id,
  method: 'tools/call',
  params: { name, arguments: args, ...(_meta && { _meta }) },
})
const text = (id: unknown, it: string) => ({ id, result: { content: [{ type: 'text', text: it }] } })
const opening: Said[] = [
  ['client', initialize()],
  ['server', welcome()],
]
const refusal = (id: unknown, detail: string) => ({
  id,
  error: {
    code: -31003,
    message: `Bad response from upstream: ${detail}`,
    data: { source: 'proxy', reason: 'upstream_bad_response', phase: 'not_sent', retryable: false },
  },
})

describe.each(['strict', 'call'] as const)('as the server (%s)', (match) => {
  test('each request gets its answer, under the id that it has now', async () => {
    await written([...opening, ['client', call(1, 'a')], ['server', text(1, 'A')]])
    const { say } = await played({ match })
    expect(await say(initialize('first'))).toEqual([welcome('first')])
    expect(await say(call('', 'a'))).toEqual([text('', 'A')])
  })

  test('bytes stay as they were', async () => {
    const result = '{ "n":9007199254740993,"d":1.0, "e":1e400,"s":"\\u00e9\\"\\\\", "_meta":{"a":[1 , 2]}}'
    await written([...opening, ['client', call(1, 'a')], ['server', `{"jsonrpc":"2.0","result":${result}, "id": 1 }`]])
    const { client, say } = await played({ match })
    await say(initialize())
    client.say(call(7, 'a'))
    await vi.waitFor(() => expect(client.sent).toEqual([`{"jsonrpc":"2.0","result":${result}, "id": 7 }`]))
  })

  test('notifications and progress, with the token of now', async () => {
    await written([
      ...opening,
      ['client', call(1, 'a', {}, { progressToken: 1 })],
      ['server', { method: 'notifications/progress', params: { progressToken: 1, progress: 1 } }],
      ['server', { method: 'notifications/message', params: { level: 'info', data: 1 } }],
      ['server', text(1, 'A')],
    ])
    const { say } = await played({ match })
    await say(initialize())
    expect(await say(call(1, 'a', {}, { progressToken: 'mine', other: 1 }))).toEqual([
      { method: 'notifications/progress', params: { progressToken: 'mine', progress: 1 } },
      { method: 'notifications/message', params: { level: 'info', data: 1 } },
      text(1, 'A'),
    ])
  })

  test('what came on the stream of a request comes on that of the one of now', async () => {
    const log = { method: 'notifications/message', params: { data: 1 } }
    await written([...opening, ['client', call(1, 'a')], ['server', log, 1], ['server', log], ['server', text(1, 'A')]])
    const { client, say } = await played({ match })
    await say(initialize())
    client.metas.length = 0
    expect(await say(call('now', 'a'))).toEqual([log, log, text('now', 'A')])
    expect(client.metas.map((it) => it?.relatedRequestId)).toEqual(['now', undefined, 'now'])
  })

  test("the server's own requests wait for the client's answers, in any words", async () => {
    await written([
      ...opening,
      ['client', call(1, 'a')],
      ['server', { id: 1, method: 'sampling/createMessage', params: {} }],
      ['client', { id: 1, result: { role: 'assistant' } }],
      ['server', { id: 2, method: 'elicitation/create', params: {} }],
      ['client', { id: 2, result: { action: 'accept' } }],
      ['server', text(1, 'A')],
    ])
    const { say } = await played({ match })
    await say(initialize())
    expect(await say(call(5, 'a'))).toEqual([{ id: 1, method: 'sampling/createMessage', params: {} }])
    expect(await say({ id: 1, result: {} })).toEqual([{ id: 2, method: 'elicitation/create', params: {} }])
    expect(await say({ id: 2, error: { code: -1, message: 'No' } })).toEqual([text(5, 'A')])
  })

  test('so does what the server asks after a notification, or after its answer', async () => {
    const asks = (id: number) => ({ id, method: 'roots/list' })
    const changed = { method: 'notifications/tools/list_changed' }
    await written([
      ...opening,
      ['server', asks(1)],
      ['client', { id: 1, result: { roots: [] } }],
      ['server', changed],
      ['client', { method: 'notifications/initialized' }],
      ['server', asks(2)],
      ['client', { id: 2, result: { roots: [] } }],
      ['server', changed],
    ])
    const { say } = await played({ match })
    expect(await say(initialize())).toEqual([welcome(), asks(1)])
    expect(await say({ id: 1, result: { roots: [] } })).toEqual([changed])
    expect(await say({ method: 'notifications/initialized' })).toEqual([asks(2)])
    expect(await say({ id: 2, result: { roots: [] } })).toEqual([changed])
  })

  test('a client that cancels need not answer what the server has asked for it', async () => {
    await written([
      ...opening,
      ['client', call(1, 'a')],
      ['server', { id: 1, method: 'roots/list' }],
      ['client', { id: 1, result: { roots: [] } }],
      ['server', text(1, 'A')],
      ['client', call(2, 'b')],
      ['server', text(2, 'B')],
    ])
    const { say } = await played({ match })
    await say(initialize(), call(1, 'a'), { method: 'notifications/cancelled', params: { requestId: 1 } })
    expect(await say(call(2, 'b'))).toEqual([text(2, 'B')])
  })

  test.each(['notification', 'answer'])('what an end makes up (in its %s) and gets back is mapped', async (where) => {
    const status = (taskId: string, createdAt: string) => {
      return { method: 'notifications/tasks/status', params: { taskId, createdAt } }
    }
    const answer = (taskId: string) => ({ id: 1, result: where === 'answer' ? { task: { taskId } } : {} })
    await written([
      ...opening,
      ['client', call(1, 'a')],
      ['server', { id: 1, method: 'sampling/createMessage', params: { task: {} } }],
      ...(where === 'answer' ? [] : [['client', status('old', '2026-01-02T03:04:05Z')] as Said]),
      ['client', answer('old')],
      ['server', { id: 2, method: 'tasks/result', params: { taskId: 'old' } }],
      ['client', { id: 2, result: {} }],
      ['server', text(1, 'A')],
    ])
    const { errors, say } = await played({ match })
    await say(initialize(), call(1, 'a'))
    if (where === 'notification') await say(status('new', '2026-02-03T04:05:06.789Z'))
    expect(await say(answer('new'))).toEqual([{ id: 2, method: 'tasks/result', params: { taskId: 'new' } }])
    expect(await say({ id: 2, result: {} })).toEqual([text(1, 'A')])
    expect(errors).toEqual([])
  })

  test('a cancelled call stays without an answer, and what came of it comes', async () => {
    await written([
      ...opening,
      ['client', call(1, 'slow', {}, { progressToken: 1 })],
      ['server', { method: 'notifications/progress', params: { progressToken: 1, progress: 1 } }],
      ['client', { method: 'notifications/cancelled', params: { requestId: 1, reason: 'x' } }],
      ['server', { method: 'notifications/progress', params: { progressToken: 1, progress: 2 } }],
      ['client', call(2, 'a')],
      ['server', text(2, 'A')],
    ])
    const { errors, say } = await played({ match })
    await say(initialize())
    const progress = (it: number) => ({ method: 'notifications/progress', params: { progressToken: 9, progress: it } })
    expect(await say(call('c', 'slow', {}, { progressToken: 9 }))).toEqual([progress(1)])
    const cancelled = { method: 'notifications/cancelled', params: { requestId: 'c', reason: 'y' } }
    expect(await say(cancelled)).toEqual([progress(2)])
    expect(await say(call(2, 'a'))).toEqual([text(2, 'A')])
    expect(errors).toEqual([])
  })

  test('a subscription of 2026-07-28 has the id of now, and hears of what is done meanwhile', async () => {
    const modern = { 'io.modelcontextprotocol/protocolVersion': '2026-07-28' }
    const tagged = (id: unknown) => ({ _meta: { 'io.modelcontextprotocol/subscriptionId': id } })
    const listen = (id: unknown) => ({ id, method: 'subscriptions/listen', params: { _meta: modern } })
    const acknowledged = (id: unknown) => ({ method: 'notifications/subscriptions/acknowledged', params: tagged(id) })
    const changed = (id: unknown) => ({ method: 'notifications/tools/list_changed', params: tagged(id) })
    await written([
      ['client', listen(1)],
      ['server', acknowledged(1)],
      ['client', call(2, 'change', {}, modern)],
      ['server', changed(1)],
      ['server', text(2, 'done')],
      ['server', { id: 1, result: tagged(1) }],
    ])
    const { say } = await played({ match })
    expect(await say(listen('l'))).toEqual([acknowledged('l')])
    const said = await say(call('c', 'change', {}, modern))
    expect(said).toHaveLength(3)
    expect(said).toEqual(expect.arrayContaining([changed('l'), text('c', 'done'), { id: 'l', result: tagged('l') }]))
  })

  test('each legacy client has a session of its own, and after the last comes the first', async () => {
    const one: Said[] = [...opening, ['client', call(1, 'a')], ['server', text(1, 'one')]]
    const two: Said[] = [...opening, ['client', call(1, 'a')], ['server', text(1, 'two')]]
    await written(one, two)
    const upstream = replay({ file, match })
    for (const it of ['one', 'two', 'one']) {
      const { say } = await played({}, upstream)
      await say(initialize())
      expect(await say(call(1, 'a'))).toEqual([text(1, it)])
    }
    for (const session of [2, 'session-2']) {
      const { say } = await played({ match, session })
      await say(initialize())
      expect(await say(call(1, 'a'))).toEqual([text(1, 'two')])
    }
  })

  test('a client that has asked for the era first begins no other session', async () => {
    const discover = { id: 'd', method: 'server/discover' }
    const unknown = { id: 'd', error: { code: -32601, message: 'Method not found' } }
    const session = (it: string): Said[] => [
      ['client', discover],
      ['server', unknown],
      ...opening,
      ['client', call(1, 'a')],
      ['server', text(1, it)],
    ]
    await written(session('one'), session('two'))
    const upstream = replay({ file, match })
    for (const it of ['one', 'two']) {
      const { say } = await played({}, upstream)
      expect(await say(discover)).toEqual([unknown])
      expect(await say(initialize(), call(1, 'a'))).toEqual([welcome(), text(1, it)])
    }
  })

  test('what was masked may be anything', async () => {
    const args = { token: '[masked]', header: 'Bearer [masked], x' }
    await written([...opening, ['client', call(1, 'a', args)], ['server', text(1, 'A')]])
    const { say } = await played({ match })
    await say(initialize())
    const [refused] = await say(call(1, 'a', { token: 'any', header: 'Basic any, x' }))
    expect(refused?.error).toMatchObject({ code: -31003 })
    expect(await say(call(2, 'a', { token: 'any', header: 'Bearer any, x' }))).toEqual([text(2, 'A')])
  })

  test('where the recording was cut off, the request is told so', async () => {
    await written([...opening, ['client', call(1, 'a')]])
    const { say } = await played({ match })
    await say(initialize())
    expect(await say(call(1, 'a'))).toEqual([
      refusal(1, 'the recording ends before the answer to tools/call "a" (line 4)'),
    ])
  })

  test('names of peers do no harm', async () => {
    const request = '{"jsonrpc":"2.0","id":1,"method":"__proto__","params":{"constructor":1,"__proto__":{"id":2}}}'
    await written([...opening, ['client', request], ['server', { id: 1, result: {} }]])
    const { say } = await played({ match })
    await say(initialize())
    const [refused] = await say(request.replace('"id":2', '"id":3'))
    expect(refused?.error).toMatchObject({ code: -31003 })
    expect(await say(request)).toEqual([{ id: 1, result: {} }])
  })
})

describe('strict', () => {
  beforeEach(() =>
    written([
      ...opening,
      ['client', { method: 'notifications/initialized' }],
      ['client', call(1, 'a', { deep: [1, { x: 'y' }] })],
      ['client', call(2, 'b')],
      ['server', text(1, 'A')],
      ['server', text(2, 'B')],
    ]),
  )

  test('says what was expected and what came', async () => {
    const { errors, say } = await played()
    expect(await say(call(1, 'a'))).toEqual([refusal(1, 'no recorded session begins with tools/call "a"')])
    await say(initialize())
    expect(await say({ id: 2, method: 'ping' })).toEqual([
      refusal(2, 'expected notifications/initialized (line 4), got ping'),
    ])
    await say({ method: 'notifications/other' })
    expect(errors).toEqual(['replay: expected notifications/initialized (line 4), got notifications/other'])
    await say({ method: 'notifications/initialized' })
    expect(await say(call(3, 'b'))).toEqual([refusal(3, 'expected tools/call "a" (line 5), got tools/call "b"')])
    expect(await say(call(4, 'a', { deep: [1, { x: 'z' }] }))).toEqual([
      refusal(4, 'expected tools/call "a" (line 5) with params.arguments.deep[1].x "y", got "z"'),
    ])
    expect(await say(call(5, 'a', {}))).toEqual([
      refusal(5, 'expected tools/call "a" (line 5) with params.arguments.deep [1,{"x":"y"}], got nothing'),
    ])
  })

  test("keeps the server's order: an answer waits for what the client had said before it", async () => {
    const { say } = await played()
    await say(initialize(), { method: 'notifications/initialized' })
    expect(await say(call('x', 'a', { deep: [1, { x: 'y' }] }))).toEqual([])
    expect(await say(call('y', 'b'))).toEqual([text('x', 'A'), text('y', 'B')])
    expect(await say({ id: 3, method: 'ping' })).toEqual([
      refusal(3, 'expected nothing more, the recording is at its end, got ping'),
    ])
  })
})

describe('call', () => {
  test('any order, each recorded exchange once, then the last again', async () => {
    await written([
      ...opening,
      ['client', call(1, 'a')],
      ['server', text(1, 'first')],
      ['client', call(2, 'b')],
      ['server', text(2, 'B')],
      ['client', call(3, 'a')],
      ['server', text(3, 'second')],
    ])
    const { say } = await played({ match: 'call' })
    expect(await say(initialize(), call(1, 'b'), call(2, 'a'), call(3, 'a'), call(4, 'a'))).toEqual([
      welcome(),
      text(1, 'B'),
      text(2, 'first'),
      text(3, 'second'),
      text(4, 'second'),
    ])
  })

  test('given again, it brings nothing that may have had another reason', async () => {
    const log = (data: number) => ({ method: 'notifications/message', params: { data } })
    await written([
      ...opening,
      ['client', call(1, 'a')],
      ['server', log(1)],
      ['server', text(1, 'A')],
      ['server', log(2)],
    ])
    const { say } = await played({ match: 'call' })
    expect(await say(initialize(), call(1, 'a'))).toEqual([welcome(), log(1), text(1, 'A'), log(2)])
    expect(await say(call(2, 'a'))).toEqual([log(1), text(2, 'A')])
  })

  test('says what comes nearest', async () => {
    await written([
      ...opening,
      ['client', call(1, 'a', { x: 1 })],
      ['server', text(1, 'A')],
      ['client', call(2, 'b', { y: 1 })],
      ['server', text(2, 'B')],
    ])
    const { errors, say } = await played({ match: 'call' })
    await say(initialize())
    expect(await say(call(1, 'b', { y: 2 }), { id: 2, method: 'ping' })).toEqual([
      refusal(1, 'expected tools/call "b" (line 6) with params.arguments.y 1, got 2'),
      refusal(2, 'expected what was recorded, got ping'),
    ])
    await say({ method: 'notifications/other' }, { method: 'notifications/cancelled', params: { requestId: 9 } })
    expect(errors).toEqual(['replay: expected what was recorded, got notifications/other'])
  })

  test('two runs of one exchange at once have ids of their own for what the server asks', async () => {
    await written([
      ...opening,
      ['client', call(1, 'a')],
      ['server', { id: 0, method: 'roots/list' }],
      ['client', { id: 0, result: { roots: [] } }],
      ['server', text(1, 'A')],
    ])
    const { say } = await played({ match: 'call' })
    await say(initialize())
    const asked = await say(call(1, 'a'), call(2, 'a'))
    expect(asked).toEqual([
      { id: 0, method: 'roots/list' },
      { id: 'replay-1', method: 'roots/list' },
    ])
    expect(await say({ id: 'replay-1', result: {} })).toEqual([text(2, 'A')])
    expect(await say({ id: 0, result: {} })).toEqual([text(1, 'A')])
  })
})

/** A conversation of a client that does several things at once, as it came about. */
const interleaving = fc
  .array(
    fc.record({
      progress: fc.nat({ max: 2 }),
      asks: fc.boolean(),
      cancelled: fc.boolean(),
      picks: fc.array(fc.nat(), { minLength: 6, maxLength: 6 }),
    }),
    { minLength: 1, maxLength: 5 },
  )
  .map((exchanges) => {
    const queues = exchanges.map(({ progress, asks, cancelled }, n): Said[] => [
      ['client', call(n, `t${n}`, { n }, { progressToken: n })],
      ...Array.from({ length: progress }, (_, at): Said => {
        return ['server', { method: 'notifications/progress', params: { progressToken: n, progress: at } }]
      }),
      ...(asks
        ? ([
            ['server', { id: n, method: 'roots/list', params: { n } }, n],
            ['client', { id: n, result: { roots: [] } }],
          ] as Said[])
        : []),
      cancelled
        ? ['client', { method: 'notifications/cancelled', params: { requestId: n } }]
        : ['server', text(n, `${n}`)],
    ])
    const order = exchanges.flatMap(({ picks }, n) => picks.slice(0, queues[n]!.length).map((pick) => ({ pick, n })))
    order.sort((a, b) => a.pick - b.pick)
    return order.map(({ n }) => queues[n]!.shift() as Said)
  })

/** Says what the client had said, each as soon as all has come that had come before; gives what came. */
async function sameClient(said: Said[], match: 'strict' | 'call') {
  const { client, errors } = await played({ match })
  client.say(initialize('init'))
  const texts = said.map(([, message]) => JSON.stringify({ jsonrpc: '2.0', ...(message as object) }))
  for (const [at, [from, message]] of said.entries()) {
    if (from === 'server') continue
    const before = texts.slice(0, at).filter((_, index) => said[index]?.[0] === 'server')
    for (let n = 0; !before.every((it) => client.sent.includes(it)) && n < 50; n++) await turn()
    client.say(message as object)
  }
  for (let n = 0; n < 20; n++) await turn()
  const [, ...came] = client.take()
  return { came, errors }
}

test.each(['strict', 'call'] as const)(
  'however it was interleaved, the same client hears the same (%s)',
  async (match) => {
    await fc.assert(
      fc.asyncProperty(interleaving, async (said) => {
        await written([...opening, ...said])
        const { came, errors } = await sameClient(said, match)
        const expected = said.flatMap(([from, message]) => (from === 'server' ? [message] : []))
        if (match === 'strict') expect(came).toEqual(expected)
        // In any order: each exchange has its own.
        const ofEach = (all: unknown[]) =>
          Array.from({ length: 5 }, (_, n) =>
            all.filter((it) => new RegExp(`"(?:id|progressToken)":${n}\\b`).test(JSON.stringify(it))),
          )
        expect(ofEach(came)).toEqual(ofEach(expected))
        expect(errors).toEqual([])
      }),
      { numRuns: 60 },
    )
  },
  60_000,
)

describe('recordings that are none', () => {
  const head = JSON.stringify({ type: 'session', version: 1, session: 's', time: '', upstream: '' })
  const message = JSON.stringify({
    type: 'message',
    session: 's',
    seq: 1,
    time: 0,
    from: 'client',
    message: { jsonrpc: '2.0', method: 'a' },
  })

  const failure = () =>
    rerun({ file, upstream: () => new HandWire() }).then(
      () => 'none',
      ({ message }) => message,
    )

  test.each([
    [
      'a torn last line',
      `${head}\n${message}\n${message.slice(0, 40)}`,
      'line 3: expected JSON, got what does not parse (was it cut off?)',
    ],
    ['no JSON', 'hello\n', 'line 1: expected JSON, got what does not parse (was it cut off?)'],
    ['another version', `\n${head.replace('1', '2')}\n`, 'line 2: expected version 1 of the format, got 2'],
    [
      'another type',
      `${head}\n{"type":"__proto__"}\n`,
      'line 2: expected type "session" or "message", got "__proto__"',
    ],
    ['null', 'null\n', 'line 1: expected type "session" or "message", got nothing'],
    ['a session without an id', '{"type":"session","version":1}', "line 1: expected a session's id, got nothing"],
    ['a message of no session', `${message}\n`, 'line 1: expected the first line of its session before it, got none'],
    [
      'from nobody',
      `${head}\n${message.replace('client', 'constructor')}\n`,
      'line 2: expected from "client" or "server", got "constructor"',
    ],
    [
      'no message',
      `${head}\n${message.replace('"method":"a"', '"a":1')}\n`,
      'line 2: expected a JSON-RPC message, got something else',
    ],
    ['nothing', '', 'expected a recording, got no session'],
  ])('%s', async (_, content, expected) => {
    await writeFile(file, content)
    expect(await failure()).toBe(`${file}: ${expected}`)
  })

  test('no file', async () => {
    expect(await failure()).toBe(`${file}: could not be read: ENOENT`)
  })

  test('no such session', async () => {
    await writeFile(file, `${head}\n`)
    for (const session of [2, 'x']) {
      await expect(rerun({ file, session, upstream: () => new HandWire() })).rejects.toThrow(
        `${file}: expected session ${JSON.stringify(session)}, it has 1 and not that one`,
      )
    }
  })

  test('a client hears that its server is not there, and no path', async () => {
    const proxy = createProxy()
    closing.push(() => proxy.close({ urgent: true }))
    const { address } = await proxy.listen(replay({ file }), { port: 0 })
    const response = await fetch(address, {
      method: 'POST',
      headers: { 'content-type': 'application/json', accept: 'application/json, text/event-stream' },
      body: JSON.stringify({ jsonrpc: '2.0', ...initialize() }),
    })
    const answer = await response.text()
    expect(answer).toContain('-31009')
    expect(answer).not.toContain(file)
  })

  test('members in another order, white space and unknown ones are taken', async () => {
    const lines = [
      { upstream: '', session: 's', version: 1, type: 'session', more: {} },
      {
        message: { jsonrpc: '2.0', message: 1, ...initialize() },
        from: 'client',
        session: 's',
        seq: 1,
        type: 'message',
      },
      {
        type: 'message',
        more: { message: 1 },
        message: { jsonrpc: '2.0', ...welcome() },
        from: 'server',
        session: 's',
      },
    ]
    const ping = { id: 1, method: 'ping' }
    const after = { type: 'message', session: 's', from: 'server', message: { jsonrpc: '2.0', ...ping }, more: 1 }
    const spaced = lines.map((it) => JSON.stringify(it).replaceAll('":', '" : '))
    await writeFile(file, [...spaced, JSON.stringify(after)].join('\r\n\n'))
    const { say } = await played()
    expect(await say(initialize(5))).toEqual([welcome(5), ping])
  })
})

describe('as the client', () => {
  /** A server that answers what it is asked; what it gives is sent. */
  const server = (answer: (message: Record<string, never>, say: (message: object) => void) => void): Upstream =>
    function played() {
      const wire = new HandWire()
      wire.sending = (text) => answer(JSON.parse(text), (it) => queueMicrotask(() => wire.say(it)))
      return wire
    }

  const held = (upstream: Upstream, more: object = {}) => rerun({ file, upstream, ...more })
  const session = 'session-1'

  const conversation: Said[] = [
    ...opening,
    ['client', { method: 'notifications/initialized' }],
    ['client', call(1, 'a', { n: 1 })],
    ['server', { id: 7, method: 'sampling/createMessage', params: { x: 1 } }],
    ['client', { id: 7, result: { role: 'assistant' } }],
    ['server', { method: 'notifications/message', params: { data: 1 } }],
    ['server', text(1, 'A')],
  ]

  /** The server of the conversation, with changes. */
  const known = ({ sampled = 1, logged = [1], said = 'A', heard = (_: unknown) => {} } = {}) =>
    server(({ id, method, result }, say) => {
      if (method === 'initialize') say(welcome(id))
      if (method === 'tools/call') say({ id: 'other', method: 'sampling/createMessage', params: { x: sampled } })
      if (id === 'other') {
        heard(result)
        for (const data of logged) say({ method: 'notifications/message', params: { data } })
        say(text(1, said))
      }
    })

  test('nothing differs where nothing changed, and the server gets the recorded answers', async () => {
    await written(conversation)
    const heard = vi.fn()
    expect(await held(known({ heard }))).toEqual([])
    expect(heard.mock.calls).toEqual([[{ role: 'assistant' }]])
  })

  test('what differs is listed', async () => {
    await written(conversation)
    const of = (line: number, method: string, name?: string) => ({ line, session, method, name })
    expect(await held(known({ sampled: 2, logged: [2, 3], said: 'B' }))).toEqual([
      { ...of(6, 'sampling/createMessage'), path: 'params.x', expected: 1, came: 2 },
      { ...of(8, 'notifications/message'), path: 'params.data', expected: 1, came: 2 },
      { ...of(7, 'notifications/message'), path: '', expected: undefined, came: { data: 3 } },
      { ...of(9, 'tools/call', 'a'), path: 'result.content[0].text', expected: 'A', came: 'B' },
    ])
  })

  test('what a changed answer leaves out is not waited for', async () => {
    await written(conversation)
    const short = server(({ id, method }, say) => {
      if (method === 'initialize') say(welcome(id))
      if (method === 'tools/call') say(text(id, 'B'))
    })
    expect(await held(short)).toMatchObject([
      { line: 9, path: 'result.content[0].text', expected: 'A', came: 'B' },
      { line: 6, path: '', expected: { x: 1 }, came: undefined },
      { line: 8, path: '', expected: { data: 1 }, came: undefined },
    ])
  })

  test('what does not come is a difference, after its time', async () => {
    await written(conversation)
    const silent = server(({ id, method }, say) => method === 'initialize' && say(welcome(id)))
    expect(await held(silent, { timeout: 50 })).toMatchObject([
      { line: 6, path: '', expected: { x: 1 }, came: undefined },
      { line: 8, path: '', expected: { data: 1 }, came: undefined },
      { line: 9, path: '', expected: text(1, 'A').result, came: undefined },
    ])
  })

  test('what a server asks that was not recorded is a difference, and gets an error', async () => {
    await written(opening)
    const answers: unknown[] = []
    const asks = server(({ id, method, error, result }, say) => {
      if (method === 'initialize') {
        say({ id: 1, method: 'ping' })
        say({ id: 2, method: 'roots/list' })
      } else answers.push(error ?? result)
      if (answers.length === 2) say(welcome(0))
      void id
    })
    expect(await held(asks)).toEqual([
      { line: 2, session, method: 'roots/list', name: undefined, path: '', expected: undefined, came: {} },
    ])
    expect(answers).toEqual([{}, { code: -32601, message: 'It was not recorded' }])
  })

  test.each([
    [['tools/call:result.content[*].text', '**.x', 'notifications/message:**'], []],
    [['a:result.**', 'params.x', 'params.data', 'notifications/message:**'], []],
    [['result.content[0].text', 'params.*'], ['notifications/message ']],
    [
      ['b:**', 'result.content.text', 'params'],
      [
        'sampling/createMessage params.x',
        'notifications/message params.data',
        'notifications/message ',
        'tools/call result.content[0].text',
      ],
    ],
  ])('%j may differ', async (ignore, left) => {
    await written(conversation)
    const found = await held(known({ sampled: 2, logged: [2, 3], said: 'B' }), { ignore })
    expect(found.map(({ method, path }) => `${method} ${path}`)).toEqual(left)
  })

  test('what the server makes up is given back as it is now', async () => {
    const modern = { 'io.modelcontextprotocol/protocolVersion': '2026-07-28' }
    const required = (state: string) => ({ id: 1, result: { resultType: 'input_required', requestState: state } })
    const again = (state: string) => ({
      id: 2,
      method: 'tools/call',
      params: { name: 'a', requestState: state, _meta: modern },
    })
    await written([
      ['client', call(1, 'a', {}, modern)],
      ['server', required('old')],
      ['client', again('old')],
      ['server', text(2, 'done')],
    ])
    const states: unknown[] = []
    const makes = server(({ id, params }, say) => {
      if (id === 1) say(required('new'))
      else {
        states.push((params as unknown as { requestState: string }).requestState)
        say(text(2, 'done'))
      }
    })
    expect(await held(makes)).toEqual([])
    expect(states).toEqual(['new'])
  })

  test('what a server has not said that leaves is a difference', async () => {
    const changed = { method: 'notifications/tools/list_changed' }
    await written([...opening, ['client', { method: 'notifications/initialized' }], ['server', changed]])
    const wire = new HandWire()
    wire.sending = (text) => {
      const { id, method } = JSON.parse(text)
      queueMicrotask(() => (method === 'initialize' ? wire.say(welcome(id)) : wire.onclose?.()))
    }
    expect(await held(() => wire)).toEqual([{ line: 5, session, ...changed, path: '', expected: {}, came: undefined }])
  })

  test('a server that cannot be reached is an error', async () => {
    await written(opening)
    await expect(held({ url: 'http://127.0.0.1:9/mcp', type: 'http' })).rejects.toMatchObject({ code: -31009 })
    await expect(held({ command: join(directory, 'none') })).rejects.toMatchObject({ code: -31009 })
  })

  test('a signal ends it', async () => {
    await written(opening)
    const controller = new AbortController()
    const over = held(
      server(() => controller.abort(new Error('enough'))),
      { signal: controller.signal },
    )
    await expect(over).rejects.toThrow('enough')
  })
})

test('what record writes, replay reads', async () => {
  const app = createProxy().use(record({ file }))
  const proxy = testProxy(app)
  const said: Said[] = [
    ['client', initialize()],
    ['server', welcome()],
    ['client', call(1, 'a', { password: 'secret', n: 1 })],
    ['server', text(1, 'A')],
  ]
  for (const [from, message] of said) {
    if (from === 'client') await proxy.fromClient(message)
    else await proxy.fromServer(message)
  }
  await app.close({ urgent: true })
  const { say } = await played()
  expect(await say(initialize(), call(2, 'a', { password: 'another', n: 1 }))).toEqual([welcome(), text(2, 'A')])
})

test.each([
  [{}, 'replay: expected file, a path, got nothing'],
  [{ file: 1 }, 'replay: expected file, a path, got 1'],
  [{ file: 'a', session: 0 }, 'replay: expected session, an id or a number from 1, got 0'],
  [{ file: 'a', match: 'x' }, 'replay: expected match "strict" or "call", got "x"'],
])('%o is no set of options', (options, message) => {
  expect(() => replay(options as never)).toThrow(new TypeError(message))
})

test.each([
  [{}, 'rerun: expected file, a path, got nothing'],
  [{ file: 'a', timeout: 0 }, 'rerun: expected timeout, milliseconds above 0, got 0'],
  [{ file: 'a', ignore: 'x' }, 'rerun: expected ignore, a list of paths, got something else'],
])('%o is no set of options of a rerun', async (options, message) => {
  await expect(rerun({ upstream: () => new HandWire(), ...options } as never)).rejects.toThrow(new TypeError(message))
})

test('it is no middleware', async () => {
  await written(opening)
  const app = createProxy().use(replay({ file }) as never)
  const errors: string[] = []
  app.on('error', (error) => errors.push(error.message))
  const { toClient } = await testProxy(app).fromClient({ id: 1, method: 'ping' })
  expect(toClient).toEqual([{ jsonrpc: '2.0', id: 1, error: { code: -32603, message: 'Internal error' } }])
  expect(errors).toEqual(['replay: expected listen(replay(…)), it is an upstream and no middleware'])
})
