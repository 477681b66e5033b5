import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { verifyAudit } from 'open-mcp-proxy/middleware'
import { afterAll, beforeAll, expect, test, vi } from 'vitest'
import { behind, ended, recorded } from '../fixtures/behind-port.js'
import { cli, stop } from '../fixtures/command.js'
import * as everythingTalk from '../fixtures/everything-talk.js'
import { firstHalf, TOKEN } from '../fixtures/first-half.js'
import { everything, freePort, type HttpServer, startTarget, target } from '../fixtures/servers.js'
import { type Conversation, type Generation, normalised, type Talk, type Where } from '../fixtures/talk.js'
import * as targetTalk from '../fixtures/target-talk.js'

let directory: string
beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'omproxy-first-half-'))
})
afterAll(() => rm(directory, { recursive: true, force: true }))

interface Kind {
  start?: () => Promise<HttpServer>
  where(origin: string): Where
  /** Speaks 2026-07-28. */
  modern: boolean
  converse(talk: Talk, modern: boolean): Promise<unknown>
}

const ofTarget = {
  modern: true,
  converse: (talk: Talk, modern: boolean) => targetTalk.converse(talk, { streams: true, sessions: true }, modern),
}

const kinds: Record<string, Kind> = {
  'server-everything': {
    where: () => ({ command: process.execPath, args: [everything, 'stdio'] }),
    modern: false,
    converse: everythingTalk.converse,
  },
  'the target over HTTP': { ...ofTarget, start: () => startTarget(), where: (origin) => ({ http: `${origin}/mcp` }) },
  'the target over stdio': { ...ofTarget, where: () => ({ command: process.execPath, args: [target, '--stdio'] }) },
}

/** What a client does see of it: a list may be another user's no more. */
function guarded(conversation: Conversation): Conversation {
  return JSON.parse(JSON.stringify(conversation).replaceAll('"cacheScope":"public"', '"cacheScope":"private"'))
}

interface Asked {
  params?: { _meta?: { traceparent?: string } }
}

const requestsOf = ({ asked }: Conversation) =>
  Object.values(asked).flatMap((all) => all.map((it) => it.request as Asked))

/** Without the trace that a server's request is part of. */
function untraced(conversation: Conversation): Conversation {
  const copy = structuredClone(conversation)
  for (const request of requestsOf(copy)) {
    delete request.params?._meta?.traceparent
    if (Object.keys(request.params?._meta ?? {}).length === 0) delete request.params?._meta
    if (Object.keys(request.params ?? {}).length === 0) delete request.params
  }
  return copy
}

const clients: Record<string, { generation: Generation; port: boolean }> = {
  'v1 over HTTP': { generation: 'v1', port: true },
  'v2 of 2026-07-28 over HTTP': { generation: 'v2-modern', port: true },
  'v1 over stdio': { generation: 'v1', port: false },
}

const headers = { authorization: `Bearer ${TOKEN}` }

/** Sums of the samples of a metric, by direction. */
async function scrape(port: number) {
  const text = await (await fetch(`http://127.0.0.1:${port}/metrics`)).text()
  const sum = (metric: string, ...labels: string[]) =>
    text
      .split('\n')
      .filter((line) => line.startsWith(`mcp_proxy_${metric}{`) && labels.every((it) => line.includes(it)))
      .reduce((total, line) => total + Number(line.slice(line.lastIndexOf(' '))), 0)
  const of = (direction: string) => ({
    requests: sum('messages_total', `direction="${direction}"`, 'kind="request"'),
    over: sum('requests_total', `direction="${direction}"`),
    inFlight: sum('requests_in_flight', `direction="${direction}"`),
    notifications: sum('messages_total', `direction="${direction}"`, 'kind="notification"'),
  })
  return { client: of('client-to-server'), server: of('server-to-client') }
}

interface Line {
  /** Of a line that begins a session: nobody. */
  from?: 'client' | 'server'
  message: { id?: unknown; method?: string; params?: { _meta?: { traceparent?: string } } }
}

