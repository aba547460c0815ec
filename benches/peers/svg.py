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


#: Of lines in one chart, in their order.
COLOURS = ("#1f6fb4", "#d1495b", "#2e8b57", "#edae49", "#7b4fa3", "#555555")


def curves(title: str, x_label: str, y_label: str, series: list) -> str:
    """One chart of several lines (name, xs, ys, dashed), named at its right; neighbours of a name before the comma share a colour."""
    width, height, right, bottom = 2 * WIDTH, 320, 2 * WIDTH - 170, 320 - BOTTOM
    every = [value for _, _, ys, _ in series for value in ys]
    last = max(value for _, xs, _, _ in series for value in xs)
    low, high = min(every), max(every)
    low, high = low - 0.05 * (high - low or 1), high + 0.05 * (high - low or 1)

    def x(value: float) -> float:
        return LEFT + value / last * (right - LEFT)

    def y(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - 34)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"',
        ' font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{width / 2}" y="19" text-anchor="middle" font-size="13">{escape(title)}</text>',
    ]
    for k in range(5):
        value = low + (high - low) * k / 4
        out.append(f'<line x1="{LEFT}" y1="{y(value):.1f}" x2="{right}" y2="{y(value):.1f}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.2f}</text>')
        out.append(f'<text x="{x(last * k / 4):.1f}" y="{bottom + 15}" text-anchor="middle">{last * k / 4:g}</text>')
    groups = list(dict.fromkeys(name.split(",")[0] for name, *_ in series))
    for i, (name, xs, ys, dashed) in enumerate(series):
        stroke = f'stroke="{COLOURS[groups.index(name.split(",")[0]) % len(COLOURS)]}" stroke-width="2"'
        stroke += ' stroke-dasharray="5 3"' if dashed else ""
        points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(xs, ys))
        out.append(f'<polyline points="{points}" fill="none" {stroke}/>')
        at = 44 + 16 * i
        out.append(f'<line x1="{right + 12}" y1="{at - 4}" x2="{right + 34}" y2="{at - 4}" {stroke}/>')
        out.append(f'<text x="{right + 40}" y="{at}">{escape(name)}</text>')
    out.append(f'<text x="{(LEFT + right) / 2}" y="{bottom + 32}" text-anchor="middle">{escape(x_label)}</text>')
    middle = (34 + bottom) / 2
    out.append(f'<text transform="translate(14,{middle}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>')
    return "\n".join(out + ["</svg>"]) + "\n"
