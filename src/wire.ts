import type { Transport } from '@modelcontextprotocol/sdk/shared/transport.js'
import type { JSONRPCMessage, MessageExtraInfo, RequestId } from '@modelcontextprotocol/sdk/types.js'

/** The bytes of one JSON-RPC message: UTF-8 JSON text, without the framing of its transport. */
export type Frame = Uint8Array

/** What the transport knows of a frame beside its bytes. */
export interface FrameMeta {
  /**
   * The request on whose HTTP stream the frame came, or is to go: its id, as that side of the proxy knows it.
   * Undefined where the wire does not tell (stdio, the SSE transport, a standalone GET stream).
   */
  readonly relatedRequestId?: RequestId
  /** HTTP status that the frame came with. */
  readonly status?: number
  /**
   * HTTP headers that the frame came with; names in lower case. Of those that a client sent, only `Mcp-Param-*` and
   * which of the two kinds of answers it would rather have (`Accept`) ever reach an upstream.
   */
  readonly headers?: Readonly<Record<string, string | string[] | undefined>>
  /** What a listener's authentication found out about the sender. */
  readonly authInfo?: unknown
  /** It is our own refusal of a request that the server turned away unread: its session is lost (HTTP 404). */
  readonly isUnread?: true
  /** The address of the socket that the frame came from, over HTTP: that of a reverse proxy, where there is one. */
  readonly remoteAddress?: string
}

/**
 * What a wire tells of the HTTP stream on which the answer to a request comes, beside its frames: so that a listener can
 * answer as the upstream does.
 */
export interface StreamEvent {
  /** The request, as that side of the proxy knows it. */
  readonly relatedRequestId: RequestId
  /**
   * `open`: the answer comes as an event stream, whose head is there. `detach`: the server ended the stream before the
   * answer, which the client is to fetch by polling (2025-11-25 basic/transports, "Sending Messages to the Server" 6).
   */
  readonly type: 'open' | 'detach'
  /** HTTP headers of the stream, names in lower case. */
  readonly headers?: FrameMeta['headers']
  /** Milliseconds to wait before polling, where the server said so. */
  readonly retry?: number
}

export interface CloseOptions {
  /** Do not wait for the peer to end by itself: whoever started this process has run out of patience. */
  urgent?: boolean
}

/**
 * One end of the proxy, at the level of frames. `upstream/` and `listener/` implement it; `fromTransport` makes
 * one of an SDK transport.
 *
 * - Nothing is handed over before `start()` is called; it resolves when frames can be sent.
 * - `onframe` is called once per frame, in order, from the moment `start()` is called.
 * - `onclose` is called once, when no more frames will come; with a reason where that is a fault (a client that was cut off:
 *   its requests are cancelled). `send` may still work then (a client that closed
 *   its stdin still reads its stdout) until `close()`.
 */
export interface Wire {
  start(): Promise<void> | void
  /**
   * Sends one frame, in call order. Returns nothing where the frame is gone (or safely buffered), a promise
   * where the wire is not ready for more; the promise resolves when it is. Rejects when the frame was
   * not delivered: with an `RpcError` when the sender should learn why.
   */
  send(frame: Frame, meta?: FrameMeta): Promise<void> | void
  /**
   * Flushes what was sent, ends the peer politely and resolves when nothing is left. Safe to call again; then
   * `urgent` hurries a close that is under way.
   */
  close(options?: CloseOptions): Promise<void>
  /** Stop handing over frames (what was already read may still come). */
  pause(): void
  resume(): void
  onframe?: (frame: Frame, meta?: FrameMeta) => void
  /** `reason` says why, unless the peer just ended; an `RpcError` where requests in flight should be told. */
  onclose?: (reason?: Error) => void
  /** Of an upstream over HTTP: how the answer to a request comes. */
  onstream?: (event: StreamEvent) => void
  /** Of a listener over HTTP: how the upstream answers a request. */
  stream?(event: StreamEvent): void
  /** Something went wrong and the wire goes on. A `FrameError` tells of a frame that could not be taken. */
  onerror?: (error: Error) => void
}

/** A frame that a wire could not take: over its limit, or not text. */
export class FrameError extends Error {
  override readonly name = 'FrameError'
  /** What the sender is to be told: -32700 (not JSON), -31007 (too large). */
  readonly code: number
  /** The beginning of the frame, from which its id may still be read. */
  readonly head?: Frame

  constructor(code: number, message: string, head?: Frame) {
    super(message)
    this.code = code
    if (head !== undefined) this.head = head
  }
}

/** Whether `end` is a wire; else it is an SDK transport. */
export function isWire(end: Wire | Transport): end is Wire {
  return typeof (end as Wire).pause === 'function'
}

const decoder = new TextDecoder()
const encoder = new TextEncoder()

/**
 * Makes a wire of an SDK transport (v1 or v2), in-process ones included. Such a transport has parsed its
 * messages already: what JavaScript numbers cannot hold is lost before it gets here.
 */
export function fromTransport(transport: Transport): Wire {
  let closed: Promise<void> | undefined
  let paused = false
  const held: (() => void)[] = []
  let handshake: RequestId | undefined
  /** Whichever end of the handshake it is: its transport wants to know what was settled. */
  const watch = (message: JSONRPCMessage) => {
    if ('method' in message) {
      if (message.method === 'initialize' && 'id' in message) handshake = message.id
    } else if (handshake !== undefined && message.id === handshake) {
      handshake = undefined
      const version = 'result' in message ? message.result?.protocolVersion : undefined
      if (typeof version === 'string') transport.setProtocolVersion?.(version)
    }
  }
  const wire: Wire = {
    async start() {
      transport.onmessage = (message: JSONRPCMessage, extra?: MessageExtraInfo) => {
        const frame = encoder.encode(JSON.stringify(message))
        const meta = extra && { headers: extra.requestInfo?.headers, authInfo: extra.authInfo }
        watch(message)
        if (paused || held.length > 0) held.push(() => wire.onframe?.(frame, meta))
        else wire.onframe?.(frame, meta)
      }
      transport.onerror = (error) => wire.onerror?.(error)
      let told = false
      transport.onclose = () => {
        if (told) return
        told = true
        wire.onclose?.()
      }
      await transport.start()
    },
    send(frame, meta) {
      const message = JSON.parse(decoder.decode(frame)) as JSONRPCMessage
      watch(message)
      return transport.send(message, { relatedRequestId: meta?.relatedRequestId })
    },
    close() {
      closed ??= transport.close()
      return closed
    },
    pause() {
      paused = true
    },
    resume() {
      paused = false
      while (!paused && held.length > 0) {
        held[0]?.()
        held.shift()
      }
    },
  }
  return wire
}
