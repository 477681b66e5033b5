import { PassThrough } from 'node:stream'
import { type Application, glob } from 'open-mcp-proxy'
import { describe, expect, test } from 'vitest'
import { type AuthOptions, auth } from '../../middleware/auth.js'
import { authorize } from '../../middleware/authorize.js'
import { logger } from '../../middleware/logger.js'
import { metrics } from '../../middleware/metrics.js'
import { record } from '../../middleware/record.js'
import { toolFilter } from '../../middleware/toolFilter.js'
import { trace } from '../../middleware/trace.js'
import { hasTwins, isAlike } from '../../src/alike.js'
import { EventReader } from '../../src/events.js'
import { LineReader } from '../../src/lines.js'
import { accepts, isJson } from '../../src/listener/body.js'
import { Guard } from '../../src/listener/guard.js'
import { parseEventId } from '../../src/listener/resumable.js'
import { LogRelay, printable } from '../../src/log.js'
import { elementsOfBatch, Message } from '../../src/message.js'
import { decodeValue, encodeValue } from '../../src/mirror.js'
import { peek, Refusal, scan } from '../../src/scan.js'
import { AUDIENCE, bearer, issuer } from '../fixtures/issuer.js'
import { joined, turnOfLoop } from '../fixtures/played.js'
import { listen, modern, ours, raw, server } from './helpers.js'

const SIZE = 10_000
/** So often what an honest input of this size costs. */
const MOST = 100

const filled = (unit: string, size = SIZE) => unit.repeat(Math.ceil(size / unit.length))
const list = (unit: string) => `[${filled(`${unit},`)}${unit}]`
const around = (open: string, close: string, levels: number, inside = '') =>
  open.repeat(levels) + inside + close.repeat(levels)
const numbered = (unit: (at: number) => string) => {
  const found: string[] = []
  for (let size = 0, at = 0; size < SIZE; at++) size += found[found.push(unit(at)) - 1]!.length + 1
  return found.join(',')
}

/** JSON that an honest peer writes. */
const honestValue = list(
  '{"title":"A report of the year","path":"/srv/docs/report.md","lines":[1,2.5,30],"done":true,"by":null}',
)

/** JSON, or nearly, that is to be dear. Some of it is nested deeper than is taken, and some is none. */
const values: Record<string, string> = {
  'arrays that never end': filled('['),
  'arrays in arrays': around('[', ']', SIZE / 2),
  'objects in objects': around('{"a":', '}', SIZE / 6, '1'),
  'as deep as may be, again and again': list(around('[', ']', 500)),
  'objects as deep as may be': list(around('{"a":', '}', 500, '1')),
  'empty arrays': list('[]'),
  'empty objects': list('{}'),
  'empty texts': list('""'),
  ones: list('1'),
  'many keys': `{${numbered((at) => `"k${at}":1`)}}`,
  'one key again and again': `{${numbered(() => '"a":1')}}`,
  'empty keys': `{${numbered(() => '"":1')}}`,
  'keys that are numbers': `{${numbered((at) => `"${1e9 - at}":1`)}}`,
  'keys in escapes': `{${numbered(() => '"\\u0061":1')}}`,
  'keys that some take for others': `{${numbered((at) => `"${at % 2 ? 'Name' : 'name\\u0000'}":1`)}}`,
  'keys of every object': `{${numbered((at) => (at % 2 ? '"__proto__":{}' : '"constructor":{}'))}}`,
  'one long key': `{"${filled('k')}":1}`,
  'a long number': filled('1'),
  'a long fraction': `0.${filled('1')}`,
  'a long exponent': `1e${filled('9')}`,
  'zeros and an exponent': `0.${filled('0')}1e-${filled('9', 10)}`,
  'long numbers': list('-1234567890.1234567890e-300'),
  'numbers that no double holds': list('9007199254740993'),
  'a long text': `"${filled('a')}"`,
  'escapes of Unicode': `"${filled('\\u0000')}"`,
  'halves of characters': `"${filled('\\ud800')}"`,
  'escaped backslashes': `"${filled('\\\\')}"`,
  'escaped quotes': `"${filled('\\"')}"`,
  'a text that never ends': `"${filled('\\"')}`,
  'a backslash at the end': `"${filled('a')}\\`,
  'white space': filled(' '),
  'line breaks': `[${filled('\r\n')}1]`,
  'white space between all': list(' \t1\r\n '),
  'white space in a text': `"${filled(' ')}"`,
  'controls of a terminal': `"${filled('\\u001b[2J')}"`,
  'marks that turn text around': `"${filled('\u202e')}"`,
  'NULs as they are': `"${filled('\0')}"`,
  'text of four bytes': `"${filled('\u{1f600}')}"`,
  'JSON in a text': JSON.stringify(around('[', ']', SIZE / 2)),
  'JSON in texts in JSON': Array.from({ length: 12 }).reduce<string>((text) => JSON.stringify([text]), '"a"'),
  'what looks like secrets': `"${filled('eyJ-')}"`,
  'what looks like keys': `"${filled('-----BEGIN ')}"`,
  'what looks like credentials': `"${filled('://a:')}"`,
  'what looks like a bearer': `"Bearer ${filled(' ')}"`,
}

