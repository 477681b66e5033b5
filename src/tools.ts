import { declaredHeaders, type ParamHeader } from './mirror.js'
import type { Frame } from './wire.js'

/** Sends a tools/list for the page behind `cursor` and resolves with its response. */
export type AskTools = (cursor: string | undefined) => Promise<Frame>

const MAX_PAGES = 100
/** Names come from clients too, who may make them up. */
const MAX_TOOLS = 10_000
const decoder = new TextDecoder()

interface ListAnswer {
  result?: { tools?: unknown; nextCursor?: unknown } | null
}

/** Which arguments each tool wants mirrored into headers, as learned from tools/list results. */
export class ToolHeaders {
  readonly #known = new Map<string, ParamHeader[]>()
  #asking: Promise<boolean> | undefined

  /** Takes in one page. Returns the cursor of the next one. */
  learn(frame: Frame): string | undefined {
    const result = (parsed(frame) as ListAnswer | null)?.result
    if (!Array.isArray(result?.tools)) return undefined
    for (const tool of result.tools as ({ name?: unknown; inputSchema?: unknown } | null)[]) {
      if (typeof tool?.name === 'string') this.#remember(tool.name, declaredHeaders(tool.inputSchema))
    }
    return typeof result.nextCursor === 'string' ? result.nextCursor : undefined
  }

  /** Undefined where nobody has asked for the tool yet. */
  known(name: string): readonly ParamHeader[] | undefined {
    return this.#known.get(name)
  }

  /**
   * Asks only when the tool is unknown, and once more where the round was another's, which may have failed with whoever
   * asked. Never rejects: a call without the headers is for the server to refuse.
   */
  async of(name: string, ask: AskTools): Promise<readonly ParamHeader[]> {
    if (!this.#known.has(name)) {
      const others = this.#asking
      const learned = (await this.refresh(ask)) || (others !== undefined && (await this.refresh(ask)))
      // Nothing is known of it then: the next one asks again.
      if (!learned) return this.#known.get(name) ?? []
    }
    const known = this.#known.get(name) ?? []
    this.#remember(name, known)
    return known
  }

  #remember(name: string, headers: ParamHeader[]): void {
    if (this.#known.size >= MAX_TOOLS && !this.#known.has(name)) this.#known.clear()
    this.#known.set(name, headers)
  }

  /** Asks for all pages, and tells whether they came. One round serves everyone who waits for it. */
  refresh(ask: AskTools): Promise<boolean> {
    this.#asking ??= this.#pages(ask)
      .then(
        () => true,
        () => false,
      )
      .finally(() => {
        this.#asking = undefined
      })
    return this.#asking
  }

  async #pages(ask: AskTools): Promise<void> {
    let cursor: string | undefined
    for (let page = 0; page < MAX_PAGES; page += 1) {
      cursor = this.learn(await ask(cursor))
      if (cursor === undefined) return
    }
  }
}

function parsed(frame: Frame): unknown {
  try {
    return JSON.parse(decoder.decode(frame))
  } catch {
    return undefined
  }
}
