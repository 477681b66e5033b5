import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { describe, expect, it, vi } from 'vitest'
import { behind } from '../fixtures/behind-port.js'
import { closing } from '../fixtures/closing.js'
import { cli, endChildrenOf, path, stop } from '../fixtures/command.js'
import { floodedPort, MiB, memoryOf, reading, unread } from '../fixtures/deaf.js'
import { initialize } from '../fixtures/port.js'

const mib = (bytes: number) => Math.round(bytes / MiB)
const LIMIT = 64

/** The command on stdio, its stdout read, and the most memory that it was seen to have. */
function command(...upstream: string[]) {
  const child = spawn(process.execPath, [cli, 'stdio', '--', process.execPath, ...upstream], { stdio: 'pipe' })
  closing.push(() => stop(child))
  closing.push(() => endChildrenOf(child.pid!))
  child.stdin.on('error', () => {})
  child.stderr.resume()
  let peak = 0
  const look = () => {
    try {
      peak = Math.max(peak, memoryOf(child.pid!).peak || 0)
    } catch {
      // It is gone.
    }
  }
  const timer = setInterval(look, 2)
  closing.push(() => clearInterval(timer))
  return {
    child,
    heard: reading(child.stdout, '\n'),
    exit: once(child, 'exit'),
    peak() {
      look()
      return mib(peak)
    },
    say: (message: object) => child.stdin.write(`${JSON.stringify(message)}\n`),
  }
}

/** Writes so many MiB, as fast as they are taken. */
async function pour({ stdin }: ChildProcess, count: number): Promise<void> {
  const chunk = Buffer.alloc(MiB, 'x')
  for (let n = 0; n < count; n++) if (!stdin!.write(chunk)) await once(stdin!, 'drain')
}

const tooLarge = { code: -31007, data: { source: 'proxy', reason: 'too_large' } }

describe('a line that never ends takes less than three times the limit', () => {
  it('from a server: what waits for it fails, and its group is killed past twice the limit', async () => {
    const { heard, say, exit, peak } = command(path('stdio-flood.mjs'), 'endless')
    say({ jsonrpc: '2.0', id: 1, method: 'x' })
    // Nothing was served.
    expect(await exit).toEqual([69, null])
    console.info(`endless line from a server: ${peak()} MiB at most`)
    expect(heard).toMatchObject({ messages: 1, last: { id: 1, error: tooLarge } })
    expect(peak()).toBeLessThan(3 * LIMIT)
  })

  it('from a client: it is told once, and goes on behind the newline', async () => {
    const { child, heard, say, exit, peak } = command(path('flooder.mjs'))
    child.stdin.write('{"jsonrpc":"2.0","id":1,"x":"')
    await pour(child, 256)
    child.stdin.write('"}\n')
    say(initialize())
    await vi.waitFor(() => expect(heard.messages).toBe(2), { timeout: 10_000 })
    expect(heard.last).toMatchObject({ id: 'init', result: {} })
    console.info(`endless line from a client: ${peak()} MiB at most`)
    expect(peak()).toBeLessThan(3 * LIMIT)
    child.stdin.end()
    expect(await exit).toEqual([0, null])
  })
})

