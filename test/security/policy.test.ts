import { createProxy, type Middleware } from 'open-mcp-proxy'
import { testProxy } from 'open-mcp-proxy/testing'
import { afterEach, describe, expect, test } from 'vitest'
import { type AuthorizeOptions, authorize } from '../../middleware/authorize.js'
import { omproxy, path, type Running } from '../fixtures/command.js'
import { joined, turnOfLoop } from '../fixtures/played.js'
import { ask, denied, listen, type Message, modern, ours, server, session } from './helpers.js'

const running: Running[] = []
afterEach(() => {
  for (const run of running.splice(0)) run.kill()
})

const okAlone: AuthorizeOptions = { rules: [{ tools: ['ok'], prompts: ['ok'], resources: ['ok'] }] }
const allButRm: AuthorizeOptions = {
  rules: [{ effect: 'deny', tools: ['rm'], prompts: ['rm'], resources: ['rm'] }],
  default: 'allow',
}

/** Whether a request gets to the server; if not, that it was told so. */
async function gets(policy: AuthorizeOptions, method: string, params: unknown): Promise<boolean> {
  const { toClient, toServer } = await testProxy(createProxy().use(authorize(policy))).fromClient({
    id: 1,
    method,
    params: params as object,
  })
  if (toServer.length > 0) return true
  expect(toClient).toEqual([{ ...denied(`no permission to use this ${kindOf(method)}`), id: 1 }])
  return false
}

const kindOf = (method: string) => (method === 'tools/call' ? 'tool' : method === 'prompts/get' ? 'prompt' : 'resource')
const reads = (policy: AuthorizeOptions, uri: string) => gets(policy, 'resources/read', { uri })

