// A faulty server over stdio. Arguments: the file of its journal.
import { spawn } from 'node:child_process'
import { appendFileSync } from 'node:fs'
import { aborted, behave, Desk } from './behaviour.mjs'

const [file] = process.argv.slice(2)
const who = `child-${process.pid}`
const desk = new Desk()
let serial = 0

const journal = (line) => appendFileSync(file, `${JSON.stringify({ who, ...line })}\n`)
const write = (text) => process.stdout.write(text)
const send = (message) => write(`${JSON.stringify(message)}\n`)

journal({ kind: 'start', pid: process.pid })

/** Writes all before the process ends: pipes are synchronous on POSIX. */
const faults = {
  exit: () => process.exit(3),
  exit0: () => process.exit(0),
  kill: () => process.kill(process.pid, 'SIGKILL'),
  // The last line that it wrote is still to be heard.
  'answer-exit': (answer) => {
    send(answer())
    process.exit(4)
  },
  'partial-exit': (answer) => {
    const text = JSON.stringify(answer())
    write(text.slice(0, text.length / 2))
    process.exit(5)
  },
  'close-stdout': () => process.stdout.end(),
  grandchild: () => {
    const child = spawn(process.execPath, ['-e', 'setTimeout(() => {}, 60000)'], { stdio: 'inherit' })
    journal({ kind: 'start', pid: child.pid })
    process.exit(6)
  },
  huge: (answer) => {
    const { id, result } = answer()
    write(`{"jsonrpc":"2.0","id":${JSON.stringify(id)},"result":{"padding":"${'x'.repeat(3 << 19)}",`)
    write(`${JSON.stringify(result).slice(1)}}\n`)
  },
  noise: (answer) => {
    write('Server listening …\n\n[info] {"jsonrpc":\n')
    write(Buffer.from([0xff, 0xfe, 0x0a]))
    write(`\r\n${JSON.stringify(answer())}\r\n`)
  },
  slow: (answer) => {
    const bytes = Buffer.from(`${JSON.stringify(answer())}\n`)
    const third = Math.ceil(bytes.length / 3)
    // Nothing else may come between.
    for (let at = 0; at < bytes.length; at += third) write(bytes.subarray(at, at + third))
  },
}

function out(id) {
  const { signal, done } = desk.open(id)
  return {
    done,
    way: {
      journal,
      number: () => ({ from: who, n: ++serial }),
      say: send,
      ask: (request) => desk.ask(request, send),
      answer: send,
      before: (fault) => {
        if (fault === 'crash') process.kill(process.pid, 'SIGKILL')
        return false
      },
      fault: (fault, answer) => {
        faults[fault]?.(answer)
        return faults[fault] !== undefined
      },
      isCancelled: () => signal.aborted,
      cancelled: aborted(signal),
    },
  }
}

function receive(message) {
  if (message.method === undefined) return desk.answer(message)
  if (message.id !== undefined) {
    const { way, done } = out(message.id)
    void behave(message, way).finally(done)
  } else if (message.method === 'notifications/cancelled') {
    journal({ kind: 'cancel' })
    desk.cancel(message.params.requestId)
  } else if (message.params?.seq !== undefined) {
    journal({ kind: 'note', life: message.params.life, seq: message.params.seq })
  }
  return undefined
}

let rest = Buffer.alloc(0)
process.stdin.on('data', (chunk) => {
  rest = Buffer.concat([rest, chunk])
  for (let end = rest.indexOf(10); end >= 0; end = rest.indexOf(10)) {
    const line = rest.subarray(0, end).toString()
    rest = rest.subarray(end + 1)
    receive(JSON.parse(line))
  }
})
process.stdin.on('end', () => process.exit(0))
process.stdout.on('error', () => process.exit(0))
