#!/usr/bin/env python3
"""Draw all figures and write all tables and REPORT.md, from the published runs or your own."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

from lab.terminal import begin

if __name__ == "__main__":
    begin()  # before all that takes time, as Ctrl-C may come

import shlex
import time

from lab.options import FILE, Parser
from store.files import ROOT, UserError, lock, one_line, write_file

EPILOG = """\
Runs need not be finished: a figure shows those that are there and names the missing ones.
With --runs_dir the files replace the published ones; the command without it brings them back.
--output writes elsewhere. results/tables/runs.csv has a row per run.

examples:
  python plot.py                                      the published figures and report
  python plot.py --runs_dir runs --output my_report   those of your own runs
  python plot.py --format pdf --output paper          for a paper
  python plot.py --explore runs.html --runs_dir runs  one page to look through them in a browser
  python plot.py --collect runs                       publish your runs: take them into results/

exit code: 0 done, 2 something for you to mend, such as a folder without runs"""


def main() -> int:
    parser = Parser(description=__doc__, epilog=EPILOG, allow_abbrev=False)
    parser.add_argument("--runs_dir", type=FILE, metavar="DIR",
                        help="draw the runs in DIR, not those in results/")
    parser.add_argument("--format", choices=("png", "svg", "pdf"), default="png",
                        help="of the figures, default png")
    parser.add_argument("--output", type=FILE, default=ROOT, metavar="DIR",
                        help="the folder for pics/, results/tables/ and REPORT.md; default: this "
                             "repository")
    parser.add_argument("--collect", type=FILE, metavar="RUNS_DIR",
                        help="first take the finished runs of RUNS_DIR into results/")
    parser.add_argument("--explore", type=FILE, metavar="PAGE.html",
                        help="only write one page to look through the runs in a browser (needs "
                             "plotly)")
    options = parser.parse_args()
    if options.collect and options.runs_dir:
        parser.error("argument --collect: draws from results/, so it does not go with --runs_dir")
    try:
        return draw(options)
    except UserError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")


def flags_beside(options, runs) -> str:
    """The flags of commands that make more runs beside the user's own, on the same data."""
    if not options.runs_dir:
        return ""
    folders = {folder for run in runs if isinstance(folder := run.data.get("folder"), str)}
    data = folders.pop() if len(folders) == 1 else ""
    flags = {"--runs_dir": options.runs_dir, "--data_dir": data}
    return "".join(f" {flag} {shlex.quote(str(value))}" for flag, value in flags.items() if value)


def in_no_figure(views, runs) -> list[str]:
    """Which settings stand in runs.csv and on the page alone, the best first: a line, if any."""
    drawn = {run.name for view in views for run in view.runs}
    others = sorted((run for run in runs if run.result and run.name not in drawn),
                    key=lambda run: -run.result["val_acc"])
    names = list(dict.fromkeys(f"{run.network} {run.setting}" for run in others))
    return [f"in no figure, only in results/tables/runs.csv and --explore: {', '.join(names[:5])}"
            + ", …" * (len(names) > 5)] * bool(names)


def draw(options) -> int:
    from report.explore import write_page
    from report.frame import read_source
    from report.results import collect

    if options.collect:
        print(f"{len(collect(options.collect))} runs taken from {options.collect} into results/")
    source = read_source(options.runs_dir)
    if options.explore:
        print(write_page(source, options.explore))
        return 0
    with lock(options.output / "pics" / "lock"):  # another plot.py may write to the same place
        write_all(options, source)
    return 0


def write_all(options, source) -> None:
    """Figures, tables and the report of these runs, and what is missing on the terminal."""
    from report.claims import CLAIMS
    from report.evidence import Evidence, Finding
    from report.explore import write_runs
    from report.figures import draw_all  # loads matplotlib
    from report.sweeps import differences
    from report.tables import write_tables
    from report.text import Report, fill

    start = time.perf_counter()
    evidence = Evidence(source)
    found = [Finding(claim, evidence) for claim in CLAIMS]
    place, views = options.output, list(evidence.views.values())
    figures = draw_all(evidence, found, place / "pics", options.format)
    folder = place / "results" / "tables"
    tables = [*write_tables(evidence, found, folder, differences(evidence)),
              write_runs(source, folder)]
    report = Report(evidence, found, {path.stem for path in figures}, options.format,
                    flags_beside(options, source.records), os.path.relpath(ROOT, place))
    texts = {"REPORT.md": report.render(), "pics/README.md": report.figures_page()}
    if place == ROOT and options.runs_dir is None:  # README shows the published results alone
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        texts["README.md"] = fill(readme, report.for_readme())
    for name, text in texts.items():
        write_file(place / name, text.encode(errors="backslashreplace"))
    others = in_no_figure(views, source.records) if options.runs_dir else []
    for note in source.notes + others:
        print(one_line(note))
    if empty := [view.study.figures for view in views if not view.curves]:
        print(f"no runs yet: {', '.join(empty)}; the report names the command of each")
    for view in views:
        if view.curves and view.missing:
            names = ", ".join(view.missing[:5]) + (", …" if len(view.missing) > 5 else "")
            count = f"{len(view.missing)} of {len(view.settings)}"
            print(one_line(f"{view.study.figures}: missing {count}: {names}"))
    print(f"{len(figures)} figures, {len(tables)} tables and REPORT.md in {place}, "
          f"{time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
