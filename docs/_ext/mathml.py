"""Formulas as MathML, which browsers draw themselves: no script, no fonts, no network.

`latex2mathml` translates LaTeX; Sphinx has no renderer for what it makes, which is this one.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

_LOGGER = logging.getLogger(__name__)


def _inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(_formula(node, "inline"))
    raise nodes.SkipNode


def _block(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(f'<div class="formula">{_formula(node, "block")}</div>')
    raise nodes.SkipNode


def _formula(node: nodes.Element, display: str) -> str:
    # The package knows `align*` and not `aligned`, which MyST's and GitHub's formulas have.
    text = node.astext().replace("{aligned}", "{align*}")
    found = str(convert(text, display=display))
    if "\\" in found or "&<" in found:  # what it does not know it leaves as it is
        _LOGGER.warning("a part of this formula is not known: %s", text, location=node)
    # A norm's bars beside letters: as high as these, also the one that bears an exponent.
    return found.replace("<mo>&#x02016;</mo>", '<mo stretchy="false">&#x02016;</mo>')


def setup(app: Sphinx) -> dict[str, Any]:
    """Make `html_math_renderer = "mathml"` known."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
