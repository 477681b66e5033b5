import { resultMember, tokenValue } from '../message.js'
import type { Head } from '../scan.js'
import type { Frame } from '../wire.js'

/** How many subscriptions of one session are remembered: a client must not make the proxy grow. */
const MAX_SUBSCRIPTIONS = 10_000

/** A frame, and what a scan of it found. */
export interface Scanned {
  readonly frame: Frame
  readonly head: Head
}

/** What a client has settled with its server, to be settled once more with one that takes that one's place. */
export class Recording {
  #initialize: Scanned | undefined
  #version: unknown
  #initialized: Frame | undefined
  #level: Scanned | undefined
  readonly #subscriptions = new Map<string, Scanned>()

  /** Undefined where there was no handshake: 2026-07-28 has none. */
  get initialize(): Scanned | undefined {
    return this.#initialize
  }

  get initialized(): Frame | undefined {
    return this.#initialized
  }

  /** The requests behind the handshake. */
  get requests(): Scanned[] {
    return [...(this.#level ? [this.#level] : []), ...this.#subscriptions.values()]
  }

  /** Whether the answer to another `initialize` settles the same revision. */
  agrees(answer: Scanned): boolean {
    return versionOf(answer) === this.#version
  }

  /** The server took a notification. */
  told({ frame, head }: Scanned): void {
    if (head.method === 'notifications/initialized') this.#initialized = Buffer.from(frame)
  }

  answered(request: Scanned, answer: Scanned): void {
    const { method, name } = request.head
    if (answer.head.isError) return
    if (method === 'initialize') {
      this.#initialize = kept(request)
      this.#version = versionOf(answer)
      this.#level = undefined
      this.#subscriptions.clear()
    } else if (method === 'logging/setLevel') this.#level = kept(request)
    else if (name === undefined) return
    else if (method === 'resources/unsubscribe') this.#subscriptions.delete(name)
    else if (method === 'resources/subscribe' && this.#subscriptions.size < MAX_SUBSCRIPTIONS) {
      this.#subscriptions.set(name, kept(request))
    }
  }
}

/** A copy: a small view would keep the whole chunk that it came in. */
function kept({ frame, head }: Scanned): Scanned {
  return { frame: Buffer.from(frame), head }
}

function versionOf({ frame, head }: Scanned): unknown {
  const span = resultMember(frame, head, 'protocolVersion')
  return span && tokenValue(frame, span)
}
