"""Kinds of values that the messages of real programs hold, and messages that differ in a word that means something.

Each kind is a few of its values: whichever of them a message holds, the failure is of one cause.
"""

from __future__ import annotations

import itertools

import pytest

from tachograph_exporter.store.failure_groups.template import VALUE, template_of

MESSAGES = [
    "upload of {} was refused by the store",
    "{} exceeds what a worker may use",
    "lookup failed ({}), giving up",
    "last value: {}",
]

# Each becomes one value, and nothing of it stays.
FOLDED: dict[str, tuple[str, ...]] = {
    # Numbers as they are written elsewhere.
    "German number": ("1.234.567,89", "12,5", "9.876,00"),
    "Swiss number": ("1'234'567.89", "1’234.50", "12’000"),
    "Indian number": ("12,34,567", "1,00,00,000.50"),
    "French number": ("1 234 567,89", "12\u202f345,6", "9\u00a0876"),
    "number in Devanagari": ("१२३४", "५६.७"),
    "number in Arabic": ("١٢٣٫٤٥", "٧٨٩"),
    "number in Thai": ("๑๒๓", "๔"),
    "minus sign": ("−5", "−1.5", "–7"),
    "fraction": ("½", "1½", "¾", "2 ⅓"),
    "plus or minus": ("±3", "± 0.25", "12 ± 3"),
    "about": ("~250", "≈3.2", "≈ 17", "~ 4"),
    "power": ("10^6", "2^32", "10⁶", "1.5×10⁻³", "3 × 10^8"),
    "scientific": ("2.5e+10", "1E-7", "6.02e23"),
    "hexadecimal float": ("0x1p-3", "0x1.8p+1"),
    "assembler's hexadecimal": ("0FFh", "1A2Bh"),
    "per mille": ("10‰", "0.5 ‰", "3 ppm", "40 ppb"),
    "ratio": ("3:2", "16:9", "1:1000"),
    "circled number": ("①", "⑫"),
    "percent": ("99.95%", "-3 %", "100 percent", "+0.1 pp"),
    "out of": ("3 out of 10", "17 out of 20"),
    "range": ("1..5", "1-5", "10–20", "3 — 9", "1 through 7", "5...9"),
    "currency before": ("USD 12.50", "EUR 3", "CHF 1'200.00", "GBP 0.99"),
    "currency sign before": ("¥ 1000", "₹ 5,00,000", "R$ 5,00", "₩ 1200", "kr 50"),
    "currency after": ("5 zł", "12.50 USD", "300 ₽", "7 kr"),
    # Times.
    "nanoseconds": ("2026-11-30T07:12:36.123456789Z", "2025-01-02T03:04:05.000000001Z"),
    "basic ISO": ("20261130T071236Z", "20250102T030405+0100", "20261130071236"),
    "RFC 5322 with a comment": ("Mon, 30 Nov 2026 07:12:36 +0100 (CET)", "Tue, 1 Dec 2026 23:00:00 -0500 (EST)"),
    "ordinal day": ("2026-334", "2025-001"),
    "zoned": ("2026-11-30T07:12:36+01:00[Europe/Berlin]", "2026-07-01T00:00:00-03:00[America/Argentina/Buenos_Aires]"),
    "zone by name": ("2026-11-30 07:12:36 Europe/Berlin", "2026-11-30 07:12 Asia/Kolkata"),
    "zone by letters": ("07:12:36 JST", "07:12 IST", "7:12 BST", "07:12:36 AEST", "07:12 MSK", "09:00 CST"),
    "zone by offset": ("07:12 UTC+2", "07:12:36 GMT-05:00", "12:00 UTC-3:30"),
    "Oracle's": ("30-NOV-26 07.12.36.123456 AM", "01-JAN-27 11.00.00.000000 PM"),
    "day with hyphens": ("30-Nov-2026", "1-Jan-2027"),
    "American": ("11/30/2026 7:12:36 AM", "1/2/2027 11:05:00 PM", "11/30/2026, 7:12:36 AM"),
    "dotted": ("2026.11.30", "30.11.26", "30. 11. 2026", "30.11.2026 07:12"),
    "German in words": ("30. Nov. 2026, 07:12 Uhr", "1. Dezember 2026 um 7:12 Uhr"),
    "French in words": ("30 novembre 2026 à 07:12", "1er décembre 2026 à 7h05"),
    "Spanish in words": ("30 de noviembre de 2026 a las 7:12", "1 de enero de 2027 a las 23:59"),
    "English in words": ("30th of November 2026", "November 30th, 2026 at 7:12 AM", "1st of May 2027"),
    "Go's": ("2026-11-30 07:12:36.123 +0000 UTC m=+0.000012", "2026-11-30 07:12:36 +0100 CET m=+17.5"),
    "Java's": ("Mon Nov 30 07:12:36 CET 2026", "Tue Dec 01 00:00:00 UTC 2026"),
    "JavaScript's": ("Mon Nov 30 2026 07:12:36 GMT+0100 (Central European Standard Time)",
                     "Tue Jul 07 2026 00:00:00 GMT-0400 (Eastern Daylight Time)"),
    "Unix milliseconds": ("1764486756123", "1764486756123456789"),
    "quarter": ("Q4 2026", "Q1/2027", "2026Q3", "FY2026", "FY26 Q2"),
    "clock": ("07:12:36.123456", "7h12", "12:30 p.m.", "11:59 a.m.", "0712 hrs", "T+00:05"),
    # Durations.
    "Go's duration": ("1m3.5s", "2h45m0s", "350.25µs", "1.5h"),
    "ISO duration": ("P1DT2H", "PT0.5S", "P3W", "P1Y2M3DT4H"),
    "days and hours": ("1d 2h 3m", "2 days, 3:04:05", "1 day 02:03:04", "4 days 3 hours"),
    "parts of a duration": ("350 ms 20 µs", "5min", "3 hrs 2 mins", "1 hour 2 minutes 3 seconds"),
    "duration elsewhere": ("5 Minuten", "3 Sekunden", "2 Stunden", "4 Tage", "3 heures", "2 jours", "5 segundos",
                           "3 horas", "2 días", "1 Minute", "7 minuti", "4 ore"),
    "timedelta": ("0:00:01.500000", "-1 day, 23:59:59", "12:00:00"),
    # Sizes and other measures.
    "rate": ("1.5 GB/s", "10 MB/s", "64 MiB/sec", "300 req/s", "20 rows/s", "12.5 it/s"),
    "bits a second": ("100Mbps", "2.5 Gbps", "9600 bps", "56 kbps"),
    "Kubernetes' quantity": ("250Mi", "2.5Gi", "500m", "1500Ki", "2 Ti"),
    "size of": ("128 KiB of 1 MiB", "5 MB of 10 MB", "1.2 of 3 GiB"),
    "Octets": ("512 Bytes", "1,024 KB", "3 octets", "20 Ko", "4 Mo", "1 Byte"),
    "temperature": ("37.2 °C", "-5°F", "98 °F", "293 K"),
    "length": ("12 km", "3.5 cm", "17 mm", "100 ft", "2.4 mi"),
    "weight": ("70 kg", "12.5 g", "3 lb", "4 mg"),
    "power and charge": ("3.3 V", "12 kWh", "4000 mAh", "5 W", "-70 dBm", "12 dB"),
    "frames": ("60 fps", "300 dpi", "900 IOPS"),
    "coordinates": ("40.7128° N, 74.0060° W", "52.52° N, 13.405° E"),
    "degrees, minutes, seconds": ("40°42'46\"N 74°0'21\"W", "52°31′12″N 13°24′18″E"),
    "pair of coordinates": ("(40.7128, -74.0060)", "(1, 2, 3)", "[13.4, 52.5]"),
    "dimensions": ("1024 x 768", "3×4", "(3, 224, 224)", "(17,)", "[32, 10]"),
    # Ids.
    "pod of a deployment": ("etl-6d4cf56db6-7xk2p", "etl-7f9bd84c9d-xkzqp", "etl-bcdfghjklm-wvtsr"),
    "pod of a job": ("etl-28471234-x7k2p", "nightly-load-28471234-bcdfg", "nightly-load-xkzqp"),
    "pod of a set": ("web-0", "db-primary-2", "kafka-broker-11"),
    "instance": ("i-0abcd1234ef567890", "ip-10-0-1-17.ec2.internal", "vol-049df61146c4d7901"),
    "ARN": ("arn:aws:lambda:eu-west-1:123456789012:function:load:17", "arn:aws:iam::123456789012:role/loader",
            "arn:aws:s3:::bucket-name"),
    "resource of Google": ("projects/p/topics/orders", "projects/acme/locations/europe-west1/jobs/load"),
    "resource of Azure": ("/subscriptions/1b2c/resourceGroups/rg/providers/Microsoft.Sql/servers/x",
                          "/subscriptions/9f/resourceGroups/etl"),
    "ULID": ("01ARZ3NDEKTSV4RRFFQ69G5FAV", "01h7zq3k9x2m4n6p8r0s2t4v6w"),
    "KSUID": ("0ujtsYcgvSTl8PAuAdqWYSMnLOv", "1srOrx2ZWZBpBUvZwXKQmoEYga2"),
    "cuid": ("ckopqwooh000001la8mbi2im9", "clh3l1ajk0000mn08o9q4g8a1"),
    "xid": ("9m4e2mr0ui3e8a215n4g", "c8s3vq1jc3k5h2g0n0ag"),
    "base58": ("1BoatSLRHtKNngkdXEeobR76b53LETtpyT", "5HueCGU8rMjxEXxiPuD5BDku4MkFqeZyd4dZ1jvhTVqvbTLvyTJ"),
    "CID": ("bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi",
            "QmT5NvUtoM5nWFfrQdVrFtvGfKFmG7AHE8P34isapyhCxX"),
    "push id": ("-JhLeOlGIEjaIOFHR0xd", "-N_x8qPZ1m3kQ0aBcDeF"),
    "short id": ("dQw4w9WgXcQ", "86Rf07", "NkK9"),
    "prefixed id": ("cus_NffrFeUfNV2Hib", "pi_3MtwBwLkdIwHu7ix28a3tqPa", "req-5f3a", "evt_1a2b"),
    "token": ("ghp_16C7e42F292c6912E7710c838347Ae178B4a", "xoxb-123456-abc", "sk-live-4eC39HqLyjWDarjtT1zdp7dc"),
    "bcrypt": ("$2b$12$EixZaYVK1fsbw1ZfbX3OXePaWxn96p36WQoeG6Lruj3vjPGga31lW",
               "$2a$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy"),
    "argon2": ("$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHQ$RdescudvJCsgt3ub+b27", "$argon2id$v=19$m=1,t=1,p=1$a2$b3"),
    "digest with its name": ("sha1:2fd4e1c67a2d28fced849ee1bb76e7391b93eb12", "md5:9e107d9d372bb6826bd81d3542a419d6",
                             "SHA256:nThbg6kXUpJWGl7E1IGOCspRomTxdCARLviKw6E5SY8"),
    "scheme of a password": ("{SSHA}0c0blFTXXNuAMHECS4uxrj3ZieMoWImr", "{SHA}2jmj7l5rSw0yVb/vlWAYkK/YBwk="),
    "Git": ("HEAD~3", "v1.2.3-14-g2414721", "refs/heads/main", "2414721b..9fceb02d", "origin/main"),
    "log sequence number": ("0/16B3748", "A3/FF000028", "16/B374D848"),
    "partition": ("orders-3@1204", "orders-0@9"),
    "thread of a pool": ("ThreadPoolExecutor-0_3", "pool-1-thread-7", "http-nio-8080-exec-3", "asyncio_7"),
    "worker": ("ForkPoolWorker-12", "SpawnProcess-3", "Thread-7", "Task-17", "celery@worker-4"),
    "generated table": ("stg_orders_20261130_071236", "stg_orders__dbt_tmp_0312", "#tmp8f3a", "pg_temp_3.orders_17"),
    "checksum": ("0x1A2B3C4D", "0x00007FFE12345678", "0xdeadBEEF"),
    "address in memory": ("@0x7f3a2b", "&0xc00012", "+0x1d", "[0x1f]", "0x7ffe`12345678"),
    "DOI and ISBN": ("doi:10.1000/182", "10.1145/3377811.3380364", "978-3-16-148410-0", "0-306-40615-X"),
    "bank and card": ("DE89 3704 0044 0532 0130 00", "4111-1111-1111-1111", "****1234"),
    "phone": ("+1-800-555-0199", "+44 (0)20 7946 0958", "tel:+4930123456"),
    # Networks.
    "address with a zone": ("fe80::1%eth0", "[fe80::1%25en0]:8080", "fe80::a00:27ff:fe4e:66a1%wlan0"),
    "address in an address": ("::ffff:10.0.0.7", "64:ff9b::192.0.2.33"),
    "range of addresses": ("10.0.0.1-10.0.0.9", "10.0.0.0/8", "2001:db8::/32"),
    "MAC": ("0a1b.2c3d.4e5f", "aa-bb-cc-dd-ee-ff", "AA:BB:CC:DD:EE:FF", "001B638445E6"),
    "port": (":8080", "0.0.0.0:0", "*:443", "[::]:80", "8080/tcp", "53/udp"),
    "name in a cluster": ("orders-db.default.svc.cluster.local:5432", "redis.cache.svc.cluster.local",
                          "db.cluster.local"),
    "international host": ("bücher.example", "例え.jp", "xn--bcher-kva.example", "кто.рф"),
    "host of newer domains": ("api.acme.ai", "www.acme.gov", "x.acme.edu:443", "acme.xyz", "acme.online", "db.acme.se",
                              "www.acme.com.br", "acme.co.uk", "node.consul", "acme.ca"),
    "host with a database": ("localhost:5432/orders", "db.internal/orders", "db:5432/orders?sslmode=require"),
    "mail address": ("bob@example.com", "bob+tag@mail.example.co.uk", "mailto:bob@example.com", "<bob@x.org>"),
    "JDBC": ("jdbc:postgresql://db/x?user=a", "jdbc:oracle:thin:@//db:1521/orcl", "jdbc:sqlite:/srv/x.db"),
    "other schemes": ("git+ssh://git@h/a.git", "redis://:pw@h:6379/0", "abfss://c@a.dfs.core.windows.net/x", "gs://b/k"),
    "data URL": ("data:image/png;base64,iVBORw0KGgoAAAANSUhEUg==", "data:text/plain;base64,SGVsbG8sIFdvcmxkIQ=="),
    "URN": ("urn:isbn:0451450523", "urn:oasis:names:tc:SAML:2.0:assertion", "urn:li:person:8675309"),
    "socket": ("unix:/var/run/docker.sock", "unix:///run/x.sock", "npipe:////./pipe/docker_engine"),
    "image": ("ghcr.io/acme/etl:1.2", "docker.io/library/redis@sha256:9f86d081884c7d65", "acme/etl:latest"),
    # Queries and pointers.
    "query string": ("?page=3&size=10", "a=1&b=2", "/search?q=caf%C3%A9+au+lait", "?q=x&sort=-created"),
    "percent encoded": ("caf%C3%A9", "a%20b%2Fc", "%E2%82%AC"),
    "JSON pointer": ("/items/3/price", "#/components/schemas/Order", "/a~1b/0"),
    "JSON path": ("$.items[3].price", "$['a'][0]", "$..id", "$.items[*].id"),
    "XPath": ("//order[@id='3']/line", "/orders/order[17]"),
    "place in a file": ("12:5", "3:5-9", "L12:C5", "load.py:12:5", "app.ts(12,5)", "main.go:40"),
    "glob": ("*.csv", "/srv/**/*.parquet", "data-??.json", "part-*.gz"),
    "cron": ("*/5 * * * *", "0 3 * * 1", "0 9 * * MON-FRI", "15,45 0-6 1 * *", "* * * * *"),
    # Files.
    "Windows path": ("C:\\Users\\bob\\AppData\\Local\\Temp\\tmp1a2b.csv", "D:\\x", "C:\\Program Files\\App\\x.dll",
                     "C:/Users/Bob Smith/x.csv"),
    "short Windows path": ("C:\\PROGRA~1\\APP", "\\\\.\\PHYSICALDRIVE0", "\\\\nas\\share\\x y.csv"),
    "path with spaces": ("/srv/my data/x.csv", "/Volumes/Backup Disk/a/b"),
    "file of other kinds": ("model.safetensors", "net.onnx", "scan.tiff", "order.proto", "main.rs", "clip.webm",
                            "notes.docx", "run.geojson", "lib.whl", "page.webp"),
    "temporary file": (".~lock.x.csv#", "x.csv.part", "x.csv.tmp", "~$x.docx", "x.csv~"),
    "device": ("/dev/sda1", "/dev/mapper/vg-root", "nvme0n1p2", "eth0", "/proc/17/fd/3"),
    "variable of a shell": ("$HOME/x", "${HOME}/x", "%TEMP%\\x", "$TMPDIR/a.csv"),
    # Texts from outside, in all quotes.
    "Guillemets the other way": ("»Zoë«", "»a b«", "›x‹"),
    "Swedish quotes": ("”Zoë”", "”a b”", "’x’"),
    "low single quotes": ("‚Zoë‘", "‚a b‘", "‚x’"),
    "wide quotes": ("＂Zoë＂", "＂a b＂", "＇x＇"),
    "corner brackets": ("｢Zoë｣", "「a b」", "【東京】", "〈名〉", "〖x〗"),
    "TeX quotes": ("``Zoë''", "``a b''"),
    "three quotes": ("'''a\nb'''", '"""a b"""'),
    "quotes in quotes": ("'O\\'Brien'", '"say \\"no\\""', "'a \"b\" c'", '"it\'s"', "\"O'Brien\""),
    "primes": ("5′", "6″", "12″"),
    "several lines": ('"a\nb\nc"', '"a"', "'x\r\ny'"),
    "doubled quotes": ("'it''s'", "'a'", "'O''Brien''s'"),
    # Collections.
    "list of ids": ("a1,b2,c3", "a1, b2 and c3", "7;8;9", "1, 2, …", "[1, 2, ...]", "1, 2, ... 9"),
    "slice of Go": ("[a1 b2 c3]", "[1 2 3]", "[]", "[7]"),
    "tuples": ("(1,)", "((1, 'a'), (2, 'b'))", "[(1, 2)]", "{(1, 2): 'x'}"),
    "nested JSON": ('{"a": {"b": [1, {"c": "d"}]}}', '{"k": "v"}', '[{"id": 1}, {"id": 2}]', '{"a":true,"b":[]}'),
    "cut JSON": ('{"a": [1, 2, {"b": "c"}], "d": null}', "{'a': None, 'b': [1, (2, 'x')]}"),
    "map of Ruby": ('{"a"=>1, "b"=>nil}', "{1=>2}", '{"x"=>"y z"}'),
    "bytes": ("b'\\x00\\xff'", 'b"x"', "\\x00\\x01\\x02", "0xC3 0xA9", "00 ff 10", "<00 ff 10>"),
    "code point": ("U+00E9", "\\u00e9", "\\U0001F600", "&#233;", "&#xE9;"),
    "progress": ("45%|████▌     | 45/100", "7%|▋         | 7/100", "100%|██████████| 100/100"),
    "masked": ("***", "*****", "••••"),
    "entity tag": ('W/"a1b2"', '"33a64df5"', 'W/"x"'),
}  # fmt: skip

