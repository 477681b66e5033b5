import { pipeline, type Transform } from 'node:stream'
import { type Body, bodyOf, streamOf } from './body.js'

type Zlib = typeof import('node:zlib')

const decoders = new Map<string, (zlib: Zlib) => Transform>([
  ['gzip', (zlib) => zlib.createGunzip()],
  ['x-gzip', (zlib) => zlib.createGunzip()],
  ['deflate', (zlib) => zlib.createInflate()],
  ['br', (zlib) => zlib.createBrotliDecompress()],
])

/** The body as it was before its content coding (RFC 9110, section 8.4): some servers compress unasked. */
export function decoded(body: Body, coding: unknown): Body {
  const create = typeof coding === 'string' ? decoders.get(coding.toLowerCase()) : undefined
  if (create === undefined) return body
  // Loaded where it is needed.
  const decoder = create(process.getBuiltinModule('node:zlib'))
  // What is wrong with either shows as its early end.
  pipeline(streamOf(body), decoder, () => {})
  return bodyOf(decoder)
}
