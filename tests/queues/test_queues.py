"""What waits in the queues of engines: sent by these to a real Redis, told as metrics and by the API."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from tests.conftest import Api, running
from tests.engines import processes

from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config, ConfigError
from tachograph_exporter.queues.broker import BrokerAddress, parse_broker
from tachograph_exporter.queues.watch import QueueWatch, open_broker

LENGTH = "workflow_queue_length"
OLDEST = "workflow_queue_oldest_message_timestamp_seconds"


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not processes.has_redis():
        pytest.skip("needs redis-server (apt-get install redis-server)")
    with processes.redis(tmp_path_factory.mktemp("redis")) as address:
        yield address


@pytest.fixture
def client(redis: str) -> Iterator[Any]:
    connection: Any = Redis.from_url(redis)
    connection.flushall()
    yield connection
    connection.close()


def states(text: str, now: float | None = None) -> dict[str, tuple[int, float | None]]:
    broker = open_broker(parse_broker(text))
    try:
        return {state.queue: (state.length, state.oldest) for state in broker.read(now or time.time())}
    finally:
        broker.close()


def test_rq(redis: str, client: Any) -> None:
    from rq import Queue

    before = time.time()
    high = Queue("high", connection=client)
    for _ in range(3):
        high.enqueue("shop.work")
    Queue("low", connection=client).enqueue("shop.work").cancel()
    told = states(f"rq+{redis}")
    assert (told["high"][0], told["low"]) == (3, (0, None))
    assert told["high"][1] is not None
    assert before - 0.001 <= told["high"][1] <= time.time()
    assert set(states(f"rq+{redis}?queue=other")) == {"other"}


def test_dramatiq(redis: str, client: Any) -> None:
    import dramatiq
    from dramatiq.brokers.redis import RedisBroker

    make: Any = RedisBroker
    broker = make(url=redis)
    actor: Any = dramatiq.actor(broker=broker, actor_name="work", queue_name="shop")(lambda: None)
    before = time.time()
    actor.send()
    actor.send()
    actor.send_with_options(delay=3_600_000)
    told = states(f"dramatiq+{redis}")
    broker.close()
    assert told.keys() == {"shop"}
    length, oldest = told["shop"]
    assert length == 2
    assert oldest is not None
    assert before - 0.001 <= oldest <= time.time()


@pytest.mark.slow
def test_celery_on_rabbitmq(tmp_path: Path) -> None:
    if not processes.has_rabbitmq():
        pytest.skip("needs RabbitMQ (apt-get install rabbitmq-server)")
    from celery import Celery

    with processes.rabbitmq(tmp_path) as address:
        with Celery("shop", broker=address, set_as_current=False) as app:
            for number in range(3):
                app.send_task("work", (number,))
            deadline = time.monotonic() + 60
            while states(f"celery+{address}") != {"celery": (3, None)} and time.monotonic() < deadline:
                time.sleep(0.05)
        # Declared by nobody, it is empty, and stays undeclared.
        for _ in range(2):
            told = states(f"celery+{address}?queue=celery&queue=other")
            assert told == {"celery": (3, None), "other": (0, None)}
        wrong = address.replace("guest:guest", "guest:wrong")
        with pytest.raises(Exception, match="ACCESS_REFUSED"):
            states(f"celery+{wrong}")


def told_of() -> None: ...


def test_celery(redis: str, client: Any) -> None:
    from celery import Celery

    from tachograph.integrations import celery as hooks

    app = Celery("shop", broker=redis)
    app.conf.broker_transport_options = {"queue_order_strategy": "priority"}
    app.send_task("shop.work", queue="celery")
    app.send_task("shop.work", queue="slow", priority=9)
    told = states(f"celery+{redis}")
    assert told == {"celery": (1, None), "slow": (1, None)}
    # What an instrumented sender sends says since when it waits.
    client.delete("slow\x06\x169", "slow")
    hooks.instrument(app)
    before = time.time()
    try:
        app.task(name="shop.told")(told_of).apply_async(queue="slow")
    finally:
        hooks.uninstrument(app)
        app.close()
    length, oldest = states(f"celery+{redis}?queue=slow")["slow"]
    assert length == 1
    assert oldest is not None
    assert before - 0.001 <= oldest <= time.time()


def test_huey(redis: str, client: Any) -> None:
    from huey import RedisHuey

    huey = RedisHuey("shop", url=redis)

    def work() -> None: ...

    task = huey.task()(work)
    task()
    task()
    task.schedule(delay=3600)
    # Its consumer takes what is due later out of the queue, too.
    assert states(f"huey+{redis}") == {"shop": (3, None)}


def test_arq_and_taskiq(redis: str, client: Any) -> None:
    """The keys that arq 0.28 and taskiq-redis 1.2 write; `make engines` has these engines themselves."""
    now = time.time()
    client.zadd("arq:queue", {"runs": (now - 50) * 1000, "waits": (now - 20) * 1000, "later": (now + 3600) * 1000})
    client.set("arq:in-progress:runs", b"1")
    ((length, oldest),) = states(f"arq+{redis}", now).values()
    assert length == 1
    assert oldest == pytest.approx(now - 20, abs=0.01)
    client.lpush("taskiq", b"1", b"2")
    assert states(f"taskiq+{redis}") == {"taskiq": (2, None)}
    client.delete("taskiq")
    ids = [client.xadd("taskiq", {b"data": b"{}"}) for _ in range(3)]
    assert states(f"taskiq+{redis}")["taskiq"][0] == 3
    client.xgroup_create("taskiq", "taskiq", id="0")
    client.xreadgroup("taskiq", "worker", {"taskiq": ">"}, count=1)
    length, oldest = states(f"taskiq+{redis}")["taskiq"]
    assert (length, oldest) == (2, int(ids[1].partition(b"-")[0]) / 1000)


async def test_the_service_shows_them_and_nothing_of_a_broker_that_is_away(
    redis: str, client: Any, tmp_path: Path
) -> None:
    from rq import Queue

    Queue("high", connection=client).enqueue("shop.work")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        away = closed.getsockname()[1]
    secret = f"rq+redis://:hunter2secret@127.0.0.1:{away}/0"
    config = Config(database=f"sqlite:///{tmp_path / 'shop.db'}", queues=(f"rq+{redis}", secret))
    async with running(config, HandlerRegistry()) as api:
        await _compare(api, redis, client)


async def _compare(api: Api, redis: str, client: Any) -> None:
    await api.service.queues.look()
    answer = await api.get("/api/queues")
    assert answer["is_watching"]
    shown, gone = answer["brokers"]
    assert [(queue["queue"], queue["length"]) for queue in shown["queues"]] == [("high", 1)]
    assert shown["error"] is None
    assert 0 <= shown["queues"][0]["oldest_seconds"] < 3600
    assert (gone["queues"], gone["error"]) == ([], "ConnectionError")
    metrics = await api.get("/metrics")
    place = redis.removeprefix("redis://")
    labels = f'{{broker="{place}",engine="rq",queue="high"}}'
    assert f"{LENGTH}{labels} 1.0\n" in metrics
    assert f"{OLDEST}{labels}" in metrics
    assert "hunter2secret" not in metrics + str(answer)
    # An empty queue is 0, and has no oldest message.
    client.delete("rq:queue:high")
    await api.service.queues.look()
    metrics = await api.get("/metrics")
    assert f"{LENGTH}{labels} 0.0\n" in metrics
    assert f"{OLDEST}{{" not in metrics


async def test_one_that_hangs_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    from tachograph_exporter.queues import watch as module

    going_on = threading.Event()

    class Slow:
        def read(self, now: float) -> list[Any]:
            going_on.wait(60)
            return []

        def close(self) -> None: ...

    class Quick(Slow):
        def read(self, now: float) -> list[Any]:
            return []

    def opened(address: BrokerAddress) -> Any:
        return Slow() if address.engine == "rq" else Quick()

    monkeypatch.setattr(module, "open_broker", opened)
    monkeypatch.setattr(module, "READ_SECONDS", 0.05)
    is_leader = [True]
    watch = QueueWatch(["rq+redis://a", "huey+redis://a"], lambda: is_leader[0])
    await watch.look()
    await watch.look()
    errors = {address.engine: read.error for address, read in watch.reads.items()}
    assert errors == {"rq": "it does not answer", "huey": None}
    is_leader[0] = False
    assert not watch.reads
    going_on.set()
    is_leader[0] = True
    while watch._pending:
        await watch.look()
    assert {read.error for read in watch.reads.values()} == {None}


@pytest.mark.parametrize(
    "text",
    ["redis://localhost", "rq+http://x", "kafka+redis://x", "rq+postgresql://x/y", "procrastinate+redis://x", "rq+redis://x:port",
     "", "rq+redis://[::1"],
)  # fmt: skip
def test_what_is_no_address_is_refused_without_its_password(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        QueueWatch([text.replace("//", "//:hunter2secret@")], lambda: True)
    assert "hunter2secret" not in str(refused.value)


async def test_procrastinate(postgres: Callable[..., str]) -> None:
    import asyncpg
    from procrastinate.schema import SchemaManager

    url = postgres().replace("postgresql+asyncpg://", "postgresql://")
    connection: Any = await asyncpg.connect(url)
    await connection.execute(SchemaManager(None).get_schema())  # type: ignore[arg-type]
    before = time.time()
    for queue, status, due in (
        ("shop", "todo", "NULL"), ("shop", "todo", "NULL"), ("shop", "todo", "now() + interval '1 hour'"),
        ("shop", "doing", "NULL"), ("done", "succeeded", "NULL"), ("late", "todo", "now() - interval '1 hour'"),
    ):  # fmt: skip
        # Its triggers note when a job is deferred.
        await connection.execute(
            "INSERT INTO procrastinate_jobs (queue_name, task_name, status, scheduled_at) "
            f"VALUES ('{queue}', 'work', '{status}', {due})"
        )
    await connection.close()
    told = await asyncio.to_thread(states, f"procrastinate+{url}")
    assert {name: length for name, (length, _) in told.items()} == {"shop": 2, "done": 0, "late": 1}
    oldest, late = told["shop"][1], told["late"][1]
    assert oldest is not None
    assert late is not None
    assert before - 60 <= oldest <= time.time() + 60
    assert late == pytest.approx(before - 3600, abs=60)
    assert (await asyncio.to_thread(states, f"procrastinate+{url}?queue=late")).keys() == {"late"}
