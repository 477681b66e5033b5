import { describe, expect, test, vi } from 'vitest'
import { ask, initialize, invalidRequest, listen, modern, ours, server, session, sse, told } from './helpers.js'

const known = ['jsonrpc', 'id', 'method', 'params'] as const
const values: Record<(typeof known)[number], string> = {
  jsonrpc: '"2.0"',
  id: '1',
  method: '"ping"',
  params: '{"name":"b"}',
}
const message = (...more: string[]) => `{${[...known.map((name) => `"${name}":${values[name]}`), ...more].join(',')}}`

/** Names that some parser takes for `name`. */
function spellings(name: string): string[] {
  const upper = name.toUpperCase()
  const title = `${upper[0]}${name.slice(1)}`
  const escaped = (it: string) => `\\u${it.charCodeAt(0).toString(16).padStart(4, '0')}`
  const found = [name, upper, title, `${name.slice(0, -1)}${upper.at(-1)}`]
  found.push(`${escaped(name)}${name.slice(1)}`, `${escaped(upper)}${name.slice(1)}`, [...name].map(escaped).join(''))
  found.push(`${name}\\u0000`, `${name}\\u0000x`, `\\u0000${name}`, `${name[0]}\\u0000${name.slice(1)}`)
  if (name.includes('s')) found.push(name.replace('s', 'ſ'), name.replace('s', '\\u017f'))
  if (name.includes('i')) found.push(name.replace('i', 'ı'), name.replace('i', '\\u0130'))
  return found
}

/** What is wrong with a message, by its own text, and its id where every reader takes it for the request of that id. */
const ambiguous: [text: string, member: string, id: number | undefined][] = []
for (const name of [...known, 'result', 'error'] as const) {
  const value = name === 'result' || name === 'error' ? '{}' : values[name]
  for (const spelling of spellings(name)) {
    const isPlain = decoded(spelling) === name
    // One alone that is spelled as it should be is no question.
    if (isPlain && (name === 'result' || name === 'error')) continue
    const text = message(`"${spelling}":${value}`)
    const isRequest = name !== 'id' && name !== 'result' && name !== 'error'
    ambiguous.push([text, `ambiguous member "${name}"`, isRequest ? 1 : undefined])
  }
}
for (const name of ['name', 'uri', 'arguments', '_meta']) {
  for (const spelling of spellings(name)) {
    const params = `{"${name}":{},"${spelling}":{}}`
    const text = `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":${params}}`
    ambiguous.push([text, `ambiguous member "${name}" in params`, 1])
    if (decoded(spelling) === name) continue
    // Alone it hides from one reader what another one sees.
    const alone = `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"${spelling}":{}}}`
    ambiguous.push([alone, `ambiguous member "${name}" in params`, 1])
  }
}

function decoded(spelling: string): string {
  return JSON.parse(`"${spelling}"`) as string
}

async function proxied() {
  const upstream = server()
  const proxy = await listen(upstream.open)
  const headers = { ...ours, 'mcp-session-id': await session(proxy.port) }
  /** What the upstream has heard since. */
  const since = () => upstream.heard().slice(1)
  return { ...proxy, upstream, headers, since }
}

