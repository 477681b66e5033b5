import { describe, expect, test } from 'vitest'
import { path } from '../fixtures/command.js'
import { clientOf, ways } from '../fixtures/faults/child-ways.js'

const nested = (id: string, levels: number) => {
  const open = levels - 3
  const deep = `${'['.repeat(open)}${']'.repeat(open)}`
  return `{"jsonrpc":"2.0","id":${id},"method":"tools/call","params":{"name":"echo","arguments":{"a":${deep}}}}`
}
const change = ['--use', `${path('./faults/child-change.mjs')}`]

describe.each(ways)('F36: over %s, an answer', (way) => {
  test.each([[[]], [change]])('of 512 levels passes, of 513 is a bad response, of 100,000 too: %j', async (args) => {
    const client = await clientOf(way, { args })
    expect((await client.call('deep', { levels: 512 })).error).toBeUndefined()
    for (const levels of [513, 5_000, 100_000]) {
      expect((await client.call('deep', { levels })).error).toMatchObject({ code: -31003, data: { phase: 'sent' } })
    }
    expect((await client.call('echo', { n: 1 })).result).toMatchObject({ n: 1 })
  })
})

test('F36: a request of 512 levels passes, of more is refused by its id, and the session goes on', async () => {
  const { run } = await clientOf('stdio', { args: change })
  run.send(nested('"a"', 512), nested('"b"', 513), nested('"c"', 100_000), nested('"d"', 4))
  await run.until(4)
  expect(run.messages()).toHaveLength(4)
  expect(run.messages()).toEqual(
    expect.arrayContaining([
      expect.objectContaining({ id: 'a', result: expect.anything() }),
      expect.objectContaining({ id: 'b', error: { code: -32600, message: expect.any(String) } }),
      expect.objectContaining({ id: 'c', error: { code: -32600, message: expect.any(String) } }),
      expect.objectContaining({ id: 'd', result: expect.anything() }),
    ]),
  )
})
