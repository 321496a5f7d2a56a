"""The layout of TensorBoard's page "Custom scalars": which curves belong into one chart."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch_ntk.monitor.loop import Session
from torch_ntk.monitor.measure import PANELS

Layout = dict[str, dict[str, list[object]]]


def layout(sessions: Iterable[Session]) -> Layout:
    """The argument of `SummaryWriter.add_custom_scalars`, with a section for each prefix.

    Curves are given by regular expressions, which TensorBoard matches from the start of a name.
    """
    tags: dict[str, dict[str, list[object]]] = {}
    for session in sessions:
        section = tags.setdefault(session.settings.prefix, {})
        for curve in session.curves:
            pattern = re.escape(session.tag(curve.name)) + (".*$" if curve.is_family else "$")
            section.setdefault(curve.panel.title, []).append(pattern)
    return {
        prefix: {p.title: ["Multiline", section[p.title]] for p in PANELS if p.title in section}
        for prefix, section in tags.items()
    }
