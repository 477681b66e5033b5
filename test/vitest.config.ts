import { fileURLToPath } from 'node:url'
import { defineConfig } from 'vitest/config'

const at = (path: string) => fileURLToPath(new URL(`../${path}`, import.meta.url))

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
    testTimeout: 30_000,
    coverage: { include: ['src/**', 'middleware/**'], provider: 'v8', reporter: ['text', 'json-summary'] },
  },
})
