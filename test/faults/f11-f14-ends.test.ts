import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { createProxy, type Session, stdio } from 'open-mcp-proxy'
import { describe, expect, test, vi } from 'vitest'
import { closing } from '../fixtures/closing.js'
import { childrenOf, cli, gone, isAlive, path } from '../fixtures/command.js'
import {
  type Client,
  child,
  clientOf,
  onStdio,
  seeded,
  temporary,
  type Way,
  ways,
} from '../fixtures/faults/child-ways.js'
import { HandWire } from '../fixtures/played.js'
import { modernPost } from '../fixtures/port.js'

const pidOf = async (client: Client) => (await client.call('echo')).result!.pid as number

/** Kills what a test is about where it fails. */
const buried = (pid: number) => closing.push(() => void (isAlive(pid) && process.kill(pid, 'SIGKILL')))

/** At once: most of the time is spent waiting. */
const overEachWay = (run: (way: Way) => Promise<void>) => async () => void (await Promise.all(ways.map(run)))

test(
  'F11: a child that minds neither the end of its stdin nor SIGTERM is gone within 5 s',
  overEachWay(async (way) => {
    const client = await clientOf(way, { mode: ['stubborn'] })
    const pid = await pidOf(client)
    buried(pid)
    await endsInTime(client, pid)
  }),
)

test(
  'a child that is stopped: a call waits until it goes on, and SIGTERM ends all the same',
  overEachWay(async (way) => {
    const client = await clientOf(way)
    const pid = await pidOf(client)
    buried(pid)
    process.kill(pid, 'SIGSTOP')
    await stopped(pid)
    let came = false
    const waiting = client.call('echo', { n: 1 }).then((it) => {
      came = true
      return it
    })
    // What asks nothing of the child goes on meanwhile.
    if (client.origin) expect((await fetch(`${client.origin}/healthz`)).status).toBe(200)
    expect(came).toBe(false)
    process.kill(pid, 'SIGCONT')
    expect((await waiting).result).toEqual({ pid, n: 1 })
    process.kill(pid, 'SIGSTOP')
    await stopped(pid)
    await endsInTime(client, pid)
  }),
)

test('a child that is stopped: a call of a middleware runs out of its time, and the child may answer late', async () => {
  const { app, session } = await inProgram()
  const echo = (args: object, timeout?: number) =>
    session.call('server', 'tools/call', { name: 'echo', arguments: args }, { timeout })
  const { pid } = (await echo({})) as { pid: number }
  buried(pid)
  process.kill(pid, 'SIGSTOP')
  await stopped(pid)
  await expect(echo({}, 50)).rejects.toMatchObject({ code: -31002, data: { phase: 'sent' } })
  process.kill(pid, 'SIGCONT')
  expect(await echo({ n: 2 })).toEqual({ pid, n: 2 })
  await app.close()
  expect(isAlive(pid)).toBe(false)
})

/** A session of the library, with a child. */
async function inProgram() {
  const app = createProxy({ drainTimeout: 1_000 })
  closing.push(() => app.close({ urgent: true }))
  const client = new HandWire()
  const [session] = (await Promise.all([
    once(app, 'session').then(([it]) => it),
    app.listen(stdio(process.execPath, [child, temporary('journal')]), (accept) => {
      const { closed, close } = accept(client)
      return { closed, close }
    }),
  ])) as [Session, unknown]
  return { app, session }
}

/** Five seconds by right; more only where the machine is busy. */
async function endsInTime({ run }: Client, pid: number) {
  const at = performance.now()
  run.child.kill('SIGTERM')
  expect(await run.exit).toEqual({ code: 143, signal: null })
  expect(performance.now() - at).toBeLessThan(8_000)
  expect(isAlive(pid)).toBe(false)
}

describe.each(ways)('over %s', (way) => {
  test('F12: what left its group outlives it, but holds up nobody', async () => {
    const client = await clientOf(way)
    const escaped = (await client.call('hold', { detached: true })).result!.pid as number
    buried(escaped)
    const pid = await pidOf(client)
    client.run.child.kill('SIGTERM')
    expect(await client.run.exit).toEqual({ code: 143, signal: null })
    expect([isAlive(pid), isAlive(escaped)]).toEqual([false, true])
  })

  test('F14: SIGKILL of the proxy under load leaves no child that reads', async () => {
    const { seed, random } = seeded()
    for (let round = 0; round < 2; round++) {
      const client = await clientOf(way)
      const pid = await pidOf(client)
      buried(pid)
      const calls = Array.from({ length: 50 }, () => client.call('large', { bytes: 20_000 }).catch(() => {}))
      await turns(random() * 200)
      client.run.child.kill('SIGKILL')
      expect({ seed, ...(await client.run.exit) }).toEqual({ seed, code: null, signal: 'SIGKILL' })
      await gone(pid)
      await Promise.all(calls)
    }
  })

  test('SIGKILL of the child under load: each call has one outcome, and none ran twice', async () => {
    const { seed, random } = seeded()
    for (let round = 0; round < 2; round++) {
      const client = await clientOf(way)
      const pid = await pidOf(client)
      const tokens = Array.from({ length: 50 }, (_, n) => `${n}`)
      const calls = tokens.map((token) => client.told(token, 'echo', { text: 'x'.repeat(1_000) }))
      await turns(random() * 100)
      process.kill(pid, 'SIGKILL')
      const outcomes = await Promise.allSettled(calls)
      const journal = client.journal()
      const wrong = outcomes.flatMap((it, n) => {
        const times = journal.filter((token) => token === tokens[n]).length
        // On stdio the proxy ends with its child: what it had not read yet it has not accepted.
        if (it.status === 'rejected') return way === 'stdio' && times === 0 ? [] : [String(it.reason)]
        const { result, error, status } = it.value
        if (result) return result.token === tokens[n] && times === 1 ? [] : [`result ran ${times} times`]
        if (status === 404) return times === 0 ? [] : ['a 404 that ran']
        if (error?.code !== -31001) return [JSON.stringify(it.value)]
        if (error.data?.phase === 'not_sent' && times > 0) return ['not_sent, but it ran']
        return times <= 1 ? [] : [`ran ${times} times`]
      })
      expect({ seed, wrong }).toEqual({ seed, wrong: [] })
      await gone(pid)
      client.run.kill()
      await client.run.exit
    }
  })
})

