import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, readdir, readFile, realpath, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import { createRequire } from 'node:module'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest'
import { type CommandOptions, omproxy, type Running } from './fixtures/command.js'

const { version } = createRequire(import.meta.url)('../package.json') as { version: string }

/** A server that answers every request with its own arguments, directory and environment. */
const server = `
let text = ''
process.stdin.on('data', (chunk) => {
  text += chunk
  const lines = text.split('\\n')
  text = lines.pop()
  for (const line of lines) {
    const { id, params } = JSON.parse(line)
    if (id === undefined) continue
    const env = Object.fromEntries((params?.env ?? []).map((name) => [name, process.env[name] ?? null]))
    const result = { args: process.argv.slice(2), cwd: process.cwd(), env, marks: params?.marks }
    process.stdout.write(JSON.stringify({ jsonrpc: '2.0', id, result }) + '\\n')
  }
})`

const middleware = {
  'throws.mjs': 'export default () => () => { throw new Error("it broke\\nat the second line") }',
  'tells.mjs':
    'export default () => () => { const { TOKEN } = process.env; throw new Error("with " + TOKEN + ", and Bearer " + TOKEN) }',
  'rejects.mjs':
    'export default () => (ctx, next) => { if (ctx.kind === "request") Promise.reject(new Error("nobody cares")); return next() }',
  'crashes.mjs':
    'export default () => (ctx, next) => { if (ctx.kind === "request") setImmediate(() => { throw new Error("it crashed") }); return next() }',
  'timer.mjs': 'export default () => { setInterval(() => {}, 1000); return (ctx, next) => next() }',
  'start.mjs':
    'export default () => { setInterval(() => {}, 1000); return Object.assign((ctx, next) => next(), { start() { throw new Error("no file") } }) }',
  'prints.mjs': `
import { stdout } from 'node:process'
console.log('at load')
export default () => (ctx, next) => {
  console.log('log', ctx.kind)
  console.info('info')
  console.debug('debug')
  process.stdout.write('stdout\\n')
  stdout.write('imported\\n')
  return next()
}`,
  'order.mjs': `
export default ({ mark }) => (ctx, next) => {
  if (ctx.kind === 'request') ctx.params.marks = [...(ctx.params.marks ?? []), mark]
  else if (ctx.kind === 'response') ctx.result.marks = [...(ctx.result.marks ?? []), mark]
  return next()
}`,
  'broken.mjs': 'export default () => {',
}

let directory: string
let script: string
const use = (name: keyof typeof middleware, options = '') => ['--use', `${join(directory, name)}${options}`]

beforeAll(async () => {
  directory = await realpath(await mkdtemp(join(tmpdir(), 'omproxy-cli-')))
  script = join(directory, 'server.cjs')
  await writeFile(script, server)
  for (const [name, text] of Object.entries(middleware)) await writeFile(join(directory, name), text)
})

afterAll(() => rm(directory, { recursive: true, force: true }))

const started: Running[] = []

function run(args: string[], options?: CommandOptions): Running {
  const command = omproxy(args, options)
  started.push(command)
  return command
}

afterEach(() => {
  for (const it of started.splice(0)) it.kill()
})

/** Runs until it ends by itself; everything that it said. */
async function outcome(args: string[], options?: CommandOptions) {
  const command = run(args, options)
  const { code } = await command.exit
  return { code, stdout: command.texts().join('\n'), stderr: command.stderr }
}

/** Sends one request, waits for the answer and leaves. */
async function ask(args: string[], params: object = {}, options?: CommandOptions) {
  const command = run(args, options)
  command.send({ jsonrpc: '2.0', id: 1, method: 'ask', params })
  await command.until(1)
  const { code } = await command.end()
  return { code, stderr: command.stderr, said: command.said(), answer: command.messages()[0], odd: command.odd }
}

