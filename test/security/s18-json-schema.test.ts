import { http } from 'open-mcp-proxy'
import { describe, expect, test } from 'vitest'
import { serve } from '../fixtures/closing.js'
import { json } from '../fixtures/http-server.js'
import { ask, listen, type Message, modern, told } from './helpers.js'
import { calls, imports, nodes } from './source.js'

/**
 * A schema of a peer's is never compiled and holds nothing against anything: it passes as it is. What is read of one is
 * `x-mcp-header` in the `properties` of a tool's `inputSchema`, where 2026-07-28 wants arguments in headers.
 */
test('only the schema of the configuration, which is our own, is compiled', () => {
  const all = nodes()
  expect(imports(all, /ajv|zod|typebox|valibot|@cfworker|json-schema|hyperjump/)).toEqual([
    'src/configuration/check.ts: ajv { Ajv }',
  ])
  expect(calls(all, /^Ajv$/)).toHaveLength(1)
  const given = calls(all, /\.(?:addSchema|compile|compileAsync|getSchema|validateSchema)$/)
  expect(given).toEqual([
    expect.stringMatching(/^src\/configuration\/check\.ts: ajv\.addSchema\(.*'open-mcp-proxy\/schema\.json'/),
    expect.stringMatching(/^src\/configuration\/check\.ts: .*\.getSchema\(/),
  ])
})

const LEVELS = 250

/** Schemas that are to hurt whoever compiles, follows or walks them. */
function hostile(bait: string): Record<string, string> {
  const nested = (open: string, close: string) => open.repeat(LEVELS) + close.repeat(LEVELS)
  return {
    '$ref to a network': `{"$ref":"${bait}"}`,
    '$schema, $id and $dynamicRef to a network': `{"$schema":"${bait}","$id":"${bait}","$dynamicRef":"${bait}#x"}`,
    '$ref to a file': '{"$ref":"file:///etc/passwd"}',
    '$ref to itself': '{"$ref":"#","properties":{"a":{"$ref":"#/properties/a"}}}',
    'a ring of $refs': '{"$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}},"$ref":"#/$defs/a"}',
    'a billion by $refs': `{"$defs":{${Array.from(
      { length: 30 },
      (_, at) => `"d${at}":{"allOf":[{"$ref":"#/$defs/d${at + 1}"},{"$ref":"#/$defs/d${at + 1}"}]}`,
    ).join(',')},"d30":{}}}`,
    'properties in properties': nested('{"properties":{"a":', '}}').replace('}}', '{}}}'),
    'allOf in allOf': `${'{"allOf":['.repeat(LEVELS - 100)}{}${']}'.repeat(LEVELS - 100)}`,
    'many properties': `{"properties":{${Array.from({ length: 20_000 }, (_, at) => `"p${at}":{"x-mcp-header":"H${at}"}`).join(',')}}}`,
    'a pattern without end': '{"properties":{"a":{"type":"string","pattern":"(a+)+$","x-mcp-header":"A"}}}',
    'a pattern for names': '{"patternProperties":{"(a+)+$":{"type":"string"}}}',
    'a default and a const of its own': '{"default":{"__proto__":{"polluted":1}},"const":{"constructor":1}}',
    'no object': '[[],1,"x",null]',
    nothing: 'null',
  }
}

describe('a schema of a server’s', () => {
  test.each(Object.keys(hostile('')))('passes as it is, and neither is fetched nor takes long: %s', async (name) => {
    const bait = await serve((_seen, response) => json(response, {}))
    const schema = hostile(bait.url.href)[name]!
    const tools = `{"tools":[{"name":"a","inputSchema":${schema},"outputSchema":${schema}}]}`
    const target = await serve((seen, response) => {
      const { id, method } = JSON.parse(seen.body) as Message
      json(response, `{"jsonrpc":"2.0","id":${JSON.stringify(id)},"result":${method === 'tools/list' ? tools : '{}'}}`)
    })
    const { port, errors } = await listen(http(target.url))
    const list = await ask(port, modern(1, 'tools/list'))
    expect(list.body).toBe(`{"jsonrpc":"2.0","id":1,"result":${tools}}`)
    const value = `${'a'.repeat(31)}!`
    const call = modern(2, 'tools/call', { name: 'a', arguments: { a: value, p1: value } }, 'a')
    // What is declared to stand in a header must do so.
    const headers = { ...call.headers, 'mcp-param-a': value, 'mcp-param-h1': value }
    const started = performance.now()
    const reply = told(await ask(port, { ...call, headers }))
    expect(performance.now() - started).toBeLessThan(5_000)
    expect(reply).toEqual({ status: 200, body: { jsonrpc: '2.0', id: 2, result: {} } })
    expect([bait.seen, errors]).toEqual([[], []])
  })
})
