# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes docs/results.md, its picture and README's table from the lines of `benchmarks/variants.py`, and from nothing else."""

import statistics
from html import escape
from pathlib import Path

import numpy as np
from variant_ablation import (
    EVOLVING_TAKEN_APART,
    MULTI_TOKEN_TAKEN_APART,
    ablation_section,
    longer_section,
    search_section,
)
from variant_definitions import ABLATION, HEAD_TO_HEAD, LONGER, PARTS, VANILLA, VARIANTS
from variant_results import ABOUT, Line, Results, cell, gain, kinds, table, unit
from variant_statistics import mean_of_tasks, mean_ranks
from variant_tasks import TASKS, runs

from ea_hf.paired_statistics import MINIMUM_SEEDS, Difference, holm, paired


PICTURE = "results.svg"
# README's columns: variants, and how they are called there.
README_COLUMNS = {
    "evolving": "evolving (0.1, 0.1)",
    "evolving_half": "(0.5, 0.5)",
    "learned": "learned",
    "realformer": "RealFormer",
    "talking_heads": "talking heads",
    "multi_token": "multi-token",
}
README_MARKS = ("<!-- benchmarks/variants.py --report writes this table -->\n", "\n<!-- end of the table -->")


def compared(results: Results) -> list[str]:
    """Those of the head-to-head that have runs beside vanilla's."""
    begun = {variant for (_, variant), seeds in results.lines.items() if seeds}
    return [name for name in HEAD_TO_HEAD if name in begun and name != VANILLA]


def kind_differences(results: Results, matched: bool = False) -> dict[tuple[str, str], Difference]:
    keys = [(variant, kind) for variant in compared(results) for kind in kinds()]
    pairs = {(v, k): mean_of_tasks(list(results.kind_gains(k, v, matched).values())) for v, k in keys}
    return {key: difference for key, difference in pairs.items() if difference is not None}


def corrected_p(differences: dict[tuple[str, str], Difference]) -> dict[tuple[str, str], float]:
    return holm({key: difference.p for key, difference in differences.items()})


def top_table(results: Results, matched: bool = False) -> str:
    differences = kind_differences(results, matched)
    corrected = corrected_p(differences)
    rows = []
    for variant in compared(results):
        if matched and variant == LONGER:
            continue
        cost = step_cost(results, variant)
        cells = [cell(differences.get((variant, kind)), corrected.get((variant, kind))) for kind in kinds()]
        rows.append([f"`{variant}`", *cells, f"{cost:.2f}" if cost else "-"])
    return table(["variant", *(f"{kind}, {unit(kind)}" for kind in kinds()), "CPU time of a step"], rows)


def readme_table(results: Results) -> str:
    """A row for each kind of task, and one for the price; what README says of the top table."""
    differences = kind_differences(results)
    corrected = corrected_p(differences)
    rows = []
    for kind in kinds():
        found = {name: differences.get((name, kind)) for name in README_COLUMNS}
        if any(found.values()):
            tasks = sorted({len(results.kind_gains(kind, name)) for name in found if found[name]})
            seeds = {difference.seeds for difference in found.values() if difference}
            counted = f"{' to '.join(map(str, sorted({tasks[0], tasks[-1]})))} task{'s' * (tasks[-1] > 1)}, {'/'.join(map(str, sorted(seeds)))} seeds"
            cells = [cell(found[name], corrected.get((name, kind)), digits=1) for name in README_COLUMNS]
            rows.append([f"{kind}, {unit(kind)} ({counted})", *cells])
    costs = [step_cost(results, name) for name in README_COLUMNS]
    rows.append(["CPU time of a training step, vanilla = 1", *(f"{cost:.2f}" if cost else "-" for cost in costs)])
    return table(["gain over plain attention", *README_COLUMNS.values()], rows)


def step_cost(results: Results, variant: str) -> float | None:
    """CPU time of a step, as a multiple of vanilla's: the geometric mean over tasks."""
    costs = [cost for task in TASKS if (cost := results.cost(task, variant))]
    return statistics.geometric_mean(costs) if costs else None


def what_they_rest_on(results: Results, matched: bool = False) -> str:
    """Which tasks and seeds a kind's cells speak of."""
    parts, others, differences = [], [], kind_differences(results, matched)
    for kind in kinds():
        gains = next((found for name in compared(results) if (found := results.kind_gains(kind, name, matched))), {})
        if gains:
            parts.append(f"{kind}: {', '.join(f'`{task}` ({len(values)})' for task, values in gains.items())}")
            own = {name: results.kind_gains(kind, name, matched) for name in compared(results)}
            others += [
                f"{kind}, `{name}` ({', '.join(f'`{task}`' for task in found)})"
                for name, found in own.items()
                if (name, kind) in differences and found.keys() != gains.keys()
            ]
    text = f"Tasks, and how many seeds of each: {'; '.join(parts)}." if parts else ""
    return text + (f" Cells of other tasks, not comparable with their column: {'; '.join(others)}." if others else "")


