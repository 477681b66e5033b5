import { readFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { Writable } from 'node:stream'
import { fileURLToPath } from 'node:url'
import fc from 'fast-check'
import { afterEach, describe, expect, test, vi } from 'vitest'
import { RpcError } from '../../src/error.js'
import { type StdioOptions, type StdioTiming, StdioUpstream } from '../../src/upstream/stdio.js'
import { FrameError } from '../../src/wire.js'

const fixture = (name: string) => fileURLToPath(new URL(`../fixtures/stdio-${name}.mjs`, import.meta.url))
const bytes = (text: string) => new TextEncoder().encode(text)

const opened: StdioUpstream[] = []
afterEach(async () => {
  vi.unstubAllEnvs()
  await Promise.all(opened.splice(0).map((wire) => wire.close({ urgent: true })))
})

/** A sink for stderr that keeps what it gets. */
function sink() {
  const written: string[] = []
  const stream = new Writable({
    write(chunk, _encoding, done) {
      written.push(chunk.toString())
      done()
    },
  })
  return { stream, written }
}

/** Makes an upstream of a program, and records all that comes of it, in order. */
function record(options: StdioOptions, timing?: Partial<StdioTiming>) {
  const traffic: unknown[] = []
  const stderr = sink()
  const wire = new StdioUpstream({ stderr: stderr.stream, ...options }, timing)
  opened.push(wire)
  wire.onframe = (frame) => traffic.push(Buffer.from(frame).toString())
  wire.onerror = (error) =>
    traffic.push(error instanceof FrameError ? [error.code, error.head?.length] : `! ${error.message}`)
  const closed = new Promise<Error | undefined>((resolve) => {
    wire.onclose = (reason) => {
      traffic.push(reason instanceof RpcError ? reason.toJSON() : ['close', reason])
      resolve(reason)
    }
  })
  return { wire, traffic, closed, stderr: stderr.written }
}

const play = (name: string, args: string[] = [], options: Partial<StdioOptions> = {}, timing?: Partial<StdioTiming>) =>
  record({ command: process.execPath, args: [fixture(name), ...args], ...options }, timing)

const exited = (detail: string, phase = 'sent') => ({
  code: -31001,
  message: `Upstream exited: ${detail}`,
  data: { source: 'proxy', reason: 'upstream_exited', phase, retryable: true },
})

/** Whether the process runs; one that ended and was not waited for does not. */
function isAlive(pid: number) {
  try {
    process.kill(pid, 0)
    return process.platform !== 'linux' || !/^\d+ \(.*\) Z/.test(readFileSync(`/proc/${pid}/stat`, 'utf8'))
  } catch {
    return false
  }
}

describe('messages', () => {
  test('come back as they went, whatever is in them, and the end of stdin ends the child', async () => {
    const { wire, traffic } = play('echo')
    await wire.start()
    const texts = fc.sample(fc.jsonValue(), 200).map((value) => JSON.stringify({ value, text: 'é€😀\u2028' }))
    texts.push(JSON.stringify({ big: 'ü'.repeat(3_000_000) }))
    for (const text of texts) await wire.send(bytes(text))
    await wire.close()
    expect(traffic).toEqual([...texts, ['close', undefined]])
    expect([wire.exitCode, wire.signal]).toEqual([0, null])
  })

  test('are told from banners, which are skipped, counted and reported once', async () => {
    const out = 'Starting\u001b[1m…\n\n{"id":1}\r\nINFO ready\n"text"\n [{"id":2}]\n'
    const { wire, traffic, closed } = play('say', [out, '', '0'])
    await wire.start()
    await closed
    expect(traffic).toEqual([
      '! The upstream wrote to its stdout what is not JSON-RPC (1 lines): Starting\\u{1b}[1m…',
      '{"id":1}',
      ' [{"id":2}]',
      exited('exit code 0'),
    ])
    expect(wire.skippedLines).toBe(3)
  })

  test('over the limit are reported with their beginning, and the next one comes', async () => {
    const { wire, traffic } = play('echo', [], { maxMessageBytes: 5000 })
    await wire.start()
    void wire.send(bytes(`{"id":1,"x":"${'x'.repeat(6000)}"}`))
    void wire.send(bytes('x'.repeat(6000)))
    void wire.send(bytes('{"id":2}'))
    await wire.close()
    expect(traffic).toEqual([
      [-31007, 4096],
      expect.stringMatching(/^! The upstream wrote .* x{80}$/),
      '{"id":2}',
      ['close', undefined],
    ])
  })

  test('that never end get the child killed', async () => {
    const { wire, traffic, closed } = play('flood', ['endless'], { maxMessageBytes: 65_536 })
    await wire.start()
    await closed
    expect(traffic).toEqual([[-31007, 4096], exited('over 131072 bytes without a newline')])
    await wire.close()
    expect(wire.signal).toBe('SIGKILL')
  })

  test('that were cut off by the end of the child are discarded; a whole one is not', async () => {
    const cut = play('say', ['{"id":1}\n{"id":', '', '0'])
    const whole = play('say', ['{"id":1}\n{"id":2}', '', '0'])
    await Promise.all([cut.wire.start(), whole.wire.start(), cut.closed, whole.closed])
    expect(cut.traffic).toEqual([
      '{"id":1}',
      '! 6 bytes of an incomplete line from the upstream were discarded',
      exited('exit code 0'),
    ])
    expect(whole.traffic).toEqual(['{"id":1}', '{"id":2}', exited('exit code 0')])
  })
})

describe('start', () => {
  const unreachable = (detail: string) => ({
    code: -31009,
    message: `Upstream unreachable: ${detail}`,
    data: { source: 'proxy', reason: 'upstream_unreachable', phase: 'not_sent', retryable: false },
  })

  test.each([
    ['a command that is not there', { command: '/nowhere/server' }, 'the command was not found', 'ENOENT'],
    ['a name that is not in PATH', { command: 'no-such-mcp-server' }, 'the command was not found', 'ENOENT'],
    ['a file that may not be run', { command: fixture('echo') }, 'the command may not be run', 'EACCES'],
    ['a missing directory', { command: 'cat', cwd: '/nowhere' }, 'no such working directory', 'ENOENT'],
    ['a file as directory', { command: 'cat', cwd: fixture('echo') }, 'no such working directory', 'ENOTDIR'],
    [
      'an impossible argument',
      { command: 'cat', args: ['\0'] },
      'the command could not be run',
      'ERR_INVALID_ARG_VALUE',
    ],
  ])('is refused for %s', async (_case, options, detail, code) => {
    const args = ['--api-key=canary', ...('args' in options ? options.args : [])]
    const { wire, traffic } = record({ ...options, args })
    const error = await wire.start().then(
      () => expect.unreachable(),
      (error: RpcError) => error,
    )
    expect(error.toJSON()).toEqual(unreachable(detail))
    expect((error.cause as Error).message).toContain(options.command)
    expect((error.cause as Error).message).toContain(code)
    expect(String((error.cause as Error).stack)).not.toContain('canary')
    await expect(wire.send(bytes('{}'))).rejects.toMatchObject({ code: -31001, data: { phase: 'not_sent' } })
    await wire.close()
    expect(traffic).toEqual([])
  })

  test('runs in the directory asked for, with the few variables that are harmless, and those given', async () => {
    vi.stubEnv('OPEN_MCP_PROXY_CANARY', 'secret')
    vi.stubEnv('NODE_OPTIONS', '--no-warnings')
    vi.stubEnv('TERM', '() { :; }')
    vi.stubEnv('SHELL', '/bin/sh')
    vi.stubEnv('USER', 'somebody')
    const { wire, traffic, closed } = play('env', [], {
      cwd: tmpdir(),
      env: { GIVEN: '1', USER: 'else', SHELL: undefined },
    })
    await wire.start()
    await closed
    const { HOME, LOGNAME, PATH } = process.env
    expect(JSON.parse(traffic[0] as string)).toEqual({
      env: JSON.parse(JSON.stringify({ HOME, LOGNAME, PATH, USER: 'else', GIVEN: '1' })),
      cwd: tmpdir(),
    })
  })

  test('is refused behind close, and nothing runs', async () => {
    const { wire, traffic } = play('echo')
    await wire.close()
    await expect(wire.start()).rejects.toMatchObject({ code: -31008 })
    expect([wire.pid, traffic]).toEqual([undefined, []])
  })

  test('is not needed for close', async () => {
    const { wire, traffic } = play('echo')
    await wire.close()
    await wire.close()
    expect(traffic).toEqual([])
  })
})

describe('the end of the child', () => {
  test.each([
    ['3', 'exit code 3', [3, null]],
    ['0', 'exit code 0', [0, null]],
    ['SIGKILL', 'signal SIGKILL', [null, 'SIGKILL']],
  ])('%s is told with what the log needs, after the last message', async (end, detail, state) => {
    const noise = `${'-'.repeat(3000)}\u001b[31mlast words\n`
    const { wire, traffic, closed } = play('say', ['{"id":1}\n', noise, end])
    await wire.start()
    const reason = await closed
    expect(traffic).toEqual(['{"id":1}', exited(detail)])
    expect([wire.exitCode, wire.signal]).toEqual(state)
    const { message } = reason!.cause as Error
    expect(message).toContain(detail)
    expect(message).toMatch(/-\\u\{1b\}\[31mlast words\\n$/)
    expect(message.match(/-{100,}/)?.[0].length).toBe(2048 - '\u001b[31mlast words\n'.length)
    await wire.close()
    expect(traffic).toHaveLength(2)
  })

  test('makes send reject, as not sent', async () => {
    const { wire, closed } = play('say', ['', '', '0'])
    await wire.start()
    await closed
    const error = await Promise.resolve(wire.send(bytes('{"id":1}'))).catch((error) => error)
    expect(error.toJSON()).toEqual(exited('exit code 0', 'not_sent'))
  })

  test('is told though a grandchild holds its stdout, and the grandchild ends too', async () => {
    const { wire, traffic, closed } = play('grandchild')
    await wire.start()
    await closed
    const { pid } = JSON.parse(traffic[0] as string)
    expect(traffic).toEqual([`{"pid":${pid}}`, exited('exit code 0')])
    await vi.waitFor(() => expect(isAlive(pid)).toBe(false), 5000)
  })

  test.each([[['stay']], [['stay', 'deaf']], [['deaf']]])('leaves no grandchild behind: %s', async (args) => {
    const { wire, traffic } = play('grandchild', args, {}, { term: 100, kill: 100, drain: 50 })
    await wire.start()
    await vi.waitFor(() => expect(traffic).not.toEqual([]), 10_000)
    const { pid } = JSON.parse(traffic[0] as string)
    await wire.close()
    await vi.waitFor(() => expect(isAlive(pid)).toBe(false), 5000)
  })

  test.each([
    ['0', 'it closed its stdin'],
    ['1', 'it closed its stdout'],
  ])('is brought about when it closes descriptor %s', async (descriptor, fault) => {
    const { wire, traffic, closed, stderr } = play('half', [descriptor])
    await wire.start()
    await vi.waitFor(() => expect(stderr).toEqual(['half\n']), 10_000)
    void wire.send(bytes('{"id":1}'))
    await closed
    expect(traffic).toEqual([exited(fault)])
    expect(wire.signal).toBe('SIGTERM')
  })
})

describe('close', () => {
  test('sends SIGTERM to a child that does not mind the end of its stdin', async () => {
    const { wire, traffic } = record({ command: 'sleep', args: ['60'] }, { term: 50 })
    await wire.start()
    await Promise.all([wire.close(), wire.close()])
    expect(wire.signal).toBe('SIGTERM')
    expect(traffic).toEqual([['close', undefined]])
    await expect(wire.send(bytes('{}'))).rejects.toMatchObject({ data: { phase: 'not_sent' } })
  })

  test('sends SIGKILL to a child that does not mind SIGTERM', async () => {
    const { wire, traffic } = play('stubborn', [], {}, { term: 50, kill: 200 })
    await wire.start()
    await vi.waitFor(() => expect(traffic).toEqual(['{"got":"start"}']), 10_000)
    await wire.close()
    expect(wire.signal).toBe('SIGKILL')
    expect(traffic.at(-1)).toEqual(['close', undefined])
  })

  test('goes through end of stdin, SIGTERM after 2 s and SIGKILL after 2 s more', async () => {
    const { wire, traffic } = play('stubborn')
    await wire.start()
    await vi.waitFor(() => expect(traffic).toEqual(['{"got":"start"}']), 10_000)
    const started = performance.now()
    await wire.close()
    const took = performance.now() - started
    expect([took > 3900, took < 10_000]).toEqual([true, true])
    expect(traffic).toEqual(['{"got":"start"}', '{"got":"end"}', '{"got":"SIGTERM"}', ['close', undefined]])
  })

  test('may be hurried', async () => {
    const { wire, traffic } = play('stubborn', [], {}, { term: 3_600_000, terminate: 50 })
    await wire.start()
    await vi.waitFor(() => expect(traffic).toEqual(['{"got":"start"}']), 10_000)
    const closed = wire.close()
    await wire.close({ urgent: true })
    await closed
    expect(wire.signal).toBe('SIGKILL')
  })

  test('once hurried is not slowed down again by its own pace', async () => {
    const { wire, traffic } = play('stubborn', [], {}, { term: 20, kill: 60_000, terminate: 200 })
    await wire.start()
    await vi.waitFor(() => expect(traffic).toHaveLength(1), 10_000)
    await Promise.all([wire.close(), wire.close({ urgent: true })])
    expect(wire.signal).toBe('SIGKILL')
  })

  test('lets a paused child say what it has to say', async () => {
    const { wire, traffic, stderr } = play('flood', ['500'], {}, { term: 3_600_000 })
    wire.pause()
    await wire.start()
    await wire.close()
    expect(traffic.slice(0, -1).map((frame) => JSON.parse(frame as string).n)).toEqual([...Array(500).keys()])
    expect([wire.exitCode, stderr]).toEqual([0, ['taken\n']])
  })
})

describe('back-pressure', () => {
  test('a child that does not read makes send wait until it does', async () => {
    const { wire, traffic } = play('deaf')
    await wire.start()
    await vi.waitFor(() => expect(traffic).toEqual(['{"ready":true}']), 10_000)
    const frame = bytes(JSON.stringify({ text: 'x'.repeat(100_000) }))
    const waits = Array.from({ length: 20 }, () => wire.send(frame))
    let ready = false
    void waits.at(-1)?.then(() => {
      ready = true
    })
    const other = play('say', ['', '', '0'])
    await other.wire.start()
    await other.closed
    expect(ready).toBe(false)
    process.kill(wire.pid!, 'SIGUSR2')
    await Promise.all(waits)
    await wire.close()
    expect(traffic).toEqual(['{"ready":true}', `{"bytes":${20 * (frame.length + 1)}}`, ['close', undefined]])
  })

  test('a send that waits rejects when the child ends, and says that the message may have been read', async () => {
    const { wire, traffic, closed } = play('deaf')
    await wire.start()
    await vi.waitFor(() => expect(traffic).toEqual(['{"ready":true}']), 10_000)
    const wait = wire.send(new Uint8Array(4_000_000).fill(0x20))
    process.kill(wire.pid!, 'SIGKILL')
    const error = await Promise.resolve(wait).catch((error) => error)
    // The pipe may break before the exit is known.
    expect(['its stdin is closed', 'signal SIGKILL'].map((detail) => exited(detail))).toContainEqual(error.toJSON())
    await closed
    expect(traffic.at(-1)).toEqual(exited('signal SIGKILL'))
  })

  test.each([
    ['before it starts', 0],
    ['at its first message', 64],
  ])('a child paused %s is held until it is resumed', async (_when, inOneChunk) => {
    const { wire, traffic, closed, stderr } = play('flood', ['500'])
    const onframe = wire.onframe
    wire.onframe = (frame) => {
      onframe?.(frame)
      if (traffic.length === 1) wire.pause()
    }
    if (inOneChunk === 0) wire.pause()
    await wire.start()
    if (inOneChunk > 0) await vi.waitFor(() => expect(traffic).not.toEqual([]), 10_000)
    const other = play('flood', ['500'])
    await other.wire.start()
    await other.closed
    expect([traffic.length <= inOneChunk, stderr]).toEqual([true, []])
    wire.onframe = onframe
    wire.resume()
    await closed
    expect(traffic.slice(0, -1).map((frame) => JSON.parse(frame as string).n)).toEqual([...Array(500).keys()])
  })
})

test('a paused child that ends is heard to the end', async () => {
  const { wire, traffic, closed } = play('say', ['{"id":1}\n{"id":2}\n', '', '0'])
  wire.pause()
  await wire.start()
  await closed
  expect(traffic).toEqual(['{"id":1}', '{"id":2}', exited('exit code 0')])
})

describe('stderr', () => {
  test('is passed on in whole lines, and never mixes with messages', async () => {
    const { wire, traffic, closed, stderr } = play('say', [
      '{"id":1}\n',
      '{"id":"not a message"}\nüber\nno newline',
      '0',
    ])
    await wire.start()
    await closed
    expect(stderr.join('')).toBe('{"id":"not a message"}\nüber\nno newline\n')
    expect(stderr.every((text) => text.endsWith('\n'))).toBe(true)
    expect(traffic).toEqual(['{"id":1}', exited('exit code 0')])
  })

  test('is drained though the sink is broken', async () => {
    const stderr = new Writable({
      write: (_chunk, _encoding, done) => done(new Error('ENOSPC')),
    })
    const { wire, traffic, closed } = play('say', ['{"id":1}\n', 'line\n'.repeat(24_000), '0'], { stderr })
    await wire.start()
    await closed
    expect(traffic).toEqual(['{"id":1}', exited('exit code 0')])
    expect(stderr.destroyed).toBe(true)
  })
})
