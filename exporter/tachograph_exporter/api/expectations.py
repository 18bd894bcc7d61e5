"""What is expected of workflows, and notices about what does not hold."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Final, NamedTuple

from aiohttp import web
from sqlalchemy import Connection

from tachograph.identity import workspace_id as id_of_workspace
from tachograph.names import clean_name
from tachograph.workflow.document import read_expectation as read_document
from tachograph_exporter.api import problems
from tachograph_exporter.api.query import Query
from tachograph_exporter.api.request import CONFIG, DATABASE, decode_document, json_response, read_body, workspace_of
from tachograph_exporter.api.routes import PAGE, Parameter, Route
from tachograph_exporter.expectations.routing import Target
from tachograph_exporter.expectations.testing import tell_all_of_test
from tachograph_exporter.expectations.views import (
    notice_info,
    read_expectation_info,
    read_workflow_expectation,
    workflow_places,
)
from tachograph_exporter.store import expectations as expectation_rows
from tachograph_exporter.store import facts, locking
from tachograph_exporter.store import notices as notice_rows
from tachograph_exporter.store.tokens import ADMIN, WRITE
from tachograph_exporter.views.schemas.common import Page
from tachograph_exporter.views.schemas.expectations import (
    EXAMPLE,
    ExpectationDocument,
    NoticePage,
    ReceiverTests,
    WorkflowExpectation,
)


async def list_expectations(request: web.Request) -> web.Response:
    """``GET /api/expectations``: what is expected of a workspace's workflows, by name, and whether it holds now.

    Workflows of which nothing is said are listed, too: for them the defaults count.
    """
    query = Query(request)
    skip, limit = query.page()
    query.done()
    workspace = await workspace_of(request)
    own_id, now_ns = id_of_workspace(request.app[CONFIG].workspace), time.time_ns()

    def read(connection: Connection) -> Page[WorkflowExpectation]:
        expectations, places = workflow_places(connection, workspace.id, own_id)
        running = facts.open_executions(connection)
        items = [
            read_expectation_info(connection, expectations.of(workspace.id, name), key, running, now_ns)
            for name, key in places[skip : skip + limit]
        ]
        return Page(items, len(places), skip, limit)

    return json_response(await request.app[DATABASE].read(read))


async def read_expectation(request: web.Request) -> web.Response:
    """``GET /api/expectations/{workflow}``: what is expected of a workflow, who says so, and whether it holds now.

    A workflow that nothing is known of has the defaults.
    """
    Query(request).done()
    workspace = await workspace_of(request)
    return json_response(
        await request.app[DATABASE].read(
            partial(read_workflow_expectation, workspace_id=workspace.id, name=_name(request))
        )
    )


async def put_expectation(request: web.Request) -> web.Response:
    """``PUT /api/expectations/{workflow}``: say what is expected of a workflow.

    It is stronger than what any other place says, and replaces what was said here before. The workflow need not exist
    yet.
    """
    workspace = await workspace_of(request)
    document = await decode_document(request, await read_body(request))
    expectation, faults = read_document(document)
    if faults:
        raise problems.invalid_expectation(faults)
    name, now_ns = _name(request), time.time_ns()

    def save(connection: Connection) -> WorkflowExpectation:
        locking.lock(connection)
        expectation_rows.say(connection, workspace.id, name, expectation_rows.API, expectation, now_ns)
        return read_workflow_expectation(connection, workspace.id, name)

    return json_response(await request.app[DATABASE].write(save))


async def delete_expectation(request: web.Request) -> web.Response:
    """``DELETE /api/expectations/{workflow}``: take back what was said here, and what code or an engine said.

    What still runs says it again."""
    workspace = await workspace_of(request)
    name = _name(request)
    sources = (expectation_rows.API, expectation_rows.CODE, *expectation_rows.TAKEN_OVER)
    if not await request.app[DATABASE].write(lambda c: expectation_rows.forget(c, workspace.id, name, sources)):
        raise problems.expectation_not_found(name)
    return web.Response(status=204)


async def list_notices(request: web.Request) -> web.Response:
    """``GET /api/notices``: what did not hold in a workspace, the newest first, and what became of the messages."""
    query = Query(request)
    skip, limit = query.page()
    is_open = query.boolean("open") or False
    query.done()
    workspace = await workspace_of(request)
    rows = await request.app[DATABASE].read(
        lambda c: notice_rows.listed(c, workspace.id, is_open=is_open, skip=skip, limit=limit)
    )
    return json_response(NoticePage([notice_info(*row) for row in rows], skip, limit))


async def send_test_notices(request: web.Request) -> web.Response:
    """``POST /api/notices/test``: send a test message to this service's receivers now, and say which took it.

    The answer comes when each has answered, or has had its time: 10 s for a webhook, 30 s for all others.
    """
    query = Query(request)
    name = query.text("receiver")
    query.done()
    receivers = request.app[RECEIVERS]
    targets = [target for target in receivers.targets if name is None or target.name == name]
    return json_response(ReceiverTests(await tell_all_of_test(targets, receivers.link)))


def _name(request: web.Request) -> str:
    return clean_name(request.match_info["workflow"])


class Receivers(NamedTuple):
    """Who is told by this service, and the address under which people see it."""

    targets: Sequence[Target]
    link: str


RECEIVERS: Final = web.AppKey("receivers", Receivers)
_OPEN: Final = Parameter(name="open", kind="boolean", description="Only what does not hold now.")

ROUTES: Final = (
    Route(method="GET", path="/api/expectations", handler=list_expectations, query=PAGE,
          response=Page[WorkflowExpectation]),
    Route(method="GET", path="/api/expectations/{workflow}", handler=read_expectation, response=WorkflowExpectation),
    Route(method="PUT", path="/api/expectations/{workflow}", handler=put_expectation, scope=WRITE,
          body=ExpectationDocument, body_example=EXAMPLE, response=WorkflowExpectation),
    Route(method="DELETE", path="/api/expectations/{workflow}", handler=delete_expectation, scope=WRITE, status=204,
          codes=("expectation_not_found",)),
    Route(method="GET", path="/api/notices", handler=list_notices, query=(*PAGE, _OPEN), response=NoticePage),
    Route(method="POST", path="/api/notices/test", handler=send_test_notices, scope=ADMIN, in_workspace=False,
          query=(Parameter(name="receiver", description="Only the receiver with this name."),),
          response=ReceiverTests),
)  # fmt: skip
