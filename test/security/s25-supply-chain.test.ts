import { execFile } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { describe, expect, test } from 'vitest'
import { root } from './source.js'

interface Locked {
  version: string
  license?: string
  integrity?: string
  resolved?: string
  link?: boolean
  dev?: boolean
  devOptional?: boolean
  hasInstallScript?: boolean
}

const read = (path: string) => JSON.parse(readFileSync(join(root, path), 'utf8'))
const { packages } = read('package-lock.json') as { packages: Record<string, Locked> }
const all = Object.entries(packages).filter(([path]) => path !== '')
const nameOf = (path: string) => path.slice(path.lastIndexOf('node_modules/') + 'node_modules/'.length)
/** What is built into our own files. */
const builtIn = readFileSync(join(root, 'dist/LICENSES.txt'), 'utf8').matchAll(/^([\w-]+) (\d+\.\d+\.\d+)$/gm)
const inside = new Map(Array.from(builtIn, ([, name, version]) => [name!, version!]))
/** What comes along with `npm install open-mcp-proxy`. */
const shipped = all.filter(
  ([path, { dev, devOptional, version }]) => (!dev && !devOptional) || inside.get(nameOf(path)) === version,
)

describe('the lock file', () => {
  test('has a hash of every package, all of them of this day', () => {
    expect(
      all.filter(([, { integrity = '' }]) => !/^sha512-[\w+/]{86}==$/.test(integrity)).map(([path]) => path),
    ).toEqual([])
  })

  test('comes from the registry that whoever installs has chosen, and from nowhere else', () => {
    expect(all.filter(([, it]) => it.resolved !== undefined || it.link).map(([path]) => path)).toEqual([])
  })

  test('is what package.json says', () => {
    const { dependencies, devDependencies } = read('package.json')
    expect(packages['']).toMatchObject({ dependencies, devDependencies })
    const ranges = Object.values({ ...dependencies, ...devDependencies }) as string[]
    expect(ranges.filter((it) => !/^(?:npm:@?[\w/-]+@)?[\^~]?\d+\.\d+[\w.-]*$/.test(it))).toEqual([])
  })
})

describe('what is shipped with us', () => {
  test('is these packages, and no others', () => {
    const direct = Object.keys(read('package.json').dependencies)
    expect(direct.join(' ')).toMatchInlineSnapshot(
      `"@modelcontextprotocol/sdk @opentelemetry/api @sinonjs/fake-timers ajv brace-expansion eventsource import-meta-resolve jiti jose lilconfig prom-client rotating-file-stream"`,
    )
    expect([...inside.keys()].join(' ')).toMatchInlineSnapshot(
      `"commander cross-spawn eventemitter3 isexe koa-compose p-queue p-timeout path-key shebang-command shebang-regex which"`,
    )
    const names = [...new Set(shipped.map(([path]) => nameOf(path)))]
      .filter((it) => !direct.includes(it) && !inside.has(it))
      .sort()
    expect(names.join(' ')).toMatchInlineSnapshot(
      `"@hono/node-server @sinonjs/commons accepts ajv-formats async-function async-generator-function balanced-match bintrees body-parser bytes call-bind-apply-helpers call-bound content-disposition content-type cookie cookie-signature cors debug depd dunder-proto ee-first encodeurl es-define-property es-errors es-object-atoms escape-html etag eventsource-parser express express-rate-limit fast-deep-equal fast-uri finalhandler forwarded fresh function-bind generator-function get-intrinsic get-proto gopd has-symbols hasown hono http-errors iconv-lite inherits ip-address ipaddr.js is-promise json-schema-traverse json-schema-typed math-intrinsics media-typer merge-descriptors mime-db mime-types ms negotiator object-assign object-inspect on-finished once parseurl path-to-regexp pkce-challenge proxy-addr qs range-parser raw-body require-from-string router safer-buffer send serve-static setprototypeof side-channel side-channel-list side-channel-map side-channel-weakmap statuses tdigest toidentifier type-detect type-is unpipe vary wrappy zod zod-to-json-schema"`,
    )
  })

  test('runs nothing when it is installed', () => {
    expect(shipped.filter(([, it]) => it.hasInstallScript).map(([path]) => path)).toEqual([])
    const hooks = ['preinstall', 'install', 'postinstall']
    const found = shipped.flatMap(([path]) => {
      const { scripts = {} } = read(join(path, 'package.json')) as { scripts?: Record<string, string> }
      return hooks.filter((it) => it in scripts).map((it) => `${path}: ${it}`)
    })
    expect(found).toEqual([])
    expect(Object.keys(read('package.json').scripts).filter((it) => hooks.includes(it))).toEqual([])
    expect(shipped.filter(([path]) => existsSync(join(root, path, 'binding.gyp'))).map(([path]) => path)).toEqual([])
  })

  test('may be used by everybody', () => {
    const licences = new Map<string, string[]>()
    for (const [path] of shipped) {
      const { license, licenses } = read(join(path, 'package.json'))
      const said = String(license?.type ?? license ?? licenses?.map((it: { type: string }) => it.type).join(' OR '))
      licences.set(said, [...(licences.get(said) ?? []), nameOf(path)])
    }
    const free = ['MIT', 'ISC', 'BSD-2-Clause', 'BSD-3-Clause', 'Apache-2.0', '0BSD', 'BlueOak-1.0.0']
    expect([...licences].filter(([licence]) => !free.includes(licence))).toEqual([])
  })
})

test('what is published is what was built, its types, its papers, and nothing else', async () => {
  const run = promisify(execFile)
  const { stdout } = await run('npm', ['pack', '--dry-run', '--json', '--ignore-scripts'], { cwd: root })
  const [{ files }] = JSON.parse(stdout) as [{ files: { path: string }[] }]
  const odd = files
    .map(({ path }) => path)
    .filter((path) => !/^dist\/(?:[\w-]+|middleware\/\w+)(?:\.js|\.d\.ts)$|^dist\/schema\.json$/.test(path))
  expect(odd.sort()).toEqual(['CHANGELOG.md', 'LICENSE', 'README.md', 'dist/LICENSES.txt', 'package.json'])
  // No path of the machine that built it, no key, no source map of its own.
  const texts = files.map(({ path }) => readFileSync(join(root, path), 'utf8'))
  expect(
    texts.filter((it) => it.includes(root) || /sourceMappingURL|BEGIN [A-Z ]*PRIVATE KEY-----\n/.test(it)),
  ).toEqual([])
})
