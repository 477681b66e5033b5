import { once } from 'node:events'
import { afterEach, describe, expect, test } from 'vitest'
import { gone, isAlive, omproxy, path, type Running, stop } from '../fixtures/command.js'
import { notification, relay, request, result } from '../fixtures/relay.js'
import { startTarget } from '../fixtures/servers.js'

const cleanups: (() => void)[] = []
const runs: Running[] = []

afterEach(() => {
  for (const clean of cleanups.splice(0)) clean()
  const odd = runs.splice(0).flatMap((run) => run.odd)
  expect(odd).toEqual([])
})

function start(args: string[]): Running {
  const [first = '', ...rest] = args
  const run = omproxy(
    first.startsWith('-') ? ['--log-level', 'info', ...args] : [first, '--log-level', 'info', ...rest],
  )
  runs.push(run)
  cleanups.push(() => run.kill())
  return run
}

async function startOverRelay(...options: string[]) {
  const server = await relay(...options)
  cleanups.push(() => server.close())
  const run = start(['stdio', '--', ...server.command])
  return { run, far: await server.far }
}

/** Sends the first signal and waits until it was taken. */
async function signal(run: Running, name: NodeJS.Signals) {
  run.child.kill(name)
  await run.when(() => run.stderr.includes(`${name}: `), name)
}

const proxyError = (id: string | number, code: number, reason: string, phase: string, retryable = true) => ({
  jsonrpc: '2.0',
  id,
  error: { code, message: expect.any(String), data: { source: 'proxy', reason, phase, retryable } },
})
const clean = (stderr: string) => expect(stderr).not.toMatch(/\n\s+at |node:internal|Error: /)
const ids = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]

test('end of stdin: what is in flight is answered, then all ends by itself with 0', async () => {
  const { run, far } = await startOverRelay()
  run.send(...ids.map((id) => request(id)))
  run.child.stdin.end()
  await far.until(ids.length)
  // An answer after the end of stdin still finds its way.
  for (const id of ids) far.send(notification('notifications/progress', { progressToken: id, progress: 1 }), result(id))
  await far.ended
  expect(await run.exit).toEqual({ code: 0, signal: null })
  expect(run.messages()).toEqual(
    ids.flatMap((id) => [notification('notifications/progress', { progressToken: id, progress: 1 }), result(id)]),
  )
  expect(isAlive(far.pid)).toBe(false)
})

test('end of stdin: a request of the server finds nobody, and the call is answered all the same', async () => {
  const { run, far } = await startOverRelay()
  run.send(request(1))
  run.child.stdin.end()
  await far.until(1)
  far.send(request('s', 'roots/list', {}))
  await far.until(2)
  expect(JSON.parse(far.lines[1]!.toString())).toMatchObject({ id: 's', error: { data: { source: 'proxy' } } })
  far.send(result(1))
  expect(await run.exit).toEqual({ code: 0, signal: null })
  expect(run.messages()).toEqual([result(1)])
})

test('nothing was ever sent: end of stdin ends child and proxy with 0', async () => {
  const { run, far } = await startOverRelay()
  expect(await run.end()).toEqual({ code: 0, signal: null })
  expect(isAlive(far.pid)).toBe(false)
  expect(run.lines).toEqual([])
})

test('the child dies in the middle of calls: each caller is told at once, exit code 1', async () => {
  const { run, far } = await startOverRelay()
  run.send(request(1), request('two'), request(3))
  await far.until(3)
  far.send(result('two'))
  await run.until(1)
  const killed = performance.now()
  process.kill(far.pid, 'SIGKILL')
  await run.until(3)
  expect(performance.now() - killed).toBeLessThan(2_000)
  expect(await run.exit).toEqual({ code: 1, signal: null })
  expect(run.messages()).toEqual([
    result('two'),
    proxyError(1, -31001, 'upstream_exited', 'sent'),
    proxyError(3, -31001, 'upstream_exited', 'sent'),
  ])
  clean(run.stderr)
})

