import {
  type Attributes,
  context,
  createTraceState,
  isSpanContextValid,
  type Context as Lineage,
  type Link,
  ProxyTracerProvider,
  propagation,
  type Span,
  type SpanContext,
  SpanKind,
  SpanStatusCode,
  TraceFlags,
  type Tracer,
  type TracerProvider,
  trace as telemetry,
} from '@opentelemetry/api'
import {
  type Context,
  define,
  type ErrorObject,
  type Middleware,
  type Next,
  type Params,
  RpcError,
  type Session,
} from 'open-mcp-proxy'

export interface TraceOptions {
  /**
   * What the trace context of a peer is to our span: its `'parent'`; a `'link'` of a span that begins a trace of its own,
   * at an edge whose peers are not trusted; or nothing, `'ignore'`. With the latter two no `tracestate` and `baggage` of the
   * peer goes on either. @default 'parent'
   */
  remote?: 'parent' | 'link' | 'ignore'
  /** Write our context into `_meta` of the request as it goes on. @default true */
  propagate?: boolean
  /** Also record the arguments of tool calls, as JSON text. They may hold secrets. @default false */
  arguments?: boolean
  /** Also record the results of tool calls that went well, as JSON text. They may hold secrets. @default false */
  results?: boolean
  /** @hidden For code only. @default the provider that is registered with `@opentelemetry/api` when a request comes */
  tracerProvider?: TracerProvider
}

/** W3C Trace Context level 1, 3.2.2; later versions may have more behind the flags (4.). */
const TRACEPARENT = /^(?!ff)([\da-f]{2})-([\da-f]{32})-([\da-f]{16})-([\da-f]{2})(-.*)?$/
/** Members of a `tracestate` (3.3.1.1). */
const MAX_STATES = 32
/** What fits a `baggage` (W3C Baggage, 3.3.2 and 3.3.3). */
const BAGGAGE = /^[\x21-\x7e][\x20-\x7e]{0,8191}$/
/** A name that a peer made up must not make a span of any size. */
const MAX_NAME = 256
const MAX_DESCRIPTION = 1_024
/** Characters of a result above which it is only parsed where the word is there. */
const MAX_PARSED = 1 << 16
/** What a requester gets for any error that is not meant for it. */
const INTERNAL: ErrorObject = { code: -32603, message: 'Internal error' }
/** What a global provider stands for as long as none is registered. */
const NOBODY = new ProxyTracerProvider().getDelegate()

/**
 * An OpenTelemetry span per exchange, a request and its response, whichever side asks. A client's trace goes through the
 * proxy to the server: the parent is read from `params._meta` (`traceparent`, `tracestate`, `baggage`: 2026-07-28,
 * basic, `_meta`), else it is the span that is active in this process, else that of the HTTP headers; and our own context is
 * written into `_meta` of the request, in W3C format whatever propagator is registered. A span that is active beside a
 * parent from `_meta` is linked. What is malformed or too long is ignored. What a server asks on the HTTP stream of a call is
 * so a child of the call; stdio does not tell.
 *
 * Our span is active while the middleware behind this one has the request, where a context manager is registered. It ends
 * with the response, or when the request is cancelled or the session closes. Without a registered provider no byte changes.
 *
 * Names, attributes and errors are those of the semantic conventions for MCP (open-telemetry/semantic-conventions-genai,
 * status Development, as of semantic conventions 1.41). A proxy stands where the server is for whoever asks: kind SERVER.
 *
 * @throws `TypeError` where an option is none of these.
 * @example createProxy().use(trace({ remote: 'link' }))
 */
export function trace(options: TraceOptions = {}): Middleware {
  check(options)
  const sessions = new WeakMap<Session, Open>()

  function begin(ctx: Context, next: Next, tracer: Tracer): Promise<void> {
    const { params, signal, state } = ctx
    const meta = objectOf(objectOf(params)?._meta)
    const { lineage, links, baggage } = lineageOf(ctx, meta, options.remote ?? 'parent')
    const attributes = attributesOf(ctx, objectOf(params), options.arguments === true)
    const span = tracer.startSpan(nameOf(attributes), { kind: SpanKind.SERVER, attributes, links }, lineage)
    const own = span.spanContext()
    // A provider that does nothing, or tracing that is suppressed, has no span of ours to give.
    if (!isSpanContextValid(own) || own.spanId === telemetry.getSpanContext(lineage)?.spanId) return next()
    const untrusted = options.remote === 'link' || options.remote === 'ignore'
    if (options.propagate !== false) write(ctx, own, baggage, untrusted)

    const open = openIn(ctx.session, sessions)
    const giveUp = () => finish(() => unanswered(span, signal.reason))
    const finish = (describe: (span: Span) => void) => {
      if (!open.delete(state)) return
      describe(span)
      span.end()
    }
    open.set(state, finish)
    if (signal.aborted) giveUp()
    else signal.addEventListener('abort', giveUp)
    const left = context.with(telemetry.setSpan(lineage, span), next)
    // Where this place is the deepest that was reached, its error does not come by as a response.
    left.catch((error: unknown) => {
      if (!ctx.settled) finish(() => refused(span, error instanceof RpcError ? error : INTERNAL))
    })
    return left
  }

  return define({ name: 'trace', role: 'observe' }, function trace(ctx, next) {
    if (ctx.kind === 'response') {
      const open = sessions.get(ctx.session)
      if (open && open.size > 0) open.get(ctx.state)?.((span) => answered(span, ctx, options.results === true))
      return next()
    }
    const tracer = ctx.kind === 'request' ? tracerOf(options.tracerProvider) : undefined
    return tracer ? begin(ctx, next, tracer) : next()
  })
}

