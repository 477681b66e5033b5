import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { type ResponseHeaders, ResponseReader } from '../../src/upstream/response.js'
import { cut, runs, sizes } from '../properties/search.js'

type Heard = [status: number, headers: ResponseHeaders, body: string, isLast: boolean | undefined]

/** What is read of some chunks, and the code of what is wrong with them; `ended`: the connection was, behind them. */
function read(chunks: readonly (string | Buffer)[], ended = false) {
  const heard: Heard[] = []
  const reader = new ResponseReader({
    onHead: (status, headers) => heard.push([status, headers, '', undefined]),
    onData: (chunk) => {
      heard.at(-1)![2] += chunk.toString('latin1')
    },
    onEnd: (isLast) => {
      heard.at(-1)![3] = isLast
    },
  })
  try {
    for (const chunk of chunks) reader.push(Buffer.from(chunk as string, 'latin1'))
  } catch (error) {
    return { heard, code: (error as { code: string }).code }
  }
  if (ended) reader.end()
  return { heard, isBetween: reader.isBetween }
}

const OK = 'HTTP/1.1 200 OK\r\n'
const five = 'content-length: 5\r\n'

describe('a response', () => {
  it.each<[string, string, Heard[]]>([
    ['ends with its length', `${OK}${five}\r\nhello`, [[200, { 'content-length': '5' }, 'hello', false]]],
    ['may be empty', `${OK}content-length: 0\r\n\r\n`, [[200, { 'content-length': '0' }, '', false]]],
    ['has no body with 204', `HTTP/1.1 204 None\r\n${five}\r\n`, [[204, { 'content-length': '5' }, '', false]]],
    ['has no body with 304', 'HTTP/1.1 304\r\n\r\n', [[304, {}, '', false]]],
    [
      'is the last one where it says so',
      `${OK}Connection: Close\r\n${five}\r\nhello`,
      [[200, { connection: 'Close', 'content-length': '5' }, 'hello', true]],
    ],
    [
      'is the last one of HTTP/1.0',
      `HTTP/1.0 200 OK\r\n${five}\r\nhello`,
      [[200, { 'content-length': '5' }, 'hello', true]],
    ],
    [
      'is not, where that says so',
      `HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n${five}\r\nhello`,
      [[200, { connection: 'keep-alive', 'content-length': '5' }, 'hello', false]],
    ],
    [
      'comes in chunks, with extensions and trailers for nobody',
      `${OK}Transfer-Encoding: Chunked\r\n\r\n3;a="b";c\r\nhel\r\n2\r\nlo\r\n0\r\nx: y\r\nz: 1\r\n\r\n`,
      [[200, { 'transfer-encoding': 'Chunked' }, 'hello', false]],
    ],
    [
      'comes behind informational ones',
      `HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nlink: a\r\n\r\n${OK}${five}\r\nhello`,
      [[200, { 'content-length': '5' }, 'hello', false]],
    ],
    [
      'has headers as Node reads them',
      `${OK}X: \t a b \t\r\nx:c\r\nEmpty:\r\nSet-Cookie: a\r\nset-cookie: b\r\nContent-Type: a\r\ncontent-type: b\r\nconstructor: d\r\nb: \xe9\r\n${five}\r\nhello`,
      [
        [
          200,
          {
            x: 'a b, c',
            empty: '',
            'set-cookie': ['a', 'b'],
            'content-type': 'a',
            constructor: 'd' as never,
            b: '\xe9',
            'content-length': '5',
          },
          'hello',
          false,
        ],
      ],
    ],
  ])('%s, however it is cut', (_what, text, expected) => {
    expect(read([text])).toEqual({ heard: expected, isBetween: expected.at(-1)?.[3] === false })
    expect(read([...text]).heard).toEqual(expected)
    fc.assert(
      fc.property(sizes, (sizes) => {
        expect(read(cut(Buffer.from(text, 'latin1'), sizes)).heard).toEqual(expected)
      }),
      runs(50),
    )
  })

  it('without a length ends with its connection, and not before', () => {
    const chunks = [`${OK}\r\nhel`, 'lo']
    expect(read(chunks).heard).toEqual([[200, {}, 'hello', undefined]])
    expect(read(chunks, true).heard).toEqual([[200, {}, 'hello', true]])
  })

  it.each([
    ['of its length', `${OK}${five}\r\nhell`],
    ['of a chunk', `${OK}transfer-encoding: chunked\r\n\r\n5\r\nhell`],
    ['of its chunks', `${OK}transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n`],
    ['of its trailers', `${OK}transfer-encoding: chunked\r\n\r\n0\r\nx: y\r\n`],
  ])('does not end with its connection before the end %s', (_what, text) => {
    expect(read([text], true).heard.map((it) => it[3])).toEqual([undefined])
  })

  it('may be followed by another, but not in the same breath', () => {
    const [one, two] = [`${OK}${five}\r\nhello`, 'HTTP/1.1 404 No\r\ncontent-length: 2\r\n\r\nno']
    const first: Heard = [200, { 'content-length': '5' }, 'hello', false]
    expect(read([one, two]).heard).toEqual([first, [404, { 'content-length': '2' }, 'no', false]])
    expect(read([one + two])).toEqual({ heard: [first.with(3, true)], isBetween: false })
  })

  it('that has begun is not over', () => {
    expect(read([`${OK}${five}\r\nhello`, 'HTT']).isBetween).toBe(false)
  })
})

