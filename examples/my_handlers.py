"""Handlers of your own, for `etl.json`: ``tachograph run examples/etl.json --handlers examples/my_handlers.py``."""

import tachograph


@tachograph.handler("my.extract")
def extract(context: tachograph.StepContext) -> list[int]:
    """Rows of the day; a plain function runs in a thread."""
    context.log(f"extracting {context.inputs['day']}")
    return [1, 2, 3]


@tachograph.handler("my.load")
async def load(context: tachograph.StepContext) -> dict[str, int]:
    """Load what the step ``extract`` returned."""
    rows = context.outputs["extract"]
    context.measure("rows", len(rows), "row")
    return {"rows": len(rows)}
