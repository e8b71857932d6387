"""Pictures that matplotlib draws, as SVG elements for a page.

Text and axes take the colour of the text around the picture, which may be light or dark.
"""

import io
import re
from collections.abc import Callable
from html import escape
from typing import Any

from matplotlib import style
from matplotlib.figure import Figure

INK = "#010203"  # stands for the colour of the text around
PAPER = "#030201"  # stands for the colour of the page
_BLACK, _WHITE = "#111111", "#fafafa"  # of text on colours

# A group of students has one of each, so that no two of the first 120 look alike, and few in
# grey. The colours have a contrast of 3.4 to 5.1 on white as on black paper (WCAG asks for 3).
_COLOURS = ("#2f7fd6", "#d9622b", "#2a9a68", "#9b62e0", "#b07d12", "#1490a3", "#d6498a", "#7a828c")
_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (7, 2, 1.5, 2)), (0, (11, 3)))
_MARKERS = "os^DvP"

_STYLE = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a name may hold a dollar sign
    "font.size": 9.5,
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib; the page shows its own font
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys((f"axes.spines.{side}" for side in ("left", "right", "top", "bottom")), False),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size", "lines.markeredgewidth"), 0),
    "axes.formatter.useoffset": False,
    "axes.xmargin": 0.02,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": INK,
    "grid.alpha": 0.2,
    "lines.markersize": 5,
}


def look(number: int) -> dict[str, Any]:
    """The colour, dash and marker of a group of students, as matplotlib calls them."""
    looks = (("color", _COLOURS), ("ls", _DASHES), ("marker", _MARKERS))
    return {name: values[number % len(values)] for name, values in looks}


def on(colour: tuple[float, float, float, float]) -> str:
    """The colour of text that is read best on a colour (RGBA, 0 to 1)."""
    red, green, blue, _ = colour
    return _BLACK if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else _WHITE


def draw(
    paint: Callable[..., None],
    label: str,
    inches: tuple[float, float] = (6, 3.6),
    panels: int = 1,
) -> str:
    """What `paint` draws, as an element that says `label` and is as wide as its place.

    `paint` gets the axes of as many `panels`, of which at most three stand in a row. The same
    picture gives the same text. No two pictures of a page may have the same label.
    """
    out = io.StringIO()
    # Ids are hashes; the salt keeps those of two pictures apart. The user's own style is reset.
    with style.context(_STYLE | {"svg.hashsalt": label}, after_reset=True):
        figure = Figure(figsize=inches, layout="constrained")
        rows = -(-panels // 3)
        axes = figure.subplots(rows, -(-panels // rows), squeeze=False).ravel()
        for spare in axes[panels:]:
            spare.remove()
        paint(*axes[:panels])
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    _, opening, inner = re.split(r"(<svg [^>]*>)", out.getvalue(), maxsplit=1)
    box = re.findall(r'viewBox="[^"]*"', opening)[0]
    # Its style sheet would hold for the whole page, and its groups have the same ids every time.
    inner = re.sub(r'<style.*?</style>|(?<=<g) id="[^"]*"', "", inner, flags=re.DOTALL)
    # Equal images of one picture would have equal ids.
    inner = re.sub(r'(<image [^>]*base64,)\n([^>]*?) id="[^"]*"', r"\1\2", inner)
    # Six decimals of a point are five too many for an eye.
    inner = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d)\d+", r"\1", path[0]), inner)
    # The page puts a rim of its own colour around text, which helps on lines, not on colours.
    inner = re.sub(f"fill: ({_BLACK}|{_WHITE})", r"fill: \1; stroke: none", inner)
    text = f'<svg role="img" aria-label="{escape(label)}" {box}>{inner}'
    text = text.replace(PAPER, "var(--paper)")
    return text.replace(INK, "currentColor").replace("xlink:href", "href")