describe('what two readers would read differently is a 400, and no upstream hears it', () => {
  test('in a session', async () => {
    const { port, headers, since } = await proxied()
    const found: Record<string, unknown> = {}
    for (const [text] of ambiguous) found[text] = told(await ask(port, { headers, body: text }))
    const expected = ambiguous.map(([text, problem, id]) => [text, { status: 400, body: invalidRequest(problem, id) }])
    expect(found).toEqual(Object.fromEntries(expected))
    expect(Object.keys(found).length).toBeGreaterThan(100)
    expect(since()).toEqual([])
  })

  test('as a handshake', async () => {
    const upstream = server()
    const { port, app } = await listen(upstream.open)
    for (const [text, problem, id] of ambiguous) {
      const body = text.replaceAll('"ping"', '"initialize"')
      expect(told(await ask(port, { body }))).toEqual({ status: 400, body: invalidRequest(problem, id) })
    }
    expect(upstream.wires).toEqual([])
    expect(app.stats().sessions).toBe(0)
  })

  test('as a modern request', async () => {
    const upstream = server()
    const { port } = await listen(upstream.open)
    const meta = JSON.stringify(modern(1, 'ping').body.params._meta)
    for (const [text, problem, id] of ambiguous) {
      if (problem.includes('_meta')) continue
      const body = text.replace('"params":{', `"params":{"_meta":${meta},`)
      const { headers } = modern(1, text.includes('tools/call') ? 'tools/call' : 'ping')
      expect(told(await ask(port, { headers, body }))).toEqual({ status: 400, body: invalidRequest(problem, id) })
    }
    expect(upstream.wires).toEqual([])
  })

  test('over HTTP+SSE it is an error on the stream', async () => {
    const upstream = server()
    const { port } = await listen(upstream.open)
    const stream = await sse(port)
    for (const [text] of ambiguous) {
      expect((await ask(port, { path: stream.endpoint, body: text })).status).toBe(202)
    }
    await vi.waitFor(() => expect(stream.messages()).toHaveLength(ambiguous.length))
    // There it stands alone: whose it is, is told wherever the id itself is in no doubt.
    const idOf = (problem: string) => (problem === 'ambiguous member "id"' ? undefined : 1)
    expect(stream.messages()).toEqual(ambiguous.map(([, problem]) => invalidRequest(problem, idOf(problem))))
    expect(upstream.heard()).toEqual([])
  })

  test('as an answer or a notification: nothing of the session is used up', async () => {
    const { port, headers, since, upstream } = await proxied()
    upstream.wires[0]!.say({ id: 'q', method: 'roots/list' })
    for (const text of [
      '{"jsonrpc":"2.0","id":"q","result":{},"result":{"a":1}}',
      '{"jsonrpc":"2.0","id":"q","result":{},"Result":{}}',
      '{"jsonrpc":"2.0","id":"q","result":{},"error":{"code":1,"message":""}}',
      '{"jsonrpc":"2.0","id":"q","ID":"other","result":{}}',
      '{"jsonrpc":"2.0","method":"a","method":"notifications/cancelled"}',
      '{"jsonrpc":"2.0","method":"a","Params":{}}',
      '{"jsonrpc":"2.0","method":"a","result":{}}',
    ]) {
      const reply = await ask(port, { headers, body: text })
      expect(reply.status).toBe(400)
      expect(JSON.parse(reply.body)).toEqual({
        jsonrpc: '2.0',
        error: { code: -32600, message: expect.stringMatching(/^Invalid request: (ambiguous member|both )/) },
      })
    }
    expect(since()).toEqual([])
    const answer = '{"jsonrpc":"2.0","id":"q","result":{}}'
    await ask(port, { headers, body: answer })
    await vi.waitFor(() => expect(since()).toEqual([answer]))
  })
})

test('what nobody reads differently passes as it was written', async () => {
  const { port, headers, since } = await proxied()
  const texts = [
    message('"x":1', '"x":2', '"X":3'),
    message('"ids":1', '"metho":2', '"params_":3', '" id":4', '"i d":5'),
    '{"jsonrpc":"2.0","id":1,"method":"a","params":{"x":1,"x":2,"names":1,"id":1,"ID":2,"Method":"b"}}',
    '{"jsonrpc":"2.0","id":1,"method":"a","params":{"arguments":{"name":1,"Name":2,"name":3,"a\\u0000":4}}}',
    '{"jsonrpc":"2.0","id":1,"method":"a","params":[{"name":1,"name":2}]}',
    '{"\\u0069d":1,"\\u006aso\\u006erpc":"2.0","m\\u0065thod":"a"}',
  ]
  for (const body of texts) expect((await ask(port, { headers, body })).status).toBe(200)
  expect(since()).toEqual(texts)
})

describe('what is no message is a 400', () => {
  const parse = expect.stringMatching(/^Parse error: /)
  test.each<[string, string | Buffer, number, unknown, unknown]>([
    ['nothing', '', -32700, parse, undefined],
    ['white space', ' \n', -32700, parse, undefined],
    ['half of one', '{"jsonrpc":"2.0","id":1,', -32700, parse, undefined],
    [
      'two of them',
      '{"jsonrpc":"2.0","id":1,"method":"a"}{"jsonrpc":"2.0","id":2,"method":"a"}',
      -32700,
      parse,
      undefined,
    ],
    [
      'two lines',
      '{"jsonrpc":"2.0","id":1,"method":"a"}\n{"jsonrpc":"2.0","id":2,"method":"a"}',
      -32700,
      parse,
      undefined,
    ],
    ['a comma too many', '{"jsonrpc":"2.0","id":1,"method":"a",}', -32700, parse, undefined],
    ['a comment', '{"jsonrpc":"2.0",/* */"id":1,"method":"a"}', -32700, parse, undefined],
    ['single quotes', "{'jsonrpc':'2.0','id':1,'method':'a'}", -32700, parse, undefined],
    ['NaN', '{"jsonrpc":"2.0","id":NaN,"method":"a"}', -32700, parse, undefined],
    ['a number with a zero', '{"jsonrpc":"2.0","id":01,"method":"a"}', -32700, parse, undefined],
    ['a raw line break in a text', '{"jsonrpc":"2.0","id":1,"method":"a\nb"}', -32700, parse, undefined],
    ['a raw NUL', '{"jsonrpc":"2.0","id":1,"method":"a"}\0', -32700, parse, undefined],
    ['another encoding', Buffer.from('{"jsonrpc":"2.0","id":1,"method":"a"}', 'utf16le'), -32700, parse, undefined],
    [
      'bytes that are no UTF-8',
      Buffer.from('{"jsonrpc":"2.0","id":1,"method":"\xe9"}', 'latin1'),
      -32700,
      parse,
      undefined,
    ],
    [
      'an overlong slash',
      Buffer.from('{"jsonrpc":"2.0","id":1,"method":"\xc0\xaf"}', 'latin1'),
      -32700,
      parse,
      undefined,
    ],
    [
      'a surrogate in UTF-8',
      Buffer.from('{"jsonrpc":"2.0","id":1,"method":"\xed\xa0\x80"}', 'latin1'),
      -32700,
      parse,
      undefined,
    ],
    ['a text', '"a"', -32600, 'Invalid request: expected an object', undefined],
    ['null', 'null', -32600, 'Invalid request: expected an object', undefined],
    ['an empty batch', '[]', -32600, 'Invalid request: empty batch', undefined],
    ['an empty object', '{}', -32600, 'Invalid request: expected jsonrpc "2.0"', undefined],
    ['version 1.0', '{"jsonrpc":"1.0","id":1,"method":"a"}', -32600, 'Invalid request: expected jsonrpc "2.0"', 1],
    [
      'a version that is a number',
      '{"jsonrpc":2.0,"id":1,"method":"a"}',
      -32600,
      'Invalid request: expected jsonrpc "2.0"',
      1,
    ],
    [
      'an id of null',
      '{"jsonrpc":"2.0","id":null,"method":"a"}',
      -32600,
      'Invalid request: expected an id that is a string or a number',
      undefined,
    ],
    [
      'an id that is an object',
      '{"jsonrpc":"2.0","id":{},"method":"a"}',
      -32600,
      'Invalid request: expected an id that is a string or a number',
      undefined,
    ],
    [
      'an id that is true',
      '{"jsonrpc":"2.0","id":true,"method":"a"}',
      -32600,
      'Invalid request: expected an id that is a string or a number',
      undefined,
    ],
    [
      'a method that is none',
      '{"jsonrpc":"2.0","id":1,"method":["a"]}',
      -32600,
      'Invalid request: expected a method that is a string',
      1,
    ],
  ])('%s', async (_name, body, code, text, id) => {
    const { port, headers, since } = await proxied()
    const expected = { jsonrpc: '2.0', ...(id !== undefined && { id }), error: { code, message: text } }
    expect(told(await ask(port, { headers, body }))).toEqual({ status: 400, body: expected })
    expect(since()).toEqual([])
  })
})

