import type { ReaderLike } from 'eventsource'
import { EventReader } from '../events.js'
import type { Body } from './body.js'
import { type StreamOptions, watchSilence } from './stream.js'

/**
 * A body as the eventsource package reads it. That decodes what it reads and holds it without bound; so the bytes are
 * cut into events here, where they are counted. Messages are handed over from here: through the package they would be
 * encoded, decoded and cut once more, for a third of what a call costs. What it is there for, the life of the stream and
 * the endpoint, passes through it as one character for each byte; `bytesOf` undoes that.
 */
export function readEncoded(body: Body, options: StreamOptions): ReaderLike {
  const ready: Uint8Array[] = []
  let wake = () => {}
  let ended = false
  const events = new EventReader({
    maxBytes: options.maxBytes,
    onTooLarge: options.onTooLarge,
    onEvent: ({ type, data }) => {
      if (type === 'message' && data.length > 0) options.onFrame(data)
      // One that is called 'error' would pass for an error of the stream.
      if (type !== 'endpoint') return
      const lines = data.toString('latin1').replaceAll('\n', '\ndata: ')
      ready.push(Buffer.from(`event: ${type}\ndata: ${lines}\n\n`))
    },
  })
  const watch = watchSilence(body, options.gate, options.silence)
  const sink = {
    onData(chunk: Buffer) {
      watch?.refresh()
      events.push(chunk)
      wake()
    },
    onEnd() {
      clearTimeout(watch)
      ended = true
      wake()
    },
  }
  body.read(sink, options.gate)
  return {
    async read() {
      while (ready.length === 0 && !ended) {
        await new Promise<void>((resolve) => {
          wake = resolve
        })
      }
      const value = ready.shift()
      return value === undefined ? { done: true } : { done: false, value }
    },
    async cancel() {
      body.destroy()
    },
  }
}

/** The bytes of an event's data that came through `readEncoded`. */
export function bytesOf(data: unknown): Buffer {
  return Buffer.from(String(data), 'latin1')
}
