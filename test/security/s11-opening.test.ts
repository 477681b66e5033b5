import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import type ts from 'typescript'
import { expect, test } from 'vitest'
import { calls, imports, type Node, nodes, root } from './source.js'

const all = nodes()

test('the proxy opens no URL: nothing starts a program but the upstream that is configured', () => {
  expect(imports(all, /child_process|cross-spawn|execa|worker_threads|cluster|^open$|opener|^zx$/)).toEqual([
    'src/upstream/child.ts: node:child_process { spawn }',
    'src/upstream/stdio.ts: cross-spawn { default }',
  ])
  expect(calls(all, /^(?:spawn|exec|execFile|fork)(?:Sync)?$/).map((it) => it.slice(0, 60))).toEqual([
    // By its number, on Windows.
    expect.stringMatching(/^src\/upstream\/child\.ts: spawn\('taskkill', \['\/pid', `\$\{pid\}`/),
    expect.stringMatching(/^src\/upstream\/stdio\.ts: spawn\(command, args, \{/),
  ])
})

test('a program is started from an array of arguments, by no shell', () => {
  const isShell = ({ node }: Node) => 'name' in node && (node.name as ts.Node | undefined)?.getText() === 'shell'
  expect(all.filter(isShell).map(({ file }) => file)).toEqual([])
})

test('what comes from a peer is never run as code', () => {
  expect(calls(all, /^(?:globalThis\.)?(?:eval|Function)$/)).toEqual([])
  expect(imports(all, /^(?:node:)?(?:vm|v8|repl)$/)).toEqual([])
  // What is loaded is written by whoever runs the proxy: modules of its stack, and its configuration.
  const loaded = calls(all, /^import$/).filter((it) => !/: import\('[^']+'\)$/.test(it))
  expect(loaded).toEqual([
    'src/load.ts: import(url.href)',
    "src/rerun.ts: import(moduleUrl('open-mcp-proxy/middleware/replay').href)",
  ])
  const files = new Set(all.map(({ file }) => file))
  const using = [...files].filter((file) => /from '(?:\.\.?\/)+load\.js'|import\('\.\/load\.js'\)/.test(read(file)))
  expect(using.filter((file) => !/^src\/(?:cli|serve|reload|rerun|load|configuration\/.*)\.ts$/.test(file))).toEqual([])
})

const read = (file: string) => readFileSync(join(root, file), 'utf8')