describe('help and version', () => {
  test.each(['--version', '-V'])('%s', async (option) => {
    expect(await outcome([option])).toEqual({ code: 0, stdout: version, stderr: '' })
  })

  test.each([['--help'], ['-h'], ['help']])('%s shows the commands and examples', async (option) => {
    const { code, stdout, stderr } = await outcome([option])
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    for (const line of [
      'Usage: omproxy stdio [options] [--] COMMAND [ARGS...]',
      '       omproxy --url URL [options]     (finds out which of the two transports it is)',
      '  omproxy stdio -- npx -y @modelcontextprotocol/server-everything',
      "  omproxy sse --url https://mcp.example.com/sse --header 'Authorization: Bearer $TOKEN'",
    ]) {
      expect(stdout.split('\n')).toContain(line)
    }
  })

  test('a reader that leaves is no failure', async () => {
    const child = spawn(process.execPath, ['dist/cli.js', '--help'], { stdio: ['ignore', 'pipe', 'pipe'] })
    child.stdout.destroy()
    let stderr = ''
    child.stderr.on('data', (chunk) => {
      stderr += chunk
    })
    const [code] = await once(child, 'close')
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
  })

  const common = [
    ...['--use', '--log-level', '--exit-with-parent', '--listen', '--path', '--allow-origin', '--allow-host'],
    ...['--max-sessions', '--idle-timeout', '--token', '--token-env', '--allow-unauthenticated', '--restart'],
  ]

  test.each([
    ['stdio', [...common, '--env', '--cwd']],
    ['sse', ['--url', '--header', '--headers', '--timeout', '--sse-read-timeout', ...common]],
    ['http', ['--url', '--header', '--headers', '--timeout', '--sse-read-timeout', ...common]],
  ])('%s --help shows its options', async (command, options) => {
    const { code, stdout, stderr } = await outcome([command, '--help'])
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    expect(stdout.match(/^ {2}(-h, )?--[a-z-]+/gm)?.map((it) => it.trim())).toEqual([...order(options), '-h, --help'])
    expect(stdout).not.toContain('[]')
  })

  const order = (options: string[]) => [
    ...options.filter((it) => !['--env', '--cwd'].includes(it)),
    ...options.filter((it) => ['--env', '--cwd'].includes(it)),
  ]
})

