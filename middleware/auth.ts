import { createHash, timingSafeEqual } from 'node:crypto'
import {
  createLocalJWKSet,
  createRemoteJWKSet,
  customFetch,
  errors,
  type JSONWebKeySet,
  type JWTPayload,
  type JWTVerifyGetKey,
  jwtVerify,
} from 'jose'
import {
  type Admission,
  type AdmitRequest,
  type Application,
  type Context,
  define,
  type HttpAnswer,
  type Middleware,
  type Next,
  proxyError,
  type Session,
} from 'open-mcp-proxy'

/** Who sent a message, as `ctx.state.user` has it. Frozen; the token is not in it. */
export interface User {
  /** The session's principal, too. */
  readonly id: string
  readonly scopes: readonly string[]
  /** What a JWT says, or what `verify` gave. Data of somebody else's: look at own members only. */
  readonly claims?: Readonly<Record<string, unknown>>
  /** Seconds since 1970 from which the token is worth nothing. */
  readonly expiresAt?: number
}

/** A `User` as it is configured, or as `verify` gives it. */
export interface Identity {
  id: string
  /** @default none */
  scopes?: readonly string[]
}

export interface TokenOptions extends Identity {
  /** What the client sends as `Authorization: Bearer …`: visible ASCII without spaces. */
  token: string
}

export interface ApiKeyOptions extends Identity {
  /** SHA-256 of the key, 64 hexadecimal digits: `printf %s KEY | sha256sum`. */
  hash: string
}

/** Whose JSON Web Tokens are taken. The keys come from one of `jwksUri`, `jwks` and `secret`. */
export interface JwtOptions {
  /** What `iss` must be, character for character. */
  issuer: string
  /** What `aud` must be or have among its members: a token that was issued for somebody else is none for us. */
  audience: string | readonly string[]
  /** Where the issuer's keys are: https, or http on this machine. */
  jwksUri?: string
  /** Milliseconds after the keys were fetched for which a key that is not among them makes nobody ask again. @default 30000 */
  cooldown?: number
  /** Milliseconds that fetching them may take. @default 5000 */
  timeout?: number
  /** Milliseconds after which they are fetched again. @default 600000 */
  maxAge?: number
  /** The issuer's keys themselves, public ones only (RFC 7517, section 5). */
  jwks?: { keys: Record<string, unknown>[] }
  /** Shared with the issuer: at least as many bytes as the hash has (RFC 7518, section 3.2), 32 for HS256. */
  secret?: string
  /** Signatures that are taken. @default HS256 with a `secret`, else RS*, PS*, ES256 to ES512 and EdDSA */
  algorithms?: readonly string[]
  /** The claim that has the scopes, as one string with spaces or as an array. @default 'scope', else 'scp' */
  scopeClaim?: string
  /** The claim that has the user's id. @default 'sub' */
  subjectClaim?: string
  /** Seconds by which clocks may differ. @default 5 */
  clockTolerance?: number
  /** What the header `typ` must be, as `at+jwt` (RFC 9068). @default anything */
  typ?: string
}

/** What RFC 9728 tells clients of us, so that they find out where to get a token. */
export interface ResourceOptions {
  /** The URL that clients connect to, as they write it: `https://mcp.example.com/mcp`. */
  url: string
  /** Issuers of tokens for it, at least one. */
  authorizationServers: readonly string[]
  scopesSupported?: readonly string[]
  /** For people. */
  name?: string
  /** The URL of a page for developers. */
  documentation?: string
}

