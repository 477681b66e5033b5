import { readdirSync } from 'node:fs'
import { basename } from 'node:path'
import { defineConfig } from 'tsup'

/** Each middleware is a module of its own, so that one that is not used is not loaded. */
const shelf = Object.fromEntries(
  readdirSync('middleware').map((file) => [`middleware/${basename(file, '.ts')}`, `middleware/${file}`]),
)
const library = { index: 'src/index.ts', testing: 'src/testing.ts', ...shelf }

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
