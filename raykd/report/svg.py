"""Pictures that matplotlib draws, as SVG documents for light and for dark screens."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from matplotlib import style
from matplotlib.figure import Figure

INK = "#010203"  # stands for the colour of text and axes
PAPER = "#030201"  # stands for the colour of the page
# A picture's own style sheet, since the page's does not hold in an image.
_SHEET = """<style>
svg { color: #5f656d; --paper: #fdfdfc; }
@media (prefers-color-scheme: dark) { svg { color: #9ba2ab; --paper: #15171a; } }
text { paint-order: stroke; stroke: var(--paper); stroke-width: 3px; stroke-linejoin: round; }
text[style*="fill: #111111"], text[style*="fill: #fafafa"] { stroke: none; }
</style>"""
_BLACK, _WHITE = "#111111", "#fafafa"  # for text on colours

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


@dataclass(frozen=True)
class Picture:
    """An SVG document, and the text that stands for it."""

    svg: str
    alt: str


def draw(
    paint: Callable[..., None],
    alt: str,
    inches: tuple[float, float] = (6, 3.6),
    panels: int = 1,
) -> Picture:
    """The drawing of `paint`, which gets the axes of as many `panels`, three in a row at most.

    Equal drawings give equal text.
    """
    out = io.StringIO()
    # Ids are hashes of the salt and of the drawing. The user's own style is reset.
    with style.context(_STYLE | {"svg.hashsalt": "raykd"}, after_reset=True):
        figure = Figure(figsize=inches, layout="constrained")
        rows = -(-panels // 3)
        axes = figure.subplots(rows, -(-panels // rows), squeeze=False).ravel()
        for spare in axes[panels:]:
            spare.remove()
        paint(*axes[:panels])
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    _, opening, inner = out.getvalue().partition("<svg ")
    opening += inner.partition(">")[0] + ">"
    text = opening + _SHEET + inner.partition(">")[2]
    return Picture(text.replace(PAPER, "var(--paper)").replace(INK, "currentColor"), alt)
