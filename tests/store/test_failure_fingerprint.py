"""Failures of one cause have one fingerprint, whatever values their messages hold; those of two causes have two."""

from __future__ import annotations

import json
import random
import time
import traceback
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tachograph.summary import failure
from tachograph_exporter.store.failure_groups.fingerprint import fingerprint
from tachograph_exporter.store.failure_groups.frames import MAX_FRAMES, own_frames
from tachograph_exporter.store.failure_groups.template import MAX_TEMPLATE, VALUE, template_of

NOISE = [
    # Numbers.
    "17", "-3", "+4", "3.14159", "1e-9", "6.02E23", "1,234,567", "1_000_000", "12%", "60 %", "$12.50", "€ 3", "0", "-0",
    "0.0", "1.", ".5", "1st", "22nd", "3rd", "nan", "inf", "-inf", "1.5M", "100k", "٣٤", "٥", "0b1011", "0o777", "3/10",
    "3 of 10", "1 to 5", "5 - 7", "12x24", "1920x1080", "-122.4°", "48.8566, 2.3522", "2 + 2", "100 %", "1 / 3",
    # Hexadecimal numbers, digests, ids.
    "0x7f3a2b", "0xDEADBEEF", "0x0", "deadbeef", "ffffffff", "cafebabe", "d41d8cd98f00b204e9800998ecf8427e",
    "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "sha256:9f86d081884c7d65",
    "3f2504e0-4f89-11d3-9a0c-0305e82c3301", "3F2504E04F8911D39A0C0305E82C3301",
    "{3f2504e0-4f89-11d3-9a0c-0305e82c3301}", "urn:uuid:3f2504e0-4f89-11d3-9a0c-0305e82c3301",
    "01ARZ3NDEKTSV4RRFFQ69G5FAV", "507f1f77bcf86cd799439011", "order-12345", "ord_8f3k2", "job#123", "#42", "№ 7",
    "AB-1234", "INV-2026-00017", "x12", "A9", "b7c8", "a1b2c3", "4711/12", "etl-7d9f8b6c5d-x2x9z", "job_2026_11_30",
    "req_01HZX", "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWKPBdG", "AKIAIOSFODNN7EXAMPLE", "AbCdEfGhIjKlMnOpQrSt",
    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "arn:aws:s3:::bucket/key9", "YWJjZGVmZw==",
    "dGhpcyBpcyBhIHRlc3Q=", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0",
    "v1.2.3-rc1", "1.2.3", "2.0.0+build.7", "2026-W49", "Q4-2026", "0000000017", "user42", "node-3", "shard_12",
    # Paths and files.
    "/srv/data/orders.csv", "/tmp/x", "./rel/path", "../up", "~/home", "C:\\Users\\bob\\x.txt", "\\\\server\\share",
    "C:/x/y", "D:\\", "data/in/x", "in/orders.csv", "orders.csv", "report-final.parquet", "archive.tar.gz", "x.csv",
    "/",
    "//server/share/x", "/var/log/app.log:17", "src/load.py:12:5", "/a/b/c/", "s.sock",
    # URLs and addresses.
    "http://x.example.com/a?b=1&c=d", "https://user:pw@host:8080/x", "s3://bucket/key", "postgresql://u@h/db",
    "amqp://localhost//", "file:///etc/x", "ws://h/a,b", "10.0.0.7", "10.0.0.7:5432", "10.0.0.0/24", "::1", "fe80::1",
    "[::1]:8080", "2001:db8::ff00:42:8329", "aa:bb:cc:dd:ee:ff", "00-1B-63-84-45-E6", "host:5432", "db-1.internal",
    "db.prod.internal:5432", "worker-7.prod.example.com", "api.example.com", "localhost", "localhost:9000",
    "bob@example.com", "<bob@example.com>", '"Bob" <bob@example.com>', "git@github.com:a/b.git",
    # Times and durations.
    "2026-11-30", "2026/11/30", "30.11.2026", "11/30/26", "2026-11-30T07:12:36Z", "2026-11-30 07:12:36,123",
    "2026-11-30T07:12:36.123456+00:00", "2026-11-30 07:12:36 UTC", "07:12:36", "7:12 PM", "12:30", "1:2:3",
    "Mon, 30 Nov 2026 07:12:36 GMT", "Mon Nov 30 07:12:36 2026", "Nov 30 07:12:36", "30 November 2026",
    "November 30, 2026", "Sunday, May 3", "1764486756", "1764486756.123", "[30/Nov/2026:07:12:36 +0000]", "20261130",
    "5 s", "5s", "1.5 seconds", "1 second", "3 min", "2h3m", "2 h 3 min", "PT5M", "00:01:02.123",
    "1 hour and 5 minutes",
    "150ms", "150 ms", "17 µs", "3 hours ago", "2 days", "1 week",
    # Sizes and other measures.
    "12 MB", "1.2 GiB", "4096 bytes", "1 byte", "512k", "50 Mbit", "99.9 percent", "300 rpm", "3 GHz", "#ff00aa",
    "+49 170 1234567", "(555) 123-4567",
    # Quoted texts and collections.
    "'alice'", '"bob smith"', "`carol`", "“dave”", "«eve»", "„frank“", "'it\\'s'", "b'\\x00\\x01'",
    "'/a path/with space'",
    "'a', 'b', 'c'", "''", '""', "'He said \"no\"'", "r'x'", "u'x'", "[1, 2, 3]", "[]", "[7]", "(1, 2)", "()", "{}",
    "{'a': 1, 'b': 'x y'}", '{"id": 17, "n": [1,2]}', '{"id":17,"n":null}', "{'x', 'y'}", "[['a', 1], ['b', 2]]",
    "('GET', 17)", "{1: None}", "(4, 'x', NULL)", "(NULL, 'x', TRUE)", "[1, null, true]",
    '[{"a": [{"b": {"c": [1, []]}}]}]', '{"a": {"b": {"c": {"d": [null, {"e": false}]}}}}',
    '{\n  "a": {\n    "b": 1\n  },\n  "c": null\n}',
    # The same in other languages, scripts and notations.
    "Dienstag, 14. August 2012", "3. März", "vendredi 11 août 2028", "16 de agosto de 2000",
    "domingo, 3 de mayo de 2026", "mercoledì 25 luglio 2018", "8 de fevereiro de 2005", "24 сентября 2025 г.",
    "10 augustus 2010", "24 marca 2029", "2026年11月30日", "2026년 11월 30일", "「李雷」",
    "『李 雷』", "‹Zoë›", "5192,27 kr",
    "4328,37 €", "1 234,50 CHF", "two", "Seven", "thirty-two", "twenty thousand", "５６", "21 4d c8 16 be",
    "DE AD 00 EF", "::afbd", "fe80::1%eth0", "::1/128", "[2001:db8::1]:443", "OjHr4sE2NBBa5P5kzZ-U7",
    "ahsFMpKEVMavUUVggM-JR", "IjXAAUruayfHTLYqYRCCES", "00:1b:63:84:45:e6", "C:\\Program\\x y.csv",
    "'C:\\Program Files\\x y.csv'", "\\\\?\\C:\\x", "\x1b[31m17\x1b[0m", "\x1b[1m\x1b[38;5;196m'x'\x1b[m",
    "\x1b]8;;http://h/7\x1b\\link-7\x1b]8;;\x1b\\", "\u200b17", "1\u00a0204", "1\u202f204,5",
]  # fmt: skip
MESSAGES = [
    "cannot load {} from the queue",
    "cannot load {}",
    "{}: no such record",
    "record {} is bad (see {})",
    "key={} missing",
    "got {}, wanted more",
    "id={}, retry",
]


