import { defineConfig } from 'tsup'

const library = {
  index: 'src/index.ts',
  testing: 'src/testing.ts',
  'middleware/index': 'middleware/index.ts',
  'middleware/logger': 'middleware/logger.ts',
}

export default defineConfig({
  entry: { ...library, cli: 'src/cli.ts' },
  format: 'esm',
  target: 'node20',
  platform: 'node',
  splitting: true,
  clean: true,
  dts: { entry: library },
  // A middleware imports the package by its name, so that it shares the one copy of it with everybody.
  external: [/^open-mcp-proxy/],
})
