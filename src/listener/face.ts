import { createHash, timingSafeEqual } from 'node:crypto'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { deferred } from '../deferred.js'
import type { Admission, HttpAnswer } from '../define.js'
import { INTERNAL_ERROR } from '../error.js'
import type { Ending } from '../session.js'
import type { CloseOptions } from '../wire.js'
import { accepts, isJson, readBody } from './body.js'
import { type Admitted, Clients } from './clients.js'
import { LastGood } from './good.js'
import { Guard } from './guard.js'
import type { Accept, Listening, RequestHandler, Served } from './index.js'
import type { Settings } from './options.js'
import {
  type Answering,
  cutOff,
  empty,
  type Headers,
  invalid,
  json,
  type Refused,
  refuse,
  refused,
  whenOver,
} from './reply.js'
import { fullUrl, headOf, METHODS, pathOf, type Route } from './routes.js'

const EXPOSED = 'Mcp-Session-Id, MCP-Protocol-Version, WWW-Authenticate, Retry-After'
const PREFLIGHT_AGE = '600'
const EVENTS = 'text/event-stream'
const NO_STORE = { 'cache-control': 'no-store' }

/** One port's three faces: Streamable HTTP with sessions, its stateless successor, and HTTP+SSE of 2024-11-05. */
export class Face implements Listening {
  readonly #served: Served
  readonly #settings: Settings
  readonly #guard: Guard
  readonly #token: Buffer | undefined
  readonly #demandsPrincipal: boolean
  readonly #clients: Clients
  readonly #json = new LastGood(isJson)
  readonly #both = new LastGood((accept: string | undefined) => accepts(accept, 'application/json', EVENTS))
  readonly #over = deferred<Ending>()

  /** `demandsPrincipal`: whom nobody knows is turned away. */
  constructor(accept: Accept, served: Served, settings: Settings, { demandsPrincipal = false } = {}) {
    const { token } = settings
    this.#demandsPrincipal = demandsPrincipal
    this.#served = served
    this.#settings = settings
    this.#guard = new Guard(settings)
    this.#token = token === undefined ? undefined : digest(token)
    this.#clients = new Clients(accept, settings)
  }

  get closed(): Promise<Ending> {
    return this.#over.promise
  }

  readonly handle: RequestHandler = (request, response, next) => {
    const route = this.#settings.routes.of(request)
    if (route === undefined && next && !this.#served.respond(headOf(request))) {
      next()
      return
    }
    // A response behind another one of its connection has no socket yet, and never learns of its end without one.
    if (!response.socket) {
      response.once('socket', () => this.handle(request, response, next))
      return
    }
    response.on('error', ignore)
    whenOver(response, () => request.complete || setImmediate(endBody, request))
    const turnAway = (refusal: Refused | undefined) => {
      if (refusal) refuse(response, refusal)
    }
    const fail = (error: Error) => {
      this.#served.report(error)
      if (response.headersSent) response.destroy()
      else refuse(response, { status: 500, error: { code: INTERNAL_ERROR, message: 'Internal error' } })
    }
    try {
      const answering = this.#serve(route, request, response)
      if (answering instanceof Promise) answering.then(turnAway).catch(fail)
      else turnAway(answering)
    } catch (error) {
      fail(error as Error)
    }
  }

  /** Takes no new sessions, lets those that are there finish, and resolves when none is left. */
  async close(options?: CloseOptions): Promise<void> {
    await this.#clients.close(options)
    this.#over.resolve({ served: true })
  }

  /** Answers, or says why it does not. */
  #serve(route: Route | undefined, request: IncomingMessage, response: ServerResponse): Answering {
    const turned = this.#guard.turn(request)
    if (turned) return turned
    const isShared = this.#share(request, response)
    const answer = route === undefined ? this.#served.respond(headOf(request)) : undefined
    if (route === undefined && !answer) return invalid(404, 'nothing is served here')
    if (isShared && isPreflight(request)) return preflight(request, response)
    if (route === undefined) return respond(response, answer!)
    const methods = METHODS[route]
    if (!methods.includes(request.method ?? '')) {
      const allow = methods.join(', ')
      return invalid(405, `expected ${allow}`, { allow })
    }
    if (route === 'health') return this.#health(request, response)
    const admission = this.#unknown(request) ?? this.#served.admit(headOf(request))
    if (admission instanceof Promise) return admission.then((it) => this.#enter(route, request, response, it))
    return this.#enter(route, request, response, admission)
  }