@pytest.mark.parametrize("message", MESSAGES)
def test_two_hundred_kinds_of_noise_make_one_template(message: str) -> None:
    assert len(set(NOISE)) == len(NOISE) >= 200
    expected = message.replace("{}", VALUE)
    wrong = {noise: template_of(message.replace("{}", noise)) for noise in NOISE}
    assert {noise: template for noise, template in wrong.items() if template != expected} == {}


@pytest.mark.parametrize(
    ("message", "template"),
    [
        ("can't open file 'x' for user's job", "can't open file <*> for user's job"),
        ("command ended with exit code 137: Killed", "command ended with exit code 137: Killed"),
        ("GET http://h/y answered 503 Service Unavailable", "GET <*> answered <*> Service Unavailable"),
        ("HTTP 404 Not Found", "HTTP 404 Not Found"),
        ("[Errno 13] Permission denied: '/x/y'", "[Errno 13] Permission denied: <*>"),
        ("ORA-00942: table or view does not exist", "ORA-00942: table or view does not exist"),
        ("invalid utf-8 byte 0xff at position 7", "invalid utf-8 byte <*> at position <*>"),
        ("expected int64, got float64", "expected int64, got float64"),
        ("user=alice role=admin status=500", "user=<*> role=<*> status=500"),
        ("load(3) failed", "load(<*>) failed"),
        ("read/write of application/json and/or text", "read/write of application/json and/or text"),
        ("a == b", "a == b"),
        ("load() and f(x) failed: [x] is no {y}", "load() and f(x) failed: [x] is no {y}"),
        ("it may take an hour", "it may take <*>"),
        ("expected two rows, got a few hundred", "expected <*> row, got <*>"),
        ("retry in a few seconds", "retry in <*>"),
        ("null is not true, nor None", "null is not true, nor None"),
        ("getURLFromHTTPResponse: XMLHttpRequestError", "getURLFromHTTPResponse: XMLHttpRequestError"),
        ("ein Tag im Mai war zu kurz", "ein Tag im Mai war zu kurz"),
        ("must be 21 or more", "must be <*> or more"),
        ("don't 'x", "don't 'x"),
    ],
)
def test_words_stay_and_so_do_codes_that_tell_causes_apart(message: str, template: str) -> None:
    assert template_of(message) == template