/** At least one of `tokens`, `apiKeys`, `jwt`, `verify` and `local` is needed; the first of them that knows a token wins. */
export interface AuthOptions {
  /** Fixed tokens. Their ids, like those of all other ways, are names in one space. @default none */
  tokens?: readonly TokenOptions[]
  /** Keys, sent in a header of their own or as a bearer token. @default none */
  apiKeys?: readonly ApiKeyOptions[]
  /** The header for keys. Who sends `Authorization` too gets a 400 (RFC 6750, section 2). @default 'x-api-key' */
  apiKeyHeader?: string
  jwt?: JwtOptions
  /** Knows tokens that nothing else knows: opaque ones, for one. Not in a file. What it throws is a 500 and `'error'`. */
  verify?: (
    token: string,
    request: AdmitRequest,
  ) =>
    | (Identity & Omit<User, 'id' | 'scopes'>)
    | undefined
    | Promise<(Identity & Omit<User, 'id' | 'scopes'>) | undefined>
  /** Scopes that everybody needs; who lacks one gets a 403. @default none */
  scopes?: readonly string[]
  /** Serves `/.well-known/oauth-protected-resource`, and names it in each challenge. @default not served */
  resource?: ResourceOptions
  /** Who the client on this process's stdin and stdout is, or one on an in-process transport. @default refused, -31006 */
  local?: Identity
}

/**
 * Adds `ctx.state.user`. What the server says by itself has it before this place only, since it comes from the other end:
 * `ctx.session.principal` says there whom it is for.
 */
export interface Authenticated {
  user: User
}

type Way = (token: string, request: AdmitRequest) => User | undefined | Promise<User | undefined>
type Fault = 'expired' | 'unavailable'

const ASYMMETRIC = [
  ...['RS256', 'RS384', 'RS512', 'PS256', 'PS384', 'PS512'],
  ...['ES256', 'ES384', 'ES512', 'EdDSA', 'Ed25519'],
]
const SYMMETRIC = ['HS256', 'HS384', 'HS512']
/** RFC 6749, section 3.3: such a word needs no escape between quotes. */
const SCOPE = /^[\x21\x23-\x5b\x5d-\x7e]+$/
const WELL_KNOWN = '/.well-known/oauth-protected-resource'
/** Seconds after which a client may come back when the keys of its issuer cannot be had. */
const RETRY_AFTER = 5
/** A set of keys has a few kilobytes. */
const MAX_JWKS_BYTES = 1 << 20
/** Of so many principals it is remembered who they were. */
const MAX_KNOWN = 1_000

/**
 * Finds out who sends each HTTP request, before its body is read: `ctx.state.user`, and `ctx.session.principal` with its
 * id. Who is not known gets a 401 whose `WWW-Authenticate` is as RFC 6750 and MCP 2025-11-25 (basic/authorization) have
 * it. It should be the first that decides over HTTP requests: with several, the first one's principal owns the session.
 *
 * @throws `TypeError` where an option cannot be, or nobody could authenticate.
 * @example
 * createProxy().use(auth({ jwt: { issuer: 'https://id.example.com', audience: 'https://mcp.example.com/mcp', jwksUri } }))
 */
