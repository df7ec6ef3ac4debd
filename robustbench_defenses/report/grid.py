"""Images side by side: clean, what was added, adversarial, with what the subject said."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import UserError
from ..core.files import write_bytes
from .curve import INK, QUIET, check_suffix
from .text import NORM_NAMES, decimal, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

COLUMNS = 8
LIMIT = 64
WRONG = "#B4231F"

_CELL, _LEFT, _GAP = 0.92, 1.25, 0.1  # inches: picture, row names, between pictures
_HEAD, _CAPTION = 0.62, 0.44
_STYLE: Any = {"font.family": "DejaVu Sans", "font.size": 8.5, "svg.hashsalt": "rrd"}


def attack_grid(
    clean: Any,
    adversarial: Any,
    labels: Any,
    before: Any,
    after: Any,
    distances: Any,
    path: Path,
    *,
    norm: str = "linf",
    title: str | None = None,
    names: Sequence[str] | None = None,
) -> Path:
    """Draw each example as a column: clean, perturbation, adversarial, with both predictions.

    `clean`, `adversarial`: (N, C, H, W) in [0, 1], one or three channels; `labels`, `before`,
    `after`: (N,) class numbers; `distances`: (N,) in `norm`, inf where nothing was found. Arrays
    or tensors. `names`: class names. Perturbations share one scale, around mid grey; it is stated.
    Wrong predictions are red and crossed. At most 64 examples; `UserError` beyond, and for
    a suffix other than .png, .svg, .pdf.
    """
    import matplotlib as mpl

    check_suffix(path)
    images, moved = _images(clean), _images(adversarial)
    said = [_array(values).astype(int) for values in (labels, before, after)]
    lengths = {len(images), len(moved), *map(len, said), len(_array(distances))}
    if len(lengths) != 1 or images.shape != moved.shape:
        raise ValueError("images, labels, predictions and distances must speak of equal examples")
    if not 0 < len(images) <= LIMIT:
        raise UserError(f"cannot draw {len(images)} examples in one grid", f"1 to {LIMIT}: -n N")
    with mpl.rc_context(_STYLE):
        drawing = _figure(images, moved, said, _array(distances).astype(float), norm, title, names)
        buffer = io.BytesIO()
        kind = path.suffix.lower()[1:]
        metadata = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
        drawing.savefig(buffer, format=kind, dpi=160, metadata=metadata[kind])
    write_bytes(path, buffer.getvalue())
    return path


def perturbation_scale(clean: NDArray[np.float64], adversarial: NDArray[np.float64]) -> float:
    """The factor that stretches the largest change to the full range around mid grey."""
    largest = float(np.abs(adversarial - clean).max())
    return 0.5 / largest if largest > 0 else 1.0


def _array(values: Any) -> NDArray[Any]:
    """An array from an array, a list, or a tensor on any device."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    return np.asarray(values)


def _images(values: Any) -> NDArray[np.float64]:
    """(N, C, H, W) as (N, H, W, C) for drawing."""
    array = _array(values)
    if array.ndim != 4 or array.shape[1] not in (1, 3):
        raise ValueError(f"images have shape {array.shape}, not (N, 1 or 3, H, W)")
    return np.moveaxis(array.astype(np.float64), 1, -1)  # (N, C, H, W) -> (N, H, W, C)


def _figure(
    clean: NDArray[np.float64],
    adversarial: NDArray[np.float64],
    said: list[NDArray[Any]],
    distances: NDArray[np.float64],
    norm: str,
    title: str | None,
    names: Sequence[str] | None,
) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(clean)
    columns = min(count, COLUMNS)
    blocks = math.ceil(count / columns)
    labels, before, after = said
    block = 3 * _CELL + 2 * _GAP + 2 * _CAPTION + 0.18
    width = max(_LEFT + columns * (_CELL + _GAP) + 0.1, 5.4)
    height = _HEAD + blocks * block
    drawing = Figure(figsize=(width, height))
    FigureCanvasAgg(drawing)
    scale = perturbation_scale(clean, adversarial)
    pictures = (clean, 0.5 + scale * (adversarial - clean), adversarial)
    _title(drawing, said, distances, norm, title)

    def class_name(number: int) -> str:
        return names[number] if names is not None else str(number)

    for at in range(count):
        left = _LEFT + at % columns * (_CELL + _GAP)
        top = height - _HEAD - at // columns * block
        # A caption stands over the clean and over the adversarial picture.
        y = [top - _CAPTION - _CELL]
        y += [y[0] - _GAP - _CELL, y[0] - _GAP - _CELL - _CAPTION - _CELL]
        cells = []
        for row in range(3):
            box = (left / width, y[row] / height, _CELL / width, _CELL / height)
            cells.append(drawing.add_axes(box))
            _picture(cells[-1], pictures[row][at])
        truth = f"label {class_name(labels[at])}"
        _caption(cells[0], truth, class_name(before[at]), before[at] != labels[at])
        found = math.isfinite(distances[at])
        length = f"{NORM_NAMES[norm]} {decimal(distances[at], 3)}" if found else "holds"
        _caption(cells[2], length, class_name(after[at]), after[at] != labels[at])
        if at % columns == 0:
            heads = ("clean", f"perturbation\n×{scale:.3g}\naround grey", "adversarial")
            for cell, head in zip(cells, heads):
                cell.text(-0.12, 0.5, head, transform=cell.transAxes, ha="right", va="center")
    return drawing


def _picture(axes: Axes, image: NDArray[np.float64]) -> None:
    """One image (H, W, C); every pixel stays a square, however small the image."""
    shown = image[..., 0] if image.shape[-1] == 1 else image
    axes.imshow(np.clip(shown, 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#C6CAD0")
        spine.set_linewidth(0.6)


def _caption(axes: Axes, first: str, prediction: str, wrong: bool) -> None:
    """Two lines over a picture: a fact, and the prediction, crossed where it is wrong."""
    where: dict[str, Any] = {"transform": axes.transAxes, "ha": "center", "va": "bottom"}
    axes.text(0.5, 1.21, first, color=QUIET, fontsize=7.5, **where)
    axes.text(
        0.5,
        1.03,
        f"{prediction} ✗" if wrong else prediction,
        color=WRONG if wrong else INK,
        fontweight="bold" if wrong else "normal",
        **where,
    )


def _title(
    drawing: Figure,
    said: list[NDArray[Any]],
    distances: NDArray[np.float64],
    norm: str,
    title: str | None,
) -> None:
    labels, before, after = said
    right = before == labels
    fooled = int((right & (after != labels)).sum())
    width, height = drawing.get_size_inches()
    counted = f"{fooled} of {int(right.sum())} rightly classified are fooled"
    found = distances[right & np.isfinite(distances)]
    reached = f" · {NORM_NAMES[norm]} at most {found.max():.3g}" if found.size else ""
    drawing.text(
        0.1 / width,
        1 - 0.12 / height,
        shorten(title or "What the attack changed", int(10 * width)),
        fontsize=11,
        fontweight="bold",
        color=INK,
        va="top",
    )
    drawing.text(
        0.1 / width,
        1 - 0.38 / height,
        f"{counted}{reached} · ✗ wrong prediction",
        fontsize=8.5,
        color=QUIET,
        va="top",
    )
