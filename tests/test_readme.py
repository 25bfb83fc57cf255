"""What README.md shows is what happens."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from gpudedup.params import choose_banding

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_example_prints_what_is_shown() -> None:
    example = ROOT / "examples" / "quickstart.py"
    assert blocks("python")[0] == example.read_text(encoding="utf-8")
    shown = README[README.index("```python\n") :].split("```text\n")[1].split("```")[0]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(example))
    assert printed.getvalue() == shown


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "examples").glob("*.py")))
def test_examples_run(name: str) -> None:
    done = subprocess.run([sys.executable, ROOT / "examples" / name], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_s_curve_table() -> None:
    table = re.findall(r"^ *\| (0\.\d) \| (\d+) x (\d+) \| ([\d. |]+) \|$", README, re.MULTILINE)
    assert [float(line[0]) for line in table] == [0.5, 0.6, 0.7, 0.8, 0.9]
    for threshold, bands, rows, chances in table:
        t = float(threshold)
        banding = choose_banding(t, 0.95, 128)
        assert banding == (int(bands), int(rows))
        points = [t + step for step in (-0.2, -0.1, -0.05, 0, 0.05, 0.1)]
        assert chances.split(" | ") == [f"{banding.probability(min(point, 1.0)):.3f}" for point in points]


def test_commands_are_on_the_sample() -> None:
    job, tests = blocks("bash")[:2]
    assert "gpudedup run tests/data/" in job
    assert "pytest" in tests


def test_every_parameter_is_named() -> None:
    from gpudedup import Params

    for name in Params.__struct_fields__:
        assert f"`{name}`" in README or name in ("device", "keep_sets"), name


def test_links_lead_somewhere() -> None:
    for page in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        text = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)  # without shown output
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert target.startswith("https://") or (ROOT / target).exists(), f"{page}: {target}"
