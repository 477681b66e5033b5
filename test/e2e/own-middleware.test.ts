import { execFile } from 'node:child_process'
import { cp, mkdir, mkdtemp, realpath, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { path } from '../fixtures/command.js'
import { everything } from '../fixtures/servers.js'

const exec = promisify(execFile)
const root = path('../..')
const example = join(root, 'examples/own-middleware')
const name = '@example/omproxy-shorten'

/** A project of somebody's, with both packages as npm would install them from their tarballs. */
let project: string
let packed: string[]

/** Packs a package and unpacks it as `node_modules/NAME`; gives the files in it. No registry is asked. */
async function install(directory: string, as: string): Promise<string[]> {
  const args = ['pack', '--json', '--ignore-scripts', '--offline', '--pack-destination', project]
  const { stdout } = await exec('npm', args, { cwd: directory })
  const [{ filename, files }] = JSON.parse(stdout) as [{ filename: string; files: { path: string }[] }]
  const to = join(project, 'node_modules', as)
  await mkdir(to, { recursive: true })
  await exec('tar', ['-xzf', filename, '-C', to, '--strip-components', '1'], { cwd: project })
  return files.map((it) => it.path).sort()
}

async function run(command: string, args: string[], cwd: string): Promise<string> {
  // What a test runner tells the processes that it starts would make node:test report to it.
  const { NODE_TEST_CONTEXT: _, NODE_OPTIONS: __, ...env } = process.env
  try {
    return (await exec(command, args, { cwd, env })).stdout
  } catch (error) {
    const { message, stdout } = error as Error & { stdout: string }
    throw new Error(`${message}\n${stdout}`)
  }
}

beforeAll(async () => {
  project = await realpath(await mkdtemp(join(tmpdir(), 'omproxy-own-')))
  await writeFile(join(project, 'package.json'), '{ "private": true, "type": "module" }')
  await install(root, 'open-mcp-proxy')
  await symlink(join(root, 'node_modules'), join(project, 'node_modules/open-mcp-proxy/node_modules'), 'junction')
  packed = await install(example, name)
}, 60_000)

afterAll(() => rm(project, { recursive: true, force: true }))

test('the package holds what it needs, and no tests', () => {
  expect(packed).toEqual(['README.md', 'index.d.ts', 'index.js', 'package.json'])
})

test('its own tests pass against the packed proxy', async () => {
  const copy = join(project, 'copy')
  await cp(example, copy, { recursive: true })
  expect(await run('npm', ['test'], copy)).toMatch(/^. pass 5$/m)
})

test('the command loads it by its name', async () => {
  const cli = join(project, 'node_modules/open-mcp-proxy/dist/cli.js')
  const results: unknown[] = []
  for (const use of [name, `${name}={"characters":9}`, `${name}#shorten={"characters":12}`]) {
    const client = new Client({ name: 'test', version: '1.0.0' })
    const args = [cli, 'stdio', '--use', use, '--', process.execPath, everything, 'stdio']
    await client.connect(new StdioClientTransport({ command: process.execPath, args, cwd: project, stderr: 'ignore' }))
    results.push((await client.callTool({ name: 'echo', arguments: { message: '0123456789' } })).content)
    await client.close()
  }
  const text = (text: string) => [{ type: 'text', text }]
  expect(results).toEqual([text('Echo: 0123456789'), text('Echo: 012…'), text('Echo: 012345…')])
})

test('it has types', async () => {
  await writeFile(
    join(project, 'main.ts'),
    `
import { createProxy, type Middleware } from 'open-mcp-proxy'
import byDefault, { shorten, type ShortenOptions } from '${name}'

const options: ShortenOptions = { characters: 80 }
const middleware: Middleware = shorten(options)
export const app = createProxy().use(middleware, byDefault())
// @ts-expect-error the types are there, and say no
shorten({ characters: '80' })`,
  )
  const options = {
    strict: true,
    noEmit: true,
    target: 'es2022',
    module: 'nodenext',
    types: ['node'],
    typeRoots: [join(root, 'node_modules/@types')],
    skipLibCheck: true,
  }
  await writeFile(join(project, 'tsconfig.json'), JSON.stringify({ compilerOptions: options, files: ['main.ts'] }))
  await run(process.execPath, [join(root, 'node_modules/typescript/bin/tsc'), '-p', '.'], project)
}, 60_000)
