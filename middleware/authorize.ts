import {
  type Context,
  define,
  glob,
  hasTwins,
  isAlike,
  type Middleware,
  type Next,
  proxyError,
  type Session,
} from 'open-mcp-proxy'

/** Who asks. */
export interface AuthorizeUser {
  readonly id: string
  /** What the user's token allows. */
  readonly scopes?: readonly string[]
}

/** A question to the policy: may this user see (`list`) or use (`use`) what has this name? */
export interface AuthorizeRequest {
  /** What `auth` left in `ctx.state.user`, else `{ id: ctx.session.principal }`; undefined where nobody is known. */
  readonly user?: AuthorizeUser
  /** Of the session: whom a listener authenticated. */
  readonly principal?: string
  readonly kind: 'tool' | 'prompt' | 'resource'
  /** The tool's or prompt's name, the resource's URI or the template's text, each in one of the ways it can be read. */
  readonly name: string
  readonly action: 'list' | 'use'
  /** The message at hand: a request, the response with a list, or a notification. */
  readonly ctx: Context
}

/** Only `true` allows. */
export type AuthorizeDecision = (request: AuthorizeRequest) => boolean | Promise<boolean>

/**
 * A line of a policy. It matches where the user matches and one of the patterns for that kind does. In a pattern `*` is
 * any characters, also none and also `/`; `?` is any one character; `{a,b}` is a or b; `\` takes the next character as it
 * is. All else stands for itself, but `[ ] ( ) |` and a `!` at the beginning, which other globs know, want a `\`. Case
 * matters.
 */
export interface AuthorizeRule {
  /** @default 'allow' */
  effect?: 'allow' | 'deny'
  /** Patterns for the user's id; `*` is anybody who is known. Without it: everybody, also who is not known. */
  users?: string[]
  /** The user has all of them. Without it: none is needed. */
  scopes?: string[]
  /** Patterns for names of tools. One of `tools`, `prompts` and `resources` there must be. */
  tools?: string[]
  /** Patterns for names of prompts. */
  prompts?: string[]
  /** Patterns for URIs of resources and for the texts of URI templates. */
  resources?: string[]
}

export interface AuthorizeOptions {
  /** The first that matches decides. */
  rules: AuthorizeRule[]
  /** What is decided where no rule matches. @default 'deny' */
  default?: 'allow' | 'deny'
}

type Kind = AuthorizeRequest['kind']
type Question = Omit<AuthorizeRequest, 'name'> & { name: unknown }

interface Policy {
  /** Whether it may decide differently for another user. */
  readonly personal: boolean
  readonly decide: AuthorizeDecision
}

/**
 * Decides who may use which tool, prompt and resource. What is denied is missing in `tools/list`, `prompts/list`,
 * `resources/list` and `resources/templates/list`, and refused with -31006 in `tools/call`, `prompts/get`,
 * `resources/read`, `resources/subscribe`, `completion/complete` and `subscriptions/listen` (the whole request, if one of
 * its `resourceSubscriptions` is denied); `notifications/resources/updated` of a denied resource is dropped. Skills and
 * directories (SEP-2640) are resources. A call that names nothing is refused, and so is a name of more than 2,048
 * characters. All other methods pass.
 *
 * The name is the one at this place of the line: a middleware before it may have renamed the client's, one behind it may
 * rename it yet. Names of tools and prompts are compared character by character. A URI is judged in every way that a
 * server might read it (as written, percent-decoded, as a browser normalises it, without `..`, …), and each must be
 * allowed (there may be 64, of a long one 32). A pattern without `*`, `?` and `{` stands for all of them; one with some must match them:
 * `file:///docs/a b*` and `file:///docs/a%20b*` are `file:///docs/a{ ,%20}b*`.
 *
 * A list that depends on the user is no longer `cacheScope: "public"` (2026-07-28, server/utilities/caching), and neither
 * is a resource that was read.
 *
 * @param policy rules as plain data, of which the first that matches decides; or a function. What it throws fails the
 * request (-32603 unless it is an `RpcError`), or the whole list.
 * @throws `TypeError` where the options or a pattern are not what they should be.
 * @example
 * createProxy().use(auth(…), authorize({
 *   rules: [
 *     { effect: 'deny', tools: ['delete_*'] },
 *     { users: ['ada'], tools: ['*'], resources: ['file:///srv/*'] },
 *     { scopes: ['notes:read'], tools: ['{get,list}_notes'] },
 *   ],
 * }))
 */
