"""Reproduced items as one self-contained page: tables, curves, claims, runs; no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core import registry
from ..core.errors import UserError
from ..core.files import write_text
from . import html, item_cells, item_feet, item_figure, item_grid, text
from . import item as items
from .item import Item, ItemClaim, ItemRun
from .item_formats import reading

PAGE = "index.html"


def page(
    found: Sequence[Item], results_dir: Path, folder: Path, up: tuple[str, str] | None = None
) -> str:
    """One page of items of one paper and preset, to stand in `folder`.

    Cells link to their results, where the files are there, by relative paths; `up`: (address,
    text) of a page that this one belongs to.
    """
    first = found[0]
    dates = [item.environment.date[:10] for item in found]
    single = len(found) == 1
    summaries = _summaries()
    parts = [_printed_in(found), first.preset, *_size(first if single else None), max(dates)]
    return html.render(
        "item.html.j2",
        title=f"{first.paper}, {item_grid.title(first)}" if single else first.paper,
        subtitle=" · ".join(filter(None, parts)),
        verdict=verdict(found),
        notices=[line for line in _notices(found) if line],
        up=None if up is None else {"href": up[0], "text": up[1]},
        sections=[
            _section(item, at, results_dir, folder, summaries) for at, item in enumerate(found)
        ],
    )


def _printed_in(found: Sequence[Item]) -> str:
    """The source of one item; of several, what their sources have in common."""
    sources = list(dict.fromkeys(item.source for item in found))
    if len(sources) == 1:
        return sources[0]
    heads = {source.rpartition(",")[0] for source in sources}
    return heads.pop() if len(heads) == 1 else ""


def _size(item: Item | None) -> list[str]:
    return [f"n = {text.count(item.n)}"] if item is not None and item.n else []


def path_of(results_dir: Path, paper: str, preset: str) -> Path:
    """Where the page of a whole paper is."""
    return results_dir / "items" / paper / f"{preset}.html"


def write_item(item: Item, results_dir: Path) -> Path:
    """Write an item's page beside its `result.json`."""
    folder = items.folder(results_dir, item.id, item.preset)
    whole = path_of(results_dir, item.paper, item.preset)
    up = (html.link(whole, folder), f"All items of {item.paper}, {item.preset}")
    write_text(folder / PAGE, page([item], results_dir, folder, up))
    return folder / PAGE


def write_paper(results_dir: Path, paper: str, preset: str) -> Path | None:
    """Write the page of all stored items of a paper at a preset; None where there are none."""
    found = []
    for path in items.stored(results_dir, paper):
        if path.parent.name == preset:
            try:
                found.append(items.load(path))
            except UserError:
                continue  # a damaged item is missed on its own page, not in all others
    if not found:
        return None
    path = path_of(results_dir, paper, preset)
    write_text(path, page(found, results_dir, path.parent))
    return path


def verdict(found: Sequence[Item]) -> str:
    """One sentence: how much is measured, how near it is, and which claims hold."""
    printed = sum(item.agreement.printed for item in found)
    measured = sum(item.agreement.measured for item in found)
    within = sum(item.agreement.within_two for item in found)
    taus = [c.tau for item in found for c in item.agreement.columns if c.tau is not None]
    claims = [
        claim for item in found for claim in item.claims if claim.ours is not None and not claim.own
    ]
    parts = []
    if printed:
        parts.append(
            f"{measured} of {printed} printed cells are measured, {within} of them within "
            "2 points of the print"
        )
    else:
        ours = sum(cell.ours is not None for item in found for cell in item.cells)
        parts.append(f"{ours} values are measured, and no number is printed to compare them with")
    if taus:
        kept = sum(tau == 1 for tau in taus)
        parts.append(f"the printed order is kept in {kept} of {len(taus)} columns")
    if claims:
        holds = sum(bool(claim.ours) for claim in claims)
        parts.append(f"{holds} of {len(claims)} checked statements of the paper hold here")
    return "; ".join([*parts, *_strong(found)]) + "."


def _strong(found: Sequence[Item]) -> list[str]:
    """By how much a strong attack undercuts the paper's own on the same images, where that is
    most."""
    worst = (0.0, "")
    for item in found:
        for cell in item.strong():
            if cell.ours is None or cell.ours.own_attacks is None:
                continue
            if cell.unit in ("percent", "fraction"):
                scale = 1 if cell.unit == "percent" else 100
                gap = scale * (cell.ours.own_attacks - cell.ours.value)
                worst = max(worst, (gap, item_grid.named(cell, ("defense", "dataset"))))
    if worst[0] <= 0:
        return []
    return [f"strong attacks take up to {worst[0]:.1f} points more than the paper's ({worst[1]})"]