describe('a URI', () => {
  const inside: AuthorizeOptions = {
    rules: [{ resources: ['file:///srv/*', 'notes://public/*', 'https://good.test/*'] }],
  }

  test.each([
    'file:///srv/../etc/passwd',
    'file:///srv/a/../../etc/passwd',
    'file:///srv/./../etc/passwd',
    'file:///srv//../../etc/passwd',
    'file:///srv/%2e%2e/etc/passwd',
    'file:///srv/%2E./etc/passwd',
    'file:///srv/.%2e/etc/passwd',
    'file:///srv/..%2fetc/passwd',
    'file:///srv/%252e%252e/etc/passwd',
    'file:///srv/%252e%252e%252fetc/passwd',
    'file:///srv/%25252525252e%25252525252e/etc/passwd',
    'file:///srv/..\\etc\\passwd',
    'file:///srv\\..\\etc\\passwd',
    'file:///srv/..%5cetc%5cpasswd',
    'file:///srv/%2e%2e%5c%2e%2e/etc/passwd',
    'file:///srv/.\t./etc/passwd',
    'file:///srv/.\n.\r/etc/passwd',
    'file:///srv/.%09./etc/passwd',
    'file:///srv/?/../../etc/passwd',
    'file:///srv/#/../../etc/passwd',
    'file:///srv/a%3f/../../../etc/passwd',
    'file:///srv/..',
    'file:///srv/../',
    'file:///srv/..\u0000/x',
    'file:///srv/..%00/x',
    'file:///srv/.. /etc/passwd',
    'notes://public/../private/x',
    'notes://public/%2e%2e/private/x',
    'notes://public\\..\\private\\x',
    'notes://public/a\\..\\..\\private\\x',
  ])('that leads out of what is allowed: %j', async (uri) => {
    expect(uri).toMatch(/^(file:\/\/\/srv|notes:\/\/public)[/\\]/)
    expect(await reads(inside, uri)).toBe(false)
  })

  test.each([
    'FILE:///srv/../etc/x',
    'https://good.test@evil.test/',
    'https://good.test:80@evil.test/',
    'https://evil.test\\@good.test/',
    'https://evil.test/https://good.test/',
    'https://good.test.evil.test/',
    'https:good.test/../',
    ' file:///etc/passwd',
    'file:/etc/passwd',
    '/srv/x',
    'srv/x',
    '',
  ])('of somewhere else: %j', async (uri) => {
    expect(await reads(inside, uri)).toBe(false)
  })

  test.each([
    'file:///srv/a.txt',
    'file:///srv/a/b/../c.txt',
    'file:///srv/a%20b.txt',
    'file:///srv/a b.txt',
    'file:///srv/é/%C3%A9',
    'file:///srv/a..b/...c',
    'file:///srv/100%',
    'file:///srv/a//b',
    'notes://public/a?x=/../b',
    'https://good.test/a?u=https://x/y#z',
    'https://good.test/',
  ])('of what is allowed: %j', async (uri) => {
    expect(await reads(inside, uri)).toBe(true)
  })

  const secret: AuthorizeOptions = {
    rules: [{ effect: 'deny', resources: ['file:///etc/passwd', 'https://in.test/key', 'notes://private/*'] }],
    default: 'allow',
  }

  test.each([
    'file:///etc/passwd',
    'FILE:///etc/passwd',
    'File:///etc/passwd',
    'file:/etc/passwd',
    'file:etc/passwd',
    'file://localhost/etc/passwd',
    'file://LOCALHOST/etc/passwd',
    'file:///etc//passwd',
    'file:////etc/passwd',
    'file:///etc/./passwd',
    'file:///etc/x/../passwd',
    'file:///./etc/passwd',
    'file:///../../etc/passwd',
    'file:///%65tc/passwd',
    'file:///etc%2fpasswd',
    'file:///etc%2Fpasswd',
    'file:///etc%252Fpasswd',
    'file:///etc\\passwd',
    'file:\\\\\\etc\\passwd',
    'file:///etc%5cpasswd',
    'file:///etc/passwd.',
    'file:///etc/passwd...',
    'file:///etc/passwd. .',
    'file:///etc./passwd',
    'file:///etc/passwd%2e',
    'file:///etc/passwd ',
    'file:///etc/passwd%20',
    ' file:///etc/passwd',
    '\u0001file:///etc/passwd',
    'fi\nle:///etc/passwd',
    'file:///etc/pass\twd',
    'file:///etc/passwd\u0000',
    'file:///etc/passwd\u0000.txt',
    'file:///etc/passwd%00.txt',
    'file:///etc/passwd%2500.txt',
    'file:///etc/pass\u0000wd',
    'file:///etc/passwd?',
    'file:///etc/passwd?x=1',
    'file:///etc/passwd#x',
    'file:///etc/passwd%23x',
    'https://in.test/key',
    'HTTPS://IN.TEST/key',
    'https://In.Test:443/key',
    'https://in.test./key',
    'https://in%2etest/key',
    'https://ｉｎ.test/key',
    'https://user:pass@in.test/key',
    'https:in.test/key',
    'https:/in.test/key',
    'https:\\\\in.test\\key',
    'https://in.test/key#x',
    'https://in.test//key',
    'notes://private/x',
    'NOTES://PRIVATE/x',
    'notes://Private/x',
    'notes://public/../private/x',
    'notes://%70rivate/x',
  ])('of what is denied: %j', async (uri) => {
    expect(await reads(secret, uri)).toBe(false)
    for (const method of ['resources/subscribe', 'resources/directory/read', 'skills/get']) {
      expect(await gets(secret, method, { uri })).toBe(false)
    }
    const notifications = { resourceSubscriptions: ['ok', uri] }
    expect(await gets(secret, 'subscriptions/listen', { notifications })).toBe(false)
    expect(await gets(secret, 'completion/complete', { ref: { type: 'ref/resource', uri } })).toBe(false)
  })

  test('that can be read in more ways than can be told is denied', async () => {
    const open: AuthorizeOptions = { rules: [{ resources: ['*'] }], default: 'allow' }
    const nested = (depth: number) => `file:///a%${'25'.repeat(depth)}41`
    expect(await reads(open, nested(20))).toBe(true)
    expect(await reads(open, nested(500))).toBe(false)
    expect(await reads(open, `x:${'%41'.repeat(500)}/${'../'.repeat(150)}`)).toBe(true)
  })

  test('that no parser knows is a text like others', async () => {
    for (const uri of ['://', ':', '%', '%zz', '%ff', '\ud800', '#', '?', '/', '\\', '..', 'a'.repeat(2_048)]) {
      expect([uri, await reads({ rules: [{ resources: ['*'] }] }, uri)]).toEqual([uri, true])
      expect([uri, await reads(inside, uri)]).toEqual([uri, false])
    }
  })
})

