import type { Middleware } from './context.js'

/** What a middleware is for, so that the application can warn of an order that undoes it. */
export type Role = 'authenticate' | 'limit' | 'sanitise' | 'change' | 'authorise' | 'pin' | 'cache' | 'observe'

/** The head of an HTTP request, as a listener shows it before it reads the body. Header names in lower case. */
export interface AdmitRequest {
  readonly method: string
  /** Path and query. */
  readonly url: string
  readonly headers: Readonly<Record<string, string | string[] | undefined>>
  readonly remoteAddress?: string
}

/** Who it is, or the HTTP status it is turned away with. */
export type Admission =
  | { readonly principal: string; readonly authInfo?: unknown }
  | { readonly status: number; readonly headers?: Readonly<Record<string, string>> }

/** The whole answer to an HTTP request. */
export interface HttpAnswer {
  readonly status: number
  readonly headers?: Readonly<Record<string, string>>
  readonly body?: string
}

/** What a middleware needs beyond messages. */
export interface Definition<App = unknown> {
  readonly role?: Role
  /** What errors call it: bundlers rename functions. @default the function's own name */
  readonly name?: string
  /** Decides over an HTTP request before its body is read and before any session exists. */
  readonly admit?: (request: AdmitRequest) => Admission | undefined | Promise<Admission | undefined>
  /**
   * Answers an HTTP request to a path that is none of the proxy's own: metadata that anybody may read. Nobody has been
   * authenticated then; `Host` and `Origin` have been looked at. It must depend on the request alone: it may be asked
   * twice.
   */
  readonly respond?: (request: AdmitRequest) => HttpAnswer | undefined
  /** Awaited before the application serves; what it throws fails `listen`. */
  readonly start?: (app: App) => unknown
  /** Awaited after the last session has closed, or once nothing goes through it any more that `replace()` took out. */
  readonly close?: () => unknown
}

/**
 * Gives a middleware what it needs beyond messages: a role, a say over HTTP requests, answers to some, a start and a
 * close. They become properties of the very function: one that several lines share wants one definition.
 *
 * @example
 * const audit = define({ role: 'observe', close: () => file.close() }, async function audit(ctx, next) { … })
 */
export function define<State extends object = object, App = unknown>(
  definition: Definition<App>,
  middleware: Middleware<State>,
): Middleware<State> & Definition<App> {
  const { name = middleware.name, ...rest } = definition
  // It cannot be assigned.
  return Object.defineProperty(Object.assign(middleware, rest), 'name', { value: name, configurable: true })
}
