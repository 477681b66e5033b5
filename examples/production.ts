/** A stack for production, without a line of code: what `omproxy --config proxy.config.json` says, seen from outside. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import { verifyAudit } from 'open-mcp-proxy/middleware'

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url))
const directory = await mkdtemp(join(tmpdir(), 'production-'))
const audit = join(directory, 'audit.jsonl')
const keys = { ada: 'ada-has-this-key', bob: 'bob-has-that-key' }
const sha256 = (text: string) => createHash('sha256').update(text).digest('hex')

// As it stands there, but on ports that are free.
const text = await readFile(here('./production/proxy.config.json'), 'utf8')
const file = join(directory, 'proxy.config.json')
await writeFile(file, text.replace('3000', '0').replace('9464', '0'))

const proxy = spawn(process.execPath, [here('../dist/cli.js'), '--config', file], {
  cwd: here('..'),
  env: {
    ...process.env,
    AUDIT_FILE: audit,
    ADA_KEY_SHA256: sha256(keys.ada),
    BOB_KEY_SHA256: sha256(keys.bob),
  },
  stdio: ['ignore', 'inherit', 'pipe'],
})
const said: string[] = []
const lines = createInterface(proxy.stderr)
const urls: string[] = []
for await (const line of lines) {
  said.push(line)
  const [url] = /http:\S+/.exec(line) ?? []
  if (url) urls.push(url)
  if (urls.length === 2) break
}
const [metrics, endpoint] = urls as [string, string]
lines.on('line', (line) => said.push(line))
proxy.stderr.resume()

const stranger = await fetch(endpoint, { method: 'POST', body: '{}', headers: { 'content-type': 'application/json' } })
console.log('a stranger:', stranger.status, stranger.headers.get('www-authenticate'))

async function as(user: keyof typeof keys) {
  const client = new Client({ name: user, version: '1.0.0' })
  const requestInit = { headers: { 'x-api-key': keys[user] } }
  await client.connect(new StreamableHTTPClientTransport(new URL(endpoint), { requestInit }))
  const { tools } = await client.listTools()
  const call = (name: string, args: object) =>
    client.callTool({ name, arguments: { ...args } }).then(
      ({ content }) => (content as { text: string }[])[0]?.text,
      (error: Error) => error.message,
    )
  const seen = { tools: tools.length, add: await call('add', { a: 19, b: 23 }), env: await call('get-env', {}) }
  await client.close()
  return seen
}

const ada = await as('ada')
const bob = await as('bob')
console.log('ada:', ada)
console.log('bob:', bob)
const scraped = await (await fetch(metrics)).text()
const calls = scraped.split('\n').filter((line) => /^mcp_proxy_requests_total\{.*tools\/call/.test(line)).length

proxy.kill('SIGTERM')
await once(proxy, 'exit')
const trail = (await readFile(audit, 'utf8')).trimEnd().split('\n')
const verdict = await verifyAudit(trail)
const who = new Set(trail.map((line) => (JSON.parse(line) as { principal?: string }).principal))
console.log('audit:', verdict.ok, [...who].sort())
await rm(directory, { recursive: true })

assert.equal(stranger.status, 401)
assert.equal(ada.add, 'The sum of 19 and 23 is 42.')
assert.match(ada.env ?? '', /Unknown tool/)
assert.equal(bob.tools, 1)
assert.match(bob.add ?? '', /-31006/)
assert.ok(calls > 0)
assert.ok(verdict.ok)
assert.ok(!said.join('\n').includes('-key'))