describe('a name', () => {
  const others = [
    'rm ',
    ' rm',
    'RM',
    'Rm',
    'ｒｍ',
    'r\u200bm',
    'rm\u200b',
    'rm\u0000',
    'rm\u0000x',
    'rm\n',
    '\ufeffrm',
    'r\u0301m',
    'rm\ufe0f',
    'r\u00adm',
    '㎭',
    'rm/',
    './rm',
    'rm\u202e',
    'rm.',
    '%72m',
  ]

  test.each(others)('that looks like an allowed one is another: %j', async (name) => {
    const policy: AuthorizeOptions = { rules: [{ tools: ['rm'], prompts: ['rm'] }] }
    expect(await gets(policy, 'tools/call', { name: 'rm' })).toBe(true)
    for (const method of ['tools/call', 'prompts/get']) expect(await gets(policy, method, { name })).toBe(false)
  })

  test.each(['é', 'e\u0301'])('is not normalised: %j', async (name) => {
    const other = name.normalize(name.length === 1 ? 'NFD' : 'NFC')
    const policy: AuthorizeOptions = { rules: [{ tools: [name] }] }
    expect(await gets(policy, 'tools/call', { name })).toBe(true)
    expect(await gets(policy, 'tools/call', { name: other })).toBe(false)
  })

  const inherited = ['__proto__', 'constructor', 'toString', 'hasOwnProperty', 'valueOf']

  test.each(inherited)('that every object has: %s', async (name) => {
    for (const method of ['tools/call', 'prompts/get']) {
      expect(await gets(okAlone, method, { name })).toBe(false)
      expect(await gets({ rules: [{ tools: [name], prompts: [name] }] }, method, { name })).toBe(true)
      for (const other of inherited.filter((it) => it !== name)) {
        expect(await gets({ rules: [{ tools: [name], prompts: [name] }] }, method, { name: other })).toBe(false)
      }
    }
  })
})

/** Texts that two parsers read differently. */
const twofold = [
  '"params":{"name":"ok","name":"rm"}',
  '"params":{"name":"rm","name":"ok"}',
  '"params":{"name":"ok","Name":"rm"}',
  '"params":{"name":"ok","NAME":"rm"}',
  '"params":{"name":"ok","n\\u0061me":"rm"}',
  '"params":{"name":"ok","name\\u0000":"rm"}',
  '"params":{"name":"ok"},"params":{"name":"rm"}',
  '"params":{"name":"ok"},"Params":{"name":"rm"}',
  '"params":{"name":"ok"},"params\\u0000x":{"name":"rm"}',
  '"params":{"name":"ok"},"METHOD":"tools/call"',
  '"params":{"name":"ok"},"method":"prompts/get"',
].map((rest) => `{"jsonrpc":"2.0","id":1,"method":"tools/call",${rest}}`)

const ambiguous = expect.objectContaining({
  code: -32600,
  message: expect.stringMatching(/^Invalid request: ambiguous member "(name|params|method)"/),
})

