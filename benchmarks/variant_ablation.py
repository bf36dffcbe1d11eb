# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The parts of docs/results.md that look for causes: ablations in translation, longer runs, and other learning rates."""

import dataclasses
import statistics

from variant_definitions import ABLATION, EVOLVING, LONG, LONGER, MULTI_TOKEN, PARTS, SEARCH, VANILLA
from variant_results import ABOUT, Results, cell, gain, table, unit
from variant_statistics import SeedsAndVariants
from variant_tasks import EXPLAINED, TAKEN_APART, TASKS

from ea_hf.paired_statistics import Difference, holm, paired


LEVEL = 0.05
# Much lower losses, and with them perhaps another noise; and vanilla once more, without noise.
APART = (LONGER, "zero_weights")


@dataclasses.dataclass(frozen=True)
class Study:
    """Which part of a mechanism its gain in a task comes from.

    Args:
        whole: the variant whose gain is to be explained.
        others: those that it is compared with, beside vanilla.
        questions: what is asked of that gain, and the variants that answer.
        note: what else is to be known.
    """

    task: str
    whole: str
    others: tuple[str, ...]
    questions: dict[str, tuple[str, ...]]
    note: str

    @property
    def variants(self) -> tuple[str, ...]:
        return (self.whole, *self.others)


EVOLVING_TAKEN_APART = Study(
    EXPLAINED,
    EVOLVING,
    tuple(name for name in ABLATION if name != EVOLVING),
    {
        "Is it chance? (With both weights 0 the model is vanilla, up to rounding.)": ("zero_weights",),
        "Is it more parameters, or more training?": ("vanilla_wider", LONGER),
        "The residual or the convolution?": ("residual_alone", "convolution_alone"),
        "Mixing of heads, or of positions? (A kernel of size 1 mixes heads alone; a kernel for each head mixes positions alone.)": (
            "kernel_1",
            "separate_heads",
        ),
        "Neighbouring queries (rows of the map) or neighbouring keys (columns)?": ("rows_only", "columns_only"),
        "The activation?": ("linear", "separate_heads_linear"),
        "Self-attention of the encoder, self-attention of the decoder, or cross-attention?": (
            "encoder_chain",
            "decoder_chain",
            "cross_chain",
        ),
        "Another strength or form?": ("evolving_half", "additive", "learned", "learned_started"),
        "Another mechanism?": ("realformer", "talking_heads", "multi_token", "multi_token_cross"),
    },
    note="Sentences are short, and the number of steps was chosen so that the gain shows.",
)
MULTI_TOKEN_TAKEN_APART = Study(
    TAKEN_APART,
    MULTI_TOKEN,
    ("talking_heads", EVOLVING, LONGER, *PARTS),
    {
        "The convolution, or the mixing of heads?": ("multi_token_convolution_alone", "multi_token_heads_alone"),
        "Neighbouring queries (rows of the map) or neighbouring keys (columns)?": (
            "multi_token_rows",
            "multi_token_columns",
        ),
        "The size of the kernel?": ("multi_token_small",),
        "Self-attention of the encoder, self-attention of the decoder, or cross-attention?": (
            "multi_token_encoder",
            "multi_token_decoder",
            "multi_token_cross",
        ),
        "Would more convolutions give more?": ("multi_token_every_layer",),
        "Is it more training?": (LONGER,),
        "Another mechanism?": ("talking_heads", EVOLVING),
    },
    note="The model has three layers in its encoder and in its decoder; by the preset the last one of each has the convolution.",
)
VERDICTS = {
    "more": "more than the whole gain",
    "keeps": "keeps the gain",
    "part": "a part of the gain",
    "none": "none of the gain",
    "harm": "worse than vanilla",
    "unknown": "undecided",
}


@dataclasses.dataclass
class Ablated:
    """A variant of the ablation.

    Args:
        gain: over vanilla.
        beside: its gain less that of the whole mechanism.
        verdict: a key of `VERDICTS`.
    """

    gain: Difference
    beside: Difference | None
    verdict: str


