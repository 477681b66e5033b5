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
 * Whether some object in a JSON text has two members of one name: `JSON.parse` takes the last of them, other parsers the
 * first. What was decided on one of them must not leave with both.
 *
 * @param text what `JSON.parse` takes, nested no deeper than a message may be
 */
export function hasTwins(text: string): boolean {
  const bytes = asBuffer(new TextEncoder().encode(text))
  let found = false
  const visit = (at: number): number => {
    if (found) return skipValue(bytes, at)
    if (bytes[at] === OPEN_ARRAY) return walkArray(bytes, at, visit)
    if (bytes[at] !== OPEN_OBJECT) return skipValue(bytes, at)
    const keys = new Set<string>()
    return walkObject(bytes, at, (keyStart, keyEnd, start) => {
      const key = stringOf(bytes, keyStart, keyEnd)
      found ||= keys.has(key)
      keys.add(key)
      return visit(start)
    })
  }
  visit(skipSpace(bytes, 0))
  return found
}
