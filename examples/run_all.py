"""Run all examples, one after the other, and say what came of each.

    python examples/run_all.py --quick --out pictures
    python examples/run_all.py

Those are run whose docstring has a command with `--quick` and that take `--out`, the name of a
picture: everything that needs no argument and draws. Pictures, the numbers as JSON and what was
printed (`.log`) are in the folder `--out`, with `summary.json` on all of them.
One that fails does not stop the others; the exit status is then 1, and the names are printed.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _common import write_json
from tqdm.auto import tqdm

HERE = Path(__file__).resolve().parent
PICTURES = (".png", ".gif")
SHOWN = 4  # numbers of an example in the table


@dataclass(frozen=True)
class Outcome:
    """What came of one example.

    Attributes:
        name: Of the script, without `.py`.
        seconds: How long it ran.
        error: "" if it ended well, else why it did not.
        pictures: The names of its files.
        numbers: The main numbers of its JSON.
    """

    name: str
    seconds: float
    error: str
    pictures: list[str]
    numbers: dict[str, float]


def scripts(folder: Path) -> list[Path]:
    """Those that draw without further arguments, by name."""
    return [
        path
        for path in sorted(folder.glob("[!_]*.py"))
        if path.name != Path(__file__).name and _takes_part(path)
    ]


def _takes_part(path: Path) -> bool:
    text = path.read_text(encoding="utf-8")
    lines = (ast.get_docstring(ast.parse(text, str(path))) or "").splitlines()
    command = f"{path.name} --quick"
    return any(command in line for line in lines) and ("--out" in text or "out=" in text)


def run(path: Path, quick: bool, out: Path) -> Outcome:
    """One example to its end, in a process of its own; what it prints goes into a file."""
    picture, log = out / f"{path.stem}.png", out / f"{path.stem}.log"
    for suffix in (*PICTURES, ".json"):  # of an earlier run, which would be taken for this one's
        picture.with_suffix(suffix).unlink(missing_ok=True)
    command = [sys.executable, str(path), *(["--quick"] if quick else []), "--out", str(picture)]
    start = time.perf_counter()
    with log.open("w", encoding="utf-8") as file:
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode
    seconds = time.perf_counter() - start
    pictures = [
        picture.with_suffix(suffix).name
        for suffix in PICTURES
        if picture.with_suffix(suffix).exists()
    ]
    error = ""
    if status != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        error = f"exit status {status}: {lines[-1].strip() if lines else 'it printed nothing'}"
    elif not pictures:
        error = "it ended well without a picture"
    return Outcome(path.stem, seconds, error, pictures, main_numbers(picture.with_suffix(".json")))


def main_numbers(path: Path) -> dict[str, float]:
    """What a JSON has under `"main"`, else its first numbers; nothing if there is no such file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    chosen = found.get("main", found) if isinstance(found, dict) else found
    return dict(list(_leaves(chosen, ""))[:SHOWN])


def _leaves(value: Any, name: str) -> Iterator[tuple[str, float]]:
    """Numbers of nested mappings under their joined names; of lists the last one, as of a curve."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name} {key}".strip())
    elif isinstance(value, list) and value:
        yield from _leaves(value[-1], name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)


def table(outcomes: Sequence[Outcome]) -> str:
    """A line for each: seconds, how it ended, its main numbers."""
    width = max(len(o.name) for o in outcomes) + 2
    lines = []
    for o in outcomes:
        numbers = "; ".join(f"{name} {value:.3g}" for name, value in o.numbers.items())
        words = f"FAILED, {o.error}" if o.error else numbers or "no numbers"
        lines.append(f"{o.name:<{width}}{o.seconds:>8.1f} s  {words}")
    total = sum(o.seconds for o in outcomes)
    drawn = sum(len(o.pictures) for o in outcomes)
    return "\n".join([*lines, f"{'all':<{width}}{total:>8.1f} s  {drawn} pictures"])


def main(argv: Sequence[str] | None = None, folder: Path = HERE) -> int:
    """Run, print, write; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small versions, minutes in all")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the results")
    args = parser.parse_args(argv)
    chosen = scripts(folder)
    if not chosen:
        parser.error(f"{folder} has no example that can be run")
    args.out.mkdir(parents=True, exist_ok=True)
    outcomes = []
    bar = tqdm(chosen, unit="example")
    for path in bar:
        bar.set_description(path.stem)
        outcomes.append(run(path, args.quick, args.out))
        if outcomes[-1].error:
            bar.write(f"{path.stem} failed: {outcomes[-1].error}")
    write_json({o.name: vars(o) for o in outcomes}, args.out / "summary.json")
    print(f"\n{table(outcomes)}\n\nPictures, numbers and logs are in {args.out}")
    failed = [o.name for o in outcomes if o.error]
    if failed:
        print(f"\nFailed: {', '.join(failed)}. See the .log files there.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
