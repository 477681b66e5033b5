import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type BehindPort, behindPort, ended, recorded } from '../fixtures/behind-port.js'
import { cli, omproxy, stop } from '../fixtures/command.js'
import { converse } from '../fixtures/everything-talk.js'
import { everything, type HttpServer, startTarget, target } from '../fixtures/servers.js'
import { type Conversation, type Generation, normalised, proxied, type Talk, type Where } from '../fixtures/talk.js'
import { type Abilities, converse as converseWithTarget } from '../fixtures/target-talk.js'

let directory: string

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'omproxy-replay-'))
})

afterAll(() => rm(directory, { recursive: true, force: true }))

const recording = (file: string) => ['--use', `record=${JSON.stringify({ file })}`]
const node = (...args: string[]): Where => ({ command: process.execPath, args })

/** What the server says is what it had said, to the letter. A v1 client makes up ids of tasks of its own. */
function exact({ exchanges, heard, asked, told }: Conversation) {
  return { exchanges, heard, ...normalised({ asked, told }) }
}

/** Holds a server against a recording. */
async function holdAgainst(file: string, ...args: string[]) {
  const run = omproxy(['replay', file, ...args])
  const { code } = await run.end()
  return { code, said: run.said(), lines: run.texts() }
}

const same = { code: 0, said: [], lines: [] }

/** What server-everything never says twice: times, ids, and what it runs with. */
const volatile = [
  '--ignore=get-env:**',
  '--ignore=get-resource-reference:result.content[1].resource.*',
  '--ignore=resources/read:result.contents[*].*',
  '--ignore=resource-prompt:result.messages[1].content.resource.*',
  '--ignore=trigger-url-elicitation:error.data.elicitations[*].elicitationId',
  '--ignore=notifications/message:**',
]

describe('server-everything over stdio', () => {
  const real = node(everything, 'stdio')
  let file: string
  let original: Awaited<ReturnType<typeof recorded>>

  beforeAll(async () => {
    file = join(directory, 'everything.jsonl')
    original = await recorded(proxied(real, ...recording(file)), 'v1', converse)
  })

  test('it was recorded whole', async () => {
    expect(original.complaints).toEqual([])
    const [head, ...lines] = (await readFile(file, 'utf8'))
      .trimEnd()
      .split('\n')
      .map((it) => JSON.parse(it))
    expect(head).toEqual({
      type: 'session',
      version: 1,
      session: expect.any(String),
      time: expect.stringMatching(/^\d{4}-/),
      upstream: 'node',
    })
    expect(lines.map(({ seq }) => seq)).toEqual(lines.map((_, index) => index + 1))
    const methods = new Set(lines.map(({ from, message }) => `${from} ${message.method ?? ''}`))
    for (const it of ['server sampling/createMessage', 'server elicitation/create', 'server roots/list']) {
      expect(methods).toContain(it)
    }
    expect((await stat(file)).mode & 0o777).toBe(0o600)
  })

  test.each(['strict', 'call'])('the client cannot tell it from the server (%s)', async (match) => {
    const again = await recorded(node(cli, 'replay', file, '--match', match), 'v1', converse, original.conversation)
    expect(again.complaints).toEqual([])
    expect(exact(again.conversation)).toEqual(exact(original.conversation))
  })

  test('a fresh server says the same', async () => {
    expect(await holdAgainst(file, ...volatile, '--', process.execPath, everything, 'stdio')).toEqual(same)
  })

  test('a server that changed does not', async () => {
    const rename = join(directory, 'rename.mjs')
    const source = `export default () => function rename(ctx, next) {
      if (ctx.isResponse('tools/list')) ctx.result.tools[0].name = 'repeat'
      if (ctx.isRequest('tools/call') && ctx.name === 'echo') ctx.throw(-32602, 'no such tool')
      return next()
    }`
    await writeFile(rename, source)
    const changed = ['stdio', '--use', rename, '--', process.execPath, everything, 'stdio']
    const { code, said, lines } = await holdAgainst(file, ...volatile, '--', process.execPath, cli, ...changed)
    expect({ code, said }).toEqual({ code: 1, said: [] })
    expect(lines[0]).toMatch(/^line \d+: tools\/list result\.tools\[0\]\.name: expected "echo", got "repeat"$/)
    const error =
      /^line \d+: tools\/call "echo" error: expected nothing, got \{"code":-32602,"message":"no such tool"\}$/
    expect(lines.filter((it) => error.test(it))).toHaveLength(12)
    expect(lines.filter((it) => !/tools\/(list|call "echo")/.test(it))).toEqual([])
  })

  test('one that cannot be started is no difference', async () => {
    const { code, said, lines } = await holdAgainst(file, '--', join(directory, 'no-such-server'))
    expect({ code, lines }).toEqual({ code: 69, lines: [] })
    expect(said).toHaveLength(1)
  })
})

