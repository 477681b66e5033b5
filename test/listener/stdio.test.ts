import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process'
import { once } from 'node:events'
import { PassThrough } from 'node:stream'
import { fileURLToPath } from 'node:url'
import { afterEach, describe, expect, test, vi } from 'vitest'
import { StdioClient, type StdioClientOptions } from '../../src/listener/stdio.js'

const fixture = fileURLToPath(new URL('../fixtures/stdio-client.mjs', import.meta.url))
const bytes = (text: string) => new TextEncoder().encode(text)
const tick = () => new Promise((resolve) => setImmediate(resolve))

const children: ChildProcessWithoutNullStreams[] = []
afterEach(() => {
  for (const child of children.splice(0)) child.kill('SIGKILL')
})

/** Runs the fixture in a process of its own, and records what it says of itself. */
function run(mode: string, readTimeout = 30_000) {
  const child = spawn(process.execPath, ['--import', 'tsx', fixture, mode, String(readTimeout)])
  children.push(child)
  let said = ''
  child.stderr.on('data', (chunk) => {
    said += chunk
  })
  const events = () =>
    said
      .split('\n')
      .slice(0, -1)
      .map((line) => JSON.parse(line))
  const until = (event: unknown) => vi.waitFor(() => expect(events()).toContainEqual(event), 15_000)
  return { child, events, until, exit: once(child, 'close') }
}

async function readAll(child: ChildProcessWithoutNullStreams) {
  const chunks: Buffer[] = []
  for await (const chunk of child.stdout) chunks.push(chunk)
  return Buffer.concat(chunks).toString()
}

describe('a process that faces its client', () => {
  test('takes every line that is not blank, answers after the end of stdin, and ends', async () => {
    const { child, events, exit } = run('echo')
    const output = readAll(child)
    child.stdin.write('{"id":1}\r\n\n  \nnot JSON\n{"text":"')
    child.stdin.write(Buffer.from('é').subarray(0, 1))
    await tick()
    child.stdin.write(Buffer.concat([Buffer.from('é').subarray(1), Buffer.from('"}\n')]))
    child.stdin.write(`{"id":2,"x":"${'x'.repeat(1000)}"}\n`)
    child.stdin.end('{"id":3}')
    expect(await output).toBe('{"id":1}\nnot JSON\n{"text":"é"}\n{"id":3}\n{"last":true}\n')
    expect(await exit).toEqual([0, null])
    expect(events()).toEqual([
      'made',
      { code: -31007, head: '{"id":2,"x":"xxxxxxx', message: 'Message too large: over 1000 bytes' },
      ['close', null],
      'closed',
    ])
  })

  test('gives a slow reader everything before it ends, though stdin stays open', async () => {
    const { child, events, until, exit } = run('burst')
    child.stdin.write('{"id":1}\n')
    await until('closing')
    const output = await readAll(child)
    expect(
      output
        .split('\n')
        .slice(0, -1)
        .map((line) => JSON.parse(line).n),
    ).toEqual([...Array(128).keys()])
    expect(await exit).toEqual([0, null])
    expect(events()).toEqual(['made', 'closing', ['close', null], 'closed'])
  })

  test('does not wait for ever for a client that reads nothing when it closes', async () => {
    const { child, until } = run('burst', 300)
    child.stdin.write('{"id":1}\n')
    await until('closing')
    await until('closed')
  })

  test('takes a broken stdout for the end of the client', async () => {
    const { child, events, until, exit } = run('answer')
    await until('made')
    child.stdout.destroy()
    await once(child.stdout, 'close')
    child.stdin.write('{"id":1}\n')
    expect(await exit).toEqual([0, null])
    expect(events()).toEqual(['made', ['close', null], ['Error', 'EPIPE'], 'closed'])
  })
})

