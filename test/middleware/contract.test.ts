import { mkdtempSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { BasicTracerProvider } from '@opentelemetry/sdk-trace-base'
import { audit, auth, authorize, logger, metrics, record, toolFilter, trace } from 'open-mcp-proxy/middleware'
import { type ContractOptions, contract, type MakeStack } from 'open-mcp-proxy/testing'
import { afterAll, describe, test } from 'vitest'

const directory = mkdtempSync(join(tmpdir(), 'omproxy-contract-'))
const at = (name: string) => join(directory, name)
afterAll(() => rm(directory, { recursive: true, force: true }))

const tracerProvider = new BasicTracerProvider()
const write = () => {}
const anybody = auth({ local: { id: 'ada', scopes: ['all'] } })
const everything = { tools: ['**'], prompts: ['**'], resources: ['**'] }
const call = (name: string) => ({ method: 'tools/call', params: { name, arguments: { a: 1 } } })
const renamed = {
  requests: [
    ...['a_new', 'a_other', 'a_contract', 'no-such'].map(call),
    { method: 'tools/list' },
    { method: 'prompts/get', params: { name: 'a' } },
    { method: 'resources/read', params: { uri: 'contract://a' } },
    { method: 'x/contract', params: { a: 1 } },
  ],
}

const whole: MakeStack = () => [
  metrics({ port: 0, tools: true }),
  auth({ local: { id: 'ada', scopes: ['all'] } }),
  audit({ file: at('whole-audit.jsonl') }),
  trace({ tracerProvider }),
  record({ file: at('whole.jsonl') }),
  authorize({ rules: [{ users: ['ada'], scopes: ['all'], ...everything }] }),
  toolFilter({ deny: ['hidden'], rename: { contract: 'new' }, prefix: 'a_' }),
  logger({ write, arguments: true }),
]

describe.each<[string, MakeStack, ContractOptions?]>([
  ['logger', () => logger({ write, arguments: true })],
  ['auth', () => auth({ local: { id: 'ada' } })],
  ['authorize, of rules', () => authorize({ rules: [everything] })],
  [
    'authorize, of a user and scopes',
    () => authorize({ rules: [{ users: ['ada'], scopes: ['all'], ...everything }] }),
    { before: anybody },
  ],
  ['authorize, of a function', () => authorize(async ({ user }) => user?.id === 'ada'), { principal: 'ada' }],
  ['authorize, that denies', () => authorize({ rules: [] })],
  ['toolFilter, of nothing', () => toolFilter()],
  ['toolFilter, that renames', () => toolFilter({ rename: { contract: 'new' }, prefix: 'a_' }), renamed],
  ['toolFilter, that hides', () => toolFilter({ allow: ['other'] })],
  ['metrics, on a port', () => metrics({ port: 0, tools: true })],
  ['metrics, without calls by tool', () => metrics({ port: 0 })],
  ['trace, without a provider', () => trace()],
  ['trace, with one', () => trace({ tracerProvider, arguments: true, results: true }), { rewrites: true }],
  ['audit', () => audit({ file: at('audit.jsonl'), arguments: 'full' })],
  ['audit, that never waits', () => audit({ file: at('audit-drop.jsonl'), onFull: 'drop' })],
  ['record, to a file', () => record({ file: at('record.jsonl') })],
  ['record, to a function', () => record({ write: async () => {} })],
  ['all in one line', whole, { ...renamed, rewrites: true }],
])('%s', (_, stack, options) => {
  for (const { name, run } of contract(stack, { ...options, patience: 10_000 })) test(name, run)
})
