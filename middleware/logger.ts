import { styleText } from 'node:util'
import { type Context, define, type Middleware } from 'open-mcp-proxy'

export interface LoggerOptions {
  /** Also write the values of arguments. They may hold secrets. @default false */
  arguments?: boolean
  /** @default 'pretty' where stderr is a terminal, else 'json' */
  format?: 'pretty' | 'json'
  /** Takes each line, without its newline. @default writes to stderr */
  write?: (line: string) => void
}

/** A line of the log, as `format: 'json'` writes it. Members that do not apply are absent. */
export interface LogEntry {
  /** ISO 8601, when the message arrived. */
  time: string
  session: string
  direction: 'client-to-server' | 'server-to-client'
  kind: 'request' | 'notification' | 'response'
  method?: string
  /** The tool or prompt, or the resource's URI. */
  name?: string
  id?: string | number
  /** Of a response: milliseconds since its request arrived. */
  duration?: number
  /** Of an error response: its code. */
  error?: number
  arguments?: unknown
}

/**
 * Writes a line per message to stderr: direction, method, tool, id; on a response how long it took and its error
 * code. Values of arguments only when asked for.
 *
 * @example createProxy().use(logger())
 */
export function logger(options: LoggerOptions = {}): Middleware {
  const pretty = (options.format ?? (process.stderr.isTTY ? 'pretty' : 'json')) === 'pretty'
  const write = options.write ?? ((line: string) => void process.stderr.write(`${line}\n`))
  return define({ role: 'observe' }, function logger(ctx, next) {
    const entry = entryOf(ctx, options.arguments === true)
    write(pretty ? prettyLine(entry) : plain(JSON.stringify(entry)))
    return next()
  })
}

function entryOf(ctx: Context, withArguments: boolean): LogEntry {
  const { direction, kind, method, name, id, request, error } = ctx
  const entry: LogEntry = {
    time: new Date(ctx.timestamp).toISOString(),
    session: ctx.session.id,
    direction,
    kind,
    method,
    name,
    id,
  }
  if (request) entry.duration = Math.round((ctx.timestamp - request.timestamp) * 100) / 100
  if (error) entry.error = error.code
  if (withArguments && kind !== 'response') entry.arguments = ctx.params?.arguments ?? ctx.params
  return entry
}

function prettyLine({ time, direction, kind, method, name, id, duration, error, arguments: values }: LogEntry): string {
  const words = [styleText('dim', time.slice(11, 23)), direction === 'client-to-server' ? '→' : '←']
  words.push(styleText('bold', plain(method ?? kind)))
  if (name !== undefined) words.push(plain(name))
  if (id !== undefined) words.push(styleText('dim', `#${plain(JSON.stringify(id))}`))
  if (error !== undefined) words.push(styleText('red', `error ${error}`))
  else if (kind === 'response') words.push(styleText('green', 'ok'))
  if (duration !== undefined) words.push(styleText('dim', `${duration} ms`))
  if (values !== undefined) words.push(plain(JSON.stringify(values)))
  return words.join(' ')
}

/** C0, C1, bidirectional and other invisible characters, with which a peer could forge or hide a line. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g

function plain(text: string): string {
  return text.replace(UNSEEN, (it) => `\\u${it.charCodeAt(0).toString(16).padStart(4, '0')}`)
}
