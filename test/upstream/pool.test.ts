import { describe, expect, it, vi } from 'vitest'
import { Spare } from '../../src/spare.js'
import { Pool } from '../../src/upstream/pool.js'
import { SharedUpstream } from '../../src/upstream/shared.js'
import { FrameError, type Wire } from '../../src/wire.js'
import { listenTo, modern, notification, refusalOf, request } from '../fixtures/http-server.js'
import { deferred, HandWire, proxys, turnOfLoop } from '../fixtures/played.js'

const ID = 'io.modelcontextprotocol/subscriptionId'

/** A child in the hands of the test, and so many sessions that share it. */
async function shared(count: number, spare = new Spare(64 << 20)) {
  const wire = new HandWire()
  const told: string[] = []
  const upstream = new SharedUpstream(
    wire,
    () => told.push('end'),
    (idle) => told.push(idle ? 'idle' : 'busy'),
    spare,
  )
  const taps = await Promise.all(
    Array.from({ length: count }, async () => {
      const tap = upstream.tap()
      const heard = listenTo(tap)
      await tap.start()
      return { tap, ...heard }
    }),
  )
  return { wire, upstream, taps, told }
}

/** A tool call with this in its `_meta`. */
const asked = (id: string | number, meta: object) => request(id, 'tools/call', { name: 'a', _meta: meta })

