import { execFile } from 'node:child_process'
import { mkdtemp, readdir, readFile, realpath, rm, writeFile } from 'node:fs/promises'
import { builtinModules, createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { afterAll, beforeAll, expect, test } from 'vitest'

const exec = promisify(execFile)
const root = fileURLToPath(new URL('../..', import.meta.url))
const pkg = createRequire(import.meta.url)('../../package.json') as {
  version: string
  dependencies: Record<string, string>
}

let project: string
let packed: string[]

/** Runs a program in the empty project, without what `npm test` tells npm of this one. */
async function run(command: string, ...args: string[]): Promise<string> {
  const env = Object.fromEntries(
    Object.entries(process.env).filter(([name]) => !/^npm_(package|lifecycle)_/.test(name)),
  )
  delete env.npm_config_local_prefix
  try {
    const { stdout } = await exec(command, args, { cwd: project, env })
    return stdout
  } catch (error) {
    const { message, stdout } = error as Error & { stdout: string }
    throw new Error(`${message}\n${stdout}`)
  }
}

beforeAll(async () => {
  project = await realpath(await mkdtemp(join(tmpdir(), 'omproxy-package-')))
  const { stdout } = await exec('npm', ['pack', '--json', '--ignore-scripts', '--pack-destination', project], {
    cwd: root,
  })
  const [{ filename, files }] = JSON.parse(stdout) as [{ filename: string; files: { path: string }[] }]
  packed = files.map(({ path }) => path)
  await writeFile(join(project, 'package.json'), '{ "private": true, "type": "module" }')
  await run('npm', 'install', '--no-audit', '--no-fund', '--prefer-offline', `./${filename}`)
}, 60_000)

afterAll(() => rm(project, { recursive: true, force: true }))

test('holds what was built and the papers, and no path of this disk', async () => {
  const built = /^dist\/(middleware\/)?[\w-]+\.(js|d\.ts)$/
  expect(packed.filter((path) => !built.test(path)).sort()).toEqual([
    'CHANGELOG.md',
    'LICENSE',
    'README.md',
    'dist/LICENSES.txt',
    'dist/schema.json',
    'package.json',
  ])
  for (const path of packed.filter((it) => built.test(it))) {
    expect(await readFile(join(root, path), 'utf8'), path).not.toContain(root)
  }
})

test('needs its dependencies, each of them, and nothing else', async () => {
  const needed = new Set<string>()
  for (const path of packed.filter((it) => it.startsWith('dist/'))) {
    const text = await readFile(join(root, path), 'utf8')
    for (const [, name] of text.matchAll(
      /(?:^\} from |^(?:im|ex)port .* from |^import |\bimport\(|\(import\.meta\.url\)\()["']([^."'][^"']*)["']/gm,
    )) {
      const [scope, rest] = (name as string).split('/')
      needed.add(scope?.startsWith('@') ? `${scope}/${rest}` : (scope as string))
    }
  }
  const foreign = [...needed].filter((it) => !it.startsWith('node:') && !builtinModules.includes(it))
  expect(foreign.sort()).toEqual([...Object.keys(pkg.dependencies), 'open-mcp-proxy'].sort())
})

test.each(['omproxy', 'open-mcp-proxy'])('%s runs', async (name) => {
  expect(await run('npx', '--no', '--', name, '--version')).toBe(`${pkg.version}\n`)
})

test('every entry point can be imported', async () => {
  await writeFile(
    join(project, 'main.js'),
    `
import * as core from 'open-mcp-proxy'
import * as testing from 'open-mcp-proxy/testing'
import * as shelf from 'open-mcp-proxy/middleware'
import * as logger from 'open-mcp-proxy/middleware/logger'

const { createProxy } = core
const lines = []
const proxy = testing.testProxy(createProxy().use(logger.logger({ format: 'json', write: (line) => lines.push(line) })))
const traffic = await proxy.fromClient({ id: 1, method: 'ping' })
console.log(JSON.stringify({
  same: shelf.logger === logger.logger,
  core: Object.keys(core).includes('createProxy'),
  testing: Object.keys(testing),
  traffic,
  lines: lines.length,
}))`,
  )
  expect(JSON.parse(await run(process.execPath, 'main.js'))).toEqual({
    same: true,
    core: true,
    testing: expect.arrayContaining(['contract', 'testContext', 'testProxy']),
    traffic: { toClient: [], toServer: [{ jsonrpc: '2.0', id: 1, method: 'ping' }] },
    lines: 1,
  })
})

test('every entry point has its types', async () => {
  await writeFile(
    join(project, 'main.ts'),
    `
import { type Context, createProxy, type Middleware, type Next, onRequest, RpcError } from 'open-mcp-proxy'
import { testContext, testProxy, type Traffic } from 'open-mcp-proxy/testing'
import { logger, type LoggerOptions } from 'open-mcp-proxy/middleware'
import { type LogEntry, logger as same } from 'open-mcp-proxy/middleware/logger'

const auth: Middleware<{ user: string }> = (ctx, next) => {
  ctx.state.user = 'ada'
  return next()
}
const app = createProxy()
  .use(auth)
  .use(logger({ format: 'json' } satisfies LoggerOptions), same())
  .use(onRequest('tools/call', (ctx, next) => { const name: string = ctx.params.name; return name ? next() : ctx.throw(-1, 'no') }))
const traffic: Promise<Traffic> = testProxy(app).fromClient({ id: 1, method: 'ping' })
const { ctx, next }: { ctx: Context; next: Next } = testContext({ id: 1, method: 'ping' })
const entry: Pick<LogEntry, 'id'> = { id: 1 }
const error: Error = new RpcError(1, 'x')
// @ts-expect-error the types are there, and say no
createProxy().use('not a middleware')
export { ctx, entry, error, next, traffic }`,
  )
  const options = {
    strict: true,
    noEmit: true,
    target: 'es2022',
    module: 'nodenext',
    types: ['node'],
    typeRoots: [join(root, 'node_modules/@types')],
  }
  await writeFile(join(project, 'tsconfig.json'), JSON.stringify({ compilerOptions: options, files: ['main.ts'] }))
  await run(process.execPath, join(root, 'node_modules/typescript/bin/tsc'), '-p', '.')
}, 60_000)

test('publint and attw have nothing to say', async () => {
  await exec('npm', ['run', '--silent', 'check:package'], { cwd: root })
}, 60_000)

test('what is on the shelf is built, one module each', async () => {
  const sources = (await readdir(join(root, 'middleware'))).filter((it) => it.endsWith('.ts'))
  const modules = sources.map((it) => `dist/middleware/${it.replace(/\.ts$/, '.js')}`)
  expect(packed).toEqual(expect.arrayContaining(modules))
})
