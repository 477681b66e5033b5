import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { connect } from 'node:net'
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest'
import { behindPort, callStateless, openSession, whole } from '../fixtures/behind-port.js'
import { closing } from '../fixtures/closing.js'
import { omproxy, path, stop } from '../fixtures/command.js'
import { everything, freePort, type HttpServer, startEverything, startTarget, target } from '../fixtures/servers.js'
import { type Conversation, type Generation, proxied, type Talk, talkTo, type Where } from '../fixtures/talk.js'

// --- the text format 0.0.4 of Prometheus, read strictly -----------------------------------------------------

interface Sample {
  name: string
  labels: Record<string, string>
  value: number
}

interface Family {
  name: string
  help: string
  type: string
  samples: Sample[]
}

function parse(text: string): Family[] {
  if (!text.endsWith('\n')) throw new Error('expected the last line to end')
  const families: Family[] = []
  const seen = new Set<string>()
  for (const line of text.slice(0, -1).split('\n')) {
    if (line === '') continue
    const [, word, name = '', rest = ''] = /^# (HELP|TYPE) ([a-zA-Z_:][a-zA-Z0-9_:]*) (.*)$/s.exec(line) ?? []
    const family = families.at(-1)
    if (word === 'HELP') {
      if (families.some((it) => it.name === name)) throw new Error(`${name} comes twice`)
      families.push({ name, help: unescaped(rest, /\\(.?)/gs), type: '', samples: [] })
    } else if (word === 'TYPE') {
      if (family?.name !== name || family.type !== '' || family.samples.length > 0) throw new Error(`TYPE of ${name}`)
      if (!['counter', 'gauge', 'histogram', 'summary', 'untyped'].includes(rest)) throw new Error(`type ${rest}`)
      family.type = rest
    } else {
      const sample = sampleOf(line)
      const suffix = family?.type === 'histogram' ? /_(bucket|sum|count)$/ : /$^/
      if (family?.name !== sample.name.replace(suffix, '')) throw new Error(`${line} is not of ${family?.name}`)
      const key = JSON.stringify([sample.name, Object.entries(sample.labels).sort()])
      if (seen.has(key)) throw new Error(`${key} comes twice`)
      seen.add(key)
      family.samples.push(sample)
    }
  }
  for (const family of families.filter(({ type }) => type === 'histogram')) checkHistogram(family)
  return families
}

