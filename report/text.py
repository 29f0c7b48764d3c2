"""The parts of REPORT.md and README.md that follow from the runs.

The prose stands in REPORT.md; what depends on the runs stands there between `<!-- NAME -->` and
`<!-- /NAME -->`, and `fill` writes it. `blocks` makes all of it.
"""

import ast
import math
import re
from collections import Counter

import numpy as np

from report import arguments, measured
from report.arguments import points
from report.curves import SPLITS
from report.findings import FAILS, HOLDS, UNDECIDED, Claims, Finding, findings
from report.measured import figure
from report.results import data_name, seconds
from report.old_statistics import FEW, Pool, optimism
from report.frame import BASES, DROP_RATES, EPOCHS, Curve, Source, View, summary
from report.tables import (
    HEADER,
    MEASURES,
    NOT_YET,
    SHOWN,
    curve_table,
    finding_rows,
    markdown,
    value,
    verdict_table,
)
from store.files import ROOT
from store.run import duration
from store.settings import NETWORKS

PUBLISHED = {"mlp": (0.524, 1.367), "cnn": (0.7397, 0.7902)}  # test accuracy and loss
CLAIMS = {"MLP": (1, 4), "CNN": (2,), "MLP_ablation": (7,), "CNN_ablation": (3, 5, 6, 8, 9, 10, 11),
          "dimention": (12,), "dropout": (13, 14), "batchsize": (15, 16)}
MORE_FIGURES = {
    "MLP": [("MLP_heatmap", "MLP grid: every setting")],
    "CNN": [("CNN_heatmap", "CNN grid: every setting")],
    "CNN_ablation": [("networks", "The CNN beside the MLP")],
    "dimention": [("dropout_types", "Accuracy over the drop rate")]}
CODE = ("BatchNorm.forward", "BatchNorm.uses_batch_statistics", "BatchNorm.track",
        "Dropout.forward")
AIM = 0.8  # test accuracy
AIM_ERROR = 2 * math.sqrt(AIM * (1 - AIM) / 10_000)  # two standard errors of so many images


def fill(text: str, parts: dict[str, str]) -> str:
    """`text` with what stands between <!-- NAME --> and <!-- /NAME --> replaced by parts[NAME]."""
    return re.sub(r"<!-- ([\w.]+) -->\n.*?<!-- /\1 -->",
                  lambda match: f"<!-- {match[1]} -->\n{parts[match[1]]}\n<!-- /{match[1]} -->",
                  text, flags=re.DOTALL)


def blocks(views: dict[str, View], source: Source) -> dict[str, str]:
    """All that is written from the runs, by name."""
    found, claims = findings(views, source.theory), Claims(views)
    parts = {"summary": summarize(views, found, claims), "results": best_table(views),
             "runs": what_ran(views, source), "spread": spread(claims),
             "findings": f"{figure('claims', 'All claims as intervals')}\n\n{verdict_table(found)}"
                         f"\n\n{otherwise(views, source, found)}",
             "variance": figure("variance", "How much each setting decides"),
             "published": against_published(views), "far": how_far(source),
             "rates": "\n\n".join(measured.learning_rates(views[f"{name.upper()}_learning_rates"])
                                  for name in NETWORKS),
             "bagging": measured.of_topic(source, "bagging", measured.bagging),
             "statistics": measured.of_topic(source, "statistics", measured.statistics),
             "shifts": measured.shifts(source),
             "confusion": measured.confusion(source.theory.get("cnn", {}).get("confusion"))}
    parts |= {name: study(views[name], found, claims) for name in CLAIMS}
    parts |= {name: argument(name, views, claims.pool) for name in arguments.FIGURES}
    parts["batchsize"] += "\n\n" + measured.epoch_seconds(source)
    return parts | {name: quote("layers/modules.py", name) for name in CODE}


def otherwise(views: dict[str, View], source: Source, found: list[Finding]) -> str:
    """Which verdicts depend on whose deviation is taken."""
    pooled = findings(views, source.theory, few=math.inf)
    changed = [f"{one.number} ({other.verdict})" for one, other in zip(found, pooled, strict=True)
               if one.verdict != other.verdict]
    return ("With the pooled deviation in every comparison, not only where seeds are few, "
            + (f"these claims come out otherwise: {', '.join(changed)}." if changed
               else "no claim comes out otherwise."))


