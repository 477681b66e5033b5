import { Writable } from 'node:stream'
import fc from 'fast-check'
import { afterEach, describe, expect, test, vi } from 'vitest'
import { LineReader, type LineReaderOptions, LineWriter, looksLikeMessage } from '../src/lines.js'

afterEach(() => {
  vi.restoreAllMocks()
})

/** Plays chunks into a reader; returns everything it told, in order. */
function read(chunks: Iterable<Uint8Array | string>, options: Partial<LineReaderOptions> = {}) {
  const told: unknown[] = []
  const reader = new LineReader({
    onLine: (line) => told.push(line.toString()),
    onOversize: (head, bytes) => told.push({ head: head.toString(), bytes }),
    onRunaway: () => told.push('runaway'),
    ...options,
  })
  for (const chunk of chunks) reader.push(Buffer.from(chunk))
  const lost = reader.end()
  if (lost > 0) told.push({ lost })
  return told
}

function* cut(bytes: Buffer, sizes: number[]) {
  for (let at = 0, turn = 0; at < bytes.length; turn++) {
    const size = sizes[turn % sizes.length]!
    yield bytes.subarray(at, at + size)
    at += size
  }
}

const sizes = fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1, maxLength: 30 })
const text = fc.string({ unit: 'binary' })
const message = fc
  .record({ jsonrpc: fc.constant('2.0'), method: text, params: fc.jsonValue() })
  .map((m) => JSON.stringify(m))
const banner = text.map((words) => `INFO ${words.replaceAll('\n', ' ').replace(/\r$/, '')}.`)
const blank = fc.constantFrom('', ' ', '\t \t', '\r')
const newline = fc.constantFrom('\n', '\r\n')

