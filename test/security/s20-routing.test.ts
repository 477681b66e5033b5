import { stdio } from 'open-mcp-proxy'
import { describe, expect, test, vi } from 'vitest'
import { closing } from '../fixtures/closing.js'
import { relay } from '../fixtures/relay.js'
import {
  type Asked,
  ask,
  byHeader,
  initialize,
  listen,
  type Message,
  modern,
  type Opened,
  open,
  ours,
  server,
  session,
  sse,
} from './helpers.js'

const LOGS = { 'io.modelcontextprotocol/logLevel': 'debug' }
const SUBSCRIPTION = 'io.modelcontextprotocol/subscriptionId'

/** A child that all clients of one principal share, in the hands of the test. */
async function shared() {
  const child = await relay()
  closing.push(() => child.close())
  const [command, ...args] = child.command
  const proxy = await listen(stdio(command!, args), { keepAlive: 20 })
  const asks: Opening[] = []
  /** Asks, and resolves when the child has been asked. */
  async function begin(method: string, { id = 1 as string | number, meta = {}, params = {} } = {}) {
    const opening = start(proxy.port, modern(id, method, { ...params, _meta: meta }))
    asks.push(opening)
    const far = await child.far
    await far.until(asks.length)
    return { ...opening, wireId: (JSON.parse(far.lines.at(-1)!.toString()) as Message).id as number }
  }
  return { ...proxy, begin, far: child.far }
}

type Opening = ReturnType<typeof start>

/** Asks, and says what came so far. */
function start(port: number, asked: Asked) {
  let opened: Opened | undefined
  const head = open(port, asked).then((it) => {
    opened = it
    return it
  })
  return {
    head,
    /** All that it was told. */
    async whole(): Promise<Message[]> {
      const { reply, text } = await head
      const body = await text
      return String(reply.headers['content-type']).startsWith('text/event-stream')
        ? (await head).messages()
        : [JSON.parse(body) as Message]
    },
    soFar: () => opened?.messages() ?? [],
  }
}

const result = (id: unknown, value: object = {}) => ({ jsonrpc: '2.0', id, result: value })
const note = (method: string, params: object = {}) => ({ jsonrpc: '2.0', method, params })