/** What was recorded, counted in the same manner. */
async function counted(file: string) {
  const lines = (await readFile(file, 'utf8'))
    .trimEnd()
    .split('\n')
    .map((it) => JSON.parse(it) as Line)
  const of = (side: string) => {
    const said = lines.filter(({ from, message }) => from === side && message.method !== undefined)
    const requests = said.filter(({ message }) => message.id !== undefined)
    // What `trace` writes is written before it is recorded, on the way to the server.
    const untraced = requests.filter(({ message }) => message.params?._meta?.traceparent === undefined)
    expect(untraced).toHaveLength(side === 'client' ? 0 : requests.length)
    const { length } = requests
    return { requests: length, over: length, inFlight: 0, notifications: said.length - length }
  }
  return { client: of('client'), server: of('server') }
}

for (const [name, { start, where, modern, converse }] of Object.entries(kinds)) {
  for (const [client, { generation, port }] of Object.entries(clients)) {
    test.concurrent(`${name}, client ${client}: all that watches and decides, and the client sees nothing of it`, async ({
      onTestFinished,
    }) => {
      const isModern = modern && generation === 'v2-modern'
      const started = async () => {
        const server = await start?.()
        onTestFinished(() => server && stop(server.child))
        return where(server?.origin ?? '')
      }
      const direct = await recorded(await started(), generation, (talk) => converse(talk, isModern))

      const own = await mkdtemp(join(directory, 'one-'))
      const metricsPort = await freePort()
      const upstream = await started()
      const file = join(own, 'proxy.json')
      await writeFile(
        file,
        JSON.stringify({
          upstream: 'http' in upstream ? { url: upstream.http } : upstream,
          use: firstHalf(own, metricsPort),
          ...(port && { listen: 0 }),
        }),
      )
      const through = await along(['--config', file])
      const recording = join(own, 'record.jsonl')
      const had = await recorded(
        through.where,
        generation,
        async (talk) => {
          await converse(talk, isModern)
          // A process that its client has started ends with it.
          await vi.waitFor(async () => expect(await scrape(metricsPort)).toEqual(await counted(recording)), 10_000)
        },
        direct.conversation,
      )
      await through.end()
      const seen = untraced(had.conversation)
      expect(targetTalk.shaped(seen)).toEqual(targetTalk.shaped(untraced(guarded(direct.conversation))))
      const parents = requestsOf(had.conversation).map((it) => it.params?._meta?.traceparent)
      expect(parents).toEqual(parents.map(() => expect.stringMatching(/^00-[0-9a-f]{32}-[0-9a-f]{16}-01$/)))
      // Over HTTP a modern server says with a 404 that it does not know a method: its client takes that for the transport's.
      const complaints = isModern ? [expect.stringContaining('"message":"Method not found: no/such-method"')] : []
      expect(had.complaints).toEqual(complaints)

      const trail = (await readFile(join(own, 'audit.jsonl'), 'utf8')).trimEnd().split('\n')
      expect(await verifyAudit(trail)).toMatchObject({ ok: true, records: trail.length })

      const replayed = await along(['replay', recording, ...(port ? ['--listen', '0', '--match', 'call'] : [])])
      const again = await recorded(replayed.where, generation, (talk) => converse(talk, isModern), had.conversation)
      await replayed.end()
      expect(exact(untraced(again.conversation))).toEqual(exact(seen))
      expect(again.complaints).toEqual(complaints)

      /** The command, on a port or started by its client. */
      async function along(args: string[]) {
        if (!port) return { where: { command: process.execPath, args: [cli, ...args] }, end: async () => {} }
        const run = await behind(args)
        onTestFinished(run.kill)
        const end = async () => expect(await run.end()).toEqual(ended)
        return { where: { ...run.http, headers }, end }
      }
    }, 90_000)
  }
}

/** The recording says the same to the letter; a v1 client makes up ids of tasks of its own. */
function exact({ exchanges, heard, asked, told }: Conversation) {
  return { exchanges, heard, ...normalised({ asked, told }) }
}
