// Other proxies, from npm. They are no dependencies of ours: they are installed when they are first asked for.
import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { built, type Subject } from './subjects.js'

const VERSIONS = { 'mcp-proxy': '6.7.19', supergateway: '4.0.0', 'mcp-remote': '0.15.1' }
const FOLDER = built('../../../node_modules/.cache/open-mcp-proxy-bench')
/** Of URLs mcp-proxy has a library only. */
const LIBRARY = join(FOLDER, 'mcp-proxy.mjs')

const installed = (path: string) => join(FOLDER, 'node_modules', path)
const { execPath: node } = process

export function peers(): Subject[] {
  const wanted = Object.entries(VERSIONS).map(([name, version]) => `${name}@${version}`)
  if (!wanted.every((it) => existsSync(join(FOLDER, it)))) {
    console.error(`Installing ${wanted.join(', ')} in ${FOLDER}`)
    mkdirSync(FOLDER, { recursive: true })
    execFileSync('npm', ['install', '--no-save', '--no-audit', '--no-fund', '--prefix', FOLDER, ...wanted])
    for (const it of wanted) writeFileSync(join(FOLDER, it), '')
  }
  writeFileSync(
    LIBRARY,
    `import { startStdioServer } from 'mcp-proxy'
await startStdioServer({ serverType: process.argv[2], url: process.argv[3] })
process.stdin.once('end', () => process.exit())
`,
  )
  return [mcpProxy, supergateway, mcpRemote]
}

const mcpProxy: Subject = {
  name: 'mcp-proxy',
  role: 'peer',
  command(link, { server, url, port }) {
    if (link === 'stdio') return undefined
    if (!link.startsWith('listener')) return [node, LIBRARY, link === 'sse' ? 'SSE' : 'HTTPStream', url]
    const kind = link === 'listener' ? 'stream' : 'sse'
    const program = [node, installed('mcp-proxy/dist/bin/mcp-proxy.mjs'), '--host', '127.0.0.1']
    return [...program, '--port', String(port), '--server', kind, '--', ...server]
  },
}

const supergateway: Subject = {
  name: 'supergateway',
  role: 'peer',
  command(link, { server, url, port }) {
    if (link === 'stdio') return undefined
    const program = [node, installed('supergateway/dist/index.js'), '--logLevel', 'none']
    if (!link.startsWith('listener')) return [...program, link === 'sse' ? '--sse' : '--streamableHttp', url]
    const kind = link === 'listener' ? ['streamableHttp', '--stateful'] : ['sse']
    return [...program, '--stdio', server.join(' '), '--port', String(port), '--outputTransport', ...kind]
  },
}

const mcpRemote: Subject = {
  name: 'mcp-remote',
  role: 'peer',
  command(link, { url }) {
    if (link === 'stdio' || link.startsWith('listener')) return undefined
    const program = [
      'env',
      `MCP_REMOTE_CONFIG_DIR=${FOLDER}`,
      node,
      installed('mcp-remote/dist/proxy.js'),
      url,
      '--silent',
    ]
    return [...program, '--allow-http', '--transport', link === 'sse' ? 'sse-only' : 'http-only']
  },
}
