import { deferred } from '../deferred.js'
import { inPhase, proxyError, RpcError, reasons } from '../error.js'
import { cancelledId } from '../message.js'
import { isModernRevision, modernVersion } from '../mirror.js'
import { type Head, scan } from '../scan.js'
import { type Frame, FrameError, type FrameMeta, type StreamEvent, type Wire } from '../wire.js'
import { accepted, headOf, messagesOf } from './answer.js'
import { Call, type CallEvents } from './call.js'
import { Channel } from './channel.js'
import { Endpoint, type HttpUpstreamOptions } from './endpoint.js'
import { patiently, settledSoon } from './patience.js'
import type { HttpResponse } from './request.js'
import { follow } from './stream.js'

const LISTEN_TRIES = 5
/** Milliseconds that requests wait for the server's own stream. */
const LISTEN_MS = 250

/**
 * The client's end of Streamable HTTP: 2025-03-26 to 2025-11-25 with their sessions and streams, and the stateless
 * 2026-07-28, told apart by each message. Wires that are given one endpoint share its connections.
 */
export class HttpUpstream implements Wire {
  onframe?: (frame: Frame, meta?: FrameMeta) => void
  onclose?: (reason?: Error) => void
  onerror?: (error: Error) => void
  onstream?: (event: StreamEvent) => void

  readonly #channel: Channel
  readonly #shared: boolean
  readonly #calls = new Set<Call>()
  readonly #events: CallEvents = {
    onFrame: (answer, meta) => this.onframe?.(answer, meta),
    onStream: (event) => this.onstream?.(event),
    onForeignAnswer: (id) => this.#callOf(id)?.answer(),
    onSessionLost: (session) => this.#sessionLost(session),
    onSettled: (call) => this.#calls.delete(call),
  }
  #listening = false
  #lost: RpcError | undefined
  #closing: Promise<void> | undefined
  #told = false

  constructor(options: HttpUpstreamOptions | Endpoint) {
    this.#shared = options instanceof Endpoint
    this.#channel = new Channel(options instanceof Endpoint ? options : new Endpoint(options))
  }

  start(): void {}

  send(frame: Frame, meta: FrameMeta = {}): Promise<void> | undefined {
    if (this.#lost || this.#channel.closed) return Promise.reject(this.#lost ?? proxyError('shutting_down'))
    const head = scan(frame)
    const sent = head.kind === 'request' ? this.#request(frame, head, meta) : this.#tellServer(frame, head, meta)
    return sent?.catch((error: unknown) => {
      if (error instanceof RpcError || !this.#channel.closed) throw error
      throw inPhase(this.#lost ?? proxyError('shutting_down'), 'sent')
    })
  }

  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  pause(): void {
    this.#channel.gate.pause()
  }

  resume(): void {
    this.#channel.gate.resume()
  }

  #request(frame: Frame, head: Head, { headers }: FrameMeta): Promise<void> | undefined {
    if (head.method === 'initialize' && modernVersion(frame, head) === undefined) {
      // A session begins without the id of another (2025-11-25 basic/transports, "Session Management" 4).
      this.#channel.session = undefined
      this.#channel.version = undefined
    }
    const call = new Call(this.#channel, frame, head, headers, this.#events)
    this.#calls.add(call)
    return call.send()?.catch((error: unknown) => {
      this.#calls.delete(call)
      if (!call.forgotten) throw error
    })
  }

  /** Sends what has no answer: resolves when the server has taken it. */
  async #tellServer(frame: Frame, head: Head, { headers: came }: FrameMeta): Promise<void> {
    if (head.method === 'notifications/cancelled' && (await this.#cancelled(frame, head))) return
    const version = modernVersion(frame, head) ?? this.#modernHeader(came)
    const session = version === undefined ? this.#channel.session : undefined
    await patiently(this.#taken(this.#channel.tell(frame, version), session), (error) => {
      if (!this.#channel.closed) this.onerror?.(error)
    })
    if (head.method === 'notifications/initialized' && version === undefined) await this.#listen()
  }

  /** The revision that a notification without `_meta` came under: 2026-07-28 leaves open whether one has it. */
  #modernHeader(came: FrameMeta['headers']): string | undefined {
    const version = this.#channel.version === undefined ? came?.['mcp-protocol-version'] : undefined
    return isModernRevision(version) ? version : undefined
  }

  /** Whether there is nothing left to send. */
  async #cancelled(frame: Frame, head: Head): Promise<boolean> {
    const call = this.#callOf(cancelledId(frame, head))
    if (call !== undefined) return call.forget()
    // Where nothing was negotiated there are modern requests only, which no message cancels.
    return modernVersion(frame, head) !== undefined || this.#channel.version === undefined
  }

  /** The request of this id that waits for its answer. */
  #callOf(id: unknown): Call | undefined {
    for (const call of this.#calls) if (call.head.id === id && !call.answered) return call
    return undefined
  }

  async #taken(pending: Promise<HttpResponse>, session: string | undefined): Promise<void> {
    const response = await pending
    const onLost = session === undefined ? undefined : () => this.#sessionLost(session)
    return accepted(response, () => this.#channel.body(response), onLost)
  }

  /**
   * The stream on which a legacy server sends what belongs to no request; a server without one says 405. Resolves when it
   * is there, or was waited for long enough: what servers have to say before, some of them drop.
   */
  #listen(): Promise<void> {
    if (this.#listening) return Promise.resolve()
    this.#listening = true
    const channel = this.#channel
    const opened = deferred()
    const timer = setTimeout(opened.resolve, LISTEN_MS).unref()
    const { session } = channel
    let wasOpen = false
    const open = async (lastEventId: string) => {
      const response = await channel.get(lastEventId).finally(opened.resolve)
      // A server without this stream may say so too: with 405, or with 404 from the start.
      if (response.status === 404 && wasOpen && session !== undefined) this.#sessionLost(session)
      return response
    }
    const read = (response: HttpResponse) => {
      wasOpen = true
      const meta = { status: response.status, headers: response.headers }
      return channel.events(response, {
        onFrame: (frame) => {
          for (const message of messagesOf(frame)) {
            if (channel.closed) return
            const head = headOf(message)
            if (head?.kind === 'response') this.#callOf(head.id)?.answer()
            this.onframe?.(message, meta)
          }
        },
        onTooLarge: (head) => this.onerror?.(new FrameError(reasons.too_large.code, reasons.too_large.message, head)),
      })
    }
    void follow({ open, read, tries: LISTEN_TRIES, done: () => false, signal: channel.signal }).then(() => {
      this.#listening = false
    })
    return opened.promise.finally(() => clearTimeout(timer))
  }

  #sessionLost(session: string): void {
    if (session !== this.#channel.session) return
    this.#channel.session = undefined
    this.#lost = proxyError('upstream_session_lost')
    // Others that were sent into it may be refused unread as well.
    void settledSoon([...this.#calls].map(({ settled }) => settled)).then(() => {
      this.#abort()
      this.#tell(proxyError('upstream_session_lost', { phase: 'sent' }))
    })
  }

  async #close(): Promise<void> {
    this.#abort()
    await this.#channel.leave()
    if (!this.#shared) this.#channel.endpoint.close()
    this.#tell()
  }

  #abort(): void {
    this.#channel.abort()
    for (const call of this.#calls) call.abort()
  }

  #tell(reason?: Error): void {
    if (this.#told) return
    this.#told = true
    this.onclose?.(reason)
  }
}
