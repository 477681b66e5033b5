import * as index from 'open-mcp-proxy'
import * as middleware from 'open-mcp-proxy/middleware'
import * as testing from 'open-mcp-proxy/testing'
import { expect, it } from 'vitest'

// What is exported is promised: a name that appears or goes is a decision.
it('open-mcp-proxy', () => {
  expect(Object.keys(index).sort()).toMatchInlineSnapshot(`
    [
      "Application",
      "FrameError",
      "MemoryEventStore",
      "RpcError",
      "createProxy",
      "define",
      "defineProxy",
      "fromTransport",
      "glob",
      "hasTwins",
      "http",
      "isAlike",
      "onExchange",
      "onNotification",
      "onRequest",
      "onResponse",
      "proxyError",
      "rewriteText",
      "sse",
      "stdio",
      "stdioListener",
    ]
  `)
})

it('open-mcp-proxy/testing', () => {
  expect(Object.keys(testing).sort()).toMatchInlineSnapshot(`
    [
      "contract",
      "error",
      "modern",
      "notification",
      "request",
      "result",
      "testClock",
      "testContext",
      "testProxy",
    ]
  `)
})

it('open-mcp-proxy/middleware', () => {
  expect(Object.keys(middleware).sort()).toMatchInlineSnapshot(`
    [
      "audit",
      "auth",
      "authorize",
      "logger",
      "metrics",
      "readRecording",
      "record",
      "replay",
      "rerun",
      "toolFilter",
      "trace",
      "verifyAudit",
    ]
  `)
})
