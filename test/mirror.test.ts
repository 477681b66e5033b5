import { describe, expect, it } from 'vitest'
import {
  argumentHeaders,
  declaredHeaders,
  decodeValue,
  encodeValue,
  isModernRevision,
  metadataHeaders,
  mismatch,
  modernVersion,
  paramHeaders,
  prefersStream,
} from '../src/mirror.js'
import { scan } from '../src/scan.js'
import { ToolHeaders } from '../src/tools.js'
import { modern, request } from './fixtures/http-server.js'
import { deferred } from './fixtures/played.js'

describe('encodeValue', () => {
  it.each([
    ['us-west1', 'us-west1'],
    ['a b\tc', 'a b\tc'],
    ['!~', '!~'],
    ['Hello, 世界', '=?base64?SGVsbG8sIOS4lueVjA==?='],
    [' padded ', '=?base64?IHBhZGRlZCA=?='],
    ['trailing\t', '=?base64?dHJhaWxpbmcJ?='],
    ['line1\nline2', '=?base64?bGluZTEKbGluZTI=?='],
    ['=?base64?literal?=', '=?base64?PT9iYXNlNjQ/bGl0ZXJhbD89?='],
    ['=?base64?open', '=?base64?open'],
    ['', '=?base64??='],
    ['\x7f', '=?base64?fw==?='],
  ])('%j', (value, encoded) => {
    expect(encodeValue(value)).toBe(encoded)
  })
})

describe('declaredHeaders', () => {
  const property = (type: unknown, name: unknown) => ({ type, 'x-mcp-header': name })

  it('finds what is reachable through properties, nested too', () => {
    const schema = {
      properties: {
        a: property('string', 'A'),
        nested: { type: 'object', properties: { b: property('integer', 'B'), c: property('boolean', 'C') } },
        plain: { type: 'string' },
      },
    }
    expect(declaredHeaders(schema)).toEqual([
      { name: 'A', path: ['a'] },
      { name: 'B', path: ['nested', 'b'] },
      { name: 'C', path: ['nested', 'c'] },
    ])
  })

  it.each([
    ['of an array', { properties: { a: { items: property('string', 'A') } } }],
    ['of a composition', { oneOf: [{ properties: { a: property('string', 'A') } }] }],
    ['of the root', property('string', 'A')],
    ['of no primitive', { properties: { a: property('object', 'A'), b: property(['string'], 'B') } }],
    [
      'that is no token',
      { properties: { a: property('string', 'A: x\r\n'), b: property('string', ''), c: property('string', 7) } },
    ],
    ['in no schema', null],
  ])('does not honour an annotation %s', (_name, schema) => {
    expect(declaredHeaders(schema)).toEqual([])
  })

  it('takes the first of two names that differ in case only', () => {
    expect(declaredHeaders({ properties: { a: property('string', 'Same'), b: property('string', 'SAME') } })).toEqual([
      { name: 'Same', path: ['a'] },
    ])
  })
})

