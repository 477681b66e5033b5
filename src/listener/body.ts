import type { IncomingMessage } from 'node:http'
import { Pieces, withoutBom } from '../lines.js'
import { cutOff, invalid, noRoom, type Refused, refused } from './reply.js'

/** Milliseconds that a body may take. */
const BODY_TIMEOUT = 30_000

/** What a framework's parser before us has left of a request (Express, Connect). */
interface Parsed {
  body?: unknown
}

/** Whether a `Content-Type` is JSON: nothing else is taken, so that no form of a web page can post here. */
export function isJson(contentType = ''): boolean {
  const [type = ''] = contentType.split(';', 1)
  return /^[ \t]*application\/json[ \t]*$/i.test(type)
}

/** Whether an `Accept` header takes all of these types; none at all takes everything (RFC 9110, section 12.5.1). */
export function accepts(accept: string | undefined, ...types: readonly string[]): boolean {
  if (accept === undefined) return true
  const ranges = new Set(accept.split(',').map((range) => range.split(';', 1)[0]!.trim().toLowerCase()))
  const wild = (type: string) => `${type.split('/', 1)[0]}/*`
  return ranges.has('*/*') || types.every((type) => ranges.has(type) || ranges.has(wild(type)))
}

/**
 * The whole body, without a byte order mark (RFC 8259, section 8.1), or why it is not taken: `take` says of each piece whether
 * there is room for it.
 */
export async function readBody(
  request: IncomingMessage,
  maxBytes: number,
  take: (bytes: number) => boolean,
): Promise<Buffer | Refused> {
  const { 'content-length': length, 'content-encoding': coding = 'identity' } = request.headers
  const { body } = request as Parsed
  if (request.readableEnded && body !== undefined) {
    const read = Buffer.isBuffer(body) ? body : Buffer.from(typeof body === 'string' ? body : JSON.stringify(body))
    return read.length > maxBytes ? tooLarge(maxBytes) : withoutBom(read)
  }
  if (coding.toLowerCase() !== 'identity') return invalid(415, 'expected a body without Content-Encoding')
  if (request.readableEnded) return invalid(400, 'the body was read before it came here, and is not in request.body')
  if (Number(length) > maxBytes) {
    cutOff(request)
    return tooLarge(maxBytes)
  }
  const whole = await bodyAtOnce(request, Number(length))
  if (whole && !take(whole.length)) return noRoom()
  if (whole) return withoutBom(whole)
  if (request.destroyed) return invalid(400, 'the body broke off')
  return bodyInTime(request, maxBytes, take)
}

/**
 * A body of known length that nobody reads yet, where it came with its head, as most do: that takes neither a timer nor
 * listeners.
 */
async function bodyAtOnce(request: IncomingMessage, length: number): Promise<Buffer | undefined> {
  if (request.readableFlowing !== null) return undefined
  // What came with the head is parsed by then.
  await undefined
  if (request.destroyed || length === 0 || request.readableLength !== length) return undefined
  const body = request.read() as Buffer
  request.resume()
  return body
}

function bodyInTime(
  request: IncomingMessage,
  maxBytes: number,
  take: (bytes: number) => boolean,
): Promise<Buffer | Refused> {
  return new Promise((resolve) => {
    const pieces = new Pieces()
    let isRefused = false
    const refuse = (refusal: Refused) => {
      pieces.clear()
      isRefused = true
      resolve(refusal)
      cutOff(request)
    }
    const timer = setTimeout(() => refuse(invalid(408, 'the body took too long')), BODY_TIMEOUT)
    request.on('data', (chunk: Buffer) => {
      if (isRefused) return
      if (pieces.size + chunk.length > maxBytes) refuse(tooLarge(maxBytes))
      else if (!take(chunk.length)) refuse(noRoom())
      else pieces.add(chunk)
    })
    request.on('end', () => resolve(withoutBom(pieces.take())))
    request.on('error', () => {})
    request.on('close', () => {
      clearTimeout(timer)
      resolve(invalid(400, 'the body broke off'))
    })
  })
}

function tooLarge(maxBytes: number): Refused {
  return refused(413, 'too_large', `over ${maxBytes} bytes`)
}
