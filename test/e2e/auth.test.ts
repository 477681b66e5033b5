import { Client as ClientV2, StreamableHTTPClientTransport as HttpV2 } from '@modelcontextprotocol/client'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { SSEClientTransport } from '@modelcontextprotocol/sdk/client/sse.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import { createProxy, type Middleware, stdio, type Upstream } from 'open-mcp-proxy'
import { expect, test } from 'vitest'
import { auth, type User } from '../../middleware/auth.js'
import { closing } from '../fixtures/closing.js'
import { stop } from '../fixtures/command.js'
import { AUDIENCE, bearer, issuer } from '../fixtures/issuer.js'
import { everything, startEverything, startTarget, target } from '../fixtures/servers.js'
import { proxied, talkTo } from '../fixtures/talk.js'

const info = { name: 'test', version: '1.0.0' }

interface Kind {
  tool: string
  args: Record<string, string>
  text: string
  upstream(): Upstream | Promise<Upstream>
}

const echo = { tool: 'echo', args: { message: 'hi' }, text: 'Echo: hi' }
const simple = { tool: 'test_simple_text', args: {}, text: 'This is a simple text response for testing.' }

const kinds: Record<string, Kind> = {
  'server-everything over stdio': { ...echo, upstream: () => stdio(process.execPath, [everything, 'stdio']) },
  'server-everything over HTTP': {
    ...echo,
    upstream: async () => {
      const { child, origin } = await startEverything('streamableHttp')
      closing.push(() => stop(child))
      return { url: `${origin}/mcp` }
    },
  },
  'the target over stdio': { ...simple, upstream: () => stdio(process.execPath, [target, '--stdio']) },
  'the target over HTTP': {
    ...simple,
    upstream: async () => {
      const { child, origin } = await startTarget()
      closing.push(() => stop(child))
      return { url: `${origin}/mcp` }
    },
  },
}

async function gateway(upstream: Upstream) {
  const from = await issuer()
  const users = new Map<string, Set<string | undefined>>()
  const note: Middleware<{ user: User }> = (ctx, next) => {
    if (ctx.kind === 'request' && ctx.from === 'client') {
      const { era, id } = ctx.state.user ? { era: ctx.session.era, id: ctx.state.user.id } : { era: '', id: undefined }
      users.set(era, (users.get(era) ?? new Set()).add(id))
    }
    return next()
  }
  const jwt = { issuer: from.url, audience: AUDIENCE, jwksUri: from.jwksUri }
  const app = createProxy().use(auth({ jwt }), note)
  const errors: string[] = []
  app.on('error', ({ message }) => errors.push(message))
  closing.push(() => app.close({ urgent: true }))
  const { address } = await app.listen(upstream, { port: 0 })
  return { from, address, origin: new URL(address).origin, users, errors }
}

/** Calls a tool of the server as a client that knows no token, and one that does. */
const clients: Record<
  string,
  (url: URL, headers: Record<string, string>) => Promise<{ client: Client; close(): Promise<void> }>
> = {
  'v1 over HTTP': async (url, headers) => {
    const client = new Client(info)
    const transport = new StreamableHTTPClientTransport(new URL('/mcp', url), { requestInit: { headers } })
    await client.connect(transport)
    return {
      client,
      async close() {
        await transport.terminateSession()
        await client.close()
      },
    }
  },
  'v1 over SSE': async (url, headers) => {
    const client = new Client(info)
    await client.connect(new SSEClientTransport(new URL('/sse', url), { requestInit: { headers } }))
    return { client, close: () => client.close() }
  },
  'v2 of either era': async (url, headers) => {
    const client = new ClientV2(info, { versionNegotiation: { mode: 'auto' } })
    await client.connect(new HttpV2(new URL('/mcp', url), { requestInit: { headers } }))
    return { client: client as unknown as Client, close: () => client.close() }
  },
}

for (const [name, { tool, args, text, upstream }] of Object.entries(kinds)) {
  for (const [generation, connect] of Object.entries(clients)) {
    test(`${name}, client ${generation}: with a token as without auth, without one not at all`, async () => {
      const { from, address, users, errors } = await gateway(await upstream())
      await expect(connect(new URL(address), {})).rejects.toThrow()
      await expect(connect(new URL(address), bearer(await from.sign({ aud: 'x' })))).rejects.toThrow()
      expect(users.size).toBe(0)
      const { client, close } = await connect(new URL(address), bearer(await from.sign()))
      const { content } = await client.callTool({ name: tool, arguments: args })
      expect(content).toEqual([{ type: 'text', text }])
      await close()
      const isModern = generation.startsWith('v2') && name.startsWith('the target')
      // Who speaks both eras finds out which one first.
      expect(users.get(isModern ? 'modern' : 'legacy')).toEqual(new Set(['ada']))
      expect([...users.values()].flatMap((it) => [...it])).not.toContain(undefined)
      expect(errors).toEqual([])
      expect(from.state.asked).toBe(1)
    })
  }
}

test.each(['v1', 'v2-modern'] as const)(
  'the client on stdin and stdout of the command, %s: whom `local` names',
  async (generation) => {
    const where = { command: process.execPath, args: [target, '--stdio'] }
    const talk = await talkTo(proxied(where, '--use', 'auth={"local":{"id":"me"}}'), generation)
    closing.push(() => talk.close())
    expect(await talk.tool(simple.tool)).toMatchObject({ content: [{ type: 'text', text: simple.text }] })
    const closed = { tokens: [{ token: 'x', id: 'x' }] }
    const refused = talkTo(proxied(where, '--use', `auth=${JSON.stringify(closed)}`), generation)
    await expect(refused).rejects.toThrow('Denied: not authenticated')
  },
)
