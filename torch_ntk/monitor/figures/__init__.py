"""Figures of one measurement of a training, and of all measurements.

They are made without pyplot, so that the caller's global state of figures does not change.
"""

from ._figures import figures_of as figures_of
