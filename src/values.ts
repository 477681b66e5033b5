import { validateHeaderName, validateHeaderValue } from 'node:http'

/** An argument of the command that cannot be taken: its text says what was expected and what came. */
export class UsageError extends Error {
  override readonly name = 'UsageError'
}

type Variables = Readonly<Record<string, string | undefined>>

/** Puts `$NAME` and `${NAME}` in from the environment; `$$` is a literal `$`. */
export function expand(text: string, env: Variables): string {
  return text.replace(/\$(?:\$|\{([^}]*)\}|([A-Za-z_][A-Za-z0-9_]*)|)/g, (found, braced?: string, bare?: string) => {
    if (found === '$$') return '$'
    const name = braced ?? bare
    if (!name || !/^[A-Za-z_]\w*$/.test(name)) {
      throw new UsageError(`expected $NAME, \${NAME} or $$ (for a literal $), got "${found}"`)
    }
    const value = env[name]
    if (value === undefined) throw new UsageError(`expected the environment variable ${name} to be set, it is not`)
    return value
  })
}

/** `Name: value`, with variables. The value may be secret: no error shows it. */
export function parseHeader(text: string, env: Variables): [name: string, value: string] {
  const colon = text.indexOf(':')
  if (colon < 1) throw new UsageError(`--header: expected 'Name: value', got ${colon === 0 ? 'no name' : 'no colon'}`)
  return checkedHeader('--header', text.slice(0, colon).trim(), expand(text.slice(colon + 1).trim(), env))
}

/** `k=v,k2=v2`; a value may hold `=`. */
export function parseHeaders(text: string): [name: string, value: string][] {
  return text
    .split(',')
    .filter((pair) => pair.trim() !== '')
    .map((pair, index) => {
      const equals = pair.indexOf('=')
      if (equals < 1) throw new UsageError(`--headers: expected name=value,name2=value2, pair ${index + 1} has no "="`)
      return checkedHeader('--headers', pair.slice(0, equals).trim(), pair.slice(equals + 1).trim())
    })
}

function checkedHeader(option: string, name: string, value: string): [string, string] {
  try {
    validateHeaderName(name)
  } catch {
    throw new UsageError(`${option}: expected a header name, got ${JSON.stringify(name)}`)
  }
  try {
    validateHeaderValue(name, value)
  } catch {
    throw new UsageError(`${option}: expected a value without control characters for ${name}`)
  }
  return [name, value]
}

/** Seconds, with fractions; the result is milliseconds. Node fires a longer timer than 2^31-1 ms at once. */
export function parseSeconds(option: string, text: string, { zero = false } = {}): number {
  const seconds = Number(text)
  const milliseconds = Math.round(seconds * 1000)
  if (text.trim() === '' || !(milliseconds > 0 || (zero && milliseconds === 0)) || milliseconds > 2 ** 31 - 1) {
    throw new UsageError(`${option}: expected seconds (${zero ? '0' : 'above 0'} to 2147483), got "${text}"`)
  }
  return milliseconds
}

/** `NAME=VALUE`. The value may be secret: no error shows it. */
export function parseVariable(text: string): [name: string, value: string] {
  const equals = text.indexOf('=')
  if (equals < 1) throw new UsageError('--env: expected NAME=VALUE, got no "="')
  return [text.slice(0, equals), text.slice(equals + 1)]
}

/** Some http: or https: URL. It may hold credentials: no error shows it. */
export function parseUrl(text: string): URL {
  if (!URL.canParse(text)) throw new UsageError('--url: expected an http: or https: URL, got something else')
  const url = new URL(text)
  if (url.protocol === 'http:' || url.protocol === 'https:') return url
  throw new UsageError(`--url: expected an http: or https: URL, got one with ${url.protocol}`)
}
