"""The commands in the documentation of finite-width kernels run and print what they promise."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "empirical.md"
COMMANDS = [
    block.strip()
    for block in re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
]


def test_the_page_shows_explain_and_verify() -> None:
    assert all(command.count("\n") == 0 for command in COMMANDS)
    assert any("explain(" in command for command in COMMANDS)
    assert any("verify(" in command for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_runs(command: str) -> None:
    program, *arguments = shlex.split(command)
    assert program == "python"
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        capture_output=True,
        text=True,
        cwd=PAGE.parents[1],
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    if "explain(" in command:
        assert re.search(r"0\.weight +LinearUse +1 +gram", done.stdout)
        assert "64 samples, 10 outputs" in done.stdout
    elif "verify(" in command:
        assert len(re.findall(r"^(?:auto|structured|jacobian|vector_product) ", done.stdout, re.M))
        assert "WRONG" not in done.stdout
        assert "refused" not in done.stdout
    else:
        assert "(64, 64)" in done.stdout
