import { readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { basename } from 'node:path'
import { createGenerator, type Schema } from 'ts-json-schema-generator'
import { defineConfig } from 'tsup'

/** Each middleware is a module of its own, so that one that is not used is not loaded. */
const shelf = Object.fromEntries(
  readdirSync('middleware').map((file) => [`middleware/${basename(file, '.ts')}`, `middleware/${file}`]),
)
const library = { index: 'src/index.ts', testing: 'src/testing.ts', ...shelf }

/** The JSON Schema of a configuration file, for editors and for the command: what the types and their comments say. */
function schema(): Schema {
  const options = { tsconfig: 'tsconfig.json', functions: 'hide', skipTypeCheck: true } as const
  const file = createGenerator({ ...options, path: 'src/config.ts' }).createSchema('ConfigFile')
  const shelf = createGenerator({ ...options, path: 'middleware/index.ts' }).createSchema('Shelf')
  const definitions = { ...file.definitions, ...shelf.definitions }
  const named = definitions.Shelf as Schema
  const stack = (definitions.ConfigFile as Schema).properties?.use as Schema
  const modules = { ...named, required: undefined, additionalProperties: true, minProperties: 1, maxProperties: 1 }
  stack.items = { anyOf: [{ type: 'string', examples: Object.keys(named.properties ?? {}) }, modules] }
  for (const it of Object.values(definitions)) withoutProse(it as Schema)
  return { $schema: file.$schema, title: 'Open MCP Proxy', $ref: '#/definitions/ConfigFile', definitions }
}

/** A default that is told in words is no value that an editor could put in. */
function withoutProse(definition: Schema): void {
  for (const property of Object.values(definition.properties ?? {}) as Schema[]) {
    if (typeof property.default === 'string' && property.type !== 'string') delete property.default
  }
}

/** What is built in, since loading its many files would take the command as long as all of its own. */
const builtIn = ['commander', 'cross-spawn', 'koa-compose', 'p-queue']

/** The licences of what is built in ask to go where it goes. */
function licences(): string {
  const { inputs } = JSON.parse(readFileSync('dist/metafile-esm.json', 'utf8')) as { inputs: Record<string, unknown> }
  rmSync('dist/metafile-esm.json')
  const paths = Object.keys(inputs).flatMap((it) => /^.*node_modules\/(?:@[^/]+\/)?[^/]+/.exec(it) ?? [])
  const texts = [...new Set(paths)].sort().map((path) => {
    const { name, version, license } = JSON.parse(readFileSync(`${path}/package.json`, 'utf8'))
    const file = readdirSync(path).find((it) => /^licen[cs]e/i.test(it))
    const text = file === undefined ? `Licence: ${license}` : readFileSync(`${path}/${file}`, 'utf8').trim()
    return `${name} ${version}\n\n${text}\n`
  })
  return `This package holds parts of these, under their licences:\n\n${texts.join('\n---\n\n')}`
}

export default defineConfig({
  entry: { ...library, cli: 'src/cli.ts' },
  format: 'esm',
  target: 'node20',
  platform: 'node',
  splitting: true,
  clean: true,
  metafile: true,
  noExternal: builtIn,
  // CommonJS that is built in asks for Node's own modules.
  banner: { js: 'const require = process.getBuiltinModule' },
  dts: { entry: library },
  // A middleware imports the package by its name, so that it shares the one copy of it with everybody.
  external: [/^open-mcp-proxy/],
  async onSuccess() {
    writeFileSync('dist/LICENSES.txt', licences())
    writeFileSync('dist/schema.json', `${JSON.stringify(schema(), null, 2)}\n`)
  },
})
