import type { Transport } from '@modelcontextprotocol/sdk/shared/transport.js'
import type { JSONRPCMessage } from '@modelcontextprotocol/sdk/types.js'
import { FrameError, fromTransport } from 'open-mcp-proxy'
import { describe, expect, it } from 'vitest'
import { isWire } from '../src/wire.js'
import { HandWire } from './fixtures/played.js'

class HandTransport implements Transport {
  onmessage?: Transport['onmessage']
  onclose?: () => void
  onerror?: (error: Error) => void
  readonly log: unknown[] = []
  async start() {
    this.log.push('start')
  }
  async send(message: JSONRPCMessage, options?: object) {
    this.log.push(['send', message, options])
  }
  async close() {
    this.log.push('close')
    this.onclose?.()
  }
  setProtocolVersion(version: string) {
    this.log.push(['version', version])
  }
}

function adapted() {
  const transport = new HandTransport()
  const wire = fromTransport(transport)
  const heard: unknown[] = []
  wire.onframe = (frame, meta) => heard.push([new TextDecoder().decode(frame), meta])
  wire.onclose = (reason) => heard.push(['closed', reason])
  wire.onerror = (error) => heard.push(['error', error.message])
  return { transport, wire, heard }
}

const frame = (message: object) => new TextEncoder().encode(JSON.stringify({ jsonrpc: '2.0', ...message }))
const message = (it: object) => ({ jsonrpc: '2.0', ...it }) as JSONRPCMessage

describe('fromTransport', () => {
  it('hands over messages with what is known of them', async () => {
    const { transport, wire, heard } = adapted()
    await wire.start()
    transport.onmessage?.(message({ method: 'a' }))
    transport.onmessage?.(message({ method: 'b' }), {
      requestInfo: { headers: { 'x-a': '1' } },
      authInfo: { token: 't', clientId: 'c', scopes: [] },
    })
    expect(heard).toEqual([
      ['{"jsonrpc":"2.0","method":"a"}', undefined],
      [
        '{"jsonrpc":"2.0","method":"b"}',
        { headers: { 'x-a': '1' }, authInfo: { token: 't', clientId: 'c', scopes: [] } },
      ],
    ])
  })

  it('sends messages, with the request they relate to', async () => {
    const { transport, wire } = adapted()
    await wire.start()
    await wire.send(frame({ id: 1, result: {} }), { relatedRequestId: 1 })
    await wire.send(frame({ method: 'n' }))
    expect(transport.log).toEqual([
      'start',
      ['send', { jsonrpc: '2.0', id: 1, result: {} }, { relatedRequestId: 1 }],
      ['send', { jsonrpc: '2.0', method: 'n' }, { relatedRequestId: undefined }],
    ])
  })

  it('tells either side of a handshake the version that was settled, and nothing else', async () => {
    for (const side of ['client', 'server'] as const) {
      const { transport, wire } = adapted()
      await wire.start()
      const ask = message({ id: 0, method: 'initialize', params: { protocolVersion: 'asked' } })
      const answer = message({ id: 0, result: { protocolVersion: 'settled' } })
      const other = message({ id: 1, result: { protocolVersion: 'other' } })
      const encode = (it: object) => new TextEncoder().encode(JSON.stringify(it))
      if (side === 'server') {
        await wire.send(encode(ask))
        transport.onmessage?.(other)
        transport.onmessage?.(answer)
        transport.onmessage?.(answer)
      } else {
        transport.onmessage?.(ask)
        await wire.send(encode(other))
        await wire.send(encode(answer))
        await wire.send(encode(answer))
      }
      expect(transport.log.filter((it) => Array.isArray(it) && it[0] === 'version')).toEqual([['version', 'settled']])
    }
  })

  it('holds what comes while it is paused, and keeps the order when it resumes', async () => {
    const { transport, wire, heard } = adapted()
    await wire.start()
    wire.pause()
    for (const method of ['a', 'b', 'c']) transport.onmessage?.(message({ method }))
    expect(heard).toEqual([])
    const names: string[] = []
    wire.onframe = (it) => {
      const { method } = JSON.parse(new TextDecoder().decode(it))
      names.push(method)
      // What comes out of it must not overtake what is still held; a pause holds from now on.
      if (method === 'a') transport.onmessage?.(message({ method: 'd' }))
      if (method === 'b') wire.pause()
    }
    wire.resume()
    expect(names).toEqual(['a', 'b'])
    wire.resume()
    expect(names).toEqual(['a', 'b', 'c', 'd'])
    transport.onmessage?.(message({ method: 'e' }))
    expect(names).toEqual(['a', 'b', 'c', 'd', 'e'])
  })

  it('closes once, tells of it once, passes errors on', async () => {
    const { transport, wire, heard } = adapted()
    await wire.start()
    transport.onerror?.(new Error('x'))
    await Promise.all([wire.close(), wire.close({ urgent: true })])
    transport.onclose?.()
    expect({ log: transport.log, heard }).toEqual({
      log: ['start', 'close'],
      heard: [
        ['error', 'x'],
        ['closed', undefined],
      ],
    })
  })
})

it('isWire tells a wire from a transport', () => {
  expect([isWire(new HandWire()), isWire(new HandTransport())]).toEqual([true, false])
})

it('a FrameError has a code, and a head where one was read', () => {
  const head = new Uint8Array([123])
  expect({ ...new FrameError(-31007, 'over', head) }).toEqual({ name: 'FrameError', code: -31007, head })
  expect({ ...new FrameError(-32700, 'no') }).toEqual({ name: 'FrameError', code: -32700 })
})
