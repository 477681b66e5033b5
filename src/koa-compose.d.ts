declare module 'koa-compose' {
  export default function compose(steps: readonly unknown[]): (context: unknown, next: unknown) => Promise<void>
}
