import { type Context, define, glob, hasTwins, isAlike, type Middleware, type Next, RpcError } from 'open-mcp-proxy'

/**
 * Patterns, or a function, of the names that the server gives to its tools. In a pattern `*` is any text and `?` any
 * character, `/`, `.` and `-` among them; `{a,b}` is a or b, and `\` takes the next character as it is. Case counts.
 */
export type ToolPattern = readonly string[] | ((name: string) => boolean)

export interface ToolFilterOptions {
  /** The tools that a client sees. @default all */
  allow?: ToolPattern
  /** The tools that it does not see, even where `allow` names them. @default none */
  deny?: ToolPattern
  /** New names: the server's name, and the client's. */
  rename?: Record<string, string>
  /** Stands before every name that a client sees, also before those of `rename`. @default '' */
  prefix?: string
  /**
   * New descriptions by the server's name of a tool, or a function that makes them; what gives undefined leaves the
   * description as it is.
   */
  describe?: Record<string, string> | ((name: string, description: string | undefined) => string | undefined)
}

/** What each side calls the tools that there are for it. One is the inverse of the other. */
interface Names {
  /** undefined for a tool that is hidden. */
  toClient(name: string): string | undefined
  /** undefined for a name that no client was shown. */
  toServer(name: string): string | undefined
}

/** Of a tool that a server does not have (2024-11-05 to 2026-07-28, server/tools, "Error Handling"). */
const INVALID_PARAMS = -32602

/**
 * What tools of a server a client sees, and under which names. A tool that is hidden is one that does not exist: a
 * call of it is answered with -32602 "Unknown tool", as is a name from before a rename, whether or not the server has
 * such a tool. Schemas, titles and annotations stay as they are.
 *
 * A tool whose own name is the new name of another one is hidden, and so is one without a name.
 *
 * @throws `TypeError` where an option is not of its type, two tools would get one name, or there is no such option.
 * @example createProxy().use(toolFilter({ deny: ['*delete*'], rename: { search: 'find' }, prefix: 'files_' }))
 */
export function toolFilter(options: ToolFilterOptions = {}): Middleware {
  refuseUnknown(options)
  const names = namesOf(options)
  const describe = describerOf(options.describe)
  return define({ name: 'toolFilter', role: 'change' }, function toolFilter(ctx, next) {
    if (ctx.from === 'server') {
      return ctx.kind === 'response' && ctx.method === 'tools/list' ? onList(ctx, next, names, describe) : next()
    }
    return ctx.kind !== 'response' && ctx.method === 'tools/call' ? onCall(ctx, next, names) : next()
  })
}

function onCall(ctx: Context, next: Next, names: Names): unknown {
  // Not `ctx.name`, which is the `uri` of a call whose `name` is no string.
  const asked = ctx.params?.name
  const name = typeof asked === 'string' ? names.toServer(asked) : undefined
  if (name === undefined) {
    if (ctx.kind === 'notification') return ctx.drop()
    throw new RpcError(INVALID_PARAMS, typeof asked === 'string' ? `Unknown tool: ${asked}` : 'Unknown tool')
  }
  if (name !== asked) (ctx.params as Record<string, unknown>).name = name
  return next()
}

function onList(ctx: Context, next: Next, names: Names, describe: Describe): unknown {
  const { result } = ctx
  if (!isObject(result)) return next()
  removeLikesOf('tools', result)
  if (Array.isArray(result.tools)) {
    const shown = result.tools.filter((tool) => show(tool, names, describe))
    if (shown.length < result.tools.length) result.tools = shown
  }
  // What was not changed would leave with both of its twins. Written anew, it is what was decided on.
  return hasTwins(ctx.text, 'result', 'tools', 'name') ? ctx.reply(result) : next()
}

/** Makes a tool what the client shall see; false where that is nothing. */
function show(tool: unknown, names: Names, describe: Describe): boolean {
  if (!isObject(tool) || typeof tool.name !== 'string') return false
  const { name, description } = tool
  const shown = names.toClient(name)
  if (shown === undefined) return false
  removeLikesOf('name', tool)
  tool.name = shown
  const described = describe(name, typeof description === 'string' ? description : undefined)
  if (described !== undefined) tool.description = described
  return true
}