def test_one_row_and_two_rows_are_one_template() -> None:
    assert template_of("1 row is left over") == template_of("1,204 rows is left over")
    assert template_of("(1 sub-exception) in group") == template_of("(3 sub-exceptions) in group")


def test_how_many_lines_say_the_same_does_not_matter() -> None:
    def rows(count: int) -> str:
        return "cannot load:\n" + "\r\n".join(f"  row {i * 17}: bad value {f'v{i}'!r}" for i in range(1, count + 1))

    assert {template_of(rows(count)) for count in (1, 2, 9, 400)} == {"cannot load: row <*>: bad value <*>"}
    assert template_of("a\nb\na\nb") == "a b a b"


def test_where_a_long_message_is_cut_does_not_matter() -> None:
    rng = random.Random(7)

    def answer(count: int) -> str:
        rows = [{"id": rng.randrange(10**9), "name": "x" * rng.randrange(1, 30)} for _ in range(count)]
        return f"unexpected answer: {json.dumps(rows)}"

    assert {template_of(answer(count)) for count in (3, 60, 90, 91, 92, 93, 3_000)} == {"unexpected answer: <*>"}
    assert template_of("not found: '" + "ab c" * 30_000) == "not found: <*>"


def test_data_that_its_writer_cut_is_data() -> None:
    """Within a text in quotes, and within brackets."""
    texts = ('{"a": [1, "oy…', '{"rows": ["abc", "d...', '{"b": {"c": [1, 2, 3, …', '["x", 7, "y z…')
    assert {template_of(f"cannot load {text}") for text in texts} == {"cannot load <*>"}
    assert template_of("waiting for the lock...") == "waiting for the lock..."
    assert template_of("first\nsecond...") == "first second..."


def test_colours_and_invisible_characters_say_nothing() -> None:
    plain = template_of("load failed for job")
    for message in (
        "\x1b[31mload failed\x1b[0m for job", "\x1b[1m\x1b[91mload failed\x1b[0m for \x1b[4mjob\x1b[0m\x1b[K",
        "\x9b1;31mload failed\x9bm for job", "\x1b]8;;http://x/7\x1b\\load failed\x1b]8;;\x07 for job",
        "\ufeffload\u00a0failed\u200b for\u2028job", "lo\u00adad failed for job",
    ):  # fmt: skip
        assert template_of(message) == plain == "load failed for job", message


LETTERS = st.text(st.sampled_from("aZ9 <*>'\"`“”„‚»«「」/\\:=,.[](){}@-#%$?&^~;é٣½°\n\tb0x…\x1b"), max_size=300)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=300), LETTERS, st.lists(st.sampled_from(NOISE), max_size=12).map(" ".join)))
def test_the_template_of_a_template_is_itself(message: str) -> None:
    template = template_of(message)
    assert len(template) <= MAX_TEMPLATE
    assert template_of(template) == template


