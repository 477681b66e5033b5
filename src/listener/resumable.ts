import { type Deferred, deferred } from '../deferred.js'
import type { Frame } from '../wire.js'
import { type EventStream, over } from './reply.js'
import type { EventStore, Replay } from './store.js'

/** Where the streams of one session keep their events. */
export interface Journal {
  readonly store: EventStore
  readonly session: string
  /** The store failed, or has let events go that a client still wanted. */
  onLoss(error: Error): void
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
  #appended: Promise<void> | void = undefined
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
  async behind(seq: number): Promise<Replay | undefined> {
    if (seq > this.#seq) return undefined
    const { store, session } = this.#journal
    try {
      await this.#appended
      return await store.after(session, this.id, seq)
    } catch (error) {
      this.#journal.onLoss(error as Error)
      return { complete: false, events: [] }
    }
  }

  /** Gives it a response, which says all behind `seq` and then what comes. Another one that it has is ended. */
  async attach(stream: EventStream, seq: number): Promise<void> {
    this.#leave()?.end()
    this.#stream = stream
    const caughtUp = deferred()
    this.#caughtUp = caughtUp
    void over(stream.response).then(caughtUp.resolve)
    const isGone = () => this.#stream !== stream || !stream.isOpen
    let at = seq
    while (at < this.#seq) {
      const upTo = this.#seq
      const replay = await this.behind(at)
      if (isGone()) return
      if (!replay?.complete) this.#journal.onLoss(new Error('events that a client has not seen were not kept'))
      for (const { seq, frame } of replay?.events ?? []) {
        at = seq
        if (this.#withdrawn.has(seq)) continue
        this.#written = Math.max(this.#written, seq)
        this.onsaid?.(seq)
        await stream.message(frame, this.#idOf(seq))
        if (isGone()) return
      }
      at = Math.max(at, upTo)
    }
    this.#written = this.#seq
    this.#live = true
    caughtUp.resolve()
    this.onattached?.()
    if (this.#over) stream.end()
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

  /** Lets go of what it keeps. */
  async forget(): Promise<void> {
    this.finish()
    await this.#appended
    await this.#keep(() => this.#journal.store.forget(this.#journal.session, this.id))
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
    const { store, session } = this.#journal
    const append = () => store.append(session, this.id, { seq, frame })
    // A store of this process answers at once: nothing waits for it.
    if (this.#appended === undefined) this.#appended = this.#keep(append)
    else this.#appended = this.#appended.then(() => this.#keep(append))
  }

  #keep(act: () => void | Promise<void>): Promise<void> | void {
    try {
      return act()?.catch((error: Error) => this.#journal.onLoss(error))
    } catch (error) {
      this.#journal.onLoss(error as Error)
    }
  }
}
