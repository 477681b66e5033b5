// What a client sees of a fault, and how soon, through the proxy and through a plain relay: `npm run faults`, after a
// build. A report, not a test: it asserts nothing.
import { setTimeout as sleep } from 'node:timers/promises'
import {
  answer,
  endAll,
  type Fault,
  faultyChild,
  httpServer,
  initialize,
  isAlive,
  json,
  ms,
  PATIENCE,
  port,
  run,
  type Subject,
  stream,
  subjects,
  until,
} from '../fixtures/faults/server-subject.js'

interface Row {
  fault: string
  /** What the client sees. */
  run(subject: Subject): Promise<string>
}

/** A call of a tool of the faulty child. */
const ofChild = (fault: string, tool: string, more: (it: ReturnType<typeof run>) => string = () => ''): Row => ({
  fault,
  async run(subject) {
    const it = await run(subject, faultyChild()).shake()
    const outcome = await it.outcome(1, tool)
    return outcome + more(it)
  },
})

/** A call that a server of HTTP treats so. */
const ofHttp = (fault: string, act: Fault): Row => ({
  fault,
  async run(subject) {
    const server = await httpServer({ fault: act })
    try {
      const it = await run(subject, server.url).shake()
      return await it.outcome(1, 'fault')
    } finally {
      await server.close()
    }
  },
})

const MODERN = {
  'io.modelcontextprotocol/protocolVersion': '2026-07-28',
  'io.modelcontextprotocol/clientCapabilities': {},
}

const rows: Row[] = [
  ofChild('the child exits in the middle of a call', 'exit'),
  ofChild('the same, and a process that it started holds its stdout', 'orphan'),
  {
    fault: 'the command cannot be found (`initialize`)',
    async run(subject) {
      const it = run(subject, ['no-such-command-anywhere'])
      const since = performance.now()
      it.say({ id: 1, ...initialize })
      return it.seen(1, since)
    },
  },
  {
    fault: 'the child never answers; its client gives up after 1 s and cancels',
    async run(subject) {
      const it = await run(subject, faultyChild()).shake()
      it.call(1, 'hang')
      await sleep(1_000)
      const since = performance.now()
      it.say({ method: 'notifications/cancelled', params: { requestId: 1 } })
      it.call(2, 'cancelled')
      await until(() => it.responses().length > 0, PATIENCE)
      const [heard] = it.responses()
      if (!heard) return `nothing in ${PATIENCE / 1_000} s`
      const isTold = JSON.stringify(heard.message.result).includes('[1]')
      return `${isTold ? 'the child is told' : 'the child is not told'}, the next call is answered, ${ms(heard.at - since)}`
    },
  },
  ofChild('the child prints a banner on stdout', 'banner'),
  ofChild('an answer of 12 MiB', 'long'),
  ofChild('an answer of 65 MiB', 'large', (it) => `; ${it.peak()}`),
  ofChild('a line of 1 GiB', 'endless', (it) => `; ${it.peak()}`),
  {
    fault: 'its client closes stdin with 20 calls in flight',
    async run(subject) {
      const it = await run(subject, faultyChild()).shake()
      const since = performance.now()
      for (let id = 1; id <= 20; id++) it.call(id, 'slow')
      // A client that leaves has at least written what it said.
      await sleep(100)
      it.process.stdin.end()
      const isOver = await it.ended(PATIENCE)
      const end = isOver
        ? `it ends with ${it.process.exitCode}, ${ms(performance.now() - since)}`
        : 'it does not end in 5 s'
      return `${it.responses().length} of 20 answers; ${end}`
    },
  },
  {
    fault: 'its client leaves as SDK clients do; the child ignores SIGTERM',
    async run(subject) {
      const it = await run(subject, faultyChild('stubborn')).shake()
      await it.outcome(1, 'pid')
      const pid = it.responses()[0]?.message.result?.pid as number
      const since = performance.now()
      it.process.stdin.end()
      if (!(await it.exited(2_000))) it.process.kill('SIGTERM')
      if (!(await it.exited(2_000))) it.process.kill('SIGKILL')
      await it.exited(PATIENCE)
      const after = ms(performance.now() - since)
      const lives = !(await until(() => !isAlive(pid), 1_000))
      if (lives) process.kill(pid, 'SIGKILL')
      return `it is gone, ${after}; the child ${lives ? 'lives on' : 'is gone, too'}`
    },
  },
  ofHttp('HTTP 202 to a request', (response) => response.writeHead(202).end()),
  ofHttp('HTTP 200 with HTML', (response) =>
    response.writeHead(200, { 'content-type': 'text/html' }).end('<h1>Hi</h1>'),
  ),
  ofHttp('the stream ends without the answer', (response) => stream(response)),
  ofHttp('the answer has another id', (response) => json(response, answer(77))),
  ofHttp('the answer to `1` has the id `"1"` (clients of the SDK take it for theirs)', (response, id) =>
    json(response, answer(String(id))),
  ),
  ofHttp('the answer comes twice', (response, id) => stream(response, answer(id), answer(id))),
  ofHttp('HTTP 503 with `Retry-After`', (response) => response.writeHead(503, { 'retry-after': '7' }).end()),
  ofHttp('the connection is reset in the middle of a call', (response) => response.socket?.resetAndDestroy()),
  {
    fault: 'the server is not there any more',
    async run(subject) {
      const server = await httpServer()
      const it = await run(subject, server.url).shake()
      await server.close()
      return it.outcome(1, 'good')
    },
  },
  {
    fault: 'the server was restarted and has forgotten the session (404)',
    async run(subject) {
      const server = await httpServer()
      const it = await run(subject, server.url).shake()
      server.forget()
      const outcome = await it.outcome(1, 'good')
      await server.close()
      return outcome
    },
  },
  {
    fault: 'behind a port, the child exits; the next call of the session',
    async run(subject) {
      const it = await port(subject, faultyChild())
      await it.shake()
      await it.outcome(1, 'exit')
      return it.outcome(2, 'good')
    },
  },
  {
    fault: 'behind a port, a client of 2026-07-28 vanishes in the middle of a call: when the server knows',
    async run(subject) {
      let gone: number | undefined
      let asked = false
      const server = await httpServer({
        hang: (response) => {
          asked = true
          response.once('close', () => {
            gone = performance.now()
          })
        },
      })
      const it = await port(subject, server.url)
      const controller = new AbortController()
      const headers = { 'mcp-protocol-version': '2026-07-28', 'mcp-method': 'tools/call', 'mcp-name': 'hang' }
      const call = { id: 1, method: 'tools/call', params: { name: 'hang', _meta: MODERN } }
      const status = it.post(call, headers, controller.signal).then(
        (response) => response.status,
        () => 0,
      )
      await Promise.race([until(() => asked, PATIENCE), status])
      const since = performance.now()
      controller.abort()
      const refused = await status
      const knows = await until(() => gone !== undefined, asked ? PATIENCE : 0)
      await server.close()
      if (!asked) return `it never had the call: HTTP ${refused}`
      return knows ? ms(gone! - since) : `not in ${PATIENCE / 1_000} s`
    },
  },
]

const cell = (text: string) => text.replaceAll('|', '\\|').replaceAll('\n', ' ')
console.log(`| fault | ${subjects.map(({ name }) => name).join(' | ')} |`)
console.log(`| ----- | ${subjects.map(() => '-----').join(' | ')} |`)
for (const row of rows) {
  const cells: string[] = []
  for (const subject of subjects) {
    cells.push(cell(await row.run(subject)))
    await endAll()
  }
  console.log(`| ${row.fault} | ${cells.join(' | ')} |`)
}
