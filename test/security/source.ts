import { readdirSync, readFileSync } from 'node:fs'
import { join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import ts from 'typescript'

export const root = fileURLToPath(new URL('../..', import.meta.url))

export interface Node {
  readonly file: string
  readonly node: ts.Node
}

/** Every node of what is shipped: src/ and middleware/. */
export function nodes(): Node[] {
  const found: Node[] = []
  for (const folder of ['src', 'middleware']) {
    for (const entry of readdirSync(join(root, folder), { withFileTypes: true, recursive: true })) {
      if (!entry.isFile() || !entry.name.endsWith('.ts')) continue
      const path = join(entry.parentPath, entry.name)
      const file = relative(root, path)
      const visit = (node: ts.Node) => {
        found.push({ file, node })
        ts.forEachChild(node, visit)
      }
      visit(ts.createSourceFile(path, readFileSync(path, 'utf8'), ts.ScriptTarget.Latest, true))
    }
  }
  return found
}

/** What is imported as a value, statically: `src/upstream/child.ts: node:child_process { spawn }`. */
export function imports(all: readonly Node[], module: RegExp): string[] {
  const found: string[] = []
  for (const { file, node } of all) {
    if (!ts.isImportDeclaration(node) || node.importClause?.isTypeOnly) continue
    const { text } = node.moduleSpecifier as ts.StringLiteral
    if (!module.test(text)) continue
    const { name, namedBindings } = node.importClause ?? {}
    const named = namedBindings && ts.isNamedImports(namedBindings) ? namedBindings.elements : []
    const values = named.filter((it) => !it.isTypeOnly).map((it) => it.name.text)
    if (name) values.unshift('default')
    if (namedBindings && ts.isNamespaceImport(namedBindings)) values.push('*')
    if (values.length > 0 || !node.importClause) found.push(`${file}: ${text} { ${values.join(', ')} }`)
  }
  return found.sort()
}

/** Calls of a function, as it is written there: `middleware/auth.ts: fetch(url, init)`. */
export function calls(all: readonly Node[], callee: RegExp): string[] {
  const found: string[] = []
  for (const { file, node } of all) {
    if (!ts.isCallExpression(node) && !ts.isNewExpression(node)) continue
    if (callee.test(node.expression.getText())) found.push(`${file}: ${node.getText().replace(/\s+/g, ' ')}`)
  }
  return found.sort()
}
