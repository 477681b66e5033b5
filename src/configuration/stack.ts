import { basename, dirname, resolve } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import type { Middleware } from '../context.js'
import { isPath, loadMiddleware, parseTarget } from '../load.js'
import { importFresh } from './modules.js'
import type { Configuration, StackEntry } from './settle.js'

interface Made {
  readonly entry: StackEntry
  /** Of the user's, where it comes from one. */
  readonly file: string | undefined
  readonly middleware: Middleware[]
}

/**
 * Makes the middleware of a configuration, time and again: an entry that says the same as before keeps the middleware
 * that it has, with all that this one has open and has counted. Files of the user's are read anew.
 */
export class StackLoader {
  #made: readonly Made[] = []

  /** The user's files that the stack names. Absolute. */
  get files(): string[] {
    return this.#made.flatMap(({ file }) => file ?? [])
  }

  /**
   * Makes a stack and hands it to `take`; where that rejects, what was there before stays.
   * @throws (rejects) `UsageError`, and what `take` throws
   */
  async load({ path, use }: Configuration, take: (stack: Middleware[]) => Promise<void> | void): Promise<void> {
    const kept = this.#made.filter(({ file }) => file === undefined)
    const made: Made[] = []
    for (const [at, entry] of use.entries()) {
      const same = kept.findIndex((it) => isDeepStrictEqual(it.entry, entry))
      made.push(same < 0 ? await make(entry, path, at) : kept.splice(same, 1)[0]!)
    }
    await take(made.flatMap(({ middleware }) => middleware))
    this.#made = made
  }
}

async function make(entry: StackEntry, path: string, at: number): Promise<Made> {
  if (typeof entry === 'function') return { entry, file: undefined, middleware: [entry as Middleware] }
  const [target, options] = typeof entry === 'string' ? [entry] : Object.entries(entry)[0]!
  const where = `${basename(path)}: use[${at}]`
  const factory = parseTarget(target, `${where}: expected MODULE[#EXPORT]`)
  const directory = dirname(path)
  const how = { label: `${where} (${target})`, importFile: importFresh }
  return {
    entry,
    file: isPath(factory.module) ? resolve(directory, factory.module) : undefined,
    middleware: await loadMiddleware({ ...factory, options }, directory, how),
  }
}
