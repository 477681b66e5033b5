import { readdir, readFile } from 'node:fs/promises'
import { createProxy, stdio } from 'open-mcp-proxy'
import { afterEach, describe, expect, test, vi } from 'vitest'
import { gone, isAlive, omproxy, path, type Running } from '../fixtures/command.js'
import { ask, get, initialize, modernPost, post } from '../fixtures/port.js'

const child = path('./stdio-pid.mjs')
const runs: Running[] = []

afterEach(() => {
  // Nothing but messages is ever written to stdout, and there are none here.
  for (const run of runs.splice(0)) {
    run.kill()
    expect(run.lines).toEqual([])
  }
})

/** The command on a free port in front of a server that says who it is. */
async function serve(options: string[] = [], env: Record<string, string> = {}) {
  const run = omproxy(['stdio', '--log-level', 'info', '--listen', '0', ...options, '--', process.execPath, child], {
    env: { ...process.env, ...env } as Record<string, string>,
  })
  runs.push(run)
  await run.when(() => /listening on \S+\/mcp/.test(run.stderr), 'it listens')
  const [url] = /http:\S+/.exec(run.stderr) as unknown as [string]
  return { run, url, origin: new URL(url).origin }
}

/** A legacy session and the process id of its child. */
async function session(url: string) {
  const answer = await post(url, initialize())
  const { result } = (await answer.json()) as { result: { serverInfo: { version: string } } }
  const headers = { 'mcp-session-id': answer.headers.get('mcp-session-id') as string }
  return { pid: Number(result.serverInfo.version), headers }
}

const call = (id: number, name: string, args: object = {}) => ({
  jsonrpc: '2.0',
  id,
  method: 'tools/call',
  params: { name, arguments: args },
})

const modernCall = (url: string, id: number, name: string, args: object = {}) =>
  modernPost(url, { id, method: 'tools/call', params: { name, arguments: args } })

const healthOf = async (url: string) => (await ask(`${new URL(url).origin}/healthz`)).json()

async function signalled(run: Running, name: NodeJS.Signals) {
  run.child.kill(name)
  await run.when(() => run.stderr.includes(`${name}: `), name)
}

describe('SIGTERM', () => {
  test('accepts no more, lets what is in flight finish, ends streams and children; 128 + 15', async () => {
    const { run, url } = await serve()
    const { pid, headers } = await session(url)
    const stream = await get(url, headers)
    const sse = await get(`${new URL(url).origin}/sse`)
    const inFlight = [post(url, call(1, 'wait', { ms: 500 }), headers), modernCall(url, 1, 'wait', { ms: 500 })]
    // The children have both: their answers to a call behind it have come.
    await (await post(url, call(2, 'x'), headers)).json()
    const shared = (await (await modernCall(url, 2, 'x')).json()) as { result: { pid: number } }
    await signalled(run, 'SIGTERM')
    await expect(fetch(url)).rejects.toThrow('fetch failed')
    const answers = await Promise.all(inFlight.map(async (it) => (await it).json()))
    expect(answers).toMatchObject([{ result: { pid } }, { result: { pid: shared.result.pid } }])
    expect(await run.exit).toEqual({ code: 143, signal: null })
    await Promise.all([stream.text, sse.text])
    expect([pid, shared.result.pid].map(isAlive)).toEqual([false, false])
  })

  test('twice: it ends within a second, whatever is in flight', async () => {
    const { run, url } = await serve()
    const { pid, headers } = await session(url)
    const answer = post(url, call(1, 'never'), headers)
    await (await post(url, call(2, 'x'), headers)).json()
    await signalled(run, 'SIGTERM')
    const at = performance.now()
    run.child.kill('SIGTERM')
    expect(await run.exit).toEqual({ code: 143, signal: null })
    // A second by right; more only where the machine is busy.
    expect(performance.now() - at).toBeLessThan(3_000)
    expect(await (await answer).json()).toMatchObject({ id: 1, error: { code: -31008, data: { phase: 'sent' } } })
    await gone(pid)
  })
})

