import { stat, unwatchFile, watchFile } from 'node:fs'
import type { Application } from './application.js'
import type { Level } from './config.js'
import { messageOf } from './error.js'
import type { Session } from './session.js'

/** Milliseconds between two looks at a file. */
const POLL = 200
/** Milliseconds without a further change after which a file counts as written. */
const SETTLED = 100
const LISTS = ['tools', 'prompts', 'resources'] as const

/** What can be made anew while it serves. */
export interface Reloadable {
  /** Puts a new stack in; resolves with what only a new start changes. Rejects where the old one stays. */
  reload(app: Application): Promise<string[]>
  /** What it is made of. */
  readonly files: readonly string[]
}

export type Log = (level: Level, text: string) => void

/** Makes a stack anew, one time after the other, on demand and, if asked for, when a file changes. */
export class Reloader {
  readonly #app: Application
  readonly #live: Reloadable
  readonly #log: Log
  readonly #sessions = new Set<Session>()
  readonly #watched = new Set<string>()
  #settling: NodeJS.Timeout | undefined
  #isRunning = false
  #again = false
  #isClosed = false

  constructor(app: Application, live: Reloadable, log: Log) {
    this.#app = app
    this.#live = live
    this.#log = log
    app.on('session', (session) => {
      this.#sessions.add(session)
      session.signal.addEventListener('abort', () => this.#sessions.delete(session), { once: true })
    })
  }

  /** By looking: a name that a rename, a new link or a mount gave to another file sends no event everywhere. */
  watch(since = Date.now()): void {
    for (const file of this.#live.files) {
      if (this.#watched.has(file)) continue
      this.#watched.add(file)
      // Where the client is on stdin, the process ends by itself.
      watchFile(file, { persistent: false, interval: POLL }, () => this.#changed())
      // The first look shows no change of what was written between its being read and that look.
      setTimeout(() => {
        stat(file, (_, stats) => {
          if (stats && stats.mtimeMs > since) this.#changed()
        })
      }, POLL).unref()
    }
  }

  #changed(): void {
    clearTimeout(this.#settling)
    this.#settling = setTimeout(() => this.reload(), SETTLED).unref()
  }

  /** While one is under way, one more follows it. */
  reload(): void {
    if (this.#isClosed) return
    if (this.#isRunning) this.#again = true
    else {
      this.#isRunning = true
      void this.#reload().finally(() => {
        this.#isRunning = false
        if (this.#again) this.reload()
      })
    }
  }

  /** Ends the watch. What is under way is left to end by itself: a `start` may take as long as it likes. */
  close(): void {
    clearTimeout(this.#settling)
    for (const file of this.#watched) unwatchFile(file)
    this.#isClosed = true
  }

  async #reload(): Promise<void> {
    const since = Date.now()
    this.#again = false
    try {
      const pending = await this.#live.reload(this.#app)
      const later = pending.length > 0 ? `; ${pending.join(' and ')}: from the next start on` : ''
      this.#log('warn', `reloaded the stack${later}`)
      this.#tell()
    } catch (error) {
      this.#log('error', `${messageOf(error)}; the old stack stays`)
    }
    if (this.#watched.size > 0) this.watch(since)
  }

  /** What a client has listed may look different now. A modern one learns it from the hints of what it cached. */
  #tell(): void {
    for (const session of this.#sessions) {
      if (session.era !== 'legacy' || session.protocolVersion === undefined) continue
      // Nobody waits for a client that does not read, or has left.
      for (const list of LISTS) session.notify('client', `notifications/${list}/list_changed`).catch(() => {})
    }
  }
}
