import type { IncomingMessage, ServerResponse } from 'node:http'
import type { RequestId } from '@modelcontextprotocol/sdk/types.js'
import { INVALID_REQUEST, proxyError } from '../error.js'
import { Ledger } from '../ledger.js'
import { cancelledId, errorFrame, metaMember, notificationFrame, paramsMember, tokenValue } from '../message.js'
import { isRevisionFrom, prefersStream } from '../mirror.js'
import type { Silence } from '../quiet.js'
import { timer } from '../rest.js'
import { type Head, scan } from '../scan.js'
import type { Session } from '../session.js'
import type { Spare } from '../spare.js'
import type { CloseOptions, Frame, FrameMeta, StreamEvent, Wire } from '../wire.js'
import type { Settings } from './options.js'
import { deaf } from './patience.js'
import { Post, type PostSession } from './post.js'
import {
  type Answering,
  EventStream,
  empty,
  type Headers,
  invalid,
  isOpen,
  noRoom,
  type Refused,
  settle,
  unknownSession,
  whenOver,
} from './reply.js'
import { parseEventId, type ResumableStream } from './resumable.js'
import { Room } from './room.js'
import { Streams } from './streams.js'

/** The first revision whose clients know an event without data, and polling. */
const POLLING = '2025-11-25'
/** Milliseconds after which a client that lost a stream should come back. */
const RETRY = 1_000

export interface StreamableOptions {
  settings: Settings
  /** What may wait for its streams before one holds up the others. */
  spare: Spare
  /** Where POSTs wait until their answers become streams. */
  silence: Silence
  /** What the client sends as `Mcp-Session-Id`. */
  id: string
  principal: string | undefined
  /** The session is over. */
  onover(): void
}

export interface PostedMessage {
  readonly frame: Frame
  readonly head: Head
}

/** What a POST brought. */
export interface Posted {
  readonly messages: readonly PostedMessage[]
  /** Errors for elements of a batch that are no messages. */
  readonly refusals: readonly Frame[]
  readonly isBatch: boolean
}

interface Waiting {
  readonly post: Post
  readonly head: Head
  readonly token: unknown
}

/** A client that speaks Streamable HTTP, 2025-03-26 to 2025-11-25: one session, its POSTs and its streams. */
export class StreamableClient implements Wire, PostSession {
  onframe?: Wire['onframe']
  onclose?: Wire['onclose']
  onerror?: Wire['onerror']

  readonly principal: string | undefined
  readonly silence: Silence
  readonly #options: StreamableOptions
  readonly #streams: Streams
  /** Which POST waits for the answer to a request. */
  readonly #waiting = new Ledger<RequestId, Waiting>()
  readonly #tokens = new Ledger<unknown, Post>()
  /** Those that are not over. */
  readonly #responses = new Ledger<number, ServerResponse>()
  #serial = 0
  readonly #room = new Room()
  #session: Session | undefined
  /** `initialize`, until it is answered. */
  #handshake: { id: RequestId; version: unknown } | undefined
  /** Without a handshake there is no session. */
  #isSession = true
  #idle: NodeJS.Timeout | undefined
  /** When the last response was over. */
  #idleSince = 0
  #left = false
  #closing: Promise<void> | undefined

