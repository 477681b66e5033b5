import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { proxyError } from '../../src/error.js'
import { Opening } from '../../src/upstream/backoff.js'
import { RestartingUpstream } from '../../src/upstream/restart.js'
import { listenTo, notification, refusalOf, request, result } from '../fixtures/http-server.js'
import { HandWire, proxys } from '../fixtures/played.js'

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] })
  vi.spyOn(Math, 'random').mockReturnValue(0)
})

afterEach(() => {
  vi.restoreAllMocks()
  vi.useRealTimers()
})

/** Lets go by what needs no time. */
const turn = () => vi.advanceTimersByTimeAsync(0)
const exited = (phase: 'sent' | 'not_sent' = 'sent') => proxyError('upstream_exited', { phase, detail: 'exit code 3' })
const lost = (phase: 'sent' | 'not_sent', code = -31001, text = 'Upstream exited: exit code 3') =>
  proxys(code, text, code === -31001 ? 'upstream_exited' : 'upstream_session_lost', phase, true)

/** A wire whose upstreams are in the hands of the test, one behind the other. */
async function restarting(options: { opening?: Opening; plan?: (upstream: HandWire, nth: number) => void } = {}) {
  const upstreams: HandWire[] = []
  const restarts: number[] = []
  const wire = new RestartingUpstream({
    make: () => {
      const upstream = new HandWire()
      upstreams.push(upstream)
      options.plan?.(upstream, upstreams.length)
      return upstream
    },
    opening: options.opening,
    onRestart: () => restarts.push(upstreams.length),
  })
  const heard = listenTo(wire)
  await wire.start()
  return { wire, upstreams, restarts, ...heard, last: () => upstreams.at(-1)! }
}

const hello = { protocolVersion: '2025-11-25', capabilities: {} }

/** The same, behind a handshake. */
async function settled(options: Parameters<typeof restarting>[0] = {}) {
  const all = await restarting(options)
  const { wire, last, frames } = all
  void wire.send(request(0, 'initialize', { ...hello, name: 1.0 }))
  last().say(result(0, hello))
  void wire.send(notification('notifications/initialized'))
  last().take()
  frames.splice(0)
  return all
}

/** The one upstream ends, the next answers the handshake. */
async function replaced(all: Awaited<ReturnType<typeof restarting>>) {
  const before = all.upstreams.length
  all.last().onclose?.(exited())
  await vi.advanceTimersByTimeAsync(250)
  expect(all.upstreams).toHaveLength(before + 1)
  const [initialize] = all.last().take()
  all.last().say(result(String(initialize!.id), hello))
  await turn()
}