# Words of these stay, and are the same whatever the values.
SHAPED: dict[str, tuple[str, ...]] = {
    "place": ("line 3 column 5 (char 27)", "line 120 column 17 (char 4711)"),
    "line and column": ("at line 3, col 5", "at line 17, col 1"),
    "object of Python": ("<acme.Loader object at 0x7f3a2b>", "<acme.Loader object at 0x11>"),
    "thread of Python": ("<Thread(Thread-7, started 1403)>", "<Thread(Thread-12, started 99)>"),
    "calls": ("Decimal('1.5')", "Decimal('17')"),
    "date and time": ("datetime.datetime(2026, 11, 30, 7, 12)", "datetime.datetime(2027, 1, 1, 0, 0, 0, 17)",
                      "datetime.datetime(2027, 1, 1, 0, 0)"),
    "array": ("array([1, 2, 3])", "array([[1., 2.], [3., 4.]])", "array([7])"),
    "tensor": ("tensor([1.0, 2.0], device='cuda:0')", "tensor([3.5], device='cuda:1')"),
    "keys": ("dict_keys(['a', 'b'])", "dict_keys(['x'])"),
    "path object": ("PosixPath('/x/y')", "PosixPath('z')"),
    "record of Java": ("User(id=1, name=bob)", "User(id=22, name=alice)"),
    "object of Java": ("com.acme.User@1b6d3586", "com.acme.User@7f31245a"),
    "record of Rust": ('User { id: 1, name: "x" }', 'User { id: 22, name: "y z" }'),
    "option": ("Some(17)", "Some(3)"),
    "struct of Go": ("&{Name:bob Age:3}", "&{Name:bob Age:44}"),
    "object of Ruby": ('#<User id: 1, name: "x">', '#<User id: 22, name: "y z">'),
    "ObjectId": ("ObjectId('507f1f77bcf86cd799439011')", "ObjectId('656f1f77bcf86cd799439abc')"),
    "key of PostgreSQL": ("Key (id)=(17) already exists.", "Key (id)=(a b) already exists.",
                          "Key (id)=(x) already exists."),
    "keys of PostgreSQL": ("Key (id, name)=(17, bob smith) already exists.", "Key (id, name)=(1, al) already exists."),
    "row of PostgreSQL": ("Failing row contains (17, bob smith, null, 2026-11-30 07:12:36+00).",
                          "Failing row contains (18, al, f, null)."),
    "key of SQL Server": ("The duplicate key value is (17, bob).", "The duplicate key value is (al smith)."),
    "statement": ("INSERT INTO t VALUES (1, 'a', NULL)", "INSERT INTO t VALUES (22, 'b c', 3.5)"),
    "in a list": ("WHERE id IN (1,2,3)", "WHERE id IN (7)", "WHERE id IN (1, 2, 3, 4, 5, 6)"),
    "header": ("Content-Length: 1234", "Content-Length: 7"),
    "retry header": ("Retry-After: 120", "Retry-After: Mon, 30 Nov 2026 07:12:36 GMT"),
    "bearer": ("Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.e30.x7", "Authorization: Bearer abc123"),
    "cookie": ("Set-Cookie: sid=abc; Path=/", "Set-Cookie: sid=x17; Path=/y"),
    "cache": ("Cache-Control: max-age=3600", "Cache-Control: max-age=0"),
    "count of rows": ("1 row is missing", "2 rows are missing", "1,204 rows are missing"),
    "count of entries": ("1 entry was bad", "7 entries were bad"),
    "count of matches": ("1 match has no end", "3 matches have no end"),
    "count of bytes": ("1 byte is left", "17 bytes are left"),
    "attempts": ("attempt 2/5 failed", "attempt 3 of 5 failed", "attempt 17 failed"),
    "caret": ("syntax error at\n   ~~~^^^~~", "syntax error at\n          ~^"),
    "bar": ("[=====>     ] 45%", "[=>         ] 7%", "[==========>] 99%"),
    "pydantic": ("1 validation error for Order", "3 validation errors for Order"),
    "hosts of a pool": ("HTTPSConnectionPool(host='a.example.com', port=443): Max retries exceeded with url: /x?id=1",
                        "HTTPSConnectionPool(host='b', port=8443): Max retries exceeded with url: /y/z"),
    "kubelet": ("Back-off 5m0s restarting failed container=load pod=load-7xk2p_default(1b2c)",
                "Back-off 10s restarting failed container=save pod=save-xkzqp_default(9f)"),
}  # fmt: skip

