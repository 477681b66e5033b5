import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Admission, AdmitRequest, HttpAnswer } from '../define.js'
import type { Ending, Session } from '../session.js'
import type { CloseOptions, Wire } from '../wire.js'
import { StdioClient, type StdioClientOptions } from './stdio.js'
import type { EventStore } from './store.js'

/** A client that was accepted, joined to its upstream. */
export interface Accepted {
  readonly session: Session
  /** Resolves when the session is over. */
  readonly closed: Promise<Ending>
  close(options?: CloseOptions): Promise<void>
}

export interface AcceptOptions {
  principal?: string
  /** Where the client's first message tells that it is of 2026-07-28: its session is that one message's. */
  era?: 'modern'
  /** Requests that may wait for their answers, past which one gets -31005. @default as many as come */
  maxPending?: number
}

/** What a listener does with each client that comes. */
export type Accept = (client: Wire, options?: AcceptOptions) => Accepted

/** What goes on in the process and behind it. Holds no secret. */
export interface Health {
  /** `closing` is what a listener says once it takes no new clients. */
  status: 'ok' | 'closing'
  /** Seconds since the application began to serve. */
  uptime: number
  sessions: number
  pending: number
  upstream: {
    /** The command's base name, or the URL's origin. */
    name: string
    /** What the last session that spoke to it, or could not, has shown. */
    state: 'unknown' | 'up' | 'down'
  }
}

/** What a listener may ask of the application that it brings clients to. */
export interface Served {
  /** Whether some middleware decides over HTTP requests (`define({ admit })`). */
  readonly authenticates: boolean
  /**
   * What the middleware say of an HTTP request: the first refusal, else the first principal. Nothing at once where none of
   * them has a say; rejects where one throws.
   */
  admit(request: AdmitRequest): Promise<Admission | undefined> | undefined
  /** What the middleware answer to a request on none of our routes: the first that does. */
  respond(request: AdmitRequest): HttpAnswer | undefined
  health(): Health
  /** Something went wrong that no client is told of in full. */
  report(error: Error): void
}

export interface Listening {
  /** Where it listens, if clients come from outside: the URL of its endpoint. */
  readonly address?: string
  /** Resolves when it accepts no more and its sessions are over. */
  readonly closed: Promise<Ending>
  close(options?: CloseOptions): Promise<void>
}

/** Brings clients. */
export type Listener = (accept: Accept, served: Served) => Listening | Promise<Listening>

/** How clients are served over HTTP, whoever listens. */
export interface HandlerOptions {
  /**
   * Where Streamable HTTP is served; the transport of 2024-11-05 is at `/sse` and `/messages`, the state of the proxy at
   * `/healthz`.
   * @default '/mcp'
   */
  path?: string
  /**
   * What `Host` may say beside `localhost`, `127.0.0.1` and `[::1]`: `proxy.example.com`, or with a port where only that
   * is meant. Anything else is a 403, so that no web page reaches us under a name of its own.
   * @default none
   */
  allowHosts?: readonly string[]
  /**
   * Web pages that may use the proxy, beside those of this machine: `https://app.example.com`. They, and no others, get
   * CORS headers. A request from any other `Origin` is a 403.
   * @default none
   */
  allowOrigins?: readonly string[]
  /**
   * What clients must send as `Authorization: Bearer …`: visible ASCII. Without one any middleware with `admit` decides; a
   * handler that is mounted leaves it to its framework where there is neither. @default none
   */
  token?: string
  /** Sessions, and stateless requests, that may be open at once, past which a new one is a 503. @default 10000 */
  maxSessions?: number
  /** Requests of one session that may wait for their answers, past which a new one gets -31005. @default 1000 */
  maxPending?: number
  /** Milliseconds that a session, or a child that sessions share, may be without a connection. @default 1800000 */
  idleTimeout?: number
  /** Bytes of a body, past which it is a 413. @default 16777216 (16 MiB) */
  maxBodyBytes?: number
  /**
   * Milliseconds between the comments that keep an idle stream alive; also until an answer that is not there yet becomes a
   * stream. 0 is off. @default 15000
   */
  keepAlive?: number
  /** Milliseconds that a request of the server's waits for a stream to its client; then it gets -31011. @default 30000 */
  streamTimeout?: number
  /**
   * Milliseconds that a client may take nothing of what waits for it; then its stream is cut, and what it asked for on that
   * is cancelled. @default 30000
   */
  readTimeout?: number
  /** Keeps events for clients that resume a stream. @default `new MemoryEventStore()` */
  eventStore?: EventStore
}

/** A port, and how it is served. */
export interface HttpOptions extends HandlerOptions {
  /** 0 takes a free one. */
  port: number
  /** An address of this machine that others can reach wants a `token`, or a middleware with `admit`. @default '127.0.0.1' */
  host?: string
  /** Lets any client in where others can reach the address. @default false */
  allowUnauthenticated?: boolean
  /** Sockets that may be open at once. @default 10000 */
  maxConnections?: number
  /** Sockets of one address. Behind a reverse proxy all have the same. @default as `maxConnections` */
  maxConnectionsPerAddress?: number
}

/** A Node request handler; `next` gets what is on no route of ours (Express, Connect). */
export type RequestHandler = (
  request: IncomingMessage,
  response: ServerResponse,
  next?: (error?: unknown) => void,
) => void

/** The one client at this process's stdin and stdout. */
export function stdioListener(options?: StdioClientOptions): Listener {
  return (accept) => {
    const session = accept(new StdioClient(options))
    return {
      closed: session.closed,
      close: (how) => session.close(how),
    }
  }
}
