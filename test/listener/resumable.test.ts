import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { type EventStore, MemoryEventStore } from 'open-mcp-proxy'
import { describe, expect, it, vi } from 'vitest'
import { EventStream } from '../../src/listener/reply.js'
import { parseEventId, ResumableStream } from '../../src/listener/resumable.js'
import { closing } from '../fixtures/closing.js'
import { type Answer, get } from '../fixtures/port.js'

/** A stream in the hands of the test, and how to read it. */
async function resumable(store: EventStore = new MemoryEventStore()) {
  const losses: string[] = []
  const stream = new ResumableStream('s', { store, session: 'a', onLoss: ({ message }) => losses.push(message) })
  const attached: Promise<void>[] = []
  /** What a reader is given, as it was known a moment ago. */
  const known: ReturnType<typeof stream.behind>[] = []
  const server = createServer(async (request, response) => {
    const seq = Number(request.headers['last-event-id'])
    const replay = await known.shift()
    attached.push(stream.attach(new EventStream(response, {}, { keepAlive: 60_000, readTimeout: 30_000 }), seq, replay))
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  closing.push(() => {
    server.close()
    server.closeAllConnections()
  })
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`
  return {
    stream,
    losses,
    attached,
    known,
    read: (seq: number): Promise<Answer> => get(url, { 'last-event-id': String(seq) }),
  }
}

const say = (stream: ResumableStream, ...numbers: number[]) => {
  for (const n of numbers) stream.message(Buffer.from(String(n)))
}

/** A store that takes its time. */
class Slow implements EventStore {
  readonly #memory = new MemoryEventStore()
  async append(...args: Parameters<MemoryEventStore['append']>) {
    await new Promise(setImmediate)
    this.#memory.append(...args)
  }
  async after(...args: Parameters<MemoryEventStore['after']>) {
    await new Promise(setImmediate)
    return this.#memory.after(...args)
  }
  async forget(...args: Parameters<MemoryEventStore['forget']>) {
    await new Promise(setImmediate)
    this.#memory.forget(...args)
  }
}

describe.each([
  ['at once', () => new MemoryEventStore()],
  ['in its own time', () => new Slow()],
])('a store that answers %s', (_when, make) => {
  it('what was said before comes first, then what comes, each once and in order', async () => {
    const { stream, attached, read } = await resumable(make())
    say(stream, 1, 2)
    const reading = read(0)
    await vi.waitFor(() => expect(attached).toHaveLength(1))
    // While it is still being told of the first.
    say(stream, 3, 4)
    await attached[0]
    say(stream, 5)
    stream.finish()
    const answer = await reading
    await answer.text
    expect(answer.heard).toEqual([1, 2, 3, 4, 5].map((n) => ({ id: `s-${n}`, data: String(n) })))
  })

  it('a second reader ends the first, and goes on behind what it has seen', async () => {
    const { stream, attached, read } = await resumable(make())
    const first = await read(0)
    say(stream, 1, 2)
    await first.until(2)
    const second = await read(1)
    await first.text
    await attached[1]
    say(stream, 3)
    expect([first.messages(), await second.until(2)]).toEqual([
      [1, 2],
      [2, 3],
    ])
  })

  it('a reader that is gone while it is told leaves the rest to the next', async () => {
    const { stream, attached, read } = await resumable(make())
    say(stream, 1)
    const first = await read(0)
    await first.until(1)
    first.leave()
    await vi.waitFor(() => expect(stream.isRead).toBe(false))
    say(stream, 2)
    const second = await read(1)
    expect(await second.until(1)).toEqual([2])
    expect(attached).toHaveLength(2)
  })
})

describe('a stream', () => {
  it('does not say what was withdrawn, and cannot withdraw what was said', async () => {
    const { stream, read } = await resumable()
    say(stream, 1, 2, 3)
    expect(stream.withdraw(2)).toBe(true)
    const reader = await read(0)
    expect(await reader.until(2)).toEqual([1, 3])
    expect(stream.withdraw(3)).toBe(false)
  })

  it('goes on without a store that fails, and says so', async () => {
    const broken: EventStore = {
      append: () => Promise.reject(new Error('disk full')),
      after: () => {
        throw new Error('disk gone')
      },
      forget: () => Promise.reject(new Error('disk gone')),
    }
    const { stream, losses, read } = await resumable(broken)
    const reader = await read(0)
    say(stream, 1)
    expect(await reader.until(1)).toEqual([1])
    expect(await stream.behind(0)).toEqual({ complete: false, events: [], upTo: 1 })
    stream.forget()
    await vi.waitFor(() => expect(losses).toEqual(['disk full', 'disk gone', 'disk gone']))
  })

  it('loses nothing of what comes while the store is asked', async () => {
    const { stream, read, attached, known } = await resumable(new Slow())
    say(stream, 1)
    known.push(stream.behind(0))
    say(stream, 2)
    const reader = await read(0)
    say(stream, 3)
    await attached[0]
    stream.finish()
    await reader.text
    expect(reader.messages()).toEqual([1, 2, 3])
  })

  it('takes a store that gives no promise for one that has kept', async () => {
    const list: unknown[] = []
    const plain = {
      append: (_a: string, _b: string, event: unknown) => list.push(event),
      after: () => ({ complete: true, events: [] }),
      forget: () => {},
    }
    const { stream, losses, read } = await resumable(plain as unknown as EventStore)
    const reader = await read(0)
    say(stream, 1)
    expect([await reader.until(1), list.length, losses]).toEqual([[1], 1, []])
  })

  it('does not wait for a store that does not answer, nor keep for it without end', async () => {
    const hanging: EventStore = {
      append: () => new Promise(() => {}),
      after: () => new Promise(() => {}),
      forget: () => new Promise(() => {}),
    }
    const { stream, losses, read } = await resumable(hanging)
    const reader = await read(0)
    const frame = Buffer.from(JSON.stringify('x'.repeat(300_000)))
    for (let n = 0; n < 8; n++) stream.message(frame)
    expect(await reader.until(8)).toHaveLength(8)
    expect(losses).toEqual(['the event store is too far behind to keep events'])
    expect(await stream.behind(0)).toEqual({ complete: false, events: [], upTo: 8 })
    await stream.forget()
    const late = 'the event store did not answer in time'
    expect(losses.slice(1)).toEqual([late, late])
  })

  it('tells of what was let go, and says what is left', async () => {
    const { stream, losses, read } = await resumable(new MemoryEventStore({ maxSessionEvents: 1 }))
    say(stream, 1, 2)
    const reader = await read(0)
    expect(await reader.until(1)).toEqual([2])
    expect(losses).toEqual(['events that a client has not seen were not kept'])
  })

  it('knows nothing behind an event that it has not said yet', async () => {
    const { stream } = await resumable()
    say(stream, 1)
    expect([await stream.behind(1), await stream.behind(2)]).toEqual([
      { complete: true, events: [], upTo: 1 },
      undefined,
    ])
  })
})

describe('parseEventId', () => {
  it.each([
    ['0-0', { stream: '0', seq: 0 }],
    ['1a-12', { stream: '1a', seq: 12 }],
    ['1a-12.3', { stream: '1a', seq: 12 }],
    ['', undefined],
    ['1', undefined],
    ['A-1', undefined],
    ['1-1e3', undefined],
    ['1--1', undefined],
    ['1-9999999999999999', undefined],
    ['__proto__-1', undefined],
  ])('%j', (text, expected) => {
    expect(parseEventId(text)).toEqual(expected)
  })
})
