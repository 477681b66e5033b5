import { readdir } from 'node:fs/promises'
import { basename, extname, isAbsolute, join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { moduleResolve } from 'import-meta-resolve'
import type { Middleware } from './context.js'
import { messageOf } from './error.js'
import { UsageError } from './values.js'

/** A middleware as `--use` names it. */
export interface Reference {
  /** A path, a package's module, or the bare name of a middleware of this package. */
  readonly module: string
  /** The export; without it the default one, else the one named like the file. */
  readonly name?: string
  readonly options?: unknown
}

/** Of the shelf, but no middleware. */
const UPSTREAM = 'replay'
const CONDITIONS = new Set(['node', 'import'])
const HERE = new URL(import.meta.url)

/**
 * `MODULE[#EXPORT][=JSON]`: split at the first `=`, then at `#`.
 * @throws `UsageError`, in which the text after `=` never shows: it may hold a secret.
 */
export function parseReference(text: string): Reference {
  const equals = text.indexOf('=')
  const target = equals < 0 ? text : text.slice(0, equals)
  const factory = parseTarget(target, '--use: expected MODULE[#EXPORT][=JSON]')
  if (equals < 0) return factory
  try {
    return { ...factory, options: JSON.parse(text.slice(equals + 1)) }
  } catch (error) {
    const [at] = /at position \d+/.exec((error as Error).message) ?? ['']
    throw new UsageError(`--use ${target}: expected JSON after "=", got what does not parse ${at}`.trimEnd())
  }
}

/**
 * `MODULE[#EXPORT]`
 * @throws `UsageError` that begins with what was expected
 */
export function parseTarget(target: string, expected: string): Reference {
  const hash = target.indexOf('#')
  const module = hash < 0 ? target : target.slice(0, hash)
  const name = hash < 0 ? undefined : target.slice(hash + 1)
  if (module === '' || name === '') throw new UsageError(`${expected}, got "${target}"`)
  return { module, name }
}

/** The middleware of `--use`, in order. @throws (rejects) `UsageError` */
export async function loadUsed(use: readonly string[] = []): Promise<Middleware[]> {
  const stack: Middleware[] = []
  for (const reference of use.map(parseReference)) stack.push(...(await loadMiddleware(reference, process.cwd())))
  return stack
}

type Exports = Record<string, unknown>

export interface LoadOptions {
  /** What an error begins with. @default '--use MODULE' */
  label?: string
  /** Imports what is no package's. @default import(…) */
  importFile?: (url: URL) => Promise<Exports>
}

/**
 * Loads the factory that a reference names, from a directory, and makes its middleware.
 * @throws (rejects) `UsageError`, in one line.
 */
export async function loadMiddleware(
  reference: Reference,
  directory: string,
  { label = `--use ${reference.module}`, importFile = importModule }: LoadOptions = {},
): Promise<Middleware[]> {
  const url = await resolve(reference.module, directory, label)
  let exports: Exports
  try {
    exports = await (isPath(reference.module) ? importFile : importModule)(url)
  } catch (error) {
    throw new UsageError(`${label}: the module could not be loaded: ${firstLine(error)}`)
  }
  const name = reference.name ?? defaultName(exports, url)
  const factory = Object.hasOwn(exports, name) ? exports[name] : undefined
  if (typeof factory !== 'function') {
    const wanted = reference.name === undefined ? `a default export or one named "${name}"` : `an export "${name}"`
    const known = Object.keys(exports).sort().join(', ') || 'nothing'
    throw new UsageError(`${label}: expected ${wanted} that makes a middleware, the module exports ${known}`)
  }
  let made: unknown
  try {
    made = await factory(reference.options)
  } catch (error) {
    throw new UsageError(`${label}: ${name}(options) failed: ${firstLine(error)}`)
  }
  const list = Array.isArray(made) ? made : [made]
  for (const it of list) {
    if (typeof it === 'function') continue
    const got = it === null ? 'null' : typeof it
    throw new UsageError(`${label}: expected ${name}(options) to return a middleware or an array of them, got ${got}`)
  }
  return list as Middleware[]
}

function importModule(url: URL): Promise<Exports> {
  return import(url.href)
}

/** Whether a module is a file of the user's. */
export function isPath(module: string): boolean {
  return isAbsolute(module) || /^\.{1,2}[\\/]/.test(module)
}

/** Where a module of this package is, or another that it can see. */
export function moduleUrl(name: string): URL {
  return moduleResolve(name, HERE, CONDITIONS)
}

async function resolve(module: string, directory: string, label: string): Promise<URL> {
  const bare = /^[A-Za-z][\w-]*$/.test(module)
  try {
    if (bare) return moduleUrl(`open-mcp-proxy/middleware/${module}`)
    const specifier = isAbsolute(module) ? pathToFileURL(module).href : module
    return moduleResolve(specifier, pathToFileURL(join(directory, 'from-here.js')), CONDITIONS)
  } catch {
    const wanted = bare
      ? `one of the shelf (${(await shelf()).filter((it) => it !== UPSTREAM).join(', ')}), a path (./${module}.js) or a package's module`
      : `a module ${isAbsolute(module) ? 'there' : `in ${directory} (a path begins with ./, ../ or /)`}`
    throw new UsageError(`${label}: expected ${wanted}, found none`)
  }
}

/** The names of this package's middleware. */
export async function shelf(): Promise<string[]> {
  const index = moduleUrl('open-mcp-proxy/middleware')
  const files = await readdir(fileURLToPath(new URL('.', index)))
  return files.filter((it) => it.endsWith('.js') && it !== 'index.js').map((it) => basename(it, '.js'))
}

/** A CommonJS module always has a default export, which holds the others. */
function defaultName(exports: Record<string, unknown>, url: URL): string {
  if (typeof exports.default === 'function') return 'default'
  const file = fileURLToPath(url)
  return camelCase(basename(file, extname(file)))
}

function camelCase(name: string): string {
  return name.replace(/[-_.](\w)/g, (_, letter: string) => letter.toUpperCase())
}

export function firstLine(error: unknown): string {
  return messageOf(error).split('\n')[0] as string
}
