import { once } from 'node:events'
import { PassThrough, Writable } from 'node:stream'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { LineReader, LineWriter } from '../../src/lines.js'
import { StdioClient } from '../../src/listener/stdio.js'
import { joined, turnOfLoop } from '../fixtures/played.js'
import { cut, many, runs, sizes } from './search.js'

const LIMIT = 32
const BOM = Buffer.from('\ufeff')

/** Bytes of which every one may matter to a reader of lines. */
const soup = fc
  .array(
    fc.oneof(
      { weight: 4, arbitrary: fc.constantFrom('\n', '\r\n', '\r', '\n\n', ' ', '\t', '\ufeff', '{}', '[1]', '"é😀"') },
      { weight: 2, arbitrary: fc.string({ unit: 'binary', maxLength: 8 }) },
      { weight: 1, arbitrary: fc.integer({ min: 1, max: 80 }).map((length) => 'x'.repeat(length)) },
      { weight: 1, arbitrary: fc.constantFrom([0xff], [0xc3], [0xef, 0xbb], [0x80]) },
    ),
    { maxLength: 24, size: 'max' },
  )
  .map((pieces) => Buffer.concat(pieces.map((it) => Buffer.from(it as string))))

type Told = ['line', string] | ['oversize'] | ['runaway'] | ['lost', number]

/** What must be told of these bytes, by the plainest means. */
function reference(bytes: Buffer): Told[] {
  const told: Told[] = []
  const lines = bytes.toString('latin1').split('\n')
  for (const [index, text] of lines.entries()) {
    if (text.length > LIMIT) told.push(['oversize'])
    if (text.length > 2 * LIMIT) told.push(['runaway'])
    const line = text.slice(index === 0 && text.startsWith(BOM.toString('latin1')) ? 3 : 0).replace(/\r$/, '')
    if (text.length > LIMIT || /^[ \t\r]*$/.test(line)) continue
    const isLast = index === lines.length - 1
    told.push(isLast && !isJson(Buffer.from(line, 'latin1')) ? ['lost', line.length] : ['line', line])
  }
  return told
}

function isJson(bytes: Buffer): boolean {
  try {
    JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes))
    return true
  } catch {
    return false
  }
}

describe('LineReader', () => {
  it('tells of any bytes what they are, however they are cut', () => {
    fc.assert(
      fc.property(soup, sizes, (bytes, sizes) => {
        const told: Told[] = []
        const reader = new LineReader({
          maxBytes: LIMIT,
          onLine: (line) => told.push(['line', line.toString('latin1')]),
          onOversize: (head, size) => {
            expect(size).toBeGreaterThan(LIMIT)
            expect(bytes.includes(head)).toBe(true)
            told.push(['oversize'])
          },
          onRunaway: () => told.push(['runaway']),
        })
        for (const chunk of cut(bytes, sizes)) reader.push(chunk)
        const lost = reader.end()
        if (lost > 0) told.push(['lost', lost])
        expect(told).toEqual(reference(bytes))
      }),
      runs(1_500),
    )
  })
})

/** What a client may write as one line, and what becomes of it: it reaches the server, or is refused with this code. */
const written = fc.oneof(
  {
    weight: 3,
    arbitrary: fc.record({ method: fc.string({ unit: 'binary' }), params: fc.record({ x: fc.jsonValue() }) }),
  },
  { weight: 1, arbitrary: fc.constantFrom('big', 'not UTF-8', 'not JSON', 'no JSON-RPC', 'blank') },
)

