import { Writable } from 'node:stream'
import { describe, expect, test } from 'vitest'
import { LogRelay, printable } from '../src/log.js'

const bytes = (text: string) => new TextEncoder().encode(text)
const tick = () => new Promise((resolve) => setImmediate(resolve))

describe('LogRelay', () => {
  const sink = () => {
    const written: string[] = []
    const stream = new Writable({
      write(chunk, _encoding, done) {
        written.push(chunk.toString())
        done()
      },
    })
    return { stream, written }
  }

  test('passes on whole lines only, so that two logs do not mix', () => {
    const { stream, written } = sink()
    const [one, two] = [new LogRelay(stream), new LogRelay(stream)]
    one.push(Buffer.from('a1\na'))
    two.push(Buffer.from('b'))
    one.push(Buffer.from('2'))
    two.push(Buffer.from('1\n\n'))
    one.push(Buffer.from('\na3'))
    one.end()
    two.end()
    expect(written).toEqual(['a1\n', 'b1\n\n', 'a2\n', 'a3\n'])
  })

  test('cuts a line over 64 KiB', () => {
    const { stream, written } = sink()
    const relay = new LogRelay(stream)
    relay.push(Buffer.alloc(40_000, 'x'))
    relay.push(Buffer.alloc(40_000, 'x'))
    relay.push(Buffer.from('y\n'))
    expect(written).toEqual([`${'x'.repeat(80_000)}\n`, 'y\n'])
  })

  test('says how much was lost while the sink was behind, and survives its failure', async () => {
    const calls: { text: string; done: (error?: Error) => void }[] = []
    const stream = new Writable({
      write: (chunk, _encoding, done) => void calls.push({ text: chunk.toString(), done }),
    })
    const relay = new LogRelay(stream)
    const long = `${'x'.repeat(1024 * 1024)}\n`
    for (const line of [long, 'lost\n', 'lost too\n']) relay.push(Buffer.from(line))
    calls.shift()?.done()
    relay.push(Buffer.from('back\n'))
    while (calls.length > 0) {
      const call = calls.shift()!
      call.done(call.text === 'back\n' ? new Error('ENOSPC') : undefined)
      if (call.text === 'back\n') break
      expect(call.text).toBe('[14 bytes of log lost]\n')
      await tick()
    }
    await tick()
    expect(stream.destroyed).toBe(true)
    relay.push(Buffer.from('nobody reads this\n'))
    expect(calls).toEqual([])
  })

  test('survives a sink that throws', () => {
    const stream = new Writable({
      write() {
        throw new Error('broken')
      },
    })
    const relay = new LogRelay(stream)
    expect(() => relay.push(Buffer.from('a\n'))).not.toThrow()
  })
})

test('printable escapes what could move the cursor, hide text or begin a line', () => {
  expect(printable(bytes('a\u001b[31mé\r\nb\u202e\u2028\u0000\u009b'))).toBe(
    'a\\u{1b}[31mé\\nb\\u{202e}\\u{2028}\\u{0}\\u{9b}',
  )
})
