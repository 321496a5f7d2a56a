"""Parse the command line of `torch-ntk`, run the subcommand, and report errors and signals."""

from __future__ import annotations

import argparse
import signal
import sys
import types
from collections.abc import Sequence

from . import _info, _kernel, _plot, _report, _solve, _verify
from ._options import Terminated

_SUBCOMMANDS = {
    "report": _report,
    "kernel": _kernel,
    "info": _info,
    "verify": _verify,
    "solve": _solve,
    "plot": _plot,
}
_INTERRUPTED, _TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command `torch-ntk`.

    Args:
        arguments: The arguments of the command line; None takes those of the process.

    Returns:
        The exit status: 0; 1 after an error, which is reported in a line on the standard error, or
        if `verify` finds missing or damaged data; 130 after Ctrl-C and 143 after SIGTERM, which
        both keep the finished tiles.
    """
    description = "Neural Tangent Kernels: compute stored kernels, and report monitored trainings."
    parser = argparse.ArgumentParser("torch-ntk", description=description)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in _SUBCOMMANDS.items():
        words = module.HELP
        about = f"{words[0].upper()}{words[1:]}."
        module.add_arguments(commands.add_parser(name, help=words, description=about))
    chosen = parser.parse_args(arguments)
    before = _on_terminate(_raise)
    try:
        return int(_SUBCOMMANDS[chosen.command].run(chosen))
    except KeyboardInterrupt as stop:
        return _fail(f"interrupted{stop}", _INTERRUPTED)
    except Terminated as stop:
        return _fail(f"terminated{stop}", _TERMINATED)
    except (OSError, ValueError, TypeError, RuntimeError, MemoryError, ImportError) as error:
        return _fail(str(error) or type(error).__name__, 1)
    finally:
        _on_terminate(before)


def _raise(number: int, frame: types.FrameType | None) -> None:
    raise Terminated


def _on_terminate(handler: object) -> object:
    """Set the handler of SIGTERM and return the former one; None outside of the main thread."""
    try:
        return signal.signal(signal.SIGTERM, handler)  # type: ignore[arg-type]
    except ValueError:
        return None


def _fail(text: str, status: int) -> int:
    sys.stderr.writelines(["torch-ntk: ", text, "\n"])
    return status
