import type { ClientPlan, Step } from './client.js'
import type { ClientKind, Script } from './history.js'
import { Random, seedOf } from './random.js'
import type { Toxic } from './toxic.js'

export type UpstreamKind = 'stdio' | 'http' | 'sse' | 'detect'
export type ListenerKind = 'in process' | 'command' | 'port'

/** A way through the proxy. */
export interface Row {
  name: string
  listener: ListenerKind
  upstream: UpstreamKind
  clients: readonly ClientKind[]
  /** Whether a lost upstream is to be replaced. @default as the listener has it */
  restart?: 'on-failure' | 'never'
}

/** Whether a lost upstream is replaced: a child that belongs to the one client of a process is not. */
export function isReplaced({ listener, upstream, restart }: Row): boolean {
  return (restart ?? (upstream === 'stdio' && listener !== 'port' ? 'never' : 'on-failure')) === 'on-failure'
}

const PORT: ClientKind[] = ['http', 'sse', 'modern']
const STDIO: ClientKind[] = ['stdio', 'stdio-modern']

export const rows: readonly Row[] = [
  { name: 'stdio to stdio', listener: 'in process', upstream: 'stdio', clients: ['stdio'] },
  { name: 'command to stdio', listener: 'command', upstream: 'stdio', clients: STDIO },
  { name: 'port to stdio', listener: 'port', upstream: 'stdio', clients: PORT },
  { name: 'stdio to http', listener: 'in process', upstream: 'http', clients: STDIO },
  { name: 'port to http', listener: 'port', upstream: 'http', clients: PORT },
  { name: 'stdio to sse', listener: 'in process', upstream: 'sse', clients: ['stdio'] },
  { name: 'port to sse', listener: 'port', upstream: 'sse', clients: ['http', 'sse'] },
  { name: 'modern to a pool', listener: 'port', upstream: 'stdio', clients: ['modern'] },
  { name: 'command to http', listener: 'command', upstream: 'http', clients: STDIO },
  { name: 'modern to modern', listener: 'port', upstream: 'http', clients: ['modern'] },
  { name: 'legacy to http', listener: 'port', upstream: 'detect', clients: ['http', 'sse'] },
  {
    name: 'stdio to stdio, replaced',
    listener: 'in process',
    upstream: 'stdio',
    clients: STDIO,
    restart: 'on-failure',
  },
  { name: 'command to stdio, replaced', listener: 'command', upstream: 'stdio', clients: STDIO, restart: 'on-failure' },
  { name: 'port to stdio, not replaced', listener: 'port', upstream: 'stdio', clients: PORT, restart: 'never' },
  { name: 'stdio to http, not replaced', listener: 'in process', upstream: 'http', clients: STDIO, restart: 'never' },
  { name: 'port to sse, not replaced', listener: 'port', upstream: 'sse', clients: ['http', 'sse'], restart: 'never' },
]

/** A toxic, and when it is there: milliseconds from the beginning of a wave. */
export interface Spell {
  side: 'upstream' | 'client'
  from: number
  to: number
  toxic: Toxic
}

export interface StagePlan {
  seed: number
  index: number
  row: Row
  /** Nothing but single requests fails. */
  isCalm: boolean
  /** A middleware that holds messages for a moment: whether there is one. */
  isHeld: boolean
  waves: { clients: ClientPlan[]; spells: Spell[] }[]
}

/** Everything that is to happen in a stage: the same for the same seed. */
export function planOf(seed: number, index: number, from: readonly Row[] = rows): StagePlan {
  const random = new Random(seedOf(seed, index))
  const row = from[index % from.length] as Row
  const isCalm = random.chance(0.3)
  const isHeld = random.chance(0.3)
  const waves = Array.from({ length: random.int(1, 2) }, () => ({
    clients: Array.from({ length: random.int(1, row.listener === 'command' ? 2 : 4) }, () =>
      clientPlan(random, row, isCalm),
    ),
    spells: isCalm ? [] : spells(random, row),
  }))
  for (const { clients } of waves) spare(clients, row)
  return { seed, index, row, isCalm, isHeld, waves }
}

/** The wait for a new upstream doubles with each that is lost. */
const FATALITIES = 3

/** Of many losses in a row there is nothing to see but waiting. */
function spare(clients: readonly ClientPlan[], row: Row): void {
  let left = FATALITIES
  for (const { script } of clients.flatMap(({ steps }) => steps.flatMap((it) => (it.do === 'call' ? it : [])))) {
    if (FAULTS[row.upstream].fatal.includes(script.fault ?? '') && left-- <= 0) delete script.fault
  }
}

function clientPlan(random: Random, row: Row, isCalm: boolean): ClientPlan {
  const kind = random.pick(row.clients)
  const steps = Array.from({ length: random.int(8, 30) }, () => step(random, row, kind, isCalm))
  return { kind, steps, drains: random.chance(0.7) }
}