describe('LineReader', () => {
  test('hands over every line once, in order, however the bytes are cut', () => {
    const line = fc.record({ text: fc.oneof(message, banner, blank), newline })
    fc.assert(
      fc.property(fc.array(line), fc.boolean(), sizes, (lines, bom, sizes) => {
        const bytes = Buffer.from((bom ? '\ufeff' : '') + lines.map((l) => l.text + l.newline).join(''))
        const expected = lines.map((l) => l.text).filter((t) => /[^ \t\r]/.test(t))
        expect(read(cut(bytes, sizes))).toEqual(expected)
      }),
      { numRuns: 300 },
    )
  })

  test('finds the same lines over the limit, however the bytes are cut', () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 1, max: 60 })), sizes, (lengths, sizes) => {
        const bytes = Buffer.from(lengths.map((length) => `${'x'.repeat(length)}\n`).join(''))
        const told = read(cut(bytes, sizes), { maxBytes: 16 }).map((t) =>
          typeof t === 'object' && t !== null && 'head' in t ? 'oversize' : t,
        )
        expect(told).toEqual(
          lengths.flatMap((n) => (n <= 16 ? ['x'.repeat(n)] : n <= 32 ? ['oversize'] : ['oversize', 'runaway'])),
        )
      }),
    )
  })

  test('splits at a line feed only', () => {
    expect(read(['{"a":\r1,\u2028"b":2}\r\r\n', '\u0085\u2029\v\f\n'])).toEqual([
      '{"a":\r1,\u2028"b":2}\r',
      '\u0085\u2029\v\f',
    ])
  })

  test('takes a byte order mark off the very start only', () => {
    expect(read([[0xef], [0xbb], [0xbf, 0x7b], '}\n', '\ufeff{}\n'].map((c) => Buffer.from(c as string)))).toEqual([
      '{}',
      '\ufeff{}',
    ])
    expect(read(['\n\ufeff{}\n'])).toEqual(['\ufeff{}'])
    expect(read([`\ufeff{"id":7}${' '.repeat(20)}\n`], { maxBytes: 16 })).toEqual([
      { head: `{"id":7}${' '.repeat(20)}`, bytes: 31 },
    ])
  })

  test('tells of a line over the limit once, as soon as it is, and goes on behind it', () => {
    const line = `{"id":1,"x":"${'y'.repeat(8000)}"}`
    expect(
      read([line.slice(0, 6000), line.slice(6000, 7000), `${line.slice(7000)}\n{}\n`], { maxBytes: 5000 }),
    ).toEqual([{ head: line.slice(0, 4096), bytes: 6000 }, '{}'])
    expect(read(['{"id":1}\n', '{"id":1} \n', '{}\n'], { maxBytes: 8 })).toEqual([
      '{"id":1}',
      { head: '{"id":1} ', bytes: 9 },
      '{}',
    ])
  })

  test('keeps nothing of a line over the limit, and tells once that it passed twice the limit', () => {
    const before = process.memoryUsage().arrayBuffers
    const told: string[] = []
    const reader = new LineReader({
      maxBytes: 1024 * 1024,
      onLine: (line) => told.push(line.toString()),
      onOversize: (head, bytes) => told.push(`oversize ${head.length} ${bytes}`),
      onRunaway: () => told.push('runaway'),
    })
    for (let i = 0; i < 4096; i++) reader.push(Buffer.alloc(64 * 1024, 'x'))
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(200 * 1024 * 1024)
    reader.push(Buffer.from('\n{}\n'))
    expect(told).toEqual([`oversize 4096 ${17 * 64 * 1024}`, 'runaway', '{}'])
  })

  test('delivers a last line without newline if it is whole JSON', () => {
    expect(read(['{"id":1}\n{"id":2}'])).toEqual(['{"id":1}', '{"id":2}'])
    expect(read(['{"id":1}\n{"id":', '2'])).toEqual(['{"id":1}', { lost: 7 }])
    expect(read([Buffer.from([0x22, 0xff, 0x22])])).toEqual([{ lost: 3 }])
    expect(read(['{}\n  \t'])).toEqual(['{}'])
    expect(read(['x'.repeat(20)], { maxBytes: 16 })).toEqual([{ head: 'x'.repeat(20), bytes: 20 }])
    expect(read([])).toEqual([])
  })

  test('does not copy a line that came in one chunk', () => {
    const chunk = Buffer.from('{"id":1}\n{"id":2}\r\n')
    const lines: Buffer[] = []
    new LineReader({ onLine: (line) => lines.push(line), onOversize: () => {} }).push(chunk)
    expect(lines.map((line) => [line.buffer === chunk.buffer, line.byteOffset - chunk.byteOffset])).toEqual([
      [true, 0],
      [true, 9],
    ])
  })

  test('copies each byte of a 48 MiB line once, and of one that comes byte by byte not many times', () => {
    let copied = 0
    let pieces = 0
    const concat = Buffer.concat
    vi.spyOn(Buffer, 'concat').mockImplementation((list, total) => {
      const joined = concat(list, total)
      copied += joined.length
      pieces = Math.max(pieces, list.length)
      return joined
    })
    const lengths: number[] = []
    const reader = new LineReader({ onLine: (line) => lengths.push(line.length), onOversize: () => {} })
    const chunk = Buffer.alloc(64 * 1024, 'x')
    for (let i = 0; i < 768; i++) reader.push(chunk)
    reader.push(Buffer.from('\n'))
    expect(lengths).toEqual([48 * 1024 * 1024])
    expect(copied).toBeLessThanOrEqual(49 * 1024 * 1024)

    copied = 0
    pieces = 0
    for (let i = 0; i < 256 * 1024; i++) reader.push(chunk.subarray(i % 1024, (i % 1024) + 1))
    reader.push(Buffer.from('\n'))
    expect(lengths).toEqual([48 * 1024 * 1024, 256 * 1024])
    expect([copied < 20 * 256 * 1024, pieces < 100]).toEqual([true, true])
  })

  test('has nothing to copy at the end of a line that is no longer than the last', () => {
    const lines: string[] = []
    const reader = new LineReader({ onLine: (line) => lines.push(line.toString()), onOversize: () => {} })
    const line = Array.from({ length: 40_000 }, (_, i) => i).join()
    const say = (text: string) => {
      for (let at = 0; at < text.length; at += 10_000) reader.push(Buffer.from(text.slice(at, at + 10_000)))
      const concat = vi.spyOn(Buffer, 'concat')
      reader.push(Buffer.from('\n'))
      const calls = concat.mock.calls.length
      concat.mockRestore()
      return calls
    }
    const texts = [line, line, line.slice(1), line.slice(0, 30_000), `${line},1`, line.repeat(2), line]
    expect(texts.map(say).map((calls) => calls > 0)).toEqual([true, false, false, false, true, true, false])
    expect(lines).toEqual(texts)
  })

  test('keeps no room for a long line that did not come again', () => {
    const reader = new LineReader({ onLine: (line) => lines.push(line), onOversize: () => {} })
    const lines: Buffer[] = []
    for (const length of [1_000_000, 100_000]) {
      const line = Buffer.alloc(length, 'x')
      for (let at = 0; at < length; at += 50_000) reader.push(line.subarray(at, at + 50_000))
      reader.push(Buffer.from('\n'))
    }
    expect(lines.map((line) => [line.length, line.buffer.byteLength <= 2 * line.length + 2])).toEqual([
      [1_000_000, true],
      [100_000, true],
    ])
  })
})