/** How many calls were cancelled so far is told by when it is asked. */
const counting = '--ignore=cancelled_count:**'

const all: Abilities = { streams: true, sessions: true }

describe('the conformance target over HTTP', () => {
  let server: HttpServer
  const open: BehindPort[] = []

  beforeAll(async () => {
    server = await startTarget()
  })

  afterAll(async () => {
    for (const it of open) it.kill()
    await stop(server.child)
  })

  const talk = (generation: Generation) => (it: Talk) => converseWithTarget(it, all, generation === 'v2-modern')

  /** Has the conversation with what is behind a port, and ends that in good order. */
  async function had(generation: Generation, port: BehindPort, model?: Conversation) {
    open.push(port)
    const had = await recorded(port.http, generation, talk(generation), model)
    expect(await port.end()).toEqual(ended)
    return had
  }

  test.each(['v1', 'v2', 'v2-modern'] as const)(
    'recorded, replayed and held against a fresh one: %s',
    async (era) => {
      const file = join(directory, `target-${era}.jsonl`)
      const url = `${server.origin}/mcp`
      const original = await had(era, await behindPort({ http: url }, ...recording(file)))
      const replayed = await behindReplay(file, '--match', 'call')
      const again = await had(era, replayed, original.conversation)
      expect(exact(again.conversation)).toEqual(exact(original.conversation))
      // Of a status that only its own transport knows a client may complain, before the server as before the recording.
      expect(again.complaints).toEqual(original.complaints)

      const fresh = await startTarget()
      try {
        expect(await holdAgainst(file, counting, '--url', `${fresh.origin}/mcp`)).toEqual(same)
      } finally {
        await stop(fresh.child)
      }
      expect(await holdAgainst(file, counting, '--', process.execPath, target, '--stdio')).toEqual(same)
    },
    60_000,
  )
})

test.each(['strict', 'call'])('the target of 2026-07-28 over stdio (%s)', async (match) => {
  const file = join(directory, `target-stdio-${match}.jsonl`)
  const has = (it: Talk) => converseWithTarget(it, all, true)
  const original = await recorded(proxied(node(target, '--stdio'), ...recording(file)), 'v2-modern', has)
  const replayed = node(cli, 'replay', file, '--match', match)
  const again = await recorded(replayed, 'v2-modern', has, original.conversation)
  expect(again.complaints).toEqual([])
  expect(exact(again.conversation)).toEqual(exact(original.conversation))
  expect(await holdAgainst(file, counting, '--', process.execPath, target, '--stdio')).toEqual(same)
})

async function behindReplay(file: string, ...options: string[]): Promise<BehindPort> {
  const run = omproxy(['replay', file, '--listen', '0', ...options])
  const listens = /^omproxy: listening on (http:\/\/127\.0\.0\.1:\d+)\/mcp$/m
  await run.when(() => listens.test(run.stderr), 'it listens')
  const origin = listens.exec(run.stderr)?.[1] as string
  const complaints = () => run.said().filter((line) => !listens.test(line))
  return {
    run,
    origin,
    http: { http: `${origin}/mcp` },
    sse: { sse: `${origin}/sse` },
    complaints,
    kill: run.kill,
    async end() {
      run.child.kill('SIGTERM')
      return { ...(await run.exit), said: [...run.texts(), ...complaints()] }
    },
  }
}
