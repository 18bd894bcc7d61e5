"""150 forms in which secrets come, and 100 texts that only look like it; then all the places a run leaves behind."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tachograph.redaction import MASK, mask_text
from tachograph.summary import summarise
from tachograph.workflow import HandlerRegistry, StepContext
from tachograph_exporter.config import Config
from tests.conftest import running

S = "hunter2SuperSecretValue99"
KEYS = (
    "password", "passwd", "pwd", "passphrase", "pass", "secret", "client_secret", "clientSecret", "token", "tokens",
    "access_token", "accessToken", "refresh_token", "id_token", "auth_token", "authToken", "api_key", "apiKey",
    "apikey",
    "API_KEY", "api-key", "x-api-key", "X-Api-Key", "DBPassword", "db_password", "PGPASSWORD", "MYSQL_PWD",
    "REDIS_PASSWORD",
    "encryption_key", "private_key", "privateKey", "signing_key", "session_key", "AccountKey", "account_key", "ssh_key",
    "secret_key", "SECRET_KEY", "AWS_SECRET_ACCESS_KEY", "aws_session_token", "credentials", "credential", "cookie",
    "Authorization", "authorization", "Proxy-Authorization", "bearer", "jwt", "dsn", "master_key",
    "service_account_key",
    "smtp.password", "spring.datasource.password", "user.auth.token", "GITHUB_TOKEN", "SLACK_BOT_TOKEN",
    "webhookSecret",
    "hmac_key", "access_key", "storageKey", "password1", "PASSWORD_2",
)  # fmt: skip
FORMATS = (
    "{key}={value}", "{key}: {value}", '"{key}": "{value}"', "{key} = '{value}'", "--{key} {value}", "{key}=>{value}",
    '{{"a": {{"{key}":"{value}"}}}}', "?a=1&{key}={value}&b=2",
)  # fmt: skip
BY_KEY = [FORMATS[i % len(FORMATS)].format(key=key, value=S) for i, key in enumerate(KEYS)]
JWT = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0." + S
PEM = "-----BEGIN {}PRIVATE KEY-----\nMIIE" + S + "\n" + S + "==\n-----END {}PRIVATE KEY-----"
SHAPES = [
    f"Authorization: Bearer {S}", f"Authorization: token {S}", f"authorization: Basic {S}", f"Authorization:{S}",
    f"'Authorization': 'Bearer {S}'", f'headers={{"Authorization": "Bearer {S}"}}',
    f"Authorization: Digest username={S}",
    f"Authorization: ApiKey {S}", f"Authorization: AWS4-HMAC-SHA256 Credential={S}, Signature={S}",
    f"curl -H 'Authorization: Bearer {S}' https://example.com", f"Proxy-Authorization: Basic {S}", f"sent Bearer {S}",
    f"Cookie: session={S}", f"Cookie: a=1; session={S}", f"Cookie: theme=dark; a={S}; b=2",
    f"Set-Cookie: id={S}; Path=/",
    f"set-cookie: a=b\r\nSet-Cookie: sid={S}", f"Cookie: {S}",
    f"password=\"two words {S}\"", f"password='it {S}'", f'password: "with \\" quote {S}"', f'"pwd": "a b {S}"',
    f"password = {S}", f"password:{S}", f"PASSWORD={S};", f"password={S}, user=x", f"(password={S})", f"[token={S}]",
    f"password\t=\t{S}", f"password => {S}", f"password=={S}", f"password=`{S}`",
    f"postgres://app:{S}@db/prod", f"postgresql+asyncpg://app:{S}@db:5432/prod", f"mysql://root:{S}@localhost",
    f"redis://:{S}@cache:6379/0", f"amqp://guest:{S}@mq//vhost", f"mongodb+srv://u:{S}@c.example.net/x?retry=1",
    f"https://user:{S}@example.com/path", f"http://u:p@{S}@host/", f"postgres://app:pa/{S}@db/x", f"ftp://u:{S}@h",
    f"git clone https://oauth2:{S}@gitlab.com/a/b.git", f"proxy http://u:{S}@proxy:3128 refused",
    f"smtp://mail%40example.com:{S}@smtp.example.com:587", f"url=postgres://a:{S}@h/b", f"'postgres://a:{S}@h'",
    JWT, f"id={JWT}", f"got {JWT} back", f"eyJhbGciOiJub25lIn0.{S}.", f"[{JWT}]",
    PEM.format("", ""), PEM.format("RSA ", "RSA "), PEM.format("EC ", "EC "), PEM.format("OPENSSH ", "OPENSSH "),
    PEM.format("ENCRYPTED ", "ENCRYPTED "), f"-----BEGIN PRIVATE KEY-----\\nMII{S}\\n-----END PRIVATE KEY-----",
    f"-----BEGIN RSA PRIVATE KEY-----\n{S}",
    f"-----BEGIN PGP PRIVATE KEY BLOCK-----\n\n{S}\n-----END PGP PRIVATE KEY BLOCK-----",
    f"ghp_{S}AbCdEf0123456789", f"gho_{S}AbCdEf0123456789", f"ghs_{S}AbCdEf0123456789", f"github_pat_11ABC_{S}",
    f"glpat-{S}", f"sk-{S}", f"sk-proj-{S}", f"sk-ant-api03-{S}", f"sk_live_{S}", f"rk_live_{S}", f"xoxb-123-{S}",
    f"xoxp-{S}", f"AIza{S}AbCdEf0123", f"tgr_{S}", f"hf_{S}", f"npm_{S}", f"pypi-{S}", f"SG.{S}.x", f"ya29.{S}",
    f"DefaultEndpointsProtocol=https;AccountName=x;AccountKey={S}==;EndpointSuffix=core.windows.net",
    f"Server=db;User Id=sa;Password={S};", f"Server=db;Uid=sa;Pwd={S};", f"host=db user=x password={S} dbname=y",
    f"psql 'host=db password={S}'", f"mysql --password={S} -u x", f"cmd --token {S} --verbose", f"--api-key={S}",
    f"-password {S}", f"export API_KEY={S}", f"API_KEY={S} ./run", f"docker run -e DB_PASSWORD={S} image",
    f"<password>{S}</password>", f"<a:Token>\n  {S}\n</a:Token>", f"password=<{S}>",
    f"?access_token={S}", f"https://x.example/?sig=1&token={S}#f", f"https://x.example/cb?client_secret={S}",
    f'{{"password":"{S}","user":"x"}}', f"{{'password': '{S}'}}", f'{{\\"api_key\\": \\"{S}\\"}}',
    f"password: {S}\nuser: x",
    f"[auth]\ntoken = {S}", f"env: {{TOKEN: {S}}}", f"KeyError: 'x' in {{'secret': '{S}'}}", f"Config(password='{S}')",
    f"Config(user='x', api_key='{S}')", f"login(password={S!r}) failed", f"token={S}&x=1", f"X-Auth-Token: {S}",
    f"x-amz-security-token: {S}", f"X-Vault-Token: {S}",
]  # fmt: skip
MORE_PLACES = [
    f"login failed for user bob with password '{S}'", f'the token is "{S}"',
    f"machine api.example login me password {S}",
    f"jdbc:oracle:thin:scott/{S}@h:1521:x", f"https://x.blob.example.net/c?sv=2022&sig={S}%3D&se=2027",
    f"https://hooks.slack.com/services/T000/B000/{S}", f"https://discord.com/api/webhooks/123456/{S}",
    f'{{"a":"{{\\\\\\"api_key\\\\\\": \\\\\\"{S}\\\\\\"}}"}}', f"[('X-Api-Key', '{S}'), ('Host', 'x')]",
    f"[(b'Cookie', b'{S}')]", f"export STRIPE_KEY='{S}'", f"MAPS_KEY={S}", f"curl -s -u admin:{S} https://x",
    f"curl --user 'admin:{S}' https://x", f"mysql -uroot -p{S} db", f"sshpass -p {S} ssh h", f"SG.abcdefghijkl0.{S}",
    f"otp={S}", f"https://{S}@github.com/a/b.git", f"sessionid={S}", f"JSESSIONID={S}; Path=/", f"csrftoken={S}",
    f"mongodb+srv://u:{S}@c.mongodb.example/x?retryWrites=true", f"snowflake://u:{S}@acc/db",
    f"Endpoint=sb://x.example;SharedAccessKeyName=Root;SharedAccessKey={S}=", f"//registry.example/:_authToken={S}",
    f"environ({{'PATH': '/bin', 'AWS_SECRET_ACCESS_KEY': '{S}', 'HOME': '/'}})", f'declare -x DB_PASS="{S}"',
    f"The above exception was the direct cause: AuthError(token='{S}')", f"#access_token={S}&token_type=bearer",
    f"https://s3.example/b/k?X-Amz-Signature={S}&X-Amz-Date=1", f"[default]\naws_secret_access_key = {S}",
]  # fmt: skip
AWS = ["AKIAHUNTER2SUPERSECRET", "ASIAHUNTER2SUPERSECRET", "id AKIAHUNTER2SUPERSECRET used"]
FORMS = [*BY_KEY, *SHAPES, *MORE_PLACES, *AWS]

INNOCENT = (
    "primary_key=42", "foreign_key: id", "sort_key=created_at", "partition_key=day", "key=value", "the key: value pair",
    "cache_key=abc", "idempotency_key=7f3a", "public_key=ssh-ed25519", "keyboard=qwerty", "monkey=7", "keys: a, b, c",
    "token count: 42", "tokens_in=100", "tokens_out=7", "max_tokens=4096", "total_tokens: 1234", "prompt_tokens=12",
    "completion_tokens: 99", "token_type=bearer", "token_limit=10", "tokenizer=bpe", "tokenizer_size: 50257",
    "42 tokens used", "token_count=3", "num_tokens=5", "tokens_per_second=88.5", "token_expires=3600",
    "secretary=Ann", "the secretary: Bob", "secretariat=UN", "author=Ann", "the author: Ann", "authors: A, B",
    "authority=local", "passenger=3", "passengers: 12", "passed=10", "passes: 3", "bypass=true", "compass=north",
    "password_length=12", "password_policy: strict", "password_required=true", "passwords were checked",
    "a password is required", "wrong password", "the token expired", "no token was sent", "the secret is out",
    "cookies were baked", "cookie_count=2", "signature_version=4", "credential_type=oauth", "auth_method=oidc",
    "auth_url=https://id.example/login", "authentication failed", "authorization denied", "authorized: yes",
    "https://example.org/a:b@c", "https://example.org/path?x=1", "http://localhost:9923/api", "see http://h:80/x@y",
    "mailto:ann@example.org", "ann@example.org wrote", "git@github.com:a/b.git", "10:30:00 started", "ratio 3:1",
    "a=b", "x: 1", "status=ok", "exit code 1", "retry in 5 s", "connection refused", "no such file or directory",
    "KeyError: 'name'", "ValueError: bad value", "Traceback (most recent call last):", "line 42, in run",
    "sk", "sk-", "skip=3", "task-1", "risk-averse", "desk_live", "ghp", "akia", "AKIA", "eyJ", "eye", "xoxo", "AIza",
    "SG.", "hf_", "npm install", "pypi-mirror", "-----BEGIN CERTIFICATE-----", "basic training", "a bearer of news",
    "the basic idea", "digest of the day", "naïve ☃ résumé", "価格: 100円", "C:\\path\\file", "select * from tokens",
    "cookie_consent=true", "sk-learn version 1.2", "hf_hub version", "http://host:8080/path@v1", "pass 1 of 2",
    "docker run -u 1000:1000 image", "curl -u is an option", "mysql -h db -P 3306", "('key', 'value')", "SORT_KEY=name",
    "PARTITION_KEY=customer_2026_month", "https://ann@example.org/x", "https://example.org/?signal=1", "config=1",
    "session duration: 5s", "session_count=5", "'tokens', 'words'", "password is required",
    "keystone: x", "passed: 12 of 12", "signed_at: 2026-01-01", "public_key_url=https://x", "key-value store",
    "jdbc:postgresql://h/db", "https://hooks.slack.com/docs", "login as root", "optional=true", "potpourri: rose",
    "design=new", "https://example.org/a?assign=me", "auth: none", "token=null", "password: None, user: x",
    "secret=false", "the token: expired", "password: incorrect", "pin: 17", "spin: 4444",
    "shipping: 4444", "GPIO pin=4", "pinned: 12345",
)  # fmt: skip


def test_there_are_enough_of_them() -> None:
    assert len(set(FORMS)) == len(FORMS) >= 150
    assert len(set(INNOCENT)) == len(INNOCENT) >= 100


@pytest.mark.parametrize("form", FORMS)
def test_no_form_of_a_secret_stays(form: str) -> None:
    for text in (form, f"before {form} after", f"line one\n{form}\nline three", f"{form}\n{form}"):
        masked = mask_text(text)
        assert S not in masked, masked
        assert "HUNTER2" not in masked, masked
        assert MASK in masked
    assert mask_text(mask_text(form)) == mask_text(form)


@pytest.mark.parametrize("key", KEYS)
def test_no_value_under_a_secret_key_stays(key: str) -> None:
    for value in ({key: S}, {"a": [{"b": {key: S}}]}, {key: [S, {"c": S}]}, {key.upper(): S}):
        assert S not in (summarise(value) or "")


@pytest.mark.parametrize("text", INNOCENT)
def test_what_is_no_secret_stays_readable(text: str) -> None:
    assert mask_text(text) == text
    assert mask_text(f"x {text} y") == f"x {text} y"


async def test_a_run_leaves_no_secret_anywhere(database_url: str, handlers: HandlerRegistry, tmp_path: Path) -> None:
    """Outputs, errors, logs and inputs of a run; rows, spans, events, streams and what every route says of it."""

    @handlers.register("leak")
    async def leak(context: StepContext) -> dict[str, Any]:
        form = FORMS[context.config["form"]]
        context.log(f"log {form}")
        if context.config["fails"]:
            raise RuntimeError(f"could not {form}")
        return {"text": form, "password": S}

    steps = [
        {"name": f"s{i}", "config": {"handler": "leak", "form": i, "fails": bool(i % 2)}, "trigger_rule": "all_done"}
        for i in range(len(FORMS))
    ]
    document = {"name": "leaks", "variables": [{"name": "forms", "data_type": "json"}], "steps": steps}
    async with running(Config(database=database_url, grace_seconds=0.1), handlers) as api:
        assert (await api.call("POST", "/api/workflows", document))[0] == 201
        seen: list[str] = []

        async def follow() -> None:
            async with api.session.get(f"{api.address}/api/stream?types=all") as response:
                async for line in response.content:
                    seen.append(line.decode())  # noqa: PERF401 - read while it grows

        following = asyncio.create_task(follow())
        while not any("connected" in line for line in seen):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        execution = await api.run("leaks", {"forms": FORMS})
        run = f"/api/workflows/executions/{execution}"
        timeline = await api.get(f"{run}/timeline")
        paths = [f"{run}/timeline", f"{run}/timeline?format=otlp", f"{run}/status", "/metrics",
                 f"/jaeger/api/traces/{timeline['trace_id']}", f"/tempo/api/traces/{timeline['trace_id']}",
                 "/api/workflows/executions", "/tempo/api/search/tags"]  # fmt: skip
        texts = {path: msgspec.json.encode(await api.get(path)).decode() for path in paths}
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    database = api.service.database.url.database
    assert database is not None
    with sqlite3.connect(database) as connection:
        texts["rows"] = "\n".join(connection.iterdump())
    connection.close()
    texts["events"] = "".join(seen)
    assert "could not" in texts["rows"]
    assert "step_failed" in texts["events"]
    for place, text in texts.items():
        at = max(text.find(S), text.find("HUNTER2"))
        assert at < 0, (place, text[max(0, at - 200) : at + 80])
