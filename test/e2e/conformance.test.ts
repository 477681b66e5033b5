import { mkdtempSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, test } from 'vitest'
import { gone, omproxy, path, stop } from '../fixtures/command.js'
import { asServer, expected, type Version } from '../fixtures/conformance.js'
import { asOptions, firstHalf, TOKEN } from '../fixtures/first-half.js'
import { startTarget, target } from '../fixtures/servers.js'

const suites: Record<string, { version: Version; args: string[] }> = {
  '01-all': { version: '01', args: ['--suite', 'all'] },
  '02-req-2025-11-25': { version: '02', args: ['--requirements', '2025-11-25'] },
  '02-req-2026-07-28': { version: '02', args: ['--requirements', '2026-07-28'] },
}

interface SetUp {
  upstream: 'http' | 'stdio'
  /** The options of each proxy, from the server on. */
  proxies: string[][]
}

const read = ['head', 'whole', 'head', 'whole', 'whole'].flatMap((it) => [
  '--use',
  `${path('../fixtures/middleware.mjs')}#${it}`,
])

const directory = mkdtempSync(join(tmpdir(), 'omproxy-conformance-'))
afterAll(() => rm(directory, { recursive: true, force: true }))

/** The suites have no token: the proxy in front does. */
const guarded = [asOptions(firstHalf(directory)), ['--header', `Authorization: Bearer ${TOKEN}`]]

const setUps: Record<string, SetUp> = {
  HTTP: { upstream: 'http', proxies: [[]] },
  stdio: { upstream: 'stdio', proxies: [[]] },
  'HTTP, with five middleware that read': { upstream: 'http', proxies: [read] },
  'stdio, behind two proxies': { upstream: 'stdio', proxies: [[], []] },
  'HTTP, behind all that watches and decides': { upstream: 'http', proxies: guarded },
}

const listens = /http:\/\/[^\s/]+:(\d+)\/mcp/

/** How often a client may come back to a stream is for the server's own HTTP to say: without it there is less to check. */
const unpolled = (line: string) => line.replace(/(?<=server-sse-polling: )\d+(?= passed)/, 'some')

for (const [name, { upstream, proxies }] of Object.entries(setUps)) {
  test.concurrent(`the conformance suite over ${name}: as without the proxy`, async ({ signal, onTestFinished }) => {
    const startProxy = async (args: string[]) => {
      const proxy = omproxy(args)
      onTestFinished(() => proxy.kill())
      await proxy.when(() => listens.test(proxy.stderr), 'it listens')
      // The suite wants this name: with another host it is that a server has to refuse a request.
      return { proxy, url: `http://localhost:${listens.exec(proxy.stderr)![1]}/mcp` }
    }
    const startFirst = async (options: string[]) => {
      if (upstream === 'stdio') {
        return startProxy(['stdio', '--listen', '0', ...options, '--', process.execPath, target, '--stdio'])
      }
      const { child, origin } = await startTarget()
      onTestFinished(() => stop(child))
      return startProxy(['http', '--url', `${origin}/mcp`, '--listen', '0', ...options])
    }
    const [first, ...further] = proxies
    const started = [await startFirst(first!)]
    for (const options of further) {
      started.unshift(await startProxy(['http', '--url', started[0]!.url, '--listen', '0', ...options]))
    }

    const shape = upstream === 'stdio' ? unpolled : (line: string) => line
    const direct: Record<string, unknown> = {}
    const through: Record<string, unknown> = {}
    for (const [suite, { version, args }] of Object.entries(suites)) {
      const wanted = await expected(suite)
      const got = await asServer(version, args, started[0]!.url, signal)
      direct[suite] = { ...wanted, scenarios: wanted.scenarios.map(shape) }
      through[suite] = { ...got, scenarios: got.scenarios.map(shape) }
    }
    expect(through).toEqual(direct)

    for (const { proxy } of started) {
      proxy.child.kill('SIGTERM')
      await gone(proxy.child.pid!)
      expect(proxy.texts()).toEqual([])
    }
  }, 300_000)
}