/** Where in a message it stands. */
const places: Record<string, (value: string) => string> = {
  arguments: (it) => `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":${it}}}`,
  params: (it) => `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":${it}}`,
  _meta: (it) => `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","_meta":${it}}}`,
  'a name': (it) => `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":${it}}}`,
  'a method': (it) => `{"jsonrpc":"2.0","id":1,"method":${it},"params":{}}`,
  'an id': (it) => `{"jsonrpc":"2.0","id":${it},"method":"tools/call","params":{"name":"a"}}`,
  'a token': (it) => `{"jsonrpc":"2.0","id":1,"method":"a","params":{"_meta":{"progressToken":${it}}}}`,
  'a result': (it) => `{"jsonrpc":"2.0","id":1,"result":${it}}`,
  'a batch': (it) => `[${it}]`,
  'the message': (it) => it,
  'members of the message': (it) => `{"jsonrpc":"2.0","id":1,"method":"a",${it.replace(/^[[{]|[\]}]$/g, '')}}`,
}

const honest = places.arguments!(honestValue)
const hostile = Object.fromEntries(
  Object.entries(places).flatMap(([place, put]) =>
    Object.entries(values).map(([name, value]) => [`${name} as ${place}`, put(value)]),
  ),
)

/** The least milliseconds of the processor's that it has taken: what else the machine does can only add. */
async function least(run: () => unknown, tries: number, times = 1): Promise<number> {
  let best = Number.POSITIVE_INFINITY
  for (let count = 0; count < tries; count++) {
    const before = process.cpuUsage()
    for (let time = 0; time < times; time++) {
      const done = run()
      if (done instanceof Promise) await done
    }
    const { user, system } = process.cpuUsage(before)
    best = Math.min(best, (user + system) / 1_000 / times)
  }
  return best
}

/** Those inputs that cost too much, and how often what the honest one does. */
async function dear<Input>(run: (input: Input) => unknown, common: Input, inputs: Record<string, Input>) {
  // The first ones are run while the code is not yet compiled.
  const first = await least(() => run(common), 50)
  const base = await least(() => run(common), 20, Math.max(1, Math.ceil(0.5 / first)))
  const found: string[] = []
  let most: [times: number, name: string] = [0, '']
  for (const [name, input] of Object.entries(inputs)) {
    let cost = await least(() => run(input), 2)
    // What is said to be dear has more tries to prove that it is not.
    for (let tries = 0; tries < 3 && cost > (MOST / 4) * base; tries++)
      cost = Math.min(cost, await least(() => run(input), 5))
    if (cost > most[0] * base) most = [cost / base, name]
    if (cost > MOST * base) found.push(`${name}: ${Math.round(cost / base)} times`)
  }
  if (process.env.COSTS) console.log(`${base.toFixed(4)} ms, at most ${most[0].toFixed(1)} times that: ${most[1]}`)
  return found
}

function refusable(run: (bytes: Buffer) => unknown) {
  return (bytes: Buffer) => {
    try {
      // Whoever has just looked at a frame knows it again: each try has one of its own.
      run(bytes.subarray())
    } catch (error) {
      if (!(error instanceof Refusal || error instanceof TypeError)) throw error
    }
  }
}

const bytesOf = (texts: Record<string, string>) =>
  Object.fromEntries(Object.entries(texts).map(([name, text]) => [name, Buffer.from(text)]))

