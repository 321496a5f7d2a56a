"""The commands in the documentation of finite-width kernels run and print what they promise."""

from __future__ import annotations

import re
import shlex
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
def test_a_command_of_the_page_runs(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process: another one would spend its time on importing torch."""
    program, flag, code = shlex.split(command)
    assert (program, flag) == ("python", "-c")
    exec(code, {"__name__": "__main__"})
    out, err = capsys.readouterr()
    assert err == ""
    if "explain(" in command:
        assert re.search(r"0\.weight +LinearUse +1 +gram", out)
        assert "64 samples, 10 outputs" in out
    elif "verify(" in command:
        assert len(re.findall(r"^(?:auto|structured|jacobian|vector_product) ", out, re.M))
        assert "WRONG" not in out
        assert "refused" not in out
    else:
        assert "(64, 64)" in out
