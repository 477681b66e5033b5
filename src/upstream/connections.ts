import { connect, isIP, type Socket } from 'node:net'
import { type Carried, Connection, reset } from './connection.js'

const SWEEP_MS = 1_000
const TCP_KEEPALIVE_MS = 30_000

/** The connections to one origin: as many as there are requests at a time. */
export class Connections {
  readonly #origin: URL
  readonly #timeout: number
  readonly #all = new Set<Connection>()
  /** The one that was used last is the last. */
  readonly #idle: Connection[] = []
  /** Requests that idle connections are about to take. */
  #next: Carried[] = []
  #sweeper: NodeJS.Timeout | undefined
  /** So that a further TLS connection costs less. */
  #tlsSession: Buffer | undefined
  readonly #events = {
    onIdle: (connection: Connection) => this.#rest(connection),
    onClose: (connection: Connection) => this.#forget(connection),
  }

  /** `timeout`: milliseconds for DNS, TCP and TLS. */
  constructor(origin: URL, timeout: number) {
    this.#origin = origin
    this.#timeout = timeout
  }

  /**
   * Whether an idle connection is about to take it. Its server may have closed that behind the last answer: it takes two
   * half turns to see all that is there to read. One such wait serves all requests of a turn.
   */
  carry(carried: Carried): boolean {
    if (this.#idle.length <= this.#next.length) {
      this.#open(carried)
      return false
    }
    if (this.#next.push(carried) === 1) setImmediate(() => setImmediate(() => this.#flush()))
    return true
  }

  /** It is not wanted any more, and its server must not go on with it. */
  drop(carried: Carried): void {
    const index = this.#next.indexOf(carried)
    if (index >= 0) this.#next.splice(index, 1)
    if (carried.connection) carried.connection.destroy(reset())
    else carried.onFault(reset())
  }

  /** Drops all, those in use too. */
  close(): void {
    for (const carried of this.#next.splice(0)) carried.onFault(reset())
    for (const connection of [...this.#all]) connection.destroy(reset())
  }

  #flush(): void {
    const now = performance.now()
    for (const carried of this.#next.splice(0)) {
      const connection = this.#take(now)
      if (connection) connection.carry(carried)
      else this.#open(carried)
    }
  }

  #take(now: number): Connection | undefined {
    for (;;) {
      const connection = this.#idle.pop()
      if (!connection || connection.isFresh(now)) return connection
      connection.destroy(reset())
    }
  }

  #open(carried: Carried): void {
    const isSecure = this.#origin.protocol === 'https:'
    const { hostname, port } = this.#origin
    const address = { host: hostname.replace(/^\[|\]$/g, ''), port: Number(port) || (isSecure ? 443 : 80) }
    const socket = isSecure ? this.#overTls(address) : connect(address)
    socket.setNoDelay(true)
    socket.setKeepAlive(true, TCP_KEEPALIVE_MS)
    const connection = new Connection(socket, this.#events)
    this.#all.add(connection)
    connection.open(carried, isSecure ? 'secureConnect' : 'connect', this.#timeout)
  }

  #overTls(address: { host: string; port: number }): Socket {
    // Loaded where it is needed.
    const tls = process.getBuiltinModule('node:tls')
    const socket = tls.connect({
      ...address,
      ALPNProtocols: ['http/1.1'],
      ...(isIP(address.host) === 0 && { servername: address.host }),
      ...(this.#tlsSession && { session: this.#tlsSession }),
    })
    // One that the server does not resume must not be tried again.
    socket.on('error', () => {
      this.#tlsSession = undefined
    })
    return socket.on('session', (session) => {
      this.#tlsSession = session
    })
  }

  #rest(connection: Connection): void {
    this.#idle.push(connection)
    this.#sweeper ??= setTimeout(() => this.#sweep(), SWEEP_MS).unref()
  }

  /** Those that were used first stand first. */
  #sweep(): void {
    const now = performance.now()
    for (const connection of this.#idle.filter((it) => !it.isFresh(now))) connection.destroy(reset())
    this.#sweeper = this.#idle.length === 0 ? undefined : setTimeout(() => this.#sweep(), SWEEP_MS).unref()
  }

  #forget(connection: Connection): void {
    this.#all.delete(connection)
    const index = this.#idle.lastIndexOf(connection)
    if (index >= 0) this.#idle.splice(index, 1)
  }
}