describe('10 KB cost no hundred times as much as honest 10 KB do', () => {
  const frames = {
    ...bytesOf(hostile),
    'a batch of 5,000 ones': Buffer.from(list('1')),
    'a batch of messages': Buffer.from(list('{"jsonrpc":"2.0","method":"a"}')),
    'no UTF-8 at its end': Buffer.concat([Buffer.from(honest), Buffer.of(0xff)]),
    'no UTF-8 at all': Buffer.alloc(SIZE, 0xc3),
    NULs: Buffer.alloc(SIZE),
    'byte order marks': Buffer.from(filled('\ufeff')),
  }

  test('to be scanned', async () => {
    expect(await dear(refusable(scan), Buffer.from(honest), frames)).toEqual([])
  })

  test('to be guessed at, where they are too long to be read', async () => {
    expect(await dear(refusable(peek), Buffer.from(honest), frames)).toEqual([])
  })

  test('to be taken apart as a batch', async () => {
    const run = refusable((bytes) => {
      for (const it of elementsOfBatch(bytes) ?? [bytes]) refusable(scan)(it as Buffer)
    })
    expect(await dear(run, Buffer.from(`[${honest}]`), frames)).toEqual([])
  })

  test('to be changed by a middleware', async () => {
    const run = refusable((bytes) => {
      const message = new Message(bytes)
      const value = message.value as { params?: Record<string, unknown>; result?: Record<string, unknown> }
      const part = value.params ?? value.result
      if (typeof part !== 'object' || part === null) return
      part.added = 1
      const inner = part.arguments ?? part._meta
      if (typeof inner === 'object' && inner !== null) Object.assign(inner, { added: 1 })
      message.changed()
    })
    expect(await dear(run, Buffer.from(honest), frames)).toEqual([])
  })

  test('to be told apart from what looks alike', async () => {
    const path = ['params', 'arguments', 'a', 'name']
    const texts = Object.fromEntries(
      Object.entries(hostile).filter(([, text]) => {
        try {
          scan(Buffer.from(text))
          return true
        } catch {
          return false
        }
      }),
    )
    expect(await dear((text) => hasTwins(text, ...path), honest, texts)).toEqual([])
    const keys = {
      NULs: filled('\0'),
      İ: filled('İ'),
      ß: filled('ß'),
      capitals: filled('NAME'),
      'a NUL': `name\0${filled('x')}`,
    }
    expect(await dear((key) => isAlike(key, 'name'), filled('a report of the year '), keys)).toEqual([])
  })

  const streams: Record<string, string> = {
    'empty lines': filled('\n'),
    'carriage returns': filled('\r'),
    'line breaks': filled('\r\n'),
    colons: filled(':\n'),
    comments: filled(': x\n'),
    'empty data': filled('data:\n'),
    'events of nothing': filled('data\n\n'),
    'events of a character': filled('data:x\n\n'),
    ids: filled('id:1\n'),
    'ids with NUL': filled('id:\0\n'),
    types: filled('event:x\n'),
    times: filled('retry:1\n'),
    'a long time': `retry:${filled('1')}\n\n`,
    'a long id': `id:${filled('1')}\n\n`,
    'fields without a name': filled('x\n'),
    'a long name': `${filled('x')}\n\n`,
    'a line that never ends': filled('data:'),
    'byte order marks': filled('\ufeff\n'),
  }
  const said = `id: 1\nevent: message\ndata: ${honest}\n\n`
  const read = (text: Buffer, step: number) => {
    const reader = new EventReader({ onEvent: () => {}, onComment: () => {}, onRetry: () => {}, onTooLarge: () => {} })
    for (let at = 0; at < text.length; at += step) reader.push(text.subarray(at, at + step))
    reader.end()
  }
  const lines = (text: Buffer, step: number) => {
    const reader = new LineReader({ maxBytes: 5_000, onLine: () => {}, onOversize: () => {}, onRunaway: () => {} })
    for (let at = 0; at < text.length; at += step) reader.push(text.subarray(at, at + step))
    reader.end()
  }

  test('as an event stream, however it is cut', async () => {
    // Of like many lines: each is a line to be told of.
    const common = Buffer.from(filled(`data: {"jsonrpc":"2.0"}\n\n`))
    for (const step of [SIZE * 2, 7, 1])
      expect(await dear((it) => read(it, step), common, bytesOf(streams))).toEqual([])
    expect(await dear((it) => read(it, 1), Buffer.from(said), bytesOf(streams))).toEqual([])
  })

  test('as lines of a child, however they are cut', async () => {
    const common = Buffer.from(filled('{"jsonrpc":"2.0"}\n'))
    const texts = bytesOf({ ...streams, ...hostile })
    for (const step of [SIZE * 2, 1]) {
      const some = step === 1 ? bytesOf(streams) : texts
      expect(await dear((it) => lines(it, step), common, some)).toEqual([])
    }
  })

  const signs: Record<string, string> = {
    escapes: filled('\u001b[2J'),
    NULs: filled('\0'),
    'carriage returns': filled('\r'),
    'line breaks': filled('\r\n'),
    'line feeds': filled('\n'),
    'marks that turn text around': filled('\u202e'),
    'halves of tags': filled('\u{e0001}'),
    separators: filled('\u2028'),
    spaces: filled(' '),
  }

  test('in a log', async () => {
    const common = filled('INFO: a line of a log in plain words, é\n')
    expect(await dear((text) => printable(Buffer.from(text)), common, signs)).toEqual([])
    const sink = new PassThrough().resume()
    const relay = new LogRelay(sink)
    const push = (text: string) => {
      relay.push(Buffer.from(text))
      relay.end()
    }
    expect(await dear(push, common, signs)).toEqual([])
  })

  const words: Record<string, string> = {
    ...signs,
    commas: filled(','),
    'commas and spaces': filled(' , '),
    spaces: `a${filled(' ')}b`,
    semicolons: filled(';'),
    'any type': filled('*/*,'),
    brackets: filled('['),
    'brackets and colons': `[${filled(':')}`,
    dots: filled('.'),
    slashes: filled('/'),
    'at signs': filled('@'),
    'a long host': `${filled('a')}:1`,
    'a long port': `localhost:${filled('1')}`,
    'an origin of a long host': `http://${filled('a.')}`,
    'an origin with many users': `http://${filled('a@')}localhost`,
    'an origin of international names': `http://${filled('ü.')}`,
    'an origin of IPv6': `http://[${filled('0:')}]`,
    'an origin of a number': `http://${filled('1')}`,
    'percent signs': filled('%25'),
    'equals signs': filled('='),
    'Base64 of nothing': `=?base64?${filled('=')}?=`,
    Base64: `=?base64?${filled('AAAA')}?=`,
    'Base64 that never ends': `=?base64?${filled('?')}`,
    bearers: filled('Bearer '),
    'a bearer of spaces': `Bearer ${filled(' ')}x`,
    'a bearer of dots': `Bearer ${filled('.')}`,
    'a token of 10 KB': `Bearer ${filled('a')}`,
    dashes: filled('-'),
    digits: filled('1'),
  }

  test('as a header', async () => {
    const guard = new Guard({ hosts: new Set(['localhost']), origins: new Set(['https://a.example']) })
    const common = filled('application/json, text/event-stream, ')
    for (const name of ['host', 'origin', 'x-any']) {
      const turn = (value: string) =>
        guard.turn({ headers: { host: 'localhost', [name]: value }, rawHeaders: ['A', value] })
      expect(await dear(turn, common, words)).toEqual([])
    }
    expect(await dear((it) => accepts(it, 'application/json', 'text/html'), common, words)).toEqual([])
    expect(await dear((it) => isJson(it), `application/json; a=${common}`, words)).toEqual([])
    expect(await dear((it) => decodeValue(it), common, words)).toEqual([])
    expect(await dear((it) => encodeValue(it), common, words)).toEqual([])
    // Honest ones are short.
    const times = (text: string) => Array.from({ length: 500 }, () => parseEventId(text))
    expect(await dear(times, '1-1234567890', words)).toEqual([])
    const many = (count: number, name: (at: number) => string) =>
      Array.from({ length: count }, (_, at) => [name(at), 'x']).flat()
    const heads = {
      same: many(2_000, () => 'X-A'),
      different: many(2_000, (at) => `X-${at}`),
      mcp: many(2_000, (at) => `Mcp-${at}`),
    }
    const turn = (rawHeaders: string[]) => guard.turn({ headers: { host: 'localhost' }, rawHeaders })
    expect(
      await dear(
        turn,
        many(100, (at) => `X-Header-${at}`),
        heads,
      ),
    ).toEqual([])
  })

  test('as a credential', async () => {
    const from = await issuer()
    const jwks = { keys: [from.key.jwk] }
    const jwt = { issuer: from.url, audience: AUDIENCE, jwks }
    const json = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url')
    const header = json({ alg: 'ES256', kid: 'first' })
    const tokens = {
      ...words,
      'a JWT of 10 KB': `Bearer ${await from.sign({ x: filled('x') })}`,
      'a JWT of nested claims': `Bearer ${header}.${Buffer.from(around('[', ']', 3_500)).toString('base64url')}.AAAA`,
      'a JWT of a nested header': `Bearer ${Buffer.from(around('{"a":', '}', 1_200, '1')).toString('base64url')}.AAAA.AAAA`,
      'a JWT of many claims': `Bearer ${await from.sign(Object.fromEntries(Array.from({ length: 700 }, (_, at) => [`k${at}`, at])))}`,
      'a JWT of many scopes': `Bearer ${await from.sign({ scope: filled('a ') })}`,
      'a JWT of many audiences': `Bearer ${await from.sign({ aud: Array(3_000).fill('a') })}`,
      'a JWT of a long key id': `Bearer ${await from.sign({}, { header: { kid: filled('k') } })}`,
      'a JWT of a long signature': `Bearer ${header}.${header}.${filled('A')}`,
    }
    const token = `Bearer ${await from.sign()}`
    const ways: AuthOptions[] = [
      { jwt },
      { jwt, tokens: [{ token: 'x', id: 'x' }], apiKeys: [{ hash: '0'.repeat(64), id: 'y' }], scopes: ['a'] },
    ]
    for (const way of ways) {
      const { admit } = auth(way) as unknown as { admit(request: object): Promise<unknown> }
      const run = (authorization: string) => admit({ method: 'POST', url: '/mcp', headers: { authorization } })
      expect(await dear(run, token, tokens)).toEqual([])
    }
  })

  test('as a name before a pattern', async () => {
    const names: Record<string, string> = { a: filled('a'), ab: filled('ab'), 'file:/': filled('file:/'), ...words }
    for (const patterns of [['*'], ['*a*a*a*b'], ['get_*', '{list,find}_*', '*.md'], ['?*?*?x'], ['*aaaaaaaab']]) {
      expect(await dear(glob(...patterns), filled('a report of the year '), names)).toEqual([])
    }
  })
})