def _notices(found: Sequence[Item]) -> list[str]:
    """What a reader has to know before any number."""
    used: dict[str, list[str]] = {}
    for item in found:
        for asked, stand_in in item.stand_ins.items():
            places = used.setdefault(stand_in, [])
            places += [asked] if asked not in places else []
    lines = [
        f"{stand_in} stands in for {item_feet.listed(asked)}: such cells are not on the paper's "
        "data, and their differences say nothing about the paper."
        for stand_in, asked in used.items()
    ]
    failed = sum(c.status == "failed" and c.ours is None for item in found for c in item.cells)
    return lines + ([f"Cells that failed and are empty: {failed}."] if failed else [])


def _section(
    item: Item, number: int, results_dir: Path, folder: Path, summaries: dict[str, str]
) -> dict[str, Any]:
    link = _linker(results_dir, folder)
    popovers: item_cells.Popovers = {}
    readings = [
        {
            "name": reading(item, arm) if arm else "",
            "figures": _figures(item, arm, f"s{number}a{at}"),
            "tables": [
                item_cells.table(item, one, link, popovers, number)
                for one in item_grid.grids(item, arm)
            ],
        }
        for at, arm in enumerate(item.arms)
    ]
    shaded = any(cell.difference is not None for cell in item.cells)
    return {
        "anchor": item.id.partition("/")[2],
        "name": item_grid.title(item)[:1].upper() + item_grid.title(item)[1:],
        "text": item.title,
        "facts": " · ".join([item.preset, *_size(item), item.environment.date[:10]]),
        "counted": _counted(item),
        "verdict": verdict([item]),
        "schedule": ". ".join(item_feet.schedule(item)),
        "names": _names(item, summaries),
        "readings": [one for one in readings if one["tables"] or one["figures"]],
        "figcaption": _figcaption(item),
        "key": _key(item, link),
        "shaded": shaded,
        "feet": _feet(item),
        "popovers": [
            {"id": name, "said": [dict(zip(("severity", "name", "sentence"), one)) for one in said]}
            for said, name in popovers.items()
        ],
        "fired": _fired(item),
        "claims": [_claim(claim) for claim in item.claims if claim.sentence],
        "unchecked": [claim.text for claim in item.claims if not claim.sentence],
        "made": _made(item),
        "files": _files(item, results_dir, folder),
        "runs": [_run(run, link) for run in item.runs],
        "deviations": _deviations(item.runs),
        "notes": item.notes,
        "remarks": _remarks(item),
        "sources": _sources(item, link),
        "place": _place(item),
    }


def _linker(results_dir: Path, folder: Path) -> item_cells.Link:
    """A function from files, relative to the results, to links; None for what is not there."""

    def link(name: str) -> str | None:
        path = results_dir / name
        return html.link(path, folder) if path.is_file() else None

    return link


def _counted(item: Item) -> str:
    found = item.agreement
    if not found.printed:
        return f"{sum(cell.ours is not None for cell in item.cells)} values"
    return f"{found.measured} of {found.printed} cells, {found.within_two} within 2 points"


def _figures(item: Item, arm: str, prefix: str) -> list[dict[str, str]]:
    drawn = item_figure.svgs(item, arm)
    return [
        {
            "name": panel.name if len(drawn) > 1 or panel.name != item.paper else "",
            "svg": html.themed(svg, f"{prefix}p{at}", f"{panel.y_label} over {panel.x_label}"),
        }
        for at, (panel, svg) in enumerate(drawn)
    ]


def _figcaption(item: Item) -> str:
    marks = any(cell.printed is not None or cell.elsewhere is not None for cell in item.cells)
    parts = ["Lines: ours, bands are 95 % intervals."]
    elsewhere = sorted({cell.source or "" for cell in item.cells if cell.elsewhere is not None})
    if marks:
        parts.append(
            "Hollow marks: printed values" + (f" ({', '.join(elsewhere)})." if elsewhere else ".")
        )
    if item.axes.get("x", {}).get("source") == "ours":
        parts.append("The paper prints no grid; this one is ours.")
    return " ".join(parts)


def _summaries() -> dict[str, str]:
    """What every registered defense and attack is, by name and alias."""
    return {
        name: entry.summary
        for kind in ("attack", "defense")
        for entry in registry.scan(kind).entries
        for name in (entry.name, *entry.aliases)
    }


def _names(item: Item, summaries: dict[str, str]) -> list[tuple[str, str]]:
    """What the item's defenses and attacks are, as far as they are registered here."""
    keys = [cell.keys for cell in item.headline()]
    names = [str(each[key]) for key in ("defense", "attack") for each in keys if key in each]
    return [(name, summaries[name]) for name in dict.fromkeys(names) if name in summaries]


def _key(item: Item, link: item_cells.Link) -> str:
    """How a cell is read."""
    if not any(cell.printed is not None for cell in item.cells):
        return ""
    files = (name for cell in item.cells if cell.ours is not None for name in cell.ours.results)
    linked = "; a number links to its result" if any(map(link, files)) else ""
    return f"Ours, under it the printed value and the difference{linked}."


