import type { RequestId } from '@modelcontextprotocol/sdk/types.js'
import { proxyError } from '../error.js'
import { OwnIds } from '../ids.js'
import { resultMember, tokenValue, withId } from '../message.js'
import type { Head } from '../scan.js'
import type { Frame, Wire } from '../wire.js'

/** How many subscriptions of one session are remembered: a client must not make the proxy grow. */
const MAX_SUBSCRIPTIONS = 10_000

/** A frame, and what a scan of it found. */
export interface Scanned {
  readonly frame: Frame
  readonly head: Head
}

/** What a client has settled with its server, to be settled once more with one that takes that one's place. */
export class Recording {
  /** Undefined where there was no handshake: 2026-07-28 has none. */
  #initialize: Scanned | undefined
  #version: unknown
  #initialized: Frame | undefined
  #level: Scanned | undefined
  readonly #subscriptions = new Map<string, Scanned>()
  /** Requests of our own that have no answer. */
  readonly #replayed = new Map<RequestId, (answer: Scanned) => void>()
  readonly #ids = new OwnIds()

  /** A notification was taken, or never will be. */
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

  /**
   * Settles it with the server at another wire. Resolves when the server has been told all of it; what it then refuses,
   * `onRefused` is told.
   *
   * @throws (rejects) `RpcError` where it takes no handshake, or one of another revision; what `send` rejects with
   */
  async replay(wire: Wire, onRefused: (error: Error) => void): Promise<void> {
    const initialize = this.#initialize
    if (!initialize) return
    this.#replayed.clear()
    const answer = await new Promise<Scanned>((resolve, reject) => {
      this.#ask(wire, initialize, resolve).catch(reject)
    })
    if (answer.head.isError) throw proxyError('upstream_session_lost', { detail: 'it refused the handshake' })
    if (versionOf(answer) !== this.#version) {
      throw proxyError('upstream_session_lost', { detail: 'it speaks another revision now' })
    }
    if (!this.#initialized) return
    await wire.send(this.#initialized)
    for (const request of [this.#level, ...this.#subscriptions.values()]) {
      if (!request) continue
      await this.#ask(wire, request, ({ head }) => {
        if (head.isError) onRefused(new Error(`The new upstream refused ${request.head.method}`))
      })
    }
  }

  /** Takes the answer to a request of our own; false where it is none. */
  take(answer: Scanned): boolean {
    const replayed = this.#replayed.get(answer.head.id!)
    this.#replayed.delete(answer.head.id!)
    replayed?.(answer)
    return replayed !== undefined
  }

  async #ask(wire: Wire, { frame, head }: Scanned, onAnswer: (answer: Scanned) => void): Promise<void> {
    const id = this.#ids.next()
    this.#replayed.set(id, onAnswer)
    await wire.send(withId(frame, head, JSON.stringify(id)))
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