def quote(file: str, name: str) -> str:
    """The code of Class.method, as it stands in the file now."""
    text = (ROOT / file).read_text()
    node = ast.parse(text)
    for part in name.split("."):
        node = next(child for child in node.body if getattr(child, "name", "") == part)
    lines = text.splitlines()[node.lineno - 1:node.end_lineno]
    code = "\n".join(line[node.col_offset:] for line in lines)
    return f"[`{file}`, line {node.lineno}]({file}#L{node.lineno})\n```python\n{code}\n```"


def summarize(views: dict[str, View], found: list[Finding], claims: Claims) -> str:
    """What was found, in five sentences, and the best networks."""
    full = {n: claims.ablation(n, False, False) for n in ("MLP", "CNN")}
    dropping = views["dimention"]
    undropped = {n: claims.ablation(n, False, True) for n in full}
    unnormed = {n: claims.ablation(n, True, False) for n in full}
    kinds = [[f"128_0.001_{p}_{kind}" for p in DROP_RATES[1:]] for kind in ("1d", "2d")]

    def change(a: Curve | None, b: Curve | None, measure: str = "quarter_val_acc") -> str:
        return points(claims.pool.estimate(measure, a, b))

    training = "quarter_train_acc"
    reached = " and ".join(f"the {n} {100 * curve.mean('test_acc'):.1f} %{cut_short(curve)}"
                           for n, curve in full.items() if curve) or "not run yet"
    verdicts = Counter(finding.verdict for finding in found)
    sentences = [
        f"At their defaults and best epochs, test accuracy: {reached}; the CNN leads by "
        f"{change(full['CNN'], full['MLP'], 'test_acc')}.",
        "At their defaults, dropout changes the CNN by "
        f"{change(full['CNN'], undropped['CNN'])}, at the best epoch by "
        f"{change(full['CNN'], undropped['CNN'], 'val_acc')}, and the MLP by "
        f"{change(full['MLP'], undropped['MLP'])}.",
        "At their default batch sizes, batch normalization changes the CNN by "
        f"{change(full['CNN'], unnormed['CNN'])} and the "
        f"MLP by {change(full['MLP'], unnormed['MLP'])}. It changes training accuracy by "
        f"{change(full['CNN'], unnormed['CNN'], training)} and "
        f"{change(full['MLP'], unnormed['MLP'], training)}; in the older "
        "report training accuracy is lower with it.",
        "Dropping single activations instead of whole maps changes the CNN, at drop rate 0.2, by "
        f"{change(*(dropping.complete(labels[0]) for labels in kinds))}, and each at its best rate "
        f"by {change(*(arguments.best(dropping, labels) for labels in kinds))}.",
        f"Of the older report's {len(found)} claims {verdicts[HOLDS]} hold, {verdicts[FAILS]} do "
        f"not and {verdicts[UNDECIDED]} are undecided; {reproduced(views)}."]
    return "\n".join(f"{i}. {text}" for i, text in enumerate(sentences, 1)) + (
        "\n\nDifferences are in percentage points, with 95 % intervals, and in validation accuracy "
        "over the last quarter of\nthe epochs where nothing else is said.\n\n"
        + best_table(views))


def cut_short(curve: Curve | None) -> str:
    """After how many epochs, where the protocol has more."""
    asked = EPOCHS[curve.network] if curve else 0
    return f" after {curve.epochs} of {asked} epochs" if curve and curve.epochs < asked else ""


def best_table(views: dict[str, View]) -> str:
    """The best of each grid, and the networks of the ablations, which may be trained for longer."""
    rows = []
    keys = ("val_acc", "test_acc")
    for network, base in BASES.items():
        name = network.upper()
        grid = views[name]
        tried = f", of {len(grid.curves)} of its {len(grid.settings)} settings" * bool(grid.missing)
        for what, view, label in (
                (f"best {name} of the grid{tried}", grid, next(iter(grid.curves), "")),
                (f"{name} at its defaults", views[f"{name}_ablation"], f"{base}_False_False")):
            curve = view.curves.get(label)
            rows.append([what, in_words(curve), f"{curve.epochs} of {EPOCHS[network]}",
                         len(curve.runs), view.data, *(value(curve, key) for key in keys),
                         time_of_a_run(curve)]
                        if curve else [what, NOT_YET, *["–"] * 6])
    return markdown(["", "setting", "epochs", "seeds", "data", *(MEASURES[key] for key in keys),
                     "time of a run"], rows)


def in_words(curve: Curve) -> str:
    batch_size, rate, drop_rate = curve.label.split("_")[:3]
    return f"batch {batch_size}, learning rate {rate}, drop rate {drop_rate}"