describe('one child for many clients of 2026-07-28', () => {
  test('each gets its own answer, whatever ids they have in common', async () => {
    const { begin, far } = await shared()
    const ids = [1, 1, '1', 'a', 'a', 0, -1, 1.5, '', '__proto__', 'constructor', 2 ** 53]
    const asked = []
    for (const id of ids) asked.push(await begin('tools/list', { id }))
    const wireIds = asked.map(({ wireId }) => wireId)
    expect(new Set(wireIds).size).toBe(ids.length)
    const { send } = await far
    for (const wireId of [...wireIds].reverse()) send(result(wireId, { tools: [], of: wireId }))
    const answers = await Promise.all(asked.map((it) => it.whole()))
    expect(answers).toEqual(ids.map((id, at) => [result(id, { tools: [], of: wireIds[at] })]))
  })

  test('an answer comes once, and only for what was asked', async () => {
    const { begin, far } = await shared()
    const [one, other] = [await begin('a', { id: 'one' }), await begin('b', { id: 'other' })]
    const { send } = await far
    const strange = [0, -1, 999, null, 'one', 'other', '__proto__', one.wireId + 0.5, String(one.wireId)]
    send(...strange.map((id) => result(id, { stolen: true })))
    send({ jsonrpc: '2.0', error: { code: -32700, message: 'whose?' } })
    send(result(one.wireId, { first: true }), result(one.wireId, { second: true }))
    send(result(other.wireId, { other: true }))
    expect(await Promise.all([one.whole(), other.whole()])).toEqual([
      [result('one', { first: true })],
      [result('other', { other: true })],
    ])
  })

  test('progress goes to whose request it is of, under the token that it gave', async () => {
    const { begin, far } = await shared()
    const tokens = [1, 1, 'p', 'p', 0, '__proto__']
    const asked = []
    for (const progressToken of tokens) asked.push(await begin('tools/list', { meta: { progressToken } }))
    const none = await begin('tools/list')
    const { lines, send } = await far
    const wire = lines.map(
      (line) => (JSON.parse(line.toString()) as Message).params!._meta as { progressToken?: number },
    )
    const wireTokens = wire.map(({ progressToken }) => progressToken)
    expect(new Set(wireTokens).size).toBe(tokens.length + 1)
    const progress = (progressToken: unknown, at: number) =>
      note('notifications/progress', { progressToken, progress: at })
    for (const [at, token] of wireTokens.slice(0, -1).entries()) send(progress(token, at))
    // What was asked for without a token has none to guess; and nobody has these.
    for (const token of [999, 'p', null, -1, '__proto__']) send(progress(token, 99))
    send(note('notifications/progress', { progress: 99 }))
    for (const { wireId } of [...asked, none]) send(result(wireId))
    const answers = await Promise.all([...asked, none].map((it) => it.whole()))
    expect(answers).toEqual([...tokens.map((token, at) => [progress(token, at), result(1)]), [result(1)]])
  })

  test('logs that nobody can be told to own go to nobody', async () => {
    const { begin, far } = await shared()
    const [quiet, first, second] = [
      await begin('tools/list', { id: 'quiet' }),
      await begin('tools/list', { id: 'first', meta: LOGS }),
      await begin('tools/list', { id: 'second', meta: LOGS }),
    ]
    const log = (data: string) => note('notifications/message', { level: 'info', data })
    const { send } = await far
    send(log('two have asked for logs'))
    send(result(second.wireId))
    expect(await second.whole()).toEqual([result('second')])
    send(log('one has'))
    await vi.waitFor(() => expect(first.soFar()).toHaveLength(1))
    send(result(first.wireId))
    expect(await first.whole()).toEqual([log('one has'), result('first')])
    send(log('nobody has'))
    send(result(quiet.wireId))
    expect(await quiet.whole()).toEqual([result('quiet')])
  })

  test('what names no owner goes to nobody', async () => {
    const { begin, far } = await shared()
    const [one, other] = [await begin('a', { id: 'one', meta: LOGS }), await begin('b', { id: 'other' })]
    const { send } = await far
    for (const method of [
      'notifications/tools/list_changed',
      'notifications/resources/updated',
      'notifications/elicitation/complete',
      'notifications/anything',
      'notifications/cancelled',
    ]) {
      send(note(method, { uri: 'file:///private', requestId: 999 }))
    }
    for (const id of [0, null, '999', 999, 'one', 'other', String(one.wireId), [one.wireId], true]) {
      send(note('notifications/resources/updated', { uri: 'file:///private', _meta: { [SUBSCRIPTION]: id } }))
    }
    send({ jsonrpc: '2.0', id: 1, method: 'sampling/createMessage', params: {} })
    send(result(one.wireId), result(other.wireId))
    expect(await Promise.all([one.whole(), other.whole()])).toEqual([[result('one')], [result('other')]])
    // The child's own question has its answer from us.
    await vi.waitFor(async () => expect((await far).lines).toHaveLength(3))
    expect(JSON.parse((await far).lines[2]!.toString())).toMatchObject({ id: 1, error: { code: -31011 } })
  })

  test('what a subscription brings goes to whose it is, under its id', async () => {
    const { begin, far } = await shared()
    const listen = (id: string | number) => begin('subscriptions/listen', { id, params: { notifications: {} } })
    const asked = [await listen(1), await listen(1), await listen('s')]
    const bystander = await begin('tools/list', { id: 1, meta: LOGS })
    const { send } = await far
    const changed = (id: unknown, at: number) =>
      note('notifications/resources/updated', { uri: `file:///${at}`, _meta: { [SUBSCRIPTION]: id } })
    for (const [at, { wireId }] of asked.entries()) send(changed(wireId, at), changed(wireId, at + 10))
    await vi.waitFor(() => expect(asked.map((it) => it.soFar().length)).toEqual([2, 2, 2]))
    send(result(bystander.wireId))
    expect(await bystander.whole()).toEqual([result(1)])
    const ids = [1, 1, 's']
    expect(asked.map((it) => it.soFar())).toEqual(ids.map((id, at) => [changed(id, at), changed(id, at + 10)]))
    // Once somebody has left, nobody hears what was theirs.
    const [gone, ...left] = asked
    ;(await gone!.head).close()
    await (await far).until(5)
    expect(JSON.parse((await far).lines[4]!.toString())).toEqual(
      note('notifications/cancelled', { requestId: gone!.wireId }),
    )
    send(changed(gone!.wireId, 99))
    for (const [at, { wireId }] of left.entries()) send(changed(wireId, at + 20))
    await vi.waitFor(() => expect(left.map((it) => it.soFar().length)).toEqual([3, 3]))
    expect(left.map((it) => it.soFar().at(-1))).toEqual([changed(1, 20), changed('s', 21)])
  })

  test('nobody takes back what is another’s', async () => {
    const { begin, far, port } = await shared()
    const one = await begin('a', { id: 1 })
    for (const requestId of [1, one.wireId, '1', null]) {
      const { headers } = modern(1, 'notifications/cancelled')
      const reply = await ask(port, { headers, body: note('notifications/cancelled', { requestId }) })
      expect(reply.status).toBe(202)
    }
    const other = await begin('b', { id: 1 })
    ;(await far).send(result(other.wireId), result(one.wireId))
    expect(await Promise.all([one.whole(), other.whole()])).toEqual([[result(1)], [result(1)]])
    const methods = (await far).lines.map((line) => (JSON.parse(line.toString()) as Message).method)
    expect(methods).toEqual(['a', 'b'])
  })

  test('a token of another’s in a request stands for nothing', async () => {
    const { begin, far } = await shared()
    const victim = await begin('a', { id: 'victim', meta: { progressToken: 'v' } })
    const thief = await begin('b', { id: victim.wireId, meta: { progressToken: victim.wireId } })
    const { send, lines } = await far
    const sent = JSON.parse(lines[1]!.toString()) as Message
    expect([sent.id, (sent.params!._meta as { progressToken: unknown }).progressToken]).toEqual([
      thief.wireId,
      thief.wireId,
    ])
    expect(thief.wireId).not.toBe(victim.wireId)
    send(note('notifications/progress', { progressToken: victim.wireId, progress: 1 }))
    send(result(victim.wireId, { of: 'victim' }), result(thief.wireId, { of: 'thief' }))
    expect(await Promise.all([victim.whole(), thief.whole()])).toEqual([
      [note('notifications/progress', { progressToken: 'v', progress: 1 }), result('victim', { of: 'victim' })],
      [result(victim.wireId, { of: 'thief' })],
    ])
  })

  test('a child that cannot be read tells the one whose answer it was', async () => {
    const { begin, far } = await shared()
    const [one, other] = [await begin('a', { id: 'one' }), await begin('b', { id: 'other' })]
    const { send } = await far
    send(`{"jsonrpc":"2.0","id":${one.wireId},"result":{},"result":{"secret":1}}`)
    send('{"jsonrpc":"2.0",', 'no json', '[]')
    send(result(other.wireId))
    const [[told], rest] = await Promise.all([one.whole(), other.whole()])
    expect(told).toMatchObject({ id: 'one', error: { code: -31003 } })
    expect(rest).toEqual([result('other')])
  })
})