BLOCKS = [
    "\x1b[", "\x1b]", "NULL,", "<*>,", "ab ", "21 ab ", '{"a":', "「", "[{(", "1,NULL,", "\n<*>", "a1 de mayo ",
    "  | ", "  | a\n", "  +-- 1 --\n  | E: x\n", "'", '"', "a", "/", "=", "<*>", "( ", "a='", "[1,", "1 ", "aA",
    "mon ", "“x ", "`'\"", " to ", "\\", ":", "<*>,", "((((", "[[]]", "é", "{<*>", "a.", "A=", "0:", "- ", "//:",
    "at ", "@a", 'File "', "at a.b(", "x (y", "|", "$$", "at <", "created by a(", "Caused by: ", "a@b:1\n",
    "at a.b(C.java:1)\n", 'File "a", line 1, in b\n', "\\Lib\\a",
]  # fmt: skip


def least_seconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(3):
        began = time.thread_time()
        call()
        times.append(time.thread_time() - began)
    return min(times)


@pytest.mark.parametrize("read", [template_of, own_frames])
def test_hostile_texts_take_bounded_time(read: Callable[[str], object]) -> None:
    # Of 20,000 characters; quadratic time would be seconds.
    worst = max((least_seconds(lambda block=block: read((block * 20_000)[:20_000])), block) for block in BLOCKS)  # type: ignore[misc]
    assert worst[0] < 0.5, worst


def raised(call: Callable[[], object]) -> tuple[str, str, str | None]:
    try:
        call()
    except Exception as error:
        told = failure(error)
        return told.type, told.message, told.stack
    raise AssertionError("nothing was raised")


def parse(value: str) -> int:
    return int(value)


def load_users() -> int:
    return parse("x")


def load_orders() -> int:
    return parse("x")


def again(depth: int) -> int:
    return again(depth - 1) if depth else parse("x")


def wrapped() -> None:
    try:
        load_users()
    except ValueError as error:
        raise RuntimeError("cannot load") from error


def wrapped_otherwise() -> None:
    try:
        dict[str, str]()["x"]
    except KeyError as error:
        raise RuntimeError("cannot load") from error


def test_one_message_with_two_stacks_are_two_causes() -> None:
    users, orders = fingerprint(*raised(load_users)), fingerprint(*raised(load_orders))
    assert users.template == orders.template
    assert users.id != orders.id
    assert [frame.rpartition(".")[2] for frame in users.frames][-2:] == ["load_users", "parse"]
    # The same message and stack, but for what caused it.
    assert fingerprint(*raised(wrapped)).id != fingerprint(*raised(wrapped_otherwise)).id


def raise_(error: BaseException) -> None:
    raise error


def caused(*causes: BaseException) -> None:
    """Raise an error of one text, with others before it: the first is the cause of the second, and so on."""
    try:
        raise_(causes[0]) if len(causes) == 1 else caused(*causes[1:])
    except Exception as error:
        if len(causes) == 1:
            raise RuntimeError("cannot load") from error
        raise ValueError("between") from error


def grouped(*errors: Exception) -> None:
    raised_ones: list[Exception] = []
    for each in errors:
        try:
            raise_(each)
        except Exception as error:
            raised_ones.append(error)
    raise ExceptionGroup("unhandled errors in a TaskGroup", raised_ones)


def nested_group(*errors: Exception) -> None:
    try:
        grouped(*errors)
    except ExceptionGroup as error:
        raise ExceptionGroup("outer", [error, ValueError("of no interest")]) from None


def load_rows(default: Callable[[object], object]) -> None:
    json.dumps(object(), default=default)  # Own functions below those of a library.


def as_integer(value: object) -> object:
    raise TypeError("no")


def as_text(value: object) -> object:
    raise TypeError("no")


CAUSES: list[list[Callable[[], object]]] = [
    [lambda: caused(ConnectionError("disk 1 is full")), lambda: caused(ConnectionError("disk 22 is full"))],
    [lambda: caused(ConnectionError("no route to 10.0.0.7"))],
    [lambda: caused(OSError("disk 1 is full"))],
    [lambda: caused(KeyError("x"), OSError("disk 1 is full")),
     lambda: caused(KeyError("x"), OSError("disk 7 is full"))],
    [lambda: caused(KeyError("x"), OSError("disk 1 is read-only"))],
    [lambda: grouped(ValueError("bad row 1")), lambda: grouped(ValueError("bad row 2"), ValueError("bad row 3"))],
    [lambda: grouped(ValueError("bad column a"))],
    [lambda: grouped(TypeError("bad row 1"))],
    [lambda: grouped(TypeError("bad row 1"), KeyError("a")), lambda: grouped(KeyError("b"), TypeError("bad row 9"))],
    [lambda: nested_group(TypeError("bad row 1"), KeyError("a")),
     lambda: nested_group(KeyError("b"), TypeError("bad row 9"))],
    [lambda: load_rows(as_integer)],
    [lambda: load_rows(as_text)],
]  # fmt: skip