async function turns(count: number): Promise<void> {
  for (let n = 0; n < count; n++) await new Promise(setImmediate)
}

/** Resolves when a process is stopped. */
const stopped = (pid: number) =>
  vi.waitFor(() => expect(readFileSync(`/proc/${pid}/stat`, 'utf8')).toMatch(/^\d+ \(.*\) T/), 5_000)

test('F14: SIGKILL of the client under load ends proxy and child', async () => {
  const { seed, random } = seeded()
  for (let round = 0; round < 2; round++) {
    const file = temporary('pids')
    const client = spawn(process.execPath, [path('./faults/child-client.mjs'), cli, child, file], { stdio: 'ignore' })
    const pids = () => readFileSync(file, 'utf8').trim().split(' ').map(Number)
    await vi.waitFor(() => expect(pids()).toHaveLength(2), 10_000)
    pids().forEach(buried)
    await turns(random() * 200)
    client.kill('SIGKILL')
    await once(client, 'exit')
    for (const pid of pids()) await gone(pid).catch((error) => expect.fail(`${error.message}, seed ${seed}`))
  }
})

test('F14: SIGKILL of the proxy leaves a child that never reads its stdin: nothing tells it', async () => {
  const { run } = onStdio(['stdio', '--', process.execPath, path('./stdio-deaf.mjs')])
  await vi.waitFor(() => expect(childrenOf(run.child.pid!)).toHaveLength(1), 10_000)
  const [pid] = childrenOf(run.child.pid!) as [number]
  buried(pid)
  run.child.kill('SIGKILL')
  await run.exit
  expect(isAlive(pid)).toBe(true)
})

test('F13: what is in flight when stdin ends reaches a slow reader whole, however large it is', async () => {
  const { run } = onStdio(['stdio', '--', process.execPath, child])
  run.child.stdout.pause()
  const bytes = 1 << 20
  const ids = [1, 2, 3, 4, 5, 6, 7, 8]
  for (const id of ids)
    run.send({ jsonrpc: '2.0', id, method: 'tools/call', params: { name: 'large', arguments: { bytes } } })
  run.child.stdin.end()
  // Nobody reads until the proxy has nothing more to do but to wait for that.
  await vi.waitFor(() => expect(childrenOf(run.child.pid!)).toEqual([]), 10_000)
  run.child.stdout.resume()
  expect(await run.exit).toEqual({ code: 0, signal: null })
  expect(run.messages().map(({ id, result }) => [id, result.text.length])).toEqual(ids.map((id) => [id, bytes]))
})

describe('F14: --exit-with-parent', () => {
  /** A port whose parent is a shell of the test's. */
  async function orphan(...options: string[]) {
    const log = temporary('stderr')
    const script = `"$0" "$@" 2>"${log}" </dev/null & echo $! >"${log}.pid"; wait`
    const args = [cli, 'stdio', '--listen', '0', '--log-level', 'info', ...options, '--', process.execPath, child]
    const parent = spawn('sh', ['-c', script, process.execPath, ...args], { stdio: 'ignore' })
    await vi.waitFor(() => expect(readFileSync(log, 'utf8')).toContain('listening on'), 10_000)
    const pid = Number(readFileSync(`${log}.pid`, 'utf8'))
    buried(pid)
    const [url] = /http:\S+/.exec(readFileSync(log, 'utf8')) as unknown as [string]
    parent.kill('SIGKILL')
    await once(parent, 'exit')
    return { pid, url, said: () => readFileSync(log, 'utf8') }
  }

  test('what is in flight is answered, then proxy and children end', async () => {
    const { pid, url, said } = await orphan('--exit-with-parent')
    await vi.waitFor(() => expect(said()).toContain('the parent is gone'), 10_000)
    await gone(pid)
    await expect(fetch(url)).rejects.toThrow('fetch failed')
  })

  test('without it the port stays', async () => {
    const { pid, url } = await orphan()
    const answer = await modernPost(url, { id: 1, method: 'tools/list' })
    expect(await answer.json()).toMatchObject({ id: 1, result: { tools: [] } })
    process.kill(pid, 'SIGTERM')
    await gone(pid)
  })
})
