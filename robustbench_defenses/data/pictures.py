"""Encoded pictures (PNG, JPEG, ...) as arrays. Pillow comes with torchvision and matplotlib."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import UserError

if TYPE_CHECKING:
    import numpy as np

_DEEP = ("I", "F", "I;16", "I;16L", "I;16B")  # more than eight bits a channel


def suffixes() -> set[str]:
    """File name endings of pictures that can be read, in lower case, with their dot."""
    from PIL import Image

    return {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def decode(content: bytes | Path, name: str) -> np.ndarray:
    """A picture as (H, W, 1) grey or (H, W, 3) colour, uint8; `name`: how messages call it.

    What is no picture, or has more than eight bits, or is transparent anywhere: `UserError`.
    """
    import numpy as np
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as picture:
            picture.load()
            if picture.mode in _DEEP:
                raise UserError(f"{name} has more than 8 bits a channel", hint="save it with 8")
            if picture.has_transparency_data:
                alpha = np.asarray(picture.convert("RGBA"))[..., 3]
                if alpha.min() < 255:
                    raise UserError(
                        f"{name} is transparent in places", hint="put it on a background"
                    )
            grey = picture.mode in ("1", "L", "LA")
            pixels = np.asarray(picture.convert("L" if grey else "RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{name} is no picture that can be read: {error}") from None
    return pixels[..., None] if grey else pixels


def stack(pictures: Iterable[tuple[bytes | Path, str]]) -> np.ndarray:
    """All of `pictures` (content, name), decoded: (N, C, H, W) uint8, C 1 where all are grey.

    Pictures of different sizes are a `UserError` that names the first that differs.
    """
    import numpy as np

    arrays: list[np.ndarray] = []
    for content, name in pictures:
        pixels = decode(content, name)
        if arrays and pixels.shape[:2] != arrays[0].shape[:2]:
            high, wide = pixels.shape[:2]
            usual = "x".join(str(side) for side in arrays[0].shape[1::-1])
            raise UserError(
                f"{name} is {wide}x{high} pixels, those before it {usual}",
                hint="all images of a data set have one size: resize them first",
            )
        arrays.append(pixels)
    channels = max((pixels.shape[2] for pixels in arrays), default=1)
    shape = (len(arrays), *(arrays[0].shape[:2] if arrays else (0, 0)), channels)
    images = np.empty(shape, np.uint8)
    for place, pixels in enumerate(arrays):
        images[place] = pixels  # grey among colour: the same value in all channels
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
