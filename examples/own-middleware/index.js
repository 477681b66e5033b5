import { onResponse } from 'open-mcp-proxy'

/** Cuts texts in the results of tools, which would fill a model's context. */
export function shorten({ characters = 10_000 } = {}) {
  if (!Number.isInteger(characters) || characters < 1) {
    throw new TypeError(`shorten: expected characters from 1, got ${JSON.stringify(characters)}`)
  }
  return onResponse('tools/call', (ctx, next) => {
    // What a server sends need not be what the types say.
    const { content } = ctx.result ?? {}
    for (const part of Array.isArray(content) ? content : []) {
      if (part?.type !== 'text' || !(part.text?.length > characters)) continue
      // A pair of surrogates is not cut in two.
      part.text = `${part.text.slice(0, characters).replace(/[\ud800-\udbff]$/, '')}…`
    }
    return next()
  })
}

/** What `omproxy --use @example/omproxy-shorten` calls. */
export default shorten