test('the child leaves by itself while nothing is in flight: exit code 1', async () => {
  const { run, far } = await startOverRelay()
  run.send(request(1))
  await far.until(1)
  far.send(result(1))
  await run.until(1)
  process.kill(far.pid, 'SIGTERM')
  expect(await run.exit).toEqual({ code: 1, signal: null })
  expect(run.messages()).toEqual([result(1)])
  clean(run.stderr)
})

test('a command that cannot be found: the initialize that waits is told so, exit code 69', async () => {
  const run = start(['stdio', '--', 'no-such-command-of-any-server'])
  run.send(request(1, 'initialize', {}))
  expect(await run.exit).toEqual({ code: 69, signal: null })
  expect(run.messages()).toEqual([
    proxyError(1, -31009, 'upstream_unreachable', 'not_sent', expect.any(Boolean) as never),
  ])
  expect(run.texts().join()).not.toContain('no-such-command')
  clean(run.stderr)
})

test('a server that nobody serves: the initialize that waits is told so, exit code 69', async () => {
  // A port of 127.0.0.1 where nobody listens any more.
  const { createServer } = await import('node:net')
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as { port: number }
  server.close()
  await once(server, 'close')
  for (const how of [['http'], ['sse'], []]) {
    const run = start([...how, '--url', `http://127.0.0.1:${port}/mcp`])
    run.send(request(1, 'initialize', {}))
    await run.until(1)
    const ended = await run.end()
    expect({ how, ended, messages: run.messages() }).toEqual({
      how,
      ended: { code: 69, signal: null },
      messages: [proxyError(1, -31009, 'upstream_unreachable', 'not_sent')],
    })
    clean(run.stderr)
  }
})

test('SIGTERM drains: what is in flight is answered, what comes then is not taken, exit code 143', async () => {
  const { run, far } = await startOverRelay()
  run.send(request(1), request(2))
  await far.until(2)
  await signal(run, 'SIGTERM')
  run.send(request(3))
  await run.until(1)
  far.send(result(2))
  await run.until(2)
  far.send(result(1))
  expect(await run.exit).toEqual({ code: 143, signal: null })
  expect(run.messages()).toEqual([proxyError(3, -31008, 'shutting_down', 'not_sent'), result(2), result(1)])
  expect(isAlive(far.pid)).toBe(false)
  clean(run.stderr)
})

test('a second SIGTERM ends at once, a stubborn child included, exit code 143', async () => {
  const { run, far } = await startOverRelay('stubborn')
  run.send(request(1))
  await far.until(1)
  await signal(run, 'SIGTERM')
  run.send(request(2))
  await run.until(1)
  const second = performance.now()
  run.child.kill('SIGTERM')
  expect(await run.exit).toEqual({ code: 143, signal: null })
  expect(performance.now() - second).toBeLessThan(5_000)
  expect(run.messages()).toEqual([
    proxyError(2, -31008, 'shutting_down', 'not_sent'),
    proxyError(1, -31008, 'shutting_down', 'sent'),
  ])
  expect(isAlive(far.pid)).toBe(false)
  clean(run.stderr)
})

test('SIGTERM after the end of stdin ends at once, as SDK clients expect it', async () => {
  const { run, far } = await startOverRelay('stubborn')
  run.send(request(1))
  run.child.stdin.end()
  await far.until(1)
  const sent = performance.now()
  run.child.kill('SIGTERM')
  expect(await run.exit).toEqual({ code: 143, signal: null })
  // The drain alone would take ten seconds.
  expect(performance.now() - sent).toBeLessThan(5_000)
  expect(run.messages()).toEqual([proxyError(1, -31008, 'shutting_down', 'sent')])
  expect(isAlive(far.pid)).toBe(false)
  clean(run.stderr)
})

test.each(['SIGINT', 'SIGHUP'] as const)('%s with nothing in flight ends with its own number', async (signal) => {
  const { run, far } = await startOverRelay()
  run.send(request(1))
  await far.until(1)
  far.send(result(1))
  await run.until(1)
  run.child.kill(signal)
  expect(await run.exit).toEqual({ code: signal === 'SIGINT' ? 130 : 129, signal: null })
  expect(isAlive(far.pid)).toBe(false)
})

