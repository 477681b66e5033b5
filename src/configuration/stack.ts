import { basename, dirname, resolve } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import type { Middleware } from '../context.js'
import { isPath, loadMiddleware, parseTarget } from '../load.js'
import { importFresh } from './modules.js'
import type { Configuration, StackEntry } from './settle.js'

interface Made {
  readonly entry: StackEntry
  readonly middleware: Middleware[]
}

/**
 * Makes the middleware of a configuration, time and again: an entry that says the same as before keeps the middleware
 * that it has, with all that this one has open and has counted. Files of the user's are read anew.
 */
export class StackLoader {
  #made: readonly Made[] = []

  /**
   * Makes a stack and hands it to `take`; where that rejects, what was there before stays.
   * @throws (rejects) `UsageError`, and what `take` throws
   */
  async load({ path, use }: Configuration, take: (stack: Middleware[]) => Promise<void> | void): Promise<void> {
    const kept = this.#made.filter(({ entry }) => !isFile(entry))
    const made: Made[] = []
    for (const [at, entry] of use.entries()) {
      const same = kept.findIndex((it) => isDeepStrictEqual(it.entry, entry))
      made.push(same < 0 ? await make(entry, path, at) : kept.splice(same, 1)[0]!)
    }
    await take(made.flatMap(({ middleware }) => middleware))
    this.#made = made
  }
}

/** The user's files that the stack of a configuration names. Absolute. */
export function filesOf({ path, use }: Configuration): string[] {
  return use.filter(isFile).map((entry) => resolve(dirname(path), targetOf(entry).split('#', 1)[0]!))
}

function isFile(entry: StackEntry): entry is Exclude<StackEntry, Middleware<never>> {
  return typeof entry !== 'function' && isPath(targetOf(entry))
}

function targetOf(entry: Exclude<StackEntry, Middleware<never>>): string {
  return typeof entry === 'string' ? entry : Object.keys(entry)[0]!
}

async function make(entry: StackEntry, path: string, at: number): Promise<Made> {
  if (typeof entry === 'function') return { entry, middleware: [entry as Middleware] }
  const target = targetOf(entry)
  const options = typeof entry === 'string' ? undefined : entry[target]
  const where = `${basename(path)}: use[${at}]`
  const factory = parseTarget(target, `${where}: expected MODULE[#EXPORT]`)
  const directory = dirname(path)
  const how = { label: `${where} (${target})`, importFile: importFresh }
  return {
    entry,
    middleware: await loadMiddleware({ ...factory, options }, directory, how),
  }
}
