// A relay that changes a byte of the thousandth message from the server: bad.mjs stdio -- COMMAND ARGS…
import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'

const [command, ...args] = process.argv.slice(4)
const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'inherit'] })
process.stdin.pipe(child.stdin)
let count = 0
createInterface(child.stdout).on('line', (line) => {
  process.stdout.write(`${++count === 1_000 ? line.replace('x', 'y') : line}\n`)
})
