export { type LogEntry, type LoggerOptions, logger } from './logger.js'