export function auth(options: AuthOptions): Middleware<Authenticated> {
  const { scopes, apiKeyHeader, local, ways, challenge, respond, start } = settled(options)
  /** By what comes with the messages of a request that was admitted: what nobody else can make. */
  const admitted = new WeakMap<object, User>()
  const users = new Users(local)

  async function admit(request: AdmitRequest): Promise<Admission> {
    const given = credentials(request, apiKeyHeader)
    if (given === undefined) return challenge(401, {})
    if (given.several) return challenge(400, { error: 'invalid_request', error_description: 'Expected one credential' })
    const { user, fault } = await identify(ways, given.token, request)
    if (fault === 'unavailable') return { status: 503, headers: { 'retry-after': String(RETRY_AFTER) } }
    if (!user) {
      const error_description = fault === 'expired' ? 'The token has expired' : 'The token is not valid'
      return challenge(401, { error: 'invalid_token', error_description })
    }
    if (!hasAll(user, scopes)) return challenge(403, { error: 'insufficient_scope' })
    admitted.set(user, user)
    // Whoever was asked before us may have said who it is, and then it is that one's `authInfo` that comes.
    admitted.set(request.headers, user)
    letIn.set(request.headers, request)
    users.remember(user)
    return { principal: user.id, authInfo: user }
  }

  function userOf({ from, extra, session }: Context): User | undefined {
    const { authInfo, headers } = extra
    if (from === 'server') return users.of(session)
    // Not a client's over HTTP: a local one's, or the proxy's own.
    if (authInfo === undefined && headers === undefined) return users.of(session)
    const user = (isObject(authInfo) && admitted.get(authInfo)) || (headers && admitted.get(headers))
    return user && users.isOwner(session, user) ? user : undefined
  }

  function pass(ctx: Context<Authenticated>, next: Next): unknown {
    const user = userOf(ctx)
    if (user && hasAll(user, scopes)) {
      ctx.state.user ??= user
      return next()
    }
    if (ctx.kind !== 'request') return ctx.drop()
    throw proxyError('denied', { detail: 'not authenticated' })
  }

  /** For a request that was let in before this one stood here. */
  async function admitLate(request: AdmitRequest, { principal }: Session): Promise<void> {
    const admission = await admit(request)
    if (!('principal' in admission) || admission.principal !== principal) admitted.delete(request.headers)
  }

  const definition = { name: 'auth', role: 'authenticate', admit, respond, start } as const
  return define<Authenticated, Application>(definition, function auth(ctx, next) {
    if (ctx.kind === 'response' && ctx.from === 'server') return next()
    const { headers } = ctx.extra
    const request = headers && !admitted.has(headers) ? letIn.get(headers) : undefined
    return request ? admitLate(request, ctx.session).then(() => pass(ctx, next)) : pass(ctx, next)
  })
}

/** Requests that some `auth` let in, by their headers: one that has taken its place since looks at the token again. */
const letIn = new WeakMap<object, AdmitRequest>()

/** Whom an `auth` knew last: one that takes its place while a session is open has heard nothing of its client yet. */
const lastKnown = new WeakMap<Session, User>()

/** Who is at the client's end of a session, beside what its messages say. */
class Users {
  readonly #local: User | undefined
  readonly #bySession = new WeakMap<Session, User>()
  readonly #byId = new Map<string, User>()

  constructor(local: User | undefined) {
    this.#local = local
  }

