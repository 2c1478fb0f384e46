"""What all drawings of the report share: colours, axes and how they become files.

Figures are made object by object (no pyplot): nothing is kept between calls and no display is needed.
"""

import io

import numpy as np

from vlm3_jax.errors import UserError

try:
    import matplotlib.colors
    import matplotlib.patches
    import matplotlib.ticker
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
except ImportError:
    raise UserError('the report needs matplotlib: pip install "vlm3-jax[demo]"') from None

INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
TRUE, GOOD, BAD = "#2458a6", "#1b8a5a", "#c2382b"
COLOURS = ("#2458a6", "#d9822b", "#1b8a5a", "#8e4ec6", "#c2382b", "#0f8b8d")
DPI = 110


def axes(width: float, height: float):
    """A figure of so many inches and its axes."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    own = figure.add_subplot()
    style(own)
    return figure, own


def style(axes) -> None:
    """Quiet frame, ticks and grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=INK, labelsize=8)
    axes.xaxis.label.set_size(9)
    axes.yaxis.label.set_size(9)
    axes.grid(color=GRID, lw=0.7)
    axes.set_axisbelow(True)


def plain_log(axis, low: float, high: float) -> None:
    """Ticks at round metres instead of powers of ten."""
    for steps in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), np.arange(1, 10, 0.25)):
        ticks = [t for e in range(-2, 4) for s in steps if low <= (t := s * 10.0**e) <= high]
        if len(ticks) > 2:
            break
    axis.set_major_locator(matplotlib.ticker.FixedLocator(ticks))
    axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(matplotlib.ticker.NullLocator())


def cycle(things) -> list[str]:
    """A colour for each of the things, over and over."""
    return [COLOURS[k % len(COLOURS)] for k in range(len(things))]


def plain(text: str) -> str:
    """Dollar signs would switch matplotlib to formulas, and half of a surrogate pair ends it."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("$", r"\$")


def encode(figure, photo: bool = False) -> bytes:
    """PNG, of photographs JPEG."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    if photo:
        figure.savefig(buffer, format="jpg", pil_kwargs={"quality": 84, "optimize": True})
    else:
        figure.savefig(buffer, format="png", pil_kwargs={"optimize": True})
    return buffer.getvalue()
