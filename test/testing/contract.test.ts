import {
  define,
  type Middleware,
  onExchange,
  onNotification,
  onRequest,
  onResponse,
  type ResponseContext,
} from 'open-mcp-proxy'
import { logger } from 'open-mcp-proxy/middleware'
import { type ContractOptions, contract, type MakeStack } from 'open-mcp-proxy/testing'
import { afterEach, describe, expect, test, vi } from 'vitest'

/** The names of the invariants that a middleware breaks. */
async function broken(stack: MakeStack, options: ContractOptions = {}): Promise<string[]> {
  const names: string[] = []
  for (const { name, run } of contract(stack, { patience: 300, ...options })) {
    await run().catch((error: Error) => {
      expect(error).toMatchObject({ code: 'ERR_ASSERTION' })
      names.push(name)
    })
  }
  return names
}

const OUTCOME = 'each request gets exactly one outcome, its own, whatever its id and the order of the answers'
const ERROR = 'an error of a peer comes back as it is'
const NOTIFICATIONS = 'notifications arrive in their order, none lost, none twice'
const BYTES = 'what it does not know passes byte for byte'
const MIDDLE = 'a request of the server in the middle of a call is answered'
const CANCELLED = 'a cancelled request gets silence, and its id is free again'
const SERVER_GONE = 'the server is gone: each request that waits gets one outcome'
const CLIENT_GONE = 'the client is gone: the session ends and nothing stays'
const APART = 'two sessions at once do not mix'
const MANY = 'a thousand exchanges leave nothing behind'
const MODERN = 'requests of 2026-07-28 pass, each in a session of its own'
const STDOUT = 'nothing is written to stdout'
const TWICE = 'it starts and closes beside another of its kind'

test('the promises', () => {
  expect(contract(() => []).map(({ name }) => name)).toEqual([
    OUTCOME,
    ERROR,
    NOTIFICATIONS,
    BYTES,
    MIDDLE,
    CANCELLED,
    SERVER_GONE,
    CLIENT_GONE,
    APART,
    MANY,
    MODERN,
    STDOUT,
    TWICE,
  ])
})

const pass: Middleware = (_ctx, next) => next()

const rename = (prefix: string): Middleware[] => [
  onRequest('tools/call', (ctx, next) => {
    if (!ctx.params.name.startsWith(prefix)) ctx.throw(-32602, `Unknown tool: ${ctx.params.name}`)
    ctx.params.name = ctx.params.name.slice(prefix.length)
    return next()
  }),
  onResponse('tools/list', (ctx, next) => {
    for (const tool of ctx.result?.tools ?? []) tool.name = prefix + tool.name
    return next()
  }),
]

/** Answers `tools/list` from memory. */
function cache(): Middleware {
  let known: object | undefined
  return async (ctx, next) => {
    if (ctx.isRequest('tools/list') && known) return ctx.reply(known)
    if (ctx.isResponse('tools/list') && ctx.result) known = structuredClone(ctx.result)
    return next()
  }
}

/** Lets so many requests through at once. */
function gate(limit: number): Middleware {
  let running = 0
  const waiting: (() => void)[] = []
  return onExchange(undefined, async (request, next) => {
    if (request.from === 'server') return next()
    if (running >= limit) {
      request.stepAside()
      await new Promise<void>((resolve) => {
        waiting.push(resolve)
        request.signal.addEventListener('abort', () => resolve())
      })
    }
    running++
    try {
      await next()
    } catch (error) {
      if (!request.signal.aborted) throw error
    } finally {
      running--
      waiting.shift()?.()
    }
  })
}

const login: Middleware<{ user: string }> = (ctx, next) => {
  if (ctx.session.principal) ctx.state.user = ctx.session.principal
  return next()
}

const guard: Middleware<{ user: string }> = (ctx, next) =>
  ctx.kind !== 'request' || ctx.state.user ? next() : ctx.throw(-31006, 'Denied')

const trace: Middleware = (ctx, next) => {
  if (ctx.kind === 'request')
    ctx.params = { ...ctx.params, _meta: { ...(ctx.params?._meta as object), trace: ctx.key } }
  if (ctx.kind === 'notification') ctx.params = { ...ctx.params, traced: true }
  return next()
}

