import type { LoggerOptions } from './logger.js'

export { type LogEntry, type LoggerOptions, logger } from './logger.js'

/** The options of each middleware of the shelf: what a configuration file may say of it. */
export interface Shelf {
  logger: LoggerOptions
}