export function authorize(policy: AuthorizeDecision | AuthorizeOptions): Middleware {
  const known: Policy = typeof policy === 'function' ? { personal: true, decide: policy } : policyOf(policy)
  return define({ name: 'authorize', role: 'authorise' }, function authorize(ctx, next) {
    const { from, kind, method = '' } = ctx
    if (from === 'client') {
      if (kind === 'response') return next()
      const { user } = ctx.state as { user?: unknown }
      if (user !== undefined) lastUser.set(ctx.session, user)
      const namesOf = uses.get(method)
      return namesOf ? use(ctx, next, known, namesOf(ctx)) : next()
    }
    if (kind === 'notification') return method === UPDATED ? announce(ctx, next, known) : next()
    if (kind === 'request') return next()
    const list = lists.get(method)
    if (list) return ctx.error ? next() : filter(ctx, next, known, list)
    return reads.has(method) && known.personal && ctx.session.era === 'modern' ? keep(ctx, next) : next()
  })
}

const UPDATED = 'notifications/resources/updated'
/** Longer names are denied. */
const LONGEST = 2_048
/** A URI that can be read in more ways is denied. */
const MOST_READINGS = 64
/** In all of them: of one with 2,000 there may be 32. */
const MOST_CHARACTERS = 1 << 16

/** Who sent the newest request of a session: a notification of the server's has no user of its own. */
const lastUser = new WeakMap<Session, unknown>()

interface List {
  readonly kind: Kind
  /** The member of the result that holds it, and the one of each element that names it. */
  readonly member: string
  readonly name: string
}

const lists = new Map<string, List>([
  ['tools/list', { kind: 'tool', member: 'tools', name: 'name' }],
  ['prompts/list', { kind: 'prompt', member: 'prompts', name: 'name' }],
  ['resources/list', { kind: 'resource', member: 'resources', name: 'uri' }],
  ['resources/templates/list', { kind: 'resource', member: 'resourceTemplates', name: 'uriTemplate' }],
  ['resources/directory/read', { kind: 'resource', member: 'resources', name: 'uri' }],
  ['skills/list', { kind: 'resource', member: 'skills', name: 'uri' }],
])

/** Whose results are the same resource for everybody, or not. */
const reads = new Set(['resources/read', 'skills/get'])

type Names = [Kind, unknown][]

const resourceOf = (ctx: Context): Names => [['resource', memberOf(ctx.params, 'uri')]]

/** What a message of a client names; the methods of SEP-2640 (skills) included. */
const uses = new Map<string, (ctx: Context) => Names>([
  ['tools/call', (ctx) => [['tool', toolOf(ctx)]]],
  ['prompts/get', (ctx) => [['prompt', memberOf(ctx.params, 'name')]]],
  ['resources/read', resourceOf],
  ['resources/subscribe', subscriptionOf],
  ['resources/directory/read', resourceOf],
  ['skills/get', resourceOf],
  ['completion/complete', referenceOf],
  ['subscriptions/listen', subscriptionsOf],
])

/** `ctx.name` would be a `uri` where there is no `name` that is a string: only without one the call needs no parsing. */
function toolOf(ctx: Context): unknown {
  return /"uri"|\\u/.test(ctx.raw) ? memberOf(ctx.params, 'name') : ctx.name
}

/** 2026-07-28 has no such method, and it is for the server to say so (basic/transports: 404, -32601). */
function subscriptionOf(ctx: Context): Names {
  const names = resourceOf(ctx)
  return ctx.session.era === 'modern' && names[0]?.[1] === undefined ? [] : names
}

