import { type Deferred, deferred } from '../deferred.js'
import type { Frame } from '../wire.js'
import { type EventStream, whenOver } from './reply.js'
import type { EventStore, Replay } from './store.js'

/** Where the streams of one session keep their events. */
export interface Journal {
  readonly store: EventStore
  readonly session: string
  /** The store failed, or has let events go that a client still wanted. */
  onLoss(error: Error): void
}

/** Bytes that wait for a store to keep them, before what comes is not kept. */
const MAX_WAITING = 1 << 20
/** Milliseconds for a store to answer. */
const STORE_TIMEOUT = 1_000

/** What is left behind some event, and the last event that there was by then: what came since is not among it. */
export interface Behind extends Replay {
  readonly upTo: number
}

/** An event id: the stream, the number of the event in it, and what sets cursors apart from events. */
const EVENT_ID = /^([0-9a-z]{1,12})-(\d{1,15})(?:\.\d{1,15})?$/

export function parseEventId(text: string): { stream: string; seq: number } | undefined {
  const [, stream, seq] = EVENT_ID.exec(text) ?? []
  return stream === undefined ? undefined : { stream, seq: Number(seq) }
}

/**
 * A stream of messages that outlives the responses it is read from: a client that lost one comes back with the id of
 * the last event that it saw (2025-11-25 basic/transports, "Resumability and Redelivery").
 */
export class ResumableStream {
  readonly id: string
  readonly #journal: Journal
  #seq = 0
  #cursors = 0
  /** The last event that was written to a response. */
  #written = 0
  #stream: EventStream | undefined
  /** The response has all that came before, and gets what comes as it comes. */
  #live = false
  #over = false
  #appended: Promise<void> | undefined
  /** Bytes that the store has not kept yet. */
  #waiting = 0
  /** The newest event that it could not keep. */
  #unkept = 0
  #forgotten = false
  /** Events that are not to be said any more. */
  readonly #withdrawn = new Set<number>()
  /** Resolves when a response that is told what came before has it all, or is gone. */
  #caughtUp: Deferred | undefined
  /** An event was written to a response that was not live when it came. */
  onsaid?: (seq: number) => void
  /** A response has all that was kept up to an event: what was not said by then never will be. */
  onattached?: () => void

  constructor(id: string, journal: Journal) {
    this.id = id
    this.#journal = journal
  }

  /** Whether somebody reads it. */
  get isRead(): boolean {
    return this.#stream?.isOpen === true
  }

  get isOver(): boolean {
    return this.#over
  }

  /** The last event that was said. */
  get said(): number {
    return this.#written
  }

  /** The last event that there is, said or not. */
  get last(): number {
    return this.#seq
  }

