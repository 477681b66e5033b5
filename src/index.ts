export { hasTwins, isAlike } from './alike.js'
export {
  Application,
  type ApplicationEvents,
  type ApplicationOptions,
  type ConnectOptions,
  createProxy,
  type Stats,
} from './application.js'
export {
  type CommandServer,
  type ConfigFile,
  defineProxy,
  type Level,
  type McpServer,
  type ProxyConfig,
  type UrlServer,
} from './config.js'
export type {
  Context,
  Direction,
  ErrorObject,
  Kind,
  Middleware,
  Next,
  NotificationContext,
  NotificationMethod,
  Params,
  ParamsOf,
  RequestContext,
  RequestMethod,
  ResponseContext,
  Result,
  ResultOf,
} from './context.js'
export { type Admission, type AdmitRequest, type Definition, define, type HttpAnswer, type Role } from './define.js'
export { type Phase, type ProxyErrorData, type ProxyErrorOptions, proxyError, type Reason, RpcError } from './error.js'
export { glob } from './glob.js'
export {
  type Accept,
  type Accepted,
  type AcceptOptions,
  type HandlerOptions,
  type Health,
  type HttpOptions,
  type Listener,
  type Listening,
  type RequestHandler,
  type Served,
  stdioListener,
} from './listener/index.js'
export {
  type EventStore,
  MemoryEventStore,
  type MemoryEventStoreOptions,
  type Replay,
  type StoredEvent,
} from './listener/store.js'
export { type Methods, onExchange, onNotification, onRequest, onResponse } from './match.js'
export { rewriteText } from './rewrite.js'
export type { CallOptions, Ending, Session, Side } from './session.js'
export {
  type CommandUpstream,
  http,
  type Restart,
  sse,
  stdio,
  type Upstream,
  type UpstreamFactory,
  type UrlOptions,
  type UrlUpstream,
} from './upstream/index.js'
export {
  type CloseOptions,
  type Frame,
  FrameError,
  type FrameMeta,
  fromTransport,
  type StreamEvent,
  type Wire,
} from './wire.js'
