"""TensorBoard's page of grouped curves: which curves belong into one chart."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch_ntk.monitor import PANELS, Session

Layout = dict[str, dict[str, list[object]]]


def layout(sessions: Iterable[Session]) -> Layout:
    """What `SummaryWriter.add_custom_scalars` takes: a section for each prefix.

    Curves are named by regular expressions that match from the start of a name.

    Args:
        sessions: Those whose curves go to one logger.
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