def verdicts(results: Results) -> str:
    """What can be said of each variant, and no more."""
    differences, matched = kind_differences(results), kind_differences(results, True)
    corrected, matched_p = corrected_p(differences), corrected_p(matched)
    lines = []
    for variant in compared(results):
        if variant == LONGER:
            continue
        use, avoid, unclear, unknown = [], [], [], []
        for kind in kinds():
            key = (variant, kind)
            difference = differences.get(key)
            if difference is None or difference.seeds < MINIMUM_SEEDS:
                unknown.append(kind)
            elif corrected[key] < 0.05 and difference.mean > 0:
                same_time = matched.get(key)
                holds = same_time is not None and same_time.mean > 0 and matched_p[key] < 0.05
                use.append(
                    f"{kind} ({cell(difference)} {unit(kind)}; {'also' if holds else 'not shown'} at equal time)"
                )
            elif corrected[key] < 0.05 and (key not in matched or matched[key].mean + matched[key].half_width < 0):
                avoid.append(f"{kind} ({cell(difference)} {unit(kind)})")
            else:
                unclear.append(f"{kind} (detectable from {difference.visible:.2f} {unit(kind)})")
        parts = (("use it for", use), ("do not use it for", avoid), ("no difference shown", unclear))
        said = [f"{name}: {', '.join(found)}" for name, found in parts if found]
        kinds_unknown = "all kinds of task" if unknown == kinds() else ", ".join(unknown)
        said += [f"fewer than {MINIMUM_SEEDS} seeds finished so far: {kinds_unknown}"] if unknown else []
        lines.append(f"- `{variant}`, {ABOUT[variant]}: {'; '.join(said)}.")
    return "\n".join(lines) or "Nothing can be said yet."


def ranked(results: Results) -> tuple[list[str], list[str]]:
    """The variants that have finished at least half as many tasks as any other, and the tasks that all of these have."""
    finished = {
        name: [task for task in TASKS if results.seeds(task, name)] for name in compared(results) if name != LONGER
    }
    most = max(map(len, finished.values()), default=0)
    variants = [name for name, tasks in finished.items() if 2 * len(tasks) >= most > 0]
    return variants, [task for task in TASKS if variants and all(task in finished[name] for name in variants)]


def rank_table(results: Results) -> str:
    variants, tasks = ranked(results)
    if len(tasks) < 2:
        return "Ranks need a variant that has finished two tasks."
    names = [VANILLA, *variants]
    signs = {task: -1 if TASKS[task].lower_is_better else 1 for task in tasks}
    scores = np.array(
        [
            [
                signs[task]
                * statistics.fmean(results.value(task, name, seed) for seed in results.seeds(task, *variants))
                for name in names
            ]
            for task in tasks
        ]
    )
    ranks, p, critical = mean_ranks(scores)
    rows = [[f"`{name}`", f"{rank:.2f}"] for rank, name in sorted(zip(ranks.tolist(), names, strict=True))]
    left_out = [task for task in TASKS if task not in tasks]
    return table(["variant", "mean rank"], rows) + (
        f"\n\nOver {len(tasks)} tasks, and the seeds that all have"
        + (
            f"; without {', '.join(f'`{task}`' for task in left_out)}, which some have not finished"
            if left_out
            else ""
        )
        + f". Two mean ranks that differ by less than {critical:.2f} (Nemenyi, 95 %) do not differ significantly. "
        f"Friedman's test that all are equal has p = {p:.3f}."
    )


def task_table(results: Results, task: str) -> str:
    variants = [name for name in (*HEAD_TO_HEAD, *ABLATION, *PARTS) if name != VANILLA and results.seeds(task, name)]
    variants = list(dict.fromkeys(variants))
    differences = {name: paired(list(results.gains(task, name).values())) for name in variants}
    matched = {name: paired(list(results.gains(task, name, True).values())) for name in variants if name != LONGER}
    corrected = holm({name: found.p for name, found in differences.items() if found})
    rows = []
    for name in [VANILLA, *variants]:
        lines = list(results.lines[task, name].values())
        values = [line["value"] for line in lines]
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        difference = differences.get(name)
        rows.append(
            [
                f"`{name}`",
                f"{statistics.fmean(values):.4f}{spread}",
                cell(difference, corrected.get(name)),
                f"{corrected[name]:.3f}" if name in corrected else "-",
                cell(matched.get(name)),
                *early_gains(results, task, name),
                f"{difference.visible:.2f}" if difference else "-",
                f"{results.cost(task, name):.2f}",
                str(lines[0]["parameters"]),
                str(len(results.seeds(task, name))),
            ]
        )
    headers = ["variant", TASKS[task].metric, "gain", "p (Holm)", "gain at equal time", "gain at 1/8 of the steps"]
    headers += ["at 1/4", "at 1/2", "visible", "CPU time of a step", "parameters", "seeds"]
    return table(headers, rows)


