import { define, type Middleware } from 'open-mcp-proxy'
import { expect, it } from 'vitest'

it('gives the same function, with what it needs beyond messages', () => {
  const middleware: Middleware = function auth(_ctx, next) {
    return next()
  }
  const admit = () => ({ status: 401 })
  const start = () => {}
  const close = () => {}
  const defined = define({ role: 'authenticate', admit, start, close }, middleware)
  expect(defined).toBe(middleware)
  expect(defined.name).toBe('auth')
  expect({ ...defined }).toEqual({ role: 'authenticate', admit, start, close })
})

it('adds nothing that was not given', () => {
  expect({ ...define({}, () => {}) }).toEqual({})
})

it('may be called something else in errors than its function is', () => {
  expect(define({ name: 'mine' }, function minified() {}).name).toBe('mine')
  expect({ ...define({ name: 'mine' }, () => {}) }).toEqual({})
})
