import type { JSONRPCMessage } from '@modelcontextprotocol/sdk/types.js'
import { Application } from '../application.js'
import type { Middleware } from '../context.js'
import type { Session, Side } from '../session.js'
import type { FrameMeta } from '../wire.js'
import type { Written } from './messages.js'
import { type Ends, Stage, type Step } from './stage.js'

/** What came out on both sides. */
export interface Traffic {
  toClient: JSONRPCMessage[]
  toServer: JSONRPCMessage[]
}

/** One message of a conversation: who said it, or whom it reached. */
export type Said<Message = JSONRPCMessage> =
  | { fromClient: Message }
  | { toServer: Message }
  | { fromServer: Message }
  | { toClient: Message }

/** An application between two ends that a test plays. */
export interface TestProxy {
  readonly session: Session
  /** Appends middleware to the application. */
  use(...middleware: Middleware<never>[]): this
  /** Sends a message as the client; resolves with everything that came out on both sides because of it. */
  fromClient(message: Written, meta?: FrameMeta): Promise<Traffic>
  /** The same as the server. */
  fromServer(message: Written, meta?: FrameMeta): Promise<Traffic>
  /**
   * Resolves with what came out since, once every message has left or waits for a peer: after a timer, for one. Under a
   * `testClock` also what waits for the clock is at rest.
   */
  settle(): Promise<Traffic>
  /** Settles, and gives all that was said since the start, in its order. */
  conversation(): Promise<Said[]>
  /** The same as the texts that went over the wire, for who wants to compare bytes. */
  raw(): Promise<Said<string>[]>
  /** The client leaves, or the server ends; resolves with the last messages when the session is over. */
  end(side: Side, reason?: Error): Promise<Traffic>
}

/**
 * Plays both ends of a proxy without sockets, processes or sleeps. The test says what each end says (`fromClient`,
 * `fromServer`), or gives an end a script by which it answers.
 *
 * @example
 * const proxy = testProxy(createProxy().use(rename('a_')))
 * expect(await proxy.fromClient(request(1, 'tools/call', { name: 'a_x' }))).toEqual({
 *   toServer: [request(1, 'tools/call', { name: 'x' })],
 *   toClient: [],
 * })
 * @example
 * const proxy = testProxy({ server: { 'tools/call': ({ name }) => ({ content: [{ type: 'text', text: name }] }) } })
 * await proxy.use(rename('a_')).fromClient(request(1, 'tools/call', { name: 'a_x' }))
 * expect(await proxy.conversation()).toEqual([
 *   { fromClient: request(1, 'tools/call', { name: 'a_x' }) },
 *   { toServer: request(1, 'tools/call', { name: 'x' }) },
 *   { fromServer: result(1, { content: [{ type: 'text', text: 'x' }] }) },
 *   { toClient: result(1, { content: [{ type: 'text', text: 'x' }] }) },
 * ])
 */
export function testProxy(ends?: Ends): TestProxy
export function testProxy(app: Application<never> | Application, ends?: Ends): TestProxy
export function testProxy(first: Application<never> | Application | Ends = {}, more: Ends = {}): TestProxy {
  const [app, ends] = 'connect' in first ? [first, more] : [new Application(), first]
  const stage = new Stage(app, ends)
  let taken = 0
  const take = (): Traffic => {
    const fresh = stage.log.slice(taken)
    taken = stage.log.length
    const of = (step: Step) => fresh.filter((it) => it.step === step).map(({ text }) => JSON.parse(text))
    return { toClient: of('toClient'), toServer: of('toServer') }
  }
  const settle = async () => {
    await stage.settle()
    return take()
  }
  const play = (side: Side) => async (message: Written, meta?: FrameMeta) => {
    await stage.say(side, message, meta)
    return settle()
  }
  return {
    session: stage.session,
    use(...middleware) {
      app.use(...(middleware as never[]))
      return this
    },
    fromClient: play('client'),
    fromServer: play('server'),
    settle,
    async conversation() {
      await stage.settle()
      return stage.log.map(({ step, text }) => ({ [step]: parsed(text) }) as Said)
    },
    async raw() {
      await stage.settle()
      return stage.log.map(({ step, text }) => ({ [step]: text }) as Said<string>)
    },
    async end(side, reason) {
      await stage.leave(side, reason)
      await stage.bridge.closed
      return take()
    },
  }
}

/** What a test wrote need not be JSON. */
function parsed(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return text
  }
}
