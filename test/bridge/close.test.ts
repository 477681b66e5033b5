import { Application, type Ending, RpcError, type Session } from 'open-mcp-proxy'
import { describe, expect, it } from 'vitest'
import { bridgeOf } from '../../src/bridge.js'
import { deferred, HandWire, joined, proxys, turnOfLoop } from '../fixtures/played.js'

const request = { id: 1, method: 'm' }
const shuttingDown = (phase: 'sent' | 'not_sent') => proxys(-31008, 'Shutting down', 'shutting_down', phase, true)
const exited = (phase: 'sent' | 'not_sent') => proxys(-31001, 'Upstream exited', 'upstream_exited', phase, true)
const ended = (session: Session) => bridgeOf(session)?.closed as Promise<Ending>
const never = () => new Promise<void>(() => {})

describe('the client leaves', () => {
  it('what is in flight is answered, then both ends are closed', async () => {
    const { client, server, session, errors } = await joined()
    client.say(request)
    client.onclose?.()
    await turnOfLoop()
    expect({ server: server.log, client: client.log }).toEqual({ server: ['start'], client: ['start'] })
    server.say({ method: 'notifications/progress' })
    server.say({ id: 1, result: {} })
    expect(await ended(session)).toEqual({ reason: undefined, served: true })
    expect({ back: client.take(), server: server.log, client: client.log, errors }).toEqual({
      back: [{ method: 'notifications/progress' }, { id: 1, result: {} }],
      server: ['start', 'close'],
      client: ['start', 'close'],
      errors: [],
    })
    expect(session.signal.aborted).toBe(true)
  })

  it("the server's requests get -31008, those from now on too", async () => {
    const { client, server, session } = await joined()
    client.say(request)
    server.say({ id: 's', method: 'roots/list' })
    await turnOfLoop()
    client.onclose?.()
    server.say({ id: 't', method: 'roots/list' })
    server.say({ id: 1, result: {} })
    await ended(session)
    expect(server.take()).toEqual([
      request,
      { id: 's', error: shuttingDown('sent') },
      { id: 't', error: shuttingDown('not_sent') },
    ])
  })

  it('its error is reported, and what it asked for is cancelled: it was cut off', async () => {
    const { client, server, session, errors } = await joined()
    client.say(request)
    client.say({ id: 2, method: 'm' })
    client.onclose?.(new Error('reset'))
    await ended(session)
    expect(errors).toEqual(['reset'])
    expect(server.take()).toEqual([
      request,
      { id: 2, method: 'm' },
      { method: 'notifications/cancelled', params: { requestId: 1 } },
      { method: 'notifications/cancelled', params: { requestId: 2 } },
    ])
    server.say({ method: 'n' })
    await turnOfLoop()
    expect([client.take(), errors]).toEqual([[], ['reset']])
  })

  it('and reads nothing any more: nothing is waited for', async () => {
    const client = new HandWire()
    const { server, session } = await joined(undefined, { client })
    client.say(request)
    client.say({ id: 2, method: 'm' })
    client.onclose?.()
    client.sending = () => Promise.reject(new Error('EPIPE'))
    server.say({ id: 1, result: {} })
    await ended(session)
    expect(server.log).toEqual(['start', 'close urgently'])
  })

  it('before its server has started', async () => {
    const server = new HandWire()
    const started = deferred()
    server.starting = () => started.promise
    const { client, session } = await joined(undefined, { server })
    client.say(request)
    client.onclose?.()
    await turnOfLoop()
    started.resolve()
    await turnOfLoop()
    server.say({ id: 1, result: {} })
    await ended(session)
    expect(client.take()).toEqual([{ id: 1, result: {} }])
  })
})

