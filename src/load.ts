import { readdir } from 'node:fs/promises'
import { basename, extname, isAbsolute, join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { moduleResolve } from 'import-meta-resolve'
import type { Middleware } from './context.js'
import { UsageError } from './values.js'

/** A middleware as `--use` names it. */
export interface Reference {
  /** A path, a package's module, or the bare name of a middleware of this package. */
  readonly module: string
  /** The export; without it the default one, else the one named like the file. */
  readonly name?: string
  readonly options?: unknown
}

const CONDITIONS = new Set(['node', 'import'])

/** `MODULE[#EXPORT][=JSON]`: split at the first `=`, then at `#`. */
export function parseReference(text: string): Reference {
  const equals = text.indexOf('=')
  const target = equals < 0 ? text : text.slice(0, equals)
  const hash = target.indexOf('#')
  const module = hash < 0 ? target : target.slice(0, hash)
  const name = hash < 0 ? undefined : target.slice(hash + 1)
  if (module === '' || name === '') throw new UsageError(`--use: expected MODULE[#EXPORT][=JSON], got "${target}"`)
  if (equals < 0) return { module, name }
  try {
    return { module, name, options: JSON.parse(text.slice(equals + 1)) }
  } catch (error) {
    // The text may hold a secret, and the error quotes it.
    const at = /position \d+/.exec((error as Error).message)
    throw new UsageError(`--use ${target}: expected JSON after "=", got what does not parse${at ? ` at ${at[0]}` : ''}`)
  }
}

/** Loads the factory that a reference names and makes its middleware. */
export async function loadMiddleware(reference: Reference, directory: string): Promise<Middleware[]> {
  const label = `--use ${reference.module}`
  const url = resolve(reference.module, directory)
  let exports: Record<string, unknown>
  try {
    exports = (await import(url.href)) as Record<string, unknown>
  } catch (error) {
    if (isMissing(error, url)) throw new UsageError(`${label}: ${await expected(reference.module)}, found none`)
    throw new UsageError(`${label}: the module could not be loaded: ${firstLine(error)}`)
  }
  const { name = 'default' in exports ? 'default' : camelCase(basename(url.pathname, extname(url.pathname))) } =
    reference
  const factory = Object.hasOwn(exports, name) ? exports[name] : undefined
  if (typeof factory !== 'function') {
    const known = Object.keys(exports).join(', ') || 'nothing'
    throw new UsageError(`${label}: expected an export "${name}" that makes a middleware, the module exports ${known}`)
  }
  let made: unknown
  try {
    made = await factory(reference.options)
  } catch (error) {
    throw new UsageError(`${label}: ${name} refused its options: ${firstLine(error)}`)
  }
  const list = Array.isArray(made) ? made : [made]
  for (const it of list) {
    if (typeof it === 'function') continue
    const got = it === null ? 'null' : typeof it
    throw new UsageError(`${label}: expected ${name}(options) to return a middleware or an array of them, got ${got}`)
  }
  return list as Middleware[]
}

function resolve(module: string, directory: string): URL {
  if (isBare(module)) return moduleResolve(`open-mcp-proxy/middleware/${module}`, new URL(import.meta.url), CONDITIONS)
  const from = pathToFileURL(join(directory, 'from-here.js'))
  if (isAbsolute(module)) return pathToFileURL(module)
  try {
    return moduleResolve(module, from, CONDITIONS)
  } catch {
    throw new UsageError(`--use ${module}: expected a module, found none from ${directory}`)
  }
}

function isBare(module: string): boolean {
  return /^[A-Za-z][\w-]*$/.test(module)
}

function isMissing(error: unknown, url: URL): boolean {
  const { code, message } = error as NodeJS.ErrnoException
  return code === 'ERR_MODULE_NOT_FOUND' && message.includes(fileURLToPath(url))
}

async function expected(module: string): Promise<string> {
  if (!isBare(module)) return 'expected a module'
  const shelf = fileURLToPath(
    new URL('.', moduleResolve('open-mcp-proxy/middleware/index', new URL(import.meta.url), CONDITIONS)),
  )
  const files = await readdir(shelf).catch(() => [])
  const names = files.filter((it) => it.endsWith('.js') && it !== 'index.js').map((it) => basename(it, '.js'))
  return `expected one of the shelf (${names.join(', ')}), a path or a package's module`
}

function camelCase(name: string): string {
  return name.replace(/[-_.](\w)/g, (_, letter: string) => letter.toUpperCase())
}

function firstLine(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).split('\n')[0] as string
}
