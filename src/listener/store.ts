import type { Frame } from '../wire.js'

/** One message of a stream that a client may come back to. */
export interface StoredEvent {
  /** Its number in its stream, from 1. */
  readonly seq: number
  readonly frame: Frame
}

/** What is left of a stream behind some event. */
export interface Replay {
  /** Whether nothing behind that event was let go. */
  readonly complete: boolean
  /** In order. */
  readonly events: readonly StoredEvent[]
}

/**
 * Keeps what was said on event streams, for clients that lost one and resume it with `Last-Event-ID` (2025-11-25
 * basic/transports, "Resumability and Redelivery"). What is appended must be there for the next `after` of its stream
 * once the promise has resolved. A store that throws, rejects or takes more than a second costs resumability, nothing else;
 * so does one that is more than 1 MiB behind.
 */
export interface EventStore {
  append(session: string, stream: string, event: StoredEvent): void | Promise<void>
  /** The events of a stream whose number is greater than `seq`. */
  after(session: string, stream: string, seq: number): Replay | Promise<Replay>
  /** Lets a stream go. */
  forget(session: string, stream: string): void | Promise<void>
}

export interface MemoryEventStoreOptions {
  /** Bytes in all. @default 67_108_864 (64 MiB) */
  maxBytes?: number
  /** Bytes of one session. @default 4_194_304 (4 MiB) */
  maxSessionBytes?: number
  /** Events of one session. @default 1000 */
  maxSessionEvents?: number
}

interface Entry extends StoredEvent {
  readonly session: Kept
  readonly stream: Stream
}

interface Stream {
  readonly events: Map<number, Entry>
  /** The newest event that was let go. */
  lost: number
}

interface Kept {
  readonly streams: Map<string, Stream>
  readonly entries: Set<Entry>
  bytes: number
}

/**
 * Keeps events in this process. The oldest go first, of a session that is over its own bounds, else of all; the newest
 * stays, however large it is.
 */
export class MemoryEventStore implements EventStore {
  readonly #maxBytes: number
  readonly #maxSessionBytes: number
  readonly #maxSessionEvents: number
  readonly #sessions = new Map<string, Kept>()
  /** In the order in which they came. */
  readonly #entries = new Set<Entry>()
  #bytes = 0

  constructor(options: MemoryEventStoreOptions = {}) {
    this.#maxBytes = options.maxBytes ?? 64 << 20
    this.#maxSessionBytes = options.maxSessionBytes ?? 4 << 20
    this.#maxSessionEvents = options.maxSessionEvents ?? 1_000
  }

  /** Bytes that it keeps. */
  get bytes(): number {
    return this.#bytes
  }

  append(session: string, stream: string, { seq, frame }: StoredEvent): void {
    const kept = this.#sessionOf(session)
    const of = streamOf(kept, stream)
    // A copy: a small view would keep the whole chunk that it came in.
    const entry: Entry = { seq, frame: Buffer.from(frame), session: kept, stream: of }
    of.events.set(seq, entry)
    kept.entries.add(entry)
    this.#entries.add(entry)
    kept.bytes += frame.length
    this.#bytes += frame.length
    const isOver = () => kept.bytes > this.#maxSessionBytes || kept.entries.size > this.#maxSessionEvents
    // The newest stays: it may be the answer that a client comes back for.
    while (kept.entries.size > 1 && isOver()) this.#drop(kept.entries)
    while (this.#entries.size > 1 && this.#bytes > this.#maxBytes) this.#drop(this.#entries)
  }

  after(session: string, stream: string, seq: number): Replay {
    const of = this.#sessions.get(session)?.streams.get(stream)
    const events = [...(of?.events.values() ?? [])].filter((it) => it.seq > seq)
    return { complete: (of?.lost ?? 0) <= seq, events: events.map(({ seq, frame }) => ({ seq, frame })) }
  }

  forget(session: string, stream: string): void {
    const kept = this.#sessions.get(session)
    for (const entry of kept?.streams.get(stream)?.events.values() ?? []) this.#remove(entry)
    kept?.streams.delete(stream)
    if (kept?.streams.size === 0) this.#sessions.delete(session)
  }

  #sessionOf(session: string): Kept {
    const kept = this.#sessions.get(session) ?? { streams: new Map(), entries: new Set(), bytes: 0 }
    this.#sessions.set(session, kept)
    return kept
  }

  #drop(from: Set<Entry>): void {
    const [oldest] = from
    if (!oldest) return
    oldest.stream.lost = Math.max(oldest.stream.lost, oldest.seq)
    this.#remove(oldest)
  }

  #remove(entry: Entry): void {
    const { session, stream, seq, frame } = entry
    if (!this.#entries.delete(entry)) return
    session.entries.delete(entry)
    stream.events.delete(seq)
    session.bytes -= frame.length
    this.#bytes -= frame.length
  }
}

function streamOf({ streams }: Kept, name: string): Stream {
  const stream = streams.get(name) ?? { events: new Map(), lost: 0 }
  streams.set(name, stream)
  return stream
}
