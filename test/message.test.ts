import type { JSONRPCMessage } from '@modelcontextprotocol/sdk/types.js'
import { describe, expect, test } from 'vitest'
import {
  elementsOfBatch,
  errorFrame,
  Message,
  metaMember,
  notificationFrame,
  paramsMember,
  requestFrame,
  resultFrame,
  resultMember,
  tokenValue,
  withId,
} from '../src/message.js'
import { Refusal, scan } from '../src/scan.js'
import { corpus } from './fixtures/corpus.js'
import { refused } from './fixtures/refused.js'

const bytes = (text: string) => Buffer.from(text)

describe('spans', () => {
  const text =
    '{"jsonrpc":"2.0","id":1.0,"method":"a","params":{"requestId":"\\u0031","_meta":{"a":1,"progressToken":1.0,"a":2}}}'
  const frame = bytes(text)
  const head = scan(frame)

  test('withId changes the id and nothing else', () => {
    expect(withId(frame, head, '"x"').toString()).toBe(text.replace('"id":1.0', '"id":"x"'))
    const error = bytes('{"id":null,"jsonrpc":"2.0","error":{"n":1.0}}')
    expect(withId(error, scan(error), '7').toString()).toBe('{"id":7,"jsonrpc":"2.0","error":{"n":1.0}}')
    const notification = bytes('{"jsonrpc":"2.0","method":"a"}')
    expect(() => withId(notification, scan(notification), '7')).toThrow('expected a frame with an id')
  })

  test('finds members of params, _meta and result', () => {
    const cut = (found: { start: number; end: number } | undefined) => found && text.slice(found.start, found.end)
    expect(cut(metaMember(frame, head, 'progressToken'))).toBe('1.0')
    expect(cut(metaMember(frame, head, 'a'))).toBe('2')
    expect(metaMember(frame, head, 'b')).toBeUndefined()
    expect(cut(paramsMember(frame, head, 'requestId'))).toBe('"\\u0031"')
    expect(tokenValue(frame, paramsMember(frame, head, 'requestId')!)).toBe('1')
    expect(resultMember(frame, head, 'a')).toBeUndefined()
    const result = bytes('{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"x"}}')
    expect(tokenValue(result, resultMember(result, scan(result), 'protocolVersion')!)).toBe('x')
    const list = bytes('{"jsonrpc":"2.0","id":1,"method":"a","params":[1]}')
    expect([paramsMember(list, scan(list), '0'), metaMember(list, scan(list), '0')]).toEqual([undefined, undefined])
    const odd = bytes('{"jsonrpc":"2.0","id":1,"method":"a","params":{"_meta":null}}')
    expect(metaMember(odd, scan(odd), 'a')).toBeUndefined()
  })
})

describe('builders', () => {
  test.each<[string, Buffer, string]>([
    [
      'a request',
      requestFrame('"a"', 'x/y', { a: [1] }),
      '{"jsonrpc":"2.0","id":"a","method":"x/y","params":{"a":[1]}}',
    ],
    ['a request without params', requestFrame('1.0', 'x"y'), '{"jsonrpc":"2.0","id":1.0,"method":"x\\"y"}'],
    ['a notification', notificationFrame('x', {}), '{"jsonrpc":"2.0","method":"x","params":{}}'],
    ['a notification without params', notificationFrame('é'), '{"jsonrpc":"2.0","method":"é"}'],
    ['a result', resultFrame('1', { a: 1 }), '{"jsonrpc":"2.0","id":1,"result":{"a":1}}'],
    ['an empty result', resultFrame('1'), '{"jsonrpc":"2.0","id":1,"result":{}}'],
    [
      'an error',
      errorFrame('1', { code: -1, message: 'no' }),
      '{"jsonrpc":"2.0","id":1,"error":{"code":-1,"message":"no"}}',
    ],
    [
      'an error with data',
      errorFrame(undefined, { code: -1, message: '', data: null }),
      '{"jsonrpc":"2.0","error":{"code":-1,"message":"","data":null}}',
    ],
  ])('make %s', (_name, frame, expected) => {
    expect(frame.toString()).toBe(expected)
    expect(() => scan(frame)).not.toThrow()
  })

  test('take nothing but code, message and data from an error', () => {
    const error = Object.assign(new Error('no'), { code: -1, path: '/secret' })
    expect(errorFrame('1', error).toString()).toBe('{"jsonrpc":"2.0","id":1,"error":{"code":-1,"message":"no"}}')
  })
})

