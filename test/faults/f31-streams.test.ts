import { mkdirSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test, vi } from 'vitest'
import { gone } from '../fixtures/command.js'
import { shell } from '../fixtures/faults/child-shell.js'
import { child, onStdio, temporary } from '../fixtures/faults/child-ways.js'

const server = ['stdio', '--', process.execPath, child]
const call = (id: number, name = 'echo', args = {}) =>
  JSON.stringify({ jsonrpc: '2.0', id, method: 'tools/call', params: { name, arguments: args } })
const answered = [{ jsonrpc: '2.0', id: 1, result: { pid: expect.any(Number), n: 1 } }]

describe('stdin', () => {
  test.each(['<&-', '</dev/null', '</'])('%s: a client that is not there has left', async (redirect) => {
    expect(await shell(`"$@" ${redirect}`, server).ended).toEqual({ code: 0, out: '', err: '' })
  })

  test('that is a file is read to its end, and all is answered', async () => {
    const file = temporary('requests')
    const { ended } = shell(`printf '%s\\n' '${call(1, 'echo', { n: 1 })}' >"${file}"; "$@" <"${file}"`, server)
    const { out, ...rest } = await ended
    expect([JSON.parse(out)]).toEqual(answered)
    expect(rest).toEqual({ code: 0, err: '' })
  })
})

describe('stdout', () => {
  test('that is closed takes nothing: code 0, no stack trace', async () => {
    const { send, ended } = shell('exec "$@" >&-', server)
    send(call(1), true)
    expect(await ended).toEqual({ code: 0, out: '', err: '' })
  })

  test('that is full is a failure: one line, code 1, and the child is gone', async () => {
    const journal = temporary('journal')
    const { send, ended } = shell('exec "$@" >/dev/full', [...server, journal])
    send(call(1, 'echo', { token: 't' }))
    expect(await ended).toEqual({ code: 1, out: '', err: 'omproxy: ENOSPC: no space left on device, write\n' })
    expect(await readFile(journal, 'utf8')).toBe('t\n')
  })
})

describe('stderr', () => {
  test.each([['2>&-'], ['2>/dev/full']])('%s: what is said is lost, and nothing else', async (redirect) => {
    const args = ['stdio', '--log-level', 'debug', '--use', 'logger', ...server.slice(1)]
    const { send, ended } = shell(`exec "$@" ${redirect}`, args)
    send(call(1, 'echo', { n: 1 }), true)
    const { out, ...rest } = await ended
    expect([JSON.parse(out)]).toEqual(answered)
    expect(rest).toEqual({ code: 0, err: '' })
  })

  test('that is closed by its reader, while the child has much to say', async () => {
    const { run, call } = onStdio(server)
    run.child.stderr.destroy()
    expect((await call('noise', { bytes: 1 << 20 })).result).toEqual({ bytes: 1 << 20 })
    expect((await call('echo', { n: 1 })).result).toMatchObject({ n: 1 })
    expect(await run.end()).toEqual({ code: 0, signal: null })
  })

  test('that nobody reads holds nobody up, and is not kept: the child goes on, and all ends', async () => {
    const { run, call } = onStdio(server)
    run.child.stderr.pause()
    const bytes = 64 << 20
    expect((await call('noise', { bytes })).result).toEqual({ bytes })
    const [, rss] = /VmHWM:\s+(\d+)/.exec(await readFile(`/proc/${run.child.pid}/status`, 'utf8'))!
    expect(Number(rss) / 1024).toBeLessThan(150)
    const pid = (await call('echo')).result!.pid as number
    run.child.stdin.end()
    // Its stderr is not at its end before it is read.
    await gone(pid)
    await vi.waitFor(() => expect(run.child.exitCode).toBe(0), 10_000)
    run.child.stderr.destroy()
  })
})

test('no stdin, no stdout and no stderr: there is nothing to do', async () => {
  expect(await shell('exec "$@" <&- >&- 2>&-', server).ended).toEqual({ code: 0, out: '', err: '' })
})

test('no environment: no HOME, no PATH', async () => {
  const { send, ended } = shell('exec env -i "$@"', server)
  send(call(1, 'echo', { n: 1 }), true)
  const { out, ...rest } = await ended
  expect([JSON.parse(out)]).toEqual(answered)
  expect(rest).toEqual({ code: 0, err: '' })
})

describe('a working directory that is deleted', () => {
  const inGone = (args: string[]) => {
    const folder = join(temporary('x'), '..', 'gone')
    mkdirSync(folder)
    return shell('rmdir "$PWD"; exec "$@"', args, folder)
  }

  test('is not needed', async () => {
    const { send, ended } = inGone(server)
    send(call(1, 'echo', { n: 1 }), true)
    const { out, ...rest } = await ended
    expect([JSON.parse(out)]).toEqual(answered)
    expect(rest).toEqual({ code: 0, err: '' })
  })

  test('has no configuration file: one line', async () => {
    const { code, out, err } = await inGone([]).ended
    expect({ code, out, lines: err.split('\n').length }).toEqual({ code: 1, out: '', lines: 2 })
    expect(err).toMatch(/^omproxy: ENOENT/)
  })
})