/** A stream that records what each system call would get, and finishes a call when told. */
class Slow extends Writable {
  readonly calls: string[] = []
  #waiting: ((error?: Error) => void)[] = []

  override _writev(chunks: { chunk: Buffer }[], done: (error?: Error | null) => void) {
    this.calls.push(chunks.map(({ chunk }) => chunk.toString()).join(''))
    this.#waiting.push(done)
  }

  finishCall(error?: Error) {
    this.#waiting.shift()?.(error)
  }
}

const bytes = (text: string) => new TextEncoder().encode(text)
const tick = () => new Promise((resolve) => setImmediate(resolve))

describe('LineWriter', () => {
  test('writes the frames of one tick in one call', async () => {
    const stream = new Slow()
    const writer = new LineWriter(stream)
    const big = `{"big":"${'x'.repeat(5000)}"}`
    expect([writer.write(bytes('{"id":1}')), writer.write(bytes(big)), writer.write(bytes('{"id":2}'))]).toEqual([
      undefined,
      undefined,
      undefined,
    ])
    expect(stream.calls).toEqual([])
    await tick()
    expect(stream.calls).toEqual([`{"id":1}\n${big}\n{"id":2}\n`])
  })

  test('writes lines of one chunk as they lie there, what is small and lies elsewhere in one buffer with them', async () => {
    const written: Buffer[] = []
    const stream = new Writable({
      write(bytes, _encoding, done) {
        written.push(bytes)
        done()
      },
    })
    const writer = new LineWriter(stream)
    const chunk = Buffer.concat([Buffer.from('{"id":1}\n{"id":2}\n{"id":3}\r\n{"id":4}\n{"a')])
    const whole = new Uint8Array(chunk).slice()
    const lines: Buffer[] = []
    const reader = new LineReader({ onLine: (line) => lines.push(line), onOversize: () => {} })
    reader.push(Buffer.from(whole.buffer))
    for (const line of lines.slice(0, 2)) writer.write(line)
    await tick()
    expect(written.map((it) => [it.toString(), it.buffer === whole.buffer])).toEqual([['{"id":1}\n{"id":2}\n', true]])
    for (const line of [...lines, bytes('{"id":5}')]) writer.write(line)
    await tick()
    expect(written.slice(1).map(String)).toEqual(['{"id":1}\n{"id":2}\n{"id":3}\n{"id":4}\n{"id":5}\n'])
  })

  test('takes no newline for its own that may be overwritten', async () => {
    const stream = new Slow()
    const writer = new LineWriter(stream)
    const shared = Buffer.from('{"id":1}\n{"id":2}\n')
    writer.write(shared.subarray(0, 8))
    writer.write(shared.subarray(9, 17))
    shared.fill('x', 8, 9)
    shared.fill('x', 17)
    await tick()
    expect(stream.calls).toEqual(['{"id":1}\n{"id":2}\n'])
  })

  test('writes before the tick ends what is much, and is not full while the stream takes it', async () => {
    const calls: number[] = []
    const stream = new Writable({
      write(bytes, _encoding, done) {
        calls.push(bytes.length)
        done()
      },
    })
    const writer = new LineWriter(stream)
    const frame = bytes('x'.repeat(1023))
    const waits = Array.from({ length: 150 }, () => writer.write(frame))
    expect(waits.every((wait) => wait === undefined)).toBe(true)
    expect(calls).toEqual([64 * 1024, 64 * 1024])
    await tick()
    expect(calls).toEqual([64 * 1024, 64 * 1024, 22 * 1024])
  })

  test('holds little while the stream is full, and is ready again though the stream drained in the same tick', async () => {
    const stream = new Slow({ highWaterMark: 16 })
    const writer = new LineWriter(stream)
    const events: string[] = []
    void writer.write(bytes('x'.repeat(99)))?.then(() => events.push('ready'))
    await tick()
    const more = Array.from({ length: 2 }, () => writer.write(bytes('y'.repeat(40_000))))
    for (const wait of more) void wait?.then(() => events.push('more'))
    expect(stream.writableLength).toBe(100 + 80_002)
    void writer.write(bytes('z'))?.then(() => events.push('z'))
    stream.finishCall()
    stream.finishCall()
    await tick()
    stream.finishCall()
    await tick()
    expect([events.toSorted(), stream.calls.map((call) => call.length)]).toEqual([
      ['more', 'more', 'ready', 'z'],
      [100, 80_002, 2],
    ])
  })

  test('puts a frame on one line, and leaves the frame as it was', async () => {
    const stream = new Slow()
    const writer = new LineWriter(stream)
    const pretty = Buffer.from('{\r\n  "a": "é\\n",\n"b":\r2\n}\n')
    const before = pretty.toString()
    writer.write(pretty.subarray(0, -1))
    await tick()
    expect(stream.calls).toEqual(['{    "a": "é\\n", "b": 2 }\n'])
    expect(pretty.toString()).toBe(before)
  })

  test('leaves a bare carriage return where it is', async () => {
    const stream = new Slow()
    new LineWriter(stream).write(bytes('{"a":\r1}'))
    await tick()
    expect(stream.calls).toEqual(['{"a":\r1}\n'])
  })

  test('returns a promise while the stream is full, which resolves when it takes more', async () => {
    const stream = new Slow({ highWaterMark: 16 })
    const writer = new LineWriter(stream)
    const events: string[] = []
    expect(writer.write(bytes('{"id":1}'))).toBeUndefined()
    const waits = [writer.write(bytes('{"id":2}')), writer.write(bytes('{"id":3}'))]
    for (const wait of waits) void wait?.then(() => events.push('ready'))
    await tick()
    expect(events).toEqual([])
    stream.finishCall()
    await tick()
    expect(events).toEqual(['ready', 'ready'])
    expect(writer.write(bytes('{"id":4}'))).toBeUndefined()
  })

  test('rejects when the stream fails, at once and ever after, and flushes no more', async () => {
    const stream = new Slow({ highWaterMark: 1 })
    const told: string[] = []
    const writer = new LineWriter(stream, (error) => told.push(error.message))
    const wait = writer.write(bytes('{"id":1}'))
    const flushed = writer.flush()
    await tick()
    stream.finishCall(new Error('EPIPE'))
    await expect(wait).rejects.toThrow('EPIPE')
    await flushed
    await writer.flush()
    await expect(writer.write(bytes('{"id":2}'))).rejects.toThrow('EPIPE')
    expect(writer.open).toBe(false)
    expect(told).toEqual(['EPIPE'])
  })

  test('rejects when the stream is destroyed without an error', async () => {
    const stream = new Slow({ highWaterMark: 1 })
    const writer = new LineWriter(stream)
    const wait = writer.write(bytes('{"id":1}'))
    stream.destroy()
    await expect(wait).rejects.toThrow('closed')
    await expect(writer.write(bytes('{}'))).rejects.toThrow('closed')
  })

  test('a rejection that nobody awaits is not unhandled', async () => {
    const unhandled: unknown[] = []
    const listener = (error: unknown) => unhandled.push(error)
    process.on('unhandledRejection', listener)
    const stream = new Slow({ highWaterMark: 1 })
    const writer = new LineWriter(stream)
    writer.write(bytes('{"id":1}'))
    stream.destroy(new Error('EPIPE'))
    await tick()
    writer.write(bytes('{"id":2}'))
    await tick()
    process.off('unhandledRejection', listener)
    expect(unhandled).toEqual([])
  })

  test('flushes when everything written is gone, and ends behind it', async () => {
    const stream = new Slow({ highWaterMark: 1 })
    const writer = new LineWriter(stream)
    await writer.flush()
    const events: string[] = []
    void writer.write(bytes('{"id":1}'))?.then(() => events.push('ready'))
    void writer.flush().then(() => events.push('flushed'))
    stream.on('finish', () => events.push('finish'))
    writer.end()
    await expect(writer.write(bytes('{}'))).rejects.toThrow('ended')
    await tick()
    expect(events).toEqual([])
    stream.finishCall()
    await vi.waitFor(() => expect(events.toSorted()).toEqual(['finish', 'flushed', 'ready']))
    expect(stream.calls).toEqual(['{"id":1}\n'])
  })
})

test('looksLikeMessage tells objects and arrays from what else a program prints', () => {
  const lines = ['{', ' \t\r{"a":1}', '[{}]', 'INFO {}', '"text"', '', '  ', '1']
  expect(lines.map((line) => looksLikeMessage(bytes(line)))).toEqual([
    true,
    true,
    true,
    false,
    false,
    false,
    false,
    false,
  ])
})
