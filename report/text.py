"""The tables, and the parts of REPORT.md and README.md that follow from the runs.

The prose stands in REPORT.md; what depends on the runs stands there between `<!-- NAME -->` and `<!-- /NAME -->`,
and `fill` writes it anew. `blocks` makes all of it.
"""

import ast
import csv
import io
import re
from collections import Counter
from pathlib import Path

import numpy as np

from report.figures import SPLITS
from report.findings import FAILS, HOLDS, MARGIN, UNDECIDED, Finding, findings
from report.results import data_name, hours
from report.studies import BASES, EPOCHS, SWEEP, Curve, Source, View, summary
from store.files import ROOT, make_folder, write_file
from store.settings import NETWORKS

COLUMNS = {"last_train_acc": "training accuracy, last epoch", "val_acc": "best validation accuracy",
           "val_loss": "lowest validation loss", "test_acc": "test accuracy", "test_loss": "test loss",
           "best_epoch": "best epoch"}
PUBLISHED = {"mlp": (0.524, 1.367), "cnn": (0.7397, 0.7902)}  # test accuracy and loss in the older report
CLAIMS = {"MLP": (1,), "CNN": (2,), "MLP_ablation": (4, 6, 7), "CNN_ablation": (3, 4, 5, 7), "dimention": (8,),
          "dropout": (9, 10), "batchsize": (11,)}
CODE = ("BatchNorm.forward", "BatchNorm.uses_batch_statistics", "BatchNorm.track", "Dropout.forward")
NOT_YET = "Not run yet."
AIM = 0.8  # test accuracy
LEARNS = 1.2  # times the validation accuracy of guessing


# Tables


def value(curve: Curve, key: str) -> str:
    digits = int(len(curve.runs) > 1) if key == "best_epoch" else 4
    spread = f" ± {curve.deviation(key):.{digits}f}" if len(curve.runs) > 1 else ""
    return f"{curve.mean(key):.{digits}f}{spread}"