describe('elementsOfBatch', () => {
  const texts = (text: string) => elementsOfBatch(bytes(text))?.map((it) => Buffer.from(it).toString())

  test('gives the elements of an array, and nothing for what is none', () => {
    expect(texts(' [ {"a":1.0} ,2,[3] ] ')).toEqual(['{"a":1.0}', '2', '[3]'])
    expect(texts(' {"a":[1]}')).toBeUndefined()
    expect(texts('')).toBeUndefined()
  })

  test('leaves an element that nests too deep to its own scan', () => {
    const deep = `{"a":${'['.repeat(600)}${']'.repeat(600)}}`
    expect(texts(`[1,${deep},2]`)).toEqual(['1', deep, '2'])
  })

  test('takes 1,000', () => {
    expect(texts(`[${'1,'.repeat(999)}1]`)).toHaveLength(1_000)
  })

  test.each<[string | Buffer, object]>([
    ['[]', { code: -32600, message: 'Invalid request: empty batch' }],
    [`[${'1,'.repeat(1_000)}1]`, { code: -32600, message: 'Invalid request: over 1000 messages in a batch' }],
    ['[1', { code: -32700, message: 'Parse error: Unexpected end of JSON text' }],
    ['[1,]', { code: -32700, message: 'Parse error: Unexpected byte at offset 3' }],
    ['[1] 2', { code: -32700, message: 'Parse error: Unexpected byte at offset 4' }],
    [Buffer.from([0x5b, 0x22, 0xff, 0x22, 0x5d]), { code: -32700, message: 'Parse error: not UTF-8' }],
  ])('refuses %.20s', (text, expected) => {
    expect.assertions(1)
    try {
      elementsOfBatch(Buffer.from(text as string))
    } catch (error) {
      expect(refused(error)).toEqual(expected)
    }
  })
})

