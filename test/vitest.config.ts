import { fileURLToPath } from 'node:url'
import { defineConfig } from 'vitest/config'
import type { Reporter, TestModule } from 'vitest/node'

const at = (path: string) => fileURLToPath(new URL(`../${path}`, import.meta.url))

/** One closing line that any tool can read. */
const summary: Reporter = {
  onTestRunEnd(modules: readonly TestModule[]) {
    const count = { passed: 0, failed: 0, skipped: 0, pending: 0 }
    for (const module of modules) {
      for (const test of module.children.allTests()) count[test.result().state]++
    }
    console.log(`${count.passed} passed, ${count.failed} failed, ${count.skipped + count.pending} skipped`)
  },
}

export default defineConfig({
  resolve: {
    alias: [
      { find: /^open-mcp-proxy$/, replacement: at('src/index.ts') },
      { find: /^open-mcp-proxy\/testing$/, replacement: at('src/testing.ts') },
      { find: /^open-mcp-proxy\/middleware$/, replacement: at('middleware/index.ts') },
      { find: /^open-mcp-proxy\/middleware\/(.*)$/, replacement: at('middleware/$1.ts') },
    ],
  },
  test: {
    include: ['test/**/*.test.ts'],
    reporters: ['default', summary],
    // Most of them wait for processes and sockets more than they compute.
    maxWorkers: 2,
    testTimeout: 30_000,
    hookTimeout: 30_000,
    coverage: { include: ['src/**', 'middleware/**'], provider: 'v8', reporter: ['text', 'json-summary'] },
  },
})
