"""Make adversarial images: save them, look at them.

rrd attack last --attack pgd --eps 0.3 --png grid.png
rrd attack net.py:build --dataset mnist --attack fgsm --eps 0.2 -n 500 --save adv.npz
rrd attack last --attack ddn --save nearest.npz
rrd attack last --attack autoattack --eps 0.2 --png grid.png

Every example is attacked, and what comes back is the attack's last image: the right thing for
transfer and for pictures. Minimum-norm attacks and ensembles return the nearest images that passed
the verdict; where they found none, `broken` is false. How robust a subject is, `rrd eval` says.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.errors import UserError
from . import options

if TYPE_CHECKING:
    from ..evaluation.images import Images

SHOWN = 8


def command(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="SUBJECT",
            help="A run, the beginning of its id, its folder, last, or FILE.py:FACTORY.",
            autocompletion=options.run_ids(),
        ),
    ] = "last",
    attack: Annotated[
        str,
        typer.Option(
            "--attack",
            metavar="A",
            help="An attack (rrd list attacks) or FILE.py:NAME.",
            autocompletion=options.names_of("attack"),
        ),
    ] = "pgd",
    eps: Annotated[
        str | None,
        typer.Option(
            "--eps",
            metavar="E",
            help="Budget in pixel units: 0.3, 8/255; minimum-norm attacks need none.",
            show_default="the middle of the published grid",
        ),
    ] = None,
    norm: Annotated[
        str | None,
        typer.Option("--norm", metavar="NORM", help="linf, l2 or l1.", show_default=False),
    ] = None,
    settings: options.Set = None,
    targeted: Annotated[
        bool, typer.Option("--targeted", help="Towards a random wrong class of each example.")
    ] = False,
    keep: Annotated[
        str, typer.Option("--keep", metavar="RULE", help="last or best_loss iterate.")
    ] = "last",
    dataset: options.TestSet = None,
    n: options.Count = None,
    subset: options.Subset = "first",
    save: Annotated[
        Path | None,
        typer.Option(
            "--save",
            metavar="FILE.npz",
            help="Clean and adversarial images, labels, predictions, distances.",
            show_default=False,
        ),
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(
            "--png",
            metavar="FILE.png",
            help=f"Clean, perturbation and adversarial of the first {SHOWN} examples.",
            show_default=False,
        ),
    ] = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = "auto",
    data: options.Data = None,
    results: options.Results = options.DEFAULT_RESULTS,
    device: options.Device = "auto",
    threads: options.Threads = None,
    json_: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Attack the examples, write what was asked for, print a summary."""
    from ..core.files import check_writable
    from ..core.norms import parse_eps
    from .asked import implied_norm

    for path, suffix in ((save, ".npz"), (png, ".png")):
        if path is not None and path.suffix.lower() != suffix:
            raise UserError(f"{path} must end in {suffix}")
        if path is not None:
            check_writable(path.parent)
    chosen: dict[str, object] = dict(options.parse_set(settings))
    budget = None if eps is None else parse_eps(eps, norm or implied_norm([attack], {"": chosen}))
    count = options.parse_count(n)

    from ..evaluation.images import attack_images
    from .console import progress

    made = attack_images(
        subject,
        attack,
        eps=budget,
        dataset=dataset,
        norm=norm,
        n=count,
        settings=chosen,
        targeted=targeted,
        keep=keep,
        subset=subset,
        seed=seed,
        device=device,
        threads=threads,
        batch_size=options.parse_batch_size(batch_size),
        data_dir=data,
        results_dir=results,
        progress=progress(quiet),
    )
    if save is not None:
        from ..core.files import write_npz

        write_npz(save, made.arrays())
    if png is not None:
        draw(made, png)
    _show(made, [path for path in (save, png) if path is not None], json_, quiet)


def draw(made: Images, path: Path) -> None:
    """The first examples as a picture."""
    from ..report.grid import attack_grid

    part = slice(0, SHOWN)
    attack_grid(
        made.clean[part].cpu().numpy(),
        made.adversarial[part].cpu().numpy(),
        made.labels[part].cpu().numpy(),
        made.before[part].cpu().numpy(),
        made.after[part].cpu().numpy(),
        made.distances[made.norm].masked_fill(~made.broken, math.inf)[part].cpu().numpy(),
        path,
        norm=made.norm,
    )


def _show(made: Images, written: list[Path], as_json: bool, quiet: bool) -> None:
    from ..report.text import NORM_NAMES
    from .console import note, out, print_json

    total = len(made.labels)
    clean = int((made.before == made.labels).sum())
    counted = int(made.broken.sum())
    if as_json:
        print_json(
            {
                "subject": made.subject,
                "dataset": made.dataset,
                "attack": made.attack,
                "norm": made.norm,
                "eps": made.eps,
                "n": total,
                "clean_accuracy": clean / total,
                "accuracy_of_images": made.accuracy,
                "broken": counted / total,
                "mean_distance": {name: _mean(made, name) for name in made.distances},
                "files": [str(path) for path in written],
            }
        )
        return
    budget = "" if made.eps is None else f" at eps {made.eps:g}"
    out.print(f"{made.attack}{budget} on {made.subject}, {total} images of {made.dataset}")
    after = round(made.accuracy * total)
    if made.target is None:
        # What is misclassified beyond eps only does not count.
        out.print(f"  right before {clean} of {total}, after {total - counted} of {total}")
        beyond = total - after - counted
        if beyond > 0:
            out.print(f"  {beyond} more found beyond eps only: in the images, not broken")
    else:
        out.print(f"  right before {clean} of {total}, after {after} of {total}")
        within = "" if made.eps is None else " within eps"
        out.print(f"  wrong before or in the target class{within} {counted} of {total}")
    said = ", ".join(
        f"{name} {mean:.3g}" for key, name in NORM_NAMES.items() if (mean := _mean(made, key))
    )
    if said:
        of = " of those it broke" if _searched(made) else ""
        out.print(f"  mean distance{of} {said}")
    if not quiet:
        for path in written:
            note(f"wrote {path}")


def _mean(made: Images, norm: str) -> float | None:
    """Mean distance, of a search for the nearest over those that it broke; None of nothing."""
    lengths = made.distances[norm]
    if _searched(made):
        lengths = lengths[made.broken & (made.before == made.labels)]
    return float(lengths.mean()) if len(lengths) else None


def _searched(made: Images) -> bool:
    """Images may lie beyond eps: those of minimum-norm attacks and of ensembles that have some."""
    if made.eps is None or made.nearest:
        return made.nearest
    return bool((made.distances[made.norm] > 1.001 * made.eps).any())