function namesOf({ allow, deny, rename = {}, prefix = '' }: ToolFilterOptions): Names {
  const renamed = textsOf('rename', rename)
  if (typeof prefix !== 'string') throw unexpected('prefix to be a string', prefix)
  const isAllowed = allow === undefined ? () => true : matcherOf('allow', allow)
  const isDenied = deny === undefined ? () => false : matcherOf('deny', deny)
  const origins = new Map<string, string>()
  for (const [name, renaming] of renamed) {
    const other = origins.get(renaming)
    if (renaming === '') throw unexpected(`rename ${JSON.stringify(name)} to give a name`, renaming)
    if (other !== undefined) {
      const both = `${JSON.stringify(other)} and ${JSON.stringify(name)}`
      throw new TypeError(`toolFilter: expected rename to give each tool its own name, got one for ${both}`)
    }
    origins.set(renaming, name)
  }
  const toServer = (shown: string) => {
    if (!shown.startsWith(prefix)) return undefined
    const own = shown.slice(prefix.length)
    const name = origins.get(own) ?? (renamed.has(own) ? undefined : own)
    return name !== undefined && isAllowed(name) && !isDenied(name) ? name : undefined
  }
  return {
    toServer,
    toClient(name) {
      const shown = prefix + (renamed.get(name) ?? name)
      // Its own name may be the new one of another tool.
      return toServer(shown) === name ? shown : undefined
    },
  }
}

function matcherOf(option: 'allow' | 'deny', pattern: ToolPattern): (name: string) => boolean {
  if (typeof pattern === 'function') {
    return (name) => {
      const answer: unknown = pattern(name)
      // A promise is no answer, and no tool may be shown for it.
      if (typeof answer !== 'boolean') throw unexpected(`${option} to return a boolean`, answer)
      return answer
    }
  }
  if (!Array.isArray(pattern)) throw unexpected(`${option} to be an array of patterns or a function`, pattern)
  try {
    return glob(...pattern)
  } catch (error) {
    throw new TypeError(`toolFilter: ${(error as Error).message.replace(/^expected/, `expected ${option} to have`)}`)
  }
}

type Describe = (name: string, description: string | undefined) => string | undefined

function describerOf(describe: ToolFilterOptions['describe'] = {}): Describe {
  if (typeof describe === 'function') {
    return (name, description) => {
      const text: unknown = describe(name, description)
      if (text === undefined || typeof text === 'string') return text
      throw unexpected('describe to return a string or undefined', text)
    }
  }
  const descriptions = textsOf('describe', describe)
  return (name) => descriptions.get(name)
}

/** A map, since a tool may be called `__proto__`. */
function textsOf(option: 'rename' | 'describe', texts: Record<string, string>): Map<string, string> {
  if (!isObject(texts)) throw unexpected(`${option} to be an object`, texts)
  const entries = Object.entries(texts)
  for (const [name, text] of entries) {
    if (typeof text !== 'string') throw unexpected(`${option} ${JSON.stringify(name)} to be a string`, text)
  }
  return new Map(entries)
}

const KNOWN = new Set(['allow', 'deny', 'rename', 'prefix', 'describe'])

/** An option with a mistake in its name would leave everything open. */
function refuseUnknown(options: ToolFilterOptions): void {
  if (!isObject(options)) throw unexpected('options to be an object', options)
  const unknown = Object.keys(options).find((name) => !KNOWN.has(name))
  if (unknown !== undefined) throw unexpected(`one of ${[...KNOWN].join(', ')}`, unknown)
}

function unexpected(expected: string, got: unknown): TypeError {
  const isPlain = got === null || ['string', 'number', 'boolean'].includes(typeof got)
  return new TypeError(`toolFilter: expected ${expected}, got ${isPlain ? JSON.stringify(got) : typeof got}`)
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/** What some parser takes for the member that was decided on. */
function removeLikesOf(name: 'tools' | 'name', value: Record<string, unknown>): void {
  for (const key of Object.keys(value)) if (isAlike(key, name)) delete value[key]
}