test('what does not finish in time is told so', async () => {
  const app = createProxy({ drainTimeout: 50 })
  const { address } = await app.listen(stdio(process.execPath, [child]), { port: 0 })
  const url = address as string
  const { pid, headers } = await session(url)
  const answers = [post(url, call(1, 'never'), headers), modernCall(url, 1, 'never')]
  await (await post(url, call(2, 'x'), headers)).json()
  await (await modernCall(url, 2, 'x')).json()
  const closed = vi.fn()
  app.on('close', closed)
  await app.close()
  const error = { code: -31008, data: { source: 'proxy', reason: 'shutting_down', phase: 'sent' } }
  expect(await Promise.all(answers.map(async (it) => (await it).json()))).toMatchObject([{ error }, { error }])
  expect([closed.mock.calls.length, isAlive(pid)]).toEqual([1, false])
})

test('a child of a port has no environment but its own', async () => {
  const { url } = await serve(['--env', 'MINE=1'], { CANARY_TOKEN: 's3cret' })
  const { headers } = await session(url)
  const answer = (await (await post(url, call(1, 'x'), headers)).json()) as { result: { env: string[] } }
  expect(answer.result.env.filter((it) => !/^(HOME|LOGNAME|PATH|SHELL|TERM|USER|__CF.*)$/.test(it))).toEqual(['MINE'])
})

test('what cannot be started is told to each client, and the port stays', async () => {
  const run = omproxy(['stdio', '--listen', '0', '--', '/no/such/command'])
  runs.push(run)
  await run.when(() => run.stderr.includes('listening on'), 'it listens')
  const [url] = /http:\S+/.exec(run.stderr) as unknown as [string]
  for (const ask of [() => post(url, initialize()), () => modernPost(url, { id: 1, method: 'x' })]) {
    const answer = await ask()
    expect([answer.status, await answer.json()]).toMatchObject([200, { error: { code: -31009 } }])
    await vi.waitFor(async () =>
      expect(await healthOf(url)).toMatchObject({ upstream: { name: 'command', state: 'down' } }),
    )
  }
})

test('/healthz tells of process and upstream, and nothing else', async () => {
  const { url, origin } = await serve(['--token', 's3cret-token'])
  const health = async () => {
    const { status, headers, json } = await ask(`${origin}/healthz`)
    const { uptime, ...rest } = (await json()) as Record<string, unknown>
    expect([status, headers.get('cache-control'), typeof uptime]).toEqual([200, 'no-store', 'number'])
    return rest
  }
  const name = process.execPath.split('/').at(-1)
  expect(await health()).toEqual({ status: 'ok', sessions: 0, pending: 0, upstream: { name, state: 'unknown' } })
  const answer = await post(url, initialize(), { authorization: 'Bearer s3cret-token' })
  await answer.json()
  expect(await health()).toEqual({ status: 'ok', sessions: 1, pending: 0, upstream: { name, state: 'up' } })
})

test('1,000 sessions, opened and abandoned: after the idle time nothing of them is left', async () => {
  const { run, url } = await serve(['--idle-timeout', '1'])
  const resources = async () => {
    const proc = `/proc/${run.child.pid}`
    const children = (await readFile(`${proc}/task/${run.child.pid}/children`, 'utf8'))
      .trim()
      .split(' ')
      .filter(Boolean)
    return { descriptors: (await readdir(`${proc}/fd`)).length, children: children.length }
  }
  const abandoned = async (sessions: number) => {
    for (let open = 0; open < sessions; open += 10) {
      await Promise.all(
        Array.from({ length: 10 }, async (_, n) => {
          const { headers } = await session(url)
          if (n === 0) (await get(url, headers)).leave()
        }),
      )
    }
    await vi.waitFor(
      async () => {
        const { sessions } = (await (await ask(`${new URL(url).origin}/healthz`)).json()) as { sessions: number }
        expect([sessions, (await resources()).children]).toEqual([0, 0])
      },
      { timeout: 60_000, interval: 100 },
    )
    return resources()
  }
  const before = await abandoned(20)
  const after = await abandoned(1_000)
  expect(after.children).toBe(0)
  expect(after.descriptors).toBeLessThanOrEqual(before.descriptors + 20)
}, 180_000)