describe('a text that two parsers read differently', () => {
  test('over stdio', async () => {
    const echo = path('../fixtures/stdio-echo.mjs')
    const run = omproxy(['stdio', '--use', `authorize=${JSON.stringify(allButRm)}`, '--', process.execPath, echo])
    running.push(run)
    run.send(...twofold)
    await run.until(twofold.length)
    expect(run.messages()).toEqual(twofold.map(() => expect.objectContaining({ error: ambiguous })))
    run.send('{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"rm"}}')
    await run.until(twofold.length + 1)
    expect(run.messages().at(-1)).toEqual({ ...denied('no permission to use this tool'), id: 2 })
  })

  test('over HTTP', async () => {
    for (const policy of [okAlone, allButRm]) {
      const upstream = server()
      const { port } = await listen(upstream.open, {}, (app) => app.use(authorize(policy)))
      const headers = { ...ours, 'mcp-session-id': await session(port) }
      for (const body of twofold) {
        const reply = await ask(port, { headers, body })
        expect([reply.status, JSON.parse(reply.body)]).toEqual([400, expect.objectContaining({ error: ambiguous })])
      }
      expect(upstream.methods()).toEqual(['initialize'])
    }
  })

  test.each([
    ['completion/complete', '"ref":{"type":"ref/prompt","name":"ok","name":"rm"}'],
    ['completion/complete', '"ref":{"type":"ref/prompt","name":"rm","name":"ok"}'],
    ['completion/complete', '"ref":{"type":"ref/prompt","name":"ok","Name":"rm"}'],
    ['completion/complete', '"ref":{"type":"ref/prompt","name":"ok","name\\u0000":"rm"}'],
    ['completion/complete', '"ref":{"type":"ref/resource","uri":"ok","URI":"rm"}'],
    ['completion/complete', '"ref":{"type":"ref/resource","uri":"ok","ur\\u0131":"rm"}'],
    ['completion/complete', '"ref":{"type":"ref/resource","uri":"ok","ur\\u0130":"rm"}'],
    ['completion/complete', '"ref":{"type":"ref/prompt","name":"ok","Type":"ref/resource"}'],
    ['completion/complete', '"ref":{"type":"ref/prompt","name":"ok"},"ref":{"type":"ref/prompt","name":"rm"}'],
    ['completion/complete', '"ref":{"type":"ref/prompt","name":"rm"},"re\\u0066":{"type":"ref/prompt","name":"ok"}'],
    ['completion/complete', '"ref":{"type":"ref/prompt","name":"ok"},"Ref":{"type":"ref/prompt","name":"rm"}'],
    ['subscriptions/listen', '"notifications":{"resourceSubscriptions":["rm"],"resourceSubscriptions":["ok"]}'],
    ['subscriptions/listen', '"notifications":{"resourceSubscriptions":["ok"],"ResourceSubscriptions":["rm"]}'],
    ['subscriptions/listen', '"notifications":{"re\\u017fourceSubscriptions":["rm"]}'],
    ['subscriptions/listen', '"notifications":{"resourceSubscriptions":["rm"]},"notifications":{}'],
    ['subscriptions/listen', '"notifications":{},"Notifications":{"resourceSubscriptions":["rm"]}'],
  ])('further inside, of a %s: %s', async (method, params) => {
    for (const policy of [okAlone, allButRm]) {
      const text = `{"jsonrpc":"2.0","id":1,"method":"${method}","params":{${params}}}`
      const { toClient, toServer } = await testProxy(createProxy().use(authorize(policy))).fromClient(text)
      expect(toServer).toEqual([])
      expect(toClient).toEqual([
        {
          jsonrpc: '2.0',
          id: 1,
          error: { code: -32600, message: expect.stringMatching(/^Invalid request: ambiguous member "\w+"$/) },
        },
      ])
    }
  })
})

describe('headers that say something else than the body', () => {
  async function guarded(policy: AuthorizeOptions) {
    const upstream = server()
    const proxy = await listen(upstream.open, {}, (app) => app.use(authorize(policy)))
    return { ...proxy, upstream }
  }

  test('modern: the request is no good', async () => {
    for (const policy of [okAlone, allButRm]) {
      const { port, upstream } = await guarded(policy)
      for (const [header, name] of [
        ['ok', 'rm'],
        ['rm', 'ok'],
        ['=?base64?b2s=?=', 'rm'],
      ] as const) {
        const { headers, body } = modern(1, 'tools/call', { name }, header)
        const reply = await ask(port, { headers, body })
        expect([reply.status, JSON.parse(reply.body).error.code]).toEqual([400, -32020])
      }
      const { headers, body } = modern(1, 'tools/call', { name: 'rm' }, 'rm')
      const lying = { ...headers, 'mcp-method': 'tools/list' }
      expect((await ask(port, { headers: lying, body })).status).toBe(400)
      expect(JSON.parse((await ask(port, { headers, body })).body)).toEqual({
        ...denied('no permission to use this tool'),
        id: 1,
      })
      // The proxy itself asks which headers a tool declares.
      expect(upstream.methods()).toEqual(['tools/list'])
    }
  })

  test('legacy: the body decides', async () => {
    const { port, upstream } = await guarded(okAlone)
    const headers = { ...ours, 'mcp-session-id': await session(port) }
    const call = async (header: string, name: string) => {
      const body = { jsonrpc: '2.0', id: 1, method: 'tools/call', params: { name } }
      const more = { 'mcp-name': header, 'mcp-method': 'tools/list' }
      return JSON.parse((await ask(port, { headers: { ...headers, ...more }, body })).body)
    }
    expect(await call('ok', 'rm')).toEqual({ ...denied('no permission to use this tool'), id: 1 })
    expect(await call('rm', 'ok')).toEqual({ jsonrpc: '2.0', id: 1, result: {} })
    expect(upstream.methods()).toEqual(['initialize', 'tools/call'])
  })
})

