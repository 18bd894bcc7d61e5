"""TraceQL: from text to a tree (`parser`), and from the tree to functions of spans (`expressions`, `pipelines`).

Language: https://grafana.com/docs/tempo/latest/traceql/ and the grammar in Tempo's ``pkg/traceql/expr.y``.
"""
