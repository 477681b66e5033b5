import { createRequire } from 'node:module'
import { Ajv, type ErrorObject } from 'ajv'
import type { ProxyConfig } from '../config.js'

/** A value that cannot be, somewhere in a configuration: its text says where, what was expected and what came. */
export class ConfigError extends Error {
  override readonly name = 'ConfigError'

  /** `path` as `use[1].auth.jwt`; empty for the whole. */
  constructor(path: string, problem: string) {
    super(path === '' ? problem : `${path}: ${problem}`)
  }
}

const CONFIG = 'ConfigFile'
const SERVERS = { command: 'CommandServer', url: 'UrlServer' } as const

let ajv: Ajv | undefined

/** The schema that editors use is what the command holds a file against. */
function schemas(): Ajv {
  if (!ajv) {
    ajv = new Ajv({ allErrors: true, strict: false, verbose: true })
    ajv.addSchema(createRequire(import.meta.url)('open-mcp-proxy/schema.json') as object, 'config')
  }
  return ajv
}

/**
 * Checks what a file says, but for options of middleware that this package does not know.
 * @throws `ConfigError` for the first thing that is wrong
 */
export function checkConfig(value: unknown): asserts value is ProxyConfig {
  if (!isObject(value))
    throw new ConfigError('', `expected an object with upstream, use, listen, …, got ${kindOf(value)}`)
  const { upstream, use, ...rest } = value
  check(CONFIG, rest, '')
  if (isObject(upstream)) checkServer(upstream)
  else if (upstream !== undefined && typeof upstream !== 'string' && typeof upstream !== 'function') {
    throw new ConfigError('upstream', `expected a server, or the name of one under mcpServers, got ${kindOf(upstream)}`)
  }
  if (use === undefined) return
  if (!Array.isArray(use)) throw new ConfigError('use', `expected an array, got ${kindOf(use)}`)
  for (const [at, entry] of use.entries()) checkEntry(entry, `use[${at}]`)
}

function checkServer(upstream: Record<string, unknown>): void {
  const [kind] = (['command', 'url'] as const).filter((it) => Object.hasOwn(upstream, it))
  if (!kind) {
    const got = Object.keys(upstream).join(', ') || 'nothing'
    throw new ConfigError('upstream', `expected an object with command or url, got one with ${got}`)
  }
  check(SERVERS[kind], upstream, 'upstream')
}

function checkEntry(entry: unknown, path: string): void {
  if (typeof entry === 'string' || typeof entry === 'function') return
  const [name, ...others] = isObject(entry) ? Object.keys(entry) : []
  if (name === undefined || others.length > 0) {
    const got = isObject(entry) ? `one with ${Object.keys(entry).join(', ') || 'nothing'}` : kindOf(entry)
    throw new ConfigError(path, `expected a module, or an object { MODULE: options }, got ${got}`)
  }
  if (/^\w+$/.test(name)) check(`Shelf/properties/${name}`, (entry as Record<string, unknown>)[name], `${path}.${name}`)
}

/** Of what has no schema, an option of somebody else's middleware, nothing is known. */
function check(definition: string, value: unknown, path: string): void {
  const validate = schemas().getSchema(`config#/definitions/${definition}`)
  if (!validate || validate(dataOf(value))) return
  throw problemOf(validate.errors ?? [], path)
}

/** What is no data is code's own affair: a function, an instance of a class. */
function dataOf(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(dataOf)
  if (!isObject(value)) return value
  return Object.fromEntries(Object.entries(value).flatMap(([name, it]) => (isData(it) ? [[name, dataOf(it)]] : [])))
}

function isData(value: unknown): boolean {
  return (
    typeof value !== 'function' &&
    value !== undefined &&
    (typeof value !== 'object' || value === null || Array.isArray(value) || isObject(value))
  )
}

/** Of several errors, which alternatives of one place bring, the one that went deepest is what was meant. */
function problemOf(errors: readonly ErrorObject[], path: string): ConfigError {
  const depth = ({ instancePath }: ErrorObject) => instancePath.split('/').length
  const deepest = errors.reduce((most, it) => Math.max(most, depth(it)), 0)
  const there = errors.filter((it) => depth(it) === deepest)
  const first = there.find(({ keyword }) => keyword !== 'type' && keyword !== 'anyOf') ?? there[0]!
  const wanted = there.flatMap(({ keyword, params }) => (keyword === 'type' ? [params.type as string] : []))
  const where = path + first.instancePath.replace(/\/([^/]+)/g, (_, step: string) => stepText(step))
  return new ConfigError(where.replace(/^\./, ''), textOf(first, [...new Set(wanted)]))
}

function stepText(step: string): string {
  const name = step.replaceAll('~1', '/').replaceAll('~0', '~')
  return /^\d+$/.test(name) ? `[${name}]` : `.${name}`
}

function textOf({ keyword, params, message, data, parentSchema }: ErrorObject, wanted: readonly string[]): string {
  switch (keyword) {
    case 'type':
      return `expected ${wanted.map(withArticle).join(' or ')}, got ${kindOf(data)}`
    case 'required':
      return `expected ${params.missingProperty}, got none`
    case 'additionalProperties': {
      const known = Object.keys((parentSchema as { properties?: object }).properties ?? {}).join(', ')
      return `expected one of ${known}, got ${JSON.stringify(params.additionalProperty)}`
    }
    case 'enum':
      return `expected one of ${(params.allowedValues as unknown[]).map((it) => JSON.stringify(it)).join(', ')}, got ${quoted(data)}`
    default:
      return `${message ?? 'expected something else'}, got ${kindOf(data)}`
  }
}

/** Whether it could come from JSON as an object: an instance of a class could not. */
export function isObject(value: unknown): value is Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return false
  const prototype: unknown = Object.getPrototypeOf(value)
  return prototype === null || Object.getPrototypeOf(prototype as object) === null
}

/** No value shows: it may be a secret. */
function kindOf(value: unknown): string {
  if (value === null || value === undefined) return String(value)
  if (Array.isArray(value)) return 'an array'
  return withArticle(typeof value)
}

/** One of a few words was meant, which is no secret. */
function quoted(value: unknown): string {
  return typeof value === 'string' ? JSON.stringify(value) : kindOf(value)
}

function withArticle(type: string): string {
  if (type === 'null') return type
  return `${/^[aeiou]/.test(type) ? 'an' : 'a'} ${type}`
}
