import { http, stdio } from 'open-mcp-proxy'
import { describe, expect, test } from 'vitest'
import { logger } from '../../middleware/logger.js'
import { toolFilter } from '../../middleware/toolFilter.js'
import { serve } from '../fixtures/closing.js'
import { json } from '../fixtures/http-server.js'
import { ask, listen, MODERN, modern, server } from './helpers.js'

/** What a server may give a client to remember, as it is written in JSON. */
const states: Record<string, string> = {
  'a token': '"eyJhbGciOiJIUzI1NiJ9.eyJhIjoxfQ.c2lnbmF0dXJl"',
  'an empty text': '""',
  'escapes that need not be': '"\\u0061\\/\\u00e9\\ud83d\\ude00"',
  'half a character': '"\\ud800"',
  'line breaks and controls': '"\\r\\n\\u0000\\u001b[2J"',
  '50 KB': `"${'x'.repeat(50_000)}"`,
  'what looks like a message': '"{\\"jsonrpc\\":\\"2.0\\",\\"id\\":1,\\"result\\":{}}"',
  'no text at all': '{"a":1.0,"b":9007199254740993,"c":1e400,"a":2,"__proto__":{"x":1}}',
  null: 'null',
}
const inputRequests = '{"q":{"method":"elicitation/create","params":{"mode":"form","message":"?","n":1.0}}}'

const required = (id: string, state: string) =>
  `{"jsonrpc":"2.0","id":${id},"result":{"resultType":"input_required","inputRequests":${inputRequests},"requestState":${state}}}`
const retry = (state: string) =>
  `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"a","arguments":{},"inputResponses":{"q":{"action":"accept","content":{"n":1.0}}},"requestState":${state},"_meta":${JSON.stringify(MODERN)}}}`

/** Says what it heard, and asks for more, until it gets a state back. */
const script = `
require('node:readline').createInterface(process.stdin).on('line', (line) => {
  const { id, params } = JSON.parse(line)
  const state = Buffer.from(process.argv[1], 'base64').toString()
  if ('inputResponses' in params) return console.log(JSON.stringify({ jsonrpc: '2.0', id, result: { heard: line } }))
  console.log(${JSON.stringify(required('ID', 'STATE'))}.replace('ID', JSON.stringify(id)).replace('STATE', () => state))
})`

describe.each(Object.entries(states))('%s, given to a client to remember,', (_name, state) => {
  const call = modern(1, 'tools/call', { name: 'a', arguments: {} }, 'a')
  const headers = { ...call.headers }

  test('comes to it and goes back as it was written: over HTTP', async () => {
    const target = await serve((seen, response) =>
      json(
        response,
        seen.body.includes('inputResponses') ? { jsonrpc: '2.0', id: 2, result: {} } : required('1', state),
      ),
    )
    const { port } = await listen(http(target.url), {}, (app) =>
      app.use(logger({ write: () => {} }), toolFilter({ deny: ['rm'] })),
    )
    expect((await ask(port, call)).body).toBe(required('1', state))
    expect((await ask(port, { headers, body: retry(state) })).status).toBe(200)
    expect(target.seen.at(-1)!.body).toBe(retry(state))
  })

  test('comes to it and goes back as it was written: to a child', async () => {
    const given = Buffer.from(state).toString('base64')
    const { port } = await listen(stdio(process.execPath, ['-e', script, given]))
    expect((await ask(port, call)).body).toBe(required('1', state))
    const { result } = JSON.parse((await ask(port, { headers, body: retry(state) })).body) as {
      result: { heard: string }
    }
    // One child serves many: the id is its own.
    expect(result.heard.replace(/"id":\d+/, '"id":2')).toBe(retry(state))
  })
})

test('it is looked at by nobody: a state of another server’s or user’s is for the server to refuse', async () => {
  const upstream = server(() => ({ error: { code: -32602, message: 'Invalid requestState' } }))
  const { port } = await listen(upstream.open)
  const { headers } = modern(2, 'tools/call', {}, 'a')
  const reply = await ask(port, { headers, body: retry('"forged"') })
  expect(JSON.parse(reply.body)).toEqual({
    jsonrpc: '2.0',
    id: 2,
    error: { code: -32602, message: 'Invalid requestState' },
  })
  expect(upstream.heard().at(-1)).toBe(retry('"forged"'))
})