def test_causes_of_causes_members_of_groups_and_own_functions_tell_causes_apart() -> None:
    ids = [{fingerprint(*raised(call)).id for call in calls} for calls in CAUSES]
    assert [len(each) for each in ids] == [1] * len(CAUSES)
    assert len(set().union(*ids)) == len(CAUSES)


def test_a_group_is_read_as_python_prints_it() -> None:
    stacks = []
    for calls in ((TypeError("bad row 1"), KeyError("a")), (KeyError("b"), TypeError("bad row 9"))):
        try:
            grouped(*calls)
        except ExceptionGroup:
            stacks.append(traceback.format_exc())
    first, second = map(own_frames, stacks)
    assert first == second
    assert [frame for frame in first if frame.startswith("!")] == ["!KeyError", "!TypeError: bad row <*>"]
    # Of a stack whose beginning is not kept.
    assert {"!KeyError", "!TypeError: bad row <*>"} < {*own_frames(stacks[0][stacks[0].index("raise_") :])}


def test_depth_of_recursion_and_paths_do_not_tell_causes_apart() -> None:
    kind, message, stack = raised(lambda: again(3))
    assert fingerprint(kind, message, stack).id == fingerprint(*raised(lambda: again(9))).id
    assert stack is not None
    moved = stack.replace(__file__, "/srv/releases/17/tests/store/test_failure_fingerprint.py")
    moved = moved.replace("line ", "line 1")
    assert moved != stack
    assert fingerprint(kind, message, moved).id == fingerprint(kind, message, stack).id


JAVA = """java.lang.RuntimeException: no
\tat com.acme.Loader.load(Loader.java:17)
\tat com.acme.Loader.lambda$run$3(Loader.java:20)
\tat com.acme.Jobs$$EnhancerBySpringCGLIB$$1a2b3c.run(<generated>)
\tat java.base/java.util.concurrent.FutureTask.run(FutureTask.java:264)
\tat org.springframework.core.X.y(X.java:1)
\tat jdk.internal.reflect.GeneratedMethodAccessor12.invoke(Unknown Source)
Caused by: java.sql.SQLException: timeout
\tat com.acme.Db.query(Db.java:9)
\t... 23 more
"""
RUST = """thread 'main' panicked at src/load.rs:10:9:
index out of bounds: the len is 3 but the index is 99
stack backtrace:
   0: rust_begin_unwind
             at /rustc/79e9716c980570bfd1f666e3b16ac583f0168962/library/std/src/panicking.rs:597:5
   1: core::panicking::panic_fmt
             at /rustc/79e9716c980570bfd1f666e3b16ac583f0168962/library/core/src/panicking.rs:72:14
   2: shop::load::parse::{{closure}}
             at ./src/load.rs:10:9
   3: csv::reader::Reader<R>::records
             at /home/ci/.cargo/registry/src/index.crates.io-6f17d22bba15001f/csv-1.3.0/src/reader.rs:1:2
   4: <shop::load::Loader as shop::Run>::run
             at ./src/load.rs:31:5
   5: shop::main
             at ./src/main.rs:4:5
   6: core::ops::function::FnOnce::call_once
             at /rustc/79e9716c980570bfd1f666e3b16ac583f0168962/library/core/src/ops/function.rs:250:5
note: Some details are omitted, run with `RUST_BACKTRACE=full` for a verbose backtrace.
"""

RUST_SHORT = """Error: cannot load

Stack backtrace:
   0: anyhow::error::<impl core::convert::From<E> for anyhow::Error>::from
   1: 0x55d0c0a1b2c3 - etl::jobs::load::h0123456789abcdef
   2: etl::main::hfedcba9876543210
   3: std::rt::lang_start::{{closure}}
   4: main
   5: __libc_start_main"""

