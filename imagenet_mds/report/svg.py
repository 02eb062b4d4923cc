"""Figures of matplotlib as SVG that stands within a page."""

import io
import warnings

from matplotlib.figure import Figure


def inline_svg(figure: Figure) -> str:
    """Draw a figure as an `<svg>` element, without the declarations of a file of its own."""
    text = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about characters that matplotlib's font lacks
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
