import { describe, expect, test } from 'vitest'
import { clientOf, exited, ways } from '../fixtures/faults/child-ways.js'

describe.each(ways)('over %s', (way) => {
  test('F4: what a child prints beside its messages is skipped, and told of once', async () => {
    const client = await clientOf(way)
    const { pid } = (await client.call('echo')).result!
    for (let n = 0; n < 3; n++) expect((await client.call('banner')).result).toEqual({ pid })
    expect(client.run.odd).toEqual([])
    const told = client.run.said().filter((line) => line.includes('what is not JSON-RPC'))
    expect(told).toEqual([expect.stringContaining('(1 lines): listening on stdio')])
  })

  test('F6: an answer that comes byte by byte, with characters of several bytes and odd line ends, is whole', async () => {
    const client = await clientOf(way)
    expect((await client.call('bytes')).result).toEqual({ text: 'é€😀\u2028' })
  })

  test('F7: an answer that is no UTF-8 is none: whoever else waits is not affected', async () => {
    const client = await clientOf(way)
    const lost = client.call('invalid')
    expect((await client.call('echo', { n: 1 })).result).toMatchObject({ n: 1 })
    const ended = client.call('exit', { code: 0 })
    expect([await lost, await ended].map(({ error }) => error)).toEqual([exited('exit code 0'), exited('exit code 0')])
    expect(client.run.stderr).not.toContain('\ufffd')
  })
})

test('F7: a line of the client that is no UTF-8 is a parse error of nobody’s, and the session goes on', async () => {
  const client = await clientOf('stdio')
  client.run.send(Buffer.from('{"jsonrpc":"2.0","id":"x","method":"\u00ff"}', 'latin1'))
  expect((await client.call('echo', { n: 1 })).result).toMatchObject({ n: 1 })
  expect(client.run.messages().filter(({ error }) => error)).toEqual([
    { jsonrpc: '2.0', error: { code: -32700, message: expect.any(String) } },
  ])
})

test('F6: lines of the client that come byte by byte, behind a byte order mark, with carriage returns, are whole', async () => {
  const client = await clientOf('stdio')
  const text =
    '\ufeff{"jsonrpc":"2.0",\r"id":"é","method":"tools/call","params":{"name":"echo","arguments":{"text":"€😀"}}}\r\n'
  for (const byte of Buffer.from(text)) {
    client.run.child.stdin.write(Buffer.of(byte))
    await new Promise(setImmediate)
  }
  await client.run.until(1)
  expect(client.run.messages()).toMatchObject([{ id: 'é', result: { text: '€😀' } }])
})
