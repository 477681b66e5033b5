import { once } from 'node:events'
import { Agent, type IncomingMessage, request as nodeRequest } from 'node:http'
import { type AddressInfo, createServer, type Socket } from 'node:net'
import { setImmediate as halfTurn } from 'node:timers/promises'
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Fields } from '../../src/upstream/fields.js'
import { HttpClient, type HttpResponse } from '../../src/upstream/request.js'
import { ResponseReader } from '../../src/upstream/response.js'
import { cut, runs, sizes } from './search.js'

/** What a client makes of a response: all of it, or nothing. */
type Outcome = { status: number; headers: Record<string, unknown>; body: string } | { refused: string }

/** Where Node takes what no HTTP/1.1 server says (RFC 9112), we do not. */
const stricter: Record<string, RegExp> = {
  'a blank line before the response': /^(?:[\s\S]*\r\n\r\n)?[\r\n]+HTTP/,
  'another version': /HTTP\/(?!1\.[01] )/,
  'a status below 100': /HTTP\/1\.[01] 0\d\d/,
  'another protocol (101), not asked for': /HTTP\/1\.[01] 101/,
  // biome-ignore lint/suspicious/noControlCharactersInRegex: that is what it looks for
  'a control character in the reason phrase': /HTTP\/1\.[01] \d{3}[^\r\n]*[\0-\x08\x0b\x0c\x0e-\x1f\x7f]/,
  'a transfer coding that is not chunked, which Node reads to the end of the connection or leaves to the caller':
    /^transfer-encoding:(?![\t ]*chunked[\t ]*\r\n)/im,
  'a transfer coding twice, or in the trailers': /^transfer-encoding:[\s\S]*^transfer-encoding:/im,
  'a length of more than 15 digits, that of a chunk of more than 12': /\d{16}|^[\da-f]{13}/im,
  'a chunk extension without a name or a value': /;=|=(?:;|\r)|;[;\r]/,
}

// --- responses --------------------------------------------------------------------------------------------------

const CRLF = '\r\n'
const bad = `HTTP/1.1 200 OK${CRLF}content-length: 3${CRLF}${CRLF}bad`

const often = (usual: string, ...odd: string[]) =>
  fc.oneof({ weight: 12, arbitrary: fc.constant(usual) }, { weight: 1, arbitrary: fc.constantFrom(...odd) })

const informational = often(
  '',
  ...['100 Continue', '103 E\r\nlink: a', '102 P\r\ncontent-length: 3', '101 S', '101 S\r\nupgrade: x'].map(
    (text) => `HTTP/1.1 ${text}\r\n\r\n`,
  ),
  ...['100 C\r\ncontent-length: x', '100 C\r\ncontent-length: 3\r\ntransfer-encoding: chunked'].map(
    (text) => `HTTP/1.1 ${text}\r\n\r\n`,
  ),
  '\r\n',
  '\n',
)

const version = often('HTTP/1.1', 'HTTP/1.0', 'HTTP/1.0', 'HTTP/2.0', 'HTTP/0.9', 'HTTP/1.2', 'http/1.1', 'ICY')

const status = fc.oneof(
  {
    weight: 5,
    arbitrary: fc.constantFrom('200 OK', '200 ', '200', '404 Not \xe9', '204 None', '304 Same', '205 A\tb'),
  },
  { weight: 1, arbitrary: fc.constantFrom('999 X', '099 X', '20 OK', '2000 OK', '+20 O', '200\tOK', ' 200 OK') },
)

const header = fc.constantFrom(
  ...['Content-Type: application/json', 'content-type: text/event-stream;charset=x', 'Location: /x', 'location: /y'],
  ...['Mcp-Session-Id: abc', 'mcp-session-id: def', 'Retry-After: 1', 'WWW-Authenticate: a', 'www-authenticate: b'],
  ...['X-A: 1', 'x-a: 2', 'X-A:\t a b \t', 'Empty:', 'empty: ', 'Set-Cookie: a=b', 'set-cookie: c', 'b: \xe9\xff\x80'],
  ...['Connection: close', 'connection: keep-alive', 'Connection: Keep-Alive, x', 'keep-alive: timeout=5'],
  ...['constructor: 1', '__proto__: 1', "!#$%&'*+-.^_`|~0Aa: t", 'upgrade: x', 'trailer: x', 'proxy-connection: close'],
)

