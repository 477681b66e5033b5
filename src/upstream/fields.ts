type Headers = Readonly<Record<string, string>>

const TOKEN = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/
/** What would end the header, or the head (RFC 9110, section 5.5). */
const FORBIDDEN = /[^\t\x20-\x7e\x80-\xff]/
/** Who writes the body says how long it is. */
const FRAMING = new Set(['content-length', 'transfer-encoding'])

/** The headers of a request, and how they are written. */
export class Fields {
  readonly record: Headers
  readonly #host: string
  #text: string | undefined

  /** `record`: names in lower case. */
  constructor(record: Headers, host: string) {
    this.record = record
    this.#host = host
  }

  /** A line for each. */
  get text(): string {
    this.#text ??= written({ host: this.#host, connection: 'keep-alive', ...this.record })
    return this.#text
  }
}

export function isHeaderName(name: string): boolean {
  return TOKEN.test(name)
}

export function isHeaderValue(value: string): boolean {
  return !FORBIDDEN.test(value)
}

function written(headers: Headers): string {
  let text = ''
  for (const name in headers) {
    if (FRAMING.has(name)) continue
    if (!isHeaderName(name)) throw invalid('ERR_INVALID_HTTP_TOKEN')
    // Who writes no TypeScript may give what is not there, or what is no text.
    const given: unknown = headers[name]
    if (given === undefined || given === null) throw invalid('ERR_HTTP_INVALID_HEADER_VALUE')
    const value = String(given)
    if (!isHeaderValue(value)) throw invalid('ERR_INVALID_CHAR')
    text += `${name}: ${value}\r\n`
  }
  return text
}

/** As Node calls it: what is wrong with one must not be told, for it may be a secret. */
function invalid(code: string): Error {
  return Object.assign(new TypeError('a header that cannot be sent'), { code })
}