def _made(item: Item) -> list[dict[str, str]]:
    """The commands behind the numbers; how many each gave, where there are several."""
    if len(item.made) <= 1:
        return [{"command": item.command, "said": ""}]
    return [
        {"command": one.command, "said": f"{text.count(one.cells)} values, {one.date[:10]}"}
        for one in item.made
    ]


def _feet(item: Item) -> list[str]:
    """The lines under the tables that no other place of the page says."""
    lines = item_feet.feet(item)
    elsewhere = {item_feet.agreement(item), *item_feet.stand_ins(item), *item_feet.schedule(item)}
    return [line for line in lines if line not in elsewhere and not line.startswith("! ")]


def _fired(item: Item) -> list[dict[str, str]]:
    """Each diagnostic that fired, once, with the cells that it concerns."""
    concerned: dict[tuple[str, str, str], list[str]] = {}
    for cell in item.cells:
        for one in [] if cell.ours is None else cell.ours.flagged:
            key = (one.severity, one.name, one.sentence)
            concerned.setdefault(key, []).append(item_grid.named(cell, (*item.rows, *item.columns)))
    found = []
    for (severity, name, sentence), cells in sorted(concerned.items()):
        who = "; ".join(cells[:3]) + (f" and {len(cells) - 3} more" if len(cells) > 3 else "")
        found.append({"severity": severity, "name": name, "sentence": sentence, "who": who})
    return found


def _claim(claim: ItemClaim) -> dict[str, str]:
    said = {True: "holds", False: "fails", None: "–"}
    against = claim.sentence.removeprefix("does not hold: ") if not claim.ours else ""
    return {
        "ours": said[claim.ours],
        "printed": said[claim.printed],
        "text": claim.text,
        "against": against,
    }


def _run(run: ItemRun, link: item_cells.Link) -> dict[str, Any]:
    clean = text.percent(run.clean_accuracy)
    return {
        "defense": run.defense,
        "dataset": run.dataset,
        "model": run.model,
        "seed": run.seed,
        "epochs": run.epochs,
        "clean": f"{clean} %" if run.clean_accuracy is not None else clean,
        "time": "" if run.seconds is None else text.duration(run.seconds),
        "warnings": run.warnings,
        "href": link(f"runs/{run.id}/run.json"),
    }


def _deviations(runs: Sequence[ItemRun]) -> list[tuple[str, str]]:
    """Who deviates in what: first what all trainings share, then what each adds."""
    if not any(run.deviations for run in runs):
        return []
    shared = [one for one in runs[0].deviations if all(one in run.deviations for run in runs)]
    rows = [("all", ", ".join(shared))] if shared and len(runs) > 1 else []
    for run in runs:
        own = [one for one in run.deviations if not rows or one not in shared]
        if own:
            rows.append((f"{run.defense}, {run.model}", ", ".join(own)))
    return list(dict.fromkeys(rows))


def _remarks(item: Item) -> list[str]:
    """What the recipe says of single cells, the same words once."""
    places: dict[str, list[str]] = {}
    for cell in item.cells:
        flag = (cell.flag or "").replace("_", " ")
        said = ": ".join(filter(None, [flag, cell.note]))
        if said and not cell.arm:
            places.setdefault(said, []).append(item_grid.named(cell, (*item.rows, *item.columns)))
    return [f"{said} ({'; '.join(cells)})" for said, cells in places.items()]


def _sources(item: Item, link: item_cells.Link) -> list[dict[str, Any]]:
    """The files of cells that are made of several."""
    found = []
    for cell in item.cells:
        files = () if cell.ours is None else cell.ours.results
        links = [{"href": href, "name": Path(name).stem} for name in files if (href := link(name))]
        if len(files) > 1 and links:
            found.append(
                {"who": item_grid.named(cell, (*item.rows, *item.columns)), "links": links}
            )
    return found


def _files(item: Item, results_dir: Path, folder: Path) -> list[dict[str, str]]:
    """The item's own files, as far as they are there."""
    own = items.folder(results_dir, item.id, item.preset)
    names = ("result.json", "table.csv", "table.md", "table.tex")
    return [
        {"name": name, "href": html.link(own / name, folder)}
        for name in names
        if (own / name).is_file()
    ]


def _place(item: Item) -> list[tuple[str, str]]:
    place = item.environment
    facts = [
        ("machine", f"{place.device}, {place.threads} threads, {place.precision}"),
        ("software", f"rrd {place.rrd}, torch {place.torch}, python {place.python}"),
        ("system", place.platform),
        ("commit", place.git_commit or ""),
        ("date", place.date),
    ]
    return [(name, value) for name, value in facts if value]
