import { describe, expect, it } from 'vitest'
import { Fields } from '../../src/upstream/fields.js'

const text = (record: Record<string, string>) => new Fields(record, 'mcp.example:8080').text

describe('the headers of a request', () => {
  it('are a line each, behind those that each request has', () => {
    expect(text({ accept: 'a, b', 'x-empty': '' })).toBe(
      'host: mcp.example:8080\r\nconnection: keep-alive\r\naccept: a, b\r\nx-empty: \r\n',
    )
  })

  it('may name another host, and want the connection closed', () => {
    expect(text({ host: 'other', connection: 'close' })).toBe('host: other\r\nconnection: close\r\n')
  })

  it('do not say how long the body is: who writes it does', () => {
    expect(text({ 'content-length': '1', 'transfer-encoding': 'chunked' })).toBe(text({}))
  })

  it.each([
    ['ERR_INVALID_CHAR', { x: 'a\r\nb: c' }],
    ['ERR_INVALID_CHAR', { x: 'a\nb' }],
    ['ERR_INVALID_CHAR', { x: 'a\0' }],
    ['ERR_INVALID_CHAR', { x: '€' }],
    ['ERR_INVALID_HTTP_TOKEN', { 'x y': 'a' }],
    ['ERR_INVALID_HTTP_TOKEN', { 'x:': 'a' }],
    ['ERR_INVALID_HTTP_TOKEN', { '': 'a' }],
    ['ERR_INVALID_CHAR', { a: ['b', 'c\r\nd: e'] }],
    ['ERR_HTTP_INVALID_HEADER_VALUE', { a: undefined }],
    ['ERR_HTTP_INVALID_HEADER_VALUE', { a: null }],
  ])('are refused where they are none (%s), without a word of their value', (code, record) => {
    const thrown = (() => {
      try {
        return text(record as unknown as Record<string, string>)
      } catch (error) {
        return error as Error
      }
    })()
    expect(thrown).toMatchObject({ code, message: 'a header that cannot be sent' })
  })

  it('carry every byte that a header may', () => {
    expect(text({ x: '\t \x7e\x80\xff' })).toContain('x: \t \x7e\x80\xff\r\n')
  })
})