# In each, two messages that are two causes.
APART: list[tuple[str, str]] = [
    ("HTTP 404 for /x", "HTTP 500 for /x"),
    ("HTTP/1.1 404", "HTTP/1.1 500"),
    ("Request failed with status code 404", "Request failed with status code 500"),
    ("status: 404", "status: 503"),
    ("status=404", "status=503"),
    ("HTTP Error 404", "HTTP Error 403"),
    ("response code 401", "response code 403"),
    ("[Errno 13] x", "[Errno 2] x"),
    ("errno=13", "errno=2"),
    ("[WinError 5] x", "[WinError 32] x"),
    ("HRESULT: 0x80070005", "HRESULT: 0x80070002"),
    ("exit code 0xC0000005", "exit code 0xC0000409"),
    ("ORA-00001: x", "ORA-00942: x"),
    ("SQLSTATE[42S02]: x", "SQLSTATE[23000]: x"),
    ("x (SQLSTATE 42P01)", "x (SQLSTATE 23505)"),
    ("SQLSTATE=42704", "SQLSTATE=42P01"),
    ("SQLCODE=-204", "SQLCODE=-911"),
    ("AADSTS50034: x", "AADSTS50126: x"),
    ("TS2322: x", "TS2345: x"),
    ("exit code 1", "exit code 137"),
    ("exited with code 1", "exited with code 137"),
    ("returned non-zero exit status 1", "returned non-zero exit status 2"),
    ("killed by signal 9", "killed by signal 15"),
    ("exitCode: 1", "exitCode: 2"),
    ("rc=1", "rc=127"),
    ("error code 5", "error code 32"),
    ("ENOENT: no file", "EACCES: no file"),
    ("connect ECONNREFUSED 10.0.0.7:5432", "connect ECONNRESET 10.0.0.7:5432"),
    ("code = Unavailable desc = x", "code = DeadlineExceeded desc = x"),
    ("code=Unavailable", "code=NotFound"),
    ("reason=OOMKilled", "reason=Evicted"),
    ("state=failed", "state=cancelled"),
    ("cannot reach db-primary", "cannot reach db-replica"),
    ("no leader among the readers", "no leader among the writers"),
    ("column user_id is null", "column order_id is null"),
    ("UNIQUE constraint failed: orders.id", "UNIQUE constraint failed: orders.email"),
    ("unique constraint (SCOTT.PK_EMP) violated", "unique constraint (SCOTT.PK_DEPT) violated"),
    ("Key (id)=(17) already exists.", "Key (email)=(17) already exists."),
    ("raised ValueError", "raised KeyError"),
    ("no bean com.acme.orders.Loader", "no bean com.acme.orders.Saver"),
    ("module acme.load has no attribute run", "module acme.save has no attribute run"),
    ("unknown encoding utf-8", "unknown encoding latin-1"),
    ("expected int32", "expected int64"),
    ("expected str, got int", "expected int, got str"),
    ("expected bfloat16", "expected float16"),
    ("TLSv1.2 is not supported", "TLSv1.3 is not supported"),
    ("no IPv4 route", "no IPv6 route"),
    ("cannot import boto3", "cannot import psycopg2"),
    ("cannot verify ed25519 key", "cannot verify secp256k1 key"),
    ("no codec h264", "no codec vp9"),
    ("GET http://x/y failed", "POST http://x/y failed"),
    ("read of 17 bytes timed out", "write of 17 bytes timed out"),
    ("connect timed out after 5 s", "read timed out after 5 s"),
    ("too few arguments: 3", "too many arguments: 3"),
    ("17 must be > 5", "17 must be < 5"),
    ("x must be >= 5", "x must be <= 5"),
    ("0 rows", "no rows"),
    ("before 2026-11-30", "after 2026-11-30"),
    ("'x' not found", "'x' found twice"),
    ("disk full at 17 %", "quota full at 17 %"),
    ("SIGKILL after 5 s", "SIGTERM after 5 s"),
    ("null value in 3 rows", "missing value in 3 rows"),
    ("user 17 is locked", "group 17 is locked"),
    ("redirect-https failed", "redirect-http failed"),
    ("parse-xhtml failed", "parse-html failed"),
    ("SSLCertVerificationError", "SSLZeroReturnError"),
    ("PyTorchCUDAOutOfMemoryError", "PyTorchCUDADriverError"),
    ("macOSVersionTooOldError", "macOSVersionTooNewError"),
    ("GraphQLRequestError", "GraphQLResponseError"),
    ("cannot call System.out", "cannot call System.err"),
    ("json.dump failed", "json.load failed"),
    ("df.at is read-only", "df.iloc is read-only"),
    ("step a failed after 3 s", "step b failed after 3 s"),
    ("in 3 s", "3 s ago, in"),
    ("a lock of orders", "a lock of users"),
    ("text/html is not accepted", "application/json is not accepted"),
    ("and/or is no operator", "input/output is no operator"),
    ("left - 5", "right - 5"),
    ("region eu is down", "region us is down"),
    ("open circuit", "closed circuit"),
]  # fmt: skip


