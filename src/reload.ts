import type { FSWatcher } from 'chokidar'
import type { Application } from './application.js'
import type { Level } from './config.js'
import type { Session } from './session.js'

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

type Log = (level: Level, text: string) => void

/** Makes a stack anew, one time after the other, on demand and, if asked for, when a file changes. */
export class Reloader {
  readonly #app: Application
  readonly #live: Reloadable
  readonly #log: Log
  readonly #sessions = new Set<Session>()
  #watcher: FSWatcher | undefined
  #running: Promise<void> | undefined
  #again = false

  constructor(app: Application, live: Reloadable, log: Log) {
    this.#app = app
    this.#live = live
    this.#log = log
    app.on('session', (session) => {
      this.#sessions.add(session)
      session.signal.addEventListener('abort', () => this.#sessions.delete(session), { once: true })
    })
  }

  async watch(): Promise<void> {
    const { watch } = await import('chokidar')
    this.#watcher = watch([...this.#live.files], {
      // Where the client is on stdin, the process ends by itself.
      persistent: false,
      ignoreInitial: true,
      awaitWriteFinish: { stabilityThreshold: SETTLED, pollInterval: SETTLED / 4 },
    }).on('all', () => this.reload())
  }

  /** While one is under way, one more follows it. */
  reload(): void {
    if (this.#running) this.#again = true
    else {
      this.#running = this.#reload().finally(() => {
        this.#running = undefined
        if (this.#again) this.reload()
      })
    }
  }

  async close(): Promise<void> {
    await this.#watcher?.close()
    await this.#running
  }

  async #reload(): Promise<void> {
    this.#again = false
    try {
      const pending = await this.#live.reload(this.#app)
      this.#watcher?.add([...this.#live.files])
      const later = pending.length > 0 ? `; ${pending.join(' and ')}: from the next start on` : ''
      this.#log('warn', `reloaded the stack${later}`)
      await this.#tell()
    } catch (error) {
      this.#log('error', `${error instanceof Error ? error.message : String(error)}; the old stack stays`)
    }
  }

  /** What a client has listed may look different now. A modern one learns it from the hints of what it cached. */
  async #tell(): Promise<void> {
    for (const session of this.#sessions) {
      if (session.era !== 'legacy' || session.protocolVersion === undefined) continue
      const told = LISTS.map((list) => session.notify('client', `notifications/${list}/list_changed`))
      await Promise.allSettled(told)
    }
  }
}
