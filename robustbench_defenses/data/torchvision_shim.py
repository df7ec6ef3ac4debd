"""The one door to torchvision: where its data sets come from, and its pictures' helpers.

torchvision is needed for its lists of mirrors and checksums alone, so nothing on the way of
training or evaluation comes through here.
"""

from __future__ import annotations

import functools
import importlib
import sys
from types import ModuleType
from typing import Any

from ..core.errors import UserError

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS = ("nms", "qnms")
# A library of operators lives as long as the object: it must not be collected.
_declared: list[Any] = []


@functools.cache
def torchvision() -> ModuleType:
    """The module `torchvision` (with `datasets` and `utils`); not installed: `UserError`."""
    try:
        return _import()
    except ImportError as error:
        raise UserError(
            f"torchvision cannot be imported: {error}", hint="install the torchvision of your torch"
        ) from None
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    # A torchvision built for CUDA beside a CPU torch cannot load its compiled operators, and its
    # import fails because it describes two of them that nobody declared. They are declared here
    # (they stay without an implementation; nothing of ours calls them), and only now, because a
    # matching build declares them itself.
    import torch

    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for operator in _OPERATORS:
        library.define(operator + _SCHEMA)
    _declared.append(library)
    return _import()


def _import() -> ModuleType:
    module = importlib.import_module("torchvision")
    importlib.import_module("torchvision.datasets")
    importlib.import_module("torchvision.utils")
    return module


def origin(dataset: str) -> tuple[list[str], dict[str, str]]:
    """Where torchvision's class `dataset` downloads from: mirrors (base addresses), file -> MD5."""
    known: Any = getattr(torchvision().datasets, dataset, None)
    if hasattr(known, "resources"):
        files = {str(name): str(md5) for name, md5 in known.resources}
        return [str(mirror) for mirror in known.mirrors], files
    if hasattr(known, "split_list"):
        about = [(str(url), str(md5)) for url, _, md5 in known.split_list.values()]
    elif hasattr(known, "url") and hasattr(known, "tgz_md5"):
        about = [(str(known.url), str(known.tgz_md5))]
    else:
        raise UserError(f"this torchvision does not say where its {dataset} comes from")
    bases = dict.fromkeys(url.rpartition("/")[0] for url, _ in about)
    return list(bases), {url.rpartition("/")[2]: md5 for url, md5 in about}
