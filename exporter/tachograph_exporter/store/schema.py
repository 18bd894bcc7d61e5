"""The tables, on SQLite and PostgreSQL alike. Times and durations are nanoseconds, times since the unix epoch.

Merging is part of the schema: the `Merge` of each column of the run tables says what happens when another version of
the same row arrives. That makes applying events idempotent and independent of their order, in the database
(`Rows.upsert`) and in memory (`Rows.merge`) alike.

``workflow_step_attempts`` has rows only for steps with more than one attempt. A definition is stored as its document;
steps and variables are read from it.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
    true,
)

from tachograph_exporter.store.merging import Merge, Rows

HEAD: Final = "0035"
"""The revision of this schema: the newest migration."""

metadata: Final = MetaData()


def _column(name: str, kind: Any, merge: Merge = Merge.KEEP, *args: Any, **options: Any) -> Column[Any]:
    return Column(name, kind, *args, info={"merge": merge}, **options)


workspaces: Final = Table(
    "workspaces",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("slug", String(200), nullable=False, unique=True),
    Column("name", String(200), nullable=False),
    Column("created_ns", BigInteger, nullable=False),
)

projects: Final = Table(
    "projects",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("workspace_id", String(36), ForeignKey("workspaces.id"), nullable=False),
    Column("slug", String(200), nullable=False),
    Column("name", String(200), nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    UniqueConstraint("workspace_id", "slug"),
)

workflow_definitions: Final = Table(
    "workflow_definitions",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("workspace_id", String(36), ForeignKey("workspaces.id"), nullable=False),
    Column("project", String(200), nullable=False, server_default="default"),
    Column("name", String(200), nullable=False),
    Column("description", Text, nullable=False, server_default=""),
    Column("version", String(200), nullable=False, server_default="1"),
    # The definition as JSON; null for a workflow known only from recorded runs.
    Column("document", Text),
    Column("created_ns", BigInteger, nullable=False),
    Column("updated_ns", BigInteger, nullable=False),
    # Whether the API may execute it.
    Column("is_active", Boolean, nullable=False, server_default=true()),
    UniqueConstraint("workspace_id", "name"),
)

HAS_ERROR: Final = "error_type IS NOT NULL OR error_message IS NOT NULL"
HAS_FAILED: Final = "error_type IS NOT NULL OR attempt > 1"
"""Steps of which an attempt failed."""
PART_CREATED: Final = "created_ns >> 40"
EXECUTION_LENGTH: Final = "coalesce(finished_ns, 9223372036854775807) - created_ns"
"""How long executions took; those that run are longer than any."""
PART_STARTED: Final = "start_ns >> 40"
TRACE_LENGTH: Final = "end_ns - start_ns"

workflow_executions: Final = Table(
    "workflow_executions",
    metadata,
    _column("execution_id", String(36), primary_key=True),
    _column("workspace_id", String(36), nullable=False),
    _column("project", String(200), nullable=False),
    _column("workflow_id", String(36), nullable=False),
    _column("workflow", String(200), nullable=False),
    _column("version", String(200), nullable=False),
    _column("trace_id", String(32), nullable=False),
    _column("span_id", String(16), nullable=False),
    _column("parent_span_id", String(16)),
    _column("created_ns", BigInteger, Merge.LOWEST, nullable=False),
    _column("rank", Integer, Merge.HIGHEST, nullable=False),
    _column("status", String(16), Merge.NEWEST, nullable=False),
    _column("queued_ns", BigInteger, Merge.LOWEST),
    _column("started_ns", BigInteger, Merge.LOWEST),
    _column("finished_ns", BigInteger, Merge.NEWEST),
    _column("last_seen_ns", BigInteger, Merge.HIGHEST, nullable=False),
    _column("process", String(300), Merge.OWNER),
    _column("step_count", Integer, Merge.NEWEST, nullable=False),
    _column("completed_step_count", Integer, Merge.NEWEST, nullable=False),
    _column("failed_step_count", Integer, Merge.NEWEST, nullable=False),
    _column("skipped_step_count", Integer, Merge.NEWEST, nullable=False),
    _column("work_ns", BigInteger, Merge.NEWEST),
    _column("critical_path_ns", BigInteger, Merge.NEWEST),
    _column("error_type", String(300), Merge.NEWEST),
    _column("error_message", Text, Merge.NEWEST),
    _column("error_stack", Text, Merge.NEWEST),
    _column("inputs", Text, Merge.FIRST),
    # Ids of the steps on the critical path, in order, as JSON.
    _column("critical_path", Text, Merge.NEWEST),
    # The execution, and its step, that this one ran inside.
    _column("parent_execution_id", String(36), Merge.FIRST),
    _column("parent_step_id", String(36), Merge.FIRST),
    # Its place among the executions of its workflow, see `numbers`. The last column: the writer fills it in.
    _column("number", BigInteger, Merge.FIRST),
    Index("ix_executions_workflow", "workspace_id", "workflow_id", text("created_ns DESC")),
    Index("ix_executions_workspace", "workspace_id", text("created_ns DESC")),
    Index("ix_executions_finished", "workspace_id", "workflow_id", "finished_ns"),
    Index("ix_executions_trace", "trace_id"),
    Index(
        "ix_executions_open",
        "last_seen_ns",
        sqlite_where=text("status IN ('pending', 'running')"),
        postgresql_where=text("status IN ('pending', 'running')"),
    ),
    Index(
        "ix_executions_unnumbered",
        "created_ns",
        sqlite_where=text("number IS NULL"),
        postgresql_where=text("number IS NULL"),
    ),
    Index("ix_executions_failed", "workspace_id", text("created_ns DESC"), sqlite_where=text(HAS_ERROR),
          postgresql_where=text(HAS_ERROR)),
    # By the part of time (see `store.durations`) in which they were created, and how long they took.
    Index("ix_executions_length", "workspace_id", text(f"({PART_CREATED})"), text(f"({EXECUTION_LENGTH})")),
)  # fmt: skip

# The highest number that an execution of a workflow has, see `numbers`.
execution_numbers: Final = Table(
    "execution_numbers",
    metadata,
    Column("workflow_id", String(36), primary_key=True),
    Column("last", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# Clustered by execution: a timeline is one range of the table.
workflow_step_executions: Final = Table(
    "workflow_step_executions",
    metadata,
    _column("execution_id", String(36), primary_key=True),
    _column("step_id", String(36), primary_key=True),
    _column("name", String(200), nullable=False),
    _column("step_type", String(16), nullable=False),
    _column("step_order", Integer, nullable=False),
    _column("repetition", Integer, nullable=False),
    _column("parent_step_id", String(36)),
    _column("span_id", String(16), nullable=False),
    _column("parent_span_id", String(16), nullable=False),
    _column("depends_on", Text, Merge.UNION, nullable=False),
    _column("rank", BigInteger, Merge.HIGHEST, nullable=False),
    _column("status", String(16), Merge.NEWEST, nullable=False),
    _column("attempt", Integer, Merge.NEWEST, nullable=False),
    _column("ready_ns", BigInteger, Merge.LOWEST),
    _column("started_ns", BigInteger, Merge.LOWEST),
    _column("attempt_started_ns", BigInteger, Merge.OF_ATTEMPT),
    _column("finished_ns", BigInteger, Merge.NEWEST),
    _column("dependency_ns", BigInteger, Merge.FIRST),
    # Totals over all attempts once the step has ended; until then, of the running attempt.
    _column("queue_ns", BigInteger, Merge.NEWEST),
    _column("backoff_ns", BigInteger, Merge.NEWEST),
    _column("run_ns", BigInteger, Merge.NEWEST),
    _column("error_type", String(300), Merge.NEWEST),
    _column("error_message", Text, Merge.NEWEST),
    _column("error_stack", Text, Merge.NEWEST),
    _column("skip_reason", String(32), Merge.NEWEST),
    _column("inputs", Text, Merge.FIRST),
    _column("output", Text, Merge.NEWEST),
    # The execution that the step ran.
    _column("child_execution_id", String(36), Merge.FIRST),
    # How many steps it waited for, where ``depends_on`` names only some of them; else 0.
    _column("dependency_count", Integer, nullable=False, server_default="0"),
    # Before the first attempt, when its dependencies were met and nothing had asked for it yet.
    _column("unaccounted_ns", BigInteger, Merge.FIRST),
    # What the repetitions add up to that share this row (a `tachograph.events.Folded` as JSON), and their number.
    _column("folded", Text, Merge.NEWEST),
    _column("folded_count", BigInteger, Merge.NEWEST),
    # What its engine calls an instance of a mapped step: a number or a key.
    _column("map_index", String(200)),
    # What its last attempt used of the machine (a `tachograph.events.Resources` as JSON).
    _column("resources", Text, Merge.NEWEST),
    # Before the first attempt, when it was asked for and not due yet.
    _column("scheduled_ns", BigInteger, Merge.FIRST),
    # When it was asked for, if it was asked for a later time, which is ``ready_ns``.
    _column("asked_ns", BigInteger, Merge.LOWEST),
    Index("ix_steps_failed", "execution_id", sqlite_where=text(HAS_FAILED), postgresql_where=text(HAS_FAILED)),
    sqlite_with_rowid=False,
)

workflow_step_attempts: Final = Table(
    "workflow_step_attempts",
    metadata,
    _column("execution_id", String(36), primary_key=True),
    _column("step_id", String(36), primary_key=True),
    _column("attempt", Integer, primary_key=True),
    _column("status", String(16), nullable=False),
    _column("started_ns", BigInteger, nullable=False),
    _column("finished_ns", BigInteger, nullable=False),
    _column("queue_ns", BigInteger, nullable=False),
    _column("backoff_ns", BigInteger, nullable=False),
    _column("error_type", String(300)),
    _column("error_message", Text),
    _column("error_stack", Text),
    _column("resources", Text),
    sqlite_with_rowid=False,
)

workflow_step_reports: Final = Table(
    "workflow_step_reports",
    metadata,
    Column("execution_id", String(36), primary_key=True),
    Column("step_id", String(36), primary_key=True),
    Column("sequence", Integer, primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("time_ns", BigInteger, nullable=False),
    # ``name`` and ``unit`` hold a measure's name and unit, a log's message and level, or a cost's model and currency.
    Column("name", Text, nullable=False),
    Column("unit", String(50), nullable=False),
    Column("value", Double, nullable=False),
    Column("tokens_in", BigInteger, nullable=False),
    Column("tokens_out", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# What running steps were seen doing, see `stacks`: of each attempt and kind (``now``, ``profile``) the newest.
# ``stacks`` is a JSON array of [stack, count], compressed by zlib.
step_stacks: Final = Table(
    "step_stacks",
    metadata,
    Column("execution_id", String(36), primary_key=True),
    Column("step_id", String(36), primary_key=True),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("kind", String(16), primary_key=True),
    Column("time_ns", BigInteger, nullable=False),
    Column("started_ns", BigInteger, nullable=False),
    Column("request", String(36), nullable=False),
    Column("samples", BigInteger, nullable=False),
    Column("interval_ns", BigInteger, nullable=False),
    Column("dropped", BigInteger, nullable=False),
    Column("cut", BigInteger, nullable=False),
    Column("stacks", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

# Who asks what the steps of an execution do now: the newest request of each execution.
stack_requests: Final = Table(
    "stack_requests",
    metadata,
    Column("execution_id", String(36), primary_key=True),
    Column("request", String(36), nullable=False),
    Column("requested_ns", BigInteger, nullable=False),
)

# Lines that code wrote while it did a step's work, see `step_lines`.
workflow_step_lines: Final = Table(
    "workflow_step_lines",
    metadata,
    Column("execution_id", String(36), primary_key=True),
    Column("step_id", String(36), primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("writer", String(36), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("time_ns", BigInteger, nullable=False),
    Column("severity", SmallInteger, nullable=False),
    Column("logger", String(200), nullable=False),
    Column("message", Text, nullable=False),
    Column("error_type", String(300)),
    Column("error_message", Text),
    Column("error_stack", Text),
    sqlite_with_rowid=False,
)

# Totals of executions, see `rollups`. ``period`` is 5m, 1h, 1d, 1mo or all, ``start_s`` is unix seconds. The totals are
# encoded (see `WorkflowTotals.encode`), so that a workflow of ten thousand steps costs one row, not ten thousand.
workflow_rollups: Final = Table(
    "workflow_rollups",
    metadata,
    Column("workspace_id", String(36), primary_key=True),
    Column("workflow_id", String(36), primary_key=True),
    Column("period", String(4), primary_key=True),
    Column("start_s", BigInteger, primary_key=True),
    Column("executions", LargeBinary, nullable=False),
    Column("steps", LargeBinary, nullable=False),
)

# The newest five minutes in which an execution of a workflow ended. ``revision`` grows when any of its rollup rows
# changes, ``closed_revision`` when a row other than a five-minute one does: caches compare them.
rollup_heads: Final = Table(
    "rollup_heads",
    metadata,
    Column("workspace_id", String(36), primary_key=True),
    Column("workflow_id", String(36), primary_key=True),
    Column("head_s", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("closed_revision", BigInteger, nullable=False),
)

# The series of ``/metrics`` of each step of each workflow, see `series`. ``step`` is "" for those of its executions.
workflow_series: Final = Table(
    "workflow_series",
    metadata,
    Column("workspace_id", String(36), primary_key=True),
    Column("workflow_id", String(36), primary_key=True),
    Column("step", String(200), primary_key=True),
    Column("series", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

# What commits added to the series and no row has absorbed yet, in order.
series_deltas: Final = Table(
    "series_deltas",
    metadata,
    # SQLite autoincrements only INTEGER columns.
    Column("id", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=True),
    Column("workspace_id", String(36), nullable=False),
    Column("workflow_id", String(36), nullable=False),
    Column("delta", LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)

# Executions that have ended but are not in the series yet, because spans of theirs may still arrive.
series_unsettled: Final = Table(
    "series_unsettled",
    metadata,
    Column("execution_id", String(36), primary_key=True),
    sqlite_with_rowid=False,
)

# Causes of failures, see `failure_groups`. ``group_id`` is the fingerprint's, made by the rules of ``version``;
# ``frames`` is a JSON array. ``first_ns`` and ``last_ns``: of those failures that are no longer among the occurrences.
# ``state`` is what a person said last: open, muted or resolved.
failure_groups: Final = Table(
    "failure_groups",
    metadata,
    Column("workspace_id", String(36), primary_key=True),
    Column("group_id", String(16), primary_key=True),
    Column("version", SmallInteger, nullable=False),
    Column("error_type", String(300), nullable=False),
    Column("template", Text, nullable=False),
    Column("frames", Text, nullable=False),
    Column("place", Text, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("first_ns", BigInteger),
    Column("last_ns", BigInteger),
    Column("state", String(16), nullable=False, server_default="open"),
    Column("state_ns", BigInteger),
    Column("state_by", String(200), nullable=False, server_default=""),
    Column("note", Text, nullable=False, server_default=""),
    sqlite_with_rowid=False,
)

# Failures, of an attempt that was retried, of a step, or of an execution (``step_id`` is ""): see
# `failure_groups.occurrences`. ``is_origin``: it failed by itself, not because something inside it did. ``cause``: a
# digest of its type and message.
failure_occurrences: Final = Table(
    "failure_occurrences",
    metadata,
    Column("execution_id", String(36), primary_key=True),
    Column("step_id", String(36), primary_key=True),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("kind", SmallInteger, primary_key=True, autoincrement=False),
    Column("workspace_id", String(36), nullable=False),
    Column("group_id", String(16), nullable=False),
    Column("workflow_id", String(36), nullable=False),
    Column("workflow_version", String(200), nullable=False),
    Column("step", String(200), nullable=False),
    Column("parent_step_id", String(36)),
    Column("cause", String(16), nullable=False),
    Column("is_origin", SmallInteger, nullable=False),
    Column("count", BigInteger, nullable=False),
    Column("time_ns", BigInteger, nullable=False),
    # With all that lists add up.
    Index("ix_failures_time", "workspace_id", "time_ns", "group_id", "workflow_id", "kind", "is_origin", "count"),
    Index("ix_failures_group", "workspace_id", "group_id", "time_ns"),
    Index("ix_failures_workflow", "workspace_id", "workflow_id"),
    sqlite_with_rowid=False,
)

# What places say is expected of workflows, as JSON. ``workspace_id`` is "" for what counts in all workspaces,
# ``workflow`` (a name) for what counts for all workflows. ``since_ns``: since when the schedule is expected.
workflow_expectations: Final = Table(
    "workflow_expectations",
    metadata,
    Column("workspace_id", String(36), primary_key=True),
    Column("workflow", String(200), primary_key=True),
    Column("source", String(16), primary_key=True),
    Column("document", Text, nullable=False),
    Column("since_ns", BigInteger, nullable=False),
    Column("updated_ns", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# What did not hold. ``key`` tells apart the faults of a kind: a fault has one row, however often it is evaluated.
notices: Final = Table(
    "notices",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("workspace_id", String(36), nullable=False),
    Column("workflow", String(200), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("key", String(200), nullable=False),
    Column("severity", String(16), nullable=False),
    Column("opened_ns", BigInteger, nullable=False),
    Column("told_ns", BigInteger, nullable=False),
    Column("resolved_ns", BigInteger),
    Column("text", Text, nullable=False),
    Column("recovery", Text, nullable=False, server_default=""),
    Column("execution_id", String(36)),
    # What kept it from being told; null again once it is told.
    Column("silence_id", String(36)),
    UniqueConstraint("workspace_id", "workflow", "kind", "key"),
    Index("ix_notices_told", "told_ns"),
    Index(
        "ix_notices_open",
        "workspace_id",
        sqlite_where=text("resolved_ns IS NULL"),
        postgresql_where=text("resolved_ns IS NULL"),
    ),
)

# Messages about notices, one for each receiver. ``phase`` is opened or recovered; ``state``: see `store.notices`.
notice_deliveries: Final = Table(
    "notice_deliveries",
    metadata,
    Column("notice_id", String(36), primary_key=True),
    Column("phase", String(16), primary_key=True),
    Column("target", String(100), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("tries", Integer, nullable=False),
    Column("next_ns", BigInteger, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("changed_ns", BigInteger, nullable=False),
    Column("sender", String(300), nullable=False, server_default=""),
    Column("reason", Text, nullable=False, server_default=""),
    Index(
        "ix_deliveries_due",
        "target",
        "next_ns",
        sqlite_where=text("state IN ('pending', 'sending')"),
        postgresql_where=text("state IN ('pending', 'sending')"),
    ),
    sqlite_with_rowid=False,
)

# Until when nobody is told of something. Null is any; ``workflow`` may have wildcards, ``severity`` is the greatest.
notice_silences: Final = Table(
    "notice_silences",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("workspace_id", String(36)),
    Column("workflow", String(200)),
    Column("kind", String(32)),
    Column("until_ns", BigInteger, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("reason", Text, nullable=False, server_default=""),
    Column("severity", String(16)),
    Column("created_by", String(200), nullable=False, server_default=""),
)

# ``scopes`` is separated by spaces. A token without a workspace is valid for all.
access_tokens: Final = Table(
    "access_tokens",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("name", String(200), nullable=False),
    Column("scopes", String(200), nullable=False),
    Column("workspace_id", String(36), ForeignKey("workspaces.id")),
    Column("created_ns", BigInteger, nullable=False),
    Column("expires_ns", BigInteger),
    Column("revoked_ns", BigInteger),
)

# The archive's index: the columns that lists show, and the file that holds everything else.
archived_executions: Final = Table(
    "archived_executions",
    metadata,
    *[
        Column(column.name, column.type, primary_key=column.primary_key, nullable=column.nullable)
        for column in workflow_executions.columns
        if column.name not in ("error_stack", "rank", "process", "critical_path")
    ],
    Column("archive", Text, nullable=False),
    Index("ix_archived_workflow", "workspace_id", "workflow_id", text("created_ns DESC")),
    Index("ix_archived_workspace", "workspace_id", text("created_ns DESC")),
    Index("ix_archived_failed", "workspace_id", text("created_ns DESC"), sqlite_where=text(HAS_ERROR),
          postgresql_where=text(HAS_ERROR)),
)  # fmt: skip

FAILED_OR_UNKNOWN: Final = "status = 2 OR status IS NULL"
"""Spans whose status is an error, or was not written by an earlier version."""
IS_ROOT: Final = "parent_span_id = ''"
IS_ROOTLESS: Final = "root_rank = 0"
"""Traces of whose spans all have a parent."""
IS_LEASED: Final = "lost_ns IS NULL"
"""Open spans whose lease has not run out."""

# Spans that arrived by OTLP. ``payload`` is the OTLP span; resource and scope are stored once, in ``span_resources``.
spans: Final = Table(
    "spans",
    metadata,
    Column("workspace_id", String(36), primary_key=True),
    Column("trace_id", String(32), primary_key=True),
    Column("span_id", String(16), primary_key=True),
    Column("parent_span_id", String(16), nullable=False),
    Column("name", Text, nullable=False),
    Column("service", String(200), nullable=False),
    Column("start_ns", BigInteger, nullable=False),
    Column("end_ns", BigInteger, nullable=False),
    Column("resource_id", String(32), nullable=False),
    Column("payload", LargeBinary, nullable=False),
    # What has been reported of it to listeners: 0 nothing, 1 everything, 2 only that its execution started.
    Column("told", SmallInteger, nullable=False, server_default="1"),
    # OTLP's numbers; NULL in rows of earlier versions.
    Column("kind", SmallInteger),
    Column("status", SmallInteger),
    # With the end, so that long spans of a service are found without reading all of them.
    Index("ix_spans_service", "workspace_id", "service", text("start_ns DESC"), "end_ns"),
    # By an expression, for those that ask for it: PostgreSQL would rather read all spans of a time from the newest on
    # than look for a service or a name, which may have none of them.
    Index("ix_spans_start", text("(start_ns + 0)")),
    # A name may be longer than PostgreSQL can index.
    Index("ix_spans_name", "workspace_id", text("substr(name, 1, 100)"), text("start_ns DESC"), "end_ns", "status"),
    Index("ix_spans_failed", "workspace_id", text("start_ns DESC"), sqlite_where=text(FAILED_OR_UNKNOWN),
          postgresql_where=text(FAILED_OR_UNKNOWN)),
    # With all that most metrics of roots read; SQLite looks at the parent again.
    Index("ix_spans_root", "workspace_id", text("start_ns DESC"), "end_ns", "kind", "status", "service",
          "parent_span_id", sqlite_where=text(IS_ROOT), postgresql_where=text(IS_ROOT)),
    sqlite_with_rowid=False,
)  # fmt: skip

# One row per trace of ``spans``, so that lists need not read spans. ``root_rank`` is 1 if the root is a span without a
# parent, 0 if it is the earliest span. ``due_ns``: when to assemble its executions (again), if ever. ``untold``: ids
# (8 bytes each) of spans that were stored before its executions were assembled with them: whatever their ``told`` says,
# nothing has been reported of them. Rows of spans are not written again when that changes.
traces: Final = Table(
    "traces",
    metadata,
    Column("workspace_id", String(36), primary_key=True),
    Column("trace_id", String(32), primary_key=True),
    Column("span_count", Integer, nullable=False),
    Column("changed_ns", BigInteger, nullable=False),
    Column("start_ns", BigInteger, nullable=False),
    Column("end_ns", BigInteger, nullable=False),
    Column("root_rank", SmallInteger, nullable=False),
    Column("root_start_ns", BigInteger, nullable=False),
    Column("root_service", String(200), nullable=False),
    Column("root_name", String(200), nullable=False),
    Column("due_ns", BigInteger),
    Column("untold", LargeBinary),
    Index("ix_traces_start", "workspace_id", text("start_ns DESC"), "end_ns"),
    Index("ix_traces_length", "workspace_id", text(f"({PART_STARTED})"), text(f"({TRACE_LENGTH})")),
    Index("ix_traces_rootless", "workspace_id", text("start_ns DESC"), "end_ns", "root_rank",
          sqlite_where=text(IS_ROOTLESS), postgresql_where=text(IS_ROOTLESS)),
    Index("ix_traces_root_name", "workspace_id", "root_name", text("start_ns DESC")),
    Index("ix_traces_root_service", "workspace_id", "root_service", text("start_ns DESC")),
    Index("ix_traces_due", "due_ns", sqlite_where=text("due_ns IS NOT NULL"),
          postgresql_where=text("due_ns IS NOT NULL")),
    sqlite_with_rowid=False,
)  # fmt: skip

# Spans that arrived without an end, until it arrives (see `store.open_spans`). ``first_ns`` and ``seen_ns`` are
# arrivals, by the clock of the service. ``size`` is the length of the payload, ``process`` a key of the process that
# sent it. ``lost_ns``: when it was last seen, by the clock of its sender, if its lease has run out; ``told_lost_ns``:
# the same, as far as listeners know.
open_spans: Final = Table(
    "open_spans",
    metadata,
    Column("workspace_id", String(36), primary_key=True),
    Column("trace_id", String(32), primary_key=True),
    Column("span_id", String(16), primary_key=True),
    Column("start_ns", BigInteger, nullable=False),
    Column("first_ns", BigInteger, nullable=False),
    Column("seen_ns", BigInteger, nullable=False),
    Column("size", Integer, nullable=False),
    Column("process", String(32), nullable=False),
    Column("lost_ns", BigInteger),
    Column("told_lost_ns", BigInteger),
    Index("ix_open_spans_process", "workspace_id", "process"),
    Index("ix_open_spans_leased", "workspace_id", sqlite_where=text(IS_LEASED), postgresql_where=text(IS_LEASED)),
    sqlite_with_rowid=False,
)  # fmt: skip

# OpenLineage events as they arrived (``payload``: JSON), and the part of them that executions are assembled from
# (``summary``: msgpack). ``trace_id``: of the spans that stand for their runs. ``is_read`` is 0 until these have it.
lineage_events: Final = Table(
    "lineage_events",
    metadata,
    Column("workspace_id", String(36), primary_key=True),
    Column("trace_id", String(32), primary_key=True),
    Column("event_id", String(32), primary_key=True),
    Column("time_ns", BigInteger, nullable=False),
    Column("is_read", SmallInteger, nullable=False),
    Column("summary", LargeBinary, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Index("ix_lineage_unread", "workspace_id", "trace_id", sqlite_where=text("is_read = 0"),
          postgresql_where=text("is_read = 0")),
)  # fmt: skip

# The trace in which a run is that something else than a span names: an OpenLineage run, or a run by its engine's id.
trace_keys: Final = Table(
    "trace_keys",
    metadata,
    Column("workspace_id", String(36), primary_key=True),
    Column("key", String(64), primary_key=True),
    Column("trace_id", String(32), nullable=False),
    Index("ix_trace_keys_trace", "workspace_id", "trace_id"),
    sqlite_with_rowid=False,
)

# What spans say, by day, for viewers' lists (see `store.span_index`). ``day`` counts days since 1970 in UTC; ``what``
# and ``source`` are its `What` and `Source`.
span_index: Final = Table(
    "span_index",
    metadata,
    Column("workspace_id", String(36), primary_key=True),
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("what", SmallInteger, primary_key=True),
    Column("name", String(200), primary_key=True),
    Column("source", SmallInteger, primary_key=True),
    Column("kind", SmallInteger, primary_key=True),
    Column("value", String(200), primary_key=True),
    sqlite_with_rowid=False,
)

# Which traces have an attribute's value, see `store.span_values`. ``day`` as above; ``token`` is a digest. In a row
# without a trace (``start_ns`` 0): so many have it that they are not noted.
span_values: Final = Table(
    "span_values",
    metadata,
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("token", BigInteger, primary_key=True, autoincrement=False),
    Column("start_ns", BigInteger, primary_key=True, autoincrement=False),
    Column("trace_id", String(32), primary_key=True),
    sqlite_with_rowid=False,
)

# Which executions have an input's value, likewise.
input_values: Final = Table(
    "input_values",
    metadata,
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("token", BigInteger, primary_key=True, autoincrement=False),
    Column("created_ns", BigInteger, primary_key=True, autoincrement=False),
    Column("execution_id", String(36), primary_key=True),
    sqlite_with_rowid=False,
)

span_resources: Final = Table(
    "span_resources",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("payload", LargeBinary, nullable=False),
)

IS_ERROR: Final = "error_type IS NOT NULL"
IS_UNKNOWN: Final = "NOT is_known"
"""Traces of log records of which neither spans nor an execution have been seen."""

# Log records that arrived by OTLP, with the span they were written in ("": they name only their trace). ``id`` is a
# digest of the record. ``error_*``: the exception that the record tells of.
span_logs: Final = Table(
    "span_logs",
    metadata,
    Column("workspace_id", String(36), primary_key=True),
    Column("trace_id", String(32), primary_key=True),
    Column("span_id", String(16), primary_key=True),
    Column("time_ns", BigInteger, primary_key=True, autoincrement=False),
    Column("id", String(16), primary_key=True),
    Column("severity", SmallInteger, nullable=False),
    Column("service", String(200), nullable=False),
    Column("event_name", String(200), nullable=False),
    Column("body", Text, nullable=False),
    # A JSON object.
    Column("attributes", Text),
    Column("error_type", String(300)),
    Column("error_message", Text),
    Column("error_stack", Text),
    Index("ix_span_logs_error", "workspace_id", "trace_id", "span_id", sqlite_where=text(IS_ERROR),
          postgresql_where=text(IS_ERROR)),
    sqlite_with_rowid=False,
)  # fmt: skip

# One row per trace of ``span_logs``.
log_traces: Final = Table(
    "log_traces",
    metadata,
    Column("workspace_id", String(36), primary_key=True),
    Column("trace_id", String(32), primary_key=True),
    Column("record_count", Integer, nullable=False),
    Column("dropped_count", BigInteger, nullable=False),
    Column("changed_ns", BigInteger, nullable=False),
    Column("is_known", Boolean, nullable=False),
    Index("ix_log_traces_changed", "changed_ns"),
    Index("ix_log_traces_unknown", "changed_ns", sqlite_where=text(IS_UNKNOWN), postgresql_where=text(IS_UNKNOWN)),
    sqlite_with_rowid=False,
)

# Processes that sent metrics about themselves by OTLP. ``process_id`` is a digest of what identifies them.
processes: Final = Table(
    "processes",
    metadata,
    Column("workspace_id", String(36), primary_key=True),
    Column("process_id", String(32), primary_key=True),
    Column("service", String(200), nullable=False),
    Column("instance_id", String(200), nullable=False),
    Column("host", String(200), nullable=False),
    Column("pid", BigInteger),
    Column("seen_ns", BigInteger, nullable=False),
    Index("ix_processes_seen", "workspace_id", "seen_ns"),
    Index("ix_processes_host", "workspace_id", "host", "pid"),
    sqlite_with_rowid=False,
)

# What they measured: one row per series and window, see `store.process_rows`. ``attributes`` is a JSON object.
process_metrics: Final = Table(
    "process_metrics",
    metadata,
    Column("workspace_id", String(36), primary_key=True),
    Column("process_id", String(32), primary_key=True),
    Column("name", String(200), primary_key=True),
    Column("attributes", String(500), primary_key=True),
    Column("window_s", BigInteger, primary_key=True, autoincrement=False),
    Column("unit", String(50), nullable=False),
    Column("kind", String(10), nullable=False),
    Column("latest", Double, nullable=False),
    Column("low", Double, nullable=False),
    Column("high", Double, nullable=False),
    Column("latest_ns", BigInteger, nullable=False),
    Index("ix_process_metrics_window", "window_s"),
    sqlite_with_rowid=False,
)

# Facts about the database itself, by name.
store_state: Final = Table(
    "store_state",
    metadata,
    Column("name", String(100), primary_key=True),
    Column("value", Text, nullable=False),
    Column("updated_ns", BigInteger, nullable=False),
)

# Recently committed events, in order, so that streams can resume (see `store.event_log`). ``events`` is msgpack;
# ``origin`` identifies the writer that committed them.
event_log: Final = Table(
    "event_log",
    metadata,
    # SQLite autoincrements only INTEGER columns.
    Column("sequence", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=True),
    Column("origin", String(36), nullable=False),
    Column("time_ns", BigInteger, nullable=False),
    Column("count", Integer, nullable=False),
    Column("events", LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)

# What could not be stored as what it is, see `store.refused`.
refused_records: Final = Table(
    "refused_records",
    metadata,
    Column("id", String(36), primary_key=True),
    # ``event`` (payload: the event as JSON), ``trace`` (an OTLP request with the spans) or ``lineage`` (the event).
    Column("kind", String(16), nullable=False),
    Column("workspace_id", String(36), nullable=False),
    Column("workspace", String(200), nullable=False),
    # The id of the execution or trace it belongs to.
    Column("subject", String(200), nullable=False),
    Column("reason", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("refused_ns", BigInteger, nullable=False),
    Column("tries", Integer, nullable=False),
)

# Answers to requests with an Idempotency-Key, see `store.idempotency`. ``answer`` can be read with the key only.
keyed_answers: Final = Table(
    "keyed_answers",
    metadata,
    Column("scope", String(300), primary_key=True),
    Column("digest", String(64), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("status", Integer, nullable=False),
    Column("nonce", LargeBinary, nullable=False),
    Column("answer", LargeBinary, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Index("ix_keyed_answers_created", "created_ns"),
)

# The number of the last batch of events of each sender, see `store.senders`.
event_senders: Final = Table(
    "event_senders",
    metadata,
    Column("workspace_id", String(36), primary_key=True),
    Column("sender", String(64), primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("seen_ns", BigInteger, nullable=False),
    Index("ix_event_senders_seen", "seen_ns"),
)


EXECUTION_ROWS: Final = Rows(workflow_executions)
STEP_ROWS: Final = Rows(workflow_step_executions)
ATTEMPT_ROWS: Final = Rows(workflow_step_attempts)
