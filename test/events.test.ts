import { describe, expect, it, vi } from 'vitest'
import { EventReader, type EventReaderOptions } from '../src/events.js'

type Heard = [string, ...unknown[]]

/** Everything that a reader says about these chunks, in order. */
function read(chunks: (string | Uint8Array)[], options: Partial<EventReaderOptions> = {}) {
  const heard: Heard[] = []
  const reader = new EventReader({
    onEvent: ({ type, data, id }) => heard.push(['event', type, data.toString('latin1'), id]),
    onRetry: (milliseconds) => heard.push(['retry', milliseconds]),
    onComment: (text) => heard.push(['comment', text]),
    onTooLarge: (head) => heard.push(['too large', head.toString('latin1')]),
    ...options,
  })
  for (const chunk of chunks) reader.push(typeof chunk === 'string' ? Buffer.from(chunk) : chunk)
  reader.end()
  return { heard, lastEventId: reader.lastEventId }
}

describe('EventReader', () => {
  it.each([
    ['LF', 'data: a\n\ndata: b\n\n'],
    ['CR', 'data: a\r\rdata: b\r\r'],
    ['CRLF', 'data: a\r\n\r\ndata: b\r\n\r\n'],
    ['all three mixed', 'data: a\r\n\rdata: b\n\r'],
  ])('ends lines at %s', (_name, text) => {
    expect(read([text]).heard).toEqual([
      ['event', 'message', 'a', undefined],
      ['event', 'message', 'b', undefined],
    ])
  })

  it('takes a CRLF that two chunks share for one line end', () => {
    expect(read(['data: a\r', '\ndata: b\r', '\n', '\r\n']).heard).toEqual([['event', 'message', 'a\nb', undefined]])
  })

  it('skips a BOM at the start only, also one that comes in pieces', () => {
    const bom = Buffer.from([0xef, 0xbb, 0xbf])
    const rest = Buffer.concat([Buffer.from('data: a\n\n'), bom, Buffer.from('data: b\n\n')])
    expect(read([bom.subarray(0, 1), bom.subarray(1), rest]).heard).toEqual([['event', 'message', 'a', undefined]])
  })

  it('knows type, id, retry and comments, and ignores what it does not know', () => {
    const text = 'event: endpoint\nid: 7\nretry: 250\nretry: 1s\nretry:\n: life\nfoo: bar\nDATA: x\ndata:  two\n\n'
    expect(read([text])).toEqual({
      heard: [
        ['retry', 250],
        ['comment', 'life'],
        ['event', 'endpoint', ' two', '7'],
      ],
      lastEventId: '7',
    })
  })

  it('counts the id of an event without data, but not one with NUL in it or of an event cut off', () => {
    expect(read(['id: 1\n\nid: 2\0\n\nid: 3\n'])).toEqual({ heard: [], lastEventId: '1' })
  })

  it('dispatches an event whose data is empty, since it has data', () => {
    expect(read(['data:\n\ndata\n\nevent: x\n\n']).heard).toEqual([
      ['event', 'message', '', undefined],
      ['event', 'message', '', undefined],
    ])
  })

  it('discards the event that the end cuts off', () => {
    expect(read(['data: a\n\ndata: b\n']).heard).toEqual([['event', 'message', 'a', undefined]])
  })

  it('hands over bytes as they are, of a single line as a view of the chunk', () => {
    const chunk = Buffer.concat([Buffer.from('data: '), Buffer.from([0xff, 0xc3, 0x00, 0x28]), Buffer.from('\n\n')])
    let data: Buffer = Buffer.alloc(0)
    new EventReader({
      onEvent: (event) => {
        data = event.data
      },
    }).push(chunk)
    expect(data).toEqual(Buffer.from([0xff, 0xc3, 0x00, 0x28]))
    expect(data.buffer).toBe(chunk.buffer)
  })

  it.each([
    ['in one chunk', [`data: ${'x'.repeat(20)}\nid: 5\n\ndata: ok\n\n`]],
    ['over chunks', ['data: xxxxx', 'xxxxxxxxx', 'x\n', '\ndata: ok\n\n']],
    ['over lines', ['data: xxxxxx\ndata: xxx\nid: 9\n\ndata: ok\n\n']],
  ])('skips an event over its limit, %s, and goes on with the next', (_name, chunks) => {
    expect(read(chunks, { maxBytes: 16 }).heard).toEqual([
      ['too large', expect.stringMatching(/^ ?[x\n]+$/)],
      ['event', 'message', 'ok', undefined],
    ])
  })

  it.each([
    ['bytes', Array.from({ length: 65_536 }, () => 'x')],
    ['lines', ['\n', ...Array.from({ length: 65_536 }, () => 'data:\n')]],
  ])('keeps no object for each of many small %s', (_name, chunks) => {
    const concat = vi.spyOn(Buffer, 'concat')
    const { heard } = read(['data:', ...chunks, '\n\n'])
    const lists = concat.mock.calls.map(([list]) => list.length)
    concat.mockRestore()
    expect(heard).toHaveLength(1)
    expect(Math.max(...lists)).toBeLessThan(100)
  })

  it('does not count comments', () => {
    expect(read([`: ${'x'.repeat(10)}\n: ${'x'.repeat(10)}\ndata: ok\n\n`], { maxBytes: 16 }).heard.at(-1)).toEqual([
      'event',
      'message',
      'ok',
      undefined,
    ])
  })

  it.each([
    ['a comment', [': xxxxxxxxxx', 'xxxxxxxxxx', 'xx\n', 'data: ok\n\n']],
    ['a comment in an event', ['data: ok\n: xxxxxxxxxx', 'xxxxxxxxxx\n\n']],
    ['a comment behind a BOM', ['\ufeff: xxxxxxxxxx', 'xxxxxxxxxx', '\ndata: ok\n\n']],
  ])('loses no event for %s over the limit that comes in pieces', (_name, chunks) => {
    const told = read(chunks, { maxBytes: 16, onComment: () => {} })
    expect(told.heard).toEqual([['event', 'message', 'ok', undefined]])
  })

  it('takes no BOM off behind a first line that was over its limit', () => {
    const bom = Buffer.from('\ufeffdata: a\n\ndata: b\n\n')
    const { heard } = read(['data: xxxxxxxxxxx', 'x\n\n', bom], { maxBytes: 16 })
    expect(heard).toEqual([
      ['too large', ' xxxxxxxxxxx'],
      ['event', 'message', 'b', undefined],
    ])
  })
})