GO = """goroutine 1 [running]:
main.(*Loader).load(0xc000010000, {0x1, 0x2})
\t/home/x/app/loader.go:12 +0x1d
github.com/acme/etl/jobs.Run.func1()
\t/home/x/go/src/etl/jobs/run.go:40 +0x10
github.com/lib/pq.(*conn).query(...)
\t/root/go/pkg/mod/github.com/lib/pq@v1.10/conn.go:1
net/http.(*conn).serve(0x1)
\t/usr/local/go/src/net/http/server.go:12 +0x2
created by net/http.(*Server).Serve in goroutine 1
\t/usr/local/go/src/net/http/server.go:3086 +0x5cb
"""
JAVASCRIPT = """TypeError: no
    at load (/app/src/loader.js:10:5)
    at async Job.run (file:///app/src/job.mjs:3:1)
    at /app/src/main.a1b2c3d4.js:1:1
    at new Foo (C:\\app\\foo.js:1:2)
    at Object.<anonymous> (/app/node_modules/pg/lib/client.js:526:17)
    at process.processTicksAndRejections (node:internal/process/task_queues:95:5)
    at Array.map (<anonymous>)
"""
NET = """System.InvalidOperationException: no
   at Acme.Loader.Load(String path, Int32 n) in C:\\src\\Loader.cs:line 17
   at Acme.Jobs.<RunAsync>d__12.MoveNext() in /src/Jobs.cs:line 4
   at System.Threading.Tasks.Task.Execute()
--- End of stack trace from previous location ---
 ---> System.TimeoutException: late
"""


@pytest.mark.parametrize(
    ("stack", "frames"),
    [
        (JAVA, ("com.acme.Loader.load", "com.acme.Loader.lambda$run", "com.acme.Jobs.run",
                "!java.sql.SQLException: timeout",
                "com.acme.Db.query")),
        (RUST, ("shop::load::parse::{{closure}}", "<shop::load::Loader as shop::Run>::run", "shop::main")),
        (RUST_SHORT, ("etl::jobs::load", "etl::main")),
        (GO, ("main.(*Loader).load", "github.com/acme/etl/jobs.Run.func1")),
        (JAVASCRIPT, ("loader.load", "job.Job.run", "main.<anonymous>", "foo.Foo")),
        (NET, ("Acme.Loader.Load", "Acme.Jobs.<RunAsync>.MoveNext", "!System.TimeoutException: late")),
        ("load@https://x/app.js:10:5\n@https://x/app.js:1:1\n", ("app.load", "app.<anonymous>")),
        ("in no form that is known\n  at all", ()),
        ('Traceback (most recent call last):\n  File "/usr/lib/python3.11/json/decoder.py", line 355, in raw_decode\n'
         "json.decoder.JSONDecodeError: no", ("(decoder.raw_decode)",)),
    ],
)  # fmt: skip
def test_stacks_of_other_languages(stack: str, frames: tuple[str, ...]) -> None:
    assert own_frames(stack) in (frames, frames[::-1])
    assert own_frames(stack)[-1:] == (frames[-1:] if "File" in stack else frames[:1])


LINES = (
    "Traceback (most recent call last):", '  File "/app/a.py", line 3, in load', "    load(x)", "    ~~~~^^^",
    'File "/app/b.py", line 4, in save', "ValueError: no", "at com.acme.Loader.load(Loader.java:17)", "", "  ",
    "The above exception was the direct cause of the following exception:", "Caused by: java.io.IOException: x",
    "During handling of the above exception, another exception occurred:", "main.run(0x1)", "\t/app/x.go:3 +0x1",
    "  | ValueError: x", "    +------", "KeyError", "load@https://x/app.js:10:5",
)  # fmt: skip


@given(st.lists(st.sampled_from(LINES), max_size=12))
def test_frames_are_those_of_the_whole_stack_whatever_is_remembered(lines: list[str]) -> None:
    for stack in ("\n".join(lines), "\n".join([*LINES[:3], *lines]), "\n".join([*LINES[:3], *lines, LINES[5], ""])):
        assert fingerprint("E", "no", stack).frames == own_frames(stack)


def test_a_failure_that_says_nothing_is_told_apart_by_its_place() -> None:
    lost = ("Lost", "its process died: no sign of life since", None)
    assert fingerprint(*lost, "etl / load").id != fingerprint(*lost, "etl / save").id
    told = ("OSError", "disk full", None)
    assert fingerprint(*told, "etl / load") == fingerprint(*told, "etl / save")


@given(st.text(max_size=50), st.text(max_size=200), st.none() | st.text(max_size=400))
def test_any_texts_have_a_fingerprint(kind: str, message: str, stack: str | None) -> None:
    print_ = fingerprint(kind, message, stack)
    assert len(print_.id) == 16
    assert len(print_.frames) <= MAX_FRAMES
    assert print_ == fingerprint(kind, message, stack)