describe('many principals', () => {
  /** Tells everybody who asked what the process knows of all who did. */
  const script = `
const seen = []
require('node:readline').createInterface(process.stdin).on('line', (line) => {
  const { id, method, params } = JSON.parse(line)
  if (id === undefined) return
  const say = (message) => console.log(JSON.stringify({ jsonrpc: '2.0', ...message }))
  if (method === 'tools/call') seen.push(params.arguments.secret)
  say({ method: 'notifications/message', params: { level: 'info', data: seen } })
  say({ method: 'notifications/progress', params: { progressToken: params?._meta?.progressToken, progress: 1 } })
  say({ id, result: method === 'tools/list' ? { tools: [] } : { pid: process.pid, seen } })
})`

  test('have a child each: what one has said to it, no other hears', async () => {
    const { port } = await listen(stdio(process.execPath, ['-e', script]), {}, (app) => app.use(byHeader))
    const users = ['alice', 'bob', undefined, '__proto__', 'constructor', 'Alice']
    const call = async (user: string | undefined, secret: string) => {
      const { headers, body } = modern(
        1,
        'tools/call',
        { name: 'a', arguments: { secret }, _meta: { progressToken: 1 } },
        'a',
      )
      const opening = start(port, { headers: { ...headers, ...(user !== undefined && { 'x-user': user }) }, body })
      return opening.whole()
    }
    const first = await Promise.all(users.map((user) => call(user, `first of ${user}`)))
    const second = await Promise.all(users.map((user) => call(user, `second of ${user}`)))
    const progress = note('notifications/progress', { progressToken: 1, progress: 1 })
    const pids = first.map((it) => (it.at(-1)!.result as { pid: number }).pid)
    expect(new Set(pids).size).toBe(users.length)
    for (const [at, user] of users.entries()) {
      const pid = pids[at]
      expect(first[at]).toEqual([progress, result(1, { pid, seen: [`first of ${user}`] })])
      expect(second[at]).toEqual([progress, result(1, { pid, seen: [`first of ${user}`, `second of ${user}`] })])
    }
  })

  test('a legacy session has a child of its own, also of the same principal', async () => {
    const { port } = await listen(stdio(process.execPath, ['-e', script]), {}, (app) => app.use(byHeader))
    const alice = { 'x-user': 'alice' }
    const ids = [await session(port, alice), await session(port, alice), await session(port, { 'x-user': 'bob' })]
    const users = ['alice', 'alice', 'bob']
    const seen = []
    for (const [at, id] of ids.entries()) {
      const body = { jsonrpc: '2.0', id: 1, method: 'tools/call', params: { name: 'a', arguments: { secret: at } } }
      const headers = { ...ours, 'mcp-session-id': id, 'x-user': users[at]! }
      const all = await start(port, { headers, body }).whole()
      seen.push((all.at(-1)!.result as { seen: unknown }).seen)
    }
    expect(seen).toEqual([[0], [1], [2]])
  })
})

