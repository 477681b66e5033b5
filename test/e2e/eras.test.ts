import { createProxy, http, stdio, type Upstream } from 'open-mcp-proxy'
import { expect, test } from 'vitest'
import { closing } from '../fixtures/closing.js'
import { stop } from '../fixtures/command.js'
import { initialize, modernPost, post } from '../fixtures/port.js'
import { startTarget, target } from '../fixtures/servers.js'

type Era = 'legacy' | 'modern'

const upstreams: Record<string, (era: Era) => Promise<{ upstream: Upstream; direct?: string }>> = {
  HTTP: async (era) => {
    const { child, origin } = await startTarget('--era', era)
    closing.push(() => stop(child))
    return { upstream: http(`${origin}/mcp`), direct: `${origin}/mcp` }
  },
  stdio: async (era) => ({ upstream: stdio(process.execPath, [target, '--stdio', '--era', era]) }),
}

async function behindPort(upstream: Upstream): Promise<string> {
  const app = createProxy()
  closing.push(() => app.close({ urgent: true }))
  const { address } = await app.listen(upstream, { port: 0 })
  return address as string
}

const discover = { id: 'd', method: 'server/discover' }

// Nothing is translated: whoever speaks another revision is told so by the server itself.
test.each(Object.keys(upstreams))(
  'a legacy client before a server of 2026-07-28 over %s hears its word',
  async (over) => {
    const { upstream, direct } = await upstreams[over]!('modern')
    const { status, headers, json } = await post(await behindPort(upstream), initialize())
    const answer = (await json()) as { error: { code: number } }
    expect([status, headers.get('mcp-session-id'), answer]).toMatchObject([200, null, { id: 'init', error: {} }])
    if (direct) expect(answer).toEqual(await (await post(direct, initialize())).json())
    else expect(answer.error.code).toBe(-32602)
  },
)

test.each(Object.keys(upstreams))(
  'a client of 2026-07-28 before a legacy server over %s hears its word',
  async (over) => {
    const { upstream, direct } = await upstreams[over]!('legacy')
    const { status, json } = await modernPost(await behindPort(upstream), discover)
    const answer = await json()
    if (direct) {
      const its = await modernPost(direct, discover)
      // It knew no id to put there; whoever asked does.
      expect([status, answer]).toEqual([its.status, { ...((await its.json()) as object), id: 'd' }])
    } else {
      expect([status, answer]).toMatchObject([404, { id: 'd', error: { code: -32601 } }])
    }
  },
)
