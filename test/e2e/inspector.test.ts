import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { beforeAll, expect, test } from 'vitest'
import { everything, target } from '../fixtures/servers.js'
import { proxied, type Where } from '../fixtures/talk.js'

const packages = ['-y', '-p', 'node@22', '-p', '@modelcontextprotocol/inspector', '--']
const npx = (args: string[], timeout: number) =>
  promisify(execFile)('npx', [...packages, ...args], { timeout, maxBuffer: 1 << 24 })

/** Runs the Inspector without its window: it starts the server, does one thing and prints the result. */
async function inspect(where: Where, ...what: string[]): Promise<unknown> {
  const { command, args } = where as { command: string; args: string[] }
  const { stdout } = await npx(['mcp-inspector', '--cli', command, ...args, ...what], 60_000)
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
  'the target': { where: { command: process.execPath, args: [target, '--stdio'] }, argument: 'n=1' },
  'server-everything': { where: { command: process.execPath, args: [everything, 'stdio'] }, argument: 'message=é👋' },
}

for (const [name, { where, argument }] of Object.entries(servers)) {
  test.concurrent(`the Inspector lists and calls through the proxy as without: ${name}`, async ({ skip }) => {
    if (absent !== undefined) return skip(absent)
    const call = ['--method', 'tools/call', '--tool-name', 'echo', '--tool-arg', argument]
    for (const what of [['--method', 'tools/list'], call]) {
      const [direct, through] = await Promise.all([inspect(where, ...what), inspect(proxied(where), ...what)])
      expect(Object.keys(direct as object)).toContain(what === call ? 'content' : 'tools')
      expect(through).toEqual(direct)
    }
  }, 120_000)
}