describe('a shared upstream', () => {
  it('gives every request an id of its own, and every answer the id that its client knows, to the token', async () => {
    const { wire, taps } = await shared(6)
    const ids = ['0', '"0"', '1', '"1"', '"__proto__"', '"\\u0031"']
    for (const [index, id] of ids.entries()) {
      await taps[index]!.tap.send(Buffer.from(`{"jsonrpc":"2.0", "id": ${id} ,"method":"x","params":{"n":1.0}}`))
    }
    expect(wire.sent).toEqual(
      ids.map((_id, index) => `{"jsonrpc":"2.0", "id": ${index + 1} ,"method":"x","params":{"n":1.0}}`),
    )
    for (const index of [3, 0, 5, 1, 4, 2]) wire.say(`{"jsonrpc":"2.0","result":{"n":${index}.0},"id":${index + 1}}`)
    expect(taps.map(({ frames }) => frames.map(({ text, meta }) => [text, meta]))).toEqual(
      ids.map((id, index) => [
        [`{"jsonrpc":"2.0","result":{"n":${index}.0},"id":${id}}`, { relatedRequestId: JSON.parse(id) }],
      ]),
    )
  })

  it('gives progress to whose token it is, as that client wrote it', async () => {
    const { wire, taps } = await shared(2)
    await taps[0]!.tap.send(asked(1, { progressToken: 'tok' }))
    await taps[1]!.tap.send(asked(1, { progressToken: 7 }))
    expect(wire.take().map(({ id, params }) => [id, (params as { _meta: object })._meta])).toMatchObject([
      [1, { progressToken: 1 }],
      [2, { progressToken: 2 }],
    ])
    for (const progressToken of [2, 1, 3, 'tok']) {
      wire.say({ method: 'notifications/progress', params: { progressToken, progress: 1 } })
    }
    expect(taps.map(({ messages }) => messages())).toEqual([
      [{ jsonrpc: '2.0', method: 'notifications/progress', params: { progressToken: 'tok', progress: 1 } }],
      [{ jsonrpc: '2.0', method: 'notifications/progress', params: { progressToken: 7, progress: 1 } }],
    ])
    wire.say({ id: 1, result: {} })
    // Behind the answer nobody wants it.
    wire.say({ method: 'notifications/progress', params: { progressToken: 1, progress: 2 } })
    expect(taps[0]!.frames).toHaveLength(2)
  })

  it('lets no token of a client reach the child, however often it stands there', async () => {
    const { wire, taps } = await shared(1)
    await taps[0]!.tap.send(
      Buffer.from('{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":{"progressToken":"a","progressToken":"b"}}}'),
    )
    expect(wire.sent).toEqual([
      '{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":{"progressToken":1,"progressToken":1}}}',
    ])
  })

  it('names a subscription as its client does, in notifications and in the result that ends it', async () => {
    const { wire, taps } = await shared(2)
    await taps[0]!.tap.send(modern('s', 'subscriptions/listen'))
    await taps[1]!.tap.send(modern('s', 'subscriptions/listen'))
    wire.say({ method: 'notifications/tools/list_changed', params: { _meta: { [ID]: 2 } } })
    wire.say({ id: 1, result: { _meta: { [ID]: 1 } } })
    wire.say({ method: 'notifications/cancelled', params: { requestId: 2 } })
    expect(taps.map(({ messages }) => messages())).toEqual([
      [{ jsonrpc: '2.0', id: 's', result: { _meta: { [ID]: 's' } } }],
      [
        { jsonrpc: '2.0', method: 'notifications/tools/list_changed', params: { _meta: { [ID]: 's' } } },
        { jsonrpc: '2.0', method: 'notifications/cancelled', params: { requestId: 's' } },
      ],
    ])
  })

  it('gives a log to the one that asked for logs, if it is only one, and else to nobody', async () => {
    const { wire, taps } = await shared(3)
    const level = { 'io.modelcontextprotocol/logLevel': 'info' }
    const log = (data: string) => wire.say({ method: 'notifications/message', params: { level: 'info', data } })
    log('to nobody')
    await taps[0]!.tap.send(asked(1, {}))
    log('to nobody')
    await taps[1]!.tap.send(asked(1, level))
    log('to the second')
    await taps[2]!.tap.send(asked(1, level))
    log('to nobody')
    wire.say({ id: 2, result: {} })
    log('to the third')
    wire.say({ method: 'notifications/tools/list_changed' })
    const datas = taps.map(({ messages }) =>
      messages().flatMap((it) => (it as { params?: { data: string } }).params?.data ?? []),
    )
    expect(datas).toEqual([[], ['to the second'], ['to the third']])
  })

  it("refuses the server's own requests: nobody can be asked", async () => {
    const { wire, taps } = await shared(1)
    wire.say({ id: 9, method: 'roots/list' })
    const error = proxys(-31011, 'The client takes no requests now', 'client_unreachable', 'not_sent', false)
    expect([wire.take(), taps[0]!.frames]).toEqual([[{ id: 9, error }], []])
  })

  it('cancels what a client cancels, by our id, and drops its late answer', async () => {
    const { wire, taps } = await shared(2)
    for (const { tap } of taps) await tap.send(request('x', 'a'))
    wire.take()
    await taps[1]!.tap.send(notification('notifications/cancelled', { requestId: 'x', reason: 'r' }))
    await taps[1]!.tap.send(notification('notifications/cancelled', { requestId: 'y' }))
    expect(wire.take()).toEqual([{ method: 'notifications/cancelled', params: { requestId: 2, reason: 'r' } }])
    wire.say({ id: 2, result: {} })
    wire.say({ id: 1, result: {} })
    expect(taps.map(({ frames }) => frames.length)).toEqual([1, 0])
  })

  it('takes back the requests of a session that leaves', async () => {
    const { wire, taps, told } = await shared(2)
    await taps[0]!.tap.send(request(1, 'a'))
    await taps[1]!.tap.send(request(1, 'b'))
    wire.take()
    await taps[0]!.tap.close()
    expect(wire.take()).toEqual([{ method: 'notifications/cancelled', params: { requestId: 1 } }])
    expect(taps.map(({ closes }) => closes)).toEqual([[undefined], []])
    wire.say({ id: 2, result: {} })
    await taps[1]!.tap.close()
    expect(wire.take()).toEqual([])
    expect(told).toEqual(['busy', 'idle'])
  })

  it('tells all its sessions of its end; what is sent behind that was not sent', async () => {
    const { wire, taps, told } = await shared(2)
    wire.onclose?.()
    expect(taps.map(({ closes }) => closes.map((it) => it?.message))).toEqual([
      ['Upstream exited'],
      ['Upstream exited'],
    ])
    expect(await refusalOf(taps[0]!.tap.send(request(1, 'a')))).toMatchObject({ code: -31001 })
    expect(told[1]).toBe('end')
  })

  it('holds what a session does not read, and gives it up past a bound, without a word to the others', async () => {
    const { wire, taps } = await shared(2)
    for (const { tap } of taps) await tap.send(request(1, 'a'))
    taps[0]!.tap.pause()
    const note = (n: number) => ({ method: 'notifications/progress', params: { progressToken: 1, n } })
    await taps[0]!.tap.send(asked(2, { progressToken: 'tok' }))
    wire.say({ method: 'notifications/progress', params: { progressToken: 3, n: 1 } })
    wire.say({ id: 2, result: {} })
    expect(taps.map(({ frames }) => frames.length)).toEqual([0, 1])
    taps[0]!.tap.resume()
    expect(taps[0]!.messages()).toEqual([
      { jsonrpc: '2.0', method: 'notifications/progress', params: { progressToken: 'tok', n: 1 } },
    ])
    taps[0]!.tap.pause()
    wire.say({ ...note(1), params: { progressToken: 3, pad: 'x'.repeat(17 << 20) } })
    expect(taps[0]!.closes.map((it) => it?.message)).toEqual(['Overloaded: it does not read'])
    expect(taps[1]!.closes).toEqual([])
  })

  it('stops the child where no session reads, and only there: one that reads, or comes, has it go on', async () => {
    const { wire, taps, upstream } = await shared(2)
    const [one, other] = taps.map(({ tap }) => tap) as [Wire, Wire]
    one.pause()
    one.pause()
    expect(wire.log).toEqual(['start'])
    other.pause()
    expect(wire.log).toEqual(['start', 'pause'])
    const third = upstream.tap()
    expect(wire.log).toEqual(['start', 'pause', 'resume'])
    await third.close()
    expect(wire.log).toEqual(['start', 'pause', 'resume', 'pause'])
    other.resume()
    other.pause()
    await other.close()
    await one.close()
    one.pause()
    expect(
      wire.log
        .slice(4)
        .filter((it, index, all) => it !== all[index - 1])
        .at(-1),
    ).toBe('resume')
  })

  it('has a bound of what all may hold that do not read, beyond a MiB of each', async () => {
    const { wire, taps } = await shared(4, new Spare(2 << 20))
    const pad = 'x'.repeat(500 << 10)
    for (const { tap } of taps.slice(0, 3)) {
      await tap.send(asked(1, { progressToken: 't' }))
      tap.pause()
    }
    const say = (...tokens: number[]) => {
      for (const progressToken of tokens) wire.say({ method: 'notifications/progress', params: { progressToken, pad } })
    }
    const over = () => taps.map(({ closes }) => closes.map((it) => it?.message))
    say(1, 1, 1, 1, 1, 2, 2, 2)
    expect(over()).toEqual([[], [], [], []])
    say(2)
    expect(over()).toEqual([[], ['Overloaded: it does not read'], [], []])
    // What was held of it is free again, and so is what is read.
    say(3, 3, 3)
    taps[0]!.tap.resume()
    expect(taps[0]!.frames.length).toBe(5)
    say(3, 3, 3)
    expect(over()).toEqual([[], ['Overloaded: it does not read'], [], []])
  })

  it('fails the request whose answer cannot be read, or was too large', async () => {
    const { wire, taps } = await shared(2)
    await taps[0]!.tap.send(request('x', 'a'))
    await taps[1]!.tap.send(request('y', 'a'))
    wire.say('{"jsonrpc":"2.0","id":1,"result":{},"RESULT":{}}')
    wire.onerror?.(new FrameError(-31007, 'Message too large: over', Buffer.from('{"jsonrpc":"2.0","id":2,"result":{')))
    expect(taps.map(({ messages }) => messages())).toMatchObject([
      [{ id: 'x', error: { code: -31003 } }],
      [{ id: 'y', error: { code: -31007 } }],
    ])
  })

  it('takes nothing for its ids and tokens but these very numbers', async () => {
    const { wire, taps } = await shared(1)
    await taps[0]!.tap.send(asked('x', { progressToken: 't' }))
    await taps[0]!.tap.send(request('y', 'a'))
    for (const id of ['1', true, [1]]) {
      wire.say({ id, result: {} })
      wire.say({ method: 'notifications/progress', params: { progressToken: id } })
    }
    // Of a request that has no token there is no progress, and only a subscription is taken back by its server.
    wire.say({ method: 'notifications/progress', params: { progressToken: 2 } })
    wire.say({ method: 'notifications/cancelled', params: { requestId: 2 } })
    expect(taps[0]!.messages()).toEqual([])
    wire.say({ id: 1, result: {} })
    expect(taps[0]!.messages()).toEqual([{ jsonrpc: '2.0', id: 'x', result: {} }])
  })

  it('takes no more while the child does not read', async () => {
    const { wire, taps } = await shared(1)
    const { promise, resolve } = deferred()
    wire.sending = () => promise
    const large = taps[0]!.tap.send(request(1, 'a', { pad: 'x'.repeat(17 << 20) }))
    expect(await refusalOf(taps[0]!.tap.send(request(2, 'a')))).toMatchObject({
      code: -31005,
      data: { reason: 'overloaded', phase: 'not_sent' },
    })
    resolve()
    await large
    await taps[0]!.tap.send(request(3, 'a'))
    expect(wire.take().map(({ id }) => id)).toEqual([1, 2])
  })

  it('hands over what a child said before it ended, also to one that has paused', async () => {
    const { wire, taps } = await shared(1)
    await taps[0]!.tap.send(request('x', 'a'))
    taps[0]!.tap.pause()
    wire.say({ id: 1, result: {} })
    wire.onclose?.()
    expect([taps[0]!.messages(), taps[0]!.closes.length]).toEqual([[{ jsonrpc: '2.0', id: 'x', result: {} }], 1])
  })
})

