import { isDeepStrictEqual } from 'node:util'
import type { Application } from '../application.js'
import type { Middleware } from '../context.js'
import type { Reloadable } from '../reload.js'
import { UsageError } from '../values.js'
import { readConfig } from './file.js'
import { type Configuration, type SettleOptions, settle } from './settle.js'
import { StackLoader } from './stack.js'

export interface OpenOptions extends SettleOptions {
  /** @default the `proxy.config.{ts,js,json}` of the directory */
  file?: string
  directory: string
}

/** A configuration file, and the stack that was made of it. */
export class ConfigStack implements Reloadable {
  readonly #options: OpenOptions
  readonly #loader = new StackLoader()
  #before: readonly Middleware[] = []
  #now: Configuration

  private constructor(options: OpenOptions, now: Configuration) {
    this.#options = options
    this.#now = now
  }

  /**
   * Reads the file that is named, else the one that is there; undefined where there is none.
   * @throws (rejects) `UsageError`: the file, the path in it, what was expected and what came
   */
  static async open(options: OpenOptions): Promise<ConfigStack | undefined> {
    const content = await readConfig(options.file, options.directory)
    return content && new ConfigStack(options, settle(content, options))
  }

  get configuration(): Configuration {
    return this.#now
  }

  /** The file, and those of the user's that its stack names. */
  get files(): string[] {
    return [this.#now.path, ...this.#loader.files]
  }

  /**
   * Puts the stack in, behind what always stands before it.
   * @throws (rejects) `UsageError` where a middleware cannot be made
   */
  begin(app: Application, before: readonly Middleware[]): Promise<void> {
    this.#before = before
    return this.#loader.load(this.#now, (stack) => void app.use(...before, ...stack))
  }

  async reload(app: Application): Promise<string[]> {
    const content = await readConfig(this.#now.path, this.#options.directory)
    if (!content) throw new UsageError(`expected ${this.#now.path}, it is gone`)
    const next = settle(content, this.#options)
    await this.#loader.load(next, (stack) => app.replace(...this.#before, ...stack))
    const before = this.#now
    this.#now = next
    const parts = { upstream: 'upstream', http: 'listen', logLevel: 'logLevel' } as const
    return Object.entries(parts).flatMap(([part, name]) =>
      isDeepStrictEqual(before[part as keyof typeof parts], next[part as keyof typeof parts]) ? [] : name,
    )
  }
}
