"""Workflows of 100 activities, sequential and all at once. Temporal's worker loads this module."""

import asyncio
from datetime import timedelta

from temporalio import activity, workflow

STEPS = 100


@activity.defn
async def nothing(before: int) -> int:
    return before


@workflow.defn
class Chain:
    @workflow.run
    async def run(self) -> int:
        value = 0
        for _ in range(STEPS):
            value = await workflow.execute_activity(nothing, value, start_to_close_timeout=timedelta(seconds=10))
        return value


@workflow.defn
class Wide:
    @workflow.run
    async def run(self) -> int:
        limit = timedelta(seconds=60)
        activities = [workflow.execute_activity(nothing, i, start_to_close_timeout=limit) for i in range(STEPS)]
        return len(await asyncio.gather(*activities))
