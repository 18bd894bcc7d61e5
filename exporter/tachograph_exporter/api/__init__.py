"""The HTTP API, a room for each topic."""

from tachograph import otel_variables as _otel_variables  # first: it imports OpenTelemetry

del _otel_variables
