import { Agent, type ClientRequest, type IncomingMessage, request as open } from 'node:http'
import type { Readable, Writable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Message } from './behaviour.mjs'
import type { ClientKind, Entry } from './history.js'

/** What a link tells its client. */
export interface LinkEvents {
  /** A text came; `via` names the stream, `entry` whose it is. */
  text(text: string, via: string, entry?: Entry): void
  /** A request was refused by HTTP. */
  refused(entry: Entry, status: number, body: string): void
  /** The stream of a request ended: by the proxy, or with its connection. */
  ended(entry: Entry, how: 'ended' | 'lost'): void
  /** Nothing more comes at all. */
  gone(): void
}

/** A client's connection to the proxy. */
export interface Link {
  readonly kind: ClientKind
  readonly isGone: boolean
  start(events: LinkEvents): void
  /** Resolves when the message was taken. */
  send(text: string, message?: Message, entry?: Entry): Promise<void>
  /** Lets go of the stream of a request; `back`: comes back for the rest. */
  drop(entry: Entry, back: boolean): void
  /** Reads nothing for a while. */
  deafen(milliseconds: number): void
  /** Ends it, and resolves when the other end has ended too. */
  leave(how: Leaving): Promise<void>
}

/** `half`: says nothing more, and listens; `abrupt`: is gone. */
export type Leaving = 'half' | 'abrupt'

/** Over two pipes. */
export class StdioLink implements Link {
  isGone = false
  readonly kind: ClientKind
  readonly #input: Writable
  readonly #output: Readable
  readonly #over: Promise<unknown>

  /** `over` resolves when whoever is at the other end has ended. */
  constructor(kind: ClientKind, input: Writable, output: Readable, over: Promise<unknown>) {
    this.kind = kind
    this.#input = input
    this.#output = output
    this.#over = over
    input.on('error', () => {})
    output.on('error', () => {})
  }

