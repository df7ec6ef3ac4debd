"""What tests of pictures share: which texts of a figure meet."""

from __future__ import annotations

import itertools

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text


def collisions(drawing: Figure) -> list[tuple[str, str]]:
    """Pairs of texts that overlap, and texts that leave the figure (paired with the edge)."""
    canvas = FigureCanvasAgg(drawing)
    canvas.draw()
    written = [
        text
        for text in drawing.findobj(Text)
        if isinstance(text, Text) and text.get_text().strip() and text.get_visible()
    ]
    boxes = [(text.get_text(), text.get_window_extent()) for text in written]
    width, height = canvas.get_width_height()
    found = [
        (name, "the edge")
        for name, box in boxes
        if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height
    ]
    for (one, first), (two, second) in itertools.combinations(boxes, 2):
        if first.shrunk(0.96, 0.7).overlaps(second.shrunk(0.96, 0.7)):
            found.append((one, two))
    return found