function sampleOf(line: string): Sample {
  const [head = '', name = ''] = /^([a-zA-Z_:][a-zA-Z0-9_:]*)/.exec(line) ?? []
  if (name === '') throw new Error(`expected a sample, got ${line}`)
  const labels: Record<string, string> = {}
  let rest = line.slice(head.length)
  if (rest.startsWith('{')) {
    rest = rest.slice(1)
    for (;;) {
      const [all, label, value] = /^([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\.)*)"(?:,|(?=\}))/s.exec(rest) ?? []
      if (all === undefined) break
      if (Object.hasOwn(labels, label as string)) throw new Error(`label ${label} comes twice`)
      labels[label as string] = unescaped(value as string, /\\(.)/gs)
      rest = rest.slice(all.length)
    }
    if (!rest.startsWith('}')) throw new Error(`expected labels, got ${line}`)
    rest = rest.slice(1)
  }
  if (!/^ (?:[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?|[+-]Inf|NaN)$/i.test(rest)) throw new Error(`value of ${line}`)
  return { name, labels, value: Number(rest.replace('Inf', 'Infinity')) }
}

function unescaped(text: string, escapes: RegExp): string {
  return text.replace(escapes, (_, it: string) => {
    const known: Record<string, string> = { n: '\n', '\\': '\\', '"': '"' }
    if (!Object.hasOwn(known, it)) throw new Error(`\\${it} is no escape`)
    return known[it] as string
  })
}

function checkHistogram({ samples, name }: Family): void {
  const series = new Map<string, { bounds: number[]; counts: number[]; count?: number; sum?: number }>()
  for (const { name: own, labels, value } of samples) {
    const { le, ...others } = labels
    const key = JSON.stringify(others)
    const it = series.get(key) ?? { bounds: [], counts: [] }
    series.set(key, it)
    if (own === `${name}_sum`) it.sum = value
    else if (own === `${name}_count`) it.count = value
    else {
      it.bounds.push(Number(le?.replace('Inf', 'Infinity')))
      it.counts.push(value)
    }
  }
  const isRising = (all: number[]) => all.every((it, at) => at === 0 || it >= (all[at - 1] as number))
  for (const [key, { bounds, counts, count, sum }] of series) {
    const isWhole = bounds.at(-1) === Number.POSITIVE_INFINITY && counts.at(-1) === count && sum !== undefined
    if (!isWhole || !isRising(bounds) || !isRising(counts)) throw new Error(`histogram ${name} ${key}`)
  }
}

test('the parser is strict', () => {
  const head = '# HELP a b\n# TYPE a gauge\n'
  expect(parse(`${head}a{x="\\"\\\\\\n",y=""} 1\n`)[0]?.samples).toEqual([
    { name: 'a', labels: { x: '"\\\n', y: '' }, value: 1 },
  ])
  for (const bad of [
    'a{x="\\q"} 1',
    'a{x="1",x="2"} 1',
    'a{x="""} 1',
    'a 1\na 1',
    'b 1',
    'a one',
    'a{x=1} 1',
    'a 1 ',
  ]) {
    expect(() => parse(`${head}${bad}\n`), bad).toThrow()
  }
  expect(() => parse(`${head}${head}`)).toThrow('twice')
  expect(() => parse(`${head}a 1`)).toThrow('expected the last line to end')
})

// --- what was counted ---------------------------------------------------------------------------------------

async function scrape(url: string): Promise<Family[]> {
  const response = await fetch(url)
  expect(response.headers.get('content-type')).toBe('text/plain; version=0.0.4; charset=utf-8')
  return parse(await response.text())
}

/** The samples of a family, zeros left out. */
function samples(families: Family[], name: string): Sample[] {
  return (families.find((it) => it.name === `mcp_proxy_${name}`)?.samples ?? []).filter(({ value }) => value !== 0)
}

/** Sums by some labels. */
function sums(families: Family[], name: string, ...by: string[]): Record<string, number> {
  const all: Record<string, number> = {}
  for (const { labels, value } of samples(families, name)) {
    const key = by.map((it) => labels[it]).join(' ')
    all[key] = (all[key] ?? 0) + value
  }
  return all
}

type Outcome = { isError?: boolean; code?: number }
type Exchange = { request: unknown; outcome?: unknown }

const methodOf = ({ request }: Exchange) => (request as { method: string }).method
const known = (method: string) => (method === 'no/such-method' ? 'other' : method)

/** What the metrics must say of a conversation. */
function expected({ exchanges, asked, heard, told }: Conversation) {
  const messages: Record<string, number> = {}
  const requests: Record<string, number> = {}
  const add = (all: Record<string, number>, key: string, count = 1) => {
    all[key] = (all[key] ?? 0) + count
  }
  const both = ['client-to-server', 'server-to-client']
  for (const [at, all] of [exchanges, Object.values(asked).flat()].entries()) {
    for (const exchange of all) {
      const method = known(methodOf(exchange))
      // Of the era's probe over HTTP the client shows no answer.
      const { isError, code } = (exchange.outcome ?? {}) as Outcome
      const outcome = code !== undefined ? `error ${code}` : isError === true ? 'tool_error ' : 'ok '
      add(messages, `${both[at]} request ${method}`)
      add(messages, `${both[1 - at]} response ${method}`)
      add(requests, `${both[at]} ${method} ${outcome}`)
    }
  }
  for (const it of told) add(messages, `${both[0]} notification ${(it as { method: string }).method}`)
  for (const [method, { length }] of Object.entries(heard)) add(messages, `${both[1]} notification ${method}`, length)
  return { messages, requests }
}

/** The proxy asks a stateless client's server for its tools itself, where headers may have to be made of arguments. */
function withListings({ messages, requests }: ReturnType<typeof expected>, asked: number) {
  const listing = 'client-to-server request tools/list'
  expect(asked).toBeGreaterThanOrEqual(messages[listing] as number)
  return {
    messages: { ...messages, [listing]: asked, 'server-to-client response tools/list': asked },
    requests: { ...requests, 'client-to-server tools/list ok ': asked },
  }
}

/** Scrapes until it says what it must. */
function agrees(url: string, { conversation }: Talk, isStateless = false) {
  return vi.waitFor(
    async () => {
      const families = await scrape(url)
      const counted = {
        messages: sums(families, 'messages_total', 'direction', 'kind', 'method'),
        requests: sums(families, 'requests_total', 'direction', 'method', 'outcome', 'code'),
        inFlight: samples(families, 'requests_in_flight'),
        waiting: samples(families, 'waiting_messages'),
        dropped: samples(families, 'dropped_messages_total'),
      }
      const asked = counted.messages['client-to-server request tools/list'] as number
      const told = isStateless ? withListings(expected(conversation), asked) : expected(conversation)
      expect(counted).toEqual({ ...told, inFlight: [], waiting: [], dropped: [] })
      const durations = samples(families, 'request_duration_seconds').filter(({ name }) => name.endsWith('_count'))
      const total = (all: { value: number }[]) => all.reduce((sum, { value }) => sum + value, 0)
      expect(total(durations)).toBe(total(samples(families, 'requests_total')))
      return families
    },
    { timeout: 10_000, interval: 50 },
  )
}

async function talkOf(talk: Talk, isTarget: boolean, isModern: boolean): Promise<void> {
  const { client } = talk
  await client.listTools()
  await client.listPrompts()
  await Promise.all([1, 2, 3].map((n) => talk.tool('echo', { message: `n${n}` })))
  await talk.tool('no-such-tool')
  if (isTarget) {
    for (const tool of ['test_error_handling', 'test_simple_text']) await talk.tool(tool)
  } else {
    for (const a of [1, 'one']) await talk.tool('get-sum', { a, b: 2 })
    await talk.tool('trigger-sampling-request', { prompt: 'hello', maxTokens: 5 })
  }
  // Over HTTP a modern server says so with a status, and the client does not look at what else it says.
  if (!isModern) await expect(talk.ask('no/such-method')).rejects.toThrow()
  if (!isModern) await client.ping()
}

let overHttp: HttpServer
let targetOverHttp: HttpServer

beforeAll(async () => {
  ;[overHttp, targetOverHttp] = await Promise.all([startEverything('streamableHttp'), startTarget()])
})

afterAll(() => Promise.all([stop(overHttp.child), stop(targetOverHttp.child)]))

afterEach(() => vi.restoreAllMocks())

const node = process.execPath
const upstreams = {
  'server-everything, stdio': (): Where => ({ command: node, args: [everything, 'stdio'] }),
  'server-everything, HTTP': (): Where => ({ http: `${overHttp.origin}/mcp` }),
  'the target, stdio': (): Where => ({ command: node, args: [target, '--stdio'] }),
  'the target, HTTP': (): Where => ({ http: `${targetOverHttp.origin}/mcp` }),
}
const generations: Generation[] = ['v1', 'v2', 'v2-modern']
const cases = Object.entries(upstreams).flatMap(([name, where]) =>
  generations
    .filter((it) => it !== 'v2-modern' || name.startsWith('the target'))
    .map((generation) => ({ name, generation, where })),
)

/** Behind the command on a port, and where its metrics are. */
async function measured(where: Where, options: object = {}) {
  const port = await behindPort(where, '--use', `metrics=${JSON.stringify({ port: 0, ...options })}`)
  closing.push(() => port.kill())
  return { ...port, url: addressIn(port.run.stderr) }
}

function addressIn(stderr: string): string {
  const [, url] = /^metrics: listening on (http:\S+)$/m.exec(stderr) ?? []
  if (url === undefined) throw new Error(`expected an address of the metrics, got ${stderr}`)
  return url
}

describe('sums are what was called', () => {
  test.each(cases)('$name, $generation, through stdio', async ({ name, generation, where }) => {
    const port = await freePort()
    const url = `http://127.0.0.1:${port}/metrics`
    const talk = await talkTo(proxied(where(), '--use', `metrics={"port":${port}}`), generation)
    closing.push(() => talk.close())
    await talkOf(talk, name.startsWith('the target'), generation === 'v2-modern')
    const families = await agrees(url, talk)
    expect(sums(families, 'sessions')).toEqual({ '': 1 })
    expect(talk.complaints).toEqual([])
  })

  test.each(cases)('$name, $generation, over HTTP', async ({ name, generation, where }) => {
    const port = await measured(where())
    const talk = await talkTo(port.http, generation)
    closing.push(() => talk.close())
    await talkOf(talk, name.startsWith('the target'), generation === 'v2-modern')
    const families = await agrees(port.url, talk, generation === 'v2-modern')
    if (generation !== 'v2-modern') expect(sums(families, 'sessions')).toEqual({ '': 1 })
    await talk.close()
    await vi.waitFor(async () => expect(samples(await scrape(port.url), 'sessions')).toEqual([]), { timeout: 5_000 })
    expect(port.complaints()).toEqual([])
  })
})

test('hostile names of tools come out as they went in', async () => {
  const port = await measured(upstreams['server-everything, stdio'](), { tools: true })
  const session = await openSession(port.http.http)
  const names = [
    'echo',
    'a"b',
    'a\\',
    '\\"',
    'a\nb',
    '\\n',
    '} 1',
    'a",x="b',
    '# HELP x',
    '__proto__',
    '\u2028é👋',
    '\r',
  ]
  // This server answers with a result that says `isError` where it does not know a tool.
  for (const [id, name] of names.entries()) await whole(await session.call(String(id), name, { message: 'x' }))
  const families = await scrape(port.url)
  expect(sums(families, 'requests_total', 'tool', 'outcome')).toEqual({
    ' ok': 1,
    ...Object.fromEntries(names.map((it) => [`${it} ${it === 'echo' ? 'ok' : 'tool_error'}`, 1])),
  })
  await session.leave()
})

describe('cancelled', () => {
  test('a legacy client says so', async () => {
    const port = await measured(upstreams['the target, stdio']())
    const session = await openSession(port.http.http)
    const answer = session.call('7', 'slow', { ms: 60_000 })
    answer.catch(() => {})
    const calls = async () => sums(await scrape(port.url), 'requests_in_flight', 'method')
    await vi.waitFor(async () => expect(await calls()).toEqual({ 'tools/call': 1 }), { timeout: 5_000 })
    const params = { requestId: 7, reason: 'enough' }
    await whole(await session.say({ jsonrpc: '2.0', method: 'notifications/cancelled', params }))
    await vi.waitFor(async () => expect(await calls()).toEqual({}), { timeout: 5_000 })
    expect(sums(await scrape(port.url), 'requests_total', 'method', 'outcome')).toEqual({
      'initialize ok': 1,
      'tools/call cancelled': 1,
    })
    await session.leave()
  })

  test('a modern client closes its stream', async () => {
    const port = await measured(upstreams['the target, HTTP']())
    const controller = new AbortController()
    const real = fetch
    vi.spyOn(globalThis, 'fetch').mockImplementation((url, init) =>
      real(url, init?.method === 'POST' ? { ...init, signal: controller.signal } : init),
    )
    callStateless(port.http.http, '7', 'slow', { ms: 60_000 }).catch(() => {})
    const calls = async () => sums(await scrape(port.url), 'requests_in_flight', 'method')
    await vi.waitFor(async () => expect(await calls()).toEqual({ 'tools/call': 1 }), { timeout: 5_000 })
    controller.abort()
    await vi.waitFor(async () => expect(await calls()).toEqual({}), { timeout: 5_000 })
    expect(sums(await scrape(port.url), 'requests_total', 'method', 'outcome')).toEqual({
      'tools/call cancelled': 1,
      // The proxy's own, for the headers that a tool may want.
      'tools/list ok': 1,
    })
    await vi.waitFor(async () => expect(samples(await scrape(port.url), 'sessions')).toEqual([]), { timeout: 5_000 })
  })
})

describe('it keeps no process', () => {
  test('the command ends when its client leaves, whoever still listens to its metrics', async () => {
    const use = 'metrics={"port":0,"defaultMetrics":true}'
    const run = omproxy(['stdio', '--use', use, '--', node, everything, 'stdio'])
    closing.push(() => run.kill())
    await run.when(() => /^metrics: .*\n/m.test(run.stderr), 'its metrics listen')
    const url = addressIn(run.stderr)
    run.send({ jsonrpc: '2.0', id: 1, method: 'initialize', params: { protocolVersion: '2025-11-25' } })
    const families = await scrape(url)
    expect(families.map(({ name }) => name)).toEqual(
      expect.arrayContaining(['mcp_proxy_messages_total', 'process_cpu_seconds_total', 'nodejs_version_info']),
    )
    expect(await run.end()).toEqual({ code: 0, signal: null })
    expect({ odd: run.odd, said: run.said() }).toEqual({ odd: [], said: [] })
    await expect(fetch(url)).rejects.toThrow()
  })

  test('also one that never closes it', async () => {
    const script = `
      import { createProxy } from '${path('../../dist/index.js')}'
      import { metrics } from '${path('../../dist/middleware/metrics.js')}'
      await metrics({ port: 0, defaultMetrics: true }).start(createProxy())
      process.stdin.resume()`
    const child = spawn(node, ['--input-type=module', '-e', script], { stdio: 'pipe' })
    closing.push(() => stop(child))
    let stderr = ''
    child.stderr.on('data', (chunk: Buffer) => {
      stderr += chunk
    })
    await vi.waitFor(() => addressIn(stderr), { timeout: 10_000 })
    const url = addressIn(stderr)
    // Somebody who asks for ever.
    const socket = connect(Number(new URL(url).port), '127.0.0.1')
    closing.push(() => socket.destroy())
    socket.on('error', () => {}).write('GET /metrics HTTP/1.1\r\n')
    await scrape(url)
    const exit = once(child, 'exit')
    child.stdin.end()
    expect(await exit).toEqual([0, null])
  })

  test('a port that is taken is told in one line', async () => {
    const { url } = await measured(upstreams['the target, stdio']())
    const { port } = new URL(url)
    const run = omproxy(['stdio', '--use', `metrics={"port":${port}}`, '--', node, target, '--stdio'])
    closing.push(() => run.kill())
    expect(await run.end()).toEqual({ code: 1, signal: null })
    expect(run.stderr).toBe(`omproxy: metrics: port ${port} on 127.0.0.1 is taken\n`)
  })
})