/** Of the exchanges of a session that are not over, by their state, what ends their span. */
type Open = Map<object, (describe: (span: Span) => void) => void>

function openIn(session: Session, sessions: WeakMap<Session, Open>): Open {
  const known = sessions.get(session)
  if (known) return known
  const open: Open = new Map()
  sessions.set(session, open)
  // A stream that its server took back is owed no answer, and its own signal stays silent.
  session.signal.addEventListener('abort', () => {
    for (const finish of [...open.values()]) finish((span) => unanswered(span, session.signal.reason))
  })
  return open
}

function check({ remote = 'parent', tracerProvider, ...flags }: TraceOptions): void {
  const expect = (what: string, got: unknown) => {
    throw new TypeError(`trace: expected ${what}, got ${JSON.stringify(got) ?? typeof got}`)
  }
  if (!['parent', 'link', 'ignore'].includes(remote)) expect('remote "parent", "link" or "ignore"', remote)
  for (const name of ['propagate', 'arguments', 'results'] as const) {
    if (flags[name] !== undefined && typeof flags[name] !== 'boolean') expect(`${name} true or false`, flags[name])
  }
  if (tracerProvider !== undefined && typeof tracerProvider?.getTracer !== 'function') {
    expect('tracerProvider with a method getTracer', tracerProvider)
  }
}

/** Undefined where nobody would see the spans. */
function tracerOf(provider: TracerProvider = telemetry.getTracerProvider()): Tracer | undefined {
  if (provider instanceof ProxyTracerProvider && provider.getDelegate() === NOBODY) return undefined
  return provider.getTracer('open-mcp-proxy')
}

// --- where a span stands ------------------------------------------------------------------------------------

function lineageOf(ctx: Context, meta: Params | undefined, remote: NonNullable<TraceOptions['remote']>) {
  const { headers = {} } = ctx.extra
  const here = context.active()
  const ambient = liveSpan(here)
  // Whoever instruments HTTP has read the headers: the active span stands nearer than they.
  const told = remoteOf(meta) ?? (ambient ? undefined : remoteOf(headers))
  if (remote !== 'parent') {
    const links: Link[] = remote === 'link' && told ? [{ context: told }] : []
    return { lineage: ambient ? here : telemetry.deleteSpan(here), links, baggage: undefined }
  }
  const links: Link[] = told && ambient && ambient.spanId !== told.spanId ? [{ context: ambient }] : []
  const own = told ? telemetry.setSpanContext(here, told) : ambient ? here : telemetry.deleteSpan(here)
  const baggage = baggageOf(meta && Object.hasOwn(meta, 'baggage') ? meta.baggage : headers.baggage)
  return { lineage: propagation.extract(own, { baggage }), links, baggage }
}

/**
 * The span that is active, unless it has ended: what comes from a process or a stream that was opened in a span long ago
 * is not its child. Of a span that is not sampled nobody can tell.
 */
function liveSpan(here: Lineage): SpanContext | undefined {
  const span = telemetry.getSpan(here)
  const own = span?.spanContext()
  if (!span || !own || !isSpanContextValid(own)) return undefined
  const hasEnded = !span.isRecording() && !own.isRemote && (own.traceFlags & TraceFlags.SAMPLED) !== 0
  return hasEnded ? undefined : own
}

/** A context in W3C format, of `_meta` or HTTP headers. */
function remoteOf({ traceparent, tracestate }: Params = {}): SpanContext | undefined {
  const [, version, traceId = '', spanId = '', flags = '', more] =
    (typeof traceparent === 'string' && TRACEPARENT.exec(traceparent)) || []
  if (version === undefined || (version === '00' && more !== undefined)) return undefined
  const traceFlags = Number.parseInt(flags, 16) & TraceFlags.SAMPLED
  const states = Array.isArray(tracestate) ? tracestate.join() : tracestate
  // Longer than 512 characters it is empty; of more than 32 members the library turns the order round.
  const isLegal = typeof states === 'string' && states.split(',', MAX_STATES + 1).length <= MAX_STATES
  const traceState = isLegal ? createTraceState(states) : undefined
  const told: SpanContext = { traceId, spanId, traceFlags, traceState, isRemote: true }
  return isSpanContextValid(told) ? told : undefined
}