def verdict(
    over_vanilla: Difference, p: float, beside: Difference | None, p_beside: float | None, whole: float
) -> str:
    """What is left of the gain, from two comparisons, each with a corrected p value.

    That a variant does not differ is no proof that it is alike: it keeps the gain, or has none, where the interval of its
    own gain lies above, or below, half of the whole one.
    """
    has_gain, differs = p < LEVEL and over_vanilla.mean > 0, beside is not None and p_beside < LEVEL
    if over_vanilla.seeds < 2:
        return "unknown"
    if p < LEVEL and over_vanilla.mean < 0:
        return "harm"
    if has_gain and differs:
        return "more" if beside.mean > 0 else "part"
    is_whole = beside is None or over_vanilla.mean - over_vanilla.half_width > whole / 2
    if has_gain and is_whole:
        return "keeps"
    return "none" if not has_gain and over_vanilla.mean + over_vanilla.half_width < whole / 2 else "unknown"


def ablation(results: Results, study: Study) -> dict[str, Ablated]:
    """The variants that are begun, beside vanilla and the whole; gains are in per cent of vanilla's mean loss."""
    losses = {name: results.values(study.task, name) for name in (VANILLA, *study.variants)}
    if len(losses[VANILLA]) < 2:
        return {}
    level = statistics.fmean(losses[VANILLA].values())
    gains = {name: {seed: 100 * (1 - loss / level) for seed, loss in own.items()} for name, own in losses.items()}
    common = SeedsAndVariants({name: own for name, own in gains.items() if name not in APART})
    alone = {
        name: SeedsAndVariants({other: gains[other] for other in (VANILLA, study.whole, name)})
        for name in APART
        if name in gains
    }
    over_vanilla = {name: alone.get(name, common).difference(name, VANILLA) for name in study.variants}
    over_vanilla = {name: difference for name, difference in over_vanilla.items() if difference}
    if study.whole not in over_vanilla:
        return {}
    whole = over_vanilla[study.whole].mean
    beside = {
        name: alone.get(name, common).difference(name, study.whole) for name in over_vanilla if name != study.whole
    }
    # That there is a gain to be explained is one question, asked first; the variants are many.
    p = holm({name: difference.p for name, difference in over_vanilla.items() if name != study.whole})
    p[study.whole] = over_vanilla[study.whole].p
    p_beside = holm({name: difference.p for name, difference in beside.items() if difference})
    return {
        name: Ablated(
            difference,
            beside.get(name),
            verdict(difference, p[name], beside.get(name), p_beside.get(name), whole),
        )
        for name, difference in over_vanilla.items()
    }


def bleu_gain(results: Results, task: str, variant: str) -> str:
    values = [
        results.lines[task, variant][seed]["measures"].get("bleu", 0.0)
        - results.lines[task, VANILLA][seed]["measures"].get("bleu", 0.0)
        for seed in results.seeds(task, variant)
    ]
    return cell(paired(values))


def share(own: Difference, whole: float) -> str:
    """Of the whole gain, with the interval of the own one."""
    if whole <= 0:
        return "-"
    low, high = (100 * (own.mean + sign * own.half_width) / whole for sign in (-1, 1))
    return f"{100 * own.mean / whole:.0f} % ({low:.0f} to {high:.0f})"


def ablation_table(results: Results, study: Study, found: dict[str, Ablated]) -> str:
    whole = found[study.whole].gain.mean
    rows = [
        [
            f"`{name}`",
            ABOUT[name],
            cell(own.gain),
            share(own.gain, whole),
            VERDICTS[own.verdict] if name != study.whole else "-",
            bleu_gain(results, study.task, name),
            f"{results.cost(study.task, name):.2f}",
            str(len(results.seeds(study.task, name))),
        ]
        for name, own in sorted(found.items(), key=lambda item: -item[1].gain.mean)
    ]
    headers = ["variant", "what", f"gain, {unit(TASKS[study.task].kind)}", "of the gain", "verdict", "gain in BLEU"]
    return table([*headers, "CPU time of a step", "seeds"], rows)


def answers(study: Study, found: dict[str, Ablated]) -> str:
    lines = []
    for question, variants in study.questions.items():
        said = [
            f"`{name}` ({ABOUT[name]}): {VERDICTS[found[name].verdict]} ({cell(found[name].gain)})"
            for name in variants
            if name in found
        ]
        lines.append(f"- *{question}* {'; '.join(said) if said else 'Not finished'}.")
    return "\n".join(lines)


