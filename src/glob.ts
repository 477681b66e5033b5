import { createRequire } from 'node:module'

/** How many globs one with braces may stand for. */
const MOST_ALTERNATIVES = 1_000

/** Characters, and what is more than itself. */
type Glob = readonly (string | typeof ONE | typeof ANY)[]
const [ONE, ANY] = [1, 2] as const

/**
 * Makes a test of names out of patterns, of which one must match the whole name. `*` is any characters, also none, `?` any
 * one, `{a,b}` a or b, `\` takes the next character as it is; every other character is itself, `/` and `.` no different
 * from any. Case matters. The time that a test takes grows with the lengths of pattern and name multiplied, whoever
 * wrote them.
 *
 * @throws `TypeError` where a pattern cannot be understood; it may be shown to whoever wrote the patterns
 * @example
 * const isReading = glob('get_*', 'list_*')
 * isReading('get_user') // true
 */
export function glob(...patterns: readonly string[]): (name: string) => boolean {
  const globs = patterns.flatMap(globsOf)
  return (name) => {
    const characters = [...name]
    return globs.some((glob) => fits(glob, characters))
  }
}

/** Where an escaped ASCII character is kept out of the way of whoever reads braces: in a private use plane of Unicode. */
const LITERAL = 0xf0000
const ASCII = 0x80

function globsOf(pattern: string): Glob[] {
  const refuse = (expected: string) => new TypeError(`expected a pattern ${expected}, got ${JSON.stringify(pattern)}`)
  if (typeof pattern !== 'string') throw refuse('that is a string')
  const masked = pattern.replace(/\\(.)/gsu, (_, it: string) => {
    const code = it.codePointAt(0)!
    return code < ASCII ? String.fromCodePoint(LITERAL + code) : it
  })
  // In other globs these are more than themselves: they must not pass for themselves by mistake.
  const [reserved] = /[[\]()|]|^!/.exec(masked) ?? []
  if (reserved !== undefined) throw refuse(`without ${reserved} (\\${reserved} is the character itself)`)
  if (masked.includes('\\')) throw refuse('with a character after each \\')
  if (!isBalanced(masked)) throw refuse('with every { closed (\\{ is the character itself)')
  const expanded = masked.includes('{') ? expand(masked) : [masked]
  if (expanded.length > MOST_ALTERNATIVES) throw refuse(`with ${MOST_ALTERNATIVES} alternatives at most`)
  return expanded.map((text) => [...text].map(tokenOf))
}

function isBalanced(pattern: string): boolean {
  let open = 0
  for (const brace of pattern.match(/[{}]/g) ?? []) {
    open += brace === '{' ? 1 : -1
    if (open < 0) return false
  }
  return open === 0
}

/** Loaded by the first pattern that needs it: whoever imports this package may never have one. */
function expand(pattern: string): string[] {
  const braces = createRequire(import.meta.url)('brace-expansion') as typeof import('brace-expansion')
  // It drops alternatives without a character, so each gets one for the time.
  return braces.expand(`x${pattern}`, { max: MOST_ALTERNATIVES + 1 }).map((alternative) => alternative.slice(1))
}

function tokenOf(character: string): Glob[number] {
  if (character === '*') return ANY
  if (character === '?') return ONE
  const code = character.codePointAt(0)! - LITERAL
  return code >= 0 && code < ASCII ? String.fromCodePoint(code) : character
}

/** An `ANY` needs trying again only from the last one on: what came before it fits wherever it fits first. */
function fits(glob: Glob, name: readonly string[]): boolean {
  let at = 0
  let token = 0
  let retry: { token: number; at: number } | undefined
  while (at < name.length) {
    if (glob[token] === ANY) retry = { token: ++token, at }
    else if (glob[token] === ONE || glob[token] === name[at]) {
      token++
      at++
    } else if (retry) {
      token = retry.token
      at = ++retry.at
    } else return false
  }
  while (glob[token] === ANY) token++
  return token === glob.length
}
