// What Node can do at best: bytes are piped, of messages nothing is known. raw.js COMMAND ARGS…
import { spawn } from 'node:child_process'

const [command = '', ...args] = process.argv.slice(2)
const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'inherit'] })
process.stdin.pipe(child.stdin)
child.stdout.pipe(process.stdout)
child.once('close', (code) => process.exit(code ?? 1))