describe('usage errors are one line, exit code 2', () => {
  const url = 'http://127.0.0.1:1/mcp'
  test.each([
    [
      [],
      'expected stdio, sse, http or --url URL, or a proxy.config.{ts,js,json} here, got neither; see omproxy --help',
    ],
    [['studio'], "expected stdio, sse, http or --url URL, got unknown command 'studio' (Did you mean stdio?)"],
    [['--urll', url], "expected an option that --help shows, got unknown option '--urll' (Did you mean --url?)"],
    [['stdio', '--verbose', 'cat'], "expected an option that --help shows, got unknown option '--verbose'"],
    [['http', '--hedder=s3cret-value'], "expected an option that --help shows, got unknown option '--hedder'"],
    [['stdio'], 'expected a COMMAND that starts the server, got none'],
    [['stdio', '--use', 'logger', '--'], 'expected a COMMAND that starts the server, got none'],
    [['replay'], 'expected a FILE that record wrote, got none'],
    [['sse'], 'expected --url URL, got none'],
    [['http', '--timeout', '3'], 'expected --url URL, got none'],
    [
      ['--log-level', 'debug'],
      expect.stringMatching(/^expected .*, or a proxy\.config\.\{ts,js,json\} here, got neither/),
    ],
    [['--url', url, '--config', 'x.json'], '--config: expected a configuration file instead of --url, got both'],
    [['--url', url, '--watch'], '--watch: expected a configuration file instead of --url, got both'],
    [['--config', 'x.json', '--header', 'a: b'], '--header: expected --url with it, got none'],
    [['--config', 'x.json', '--restart', 'never'], '--restart: expected --url with it, got none'],
    [
      ['stdio', '--restart', 'always', 'cat'],
      "option '--restart <when>' argument 'always' is invalid. Allowed choices are on-failure, never.",
    ],
    [['--config', 'no-such.json'], '--config no-such.json: expected a file that can be read, got ENOENT'],
    [['stdio', '--config', 'x.json', 'cat'], "expected an option that --help shows, got unknown option '--config'"],
    [['http', '--url'], "option '--url <url>' argument missing"],
    [['http', '--url', 'nowhere'], '--url: expected an http: or https: URL, got no URL'],
    [['sse', '--url', 'ftp://host/'], '--url: expected an http: or https: URL, got one with ftp:'],
    [['http', url], 'expected options alone, got arguments: 1 (stdio, sse and http come first)'],
    [
      ['--log-level', 'debug', 'stdio', 'cat'],
      'expected options alone, got arguments: 2 (stdio, sse and http come first)',
    ],
    [
      ['stdio', '--log-level', 'loud', 'cat'],
      "option '--log-level <level>' argument 'loud' is invalid. Allowed choices are silent, error, warn, info, debug.",
    ],
    [['http', '--url', url, '--timeout', '0'], '--timeout: expected seconds (above 0 to 2147483), got "0"'],
    [['sse', '--url', url, '--sse-read-timeout', 'x'], '--sse-read-timeout: expected seconds (0 to 2147483), got "x"'],
    [['http', '--url', url, '--header', 's3cret-value'], "--header: expected 'Name: value', got no colon"],
    [
      ['http', '--url', url, '--header', 'X-Key: $OMPROXY_UNSET'],
      '--header X-Key: expected the environment variable OMPROXY_UNSET, it is not set ($$ is a literal $)',
    ],
    [
      ['http', '--url', url, '--headers', 'a=b,s3cret-value'],
      '--headers: expected name=value,name2=value2, pair 2 has no "=" (a value with a comma: --header)',
    ],
    [['stdio', '--env', 's3cret-value', 'cat'], '--env: expected NAME=VALUE, got no "="'],
    [['stdio', '--use', '', 'cat'], '--use: expected MODULE[#EXPORT][=JSON], got ""'],
    [
      ['stdio', '--use', 'logger={"key":"s3cret-value"', 'cat'],
      expect.stringMatching(/^--use logger: expected JSON after "=", got what does not parse( at position \d+)?$/),
    ],
    [
      ['stdio', '--use', 'nope', 'cat'],
      "--use nope: expected one of the shelf (audit, auth, authorize, logger, metrics, record, toolFilter, trace), a path (./nope.js) or a package's module, found none",
    ],
    [['stdio', '--use', '/no/such.js', 'cat'], '--use /no/such.js: expected a module there, found none'],
    ...['x', '70000', ':3000', '::1:3000', 'a b:-1', ''].map((text): [string[], string] => [
      ['stdio', '--listen', text, 'cat'],
      `--listen: expected PORT or HOST:PORT, with a port from 0 to 65535, got "${text}"`,
    ]),
    [['stdio', '--path', '/x', 'cat'], '--path: expected --listen with it, got none'],
    [['http', '--url', url, '--token', 's3cret-value'], '--token: expected --listen with it, got none'],
    [['stdio', '--allow-unauthenticated', 'cat'], '--allow-unauthenticated: expected --listen with it, got none'],
    [
      ['stdio', '--listen', '0', '--max-sessions', '0', 'cat'],
      '--max-sessions: expected a whole number above 0, got "0"',
    ],
    [
      ['stdio', '--listen', '0', '--idle-timeout', '0', 'cat'],
      '--idle-timeout: expected seconds (above 0 to 2147483), got "0"',
    ],
    [
      ['stdio', '--listen', '0', '--path', 'mcp', 'cat'],
      '--listen: path: expected one as /mcp, other than /sse, /messages, /healthz, got "mcp"',
    ],
    [
      ['stdio', '--listen', '0', '--allow-origin', 'app.example.com', 'cat'],
      '--listen: allowOrigins: expected an origin as https://app.example.com, got "app.example.com"',
    ],
    [
      ['stdio', '--listen', '0', '--allow-host', 'https://a', 'cat'],
      '--listen: allowHosts: expected a host, or host:port, got "https://a"',
    ],
    [
      ['stdio', '--listen', '0', '--token', 's3cret-value', '--token-env', 'T', 'cat'],
      'expected --token or --token-env, got both',
    ],
    [
      ['stdio', '--listen', '0', '--token-env', 'OMPROXY_UNSET', 'cat'],
      '--token-env: expected a variable with a token in it, OMPROXY_UNSET is not set',
    ],
    [
      ['stdio', '--listen', '0.0.0.0:0', 'cat'],
      '--listen: expected a token, middleware that authenticates, or allowUnauthenticated; got host "0.0.0.0", which other machines can reach',
    ],
  ])('%j', async (args, line) => {
    const { stderr, ...rest } = await outcome(args)
    expect(rest).toEqual({ code: 2, stdout: '' })
    expect(stderr).toMatch(/^omproxy: [^\n]*\n$/)
    expect(stderr.slice('omproxy: '.length, -1)).toEqual(line)
    expect(stderr).not.toContain('s3cret')
  })

  test('a port that is taken is a failure, told in one line', async () => {
    const taken = createServer().listen(0, '127.0.0.1')
    await once(taken, 'listening')
    const { port } = taken.address() as AddressInfo
    const { code, stdout, stderr } = await outcome(['stdio', '--listen', String(port), 'cat'])
    taken.close()
    expect({ code, stdout, stderr }).toEqual({
      code: 1,
      stdout: '',
      stderr: `omproxy: could not listen on 127.0.0.1 port ${port}: EADDRINUSE\n`,
    })
  })

  test('a module that does not parse', async () => {
    const { code, stdout, stderr } = await outcome(['stdio', ...use('broken.mjs'), 'cat'])
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' })
    expect(stderr).toMatch(/^omproxy: --use \S+broken.mjs: the module could not be loaded: [^\n]+\n$/)
  })
})