function baggageOf(it: unknown): string | undefined {
  const text = Array.isArray(it) ? it.join() : it
  return typeof text === 'string' && BAGGAGE.test(text) ? text : undefined
}

/** Writes our context into `_meta` of a request. Where there is no place for it the request stays as it is. */
function write(ctx: Context, own: SpanContext, baggage: string | undefined, untrusted: boolean): void {
  const { params = {} } = ctx
  if (!objectOf(params)) return
  const { _meta: meta = {} } = params
  if (!objectOf(meta)) return
  const carrier = meta as Params
  carrier.traceparent = `00-${own.traceId}-${own.spanId}-0${own.traceFlags & TraceFlags.SAMPLED}`
  const states = own.traceState?.serialize()
  if (states) carrier.tracestate = states
  else delete carrier.tracestate
  if (untrusted) delete carrier.baggage
  else if (baggage !== undefined) carrier.baggage = baggage
  if (params._meta === undefined) params._meta = carrier
  if (ctx.params === undefined) ctx.params = params
}

// --- what a span says ---------------------------------------------------------------------------------------

function attributesOf(ctx: Context, params: Params | undefined, withArguments: boolean): Attributes {
  const { session, method, id } = ctx
  const attributes: Attributes = { 'mcp.method.name': method, 'jsonrpc.request.id': String(id) }
  if (session.era === 'legacy') attributes['mcp.session.id'] = session.id
  if (session.protocolVersion !== undefined) attributes['mcp.protocol.version'] = session.protocolVersion
  if (ctx.extra.headers) {
    attributes['network.transport'] = 'tcp'
    attributes['network.protocol.name'] = 'http'
  }
  const { name, uri } = params ?? {}
  switch (method) {
    case 'tools/call':
      attributes['gen_ai.operation.name'] = 'execute_tool'
      if (typeof name === 'string') attributes['gen_ai.tool.name'] = name
      if (withArguments) attributes['gen_ai.tool.call.arguments'] = JSON.stringify(params?.arguments)
      break
    case 'prompts/get':
      if (typeof name === 'string') attributes['gen_ai.prompt.name'] = name
      break
    case 'resources/read':
    case 'resources/subscribe':
    case 'resources/unsubscribe':
      if (typeof uri === 'string') attributes['mcp.resource.uri'] = uri
  }
  return attributes
}

function nameOf(attributes: Attributes): string {
  const target = attributes['gen_ai.tool.name'] ?? attributes['gen_ai.prompt.name']
  const method = String(attributes['mcp.method.name'])
  return (target === undefined ? method : `${method} ${target}`).slice(0, MAX_NAME)
}

function answered(span: Span, ctx: Context, withResults: boolean): void {
  if (!span.isRecording()) return
  const { error, method } = ctx
  if (error !== undefined) refused(span, error)
  else if (method === 'initialize') {
    const version = objectOf(ctx.result)?.protocolVersion
    if (typeof version === 'string') span.setAttribute('mcp.protocol.version', version)
  } else if (method === 'tools/call' && (withResults || mayFail(ctx.raw))) {
    const result = objectOf(ctx.result)
    if (result?.isError === true) failed(span, 'tool_error')
    else if (withResults) span.setAttribute('gen_ai.tool.call.result', JSON.stringify(result))
  }
}

function mayFail(text: string): boolean {
  return text.length <= MAX_PARSED || text.includes('"isError"')
}

/** It was cancelled, or answered before this place; or the session closed. */
function unanswered(span: Span, reason: unknown): void {
  if (reason instanceof RpcError) refused(span, reason)
  else failed(span, 'cancelled')
}

/** With an error as the requester gets it; a server may put anything in its place. */
function refused(span: Span, error: Partial<ErrorObject> | null): void {
  const code = typeof error?.code === 'number' ? String(error.code) : undefined
  failed(span, code ?? '_OTHER', error?.message)
  if (code !== undefined) span.setAttribute('rpc.response.status_code', code)
}

function failed(span: Span, type: string, message?: unknown): void {
  span.setAttribute('error.type', type)
  const description = typeof message === 'string' ? message.slice(0, MAX_DESCRIPTION) : undefined
  span.setStatus({ code: SpanStatusCode.ERROR, message: description })
}

function objectOf(it: unknown): Params | undefined {
  return typeof it === 'object' && it !== null && !Array.isArray(it) ? (it as Params) : undefined
}
