import type { Transport } from '@modelcontextprotocol/sdk/shared/transport.js'
import type { Bridge } from './bridge.js'
import type { Admission, AdmitRequest, Definition } from './define.js'
import { Ledger } from './ledger.js'
import type { Accept, AcceptOptions, Health, Served } from './listener/index.js'
import type { Session } from './session.js'
import { nameOf, type OpenOptions, type OpenUpstream, openUpstream, type Upstream } from './upstream/index.js'
import { type CloseOptions, fromTransport, isWire, type Wire } from './wire.js'

/** What a service asks of its application. */
export interface ServiceHost {
  join(client: Wire, open: (session: Session) => Promise<Wire>, options: AcceptOptions & { upstream: string }): Bridge
  /** The middleware of now. */
  definitions(): readonly Pick<Definition, 'admit' | 'respond'>[]
  stats(): { sessions: number; pending: number }
  report(error: Error): void
}

/** An upstream, as what brings clients to it sees it. */
export class Service implements Served {
  readonly #host: ServiceHost
  readonly #name: string
  readonly #upstream: OpenUpstream
  readonly #joined = new Ledger<number, Bridge>()
  #serial = 0
  readonly #since = performance.now()
  #state: Health['upstream']['state'] = 'unknown'

  /** @throws `TypeError` where the upstream cannot be understood */
  constructor(upstream: Upstream, options: OpenOptions, host: ServiceHost) {
    this.#host = host
    this.#upstream = openUpstream(upstream, options)
    this.#name = nameOf(upstream)
  }

  readonly accept: Accept = (client, options = {}) => {
    const open = async (session: Session) => toWire(await this.#upstream.open(session))
    const bridge = this.#host.join(client, open, { ...options, upstream: this.#name })
    this.#serial += 1
    const number = this.#serial
    this.#joined.set(number, bridge)
    void bridge.closed.then(({ served, reason }) => {
      this.#joined.delete(number)
      if (served || reason) this.#state = served ? 'up' : 'down'
    })
    return { session: bridge.session, closed: bridge.closed, close: (how) => bridge.close(how) }
  }

  get authenticates(): boolean {
    return this.#host.definitions().some(({ admit }) => admit !== undefined)
  }

  readonly admit: Served['admit'] = (request) => {
    const admitting = this.#host.definitions().filter(({ admit }) => admit !== undefined)
    return admitting.length === 0 ? undefined : admitted(admitting, request)
  }

  readonly respond: Served['respond'] = (request) => {
    try {
      for (const { respond } of this.#host.definitions()) {
        const answer = respond?.(request)
        if (answer) return answer
      }
      return undefined
    } catch (error) {
      this.#host.report(error as Error)
      return { status: 500 }
    }
  }

  health(): Health {
    const { sessions, pending } = this.#host.stats()
    if (this.#joined.values().some((it) => it.isServed)) this.#state = 'up'
    const uptime = Math.floor((performance.now() - this.#since) / 1_000)
    // A path may be a secret: whoever asks is not known.
    const name = /^https?:/.test(this.#name) ? new URL(this.#name).origin : this.#name
    return { status: 'ok', uptime, sessions, pending, upstream: { name, state: this.#state } }
  }

  report(error: Error): void {
    this.#host.report(error)
  }

  /** Ends what outlives its sessions. */
  close(options?: CloseOptions): Promise<void> {
    return this.#upstream.close(options)
  }
}

async function admitted(
  admitting: readonly Pick<Definition, 'admit'>[],
  request: AdmitRequest,
): Promise<Admission | undefined> {
  let admission: Admission | undefined
  for (const { admit } of admitting) {
    const said = await admit?.(request)
    if (said && 'status' in said) return said
    admission ??= said
  }
  return admission
}

export function toWire(end: Wire | Transport): Wire {
  return isWire(end) ? end : fromTransport(end)
}
