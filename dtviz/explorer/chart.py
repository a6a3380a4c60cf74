"""What an explorer draws by itself, quickly: line charts as SVG, which takes the colours of a light or a dark page, and PNG bytes.

svg = chart([Line("seed 0", [0.5, 1.0], [0.4, 0.1])], at=0.5, label="distance to the final image")
png = encode(picture, least=192)
"""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator
from PIL import Image

# Of middling lightness: at least 3 : 1 on white and on near-black, and told apart by colour-blind readers
PALETTE = ("#2f7ed8", "#d95f02", "#1b9e77", "#cc4c9e", "#8c7a00", "#7570b3")
WIDTH, HEIGHT = 400, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 38, 32  # the margins of the plot in the chart


@dataclass(frozen=True)
class Line:
    """One line of a chart: its name, where it goes, and how it looks."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = PALETTE[0]
    dashed: bool = False


def chart(lines: Sequence[Line], *, at: float, label: str, top: float | None = None, note: str = "") -> str:
    """Lines over the share of the steps done, 0 to 1, as an SVG element.

    Args:
        lines: one or more, each of at least one point.
        at: where the current step is: marked by a line across the chart and a point on each line.
        label: what the y axis shows; it stands above the chart.
        top: the least that the y axis reaches up to, so that two charts can be compared; None: what the lines need.
        note: a line below the x axis.

    >>> "a &lt; b</text>" in chart([Line("a < b", [0.5, 1.0], [0.4, 0.1])], at=0.5, label="distance")
    True
    """
    values = np.concatenate([np.asarray(line.y, dtype=float) for line in lines])
    low, high = min(0.0, values.min()), max(values.max(), top or 0.0, 1e-9)
    ticks = [tick for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high * 1.001]

    def across(x: float) -> float:
        return _LEFT + x * (WIDTH - _LEFT - _RIGHT)

    def up(y: float) -> float:
        return HEIGHT - _BOTTOM - (y - low) / (high - low) * (HEIGHT - _BOTTOM - _TOP)

    parts = [f'<text x="2" y="11" class="strong">{html.escape(label)}</text>']
    for tick in ticks:
        parts.append(f'<path d="M{_LEFT} {up(tick):.1f}H{WIDTH - _RIGHT}" class="rule"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{up(tick) + 4:.1f}" text-anchor="end">{tick:.3g}</text>')
    for share in (0, 0.25, 0.5, 0.75, 1):
        where = f'x="{across(share):.1f}" y="{HEIGHT - _BOTTOM + 13}"'
        parts.append(f'<text {where} text-anchor="{"end" if share == 1 else "middle"}">{share:.0%}</text>')
    parts.append(f'<text x="2" y="{HEIGHT - 5}">{html.escape(note or "share of the steps done")}</text>')
    parts.append(f'<path d="M{across(at):.1f} {_TOP - 6}V{HEIGHT - _BOTTOM}" class="now"/>')
    legend = float(_LEFT)
    for line in lines:
        points = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in zip(line.x, line.y, strict=True))
        dash = ' stroke-dasharray="5 3"' if line.dashed else ""
        parts.append(f'<polyline points="{points}" fill="none" stroke="{line.colour}" stroke-width="2"{dash}/>')
        marked = int(np.argmin(np.abs(np.asarray(line.x) - at)))
        centre = f'cx="{across(line.x[marked]):.1f}" cy="{up(line.y[marked]):.1f}"'
        parts.append(f'<circle {centre} r="3.5" fill="{line.colour}"/>')
        parts.append(f'<text x="{legend:.0f}" y="26" style="fill:{line.colour}">{html.escape(line.name)}</text>')
        legend += 6.2 * len(line.name) + 14  # about a letter's width of this font
    told = html.escape(
        f"{label}: " + "; ".join(f"{line.name} {line.y[-1]:.3g} at the end" for line in lines), quote=True
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{told}" '
        'style="max-width:100%;font:11px sans-serif;color:var(--jp-ui-font-color1,currentColor)">'
        "<style>.dtviz text{fill:currentColor}.dtviz .strong{font-weight:600}.dtviz .rule{stroke:currentColor;opacity:.15}"
        ".dtviz .now{stroke:currentColor;opacity:.6;stroke-dasharray:2 2}</style>"
        f'<g class="dtviz">{"".join(parts)}</g></svg>'
    )


def encode(picture: np.ndarray, *, least: int) -> bytes:
    """(height, width, 3 or, with alpha, 4) uint8 as PNG, small ones enlarged by a whole factor so that their pixels stay crisp.

    >>> encode(np.zeros((4, 4, 3), np.uint8), least=8)[:4]
    b'\\x89PNG'
    """
    factor = max(1, least // max(picture.shape[:2]))
    picture = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=1)
    return file.getvalue()


def strip(pictures: np.ndarray, *, marked: int, size: int = 44, columns: int = 8) -> np.ndarray:
    """Pictures (n, height, width, 3) uint8 side by side in rows, the marked one framed; (height, width, 4) uint8, clear between.

    >>> strip(np.zeros((9, 64, 64, 3), np.uint8), marked=0).shape
    (104, 416, 4)
    """
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    height = round(size * pictures.shape[1] / pictures.shape[2])
    tall, wide = height + 8, size + 8
    sheet = np.zeros((rows * tall, columns * wide, 4), dtype=np.uint8)
    for i, picture in enumerate(pictures):
        y, x = i // columns * tall, i % columns * wide
        if i == marked:
            sheet[y : y + tall, x : x + wide] = [0x2F, 0x7E, 0xD8, 255]
        small = np.asarray(Image.fromarray(picture).resize((size, height), Image.Resampling.LANCZOS))
        sheet[y + 4 : y + 4 + height, x + 4 : x + 4 + size] = np.dstack(
            [small, np.full(small.shape[:2], 255, np.uint8)]
        )
    return sheet