def markdown(header: list[str], rows: list[list]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def curve_table(curves: list[Curve]) -> str:
    return markdown(["setting", "seeds", "epochs", *COLUMNS.values()],
                    [[f"`{curve.label}`", len(curve.runs), curve.epochs, *(value(curve, key) for key in COLUMNS)]
                     for curve in curves]) if curves else NOT_YET


def finding_table(found: list[Finding]) -> str:
    """What decides each claim; where a claim rests on many numbers, all of them, one below the other."""
    return markdown(["", "claim", "the numbers that decide it: mean difference [95 % interval], seeds", "verdict"],
                    [[f.number, f.claim, "<br>".join(map(str, f.checks)),
                      f"**{f.verdict}**" + (f": {f.reason}" if f.reason else "")] for f in found])


def write_tables(views: dict[str, View], found: list[Finding], folder: Path) -> list[Path]:
    """Every table as Markdown and CSV; means over the seeds, with their standard deviation in a column _sd."""
    make_folder(folder)
    studies = {name: list(view.curves.values()) for name, view in views.items()}
    grids = {name: curves for name, curves in studies.items() if views[name].study.is_grid}
    tables = {"best": [curves[0] for curves in grids.values() if curves], **studies}
    paths = []
    for name, curves in tables.items():
        header = ["network", "setting", "seeds", "epochs", *(f"{key}{end}" for key in COLUMNS for end in ("", "_sd"))]
        rows = [[next(iter(curve.runs.values())).network, curve.label, len(curve.runs), curve.epochs,
                 *(f"{number:.6g}" for key in COLUMNS for number in (curve.mean(key), curve.deviation(key)))]
                for curve in curves]
        paths += _write_table(folder / name, curve_table(curves), [header, *rows])
    rows = [[f.number, f.claim, f.verdict, f.reason, check.what, check.verdict,
             *(f"{number:.6g}" for number in check.estimate[:4]), check.estimate.epochs] if check.estimate else
            [f.number, f.claim, f.verdict, f.reason, check.what, check.verdict] for f in found for check in f.checks]
    header = ["number", "claim", "verdict", "reason", "measured", "of_this", "mean", "low", "high", "seeds", "epochs"]
    return paths + _write_table(folder / "findings", finding_table(found), [header, *rows])


def _write_table(stem: Path, text: str, rows: list[list]) -> list[Path]:
    comma_separated = io.StringIO()
    csv.writer(comma_separated, lineterminator="\n").writerows(rows)
    write_file(stem.with_suffix(".md"), f"{text}\n".encode())
    write_file(stem.with_suffix(".csv"), comma_separated.getvalue().encode())
    return [stem.with_suffix(".md"), stem.with_suffix(".csv")]


# REPORT.md


def fill(text: str, parts: dict[str, str]) -> str:
    """`text` with what stands between <!-- NAME --> and <!-- /NAME --> replaced by parts[NAME]."""
    return re.sub(r"<!-- ([\w.]+) -->\n.*?<!-- /\1 -->",
                  lambda match: f"<!-- {match[1]} -->\n{parts[match[1]]}\n<!-- /{match[1]} -->", text, flags=re.DOTALL)


def blocks(views: dict[str, View], source: Source) -> dict[str, str]:
    """All that is written from the runs, by name."""
    found = findings(views)
    parts = {"summary": summarize(views, found), "results": best_table(views), "runs": what_ran(views, source),
             "findings": f"{finding_table(found)}\n\n'About the same' and 'leaves it' mean: by less than {MARGIN}.",
             "published": against_published(views, found), "far": how_far(source),
             "rates": "\n\n".join(learning_rates(views[f"{name.upper()}_learning_rates"]) for name in NETWORKS),
             "bagging": theory(source, "bagging", bagging),
             "statistics": theory(source, "statistics", batch_statistics),
             "confusion": confusion(source.theory.get("cnn", {}).get("confusion"))}
    parts |= {name: study(views[name], found) for name in CLAIMS}
    return parts | {name: quote("layers/modules.py", name) for name in CODE}


def quote(file: str, name: str) -> str:
    """The code of Class.method, as it stands in the file now."""
    text = (ROOT / file).read_text()
    node = ast.parse(text)
    for part in name.split("."):
        node = next(child for child in node.body if getattr(child, "name", "") == part)
    lines = text.splitlines()[node.lineno - 1:node.end_lineno]
    code = "\n".join(line[node.col_offset:] for line in lines)
    return f"[`{file}`, line {node.lineno}]({file}#L{node.lineno})\n```python\n{code}\n```"


def figure(name: str, alternative: str) -> str:
    return f"![{alternative}](pics/{name}.png)"


def summarize(views: dict[str, View], found: list[Finding]) -> str:
    verdicts = Counter(finding.verdict for finding in found)
    return (f"{best_table(views)}\n\nOf the older report's {len(found)} claims {verdicts[HOLDS]} hold, "
            f"{verdicts[FAILS]} do not hold and {verdicts[UNDECIDED]} are undecided (section 4).")


def best_table(views: dict[str, View]) -> str:
    """The best of each grid, and the networks of the ablations, which may have been trained for longer."""
    rows = []
    for network, base in BASES.items():
        name = network.upper()
        grid = views[name]
        tried = f", of {len(grid.curves)} of its {len(grid.settings)} settings" if grid.missing else ""
        for what, view, label in ((f"best {name} of the grid{tried}", grid, next(iter(grid.curves), "")),
                                  (f"{name} of the ablation", views[f"{name}_ablation"], f"{base}_False_False")):
            curve = view.curves.get(label)
            rows.append([what, f"`{curve.label}`", f"{curve.epochs} of {EPOCHS[network]}", len(curve.runs), view.data,
                         *(value(curve, key) for key in ("val_acc", "test_acc", "test_loss"))] if curve
                        else [what, NOT_YET, *["–"] * 6])
    return markdown(["", "setting", "epochs", "seeds", "data", *(COLUMNS[key] for key in (
        "val_acc", "test_acc", "test_loss"))], rows)


def what_ran(views: dict[str, View], source: Source) -> str:
    rows = [[view.study.title, f"{len(view.settings) - len(view.missing)} of {len(view.settings)}", view.epochs or "–",
             view.seeds_text if view.curves else "–", view.data or "–", f"`{view.command}`"]
            for view in views.values()]
    lines = [markdown(["study", "settings finished", "epochs", "runs of each", "data", "command"], rows), ""]
    for network in NETWORKS:
        trained: Counter = Counter()
        for record in source.of(network):
            machine = [f"{record.config.get('device')} ({record.config.get('processor')})",
                       f"threads: {record.config.get('threads')}",
                       *(f"{name} {version}" for name, version in sorted(record.config.get("versions", {}).items()))]
            trained[", ".join(machine)] += hours(record)
        lines += [f"- {network.upper()}, {time:.1f} hours of training: {machine}" for machine, time in trained.items()]
    return "\n".join(lines)


def study(view: View, found: list[Finding]) -> str:
    """A study's figures, what they show, and what that makes of the older report's claims."""
    name = view.study.name
    pictures = [[figure(f"{name}_{split}_{quantity}", f"{view.study.title}: {SPLITS[split]} {quantity}")
                 for quantity in ("acc", "loss")] for split in view.study.splits]
    parts = [markdown(["accuracy", "loss"], pictures)]
    if view.study.is_grid:
        parts.append(figure(f"{name}_heatmap", f"{view.study.title}: best validation accuracy of every setting"))
    if not view.curves:
        return "\n\n".join([f"{NOT_YET} `{view.study.command}` makes the runs.", *parts])
    curves = list(view.curves.values())
    limit = f"; {len(view.missing)} of {len(view.settings)} settings are missing or unfinished" if view.missing else ""
    parts.append(f"{view.data}; {view.epochs} epochs, {view.seeds_text}{limit}.")
    parts.append(curve_table(curves[:10]))
    if view.study.is_grid:
        parts.append(f"All settings: [results/tables/{name}.md](results/tables/{name}.md).")
    parts += [f"Claim {f.number}, '{f.claim}': **{f.verdict}**" + (f" ({f.reason})" if f.reason else "") + ".\n" +
              "\n".join(f"- {check} ({check.verdict})" for check in f.checks)
              for f in found if f.number in CLAIMS[name]]
    return "\n\n".join(parts)


def against_published(views: dict[str, View], found: list[Finding]) -> str:
    rows = []
    for network, (accuracy, loss) in PUBLISHED.items():
        name, base = network.upper(), BASES[network]
        curve = views[f"{name}_ablation"].complete(f"{base}_False_False")
        for key, old in (("test_acc", accuracy), ("test_loss", loss)):
            rows.append([f"{name} `{base}`, {COLUMNS[key]}", old] + (
                [value(curve, key), f"{curve.mean(key) - old:+.4f}", curve.epochs] if curve else [NOT_YET, "–", "–"]))
    claims = {verdict: [f"{f.number}, {f.claim}" for f in found if f.verdict == verdict]
              for verdict in (FAILS, HOLDS, UNDECIDED)}
    return "\n".join([markdown(["", "older report", "here", "difference", "epochs here"], rows), "",
                      "Its claims, by what becomes of them here (8 was never tested there):", "",
                      *(f"- {verdict}: {'; '.join(those) or 'none'}" for verdict, those in claims.items())])


def how_far(source: Source) -> str:
    runs = [(summary(run.rows), run) for run in source.of("cnn") if "augment" in run.variant and run.rows]
    if not runs:
        return NOT_YET
    table = markdown(["run", "epochs", "data", *COLUMNS.values()],
                     [[f"`{record.name}`", len(record.rows), data_name(record),
                       *(f"{numbers[key]:.{4 * (key != 'best_epoch')}f}" for key in COLUMNS)]
                      for numbers, record in runs])
    best, record = max(runs, key=lambda run: run[0]["val_acc"])
    flags = " ".join(f"--{key} {record.config.get(key)}"
                     for key in ("learning_rate", "drop_rate", "num_epochs", "schedule"))
    return (f"{table}\n\nThe one with the best validation accuracy, `python cnn/main.py --augment {flags}`, "
            f"{'reaches' if best['test_acc'] >= AIM else 'does not reach'} the aim: its test accuracy is "
            f"{best['test_acc']:.4f}.")


# The theory, measured


def theory(source: Source, topic: str, describe) -> str:
    """A section for both networks: figure, and what `describe` makes of the numbers."""
    parts = []
    for network in NETWORKS:
        measured, name = source.theory.get(network, {}).get(topic), network.upper()
        parts += [figure(f"{name}_{topic}", f"{name}: {topic}"),
                  f"{name}, networks: {', '.join(f'`{run}`' for run in measured['runs'])} ({measured['data']}).\n\n"
                  f"{describe(measured)}" if measured else
                  f"{name}: {NOT_YET} `python theory.py {topic} --network {network}` measures it."]
    return "\n\n".join(parts)


def bagging(topic: dict) -> str:
    measured, predicted, masked = topic["measured"], topic["predicted"], topic["masked"]
    off = max(abs(m / p - 1) for m, p in zip(measured, predicted, strict=True))
    table = markdown(["averaged", "predicted", "measured", "test accuracy"], [
        *([f"{k} network{'s' * (k > 1)}", f"{p:.5f}", f"{m:.5f}", f"{accuracy:.4f}"] for k, (p, m, accuracy)
          in enumerate(zip(predicted, measured, topic["accuracy"], strict=True), 1)),
        *([f"{n} mask{'s' * (n > 1)} of one network", "", f"{m:.5f}", f"{accuracy:.4f}"]
          for n, m, accuracy in zip(topic["masks"], masked, topic["masked_accuracy"], strict=True))])
    correlation = f", c = {topic['covariance']:.5f}, correlation c/v = {topic['covariance'] / topic['variance']:.3f}"
    fall = f"{predicted[0] - predicted[-1]:.5f} predicted, {measured[0] - measured[-1]:.5f} measured"
    return (f"{table}\n\nv = {topic['variance']:.5f}{correlation if len(measured) > 1 else ''}. Prediction and "
            f"measurement differ by at most {100 * off:.2f} %; from one network to {len(measured)} the error falls by "
            f"{fall}. Against the single pass in evaluation mode (1 network) "
            f"the error of one mask differs by {100 * (masked[0] / measured[0] - 1):+.2f} %, that of "
            f"{topic['masks'][-1]} masks by {100 * (masked[-1] / measured[0] - 1):+.2f} %.")


def batch_statistics(topic: dict) -> str:
    sizes = topic["batch_sizes"]
    powers = [np.polyfit(np.log(sizes), np.log(topic[key]), 1)[0] for key in ("mean", "variance")]
    table = markdown(["batch size", "mean off by, standard deviations", "theory", "variance off by, relative", "theory",
                      "test accuracy with batch statistics"],
                     [[n, f"{mean:.4f}", f"{topic['mean_theory'] / n ** 0.5:.4f}", f"{variance:.4f}",
                       f"{topic['variance_theory'] / n ** 0.5:.4f}", f"{accuracy:.4f}"] for n, mean, variance, accuracy
                      in zip(sizes, topic["mean"], topic["variance"], topic["batch_accuracy"], strict=True)])
    return (f"{table}\n\nThe mean's distance falls as n to the power of {powers[0]:.2f}, the variance's as n to the "
            f"power of {powers[1]:.2f}; theory says −0.5. Test accuracy with running statistics: "
            f"{topic['running_accuracy']:.4f}.")


def learning_rates(view: View) -> str:
    picture, name = figure(view.study.name, view.study.title), view.study.network.upper()
    if not view.curves:
        return f"{picture}\n\n{name}: {NOT_YET} `{view.study.command}` makes the runs."
    return (f"{picture}\n\n{name}, {view.epochs} epochs, {view.seeds_text} ({view.data}). It learns where its "
            f"validation accuracy is more than {LEARNS} times that of guessing, {view.guessing['val_acc']:.3g}. "
            f"{what_rates_show(view, False)} {what_rates_show(view, True)}")


def what_rates_show(view: View, without: bool) -> str:
    """At which rates a network learns, at which not, and at which nobody knows."""
    arm = f"{'Without' if without else 'With'} batch normalization"
    points = {lr: curve for lr in SWEEP if (curve := view.complete(f"{lr}_{without}"))}
    failed = [lr for lr in SWEEP if f"{lr}_{without}" in view.failed and lr not in points]
    if not points and not failed:
        return f"{arm}: {NOT_YET.lower()}"
    reached = {lr: curve.mean("val_acc") for lr, curve in points.items()}
    learned = [lr for lr in reached if reached[lr] > LEARNS * view.guessing["val_acc"]]
    best = max(reached, key=reached.get, default=None)

    def listed(rates) -> str:
        return ", ".join(map(str, rates)) or "none"

    text = f"{arm} it learns at {listed(learned)}"
    text += f", best at {best} (validation accuracy {value(points[best], 'val_acc')})" if learned else ""
    others = (("not at", [lr for lr in reached if lr not in learned]), ("diverges at", failed),
              ("was not run at", [lr for lr in SWEEP if lr not in reached and lr not in failed]))
    return "; ".join([text, *(f"{what} {listed(rates)}" for what, rates in others if rates)]) + "."


def confusion(topic: dict | None) -> str:
    pictures = f"{figure('CNN_confusion', 'Confusion matrix')}\n\n{figure('CNN_filters', 'First-layer filters')}\n\n"
    if not topic:
        return pictures + f"{NOT_YET} `python theory.py confusion filters --network cnn` makes them."
    classes, counts = topic["classes"], np.array(topic["confusion"])
    wrong = [(counts[i, j], classes[i], classes[j]) for i, j in np.ndindex(counts.shape) if i != j and counts[i, j]]
    frequent = ", ".join(f"{one} for {other} ({n})" for n, one, other in sorted(wrong, key=lambda w: -w[0])[:3])
    return (f"{pictures}`{topic['runs'][0]}` ({topic['data']}) gets {counts.trace() / counts.sum():.4f} of the test "
            f"images right. Most often it takes {frequent}.")