describe('10 KB cost no hundred times as much as honest 10 KB do, to walk a line with', () => {
  const rules = [
    { users: ['ada'], tools: ['*a*'], resources: ['file:///srv/**', 'notes://{a,b}/*'] },
    { scopes: ['x'], prompts: ['*'], resources: ['*'] },
    { tools: ['*'], resources: ['file:///srv/*', '*a*b*c*'] },
  ]
  const uri = (text: string, times = 1) => {
    const uris = JSON.stringify(Array.from({ length: times }, () => text.slice(0, Math.floor(SIZE / times))))
    return `{"jsonrpc":"2.0","id":1,"method":"subscriptions/listen","params":{"notifications":{"resourceSubscriptions":${uris}}}}`
  }
  const read = (text: string) =>
    `{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":${JSON.stringify(text.slice(0, 2_000))}}}`
  const parts: Record<string, string> = {
    'percent signs': filled('%25'),
    'percent signs twice': filled('%2525'),
    dots: filled('../'),
    'dots in percent signs': filled('%2e%2e%2f'),
    backslashes: filled('\\..\\'),
    slashes: filled('/'),
    colons: filled(':'),
    'at signs': filled('a@'),
    'dots and spaces': filled('. '),
    spaces: filled(' '),
    'spaces and slashes': filled(' /'),
    'NULs in percent signs': filled('%00'),
    controls: filled('\u0001'),
    hashes: filled('#?'),
    braces: filled('{'),
    mixed: filled('%5C..%2f. \u0000/@#'),
  }
  const named = (name: (part: string) => [string, string][]) => Object.fromEntries(Object.keys(parts).flatMap(name))
  const one = named((name) => [[name, read(`file:///srv/${parts[name]}`)]])
  const many = named((name) => [
    [`five of ${name}`, uri(`FILE://a@b/${parts[name]}`, 5)],
    [`a hundred of ${name}`, uri(`File:///${parts[name]}`, 100)],
    [`five hundred of ${name}`, uri(`A:${parts[name]}`, 500)],
  ])
  const fine = ['srv/docs/report.md', 'srv/notes/2026/a b.md', 'srv/img/logo.png']
  const manyFine = JSON.stringify(Array.from({ length: 300 }, (_, at) => `file:///${fine[at % 3]}?${at}`))

  const lines: Record<string, (app: Application) => unknown> = {
    nothing: () => {},
    'a middleware that reads': (app) => app.use((ctx, next) => (ctx.message ? next() : next())),
    logger: (app) => app.use(logger({ arguments: true, format: 'json', write: () => {} })),
    toolFilter: (app) => app.use(toolFilter({ deny: ['*rm*'], prefix: '', rename: { x: 'y' } })),
    authorize: (app) => app.use(authorize({ rules })),
    record: (app) => app.use(record({ write: () => {} })),
    metrics: (app) => app.use(metrics({ port: false, tools: true })),
    trace: (app) => app.use(trace({ arguments: true })),
  }

  /** A client that says something, until it has left the proxy on either side. */
  async function line(use: (app: Application) => unknown) {
    const { client, server, errors, app } = await joined(use)
    const answered = (text: string) => text.startsWith('{"jsonrpc":"2.0","id":1,"result"')
    const run = async (text: string) => {
      client.sent.length = server.sent.length = 0
      if (answered(text)) {
        client.say({ id: 1, method: 'tools/list' })
        for (let turns = 0; server.sent.length === 0 && turns < 50; turns++) await turnOfLoop()
        server.say(text)
      } else client.say(text)
      for (let turns = 0; client.sent.length + server.sent.length === 0 && turns < 50; turns++) await turnOfLoop()
      // What was handed on has no answer: it is taken back, so that its id is free.
      if (client.sent.length === 0) server.say(`{"jsonrpc":"2.0","id":1,"result":{}}`)
      for (let turns = 0; client.sent.length === 0 && turns < 50; turns++) await turnOfLoop()
    }
    return { run, errors, app }
  }

  test.each(Object.keys(lines))('%s', async (name) => {
    const { run, errors, app } = await line(lines[name]!)
    const inputs = Object.fromEntries(
      Object.entries(hostile).filter(([it]) => / as (?:arguments|params|a name|a result|_meta)$/.test(it)),
    )
    expect(await dear(run, honest, inputs)).toEqual([])
    if (name === 'authorize') {
      expect(await dear(run, read(`file:///${filled(fine.join('/'))}`), one)).toEqual([])
      expect(await dear(run, uri('x').replace('["x"]', manyFine), many)).toEqual([])
    }
    expect(errors.filter((it) => !/Parse error|Invalid request/.test(it))).toEqual([])
    await app.close({ urgent: true })
  })
})