def time_of_a_run(curve: Curve) -> str:
    """The median, and the processors that took it."""
    time = duration(np.median(curve.values("seconds").sum(1)))
    machines = {str(run.config.get("processor")).split(",")[0] for run in curve.runs.values()}
    return f"{time}, {' and '.join(sorted(machines))}"


def what_ran(views: dict[str, View], source: Source) -> str:
    rows = [[view.study.title, f"{len(view.settings) - len(view.missing)} of {len(view.settings)}",
             view.epochs or "–", view.seeds_text if view.curves else "–", view.origin or "–",
             f"`{view.command}`"] for view in views.values()]
    mixed = [view.study.title for view in views.values() if view.curves and not view.is_of_one]
    lines = [markdown(["study", "settings finished", "epochs", "runs of each", "made by",
                       "command"], rows), ""]
    if mixed:
        lines += [f"{len(mixed)} of the {len(views)} studies are not of one known version of the "
                  f"code and one processor: {'; '.join(mixed)}. Their commands, with "
                  "`--runs_dir NEW_FOLDER`, make them so.", ""]
    for network in NETWORKS:
        trained: Counter = Counter()
        for run in source.of(network):
            versions = sorted(run.config.get("versions", {}).items())
            machine = [f"{run.config.get('device')} ({run.config.get('processor')})",
                       f"threads: {run.config.get('threads')}",
                       *(f"{name} {number}" for name, number in versions)]
            trained[", ".join(machine)] += seconds(run)
        lines += [f"- {network.upper()}, {duration(time)} of training: {machine}"
                  for machine, time in trained.items()]
        if network in source.data:
            lines.append(f"- {network.upper()}, data: {source.data[network]}")
    return "\n".join(lines)


def spread(claims: Claims) -> str:
    """The pooled deviations that stand in where seeds are few."""
    parts = []
    for network, epochs in EPOCHS.items():
        deviation, freedom = claims.pool.deviation(network, epochs, "val_acc")
        if freedom:
            parts.append(f"{deviation:.4f} for the {network.upper()} at {epochs} epochs "
                         f"({freedom:.0f} degrees of freedom)")
    return f"In best validation accuracy it is {' and '.join(parts)}." if parts else (
        f"{NOT_YET} `./run_grid.sh ablation --seed 0 1` makes second seeds.")


def study(view: View, found: list[Finding], claims: Claims) -> str:
    """A study's figures, its table, and the numbers that decide the older report's claims."""
    name = view.study.name
    pictures = {split: [figure(f"{name}_{split}_{quantity}",
                               f"{view.study.title}: {SPLITS[split]} {long}")
                        for quantity, long in (("acc", "accuracy"), ("loss", "loss"))]
                for split in view.study.splits}
    parts = pictures.pop("val")
    folded = "\n\n".join(picture for both in pictures.values() for picture in both)
    others = " and ".join(SPLITS[split] for split in pictures).capitalize()
    parts += [f"<details><summary>{others}: accuracy and loss</summary>\n\n{folded}\n\n</details>",
              *(figure(*more) for more in MORE_FIGURES.get(name, ()))]
    if not view.curves:
        return "\n\n".join([f"{NOT_YET} `{view.study.command}` makes the runs.", *parts])
    parts += [status(view), curve_table(list(view.curves.values())[:10], SHOWN)]
    if view.study.is_grid:
        parts.append(luck(view, claims) + f"All settings: [results/tables/{name}.md]"
                                          f"(results/tables/{name}.md).")
    parts += [f"Claim {each.number}, '{each.claim}':\n\n" + markdown(HEADER, finding_rows(each))
              for each in found if each.number in CLAIMS[name]]
    return "\n\n".join(parts)


def status(view: View) -> str:
    """On what data, for how long, with how many seeds; what is missing; which code."""
    missing = (f"; {len(view.missing)} of {len(view.settings)} settings are missing or unfinished: "
               f"`{view.command}` makes them" if view.missing else "")
    made = f"; {view.origin}" * (not view.is_of_one)
    return f"{view.data}; {view.epochs} epochs, {view.seeds_text}{missing}{made}."


def luck(view: View, claims: Claims) -> str:
    """By how much the best of a grid looks better than it is."""
    curves = [curve for label in view.curves if (curve := view.complete(label))]
    deviation, freedom = claims.pool.deviation(view.study.network, view.epochs, "val_loss")
    if not freedom or not curves:
        return ""
    errors = [deviation / math.sqrt(len(curve.runs)) for curve in curves]
    shift = optimism([curve.mean("val_loss") for curve in curves], errors)
    return (f"Being the best of {len(curves)}, the first row's loss looks about {shift:.4f} lower "
            "than that setting's with other seeds (simulated with the pooled deviation). ")


