import type { IncomingMessage } from 'node:http'
import type { AdmitRequest } from '../define.js'
import { OptionError } from '../error.js'

export type Route = 'streamable' | 'sse' | 'messages' | 'health'

/** The methods that a route knows. */
export const METHODS: Readonly<Record<Route, readonly string[]>> = {
  streamable: ['GET', 'POST', 'DELETE'],
  sse: ['GET'],
  messages: ['POST'],
  health: ['GET', 'HEAD'],
}

/** Which of our routes a request is for. */
export class Routes {
  /** Of the endpoint of Streamable HTTP. */
  readonly path: string
  readonly #byPath = new Map<string, Route>([
    ['/sse', 'sse'],
    ['/messages', 'messages'],
    ['/healthz', 'health'],
  ])

  /** @throws `OptionError` */
  constructor(path: string) {
    if (!/^\/[^?#\s]*$/.test(path) || this.#byPath.has(path)) {
      const taken = [...this.#byPath.keys()].join(', ')
      throw new OptionError(`path: expected one as /mcp, other than ${taken}, got ${JSON.stringify(path)}`)
    }
    this.path = path
    this.#byPath.set(path, 'streamable')
  }

  /** A framework that mounted us has taken its own part off the URL, or all of it where it mounted the endpoint. */
  of(request: IncomingMessage): Route | undefined {
    // Most are for the very path.
    const at = this.#byPath.get(request.url ?? '')
    if (at !== undefined) return at
    const [path, full] = [pathOf(request.url), pathOf(fullUrl(request))]
    const route = this.#byPath.get(path) ?? this.#byPath.get(full)
    return route ?? (path === '/' && full.endsWith(this.path) ? 'streamable' : undefined)
  }
}

/** The URL as its client wrote it, whatever a framework has taken off. */
export function fullUrl(request: IncomingMessage): string {
  return (request as { originalUrl?: string }).originalUrl ?? request.url ?? ''
}

/** The head of a request, as middleware are shown it. */
export function headOf(request: IncomingMessage): AdmitRequest {
  const { method = '', headers, socket } = request
  return { method, url: fullUrl(request), headers, remoteAddress: socket.remoteAddress }
}

export function pathOf(url = ''): string {
  return url.split('?', 1)[0]!
}
