import { describe, expect, it } from 'vitest'
import { Fields } from '../../src/upstream/fields.js'

const text = (record: Record<string, unknown>) => new Fields(record as Record<string, string>, 'a:1').text

describe('the headers of a request', () => {
  it('are a line each, but for those that say how long the body is', () => {
    const record = { 'x-a': 'b \xe9\t', 'content-length': '1', 'transfer-encoding': 'chunked', number: 5 }
    expect(text(record)).toBe('host: a:1\r\nconnection: keep-alive\r\nx-a: b \xe9\t\r\nnumber: 5\r\n')
    expect(text({ host: 'b' })).toBe('host: b\r\nconnection: keep-alive\r\n')
  })

  it.each([
    ['ERR_INVALID_HTTP_TOKEN', { 'a\r\nb': 'c' }],
    ['ERR_INVALID_HTTP_TOKEN', { 'a ': 'c' }],
    ['ERR_INVALID_HTTP_TOKEN', { '': 'c' }],
    ['ERR_INVALID_CHAR', { a: 'b\r\nc: d' }],
    ['ERR_INVALID_CHAR', { a: 'b\nc' }],
    ['ERR_INVALID_CHAR', { a: 'b\0' }],
    ['ERR_INVALID_CHAR', { a: '→' }],
    ['ERR_INVALID_CHAR', { a: ['b', 'c\r\nd: e'] }],
    ['ERR_HTTP_INVALID_HEADER_VALUE', { a: undefined }],
    ['ERR_HTTP_INVALID_HEADER_VALUE', { a: null }],
  ])('are refused where they cannot be sent: %s', (code, record) => {
    expect(() => text(record)).toThrow(expect.objectContaining({ code }))
  })
})
