// usage: node client.mjs legacy|modern URL TOOL ARGS-JSON [MODE]
// Lists the tools, calls one, and prints {tools, version, result} as one line.
// Answers elicitation by accepting with "yes" for every property. MODE is how the
// modern client negotiates: auto, or legacy.
const [generation, url, tool, args, mode = 'auto'] = process.argv.slice(2);
const info = { name: `e2e-${generation}`, version: '1.0.0' };
const options = { capabilities: { elicitation: { form: {} } }, versionNegotiation: { mode } };
let Client, Transport, elicit;
if (generation === 'modern') {
  ({ Client, StreamableHTTPClientTransport: Transport } = await import('@modelcontextprotocol/client'));
  elicit = 'elicitation/create';
} else {
  ({ Client } = await import('@modelcontextprotocol/sdk/client/index.js'));
  ({ StreamableHTTPClientTransport: Transport } = await import('@modelcontextprotocol/sdk/client/streamableHttp.js'));
  ({ ElicitRequestSchema: elicit } = await import('@modelcontextprotocol/sdk/types.js'));
}
const client = new Client(info, options);
client.setRequestHandler(elicit, async ({ params }) => ({
  action: 'accept',
  content: Object.fromEntries(Object.keys(params.requestedSchema.properties).map((k) => [k, 'yes'])),
}));
const transport = new Transport(new URL(url));
await client.connect(transport);
const { tools } = await client.listTools();
const result = await client.callTool({ name: tool, arguments: JSON.parse(args) });
console.log(JSON.stringify({
  tools: tools.map((t) => t.name),
  version: transport.protocolVersion ?? client.getNegotiatedProtocolVersion?.() ?? '',
  result,
}));
await client.close();
process.exit(0);