const length = [': 5', ': 3', ': 5, 5', ': +5', ': -5', ': 0x5', ': 5 ', ':', ': 5 5', ': 05', ': 1e1', ' : 5', ':5\r']
const coding = [
  ': chunked',
  ': Chunked',
  ': identity',
  ': gzip, chunked',
  ': chunked, gzip',
  ': xchunked',
  ':\tchunked ',
]
const oddHeader = fc.constantFrom(
  ...['x : 1', ' x: 1', 'x: a\r\n b', 'x: a\r\n\tb', 'x: a\r\n ', ': 1', 'nothing', '', 'x\xe9: 1', 'x(: 1'],
  ...['x: a\0b', 'x: a\x01', 'x: a\x7f', 'x: \x0b', 'x: a\rb', 'x: a\nb: c', `x: ${'y'.repeat(17_000)}`],
  ...[...length, ': 99999999999999999999', ': 5\r\n ', ': \r\n 5'].map((it) => `content-length${it}`),
  ...[...coding, ':', ': "chunked"', ': chunked, chunked', ': chunked;a=b', ' : chunked', ':\x0bchunked'].map(
    (it) => `transfer-encoding${it}`,
  ),
  ...[': chun\r\n ked', ': chunked\r\n ', ': \r\n chunked', ': chunked\n'].map((it) => `transfer-encoding${it}`),
)

const headers: fc.Arbitrary<string[]> = fc
  .tuple(
    fc.array<string>(header, { maxLength: 4 }),
    fc.oneof(
      { weight: 4, arbitrary: fc.constant<string[]>([]) },
      { weight: 1, arbitrary: fc.array<string>(oddHeader, { minLength: 1, maxLength: 2 }) },
    ),
  )
  .map((both) => both.flat())

const data = fc.oneof(
  fc.constantFrom('hello', '', '{"a":1}', '\r\n', '0\r\n\r\n', bad, '\0'),
  fc.string({ unit: 'binary-ascii', maxLength: 20 }),
)

const extension = often(
  '',
  ...[';a', ';a=b', ';a="b c"', ';a="\\""', ';a;b=c', '; a=b', ' ;a=b', ';', ';a=', ';a="', ';=b', ';a="b"c'],
  ...[' ', '\t', '  ', ' x', '-', ';(', ';a b', ';a\r', ';\xe9', ';a="\xe9"', ';a=\x01', ';a\0', ';a\n'],
)
const lineEnd = often(CRLF, '\n', '\r', '\r\r\n', ' \r\n')
const size = (size: number) =>
  fc.oneof(
    {
      weight: 6,
      arbitrary: fc.constantFrom(16, 2, 1).map((pad) => size.toString(16).padStart(pad > 2 ? 1 : pad, '0')),
    },
    { weight: 1, arbitrary: fc.constantFrom(12, 13, 16, 20).map((pad) => size.toString(16).padStart(pad, '0')) },
    { weight: 1, arbitrary: often(size.toString(16).toUpperCase(), '', 'g', '0x5', '-1', '+5', ' 5', '5x', '5 5') },
  )
const chunk = data
  .filter((text) => text !== '')
  .chain((text) =>
    fc.tuple(size(text.length), extension, lineEnd, fc.constant(text), often(CRLF, '\n', '\r', '', ' \r\n', 'x\r\n')),
  )
