import querystring from 'node:querystring'
import { LONGEST_TIMER } from './rest.js'
import { isHeaderName, isHeaderValue } from './upstream/fields.js'

/** An argument of the command that cannot be taken: its text says what was expected and what came. */
export class UsageError extends Error {
  override readonly name = 'UsageError'
}

export type Variables = Readonly<Record<string, string | undefined>>

export interface ExpandOptions {
  /** A `$` that no name follows stays as it is. @default false */
  lenient?: boolean
  /** Told of each value that was put in. */
  onValue?: (value: string) => void
}

/** Puts `$NAME` and `${NAME}` in from the environment; `$$` is a literal `$`. Only a variable's name is shown. */
export function expand(text: string, env: Variables, { lenient = false, onValue }: ExpandOptions = {}): string {
  return text.replace(/\$(?:\$|\{([^}]*)\}|([A-Za-z_]\w*)|)/g, (found, braced?: string, bare?: string) => {
    if (found === '$$') return '$'
    const name = braced ?? bare ?? ''
    if (!/^[A-Za-z_]\w*$/.test(name)) {
      if (lenient) return found
      throw new UsageError('expected a variable as $NAME, or $$ for a literal $, got a "$" with no name after it')
    }
    const value = Object.hasOwn(env, name) ? env[name] : undefined
    if (value !== undefined) {
      onValue?.(value)
      return value
    }
    throw new UsageError(`expected the environment variable ${name}, it is not set ($$ is a literal $)`)
  })
}

/** `Name: value`, with variables. The value may be secret: no error shows it. */
export function parseHeader(text: string, env: Variables): [name: string, value: string] {
  const colon = text.indexOf(':')
  if (colon < 1) throw new UsageError(`--header: expected 'Name: value', got ${colon === 0 ? 'no name' : 'no colon'}`)
  const name = checkedName('--header', text.slice(0, colon).trim())
  let value: string
  try {
    value = expand(text.slice(colon + 1).trim(), env)
  } catch (error) {
    throw new UsageError(`--header ${name}: ${(error as UsageError).message}`)
  }
  return [name, checkedValue('--header', name, value)]
}

/** `k=v,k2=v2`; a value may hold `=`, but no comma. Values may be secret: no error shows one. */
export function parseHeaders(text: string): [name: string, value: string][] {
  const pairs = text.split(',').filter((pair) => pair.trim() !== '')
  return pairs.map((pair, index) => {
    const equals = pair.indexOf('=')
    if (equals < 1) {
      const got = `pair ${index + 1} has no ${equals === 0 ? 'name' : '"="'}`
      throw new UsageError(`--headers: expected name=value,name2=value2, ${got} (a value with a comma: --header)`)
    }
    const name = checkedName('--headers', pair.slice(0, equals).trim())
    return [name, checkedValue('--headers', name, pair.slice(equals + 1).trim())]
  })
}

/** What is no name may be part of a value that was written without one: it is not shown. */
function checkedName(option: string, name: string): string {
  if (isHeaderName(name)) return name
  throw new UsageError(`${option}: expected a header name, got one with a character that no header name may have`)
}

function checkedValue(option: string, name: string, value: string): string {
  if (isHeaderValue(value)) return value
  throw new UsageError(`${option} ${name}: expected a value of visible Latin-1 characters, got one with another`)
}

/** Seconds, with fractions; the result is milliseconds. Node fires a longer timer than 2^31-1 ms at once. */
export function parseSeconds(option: string, text: string, { zero = false } = {}): number {
  const milliseconds = Math.round(Number(text) * 1000)
  if (text.trim() === '' || !(milliseconds > 0 || (zero && milliseconds === 0)) || milliseconds > LONGEST_TIMER) {
    throw new UsageError(`${option}: expected seconds (${zero ? '0' : 'above 0'} to 2147483), got "${text}"`)
  }
  return milliseconds
}

/** `NAME=VALUE`. The value may be secret: no error shows it. */
export function parseVariable(text: string): [name: string, value: string] {
  const equals = text.indexOf('=')
  if (equals < 1) throw new UsageError(`--env: expected NAME=VALUE, got no ${equals === 0 ? 'name' : '"="'}`)
  return [text.slice(0, equals), text.slice(equals + 1)]
}

/** `PORT` or `HOST:PORT`; an IPv6 host stands in brackets. Port 0 takes a free one. */
export function parseListen(text: string, label = '--listen'): { host?: string; port: number } {
  const [, host, digits = ''] = /^(?:(\[[^\]]+\]|[^:[\]]+):)?(\d{1,5})$/.exec(text) ?? []
  const port = Number(digits)
  if (digits === '' || port > 65_535) {
    throw new UsageError(`${label}: expected PORT or HOST:PORT, with a port from 0 to 65535, got "${text}"`)
  }
  return host === undefined ? { port } : { host: host.replace(/^\[|\]$/g, ''), port }
}

/** A whole number above 0. */
export function parseCount(option: string, text: string): number {
  if (/^[1-9]\d{0,8}$/.test(text)) return Number(text)
  throw new UsageError(`${option}: expected a whole number above 0, got "${text}"`)
}

/** Some http: or https: URL. It may hold credentials: no error shows it. */
export function parseUrl(text: string, label = '--url'): URL {
  if (!URL.canParse(text)) throw new UsageError(`${label}: expected an http: or https: URL, got no URL`)
  const url = new URL(text)
  if (url.protocol === 'http:' || url.protocol === 'https:') return url
  throw new UsageError(`${label}: expected an http: or https: URL, got one with ${url.protocol}`)
}

/** How a server is reached that the command line names, and what must not be told of it. */
export interface UrlFlags {
  url?: string
  header?: readonly string[]
  headers?: readonly string[]
  /** Seconds. */
  timeout: string
  /** Seconds. */
  sseReadTimeout: string
}

export function parseServer(flags: UrlFlags, env: Variables) {
  const { url: text, header = [], headers: pairs = [] } = flags
  if (text === undefined) throw new UsageError('expected --url URL, got none')
  const sent = [...pairs.flatMap((it) => parseHeaders(it)), ...header.map((it) => parseHeader(it, env))]
  const headers: Record<string, string> = Object.fromEntries(sent)
  const url = parseUrl(text)
  const timeout = parseSeconds('--timeout', flags.timeout)
  const sseReadTimeout = parseSeconds('--sse-read-timeout', flags.sseReadTimeout, { zero: true })
  return { url, headers, timeout, sseReadTimeout }
}

/** A shorter text is left alone: it would take words out of the log that have nothing to do with it. */
const SECRET_LENGTH = 6

/** What must not be told, longest first: whole headers, the token after a scheme, a URL's credentials and query, ours. */
export function secretsOf(headers: Readonly<Record<string, string>>, url?: URL, token = ''): string[] {
  const values = Object.values(headers)
  const found = [token, ...values, ...values.map((value) => value.replace(/^\S+\s+/, ''))]
  found.push(...(url?.searchParams.values() ?? []))
  for (const credential of [url?.username, url?.password]) {
    if (credential) found.push(credential, querystring.unescape(credential))
  }
  return longestFirst(found)
}

/** What must not be told, in the order in which it is to be looked for. */
export function longestFirst(secrets: readonly string[]): string[] {
  const long = secrets.filter((secret) => secret.length >= SECRET_LENGTH)
  return [...new Set(long)].sort((a, b) => b.length - a.length)
}