describe('a server that never reads', () => {
  it('stops its client on stdio', async () => {
    const { child, peak } = command(path('stdio-deaf.mjs'))
    const line = `${JSON.stringify({ jsonrpc: '2.0', method: 'n', params: { pad: 'x'.repeat(16 << 10) } })}\n`
    let taken = 0
    const write = () => {
      if (taken < 64 * MiB) child.stdin.write(line, write)
      taken += line.length
    }
    write()
    // It is under way, and then goes no further.
    await vi.waitFor(() => expect(taken).toBeGreaterThan(MiB), { timeout: 10_000 })
    let before = -1
    await vi.waitFor(
      () => {
        const was = before
        before = taken
        expect(taken).toBe(was)
      },
      { timeout: 10_000, interval: 200 },
    )
    console.info(`a server that never reads, on stdio: took ${mib(taken)} MiB, ${peak()} MiB at most`)
    expect(mib(taken)).toBeLessThan(16)
    expect(peak()).toBeLessThan(150)
  })

  it('has clients over HTTP get a 503', async () => {
    const { run, origin } = await behind(['stdio', '--listen', '0', '--', process.execPath, path('stdio-deaf.mjs')])
    closing.push(() => stop(run.child))
    closing.push(() => endChildrenOf(run.child.pid!))
    const headers = { accept: 'application/json, text/event-stream', 'content-type': 'application/json' }
    const controller = new AbortController()
    closing.push(() => controller.abort())
    const post = (body: object, more = {}) =>
      fetch(`${origin}/mcp`, {
        method: 'POST',
        headers: { ...headers, ...more },
        body: JSON.stringify({ jsonrpc: '2.0', ...body }),
        signal: controller.signal,
      })
    // Nobody answers it: its session is known by the head of the stream that it becomes.
    const sse = await unread(`${origin}/sse`)
    const [head] = (await once(sse.response, 'data')) as [Buffer]
    sse.read()
    const endpoint = new URL(/data: (\S+)/.exec(head.toString())![1]!, origin).href
    const pad = 'x'.repeat(MiB)
    const statuses: number[] = []
    const told = Array.from({ length: 40 }, (_, n) =>
      fetch(endpoint, {
        method: 'POST',
        headers,
        body: JSON.stringify({ jsonrpc: '2.0', method: 'n', params: { n, pad } }),
        signal: controller.signal,
      }).then(
        ({ status }) => statuses.push(status),
        () => {},
      ),
    )
    await vi.waitFor(() => expect(statuses).toContain(503), { timeout: 10_000 })
    const { peak } = memoryOf(run.child.pid!)
    console.info(`a server that never reads, over HTTP: ${statuses.join(' ')}; ${mib(peak)} MiB at most`)
    expect(mib(peak)).toBeLessThan(200)
    // Another one is served meanwhile: the proxy itself answers.
    expect((await post({ id: 1, method: 'x' })).status).toBe(400)
    controller.abort()
    await Promise.all(told)
  })
})

const MODERN = {
  'io.modelcontextprotocol/protocolVersion': '2026-07-28',
  'io.modelcontextprotocol/clientCapabilities': {},
}

const call = (url: string, bytes: number) => {
  const params = { name: 'f', arguments: { bytes, size: 16_384 }, _meta: { ...MODERN, progressToken: 't' } }
  return {
    url,
    method: 'POST',
    headers: {
      accept: 'application/json, text/event-stream',
      'content-type': 'application/json',
      'mcp-protocol-version': '2026-07-28',
      'mcp-method': 'tools/call',
      'mcp-name': 'f',
    },
    body: { jsonrpc: '2.0', id: 1, method: 'tools/call', params },
  }
}

describe('a client that does not read', () => {
  /** Milliseconds of calls of another client, one after the other. */
  async function latencies(url: string, count: number) {
    const all: number[] = []
    for (let n = 0; n < count; n++) {
      const { body, ...init } = call(url, 0)
      const before = performance.now()
      const response = await fetch(url, { ...init, body: JSON.stringify(body) })
      expect(await response.text()).toContain('"result":{"n":0}')
      all.push(performance.now() - before)
    }
    all.sort((a, b) => a - b)
    const at = (part: number) => all[Math.floor(part * (count - 1))]!.toFixed(1)
    return `p50 ${at(0.5)} ms, p99 ${at(0.99)} ms, most ${at(1)} ms`
  }

  it.each(['stdio', 'http'] as const)('costs others nothing, before %s', async (upstream) => {
    const { url, wrote, pid } = await floodedPort(upstream)
    await latencies(url, 20)
    const alone = await latencies(url, 100)
    const deaf = await unread(url, call(url, 64 * MiB))
    await vi.waitFor(() => expect(wrote()).toBeGreaterThan(3), { timeout: 10_000 })
    const beside = await latencies(url, 100)
    const heard = deaf.read()
    const flowing = await latencies(url, 100)
    await vi.waitFor(() => expect(heard.over).toBe(true), { timeout: 20_000 })
    const peak = mib(memoryOf(pid).peak)
    console.info(
      `others before ${upstream}: alone ${alone}; beside it ${beside}; while it reads ${flowing}; ${peak} MiB`,
    )
    // A child of both is not stopped for one of them: past a bound that one is given up.
    const last = upstream === 'http' ? { result: { n: 4096 } } : { error: { code: -31005 } }
    expect(heard.last).toMatchObject({ id: 1, ...last })
    expect(peak).toBeLessThan(150)
  })
})
