/** What `omproxy --help` shows of how it is called. */
export const synopsis = `stdio [options] [--] COMMAND [ARGS...]
       omproxy sse --url URL [options]
       omproxy http --url URL [options]
       omproxy --url URL [options]     (finds out which of the two transports it is)
       omproxy [--config FILE]         (proxy.config.{ts,js,json} says all)
       omproxy replay FILE             (serves a recording; with -- COMMAND or --url URL: compares)`

/** What it shows below the options. */
export const examples = `
omproxy stdio --help, omproxy sse --help, omproxy http --help, omproxy replay --help: their options.

Examples:
  omproxy stdio -- npx -y @modelcontextprotocol/server-everything
  omproxy stdio --use logger --env LOG=1 -- python -m my_server --verbose
  omproxy sse --url https://mcp.example.com/sse --header 'Authorization: Bearer $TOKEN'
  omproxy sse --url http://localhost:8080/sse --headers k=v,k2=v2 --timeout 5 --sse-read-timeout 300
  omproxy http --url https://mcp.example.com/mcp --use ./redact.js --use 'logger={"arguments":true}'
  omproxy --url https://mcp.example.com/mcp --log-level debug
  omproxy stdio --listen 3000 --use logger -- npx -y @modelcontextprotocol/server-everything
  omproxy --config proxy.config.json --watch
  omproxy http --listen 0.0.0.0:3000 --token-env TOKEN --allow-host mcp.lan --url https://mcp.example.com/mcp

Without a command and a URL a configuration file says what to do: --config FILE, or proxy.config.{ts,js,json} in this
directory. --server NAME chooses one of its mcpServers, --watch has its stack made anew whenever it changes, as SIGHUP
does. --use stands before its stack; --listen, with its options, and --log-level stand in place of what it says.

Middleware: 'logger' is one of this package's, './redact.js' a file, 'pkg/audit#audit={"file":"a.jsonl"}' an
export of a package's module, called with the options after '='. The first --use is next to the client.

Exit codes: 0 the client left, 1 failure, 2 usage or configuration, 69 the server could not be started or reached, 128 + signal.`