describe('an upstream that ends', () => {
  it('gives each request that was sent its one error, in order, and takes back what it asked itself', async () => {
    const { wire, last, messages, closes } = await settled()
    void wire.send(request(1, 'tools/call', { name: 'a' }))
    void wire.send(request('1', 'tools/call', { name: 'a' }))
    void wire.send(request(2, 'tools/call', { name: 'b' }))
    last().say(result(2, { b: 1 }))
    last().say({ id: 0, method: 'roots/list' })
    last().say({ id: 'x', method: 'sampling/createMessage' })
    void wire.send(Buffer.from(JSON.stringify(result(0, { roots: [] }))))
    last().onclose?.(exited())
    expect(messages()).toEqual([
      result(2, { b: 1 }),
      { jsonrpc: '2.0', id: 0, method: 'roots/list' },
      { jsonrpc: '2.0', id: 'x', method: 'sampling/createMessage' },
      { jsonrpc: '2.0', id: 1, error: lost('sent') },
      { jsonrpc: '2.0', id: '1', error: lost('sent') },
      { jsonrpc: '2.0', method: 'notifications/cancelled', params: { requestId: 'x' } },
    ])
    expect(closes).toEqual([])
  })

  it('is replaced by one that is told what its client had settled with it, before anything else', async () => {
    const all = await settled()
    const { wire, upstreams, restarts, messages } = all
    const settle = [
      request(1, 'logging/setLevel', { level: 'error' }),
      request(2, 'logging/setLevel', { level: 'debug' }),
      request(3, 'resources/subscribe', { uri: 'a:1' }),
      request(4, 'resources/subscribe', { uri: 'b:2' }),
      request(5, 'resources/subscribe', { uri: 'c:3' }),
      request(6, 'resources/unsubscribe', { uri: 'a:1' }),
      request(7, 'resources/subscribe', { uri: 'd:4' }),
    ]
    for (const [index, it] of settle.entries()) {
      void wire.send(it)
      if (index === 4) all.last().say({ id: 5, error: { code: -32002, message: 'no such resource' } })
      else if (index < 6) all.last().say(result(index + 1))
    }
    all.last().take()
    all.last().onclose?.(exited())
    const held = refusalOf(wire.send(request(8, 'tools/call', { name: 'a', arguments: { n: 1 } })))
    await vi.advanceTimersByTimeAsync(249)
    expect(upstreams).toHaveLength(1)
    await vi.advanceTimersByTimeAsync(1)
    const [initialize, ...early] = upstreams[1]!.take()
    expect([initialize, early]).toEqual([
      { id: expect.stringMatching(/^omp-/), method: 'initialize', params: { ...hello, name: 1 } },
      [],
    ])
    expect(restarts).toEqual([])
    upstreams[1]!.say(result(String(initialize!.id), hello))
    await turn()
    expect(upstreams[1]!.take()).toEqual([
      { method: 'notifications/initialized' },
      { id: expect.stringMatching(/^omp-/), method: 'logging/setLevel', params: { level: 'debug' } },
      { id: expect.stringMatching(/^omp-/), method: 'resources/subscribe', params: { uri: 'b:2' } },
      { id: 8, method: 'tools/call', params: { name: 'a', arguments: { n: 1 } } },
    ])
    expect([restarts, await held]).toEqual([[2], 'sent'])
    expect(messages().slice(-1)).toEqual([{ jsonrpc: '2.0', id: 7, error: lost('sent') }])
  })

  it('need not have taken notifications/initialized for the next one to be told', async () => {
    const { wire, last } = await restarting()
    void wire.send(request(0, 'initialize', hello))
    last().say(result(0, hello))
    last().sending = () => Promise.reject(exited('sent'))
    expect(await refusalOf(wire.send(notification('notifications/initialized')))).toEqual(lost('sent'))
    last().onclose?.(exited())
    await vi.advanceTimersByTimeAsync(250)
    last().say(result(String(last().take()[0]!.id), hello))
    await turn()
    expect(last().take()).toEqual([{ method: 'notifications/initialized' }])
  })

  it('has nothing more to say once it is replaced', async () => {
    const all = await settled()
    await replaced(all)
    const { wire, upstreams, messages } = all
    void wire.send(request(1, 'tools/list'))
    upstreams[1]!.say(result(1, { tools: [] }))
    expect(messages()).toEqual([result(1, { tools: [] })])
    expect(upstreams[0]!.log).toEqual(['start', 'close'])
  })

  it('ends the session where it never answered anything', async () => {
    const { wire, last, messages, closes, upstreams } = await restarting()
    void wire.send(request(0, 'initialize'))
    last().say({ method: 'notifications/message', params: { level: 'info', data: 'hi' } })
    const reason = exited()
    last().onclose?.(reason)
    await vi.advanceTimersByTimeAsync(60_000)
    expect([messages().length, closes, upstreams.length]).toEqual([1, [reason], 1])
  })

  it('needs no handshake where there was none (2026-07-28)', async () => {
    const all = await restarting()
    const { wire, upstreams, messages } = all
    void wire.send(request(1, 'server/discover'))
    all.last().say(result(1))
    all.last().onclose?.(exited())
    const held = refusalOf(wire.send(request(2, 'tools/list')))
    await vi.advanceTimersByTimeAsync(250)
    expect([upstreams[1]!.take(), await held]).toEqual([[{ id: 2, method: 'tools/list' }], 'sent'])
    upstreams[1]!.say(result(2, { tools: [] }))
    expect(messages()).toEqual([result(1), result(2, { tools: [] })])
  })
})

