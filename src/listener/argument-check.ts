import { isProxyErrorData, RpcError } from '../error.js'
import { resultFrame, tokenValue } from '../message.js'
import { mismatch } from '../mirror.js'
import type { Head } from '../scan.js'
import type { Session } from '../session.js'
import { type AskTools, ToolHeaders } from '../tools.js'
import type { Frame, FrameMeta } from '../wire.js'

/** Milliseconds for a page of tools/list. */
const ASK_TIMEOUT = 5_000
/** For how many principals schemas are remembered, and for how many milliseconds. */
const MAX_PRINCIPALS = 1_000
const MAX_AGE = 60_000
/** Milliseconds for which a server that could not list its tools is not asked again. */
const PAUSE = 10_000

interface Known {
  readonly tools: ToolHeaders
  readonly since: number
  /** Until then its server is not asked. */
  pause: number
}

/**
 * Holds the `Mcp-Param-*` of tool calls against their arguments (2026-07-28 streamable-http, "Server Behavior for Custom
 * Headers"). Which arguments have one the schemas tell; so tools/list is asked for, down the whole line: what counts is
 * what the client was shown.
 */
export class ArgumentCheck {
  readonly #known = new Map<string | undefined, Known>()

  /** What is wrong; undefined where nothing is, or the schemas cannot be had. No promise where there is nothing to look at. */
  problem(
    session: Session,
    came: FrameMeta['headers'],
    frame: Frame,
    head: Head,
  ): Promise<string | undefined> | undefined {
    if (head.kind !== 'request' || head.method !== 'tools/call' || head.name === undefined) return undefined
    return this.#problem(session, came, frame, head, head.name)
  }

  async #problem(
    session: Session,
    came: FrameMeta['headers'],
    frame: Frame,
    head: Head,
    name: string,
  ): Promise<string | undefined> {
    const known = this.#of(session.principal)
    const { tools } = known
    const pages = asking(session, frame, head)
    const ask: AskTools = async (cursor) => {
      if (performance.now() < known.pause) throw new Error('it could not list its tools a moment ago')
      return pages(cursor).catch((error: unknown) => {
        // Whoever has left, or was refused for what it said of itself, tells nothing of the server.
        const isServers = error instanceof RpcError && isProxyErrorData(error.data)
        if (isServers && !session.signal.aborted) known.pause = performance.now() + PAUSE
        throw error
      })
    }
    const held = async () => mismatch(came ?? {}, frame, head, await tools.of(name, ask))
    if ((await held()) === undefined) return undefined
    // The schema may have changed since it was learned.
    await tools.refresh(ask)
    return held()
  }

  #of(principal: string | undefined): Known {
    const known = this.#known.get(principal)
    const now = performance.now()
    if (known && now - known.since < MAX_AGE) return known
    if (this.#known.size >= MAX_PRINCIPALS) this.#known.clear()
    const fresh: Known = { tools: new ToolHeaders(), since: now, pause: 0 }
    this.#known.set(principal, fresh)
    return fresh
  }
}

function asking(session: Session, frame: Frame, { metaStart, metaEnd }: Head): AskTools {
  const { progressToken: _, ...meta } = tokenValue(frame, { start: metaStart, end: metaEnd }) as Record<string, unknown>
  return async (cursor) => {
    const params = { ...(cursor !== undefined && { cursor }), _meta: meta }
    return resultFrame('0', await session.call('server', 'tools/list', params, { timeout: ASK_TIMEOUT }))
  }
}
