import { proxyError } from '../error.js'
import { paramsMember } from '../message.js'
import type { Head } from '../scan.js'
import type { AskTools } from '../tools.js'
import type { Frame } from '../wire.js'
import { headOf } from './answer.js'
import { collected, Gate } from './body.js'
import type { Endpoint } from './endpoint.js'
import { isEventStream, readEvents } from './stream.js'

/** The id stays on an exchange of its own: it meets no other and nobody sees it. */
const ID = 'open-mcp-proxy/tools'

/**
 * How to ask for a page of tools/list in the name of a request, with its `_meta`: as the server itself declares its tools,
 * which is what it holds headers against. What its client was shown a listener asks for.
 */
export function askTools(endpoint: Endpoint, frame: Frame, head: Head, version: string, signal: AbortSignal): AskTools {
  const span = paramsMember(frame, head, '_meta')
  const meta = Buffer.from(span ? frame.subarray(span.start, span.end) : '{}').toString()
  return async (cursor) => {
    const page = cursor === undefined ? '' : `"cursor":${JSON.stringify(cursor)},`
    const body = `{"jsonrpc":"2.0","id":"${ID}","method":"tools/list","params":{${page}"_meta":${meta}}}`
    const headers = {
      accept: 'application/json, text/event-stream',
      'content-type': 'application/json',
      'mcp-protocol-version': version,
      'mcp-method': 'tools/list',
    }
    const response = await endpoint.ask(
      { method: 'POST', headers, body: Buffer.from(body) },
      AbortSignal.any([signal, AbortSignal.timeout(endpoint.timeout)]),
    )
    const gate = new Gate()
    const { maxMessageBytes: maxBytes } = endpoint
    if (!isEventStream(response)) return collected(response.body, gate, maxBytes)
    let answer: Frame | undefined
    const onFrame = (event: Buffer) => {
      if (headOf(event)?.kind === 'response') answer ??= event
    }
    await readEvents(response.body, { gate, maxBytes, silence: 0, onFrame, onTooLarge: () => {} })
    if (answer === undefined) throw proxyError('upstream_bad_response', { phase: 'sent' })
    return answer
  }
}