describe('stdio', () => {
  const node = process.execPath

  test('options after COMMAND are its own; -- is optional', async () => {
    const args = ['--use', 'x', '-h', '--', '--version', '--env', 'A=b']
    for (const start of [
      ['stdio', node],
      ['stdio', '--', node],
      ['stdio', '--log-level', 'error', node],
    ]) {
      const { answer, code } = await ask([...start, script, ...args])
      expect(answer).toEqual({ jsonrpc: '2.0', id: 1, result: { args, cwd: process.cwd(), env: {} } })
      expect(code).toBe(0)
    }
  })

  test('the child gets the whole environment, --env and --cwd', async () => {
    const { answer } = await ask(
      ['stdio', '--env', 'A=1=2', '--env', 'EMPTY=', '--env', 'OVER=new', '--cwd', directory, node, script],
      { env: ['A', 'EMPTY', 'OVER', 'API_TOKEN', 'UNSET'] },
      { env: { OVER: 'old', API_TOKEN: 'from the client' } },
    )
    expect(answer.result).toEqual({
      args: [],
      cwd: directory,
      env: { A: '1=2', EMPTY: '', OVER: 'new', API_TOKEN: 'from the client', UNSET: null },
    })
  })

  test('a command that is not there: exit code 69', async () => {
    expect(await outcome(['stdio', '/no/such/command'])).toEqual({
      code: 69,
      stdout: '',
      stderr: 'omproxy: Upstream unreachable: the command was not found: spawn /no/such/command: ENOENT\n',
    })
  })

  test('a directory that is not there: exit code 69', async () => {
    expect(await outcome(['stdio', '--cwd', '/no/such/directory', node])).toEqual({
      code: 69,
      stdout: '',
      stderr: `omproxy: Upstream unreachable: no such working directory: spawn ${node} in /no/such/directory: ENOENT\n`,
    })
  })

  test('a command that ends before it said anything: exit code 69, with its last words', async () => {
    const { code, stdout, stderr } = await outcome(['stdio', node, '-e', 'console.error("bad key"); process.exit(3)'])
    expect({ code, stdout }).toEqual({ code: 69, stdout: '' })
    expect(stderr).toContain('bad key\n')
    expect(stderr.split('\n').filter((line) => line.startsWith('omproxy:'))).toEqual([
      expect.stringMatching(/^omproxy: Upstream exited: exit code 3: .*stderr: bad key/),
    ])
  })
})

