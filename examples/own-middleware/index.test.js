import assert from 'node:assert/strict'
import { test } from 'node:test'
import { testProxy } from 'open-mcp-proxy/testing'
import { shorten } from './index.js'

/** What a client gets that calls a tool. */
async function called(content, options) {
  const proxy = testProxy().use(shorten(options))
  await proxy.fromClient({ id: 1, method: 'tools/call', params: { name: 'poem' } })
  const { toClient } = await proxy.fromServer({ id: 1, result: { content } })
  return toClient[0].result.content
}

const text = (text) => ({ type: 'text', text })

test('cuts a long text, and leaves a short one', async () => {
  assert.deepEqual(await called([text('12345'), text('123456')], { characters: 5 }), [text('12345'), text('12345…')])
})

test('cuts no character in two', async () => {
  assert.deepEqual(await called([text('123👋')], { characters: 4 }), [text('123…')])
})

test('leaves what is no text', async () => {
  for (const content of [[{ type: 'image', data: '123456' }], [null], [text(123456)], 'no array', undefined]) {
    assert.deepEqual(await called(content, { characters: 1 }), content)
  }
})

test('leaves 10,000 characters where it is not told', async () => {
  assert.equal((await called([text('x'.repeat(20_000))]))[0].text.length, 10_001)
})

test('refuses what is no number of characters', () => {
  for (const characters of [0, -1, 1.5, '5', null]) assert.throws(() => shorten({ characters }), TypeError)
})
