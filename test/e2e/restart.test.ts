import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { SSEClientTransport } from '@modelcontextprotocol/sdk/client/sse.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import type { Transport } from '@modelcontextprotocol/sdk/shared/transport.js'
import { ResourceUpdatedNotificationSchema } from '@modelcontextprotocol/sdk/types.js'
import { createProxy, type Restart, type Session } from 'open-mcp-proxy'
import { describe, expect, it, vi } from 'vitest'
import { closing } from '../fixtures/closing.js'
import { gone, omproxy, path, stop } from '../fixtures/command.js'
import { proxys } from '../fixtures/played.js'
import { call, modernPost, post } from '../fixtures/port.js'
import { everything, freePort, type HttpServer, startHttp, target } from '../fixtures/servers.js'

const mortal = { command: process.execPath, args: [path('./mortal.mjs')] }

interface State {
  pid: number
  [other: string]: unknown
}

/** A proxy on a port before the mortal server. */
async function proxied(restart?: Restart) {
  const app = createProxy()
  const errors: string[] = []
  const sessions: Session[] = []
  let restarts = 0
  app.on('error', (error) => errors.push(error.message))
  app.on('session', (session) => {
    sessions.push(session)
    session.on('restart', () => {
      restarts += 1
    })
  })
  closing.push(() => app.close({ urgent: true }))
  const { address } = await app.listen({ ...mortal, restart }, { port: 0 })
  return { app, errors, sessions, address: new URL(address), restarts: () => restarts }
}

async function connected(transport: Transport) {
  const client = new Client({ name: 'somebody', version: '1' })
  closing.push(() => client.close())
  await client.connect(transport)
  return client
}

async function stateOf(client: Pick<Client, 'callTool'>): Promise<State> {
  const { content } = await client.callTool({ name: 'state' })
  return JSON.parse((content as { text: string }[])[0]!.text)
}

describe('behind a port, a child that is killed', () => {
  it.each([
    ['Streamable HTTP', (url: URL) => new StreamableHTTPClientTransport(url)],
    ['HTTP+SSE', (url: URL) => new SSEClientTransport(new URL('/sse', url))],
  ])('fails what is in flight, and comes back as its client knew it: %s', async (_name, transport) => {
    const { address, errors, restarts } = await proxied()
    const client = await connected(transport(address))
    const updated: string[] = []
    client.setNotificationHandler(ResourceUpdatedNotificationSchema, ({ params }) => void updated.push(params.uri))
    await client.setLoggingLevel('warning')
    await client.subscribeResource({ uri: 'test://a' })
    await client.subscribeResource({ uri: 'test://b' })
    await client.unsubscribeResource({ uri: 'test://a' })
    const before = await stateOf(client)
    const settled = { initialized: true, level: 'warning', client: 'somebody', subscribed: ['test://b'] }
    expect(before).toEqual({ pid: expect.any(Number), ...settled })
    const hanging = client.callTool({ name: 'hang' })
    const failure = hanging.catch((error: unknown) => error)
    process.kill(before.pid, 'SIGKILL')
    expect(await failure).toMatchObject({
      code: -31001,
      data: { source: 'proxy', reason: 'upstream_exited', phase: 'sent', retryable: true },
    })
    const after = await stateOf(client)
    expect(after).toEqual({ pid: expect.any(Number), ...settled })
    expect(after.pid).not.toBe(before.pid)
    await vi.waitFor(() => expect(updated).toEqual(['test://b', 'test://b']))
    expect([restarts(), errors]).toEqual([1, ['Upstream exited: signal SIGKILL; it is tried again']])
    await gone(before.pid)
  })

  it('is told of by the end of the session where it is not to be restarted', async () => {
    const { address } = await proxied('never')
    const client = await connected(new StreamableHTTPClientTransport(address))
    const { pid } = await stateOf(client)
    process.kill(pid, 'SIGKILL')
    await gone(pid)
    await vi.waitFor(() => expect(stateOf(client)).rejects.toThrow('unknown session'))
  })

  it('comes back for the requests of 2026-07-28, which share it', async () => {
    const { address } = await proxied()
    const ask = async (id: number, name: string, args = {}) => {
      const answer = await modernPost(address.href, { id, method: 'tools/call', params: { name, arguments: args } })
      return (await answer.json()) as { result?: { content: { text: string }[] }; error?: unknown }
    }
    const pidOf = async (id: number) => JSON.parse((await ask(id, 'state')).result!.content[0]!.text).pid
    const before = await pidOf(1)
    const others = [ask(2, 'hang'), ask(3, 'hang'), ask(4, 'exit')]
    const told = proxys(-31001, 'Upstream exited: exit code 3', 'upstream_exited', 'sent', true)
    expect(await Promise.all(others)).toEqual([2, 3, 4].map((id) => ({ jsonrpc: '2.0', id, error: told })))
    expect(await pidOf(5)).not.toBe(before)
  })
})

