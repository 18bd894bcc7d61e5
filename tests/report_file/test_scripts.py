"""The page's scripts as one."""

from __future__ import annotations

import graphlib
import re

import pytest

from tachograph_exporter.report_file import scripts


def bundled(**modules: str) -> str:
    return scripts.bundle("main.js", lambda name: modules[name.removesuffix(".js")], {"left.js": "right.js"})


def test_every_module_of_a_report_is_understood_and_nothing_is_left_to_load() -> None:
    text = scripts.script()
    assert not re.search(r"^\s*(import|export)\b", text, re.MULTILINE)
    assert "fetch(" not in text
    assert "WebSocket(" not in text
    for name in scripts.REPLACED:
        assert (scripts.WEB / name).exists(), name
        assert f"// {name}\n" not in text, name
    for needed in ("drawing/timeline.js", "drawing/graph.js", "views/why.js", "views/run_facts.js", "run.js"):
        assert f"// {needed}\n" in text, needed


def test_a_module_comes_after_what_it_imports_and_sees_it_by_its_own_names() -> None:
    text = bundled(
        main='import { a as b } from "./other.js";\nimport {\n  c,\n} from "./left.js";\nb(c);\n',
        other="export function a() {}\n",
        right="export const c = 1;\nexport class D {}\n",
    )
    assert text.index("// other.js") < text.index("// main.js")
    assert re.search(r"const \{ a: b \} = \$m\d;\nconst \{ c \} = \$m\d;\nb\(c\);", text)
    assert "return { c, D };" in text
    assert "left.js" not in text


@pytest.mark.parametrize(
    "line",
    [
        'import x from "./other.js";', 'import * as all from "./other.js";', 'import "./other.js";', "export { a };",
        "export let a = 1;", "export default 1;", 'const a = await import("./other.js");', "f(import.meta.url);",
    ],
)  # fmt: skip
def test_a_form_that_is_not_understood_is_an_error_and_no_broken_report(line: str) -> None:
    with pytest.raises(scripts.NotBundled, match=re.escape("main.js")):
        bundled(main=f"{line}\n", other="export const a = 1;\n")


def test_modules_that_import_one_another_and_scripts_that_end_the_document_are_refused() -> None:
    with pytest.raises(graphlib.CycleError):
        bundled(main='import { a } from "./other.js";\n', other='import { b } from "./main.js";\n')
    with pytest.raises(scripts.NotBundled):
        bundled(main='const end = "</SCRIPT>";\n')