describe('the server is gone', () => {
  it('every pending request gets its error, held ones too, with the right phase', async () => {
    const { client, server, session } = await joined(
      (app) => app.use((ctx, next) => (ctx.id === 2 ? never() : next())),
      { drainTimeout: 5 },
    )
    client.say(request)
    client.say({ id: 2, method: 'm' })
    client.say({ id: 3, method: 'm' })
    await turnOfLoop()
    server.onclose?.()
    await turnOfLoop()
    expect(client.take()).toEqual([
      { id: 1, error: exited('sent') },
      { id: 2, error: exited('not_sent') },
      { id: 3, error: exited('not_sent') },
    ])
    client.say({ id: 4, method: 'm' })
    await turnOfLoop()
    expect(client.take()).toEqual([{ id: 4, error: exited('not_sent') }])
    expect(await ended(session)).toEqual({ reason: expect.objectContaining({ code: -31001 }), served: false })
  })

  it('with an RpcError: that is what they are told', async () => {
    const { client, server, session } = await joined()
    const why = new RpcError(-31004, 'Upstream session lost', {
      source: 'proxy',
      reason: 'upstream_session_lost',
      phase: 'not_sent',
      retryable: true,
    })
    client.say(request)
    server.onclose?.(why)
    expect(await ended(session)).toEqual({ reason: why, served: false })
    expect(client.take()).toEqual([
      { id: 1, error: proxys(-31004, 'Upstream session lost', 'upstream_session_lost', 'sent', true) },
    ])
  })

  it('an answer that is on its way arrives', async () => {
    const gate = deferred()
    const { client, server, session } = await joined((app) =>
      app.use((ctx, next) => (ctx.kind === 'response' ? gate.promise.then(next) : next())),
    )
    client.say(request)
    server.say({ id: 1, result: {} })
    server.onclose?.()
    gate.resolve()
    await ended(session)
    expect(client.take()).toEqual([{ id: 1, result: {} }])
  })

  it('its own requests are forgotten: an answer of the client goes nowhere', async () => {
    const { client, server, errors } = await joined()
    server.say({ id: 's', method: 'roots/list' })
    server.onclose?.()
    client.say({ id: 's', result: {} })
    await turnOfLoop()
    expect({ sent: server.take(), errors }).toEqual({ sent: [], errors: [] })
  })

  it('the signals of held requests are aborted', async () => {
    const aborted = deferred<unknown>()
    const { client, server, errors } = await joined((app) =>
      app.use((ctx) => {
        const { signal } = ctx
        return new Promise((_resolve, reject) => {
          signal.addEventListener('abort', () => {
            aborted.resolve(signal.reason)
            reject(signal.reason)
          })
        })
      }),
    )
    client.say(request)
    server.onclose?.()
    expect(await aborted.promise).toMatchObject({ code: -31001 })
    await turnOfLoop()
    expect({ back: client.take(), errors }).toEqual({ back: [{ id: 1, error: exited('not_sent') }], errors: [] })
  })
})

describe('the server cannot be started', () => {
  const unreachable = proxys(-31009, 'Upstream unreachable', 'upstream_unreachable', 'not_sent', true)

  it('start() rejects: what waits is told -31009, nothing was served', async () => {
    const server = new HandWire()
    server.starting = () => Promise.reject(new Error('ENOENT /secret'))
    const { client, session } = await joined((app) => app.use((_ctx, next) => next()), { server })
    client.say(request)
    expect(await ended(session)).toEqual({ reason: new Error('ENOENT /secret'), served: false })
    expect(client.take()).toEqual([{ id: 1, error: unreachable }])
  })

  it('a client that speaks first waits for the start that fails', async () => {
    const server = new HandWire()
    const started = deferred()
    server.starting = () => started.promise
    const { client, session } = await joined(undefined, { server })
    client.say(request)
    client.say({ method: 'n' })
    await turnOfLoop()
    expect(client.take()).toEqual([])
    started.reject(new Error('no'))
    await ended(session)
    expect(client.take()).toEqual([{ id: 1, error: unreachable }])
  })

  it('it ends while it starts: nobody waits for the start', async () => {
    const server = new HandWire()
    server.starting = never
    const { client, session } = await joined(undefined, { server })
    client.say(request)
    await turnOfLoop()
    server.onclose?.()
    await ended(session)
    expect(client.take()).toEqual([{ id: 1, error: exited('not_sent') }])
  })

  it('a wire that is opened after the session has ended is closed', async () => {
    const app = new Application({ drainTimeout: 5 })
    const opened = deferred<HandWire>()
    const client = new HandWire()
    const listening = await app.listen(
      () => opened.promise,
      (accept) => {
        const { closed, close } = accept(client)
        return { closed, close }
      },
    )
    await app.close()
    await listening.closed
    const late = new HandWire()
    opened.resolve(late)
    await turnOfLoop()
    expect(late.log).toEqual(['close'])
  })
})

