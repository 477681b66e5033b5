// What is measured, and against what.
import { fileURLToPath } from 'node:url'

/** What is on the two sides: clients on stdio or over HTTP, a server on stdio or over HTTP. */
export type Link = 'stdio' | 'sse' | 'http' | 'http-sse' | 'listener' | 'listener-sse'

/** Where the server is, or the command that starts it, and where to listen. */
export interface Where {
  readonly server: readonly string[]
  readonly url: string
  readonly port: number
}

export interface Subject {
  readonly name: string
  /** Ours is compared with the others. What they do wrong is told, and no fault of ours. */
  readonly role: 'ours' | 'baseline' | 'peer'
  /** The program and its arguments; nothing where it has none for this link. */
  command(link: Link, where: Where): readonly string[] | undefined
}

const { execPath: node } = process
export const built = (file: string) => fileURLToPath(new URL(`./${file}`, import.meta.url))

/** The program, or another build of it. */
export function program(file: string, name = 'open-mcp-proxy', use: readonly string[] = []): Subject {
  const more = use.flatMap((it) => ['--use', `${built('middleware.js')}#${it}`])
  return {
    name,
    role: 'ours',
    command(link, { server, url, port }) {
      if (link === 'stdio') return [node, file, 'stdio', ...more, '--', ...server]
      if (link === 'sse') return [node, file, 'sse', '--url', url]
      if (link.startsWith('http')) return [node, file, 'http', '--url', url]
      return [node, file, 'stdio', '--listen', String(port), '--', ...server]
    },
  }
}

export const raw: Subject = {
  name: 'raw',
  role: 'baseline',
  command(link, { server, url }) {
    if (link === 'stdio') return [node, built('baselines/raw.js'), ...server]
    if (link.startsWith('listener')) return undefined
    return [node, built('baselines/raw-http.js'), link === 'sse' ? 'sse' : 'http', url]
  },
}

export const parse: Subject = {
  name: 'parse',
  role: 'baseline',
  command: (link, { server }) => (link === 'stdio' ? [node, built('baselines/parse.js'), ...server] : undefined),
}

export const sdk: Subject = {
  name: 'SDK',
  role: 'baseline',
  command(link, { server, url, port }) {
    const relay = [node, built('baselines/sdk.js')]
    if (link === 'stdio') return [...relay, 'stdio', ...server]
    if (link.startsWith('listener')) return [...relay, 'listen', String(port), ...server]
    return [...relay, link === 'sse' ? 'sse' : 'http', url]
  },
}