function referenceOf(ctx: Context): Names {
  const ref = unambiguous(ctx, 'ref')
  const [type, name, uri] = ['type', 'name', 'uri'].map((key) => unambiguous(ctx, 'ref', key))
  const found: Names = []
  if (type === 'ref/prompt' || name !== undefined) found.push(['prompt', name])
  if (type === 'ref/resource' || uri !== undefined) found.push(['resource', uri])
  return ref !== undefined && found.length > 0 ? found : [['prompt', undefined]]
}

function subscriptionsOf(ctx: Context): Names {
  const asked = unambiguous(ctx, 'notifications')
  if (Array.isArray(asked)) return [['resource', undefined]]
  const uris = asked && unambiguous(ctx, 'notifications', 'resourceSubscriptions')
  if (uris === undefined) return []
  return Array.isArray(uris) ? uris.map((uri) => ['resource', uri]) : [['resource', undefined]]
}

/** What stands at a path in `params`, where all parsers read it alike. Of `name` and `uri` there the proxy has made sure. */
function unambiguous(ctx: Context, ...path: readonly string[]): unknown {
  const key = path.at(-1) as string
  const around = path.slice(0, -1).reduce<unknown>(memberOf, ctx.params)
  if (hasLookalike(around, key) || hasTwins(ctx.text, 'params', ...path)) {
    ctx.throw(-32600, `Invalid request: ambiguous member "${key}"`)
  }
  return memberOf(around, key)
}

async function use(ctx: Context, next: Next, policy: Policy, names: Names): Promise<unknown> {
  for (const [kind, name] of names) {
    if (await permits(policy, { ...asker(ctx, ctx.state), kind, name, action: 'use' })) continue
    if (ctx.kind === 'notification') return ctx.drop()
    throw proxyError('denied', { detail: `no permission to use this ${kind}` })
  }
  return next()
}

async function announce(ctx: Context, next: Next, policy: Policy): Promise<unknown> {
  const user = lastUser.get(ctx.session)
  const name = memberOf(ctx.params, 'uri')
  const permitted = await permits(policy, { ...asker(ctx, { user }), kind: 'resource', name, action: 'use' })
  return permitted ? next() : ctx.drop()
}

async function filter(ctx: Context, next: Next, policy: Policy, { kind, member, name }: List): Promise<unknown> {
  const { result } = ctx
  const elements = memberOf(result, member) ?? []
  if (typeof result !== 'object' || result === null || !Array.isArray(elements)) {
    throw proxyError('upstream_bad_response', { phase: 'sent', detail: `expected ${member} to be an array` })
  }
  const question = { ...asker(ctx, ctx.state), kind, action: 'list' } as const
  const permitted = await Promise.all(
    elements.map((it) => !hasLookalike(it, name) && permits(policy, { ...question, name: memberOf(it, name) })),
  )
  if (permitted.includes(false)) result[member] = elements.filter((_, index) => permitted[index])
  for (const key of Object.keys(result)) if (isAlike(key, member)) delete result[key]
  if (policy.personal) makePrivate(result)
  // Of two members of one name only the last was judged: nothing but what was judged may leave.
  return hasTwins(ctx.text, 'result', member, name) ? ctx.reply(result) : next()
}

function keep(ctx: Context, next: Next): unknown {
  if (ctx.result) makePrivate(ctx.result)
  return next()
}

function makePrivate(result: Record<string, unknown>): void {
  if (memberOf(result, 'cacheScope') !== undefined) result.cacheScope = 'private'
}

function asker(ctx: Context, { user }: { user?: unknown }): Pick<AuthorizeRequest, 'user' | 'principal' | 'ctx'> {
  const { principal } = ctx.session
  if (user === undefined) return { user: principal === undefined ? undefined : { id: principal }, principal, ctx }
  if (isUser(user)) return { user, principal, ctx }
  throw new TypeError('authorize: expected ctx.state.user as { id: string, scopes?: string[] }, got something else')
}