@pytest.mark.parametrize("message", MESSAGES)
def test_values_of_a_hundred_further_kinds_are_folded(message: str) -> None:
    assert len(FOLDED) >= 100
    expected = template_of(message.replace("{}", "17"))
    assert expected.count(VALUE) == 1
    wrong = {
        (kind, value): template
        for kind, values in FOLDED.items()
        for value in values
        if (template := template_of(message.replace("{}", value))) != expected
    }
    assert wrong == {}


@pytest.mark.parametrize("message", [*MESSAGES, "{}"])
def test_what_has_words_beside_its_values_is_one_template(message: str) -> None:
    templates = {
        kind: {template_of(message.replace("{}", value)) for value in values} for kind, values in SHAPED.items()
    }
    assert {kind: found for kind, found in templates.items() if len(found) > 1} == {}
    # And each is another one.
    assert len(set(itertools.chain(*templates.values()))) >= len(SHAPED) - 2


@pytest.mark.parametrize("message", ["{}", "step 17 of run 4f3c2b1a9d8e7f60: {}"])
def test_a_word_that_means_something_tells_two_causes_apart(message: str) -> None:
    assert len(APART) >= 60
    same = [
        pair
        for pair in APART
        if template_of(message.replace("{}", pair[0])) == template_of(message.replace("{}", pair[1]))
    ]
    assert same == []
