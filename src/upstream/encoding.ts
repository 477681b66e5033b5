import type { IncomingMessage } from 'node:http'
import { pipeline, type Readable } from 'node:stream'
import { createBrotliDecompress, createGunzip, createInflate } from 'node:zlib'

const decoders = new Map([
  ['gzip', createGunzip],
  ['x-gzip', createGunzip],
  ['deflate', createInflate],
  ['br', createBrotliDecompress],
])

/** The body as it was before its content coding (RFC 9110, section 8.4): some servers compress unasked. */
export function decoded(incoming: IncomingMessage): Readable {
  const create = decoders.get(incoming.headers['content-encoding']?.trim().toLowerCase() ?? '')
  if (create === undefined) return incoming
  const decoder = create()
  // What is wrong with either shows as its early end.
  decoder.on('error', () => {})
  return pipeline(incoming, decoder, () => {})
}
