import { metaMember, paramsMember, tokenValue } from '../message.js'
import type { Head } from '../scan.js'
import type { Frame } from '../wire.js'

/** One `x-mcp-header` annotation of a tool: the argument at `path` is mirrored into `Mcp-Param-{name}`. */
export interface ParamHeader {
  name: string
  path: readonly string[]
}

type Headers = Record<string, string>

const PROTOCOL_VERSION = 'io.modelcontextprotocol/protocolVersion'
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
  const span = declared.length > 0 ? paramsMember(frame, head, 'arguments') : undefined
  if (span === undefined) return headers
  const args = tokenValue(frame, span)
  for (const { name, path } of declared) {
    const text = primitiveText(valueAt(args, path))
    if (text !== undefined) headers[`mcp-param-${name.toLowerCase()}`] = encodeValue(text)
  }
  return headers
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
  if (plain && !(value.startsWith('=?base64?') && value.endsWith('?='))) return value
  return `=?base64?${Buffer.from(value).toString('base64')}?=`
}

function primitiveText(value: unknown): string | undefined {
  if (typeof value === 'string') return value
  if (typeof value === 'boolean') return String(value)
  if (typeof value !== 'number' || !Number.isFinite(value)) return undefined
  return Number.isInteger(value) && !Number.isSafeInteger(value) ? undefined : String(value)
}

function valueAt(value: unknown, path: readonly string[]): unknown {
  return path.reduce<unknown>((at, key) => member(at, key), value)
}

function member(value: unknown, key: string): unknown {
  if (typeof value !== 'object' || value === null || !Object.hasOwn(value, key)) return undefined
  return (value as Record<string, unknown>)[key]
}
