import { afterEach, expect, test } from 'vitest'
import { omproxy, type Running } from '../fixtures/command.js'
import { type Far, relay, request, result } from '../fixtures/relay.js'

const MiB = 1 << 20

let run: Running
let far: Far
let close = () => {}

async function start(...options: string[]) {
  const server = await relay()
  close = server.close
  run = omproxy(['stdio', ...options, '--', ...server.command])
  far = await server.far
}

afterEach(() => {
  run.kill()
  close()
  expect(run.odd).toEqual([])
})

const padded = (frame: object, size: number) => {
  const text = JSON.stringify({ ...frame, padding: '' })
  return Buffer.concat([Buffer.from(text.slice(0, -2)), Buffer.alloc(size - text.length, 'x'), Buffer.from('"}')])
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const before = performance.now()
  await work()
  return performance.now() - before
}

/** A call of `size` bytes and an answer of the same size; gives the milliseconds of each. */
async function roundTrip(id: number, size: number) {
  const [call, answer] = [padded(request(id), size), padded(result(id), size)]
  const [calls, answers] = [far.lines.length, run.lines.length]
  const there = await timed(() => {
    run.send(call)
    return far.until(calls + 1)
  })
  const back = await timed(() => {
    far.send(answer)
    return run.until(answers + 1)
  })
  expect(far.lines[calls]!.equals(call)).toBe(true)
  expect(run.lines[answers]!.equals(answer)).toBe(true)
  return { there, back }
}

test('a message of 48 MiB takes time in proportion to its size, both ways', async () => {
  await start()
  await roundTrip(1, 6 * MiB)
  const small = await roundTrip(2, 6 * MiB)
  const large = await roundTrip(3, 48 * MiB)
  const ratio = { there: large.there / small.there, back: large.back / small.back }
  console.info('48 MiB to 6 MiB (8 is linear):', ratio, { small, large })
  // Quadratic would be 64; a busy machine is not.
  expect(Math.max(ratio.there, ratio.back)).toBeLessThan(40)
  expect(await run.end()).toEqual({ code: 0, signal: null })
}, 60_000)

const tooLarge = (id: number | undefined, phase: string) => ({
  jsonrpc: '2.0',
  ...(id === undefined ? {} : { id }),
  error: {
    code: -31007,
    message: expect.stringContaining('too large'),
    data: { source: 'proxy', reason: 'too_large', phase, retryable: false },
  },
})

test('a message over 64 MiB is refused, either way, and the session goes on', async () => {
  await start()
  run.send(padded(request(1), 65 * MiB))
  await run.until(1)
  run.send(request(2), request(3))
  await far.until(2)
  far.send(padded(result(2), 65 * MiB))
  await run.until(2)
  far.send(result(3))
  await run.until(3)
  expect(await run.end()).toEqual({ code: 0, signal: null })
  expect(run.messages()).toEqual([tooLarge(1, 'not_sent'), tooLarge(2, 'sent'), result(3)])
  expect(far.lines.map((line) => JSON.parse(line.toString()))).toEqual([request(2), request(3)])
}, 60_000)
