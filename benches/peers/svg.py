"""A page of small line charts as SVG, without a library."""

import math
from html import escape

WIDTH, HEIGHT, COLUMNS = 300, 200, 2
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 44


def plot(title: str, panels: list) -> str:
    """Panels of (x label, y label, xs, ys), two a line; x is logarithmic to base 2, if no x is 0; y begins at 0."""
    lines = math.ceil(len(panels) / COLUMNS)
    width, height = COLUMNS * WIDTH, 30 + lines * HEIGHT
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"',
        ' font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{width / 2}" y="19" text-anchor="middle" font-size="13">{escape(title)}</text>',
    ]
    for i, panel in enumerate(panels):
        out.append(f'<g transform="translate({i % COLUMNS * WIDTH},{30 + i // COLUMNS * HEIGHT})">')
        out += chart(*panel)
        out.append("</g>")
    return "\n".join(out + ["</svg>"]) + "\n"


def chart(x_label: str, y_label: str, xs: list, ys: list) -> list[str]:
    """One panel."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    scale = math.log2 if min(xs) > 0 else float
    low, high = scale(min(xs)), scale(max(xs))
    top = nice(max(ys))

    def x(value: float) -> float:
        share = (scale(value) - low) / (high - low) if high > low else 0.5
        return LEFT + share * (right - LEFT)

    def y(value: float) -> float:
        return bottom - value / top * (bottom - TOP)

    out = []
    for k in range(5):
        value = top * k / 4
        out.append(f'<line x1="{LEFT}" y1="{y(value):.1f}" x2="{right}" y2="{y(value):.1f}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in xs:
        out.append(f'<text x="{x(value):.1f}" y="{bottom + 15}" text-anchor="middle">{value}</text>')
    points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(xs, ys))
    out.append(f'<polyline points="{points}" fill="none" stroke="#1f6fb4" stroke-width="2"/>')
    out += [f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="3" fill="#1f6fb4"/>' for a, b in zip(xs, ys)]
    out.append(f'<text x="{(LEFT + right) / 2}" y="{bottom + 32}" text-anchor="middle">{escape(x_label)}</text>')
    middle = (TOP + bottom) / 2
    out.append(
        f'<text transform="translate(14,{middle}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    return out


def nice(value: float) -> float:
    """The next of 1, 2, 4, 5, 8 or 10 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(step * power for step in (1, 2, 4, 5, 8, 10) if step * power >= value * (1 - 1e-9))