describe('what comes while there is no upstream', () => {
  it('waits, and is sent in order; what speaks of the lost one is dropped', async () => {
    const all = await settled()
    const { wire, last } = all
    last().say({ id: 'q', method: 'roots/list' })
    last().onclose?.(exited())
    const sent = [
      wire.send(request(1, 'tools/call', { name: 'a' })),
      wire.send(notification('notifications/roots/list_changed')),
      wire.send(Buffer.from(JSON.stringify(result('q', { roots: [] })))),
      wire.send(notification('notifications/cancelled', { requestId: 77 })),
      wire.send(notification('notifications/progress', { progressToken: 1, progress: 1 })),
      wire.send(request(2, 'tools/call', { name: 'b' })),
    ].map(refusalOf)
    await vi.advanceTimersByTimeAsync(250)
    const [initialize] = last().take()
    last().say(result(String(initialize!.id), hello))
    expect(await Promise.all(sent)).toEqual(Array(6).fill('sent'))
    expect(last().take()).toEqual([
      { method: 'notifications/initialized' },
      { id: 1, method: 'tools/call', params: { name: 'a' } },
      { method: 'notifications/roots/list_changed' },
      { id: 2, method: 'tools/call', params: { name: 'b' } },
    ])
  })

  it('is not sent where its sender takes it back', async () => {
    const all = await settled()
    const { wire, last } = all
    last().onclose?.(exited())
    const sent = [wire.send(request(1, 'x')), wire.send(notification('notifications/cancelled', { requestId: 1 }))]
    expect(await Promise.all(sent.map(refusalOf))).toEqual(['sent', 'sent'])
    await vi.advanceTimersByTimeAsync(250)
    const [initialize] = last().take()
    last().say(result(String(initialize!.id), hello))
    await turn()
    expect(last().take()).toEqual([{ method: 'notifications/initialized' }])
  })

  it('waits for 30 seconds at most, and then no more until there is one again', async () => {
    const all = await settled({
      plan: (upstream, nth) => {
        if (nth > 1 && nth < 9)
          upstream.starting = () => Promise.reject(proxyError('upstream_unreachable', { detail: 'ENOENT' }))
      },
    })
    const { wire, last, upstreams } = all
    last().onclose?.(exited())
    const early = refusalOf(wire.send(request(1, 'x')))
    await vi.advanceTimersByTimeAsync(29_000)
    const late = refusalOf(wire.send(request(2, 'x')))
    await vi.advanceTimersByTimeAsync(1_000)
    const gone = proxys(-31009, 'Upstream unreachable: ENOENT', 'upstream_unreachable', 'not_sent', true)
    expect([await early, await late, await refusalOf(wire.send(request(3, 'x')))]).toEqual([gone, gone, gone])
    // 0.25 + 0.5 + 1 + 2 + 4 + 8 s, then 16 more, then 30 each.
    expect(upstreams).toHaveLength(7)
    await vi.advanceTimersByTimeAsync(1_750 + 30_000 - 1)
    expect(upstreams).toHaveLength(8)
    await vi.advanceTimersByTimeAsync(1)
    expect(upstreams).toHaveLength(9)
    last().say(result(String(last().take()[0]!.id), hello))
    await turn()
    expect(await refusalOf(wire.send(request(4, 'x')))).toBe('sent')
    expect(last().take()).toEqual([{ method: 'notifications/initialized' }, { id: 4, method: 'x' }])
  })

  it('may take back what was just sent to one that is being made ready', async () => {
    const { wire, last } = await settled()
    last().onclose?.(exited())
    for (const it of [request(1, 'x'), request(2, 'y')]) void wire.send(it)?.catch(() => {})
    await vi.advanceTimersByTimeAsync(250)
    const upstream = last()
    upstream.sending = (text) => (text.includes('"y"') ? new Promise(() => {}) : undefined)
    upstream.say(result(String(upstream.take()[0]!.id), hello))
    await turn()
    upstream.take()
    for (const requestId of [1, 2]) void wire.send(notification('notifications/cancelled', { requestId }))
    expect(upstream.take()).toEqual(
      [1, 2].map((requestId) => ({ method: 'notifications/cancelled', params: { requestId } })),
    )
  })

  it('may be an answer to one that is being made ready', async () => {
    const all = await settled()
    const { wire, last, messages } = all
    last().onclose?.(exited())
    await vi.advanceTimersByTimeAsync(250)
    const upstream = last()
    upstream.sending = (text) => (text.includes('initialized') ? new Promise(() => {}) : undefined)
    upstream.say(result(String(upstream.take()[0]!.id), hello))
    await turn()
    upstream.take()
    upstream.say({ id: 9, method: 'ping' })
    expect(messages()).toEqual([{ jsonrpc: '2.0', id: 9, method: 'ping' }])
    void wire.send(Buffer.from(JSON.stringify(result(9))))
    expect(upstream.take()).toEqual([{ id: 9, result: {} }])
  })
})

