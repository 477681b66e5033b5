export type Id = string | number

/** A JSON-RPC message, as loosely as a faulty server takes it. */
export interface Message {
  jsonrpc: '2.0'
  id?: Id
  method?: string
  params?: Record<string, unknown>
  result?: Record<string, unknown>
  error?: { code: number; message: string; data?: unknown }
}

export interface JournalLine {
  kind: 'call' | 'note' | 'cancel' | 'start'
  token?: string
  life?: string
  seq?: number
  pid?: number
}

/** The way back to whoever sent a request. */
export interface Out {
  journal(line: JournalLine): void
  /** The name and the next number of the stream. */
  number(): { from: string; n: number }
  say(message: Message): void
  ask(request: Message): Promise<Message | undefined>
  /** `again`: the real answer is still to come. */
  answer(message: Message, again?: boolean): void
  /** A fault that strikes before anything else; tells whether it did. */
  before?(fault: string | undefined): boolean
  /** A fault of the transport; tells whether that was all. */
  fault(fault: string, answer: () => Message): boolean
  isCancelled(): boolean
  cancelled: Promise<void>
}

export function behave(request: Message, out: Out): Promise<void>

export class Desk {
  ask(request: Message, send: (request: Message) => void): Promise<Message | undefined>
  answer(message: Message): void
  open(id: Id): { signal: AbortSignal; done: () => void }
  cancel(id: unknown): void
}

export function aborted(signal: AbortSignal): Promise<void>