describe('sessions of their own', () => {
  const event = { accept: 'text/event-stream' }

  test('never hear each other: answers, progress, logs, questions', async () => {
    const upstream = server(({ method }) => (method === 'initialize' ? { result: {} } : undefined))
    const { port } = await listen(upstream.open, { keepAlive: 20 })
    const ids = [await session(port), await session(port)]
    const olds = [await sse(port), await sse(port)]
    await vi.waitFor(() => expect(upstream.wires).toHaveLength(4))
    const standing = await Promise.all(
      ids.map((id) => open(port, { method: 'GET', headers: { ...event, 'mcp-session-id': id } })),
    )
    const body = { jsonrpc: '2.0', id: 1, method: 'a', params: { _meta: { progressToken: 1 } } }
    const asked = ids.map((id) => start(port, { headers: { ...ours, 'mcp-session-id': id }, body }))
    for (const { endpoint } of olds) await ask(port, { path: endpoint, body })
    await vi.waitFor(() => expect(upstream.methods().filter((it) => it === 'a')).toHaveLength(4))
    for (const [at, wire] of [...upstream.wires.entries()].reverse()) {
      wire.say({ method: 'notifications/progress', params: { progressToken: 1, progress: at } })
      wire.say({ method: 'notifications/message', params: { level: 'info', data: at } })
      wire.say({ id: `q${at}`, method: 'roots/list' })
      wire.say({ id: 1, result: { at } })
    }
    const progress = (at: number) => note('notifications/progress', { progressToken: 1, progress: at })
    const log = (at: number) => note('notifications/message', { level: 'info', data: at })
    const question = (at: number) => ({ jsonrpc: '2.0', id: `q${at}`, method: 'roots/list' })
    expect(await Promise.all(asked.map((it) => it.whole()))).toEqual(
      [0, 1].map((at) => [progress(at), result(1, { at })]),
    )
    await vi.waitFor(() =>
      expect(standing.map((it) => it.messages())).toEqual([0, 1].map((at) => [log(at), question(at)])),
    )
    await vi.waitFor(() =>
      expect(olds.map((it) => it.messages())).toEqual(
        [2, 3].map((at) => [progress(at), log(at), question(at), result(1, { at })]),
      ),
    )
  })

  test('answer only what they were asked themselves', async () => {
    const upstream = server()
    const { port } = await listen(upstream.open)
    const ids = [await session(port), await session(port)]
    upstream.wires[0]!.say({ id: 'q', method: 'roots/list' })
    const answer = (id: string, value: object) =>
      ask(port, { headers: { ...ours, 'mcp-session-id': id }, body: { jsonrpc: '2.0', id: 'q', result: value } })
    expect((await answer(ids[1]!, { stolen: true })).status).toBe(202)
    // Its stream is read, so that the question is not withdrawn.
    await open(port, { method: 'GET', headers: { ...event, 'mcp-session-id': ids[0]! } })
    expect((await answer(ids[0]!, { roots: [] })).status).toBe(202)
    await vi.waitFor(() => expect(upstream.wires[0]!.sent).toHaveLength(2))
    expect(upstream.wires.map(({ sent }) => sent.slice(1))).toEqual([
      [JSON.stringify({ jsonrpc: '2.0', id: 'q', result: { roots: [] } })],
      [],
    ])
  })

  test('take back only what is theirs', async () => {
    const upstream = server(({ method }) => (method === 'initialize' ? { result: {} } : undefined))
    const { port } = await listen(upstream.open)
    const ids = [await session(port), await session(port)]
    const headers = ids.map((id) => ({ ...ours, 'mcp-session-id': id }))
    const waiting = ask(port, { headers: headers[0]!, body: { jsonrpc: '2.0', id: 7, method: 'a' } })
    await vi.waitFor(() => expect(upstream.wires[0]!.sent).toHaveLength(2))
    await ask(port, { headers: headers[1]!, body: note('notifications/cancelled', { requestId: 7 }) })
    upstream.wires[0]!.say({ id: 7, result: { still: true } })
    expect(JSON.parse((await waiting).body)).toEqual(result(7, { still: true }))
    expect(upstream.wires[0]!.sent).toEqual([JSON.stringify(initialize()), '{"jsonrpc":"2.0","id":7,"method":"a"}'])
  })
})
