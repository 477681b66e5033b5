import { OPEN_OBJECT } from './json.js'
import { metaMember, paramsMember, tokenValue } from './message.js'
import type { Head } from './scan.js'
import type { Frame } from './wire.js'

/** One `x-mcp-header` annotation of a tool: the argument at `path` is mirrored into `Mcp-Param-{name}`. */
export interface ParamHeader {
  name: string
  path: readonly string[]
}

type Headers = Record<string, string>
/** Headers as they came; names in lower case. */
type Came = Readonly<Record<string, string | string[] | undefined>>

/** 2026-07-28 streamable-http, "Server Validation". */
export const HEADER_MISMATCH = -32020

const PARAM = 'mcp-param-'
const PROTOCOL_VERSION = 'io.modelcontextprotocol/protocolVersion'
const CLIENT_CAPABILITIES = 'io.modelcontextprotocol/clientCapabilities'
/** The first revision without sessions; revisions are dates and sort as texts. */
const FIRST_MODERN = '2026-07-28'
const REVISION = /^\d{4}-\d{2}-\d{2}$/
const BASE64 = /^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/
const SENTINEL = '=?base64?'
const NUMBER = /^-?\d+(?:\.\d+)?$/
const TOKEN = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/
// `number` is not permitted, but a server that annotates one all the same does expect its header.
const MIRRORED_TYPES = new Set(['string', 'integer', 'boolean', 'number'])

/** Which member of `params` `Mcp-Name` mirrors; the tasks are those of SEP-2663. */
const nameMembers = new Map([
  ['tools/call', 'name'],
  ['prompts/get', 'name'],
  ['resources/read', 'uri'],
  ['tasks/get', 'taskId'],
  ['tasks/update', 'taskId'],
  ['tasks/cancel', 'taskId'],
])

/** The revision that a message itself names (2026-07-28 and later), undefined on a legacy one. */
export function modernVersion(frame: Frame, head: Head): string | undefined {
  const span = metaMember(frame, head, PROTOCOL_VERSION)
  const value = span && tokenValue(frame, span)
  return typeof value === 'string' && value !== '' ? value : undefined
}

/** Whether a revision, which came from a client, is this one or a later one. */
export function isRevisionFrom(first: string, version: unknown): version is string {
  return typeof version === 'string' && REVISION.test(version) && version >= first
}

/** Whether a `MCP-Protocol-Version` header names a revision without sessions: 2026-07-28 or later. */
export function isModernRevision(version: unknown): version is string {
  return isRevisionFrom(FIRST_MODERN, version)
}

/** What a modern request lacks in its `_meta` (2026-07-28 basic, "`_meta`"); undefined where all is there. */
export function missingMeta(frame: Frame, head: Head): string | undefined {
  const capabilities = metaMember(frame, head, CLIENT_CAPABILITIES)
  if (modernVersion(frame, head) === undefined) return `_meta["${PROTOCOL_VERSION}"], a string`
  if (!capabilities || frame[capabilities.start] !== OPEN_OBJECT) return `_meta["${CLIENT_CAPABILITIES}"], an object`
  return undefined
}

/** `MCP-Protocol-Version`, `Mcp-Method` and `Mcp-Name` of a request (2026-07-28 streamable-http, "Request Metadata"). */
export function metadataHeaders(frame: Frame, head: Head, version: string): Headers {
  const headers: Headers = {
    'mcp-protocol-version': encodeValue(version),
    'mcp-method': encodeValue(head.method ?? ''),
  }
  const member = nameMembers.get(head.method ?? '')
  const span = member === undefined ? undefined : paramsMember(frame, head, member)
  const name = span && tokenValue(frame, span)
  if (typeof name === 'string') headers['mcp-name'] = encodeValue(name)
  return headers
}

/** The `Mcp-Param-*` of a tools/call; an argument that is null or absent has none. */
export function argumentHeaders(frame: Frame, head: Head, declared: readonly ParamHeader[]): Headers {
  const headers: Headers = {}
  if (declared.length === 0) return headers
  const args = argumentsOf(frame, head)
  for (const { name, path } of declared) {
    const text = primitiveText(valueAt(args, path))
    if (text !== undefined) headers[PARAM + name.toLowerCase()] = encodeValue(text)
  }
  return headers
}

/** The `Mcp-Param-*` among headers that no tool has declared: a proxy forwards those that it does not know. */
export function paramHeaders(came: Came = {}, declared: readonly ParamHeader[] = []): Headers {
  const found: Headers = {}
  const known = new Set(declared.map(({ name }) => PARAM + name.toLowerCase()))
  for (const [name, value] of Object.entries(came)) {
    if (name.startsWith(PARAM) && !known.has(name) && typeof value === 'string') found[name] = value
  }
  return found
}

