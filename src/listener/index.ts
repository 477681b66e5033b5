import type { Ending, Session } from '../session.js'
import type { CloseOptions, Wire } from '../wire.js'
import { StdioClient, type StdioClientOptions } from './stdio.js'

/** A client that was accepted, joined to its upstream. */
export interface Accepted {
  readonly session: Session
  /** Resolves when the session is over. */
  readonly closed: Promise<Ending>
  close(options?: CloseOptions): Promise<void>
}

/** What a listener does with each client that comes. */
export type Accept = (client: Wire, options?: { principal?: string }) => Accepted

export interface Listening {
  /** Where it listens, if clients come from outside. */
  readonly address?: string
  /** Resolves when it accepts no more and its sessions are over. */
  readonly closed: Promise<Ending>
  close(options?: CloseOptions): Promise<void>
}

/** Brings clients. */
export type Listener = (accept: Accept) => Listening | Promise<Listening>

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
