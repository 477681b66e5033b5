import type { RequestId } from '@modelcontextprotocol/sdk/types.js'
import type { RpcError } from './error.js'
import { Lane } from './lane.js'
import { Ledger } from './ledger.js'
import type { Exchange } from './passage.js'
import type { Side } from './session.js'
import type { Wire } from './wire.js'

/** Above this the source of a lane is paused: enough to fill a pipe, little enough to hold for many sessions. */
const HIGH_WATER = { messages: 1_000, bytes: 1 << 20 }
/** Above this a source that must stay readable has its requests refused. */
const HARD_CAP = { messages: 10_000, bytes: 16 << 20 }
/** Above this nothing is read any more, whoever waits for it: notifications cannot be refused. */
const LAST_CAP = { messages: 20_000, bytes: 32 << 20 }
/** How many late answers are remembered per end; a peer that never answers must not make the proxy grow. */
const MAX_OWED = 10_000

/** One of the two peers, and what is known of it. */
export class End {
  /** What came from it and has not left. */
  readonly lane = new Lane()
  /** Requests that came from it and have no outcome yet, by their id. */
  readonly requests = new Ledger<RequestId, Exchange>()
  /** Requests on their way to it under an id of the proxy's own. */
  readonly aliases = new Ledger<RequestId, Exchange>()
  /** Ids that it may still answer although nobody waits any more. */
  readonly owed = new Set<RequestId>()
  far!: End
  wire: Wire | undefined
  /** It has said something. */
  heard = false
  /** No more frames come from it, and why. */
  gone: RpcError | undefined
  #ready: Promise<void> | undefined
  #open!: () => void
  #paused = false

  constructor(readonly side: Side) {
    this.#ready = new Promise((resolve) => {
      this.#open = resolve
    })
    this.lane.onrelease = () => this.flow()
  }

  /** Until frames can be sent, or never will be; undefined from then on. */
  get ready(): Promise<void> | undefined {
    return this.#ready
  }

  open(): void {
    this.#ready = undefined
    this.#open()
  }

  /** The exchange that waits for an answer of this id from this end. */
  awaited(id: RequestId): Exchange | undefined {
    const exchange = this.aliases.get(id) ?? this.far.requests.get(id)
    return exchange?.sent && !exchange.answered && exchange.wireId === id ? exchange : undefined
  }

  /** It may still answer: its answer must not be taken for that of a later request of the same id. */
  owe(id: RequestId): void {
    if (this.owed.size >= MAX_OWED) this.owed.delete(this.owed.values().next().value as RequestId)
    this.owed.add(id)
  }

  /** Requests of this end, and of the proxy in its place, that have no outcome yet. */
  unfinished(): Exchange[] {
    const own = this.far.aliases.values().filter((it) => it.own)
    return [...this.requests.values(), ...own]
  }

  /** Whether there is no room for another request. */
  get isFull(): boolean {
    return over(this.lane, HARD_CAP)
  }

  /** Stops reading from it when too much waits. */
  throttle(): void {
    if (this.#paused || !over(this.lane, HIGH_WATER) || this.#mustRead) return
    this.#paused = true
    this.wire?.pause()
  }

  /** Reads on when there is room again, or somebody needs it. */
  flow(): void {
    if (!this.#paused || (over(this.lane, HIGH_WATER) && !this.#mustRead)) return
    this.#paused = false
    this.wire?.resume()
  }

  /** An answer that somebody waits for can only be read from a source that is read. */
  get #mustRead(): boolean {
    const asked = this.aliases.size > 0 || (this.side === 'client' && this.far.requests.size > 0)
    return asked && !over(this.lane, LAST_CAP)
  }
}

function over(lane: Lane, limit: { messages: number; bytes: number }): boolean {
  return lane.size > limit.messages || lane.bytes > limit.bytes
}
