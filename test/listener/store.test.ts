import { MemoryEventStore } from 'open-mcp-proxy'
import { describe, expect, it } from 'vitest'

const frame = (text: string) => Buffer.from(text)
const texts = ({ events }: { events: readonly { seq: number; frame: Uint8Array }[] }) =>
  events.map(({ seq, frame }) => `${seq} ${Buffer.from(frame)}`)

describe('MemoryEventStore', () => {
  it('gives the events of a stream behind one of them, in order, and no others', () => {
    const store = new MemoryEventStore()
    store.append('a', 's', { seq: 1, frame: frame('one') })
    store.append('a', 't', { seq: 1, frame: frame('other stream') })
    store.append('b', 's', { seq: 1, frame: frame('other session') })
    store.append('a', 's', { seq: 2, frame: frame('two') })
    expect(texts(store.after('a', 's', 0))).toEqual(['1 one', '2 two'])
    expect(texts(store.after('a', 's', 1))).toEqual(['2 two'])
    expect(store.after('a', 's', 2)).toEqual({ complete: true, events: [] })
    expect(store.after('c', 's', 0)).toEqual({ complete: true, events: [] })
  })

  it('keeps a copy: what its caller does with the bytes is nothing to it', () => {
    const store = new MemoryEventStore()
    const bytes = frame('one')
    store.append('a', 's', { seq: 1, frame: bytes })
    bytes.fill(0)
    expect(texts(store.after('a', 's', 0))).toEqual(['1 one'])
  })

  it('lets the oldest go of a session over its bounds, and says that it did', () => {
    const byEvents = new MemoryEventStore({ maxSessionEvents: 2 })
    const byBytes = new MemoryEventStore({ maxSessionBytes: 6 })
    for (const store of [byEvents, byBytes]) {
      for (const seq of [1, 2, 3]) store.append('a', 's', { seq, frame: frame(`(${seq})`) })
      store.append('b', 's', { seq: 1, frame: frame('(b)') })
      expect(texts(store.after('a', 's', 0))).toEqual(['2 (2)', '3 (3)'])
      expect([0, 1].map((seq) => store.after('a', 's', seq).complete)).toEqual([false, true])
      expect(texts(store.after('b', 's', 0))).toEqual(['1 (b)'])
    }
  })

  it('lets the oldest of all go where all are too much', () => {
    const store = new MemoryEventStore({ maxBytes: 6 })
    store.append('a', 's', { seq: 1, frame: frame('(a)') })
    store.append('b', 's', { seq: 1, frame: frame('(b)') })
    store.append('c', 's', { seq: 1, frame: frame('(c)') })
    expect(['a', 'b', 'c'].map((session) => texts(store.after(session, 's', 0)))).toEqual([[], ['1 (b)'], ['1 (c)']])
    expect(store.bytes).toBe(6)
  })

  it('keeps the newest, however large: it may be the answer that a client comes back for', () => {
    const store = new MemoryEventStore({ maxSessionBytes: 2, maxBytes: 2 })
    store.append('a', 's', { seq: 1, frame: frame('(1)') })
    expect(texts(store.after('a', 's', 0))).toEqual(['1 (1)'])
    store.append('a', 's', { seq: 2, frame: frame('(2)') })
    expect([texts(store.after('a', 's', 0)), store.after('a', 's', 0).complete]).toEqual([['2 (2)'], false])
    store.append('b', 's', { seq: 1, frame: frame('(b)') })
    expect([store.after('a', 's', 0).events, store.bytes]).toEqual([[], 3])
  })

  it('forgets a stream', () => {
    const store = new MemoryEventStore()
    for (const stream of ['s', 't']) store.append('a', stream, { seq: 1, frame: frame('(a)') })
    store.append('b', 's', { seq: 1, frame: frame('(b)') })
    store.forget('a', 's')
    expect(['s', 't'].map((stream) => store.after('a', stream, 0).events.length)).toEqual([0, 1])
    store.forget('a', 't')
    store.forget('nobody', 's')
    expect([store.after('a', 't', 0).events, store.bytes]).toEqual([[], 3])
  })
})
