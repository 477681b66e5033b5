import { describe, expect, it, vi } from 'vitest'
import { serve } from '../fixtures/closing.js'
import { failure, named, proxyTo, sseWays } from '../fixtures/faults/server-ways.js'
import { stream } from '../fixtures/http-server.js'
import { initialize } from '../fixtures/port.js'

const secrets = { Authorization: 'Bearer secret', 'X-Api-Key': 'secret' }
const away = { detail: 'endpoint of another origin' }

describe.each(named(sseWays.filter(({ detected }) => !detected)))('the endpoint that a %s is told', (_name, way) => {
  it.each([
    ['another port', (url: URL) => url.href],
    ['no scheme', (url: URL) => `//${url.host}/messages`],
    ['user information', (url: URL) => `http://127.0.0.1@${url.host}/messages`],
    ['a script', () => 'javascript:alert(1)'],
    ['a file', () => 'file:///etc/passwd'],
    ['another scheme', (url: URL) => `https://${url.host}/messages`],
    ['no URL', () => 'http://[::1'],
  ])('of another origin is not gone to, and the stream is closed: %s', async (_what, address) => {
    const other = await serve((_seen, response) => response.writeHead(200).end())
    const server = await serve((_seen, response) =>
      stream(response).write(`event: endpoint\ndata: ${address(other.url)}\n\n`),
    )
    const { caller } = await proxyTo(way, server.url, { headers: secrets })
    caller.say(initialize())
    expect(await caller.until(1)).toEqual([failure('init', 'upstream_bad_response', away)])
    expect(other.seen).toEqual([])
    await vi.waitFor(() => expect(server.sockets.size).toBe(0))
    expect(server.seen.map(({ method }) => method)).toEqual(['GET'])
  })

  it.each([301, 302, 307, 308])('is not looked for where the stream is at another origin (%i)', async (status) => {
    const other = await serve((_seen, response) => stream(response).write('event: endpoint\ndata: /messages\n\n'))
    const server = await serve((_seen, response) => response.writeHead(status, { location: other.url.href }).end())
    const { caller } = await proxyTo(way, server.url, { headers: secrets })
    caller.say(initialize())
    const detail = `HTTP ${status} to another origin`
    expect(await caller.until(1)).toEqual([failure('init', 'upstream_bad_response', { detail })])
    expect(other.seen).toEqual([])
  })

  it('is the one of the session: a second one ends it, and nobody goes there', async () => {
    const other = await serve((_seen, response) => response.writeHead(200).end())
    const server = await serve((seen, response) => {
      if (seen.method === 'POST') return response.writeHead(202).end()
      return stream(response).write(`event: endpoint\ndata: /messages\n\nevent: endpoint\ndata: ${other.url.href}\n\n`)
    })
    const { caller, app } = await proxyTo(way, server.url, { headers: secrets })
    caller.say(initialize())
    const [told] = await caller.until(1)
    expect(told?.error).toMatchObject({ code: -31004, data: { reason: 'upstream_session_lost' } })
    await vi.waitFor(() => expect(app.stats()).toMatchObject({ sessions: 0, pending: 0 }))
    expect(other.seen).toEqual([])
  })
})