describe('a batch', () => {
  const ping = (id: number) => `{"jsonrpc":"2.0","id":${id},"method":"ping"}`

  test('is looked at one by one', async () => {
    const { port, headers, since } = await proxied()
    for (const [text, problem, id] of ambiguous) {
      const reply = await ask(port, { headers, body: `[${ping(7)},${text},${ping(8)}]` })
      const { status, body } = told(reply) as { status: number; body: unknown[] }
      expect(status).toBe(200)
      const answers = [
        invalidRequest(problem, id),
        { jsonrpc: '2.0', id: 7, result: {} },
        { jsonrpc: '2.0', id: 8, result: {} },
      ]
      expect(body).toHaveLength(3)
      expect(body).toEqual(expect.arrayContaining(answers))
    }
    expect(since()).toEqual(ambiguous.flatMap(() => [ping(7), ping(8)]))
  })

  test('of nothing but such is answered by nothing but errors', async () => {
    const { port, headers, since } = await proxied()
    const body = `[1,null,[],"a",${message('"id":2')},[${ping(1)}]]`
    const reply = await ask(port, { headers, body })
    const object = invalidRequest('expected an object')
    expect(told(reply)).toEqual({
      status: 200,
      body: [object, object, object, object, invalidRequest('ambiguous member "id"'), object],
    })
    expect(since()).toEqual([])
  })

  test('that is no JSON is refused as a whole', async () => {
    const { port, headers, since } = await proxied()
    for (const body of [`[${ping(1)},`, `[${ping(1)} ${ping(2)}]`, `[${ping(1)}]]`, `[${ping(1)},]`]) {
      expect(told(await ask(port, { headers, body }))).toMatchObject({ status: 400, body: { error: { code: -32700 } } })
    }
    expect(since()).toEqual([])
  })

  test('has each id once', async () => {
    const { port, headers, since } = await proxied()
    const reply = await ask(port, { headers, body: `[${ping(1)},${ping(1)}]` })
    const { status, body } = told(reply) as { status: number; body: unknown[] }
    expect([status, body.length]).toEqual([200, 2])
    expect(body).toEqual(
      expect.arrayContaining([{ jsonrpc: '2.0', id: 1, result: {} }, invalidRequest('id 1 is in use', 1)]),
    )
    expect(since()).toEqual([ping(1)])
  })

  test('neither makes a session nor is a modern request', async () => {
    const upstream = server()
    const { port } = await listen(upstream.open)
    const { headers, body } = modern(1, 'ping')
    const inBatch = await ask(port, { body: [initialize(1)] })
    expect(told(inBatch)).toEqual({ status: 400, body: invalidRequest('initialize must not be part of a batch') })
    expect(told(await ask(port, { headers, body: [body] }))).toEqual({
      status: 400,
      body: invalidRequest('expected one message, got a batch'),
    })
    expect(upstream.wires).toEqual([])
  })
})