const allow: Middleware = onRequest(undefined, (ctx, next) =>
  ctx.from === 'server' || ctx.name === 'fine' ? next() : ctx.throw(-31006, 'Denied'),
)

/** Has something of its own for as long as the application runs. */
function beating(): Middleware {
  let timer: NodeJS.Timeout | undefined
  return define(
    {
      start: () => {
        timer = setInterval(() => {}, 1_000)
      },
      close: () => clearInterval(timer),
    },
    (_ctx, next) => next(),
  )
}

const late: Middleware = async (ctx, next) => {
  if (ctx.kind === 'request') await new Promise((resolve) => setTimeout(resolve, 2))
  await next()
}

const asking: Middleware = async (ctx, next) => {
  if (ctx.isRequest('tools/call')) await ctx.call('server', 'tools/list')
  return next()
}

describe.each<[string, MakeStack, ContractOptions?]>([
  ['nothing', () => []],
  ['one that passes all', () => pass],
  ['logger', () => logger({ write: () => {}, arguments: true })],
  ['onExchange', () => onExchange(undefined, (_request, next) => next())],
  ['two onions', () => [onExchange(undefined, (_, next) => next()), onExchange('ping', (_, next) => next())]],
  ['a renamer', () => rename('a_'), { requests: [{ method: 'tools/call', params: { name: 'a_x' } }] }],
  ['a renamer that refuses what it does not know', () => rename('a_')],
  ['a cache', cache],
  ['a limit', () => gate(2)],
  ['one that wants a user', () => guard, { before: login, principal: 'ada' }],
  ['a trace', () => trace, { rewrites: true }],
  ['an allow list', () => allow, { requests: [{ method: 'tools/call', params: { name: 'fine' } }] }],
  ['one with a timer', beating],
  ['one that takes its time', () => late],
  ['one that asks the server itself', () => asking],
])('%s keeps', (_, stack, options) => {
  for (const { name, run } of contract(stack, { ...options, patience: 10_000 })) test(name, run)
})

