import { STRINGS } from './compiled.js'

/** What is used of it: its types come with the DOM only. */
interface WebAssembly {
  Module: new (bytes: Uint8Array) => object
  Instance: new (module: object) => { exports: object }
}

/** See `strings.as`. */
interface Strings {
  memory: { buffer: ArrayBuffer }
  endOfString(length: number, first: boolean): number
}

/** The module's memory: one page. */
const PAGE = 64 * 1024
/** Strings are looked through in blocks, the first of this size: whether they are long shows in the end only. */
const FIRST_BLOCK = 1024

let strings: Strings | undefined
let page = new Uint8Array()
let isUnable = false

/**
 * The offset after the JSON string whose inside goes on at `at`, where no escape is under way; -1 where the string is no
 * JSON or does not end, or nothing can be said. The faster the longer it is.
 */
export function endOfString(bytes: Uint8Array, at: number): number {
  strings ??= load()
  if (strings === undefined) return -1
  let size = FIRST_BLOCK
  for (let from = at; from < bytes.length; from += size, size = PAGE) {
    const block = bytes.subarray(from, from + size)
    page.set(block)
    const end = strings.endOfString(block.length, from === at)
    if (end >= 0) return from + end + 1
    if (end < -1) return -1
  }
  return -1
}

/** Compiled when it is needed first. There may be no WebAssembly (`--jitless`). */
function load(): Strings | undefined {
  if (isUnable) return undefined
  try {
    const { Module, Instance } = (globalThis as unknown as { WebAssembly: WebAssembly }).WebAssembly
    const loaded = new Instance(new Module(Buffer.from(STRINGS, 'base64'))).exports as Strings
    page = new Uint8Array(loaded.memory.buffer)
    return loaded
  } catch {
    isUnable = true
    return undefined
  }
}
