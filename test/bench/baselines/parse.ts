// Each line is parsed and written again, nothing else. parse.js COMMAND ARGS…
import { spawn } from 'node:child_process'
import type { Readable, Writable } from 'node:stream'
import { Lines } from '../lines.js'

const [command = '', ...args] = process.argv.slice(2)
const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'inherit'] })

function relay(from: Readable, to: Writable): void {
  const lines = new Lines((line) => {
    if (to.write(`${JSON.stringify(JSON.parse(line.toString()))}\n`) || from.isPaused()) return
    from.pause()
    to.once('drain', () => from.resume())
  })
  from.on('data', (chunk) => lines.push(chunk))
  from.once('end', () => to.end())
}

relay(process.stdin, child.stdin)
relay(child.stdout, process.stdout)
child.once('close', (code) => {
  process.exitCode = code ?? 1
})
