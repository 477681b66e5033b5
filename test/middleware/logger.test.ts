import { stripVTControlCharacters } from 'node:util'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { type LoggerOptions, logger } from '../../middleware/logger.js'
import { createProxy, onRequest } from '../../src/index.js'
import { testContext, testProxy } from '../../src/testing.js'

/** A proxy whose logger writes into `lines`. */
function logged(options: LoggerOptions = {}) {
  const lines: string[] = []
  const write = (line: string) => void lines.push(line)
  const proxy = testProxy(createProxy().use(logger({ format: 'json', write, ...options })))
  const entries = () => lines.splice(0).map((line) => JSON.parse(line) as Record<string, unknown>)
  return { ...proxy, lines, entries }
}

const call = { id: 7, method: 'tools/call', params: { name: 'add', arguments: { a: 2, key: 's3cret' } } }
const time = expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/)
const duration = expect.any(Number)

beforeEach(() => {
  vi.stubEnv('NO_COLOR', '1')
  vi.stubEnv('FORCE_COLOR', undefined)
})

afterEach(() => {
  vi.unstubAllEnvs()
  vi.restoreAllMocks()
})

describe('json', () => {
  test('a line per message, in both directions', async () => {
    const proxy = logged()
    const session = proxy.session.id
    await proxy.fromClient(call)
    await proxy.fromServer({ method: 'notifications/progress', params: { progressToken: 1, progress: 1 } })
    await proxy.fromServer({ id: 7, result: { content: [] } })
    await proxy.fromServer({ id: 'ask', method: 'sampling/createMessage', params: {} })
    await proxy.fromClient({ id: 'ask', error: { code: -1, message: 'User rejected' } })
    await proxy.fromClient({ id: 0, method: 'resources/read', params: { uri: 'demo://a' } })
    await proxy.fromClient({ id: '', method: 'prompts/get', params: { name: 'greet' } })
    const out = { time, session, direction: 'client-to-server' }
    const back = { time, session, direction: 'server-to-client' }
    expect(proxy.entries()).toEqual([
      { ...out, kind: 'request', method: 'tools/call', name: 'add', id: 7 },
      { ...back, kind: 'notification', method: 'notifications/progress' },
      { ...back, kind: 'response', method: 'tools/call', name: 'add', id: 7, duration },
      { ...back, kind: 'request', method: 'sampling/createMessage', id: 'ask' },
      { ...out, kind: 'response', method: 'sampling/createMessage', id: 'ask', duration, error: -1 },
      { ...out, kind: 'request', method: 'resources/read', name: 'demo://a', id: 0 },
      { ...out, kind: 'request', method: 'prompts/get', name: 'greet', id: '' },
    ])
  })

  test('the answer of a middleware behind it is logged too', async () => {
    const lines: string[] = []
    const app = createProxy()
      .use(logger({ format: 'json', write: (line) => void lines.push(line) }))
      .use(onRequest('tools/call', (ctx) => ctx.throw(-31006, 'Denied')))
    await testProxy(app).fromClient(call)
    expect(lines.map((line) => JSON.parse(line))).toMatchObject([
      { kind: 'request', id: 7 },
      { kind: 'response', id: 7, error: -31006, duration },
    ])
  })

  test('the duration of a response is the time since its request arrived', async () => {
    vi.useFakeTimers({ toFake: ['performance'] })
    try {
      const proxy = logged()
      await proxy.fromClient(call)
      vi.advanceTimersByTime(1234)
      await proxy.fromServer({ id: 7, result: {} })
      expect(proxy.entries()).toMatchObject([{}, { duration: 1234 }])
    } finally {
      vi.useRealTimers()
    }
  })

  test('values of arguments only when asked for', async () => {
    const silent = logged()
    await silent.fromClient(call)
    await silent.fromServer({ id: 7, result: { content: [{ type: 'text', text: 's3cret' }] } })
    expect(silent.lines.join()).not.toContain('s3cret')
    expect(silent.lines).toHaveLength(2)

    const open = logged({ arguments: true })
    await open.fromClient(call)
    await open.fromServer({ id: 7, result: { content: [{ type: 'text', text: 's3cret' }] } })
    await open.fromServer({ method: 'notifications/message', params: { level: 'info', data: 'x' } })
    await open.fromClient({ method: 'notifications/initialized' })
    expect(open.entries()).toEqual([
      expect.objectContaining({ arguments: { a: 2, key: 's3cret' } }),
      expect.not.objectContaining({ arguments: expect.anything() }),
      expect.objectContaining({ arguments: { level: 'info', data: 'x' } }),
      expect.not.objectContaining({ arguments: expect.anything() }),
    ])
  })

  test('what it logs it does not change', async () => {
    const proxy = logged({ arguments: true })
    const text = '{ "id":1.0,"jsonrpc":"2.0", "method":"tools/call","params":{"name":"a","arguments":{"n":1e400}} }'
    const { ctx, next, deeds } = testContext(text)
    await logger({ format: 'json', arguments: true, write: () => {} })(ctx, next)
    expect(deeds.passed).toEqual([JSON.parse(text)])
    expect(await proxy.fromClient(call)).toEqual({ toClient: [], toServer: [{ jsonrpc: '2.0', ...call }] })
  })
})