test('a batch: each is judged alone', async () => {
  const upstream = server(({ method, params }) => ({ result: { method, name: params?.name } }))
  const { port } = await listen(upstream.open, {}, (app) => app.use(authorize(okAlone)))
  const headers = { ...ours, 'mcp-session-id': await session(port), 'mcp-protocol-version': '2025-03-26' }
  const call = (id: number, name: string) => ({ jsonrpc: '2.0', id, method: 'tools/call', params: { name } })
  const note = { jsonrpc: '2.0', method: 'tools/call', params: { name: 'rm' } }
  const body = [call(1, 'ok'), call(2, 'rm'), note, call(3, 'ok'), call(4, '')]
  const reply = await ask(port, { headers, body })
  const refused = (id: number) => ({ ...denied('no permission to use this tool'), id })
  const result = (id: number) => ({ jsonrpc: '2.0', id, result: { method: 'tools/call', name: 'ok' } })
  const answers = reply.body.startsWith('[')
    ? (JSON.parse(reply.body) as Message[])
    : [...reply.body.matchAll(/^data: (.+)$/gm)].map(([, data]) => JSON.parse(data!) as Message)
  expect(answers.toSorted((a, b) => Number(a.id) - Number(b.id))).toEqual([
    result(1),
    refused(2),
    result(3),
    refused(4),
  ])
  expect(
    upstream
      .heard()
      .slice(1)
      .map((it) => JSON.parse(it)),
  ).toEqual([body[0], body[3]])
})

/** Puts a prefix before the names of tools; takes it off again, and lets pass what has none. */
function rename(prefix: string): Middleware {
  return (ctx, next) => {
    if (ctx.isRequest('tools/call') && ctx.params.name.startsWith(prefix)) {
      ctx.params.name = ctx.params.name.slice(prefix.length)
    }
    if (ctx.isResponse('tools/list') && ctx.result) {
      for (const tool of ctx.result.tools) tool.name = `${prefix}${tool.name}`
    }
    return next()
  }
}

describe('a name that changes on its way', () => {
  const seen = async (...line: Middleware[]) => {
    const { fromClient, fromServer } = testProxy(createProxy().use(...line))
    await fromClient({ id: 1, method: 'tools/list' })
    const tools = ['rm', 'ls', 'a_rm', 'a_ls'].map((name) => ({ name }))
    const { toClient } = await fromServer({ id: 1, result: { tools } })
    const listed = (toClient[0] as unknown as { result: { tools: typeof tools } }).result.tools.map(({ name }) => name)
    const called: string[] = []
    for (const name of ['rm', 'ls', 'a_rm', 'a_ls', 'a_a_rm', 'a_a_ls']) {
      const { toServer } = await testProxy(createProxy().use(...line)).fromClient({
        id: 2,
        method: 'tools/call',
        params: { name },
      })
      called.push(...toServer.map((it) => `${name}>${(it as unknown as { params: { name: string } }).params.name}`))
    }
    return { listed, called }
  }

  test('before its place: the server’s name is judged, under whichever the client calls it', async () => {
    expect(
      await seen(rename('a_'), authorize({ rules: [{ effect: 'deny', tools: ['rm'] }], default: 'allow' })),
    ).toEqual({
      listed: ['a_ls', 'a_a_rm', 'a_a_ls'],
      called: ['ls>ls', 'a_ls>ls', 'a_a_rm>a_rm', 'a_a_ls>a_ls'],
    })
    expect(await seen(rename('a_'), authorize({ rules: [{ tools: ['ls'] }] }))).toEqual({
      listed: ['a_ls'],
      called: ['ls>ls', 'a_ls>ls'],
    })
  })

  test('behind its place: the client’s name is judged, and the server’s own is another', async () => {
    expect(await seen(authorize({ rules: [{ tools: ['a_ls'] }] }), rename('a_'))).toEqual({
      listed: ['a_ls'],
      called: ['a_ls>ls'],
    })
  })
})

