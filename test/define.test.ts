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
