import { basename, extname, resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { type Loader, lilconfig } from 'lilconfig'
import { firstLine } from '../load.js'
import { UsageError } from '../values.js'
import { importFresh } from './modules.js'

const PLACES = ['proxy.config.ts', 'proxy.config.js', 'proxy.config.json']

/** A configuration file as it was read: nothing of it has been looked at. */
export interface ConfigFileContent {
  /** Absolute. */
  readonly path: string
  readonly value: unknown
}

const json: Loader = (path, content) => {
  try {
    return JSON.parse(content.replace(/^\uFEFF/, ''))
  } catch (error) {
    // The rest of its text shows what stands there, which may be a secret.
    const [at] = /(?:at )?position \d+/.exec((error as Error).message) ?? []
    throw new UsageError(`${basename(path)}: expected JSON, got what does not parse${at ? ` ${at}` : ''}`)
  }
}

const code: Loader = async (path) => {
  let exports: Record<string, unknown>
  try {
    exports = await importFresh(pathToFileURL(path))
  } catch (error) {
    throw new UsageError(`${basename(path)}: could not be loaded: ${firstLine(error)}`)
  }
  if ('default' in exports) return exports.default
  throw new UsageError(`${basename(path)}: expected a default export: export default defineProxy({ … })`)
}

const loaders: Record<string, Loader> = {
  '.json': json,
  noExt: json,
  ...Object.fromEntries(['.ts', '.mts', '.cts', '.js', '.mjs', '.cjs'].map((it) => [it, code])),
}

/**
 * Reads the file that is named, else the one of `proxy.config.{ts,js,json}` that is in the directory.
 * Undefined where none is named and none is there.
 *
 * @throws (rejects) `UsageError`
 */
export async function readConfig(name: string | undefined, directory: string): Promise<ConfigFileContent | undefined> {
  const options = { searchPlaces: PLACES, stopDir: directory, loaders, cache: false, ignoreEmptySearchPlaces: false }
  const explorer = lilconfig('proxy', options)
  if (name === undefined) {
    const found = await explorer.search(directory)
    return found ? { path: found.filepath, value: found.config } : undefined
  }
  const path = resolve(directory, name)
  const extension = extname(path)
  if (extension !== '' && !Object.hasOwn(loaders, extension)) {
    throw new UsageError(`--config ${name}: expected a .json, .js or .ts file, got ${extension}`)
  }
  try {
    return { path, value: (await explorer.load(path))?.config }
  } catch (error) {
    // What the loaders find wrong says so itself: what is left is that it could not be read.
    if (error instanceof UsageError) throw error
    throw new UsageError(`--config ${name}: expected a file that can be read, got ${(error as { code?: string }).code}`)
  }
}
