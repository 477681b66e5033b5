import type { End } from './end.js'
import { splice } from './json.js'
import { paramsMember, withId } from './message.js'
import type { Passage } from './passage.js'
import type { Frame, FrameMeta } from './wire.js'

/** The bytes that leave: with the id or cancel target that the far end knows. */
export function frameOf({ exchange, target, message, kind, direction }: Passage): Frame {
  const { frame, head } = message
  if (kind === 'response') {
    if (!exchange || (head.exactId && head.id === exchange.id && exchange.request.origin.head.exactId)) return frame
    return head.idText === exchange.idText ? frame : withId(frame, head, exchange.idText)
  }
  if (exchange && exchange.wireId !== exchange.id && !exchange.own) {
    return withId(frame, head, JSON.stringify(exchange.wireId))
  }
  if (target && target.wireId !== target.id) {
    const span = paramsMember(frame, head, 'requestId')
    const back = direction !== target.request.direction
    if (span) return splice(frame, [{ ...span, text: back ? target.idText : JSON.stringify(target.wireId) }])
  }
  return frame
}

/** What the far wire is told beside the bytes: to which of its requests they relate, as it knows it. */
export function metaOf({ kind, extra, exchange }: Passage, from: End): FrameMeta | undefined {
  if (kind === 'response') {
    // Written out: a spread of this object costs more than the scan of a message.
    return { status: extra.status, headers: extra.headers, authInfo: extra.authInfo, relatedRequestId: exchange?.id }
  }
  const { relatedRequestId: related, headers } = extra
  if (related === undefined) return headers && { headers }
  const alias = from.aliases.get(related)
  return { headers, relatedRequestId: alias ? alias.id : related }
}
