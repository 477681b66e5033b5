import PQueue from 'p-queue'
import { expect, test } from 'vitest'
import { path } from '../fixtures/command.js'
import { asClient } from '../fixtures/conformance.js'

/** Those without authorization, where a server is known by its own origin; and how many checks they are. */
const scenarios: Record<string, Record<string, number>> = {
  '2025-11-25': {
    initialize: 1,
    tools_call: 2,
    'elicitation-sep1034-client-defaults': 5,
    'sse-retry': 3,
    'json-schema-2020-12-preservation': 9,
  },
  '2026-07-28': {
    tools_call: 2,
    'request-metadata': 8,
    'sep-2322-client-request-state': 5,
    'http-standard-headers': 9,
    'http-custom-headers': 18,
    'http-invalid-tool-headers': 12,
    'json-schema-ref-no-deref': 1,
    'json-schema-2020-12-preservation': 9,
  },
}

const client = path('../fixtures/conformance/through-proxy.mjs')
/** Each is four processes. */
const lanes = new PQueue({ concurrency: 3 })

for (const [revision, names] of Object.entries(scenarios)) {
  for (const [name, count] of Object.entries(names)) {
    test.concurrent(`the conformance suite's ${name} of ${revision}: a client through the proxy`, async ({
      signal,
    }) => {
      const args = ['--scenario', name, '--spec-version', revision]
      const { code, output } = await lanes.add(() => asClient('02', args, client, signal))
      expect(output).toContain(`Passed: ${count}/${count}, 0 failed, 0 warnings`)
      expect(code, output).toBe(0)
    }, 120_000)
  }
}