  start(events: LinkEvents): void {
    let rest = Buffer.alloc(0)
    this.#output.on('data', (chunk: Buffer) => {
      rest = Buffer.concat([rest, chunk])
      for (let end = rest.indexOf(10); end >= 0; end = rest.indexOf(10)) {
        events.text(rest.subarray(0, end).toString(), 'stdout')
        rest = rest.subarray(end + 1)
      }
    })
    this.#output.once('close', () => {
      this.isGone = true
      if (rest.length > 0) events.text(rest.toString(), 'stdout')
      events.gone()
    })
  }

  async send(text: string): Promise<void> {
    if (!this.#input.writable || this.#input.write(`${text}\n`)) return
    await new Promise<void>((resolve) => {
      this.#input.once('drain', resolve).once('close', resolve)
      this.#output.once('close', resolve)
    })
  }

  drop(): void {}

  deafen(milliseconds: number): void {
    this.#output.pause()
    setTimeout(() => this.#output.resume(), milliseconds)
  }

  async leave(how: Leaving): Promise<void> {
    this.#input.end()
    if (how === 'abrupt') this.#output.destroy()
    else this.#output.resume()
    await this.#over
  }
}

const MODERN = '2026-07-28'
const LEGACY = '2025-11-25'

interface Pull {
  readonly entry: Entry
  readonly via: string
  lastEventId: string
  request?: ClientRequest
  response?: IncomingMessage
  isDropped: boolean
  comesBack: boolean
  tries: number
}

/** Over any of the three HTTP transports. */
export class HttpLink implements Link {
  isGone = false
  readonly kind: ClientKind
  readonly #url: URL
  readonly #agent = new Agent({ keepAlive: true })
  readonly #pulls = new Set<Pull>()
  #standalone: ClientRequest | undefined
  #events!: LinkEvents
  #session: string | undefined
  #target: URL | undefined
  #serial = 0
  #left = false

  constructor(kind: ClientKind, url: URL) {
    this.kind = kind
    this.#url = url
  }

  /** Of HTTP+SSE: resolves when the stream stands, and tells whether it does. */
  async connect(): Promise<boolean> {
    if (this.kind !== 'sse') return true
    return new Promise((resolve) => {
      const request = open(new URL('/sse', this.#url), { agent: this.#agent, headers: { accept: 'text/event-stream' } })
      this.#standalone = request
      request.on('error', () => resolve(false))
      request.on('close', () => resolve(false))
      request.on('response', (response) => {
        readEvents(response, ({ type, data }) => {
          if (type === 'endpoint') {
            this.#target = new URL(data, this.#url)
            // Its own address is that of the listener, ours leads past the toxics.
            this.#target.host = this.#url.host
            resolve(true)
          } else if (data !== '') this.#events.text(data, 'sse')
        }).then(() => this.#gone())
      })
      request.end()
    })
  }

  start(events: LinkEvents): void {
    this.#events = events
  }

  async send(text: string, message?: Message, entry?: Entry): Promise<void> {
    if (this.isGone) return
    if (entry === undefined || this.kind === 'sse') return this.#tell(text, entry)
    const via = `post-${++this.#serial}`
    const pull: Pull = { entry, via, lastEventId: '', isDropped: false, comesBack: false, tries: 0 }
    this.#pulls.add(pull)
    pull.request = open(this.#url, { method: 'POST', agent: this.#agent, headers: this.#headers(message) })
    this.#follow(pull, pull.request)
    pull.request.end(text)
    await new Promise<void>((resolve) => pull.request?.once('finish', resolve).once('close', resolve))
  }

  drop(entry: Entry, back: boolean): void {
    for (const pull of this.#pulls) {
      if (pull.entry !== entry) continue
      pull.isDropped = true
      pull.comesBack = back
      pull.request?.destroy()
    }
  }

  deafen(milliseconds: number): void {
    const deaf = [...this.#pulls].flatMap(({ response }) => response ?? [])
    for (const it of deaf) it.pause()
    setTimeout(() => {
      for (const it of deaf) it.resume()
    }, milliseconds)
  }

  async leave(how: Leaving): Promise<void> {
    this.#left = true
    if (how === 'half' && this.#session !== undefined) {
      if (!this.isGone) await this.#simply('DELETE', this.#headers())
      // Streams are ended by the session that is over.
      const ends = () => this.#pulls.size === 0
      for (let waited = 0; waited < 5_000 && !ends(); waited += 10) await sleep(10)
    }
    this.isGone = true
    this.#standalone?.destroy()
    for (const { request } of this.#pulls) request?.destroy()
    this.#agent.destroy()
  }

  /** Opens the standalone stream of a session. */
  listen(): void {
    if (this.kind !== 'http' || this.#session === undefined) return
    const headers = { ...this.#headers(), accept: 'text/event-stream' }
    const request = open(this.#url, { agent: this.#agent, headers })
    this.#standalone = request
    request.on('error', () => {})
    request.on('response', (response) => {
      if (response.statusCode === 200) {
        readEvents(response, ({ data }) => data !== '' && this.#events.text(data, 'get'))
      } else response.resume()
    })
    request.end()
  }

  #gone(): void {
    if (this.isGone) return
    this.isGone = true
    this.#events?.gone()
  }

  #headers(message?: Message): Record<string, string> {
    const headers: Record<string, string> = {
      accept: 'application/json, text/event-stream',
      'content-type': 'application/json',
    }
    if (this.kind === 'modern') {
      headers['mcp-protocol-version'] = MODERN
      if (message?.method !== undefined) headers['mcp-method'] = message.method
      if (typeof message?.params?.name === 'string') headers['mcp-name'] = message.params.name
    } else if (this.#session !== undefined) {
      headers['mcp-session-id'] = this.#session
      headers['mcp-protocol-version'] = LEGACY
    }
    return headers
  }

  /** What has no answer of its own. */
  async #tell(text: string, entry?: Entry): Promise<void> {
    const { status, body } = await this.#simply('POST', this.#headers(), text)
    if (!entry) return
    if (status === undefined) this.#events.ended(entry, 'lost')
    else if (status >= 300) this.#events.refused(entry, status, body)
  }

  #simply(method: string, headers: Record<string, string>, text?: string): Promise<{ status?: number; body: string }> {
    return new Promise((resolve) => {
      let status: number | undefined
      let body = ''
      const request = open(this.#target ?? this.#url, { method, headers, agent: this.#agent })
      request.on('error', () => {})
      request.on('response', (response) => {
        status = response.statusCode
        response.on('data', (chunk) => {
          body += chunk
        })
        response.on('error', () => {})
      })
      request.on('close', () => {
        if (status === 404) this.#gone()
        resolve({ status, body })
      })
      request.end(text)
    })
  }

  /** Reads the answer to a request, wherever it comes. */
  #follow(pull: Pull, request: ClientRequest): void {
    let isWhole = false
    request.on('error', () => {})
    request.on('response', async (response) => {
      pull.response = response
      const session = response.headers['mcp-session-id']
      if (pull.entry.method === 'initialize' && session !== undefined) this.#session = String(session)
      const isStream = String(response.headers['content-type']).startsWith('text/event-stream')
      response.once('end', () => {
        isWhole = true
      })
      if (isStream) {
        await readEvents(response, ({ id, data }) => {
          if (id !== undefined) pull.lastEventId = id
          if (data !== '') this.#events.text(data, pull.via, pull.entry)
        })
      } else await this.#body(response, pull)
    })
    request.once('close', () => this.#closed(pull, isWhole))
  }

  async #body(response: IncomingMessage, pull: Pull): Promise<void> {
    const { entry, via } = pull
    let body = ''
    response.setEncoding('utf8')
    response.on('data', (chunk: string) => {
      body += chunk
    })
    response.on('error', () => {})
    await new Promise((resolve) => response.once('close', resolve))
    if (!response.complete) return
    const { statusCode = 0 } = response
    // Nothing is kept for it: that says nothing of the request itself.
    if (pull.tries > 0 && statusCode >= 300) return
    const isUnknown = statusCode === 404 && this.kind === 'http'
    if (isAbout(body, entry) && !isUnknown) this.#events.text(body, via, entry)
    else if (statusCode >= 300) this.#events.refused(entry, statusCode, body)
    else if (body !== '') this.#events.text(body, via, entry)
    if (isUnknown) this.#gone()
  }

  /** A stream that broke is resumed where that can be. */
  #closed(pull: Pull, isWhole: boolean): void {
    const { entry, lastEventId, isDropped, comesBack } = pull
    const resumes = this.kind === 'http' && lastEventId !== '' && (isDropped ? comesBack : entry.outcomes.length === 0)
    if (resumes && !this.#left && !this.isGone && pull.tries < 3 && entry.outcomes.length === 0) {
      pull.tries++
      pull.isDropped = false
      setTimeout(() => this.#resume(pull), 30)
      return
    }
    this.#pulls.delete(pull)
    const isRefused = pull.tries > 0 && (pull.response?.statusCode ?? 0) >= 300
    this.#events.ended(entry, isWhole && !isDropped && !isRefused ? 'ended' : 'lost')
  }

  #resume(pull: Pull): void {
    if (this.#left || this.isGone) {
      this.#pulls.delete(pull)
      this.#events.ended(pull.entry, 'lost')
      return
    }
    const headers = { ...this.#headers(), accept: 'text/event-stream', 'last-event-id': pull.lastEventId }
    pull.response = undefined
    pull.request = open(this.#url, { headers, agent: this.#agent })
    this.#follow(pull, pull.request)
    pull.request.end()
  }
}

function isAbout(body: string, { id }: Entry): boolean {
  try {
    return (JSON.parse(body) as Message).id === id
  } catch {
    return false
  }
}

interface Event {
  id?: string
  type: string
  data: string
}

/** Resolves when the stream has ended, however it did. */
function readEvents(response: IncomingMessage, onEvent: (event: Event) => unknown): Promise<void> {
  let rest = ''
  response.setEncoding('utf8')
  response.on('error', () => {})
  response.on('data', (text: string) => {
    const blocks = (rest + text).split('\n\n')
    rest = blocks.pop() as string
    for (const block of blocks) {
      const event: Event = { type: 'message', data: '' }
      for (const line of block.split('\n')) {
        if (line.startsWith('id: ')) event.id = line.slice(4)
        else if (line.startsWith('event: ')) event.type = line.slice(7)
        else if (line.startsWith('data: ')) event.data += line.slice(6)
      }
      onEvent(event)
    }
  })
  return new Promise((resolve) => response.once('close', resolve))
}