describe('what is loaded', () => {
  /** The packages whose code a run of the command took in. */
  async function packages(args: string[]): Promise<string[]> {
    const reports = await mkdtemp(join(directory, 'loaded-'))
    const command = run(args, { env: { NODE_V8_COVERAGE: reports } })
    await command.end()
    const found = new Set<string>()
    for (const file of await readdir(reports)) {
      const { result } = JSON.parse(await readFile(join(reports, file), 'utf8')) as { result: { url: string }[] }
      for (const { url } of result) {
        const [, name] = /node_modules\/((?:@[^/]+\/)?[^/]+)\/(?!.*node_modules)/.exec(url) ?? []
        if (name !== undefined) found.add(name)
      }
    }
    return [...found].sort()
  }

  test('stdio: nothing but what is built in', async () => {
    expect(await packages(['stdio', 'cat'])).toEqual([])
  })

  test('--config adds its loader and the schema, and no watcher that nobody asked for', async () => {
    const file = join(directory, 'lean.json')
    await writeFile(file, JSON.stringify({ upstream: { command: 'cat' }, use: ['logger'] }))
    const more = [
      'ajv',
      'fast-deep-equal',
      'fast-uri',
      'import-meta-resolve',
      'jiti',
      'json-schema-traverse',
      'lilconfig',
    ]
    expect(await packages(['--config', file])).toEqual(more)
  })

  test('--use adds the resolver', async () => {
    const more = ['import-meta-resolve']
    expect(await packages(['stdio', '--use', 'logger', 'cat'])).toEqual(more)
  })

  test('sse adds the event source', async () => {
    const more = ['eventsource', 'eventsource-parser']
    expect(await packages(['sse', '--url', 'http://127.0.0.1:1/'])).toEqual(more)
  })
})

describe('--use', () => {
  test('middleware in order: the first one is next to the client', async () => {
    const [first, second] = ['a', 'b'].map((mark) => use('order.mjs', `={"mark":"${mark}"}`)) as [string[], string[]]
    const { answer } = await ask(['stdio', ...first, ...second, process.execPath, script])
    expect(answer.result.marks).toEqual(['a', 'b', 'b', 'a'])
  })

  test('logger writes to stderr, a line of JSON per message', async () => {
    const { stderr, code } = await ask(['stdio', '--use', 'logger', process.execPath, script])
    expect(code).toBe(0)
    expect(
      stderr
        .trimEnd()
        .split('\n')
        .map((line) => JSON.parse(line)),
    ).toMatchObject([
      { direction: 'client-to-server', kind: 'request', method: 'ask', id: 1 },
      { direction: 'server-to-client', kind: 'response', method: 'ask', id: 1, duration: expect.any(Number) },
    ])
  })

  test('what a middleware writes to stdout goes to stderr', async () => {
    const { answer, odd, stderr } = await ask(['stdio', ...use('prints.mjs'), process.execPath, script])
    expect(answer).toMatchObject({ id: 1, result: {} })
    expect(odd).toEqual([])
    expect(stderr.trimEnd().split('\n')).toEqual([
      'at load',
      ...['log request', 'info', 'debug', 'stdout', 'imported'],
      ...['log response', 'info', 'debug', 'stdout', 'imported'],
    ])
  })

  test('a middleware that throws: the peer is told no more than that, stderr why', async () => {
    const { answer, said, code } = await ask(['stdio', ...use('throws.mjs'), process.execPath, script])
    expect(answer).toEqual({ jsonrpc: '2.0', id: 1, error: { code: -32603, message: 'Internal error' } })
    expect(said).toEqual(['omproxy: it broke at the second line (client-to-server request ask)'])
    expect(code).toBe(0)
  })

  test('a promise that a middleware lost is one line, and the process goes on', async () => {
    const command = run(['stdio', ...use('rejects.mjs'), process.execPath, script])
    for (const id of [1, 2]) {
      command.send({ jsonrpc: '2.0', id, method: 'ask' })
      await command.until(id)
    }
    expect(await command.end()).toEqual({ code: 0, signal: null })
    expect(command.messages()).toMatchObject([
      { id: 1, result: {} },
      { id: 2, result: {} },
    ])
    expect(command.stderr).toBe('omproxy: unhandled rejection: nobody cares\n'.repeat(2))
  })

  test('an uncaught error closes everything: one line, exit code 1', async () => {
    const command = run(['stdio', ...use('crashes.mjs'), process.execPath, script])
    command.send({ jsonrpc: '2.0', id: 1, method: 'ask' })
    expect(await command.exit).toEqual({ code: 1, signal: null })
    expect(command.stderr).toBe('omproxy: uncaught error: it crashed\n')
    expect(command.odd).toEqual([])
  })

  test('a middleware that cannot start: one line, exit code 1', async () => {
    expect(await outcome(['stdio', ...use('start.mjs'), process.execPath, script])).toEqual({
      code: 1,
      stdout: '',
      stderr: 'omproxy: no file\n',
    })
  })

  test('a timer that a middleware left running does not keep the process', async () => {
    const { code, stderr } = await ask(['stdio', ...use('timer.mjs'), process.execPath, script])
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
  })
})

