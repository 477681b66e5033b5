import { defineConfig } from 'tsup'

const modules = [
  'run',
  'server',
  'middleware',
  'micro',
  'baselines/raw',
  'baselines/raw-http',
  'baselines/parse',
  'baselines/sdk',
]

/** What is measured against is built as the program is: else its start would be no measure. */
export default defineConfig({
  entry: Object.fromEntries(modules.map((module) => [module, `test/bench/${module}.ts`])),
  outDir: 'test/bench/dist',
  format: 'esm',
  target: 'node20',
  platform: 'node',
  splitting: false,
  skipNodeModulesBundle: true,
  external: [/^open-mcp-proxy/],
})