describe('a list of a server that means harm', () => {
  /** The text that reaches the client. */
  async function listed(policy: AuthorizeOptions, result: string, method = 'tools/list') {
    const { client, server, errors } = await joined((app) => app.use(authorize(policy)))
    client.say({ id: 1, method })
    await turnOfLoop()
    server.say(`{"jsonrpc":"2.0","id":1,"result":${result}}`)
    await expect.poll(() => client.sent.length).toBe(1)
    expect(errors).toEqual([])
    return client.sent[0] as string
  }

  test.each([
    '{"tools":[{"name":"rm"}],"tools":[{"name":"ok"}]}',
    '{"tools":[{"name":"ok"}],"tools":[{"name":"rm"}]}',
    '{"tools":[{"name":"rm"}],"tools":[]}',
    '{"tools":[{"name":"ok"}],"Tools":[{"name":"rm"}]}',
    '{"Tools":[{"name":"rm"}]}',
    '{"tools":[{"name":"ok"}],"tools\\u0000":[{"name":"rm"}]}',
    '{"tools":[{"name":"ok"}],"tool\\u017f":[{"name":"rm"}]}',
    '{"t\\u006fols":[{"name":"rm"}],"tools":[{"name":"ok"}]}',
    '{"tools":[{"name":"ok","name":"rm"}]}',
    '{"tools":[{"name":"rm","name":"ok"}]}',
    '{"tools":[{"name":"rm","n\\u0061me":"ok"}]}',
    '{"tools":[{"name":"ok","Name":"rm"}]}',
    '{"tools":[{"name":"ok","name\\u0000":"rm"}]}',
    '{"tools":[{"name":"ok","title":"\\\\\\"","name":"rm"}]}',
    '{"tools":[{"__proto__":{"name":"rm"}}]}',
    '{"tools":[{"name":"ok"},{"name":["rm"]}]}',
    '{"tools":[{"name":"ok"},"rm",["rm"],null]}',
    '{"__proto__":{"tools":[{"name":"rm"}]}}',
  ])('shows nothing else to whichever reader: %s', async (result) => {
    for (const policy of [okAlone, allButRm]) {
      const text = await listed(policy, result)
      if (!result.startsWith('{"__proto__"')) expect(text).not.toContain('rm')
      // Nothing that could hide another.
      const { result: left } = JSON.parse(text) as { result: { tools?: unknown[] } }
      expect(JSON.stringify(left)).toBe(text.slice('{"jsonrpc":"2.0","id":1,"result":'.length, -1))
      if (left.tools) expect(left.tools.every((it) => JSON.stringify(it).startsWith('{"name":"ok"'))).toBe(true)
    }
  })

  test.each([
    '{"tools":{"name":"rm"}}',
    '{"tools":"rm"}',
    '{"tools":{"0":{"name":"rm"},"length":1}}',
    '[{"name":"rm"}]',
  ])('that is none: %s', async (result) => {
    const text = await listed(allButRm, result)
    const expected = result.startsWith('[')
      ? { result: [{ name: 'rm' }] }
      : {
          error: {
            code: -31003,
            message: 'Bad response from upstream: expected tools to be an array',
            data: { source: 'proxy', reason: 'upstream_bad_response', phase: 'sent', retryable: false },
          },
        }
    expect(JSON.parse(text)).toEqual({ jsonrpc: '2.0', id: 1, ...expected })
  })

  test('what it names may still not be called', async () => {
    const { client, server } = await joined((app) => app.use(authorize(okAlone)))
    client.say({ id: 1, method: 'tools/list' })
    await turnOfLoop()
    server.say('{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"rm","name":"ok"}]}}')
    await expect.poll(() => client.sent.length).toBe(1)
    client.say({ id: 2, method: 'tools/call', params: { name: 'rm' } })
    await expect.poll(() => client.sent.length).toBe(2)
    expect(client.take()[1]).toMatchObject({ id: 2, error: { code: -31006 } })
    expect(server.take()).toHaveLength(1)
  })

  test('with texts that look like its own', async () => {
    const tricky = '{"tools":[{"name":"ok","d":"\\"name\\":{}[\\\\","e":"name","f":["name","name"]}]}'
    expect(await listed(okAlone, tricky)).toBe(`{"jsonrpc":"2.0","id":1,"result":${tricky}}`)
    const escaped = '{"tools":[{"name" : "ok","d":"\\\\\\\\"},{"name":"rm"}]}'
    expect(await listed(okAlone, escaped)).toBe(
      '{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name" : "ok","d":"\\\\\\\\"}]}}',
    )
  })
})

test('a refusal says nothing of the name', async () => {
  const name = `\u001b[2J\n${'x'.repeat(1_000)}`
  const { toClient } = await testProxy(createProxy().use(authorize(okAlone))).fromClient({
    id: 1,
    method: 'tools/call',
    params: { name },
  })
  expect(toClient).toEqual([{ ...denied('no permission to use this tool'), id: 1 }])
})
