import { PassThrough } from 'node:stream'
import { EventSource } from 'eventsource'
import { createParser } from 'eventsource-parser'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { EventReader } from '../../src/events.js'
import { bodyOf, Gate } from '../../src/upstream/body.js'
import { bytesOf, readEncoded } from '../../src/upstream/source.js'
import { cut, runs, sizes } from './search.js'

type Heard = ['event', type: string, data: string, id: string | undefined] | ['retry', number] | ['comment', string]

/** All that a reader says; what it hands over as bytes, as Latin-1. */
function read(chunks: readonly Buffer[]) {
  const heard: Heard[] = []
  const reader = new EventReader({
    onEvent: ({ type, data, id }) => heard.push(['event', type, data.toString('latin1'), id]),
    onRetry: (milliseconds) => heard.push(['retry', milliseconds]),
    onComment: (text) => heard.push(['comment', text]),
  })
  for (const chunk of chunks) reader.push(chunk)
  reader.end()
  return { heard, lastEventId: reader.lastEventId }
}

const latin = (text: string) => Buffer.from(text).toString('latin1')

/** Each event as a browser would tell of it: its type, its data, and the last event id by then. */
function dispatched(chunks: readonly Buffer[]) {
  const events: [type: string, data: string, lastEventId: string][] = []
  let retry: number | undefined
  const reader = new EventReader({
    onEvent: ({ type, data }) => events.push([type, data.toString(), reader.lastEventId]),
    onRetry: (milliseconds) => {
      retry = milliseconds
    },
  })
  for (const chunk of chunks) reader.push(chunk)
  reader.end()
  return retry === undefined ? { events } : { events, retry }
}

const long = 'x'.repeat(2048)
const said = (data: string, lastEventId = '', type = 'message') => [type, data, lastEventId]

/** What the `eventsource/format-*` tests of web-platform-tests send, each by its name there, and what is to come of it. */
const vectors: [name: string, text: string, expected: { events: unknown[]; retry?: number }][] = [
  [
    'event-data',
    'data:msg\ndata:msg\n\n:\nno:msg\n\nno:msg\nData:data\n\ndata\n\ndata:end\n\n',
    { events: [said('msg\nmsg'), said(''), said('end')] },
  ],
  ['format-bom', '\ufeffdata:1\n\n\ufeffdata:2\n\ndata:3\n\n', { events: [said('1'), said('3')] }],
  ['format-bom-2', '\ufeff\ufeffdata:1\n\ndata:2\n\ndata:3\n\n', { events: [said('2'), said('3')] }],
  [
    'format-comments',
    `data:1\r:\0\n:\r\ndata:2\n:${long}\rdata:3\n:data:fail\r:${long}\ndata:4\n\n`,
    { events: [said('1\n2\n3\n4')] },
  ],
  [
    'format-data-before-final-empty-line',
    'retry:1000\ndata:test1\n\nid:test\ndata:test2',
    { events: [said('test1')], retry: 1000 },
  ],
  ['format-field-data', 'data:\n\ndata\ndata\n\ndata:test\n\n', { events: [said(''), said('\n'), said('test')] }],
  ['format-field-event', 'event:test\ndata:x\n\ndata:x\n\n', { events: [said('x', '', 'test'), said('x')] }],
  ['format-field-event-empty', 'event: \ndata:data\n\n', { events: [said('data')] }],
  ['format-field-id', 'id: …\ndata: hello\n\n', { events: [said('hello', '…')] }],
  ['format-field-id-2', 'id: …\ndata: hello\n\ndata: more\n\n', { events: [said('hello', '…'), said('more', '…')] }],
  [
    'format-field-id-3, persists',
    'id: 1\ndata: 1\n\ndata: 2\n\nid: 2\ndata:3\n\ndata:4\n\n',
    { events: [said('1', '1'), said('2', '1'), said('3', '2'), said('4', '2')] },
  ],
  [
    'format-field-id-3, resets',
    'id: 1\ndata: 1\n\nid:\ndata:2\n\ndata:3\n\n',
    { events: [said('1', '1'), said('2'), said('3')] },
  ],
  [
    'format-field-id-3, resets without a colon',
    'id: 1\ndata: 1\n\nid\ndata:2\n\ndata:3\n\n',
    { events: [said('1', '1'), said('2'), said('3')] },
  ],
  ...['\0\0', 'x\0', '\0x', 'x\0x', ' \0'].map(
    (id) =>
      [
        `format-field-id-null ${JSON.stringify(id)}`,
        `id: ${id}\ndata: hello\n\n`,
        { events: [said('hello')] },
      ] as never,
  ),
  [
    'format-field-parsing',
    'data:\0\ndata:  2\rData:1\ndata\0:2\ndata:1\r\0data:4\nda-ta:3\rdata_5\ndata:3\rdata:\r\n data:32\ndata:4\n\n',
    { events: [said('\0\n 2\n1\n3\n\n4')] },
  ],
  ['format-field-retry', 'retry:03000\ndata:x\n\n', { events: [said('x')], retry: 3000 }],
  ['format-field-retry-bogus', 'retry:3000\nretry:1000x\ndata:x\n\n', { events: [said('x')], retry: 3000 }],
  ['format-field-retry-empty', 'retry\ndata:test\n\n', { events: [said('test')] }],
  [
    'format-field-unknown',
    'data:test\n data\ndata\nfoobar:xxx\njustsometext\n:thisisacommentyay\ndata:test\n\n',
    { events: [said('test\n\ntest')] },
  ],
  ['format-leading-space', 'data:\ttest\rdata: \ndata:test\n\n', { events: [said('\ttest\n\ntest')] }],
  ['format-newlines', 'data:test\r\ndata\ndata:test\r\n\r', { events: [said('test\n\ntest')] }],
  ['format-null-character', 'data:\0\n\n', { events: [said('\0')] }],
  ['format-utf-8', 'data:ok…\n\n', { events: [said('ok…')] }],
]

