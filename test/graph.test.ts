import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join, relative, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import ts from 'typescript'
import { describe, expect, it } from 'vitest'

const root = fileURLToPath(new URL('..', import.meta.url))

/** Imports go down the floors, or stay on one; a folder is one room. */
const floors: Record<string, number> = {
  deferred: 0,
  ids: 0,
  json: 0,
  alike: 1,
  glob: 1,
  rewrite: 0,
  batch: 0,
  compiled: 0,
  strings: 0,
  names: 0,
  scan: 1,
  message: 1,
  error: 1,
  lane: 1,
  ledger: 1,
  quiet: 1,
  rest: 1,
  spare: 1,
  session: 1,
  wire: 1,
  lines: 1,
  events: 1,
  log: 1,
  mirror: 1,
  tools: 1,
  context: 2,
  define: 3,
  passage: 4,
  end: 4,
  call: 4,
  outgoing: 4,
  carrier: 4,
  receive: 4,
  bridge: 4,
  match: 4,
  compose: 4,
  upstream: 4,
  listener: 4,
  service: 5,
  application: 5,
  config: 5,
  index: 6,
  testing: 6,
  values: 7,
  load: 7,
  configuration: 7,
  reload: 7,
  help: 7,
  rerun: 7,
  serve: 7,
  cli: 7,
}

function filesUnder(folder: string): string[] {
  return readdirSync(join(root, folder), { withFileTypes: true, recursive: true })
    .filter((it) => it.isFile() && it.name.endsWith('.ts') && !it.name.endsWith('.d.ts'))
    .map((it) => relative(root, join(it.parentPath, it.name)))
    .sort()
}

/** Every module that a file imports or exports from, dynamic imports included, and type-only ones unless told. */
function importsOf(file: string, types = true): string[] {
  const found: string[] = []
  const source = ts.createSourceFile(file, readFileSync(join(root, file), 'utf8'), ts.ScriptTarget.Latest)
  const visit = (node: ts.Node) => {
    if ((ts.isImportDeclaration(node) || ts.isExportDeclaration(node)) && node.moduleSpecifier) {
      const typeOnly = ts.isImportDeclaration(node) ? node.importClause?.isTypeOnly : node.isTypeOnly
      if (types || !typeOnly) found.push((node.moduleSpecifier as ts.StringLiteral).text)
    } else if (ts.isCallExpression(node) && node.expression.kind === ts.SyntaxKind.ImportKeyword) {
      const [specifier] = node.arguments
      if (specifier && ts.isStringLiteral(specifier)) found.push(specifier.text)
    } else if (ts.isImportTypeNode(node) && ts.isLiteralTypeNode(node.argument)) {
      found.push((node.argument.literal as ts.StringLiteral).text)
    }
    ts.forEachChild(node, visit)
  }
  visit(source)
  return found
}

const source = filesUnder('src')
const imports = new Map(source.map((file) => [file, importsOf(file)]))
/** The files of `src` that a file imports. */
const edges = new Map(
  source.map((file) => [
    file,
    (imports.get(file) as string[])
      .filter((it) => it.startsWith('.'))
      .map((it) => relative(root, resolve(root, dirname(file), it.replace(/\.js$/, '.ts')))),
  ]),
)
const roomOf = (file: string) => file.split('/')[1]?.replace(/\.ts$/, '') as string

describe('src', () => {
  it('every room has a floor', () => {
    expect([...new Set(source.map(roomOf))].filter((it) => !(it in floors))).toEqual([])
  })

  it('imports go down', () => {
    const climbing = [...edges].flatMap(([file, targets]) =>
      targets
        .filter((it) => (floors[roomOf(it)] as number) > (floors[roomOf(file)] as number))
        .map((it) => `${file} -> ${it}`),
    )
    expect(climbing).toEqual([])
  })

  it('there is no cycle', () => {
    const cycles: string[] = []
    const done = new Set<string>()
    const visit = (file: string, path: string[]) => {
      if (path.includes(file)) cycles.push([...path.slice(path.indexOf(file)), file].join(' -> '))
      if (done.has(file) || path.includes(file)) return
      for (const it of edges.get(file) ?? []) visit(it, [...path, file])
      done.add(file)
    }
    for (const file of source) visit(file, [])
    expect(cycles).toEqual([])
  })

  it('every import leads to a file of src, or to a package', () => {
    const astray = [...edges].flatMap(([file, targets]) =>
      targets.filter((it) => !edges.has(it)).map((it) => `${file} -> ${it}`),
    )
    expect(astray).toEqual([])
  })

  it('never imports the middleware, nor itself by its name', () => {
    const bad = [...imports].flatMap(([file, all]) =>
      all.filter((it) => /^open-mcp-proxy|middleware/.test(it)).map((it) => `${file} -> ${it}`),
    )
    expect(bad).toEqual([])
  })

  it('each of these packages has one room', () => {
    const users = (name: string) => source.filter((file) => importsOf(file, false).includes(name))
    expect({
      'p-queue': users('p-queue'),
      'koa-compose': users('koa-compose'),
      eventsource: users('eventsource'),
    }).toEqual({
      'p-queue': ['src/lane.ts'],
      'koa-compose': ['src/compose.ts'],
      eventsource: ['src/upstream/sse.ts'],
    })
  })
})

describe('middleware', () => {
  it("imports the public face alone, exactly as a user's would", () => {
    const bad = filesUnder('middleware').flatMap((file) =>
      importsOf(file)
        .filter(
          (it) =>
            (file === 'middleware/index.ts' ? !/^\.\/\w+\.js$/.test(it) : it.startsWith('.')) ||
            /^open-mcp-proxy\//.test(it),
        )
        .map((it) => `${file} -> ${it}`),
    )
    expect(bad).toEqual([])
  })
})
