import { createConnection, createServer, type Server, type Socket } from 'node:net'
import { setImmediate as nextTurn, setTimeout as sleep } from 'node:timers/promises'
import { Random } from './random.js'

/** What may be wrong with a network. */
export type Toxic =
  /** Every chunk comes late. */
  | { type: 'latency'; milliseconds: number; jitter: number }
  /** So many bytes pass in a second. */
  | { type: 'bandwidth'; bytes: number }
  /** The end of a connection comes late. */
  | { type: 'slow-close'; milliseconds: number }
  /** Nothing passes; what was held is lost when the toxic goes. */
  | { type: 'black-hole' }
  /** Connections are reset at their next byte. */
  | { type: 'reset' }
  /** Bytes come in chunks of a few. */
  | { type: 'slicer'; bytes: number }
  /** Connections are cut after so many bytes. */
  | { type: 'limit'; bytes: number }
  /** Nobody is there. */
  | { type: 'down' }

/** A TCP proxy that harms what passes through it, as it is told at the moment. */
export class ToxicProxy {
  readonly #target: number
  readonly #random: Random
  readonly #sockets = new Set<Socket>()
  #server: Server | undefined
  #port = 0
  #toxic: Toxic | undefined
  /** Resolves when another toxic is set. */
  #changed!: Promise<void>
  #change!: () => void

  constructor(target: number, seed: number) {
    this.#target = target
    this.#random = new Random(seed)
    this.#renew()
  }

  get port(): number {
    return this.#port
  }

  async listen(): Promise<this> {
    for (let tries = 0; ; tries++) {
      const server = createServer({ allowHalfOpen: true }, (socket) => this.#join(socket))
      try {
        await new Promise<void>((resolve, reject) => {
          server.once('error', reject)
          server.listen(this.#port, '127.0.0.1', resolve)
        })
        this.#server = server
        this.#port = (server.address() as { port: number }).port
        return this
      } catch (error) {
        // Somebody's outgoing connection may have taken the port while we were down.
        if (tries === 100) throw error
        await sleep(50)
      }
    }
  }

  async set(toxic?: Toxic): Promise<void> {
    const before = this.#toxic
    this.#toxic = toxic
    const change = this.#change
    this.#renew()
    change()
    // Whoever waits in a black hole is not to wait for ever.
    if (before?.type === 'black-hole' || toxic?.type === 'down') this.#cut()
    if (toxic?.type === 'down') await this.#unlisten()
    else if (!this.#server) await this.listen()
  }

  async close(): Promise<void> {
    this.#change()
    const unlistened = this.#unlisten()
    this.#cut()
    await unlistened
  }

  #renew(): void {
    this.#changed = new Promise((resolve) => {
      this.#change = resolve
    })
  }

  #cut(): void {
    for (const socket of this.#sockets) reset(socket)
  }

  #unlisten(): Promise<void> {
    const server = this.#server
    this.#server = undefined
    return new Promise((resolve) => (server ? server.close(() => resolve()) : resolve()))
  }

  #join(near: Socket): void {
    if (!this.#server) {
      near.destroy()
      return
    }
    const far = createConnection({ port: this.#target, host: '127.0.0.1', allowHalfOpen: true })
    for (const [socket, other] of [
      [near, far],
      [far, near],
    ] as const) {
      this.#sockets.add(socket)
      socket.setNoDelay(true)
      socket.on('error', () => {})
      socket.once('close', () => {
        this.#sockets.delete(socket)
        if (!other.destroyed && !socket.readableEnded) reset(other)
      })
    }
    const passed = { bytes: 0 }
    void this.#flow(near, far, passed)
    void this.#flow(far, near, passed)
  }

  async #flow(from: Socket, to: Socket, passed: { bytes: number }): Promise<void> {
    try {
      for await (const chunk of from.iterator({ destroyOnReturn: false })) {
        if (!(await this.#pass(chunk as Buffer, from, to, passed))) return
      }
      if (this.#toxic?.type === 'slow-close') await sleep(this.#toxic.milliseconds)
      to.end()
    } catch {
      to.destroy()
    }
  }

  /** Tells whether the connection still stands. */
  async #pass(chunk: Buffer, from: Socket, to: Socket, passed: { bytes: number }): Promise<boolean> {
    const toxic = this.#toxic
    passed.bytes += chunk.length
    switch (toxic?.type) {
      case 'latency':
        await sleep(toxic.milliseconds + this.#random.next() * toxic.jitter)
        break
      case 'bandwidth':
        for (let at = 0; at < chunk.length; at += 1024) {
          await sleep((1024 / toxic.bytes) * 1_000)
          if (!(await write(to, chunk.subarray(at, at + 1024)))) return false
        }
        return true
      case 'slicer':
        for (let at = 0; at < chunk.length; at += toxic.bytes) {
          if (!(await write(to, chunk.subarray(at, at + toxic.bytes)))) return false
          await nextTurn()
        }
        return true
      case 'black-hole':
        await this.#changed
        return false
      case 'reset':
        reset(from)
        reset(to)
        return false
      case 'limit':
        if (passed.bytes <= toxic.bytes) break
        await write(to, chunk.subarray(0, Math.max(0, chunk.length - (passed.bytes - toxic.bytes))))
        from.destroy()
        to.destroy()
        return false
    }
    return write(to, chunk)
  }
}

/** As a network does that fails: at once, whatever is still to be written. */
export function reset(socket: Socket): void {
  // Node loses the handle of a socket that is reset while something is still to be written, or behind its end (libuv: EINVAL).
  if (!socket.writableEnded && socket.writableLength === 0 && !socket.destroyed) socket.resetAndDestroy()
  socket.destroy()
}

async function write(to: Socket, chunk: Buffer): Promise<boolean> {
  if (to.destroyed || to.writableEnded) return false
  if (to.write(chunk)) return true
  await new Promise<void>((resolve) => {
    const go = () => {
      to.off('drain', go).off('close', go)
      resolve()
    }
    to.on('drain', go).on('close', go)
  })
  return !to.destroyed
}