describe('EventReader', () => {
  it.each(vectors)('reads %s as web-platform-tests have it, cut at any byte', (_name, text, expected) => {
    const bytes = Buffer.from(text)
    expect(dispatched([bytes])).toEqual(expected)
    expect(dispatched(cut(bytes, [1]))).toEqual(expected)
    for (let at = 0; at <= bytes.length; at++) {
      expect(dispatched([bytes.subarray(0, at), bytes.subarray(at)])).toEqual(expected)
    }
  })

  it('agrees with eventsource-parser about any text, however it is cut', () => {
    fc.assert(
      fc.property(stream, sizes, (bytes, sizes) => {
        const expected: Heard[] = []
        const parser = createParser({
          onEvent: ({ event, data, id }) => expected.push(['event', event ?? 'message', data, id]),
          onRetry: (milliseconds) => expected.push(['retry', milliseconds]),
          onComment: (text) => expected.push(['comment', text]),
        })
        // It waits for the byte after a CR at the end. A line that nothing ends says nothing.
        parser.feed(`${bytes.toString('latin1')}:`)
        const heard = read(cut(bytes, sizes)).heard.map((it): Heard => {
          if (it[0] === 'event') return ['event', latin(it[1]), it[2], it[3] === undefined ? undefined : latin(it[3])]
          return it[0] === 'comment' ? ['comment', latin(it[1])] : it
        })
        expect(heard).toEqual(expected)
      }),
      runs(1_500),
    )
  })

  it('skips the events that are over the limit and no other, however the bytes are cut', () => {
    fc.assert(
      fc.property(stream, sizes, (bytes, sizes) => {
        const told: string[] = []
        const reader = new EventReader({
          maxBytes: LIMIT,
          onEvent: ({ type, data }) => told.push(`${latin(type)} ${data.toString('latin1')}`),
          onTooLarge: () => told.push('too large'),
        })
        for (const chunk of cut(bytes, sizes)) reader.push(chunk)
        reader.end()
        expect(told).toEqual(limited(bytes.toString('latin1')))
      }),
      runs(1_500),
    )
  })
})

const LIMIT = 24

/** What is told of a stream whose events may have so many bytes, comments and line ends not counted. */
function limited(text: string): string[] {
  const told: string[] = []
  let size = 0
  let type = ''
  let data: string[] = []
  let skips = false
  const lines = text.split(/\r\n|\r|\n/)
  for (const [index, bytes] of lines.entries()) {
    const line = index === 0 ? bytes.replace(/^\xef\xbb\xbf/, '') : bytes
    const isWhole = index < lines.length - 1
    const [name, value = ''] = line.split(/:[ ]?(.*)/s)
    if (isWhole && line === '') {
      if (!skips && data.length > 0) told.push(`${type || 'message'} ${data.join('\n')}`)
      size = 0
      type = ''
      data = []
      skips = false
      continue
    }
    size += line.startsWith(':') ? bytes.length - line.length : bytes.length
    if (size > LIMIT && !skips) {
      told.push('too large')
      skips = true
    }
    if (name === 'event') type = value
    if (name === 'data') data.push(value)
  }
  return told
}