  /** What was found out of whoever is there: before the body is read and before there is any session. */
  #enter(
    route: Route,
    request: IncomingMessage,
    response: ServerResponse,
    admission: Admission | Refused | undefined,
  ): Answering {
    if (admission && 'error' in admission) return admission
    if (admission && 'status' in admission) {
      const reason = admission.status === 503 ? 'overloaded' : 'denied'
      return { ...refused(admission.status, reason), headers: { ...admission.headers } }
    }
    const principal = admission?.principal ?? (this.#token && 'token')
    if (principal === undefined && this.#demandsPrincipal) return unauthorized('Bearer')
    const { headers, socket } = request
    const { remoteAddress } = socket
    const authInfo = admission?.authInfo
    const meta = authInfo === undefined ? { headers, remoteAddress } : { headers, remoteAddress, authInfo }
    const admitted = { request, response, principal, meta }
    if (request.method === 'POST') return this.#post(route, admitted)
    const isGet = request.method === 'GET'
    if (isGet && !accepts(headers.accept, EVENTS)) return invalid(406, `expected Accept with ${EVENTS}`)
    if (route !== 'sse') return this.#clients.session(admitted)
    return this.#clients.openSse(admitted, pathOf(fullUrl(request)).replace(/sse$/, 'messages'))
  }

  async #post(route: Route, admitted: Admitted): Promise<Refused | undefined> {
    const { request, response } = admitted
    const { accept, 'content-type': contentType } = request.headers
    if (!this.#json.has(contentType)) return invalid(415, 'expected Content-Type application/json')
    if (route === 'streamable' && !this.#both.has(accept)) {
      return invalid(406, `expected Accept with application/json and ${EVENTS}`)
    }
    const { maxBodyBytes, bodies } = this.#settings
    let taken = 0
    // A request is kept until it is answered.
    whenOver(response, () => bodies.give(taken))
    const body = await readBody(request, maxBodyBytes, (bytes) => {
      if (!bodies.take(bytes)) return false
      taken += bytes
      return true
    })
    if (!Buffer.isBuffer(body)) return body
    return route === 'messages' ? this.#clients.postSse(admitted, body) : this.#clients.post(admitted, body)
  }

  /** What is wrong with the token, where one is asked for. */
  #unknown({ headers }: IncomingMessage): Refused | undefined {
    if (!this.#token) return undefined
    const [, given] = /^Bearer +(\S+) *$/i.exec(headers.authorization ?? '') ?? []
    if (given === undefined) return unauthorized('Bearer')
    return timingSafeEqual(digest(given), this.#token) ? undefined : unauthorized('Bearer error="invalid_token"')
  }

  #health({ method }: IncomingMessage, response: ServerResponse): undefined {
    const isClosing = this.#clients.isClosing
    const health = { ...this.#served.health(), ...(isClosing && { status: 'closing' }) }
    const status = isClosing ? 503 : 200
    if (method === 'HEAD') empty(response, status, NO_STORE)
    else json(response, Buffer.from(JSON.stringify(health)), status, NO_STORE)
  }

  /** Pages of other origins may read the answer only where it was asked for. */
  #share({ headers: { origin } }: IncomingMessage, response: ServerResponse): boolean {
    if (!this.#guard.shares(origin)) return false
    response.setHeader('access-control-allow-origin', origin)
    response.setHeader('access-control-expose-headers', EXPOSED)
    response.setHeader('vary', 'Origin')
    return true
  }
}

function ignore(): void {}

/** What nobody reads any more may go on for ever. (An answer may be out before Node tells that the body is complete.) */
function endBody(request: IncomingMessage): void {
  if (!request.complete && !request.destroyed) cutOff(request)
}

function respond(response: ServerResponse, { status, headers, body }: HttpAnswer): undefined {
  response.writeHead(status, { ...headers }).end(body)
}

function isPreflight({ method, headers }: IncomingMessage): boolean {
  return method === 'OPTIONS' && 'access-control-request-method' in headers
}

/** Whoever may read the answers may send what a client sends. Nothing is done yet, so nobody needs to be known. */
function preflight({ headers }: IncomingMessage, response: ServerResponse): undefined {
  const allowed: Headers = {
    'access-control-allow-methods': 'GET, POST, DELETE',
    'access-control-max-age': PREFLIGHT_AGE,
  }
  const asked = headers['access-control-request-headers']
  if (asked !== undefined) allowed['access-control-allow-headers'] = String(asked)
  empty(response, 204, allowed)
}

function unauthorized(challenge: string): Refused {
  return refused(401, 'denied', 'expected a bearer token', { 'www-authenticate': challenge })
}

function digest(text: string): Buffer {
  return createHash('sha256').update(text).digest()
}