  /** For what is sent in the name of a session before its first message is. */
  remember(user: User): void {
    this.#byId.delete(user.id)
    this.#byId.set(user.id, user)
    if (this.#byId.size <= MAX_KNOWN) return
    for (const oldest of this.#byId.keys()) {
      this.#byId.delete(oldest)
      break
    }
  }

  /** A session stays with whoever spoke in it first. */
  isOwner(session: Session, user: User): boolean {
    const owner = this.#bySession.get(session)
    if (owner !== undefined && owner.id !== user.id) return false
    this.#bySession.set(session, user)
    lastKnown.set(session, user)
    return true
  }

  of(session: Session): User | undefined {
    const { principal } = session
    const known = this.#bySession.get(session)
    if (known !== undefined || principal === undefined) return known ?? this.#local
    const before = lastKnown.get(session)
    // Where no middleware of ours said who it is, whoever joined the ends did.
    return this.#byId.get(principal) ?? (before?.id === principal ? before : userFrom({ id: principal }))
  }
}

/** Asks one way after the other. Of a token that none of them knows: why, where that may be told. */
async function identify(ways: readonly Way[], token: string | undefined, request: AdmitRequest) {
  let fault: Fault | undefined
  for (const way of token === undefined ? [] : ways) {
    try {
      const user = await way(token!, request)
      if (user) return { user }
    } catch (error) {
      if (!(error instanceof Unproven)) throw error
      fault = error.fault
    }
  }
  return { fault }
}

/** A token that would be known, but for this. */
class Unproven extends Error {
  constructor(readonly fault: Fault) {
    super(fault)
  }
}

/** What a request brings; without a token where that has not the form of one. RFC 6750, section 2.1. */
function credentials({ headers }: AdmitRequest, keyHeader: string | undefined) {
  const { authorization } = headers
  const key = keyHeader === undefined ? undefined : headers[keyHeader]
  if (authorization !== undefined && key !== undefined) return { several: true }
  if (key !== undefined) return { token: tokenIn(String(key)) }
  const bearer = /^bearer(?= |$)(.*)$/i.exec(String(authorization))
  return bearer ? { token: tokenIn(bearer[1]!) } : undefined
}

function tokenIn(text: string): string | undefined {
  const token = text.trim()
  return isVisible(token) ? token : undefined
}

// --- ways to know a token -----------------------------------------------------------------------------------

/** Compares with all of them, in the same time wherever the right one stands. */
function byDigest(known: readonly { digest: Buffer; user: User }[]): Way {
  return (token) => {
    const given = digestOf(token)
    let found: User | undefined
    for (const { digest, user } of known) if (timingSafeEqual(digest, given)) found = user
    return found
  }
}

function byFunction(verify: NonNullable<AuthOptions['verify']>): Way {
  return async (token, request) => {
    const said = await verify(token, request)
    if (said === undefined || said === null) return undefined
    const user = userFrom(said, 'what verify gives')
    if (user.expiresAt !== undefined && user.expiresAt * 1_000 <= Date.now()) throw new Unproven('expired')
    return user
  }
}

function byJwt(options: JwtOptions, report: (error: Error) => void): Way {
  const { issuer, audience, clockTolerance = 5, typ, subjectClaim = 'sub', scopeClaim } = options
  const keys = keysOf(options, report)
  const checks = {
    issuer,
    audience: [audience].flat() as string[],
    algorithms: algorithmsOf(options),
    // Not among the claims that are required: a claim of any name may be the subject.
    requiredClaims: ['exp'],
    clockTolerance,
    typ,
  }
  return async (token) => {
    if (!/^[\w-]+\.[\w-]+\.[\w-]+$/.test(token)) return undefined
    try {
      const { payload } = await jwtVerify(token, keys, checks)
      const id = Object.hasOwn(payload, subjectClaim) ? payload[subjectClaim] : undefined
      if (typeof id !== 'string' || id === '') return undefined
      return frozen({ id, scopes: scopesIn(payload, scopeClaim), claims: payload, expiresAt: payload.exp })
    } catch (error) {
      if (error instanceof errors.JWTExpired) throw new Unproven('expired')
      if (error instanceof errors.JOSEError) return undefined
      throw error
    }
  }
}

/** A string with spaces (RFC 8693, section 4.2), or an array. What is no scope is left out. */
function scopesIn(payload: JWTPayload, claim?: string): string[] {
  const name = claim ?? (Object.hasOwn(payload, 'scope') ? 'scope' : 'scp')
  const said = Object.hasOwn(payload, name) ? payload[name] : undefined
  const words: unknown[] = typeof said === 'string' ? said.split(' ') : Array.isArray(said) ? said : []
  return words.filter((it) => typeof it === 'string' && SCOPE.test(it)) as string[]
}

/** `jose` takes no key that a token itself brings or names (`jwk`, `jku`, `x5c`, `x5u`). */
function keysOf({ jwksUri, jwks, secret, ...rest }: JwtOptions, report: (error: Error) => void): JWTVerifyGetKey {
  if (jwks) return createLocalJWKSet(jwks as unknown as JSONWebKeySet)
  const bytes = Buffer.from(secret ?? '')
  return jwksUri === undefined ? () => bytes : remoteKeys(new URL(jwksUri), rest, report)
}

/** An endpoint that fails is left alone for a while, as is one that has just been asked. */
function remoteKeys(
  url: URL,
  { cooldown, timeout, maxAge }: Pick<JwtOptions, 'cooldown' | 'timeout' | 'maxAge'>,
  report: (error: Error) => void,
) {
  let resume = 0
  return createRemoteJWKSet(url, {
    cooldownDuration: cooldown,
    timeoutDuration: timeout,
    cacheMaxAge: maxAge,
    async [customFetch](address, init) {
      if (performance.now() < resume) throw new Unproven('unavailable')
      try {
        return await fetchedKeys(address, init)
      } catch (error) {
        resume = performance.now() + Math.min(cooldown ?? Number.POSITIVE_INFINITY, RETRY_AFTER * 1_000)
        report(new Error(`auth: the keys at ${url.origin} could not be fetched: ${reasonOf(error as Error)}`))
        throw new Unproven('unavailable')
      }
    },
  })
}

async function fetchedKeys(url: string, init: RequestInit): Promise<Response> {
  const response = await fetch(url, init)
  if (response.status !== 200) {
    await response.body?.cancel()
    throw new Error(`expected status 200, got ${response.status}`)
  }
  const parts: Uint8Array[] = []
  let size = 0
  for await (const part of response.body ?? []) {
    size += part.length
    if (size > MAX_JWKS_BYTES) throw new Error(`expected at most ${MAX_JWKS_BYTES} bytes`)
    parts.push(part)
  }
  const text = Buffer.concat(parts).toString()
  createLocalJWKSet(jsonOf(text))
  return new Response(text)
}

function jsonOf(text: string): JSONWebKeySet {
  try {
    return JSON.parse(text)
  } catch {
    // The error of `JSON.parse` quotes what it read.
    throw new Error('expected JSON')
  }
}

function reasonOf({ message, name, cause }: Error): string {
  if (name === 'TimeoutError') return 'it took too long'
  return (cause as NodeJS.ErrnoException | undefined)?.code ?? message
}

// --- options ------------------------------------------------------------------------------------------------

function settled(options: AuthOptions) {
  const { tokens = [], apiKeys = [], jwt, verify, local, apiKeyHeader = 'x-api-key' } = options
  if (tokens.length + apiKeys.length === 0 && !jwt && !verify && !local) {
    throw expected('tokens, apiKeys, jwt, verify or local', 'none of them')
  }
  const { report, start } = reporter()
  const scopes = scopesOf('scopes', options.scopes)
  const resource = options.resource && metadataOf(options.resource)
  const ways: Way[] = []
  if (tokens.length > 0) ways.push(byDigest(distinct('tokens', tokens.map(knownToken))))
  if (apiKeys.length > 0) ways.push(byDigest(distinct('apiKeys', apiKeys.map(knownKey))))
  if (jwt) ways.push(byJwt(checkedJwt(jwt), report))
  if (verify !== undefined && typeof verify !== 'function') throw expected('verify to be a function', typeof verify)
  if (verify) ways.push(byFunction(verify))
  return {
    scopes,
    ways,
    start,
    local: local && userFrom(local, 'local'),
    apiKeyHeader: apiKeys.length > 0 ? keyHeaderOf(apiKeyHeader) : undefined,
    challenge: challenger(scopes, resource?.address),
    respond: (request: AdmitRequest) => resource && answered(request, resource),
  }
}

/** Tells the application, where it serves; else stderr. */
function reporter() {
  let app: Application | undefined
  return {
    start: (it: Application) => {
      app = it
    },
    report(error: Error) {
      if (app && app.listenerCount('error') > 0) app.emit('error', error)
      else process.stderr.write(`open-mcp-proxy: ${error.message}\n`)
    },
  }
}

/** Says in `WWW-Authenticate` what is needed. No value can hold a quote, a backslash or a line's end. */
function challenger(scopes: readonly string[], metadata: string | undefined) {
  return (status: number, params: Record<string, string>): Admission => {
    const isScope = status === 401 || status === 403
    const all = {
      ...params,
      ...(isScope && scopes.length > 0 && { scope: scopes.join(' ') }),
      ...(metadata !== undefined && { resource_metadata: metadata }),
    }
    const text = Object.entries(all).map(([name, value]) => `${name}="${value}"`)
    return { status, headers: { 'www-authenticate': ['Bearer', text.join(', ')].join(' ').trimEnd() } }
  }
}

interface Metadata {
  /** The URL of the document. */
  readonly address: string
  readonly paths: readonly string[]
  readonly body: string
}

/** RFC 9728, sections 2 and 3. */
function metadataOf({ url, authorizationServers, scopesSupported, name, documentation }: ResourceOptions): Metadata {
  const { origin, pathname, search, hash } = secureUrl('resource.url', url)
  if (search !== '' || hash !== '') throw expected('resource.url without query and fragment', 'one with')
  if (!Array.isArray(authorizationServers) || authorizationServers.length === 0) {
    throw expected('resource.authorizationServers to have a URL', 'none')
  }
  for (const it of authorizationServers) secureUrl('resource.authorizationServers', it)
  const path = WELL_KNOWN + pathname.replace(/\/$/, '')
  const body = JSON.stringify({
    resource: url,
    authorization_servers: authorizationServers,
    scopes_supported: scopesSupported && scopesOf('resource.scopesSupported', scopesSupported),
    bearer_methods_supported: ['header'],
    resource_name: name,
    resource_documentation: documentation,
  })
  return { address: origin + path, paths: [path, WELL_KNOWN], body }
}

function answered({ method, url }: AdmitRequest, { paths, body }: Metadata): HttpAnswer | undefined {
  if (!paths.includes(url.split('?', 1)[0]!)) return undefined
  if (method !== 'GET' && method !== 'HEAD') return { status: 405, headers: { allow: 'GET, HEAD' } }
  return { status: 200, headers: { 'content-type': 'application/json' }, body }
}

function knownToken({ token, ...identity }: TokenOptions, at: number) {
  if (typeof token !== 'string' || !isVisible(token)) {
    throw expected(`tokens[${at}].token to be visible ASCII without spaces`, 'something else')
  }
  return { digest: digestOf(token), user: userFrom(identity, `tokens[${at}]`) }
}

function knownKey({ hash, ...identity }: ApiKeyOptions, at: number) {
  if (typeof hash !== 'string' || !/^[\da-f]{64}$/i.test(hash)) {
    throw expected(`apiKeys[${at}].hash to be a SHA-256 of 64 hexadecimal digits`, 'something else')
  }
  return { digest: Buffer.from(hash, 'hex'), user: userFrom(identity, `apiKeys[${at}]`) }
}

function distinct<T extends { digest: Buffer }>(name: string, all: T[]): T[] {
  if (new Set(all.map(({ digest }) => digest.toString('hex'))).size === all.length) return all
  throw expected(`${name} to be different ones`, 'one of them twice')
}

function keyHeaderOf(name: string): string {
  const known = String(name).toLowerCase()
  // These have a meaning of their own, or more than one value.
  if (/^[a-z\d-]+$/.test(known) && !/^(?:authorization|cookie|set-cookie|host|mcp-.*)$/.test(known)) return known
  throw expected('apiKeyHeader to be the name of a header for it alone', JSON.stringify(name))
}

function checkedJwt(jwt: JwtOptions): JwtOptions {
  const { issuer, audience, jwksUri, jwks, secret } = jwt
  if (!isText(issuer)) throw expected('jwt.issuer to be a string', typeof issuer)
  const audiences: unknown[] = [audience].flat()
  if (audiences.length === 0 || !audiences.every(isText)) {
    throw expected('jwt.audience to be what tokens for us say in aud', JSON.stringify(audience) ?? 'nothing')
  }
  if ([jwksUri, jwks, secret].filter((it) => it !== undefined).length !== 1) {
    throw expected('one of jwt.jwksUri, jwt.jwks and jwt.secret', 'none or several')
  }
  if (jwksUri !== undefined) secureUrl('jwt.jwksUri', jwksUri)
  if (jwks !== undefined) checkKeys(jwks)
  for (const name of ['cooldown', 'timeout', 'maxAge', 'clockTolerance'] as const) {
    const value: unknown = jwt[name] ?? 0
    if (!(Number.isInteger(value) && (value as number) >= 0)) {
      throw expected(`jwt.${name} to be a whole number from 0`, JSON.stringify(value) ?? typeof value)
    }
  }
  for (const name of ['scopeClaim', 'subjectClaim', 'typ'] as const) {
    if (jwt[name] !== undefined && !isText(jwt[name])) throw expected(`jwt.${name} to be a string`, typeof jwt[name])
  }
  return jwt
}

function checkKeys(jwks: NonNullable<JwtOptions['jwks']>): void {
  const keys: unknown = jwks?.keys
  const isPublic = (key: unknown) => isObject(key) && !Object.hasOwn(key, 'd') && !Object.hasOwn(key, 'k')
  if (Array.isArray(keys) && keys.length > 0 && keys.every(isPublic)) return
  throw expected('jwt.jwks to be { keys } with public keys', 'something else')
}

/** Never both kinds: whoever has a public key could sign with it as with a secret. */
function algorithmsOf({ algorithms, secret }: JwtOptions): string[] {
  const possible = secret === undefined ? ASYMMETRIC : SYMMETRIC
  const taken = [...(algorithms ?? (secret === undefined ? ASYMMETRIC : ['HS256']))]
  if (taken.length === 0 || !taken.every((it) => possible.includes(it))) {
    throw expected(`jwt.algorithms to be of ${possible.join(', ')}`, JSON.stringify(taken))
  }
  if (secret === undefined) return taken
  const least = Math.max(...taken.map((it) => Number(it.slice(2)) / 8))
  const size = typeof secret === 'string' ? Buffer.byteLength(secret) : 0
  if (size < least) throw expected(`jwt.secret to have at least ${least} bytes`, String(size))
  return taken
}

function scopesOf(name: string, scopes: readonly string[] = []): readonly string[] {
  if (Array.isArray(scopes) && scopes.every((it) => typeof it === 'string' && SCOPE.test(it))) return [...scopes]
  throw expected(`${name} to be words of visible ASCII without quote and backslash`, 'something else')
}

function userFrom({ id, scopes, claims, expiresAt }: Identity & Partial<User>, name = 'a user'): User {
  if (!isText(id)) throw expected(`${name} to have an id`, typeof id)
  if (expiresAt !== undefined && !Number.isFinite(expiresAt)) {
    throw expected(`${name} to have expiresAt in seconds`, typeof expiresAt)
  }
  return frozen({ id, scopes: scopesOf(`the scopes of ${name}`, scopes), claims, expiresAt })
}

function frozen({ id, scopes, claims, expiresAt }: User): User {
  const user: { -readonly [Name in keyof User]: User[Name] } = { id, scopes: Object.freeze([...scopes]) }
  if (claims !== undefined) user.claims = Object.freeze({ ...claims })
  if (expiresAt !== undefined) user.expiresAt = expiresAt
  return Object.freeze(user)
}

/** Tokens and keys travel in the clear: only on this machine may that be without TLS. */
function secureUrl(name: string, text: string): URL {
  const url = typeof text === 'string' && URL.canParse(text) ? new URL(text) : undefined
  const isHere = url?.protocol === 'http:' && ['localhost', '127.0.0.1', '[::1]'].includes(url.hostname)
  if (url && (url.protocol === 'https:' || isHere) && url.username + url.password === '') return url
  throw expected(`${name} to be a URL with https, or http on this machine`, 'something else')
}

function expected(what: string, got: string): TypeError {
  return new TypeError(`auth: expected ${what}, got ${got}`)
}

function digestOf(token: string): Buffer {
  return createHash('sha256').update(token).digest()
}

function hasAll(user: User, scopes: readonly string[]): boolean {
  return scopes.every((it) => user.scopes.includes(it))
}

function isVisible(text: string): boolean {
  return /^[\x21-\x7e]+$/.test(text)
}

function isText(value: unknown): value is string {
  return typeof value === 'string' && value !== ''
}

function isObject(value: unknown): value is object {
  return typeof value === 'object' && value !== null
}