test('10 KB at the door of a port cost no hundred times as much as honest 10 KB do', async () => {
  const from = await issuer()
  const { port } = await listen(server().open, {}, (app) =>
    app.use(
      auth({
        jwt: { issuer: from.url, audience: AUDIENCE, jwks: { keys: [from.key.jwk] } },
        tokens: [{ token: 't', id: 'a' }],
      }),
    ),
  )
  const { headers, body } = modern(1, 'ping')
  const head = { host: 'localhost', ...ours, ...headers, ...bearer('t') }
  const request = (more: Record<string, string>, text = JSON.stringify(body), path = '/mcp') => {
    const lines = Object.entries({ ...head, ...more, 'content-length': String(Buffer.byteLength(text)) })
    return [
      `POST ${path} HTTP/1.1`,
      ...lines.map(([name, value]) => `${name}: ${value}`),
      'connection: close',
      '',
      text,
    ].join('\r\n')
  }
  const ping = (meta: string) => JSON.stringify(body).replace('"_meta":{', `"_meta":{"x":${meta},`)
  const names = [
    'host',
    'origin',
    'accept',
    'authorization',
    'content-type',
    'mcp-name',
    'mcp-method',
    'mcp-protocol-version',
    'mcp-session-id',
    'last-event-id',
    'cookie',
    'x-any',
  ]
  const texts = {
    commas: filled(','),
    spaces: `a${filled(' ')}b`,
    brackets: filled('['),
    slashes: filled('/*,'),
    Base64: `=?base64?${filled('A')}?=`,
  }
  const inputs: Record<string, string> = {
    'a thousand headers': request(Object.fromEntries(Array.from({ length: 900 }, (_, at) => [`x-${at}`, '']))),
    'a long path': request({}, undefined, `/${filled('a/')}`),
    'a long path of dots': request({}, undefined, `/${filled('../')}mcp`),
    'a long query': request({}, undefined, `/messages?${filled('a&')}`),
    'a query of percent signs': request({}, undefined, `/messages?sessionId=${filled('%25')}`),
  }
  for (const name of names)
    for (const [it, text] of Object.entries(texts)) inputs[`${it} in ${name}`] = request({ [name]: text })
  for (const [name, value] of Object.entries(values))
    inputs[`${name} in the body`] = request({}, ping(value).replaceAll('\0', ''))
  expect(
    await dear((text) => raw(port, Buffer.from(text).toString('latin1')), request({}, ping(honestValue)), inputs),
  ).toEqual([])
})