function isUser(user: unknown): user is AuthorizeUser {
  const { id, scopes = [] } = (user ?? {}) as Record<string, unknown>
  return typeof id === 'string' && Array.isArray(scopes) && scopes.every((it) => typeof it === 'string')
}

async function permits({ decide }: Policy, question: Question): Promise<boolean> {
  const { kind, name } = question
  if (typeof name !== 'string' || name.length > LONGEST) return false
  const names = kind === 'resource' ? readings(name) : [name]
  for (const name of names) if ((await decide({ ...question, name })) !== true) return false
  return names.length > 0
}

// --- rules --------------------------------------------------------------------------------------------------

function policyOf(options: AuthorizeOptions): Policy {
  const { rules, default: fallback = 'deny' } = membersOf(options, ['rules', 'default'], 'a function or { rules }')
  if (!Array.isArray(rules)) throw unexpected('rules as an array', rules)
  const allowed = isAllowed(fallback, 'default')
  const known = rules.map((rule, index) => ruleOf(rule, `rules[${index}]`))
  return {
    personal: known.some(({ personal }) => personal),
    decide(request) {
      if ((request.user?.id.length ?? 0) > LONGEST) return false
      return known.find(({ matches }) => matches(request))?.allowed ?? allowed
    },
  }
}

function ruleOf(rule: unknown, at: string) {
  const keys = ['effect', 'users', 'scopes', 'tools', 'prompts', 'resources'] as const
  const { effect = 'allow', users, scopes, tools, prompts, resources } = membersOf(rule, keys, `${at} as an object`)
  if ((tools ?? prompts ?? resources) === undefined) throw unexpected(`${at} with tools, prompts or resources`, rule)
  const isTheirs = users === undefined ? undefined : patterns(users, `${at}.users`)
  const needed = scopes === undefined ? [] : texts(scopes, `${at}.scopes`)
  const kinds: Record<Kind, ((name: string) => boolean) | undefined> = {
    tool: tools === undefined ? undefined : patterns(tools, `${at}.tools`),
    prompt: prompts === undefined ? undefined : patterns(prompts, `${at}.prompts`),
    resource: resources === undefined ? undefined : uriPatterns(resources, `${at}.resources`),
  }
  return {
    allowed: isAllowed(effect, `${at}.effect`),
    personal: isTheirs !== undefined || needed.length > 0,
    matches({ user, kind, name }: AuthorizeRequest): boolean {
      if (isTheirs && !(user && isTheirs(user.id))) return false
      return needed.every((it) => user?.scopes?.includes(it)) && kinds[kind]?.(name) === true
    },
  }
}

function membersOf<K extends string>(value: unknown, keys: readonly K[], what: string): Partial<Record<K, unknown>> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw unexpected(what, value)
  for (const key of Object.keys(value)) {
    if (!keys.includes(key as K)) throw unexpected(`${what.replace(/ as .*/, '')} with ${keys.join(', ')} alone`, key)
  }
  return value
}

function isAllowed(effect: unknown, what: string): boolean {
  if (effect !== 'allow' && effect !== 'deny') throw unexpected(`${what} "allow" or "deny"`, effect)
  return effect === 'allow'
}

function texts(list: unknown, what: string): string[] {
  const isList = Array.isArray(list) && list.length > 0 && list.every((it) => typeof it === 'string')
  if (!isList) throw unexpected(`${what} as an array of at least one string`, list)
  return list
}

function patterns(list: unknown, what: string): (name: string) => boolean {
  try {
    return glob(...texts(list, what))
  } catch (error) {
    const { message } = error as Error
    throw message.startsWith('authorize:')
      ? error
      : new TypeError(`authorize: ${message.replace(/^expected/, `expected ${what} to have`)}`)
  }
}