describe('what an upstream that is no more has not taken', () => {
  it('waits for the next one: not what may have been seen', async () => {
    const all = await settled()
    const { wire, last, messages } = all
    last().sending = (text) => Promise.reject(exited(text.includes('half') ? 'sent' : 'not_sent'))
    const half = refusalOf(wire.send(request(1, 'half')))
    expect(await half).toEqual(lost('sent'))
    const unseen = refusalOf(wire.send(request(2, 'unseen')))
    const behind = refusalOf(wire.send(request(3, 'behind')))
    await turn()
    await replaced(all)
    expect([await unseen, await behind]).toEqual(['sent', 'sent'])
    expect(last().take()).toEqual([
      { method: 'notifications/initialized' },
      { id: 2, method: 'unseen' },
      { id: 3, method: 'behind' },
    ])
    expect(messages()).toEqual([])
  })

  it('keeps its place before what came behind it', async () => {
    const all = await settled()
    const { wire, last } = all
    const refusals: ((error: Error) => void)[] = []
    last().sending = () => new Promise((_resolve, reject) => void refusals.push(reject))
    const sent = [1, 2].map((nth) => refusalOf(wire.send(notification('told', { nth }))))
    last().onclose?.(exited())
    sent.push(refusalOf(wire.send(request(3, 'asked'))))
    for (const refuse of refusals) refuse(exited('not_sent'))
    await vi.advanceTimersByTimeAsync(250)
    last().say(result(String(last().take()[0]!.id), hello))
    expect(await Promise.all(sent)).toEqual(['sent', 'sent', 'sent'])
    expect(last().take()).toEqual([
      { method: 'notifications/initialized' },
      { method: 'told', params: { nth: 1 } },
      { method: 'told', params: { nth: 2 } },
      { id: 3, method: 'asked' },
    ])
  })

  it('is not kept where the server is only out of reach for now', async () => {
    const { wire, last, upstreams } = await settled()
    last().sending = () => Promise.reject(proxyError('upstream_unreachable', { detail: 'ECONNREFUSED' }))
    expect(await refusalOf(wire.send(request(1, 'x')))).toEqual(
      proxys(-31009, 'Upstream unreachable: ECONNREFUSED', 'upstream_unreachable', 'not_sent', true),
    )
    expect(upstreams).toHaveLength(1)
  })

  it('does not wait for ever where that one never tells of its end', async () => {
    const all = await settled()
    const { wire, last, upstreams } = all
    last().sending = () => Promise.reject(exited('not_sent'))
    const held = refusalOf(wire.send(request(1, 'x')))
    await vi.advanceTimersByTimeAsync(30_000)
    expect([await held, upstreams.length]).toEqual([lost('not_sent'), 1])
    await vi.advanceTimersByTimeAsync(250)
    last().say(result(String(last().take()[0]!.id), hello))
    await turn()
    void wire.send(request(2, 'x'))
    expect(last().take()).toEqual([{ method: 'notifications/initialized' }, { id: 2, method: 'x' }])
  })

  it('is sent once more where it was refused unread, and only once', async () => {
    const all = await settled()
    const { wire, last, messages, frames } = all
    const refuse = (id: number) =>
      last().say(
        { id, error: lost('not_sent', -31004, 'Upstream session lost') },
        { relatedRequestId: id, isUnread: true },
      )
    void wire.send(request(1, 'tools/call', { name: 'a' }))
    void wire.send(request(2, 'tools/call', { name: 'b' }))
    void wire.send(request(3, 'tools/call', { name: 'c' }))
    refuse(1)
    const held = refusalOf(wire.send(request(4, 'x')))
    refuse(2)
    last().onclose?.(proxyError('upstream_session_lost', { phase: 'sent' }))
    expect(messages()).toEqual([{ jsonrpc: '2.0', id: 3, error: lost('sent', -31004, 'Upstream session lost') }])
    frames.splice(0)
    await vi.advanceTimersByTimeAsync(250)
    last().say(result(String(last().take()[0]!.id), hello))
    expect(await held).toBe('sent')
    expect(
      last()
        .take()
        .map(({ id }) => id),
    ).toEqual([undefined, 1, 2, 4])
    refuse(1)
    expect(messages()).toEqual([{ jsonrpc: '2.0', id: 1, error: lost('not_sent', -31004, 'Upstream session lost') }])
  })

  it('has one error where the next one is lost while it is sent once more', async () => {
    const { wire, last, messages, frames } = await settled()
    void wire.send(request(1, 'tools/call', { name: 'a' }))
    last().say({ id: 1, error: {} }, { relatedRequestId: 1, isUnread: true })
    last().onclose?.(proxyError('upstream_session_lost', { phase: 'sent' }))
    await vi.advanceTimersByTimeAsync(250)
    const second = last()
    let refuse = (_error: Error) => {}
    second.sending = (text) =>
      text.includes('tools/call')
        ? new Promise((_resolve, reject) => {
            refuse = reject
          })
        : undefined
    second.say(result(String(second.take()[0]!.id), hello))
    await turn()
    frames.splice(0)
    second.onclose?.(exited())
    refuse(exited('sent'))
    await turn()
    expect(messages()).toEqual([{ jsonrpc: '2.0', id: 1, error: lost('sent') }])
  })

  it('has its error after 30 seconds, too, where it was refused', async () => {
    const { wire, last, messages } = await settled({
      plan: (upstream, nth) => {
        if (nth > 1) upstream.starting = () => Promise.reject(proxyError('upstream_unreachable'))
      },
    })
    void wire.send(request(1, 'tools/call', { name: 'a' }))
    last().say({ id: 1, error: {} }, { relatedRequestId: 1, isUnread: true })
    last().onclose?.(proxyError('upstream_session_lost', { phase: 'sent' }))
    await vi.advanceTimersByTimeAsync(29_999)
    expect(messages()).toEqual([])
    await vi.advanceTimersByTimeAsync(1)
    expect(messages()).toEqual([
      {
        jsonrpc: '2.0',
        id: 1,
        error: proxys(-31009, 'Upstream unreachable', 'upstream_unreachable', 'not_sent', true),
      },
    ])
  })
})

