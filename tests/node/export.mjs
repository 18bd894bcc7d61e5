// Sends one trace by OTLP/HTTP in JSON, with OpenTelemetry's own exporter for JavaScript.
// node export.mjs URL
import { SpanKind, SpanStatusCode, context, trace } from "@opentelemetry/api";
import { OTLPTraceExporter } from "@opentelemetry/exporter-trace-otlp-http";
import { BatchSpanProcessor, TracerProvider } from "@opentelemetry/sdk-trace";

const provider = new TracerProvider({
  spanProcessors: [new BatchSpanProcessor({ exporter: new OTLPTraceExporter({ url: process.argv[2] }) })],
});
const tracer = provider.getTracer("orders");
const run = tracer.startSpan("import orders", { kind: SpanKind.SERVER });
const inside = trace.setSpan(context.active(), run);
const begun = Date.now();
tracer.startSpan("fetch", { startTime: begun, attributes: { rows: 10 } }, inside).end(begun + 100);
const store = tracer.startSpan("store", { startTime: begun + 200 }, inside);
store.recordException(new TypeError("no space left"));
store.setStatus({ code: SpanStatusCode.ERROR, message: "no space left" });
store.end(begun + 250);
run.end(begun + 300);
await provider.shutdown();
