import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { beforeAll, expect, test } from 'vitest'
import { type BehindPort, behindPort, ended } from '../fixtures/behind-port.js'
import { everything, target } from '../fixtures/servers.js'

const packages = ['-y', '-p', 'node@22', '-p', '@modelcontextprotocol/inspector', '--']
const npx = (args: string[], timeout: number) =>
  promisify(execFile)('npx', [...packages, ...args], { timeout, maxBuffer: 1 << 24 })

/** Runs the Inspector without its window: it connects, does one thing and prints the result. */
async function inspect(where: string[], ...what: string[]): Promise<unknown> {
  const { stdout } = await npx(['mcp-inspector', '--cli', ...where, ...what], 60_000)
  return JSON.parse(stdout)
}

let absent: string | undefined

beforeAll(async () => {
  try {
    await npx(['node', '--version'], 120_000)
  } catch (error) {
    absent = `npx could not fetch the Inspector: ${(error as Error).message.split('\n')[0]}`
  }
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
