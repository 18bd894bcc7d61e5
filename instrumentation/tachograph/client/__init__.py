"""Reading runs from a service, in a program or a notebook.

``Client`` waits for each answer, ``AsyncClient`` is awaited. Both need the library only; frames need pandas or polars.

```python
from tachograph.client import Client

client = Client("http://127.0.0.1:9923")
print(client.why("last").sentence)
client.runs("nightly", since="7d").to_pandas()
```
"""

from tachograph.client.async_client import AsyncClient
from tachograph.client.client import Client
from tachograph.client.errors import ClientError, NotFound, ServiceProblem, ServiceUnreachable, UnexpectedAnswer
from tachograph.client.results import Failures, Report, Run, Runs

__all__ = [
    "AsyncClient",
    "Client",
    "ClientError",
    "Failures",
    "NotFound",
    "Report",
    "Run",
    "Runs",
    "ServiceProblem",
    "ServiceUnreachable",
    "UnexpectedAnswer",
]
