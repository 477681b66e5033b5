import type { Id, JournalLine } from './behaviour.mjs'

/** How a call is to go. The same at the client, which plans it, and at the server, which reads it. */
export interface Script {
  fault?: string
  /** Milliseconds before the answer. */
  delay?: number
  /** Progress notifications before the answer. */
  progress?: number
  /** Bytes beside the token. */
  bytes?: number
  /** The server asks its client before it answers. */
  ask?: boolean
  /** Over HTTP: an event stream, whatever else there is to say. */
  stream?: boolean
}

export interface ErrorObject {
  code: number
  message: string
  data?: { source?: string; reason?: string; phase?: string; token?: string }
}

/** What came for a request. */
export type Outcome = { at: number; via: string } & (
  | { result: Record<string, unknown> }
  | { error: ErrorObject }
  /** Refused by HTTP, without a word to the request itself. */
  | { status: number; phase?: string }
)

/** A request as its client knows it. */
export interface Entry {
  readonly token: string
  readonly life: string
  readonly id: Id
  readonly method: string
  readonly script: Script
  /** Of two requests of one id, the one that may be refused: the second, where they come in their order. */
  isTwin: boolean
  /** Its id is that of a request which was cancelled just before. */
  readonly isReuse: boolean
  readonly sentAt: number
  readonly outcomes: Outcome[]
  readonly progress: number[]
  cancelledAt?: number
  /** Its client went away, or lost the connection that its answer was to come on. */
  lostAt?: number
  /** The proxy ended what its answer was to come on. */
  endedAt?: number
}

/** The way of one client through the proxy, from connecting to leaving. */
export interface Life {
  readonly name: string
  readonly kind: ClientKind
  garbage: number
  /** The handshake is done, or there is none. */
  isOpen?: boolean
  /** The proxy ended it before its client did. */
  wasEnded?: boolean
  /** Its client let go without saying goodbye. */
  isAbrupt?: boolean
  /** Milliseconds that the proxy took to end what it holds for the client once that had left. */
  took?: number
}

export type ClientKind = 'stdio' | 'stdio-modern' | 'http' | 'sse' | 'modern'

/** A numbered message of the server, as it came. */
export interface Heard {
  life: string
  via: string
  from: string
  n: number
  kind: 'request' | 'notification' | 'response'
}

export type Journaled = JournalLine & { who: string }

/** All that the clients of a stage have seen. */
export interface History {
  readonly entries: Entry[]
  readonly lives: Life[]
  readonly heard: Heard[]
  /** Messages that belong to nothing their client knows of. */
  readonly strays: { life: string; text: string }[]
  /** Requests of the server's: how often each came. */
  readonly asked: Map<string, number>
  /** Connections that were not to be had. */
  unopened: number
}

export function emptyHistory(): History {
  return { entries: [], lives: [], heard: [], strays: [], asked: new Map(), unopened: 0 }
}
