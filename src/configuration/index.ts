import { isDeepStrictEqual } from 'node:util'
import type { Application } from '../application.js'
import type { Middleware } from '../context.js'
import type { Reloadable } from '../reload.js'
import { UsageError } from '../values.js'
import { readConfig } from './file.js'
import { type Configuration, type SettleOptions, settle } from './settle.js'
import { filesOf, StackLoader } from './stack.js'

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
  /** What the process was started with, of which its upstream and its listener are. */
  readonly #started: Configuration
  /** What the file said last, whether or not a stack could be made of it. */
  #read: Configuration

  private constructor(options: OpenOptions, started: Configuration) {
    this.#options = options
    this.#started = started
    this.#read = started
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
    return this.#started
  }

  /** The file, and those of the user's that its stack names; what these import is not known. */
  get files(): string[] {
    return [this.#read.path, ...filesOf(this.#read)]
  }

  /**
   * Puts the stack in, behind what always stands before it.
   * @throws (rejects) `UsageError` where a middleware cannot be made
   */
  begin(app: Application, before: readonly Middleware[]): Promise<void> {
    this.#before = before
    return this.#loader.load(this.#started, (stack) => void app.use(...before, ...stack))
  }

  async reload(app: Application): Promise<string[]> {
    const { path } = this.#started
    const content = await readConfig(path, this.#options.directory)
    if (!content) throw new UsageError(`expected ${path}, it is gone`)
    const next = settle(content, this.#options)
    this.#read = next
    await this.#loader.load(next, (stack) => app.replace(...this.#before, ...stack))
    const parts = { upstream: 'upstream', http: 'listen', logLevel: 'logLevel' } as const
    return Object.entries(parts).flatMap(([part, name]) =>
      isDeepStrictEqual(this.#started[part as keyof typeof parts], next[part as keyof typeof parts]) ? [] : name,
    )
  }
}
