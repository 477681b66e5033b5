import { mkdir, mkdtemp, realpath, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterAll, beforeAll, beforeEach, describe, expect, it, test } from 'vitest'
import { ConfigStack } from '../../src/configuration/index.js'
import { createProxy, defineProxy } from '../../src/index.js'
import { testProxy } from '../../src/testing.js'
import { UsageError } from '../../src/values.js'

let root: string
let directory: string

beforeAll(async () => {
  root = await realpath(await mkdtemp(join(tmpdir(), 'omproxy-config-')))
})

afterAll(() => rm(root, { recursive: true, force: true }))

beforeEach(async () => {
  directory = await mkdtemp(join(root, 'case-'))
})

async function put(files: Record<string, string | object>): Promise<void> {
  for (const [name, content] of Object.entries(files)) {
    const path = join(directory, name)
    await mkdir(dirname(path), { recursive: true })
    await writeFile(path, typeof content === 'string' ? content : JSON.stringify(content))
  }
}

const env = { HOME: '/home/ada', TOKEN: 's3cret-token', EMPTY: '' }
let hidden: string[] = []
const open = (options: { file?: string; server?: string } = {}) => {
  hidden = []
  return ConfigStack.open({ directory, env, hide: (secrets) => void hidden.push(...secrets), ...options })
}

/** What a file settles on. */
async function settled(content: object, options: { server?: string } = {}) {
  await put({ 'proxy.config.json': content })
  return (await open(options))!.configuration
}

/** The one line that a refusal says. */
async function refusal(opening: Promise<unknown>): Promise<string> {
  const error = await opening.then(
    () => new Error('expected a refusal'),
    (reason: Error) => reason,
  )
  expect(error).toBeInstanceOf(UsageError)
  expect(error.message).not.toContain('\n')
  return error.message
}

const command = { command: 'server' }

describe('the file', () => {
  test.each([
    ['proxy.config.json', JSON.stringify({ upstream: command, logLevel: 'info' })],
    ['proxy.config.json', `\uFEFF${JSON.stringify({ upstream: command, logLevel: 'info' })}`],
    ['proxy.config.js', `export default { upstream: { command: 'server' }, logLevel: 'info' }`],
    ['proxy.config.js', `module.exports = { upstream: { command: 'server' }, logLevel: 'info' }`],
    [
      'proxy.config.ts',
      `import { defineProxy } from 'open-mcp-proxy'
       import { level } from './level.ts'
       const upstream: { command: string } = await Promise.resolve({ command: 'server' })
       export default defineProxy({ upstream, logLevel: level })`,
    ],
  ])('%s is found by itself', async (name, content) => {
    await put({ [name]: content, 'level.ts': `export const level = 'info' as const` })
    expect((await open())?.configuration).toMatchObject({ path: join(directory, name), logLevel: 'info' })
  })

  it('is not looked for elsewhere', async () => {
    await put({ 'proxy.config.json': { upstream: command }, 'below/other.json': {} })
    expect(await ConfigStack.open({ directory: join(directory, 'below'), env })).toBeUndefined()
  })

  it('code before data: TypeScript, JavaScript, JSON', async () => {
    await put({
      'proxy.config.json': { upstream: command },
      'proxy.config.ts': 'export default { upstream: () => {} }',
    })
    expect((await open())?.configuration.path).toBe(join(directory, 'proxy.config.ts'))
  })

  it('may be named', async () => {
    await put({ 'sub/any': { upstream: command } })
    expect((await open({ file: 'sub/any' }))?.configuration.path).toBe(join(directory, 'sub/any'))
  })

  test.each([
    ['nope.json', {}, '--config nope.json: expected a file that can be read, got ENOENT'],
    ['.', {}, expect.stringMatching(/^--config \.: expected a file that can be read, got EISDIR$/)],
    ['a.yaml', { 'a.yaml': 'a: 1' }, '--config a.yaml: expected a .json, .js or .ts file, got .yaml'],
    ['a.json', { 'a.json': '{"token":"s3cret",}' }, 'a.json: expected JSON, got what does not parse at position 18'],
    ['a.json', { 'a.json': '' }, 'a.json: expected an object with upstream, use, listen, …, got undefined'],
    [
      'a.ts',
      { 'a.ts': 'export\ndefault {' },
      expect.stringMatching(/^a\.ts: could not be loaded: ParseError: .* at 2:9$/),
    ],
    ['a.mjs', { 'a.mjs': 'throw new Error("one\\ntwo")' }, 'a.mjs: could not be loaded: one'],
    [
      'a.mjs',
      { 'a.mjs': 'export const config = {}' },
      'a.mjs: expected a default export: export default defineProxy({ … })',
    ],
  ])('%s %j', async (file, files, text) => {
    await put(files as Record<string, string>)
    expect(await refusal(open({ file }))).toEqual(text)
  })
})

