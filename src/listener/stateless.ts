import type { ServerResponse } from 'node:http'
import type { RequestId } from '@modelcontextprotocol/sdk/types.js'
import { isProxyCode, METHOD_NOT_FOUND, proxyError } from '../error.js'
import { member } from '../json.js'
import { errorFrame, LISTEN, notificationFrame, tokenValue } from '../message.js'
import { HEADER_MISMATCH } from '../mirror.js'
import type { Quiet, Silence } from '../quiet.js'
import { type Head, scan } from '../scan.js'
import type { CloseOptions, Frame, FrameMeta, StreamEvent, Wire } from '../wire.js'
import {
  EventStream,
  empty,
  type Headers,
  isOpen,
  isStreamed,
  json,
  type Pace,
  type Refused,
  refuse,
  refused,
  settle,
  whenOver,
} from './reply.js'

/** Statuses of errors that 2026-07-28 (streamable-http) itself gives one, wherever they arise. */
const STATUSES = new Map<unknown, number>([
  [HEADER_MISMATCH, 400],
  [-32021, 400],
  [-32022, 400],
  [METHOD_NOT_FOUND, 404],
])
/** What an upstream says of our credentials is nothing to a client that has given its own. */
const OUR_CREDENTIALS = new Set([401, 403, 407])
/** What an upstream's headers say of its own connection, its own clients, its own body, or its whole origin. */
const NOT_PASSED =
  /^(?:connection|keep-alive|proxy-.*|te|trailer|transfer-encoding|upgrade|content-.*|date|server|via|set-cookie|www-authenticate|access-control-.*|mcp-session-id|alt-svc|strict-transport-security|cache-control|x-accel-buffering|vary|accept-ranges|location|refresh|set-cookie2|authentication-info|clear-site-data|nel|report-to|reporting-endpoints|service-worker-allowed|public-key-pins.*|cross-origin-.*|permissions-policy|referrer-policy|origin-agent-cluster|x-frame-options)$/

export interface StatelessOptions {
  response: ServerResponse
  frame: Frame
  head: Head
  meta: FrameMeta
  pace: Pace
  /** Where it waits until its answer becomes a stream. */
  silence: Silence
}

/** A client of 2026-07-28 over HTTP: one POST, whole in itself. Closing its response cancels what it asked. */
export class StatelessClient implements Wire, Quiet {
  onframe?: Wire['onframe']
  onclose?: Wire['onclose']
  onerror?: Wire['onerror']

  readonly #options: StatelessOptions
  readonly #quiet: number
  #stream: EventStream | undefined
  #answered = false
  #handed = false
  #left = false

  constructor(options: StatelessOptions) {
    this.#options = options
    this.#quiet = options.silence.begin(this)
    whenOver(options.response, () => this.#gone())
  }

  start(): void {}

  late(): void {
    this.#open()
  }

  /** Hands the message over. */
  begin(): void {
    const { frame, head, meta, response } = this.#options
    if (this.#left) return
    this.#handed = true
    this.onframe?.(frame, meta)
    // "If the server accepts it": the proxy has (2026-07-28 streamable-http, "Sending Messages" 5).
    if (head.kind === 'notification') empty(response, 202)
  }

  /** Turns it away before it was handed over, also where that took so long that comments are sent already. */
  refuse(refusal: Refused): void {
    void this.#stream?.message(errorFrame(refusal.idText, refusal.error))
    this.#end()
    refuse(this.#options.response, refusal)
  }

  send(frame: Frame, meta: FrameMeta = {}): Promise<void> | undefined {
    const head = scan(frame)
    if (head.kind === 'request') throw proxyError('client_unreachable')
    if (this.#answered) return undefined
    const isAnswer = head.kind === 'response' && head.id === this.#options.head.id
    if (isAnswer && !this.#stream && !isStreamed(meta)) return this.#reply(frame, head, meta)
    const ready = this.#open(meta.headers)?.message(frame)
    // The server took it back: no answer will come (2026-07-28 basic/patterns/cancellation).
    if (isAnswer || (this.#isListen && head.method === 'notifications/cancelled')) this.#end()
    return ready
  }

  get #isListen(): boolean {
    return this.#options.head.method === LISTEN
  }

  stream({ relatedRequestId, type, headers }: StreamEvent): void {
    if (type === 'open' && relatedRequestId === this.#options.head.id) this.#open(headers)
  }

  pause(): void {}
  resume(): void {}

  /** Ends what is open. Urgent: without waiting for its reader. */
  async close({ urgent = false }: CloseOptions = {}): Promise<void> {
    const { response, head } = this.#options
    if (!this.#answered && !this.#stream) {
      const idText = head.kind === 'request' ? head.idText : undefined
      refuse(response, { ...refused(503, 'shutting_down'), idText })
    }
    this.#end()
    await settle([response], urgent)
  }

  #reply(frame: Frame, head: Head, { status, headers }: FrameMeta): undefined {
    this.#answered = true
    json(this.#options.response, frame, head.isError ? statusOf(frame, head, status) : 200, passedOn(headers))
  }

  #open(headers?: FrameMeta['headers']): EventStream | undefined {
    const { response, pace } = this.#options
    this.#options.silence.end(this.#quiet)
    if (this.#stream || response.headersSent || !isOpen(response)) return this.#stream
    this.#stream = new EventStream(response, passedOn(headers), pace)
    return this.#stream
  }

  #end(): void {
    this.#answered = true
    this.#stream?.end()
  }

  /** Closing the stream of a request is how it is cancelled (2026-07-28 streamable-http, "Cancellation"). */
  #gone(): void {
    if (this.#left) return
    this.#left = true
    this.#options.silence.end(this.#quiet)
    const { id, kind } = this.#options.head
    if (kind === 'request' && this.#handed && !this.#answered) {
      this.onframe?.(notificationFrame('notifications/cancelled', { requestId: id as RequestId }))
    }
    this.onclose?.()
  }
}

/** The upstream's own, where it refused the request by it; what the proxy itself has to say has none. */
function statusOf(frame: Frame, head: Head, status = 0): number {
  const span = member(frame, head.errorStart, 'code')
  const code = span && tokenValue(frame, span)
  if (status >= 400 && !isProxyCode(code) && !OUR_CREDENTIALS.has(status)) return status
  return STATUSES.get(code) ?? 200
}

function passedOn(came: FrameMeta['headers'] = {}): Headers {
  const passed: Headers = {}
  const ofConnection = String(came.connection ?? '')
    .toLowerCase()
    .split(',')
    .map((name) => name.trim())
  for (const [name, value] of Object.entries(came)) {
    if (value === undefined || NOT_PASSED.test(name) || ofConnection.includes(name)) continue
    passed[name] = String(value)
  }
  return passed
}
