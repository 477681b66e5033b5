import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { describe, expect, it, vi } from 'vitest'
import type { Session } from '../../src/session.js'
import { openUpstream, type UrlUpstream } from '../../src/upstream/index.js'
import type { Wire } from '../../src/wire.js'
import { serve } from '../fixtures/closing.js'
import { json, listenTo, modern, result } from '../fixtures/http-server.js'

describe('the sessions with one URL', () => {
  it.each(['http', undefined] as const)('share connections, credentials and schemas (type %s)', async (type) => {
    const ports = new Set<number | undefined>()
    const server = await serve((seen, response) => {
      ports.add(response.socket?.remotePort)
      if (seen.headers.authorization === undefined) response.writeHead(401).end()
      else json(response, result(JSON.parse(seen.body).id, { tools: [] }))
    })
    const auth = vi.fn(() => ({ authorization: 'Bearer x' }))
    const upstream: UrlUpstream = { url: server.url, auth, ...(type && { type }) }
    const { open } = openUpstream(upstream)
    for (const id of [1, 2, 3]) {
      const wire = (await open({} as Session)) as Wire
      const { until } = listenTo(wire)
      await wire.start()
      await wire.send(modern(id, 'tools/call', { name: 't' }))
      expect(await until(1)).toEqual([result(id, { tools: [] })])
      await wire.close()
    }
    expect(auth).toHaveBeenCalledTimes(1)
    expect(server.methods()).toEqual(['tools/list', 'tools/list', 'tools/call', 'tools/call', 'tools/call'])
    expect(ports.size).toBeLessThan(server.seen.length)
  })

  it('keep no process alive once they are over', async () => {
    const server = await serve((seen, response) => json(response, result(JSON.parse(seen.body).id)))
    const index = new URL('../../src/upstream/index.ts', import.meta.url)
    const program = `
      import { openUpstream } from ${JSON.stringify(index.href)}
      const wire = await openUpstream({ url: ${JSON.stringify(server.url.href)}, type: 'http' }).open({})
      wire.onframe = async () => {
        await wire.close()
        console.log('closed')
      }
      await wire.send(Buffer.from('{"jsonrpc":"2.0","id":1,"method":"ping"}'))`
    const tsx = fileURLToPath(new URL('../../node_modules/tsx/dist/cli.mjs', import.meta.url))
    const child = spawn(process.execPath, [tsx, '--input-type=module', '-e', program], {
      cwd: fileURLToPath(new URL('../..', import.meta.url)),
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    const [output] = await once(child.stdout, 'data')
    const closedAt = performance.now()
    const [code] = await once(child, 'close')
    expect([String(output), code]).toEqual(['closed\n', 0])
    // An idle connection lives for 4 s.
    expect(performance.now() - closedAt).toBeLessThan(3_000)
  })
})