describe('app.close()', () => {
  it('takes no new requests, lets the others finish, then closes both ends', async () => {
    const { app, client, server, session } = await joined()
    client.say(request)
    const closed = app.close()
    client.say({ id: 2, method: 'm' })
    await turnOfLoop()
    expect(client.take()).toEqual([{ id: 2, error: shuttingDown('not_sent') }])
    server.say({ id: 1, result: {} })
    await closed
    expect({ back: client.take(), client: client.log, server: server.log }).toEqual({
      back: [{ id: 1, result: {} }],
      client: ['start', 'close'],
      server: ['start', 'close'],
    })
    expect(await ended(session)).toEqual({ reason: undefined, served: true })
  })

  it('answers what is left when drainTimeout has passed: sent, held, and responses that are held', async () => {
    const signals: boolean[] = []
    const { app, client, server } = await joined(
      (it) =>
        it.use((ctx, next) => {
          if (ctx.id === 2 && ctx.kind === 'request') {
            ctx.signal.addEventListener('abort', () => signals.push(true))
            return never()
          }
          if (ctx.id === 3 && ctx.kind === 'response') return never()
          return next()
        }),
      { drainTimeout: 5 },
    )
    client.say(request)
    client.say({ id: 3, method: 'm' })
    await turnOfLoop()
    server.say({ id: 3, result: {} })
    client.say({ id: 2, method: 'm' })
    server.say({ id: 's', method: 'roots/list' })
    await turnOfLoop()
    await app.close()
    const back = client.take()
    expect(back.sort((a, b) => Number(a.id) - Number(b.id))).toEqual([
      { id: 1, error: shuttingDown('sent') },
      { id: 2, error: shuttingDown('not_sent') },
      { id: 3, error: shuttingDown('sent') },
    ])
    // It was behind the response that is held.
    expect(server.take().filter((it) => it.id === 's')).toEqual([{ id: 's', error: shuttingDown('not_sent') }])
    expect(signals).toEqual([true])
    expect(app.stats()).toMatchObject({ sessions: 0, pending: 0 })
  })

  it('aborts every signal that is still of use, also of a request that has its outcome', async () => {
    const aborted: unknown[] = []
    const { app, client } = await joined(
      (it) =>
        it.use(async (ctx) => {
          void ctx.reply({})
          ctx.signal.addEventListener('abort', () => aborted.push((ctx.signal.reason as RpcError).code))
          await never()
        }),
      { drainTimeout: 5 },
    )
    client.say(request)
    await app.close()
    expect({ back: client.take(), aborted }).toEqual({ back: [{ id: 1, result: {} }], aborted: [-31008] })
  })

  it('urgent hurries a close that is under way', async () => {
    const { app, client, server } = await joined(undefined, { drainTimeout: 1e9 })
    client.say(request)
    const closed = app.close()
    await turnOfLoop()
    expect(server.log).toEqual(['start'])
    await app.close({ urgent: true })
    await closed
    expect({ back: client.take(), server: server.log }).toEqual({
      back: [{ id: 1, error: shuttingDown('sent') }],
      server: ['start', 'close urgently'],
    })
  })

  it('urgent hurries wires that are being closed', async () => {
    const { app, server } = await joined()
    const gate = deferred()
    server.closing = () => gate.promise
    const closed = app.close()
    await turnOfLoop()
    const again = app.close({ urgent: true })
    expect(server.log).toEqual(['start', 'close', 'close urgently'])
    gate.resolve()
    await Promise.all([closed, again])
  })

  it('waits for no listen stream, but answers it', async () => {
    const { app, client } = await joined(undefined, { drainTimeout: 1e9 })
    client.say({ id: 'l', method: 'subscriptions/listen' })
    await turnOfLoop()
    await app.close()
    expect(client.take()).toEqual([{ id: 'l', error: shuttingDown('sent') }])
  })

  it('a wire that cannot be closed keeps nothing open', async () => {
    const { app, client } = await joined()
    client.closing = () => Promise.reject(new Error('no'))
    await app.close()
    expect(app.stats().sessions).toBe(0)
  })

  it('without sessions resolves', async () => {
    const log: string[] = []
    const app = new Application()
    app.on('close', () => log.push('close'))
    await app.close()
    await app.close()
    expect(log).toEqual(['close'])
  })
})