function step(random: Random, row: Row, kind: ClientKind, isCalm: boolean): Step {
  const what = random.weighted({
    call: 60,
    ask: 5,
    note: 12,
    pause: 6,
    twin: 4,
    garbage: 2,
    deafen: 2,
    drop: isCalm ? 0 : 3,
    leave: isCalm ? 0 : 3,
  })
  switch (what) {
    case 'call':
      return call(random, row, kind, isCalm)
    case 'ask':
      return { do: 'ask', method: kind === 'modern' || random.chance(0.5) ? 'tools/list' : 'ping' }
    case 'pause':
      return { do: 'pause', milliseconds: random.int(1, 60) }
    case 'twin':
      return { do: 'twin', script: {} }
    case 'garbage':
      return { do: 'garbage', text: random.pick(['{"jsonrpc":"2.0","id":1,', 'hello', '[]', '{"id":{}}', '"x"']) }
    case 'deafen':
      return { do: 'deafen', milliseconds: random.int(10, 300) }
    case 'drop':
      return { do: 'drop', back: random.chance(0.6) }
    case 'leave':
      return { do: 'leave', how: random.pick(['half', 'abrupt'] as const) }
    default:
      return { do: 'note' }
  }
}

/** Faults by the kind of the upstream; those of the second list end a session, or a server. */
const FAULTS: Record<UpstreamKind, { single: string[]; fatal: string[]; silent: string[] }> = {
  stdio: {
    single: ['error', 'duplicate', 'noise', 'slow', 'huge'],
    fatal: ['crash', 'exit', 'exit0', 'kill', 'answer-exit', 'partial-exit', 'close-stdout', 'grandchild'],
    silent: ['hang', 'wrong-id', 'string-id', 'late'],
  },
  http: {
    single: [
      ...['error', 'duplicate', 'noise', 'slow', 'huge', 'reset', 'html', 'empty', 'status-202', 'status-204'],
      ...['500', '503', '429', 'cut', 'json-cut', 'end', 'resume', 'wrong-id', 'string-id'],
    ],
    fatal: ['session-404'],
    silent: ['hang', 'late'],
  },
  sse: {
    single: ['error', 'duplicate', 'noise', '500', '503', '429'],
    fatal: ['crash', 'cut', 'end', 'session-404'],
    silent: ['hang', 'wrong-id', 'string-id', 'late'],
  },
  detect: { single: ['error', 'duplicate', 'slow', '500', 'cut', 'end'], fatal: ['session-404'], silent: ['hang'] },
}

function call(random: Random, { upstream, listener }: Row, kind: ClientKind, isCalm: boolean): Step {
  const script: Script = {}
  const { single, fatal, silent } = FAULTS[upstream]
  const fate = random.weighted({ well: 70, single: 16, fatal: isCalm ? 0 : 4, silent: 6 })
  if (fate !== 'well') script.fault = random.pick({ single, fatal, silent }[fate])
  // The command takes messages of 64 MiB.
  if (script.fault === 'huge' && listener === 'command') script.fault = 'slow'
  if (random.chance(0.3)) script.delay = random.int(1, 150)
  if (random.chance(0.3)) script.progress = random.int(1, 8)
  if (random.chance(0.2)) script.bytes = 2 * random.int(1, 40_000)
  if (random.chance(0.1) && kind !== 'modern' && kind !== 'stdio-modern') script.ask = true
  if (random.chance(0.3)) script.stream = true
  const cancelAfter = fate === 'silent' || random.chance(0.06) ? random.int(0, 250) : undefined
  return {
    do: 'call',
    script,
    id: random.chance(0.8) ? 'number' : 'string',
    waits: random.chance(0.3),
    ...(cancelAfter !== undefined && { cancelAfter, reuses: random.chance(0.3) }),
  }
}

function spells(random: Random, row: Row): Spell[] {
  const sides = [
    ...(row.upstream === 'stdio' ? [] : (['upstream'] as const)),
    ...(row.listener === 'port' ? (['client'] as const) : []),
  ]
  if (sides.length === 0 || random.chance(0.3)) return []
  let at = 0
  return Array.from({ length: random.int(1, 3) }, () => {
    const from = at + random.int(20, 200)
    const to = from + random.int(50, 400)
    at = to
    return { side: random.pick(sides), from, to, toxic: toxic(random) }
  })
}

function toxic(random: Random): Toxic {
  return random.pick<() => Toxic>([
    () => ({ type: 'latency', milliseconds: random.int(1, 40), jitter: random.int(0, 40) }),
    () => ({ type: 'bandwidth', bytes: random.int(200, 2_000) * 1024 }),
    () => ({ type: 'slow-close', milliseconds: random.int(10, 300) }),
    () => ({ type: 'black-hole' }),
    () => ({ type: 'reset' }),
    () => ({ type: 'slicer', bytes: random.int(1, 64) }),
    () => ({ type: 'limit', bytes: random.int(1, 20_000) }),
    () => ({ type: 'down' }),
  ])()
}
