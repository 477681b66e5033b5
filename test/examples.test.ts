import { execFile } from 'node:child_process'
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify, stripVTControlCharacters } from 'node:util'
import { afterAll, beforeAll, expect, test } from 'vitest'

const root = fileURLToPath(new URL('..', import.meta.url))
let directory: string

/** Without the paths of ours, the examples import what was built, as a user's would. */
beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'omproxy-examples-'))
  await writeFile(join(directory, 'tsconfig.json'), '{}')
})

afterAll(() => rm(directory, { recursive: true, force: true }))

/** Runs an example, which asserts its own result; rejects unless it exits with 0. */
async function run(name: string): Promise<{ stdout: string; stderr: string }> {
  const { stdout, stderr } = await promisify(execFile)(process.execPath, ['--import', 'tsx', `examples/${name}.ts`], {
    cwd: root,
    env: { ...process.env, TSX_TSCONFIG_PATH: join(directory, 'tsconfig.json') },
    timeout: 30_000,
  })
  return { stdout: stripVTControlCharacters(stdout), stderr: stripVTControlCharacters(stderr) }
}

const withoutTimes = (log: string) =>
  log
    .trimEnd()
    .split('\n')
    .map((line) => line.replace(/^[\d:.]{12} /, '').replace(/ [\d.]+ ms$/, ''))

test('bridge', async () => {
  const { stdout } = await run('bridge')
  expect(stdout).toContain("echo: [ { type: 'text', text: 'Echo: over SSE' } ]")
})

test('auth-and-logger', async () => {
  const { stdout, stderr } = await run('auth-and-logger')
  expect(stdout).toContain("'MCP error -31006: Denied to bob'")
  expect(withoutTimes(stderr)).toEqual([
    '→ initialize #0',
    '← initialize #0 ok',
    '→ notifications/initialized',
    '→ tools/call launch #1',
    '← tools/call launch #1 error -31006',
    '→ tools/call launch #2',
    '← tools/call launch #2 error -31006',
    '→ tools/call launch #3',
    '← tools/call launch #3 ok',
  ])
})

test('rewrite-tools', async () => {
  expect((await run('rewrite-tools')).stdout).toContain("names: [ 'a_b_utc', 'a_b_cet' ]")
})

test('test-a-middleware', async () => {
  expect(await run('test-a-middleware')).toEqual({ stdout: 'deny() does what it should\n', stderr: '' })
})

test.each([
  ['test-with-node.test', ['--import', 'tsx', '--test', '--test-reporter=tap'], /# pass 15\n# fail 0\n/],
  ['test-with-vitest.test', ['node_modules/vitest/vitest.mjs', 'run', '--reporter=json'], /"numPassedTests":15,/],
])(
  '%s',
  async (name, command, passed) => {
    const args = [...command, `examples/${name}.ts`]
    const env = { ...process.env, NODE_TEST_CONTEXT: undefined, TSX_TSCONFIG_PATH: join(directory, 'tsconfig.json') }
    const { stdout } = await promisify(execFile)(process.execPath, args, { cwd: root, env, timeout: 60_000 })
    expect(stdout).toMatch(passed)
  },
  60_000,
)

test('demo', async () => {
  const { stdout, stderr } = await run('demo')
  expect(stdout).toContain("get-sum of 19 and 23: [ { type: 'text', text: 'The sum of 19 and 23 is 42.' } ]")
  expect(withoutTimes(stderr)).toEqual(
    expect.arrayContaining(['→ initialize #0', '→ tools/call get-sum #2', '← tools/call get-sum #2 ok']),
  )
})

test.each([
  ['express', 'Express'],
  ['fastify', 'Fastify'],
])('%s', async (name, framework) => {
  const { stdout, stderr } = await run(name)
  expect(stdout).toContain(`echo: [ { type: 'text', text: 'Echo: through ${framework}' } ]`)
  expect(withoutTimes(stderr)).toEqual(
    expect.arrayContaining(['→ initialize #0', '→ tools/call echo #2', '← tools/call echo #2 ok']),
  )
})

test('in-process', async () => {
  expect(await run('in-process')).toEqual({
    stdout: "{\n  counts: [ '1', '2', '1', '3' ],\n  refusal: 'MCP error -31006: Not here'\n}\n",
    stderr: '',
  })
})

test('jwt-gateway', async () => {
  const { stdout, stderr } = await run('jwt-gateway')
  expect(stdout.split('\n')).toEqual([
    'without a token: 401 Bearer scope="tools", resource_metadata="https://tools.example.com/.well-known/oauth-protected-resource/mcp"',
    'ada calls echo',
    "echo: [ { type: 'text', text: 'Echo: with a token' } ]",
    '',
  ])
  expect(withoutTimes(stderr)).toContain('← tools/call echo #1 ok')
})

test('record-and-replay', async () => {
  expect(await run('record-and-replay')).toEqual({
    stdout: [
      "replayed: [ { type: 'text', text: 'Hello' } ]",
      "tools/call greet result.content[0].text { expected: 'Hello', came: 'Good day' }",
      '',
    ].join('\n'),
    stderr: '',
  })
})

test('production', async () => {
  const { stdout } = await run('production')
  expect(stdout.split('\n')).toEqual([
    'a stranger: 401 Bearer',
    'ada: {',
    expect.stringMatching(/^ {2}tools: \d+,$/),
    "  add: 'The sum of 19 and 23 is 42.',",
    "  env: 'MCP error -32602: Unknown tool: get-env'",
    '}',
    'bob: {',
    '  tools: 1,',
    "  add: 'MCP error -31006: Denied: no permission to use this tool',",
    "  env: 'MCP error -32602: Unknown tool: get-env'",
    '}',
    "audit: true [ 'ada', 'bob' ]",
    '',
  ])
})

test('each example is run here', async () => {
  const files = await readdir(join(root, 'examples'))
  expect(files.sort()).toEqual([
    'auth-and-logger.ts',
    'bridge.ts',
    'demo.ts',
    'express.ts',
    'fastify.ts',
    'in-process.ts',
    'jwt-gateway.ts',
    // Packed, installed and run by test/e2e/own-middleware.test.ts.
    'own-middleware',
    'production',
    'production.ts',
    'record-and-replay.ts',
    'rewrite-tools.ts',
    'test-a-middleware.ts',
    'test-with-node.test.ts',
    'test-with-vitest.test.ts',
  ])
})
