"""Recording: what a program does becomes events, and events reach their listeners."""

from tachograph import otel_variables as _otel_variables  # first: it imports OpenTelemetry

del _otel_variables
