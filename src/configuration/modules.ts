import { readFile } from 'node:fs/promises'
import { extname } from 'node:path'
import { fileURLToPath } from 'node:url'
import { createJiti, type Jiti } from 'jiti'
import { moduleUrl, shelf } from '../load.js'

/** Built once: what is loaded through it is read anew each time, so that a change is seen. */
let jiti: Promise<Jiti> | undefined

/**
 * Imports a file of the user's: TypeScript or JavaScript, as it is now. What it imports of this package is what runs.
 */
export async function importFresh(url: URL): Promise<Record<string, unknown>> {
  jiti ??= loader()
  const filename = fileURLToPath(url)
  const how = { filename, ext: extname(filename), async: true, forceTranspile: true }
  const exports = (await (await jiti).evalModule(await readFile(filename, 'utf8'), how)) as Record<string, unknown>
  return '__esModule' in exports ? exports : { default: exports, ...exports }
}

async function loader(): Promise<Jiti> {
  const names = ['', '/testing', '/middleware', ...(await shelf()).map((name) => `/middleware/${name}`)]
  const alias = names.map((name) => [`open-mcp-proxy${name}`, fileURLToPath(moduleUrl(`open-mcp-proxy${name}`))])
  return createJiti(import.meta.url, { moduleCache: false, fsCache: false, alias: Object.fromEntries(alias) })
}