describe('--log-level', () => {
  const levels = async (level: string) => {
    const args = ['--log-level', level, ...use('throws.mjs')]
    const { said } = await ask(['stdio', ...args, process.execPath, '-e', 'process.stdin.resume()'])
    return said
  }
  const thrown = 'omproxy: it broke at the second line (client-to-server request ask)'

  test('silent and error say nothing of a middleware that throws', async () => {
    expect(await levels('silent')).toEqual([])
    expect(await levels('error')).toEqual([])
  })

  test('info tells of the session', async () => {
    expect((await levels('info'))[0]).toMatch(/^omproxy: session [0-9a-f-]{36} with node$/)
    expect(await levels('info')).toContain(thrown)
  })

  test('debug tells where, still a line each', async () => {
    const said = await levels('debug')
    expect(said).toContain(thrown)
    expect(said.some((line) => line.includes('throws.mjs:1:'))).toBe(true)
  })

  test('silent is silent about the upstream, too', async () => {
    expect(await outcome(['stdio', '--log-level', 'silent', '/no/such/command'])).toEqual({
      code: 69,
      stdout: '',
      stderr: '',
    })
  })
})

describe('an upstream by URL', () => {
  const secret = 'hunter2-s3cret'
  const secrets = ['--header', 'Authorization: Bearer $TOKEN', '--headers', `x-key=${secret}-too`]
  const initialize = { jsonrpc: '2.0', id: 1, method: 'initialize', params: {} }

  test.each([['http'], ['sse'], ['detect']])(
    '%s: cannot be reached: the request fails, exit code 69, no secret shows',
    async (kind) => {
      const word = kind === 'detect' ? [] : [kind]
      const url = `http://user:${secret}@127.0.0.1:1/mcp?key=${secret}`
      const command = run([...word, '--url', url, ...secrets, '--log-level', 'debug'], { env: { TOKEN: secret } })
      command.send(initialize)
      await command.until(1)
      expect(await command.end()).toEqual({ code: 69, signal: null })
      expect(command.messages()).toMatchObject([{ id: 1, error: { code: -31009 } }])
      expect(command.said().at(-1)).toMatch(/^omproxy: Upstream unreachable: ECONNREFUSED/)
      expect(command.stderr + command.texts().join()).not.toContain(secret)
    },
  )

  test('a secret in the text of an error is masked', async () => {
    const command = run(['http', '--url', 'http://127.0.0.1:1/', ...secrets, ...use('tells.mjs')], {
      env: { TOKEN: secret },
    })
    command.send(initialize)
    await command.until(1)
    await command.end()
    expect(command.said()).toEqual(['omproxy: with ***, and *** (client-to-server request initialize)'])
  })

  test('headers reach the server; what it says of them does not show', async () => {
    const seen: Record<string, unknown>[] = []
    const http = createServer((request, response) => {
      seen.push({ authorization: request.headers.authorization, key: request.headers['x-key'] })
      response.writeHead(404, { 'content-type': 'text/plain' }).end(`no ${request.headers.authorization}`)
    }).listen(0, '127.0.0.1')
    await new Promise((resolve) => http.once('listening', resolve))
    const url = `http://127.0.0.1:${(http.address() as AddressInfo).port}/mcp`
    const command = run(['http', '--url', url, ...secrets, '--log-level', 'debug'], { env: { TOKEN: secret } })
    command.send(initialize)
    await command.until(1)
    await command.end()
    await new Promise((resolve) => http.close(resolve))
    expect(seen[0]).toEqual({ authorization: `Bearer ${secret}`, key: `${secret}-too` })
    expect(command.stderr).not.toContain(secret)
  })
})