  constructor(options: StreamableOptions) {
    this.#options = options
    this.principal = options.principal
    this.silence = options.silence
    const { eventStore: store, streamTimeout: timeout } = options.settings
    this.#streams = new Streams({
      journal: { store, session: options.id, onLoss: (error) => this.onerror?.(error) },
      timeout,
      onUnread: ({ idText }) => this.onframe?.(errorFrame(idText, proxyError('client_unreachable').toJSON())),
    })
  }

  // --- the bridge's side ------------------------------------------------------------------------------------

  start(): void {}

  /** It was joined to an upstream. */
  join(session: Session): void {
    this.#session = session
  }

  send(frame: Frame, meta: FrameMeta = {}): Promise<void> | undefined {
    const head = scan(frame)
    if (head.kind === 'response' && head.id !== undefined) return this.#answer(frame, head, head.id, meta)
    return this.#streams.say(this.#postOf(frame, head, meta)?.stream() ?? this.#streams.standalone, frame, head)
  }

  stream({ relatedRequestId, type, retry }: StreamEvent): void {
    const post = this.#waiting.get(relatedRequestId)?.post
    if (type === 'open') post?.stream()
    else post?.detach(retry)
  }

  pause(): void {
    this.#room.pause()
  }

  resume(): void {
    this.#room.resume()
  }

  /** Ends what is open. Urgent: without waiting for its readers. */
  close({ urgent = false }: CloseOptions = {}): Promise<void> {
    this.#closing ??= this.#close()
    if (urgent) void settle(this.#responses.values(), true)
    return this.#closing
  }

  #answer(frame: Frame, head: Head, id: RequestId, meta: FrameMeta): Promise<void> | undefined {
    const post = this.#settled(id)
    if (this.#handshake?.id === id) {
      this.#handshake = undefined
      this.#isSession = !head.isError || this.#session?.protocolVersion !== undefined
    }
    const ready = post?.answer(frame, meta)
    if (!this.#isSession) this.leave()
    return ready
  }

  /** The POST on whose stream a message goes that is no answer: where the wire tells, or a progress token does. */
  #postOf(frame: Frame, head: Head, { relatedRequestId }: FrameMeta): Post | undefined {
    if (relatedRequestId !== undefined) return this.#waiting.get(relatedRequestId)?.post
    if (head.method === 'notifications/progress') {
      const token = paramsMember(frame, head, 'progressToken')
      return token && this.#tokens.get(tokenValue(frame, token))
    }
    if (head.kind !== 'response') return undefined
    // An error without an id belongs to whoever waits, if that is only one.
    const posts = new Set(this.#waiting.values().map(({ post }) => post))
    return posts.size === 1 ? [...posts][0] : undefined
  }

  // --- the client's side ------------------------------------------------------------------------------------

  /** Takes the messages of a POST and answers it, or says why it does not. */
  post(request: IncomingMessage, response: ServerResponse, posted: Posted, meta: FrameMeta): Answering {
    this.#connected(response)
    if (this.#room.isClear) return this.#take(request, response, posted, meta)
    const size = posted.messages.reduce((sum, { frame }) => sum + frame.length, 0)
    const entering = this.#room.enter(size)
    return entering.then((entered) => (entered ? this.#take(request, response, posted, meta) : noRoom()))
  }

  #take(request: IncomingMessage, response: ServerResponse, posted: Posted, meta: FrameMeta): Refused | undefined {
    const refusal = this.#refusal(posted)
    if (refusal) return refusal
    const answers = [...posted.refusals]
    const taken = new Map<RequestId, PostedMessage>()
    for (const message of posted.messages) {
      const { id, kind, idText } = message.head
      if (kind !== 'request' || id === undefined) continue
      if (this.#waiting.has(id) || taken.has(id)) answers.push(errorFrame(idText, inUse(id)))
      else taken.set(id, message)
    }
    if (taken.size === 0 && answers.length === 0) empty(response, 202, this.headers())
    else this.#expect(request, response, taken, answers, posted.isBatch)
    for (const message of posted.messages) {
      const { frame, head } = message
      if (head.kind === 'request' && taken.get(head.id!) !== message) continue
      if (head.method === 'notifications/cancelled') this.#cancelled(frame, head)
      this.onframe?.(frame, meta)
    }
    return undefined
  }

  /** Opens the stream for what belongs to no request, or resumes one; or says why it does not. */
  async get(request: IncomingMessage, response: ServerResponse): Promise<Refused | undefined> {
    this.#connected(response)
    const lastEventId = request.headers['last-event-id']
    const event = lastEventId === undefined ? undefined : parseEventId(String(lastEventId))
    const stream = lastEventId === undefined ? this.#streams.standalone : this.#streams.get(event?.stream ?? '')
    const seq = event?.seq ?? stream?.said ?? 0
    const replay = await stream?.behind(seq)
    // Another one may have come while the store was asked.
    if (event === undefined && stream?.isRead) return invalid(409, 'this session has its stream already')
    const isEmpty = replay?.events.length === 0 && replay.upTo === stream?.last
    if (!stream || !replay || (stream.isOver && isEmpty && !replay.complete)) {
      return invalid(400, 'no events are kept behind this Last-Event-ID')
    }
    if (stream.isOver && isEmpty) {
      // Any other answer would have the client come back for ever.
      empty(response, 204, this.headers())
    } else if (isOpen(response)) {
      const events = this.events(response, stream)
      if (event === undefined && this.#polls(request)) events.prime(stream.cursorAt(seq), RETRY)
      await stream.attach(events, seq, replay)
    }
    return undefined
  }

  /** The client is gone for good. */
  leave(): void {
    if (this.#left) return
    this.#leave()
    this.onclose?.()
  }

  #refusal({ messages, isBatch }: Posted): Refused | undefined {
    const [first] = messages
    const id = !isBatch && first?.head.kind === 'request' ? first.head.id : undefined
    if (this.#left) return unknownSession()
    if (id !== undefined && this.#waiting.has(id)) return { status: 400, error: inUse(id) }
    return undefined
  }

  #expect(
    request: IncomingMessage,
    response: ServerResponse,
    taken: ReadonlyMap<RequestId, PostedMessage>,
    answers: Frame[],
    isBatch: boolean,
  ): void {
    for (const { frame, head } of taken.values()) {
      if (head.method !== 'initialize') continue
      this.#handshake = { id: head.id!, version: paramOf(frame, head, 'protocolVersion') }
      // Who has not waited for it does not know how the session is called.
      if (this.#session?.protocolVersion === undefined) {
        whenOver(response, () => response.headersSent || this.leave())
      }
    }
    const retry = this.#polls(request) ? RETRY : undefined
    const options = { owed: taken.size, answers, isBatch, prefersStream: prefersStream(request.headers), retry }
    const post = new Post(response, this, options)
    for (const [id, { frame, head }] of taken) {
      const span = metaMember(frame, head, 'progressToken')
      const token = span && tokenValue(frame, span)
      this.#waiting.set(id, { post, head, token })
      if (token !== undefined) this.#tokens.set(token, post)
    }
    post.begin()
  }

  /** Silence is the outcome of a request that is taken back; a handshake cannot be (2025-11-25 basic/utilities). */
  #cancelled(frame: Frame, head: Head): void {
    const id = cancelledId(frame, head)
    if (id !== undefined && id !== this.#handshake?.id) this.#settled(id)?.forget()
  }

  events(response: ServerResponse, stream: ResumableStream): EventStream {
    const { settings, spare } = this.#options
    const { keepAlive, readTimeout } = settings
    const events = new EventStream(response, this.headers(), { keepAlive, readTimeout, spare })
    events.oncut = () => this.#cut(stream)
    return events
  }

  /** What was asked for on a stream that is not read is taken back; who comes back to it finds that said. */
  #cut(stream: ResumableStream): void {
    this.onerror?.(deaf(this.#options.settings.readTimeout))
    for (const [id, { post, head }] of this.#waiting.entries()) {
      if (!post.isOn(stream) || id === this.#handshake?.id) continue
      const error = proxyError('overloaded', { phase: 'sent', detail: 'its stream was not read' })
      void this.#settled(id)?.answer(errorFrame(head.idText, error.toJSON()))
      this.onframe?.(notificationFrame('notifications/cancelled', { requestId: id }))
    }
  }

  #settled(id: RequestId): Post | undefined {
    const waiting = this.#waiting.get(id)
    this.#waiting.delete(id)
    if (waiting && this.#tokens.get(waiting.token) === waiting.post) this.#tokens.delete(waiting.token)
    return waiting?.post
  }

  /** Whether this client knows an event without data: by what it says of this request, else by the handshake. */
  #polls({ headers }: IncomingMessage): boolean {
    const version = headers['mcp-protocol-version'] ?? this.#session?.protocolVersion ?? this.#handshake?.version
    return isRevisionFrom(POLLING, version)
  }

  headers(): Headers {
    return this.#isSession ? { 'mcp-session-id': this.#options.id } : {}
  }

  #connected(response: ServerResponse): void {
    this.#serial += 1
    const number = this.#serial
    this.#responses.set(number, response)
    whenOver(response, () => {
      this.#responses.delete(number)
      if (this.#responses.size > 0 || this.#left) return
      this.#idleSince = performance.now()
      this.#idle ??= timer(() => this.#rest(), this.#options.settings.idleTimeout)
    })
  }

  /** One timer lasts for many requests: it is looked at when it fires, not stopped for each. */
  #rest(): void {
    this.#idle = undefined
    if (this.#responses.size > 0) return
    const left = this.#idleSince + this.#options.settings.idleTimeout - performance.now()
    if (left <= 0) this.leave()
    else this.#idle = timer(() => this.#rest(), left)
  }

  #leave(): void {
    this.#left = true
    clearTimeout(this.#idle)
    this.#room.resume()
    this.#options.onover()
  }

  open(): ResumableStream {
    return this.#streams.open()
  }

  retire(stream: ResumableStream): void {
    this.#streams.retire(stream)
  }

  async #close(): Promise<void> {
    if (!this.#left) this.#leave()
    for (const post of new Set(this.#waiting.values().map((it) => it.post))) post.close()
    this.#streams.finish()
    await settle(this.#responses.values())
    await this.#streams.close()
  }
}

function inUse(id: RequestId): { code: number; message: string } {
  return { code: INVALID_REQUEST, message: `Invalid request: id ${JSON.stringify(id)} is in use` }
}

function paramOf(frame: Frame, head: Head, param: string): unknown {
  const span = paramsMember(frame, head, param)
  return span && tokenValue(frame, span)
}