describe('StdioClient', () => {
  /** A client of two streams in this process, and all that it tells, in order. */
  function record(options: StdioClientOptions = {}) {
    const stdin = new PassThrough()
    const stdout = new PassThrough()
    const told: unknown[] = []
    const wire = new StdioClient({ stdin, stdout, ...options })
    wire.onframe = (frame) => told.push(Buffer.from(frame).toString())
    wire.onerror = (error) => told.push(`! ${error.message}`)
    wire.onclose = (reason) => told.push(['close', reason])
    return { stdin, stdout, told, wire }
  }

  test('reads nothing before start, nor while paused', async () => {
    const { stdin, told, wire } = record()
    stdin.write('{"id":1}\n')
    await tick()
    expect(told).toEqual([])
    wire.start()
    wire.start()
    await tick()
    expect(told).toEqual(['{"id":1}'])
    wire.pause()
    stdin.write('{"id":2}\n')
    await tick()
    expect(told).toEqual(['{"id":1}'])
    wire.resume()
    await tick()
    expect(told).toEqual(['{"id":1}', '{"id":2}'])
  })

  test('may be paused and resumed before start', async () => {
    const { stdin, told, wire } = record()
    stdin.write('{"id":1}\n')
    wire.pause()
    wire.start()
    await tick()
    expect(told).toEqual([])
    wire.resume()
    await tick()
    const other = record()
    other.stdin.write('{"id":2}\n')
    other.wire.pause()
    other.wire.resume()
    await tick()
    expect(other.told).toEqual([])
    other.wire.start()
    await tick()
    expect([told, other.told]).toEqual([['{"id":1}'], ['{"id":2}']])
  })

  test('says once that the client left, whatever breaks after it', async () => {
    const { stdin, stdout, told, wire } = record()
    wire.start()
    stdin.end('{"id":1}\n{"id":')
    await vi.waitFor(() => expect(told).toHaveLength(3))
    await wire.send(bytes('{"id":1,"result":{}}'))
    await tick()
    expect(stdout.read().toString()).toBe('{"id":1,"result":{}}\n')
    stdin.destroy()
    stdout.destroy(new Error('EPIPE'))
    await tick()
    await wire.close()
    await wire.close()
    expect(told).toEqual([
      '{"id":1}',
      '! 6 bytes of an incomplete line from the client were discarded',
      ['close', undefined],
    ])
  })

  test('takes a stdin that fails, is closed, or was at its end before, for the end', async () => {
    const failing = record()
    failing.wire.start()
    failing.stdin.destroy(new Error('EIO'))
    const closing = record()
    closing.wire.start()
    closing.stdin.destroy()
    const early = record()
    early.stdin.destroy(new Error('EIO'))
    await tick()
    early.wire.start()
    await tick()
    expect([failing.told, closing.told, early.told]).toEqual([
      ['! EIO', ['close', undefined]],
      [['close', undefined]],
      ['! EIO', ['close', undefined]],
    ])
  })

  test('hands over nothing once stdout broke, and rejects what is sent', async () => {
    const { stdin, stdout, told, wire } = record()
    wire.start()
    stdout.destroy(new Error('EPIPE'))
    await tick()
    stdin.write('{"id":1}\n')
    await tick()
    await expect(wire.send(bytes('{}'))).rejects.toThrow('EPIPE')
    expect(told).toEqual([['close', undefined]])
  })

  test('close stops at once, in the middle of a chunk, and waits for the reader of stdout', async () => {
    const stdout = new PassThrough({ highWaterMark: 1 })
    const { stdin, told, wire } = record({ stdout })
    wire.onframe = (frame) => {
      told.push(Buffer.from(frame).toString())
      void wire.send(bytes('{"answer":1}'))
      void wire.send(bytes('{"answer":2}'))
      void wire.close().then(() => told.push('closed'))
    }
    wire.start()
    stdin.write('{"id":1}\n{"id":2}\n')
    await tick()
    expect(told).toEqual(['{"id":1}', ['close', undefined]])
    await expect(wire.send(bytes('{}'))).rejects.toThrow('closed')
    let output = ''
    stdout.on('data', (chunk) => {
      output += chunk
    })
    await vi.waitFor(() => expect(told).toEqual(['{"id":1}', ['close', undefined], 'closed']))
    expect(output).toBe('{"answer":1}\n{"answer":2}\n')
    expect([stdin.isPaused(), stdin.destroyed, stdout.writable]).toEqual([true, false, true])
  })
})
