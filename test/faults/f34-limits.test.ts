import { readFileSync } from 'node:fs'
import { Agent, request } from 'node:http'
import { connect, type Socket } from 'node:net'
import { describe, expect, test, vi } from 'vitest'
import { closing, serve } from '../fixtures/closing.js'
import { shell } from '../fixtures/faults/child-shell.js'
import { child as faulty, onStdio } from '../fixtures/faults/child-ways.js'
import { json } from '../fixtures/http-server.js'
import { initialize } from '../fixtures/port.js'

describe('64 descriptors', () => {
  /** A port with no more than so many, and a client that keeps its one connection. */
  async function port(upstream: string[]) {
    const [transport, ...rest] = upstream as [string]
    const { child, text, ended } = shell('ulimit -n 64; exec "$@"', [transport, '--listen', '0', ...rest])
    await vi.waitFor(() => expect(text.err).toContain('listening on'), 10_000)
    const [url] = /http:\S+/.exec(text.err) as unknown as [string]
    const agent = new Agent({ keepAlive: true, maxSockets: 1 })
    closing.push(() => agent.destroy())
    return { child, url, ended, text, post: (message: object, headers = {}) => post(url, message, headers, agent) }
  }

  const modern = {
    'io.modelcontextprotocol/protocolVersion': '2026-07-28',
    'io.modelcontextprotocol/clientCapabilities': {},
  }
  const list = { jsonrpc: '2.0', id: 1, method: 'tools/list', params: { _meta: modern } }
  const headers = { 'mcp-protocol-version': '2026-07-28', 'mcp-method': 'tools/list' }
  const unreachable = {
    id: expect.anything(),
    error: { code: -31009, data: { phase: 'not_sent', reason: 'upstream_unreachable', retryable: true } },
  }

  /** Opens more connections than there can be; resolves when no more are taken. */
  async function crowd(url: string) {
    const sockets: Socket[] = []
    let refused = 0
    for (let n = 0; n < 100; n++) {
      const socket = connect(Number(new URL(url).port), '127.0.0.1')
      sockets.push(socket.on('error', () => {}).on('close', () => refused++))
    }
    const leave = () => {
      for (const socket of sockets) socket.destroy()
    }
    closing.push(leave)
    await vi.waitFor(() => expect(refused).toBeGreaterThan(30), 10_000)
    return leave
  }

  test('with no more than that many connections are closed at once; the others go on, and there is room again', async () => {
    const { child, url, ended, text, post } = await port(['stdio', '--', process.execPath, faulty])
    expect(await post(list, headers)).toMatchObject({ result: { tools: [] } })
    const leave = await crowd(url)
    // Its child is there already.
    expect(await post(list, headers)).toMatchObject({ result: { tools: [] } })
    leave()
    await vi.waitFor(async () => expect((await fetch(`${new URL(url).origin}/healthz`)).status).toBe(200), 10_000)
    expect(text.err.split('\n')).toHaveLength(2)
    child.kill('SIGTERM')
    expect((await ended).code).toBe(143)
  })

  test('no child can be started: that may be tried again, and the sessions that are there go on', async () => {
    const { url, post } = await port(['stdio', '--', process.execPath, faulty])
    expect(await post(list, headers)).toMatchObject({ result: { tools: [] } })
    const opened = []
    let last: { error?: object } = {}
    while (!last.error && opened.length < 40) {
      last = await post(initialize())
      if (!last.error) opened.push(last)
    }
    expect(opened.length).toBeGreaterThan(5)
    expect(last).toMatchObject(unreachable)
    expect(await post(list, headers)).toMatchObject({ result: { tools: [] } })
    expect((await fetch(`${new URL(url).origin}/healthz`)).status).toBe(200)
  })

  test.each(['http', 'sse'])(
    'no connection to a server over %s can be made: that may be tried again',
    async (transport) => {
      const answer = { jsonrpc: '2.0', id: 1, result: { tools: [] } }
      const server = await serve((_request, response) => json(response, answer, 200, { connection: 'close' }))
      const { url, post } = await port([transport, '--url', server.url.href])
      await post(list, headers)
      const leave = await crowd(url)
      const { length } = server.seen
      const error = { ...unreachable.error, message: 'Upstream unreachable: EMFILE' }
      expect(await post(list, headers)).toMatchObject({ error })
      expect(server.seen).toHaveLength(length)
      leave()
      await vi.waitFor(async () => {
        await post(list, headers)
        expect(server.seen.length).toBeGreaterThan(length)
      }, 10_000)
    },
  )
})

test('a heap of 128 MiB is enough for 200 MiB that pass', async () => {
  const { run } = onStdio(['stdio', '--use', 'logger', '--', process.execPath, faulty], {
    env: { NODE_OPTIONS: '--max-old-space-size=128' },
  })
  const params = { name: 'large', arguments: { bytes: 1 << 20 } }
  const calls = [1, 2, 3, 4, 5, 6, 7, 8].map((id) => ({ jsonrpc: '2.0', id, method: 'tools/call', params }))
  for (let round = 0; round < 25; round++) {
    run.send(...calls)
    await run.until(calls.length)
    expect(run.lines.splice(0).every(({ length }) => length > 1 << 20)).toBe(true)
  }
  const [, rss] = /VmHWM:\s+(\d+)/.exec(readFileSync(`/proc/${run.child.pid}/status`, 'utf8'))!
  expect(Number(rss) / 1024).toBeLessThan(400)
  expect(await run.end()).toEqual({ code: 0, signal: null })
})

function post(url: string, message: object, headers: object, agent: Agent) {
  return new Promise<{ error?: object; result?: object }>((resolve, reject) => {
    const own = { 'content-type': 'application/json', accept: 'application/json, text/event-stream' }
    const sent = request(url, { agent, method: 'POST', headers: { ...own, ...headers } }, (response) => {
      let body = ''
      response.on('data', (chunk) => {
        body += chunk
      })
      response.on('end', () => resolve(JSON.parse(body)))
    })
    sent.on('error', reject).end(JSON.stringify(message))
  })
}
