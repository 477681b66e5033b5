import { Readable } from 'node:stream'
import { proxyError, type RpcError } from '../error.js'
import { Pieces, withoutBom } from '../lines.js'
import { type Quiet, Silence } from '../quiet.js'

/** How long a body that should be over may keep its connection. */
const LINGER_MS = 2_000
const lingering = new Silence(LINGER_MS)

/** What a body comes from. */
export interface Source {
  pause(): void
  resume(): void
  /** Lets go of it before its end. */
  destroy(): void
}

export interface Sink {
  onData(chunk: Buffer): void
  /** Called once; `isWhole`: it did not break off. */
  onEnd(isWhole: boolean): void
}

/** The body of a response. Must be read, discarded or destroyed; what comes before that is held, and its source paused. */
export class Body implements Quiet {
  /** Called when no more will come, however it ended. */
  onOver?: () => void
  #source: Source | undefined
  #sink: Sink | undefined
  #gate: Gate | undefined
  #held: Buffer[] | undefined
  #isPaused = false
  #isWhole: boolean | undefined
  #lingers: number | undefined

  constructor(source: Source) {
    this.#source = source
  }

  /** At the pace of a gate, where there is one. */
  read(sink: Sink, gate?: Gate): void {
    this.#sink = sink
    this.#gate = gate
    gate?.add(this)
    if (!this.#isPaused) this.#flush()
  }

  pause(): void {
    this.#isPaused = true
    this.#source?.pause()
  }

  resume(): void {
    if (!this.#isPaused) return
    this.#isPaused = false
    this.#held ??= []
    if (this.#sink) this.#flush()
  }

  destroy(): void {
    const source = this.#source
    this.#held = undefined
    this.#isPaused = false
    this.finish(false)
    source?.destroy()
  }

  /** Reads it for nobody, so that its connection can serve again. */
  discard(): void {
    this.read(NOBODY)
    this.linger()
  }

  /** Gives one that has nothing more to say a moment to end by itself. */
  linger(): void {
    if (this.#source !== undefined) this.#lingers ??= lingering.begin(this)
  }

  late(): void {
    this.destroy()
  }

  // --- for its source ---------------------------------------------------------------------------------------

  push(chunk: Buffer): void {
    if (this.#sink && !this.#isPaused) this.#sink.onData(chunk)
    else {
      this.#held ??= []
      this.#held.push(chunk)
      this.#source?.pause()
    }
  }

  finish(isWhole: boolean): void {
    if (this.#isWhole !== undefined) return
    this.#isWhole = isWhole
    this.#source = undefined
    if (this.#lingers !== undefined) lingering.end(this.#lingers)
    if (this.#sink && !this.#isPaused) this.#end(isWhole)
  }

  /** Hands over what was held, as long as it is not paused again meanwhile. */
  #flush(): void {
    const held = this.#held
    if (held) {
      while (held.length > 0) {
        this.#sink!.onData(held.shift()!)
        if (this.#isPaused) return
      }
      this.#held = undefined
      this.#source?.resume()
    }
    if (this.#isWhole !== undefined) this.#end(this.#isWhole)
  }

  #end(isWhole: boolean): void {
    const sink = this.#sink
    this.#sink = NOBODY
    this.#gate?.delete(this)
    this.onOver?.()
    sink?.onEnd(isWhole)
  }
}

const NOBODY: Sink = { onData() {}, onEnd() {} }

/** The body that a stream brings. */
export function bodyOf(stream: Readable): Body {
  const body = new Body({
    pause: () => stream.pause(),
    resume: () => stream.resume(),
    destroy: () => stream.destroy(),
  })
  // What is wrong with it shows as its early end.
  stream.on('error', () => {})
  stream.on('data', (chunk: Buffer) => body.push(chunk))
  stream.on('end', () => body.finish(true))
  stream.on('close', () => body.finish(false))
  return body
}

/** The other way round. */
export function streamOf(body: Body): Readable {
  const stream = new Readable({
    read: () => body.resume(),
    destroy: (error, done) => {
      body.destroy()
      done(error)
    },
  })
  body.read({
    onData: (chunk) => {
      if (!stream.push(chunk)) body.pause()
    },
    onEnd: (isWhole) => {
      if (isWhole) stream.push(null)
      else stream.destroy()
    },
  })
  return stream
}

/** Pauses and resumes all bodies that a wire is reading. */
export class Gate {
  #open = true
  readonly #bodies = new Set<Body>()

  get open(): boolean {
    return this.#open
  }

  add(body: Body): void {
    this.#bodies.add(body)
    if (!this.#open) body.pause()
  }

  delete(body: Body): void {
    this.#bodies.delete(body)
  }

  pause(): void {
    this.#open = false
    for (const body of this.#bodies) body.pause()
  }

  resume(): void {
    this.#open = true
    for (const body of this.#bodies) body.resume()
  }
}

export interface CollectEvents {
  /** Without a byte order mark (RFC 8259, section 8.1). */
  onText(text: Buffer): void
  /** One over the limit is -31007, one that breaks off -31003. */
  onError(error: RpcError): void
}

/** Reads a whole body. */
export function collect(body: Body, gate: Gate, maxBytes: number, events: CollectEvents): void {
  body.read(new Collector(body, maxBytes, events), gate)
}

class Collector implements Sink {
  readonly #body: Body
  readonly #maxBytes: number
  readonly #events: CollectEvents
  readonly #pieces = new Pieces()
  #isTooLarge = false

  constructor(body: Body, maxBytes: number, events: CollectEvents) {
    this.#body = body
    this.#maxBytes = maxBytes
    this.#events = events
  }

  onData(chunk: Buffer): void {
    if (this.#isTooLarge) return
    this.#pieces.add(chunk)
    this.#isTooLarge = this.#pieces.size > this.#maxBytes
    if (this.#isTooLarge) this.#body.destroy()
  }

  onEnd(isWhole: boolean): void {
    if (this.#isTooLarge) this.#events.onError(proxyError('too_large', { phase: 'sent' }))
    else if (isWhole) this.#events.onText(withoutBom(this.#pieces.take()))
    else this.#events.onError(proxyError('upstream_bad_response', { phase: 'sent', detail: 'broken connection' }))
  }
}

/** The same, as a promise. */
export function collected(body: Body, gate: Gate, maxBytes: number): Promise<Buffer> {
  return new Promise((resolve, reject) => collect(body, gate, maxBytes, { onText: resolve, onError: reject }))
}
