export {
  Application,
  type ApplicationEvents,
  type ApplicationOptions,
  type ConnectOptions,
  createProxy,
  type Stats,
} from './application.js'
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
export { type Admission, type AdmitRequest, type Definition, define, type Role } from './define.js'
export { type Phase, type ProxyErrorData, type Reason, RpcError } from './error.js'
export { type Accept, type Accepted, type Listener, type Listening, stdioListener } from './listener/index.js'
export { type Methods, onExchange, onNotification, onRequest, onResponse } from './match.js'
export type { CallOptions, Ending, Session, Side } from './session.js'
export {
  type CommandUpstream,
  http,
  sse,
  stdio,
  type Upstream,
  type UpstreamFactory,
  type UrlOptions,
  type UrlUpstream,
} from './upstream/index.js'
export { type CloseOptions, type Frame, FrameError, type FrameMeta, fromTransport, type Wire } from './wire.js'