describe('the upstream', () => {
  it('is a server to start, with the environment of whoever started us where it is theirs alone', async () => {
    const upstream = {
      command: 'node',
      args: ['$HOME/server.js', '$$1', '^a$'],
      // biome-ignore lint/suspicious/noTemplateCurlyInString: as a file says it
      env: { KEY: '${TOKEN}', HOME: 'x' },
      cwd: 'sub',
    }
    expect((await settled({ upstream })).upstream).toEqual({
      command: 'node',
      args: ['/home/ada/server.js', '$1', '^a$'],
      env: { ...env, KEY: 's3cret-token', HOME: 'x' },
      cwd: join(directory, 'sub'),
    })
    expect((await settled({ upstream: { ...command, env: { A: '1' } }, listen: 0 })).upstream).toEqual({
      command: 'server',
      env: { A: '1' },
    })
  })

  it('is one to reach', async () => {
    const headers = { authorization: 'Bearer $TOKEN' }
    const { upstream } = await settled({
      upstream: { url: 'https://a.example/mcp', type: 'sse', headers, timeout: 9 },
    })
    expect(upstream).toEqual({
      url: new URL('https://a.example/mcp'),
      type: 'sse',
      headers: { authorization: 'Bearer s3cret-token' },
      timeout: 9,
    })
    expect(new Set(hidden)).toEqual(new Set(['Bearer s3cret-token', 's3cret-token']))
  })

  const mcpServers = {
    files: {
      command: 'npx',
      args: ['-y', 'files'],
      env: { A: '$TOKEN' },
      disabled: false,
      autoApprove: ['*'],
      timeout: 60,
    },
    remote: { type: 'streamable-http', url: 'https://a.example/mcp', headers: { 'x-key': 'abcdef' } },
    old: { type: 'sse', url: 'https://a.example/sse' },
    typed: { type: 'stdio', command: 'typed' },
    broken: { command: '$NOT_SET' },
  }

  test.each([
    ['files', { command: 'npx', args: ['-y', 'files'], env: { ...env, A: 's3cret-token' } }],
    ['remote', { url: new URL('https://a.example/mcp'), type: 'http', headers: { 'x-key': 'abcdef' } }],
    ['old', { url: new URL('https://a.example/sse'), type: 'sse' }],
    ['typed', { command: 'typed', env }],
  ])('is one of mcpServers, as clients write it: %s', async (name, upstream) => {
    expect((await settled({ mcpServers, upstream: name })).upstream).toEqual(upstream)
    expect((await settled({ mcpServers, upstream: 'broken' }, { server: name })).upstream).toEqual(upstream)
  })

  it('is the only one of mcpServers', async () => {
    expect((await settled({ mcpServers: { one: command } })).upstream).toEqual({ ...command, env })
  })

  it('is a function, or anything else that code can say', async () => {
    await put({
      'proxy.config.js':
        'export default { upstream: function mine() {}, listen: { port: 0, eventStore: new (class {})() } }',
    })
    const { upstream, http } = (await open())!.configuration
    expect(upstream).toHaveProperty('name', 'mine')
    expect(http).toMatchObject({ port: 0, eventStore: expect.any(Object) })
  })
})

