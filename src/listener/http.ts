import { createServer, type Server } from 'node:http'
import type { AddressInfo, Socket } from 'node:net'
import { OptionError } from '../error.js'
import type { CloseOptions } from '../wire.js'
import { Face } from './face.js'
import { isLoopback } from './guard.js'
import type { Accept, HttpOptions, Listening, Served } from './index.js'
import { hostName, settingsOf } from './options.js'

const HEADERS_TIMEOUT = 10_000
const MAX_HEADER_BYTES = 16 << 10
/** How often Node looks for requests that take too long, in milliseconds. */
const CHECK_INTERVAL = 1_000
/** Above the 60 s after which most clients and balancers close an idle connection: a request must not race with that. */
const KEEP_ALIVE = 65_000
/** Milliseconds of silence before a connection is asked whether it still stands. */
const TCP_KEEPALIVE = 30_000
/** Connections that may wait to be taken: those over it are made to wait for seconds, or reset. Node's own are 511. */
const BACKLOG = 4_096

/**
 * Serves clients on a port.
 *
 * @throws (rejects) `OptionError` for an address that others can reach and nobody authenticates at; what Node says where
 * it cannot be listened on
 */
export async function listenHttp(options: HttpOptions, accept: Accept, served: Served): Promise<Listening> {
  const { port, host = '127.0.0.1', token, allowUnauthenticated, allowHosts = [] } = options
  const isOpen = isLoopback(host) || allowUnauthenticated === true
  if (!isOpen && token === undefined && !served.authenticates) {
    const got = `host ${JSON.stringify(host)}, which other machines can reach`
    throw new OptionError(`expected a token, middleware that authenticates, or allowUnauthenticated; got ${got}`)
  }
  const settings = settingsOf({ ...options, allowHosts: isWildcard(host) ? allowHosts : [...allowHosts, host] })
  const face = new Face(accept, served, settings, { demandsPrincipal: !isOpen })
  const server = createServer(
    {
      headersTimeout: HEADERS_TIMEOUT,
      // A body has a time of its own; an answer may take as long as it takes.
      requestTimeout: 0,
      connectionsCheckingInterval: CHECK_INTERVAL,
      maxHeaderSize: MAX_HEADER_BYTES,
      keepAliveTimeout: KEEP_ALIVE,
      noDelay: true,
      // A client that is gone without a word is not to keep its session for ever.
      keepAlive: true,
      keepAliveInitialDelay: TCP_KEEPALIVE,
    },
    face.handle,
  )
  // A body is asked for when it is read: once its sender is known.
  server.on('checkContinue', (request, response) => {
    request.once('resume', () => {
      if (!response.headersSent) response.writeContinue()
    })
    face.handle(request, response)
  })
  bound(server, options)
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen({ port, host, backlog: BACKLOG }, resolve)
  })
  server.removeAllListeners('error').on('error', (error) => served.report(error))
  let closing: Promise<void> | undefined
  const close = async (how?: CloseOptions) => {
    const closed = new Promise((resolve) => {
      server.close(resolve)
    })
    await face.close(how)
    // What is left of them is idle, or does not end by itself.
    server.closeAllConnections()
    await closed
  }
  const { address, port: taken } = server.address() as AddressInfo
  return {
    address: `http://${hostName(address)}:${taken}${settings.routes.path}`,
    closed: face.closed,
    close(how) {
      if (closing && how?.urgent) void face.close(how)
      closing ??= close(how)
      return closing
    },
  }
}

/** Bounds the sockets: in all, and of one address. */
function bound(server: Server, { maxConnections = 10_000, maxConnectionsPerAddress: perAddress }: HttpOptions): void {
  server.maxConnections = maxConnections
  if (perAddress === undefined) return
  const open = new Map<string, number>()
  server.on('connection', (socket: Socket) => {
    const { remoteAddress = '' } = socket
    const count = (open.get(remoteAddress) ?? 0) + 1
    open.set(remoteAddress, count)
    socket.once('close', () => {
      const left = (open.get(remoteAddress) ?? 1) - 1
      if (left === 0) open.delete(remoteAddress)
      else open.set(remoteAddress, left)
    })
    if (count > perAddress) socket.destroy()
  })
}

function isWildcard(host: string): boolean {
  return host === '0.0.0.0' || host === '::' || host === ''
}
