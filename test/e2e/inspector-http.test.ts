import { beforeAll, expect, test } from 'vitest'
import { type BehindPort, behindPort, ended } from '../fixtures/behind-port.js'
import { inspect, whyAbsent } from '../fixtures/inspector.js'
import { everything, target } from '../fixtures/servers.js'

let absent: string | undefined

beforeAll(async () => {
  absent = await whyAbsent()
}, 130_000)

const servers = {
  'the target': { command: [process.execPath, target, '--stdio'], argument: 'n=1' },
  'server-everything': { command: [process.execPath, everything, 'stdio'], argument: 'message=é👋' },
}

const faces: Record<string, (port: BehindPort) => string[]> = {
  'Streamable HTTP': ({ http }) => [http.http, '--transport', 'http'],
  SSE: ({ sse }) => [sse.sse, '--transport', 'sse'],
}

for (const [name, { command, argument }] of Object.entries(servers)) {
  for (const [face, at] of Object.entries(faces)) {
    test.concurrent(`the Inspector lists and calls through the port as without: ${name} over ${face}`, async ({
      skip,
      onTestFinished,
    }) => {
      if (absent !== undefined) return skip(absent)
      const [program, ...args] = command as [string, ...string[]]
      const port = await behindPort({ command: program, args })
      onTestFinished(port.kill)
      const call = ['--method', 'tools/call', '--tool-name', 'echo', '--tool-arg', argument]
      for (const what of [['--method', 'tools/list'], call]) {
        const [direct, through] = await Promise.all([inspect(command, ...what), inspect(at(port), ...what)])
        expect(Object.keys(direct as object)).toContain(what === call ? 'content' : 'tools')
        expect(through).toEqual(direct)
      }
      expect(await port.end()).toEqual(ended)
    }, 120_000)
  }
}