describe('what is wrong is said by file, path, what was expected and what came', () => {
  const upstream = command
  test.each<[object, string]>([
    [[], 'expected an object with upstream, use, listen, …, got an array'],
    [{}, 'upstream: expected a server, or the name of one under mcpServers (none), got none'],
    [{ uptream: {} }, 'expected one of $schema, upstream, mcpServers, listen, use, logLevel, got "uptream"'],
    [{ upstream: 5 }, 'upstream: expected a server, or the name of one under mcpServers, got a number'],
    [{ upstream: { comand: 'x' } }, 'upstream: expected an object with command or url, got one with comand'],
    [{ upstream: { command: 'x', args: 'y' } }, 'upstream.args: expected an array, got a string'],
    [{ upstream: { command: 'x', args: ['y', 5] } }, 'upstream.args[1]: expected a string, got a number'],
    [{ upstream: { command: 'x', args: Array(200_000).fill(5) } }, 'upstream.args[0]: expected a string, got a number'],
    [{ upstream: { command: 'x', env: { A: null } } }, 'upstream.env.A: expected a string, got null'],
    [
      { upstream: { command: 'x', url: 'y' } },
      'upstream: expected one of restart, command, args, cwd, maxMessageBytes, env, got "url"',
    ],
    [{ upstream: { url: 'ftp://x' } }, 'url: expected an http: or https: URL, got one with ftp:'],
    [
      { upstream: { url: '$NOPE' } },
      'upstream.url: expected the environment variable NOPE, it is not set ($$ is a literal $)',
    ],
    [{ upstream: 'a' }, 'upstream: expected the name of one under mcpServers (none), got "a"'],
    [
      { mcpServers: { a: command, b: command } },
      'upstream: expected a server, or the name of one under mcpServers (a, b), got none',
    ],
    [{ mcpServers: { a: { type: 'stdio' } } }, 'mcpServers.a: expected command or url, got neither'],
    [{ mcpServers: { 'a/b': { args: {} } } }, 'mcpServers.a/b.args: expected an array, got an object'],
    [
      { mcpServers: { a: { type: 'ws', url: 'x' } } },
      'mcpServers.a.type: expected one of "stdio", "http", "streamable-http", "streamableHttp", "sse", got "ws"',
    ],
    [
      { upstream: '__proto__', mcpServers: { a: command } },
      'upstream: expected the name of one under mcpServers (a), got "__proto__"',
    ],
    [{ upstream, listen: '1:2:3' }, 'listen: expected PORT or HOST:PORT, with a port from 0 to 65535, got "1:2:3"'],
    [{ upstream, listen: 99999 }, 'listen: expected PORT or HOST:PORT, with a port from 0 to 65535, got "99999"'],
    [{ upstream, listen: { port: 1.5 } }, 'listen.port: expected a port from 0 to 65535, got 1.5'],
    [{ upstream, listen: { port: 1, maxSessions: 0 } }, 'listen.maxSessions: expected a number from 1, got 0'],
    [
      { upstream, listen: { port: 1, token: '$EMPTY' } },
      'listen.token: expected visible ASCII without spaces, got none, or something else',
    ],
    [{ upstream, listen: { host: 'x' } }, 'listen: expected port, got none'],
    [{ upstream, use: 'logger' }, 'use: expected an array, got a string'],
    [{ upstream, use: [5] }, 'use[0]: expected a module, or an object { MODULE: options }, got a number'],
    [
      { upstream, use: ['logger', { a: 1, b: 2 }] },
      'use[1]: expected a module, or an object { MODULE: options }, got one with a, b',
    ],
    [
      { upstream, use: [{ logger: { format: 's3' } }] },
      'use[0].logger.format: expected one of "pretty", "json", got "s3"',
    ],
    [{ upstream, use: [{ logger: { colour: 1 } }] }, 'use[0].logger: expected one of arguments, format, got "colour"'],
    [{ upstream, use: [{ logger: true }] }, 'use[0].logger: expected an object, got a boolean'],
    [
      { upstream, use: [{ './a.js': { x: '$NOPE' } }] },
      'use[0]../a.js.x: expected the environment variable NOPE, it is not set ($$ is a literal $)',
    ],
    [
      { upstream, logLevel: 'loud' },
      'logLevel: expected one of "silent", "error", "warn", "info", "debug", got "loud"',
    ],
  ])('%.100j', async (content, text) => {
    expect(await refusal(settled(content))).toBe(`proxy.config.json: ${text}`)
  })

  test.each([
    [{ listen: '$TOKEN' }, /^proxy\.config\.json: listen: expected PORT/],
    [{ listen: { port: 0, path: '$TOKEN' } }, /^proxy\.config\.json: listen\.path: /],
    [{ use: [{ './a.js': ['$TOKEN', '$NOPE'] }] }, /NOPE/],
  ])(
    'what came from the environment is known to be hidden, also where the file is refused: %j',
    async (content, text) => {
      expect(await refusal(settled({ upstream, ...content }))).toMatch(text)
      expect(hidden).toContain('s3cret-token')
    },
  )

  test.each([
    `const o = {}; o.o = o; export default { upstream: { command: 'x' }, use: [{ logger: o }] }`,
    `const o = {}; o.o = o; export default { upstream: { command: 'x' }, use: [{ './a.js': o }] }`,
    `const o = { upstream: { command: 'x' } }; o.mcpServers = { a: o }; export default o`,
  ])('an object that holds itself: %s', async (content) => {
    await put({ 'proxy.config.mjs': content })
    expect(await refusal(open({ file: 'proxy.config.mjs' }))).toBe(
      'proxy.config.mjs: expected data, got an object that holds itself or is nested without end',
    )
  })

  it('a server that --server names and the file does not', async () => {
    const opening = settled({ mcpServers: { a: command } }, { server: 'b' })
    expect(await refusal(opening)).toBe(
      'proxy.config.json: --server: expected the name of one under mcpServers (a), got "b"',
    )
  })
})