def conclusion(study: Study, found: dict[str, Ablated]) -> str:
    """The one sentence for those who read no more."""
    if study.whole not in found or found[study.whole].verdict not in ("keeps", "more"):
        return (
            "With the seeds that are finished, the gain itself is not shown, so that no cause can be named: "
            + (cell(found[study.whole].gain) if study.whole in found else "fewer than two seeds")
            + "."
        )
    by_verdict = {
        key: [
            f"`{name}`"
            for name in study.variants
            if name in found and name != study.whole and found[name].verdict == key
        ]
        for key in VERDICTS
    }
    kept, lost = by_verdict["keeps"] + by_verdict["more"], by_verdict["none"] + by_verdict["harm"]
    parts = [f"**The gain stays with {', '.join(kept) or 'no other variant'}"]
    parts.append(f"and it is gone with {', '.join(lost) or 'none'}.**")
    if by_verdict["part"]:
        parts.append(f"A part of it is left with {', '.join(by_verdict['part'])}.")
    if by_verdict["unknown"]:
        parts.append(f"Undecided with these seeds: {', '.join(by_verdict['unknown'])}.")
    return " ".join(parts)


def ablation_section(results: Results, study: Study) -> list[str]:
    found = ablation(results, study)
    if study.whole not in found:
        return [conclusion(study, found)]
    apart = [f"`{name}`" for name in APART if name in study.variants]
    but = f" but {' and '.join(apart)}" if apart else ""
    return [
        f"All variants were trained on `{study.task}` for {TASKS[study.task].steps} steps; most remove one thing from "
        f"`{study.whole}` or add one. Gains are over vanilla, with 95 % intervals. As each variant has few seeds, the noise is estimated "
        f"from all variants{but} together (an additive model of seed and variant). The *verdict* compares with vanilla and with "
        f"`{study.whole}`, after Holm's correction: a variant keeps the gain, or has none of it, if the interval of its own gain lies "
        f"above, or below, half of the gain of `{study.whole}`. {study.note}",
        conclusion(study, found),
        answers(study, found),
        ablation_table(results, study, found),
    ]


def gain_over(results: Results, task: str, variant: str, reference: str) -> Difference | None:
    """The gain of a variant over another one, on the seeds that both have."""
    seeds = results.seeds(task, variant, reference)
    return paired([gain(task, *(results.value(task, name, seed) for name in (variant, reference))) for seed in seeds])


def longer_section(results: Results) -> str:
    """Whether gains are there still after three times the steps, where vanilla had as many."""
    differences = {}
    compared = [(task, name) for task in TASKS for name in TASKS[task].long if name != VANILLA]
    for task, name in compared:
        difference = gain_over(results, task, LONG[name], LONG[VANILLA])
        if difference:
            differences[task, name] = difference
    if not differences:
        return "Not finished: fewer than two seeds were trained three times as long."
    p = holm({key: difference.p for key, difference in differences.items()})
    rows = [
        [
            f"{task}, {unit(TASKS[task].kind)}",
            f"`{name}`",
            f"{cell(paired(list(results.gains(task, name).values())))} ({TASKS[task].steps})",
            f"{cell(difference, p[task, name])} ({3 * TASKS[task].steps})",
            str(difference.seeds),
        ]
        for (task, name), difference in differences.items()
    ]
    return table(["task", "variant", "gain (after steps)", "three times as long", "seeds"], rows)


def search_section(results: Results) -> str:
    """Each of a few variants with the best of three learning rates, which vanilla may choose as well."""
    rows, differences = [], {}
    for task in TASKS:
        if not TASKS[task].search:
            continue
        best = {}
        for name, choices in SEARCH.items():
            seeds = results.seeds(task, *choices)
            if len(seeds) > 1:
                means = {c: statistics.fmean(results.value(task, c, seed) for seed in seeds) for c in choices}
                choose = min if TASKS[task].lower_is_better else max
                best[name] = choose(means, key=lambda choice: means[choice])
        for name in best:
            if name == VANILLA or VANILLA not in best:
                continue
            differences[task, name] = gain_over(results, task, best[name], best[VANILLA])
            rows.append([task, f"`{name}`", f"`{best[VANILLA]}`", f"`{best[name]}`"])
    if not rows:
        return "Not finished: fewer than two seeds were trained with each learning rate."
    p = holm({key: difference.p for key, difference in differences.items()})
    for row, (key, difference) in zip(rows, differences.items(), strict=True):
        row += [f"{cell(difference, p[key])} {unit(TASKS[key[0]].kind)}", str(difference.seeds)]
    return table(["task", "variant", "vanilla's best", "its best", "gain", "seeds"], rows)
