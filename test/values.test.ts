import { describe, expect, test } from 'vitest'
import {
  expand,
  parseCount,
  parseHeader,
  parseHeaders,
  parseListen,
  parseSeconds,
  parseUrl,
  parseVariable,
  secretsOf,
  UsageError,
} from '../src/values.js'

/** What it throws; a UsageError of one line, or the test fails. */
function refusal(run: () => unknown): string {
  try {
    run()
  } catch (error) {
    expect(error).toBeInstanceOf(UsageError)
    const { message } = error as UsageError
    expect(message).not.toMatch(/[\r\n]/)
    return message
  }
  throw new Error('expected a refusal')
}

describe('expand', () => {
  const env = { TOKEN: 's3cret', A: 'a$B', EMPTY: '', _x1: 'under' }

  test.each([
    ['no variable', 'no variable'],
    ['Bearer $TOKEN', 'Bearer s3cret'],
    ['$' + '{TOKEN}s', 's3crets'],
    ['$TOKEN.$_x1', 's3cret.under'],
    ['$EMPTY', ''],
    ['cost: $$5', 'cost: $5'],
    ['$$TOKEN', '$TOKEN'],
    ['$$$TOKEN', '$s3cret'],
    ['$A', 'a$B'],
  ])('%s', (text, expanded) => {
    expect(expand(text, env)).toBe(expanded)
  })

  test('an unset variable is named', () => {
    const message = 'expected the environment variable NOPE, it is not set ($$ is a literal $)'
    expect(refusal(() => expand('x $NOPE', env))).toBe(message)
    // Every object has one.
    expect(refusal(() => expand('$constructor', process.env))).toBe(message.replace('NOPE', 'constructor'))
    expect(refusal(() => expand('$' + '{NOPE}', env))).toBe(message)
  })

  test.each(['$', 'a$', '$ x', '$1', '$-', '$' + '{', '$' + '{}', '$' + '{a b}', '$' + '{1}'])(
    'a lone $ is refused: %s',
    (text) => {
      expect(refusal(() => expand(text, env))).toBe(
        'expected a variable as $NAME, or $$ for a literal $, got a "$" with no name after it',
      )
    },
  )
})

describe('parseHeader', () => {
  test.each([
    ['Authorization: Bearer $T', ['Authorization', 'Bearer abc']],
    ['X-Key:v', ['X-Key', 'v']],
    ['X-Url: http://host:1/', ['X-Url', 'http://host:1/']],
    ['X-Empty:', ['X-Empty', '']],
    [' X-Space :  padded  ', ['X-Space', 'padded']],
    ['X-Latin: é', ['X-Latin', 'é']],
  ])('%s', (text, header) => {
    expect(parseHeader(text, { T: 'abc' })).toEqual(header)
  })

  test.each([
    ['X-Key v4lue', "--header: expected 'Name: value', got no colon"],
    [': v4lue', "--header: expected 'Name: value', got no name"],
    ['Bearer v4lue: x', '--header: expected a header name, got one with a character that no header name may have'],
    [
      'X-Key: v4lue\r\nX-Other: 1',
      '--header X-Key: expected a value of visible Latin-1 characters, got one with another',
    ],
    ['X-Key: v4lue\n1', '--header X-Key: expected a value of visible Latin-1 characters, got one with another'],
    ['X-Key: v4lue\u0000', '--header X-Key: expected a value of visible Latin-1 characters, got one with another'],
    ['X-Key: v4lue\u20ac', '--header X-Key: expected a value of visible Latin-1 characters, got one with another'],
    ['X-Key: $BROKEN', '--header X-Key: expected a value of visible Latin-1 characters, got one with another'],
    ['X-Key: v4lue$NOPE', '--header X-Key: expected the environment variable NOPE, it is not set ($$ is a literal $)'],
    [
      'X-Key: v4lue$',
      '--header X-Key: expected a variable as $NAME, or $$ for a literal $, got a "$" with no name after it',
    ],
  ])('is refused without its value: %j', (text, message) => {
    const got = refusal(() => parseHeader(text, { BROKEN: 'v4lue\nX-Other: 1' }))
    expect(got).toBe(message)
    expect(got).not.toContain('v4lue')
  })
})

describe('parseHeaders', () => {
  test.each([
    ['k=v', [['k', 'v']]],
    [
      'k=v,k2=v2',
      [
        ['k', 'v'],
        ['k2', 'v2'],
      ],
    ],
    ['Authorization=Basic YTpi==', [['Authorization', 'Basic YTpi==']]],
    [
      ' k = v , k2=,',
      [
        ['k', 'v'],
        ['k2', ''],
      ],
    ],
    ['k=$HOME', [['k', '$HOME']]],
    ['', []],
  ])('%j', (text, headers) => {
    expect(parseHeaders(text)).toEqual(headers)
  })

  test.each([
    ['k=v,v4lue', '--headers: expected name=value,name2=value2, pair 2 has no "=" (a value with a comma: --header)'],
    ['=v4lue', '--headers: expected name=value,name2=value2, pair 1 has no name (a value with a comma: --header)'],
    ['a b=v4lue', '--headers: expected a header name, got one with a character that no header name may have'],
    ['k=v4lue\r\nx', '--headers k: expected a value of visible Latin-1 characters, got one with another'],
  ])('is refused without its value: %j', (text, message) => {
    const got = refusal(() => parseHeaders(text))
    expect(got).toBe(message)
    expect(got).not.toContain('v4lue')
  })
})

