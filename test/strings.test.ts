import { readFileSync } from 'node:fs'
import asc from 'assemblyscript/asc'
import fc from 'fast-check'
import { afterEach, describe, expect, test, vi } from 'vitest'
import { endOfString } from '../src/strings.js'

const source = new URL('../src/strings.as', import.meta.url)

/** The module that strings.as makes, as text. */
async function compiled(): Promise<string> {
  let binary: Uint8Array = new Uint8Array()
  const options =
    '--enable simd --optimizeLevel 3 --noAssert --runtime stub --initialMemory 1 --maximumMemory 1 --outFile strings.wasm'
  const { error, stderr } = await asc.main(['strings.ts', ...options.split(' ')], {
    readFile: (name) => (name === 'strings.ts' ? readFileSync(source, 'utf8') : null),
    writeFile: (_name, bytes) => {
      binary = bytes as Uint8Array
    },
    listFiles: () => [],
  })
  if (error) throw new Error(`${error.message}\n${stderr}`)
  return Buffer.from(binary).toString('base64')
}

test('what runs is what strings.as says: "npm run compile" brings it up to date', async () => {
  const text = `/** Made of strings.as by "npm run compile". */\nexport const STRINGS =\n  '${await compiled()}'\n`
  await expect(text).toMatchFileSnapshot('../src/compiled.ts')
}, 60_000)

afterEach(() => {
  vi.unstubAllGlobals()
  vi.resetModules()
})

/** Where `JSON.parse` would say that the string ends; -1 where it would refuse it. */
function parsed(inside: string): number {
  const end = /^(?:[^"\\]|\\.)*"/s.exec(inside)?.[0]
  if (end === undefined) return -1
  try {
    JSON.parse(`"${end}`)
    return Buffer.byteLength(end)
  } catch {
    return -1
  }
}

describe('endOfString', () => {
  test('finds the end of exactly the strings that JSON.parse takes, wherever an escape lies', () => {
    const odd = fc.constantFrom(
      ...['"', '\\', '\\\\', '\\"', '\\u12aF', '\\u12', '\\u', '\\x', '\\n', '\\/', '\u0000', '\u001f', '\u007f'],
      ...['é', '😀', '\\\\\\', '/', 'u', '\u00a2', '\u00dc'],
    )
    const near = fc.integer({ min: 0, max: 70 })
    // So that something lies on the border between two blocks of 64 bytes, or between two of the text.
    const far = fc.integer({ min: 1, max: 12 }).map((back) => 1024 - back)
    const pad = fc.oneof({ arbitrary: near, weight: 4 }, far).map((length) => 'x'.repeat(length))
    fc.assert(
      fc.property(fc.array(fc.oneof(pad, odd), { maxLength: 12 }), fc.nat(9), (parts, before) => {
        const inside = parts.join('')
        const frame = Buffer.from('\\'.repeat(before) + inside)
        const end = parsed(inside)
        expect([inside, endOfString(frame, before)]).toEqual([inside, end < 0 ? -1 : before + end])
      }),
      { numRuns: 20_000 },
    )
  })

  test.each([65_536, 1024 + 65_536, 1024 + 2 * 65_536])('goes on over the border of a block at %i', (border) => {
    for (let back = 0; back < 12; back++) {
      const pad = 'x'.repeat(border - back)
      for (const inside of [`${pad}\\u00e9\\\\\\""x`, `${pad}\\\\\\\\\\\\""`, `${pad}\\u12x4"`, `${pad}\\x"`, pad]) {
        expect([back, endOfString(Buffer.from(inside), 0)]).toEqual([back, parsed(inside)])
      }
    }
  })

  test('takes every byte for what it is, alone and escaped', () => {
    for (let byte = 0; byte < 256; byte++) {
      for (const before of ['', '\\', '\\u00', '\\\\']) {
        const inside = Buffer.concat([
          Buffer.from(`${'x'.repeat(40)}${before}`),
          Buffer.from([byte]),
          Buffer.from('00"'),
        ])
        const text = inside.toString('latin1')
        expect([byte, before, endOfString(inside, 0)]).toEqual([byte, before, parsedBytes(text)])
      }
    }
  })

  test('says nothing where there is no WebAssembly', async () => {
    vi.stubGlobal('WebAssembly', undefined)
    const { endOfString } = await import('../src/strings.js')
    expect(endOfString(Buffer.from('xxx"'), 0)).toBe(-1)
  })
})

/** The same for text of one byte per character. */
function parsedBytes(inside: string): number {
  const end = /^(?:[^"\\]|\\.)*"/s.exec(inside)?.[0]
  if (end === undefined) return -1
  try {
    JSON.parse(`"${end}`)
    return end.length
  } catch {
    return -1
  }
}
