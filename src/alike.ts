import { asBuffer, OPEN_ARRAY, OPEN_OBJECT, skipSpace, skipValue, stringOf, walkArray, walkObject } from './json.js'

/**
 * Whether a key is another one that some parser takes for `name`: some ignore case (also as Unicode has it), to some a
 * text ends at its NUL, some leave a NUL out.
 */
export function isAlike(key: string, name: string): boolean {
  if (key === name) return false
  const wanted = folded(name)
  return [key.replace(/\0.*$/s, ''), key.replaceAll('\0', '')].some((it) => folded(it) === wanted)
}

/** Unicode's simple folding, and the dotted capital I that Java takes for an i. */
function folded(key: string): string {
  return key.replaceAll('\u0130', 'i').toUpperCase().toLowerCase()
}

/**
 * Whether a member on a path through a JSON text stands there twice: `JSON.parse` takes the last of such twins, other
 * parsers the first. What was decided on one of them must not leave with both. Arrays on the way are looked at element by
 * element; members beside the path may have twins, which are nobody's business.
 *
 * @param text what `JSON.parse` takes, nested no deeper than a message may be
 * @example hasTwins(ctx.text, 'result', 'tools', 'name')
 */
export function hasTwins(text: string, ...path: readonly string[]): boolean {
  const bytes = asBuffer(new TextEncoder().encode(text))
  let found = false
  const visit = (at: number, depth: number): number => {
    if (found || depth === path.length) return skipValue(bytes, at)
    if (bytes[at] === OPEN_ARRAY) return walkArray(bytes, at, (start) => visit(start, depth))
    if (bytes[at] !== OPEN_OBJECT) return skipValue(bytes, at)
    let seen = false
    return walkObject(bytes, at, (keyStart, keyEnd, start) => {
      if (stringOf(bytes, keyStart, keyEnd) !== path[depth]) return skipValue(bytes, start)
      found ||= seen
      seen = true
      return visit(start, depth + 1)
    })
  }
  visit(skipSpace(bytes, 0), 0)
  return found
}