describe('the stack', () => {
  const mark = `let made = 0
    export default (options = {}) => { const count = ++made; return (ctx, next) => {
      ctx.params.marks = [...(ctx.params.marks ?? []), (options.as ?? 'none') + count]
      return next()
    } }
    export const other = () => [(ctx, next) => { ctx.params.marks = [...(ctx.params.marks ?? []), 'other']; return next() }]`

  /** A proxy before the stack, and what this one does to a message. */
  async function begun(content: object, before: Parameters<ConfigStack['begin']>[1] = []) {
    await put({ 'proxy.config.json': { upstream: command, ...content }, 'mark.mjs': mark })
    const stack = (await open())!
    const app = createProxy()
    await stack.begin(app, before)
    const proxy = testProxy(app)
    let id = 0
    const marks = async () => {
      const { toServer } = await proxy.fromClient({ id: id++, method: 'm', params: {} })
      return (toServer as { params?: { marks?: string[] } }[])[0]?.params?.marks
    }
    return { stack, app, marks }
  }

  it('names files as seen from the file, packages and the shelf, with and without options', async () => {
    await put({
      'node_modules/@a/pack/package.json': '{"name":"@a/pack","type":"module","exports":"./index.js"}',
      'node_modules/@a/pack/index.js': mark,
    })
    const quiet = { logger: { format: 'json' } }
    const { marks } = await begun({ use: [quiet, './mark.mjs', './mark.mjs#other', { '@a/pack': { as: '$TOKEN' } }] })
    expect(await marks()).toEqual(['none1', 'other', 's3cret-token1'])
  })

  it('stands behind what was before it', async () => {
    const { marks } = await begun({ use: ['./mark.mjs'] }, [
      (ctx, next) => {
        if (ctx.params) ctx.params.marks = ['before']
        return next()
      },
    ])
    expect(await marks()).toEqual(['before', 'none1'])
  })

  it('is made of TypeScript, and of middleware itself', async () => {
    await put({
      'mine.ts': `import { onRequest } from 'open-mcp-proxy'
        export const mine = (options: { as: string }) => onRequest('m', (ctx, next) => { ctx.params = { marks: [options.as] }; return next() })`,
      'proxy.config.ts': `import { mine } from './mine.ts'
        import { defineProxy, type Middleware } from 'open-mcp-proxy'
        const last: Middleware = (ctx, next) => { if (ctx.params) ctx.params.marks = [...(ctx.params.marks as string[]), 'last']; return next() }
        export default defineProxy({ upstream: { command: 'x' }, use: [{ './mine.ts': { as: 'first' } }, mine({ as: 'again' }), last] })`,
    })
    const stack = (await open())!
    const app = createProxy()
    await stack.begin(app, [])
    const { toServer } = await testProxy(app).fromClient({ id: 1, method: 'm' })
    expect(toServer).toMatchObject([{ params: { marks: ['again', 'last'] } }])
  })

  it('is made anew: unchanged entries stay, files are read again, a broken file changes nothing', async () => {
    await put({
      'node_modules/@a/pack/package.json': '{"name":"@a/pack","type":"module","exports":"./index.js"}',
      'node_modules/@a/pack/index.js': `let made = 0
        export const counted = ({ as }) => { const mine = as + ++made; return (ctx, next) => {
          ctx.params.marks = [...(ctx.params.marks ?? []), mine]
          return next()
        } }`,
    })
    const scoped = (as: string) => ({ '@a/pack#counted': { as } })
    const { app, stack, marks } = await begun({ use: [scoped('a'), './mark.mjs'] })
    expect(await marks()).toEqual(['a1', 'none1'])

    await put({ 'proxy.config.json': { upstream: command, use: [scoped('b'), scoped('a'), './mark.mjs'] } })
    await put({ 'mark.mjs': mark.replaceAll('none', 'new') })
    expect(await stack.reload(app)).toEqual([])
    expect(await marks()).toEqual(['b2', 'a1', 'new1'])

    for (const broken of ['{', '{"upstream":5}', '{"upstream":{"command":"x"},"use":["./nope.js"]}']) {
      await put({ 'proxy.config.json': broken })
      await expect(stack.reload(app)).rejects.toThrow(UsageError)
      expect(await marks()).toEqual(['b2', 'a1', 'new1'])
    }
    await rm(join(directory, 'proxy.config.json'))
    await expect(stack.reload(app)).rejects.toThrow('ENOENT')

    await put({ 'proxy.config.json': { upstream: { command: 'y' }, listen: 0, logLevel: 'info', use: [scoped('a')] } })
    expect(await stack.reload(app)).toEqual(['upstream', 'listen', 'logLevel'])
    expect(await marks()).toEqual(['a1'])
    expect(stack.files).toEqual([join(directory, 'proxy.config.json')])

    // What only a new start changes is held against what was started, not against what was read last.
    expect(await stack.reload(app)).toEqual(['upstream', 'listen', 'logLevel'])
    await put({ 'proxy.config.json': { upstream: command, use: [scoped('a'), './later.mjs'] } })
    await expect(stack.reload(app)).rejects.toThrow(UsageError)
    // Whoever repairs what is missing is noticed.
    expect(stack.files).toEqual([join(directory, 'proxy.config.json'), join(directory, 'later.mjs')])
    await put({ 'later.mjs': mark })
    expect(await stack.reload(app)).toEqual([])
    expect(await marks()).toEqual(['a1', 'none1'])
  })

  test.each([
    [
      'nope',
      /^proxy\.config\.json: use\[0\] \(nope\): expected one of the shelf \(.*logger.*\), a path \(\.\/nope\.js\) or a package's module, found none$/,
    ],
    ['./nope.js', /^proxy\.config\.json: use\[0\] \(\.\/nope\.js\): expected a module in .*, found none$/],
    ['./x.mjs#', /^proxy\.config\.json: use\[0\]: expected MODULE\[#EXPORT\], got "\.\/x\.mjs#"$/],
    ['./throws.mjs', /^proxy\.config\.json: use\[0\] \(\.\/throws\.mjs\): default\(options\) failed: expected more$/],
  ])('%s cannot be made', async (entry, text) => {
    await put({ 'throws.mjs': 'export default () => { throw new TypeError("expected more") }' })
    expect(await refusal(begun({ use: [entry] }))).toMatch(text)
  })
})

it('defineProxy gives back what it is given', () => {
  const config = defineProxy({
    upstream: command,
    use: ['logger', { logger: { arguments: true } }, (_ctx, next) => next()],
  })
  expect(defineProxy(config)).toBe(config)
})