describe('no response', () => {
  it.each([
    ['HPE_INVALID_CONSTANT', 'SSH-2.0-OpenSSH_9.6\r\n'],
    ['HPE_INVALID_CONSTANT', 'HTTP/2 200\r\n\r\n'],
    ['HPE_INVALID_CONSTANT', 'HTTP/1.1 2000 OK\r\n\r\n'],
    ['HPE_INVALID_CONSTANT', 'HTTP/1.1 20 OK\r\n\r\n'],
    ['HPE_INVALID_STATUS', 'HTTP/1.1 099 OK\r\n\r\n'],
    ['another protocol', 'HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n'],
    ['HPE_HEADER_OVERFLOW', `${OK}x: ${'x'.repeat(16_384)}\r\n\r\n`],
    ['HPE_HEADER_OVERFLOW', `${OK}x: ${'x'.repeat(20_000)}`],
    ['HPE_HEADER_OVERFLOW', `${OK}transfer-encoding: chunked\r\n\r\n0\r\nx: ${'x'.repeat(20_000)}`],
    ['HPE_HEADER_OVERFLOW', `${OK}transfer-encoding: chunked\r\n\r\n1;${'x'.repeat(20_000)}`],
    ['HPE_INVALID_HEADER_TOKEN', `${OK}no colon\r\n\r\n`],
    ['HPE_INVALID_HEADER_TOKEN', `${OK}x : y\r\n\r\n`],
    ['HPE_INVALID_HEADER_TOKEN', `${OK}x: y\r\n folded: z\r\n\r\n`],
    ['HPE_INVALID_HEADER_TOKEN', `${OK}: y\r\n\r\n`],
    ['HPE_INVALID_HEADER_TOKEN', `${OK}x: a\nb: c\r\n\r\n`],
    ['HPE_INVALID_HEADER_TOKEN', `${OK}x: a\n\n`],
    ['HPE_INVALID_HEADER_TOKEN', `${OK}transfer-encoding: chunked\r\n\r\n0\r\nx: a\n\n`],
    ['HPE_INVALID_HEADER_TOKEN', `${OK}transfer-encoding: chunked\r\n\r\n0\r\nno colon\r\n\r\n`],
    ['HPE_INVALID_HEADER_TOKEN', `${OK}x: a\rb: c\r\n\r\n`],
    ['HPE_INVALID_HEADER_TOKEN', `${OK}x: a\0b\r\n\r\n`],
    ['HPE_HEADER_OVERFLOW', `${OK}transfer-encoding: chunked\r\n\r\n0\r\nx: ${'x'.repeat(20_000)}\r\n\r\n`],
    ['HPE_UNEXPECTED_CONTENT_LENGTH', `${OK}${five}${five}\r\nhello`],
    ['HPE_UNEXPECTED_CONTENT_LENGTH', `HTTP/1.1 204 None\r\n${five}transfer-encoding: chunked\r\n\r\n`],
    ['HPE_INVALID_CONTENT_LENGTH', 'HTTP/1.1 100 Continue\r\ncontent-length: x\r\n\r\n'],
    ['HPE_UNEXPECTED_CONTENT_LENGTH', `${OK}transfer-encoding: chunked\r\n\r\n0\r\n${five}\r\n`],
    ['HPE_INVALID_TRANSFER_ENCODING', `${OK}transfer-encoding: chunked\r\n\r\n0\r\ntransfer-encoding: chunked\r\n\r\n`],
    ['HPE_UNEXPECTED_CONTENT_LENGTH', `${OK}${five}content-length: 6\r\n\r\nhello`],
    ['HPE_UNEXPECTED_CONTENT_LENGTH', `${OK}${five}transfer-encoding: chunked\r\n\r\n0\r\n\r\n`],
    ['HPE_INVALID_CONTENT_LENGTH', `${OK}content-length: 5, 5\r\n\r\nhello`],
    ['HPE_INVALID_CONTENT_LENGTH', `${OK}content-length: -1\r\n\r\n`],
    ['HPE_INVALID_CONTENT_LENGTH', `${OK}content-length: +5\r\n\r\nhello`],
    ['HPE_INVALID_CONTENT_LENGTH', `${OK}content-length:\r\n\r\n`],
    ['HPE_INVALID_TRANSFER_ENCODING', `${OK}transfer-encoding: gzip, chunked\r\n\r\n`],
    ['HPE_INVALID_TRANSFER_ENCODING', `${OK}transfer-encoding: xchunked\r\n\r\n`],
    ['HPE_INVALID_CHUNK_SIZE', `${OK}transfer-encoding: chunked\r\n\r\n0x5\r\nhello`],
    ['HPE_INVALID_CHUNK_SIZE', `${OK}transfer-encoding: chunked\r\n\r\n\r\nhello`],
    ['HPE_INVALID_CHUNK_SIZE', `${OK}transfer-encoding: chunked\r\n\r\n5\nhello`],
    ['HPE_INVALID_CHUNK_SIZE', `${OK}transfer-encoding: chunked\r\n\r\n5 \r\nhello`],
    ['HPE_INVALID_CHUNK_SIZE', `${OK}transfer-encoding: chunked\r\n\r\n5;a\0\r\nhello`],
    ['HPE_INVALID_CHUNK_SIZE', `${OK}transfer-encoding: chunked\r\n\r\n5;a="b\r\nhello`],
    ['HPE_INVALID_CHUNK_SIZE', `${OK}transfer-encoding: chunked\r\n\r\n1000000000000\r\n`],
    ['HPE_STRICT', `${OK}transfer-encoding: chunked\r\n\r\n2\r\nhello\r\n0\r\n\r\n`],
  ])('is what is no HTTP/1.1: %s', (code, text) => {
    expect(read([text]).code).toBe(code)
    expect(read([...text]).code).toBe(code)
  })
})
