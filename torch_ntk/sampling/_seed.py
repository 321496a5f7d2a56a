"""Seed every random generator that a function of the caller may use."""

from __future__ import annotations

import random

import numpy as np
import torch

from .._checks import type_error, value_error


def check_seed(seed: object) -> int:
    """Return `seed` if it is an integer from 0 to 2**63 - 1, else raise TypeError or ValueError."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise type_error("seed", "an integer", seed)
    if not 0 <= seed < 2**63:
        raise value_error("seed", "at least 0 and below 2**63", seed)
    return seed


def seeds_of_draws(seed: int, draws: int) -> list[int]:
    """A seed for each draw; a longer list begins with the seeds of a shorter one."""
    generator = torch.Generator().manual_seed(seed)
    return [int(n) for n in torch.randint(2**63 - 1, (draws,), generator=generator, device="cpu")]


def seed_all(number: int, device: torch.device) -> None:
    """Seed torch on the CPU and on `device`, NumPy and Python."""
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002  # the global state is what a caller may use
    random.seed(number)