/** A pattern that is one URI stands for it in every way that it can be read. */
function uriPatterns(list: unknown, what: string): (uri: string) => boolean {
  const fits = patterns(list, what)
  const exact = texts(list, what).filter((it) => !/[*?{}\\]/.test(it))
  const known = new Set(exact.flatMap(readings))
  return (uri) => known.has(uri) || fits(uri)
}

function unexpected(what: string, got: unknown): TypeError {
  return new TypeError(`authorize: expected ${what}, got ${JSON.stringify(got) ?? typeof got}`)
}

// --- readings -----------------------------------------------------------------------------------------------

/** What some server may take a URI for, in one step. */
const readers: ((uri: string) => string)[] = [
  decoded,
  normalised,
  (uri) => uri.replaceAll('\\', '/'),
  // C ends a text at its NUL; browsers and logs leave control characters out.
  (uri) => uri.replace(/\0.*$/s, ''),
  (uri) => uri.replace(/\p{Cc}/gu, '').trim(),
  // RFC 3986, section 6.2.2.1
  (uri) => uri.replace(/^[a-z][a-z\d+.-]*:(?:\/\/[^/?#]*)?/i, (head) => head.toLowerCase()),
  (uri) => uri.replace(/^([^/?#]*:\/\/)[^/?#]*@/, '$1'),
  (uri) => uri.replace(/#.*$/s, ''),
  // A path is all that a file's URI has (RFC 8089).
  (uri) => (/^file:/i.test(uri) ? uri.replace(/[?#].*$/s, '') : uri),
  // Windows leaves them out at the end of a name, DNS at the end of a host's.
  (uri) => uri.replace(/(?<=[^/. ])[. ]+(?=[/?#]|$)/g, ''),
  (uri) => uri.replace(/(?<! ) +(?=[/?#]|$)/g, ''),
  // Some servers take what follows the scheme for a path, host and query included.
  (uri) => walked(uri, /^[^/?#]*:\/\/[^/?#]*/),
  (uri) => walked(uri, /^[^/?#]*:\/*/),
]

/** The URI in all the ways that it can be read; none where there are too many to tell. */
function readings(uri: string): string[] {
  const found = new Set([uri])
  for (const reading of found) {
    for (const read of readers) found.add(read(reading))
    if (found.size > MOST_READINGS || found.size * uri.length > MOST_CHARACTERS) return []
  }
  return [...found]
}

function decoded(uri: string): string {
  return uri.replace(/(?:%[\da-f]{2})+/gi, (bytes) => {
    const byte = bytes.length === 3 ? Number.parseInt(bytes.slice(1), 16) : 0x80
    return byte < 0x80 ? String.fromCharCode(byte) : Buffer.from(bytes.replaceAll('%', ''), 'hex').toString()
  })
}

/** As WHATWG's URL has it; braces, which templates have, stay. */
function normalised(uri: string): string {
  return URL.canParse(uri) ? new URL(uri).href.replace(/%7b/gi, '{').replace(/%7d/gi, '}') : uri
}

/** Without empty segments, `.` and `..` behind a head. */
function walked(uri: string, head: RegExp): string {
  const [start = ''] = head.exec(uri) ?? []
  const rest = uri.slice(start.length)
  const kept: string[] = []
  const segments = rest.split('/')
  for (const segment of segments) {
    if (segment === '..') kept.pop()
    else if (segment !== '.' && segment !== '') kept.push(segment)
  }
  const isFolder = kept.length > 0 && ['', '.', '..'].includes(segments.at(-1) as string)
  return `${start}${rest.startsWith('/') ? '/' : ''}${kept.join('/')}${isFolder ? '/' : ''}`
}

// --- texts that can be read in two ways ---------------------------------------------------------------------

function hasLookalike(value: unknown, name: string): boolean {
  return typeof value === 'object' && value !== null && Object.keys(value).some((key) => isAlike(key, name))
}

function memberOf(value: unknown, key: string): unknown {
  if (typeof value !== 'object' || value === null || !Object.hasOwn(value, key)) return undefined
  return (value as Record<string, unknown>)[key]
}