describe('what breaks it', () => {
  afterEach(() => vi.restoreAllMocks())

  test.each<[string, string[], MakeStack]>([
    ['forgets next', [OUTCOME], () => (ctx, next) => (ctx.method === 'roots/list' ? undefined : next())],
    [
      'forgets a notification of the server',
      [NOTIFICATIONS, BYTES, APART],
      () => (ctx, next) => (ctx.kind === 'notification' && ctx.from === 'server' ? undefined : next()),
    ],
    [
      'calls next twice',
      [OUTCOME],
      () =>
        onRequest('elicitation/create', async (_ctx, next) => {
          await next()
          await next()
        }),
    ],
    [
      'throws on an answer',
      [OUTCOME],
      () => onResponse('roots/list', () => Promise.reject(new TypeError('undefined'))),
    ],
    [
      'writes what it read anew',
      [BYTES],
      () => (ctx, next) => {
        ctx.message = JSON.parse(JSON.stringify(ctx.message))
        return next()
      },
    ],
    [
      'writes to stdout',
      [STDOUT],
      () => (ctx, next) => {
        process.stdout.write(`${ctx.method}\n`)
        return next()
      },
    ],
    [
      'prints',
      [STDOUT],
      () => (ctx, next) => {
        console.log(ctx.method)
        return next()
      },
    ],
    ['throws errors away', [ERROR], () => onResponse(undefined, (ctx, next) => (ctx.error ? ctx.reply() : next()))],
    [
      'hides errors',
      [ERROR],
      () => onResponse(undefined, (ctx, next) => (ctx.error ? ctx.fail({ code: 1, message: '' }) : next())),
    ],
  ])('it %s', async (_, names, stack) => {
    vi.spyOn(process.stdout, 'write').mockReturnValue(true)
    vi.spyOn(console, 'log').mockReturnValue()
    expect(await broken(stack)).toEqual(expect.arrayContaining(names))
  })

  test('it reorders', async () => {
    const stack = () =>
      onNotification('notifications/contract', async (ctx, next) => {
        ctx.stepAside()
        if (Number(ctx.params?.n) % 2 === 0) await new Promise((resolve) => setTimeout(resolve, 2))
        return next()
      })
    expect(await broken(stack)).toEqual([NOTIFICATIONS])
  })

  test('it doubles', async () => {
    const stack = () =>
      onNotification('notifications/contract', async (ctx, next) => {
        await ctx.notify('client', 'notifications/contract', { ...ctx.params })
        return next()
      })
    expect(await broken(stack)).toContain(NOTIFICATIONS)
  })

  test('it keeps the answer of one session for another, by the id', async () => {
    const stack = () => {
      const answers = new Map<unknown, object>()
      return ((ctx, next) => {
        if (ctx.isRequest('tools/call')) answers.set(ctx.id, { ...ctx.params })
        if (ctx.isResponse('tools/call') && ctx.result) ctx.result.asked = answers.get(ctx.id)
        return next()
      }) satisfies Middleware
    }
    expect(await broken(stack)).toEqual([APART])
  })

  test('it wakes whoever waits under the same id', async () => {
    const stack = () => {
      const waiting = new Map<unknown, ResponseContext>()
      return ((ctx, next) => {
        const { state } = ctx.session
        if (ctx.kind === 'request') waiting.set(ctx.id, state as never)
        else if (ctx.kind === 'response' && waiting.get(ctx.id) !== (state as never)) return ctx.reply({ lost: true })
        return next()
      }) satisfies Middleware
    }
    expect(await broken(stack)).toContain(APART)
  })

  test('it waits in the run of the request, whether it was cancelled or not', async () => {
    const stack = () => {
      const waiting = new Map<string, () => void>()
      return (async (ctx, next) => {
        if (ctx.result && ctx.request) waiting.get(ctx.request.key)?.()
        await next()
        if (ctx.kind === 'request') await new Promise<void>((resolve) => waiting.set(ctx.key, resolve))
      }) satisfies Middleware
    }
    expect(await broken(stack)).toEqual(expect.arrayContaining([CANCELLED, SERVER_GONE, CLIENT_GONE]))
  })

  test('it lets nothing pass while a call is out', async () => {
    const stack = () => {
      let free = Promise.resolve()
      return (async (ctx, next) => {
        if (ctx.from === 'server') return next()
        const before = free
        if (ctx.isRequest('tools/call')) {
          let done!: () => void
          free = new Promise((resolve) => {
            done = resolve
          })
          ctx.session.state.done = done
        }
        await before
        return next()
      }) satisfies Middleware
    }
    const freeing: Middleware = (ctx, next) => {
      if (ctx.isResponse('tools/call')) (ctx.session.state.done as () => void)()
      return next()
    }
    expect(await broken(() => [stack(), freeing])).toContain(MIDDLE)
  })

  test('it leaves a timer behind', async () => {
    let timer: NodeJS.Timeout | undefined
    const stack = () => {
      timer = setInterval(() => {}, 60_000)
      return pass
    }
    const { run } = contract(stack, { patience: 50 })[0]!
    await expect(run()).rejects.toThrow('expected nothing to keep the process alive after the end, got Timeout')
    clearInterval(timer)
  })

  test('it does not come to a close', async () => {
    const stack = () => define({ close: () => new Promise(() => {}) }, (_ctx, next) => next())
    const { run } = contract(stack, { patience: 50 })[0]!
    await expect(run()).rejects.toThrow('expected the application to close within 50 ms')
  })

  test('it takes the modern part off', async () => {
    const stack = () =>
      onRequest('tools/call', (ctx, next) => {
        ctx.params = { name: ctx.params.name }
        return next()
      })
    expect(await broken(stack)).toEqual([MODERN])
  })

  test('it cannot start twice in one process', async () => {
    let running = 0
    const stack = () =>
      define(
        { start: () => (running++ > 0 ? Promise.reject(new Error('in use')) : undefined), close: () => running-- },
        (_ctx, next) => next(),
      )
    const failed: string[] = []
    for (const { name, run } of contract(stack)) await run().catch(() => failed.push(name))
    expect(failed).toEqual([TWICE])
  })

  test('it passes nothing of what the contract asks', async () => {
    const { run } = contract(() => onRequest(undefined, (ctx) => ctx.throw(-31006, 'Denied')))[5]!
    await expect(run()).rejects.toThrow(
      'expected a request to reach the server: name some in contract(…, { requests })',
    )
  })

  test('what the application reported is told', async () => {
    const [first] = contract(() => onRequest('roots/list', () => undefined))
    await expect(first!.run()).rejects.toThrow(
      /got Internal error\nThe application reported: a middleware forgot a request/,
    )
  })
})