describe('argumentHeaders', () => {
  const mirrored = (args: string | undefined, ...paths: string[][]) => {
    const member = args === undefined ? '' : `,"arguments":${args}`
    const frame = Buffer.from(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t"${member}}}`)
    return argumentHeaders(
      frame,
      scan(frame),
      paths.map((path) => ({ name: path.join('-'), path })),
    )
  }

  it('writes strings as they are, numbers in decimal, booleans in lower case', () => {
    const args = '{"s":"x","i":-7,"f":42.0,"t":true,"n":{"s":"ü"}}'
    expect(mirrored(args, ['s'], ['i'], ['f'], ['t'], ['n', 's'])).toEqual({
      'mcp-param-s': 'x',
      'mcp-param-i': '-7',
      'mcp-param-f': '42',
      'mcp-param-t': 'true',
      'mcp-param-n-s': '=?base64?w7w=?=',
    })
  })

  it('omits what is null, absent, no primitive, not safe, or inherited', () => {
    const args = '{"null":null,"list":[1],"big":9007199254740993,"huge":1e999}'
    const paths = [['null'], ['absent'], ['list'], ['big'], ['huge'], ['toString'], ['null', 'x'], ['__proto__', 'x']]
    expect(mirrored(args, ...paths)).toEqual({})
    expect(mirrored(undefined, ['s'])).toEqual({})
  })
})

describe('metadataHeaders', () => {
  const of = (frame: Buffer) => metadataHeaders(frame, scan(frame), '2026-07-28')

  it('mirrors method and name', () => {
    expect(of(modern(1, 'tools/call', { name: 'get weather' }))).toEqual({
      'mcp-protocol-version': '2026-07-28',
      'mcp-method': 'tools/call',
      'mcp-name': 'get weather',
    })
  })

  it('keeps a hostile name inside its header', () => {
    expect(of(modern(1, 'tools/call', { name: 'a\r\nX-Evil: 1' }))['mcp-name']).toBe('=?base64?YQ0KWC1FdmlsOiAx?=')
  })

  it('has no name where the method has none', () => {
    expect(of(modern(1, 'tools/list', { name: 'x' }))).not.toHaveProperty('mcp-name')
  })
})

describe('modernVersion', () => {
  it.each([
    [modern(1, 'ping'), '2026-07-28'],
    [request(1, 'ping'), undefined],
    [request(1, 'ping', { _meta: { progressToken: 1 } }), undefined],
    [request(1, 'ping', { _meta: { 'io.modelcontextprotocol/protocolVersion': 7 } }), undefined],
  ])('%#', (frame, version) => {
    expect(modernVersion(frame, scan(frame))).toBe(version)
  })
})

describe('decodeValue', () => {
  it.each([
    ['us-west1', 'us-west1'],
    ['=?base64?SGVsbG8sIOS4lueVjA==?=', 'Hello, 世界'],
    ['=?base64??=', ''],
    ['=?base64?SGVsbG8', '=?base64?SGVsbG8'],
    ['=?BASE64?SGVsbG8=?=', '=?BASE64?SGVsbG8=?='],
    ['SGVsbG8=?=', 'SGVsbG8=?='],
    ['=?base64?=', '=?base64?='],
    ['=?base64?SGVsbG8?=', undefined],
    ['=?base64?SGVs!G8=?=', undefined],
    ['caf\u00e9', undefined],
  ])('%j', (header, value) => {
    expect(decodeValue(header)).toBe(value)
  })

  it('undoes encodeValue', () => {
    for (const value of ['', ' ', 'a', 'é', '=?base64?x?=', '\n', '\u2028', '👋', '\t x \t']) {
      expect(decodeValue(encodeValue(value))).toBe(value)
    }
  })
})

describe('mismatch', () => {
  const of = (method: string, params: object) => {
    const frame = modern(1, method, params)
    return { frame, head: scan(frame) }
  }
  const declared = declaredHeaders({
    type: 'object',
    properties: {
      n: { type: 'integer', 'x-mcp-header': 'N' },
      text: { type: 'string', 'x-mcp-header': 'Text' },
      on: { type: 'boolean', 'x-mcp-header': 'On' },
      deep: { type: 'object', properties: { er: { type: 'string', 'x-mcp-header': 'Deeper' } } },
    },
  })
  const problem = (args: object, headers: Record<string, string>, name = 'a') => {
    const { frame, head } = of('tools/call', { name, arguments: args })
    const own = { 'mcp-protocol-version': '2026-07-28', 'mcp-method': 'tools/call', 'mcp-name': encodeValue(name) }
    return mismatch({ ...own, ...headers }, frame, head, declared)
  }

  it.each([
    ['nothing declared is given', {}, {}],
    ['null counts as not given', { n: null, text: null }, {}],
    [
      'the same',
      { n: 42, text: 'x', on: true },
      { 'mcp-param-n': '42', 'mcp-param-text': 'x', 'mcp-param-on': 'true' },
    ],
    ['numbers as numbers', { n: 42 }, { 'mcp-param-n': '42.0' }],
    ['a text that no header can carry', { text: 'é' }, { 'mcp-param-text': '=?base64?w6k=?=' }],
    ['what lies deeper', { deep: { er: 'x' } }, { 'mcp-param-deeper': 'x' }],
    ['one that nobody declared', {}, { 'mcp-param-other': 'x' }],
    ['a number that no header can carry', { n: 1e300 }, {}],
    ['what is no primitive', { text: { a: 1 } }, { 'mcp-param-text': 'x' }],
  ])('finds nothing: %s', (_what, args, headers) => {
    expect(problem(args, headers)).toBeUndefined()
  })

  it.each([
    ['missing', { n: 0 }, {}, 'expected a header mcp-param-n, got none'],
    ['without its value', {}, { 'mcp-param-n': '1' }, 'expected no header mcp-param-n: the body has no such value'],
    ['another number', { n: 42 }, { 'mcp-param-n': '43' }, 'the header mcp-param-n and the body differ'],
    ['no number', { n: 42 }, { 'mcp-param-n': '0x2a' }, 'the header mcp-param-n and the body differ'],
    [
      'a text that is like a number',
      { text: '42' },
      { 'mcp-param-text': '42.0' },
      'the header mcp-param-text and the body differ',
    ],
    ['other case', { text: 'x' }, { 'mcp-param-text': 'X' }, 'the header mcp-param-text and the body differ'],
  ])('finds one that is %s', (_what, args, headers, expected) => {
    expect(problem(args, headers as Record<string, string>)).toBe(expected)
  })

  it("lets an extension's own Mcp-Name pass, and that of tasks where it is (SEP-2663)", () => {
    const held = (method: string, params: object, name?: string) => {
      const { frame, head } = of(method, params)
      return mismatch({ 'mcp-protocol-version': '2026-07-28', 'mcp-method': method, 'mcp-name': name }, frame, head)
    }
    expect([
      held('x/y', {}, 'anything'),
      held('tasks/get', { taskId: 't' }),
      held('tasks/get', { taskId: 't' }, 't'),
      held('tasks/get', { taskId: 't' }, 'u'),
      held('resources/read', { uri: 'a' }),
      held('tools/call', {}),
    ]).toEqual([
      undefined,
      undefined,
      undefined,
      'the header mcp-name and the body differ',
      'expected a header mcp-name, got none',
      undefined,
    ])
  })
})

describe('what a client says by its headers', () => {
  it.each([
    ['2026-07-28', true],
    ['2027-01-01', true],
    ['2025-11-25', false],
    ['2026-7-28', false],
    ['nonsense', false],
    [undefined, false],
    [['2026-07-28'], false],
  ])('isModernRevision %j', (version, is) => {
    expect(isModernRevision(version)).toBe(is)
  })

  it.each([
    ['application/json, text/event-stream', false],
    ['text/event-stream, application/json', true],
    ['text/event-stream', false],
    ['*/*', false],
    [undefined, false],
  ])('prefersStream %j', (accept, prefers) => {
    expect(prefersStream({ accept })).toBe(prefers)
  })

  it('paramHeaders', () => {
    const came = { 'mcp-param-a': 'x', 'mcp-name': 'n', cookie: 'c', 'mcp-param-b': ['x', 'y'] }
    expect([paramHeaders(came), paramHeaders(undefined)]).toEqual([{ 'mcp-param-a': 'x' }, {}])
    expect(paramHeaders(came, [{ name: 'A', path: ['a'] }])).toEqual({})
  })
})

describe('ToolHeaders', () => {
  const page = (tools: unknown[], nextCursor?: string) =>
    Buffer.from(JSON.stringify({ jsonrpc: '2.0', id: 1, result: { tools, nextCursor } }))
  const tool = (name: string) => ({
    name,
    inputSchema: { properties: { a: { type: 'string', 'x-mcp-header': name } } },
  })

  it('asks once for all who wait, and not again for a tool that is not listed', async () => {
    const tools = new ToolHeaders()
    const asked: (string | undefined)[] = []
    const ask = async (cursor: string | undefined) => {
      asked.push(cursor)
      return cursor === undefined ? page([tool('A')], 'next') : page([tool('B')])
    }
    expect(await Promise.all([tools.of('A', ask), tools.of('B', ask), tools.of('C', ask)])).toEqual([
      [{ name: 'A', path: ['a'] }],
      [{ name: 'B', path: ['a'] }],
      [],
    ])
    expect(await tools.of('C', ask)).toEqual([])
    expect(asked).toEqual([undefined, 'next'])
  })

  it("asks again where a round failed, at once where it was somebody else's", async () => {
    const tools = new ToolHeaders()
    const others = deferred<Buffer>()
    const leaving = tools.of('A', () => others.promise)
    const staying = tools.of('A', async () => page([tool('A')]))
    others.reject(new Error('gone'))
    await leaving
    expect(await staying).toEqual([{ name: 'A', path: ['a'] }])
  })

  it('lives with a server that refuses, lists nonsense, or never ends its list', async () => {
    const tools = new ToolHeaders()
    let pages = 0
    expect(await tools.of('a', () => Promise.reject(new Error('no')))).toEqual([])
    expect(await tools.of('b', async () => page([null, 7, { name: 'b' }]))).toEqual([])
    expect(await tools.of('c', async () => Buffer.from('nonsense'))).toEqual([])
    expect(
      await tools.of('d', async () => {
        pages += 1
        return page([], 'again')
      }),
    ).toEqual([])
    expect(pages).toBe(100)
  })
})