def argument(name: str, views: dict[str, View], pool: Pool) -> str:
    """An argument's figure and what the runs say to it."""
    own = arguments.of_argument(name, views)
    parts = [figure(name, own[0].study.title)]
    known = [view for view in own if view.curves]
    if not known:
        return f"{parts[0]}\n\n{NOT_YET} `{own[0].study.command}` makes the runs."
    parts += [f"{view.study.network.upper()}, {status(view)}{few_seeds(view, pool)}"
              for view in known]
    return "\n\n".join([*parts, arguments.answer(name, views, pool)])


def few_seeds(view: View, pool: Pool) -> str:
    """What stands behind the intervals where seeds are few."""
    if min(view.seeds) >= FEW:
        return ""
    deviation, freedom = pool.deviation(view.study.network, view.epochs, arguments.MEASURE)
    return (f" Where a setting has fewer than {FEW} seeds, intervals take the pooled deviation of "
            f"{100 * deviation:.2f} points ({freedom:.0f} degrees of freedom)." if freedom else
            " No setting of this length has a second seed, so differences have no interval.")


def highest(views: dict[str, View], network: str) -> tuple[float, float] | None:
    """Highest test accuracy and lowest test loss over all runs and epochs of the older studies.

    Without those that drop single activations of the CNN, which the older code never did.
    """
    names = [name for name in CLAIMS if views[name].study.network == network]
    rows = [row for name in names for curve in views[name].curves.values()
            for run in curve.runs.values() if run.settings.dropout_type != "1d"
            for row in run.rows[:max(EPOCHS[network], curve.epochs)]]
    return (max(row["test_acc"] for row in rows),
            min(row["test_loss"] for row in rows)) if rows else None


def reproduced(views: dict[str, View]) -> str:
    """The older report's numbers and the same kind of number here."""
    parts = [f"{network.upper()} {PUBLISHED[network][0]} there, {found[0]:.4f} here"
             for network in NETWORKS if (found := highest(views, network))]
    return "like for like, its highest test accuracies are " + ("; ".join(parts) or "not run yet")


def against_published(views: dict[str, View]) -> str:
    rows = []
    for network, published in PUBLISHED.items():
        name, base = network.upper(), BASES[network]
        curve = views[f"{name}_ablation"].complete(f"{base}_False_False")
        extremes = highest(views, network)
        for i, (key, what) in enumerate((("test_acc", "highest test accuracy"),
                                         ("test_loss", "lowest test loss"))):
            rows.append([f"{name}, {what} over all runs and epochs", published[i],
                         f"{extremes[i]:.4f}" if extremes else NOT_YET,
                         f"{extremes[i] - published[i]:+.4f}" if extremes else "–"])
            rows.append([f"{name} `{base}`, {MEASURES[key].replace(' there', '')} at the best "
                         f"validation accuracy{cut_short(curve)}", published[i],
                         value(curve, key) if curve else NOT_YET,
                         f"{curve.mean(key) - published[i]:+.4f}" if curve else "–"])
    return markdown(["", "older report", "here", "difference"], rows)


def how_far(source: Source) -> str:
    picture = figure("far", "The CNN with crops, flips and one cycle")
    runs = [(run, summary(run.rows)) for run in source.of("cnn")
            if "augment" in run.variant and run.rows]
    if not runs:
        return (f"{picture}\n\n{NOT_YET} `python cnn/main.py --drop_rate 0 --learning_rate 0.003 "
                "--augment --schedule onecycle` makes it.")
    table = markdown(["run", "epochs", "data", *(MEASURES[key] for key in SHOWN)],
                     [[f"`{run.name}`", len(run.rows), data_name(run),
                       *(f"{numbers[key]:.{4 * (key != 'best_epoch')}f}" for key in SHOWN)]
                      for run, numbers in runs])
    run, best = max(runs, key=lambda pair: pair[1]["val_acc"])
    above = best["test_acc"] - AIM
    return (f"{picture}\n\n{table}\n\nThe one with the best validation accuracy, `{run.name}`, "
            f"reaches {best['test_acc']:.4f}, " + (
                "which cannot be told from the aim" if abs(above) < AIM_ERROR else
                "above the aim" if above > 0 else "below the aim")
            + f": two standard errors of 10 000 images are {AIM_ERROR:.3f}.")