describe('the next upstream', () => {
  it('is given up where it refuses the handshake, speaks another revision, or takes too long', async () => {
    const all = await settled()
    const { last, upstreams, errors } = all
    last().onclose?.(exited())
    await vi.advanceTimersByTimeAsync(250)
    last().say({ id: last().take()[0]!.id, error: { code: -32602, message: 'no' } })
    await vi.advanceTimersByTimeAsync(500)
    last().say(result(String(last().take()[0]!.id), { ...hello, protocolVersion: '2025-06-18' }))
    await vi.advanceTimersByTimeAsync(1_000 + 30_000 + 2_000)
    expect(upstreams.map(({ log }) => log)).toEqual([...Array(4).fill(['start', 'close']), ['start']])
    expect(errors.map(({ message }) => message)).toEqual([
      'Upstream exited: exit code 3; it is tried again',
      'Upstream session lost: it refused the handshake; it is tried again',
      'Upstream session lost: it speaks another revision now; it is tried again',
      'Upstream timed out: to become ready; it is tried again',
    ])
  })

  it('may be lost while what waited is sent to it: nothing is sent twice, nothing is lost', async () => {
    const all = await settled()
    const { wire, last, messages, upstreams } = all
    last().onclose?.(exited())
    const sent = [1, 2, 3].map((id) => refusalOf(wire.send(request(id, 'x'))))
    await vi.advanceTimersByTimeAsync(250)
    const second = last()
    second.sending = (text) => {
      if (!text.includes('"id":2')) return undefined
      setTimeout(() => second.onclose?.(exited()))
      return Promise.reject(exited('not_sent'))
    }
    second.say(result(String(second.take()[0]!.id), hello))
    await turn()
    expect(second.take().map(({ id }) => id)).toEqual([undefined, 1, 2])
    await vi.advanceTimersByTimeAsync(500)
    expect(messages()).toEqual([{ jsonrpc: '2.0', id: 1, error: lost('sent') }])
    expect(upstreams).toHaveLength(3)
    last().say(result(String(last().take()[0]!.id), hello))
    expect(await Promise.all(sent)).toEqual(['sent', 'sent', 'sent'])
    expect(
      last()
        .take()
        .map(({ id }) => id),
    ).toEqual([undefined, 2, 3])
  })

  it('may be lost at the very moment in which it is ready', async () => {
    for (let turns = 0; turns < 20; turns++) {
      const { wire, last } = await settled()
      last().onclose?.(exited())
      await vi.advanceTimersByTimeAsync(250)
      const second = last()
      second.say(result(String(second.take()[0]!.id), hello))
      for (let turn = 0; turn < turns; turn++) await undefined
      second.sending = () => Promise.reject(exited('not_sent'))
      second.onclose?.(exited())
      await turn()
      const held = refusalOf(wire.send(request(1, 'x')))
      await vi.advanceTimersByTimeAsync(500)
      last().say(result(String(last().take()[0]!.id), hello))
      expect([turns, await held, last().take()]).toEqual([
        turns,
        'sent',
        [expect.objectContaining({ method: 'notifications/initialized' }), { id: 1, method: 'x' }],
      ])
    }
  })

  it('may answer us and say more in one batch', async () => {
    const { last, messages } = await settled()
    last().onclose?.(exited())
    await vi.advanceTimersByTimeAsync(250)
    const answer = result(String(last().take()[0]!.id), hello)
    last().say(JSON.stringify([{ jsonrpc: '2.0', method: 'a' }, answer, { jsonrpc: '2.0', method: 'b' }]))
    await turn()
    expect(last().take()).toEqual([{ method: 'notifications/initialized' }])
    expect(messages()).toEqual(['a', 'b'].map((method) => ({ jsonrpc: '2.0', method })))
  })

  it('is waited for ever longer where each one ends at once, and shortly again where one lasted', async () => {
    const all = await settled()
    for (const wait of [250, 500, 1_000]) {
      all.last().onclose?.(exited())
      await vi.advanceTimersByTimeAsync(wait - 1)
      const before = all.upstreams.length
      await vi.advanceTimersByTimeAsync(1)
      expect(all.upstreams).toHaveLength(before + 1)
      all.last().say(result(String(all.last().take()[0]!.id), hello))
      await turn()
    }
    await vi.advanceTimersByTimeAsync(30_001)
    await replaced(all)
  })

  it('is paused where the line is', async () => {
    const all = await settled()
    all.wire.pause()
    await replaced(all)
    expect(all.last().log).toEqual(['pause', 'start'])
    all.wire.resume()
    expect(all.last().log).toEqual(['pause', 'start', 'resume'])
  })

  it('is told of by an event whose listener may throw', async () => {
    const wire = new HandWire()
    const next = new HandWire()
    const wires = [wire, next]
    const upstream = new RestartingUpstream({
      make: () => wires.shift()!,
      onRestart: () => {
        throw new Error('a listener')
      },
    })
    const { errors } = listenTo(upstream)
    await upstream.start()
    void upstream.send(request(1, 'x'))
    wire.say(result(1))
    wire.onclose?.(exited())
    await vi.advanceTimersByTimeAsync(250)
    void upstream.send(request(2, 'x'))
    expect(next.take()).toEqual([{ id: 2, method: 'x' }])
    expect(errors.map(({ message }) => message)).toEqual([
      'Upstream exited: exit code 3; it is tried again',
      'a listener',
    ])
  })
})