def early_gains(results: Results, task: str, variant: str) -> list[str]:
    """Mean gain at points of the curve: what is gone at the end was an early start."""
    cells = []
    for share in (0.125, 0.25, 0.5):
        step, gains = round(TASKS[task].steps * share), []
        for seed in results.seeds(task, variant):
            own, vanilla = (dict(results.lines[task, name][seed]["curve"]) for name in (variant, VANILLA))
            if step in own and step in vanilla:
                gains.append(gain(task, own[step], vanilla[step]))
        cells.append(f"{statistics.fmean(gains):+.2f}" if gains else "-")
    return cells


def draw(results: Results) -> str:
    """Gains with their intervals, a panel for each kind of task; its colours follow the reader's light or dark page."""
    differences = kind_differences(results)
    variants = [name for name in compared(results) if any(variant == name for variant, _ in differences)]
    width, left, row, top = 300, 170, 22, 46
    height = top + row * max(1, len(variants)) + 30
    shapes = []
    for number, kind in enumerate(kinds()):
        x = left + number * width
        found = {variant: differences[variant, kind] for variant in variants if (variant, kind) in differences}
        limit = max((abs(d.mean) + d.half_width for d in found.values()), default=1.0) or 1.0
        middle, scale = x + width / 2, (width / 2 - 20) / limit
        shapes.append(f'<text x="{middle:.1f}" y="18" text-anchor="middle">{escape(kind)}</text>')
        shapes.append(f'<text x="{middle:.1f}" y="34" text-anchor="middle">{unit(kind)}, ±{limit:.2g}</text>')
        shapes.append(f'<line x1="{middle:.1f}" x2="{middle:.1f}" y1="{top - 6}" y2="{height - 24}" class="zero"/>')
        for index, variant in enumerate(variants):
            y = top + row * index + row / 2
            if variant in found:
                difference = found[variant]
                at, half = middle + scale * difference.mean, scale * difference.half_width
                shapes.append(f'<line x1="{at - half:.1f}" x2="{at + half:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
                shapes.append(f'<circle cx="{at:.1f}" cy="{y:.1f}" r="4"/>')
    for index, variant in enumerate(variants):
        shapes.append(
            f'<text x="{left - 8}" y="{top + row * index + row / 2 + 4:.1f}" text-anchor="end">{variant}</text>'
        )
    total = left + width * len(kinds())
    shapes.append(f'<text x="{left}" y="{height - 6}">to the right of each line: better than vanilla</text>')
    style = (
        "text{font:13px sans-serif;fill:#1f2328}line{stroke:#0969da;stroke-width:2}circle{fill:#0969da}"
        ".zero{stroke:#8c959f;stroke-width:1}@media(prefers-color-scheme:dark)"
        "{text{fill:#e6edf3}line{stroke:#58a6ff}circle{fill:#58a6ff}.zero{stroke:#7d8590}}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {height}" role="img" '
        f'aria-label="Gains over vanilla with 95 % intervals"><style>{style}</style>\n'
        + "\n".join(shapes)
        + "\n</svg>\n"
    )


def render(lines: list[Line]) -> str:
    results = Results.of(lines)
    planned = runs()
    done = {(line["task"], line["variant"], line["seed"]) for line in lines}
    missing = [name for name in VARIANTS if not any(variant == name for _, variant, _ in done)]
    hours = sum(line["cpu_seconds"] for line in lines) / 3600
    commits = sorted({line["commit"][:7] + ("+" if line["commit"].endswith("+") else "") for line in lines})
    versions = sorted({", ".join(f"{k} {v}" for k, v in sorted(line["versions"].items())) for line in lines})
    parts = [
        "# Does it help?",
        "Each variant of attention is compared with vanilla, the same model with plain attention, trained on the same data with the same "
        "steps, hyperparameters and seeds. The table has the mean gain over vanilla on each kind of task after the same number of steps, "
        "with its 95 % interval, **bold** where it is unlikely to be chance. Below: [when to use what](#when-to-use-what), and the gain "
        "over a vanilla trained [for the same time](#with-the-same-time-instead-of-the-same-steps).",
        top_table(results),
        "A gain is a lower loss, in per cent, or a higher score, in points (hundredths), as the column says; positive is better. Bold: p < 0.05 after Holm's correction for the number of cells, from at least "
        f"{MINIMUM_SEEDS} seeds; all else may be chance. A dash: fewer than two seeds are finished. The last column is the cost: CPU time "
        "of a training step, relative to vanilla's.",
        f"{len(done & set(planned))} of {len(planned)} planned runs on {len(TASKS)} tasks are finished. "
        + (f"Not begun: {', '.join(f'`{name}`' for name in missing)}. " if missing else "")
        + "Results rest on the finished runs alone.",
        what_they_rest_on(results),
        f"![Gains over vanilla with 95 % intervals, by kind of task and variant]({PICTURE})",
        "## When to use what",
        "A variant is recommended for a kind of task, or advised against, only if the difference is unlikely to be chance (bold above) and "
        f"rests on at least {MINIMUM_SEEDS} seeds; it is advised against only if it is also worse at equal time, where that was measured. "
        "Where no difference is shown, a small one is possible: the brackets give the gain from which 80 of 100 such studies would detect "
        "one. Pairs of numbers, such as (0.1, 0.1), are the weights of residual and convolution.",
        verdicts(results),
        "## Where the gain in translation comes from",
        *ablation_section(results, EVOLVING_TAKEN_APART),
        "### Multi-token attention, taken apart",
        *ablation_section(results, MULTI_TOKEN_TAKEN_APART),
        "## Three times as long",
        "Gains over vanilla trained for as many steps. A gain that shrinks was only faster early learning.",
        longer_section(results),
        "## With the same time instead of the same steps",
        "A step of most variants takes longer than vanilla's. Here vanilla takes as many steps as fit into the variant's training time. "
        "Its value there is interpolated between vanilla and `vanilla_longer`, linearly in the logarithm of the steps; a variant whose "
        "step costs more than twice vanilla's is compared with twice the steps.",
        top_table(results, True),
        what_they_rest_on(results, True),
        "## With learning rates of their own",
        "Elsewhere all variants have vanilla's learning rate. Here each of them, and vanilla, has the best of three (that rate, half of "
        "it and twice of it) by the mean of the metric over the seeds; rates are chosen and variants compared on the same seeds.",
        search_section(results),
        "## Mean ranks",
        rank_table(results),
        "## Task by task",
        "The gain is in per cent of vanilla's loss, or in points (hundredths) of the score. *Visible* is the smallest true gain "
        "that 80 of 100 studies with as many seeds and this spread would detect, uncorrected. A gain early in training that is gone at "
        "the end was only faster early learning. All p values are corrected within the table (Holm).",
        *(
            part
            for task in TASKS
            if results.seeds(task)
            for part in (f"### {task} ({TASKS[task].kind})", task_table(results, task))
        ),
        "## Limits",
        "Variants outside the head-to-head ran on "
        + " and ".join(f"`{name}`" for name, task in TASKS.items() if task.ablation)
        + " only. Small models, short runs, one processor core each; hyperparameters are vanilla's except in the search above. Tasks "
        "are fixed: intervals cover other seeds, not other tasks. The mean gain of a kind weights its tasks equally, and treats seeds of "
        "different tasks as independent (Welch). "
        "EA-DC-Transformer has no vanilla counterpart, so its vanilla has both weights 0.",
        f"Training took {hours:.1f} CPU-hours; versions: {'; '.join(versions) or '-'}; commits: {', '.join(commits) or '-'}. "
        "Written by `python benchmarks/variants.py --report` from `benchmarks/results/variants.jsonl`.",
    ]
    return "\n\n".join(parts) + "\n"


def write(lines: list[Line], directory: Path) -> None:
    """Writes the page and its picture into a directory, and the table of the README.md beside it, if there is one."""
    # The order in which runs ended must not matter.
    lines = sorted(lines, key=lambda line: (line["task"], line["variant"], line["seed"]))
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "results.md").write_text(render(lines), encoding="utf-8")
    (directory / PICTURE).write_text(draw(Results.of(lines)), encoding="utf-8")
    readme = directory.parent / "README.md"
    if readme.exists():
        text = readme.read_text(encoding="utf-8")
        readme.write_text(with_table(text, readme_table(Results.of(lines))), encoding="utf-8")


def with_table(readme: str, written: str) -> str:
    """README with this table between its marks.

    Raises:
        ValueError: the marks are not there.
    """
    start, end = README_MARKS
    before, first, rest = readme.partition(start)
    _, last, after = rest.partition(end)
    if not (first and last):
        raise ValueError(
            f"README.md has no lines {start.strip()!r} and {end.strip()!r}, between which its table stands."
        )
    return f"{before}{start}{written}{end}{after}"
