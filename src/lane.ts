import PQueue from 'p-queue'

/**
 * One direction of one session: a message takes its turn when it arrives and uses it when it is ready, so that
 * the middleware of different messages overlaps and their departures do not overtake.
 */
export class Lane {
  readonly #queue = new PQueue({ concurrency: 1 })
  #size = 0
  #bytes = 0
  /** Took its turn in an empty lane: it is in order without the queue, until another one comes. */
  #lone: Turn | undefined
  /** The newest turn that an answer has to wait for. */
  #ordered: Turn | undefined
  /** Called after each released turn. */
  onrelease?: () => void

  /** Messages that arrived and have not left. */
  get size(): number {
    return this.#size
  }

  /** Their bytes. */
  get bytes(): number {
    return this.#bytes
  }

  /**
   * Takes the next turn. A response waits for the responses and notifications before it, never for a request
   * that is being held: that request may be waiting for this very response.
   */
  take(kind: 'request' | 'notification' | 'response', bytes: number): Turn {
    const alone = this.#size === 0
    const turn = new Turn(this, bytes, kind === 'response', alone ? undefined : this.#ordered)
    if (alone) this.#lone = turn
    else {
      if (this.#lone) this.#enqueue(this.#lone)
      this.#lone = undefined
      this.#enqueue(turn)
    }
    this.#size++
    this.#bytes += bytes
    if (kind !== 'request') this.#ordered = turn
    return turn
  }

  #enqueue(turn: Turn): void {
    turn.queued = true
    void this.#queue.add(async () => turn.begin())
  }

  /** @internal */
  released(turn: Turn, bytes: number): void {
    this.#size--
    this.#bytes -= bytes
    if (this.#lone === turn) this.#lone = undefined
    this.onrelease?.()
  }

  /** @internal */
  passed(turn: Turn): void {
    if (this.#ordered === turn) this.#ordered = undefined
  }
}

/** A place in the order of a lane. Whoever took it must release it. */
export class Turn {
  readonly #lane: Lane
  readonly #bytes: number
  readonly #overtakes: boolean
  /** What a response waits for, or one behind this turn. */
  #before: Turn | undefined
  readonly #began = new Gate()
  readonly #gone = new Gate()
  readonly #over = new Gate()
  /** @internal */
  queued = false

  /** @internal */
  constructor(lane: Lane, bytes: number, overtakes: boolean, before: Turn | undefined) {
    this.#lane = lane
    this.#bytes = bytes
    this.#overtakes = overtakes
    this.#before = before
  }

  /** Nothing where it is this message's turn already, else a promise of it. */
  wait(): Promise<void> | undefined {
    if (this.#overtakes) return this.#before ? this.#before.#over.wait() : undefined
    return this.queued ? this.#began.wait() : undefined
  }

  /** The message has left, or never will: the next one may go. */
  release(): void {
    if (!this.#gone.open()) return
    const before = this.#before ? this.#before.#over.wait() : undefined
    if (before) void before.then(() => this.#pass())
    else this.#pass()
    this.#lane.released(this, this.#bytes)
  }

  /** @internal The queue has come to this turn; it goes on when the turn is released. */
  begin(): Promise<void> | undefined {
    this.#began.open()
    return this.#gone.wait()
  }

  /** Neither this message nor what came before it keeps a response any longer. */
  #pass(): void {
    this.#over.open()
    this.#before = undefined
    this.#lane.passed(this)
  }
}

/** Opens once; costs a promise only where somebody waits for it. */
class Gate {
  #isOpen = false
  #promise: Promise<void> | undefined
  #resolve: (() => void) | undefined

  /** False where it was open already. */
  open(): boolean {
    if (this.#isOpen) return false
    this.#isOpen = true
    this.#resolve?.()
    return true
  }

  /** Nothing where it is open. */
  wait(): Promise<void> | undefined {
    if (this.#isOpen) return undefined
    this.#promise ??= new Promise((resolve) => {
      this.#resolve = resolve
    })
    return this.#promise
  }
}