describe('a client on stdio', () => {
  it('has each line forwarded whole, or refused once', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(written, fc.constantFrom('\n', '\r\n')), { maxLength: 10 }),
        fc.constantFrom('', '{"jsonrpc":"2.0","id":"last","method":"m"}', '{"jsonrpc":"2.0","id":"last",'),
        fc.boolean(),
        sizes,
        async (lines, last, bom, sizes) => {
          const forwarded: string[] = []
          const refused: unknown[] = []
          const bytes: Buffer[] = bom ? [BOM] : []
          for (const [id, [what, newline]] of lines.entries()) {
            const asked = { jsonrpc: '2.0', id, ...(what as object) }
            const text =
              what === 'big'
                ? `{"jsonrpc":"2.0","id":${id},"method":"m","params":{"x":"${'é'.repeat(10_000)}"}}`
                : what === 'not UTF-8'
                  ? `{"jsonrpc":"2.0","id":${id},"method":"\xff"}`
                  : what === 'not JSON'
                    ? 'Listening on port 3000'
                    : what === 'no JSON-RPC'
                      ? `{"id":${id},"method":"m"}`
                      : what === 'blank'
                        ? ' \t\r '
                        : JSON.stringify(asked)
            bytes.push(Buffer.from(text, what === 'not UTF-8' ? 'latin1' : 'utf8'), Buffer.from(newline))
            if (typeof what === 'object') forwarded.push(text)
            if (what === 'big') refused.push([id, -31007])
            if (what === 'not UTF-8' || what === 'not JSON') refused.push([undefined, -32700])
            if (what === 'no JSON-RPC') refused.push([id, -32600])
          }
          bytes.push(Buffer.from(last))
          if (last.endsWith('}')) forwarded.push(last)

          const stdin = new PassThrough()
          const stdout = new PassThrough()
          const wire = new StdioClient({ stdin, stdout, maxMessageBytes: 10_000 })
          const { app, server } = await joined(() => {}, { client: wire as never, drainTimeout: 1 })
          for (const chunk of cut(Buffer.concat(bytes), sizes)) stdin.write(chunk)
          stdin.end()
          await once(stdin, 'end')
          await app.close()
          expect(server.sent.filter((it) => !it.includes('notifications/cancelled'))).toEqual(forwarded)
          const answers = String(stdout.read() ?? '')
            .split('\n')
            .slice(0, -1)
            .map((it) => JSON.parse(it))
          expect(answers.flatMap(({ id, error }) => (error.code === -31008 ? [] : [[id, error.code]]))).toEqual(refused)
        },
      ),
      runs(100),
    )
  })
})

/** How a stream takes what is written to it: at once, later, or it fails. */
const pace = fc.array(fc.constantFrom('now', 'soon', 'later'), { minLength: 1, maxLength: 6 })

class Fickle extends Writable {
  taken = ''
  calls = 0

  constructor(
    readonly pace: readonly string[],
    readonly failsAt: number,
    highWaterMark: number,
  ) {
    super({ highWaterMark })
  }

  override _writev(chunks: { chunk: Buffer }[], done: (error?: Error | null) => void) {
    const pace = this.pace[this.calls % this.pace.length]
    const fails = this.calls++ === this.failsAt
    const take = () => {
      if (fails) return done(new Error('EPIPE'))
      this.taken += chunks.map(({ chunk }) => chunk.toString()).join('')
      done()
    }
    if (pace === 'now') take()
    else if (pace === 'soon') process.nextTick(take)
    else setImmediate(take)
  }
}

/** A frame with this many bytes of padding; some with line breaks. */
const frame = fc
  .tuple(fc.constantFrom(0, 10, 4_000, 5_000, 20_000), fc.constantFrom(' ', '\n', '\r\n', '\r'))
  .map(([length, space]) => `{"x":${space}"é${'y'.repeat(length)}"}`)
const act = fc.oneof(
  { weight: 4, arbitrary: frame },
  { weight: 2, arbitrary: fc.constant('wait') },
  { weight: 1, arbitrary: fc.constantFrom('flush', 'end', 'destroy') },
)

describe('LineWriter', () => {
  it('writes whole lines in order to any stream, and leaves nobody waiting', async () => {
    await fc.assert(
      fc.asyncProperty(
        many(act, 16),
        pace,
        fc.integer({ min: 0, max: 12 }),
        fc.constantFrom(1, 64, 16_384),
        async (acts, pace, failsAt, highWaterMark) => {
          const stream = new Fickle(pace, failsAt, highWaterMark)
          const told: Error[] = []
          const writer = new LineWriter(stream, (error) => told.push(error))
          const lines: string[] = []
          const waits: Promise<unknown>[] = []
          let ended = false
          for (const it of acts) {
            if (it === 'wait') await turnOfLoop()
            else if (it === 'flush') waits.push(writer.flush())
            else if (it === 'destroy') stream.destroy()
            else if (it === 'end') {
              writer.end()
              ended = true
            } else {
              const { open } = writer
              const written = writer.write(Buffer.from(it))
              if (open) lines.push(`${it.includes('\n') ? it.replace(/[\r\n]/g, ' ') : it}\n`)
              else await expect(written).rejects.toThrow()
              if (open && written) waits.push(written)
            }
          }
          waits.push(writer.flush())
          const settled = await Promise.allSettled(waits)
          writer.end()
          await turnOfLoop()
          await turnOfLoop()
          const whole = lines.join('')
          const failed = stream.errored !== null || acts.includes('destroy')
          if (failed) expect(whole.startsWith(stream.taken)).toBe(true)
          else {
            expect(stream.taken).toBe(whole)
            expect(settled.filter(({ status }) => status === 'rejected')).toEqual([])
          }
          expect(told).toHaveLength(1)
          expect(writer.open).toBe(false)
          expect(ended || failed || stream.writableFinished).toBe(true)
          await expect(writer.write(Buffer.from('{}'))).rejects.toThrow()
        },
      ),
      runs(400),
    )
  })
})
