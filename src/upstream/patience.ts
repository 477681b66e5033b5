import { setTimeout as sleep } from 'node:timers/promises'

/** Milliseconds. */
const PATIENCE = 1_000
/** Milliseconds that others have to be told of a lost session by their own answers. */
const LAST_WORD = 250

/**
 * Resolves when the server has taken a message that has no answer, or takes long over it: it may want an answer to a
 * request of its own first, which must not wait behind this message. What goes wrong later is told to `onLate`.
 */
export function patiently(taken: Promise<void>, onLate: (error: Error) => void): Promise<void> {
  return new Promise((resolve, reject) => {
    let late = false
    const timer = setTimeout(() => {
      late = true
      resolve()
    }, PATIENCE).unref()
    taken.then(resolve, (error: Error) => (late ? onLate(error) : reject(error))).finally(() => clearTimeout(timer))
  })
}

/** Resolves when all have settled, or soon. */
export async function settledSoon(those: Iterable<Promise<unknown>>): Promise<void> {
  await Promise.race([Promise.allSettled(those), sleep(LAST_WORD, undefined, { ref: false })])
}
