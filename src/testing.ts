export { type TestClock, testClock } from './testing/clock.js'
export { type Deeds, type TestContextOptions, testContext } from './testing/context.js'
export { contract, type Invariant } from './testing/contract.js'
export {
  error,
  type ModernOptions,
  modern,
  notification,
  request,
  result,
  type Written,
  type WrittenParams,
} from './testing/messages.js'
export { type Said, type TestProxy, type Traffic, testProxy } from './testing/proxy.js'
export type { Answering, Player, Script } from './testing/script.js'
export type { Ends } from './testing/stage.js'
export type { ContractOptions, MakeStack } from './testing/trial.js'
