import PQueue from 'p-queue'

/**
 * One direction of one session: a message takes its turn when it arrives and uses it when it is ready, so that
 * the middleware of different messages overlaps and their departures do not overtake.
 */
export class Lane {
  /** Made when somebody has to wait: most messages are ready while they are the first of their lane. */
  #queue: PQueue | undefined
  /** Takes in who arrives, until the queue has come to it. */
  #run = new Run()
  #size = 0
  #bytes = 0
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
    if (this.#run.isOpen) this.#run = new Run()
    const turn = new Turn(this, this.#run, bytes, kind === 'response', kind === 'request' ? undefined : this.#ordered)
    if (kind !== 'request') this.#ordered = turn
    this.#size++
    this.#bytes += bytes
    return turn
  }

  /** @internal Whether all who were before those of a run have left. */
  isOpen(run: Run): boolean {
    return run.isOpen || (!run.isQueued && (!this.#queue || this.#queue.size + this.#queue.pending === 0))
  }

  /** @internal Somebody has to wait: all who are there share one task, which costs ten times what a turn does. */
  enqueue(run: Run): void {
    if (run.isQueued) return
    run.isQueued = true
    this.#queue ??= new PQueue({ concurrency: 1 })
    void this.#queue.add(() => run.open())
  }

  /** @internal */
  released(bytes: number): void {
    this.#size--
    this.#bytes -= bytes
    this.onrelease?.()
  }

  /** @internal */
  passed(turn: Turn): void {
    if (this.#ordered === turn) this.#ordered = undefined
  }
}

/** Turns that were taken one after the other, and have one place in the queue. */
class Run {
  first: Turn | undefined
  #last: Turn | undefined
  isQueued = false
  /** The queue has come to it. */
  isOpen = false
  #end: (() => void) | undefined

  add(turn: Turn): void {
    turn.before = this.#last
    if (this.#last) this.#last.after = turn
    else this.first = turn
    this.#last = turn
  }

  remove(turn: Turn): void {
    const { before, after } = turn
    // Whoever still holds it must not hold all who came after it.
    turn.before = undefined
    turn.after = undefined
    if (after) after.before = before
    else this.#last = before
    if (before) before.after = after
    else this.first = after
  }

  /** It goes on when nobody is left. */
  open(): Promise<void> {
    this.isOpen = true
    return new Promise((resolve) => {
      this.#end = resolve
      this.advance()
    })
  }

  advance(): void {
    while (this.first) {
      this.first.begin()
      if (!this.first.isGone) return
      this.remove(this.first)
    }
    this.#end?.()
  }
}

/** A place in the order of a lane. Whoever took it must release it. */
export class Turn {
  readonly #lane: Lane
  readonly #run: Run
  readonly #bytes: number
  readonly #overtakes: boolean
  /** What a response waits for, or one behind this turn; and what waits for this turn in that way. */
  #leader: Turn | undefined
  #follower: Turn | undefined
  #promise: Promise<void> | undefined
  #resolve: (() => void) | undefined
  /** @internal The neighbours in its run. */
  before: Turn | undefined
  /** @internal */
  after: Turn | undefined
  /** @internal */
  isGone = false

  /** @internal */
  constructor(lane: Lane, run: Run, bytes: number, overtakes: boolean, leader: Turn | undefined) {
    this.#lane = lane
    this.#run = run
    this.#bytes = bytes
    this.#overtakes = overtakes
    this.#leader = leader
    if (leader) leader.#follower = this
    run.add(this)
  }

  /** Nothing where it is this message's turn already, else a promise of it. */
  wait(): Promise<void> | undefined {
    if (this.#isNext) return undefined
    if (!this.#overtakes) this.#lane.enqueue(this.#run)
    this.#promise ??= new Promise((resolve) => {
      this.#resolve = resolve
    })
    return this.#promise
  }

  get #isNext(): boolean {
    if (this.#overtakes) return this.#leader === undefined
    // Nobody comes by who has left: a middleware threw while others still hand the message on.
    if (this.isGone && !this.#promise) return true
    return this.#run.first === this && this.#lane.isOpen(this.#run)
  }

  /** @internal */
  begin(): void {
    this.#resolve?.()
  }

  /** The message has left, or never will: the next one may go. */
  release(): void {
    if (this.isGone) return
    this.isGone = true
    if (!this.#leader) this.#pass()
    // Whoever waits is told when its turn comes, even if it does not need it any more.
    if (this.#overtakes || !this.#promise) this.#run.remove(this)
    if (this.#run.isOpen) this.#run.advance()
    this.#lane.released(this.#bytes)
  }

  /** Neither this message nor what came before it keeps a response any longer. */
  #pass(): void {
    let turn: Turn = this
    while (turn.#follower) {
      const follower: Turn = turn.#follower
      turn.#follower = undefined
      follower.#leader = undefined
      if (follower.#overtakes) follower.begin()
      if (!follower.isGone) return
      turn = follower
    }
    this.#lane.passed(turn)
  }
}
