import type { AuditOptions } from './audit.js'
import type { AuthOptions } from './auth.js'
import type { AuthorizeOptions } from './authorize.js'
import type { LoggerOptions } from './logger.js'
import type { MetricsOptions } from './metrics.js'
import type { RecordOptions } from './record.js'
import type { ToolFilterOptions } from './toolFilter.js'
import type { TraceOptions } from './trace.js'

export { type AuditOptions, audit, verifyAudit } from './audit.js'
export {
  type ApiKeyOptions,
  type Authenticated,
  type AuthOptions,
  auth,
  type Identity,
  type JwtOptions,
  type ResourceOptions,
  type TokenOptions,
  type User,
} from './auth.js'
export {
  type AuthorizeDecision,
  type AuthorizeOptions,
  type AuthorizeRequest,
  type AuthorizeRule,
  type AuthorizeUser,
  authorize,
} from './authorize.js'
export { type LogEntry, type LoggerOptions, logger } from './logger.js'
export { type Metrics, type MetricsOptions, metrics } from './metrics.js'
export {
  type RecordedMessage,
  type RecordedSession,
  type RecordMask,
  type RecordOptions,
  record,
} from './record.js'
export {
  type Difference,
  type Recording,
  type ReplayOptions,
  type RerunOptions,
  readRecording,
  replay,
  rerun,
} from './replay.js'
export { type ToolFilterOptions, type ToolPattern, toolFilter } from './toolFilter.js'
export { type TraceOptions, trace } from './trace.js'

/** The options of each middleware of the shelf: what a configuration file may say of it. */
export interface Shelf {
  audit: AuditOptions
  auth: AuthOptions
  authorize: AuthorizeOptions
  logger: LoggerOptions
  metrics: MetricsOptions
  record: RecordOptions
  toolFilter: ToolFilterOptions
  trace: TraceOptions
}
