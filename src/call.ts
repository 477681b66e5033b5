import type { RequestId } from '@modelcontextprotocol/sdk/types.js'
import type { Stack } from './compose.js'
import type { Result } from './context.js'
import type { End } from './end.js'
import { proxyError } from './error.js'
import { Message, notificationFrame, requestFrame } from './message.js'
import { Exchange, type OwnMessages, type Passage, type PassageOptions } from './passage.js'
import { timer } from './rest.js'
import type { CallOptions, Session, Side } from './session.js'
import type { FrameMeta } from './wire.js'

/** What it takes to send a message of the proxy's own. */
export interface Carrying {
  readonly session: Session
  readonly client: End
  readonly server: End
  ownId(): string
  placeOf(end: End, stack: Stack<Passage>): number
  passage(from: End, message: Message, more: PassageOptions & { stack: Stack<Passage>; place: number }): Passage
  walk(passage: Passage, to: number, last?: (passage: Passage) => unknown): Promise<void>
  cancel(exchange: Exchange, reason: unknown): void
}

/** Sends the proxy's own messages, from a place of the line to one of its ends. */
export class Caller implements OwnMessages {
  readonly #carrier: Carrying

  constructor(carrier: Carrying) {
    this.#carrier = carrier
  }

  async notify(
    stack: Stack<Passage>,
    place: number,
    to: Side,
    method: string,
    params?: object,
    extra?: FrameMeta,
  ): Promise<void> {
    const far = to === 'client' ? this.#carrier.client : this.#carrier.server
    const message = new Message(notificationFrame(method, params))
    const passage = this.#carrier.passage(far.far, message, { stack, place, extra })
    let failure: { error: unknown } | undefined
    await this.#carrier.walk(passage, this.#carrier.placeOf(far, stack), async (it) => {
      try {
        await it.leave()
      } catch (error) {
        failure = { error }
        throw error
      }
    })
    if (failure) throw failure.error
  }

  async call(
    stack: Stack<Passage>,
    place: number,
    to: Side,
    method: string,
    params?: object,
    { signal, timeout }: CallOptions = {},
    extra?: FrameMeta,
  ): Promise<Result> {
    if (to === 'client' && this.#carrier.session.era === 'modern') {
      throw new TypeError(
        `call('client', '${method}'): a modern client (2026-07-28) takes no requests; reply with resultType "input_required" instead`,
      )
    }
    signal?.throwIfAborted()
    const far = to === 'client' ? this.#carrier.client : this.#carrier.server
    const id: RequestId = this.#carrier.ownId()
    const message = new Message(requestFrame(JSON.stringify(id), method, params))
    let timeoutTimer: NodeJS.Timeout | undefined
    let onabort: (() => void) | undefined
    try {
      return await new Promise<Result>((resolve, reject) => {
        const exchange = new Exchange(undefined, id, { place, resolve, reject })
        exchange.request = this.#carrier.passage(far.far, message, { stack, place, exchange, extra })
        const stop = (reason: unknown) => {
          reject(reason)
          if (exchange.answered) return
          this.#carrier.cancel(exchange, reason)
          if (!exchange.sent || far.gone) return
          this.notify(stack, place, to, 'notifications/cancelled', { requestId: id }, extra).catch(() => {})
        }
        if (timeout !== undefined) {
          timeoutTimer = timer(() => {
            stop(proxyError('upstream_timeout', { phase: exchange.sent ? 'sent' : 'not_sent' }))
          }, timeout)
        }
        onabort = () => stop(signal?.reason)
        signal?.addEventListener('abort', onabort)
        far.aliases.set(id, exchange)
        far.flow()
        void this.#carrier.walk(exchange.request, this.#carrier.placeOf(far, stack))
      })
    } finally {
      clearTimeout(timeoutTimer)
      if (onabort) signal?.removeEventListener('abort', onabort)
    }
  }
}
