import { randomBytes } from 'node:crypto'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { INVALID_PARAMS } from '../error.js'
import { Ledger } from '../ledger.js'
import { elementsOfBatch, errorFrame } from '../message.js'
import { HEADER_MISMATCH, isModernRevision, mismatch, missingMeta, modernVersion } from '../mirror.js'
import { Silence } from '../quiet.js'
import { type Head, Refusal, scan } from '../scan.js'
import { Spare } from '../spare.js'
import type { CloseOptions, Frame, FrameMeta, Wire } from '../wire.js'
import { ArgumentCheck } from './argument-check.js'
import type { Accept, Accepted, AcceptOptions } from './index.js'
import type { Settings } from './options.js'
import { type Answering, empty, invalid, type Refused, refused, unknownSession } from './reply.js'
import { SseClient } from './sse.js'
import { StatelessClient } from './stateless.js'
import { type Posted, type PostedMessage, StreamableClient } from './streamable.js'

/** What a legacy `MCP-Protocol-Version` may say; 2025-06-18 was the first to have the header. */
const LEGACY = new Set(['2024-11-05', '2025-03-26', '2025-06-18', '2025-11-25'])
const SESSION_ID_BYTES = 32
/** Bytes that may wait for streams of which each is one of several of its session, before they hold up the others. */
const MAX_SPARE = 64 << 20
/** Seconds after which a client that finds no room may try again. */
const RETRY_AFTER = { 'retry-after': '5' }

/** A request that was admitted. */
export interface Admitted {
  readonly request: IncomingMessage
  readonly response: ServerResponse
  readonly principal: string | undefined
  /** What every message of it comes with. */
  readonly meta: FrameMeta
}

/** The clients of all three transports, each joined to an upstream. Its methods answer, or say why they do not. */
export class Clients {
  readonly #accept: Accept
  readonly #settings: Settings
  readonly #check = new ArgumentCheck()
  readonly #streamable = new Ledger<string, StreamableClient>()
  readonly #sse = new Ledger<string, SseClient>()
  readonly #accepted = new Ledger<number, Accepted>()
  #serial = 0
  readonly #spare = new Spare(MAX_SPARE)
  readonly #silence: Silence
  #closing = false

  constructor(accept: Accept, settings: Settings) {
    this.#accept = accept
    this.#settings = settings
    this.#silence = new Silence(settings.keepAlive)
  }

  get isClosing(): boolean {
    return this.#closing
  }

