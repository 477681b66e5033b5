/** A gateway on a port before a server over HTTP: who brings a token of the right issuer may pass. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { type AddressInfo, createServer as createSocket } from 'node:net'
import { fileURLToPath } from 'node:url'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import { exportJWK, generateKeyPair, SignJWT } from 'jose'
import { createProxy } from 'open-mcp-proxy'
import { auth } from 'open-mcp-proxy/middleware/auth'
import { logger } from 'open-mcp-proxy/middleware/logger'

const resource = 'https://tools.example.com/mcp'

// The issuer: a key, and an endpoint where its public half is.
const { privateKey, publicKey } = await generateKeyPair('ES256')
const keys = [{ ...(await exportJWK(publicKey)), kid: 'one', alg: 'ES256' }]
const issuer = createServer((_request, response) => void response.end(JSON.stringify({ keys })))
issuer.listen(0, '127.0.0.1')
await once(issuer, 'listening')
const issuerUrl = `http://127.0.0.1:${(issuer.address() as AddressInfo).port}`
const token = await new SignJWT({ scope: 'tools' })
  .setProtectedHeader({ alg: 'ES256', kid: 'one' })
  .setIssuer(issuerUrl)
  .setAudience(resource)
  .setSubject('ada')
  .setExpirationTime('5m')
  .sign(privateKey)

// The server, which knows nothing of tokens.
const everything = fileURLToPath(import.meta.resolve('@modelcontextprotocol/server-everything/dist/index.js'))
const PORT = String(await freePort())
const server = spawn(process.execPath, [everything, 'streamableHttp'], { env: { ...process.env, PORT }, stdio: 'pipe' })
await once(server.stderr, 'data')

// The gateway.
const app = createProxy()
  .use(logger({ format: 'pretty' }))
  .use(
    auth({
      jwt: { issuer: issuerUrl, audience: resource, jwksUri: `${issuerUrl}/jwks` },
      scopes: ['tools'],
      resource: { url: resource, authorizationServers: [issuerUrl] },
    }),
  )
  .use((ctx, next) => {
    if (ctx.isRequest('tools/call')) console.log(`${ctx.state.user?.id} calls ${ctx.params.name}`)
    return next()
  })
const { address } = await app.listen({ url: `http://127.0.0.1:${PORT}/mcp` }, { port: 0 })

const refused = await fetch(address, { method: 'POST' })
console.log('without a token:', refused.status, refused.headers.get('www-authenticate'))

const client = new Client({ name: 'jwt-gateway-example', version: '1.0.0' })
const headers = { authorization: `Bearer ${token}` }
const transport = new StreamableHTTPClientTransport(new URL(address), { requestInit: { headers } })
await client.connect(transport)
const { content } = await client.callTool({ name: 'echo', arguments: { message: 'with a token' } })
await transport.terminateSession()
await client.close()
await app.close()
server.kill()
issuer.close()
issuer.closeAllConnections()

console.log('echo:', content)
assert.equal(refused.status, 401)
assert.deepEqual(content, [{ type: 'text', text: 'Echo: with a token' }])

async function freePort(): Promise<number> {
  const socket = createSocket().listen(0, '127.0.0.1')
  await once(socket, 'listening')
  const { port } = socket.address() as AddressInfo
  socket.close()
  await once(socket, 'close')
  return port
}
