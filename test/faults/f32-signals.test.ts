import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { expect, test, vi } from 'vitest'
import { closing } from '../fixtures/closing.js'
import { cli, gone, isAlive } from '../fixtures/command.js'
import { child, clientOf, exited, temporary, ways } from '../fixtures/faults/child-ways.js'

/** A proxy that leads a group of its own, as a shell's job does. */
function job() {
  const file = temporary('journal')
  const proxy = spawn(process.execPath, [cli, 'stdio', '--log-level', 'info', '--', process.execPath, child, file], {
    detached: true,
  })
  closing.push(() => void (proxy.exitCode ?? proxy.signalCode ?? proxy.kill('SIGKILL')))
  proxy.stdin.on('error', () => {})
  let out = ''
  let err = ''
  proxy.stderr.on('data', (chunk) => {
    err += chunk
  })
  proxy.stdout.on('data', (chunk) => {
    out += chunk
  })
  const call = (id: number, name: string) =>
    proxy.stdin.write(`${JSON.stringify({ jsonrpc: '2.0', id, method: 'tools/call', params: { name } })}\n`)
  const messages = () =>
    out
      .split('\n')
      .slice(0, -1)
      .map((line) => JSON.parse(line))
  return { proxy, call, messages, said: () => err }
}

test('F32: SIGINT of a terminal is not the child’s: what is in flight is answered', async () => {
  const { proxy, call, messages, said } = job()
  call(1, 'behind')
  call(2, 'echo')
  call(3, 'behind')
  await vi.waitFor(() => expect(messages()).toHaveLength(2))
  const { pid } = messages()[0].result
  const exit = once(proxy, 'close')
  // To all of the group, as a terminal does.
  process.kill(-proxy.pid!, 'SIGINT')
  await vi.waitFor(() => expect(said()).toContain('SIGINT: '))
  call(4, 'echo')
  await vi.waitFor(() => expect(messages()).toHaveLength(3))
  expect(messages()[2]).toMatchObject({ id: 4, error: { code: -31008 } })
  expect(isAlive(pid)).toBe(true)
  process.kill(-proxy.pid!, 'SIGINT')
  expect(await exit).toEqual([130, null])
  expect(messages()[3]).toMatchObject({ id: 3, error: { code: -31008, data: { phase: 'sent' } } })
  await gone(pid)
})

test.each(ways)(
  'F32: a child that is ended by a signal of somebody else’s, over %s: no drain waits for it',
  async (way) => {
    const client = await clientOf(way)
    const pid = (await client.call('echo')).result!.pid as number
    const waiting = client.told('a', 'never')
    await vi.waitFor(() => expect(client.journal()).toEqual(['a']))
    client.run.child.kill('SIGTERM')
    process.kill(pid, 'SIGTERM')
    expect((await waiting).error).toEqual(exited('signal SIGTERM'))
    expect(await client.run.exit).toEqual({ code: 143, signal: null })
  },
)