  /** Takes no new ones, lets those that are there finish, and resolves when none is left. */
  async close(options?: CloseOptions): Promise<void> {
    this.#closing = true
    await Promise.all(this.#accepted.values().map((it) => it.close(options)))
  }

  /** A POST to the endpoint, of either era: the body's own word counts, else the header's. */
  post(admitted: Admitted, body: Frame): Answering {
    const posted = read(body)
    if ('error' in posted) return posted
    const [first] = posted.messages
    const isModern = isModernRevision(admitted.request.headers['mcp-protocol-version'])
    if (posted.isBatch && isModern) return invalid(400, 'expected one message, got a batch')
    if (posted.isBatch) return this.#legacy(admitted, posted)
    if (first && (isModern || modernVersion(first.frame, first.head) !== undefined)) {
      return this.#stateless(admitted, first)
    }
    const answering = this.#legacy(admitted, posted)
    const named = (refusal: Refused | undefined) =>
      refusal && { ...refusal, idText: first?.head.kind === 'request' ? first.head.idText : undefined }
    return answering instanceof Promise ? answering.then(named) : answering && named(answering)
  }

  /** A GET of a session's stream, or a DELETE of the session. */
  session(admitted: Admitted): Answering {
    const { request, response } = admitted
    const version = request.headers['mcp-protocol-version']
    // 2026-07-28 streamable-http, "Earlier Streamable HTTP Revisions".
    if (isModernRevision(version)) return invalid(405, 'expected POST', { allow: 'POST' })
    const session = this.#sessionOf(admitted)
    if ('error' in session) return session
    if (request.method === 'GET') return session.get(request, response)
    empty(response, 200)
    session.leave()
    return undefined
  }

  /** Opens a stream of HTTP+SSE, whose messages are to be POSTed to `endpoint`. */
  openSse({ response, principal }: Admitted, endpoint: string): Refused | undefined {
    const refusal = this.#noRoom()
    if (refusal) return refusal
    const id = sessionId()
    const onover = () => this.#sse.delete(id)
    const pace = this.#settings
    const wire = new SseClient({ response, endpoint: `${endpoint}?sessionId=${id}`, principal, pace, onover })
    this.#sse.set(id, wire)
    this.#join(wire, { principal })
    return undefined
  }

  postSse({ request, response, principal, meta }: Admitted, body: Frame): Answering {
    const id = new URL(request.url ?? '', 'http://localhost').searchParams.get('sessionId')
    const session = this.#sse.get(id ?? '')
    if (!session || session.principal !== principal) return unknownSession()
    return session.post(response, body, meta)
  }

  #stateless(admitted: Admitted, { frame, head }: PostedMessage): Answering {
    const { request, response, principal, meta } = admitted
    const { idText } = head
    const refusal = judge(request.headers, frame, head) ?? this.#noRoom()
    if (refusal) return { ...refusal, idText }
    const wire = new StatelessClient({ response, frame, head, meta, pace: this.#settings, silence: this.#silence })
    const { session } = this.#join(wire, { principal, era: 'modern' })
    const checking = this.#check.problem(session, request.headers, frame, head)
    const begin = (problem: string | undefined) => {
      if (problem === undefined) wire.begin()
      else wire.refuse({ ...mismatched(problem), idText })
      return undefined
    }
    return checking === undefined ? begin(undefined) : checking.then(begin)
  }

  #legacy(admitted: Admitted, posted: Posted): Answering {
    const { request, response, principal, meta } = admitted
    const initializes = posted.messages.some(({ head }) => head.kind === 'request' && head.method === 'initialize')
    if (initializes && posted.isBatch) return invalid(400, 'initialize must not be part of a batch')
    if (!initializes || request.headers['mcp-session-id'] !== undefined) {
      const session = this.#sessionOf(admitted)
      return 'error' in session ? session : session.post(request, response, posted, meta)
    }
    const refusal = badVersion(request) ?? this.#noRoom()
    if (refusal) return refusal
    const id = sessionId()
    const onover = () => this.#streamable.delete(id)
    const common = { settings: this.#settings, spare: this.#spare, silence: this.#silence }
    const wire = new StreamableClient({ ...common, id, principal, onover })
    this.#streamable.set(id, wire)
    wire.join(this.#join(wire, { principal }).session)
    return wire.post(request, response, posted, meta)
  }

  /** Somebody else's session is no different from one that does not exist. */
  #sessionOf({ request, principal }: Admitted): StreamableClient | Refused {
    const refusal = badVersion(request)
    if (refusal) return refusal
    const id = request.headers['mcp-session-id']
    if (id === undefined) return invalid(400, 'expected a header Mcp-Session-Id')
    const session = this.#streamable.get(String(id))
    return session && session.principal === principal ? session : unknownSession()
  }

  #noRoom(): Refused | undefined {
    if (this.#closing) return refused(503, 'shutting_down', undefined, RETRY_AFTER)
    if (this.#accepted.size < this.#settings.maxSessions) return undefined
    return refused(503, 'overloaded', 'too many sessions', RETRY_AFTER)
  }

  #join(wire: Wire, options: AcceptOptions): Accepted {
    const accepted = this.#accept(wire, { ...options, maxPending: this.#settings.maxPending })
    this.#serial += 1
    const number = this.#serial
    this.#accepted.set(number, accepted)
    void accepted.closed.then(() => this.#accepted.delete(number))
    return accepted
  }
}

function sessionId(): string {
  return randomBytes(SESSION_ID_BYTES).toString('base64url')
}

function badVersion({ headers }: IncomingMessage): Refused | undefined {
  const version = headers['mcp-protocol-version']
  return version === undefined || LEGACY.has(String(version))
    ? undefined
    : invalid(400, 'unsupported MCP-Protocol-Version')
}

/** The messages of a body; those of a batch (2025-03-26 basic, "Batching") are refused one by one. */
function read(body: Frame): Posted | Refused {
  try {
    const elements = elementsOfBatch(body)
    if (elements === undefined) {
      return { messages: [{ frame: body, head: scan(body) }], refusals: [], isBatch: false }
    }
    const posted = { messages: [] as PostedMessage[], refusals: [] as Frame[], isBatch: true }
    for (const frame of elements) {
      try {
        posted.messages.push({ frame, head: scan(frame) })
      } catch (error) {
        posted.refusals.push(errorFrame(...refusalOf(error)))
      }
    }
    return posted
  } catch (error) {
    const [idText, told] = refusalOf(error)
    return { status: 400, error: told, idText }
  }
}

function refusalOf(error: unknown): [idText: string | undefined, error: { code: number; message: string }] {
  if (!(error instanceof Refusal)) throw error
  const { code, message, kind, idText } = error
  return [kind === 'request' ? idText : undefined, { code, message }]
}

/** What is wrong with a modern message itself, before anybody has to be asked. */
function judge(came: FrameMeta['headers'], frame: Frame, head: Head): Refused | undefined {
  if (head.kind === 'notification') return undefined
  if (head.kind === 'response') return invalid(400, 'expected a request or a notification, got a response')
  const missing = missingMeta(frame, head)
  if (missing !== undefined) {
    return { status: 400, error: { code: INVALID_PARAMS, message: `Invalid params: expected ${missing}` } }
  }
  const problem = mismatch(came ?? {}, frame, head)
  return problem === undefined ? undefined : mismatched(problem)
}

function mismatched(problem: string): Refused {
  return { status: 400, error: { code: HEADER_MISMATCH, message: `Header mismatch: ${problem}` } }
}
