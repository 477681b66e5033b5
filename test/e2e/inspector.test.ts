import { beforeAll, expect, test } from 'vitest'
import { inspect, whyAbsent } from '../fixtures/inspector.js'
import { everything, target } from '../fixtures/servers.js'
import { proxied, type Where } from '../fixtures/talk.js'

function wordsOf(where: Where): string[] {
  const { command, args } = where as { command: string; args: string[] }
  return [command, ...args]
}

let absent: string | undefined

beforeAll(async () => {
  absent = await whyAbsent()
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
      const [direct, through] = await Promise.all([
        inspect(wordsOf(where), ...what),
        inspect(wordsOf(proxied(where)), ...what),
      ])
      expect(Object.keys(direct as object)).toContain(what === call ? 'content' : 'tools')
      expect(through).toEqual(direct)
    }
  }, 120_000)
}
