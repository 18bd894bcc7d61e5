"""What Temporal's worker loads: a workflow of 100 activities, one after another."""

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
