import { setTimeout as sleep } from 'node:timers/promises'

/** How long a server waits for an answer of its client before it goes on without. */
const ASK_MS = 2_000
/** How long one that answers although it was told not to waits to be told. */
const LATE_MS = 3_000

/**
 * What all faulty servers do with a request, whatever their transport. The token of a call is journaled before anything
 * is done about it. Every message has the next number of the stream it goes out on, which is `from`.
 *
 * @param {import('./behaviour.mjs').Message} request
 * @param {import('./behaviour.mjs').Out} out
 */
export async function behave(request, out) {
  const { id, method, params = {} } = request
  const isModern = params._meta?.['io.modelcontextprotocol/protocolVersion'] !== undefined
  const more = isModern ? { resultType: 'complete' } : {}
  const result = (it) => ({ jsonrpc: '2.0', id, result: { ...it, ...more } })
  if (method === 'initialize') {
    const capabilities = { tools: {}, logging: {} }
    const serverInfo = { name: 'faulty', version: '1' }
    return out.answer(result({ protocolVersion: params.protocolVersion, capabilities, serverInfo }))
  }
  if (method === 'ping') return out.answer(result({}))
  if (method === 'tools/list') {
    const cached = isModern ? { ttlMs: 60_000, cacheScope: 'public' } : {}
    return out.answer(result({ tools: [{ name: 'chaos', inputSchema: { type: 'object' } }], ...cached }))
  }
  if (method !== 'tools/call') {
    return out.answer({ jsonrpc: '2.0', id, error: { code: -32601, message: `Method not found: ${method}` } })
  }
  const call = { fault: undefined, progress: 0, delay: 0, bytes: 0, ...params.arguments }
  out.journal({ kind: 'call', token: call.token, life: call.life, seq: call.seq })
  if (out.before?.(call.fault)) return undefined
  for (let step = 1; step <= call.progress; step++) {
    const numbered = {
      progressToken: params._meta?.progressToken,
      progress: step,
      total: call.progress,
      ...out.number(),
    }
    out.say({ jsonrpc: '2.0', method: 'notifications/progress', params: { ...numbered, token: call.token } })
    if (step % 3 === 0) await sleep(1)
  }
  if (call.delay > 0) await sleep(call.delay)
  const asked = call.ask && !isModern ? await ask(out, call) : undefined
  if (call.fault === 'late') await Promise.race([out.cancelled, sleep(LATE_MS, undefined, { ref: false })])
  else if (out.isCancelled()) return undefined
  if (call.fault === 'hang') return undefined
  if (call.fault === 'error') {
    return out.answer({ jsonrpc: '2.0', id, error: { code: -1, message: 'faulty', data: { token: call.token } } })
  }
  const answer = () =>
    result({
      content: [{ type: 'text', text: call.token }],
      padding: 'é'.repeat(call.bytes >> 1),
      ...(asked !== undefined && { asked }),
      ...out.number(),
    })
  if (call.fault === 'wrong-id') return out.answer({ ...answer(), id: `lost-${call.token}` })
  if (call.fault === 'string-id') return out.answer({ ...answer(), id: typeof id === 'number' ? String(id) : 0 })
  if (call.fault === 'duplicate') out.answer(answer(), true)
  if (call.fault !== undefined && out.fault(call.fault, answer)) return undefined
  return out.answer(answer())
}

async function ask(out, { token }) {
  const id = `ask-${token}`
  const request = { jsonrpc: '2.0', id, method: 'sampling/createMessage', params: { token, ...out.number() } }
  const answer = await Promise.race([out.ask(request), sleep(ASK_MS, undefined, { ref: false })])
  return answer?.result?.token ?? answer?.error?.code ?? null
}

/** The requests of a server that wait for their answers, and those of its client that may be cancelled. */
export class Desk {
  #asked = new Map()
  #open = new Map()

  ask(request, send) {
    const answer = new Promise((resolve) => this.#asked.set(request.id, resolve))
    send(request)
    return answer
  }

  answer(message) {
    this.#asked.get(message.id)?.(message)
    this.#asked.delete(message.id)
  }

  /** A request of the client has come: gives its signal. */
  open(id) {
    const controller = new AbortController()
    const key = keyOf(id)
    this.#open.set(key, controller)
    return { signal: controller.signal, done: () => this.#open.get(key) === controller && this.#open.delete(key) }
  }

  cancel(id) {
    this.#open.get(keyOf(id))?.abort()
  }
}

function keyOf(id) {
  return `${typeof id}:${id}`
}

/** Resolves when a signal is aborted. */
export function aborted(signal) {
  return new Promise((resolve) => {
    if (signal.aborted) resolve(undefined)
    else signal.addEventListener('abort', () => resolve(undefined), { once: true })
  })
}
