import assert from 'node:assert/strict'
import type { JSONRPCErrorResponse, JSONRPCRequest, RequestId } from '@modelcontextprotocol/sdk/types.js'
import { Application } from '../application.js'
import type { Middleware, Params, Result } from '../context.js'
import type { Listening } from '../listener/index.js'
import type { Ending, Side } from '../session.js'
import type { Answering } from './script.js'
import { type Ends, Stage, type Step, turn } from './stage.js'
import type { Watch } from './watch.js'

const { performance } = globalThis

/** A fresh middleware, or several in their order. */
export type MakeStack = () => Middleware<never> | readonly Middleware<never>[]

export interface ContractOptions {
  /**
   * Requests of the client that the middleware lets pass: `{ method: 'tools/call', params: { name: 'a_x' } }`.
   * @default some of the usual methods, and an unknown one
   */
  requests?: readonly { readonly method: string; readonly params?: Params }[]
  /** Who is at the client's end, for a middleware that wants to know. @default nobody */
  principal?: string
  /** What it needs before it on the line: somebody who fills `ctx.state`, for one. @default nothing */
  before?: Middleware<never> | readonly Middleware<never>[]
  /**
   * It changes messages of any method, to add a trace for one. Then only what it did not touch must keep its bytes, and an
   * error may be another one. @default false
   */
  rewrites?: boolean
  /** Milliseconds within which something must happen. @default 2000 */
  patience?: number
}

/** A message of a log, parsed. */
export interface Parsed {
  id?: RequestId
  method?: string
  params?: Params
  result?: Result & { _meta?: Record<string, unknown> }
  error?: JSONRPCErrorResponse['error']
}

/** Turns of the event loop without a move that count as rest. */
const LULL = 20

/** Middleware on a line of their own, started as in an application that serves. */
export class Trial {
  readonly app = new Application({ drainTimeout: 100 })
  readonly options: ContractOptions
  readonly watch: Watch
  /** What the application reported. */
  readonly errors: string[] = []

  constructor(stack: MakeStack, options: ContractOptions, watch: Watch) {
    this.options = options
    this.watch = watch
    this.app.on('error', (error) => this.errors.push(error.message))
    this.app.use(...([options.before ?? [], stack()].flat() as Middleware[]))
  }

  async start(): Promise<void> {
    await this.#within(
      'the middleware to start',
      this.app.listen(() => assert.fail(), nobody),
    )
  }

  /** A session on this line. */
  join(ends: Ends = {}): Stage {
    return new Stage(this.app, { principal: this.options.principal, ...ends })
  }

  /** Closes, twice, and looks whether anything is still pending. */
  async stop(): Promise<void> {
    await this.#within('the application to close', this.app.close())
    await this.#within('the application to close again', this.app.close())
    const { sessions, pending, lanes } = this.app.stats()
    assert.deepEqual(
      { sessions, pending, ...lanes },
      { sessions: 0, pending: 0, 'client-to-server': 0, 'server-to-client': 0 },
      'expected nothing to be pending after the end',
    )
  }

  /** Has failed: it may never close, and nobody waits for it. */
  abandon(): void {
    this.app.close({ urgent: true }).catch(() => {})
  }

  /** Looks at what is left. */
  async clean(): Promise<void> {
    await this.until(
      () => `nothing to keep the process alive after the end, got ${this.watch.left.join(', ')}`,
      () => this.watch.left.length === 0,
    )
  }

  /** Resolves when something is so. @throws (rejects) `AssertionError` where it does not come in time */
  async until(what: string | (() => string), condition: () => boolean): Promise<void> {
    const { patience = 2_000 } = this.options
    const deadline = performance.now() + patience
    while (!condition()) {
      if (performance.now() > deadline) {
        assert.fail(`expected ${typeof what === 'string' ? what : what()} within ${patience} ms`)
      }
      await turn()
    }
  }

  /** Resolves when nobody holds a message any more. */
  async rest(...stages: Stage[]): Promise<void> {
    for (const stage of stages) {
      await this.until('every message to be handed on, answered or given up', () => stage.bridge.isQuiet)
      await lull(stage)
    }
  }

  async #within(what: string, promise: Promise<unknown>): Promise<void> {
    let done = false
    promise.then(
      () => {
        done = true
      },
      () => {
        done = true
      },
    )
    await this.until(what, () => done)
    await promise
  }
}

/** Brings no clients, so that the application serves. */
function nobody(): Listening {
  let end!: (ending: Ending) => void
  const closed = new Promise<Ending>((resolve) => {
    end = resolve
  })
  return { closed, close: async () => end({ served: true }) }
}

/** Resolves when nothing has been said for a while. */
export async function lull({ log }: Stage): Promise<void> {
  for (let still = 0, { length } = log; still < LULL; still++) {
    await turn()
    if (log.length !== length) still = 0
    length = log.length
  }
}

const heard = new WeakMap<Stage, { read: number; by: Record<Step, Parsed[]> }>()

/** What was said, or arrived, in its order. */
export function said(stage: Stage, step: Step): readonly Parsed[] {
  const known = heard.get(stage) ?? { read: 0, by: { fromClient: [], toServer: [], fromServer: [], toClient: [] } }
  heard.set(stage, known)
  for (const it of stage.log.slice(known.read)) known.by[it.step].push(JSON.parse(it.text) as Parsed)
  known.read = stage.log.length
  return known.by[step]
}

/** The answers that an end got to a request of its own. */
export function outcomes(stage: Stage, side: Side, id: RequestId): Parsed[] {
  return said(stage, side === 'client' ? 'toClient' : 'toServer').filter((it) => !it.method && it.id === id)
}

/** Whether a request of an end has come to the other one. */
export function reached(stage: Stage, side: Side, id: RequestId): boolean {
  return said(stage, side === 'client' ? 'toServer' : 'toClient').some((it) => it.method && it.id === id)
}

const shapes: Record<string, object> = {
  'tools/list': { tools: [] },
  'tools/call': { content: [] },
  'prompts/list': { prompts: [] },
  'prompts/get': { messages: [] },
  'resources/list': { resources: [] },
  'resources/read': { contents: [] },
  'roots/list': { roots: [] },
  'elicitation/create': { action: 'decline' },
  'sampling/createMessage': { role: 'assistant', model: 'm', content: { type: 'text', text: 'a' } },
}

/** Tells whose answer it is. */
export const mark = (id: RequestId, who = '') => `${who}${JSON.stringify(id)}`

export function answerTo({ id, method }: { id: RequestId; method: string }, who?: string): object {
  return { ...(Object.hasOwn(shapes, method) ? shapes[method] : {}), _meta: { contract: mark(id, who) } }
}

/** An end that answers the requests of the test once it is told to, the last one first, and all others at once. */
export class Gate {
  who: string
  #open = false
  readonly #waiting: (() => void)[] = []
  readonly #held: (id: RequestId) => boolean

  constructor(held: (id: RequestId) => boolean = () => false, who = '') {
    this.#held = held
    this.who = who
  }

  readonly answer: Answering = async (request: JSONRPCRequest) => {
    if (!this.#open && this.#held(request.id)) await new Promise<void>((resolve) => this.#waiting.push(resolve))
    return answerTo(request, this.who)
  }

  open(): void {
    this.#open = true
    for (const go of this.#waiting.splice(0).reverse()) go()
  }
}
