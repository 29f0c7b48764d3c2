"""The tables, as Markdown and CSV."""

import math
from pathlib import Path

from report.findings import Count, Finding
from report.old_studies import Curve, View
from store.files import as_csv, make_folder, write_file

MEASURES = {"val_loss": "lowest validation loss", "best_epoch": "best epoch",
           "train_acc": "training accuracy there", "val_acc": "best validation accuracy",
           "test_acc": "test accuracy there", "test_loss": "test loss there",
           "quarter_train_acc": "training accuracy, last quarter",
           "quarter_val_acc": "validation accuracy, last quarter",
           "quarter_test_acc": "test accuracy, last quarter",
           "last_train_acc": "training accuracy, last epoch",
           "last_val_acc": "validation accuracy, last epoch"}
SHOWN = ("val_loss", "best_epoch", "train_acc", "val_acc", "test_acc", "quarter_train_acc",
         "quarter_val_acc", "last_val_acc")  # in the report; results/tables/ has all
NOT_YET = "Not run yet."


def value(curve: Curve, key: str) -> str:
    digits = int(len(curve.runs) > 1) if key == "best_epoch" else 4
    spread = f" ± {curve.deviation(key):.{digits}f}" if len(curve.runs) > 1 else ""
    return f"{curve.mean(key):.{digits}f}{spread}"


def markdown(header: list[str], rows: list[list]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def curve_table(curves: list[Curve], keys=tuple(MEASURES)) -> str:
    return markdown(["setting", "seeds", "epochs", *(MEASURES[key] for key in keys)],
                    [[f"`{curve.label}`", len(curve.runs), curve.epochs,
                      *(value(curve, key) for key in keys)]
                     for curve in curves]) if curves else NOT_YET


def p_text(p: float) -> str:
    return f"= {p:.3f}" if p >= 0.001 else "< 0.001"


def finding_rows(finding: Finding) -> list[list]:
    """The numbers of a claim: by the last quarter, and what stands beside it."""
    rows = []
    for check, p, verdict in finding.decided:
        estimate, beside = check.estimate, getattr(check, "beside", {})
        shown = str(check) if isinstance(check, Count) else str(estimate or "not run yet")
        rows.append([check.what, shown,
                     *(beside.get(key, "–") for key in ("best epoch", "last epoch", "test")),
                     estimate.n if estimate else "–", estimate.epochs if estimate else "–",
                     "–" if math.isnan(p) else p_text(p).removeprefix("= "), verdict])
    return rows


HEADER = ["number", "difference [95 %]", "by the best epoch", "by the last epoch",
          "on the test images", "seeds", "epochs", "p (Holm)", "of this"]


def verdict_table(found: list[Finding]) -> str:
    return markdown(["", "claim", "verdict"],
                    [[f.number, f.claim, f"**{f.verdict}**" + f": {f.reason}" * bool(f.reason)]
                     for f in found])


def write_tables(views: dict[str, View], found: list[Finding], folder: Path) -> list[Path]:
    """Every table as Markdown and CSV; means over the seeds, their deviation in a column _sd."""
    make_folder(folder)
    paths = []
    for name, view in views.items():
        curves = list(view.curves.values())
        header = ["network", "setting", "seeds", "epochs", "code",
                  *(f"{key}{end}" for key in MEASURES for end in ("", "_sd"))]
        rows = [[curve.network, curve.label, len(curve.runs), curve.epochs,
                 " ".join(curve.versions), *(f"{number:.6g}" for key in MEASURES for number in (
                     curve.mean(key), curve.deviation(key)))] for curve in curves]
        paths += _write_table(folder / name, curve_table(curves), header, rows)
    rows = [[f.number, f.claim, f.verdict, *row] for f in found for row in finding_rows(f)]
    header = ["", "claim", "verdict", *HEADER]
    return paths + _write_table(folder / "findings", markdown(header, rows), header, rows)


def _write_table(stem: Path, text: str, header: list[str], rows: list[list]) -> list[Path]:
    write_file(stem.with_suffix(".md"), f"{text}\n".encode())
    write_file(stem.with_suffix(".csv"),
               as_csv(header, (dict(zip(header, row, strict=True)) for row in rows)))
    return [stem.with_suffix(".md"), stem.with_suffix(".csv")]