describe('parseListen', () => {
  test.each([
    ['3000', { port: 3000 }],
    ['0', { port: 0 }],
    ['localhost:3000', { host: 'localhost', port: 3000 }],
    ['0.0.0.0:65535', { host: '0.0.0.0', port: 65535 }],
    ['[::1]:3000', { host: '::1', port: 3000 }],
  ])('%s', (text, expected) => {
    expect(parseListen(text)).toEqual(expected)
  })

  test.each(['', 'x', ':3000', '::1:3000', '[::1]', 'a:', 'a:b', '65536', '-1', '3000 ', '1e3'])(
    'refuses %j',
    (text) => {
      expect(() => parseListen(text)).toThrow(`expected PORT or HOST:PORT, with a port from 0 to 65535, got "${text}"`)
    },
  )
})

describe('parseCount', () => {
  test('takes a whole number above 0', () => {
    expect([parseCount('--x', '1'), parseCount('--x', '10000')]).toEqual([1, 10_000])
  })

  test.each(['0', '-1', '1.5', '', '1e3', '01', '99999999999'])('refuses %j', (text) => {
    expect(() => parseCount('--x', text)).toThrow(`--x: expected a whole number above 0, got "${text}"`)
  })
})

describe('parseSeconds', () => {
  test.each([
    ['5', 5000],
    ['0.25', 250],
    ['1e3', 1_000_000],
    ['2147483', 2_147_483_000],
  ])('%s s', (text, milliseconds) => {
    expect(parseSeconds('--timeout', text)).toBe(milliseconds)
  })

  test('0 only where it means something', () => {
    expect(parseSeconds('--sse-read-timeout', '0', { zero: true })).toBe(0)
  })

  test.each(['0', '-1', 'NaN', 'five', '', ' ', '1e9', '2147484', 'Infinity', '0.0001', '5s', '1,5'])(
    'is refused: %j',
    (text) => {
      expect(refusal(() => parseSeconds('--timeout', text))).toBe(
        `--timeout: expected seconds (above 0 to 2147483), got "${text}"`,
      )
    },
  )

  test.each(['-1', 'NaN', '', '1e9'])('is refused where 0 is not: %j', (text) => {
    expect(refusal(() => parseSeconds('--sse-read-timeout', text, { zero: true }))).toBe(
      `--sse-read-timeout: expected seconds (0 to 2147483), got "${text}"`,
    )
  })
})

describe('parseVariable', () => {
  test.each([
    ['A=b', ['A', 'b']],
    ['A=', ['A', '']],
    ['A=b=c', ['A', 'b=c']],
  ])('%s', (text, variable) => {
    expect(parseVariable(text)).toEqual(variable)
  })

  test('is refused without its value', () => {
    expect(refusal(() => parseVariable('v4lue'))).toBe('--env: expected NAME=VALUE, got no "="')
    expect(refusal(() => parseVariable('=v4lue'))).toBe('--env: expected NAME=VALUE, got no name')
  })
})

describe('parseUrl', () => {
  test.each(['http://127.0.0.1:1/sse', 'https://user:pass@host/mcp?key=1'])('%s', (text) => {
    expect(parseUrl(text).href).toBe(text)
  })

  test('is refused without its text', () => {
    expect(refusal(() => parseUrl('user:v4lue host'))).toBe(
      '--url: expected an http: or https: URL, got one with user:',
    )
    expect(refusal(() => parseUrl('v4lue'))).toBe('--url: expected an http: or https: URL, got no URL')
    expect(refusal(() => parseUrl('ws://v4lue/'))).toBe('--url: expected an http: or https: URL, got one with ws:')
  })
})

describe('secretsOf', () => {
  test('values, tokens, credentials and query values, longest first', () => {
    const url = new URL('https://someuser:p%40ssword@host/mcp?api_key=query-key&page=2')
    expect(secretsOf({ Authorization: 'Bearer to-ken', 'X-Key': 'x-key-value', 'X-Short': 'on' }, url)).toEqual([
      'Bearer to-ken',
      'x-key-value',
      'p%40ssword',
      'query-key',
      'someuser',
      'p@ssword',
      'to-ken',
    ])
  })

  test('a percent sign that escapes nothing', () => {
    expect(secretsOf({}, new URL('http://a:100%25zz%zz@host/'))).toEqual(['100%25zz%zz', '100%zz%zz'])
  })
})
