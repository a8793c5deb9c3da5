"""A picture of the ratios: one bar per family and work, on a scale of doublings."""

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDE, ROW, LEFT = 760, 22, 230


def bars(rows: Sequence[tuple[str, str, float]]) -> str:
    """Draw ours over theirs as SVG, memory behind the speeds.

    Args:
        rows: family, work and ratio. A bar to the right of the line at 1 is etude ahead; for
            memory, whose ratio is bytes, to the left.
    """
    rows = sorted(rows, key=lambda row: row[1].startswith("memory"))
    logs = [math.log2(ratio) for *_, ratio in rows]
    below, above = math.floor(min([-1.0, *logs])), math.ceil(max([1.0, *logs]))
    unit = (WIDE - LEFT - 60) / (above - below)
    middle, height = LEFT - below * unit, ROW * (len(rows) + 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {height}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{WIDE}" height="{height}" fill="#fff"/>',
    ]
    for step in range(below, above + 1):
        x = middle + step * unit
        tick = f"{2**step}x" if step >= 0 else f"1/{2**-step}"
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{ROW}" y2="{height - 6}" stroke="#ddd"/>'
            f'<text x="{x:.1f}" y="14" text-anchor="middle" fill="#666">{tick}</text>'
        )
    for n, (family, work, ratio) in enumerate(rows):
        y, length = ROW * (n + 1.2), math.log2(ratio) * unit
        better = (ratio < 1) if work.startswith("memory") else (ratio > 1)
        color = "#2f7d5b" if better else "#b3563b"
        x, wide = (middle, length) if length > 0 else (middle + length, -length)
        at = x + wide + 4
        parts.append(
            f'<text x="{LEFT - 8}" y="{y + 13:.1f}" text-anchor="end">{escape(family)} '
            f"{escape(work)}</text>"
            f'<rect x="{x:.1f}" y="{y + 2:.1f}" width="{wide:.1f}" height="{ROW - 7}" '
            f'fill="{color}"/><text x="{at:.1f}" y="{y + 13:.1f}" fill="#333">{ratio:.2f}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


PALETTE = ("#b3563b", "#2f7d5b", "#3b6fb3", "#8a5aa8", "#8c7a2a")


def curves(
    title: str,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    marks: Sequence[tuple[float, float, str]] = (),
) -> str:
    """Draw lines over a logarithmic axis of tokens as SVG.

    Args:
        title: above all.
        lines: by name, places of 1 or more, rising, and values from 0.
        marks: places, values and words of single dots.
    """
    left, top, wide, high = 46, 34, WIDE - 66, 260
    places = [x for line in lines.values() for x, _ in line]
    low, span = math.log2(min(places)), math.log2(max(places)) - math.log2(min(places))
    most = max(y for line in lines.values() for _, y in line) * 1.05

    def at(x: float, y: float) -> tuple[float, float]:
        return left + wide * (math.log2(x) - low) / span, top + high * (1 - y / most)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {top + high + 34}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{WIDE}" height="{top + high + 34}" fill="#fff"/>',
        f'<text x="{left}" y="18" fill="#333">{escape(title)}</text>',
    ]
    for tick in [n / 4 for n in range(int(most * 4) + 1)]:
        y = at(2**low, tick)[1]
        parts.append(
            f'<line x1="{left}" x2="{left + wide}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
            f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#666">{tick:g}</text>'
        )
    for power in range(math.ceil(low), math.floor(low + span) + 1, 2):
        x = at(2**power, 0)[0]
        label = f"{2 ** (power - 10):g}K" if power < 20 else f"{2 ** (power - 20):g}M"
        parts.append(
            f'<text x="{x:.1f}" y="{top + high + 18}" text-anchor="middle" fill="#666">{label}'
            "</text>"
        )
    for n, (name, line) in enumerate(lines.items()):
        color, y = PALETTE[n % len(PALETTE)], top + 14 + 16 * n
        path = " L".join("{:.1f} {:.1f}".format(*at(*point)) for point in line)
        parts.append(
            f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="2"/>'
            f'<text x="{left + wide - 4}" y="{y}" text-anchor="end" fill="{color}">'
            f"{escape(name)}</text>"
        )
    for place, value, words in marks:
        x, y = at(place, value)
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="#333"/>'
            f'<text x="{x + 7:.1f}" y="{y - 5:.1f}" fill="#333" stroke="#fff" stroke-width="4" '
            f'paint-order="stroke">{escape(words)}</text>'  # readable where a curve passes
        )
    return "\n".join([*parts, "</svg>", ""])
