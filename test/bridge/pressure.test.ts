import { expect, it } from 'vitest'
import { deferred, HandWire, joined, proxys, turnOfLoop } from '../fixtures/played.js'

/** A server whose pipe is full until the test opens it. */
function blocked() {
  const gate = deferred()
  const server = new HandWire()
  let open = false
  server.sending = () => (open ? undefined : gate.promise)
  return {
    server,
    open() {
      open = true
      gate.resolve()
    },
  }
}

const count = (wire: HandWire, word: string) => wire.log.filter((it) => it === word).length

it('pauses the source at the high water, resumes it later, loses and reorders nothing', async () => {
  const { server, open } = blocked()
  const { client, app } = await joined(undefined, { server })
  let said = 0
  while (count(client, 'pause') === 0) client.say({ method: 'n', params: { n: said++ } })
  expect(said).toBe(1001)
  client.say({ id: 'more', method: 'm' })
  expect(client.log).toEqual(['start', 'pause'])
  open()
  while (app.stats().lanes['client-to-server'] > 0) await turnOfLoop()
  expect(client.log).toEqual(['start', 'pause', 'resume'])
  const sent = server.take().map((it) => it.id ?? (it.params as { n: number }).n)
  expect(sent).toEqual([...Array(said).keys(), 'more'])
})

it('counts bytes too', async () => {
  const { server, open } = blocked()
  const { client, app } = await joined(undefined, { server })
  const text = 'x'.repeat(200_000)
  for (let n = 0; n < 6; n++) client.say({ method: 'n', params: { text } })
  expect(client.log).toEqual(['start', 'pause'])
  open()
  while (app.stats().lanes['client-to-server'] > 0) await turnOfLoop()
  expect(client.log).toEqual(['start', 'pause', 'resume'])
  expect(server.take().length).toBe(6)
})

it("while a server's request is unanswered the client's source stays readable, and is paused after it", async () => {
  const { server, open } = blocked()
  const { client } = await joined(undefined, { server })
  server.say({ id: 's', method: 'roots/list' })
  await turnOfLoop()
  for (let n = 0; n < 1500; n++) client.say({ method: 'n', params: { n } })
  expect(client.log).toEqual(['start'])
  client.say({ id: 's', result: {} })
  open()
  await turnOfLoop()
  expect(server.take().find((it) => it.id === 's')).toEqual({ id: 's', result: {} })
})

it("a server's request resumes a source that is paused already", async () => {
  const { server, open } = blocked()
  const { client } = await joined(undefined, { server })
  for (let n = 0; n < 1200; n++) client.say({ method: 'n', params: { n } })
  expect(client.log).toEqual(['start', 'pause'])
  server.say({ id: 's', method: 'roots/list' })
  expect(client.log).toEqual(['start', 'pause', 'resume'])
  open()
  await turnOfLoop()
})

it('a call out of a held request is answered over the high water too', async () => {
  const { client, server, app } = await joined((it) =>
    it.use(async (ctx, next) => {
      if (ctx.id === 0) await ctx.call('client', 'roots/list')
      return next()
    }),
  )
  const { say } = client
  // A source that is paused says nothing.
  const backlog: object[] = []
  let paused = false
  client.pause = () => {
    paused = true
  }
  client.resume = () => {
    paused = false
    while (!paused && backlog.length > 0) say.call(client, backlog.shift() as object)
  }
  const speak = (message: object) => void (paused ? backlog.push(message) : say.call(client, message))
  speak({ id: 0, method: 'm' })
  for (let n = 1; n <= 3000; n++) speak({ method: 'n', params: { n } })
  await turnOfLoop()
  const [question] = client.take()
  speak({ id: question?.id, result: {} })
  while (app.stats().lanes['client-to-server'] > 0 || backlog.length > 0) await turnOfLoop()
  expect(server.take().map((it) => it.id ?? (it.params as { n: number }).n)).toEqual([...Array(3001).keys()])
})

it('past the hard cap requests get -31005, answers are read still; past the last nothing is', async () => {
  const { server, open } = blocked()
  const { client } = await joined(undefined, { server })
  server.say({ id: 's', method: 'roots/list' })
  await turnOfLoop()
  client.take()
  for (let n = 0; n <= 10_000; n++) client.say({ method: 'n' })
  client.say({ id: 1, method: 'm' })
  await turnOfLoop()
  expect(client.take()).toEqual([{ id: 1, error: proxys(-31005, 'Overloaded', 'overloaded', 'not_sent', true) }])
  expect(client.log).toEqual(['start'])
  for (let n = 0; n < 10_000; n++) client.say({ method: 'n' })
  expect(client.log).toEqual(['start', 'pause'])
  open()
})

it('the way back is bounded alike', async () => {
  const gate = deferred()
  const client = new HandWire()
  client.sending = () => gate.promise
  const { server, app } = await joined(undefined, { client })
  for (let n = 0; n < 1200; n++) server.say({ method: 'n', params: { n } })
  expect(server.log).toEqual(['start', 'pause'])
  gate.resolve()
  while (app.stats().lanes['server-to-client'] > 0) await turnOfLoop()
  expect(server.log).toEqual(['start', 'pause', 'resume'])
  expect(client.take().length).toBe(1200)
})

it('a call to a server whose source is paused resumes it', async () => {
  const gate = deferred()
  const client = new HandWire()
  client.sending = () => gate.promise
  const { server, session } = await joined(undefined, { client })
  for (let n = 0; n < 1200; n++) server.say({ method: 'n' })
  expect(server.log).toEqual(['start', 'pause'])
  const answer = session.call('server', 'x')
  expect(server.log).toEqual(['start', 'pause', 'resume'])
  const [question] = server.take()
  server.say({ id: question?.id, result: { ok: true } })
  expect(await answer).toEqual({ ok: true })
  gate.resolve()
})
