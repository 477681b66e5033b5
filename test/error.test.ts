import { RpcError } from 'open-mcp-proxy'
import { describe, expect, it } from 'vitest'
import { inPhase, isProxyErrorData, proxyError, reasons } from '../src/error.js'

describe('RpcError', () => {
  it('is an Error that writes itself as JSON-RPC does', () => {
    const cause = new Error('why')
    const error = new RpcError(7, 'no', { a: 1 }, { cause })
    expect(error).toBeInstanceOf(Error)
    expect([error.name, error.message, error.code, error.data, error.cause]).toEqual([
      'RpcError',
      'no',
      7,
      { a: 1 },
      cause,
    ])
    expect(JSON.stringify(error)).toBe('{"code":7,"message":"no","data":{"a":1}}')
    expect(JSON.stringify(new RpcError(7, 'no'))).toBe('{"code":7,"message":"no"}')
    expect(JSON.stringify(new RpcError(7, 'no', null))).toBe('{"code":7,"message":"no","data":null}')
  })

  it('refuses a code that is no integer', () => {
    expect(() => new RpcError(1.5, 'x')).toThrow(new TypeError('RpcError: expected an integer code, got 1.5'))
    expect(() => new RpcError('ENOENT' as never, 'x')).toThrow('got ENOENT')
  })
})

describe("the proxy's own errors", () => {
  it('lie outside the reserved range of JSON-RPC (-32768 to -32000), each with its own code', () => {
    const codes = Object.values(reasons).map(({ code }) => code)
    expect(codes).toEqual(Array.from({ length: 11 }, (_, index) => -31001 - index))
  })

  it('name the proxy as their source, the reason, the phase, and whether to try again', () => {
    expect(proxyError('overloaded').toJSON()).toEqual({
      code: -31005,
      message: 'Overloaded',
      data: { source: 'proxy', reason: 'overloaded', phase: 'not_sent', retryable: true },
    })
    const cause = new Error('secret')
    const error = proxyError('upstream_timeout', {
      detail: 'after 5 s',
      phase: 'sent',
      retryable: true,
      retryAfter: '3',
      cause,
    })
    expect(error.cause).toBe(cause)
    expect(error.toJSON()).toEqual({
      code: -31002,
      message: 'Upstream timed out: after 5 s',
      data: { source: 'proxy', reason: 'upstream_timeout', phase: 'sent', retryable: true, retryAfter: '3' },
    })
  })

  it('can be said of another phase; other errors stay as they are', () => {
    const error = proxyError('upstream_exited', { cause: 'x', retryAfter: '3' })
    expect(inPhase(error, 'sent').toJSON()).toEqual({
      ...error.toJSON(),
      data: { source: 'proxy', reason: 'upstream_exited', phase: 'sent', retryable: true, retryAfter: '3' },
    })
    expect(inPhase(error, 'sent').cause).toBe('x')
    expect(inPhase(error, 'not_sent')).toBe(error)
    const other = new RpcError(7, 'no', { phase: 'not_sent' })
    expect(inPhase(other, 'sent')).toBe(other)
  })

  it('isProxyErrorData', () => {
    expect([proxyError('denied').data, { source: 'server' }, null, 'proxy', undefined].map(isProxyErrorData)).toEqual([
      true,
      false,
      false,
      false,
      false,
    ])
  })
})
