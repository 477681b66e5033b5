/** Milliseconds. */
const PATIENCE = 1_000

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
