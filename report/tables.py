"""The tables, as Markdown and CSV."""

import math
from pathlib import Path

import pandas as pd

from report.evidence import BEST, LAST, MEASURES, TEST, Evidence, Finding
from report.frame import Curve, View
from store.files import make_folder, write_file

COLUMNS = {"val_loss": "lowest validation loss", "best_epoch": "best epoch",
           "train_acc": "training accuracy there", "val_acc": "best validation accuracy",
           "test_acc": "test accuracy there", "test_loss": "test loss there",
           "quarter_train_acc": "training accuracy, last quarter",
           "quarter_val_acc": "validation accuracy, last quarter",
           "quarter_test_acc": "test accuracy, last quarter",
           "last_train_acc": "training accuracy, last epoch",
           "last_val_acc": "validation accuracy, last epoch"}  # all of them in results/tables/
NOT_YET = "Not run yet."


def value(curve: Curve, key: str) -> str:
    digits = int(len(curve.runs) > 1) if key == "best_epoch" else 4
    deviation = f" ± {curve.deviation(key):.{digits}f}" if len(curve.runs) > 1 else ""
    return f"{curve.mean(key):.{digits}f}{deviation}"


def markdown(header: list[str], rows: list[list]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def curve_table(curves: list[Curve], keys=tuple(COLUMNS)) -> str:
    return markdown(["setting", "seeds", "epochs", *(COLUMNS[key] for key in keys)],
                    [[f"`{curve.label}`", len(curve.runs), curve.epochs,
                      *(value(curve, key) for key in keys)]
                     for curve in curves]) if curves else NOT_YET


def p_text(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def numbers_of(finding: Finding) -> list[list]:
    """The numbers of a claim, by its own measure and by the others."""
    rows = []
    for number, p, verdict in finding.decided():
        own = number.by.get(finding.by)
        others = [number.by.get(by, "–") for by in (BEST, LAST, TEST)]
        rows.append([number.what, number.of, own or (str(number) if hasattr(number, "counts")
                                                     else "not run yet"),
                     *others, own.n if own else "–", own.epochs if own else "–",
                     p_text(p) if own and not math.isnan(own.error) else "–", verdict])
    return rows


NUMBERS = ["", "claim", "verdict", "number", "of", "decides [95 %]", "by the best epoch",
           "by the last epoch", "on the test images", "seeds", "epochs", "p (Holm)", "of this"]


def verdict_table(found: list[Finding]) -> str:
    """Each claim, what it is said of, its verdict, and the verdict by each measure."""
    rows = []
    for each in found:
        reason = f": {each.reason}" * bool(each.reason)
        words = each.claim.words + f" ({each.claim.said_of})" * (each.claim.said_of != "–")
        rows.append([each.claim.number, words, f"**{each.verdict()}**{reason}",
                     *(each.by_measure(by) for by in MEASURES)])
    return markdown(["", "claim", "verdict", *MEASURES], rows)


def write_tables(evidence: Evidence, found: list[Finding], folder: Path,
                 differences: str) -> list[Path]:
    """Every table as Markdown and CSV; means over the seeds, their deviation in a column _sd."""
    make_folder(folder)
    paths = []
    for name, view in evidence.views.items():
        curves = list(view.curves.values())
        frame = pd.DataFrame([{
            "network": curve.network, "setting": curve.label, "seeds": len(curve.runs),
            "epochs": curve.epochs, "code": " ".join(curve.versions)} | {
            f"{key}{end}": number(key) for key in COLUMNS
            for end, number in (("", curve.mean), ("_sd", curve.deviation))} for curve in curves],
            columns=["network", "setting", "seeds", "epochs", "code",
                     *(f"{key}{end}" for key in COLUMNS for end in ("", "_sd"))])
        paths += _write(folder / name, curve_table(curves), frame)
    rows = [[each.claim.number, each.claim.words, each.verdict(), *row]
            for each in found for row in numbers_of(each)]
    paths += _write(folder / "findings", markdown(NUMBERS, rows),
                    pd.DataFrame(rows, columns=NUMBERS))
    for name, text in (("runs", origins(evidence.views)), ("differences", differences)):
        write_file(folder / f"{name}.md", f"{text}\n".encode())
        paths.append(folder / f"{name}.md")
    return paths


def origins(views: dict[str, View]) -> str:
    """What ran: how much of each study, for how long, by which code, and by which command."""
    return markdown(
        ["study", "settings finished", "epochs", "runs of each", "made by", "command"],
        [[view.study.title, f"{len(view.settings) - len(view.missing)} of {len(view.settings)}",
          view.epochs or "–", view.seeds_text if view.curves else "–", view.origin or "–",
          f"`{view.command}`"] for view in views.values()])


def _write(stem: Path, text: str, frame: pd.DataFrame) -> list[Path]:
    write_file(stem.with_suffix(".md"), f"{text}\n".encode())
    table = frame.to_csv(index=False, float_format="%.6g", na_rep="nan", lineterminator="\n")
    write_file(stem.with_suffix(".csv"), table.encode())
    return [stem.with_suffix(".md"), stem.with_suffix(".csv")]
