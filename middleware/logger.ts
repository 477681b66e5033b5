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
 * @throws `TypeError` where the format is unknown.
 * @example createProxy().use(logger())
 */
export function logger(options: LoggerOptions = {}): Middleware {
  const { format = process.stderr.isTTY ? 'pretty' : 'json' } = options
  if (format !== 'pretty' && format !== 'json') {
    throw new TypeError(`logger: expected format "pretty" or "json", got ${JSON.stringify(format)}`)
  }
  const write = options.write ?? ((line: string) => void process.stderr.write(`${line}\n`))
  return define({ name: 'logger', role: 'observe' }, function logger(ctx, next) {
    const entry = entryOf(ctx, options.arguments === true)
    write(format === 'pretty' ? prettyLine(entry) : plain(JSON.stringify(entry)))
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
  const words = [paint('dim', time.slice(11, 23)), direction === 'client-to-server' ? '→' : '←']
  words.push(paint('bold', plain(method ?? kind)))
  if (name !== undefined) words.push(plain(name))
  if (id !== undefined) words.push(paint('dim', `#${plain(JSON.stringify(id))}`))
  if (error !== undefined) words.push(paint('red', `error ${plain(String(error))}`))
  else if (kind === 'response') words.push(paint('green', 'ok'))
  if (duration !== undefined) words.push(paint('dim', `${duration} ms`))
  if (values !== undefined) words.push(plain(JSON.stringify(values)))
  return words.join(' ')
}

/** Control, format (bidirectional ones among them) and line separating characters: a peer could forge or hide a line. */
const UNSEEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu

/** Escapes as JSON does, so that a line of JSON stays one. */
function plain(text: string): string {
  return text.replace(UNSEEN, (it) => {
    const [first, ...rest] = it.split('').map((unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`)
    return rest.length === 0 ? first! : first + rest.join('')
  })
}

/** Colours where stderr takes them, whatever stdout is. */
function paint(style: 'bold' | 'dim' | 'green' | 'red', text: string): string {
  return styleText(style, text, { stream: process.stderr })
}