/** Text in which a parser of event streams may take a wrong turn, and bytes that are no text. */
const stream = fc
  .array(
    fc.oneof(
      {
        weight: 6,
        arbitrary: fc.constantFrom(
          ...[
            'data: ',
            'data:',
            'data',
            'data:  ',
            'event: ',
            'event: endpoint',
            'event',
            'id: ',
            'id',
            'retry: ',
            ': ',
            ':',
          ],
          ...['\n', '\r', '\r\n', '\n\n', '\r\r', '\n\r', '12', '\0', ' ', '\ufeff', 'DATA:', 'x'.repeat(20)],
        ),
      },
      { weight: 2, arbitrary: fc.string({ unit: 'binary', maxLength: 4 }) },
    ),
    { maxLength: 40, size: 'max' },
  )
  .map((pieces) => Buffer.from(pieces.join('')))

/** Events that an HTTP+SSE upstream has something to do with, among others; bytes that are no UTF-8 too. */
const events = fc
  .array(
    fc.record({
      type: fc.constantFrom('message', 'message', 'endpoint', 'error', 'open', undefined),
      lines: fc.array(fc.uint8Array({ maxLength: 12 }), { maxLength: 3 }),
      end: fc.constantFrom('\n', '\r\n', '\r'),
    }),
    { maxLength: 6, size: 'max' },
  )
  .map((all) => {
    const expected: [string, Buffer][] = []
    const parts: Buffer[] = []
    for (const { type, lines, end } of all) {
      const datas = lines.map((it) => Buffer.from(it.filter((byte) => byte !== 0x0a && byte !== 0x0d)))
      if (type !== undefined) parts.push(Buffer.from(`event: ${type}${end}`))
      for (const data of datas) parts.push(Buffer.from('data: '), data, Buffer.from(end))
      parts.push(Buffer.from(end))
      if (datas.length === 0 || type === 'error' || type === 'open') continue
      const data = Buffer.concat(datas.flatMap((it, index) => (index === 0 ? [it] : [Buffer.from('\n'), it])))
      expected.push([type ?? 'message', data])
    }
    return { bytes: Buffer.concat(parts), expected }
  })

describe('readEncoded', () => {
  it('brings the bytes of every message, and those of every endpoint through the eventsource package', async () => {
    await fc.assert(
      fc.asyncProperty(events, sizes, async ({ bytes, expected }, sizes) => {
        const body = new PassThrough()
        const heard: [string, Buffer][] = []
        const source = new EventSource('http://127.0.0.1/', {
          fetch: async () => ({
            status: 200,
            url: 'http://127.0.0.1/',
            redirected: false,
            headers: { get: () => 'text/event-stream' },
            body: {
              getReader: () =>
                readEncoded(bodyOf(body), {
                  gate: new Gate(),
                  maxBytes: 1 << 20,
                  silence: 0,
                  onTooLarge: () => {},
                  onFrame: (data) => heard.push(['message', data]),
                }),
            },
          }),
        })
        for (const type of ['message', 'endpoint', 'open']) {
          source.addEventListener(type, (event: { data?: unknown }) => {
            if (event.data !== undefined) heard.push([type, bytesOf(event.data)])
          })
        }
        const over = new Promise<void>((resolve) => source.addEventListener('error', () => resolve()))
        for (const chunk of cut(bytes, sizes)) body.write(chunk)
        body.end()
        await over
        source.close()
        const of = (type: string, all: [string, Buffer][]) => all.filter((it) => it[0] === type)
        expect(of('endpoint', heard)).toEqual(of('endpoint', expected))
        // One without data sets the cursor alone.
        expect(of('message', heard)).toEqual(of('message', expected).filter(([, data]) => data.length > 0))
        expect(heard.filter(([type]) => type !== 'message' && type !== 'endpoint')).toEqual([])
      }),
      runs(150),
    )
  })
})