/** Whether a client that takes both kinds of answers (`Accept`) names the event stream first: then it shall have one. */
export function prefersStream({ accept }: Came = {}): boolean {
  const [stream, json] = ['text/event-stream', 'application/json'].map((type) => String(accept ?? '').indexOf(type))
  return stream! >= 0 && json! > stream!
}

/**
 * What is wrong with the headers of a modern request, held against its body (2026-07-28 streamable-http, "Server
 * Validation"); undefined where nothing is. `Mcp-Param-*` are looked at where they are declared.
 */
export function mismatch(
  came: Came,
  frame: Frame,
  head: Head,
  declared: readonly ParamHeader[] = [],
): string | undefined {
  const expected = metadataHeaders(frame, head, modernVersion(frame, head) ?? '')
  for (const name of ['mcp-protocol-version', 'mcp-method', 'mcp-name']) {
    const body = expected[name]
    // Of another method's name nobody here knows what it mirrors; what SEP-2663 asks for is checked where it comes.
    if (name === 'mcp-name' && (body === undefined ? !nameMembers.has(head.method ?? '') : isOptional(came, head)))
      continue
    const problem = difference(name, came[name], body && decodeValue(body))
    if (problem !== undefined) return problem
  }
  const args = declared.length > 0 ? argumentsOf(frame, head) : undefined
  for (const { name, path } of declared) {
    const value = valueAt(args, path)
    const text = primitiveText(value)
    // No header can carry it.
    if (text === undefined && value !== undefined && value !== null) continue
    const header = PARAM + name.toLowerCase()
    const problem = difference(header, came[header], text, typeof value === 'number')
    if (problem !== undefined) return problem
  }
  return undefined
}

function isOptional(came: Came, { method }: Head): boolean {
  return came['mcp-name'] === undefined && method?.startsWith('tasks/') === true
}

/** Numbers are compared as such: 42.0 is 42. */
function difference(name: string, header: string | string[] | undefined, body: string | undefined, numeric = false) {
  if (header === undefined) return body === undefined ? undefined : `expected a header ${name}, got none`
  const value = decodeValue(String(header))
  if (value === undefined) return `expected ${name} in visible ASCII or as =?base64?…?=, got neither`
  if (body === undefined) return `expected no header ${name}: the body has no such value`
  const same = value === body || (numeric && NUMBER.test(value) && Number(value) === Number(body))
  return same ? undefined : `the header ${name} and the body differ`
}

/** The annotations in a tool's `inputSchema` that are reachable through `properties` alone; others are not honoured. */
export function declaredHeaders(inputSchema: unknown): ParamHeader[] {
  const found = new Map<string, ParamHeader>()
  const visit = (schema: unknown, path: readonly string[]) => {
    const properties = member(schema, 'properties')
    if (typeof properties !== 'object' || properties === null) return
    for (const [key, child] of Object.entries(properties)) {
      const here = [...path, key]
      const name = member(child, 'x-mcp-header')
      const type = member(child, 'type')
      if (typeof name === 'string' && TOKEN.test(name) && typeof type === 'string' && MIRRORED_TYPES.has(type)) {
        if (!found.has(name.toLowerCase())) found.set(name.toLowerCase(), { name, path: here })
      }
      visit(child, here)
    }
  }
  visit(inputSchema, [])
  return [...found.values()]
}

/** A value as a header may carry it: plain visible ASCII, else `=?base64?…?=` ("Value Encoding"). */
export function encodeValue(value: string): string {
  const plain = /^[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?$/.test(value)
  if (plain && !(value.startsWith(SENTINEL) && value.endsWith('?='))) return value
  return `${SENTINEL}${Buffer.from(value).toString('base64')}?=`
}

/** What a header carries; undefined where it holds what no header may, or bad Base64. */
export function decodeValue(header: string): string | undefined {
  if (!/^[\x20-\x7e\t]*$/.test(header)) return undefined
  if (!header.startsWith(SENTINEL) || !header.endsWith('?=') || header.length < SENTINEL.length + 2) return header
  const base64 = header.slice(SENTINEL.length, -2)
  return BASE64.test(base64) ? Buffer.from(base64, 'base64').toString() : undefined
}

function primitiveText(value: unknown): string | undefined {
  if (typeof value === 'string') return value
  if (typeof value === 'boolean') return String(value)
  if (typeof value !== 'number' || !Number.isFinite(value)) return undefined
  return Number.isInteger(value) && !Number.isSafeInteger(value) ? undefined : String(value)
}

function argumentsOf(frame: Frame, head: Head): unknown {
  const span = paramsMember(frame, head, 'arguments')
  return span && tokenValue(frame, span)
}

function valueAt(value: unknown, path: readonly string[]): unknown {
  return path.reduce<unknown>((at, key) => member(at, key), value)
}

function member(value: unknown, key: string): unknown {
  if (typeof value !== 'object' || value === null || !Object.hasOwn(value, key)) return undefined
  return (value as Record<string, unknown>)[key]
}