describe('a pool', () => {
  const make = (options: { idleTimeout?: number; max?: number } = {}) => {
    const wires: HandWire[] = []
    const pool = new Pool({
      make: () => {
        const wire = new HandWire()
        wire.closing = async () => wire.onclose?.()
        wires.push(wire)
        return wire
      },
      idleTimeout: 60_000,
      max: 10,
      ...options,
    })
    return { pool, wires }
  }

  it('has one child for each principal', async () => {
    const { pool, wires } = make()
    for (const principal of ['a', 'b', undefined, 'a', 'undefined']) await pool.tap(principal).start()
    expect(wires).toHaveLength(4)
    await pool.close()
    expect(wires.map(({ log }) => log)).toEqual(Array.from({ length: 4 }, () => ['start', 'close']))
  })

  it('ends a child that was idle for so long', async () => {
    const { pool, wires } = make({ idleTimeout: 20 })
    const tap = pool.tap('a')
    await tap.start()
    await tap.close()
    await vi.waitFor(() => expect(wires[0]!.log).toEqual(['start', 'close']))
    await pool.tap('a').start()
    expect(wires).toHaveLength(2)
    await pool.close()
  })

  it('makes room by ending an idle child, and has none where all are busy', async () => {
    const { pool, wires } = make({ max: 2 })
    const idle = pool.tap('a')
    await idle.start()
    await idle.close()
    await pool.tap('b').start()
    await pool.tap('c').start()
    expect(wires[0]!.log).toEqual(['start', 'close'])
    expect(() => pool.tap('d')).toThrow('Overloaded: too many children')
    await pool.close()
  })

  it('has a new child behind one that ended, or could not be started', async () => {
    const { pool, wires } = make()
    await pool.tap('a').start()
    wires[0]!.onclose?.()
    const second = pool.tap('a')
    wires[1]!.starting = () => Promise.reject(new Error('no such command'))
    await expect(second.start()).rejects.toThrow('no such command')
    await pool.tap('a').start()
    expect(wires).toHaveLength(3)
    await pool.close()
    await turnOfLoop()
    expect(() => pool.tap('a')).toThrow('Shutting down')
  })

  it('hurries its children', async () => {
    const { pool, wires } = make()
    await pool.tap('a').start()
    const { promise, resolve } = deferred()
    wires[0]!.closing = () => promise
    const closing = pool.close()
    await turnOfLoop()
    const hurried = pool.close({ urgent: true })
    await turnOfLoop()
    expect(wires[0]!.log).toEqual(['start', 'close', 'close urgently'])
    resolve()
    await Promise.all([closing, hurried])
  })
})