describe('Message', () => {
  const text =
    '{"jsonrpc":"2.0", "id":1, "method":"tools/call", "params":{"name":"a", "arguments":{"n":1.0,"n":1e400}}}'
  const message = (of = text) => new Message(bytes(of))
  // biome-ignore lint/suspicious/noExplicitAny: a middleware may do anything
  const any = (of: Message) => of.value as any

  test('is scanned when it is made, and parsed when it is read', () => {
    expect(message().head.method).toBe('tools/call')
    expect(() => message('{}')).toThrow(Refusal)
    const one = message()
    expect(one.text).toBe(text)
    expect(one.value).toEqual(JSON.parse(text))
    expect(one.value).toBe(one.value)
    // A head that is handed in is not made again.
    const head = scan(bytes(text))
    expect(new Message(bytes('not JSON'), head).head).toBe(head)
  })

  test.each(corpus)('is unchanged when it was only read: $name', ({ text }) => {
    const one = message(text)
    expect(one.changed()).toBeUndefined()
    expect(one.value).toEqual(JSON.parse(text))
    expect([one.changed(), one.changed()]).toEqual([undefined, undefined])
    expect(one.value).toBe(one.value)
    expect(Buffer.from(one.frame).toString()).toBe(text)
  })

  test('becomes another message when its value was changed in place', () => {
    const one = message()
    const { value } = one
    any(one).params.name = 'b'
    const two = one.changed()!
    expect(two.text).toBe(text.replace('"name":"a"', '"name":"b"'))
    expect(two.head.name).toBe('b')
    // The object lives on in the new message; the old one is what it was.
    expect(two.value).toBe(value)
    expect(one.value).toEqual(JSON.parse(text))
    expect([one.changed(), two.changed()]).toEqual([undefined, undefined])
    any(two).params.name = 'c'
    expect(two.changed()!.text).toBe(text.replace('"name":"a"', '"name":"c"'))
  })

  test('becomes another message when its value was replaced', () => {
    const one = message('{"jsonrpc":"2.0","id":1,"method":"a","params":{"n":1.0}}')
    one.replace({ jsonrpc: '2.0', id: 1, method: 'b', params: { n: 1 } })
    expect(one.changed()?.text).toBe('{"jsonrpc":"2.0","id":1,"method":"b","params":{"n":1.0}}')
    one.replace({ method: 'a', id: 1, jsonrpc: '2.0', params: { n: 1 } })
    expect(one.changed()).toBeUndefined()
  })

  test('sees every change, however often it was asked', () => {
    const one = message('{"jsonrpc":"2.0", "id":1,"result":{"a":1e400,"b":[]}}')
    expect([any(one).result.a, one.changed()]).toEqual([Number.POSITIVE_INFINITY, undefined])
    any(one).result.a = null
    expect(one.changed()?.text).toBe('{"jsonrpc":"2.0", "id":1,"result":{"a":null,"b":[]}}')
    any(one).result.b.push(1)
    expect(one.changed()?.text).toBe('{"jsonrpc":"2.0", "id":1,"result":{"a":1e400,"b":[1]}}')
  })

  test('is the same again when a change was taken back', () => {
    const one = message()
    any(one).params.name = 'b'
    any(one).params.name = 'a'
    expect(one.changed()).toBeUndefined()
  })

  const request = { jsonrpc: '2.0', id: 1, method: 'a' }
  const deep = () => JSON.parse(`${'['.repeat(600)}${']'.repeat(600)}`) as unknown
  test.each<[unknown, string]>([
    [{ ...request, id: 2 }, 'a middleware may not change the id of a message: expected 1, got 2'],
    [{ ...request, id: '1' }, 'a middleware may not change the id of a message: expected 1, got "1"'],
    [
      { jsonrpc: '2.0', method: 'a' },
      'a middleware may not change the kind of a message: expected request, got notification',
    ],
    [
      { jsonrpc: '2.0', id: 1, result: {} },
      'a middleware may not change the kind of a message: expected request, got response',
    ],
    [{ id: 1, method: 'a' }, 'a middleware made a message illegal: Invalid request: expected jsonrpc "2.0"'],
    [
      { ...request, method: 1 },
      'a middleware made a message illegal: Invalid request: expected a method that is a string',
    ],
    [{ ...request, Method: 'b' }, 'a middleware made a message illegal: Invalid request: ambiguous member "method"'],
    [
      { ...request, params: deep() },
      'a middleware made a message illegal: Invalid request: nested deeper than 512 levels',
    ],
    [undefined, 'expected a JSON value, got undefined'],
    [null, 'a middleware made a message illegal: Invalid request: expected an object'],
    [{ ...request, params: { n: 1n } }, 'Do not know how to serialize a BigInt'],
  ])('says what is wrong with a change: $1', (value, problem) => {
    const one = message('{"jsonrpc":"2.0","id":1,"method":"a","params":{}}')
    one.replace(value as JSONRPCMessage)
    expect(() => one.changed()).toThrow(new TypeError(problem))
  })

  test('keeps an id that JavaScript cannot hold', () => {
    const one = message('{"jsonrpc":"2.0","id":9007199254740993,"method":"a"}')
    any(one).method = 'b'
    expect(one.changed()?.text).toBe('{"jsonrpc":"2.0","id":9007199254740993,"method":"b"}')
  })

  test('is read from a part of a larger buffer', () => {
    const line = new Uint8Array(bytes(`xxx${text}\n`))
    const one = new Message(line.subarray(3, line.length - 1))
    expect([one.text, one.head.name]).toEqual([text, 'a'])
  })
})
