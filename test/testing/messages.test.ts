import { error, modern, notification, request, result, testProxy } from 'open-mcp-proxy/testing'
import { expect, expectTypeOf, test } from 'vitest'

const jsonrpc = '2.0'

test('each kind, with nothing that was not said', () => {
  expect([
    request(0, 'tools/call', { name: 'a' }),
    request('', 'tools/list'),
    notification('notifications/progress', { progressToken: 1, progress: 2 }),
    notification('x'),
    result('a', { content: [] }),
    result(1),
    error(1, -32601, 'Method not found'),
    error(1, 5, 'm', null),
  ]).toStrictEqual([
    { jsonrpc, id: 0, method: 'tools/call', params: { name: 'a' } },
    { jsonrpc, id: '', method: 'tools/list' },
    { jsonrpc, method: 'notifications/progress', params: { progressToken: 1, progress: 2 } },
    { jsonrpc, method: 'x' },
    { jsonrpc, id: 'a', result: { content: [] } },
    { jsonrpc, id: 1, result: {} },
    { jsonrpc, id: 1, error: { code: -32601, message: 'Method not found' } },
    { jsonrpc, id: 1, error: { code: 5, message: 'm', data: null } },
  ])
})

test('a modern request has what 2026-07-28 wants, and keeps its own', () => {
  expect(modern(request(1, 'tools/list'))).toStrictEqual({
    jsonrpc,
    id: 1,
    method: 'tools/list',
    params: {
      _meta: {
        'io.modelcontextprotocol/protocolVersion': '2026-07-28',
        'io.modelcontextprotocol/clientCapabilities': {},
      },
    },
  })
  const plain = request(2, 'tools/call', { name: 'a', _meta: { traceparent: 't', progressToken: 'own' } })
  const options = {
    version: '2027-01-01',
    capabilities: { sampling: {} },
    clientInfo: { name: 'c', version: '1' },
    logLevel: 'debug',
    progressToken: 0,
  } as const
  expect(modern(plain, options)).toStrictEqual({
    ...plain,
    params: {
      name: 'a',
      _meta: {
        'io.modelcontextprotocol/protocolVersion': '2027-01-01',
        'io.modelcontextprotocol/clientCapabilities': { sampling: {} },
        'io.modelcontextprotocol/clientInfo': { name: 'c', version: '1' },
        'io.modelcontextprotocol/logLevel': 'debug',
        progressToken: 'own',
        traceparent: 't',
      },
    },
  })
  expect(modern(request(1, 'x'), { progressToken: 0 }).params?._meta?.progressToken).toBe(0)
})

test('a modern request opens a modern session', async () => {
  const proxy = testProxy()
  await proxy.fromClient(modern(request(1, 'server/discover')))
  expect([proxy.session.era, proxy.session.protocolVersion]).toEqual(['modern', '2026-07-28'])
})

test('params are those of their method', () => {
  expectTypeOf(request(1, 'tools/call').method).toEqualTypeOf<'tools/call'>()
  request(1, 'tools/call', { name: 'a', requestState: 'of tomorrow' })
  request(1, 'vendor/x', { anything: 1 })
  // @ts-expect-error: a tool has a name
  request(1, 'tools/call', { arguments: {} })
  // @ts-expect-error: progress is a number
  notification('notifications/progress', { progressToken: 1, progress: 'much' })
})