const trailers = often(
  '',
  ...[
    'x: y\r\n',
    'x: y\r\nz: \xe9\r\n',
    'connection: close\r\n',
    'content-length: 3\r\n',
    'transfer-encoding: chunked\r\n',
  ],
  ...['nothing\r\n', 'x : y\r\n', ' x: y\r\n', ': \r\n', 'x: a\0\r\n', 'x: y\n', 'x: a\r\n b\r\n', 'x: a\rb\r\n'],
  `x: ${'y'.repeat(17_000)}\r\n`,
)
const lastEnd = often(CRLF, '', '\n', '\r', 'x\r\n', ' \r\n')
const chunked = fc
  .tuple(fc.array(chunk, { maxLength: 3 }), size(0), extension, lineEnd, trailers, lastEnd)
  .map((parts) => parts.flat(2).join(''))

/** How the body is framed, in a header or not at all, and the body. */
const framed: fc.Arbitrary<[how: string[], body: string]> = fc.oneof(
  data.map((text): [string[], string] => [[`Content-Length: ${text.length}`], text]),
  chunked.map((text): [string[], string] => [['Transfer-Encoding: chunked'], text]),
  data.map((text): [string[], string] => [[], text]),
)

const surplus = fc.constantFrom(
  '\r\n',
  '\n',
  'x',
  '\0',
  '0\r\n\r\n',
  bad,
  `${bad}${bad}`,
  'HTTP/1.1 100 C\r\n\r\n',
  'HTTP/',
)

const undamaged = fc
  .tuple(informational, version, status, headers, framed, fc.nat(), often('', '\r\n', 'x', bad))
  .map(([before, version, status, headers, [how, body], place, surplus]) => {
    const lines = [`${version} ${status}`, ...headers.toSpliced(place % (headers.length + 1), 0, ...how)]
    return `${before}${lines.join(CRLF)}${CRLF}${CRLF}${body}${surplus}`
  })

/** Bytes that are taken out, put in, or put in the place of others. */
const damage = fc.array(
  fc.tuple(
    fc.nat(),
    fc.constantFrom('out', 'in', 'change'),
    fc.constantFrom('\r', '\n', '\r\n', '\0', ' ', '\t', ':', ';', ',', '0', '5', 'x', '\x80', '\x7f', '"'),
  ),
  { maxLength: 2 },
)

const response = fc
  .tuple(undamaged, fc.oneof({ weight: 3, arbitrary: fc.constant([]) }, { weight: 1, arbitrary: damage }))
  .map(([text, damage]) => {
    let damaged = text
    for (const [place, how, byte] of damage) {
      const at = place % (damaged.length + 1)
      damaged = `${damaged.slice(0, at)}${how === 'out' ? '' : byte}${damaged.slice(how === 'in' ? at : at + 1)}`
    }
    return damaged
  })

// --- a server, and those who read what it says --------------------------------------------------------------------

let url: URL
/** What the server says to the request of a path. */
let says: (path: string, socket: Socket) => unknown
const sockets = new Set<Socket>()
const server = createServer((socket) => {
  sockets.add(socket.setNoDelay(true).on('error', () => {}))
  socket.on('close', () => sockets.delete(socket))
  socket.on('data', (head) => says(head.toString().split(' ')[1]!, socket))
})

beforeAll(async () => {
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  url = new URL(`http://127.0.0.1:${(server.address() as AddressInfo).port}/`)
})

afterAll(() => {
  for (const socket of sockets) socket.destroy()
  server.close()
})

/** Says all of it, in these pieces as far as TCP lets it, and closes the connection. */
const inPieces = (chunks: readonly Buffer[]) => async (_path: string, socket: Socket) => {
  for (const chunk of chunks) {
    socket.write(chunk)
    await halfTurn()
  }
  socket.end()
}

function byOurs(client: HttpClient, to = url): Promise<Outcome> {
  return new Promise((resolve) => {
    const onError = (error: Error) => resolve({ refused: error.message })
    const onResponse = ({ status, headers, body }: HttpResponse) => {
      let text = ''
      body.read({
        onData: (chunk) => {
          text += chunk.toString('latin1')
        },
        onEnd: (isWhole) => resolve(isWhole ? { status, headers: { ...headers }, body: text } : { refused: 'broken' }),
      })
    }
    const request = { method: 'POST', fields: new Fields({}, to.host) } as const
    client.hop(to, request, { onResponse, onError }).written?.catch(onError)
  })
}

