"""The console command `torch-ntk`, with one file for each of its subcommands.

`report` writes the page of monitored trainings; `kernel`, `info`, `verify`, `solve` and `plot` work
on kernels in stores (`torch_ntk.scale`). A subcommand imports what it needs when it runs, so that
`torch-ntk --help` does not wait for PyTorch. `python -m torch_ntk.command` is the same command.
"""

from ._main import main as main

__all__ = ["main"]
