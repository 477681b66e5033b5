import type { ChildProcessByStdio } from 'node:child_process'
import type { Readable, Writable } from 'node:stream'
import type { Call } from './call.js'
import { type Answer, Client, type Head } from './http.js'
import { Events, Lines } from './lines.js'

/** The client's side of a transport, as bare as can be. */
export interface Channel {
  onmessage: (message: Buffer) => void
  onerror: (error: Error) => void
  /** Resolves when messages can be sent. */
  open(): Promise<void>
  send(message: Buffer): void
  /** Sends calls with these ids, one after the other. */
  calls(call: Call, from: number, count: number): void
  close(): Promise<void>
}

/** A process whose client is on its stdin and stdout. */
export type Piped = ChildProcessByStdio<Writable, Readable, null>

export class StdioChannel implements Channel {
  readonly #process: Piped
  onmessage = (_message: Buffer) => {}
  onerror = (_error: Error) => {}

  constructor(process: Piped) {
    this.#process = process
    const lines = new Lines((line) => this.onmessage(line), { isReused: true })
    process.stdout.on('data', (chunk) => lines.push(chunk))
    process.stdin.on('error', (error) => this.onerror(error))
    process.once('exit', (code, signal) => this.onerror(new Error(`it ended with ${code ?? signal}`)))
  }

  async open(): Promise<void> {}

  send(message: Buffer): void {
    this.#process.stdin.write(Buffer.concat([message, Buffer.from('\n')]))
  }

  calls(call: Call, from: number, count: number): void {
    this.#process.stdin.cork()
    for (const part of call.lines(from, count)) this.#process.stdin.write(part)
    this.#process.stdin.uncork()
  }

  /** A client that does not read. */
  pause(): void {
    this.#process.stdout.pause()
  }

  resume(): void {
    this.#process.stdout.resume()
  }

  async close(): Promise<void> {
    this.#process.stdout.resume()
    this.#process.stdin.end()
  }
}

abstract class HttpChannel {
  readonly client: Client
  onmessage = (_message: Buffer) => {}
  onerror = (_error: Error) => {}

  constructor(port: number) {
    this.client = new Client(port)
  }

  abstract send(message: Buffer): void

  calls(call: Call, from: number, count: number): void {
    for (let id = from; id < from + count; id++) this.send(call.body(id))
  }

  /** An answer whose messages are taken, whichever way they come. */
  answer(opened?: (head: Head) => void): Answer {
    const parts: Buffer[] = []
    let events: Events | undefined
    let status = 0
    return {
      head: (code, head) => {
        status = code
        if (head.get('content-type')?.startsWith('text/event-stream'))
          events = new Events((_, it) => this.onmessage(it))
        opened?.(head)
      },
      data: (chunk) => (events ? events.push(chunk) : parts.push(chunk)),
      end: () => {
        const body = Buffer.concat(parts)
        if (status >= 300) this.onerror(new Error(`HTTP ${status}: ${body.toString('utf8', 0, 200)}`))
        else if (status === 200 && body.length > 0) this.onmessage(body)
      },
      error: (error) => this.onerror(error),
    }
  }
}

export class StreamableChannel extends HttpChannel implements Channel {
  #headers = ''

  async open(): Promise<void> {}

  send(message: Buffer): void {
    const opened = (head: Head) => {
      const id = head.get('mcp-session-id')
      if (id !== undefined) this.#headers ||= `mcp-session-id: ${id}\r\nmcp-protocol-version: 2025-06-18\r\n`
    }
    this.client.send('POST', '/mcp', this.#headers, message, this.answer(this.#headers ? undefined : opened))
  }

  async close(): Promise<void> {
    await new Promise<void>((resolve) => {
      const answer = { data() {}, end: resolve, error: () => resolve() }
      this.client.send('DELETE', '/mcp', this.#headers, undefined, answer)
    })
    this.client.close()
  }
}

/** HTTP with SSE, of 2024-11-05. */
export class SseChannel extends HttpChannel implements Channel {
  #path = ''

  open(): Promise<void> {
    return new Promise((resolve, reject) => {
      const events = new Events((type, data) => {
        if (type === 'message') this.onmessage(data)
        if (type !== 'endpoint') return
        this.#path = data.toString().replace(/^https?:\/\/[^/]*/, '')
        resolve()
      })
      this.client.send('GET', '/sse', '', undefined, {
        data: (chunk) => events.push(chunk),
        end: () => this.onerror(new Error('the stream ended')),
        error: (error) => {
          reject(error)
          this.onerror(error)
        },
      })
    })
  }

  send(message: Buffer): void {
    this.client.send('POST', this.#path, '', message, { ...this.answer(), data() {} })
  }

  async close(): Promise<void> {
    this.client.close()
  }
}
