import { describe, expect, test, vi } from 'vitest'
import { behind, openSession, post, whole } from '../fixtures/behind-port.js'
import { closing } from '../fixtures/closing.js'
import { gone, isAlive } from '../fixtures/command.js'
import { type Client, child, clientOf, exited, type Way, ways } from '../fixtures/faults/child-ways.js'
import { ask, initialize, modernPost } from '../fixtures/port.js'

const pidOf = async (client: Client) => (await client.call('echo')).result!.pid as number

/** What becomes of the client of a child that is gone: on a port there is another child. */
async function afterwards(way: Way, client: Client, pid: number) {
  if (way === 'stdio') expect(await client.run.exit).toEqual({ code: 1, signal: null })
  // What is written before the end is known may have been read: that is told as any other.
  else await vi.waitFor(async () => expect((await client.call('echo')).result?.pid).toEqual(expect.any(Number)), 10_000)
  await gone(pid)
}

describe.each(ways)('over %s', (way) => {
  test('F1: a child that exits answers nobody: each that waits is told so once, and nothing runs twice', async () => {
    const client = await clientOf(way)
    const pid = await pidOf(client)
    const waiting = [client.told('a', 'never'), client.told('b', 'never')]
    await vi.waitFor(() => expect(client.journal().sort()).toEqual(['a', 'b']))
    const answers = await Promise.all([...waiting, client.told('c', 'exit', { code: 3 })])
    expect(answers.map(({ error }) => error)).toEqual([1, 2, 3].map(() => exited('exit code 3')))
    await afterwards(way, client, pid)
    expect(client.journal().sort()).toEqual(['a', 'b', 'c'])
  })

  test('F3: a grandchild that holds stdout holds up nobody, and ends too', async () => {
    const client = await clientOf(way)
    const pid = await pidOf(client)
    const { result } = await client.call('hold')
    const grandchild = result!.pid as number
    expect((await client.call('exit', { code: 0 })).error).toEqual(exited('exit code 0'))
    await afterwards(way, client, pid)
    await gone(grandchild)
  })

  test('F5: half a line is nothing, to nobody', async () => {
    const client = await clientOf(way)
    const pid = await pidOf(client)
    expect((await client.call('partial')).error).toEqual(exited('exit code 0'))
    await afterwards(way, client, pid)
    expect([client.run.odd, client.run.texts().join()]).toEqual([[], expect.not.stringContaining('secret')])
    expect(client.run.stderr).toContain('bytes of an incomplete line from the upstream were discarded')
  })

  test('what a child said before it ended arrives', async () => {
    const client = await clientOf(way)
    const pid = await pidOf(client)
    expect((await client.call('last')).result).toEqual({ pid })
    await afterwards(way, client, pid)
  })
})

test('F1: without a restart a legacy session is over with its child', async () => {
  const client = await clientOf('legacy HTTP', { args: ['--restart', 'never'] })
  const pid = await pidOf(client)
  expect((await client.call('exit', { code: 0 })).error).toEqual(exited('exit code 0'))
  await vi.waitFor(async () => expect((await client.call('echo')).status).toBe(404))
  await gone(pid)
})

describe('F2: on a port, a server', () => {
  const initialized = async (url: string) =>
    (await whole(await post(url, initialize()))).texts.map((it) => JSON.parse(it))
  const stateless = async (url: string) => [await (await modernPost(url, { id: 'init', method: 'tools/list' })).json()]

  async function port(command: string[]) {
    const { run, origin, http } = await behind(['stdio', '--listen', '0', '--log-level', 'debug', '--', ...command])
    closing.push(run.kill)
    return { run, url: http.http, health: async () => (await ask(`${origin}/healthz`)).json() }
  }

  test.each([
    ['that exits before it says anything', [process.execPath, child, '', 'mute'], -31001],
    ['that is not there', ['/nowhere/server'], -31009],
    ['that may not be run', [child], -31009],
  ])('%s: each client is told, the port stays, and shows that it is down', async (_case, command, code) => {
    const { run, url, health } = await port(command)
    for (const asked of [initialized, stateless, initialized]) {
      const answers = await asked(url)
      expect(answers).toEqual([
        { jsonrpc: '2.0', id: 'init', error: { code, message: expect.any(String), data: expect.any(Object) } },
      ])
      expect(JSON.stringify(answers)).not.toMatch(/licence|nowhere|child-faulty/)
    }
    await vi.waitFor(async () => expect(await health()).toMatchObject({ status: 'ok', upstream: { state: 'down' } }))
    if (code === -31001) expect(run.stderr).toContain('\\u{1b}[31mno licence')
    expect(run.stderr).not.toMatch(/\n\s+at /)
    expect(run.stderr).not.toContain('\u001b')
  })
})

test('F1: the children of other sessions feel nothing', async () => {
  const { run, http } = await behind(['stdio', '--listen', '0', '--', process.execPath, child])
  closing.push(run.kill)
  const [first, second] = [await openSession(http.http), await openSession(http.http)]
  const called = async (by: typeof first, name: string, args = {}) =>
    JSON.parse((await whole(await by.call('1', name, args))).texts.at(-1)!)
  const { result } = await called(second, 'echo')
  const waiting = called(second, 'hold')
  expect(await called(first, 'exit', { code: 1 })).toMatchObject({ error: { code: -31001 } })
  const grandchild = (await waiting).result.pid
  expect((await called(second, 'echo')).result).toEqual(result)
  expect(isAlive(grandchild)).toBe(true)
  await second.leave()
  await gone(grandchild)
})