function byNode(): Promise<Outcome> {
  const agent = new Agent({ keepAlive: true })
  return new Promise<Outcome>((resolve) => {
    let response: IncomingMessage | undefined
    const refuse = (error: Error) => resolve({ refused: error.message })
    const asked = nodeRequest(url, { agent, method: 'POST' })
    // What comes behind a response may be wrong, too.
    asked.on('error', (error) => {
      if (!response?.complete) refuse(error)
    })
    asked.on('response', (it) => {
      response = it
      let text = ''
      it.on('data', (chunk: Buffer) => {
        text += chunk.toString('latin1')
      })
      it.on('error', refuse)
      it.on('end', () => resolve({ status: it.statusCode!, headers: { ...it.headers }, body: text }))
    })
    asked.end()
  }).finally(() => agent.destroy())
}

/** What the reader alone makes of it, so that the pieces are what they are here. */
function byReader(chunks: readonly Buffer[]): Outcome {
  let read: Outcome = { refused: 'nothing' }
  let whole: Outcome | undefined
  const reader = new ResponseReader({
    onHead: (status, headers) => {
      read = { status, headers: { ...headers }, body: '' }
    },
    onData: (chunk) => {
      if ('body' in read) read.body += chunk.toString('latin1')
    },
    onEnd: () => {
      whole ??= read
    },
  })
  try {
    for (const chunk of chunks) reader.push(chunk)
    reader.end()
  } catch (error) {
    read = { refused: String(error) }
  }
  return whole ?? { refused: 'broken' }
}

const ways = (text: string) => Object.keys(stricter).filter((way) => stricter[way]!.test(text))

describe('a response', () => {
  it('is what Node takes it for, or no response, however it is cut', async () => {
    await fc.assert(
      fc.asyncProperty(response, sizes, fc.boolean(), async (text, sizes, isCut) => {
        const bytes = Buffer.from(text, 'latin1')
        const pieces = cut(bytes, sizes)
        says = inPieces(isCut && bytes.length < 1_000 ? pieces : [bytes])
        const client = new HttpClient(url, { timeout: 5_000 })
        const [ours, nodes] = [await byOurs(client), await byNode()]
        client.close()
        if ('refused' in ours) {
          expect(byReader(pieces)).toHaveProperty('refused')
          if (!('refused' in nodes)) expect(ways(text), ours.refused).not.toEqual([])
        } else {
          expect(byReader(pieces)).toEqual(ours)
          expect(ours).toEqual(nodes)
        }
      }),
      runs(800),
    )
  })

  it('does not reach into the next one', async () => {
    const answer = 'HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood'
    const good = data.chain((text) =>
      fc.constantFrom(
        `HTTP/1.1 200 OK\r\ncontent-length: ${text.length}\r\n\r\n${text}`,
        `HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n${text.length.toString(16).padStart(4, '0')}\r\n${text}${
          text && '\r\n0\r\n'
        }\r\n`,
        'HTTP/1.1 204 None\r\n\r\n',
        'HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 0\r\n\r\n',
      ),
    )
    await fc.assert(
      fc.asyncProperty(good, surplus, fc.nat({ max: 3 }), async (first, surplus, turns) => {
        const asked: Socket[] = []
        says = (path, socket) => {
          asked.push(socket)
          socket.write(path === '/1' ? `${first}${surplus}` : answer, 'latin1')
        }
        const client = new HttpClient(url, { timeout: 5_000 })
        expect(await byOurs(client, new URL('/1', url))).toHaveProperty('body')
        for (let turn = 0; turn < turns; turn += 1) await halfTurn()
        expect(await byOurs(client, new URL('/2', url))).toHaveProperty('body', 'good')
        expect(new Set(asked).size).toBe(2)
        client.close()
      }),
      runs(200),
    )
  })
})