describe('pretty', () => {
  const withoutTimes = (lines: string[]) =>
    lines.map((line) => line.replace(/^\d\d:\d\d:\d\d\.\d{3}/, 'TIME').replace(/[\d.]+ ms/, 'N ms'))

  test('a line per message, in both directions', async () => {
    const proxy = logged({ format: 'pretty', arguments: true })
    await proxy.fromClient(call)
    await proxy.fromServer({ id: 7, result: {} })
    await proxy.fromClient({ id: '7', method: 'nope' })
    await proxy.fromServer({ id: '7', error: { code: -32601, message: 'Method not found' } })
    await proxy.fromServer({ method: 'notifications/tools/list_changed' })
    expect(withoutTimes(proxy.lines)).toEqual([
      'TIME → tools/call add #7 {"a":2,"key":"s3cret"}',
      'TIME ← tools/call add #7 ok N ms',
      'TIME → nope #"7"',
      'TIME ← nope #"7" error -32601 N ms',
      'TIME ← notifications/tools/list_changed',
    ])
  })

  test('colours where stderr takes them', async () => {
    vi.unstubAllEnvs()
    vi.stubEnv('FORCE_COLOR', '1')
    const proxy = logged({ format: 'pretty' })
    await proxy.fromClient(call)
    expect(proxy.lines.join()).toContain('\u001b[1mtools/call\u001b[22m')
  })

  test('is the default on a terminal, JSON elsewhere; to stderr', async () => {
    const lines: string[] = []
    vi.spyOn(process.stderr, 'write').mockImplementation((line) => lines.push(String(line)) > 0)
    const { isTTY } = process.stderr
    try {
      for (const terminal of [true, false]) {
        process.stderr.isTTY = terminal
        await testProxy(createProxy().use(logger())).fromClient(call)
      }
    } finally {
      process.stderr.isTTY = isTTY
    }
    expect(lines.map(stripVTControlCharacters)).toEqual([
      expect.stringMatching(/^\S+ → tools\/call add #7\n$/),
      expect.stringMatching(/^\{"time":.*"id":7\}\n$/),
    ])
  })
})

describe('what a peer says cannot forge or hide a line', () => {
  const evil = 'a\n\r\t\u0000\u001b[2K\u007f\u009b\u2028\u2029\u202e\u2066\u200b\u00ad\ufeff\u{e0041}b'
  const escaped =
    'a\\u000a\\u000d\\u0009\\u0000\\u001b[2K\\u007f\\u009b\\u2028\\u2029\\u202e\\u2066\\u200b\\u00ad\\ufeff\\udb40\\udc41b'

  test.each(['pretty', 'json'] as const)('%s', async (format) => {
    const proxy = logged({ format, arguments: true })
    await proxy.fromClient({ id: evil, method: evil, params: { name: evil, arguments: { [evil]: evil } } })
    await proxy.fromServer({ id: evil, error: { code: -1, message: evil } })
    expect(proxy.lines).toHaveLength(2)
    for (const line of proxy.lines) expect(line).not.toMatch(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/u)
  })

  test('pretty shows what it was', async () => {
    const proxy = logged({ format: 'pretty' })
    await proxy.fromClient({ id: 1, method: evil })
    expect(proxy.lines).toEqual([expect.stringContaining(` → ${escaped} #1`)])
  })

  test('json reads back as it was', async () => {
    const proxy = logged()
    await proxy.fromClient({ id: evil, method: evil, params: { name: evil } })
    expect(proxy.entries()).toMatchObject([{ id: evil, method: evil, name: evil }])
  })
})

describe('odd messages do not make it throw', () => {
  test.each([
    { id: 1, method: 'x', params: null },
    { id: 1, method: 'x', params: [] },
    { id: 1, method: 'x', params: 'text' },
    { id: 1, method: 'x', params: 5 },
    { id: 1, method: 'tools/call', params: { name: 5, arguments: 'text' } },
    { id: 1, method: 'tools/call', params: { name: null, arguments: null } },
    { id: 1, error: { code: 'text\n', message: 5 } },
    { id: 1, error: null },
    { id: 1, error: 'text' },
    { id: 1, error: [] },
    { error: { code: -32700, message: 'no id' } },
    { id: 1, result: null },
    { method: 'notifications/\ud800' },
  ])('%j', async (message) => {
    for (const format of ['pretty', 'json'] as const) {
      const lines: string[] = []
      const { ctx, next, deeds } = testContext(JSON.stringify({ jsonrpc: '2.0', ...message }), {
        request: { id: 1, method: 'ping' },
      })
      await logger({ format, arguments: true, write: (line) => void lines.push(line) })(ctx, next)
      expect(lines).toHaveLength(1)
      expect(lines[0]).not.toMatch(/\n/)
      expect(deeds.passed).toHaveLength(1)
    }
  })
})

test('an unknown format is refused', () => {
  expect(() => logger({ format: 'xml' as 'json' })).toThrow(
    new TypeError('logger: expected format "pretty" or "json", got "xml"'),
  )
})

test('it observes', () => {
  expect(logger()).toHaveProperty('role', 'observe')
})
