import type { Middleware } from 'open-mcp-proxy'

export interface ShortenOptions {
  /** How many UTF-16 units of a text stay. @default 10000 */
  characters?: number
}

/**
 * Cuts texts in the results of tools, which would fill a model's context.
 *
 * @throws `TypeError` where `characters` is no whole number from 1.
 * @example createProxy().use(shorten({ characters: 2_000 }))
 */
export declare function shorten(options?: ShortenOptions): Middleware

export default shorten