test('SIGKILL of the proxy leaves no child that listens to its stdin', async () => {
  const { run, far } = await startOverRelay()
  run.send(request(1))
  await far.until(1)
  run.child.kill('SIGKILL')
  expect(await run.exit).toEqual({ code: null, signal: 'SIGKILL' })
  await far.ended
  far.socket.end()
  await gone(far.pid)
})

test('a reader that leaves is a client that left: exit code 0, no stack trace', async () => {
  const { run, far } = await startOverRelay()
  run.send(request(1))
  await far.until(1)
  run.child.stdout.destroy()
  far.send(result(1), notification('notifications/message', { data: 'x'.repeat(1 << 20) }))
  expect(await run.exit).toEqual({ code: 0, signal: null })
  await gone(far.pid)
  clean(run.stderr)
})

test('what a child says that is not JSON-RPC does not reach the client', async () => {
  const { run, far } = await startOverRelay()
  far.send('Server listening on stdio', '', '[1,2,3]', 'null', '{"a":1}', notification('notifications/message'))
  await run.until(1)
  expect(await run.end()).toEqual({ code: 0, signal: null })
  expect(run.messages()).toEqual([notification('notifications/message')])
})

test('an error of a middleware stays home', async () => {
  const server = await relay()
  cleanups.push(() => server.close())
  const use = `${path('./middleware.mjs')}#thrower`
  const run = start(['stdio', '--use', use, '--', ...server.command])
  const far = await server.far
  run.send(request(1))
  await run.until(1)
  expect(await run.end()).toEqual({ code: 0, signal: null })
  expect(run.messages()).toEqual([{ jsonrpc: '2.0', id: 1, error: { code: -32603, message: 'Internal error' } }])
  expect(far.lines).toEqual([])
  expect(run.stderr).toContain('a secret of the house')
})

describe('over HTTP', () => {
  const initialize = request(0, 'initialize', {
    protocolVersion: '2025-11-25',
    capabilities: {},
    clientInfo: { name: 'test', version: '1.0.0' },
  })
  const call = (id: number, name: string, args: object) => request(id, 'tools/call', { name, arguments: args })

  async function startOverHttp() {
    const server = await startTarget()
    cleanups.push(() => void stop(server.child))
    const run = start(['http', '--url', `${server.origin}/mcp`])
    run.send(initialize)
    await run.until(1)
    run.send(notification('notifications/initialized'))
    return { run, server }
  }

  test('end of stdin: what is in flight is answered, then all ends by itself with 0', async () => {
    const { run } = await startOverHttp()
    run.send(...ids.map((id) => call(id, 'slow', { ms: 300 })))
    expect(await run.end()).toEqual({ code: 0, signal: null })
    const answers = run.messages().slice(1)
    expect(answers.sort((a, b) => a.id - b.id)).toEqual(
      ids.map((id) => result(id, { content: [{ type: 'text', text: 'slept' }] })),
    )
  })

  test('the server dies in the middle of calls: each caller is told at once', async () => {
    const { run, server } = await startOverHttp()
    run.send(call(1, 'slow', { ms: 60_000 }), call(2, 'slow', { ms: 60_000 }), call(3, 'echo', {}))
    await run.until(2)
    const killed = performance.now()
    await stop(server.child)
    await run.until(4)
    expect(performance.now() - killed).toBeLessThan(5_000)
    const errors = run.messages().filter(({ error }) => error)
    expect(errors.sort((a, b) => a.id - b.id)).toEqual(
      [1, 2].map((id) => proxyError(id, -31003, 'upstream_bad_response', 'sent', false)),
    )
    // What comes then was certainly not sent.
    run.send(call(4, 'echo', {}))
    await run.until(5)
    expect(run.messages()[4]).toMatchObject({ id: 4, error: { data: { source: 'proxy', phase: 'not_sent' } } })
    clean(run.stderr)
  })
})