describe('a command that cannot be started behind a port', () => {
  it('is told at once, and not tried without end', async () => {
    const app = createProxy()
    app.on('error', () => {})
    closing.push(() => app.close({ urgent: true }))
    const { address } = await app.listen({ command: path('./no-such-command') }, { port: 0 })
    const initialize = { jsonrpc: '2.0', id: 0, method: 'initialize', params: { protocolVersion: '2025-11-25' } }
    const told = proxys(
      -31009,
      'Upstream unreachable: the command was not found',
      'upstream_unreachable',
      'not_sent',
      false,
    )
    for (let attempt = 0; attempt < 5; attempt++) {
      expect(await (await post(address, initialize)).json()).toEqual({ jsonrpc: '2.0', id: 0, error: told })
    }
    const modern = await modernPost(address, { id: 1, method: 'tools/call', params: { name: 'x' } })
    expect(await modern.json()).toEqual({ jsonrpc: '2.0', id: 1, error: told })
  })
})

describe('a client on stdin', () => {
  const hello = {
    jsonrpc: '2.0',
    id: 0,
    method: 'initialize',
    params: { protocolVersion: '2025-06-18', capabilities: {}, clientInfo: { name: 'somebody', version: '1' } },
  }
  const initialized = { jsonrpc: '2.0', method: 'notifications/initialized' }
  const echo = (id: number) => call(id, 'echo', { arguments: { message: String(id) } })
  const echoed = (id: number) => expect.objectContaining({ id, result: expect.anything() })

  /** A server at a port of ours, which can be started again there. */
  async function lasting(script: string, args: string[], says: RegExp) {
    const port = await freePort()
    const origin = `http://127.0.0.1:${port}`
    let server: HttpServer | undefined
    const start = async () => {
      server = await startHttp(script, args, says, port)
    }
    closing.push(async () => server && stop(server.child))
    await start()
    return { origin, start, stop: async () => server && stop(server.child) }
  }

  it.each([
    ['http', 'a server that says 404', target, ['--port', 'PORT'], /target on/, '/mcp'],
    ['http', 'a server that says 400', everything, ['streamableHttp'], /(running|listening) on port/, '/mcp'],
    ['sse', 'a server whose stream ends', everything, ['sse'], /(running|listening) on port/, '/sse'],
  ])('never notices that its server was started again: %s, %s', async (type, _what, script, args, says, at) => {
    const server = await lasting(script, args, says)
    const proxy = omproxy([type, '--url', `${server.origin}${at}`])
    closing.push(proxy.kill)
    proxy.send(hello, initialized)
    await proxy.when(() => proxy.messages().some(({ id }) => id === 0), 'the handshake')
    const isTarget = script === target
    const ask = (id: number) => (isTarget ? call(id, 'test_simple_text') : echo(id))
    proxy.send(ask(1))
    await proxy.when(() => proxy.messages().some(({ id }) => id === 1), 'an answer')
    await server.stop()
    await server.start()
    proxy.send(ask(2), ask(3), ask(4))
    const given = () => proxy.messages().filter(({ id }) => id >= 1 && id <= 4)
    await proxy.when(() => given().length === 4, 'the answers')
    const answers = given()
    expect(answers.sort((a, b) => a.id - b.id)).toEqual([1, 2, 3, 4].map(echoed))
    expect(await proxy.end()).toEqual({ code: 0, signal: null })
    expect(proxy.odd).toEqual([])
  })

  it('has its child replaced where it asks for that', async () => {
    const proxy = omproxy(['stdio', '--restart', 'on-failure', '--', ...[mortal.command, ...mortal.args]])
    closing.push(proxy.kill)
    proxy.send(hello, initialized, call(1, 'state'))
    await proxy.until(2)
    const [, first] = proxy.messages()
    const { pid } = JSON.parse(first.result.content[0].text)
    proxy.send(call(2, 'exit', { arguments: { code: 0 } }))
    await proxy.until(3)
    proxy.send(call(3, 'state'))
    await proxy.until(4)
    const [, , lost, last] = proxy.messages()
    expect(lost).toEqual({
      jsonrpc: '2.0',
      id: 2,
      error: proxys(-31001, 'Upstream exited: exit code 0', 'upstream_exited', 'sent', true),
    })
    expect(JSON.parse(last.result.content[0].text)).toEqual({
      pid: expect.any(Number),
      initialized: true,
      client: 'somebody',
      subscribed: [],
    })
    expect(JSON.parse(last.result.content[0].text).pid).not.toBe(pid)
    expect(await proxy.end()).toEqual({ code: 0, signal: null })
    expect(proxy.said()).toEqual([expect.stringContaining('Upstream exited: exit code 0; it is tried again')])
  })
})