describe('closing', () => {
  it.each(['up', 'down', 'being made ready'])('leaves nothing behind: %s', async (state) => {
    const all = await settled()
    const { wire, last, closes, errors } = all
    let held: Promise<unknown> | undefined
    if (state !== 'up') {
      last().onclose?.(exited())
      held = refusalOf(wire.send(request(1, 'x')))
      await turn()
      if (state !== 'down') await vi.advanceTimersByTimeAsync(250)
    }
    last().closing = async () => last().onclose?.()
    await Promise.all([wire.close(), wire.close({ urgent: true })])
    expect(closes).toEqual([undefined])
    expect(errors).toHaveLength(state === 'up' ? 0 : 1)
    expect(vi.getTimerCount()).toBe(0)
    if (held) expect(await held).toEqual(proxys(-31008, 'Shutting down', 'shutting_down', 'not_sent', true))
    await vi.advanceTimersByTimeAsync(60_000)
    expect(all.upstreams).toHaveLength(state === 'being made ready' ? 2 : 1)
  })
})

describe('an upstream that cannot be started', () => {
  it('is not tried again by others until its time has come', async () => {
    const opening = new Opening()
    const fault = proxyError('upstream_unreachable', { detail: 'the command was not found' })
    let tries = 0
    const attempt = async () => {
      const wire = new RestartingUpstream({
        make: () => {
          const upstream = new HandWire()
          upstream.starting = () => {
            tries += 1
            return Promise.reject(fault)
          }
          return upstream
        },
        opening,
      })
      await expect(wire.start()).rejects.toBe(fault)
    }
    await attempt()
    await attempt()
    expect(tries).toBe(1)
    await vi.advanceTimersByTimeAsync(250)
    await attempt()
    await vi.advanceTimersByTimeAsync(499)
    await attempt()
    expect(tries).toBe(2)
    await vi.advanceTimersByTimeAsync(1)
    const all = await restarting({ opening })
    void all.wire.send(request(1, 'x'))
    all.last().onclose?.(exited())
    await expect(new RestartingUpstream({ make: () => new HandWire(), opening }).start()).rejects.toThrow('exit code 3')
    await vi.advanceTimersByTimeAsync(1_000)
    const good = await restarting({ opening })
    void good.wire.send(request(1, 'x'))
    good.last().say(result(1))
    await restarting({ opening })
  })

  it('is waited for no longer where many have failed together', async () => {
    const opening = new Opening()
    const fault = proxyError('upstream_unreachable', { detail: 'the command was not found' })
    const attempts = Array.from({ length: 20 }, () => {
      const upstream = new HandWire()
      upstream.starting = () => turn().then(() => Promise.reject(fault))
      return new RestartingUpstream({ make: () => upstream, opening }).start()
    })
    for (const attempt of attempts) await expect(attempt).rejects.toBe(fault)
    expect(opening.wait).toBeLessThanOrEqual(250)
  })

  it('is no reason to turn others away while one works: whose first message ends it has only itself to blame', async () => {
    const opening = new Opening()
    const good = await restarting({ opening })
    void good.wire.send(request(1, 'x'))
    good.last().say(result(1))
    const poison = async () => {
      const bad = await restarting({ opening })
      void bad.wire.send(request(1, 'poison'))
      bad.last().onclose?.(exited())
    }
    for (let turn = 0; turn < 20; turn++) await poison()
    await good.wire.close()
    await poison()
    await expect(restarting({ opening })).rejects.toThrow('exit code 3')
  })
})
