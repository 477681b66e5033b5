import type { IncomingMessage, ServerResponse } from 'node:http'
import type { RequestId } from '@modelcontextprotocol/sdk/types.js'
import { INVALID_REQUEST, proxyError } from '../error.js'
import { cancelledId, errorFrame, metaMember, notificationFrame, paramsMember, tokenValue } from '../message.js'
import { isRevisionFrom, prefersStream } from '../mirror.js'
import { timer } from '../rest.js'
import { type Head, scan } from '../scan.js'
import type { Session } from '../session.js'
import type { Spare } from '../spare.js'
import type { CloseOptions, Frame, FrameMeta, StreamEvent, Wire } from '../wire.js'
import type { Settings } from './options.js'
import { deaf } from './patience.js'
import { Post } from './post.js'
import {
  EventStream,
  empty,
  type Headers,
  invalid,
  isOpen,
  noRoom,
  over,
  type Refused,
  settle,
  unknownSession,
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
  readonly idText: string | undefined
  readonly token: unknown
}

/** A client that speaks Streamable HTTP, 2025-03-26 to 2025-11-25: one session, its POSTs and its streams. */
export class StreamableClient implements Wire {
  onframe?: Wire['onframe']
  onclose?: Wire['onclose']
  onerror?: Wire['onerror']

  readonly principal: string | undefined
  readonly #options: StreamableOptions
  readonly #streams: Streams
  /** Which POST waits for the answer to a request. */
  readonly #waiting = new Map<RequestId, Waiting>()
  readonly #tokens = new Map<unknown, Post>()
  readonly #responses = new Set<ServerResponse>()
  readonly #room = new Room()
  #session: Session | undefined
  /** `initialize`, until it is answered. */
  #handshake: { id: RequestId; version: unknown } | undefined
  /** Without a handshake there is no session. */
  #isSession = true
  #idle: NodeJS.Timeout | undefined
  #left = false
  #closing: Promise<void> | undefined

  constructor(options: StreamableOptions) {
    this.#options = options
    this.principal = options.principal
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
    if (urgent) void settle([...this.#responses], true)
    return this.#closing
  }

  #answer(frame: Frame, head: Head, id: RequestId, meta: FrameMeta): Promise<void> | undefined {
    const post = this.#settled(id)
    if (this.#handshake?.id === id) {
      this.#handshake = undefined
      this.#isSession = !head.isError || this.#session?.protocolVersion !== undefined
    }
    const ready = post?.answer(id, frame, meta)
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
    const posts = new Set([...this.#waiting.values()].map(({ post }) => post))
    return posts.size === 1 ? [...posts][0] : undefined
  }

  // --- the client's side ------------------------------------------------------------------------------------

  /** Takes the messages of a POST and answers it, or says why it does not. */
  async post(
    request: IncomingMessage,
    response: ServerResponse,
    posted: Posted,
    meta: FrameMeta,
  ): Promise<Refused | undefined> {
    this.#connected(response)
    const size = posted.messages.reduce((sum, { frame }) => sum + frame.length, 0)
    if (!(await this.#room.enter(size))) return noRoom()
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
    if (taken.size === 0 && answers.length === 0) empty(response, 202, this.#headers())
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
      empty(response, 204, this.#headers())
    } else if (isOpen(response)) {
      const events = this.#events(response, stream)
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
        void over(response).then(() => response.headersSent || this.leave())
      }
    }
    const post = new Post(response, {
      owed: taken.keys(),
      answers,
      isBatch,
      keepAlive: this.#options.settings.keepAlive,
      headers: () => this.#headers(),
      prefersStream: prefersStream(request.headers),
      events: (it, stream) => this.#events(it, stream),
      open: () => this.#streams.open(),
      onover: (stream) => this.#streams.retire(stream),
      retry: this.#polls(request) ? RETRY : undefined,
    })
    for (const [id, { frame, head }] of taken) {
      const span = metaMember(frame, head, 'progressToken')
      const token = span && tokenValue(frame, span)
      this.#waiting.set(id, { post, idText: head.idText, token })
      if (token !== undefined) this.#tokens.set(token, post)
    }
    post.begin()
  }

  /** Silence is the outcome of a request that is taken back; a handshake cannot be (2025-11-25 basic/utilities). */
  #cancelled(frame: Frame, head: Head): void {
    const id = cancelledId(frame, head)
    if (id !== undefined && id !== this.#handshake?.id) this.#settled(id)?.forget(id)
  }

  #events(response: ServerResponse, stream: ResumableStream): EventStream {
    const { settings, spare } = this.#options
    const { keepAlive, readTimeout } = settings
    const events = new EventStream(response, this.#headers(), { keepAlive, readTimeout, spare })
    events.oncut = () => this.#cut(stream)
    return events
  }

  /** What was asked for on a stream that is not read is taken back; who comes back to it finds that said. */
  #cut(stream: ResumableStream): void {
    this.onerror?.(deaf(this.#options.settings.readTimeout))
    for (const [id, { post, idText }] of this.#waiting) {
      if (!post.isOn(stream) || id === this.#handshake?.id) continue
      const error = proxyError('overloaded', { phase: 'sent', detail: 'its stream was not read' })
      void this.#settled(id)?.answer(id, errorFrame(idText, error.toJSON()))
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

  #headers(): Headers {
    return this.#isSession ? { 'mcp-session-id': this.#options.id } : {}
  }

  #connected(response: ServerResponse): void {
    clearTimeout(this.#idle)
    this.#responses.add(response)
    void over(response).then(() => {
      this.#responses.delete(response)
      if (this.#responses.size > 0 || this.#left) return
      clearTimeout(this.#idle)
      this.#idle = timer(() => this.leave(), this.#options.settings.idleTimeout)
    })
  }

  #leave(): void {
    this.#left = true
    clearTimeout(this.#idle)
    this.#room.resume()
    this.#options.onover()
  }

  async #close(): Promise<void> {
    if (!this.#left) this.#leave()
    for (const post of new Set([...this.#waiting.values()].map((it) => it.post))) post.close()
    this.#streams.finish()
    await settle([...this.#responses])
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