  /** Says a message, now or to the response that comes next. Returns its number, and a promise as a stream does. */
  message(frame: Frame): { seq: number; ready: Promise<void> | undefined } {
    this.#seq += 1
    const seq = this.#seq
    this.#append(seq, frame)
    if (!this.isRead) return { seq, ready: undefined }
    // It comes by way of the store, which must not run over meanwhile.
    if (!this.#live) return { seq, ready: this.#caughtUp?.promise }
    this.#written = seq
    return { seq, ready: this.#stream?.message(frame, this.#idOf(seq)) }
  }

  /** An event that nobody has read yet is not to be said any more. Returns whether it was so. */
  withdraw(seq: number): boolean {
    if (seq <= this.#written) return false
    this.#withdrawn.add(seq)
    return true
  }

  /** What a response would get that resumes behind an event; undefined where the stream has never said that event. */
  async behind(seq: number): Promise<Behind | undefined> {
    const upTo = this.#seq
    if (seq > upTo) return undefined
    const { store, session } = this.#journal
    const read = async () => {
      await this.#appended
      return store.after(session, this.id, seq)
    }
    try {
      const { complete, events } = await inTime(read())
      return { complete: complete && this.#unkept <= seq, events, upTo }
    } catch (error) {
      this.#journal.onLoss(error as Error)
      return { complete: false, events: [], upTo }
    }
  }

  /**
   * Gives it a response, which says all behind `seq` and then what comes; `known` is what was behind `seq` a moment ago. Another
   * response that it has is ended.
   */
  async attach(stream: EventStream, seq: number, known?: Behind): Promise<void> {
    this.#leave()?.end()
    this.#stream = stream
    if (seq < this.#seq && !(await this.#catchUp(stream, seq, known))) return
    this.#written = this.#seq
    this.#live = true
    this.#caughtUp?.resolve()
    this.onattached?.()
    if (this.#over) stream.end()
  }

  /** Says what came before. False where the response is gone before it has it all. */
  async #catchUp(stream: EventStream, seq: number, known?: Behind): Promise<boolean> {
    const caughtUp = deferred()
    this.#caughtUp = caughtUp
    whenOver(stream.response, caughtUp.resolve)
    const isGone = () => this.#stream !== stream || !stream.isOpen
    let at = seq
    let replay = known
    while (at < this.#seq) {
      replay ??= await this.behind(at)
      if (isGone()) return false
      if (replay?.complete === false) this.#journal.onLoss(new Error('events that a client has not seen were not kept'))
      for (const { seq, frame } of replay?.events ?? []) {
        at = seq
        if (this.#withdrawn.has(seq)) continue
        this.#written = Math.max(this.#written, seq)
        this.onsaid?.(seq)
        await stream.message(frame, this.#idOf(seq))
        if (isGone()) return false
      }
      at = Math.max(at, replay?.upTo ?? this.#seq)
      replay = undefined
    }
    return true
  }

  /** A cursor behind an event, for a client that has not seen one yet. No other event has this id. */
  cursorAt(seq: number): string {
    this.#cursors += 1
    return `${this.#idOf(seq)}.${this.#cursors}`
  }

  /** The response ends, the stream goes on. */
  detach(retry?: number): void {
    this.#leave()?.end(retry)
  }

  /** Nothing more will come. */
  finish(): void {
    this.#over = true
    if (this.#live) this.#stream?.end()
  }

  /** Lets go of what it keeps. A store that is behind is not waited for long. */
  async forget(): Promise<void> {
    this.finish()
    this.#forgotten = true
    const { store, session } = this.#journal
    const forget = async () => {
      await this.#appended
      await store.forget(session, this.id)
    }
    await inTime(forget()).catch((error: Error) => this.#journal.onLoss(error))
  }

  #leave(): EventStream | undefined {
    const stream = this.#stream
    this.#stream = undefined
    this.#live = false
    this.#caughtUp?.resolve()
    return stream
  }

  #idOf(seq: number): string {
    return `${this.id}-${seq}`
  }

  #append(seq: number, frame: Frame): void {
    if (this.#waiting > MAX_WAITING) {
      if (this.#unkept === 0) this.#journal.onLoss(new Error('the event store is too far behind to keep events'))
      this.#unkept = seq
      return
    }
    const { store, session } = this.#journal
    const append = () => (this.#forgotten ? undefined : store.append(session, this.id, { seq, frame }))
    // A store of this process answers at once: nothing waits for it.
    const kept = this.#appended ? this.#appended.then(append) : attempt(append)
    if (typeof kept?.then !== 'function') return
    this.#waiting += frame.length
    this.#appended = Promise.resolve(kept)
      .catch((error: Error) => {
        this.#unkept = Math.max(this.#unkept, seq)
        this.#journal.onLoss(error)
      })
      .then(() => {
        this.#waiting -= frame.length
      })
  }
}

/** What it gives, or a promise that is rejected with what it throws. */
function attempt(act: () => void | Promise<void>): void | Promise<void> {
  try {
    return act()
  } catch (error) {
    return Promise.reject(error)
  }
}

/** Rejects where a store takes too long: it may be out of reach, and nobody is to wait for it for ever. */
async function inTime<T>(answer: Promise<T>): Promise<T> {
  let timeout: NodeJS.Timeout | undefined
  const late = new Promise<never>((_resolve, reject) => {
    timeout = setTimeout(() => reject(new Error('the event store did not answer in time')), STORE_TIMEOUT)
  })
  try {
    return await Promise.race([answer, late])
  } finally {
    clearTimeout(timeout)
  }
}
