"""Workflows: list, register, read, change, delete, validate, templates, execute."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import msgspec
from aiohttp import web
from opentelemetry import context as otel_context
from opentelemetry.propagate import extract
from sqlalchemy import Connection, Row
from sqlalchemy.exc import IntegrityError

from tachograph.errors import ExecutorClosed, InvalidInputs, InvalidWorkflow, StoreUnavailable
from tachograph.identity import ExecutionRef, new_execution_ref
from tachograph.quiet_log import QuietLog
from tachograph.spans.propagation import caller
from tachograph.workflow.definition import Workflow
from tachograph.workflow.document import active_flag, parse
from tachograph.workflow.executor import Executor
from tachograph.workflow.plan import Plan
from tachograph.workflow.validation import Report, validate_document
from tachograph_exporter import bundled_workflows
from tachograph_exporter.admission import AdmissionUnknown
from tachograph_exporter.api import problems
from tachograph_exporter.api.caching import check_preconditions, strong_tag
from tachograph_exporter.api.idempotency import answer, find_answer, keyed_request, once, respond
from tachograph_exporter.api.query import Query
from tachograph_exporter.api.request import (
    ADMISSION,
    CONFIG,
    DATABASE,
    EXECUTOR,
    WORKERS,
    decode_document,
    decode_long,
    find_workflow,
    json_response,
    project_of,
    project_slug,
    read_body,
    read_document,
    workflow_of,
    workspace_of,
)
from tachograph_exporter.api.routes import PAGE, Parameter, Route
from tachograph_exporter.store import definitions as definition_rows
from tachograph_exporter.store import locking
from tachograph_exporter.store.idempotency import Answer, KeyReused
from tachograph_exporter.store.removal import remove_workflow
from tachograph_exporter.store.tokens import WRITE
from tachograph_exporter.views.schemas.common import Page
from tachograph_exporter.views.schemas.workflows import (
    NewExecution,
    Submitted,
    ValidationResult,
    WorkflowDetail,
    WorkflowSummary,
)
from tachograph_exporter.views.workflows import (
    encodable_detail,
    template,
    validation_result,
    workflow_detail,
    workflow_list,
)

quiet = QuietLog(logging.getLogger(__name__))


async def _validated(request: web.Request, document: Mapping[str, Any]) -> tuple[Workflow | None, Report]:
    """The definition in a document, and its faults. A thousand steps take tens of milliseconds."""
    handlers = request.app[EXECUTOR].handlers
    return await request.app[WORKERS].run(lambda: validate_document(document, handlers))


async def list_workflows(request: web.Request) -> web.Response:
    """``GET /api/workflows``: the workflows, sorted by name."""
    query = Query(request)
    skip, limit = query.page()
    is_active, with_definitions = query.boolean("is_active"), query.boolean("include_steps") is not False
    query.done()
    workspace = await workspace_of(request)
    project = await project_of(request, workspace)

    def read_page(connection: Connection) -> bytes:
        # Built and encoded off the event loop: definitions may be large.
        rows, total = definition_rows.definitions(connection, workspace.id, project, skip, limit, is_active=is_active)
        items = workflow_list(rows, with_definitions=with_definitions)
        return msgspec.json.encode(Page(items, total, skip, limit))

    body = await request.app[DATABASE].read(read_page)
    return web.Response(body=body, content_type="application/json")


async def create(request: web.Request) -> web.Response:
    """``POST /api/workflows``: register a definition; 201 with its id."""
    body = await read_body(request)
    document = await decode_document(request, body)
    workspace = await workspace_of(request)
    project = await project_of(request, workspace)
    # Older clients name the project in the document.
    if project is None and isinstance(name := document.get("project_id"), str) and name:
        project = await project_slug(request, workspace, name)
    workflow, report = await _validated(request, document)
    if workflow is None:
        raise problems.invalid_workflow(report.errors)
    now, is_active = time.time_ns(), active_flag(document)
    # Of many steps it takes a lot of memory, and so does what comes.
    del document

    def save(connection: Connection) -> Answer:
        row = definition_rows.register(
            connection, workspace.id, project or "default", workflow, now, is_active=is_active
        )
        if row is None:
            raise problems.workflow_exists(workflow.name)
        return answer(encodable_detail(row, report.warnings), 201, f"/api/workflows/{row.id}", version_tag(row))

    try:
        return await once(request, keyed_request(request, body, workspace.id), save)
    except IntegrityError:
        raise problems.workflow_exists(workflow.name) from None


async def read(request: web.Request) -> web.Response:
    """``GET /api/workflows/{workflow_id}``: the workflow with its definition.

    `ETag` is the version of the definition, see `PATCH`.
    """
    query = Query(request)
    with_steps = query.boolean("include_steps") is not False
    query.done()
    row = await workflow_of(request, await workspace_of(request))
    detail = encodable_detail(row) if with_steps else workflow_detail(row, with_steps=False)
    return json_response(detail, headers={"ETag": version_tag(row)})


def version_tag(row: Row[Any]) -> str:
    """The entity tag of a definition; another one after each change."""
    return strong_tag(msgspec.json.encode([row.id, row.updated_ns, row.project, row.name, row.version, row.document]))


async def change(request: web.Request) -> web.Response:
    """``PATCH /api/workflows/{workflow_id}``: replace the given fields of the definition.

    With `If-Match` and the `ETag` of an earlier response, only if the definition is still that version; else 412.
    Without it, the fields are replaced in the newest version.
    """
    workspace = await workspace_of(request)
    listed = await workflow_of(request, workspace)
    changes = await read_document(request)
    now = time.time_ns()
    while True:
        row = await request.app[DATABASE].read(
            lambda c: definition_rows.definition(c, workspace.id, identifier=listed.id)
        )
        if row is None:
            raise problems.workflow_not_found(listed.id)
        check_preconditions(request, version_tag(row))
        if row.document is None:
            raise problems.not_runnable(row.name)
        is_active = active_flag(changes)
        workflow, report = None, Report([], [])
        # A definition that could not be registered any more, for instance without its handlers, can be switched off.
        if is_active is None or changes.keys() != {"is_active"}:
            workflow, report = await _validated(request, {**msgspec.json.decode(row.document), **changes})
            if workflow is None:
                raise problems.invalid_workflow(report.errors)
        # If somebody else changed it meanwhile, these fields are replaced in what it is then.
        saved = await request.app[DATABASE].write(partial(_replace, workspace.id, row, workflow, is_active, now))
        if saved is not None:
            return json_response(encodable_detail(saved, report.warnings), headers={"ETag": version_tag(saved)})


def _replace(
    workspace_id: str,
    row: Row[Any],
    workflow: Workflow | None,
    is_active: bool | None,
    now: int,
    connection: Connection,
) -> Row[Any] | None:
    """Put a definition in the place of ``row``; None if that is no longer the newest version.

    ``workflow`` and ``is_active``: None leaves them as they are.
    """
    locking.lock(connection)
    newest = definition_rows.definition(connection, workspace_id, identifier=row.id)
    if newest is None:
        raise problems.workflow_not_found(row.id)
    if version_tag(newest) != version_tag(row):
        return None
    try:
        if workflow is not None:
            definition_rows.change(connection, row.id, workflow, now, is_active=is_active)
        elif is_active is not None:
            definition_rows.set_active(connection, row.id, is_active=is_active, now_ns=now)
    except IntegrityError:
        raise problems.workflow_exists(workflow.name if workflow is not None else row.name) from None
    saved = definition_rows.definition(connection, workspace_id, identifier=row.id)
    assert saved is not None  # noqa: S101 - just written
    return saved


async def remove(request: web.Request) -> web.Response:
    """``DELETE /api/workflows/{workflow_id}``: delete it with all its executions; 409 while one of them is open.

    With `If-Match` and the `ETag` of an earlier response, only if the definition is still that version; else 412. A
    program that runs the workflow afterwards registers it again.
    """
    workspace = await workspace_of(request)
    name = request.match_info["workflow_id"]

    def delete(connection: Connection) -> None:
        # Locked while it is read, checked and deleted: no other change comes between.
        locking.lock(connection)
        row = find_workflow(connection, workspace, name)
        check_preconditions(request, version_tag(row))
        still_open = remove_workflow(connection, workspace.id, row.id)
        if still_open.total:
            raise problems.workflow_busy(row.name, still_open.total, still_open.ids)

    await request.app[DATABASE].write(delete)
    return web.Response(status=204)


async def validate(request: web.Request) -> web.Response:
    """``POST /api/workflows/validate``: list every fault of a definition; 200 whether or not it is valid."""
    document = await read_document(request)
    handlers = request.app[EXECUTOR].handlers

    def result() -> msgspec.Raw:
        # Encoded in the thread, too: a document may have thousands of faults.
        _, report = validate_document(document, handlers)
        return msgspec.Raw(msgspec.json.encode(validation_result(document, report)))

    return json_response(await request.app[WORKERS].run(result))


async def templates(_request: web.Request) -> web.Response:
    """``GET /api/workflows/templates``: example definitions, ready to be posted."""
    files = bundled_workflows.workflow_files()
    return json_response([template(path.stem, msgspec.json.decode(path.read_bytes())) for path in files])


async def execute(request: web.Request) -> web.Response:
    """``POST /api/workflows/{workflow_id}/execute``: start an execution; 202 once it is durably stored.

    It starts when it is stored, so that no step of one answered with 503 runs; the answer says so if the execution may
    be stored all the same, and then it ends as cancelled. Whether it started is not known when no answer comes. In both
    cases, send an `Idempotency-Key` to try again without starting another.
    """
    workspace = await workspace_of(request)
    row = await workflow_of(request, workspace)
    body = await read_body(request)
    new = await decode_long(request, body, NewExecution) if body.strip() else NewExecution()
    if row.document is None:
        raise problems.not_runnable(row.name)
    keyed = keyed_request(request, body, workspace.id)
    if keyed is not None and (earlier := await find_answer(request, keyed)) is not None:
        return respond(earlier, is_replayed=True)
    if not row.is_active:
        raise problems.workflow_inactive(row.name)
    executor, config = request.app[EXECUTOR], request.app[CONFIG]
    limit = config.max_executions + config.max_queued_executions
    if executor.open_executions >= limit:
        raise problems.too_many_executions(limit)
    token = otel_context.attach(extract(request.headers))
    try:
        execution = new_execution_ref(
            workspace=workspace.slug,
            workflow=row.name,
            workflow_id=row.id,
            parent=caller(),
            version=row.version,
            project=row.project,
        )
        plan = partial(_plan, executor, row.document, new.input_variables or {}, execution)
        is_large = len(row.document) > _LARGE_DOCUMENT
        accepted = executor.accept_plan(await request.app[WORKERS].run(plan) if is_large else plan())
    except InvalidInputs as error:
        raise problems.invalid_inputs(error.faults) from None
    except InvalidWorkflow as error:
        raise problems.invalid_workflow(error.faults) from None
    except ExecutorClosed:
        raise problems.shutting_down() from None
    finally:
        otel_context.detach(token)
    submitted = Submitted(execution_id=execution.execution_id, workflow_id=row.id, trace_id=execution.trace_id)
    expected = answer(submitted, 202, f"/api/workflows/executions/{execution.execution_id}")
    try:
        given = await request.app[ADMISSION].admit(accepted, expected, keyed)
    except KeyReused as error:
        raise problems.key_reused(error) from None
    except AdmissionUnknown as error:
        quiet.warning("not known", "it is not known whether an execution of %s was accepted: %s", row.name, error)
        raise problems.acceptance_unknown(is_keyed=keyed is not None) from None
    except StoreUnavailable as error:
        quiet.warning("not accepted", "an execution of %s was not accepted: %s", row.name, error)
        raise problems.not_durable() from None
    return respond(given, is_replayed=given is not expected)


def _plan(executor: Executor, document: str, inputs: Mapping[str, Any], execution: ExecutionRef) -> Plan:
    return executor.plan(_parse(document), inputs, execution=execution)


_LARGE_DOCUMENT: Final = 16_384
"""Characters. A larger definition, of some 200 steps, is read off the event loop: that takes more than 5 ms."""
_MAX_PARSED: Final = 64
_MAX_KEPT: Final = 100_000
"""Characters of a document that is kept parsed."""
_parsed: dict[str, Workflow] = {}


def _parse(document: str) -> Workflow:
    if len(document) > _MAX_KEPT:
        return parse(document)
    workflow = _parsed.get(document)
    if workflow is None:
        while len(_parsed) >= _MAX_PARSED:
            _parsed.pop(next(iter(_parsed), ""), None)  # Another thread may have been here.
        workflow = _parsed[document] = parse(document)
    return workflow


Document = dict[str, Any]
_EXAMPLE: Final = {
    "name": "nightly_import",
    "variables": [{"name": "rows", "data_type": "int", "default_value": 100}],
    "steps": [
        {"name": "extract", "config": {"handler": "sleep", "seconds": 0.1}},
        {"name": "load", "depends_on_steps": ["extract"], "max_retries": 2, "config": {"handler": "noop"}},
    ],
}

ROUTES: Final = (
    Route(method="GET", path="/api/workflows", handler=list_workflows, response=Page[WorkflowSummary],
          codes=("project_not_found",), query=(
              *PAGE,
              Parameter(name="is_active", kind="boolean", description="Only workflows that are active, or are not."),
              Parameter(name="include_steps", kind="boolean", default=True,
                        description="Whether to list their definitions too."))),
    Route(method="POST", path="/api/workflows", handler=create, scope=WRITE, body=Document, body_example=_EXAMPLE,
          creates=True, response=WorkflowDetail, status=201,
          codes=("project_not_found", "workflow_exists", "invalid_workflow")),
    Route(method="POST", path="/api/workflows/validate", handler=validate, body=Document, body_example=_EXAMPLE,
          in_workspace=False, response=ValidationResult),
    Route(method="GET", path="/api/workflows/templates", handler=templates, in_workspace=False,
          response=list[Document]),
    Route(method="GET", path="/api/workflows/{workflow_id}", handler=read, response=WorkflowDetail, query=(
              Parameter(name="include_steps", kind="boolean", default=True,
                        description="Whether to include its variables and steps."),)),
    Route(method="PATCH", path="/api/workflows/{workflow_id}", handler=change, scope=WRITE, body=Document,
          body_example={"version": "2"}, response=WorkflowDetail,
          codes=("not_runnable", "workflow_exists", "invalid_workflow", "precondition_failed")),
    Route(method="DELETE", path="/api/workflows/{workflow_id}", handler=remove, scope=WRITE, status=204,
          codes=("workflow_busy", "precondition_failed")),
    Route(method="POST", path="/api/workflows/{workflow_id}/execute", handler=execute, scope=WRITE, body=NewExecution,
          creates=True, body_is_optional=True, body_example={"input_variables": {"rows": 50}}, response=Submitted,
          status=202, codes=("not_runnable", "workflow_inactive", "invalid_inputs", "invalid_workflow",
                              "too_many_executions")),
)  # fmt: skip
