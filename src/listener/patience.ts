/** Milliseconds after which a client that takes nothing of what waits for it is cut off. */
export const READ_TIMEOUT = 30_000
/** Milliseconds that a client has to read on when its session ends. */
export const LAST_READ = 2_000

/** Why a client was cut off. */
export function deaf(milliseconds: number): Error {
  return new Error(`the client was cut off: it has read nothing for ${milliseconds / 1_000} s`)
}
