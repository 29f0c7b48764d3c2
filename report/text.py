"""What REPORT.md.j2 fills in: each method below is a sentence, a table or a link of the report."""

import ast
import math
import os
import re
from collections import Counter
from pathlib import Path

import jinja2
import numpy as np

from report import measured, sweeps
from report.evidence import BEST, FAILS, HOLDS, QUARTER, UNDECIDED, Cell, Evidence, Finding, cell
from report.figures import QUANTITIES, SPLITS
from report.frame import EPOCHS, Curve, View, command, plural, processor
from report.results import data_name
from report.statistics import FEW, Pool, holm, optimism
from report.tables import COLUMNS, NOT_YET, markdown, value, verdict_table
from store.files import ROOT
from store.run import duration
from store.settings import NETWORKS
from studies import STUDIES, SWEEP

PUBLISHED = {"mlp": (0.524, 1.367), "cnn": (0.7397, 0.7902)}  # test accuracy and loss
OLDER_STUDIES = ("MLP", "CNN", "MLP_ablation", "CNN_ablation", "dimention", "dropout", "batchsize")
SHORT = ("val_loss", "val_acc", "test_acc", "quarter_val_acc")
AIM = 0.8  # test accuracy
AIM_ERROR = 2 * math.sqrt(AIM * (1 - AIM) / 10_000)  # two standard errors of so many images


def base(network: str, **more) -> Cell:
    values = {"without_BatchNorm": False, "without_dropout": False} | more
    return cell(f"{network}_ablation", **values)


class Report:
    """The report of some evidence, beside which its figures and tables lie.

    `drawn` names the figures that are there; commands get `flags`, and links to files of the
    repository start at `root`.
    """

    def __init__(self, evidence: Evidence, found: list[Finding], drawn: set[str],
                 kind: str = "png", flags: str = "", root: str = "."):
        self.evidence, self.views, self.found = evidence, evidence.views, found
        self.source, self.pool, self.drawn = evidence.source, evidence.pool, drawn
        self.kind, self.flags, self.root = kind, flags, root
        self.claims = {finding.claim.number: finding for finding in found}

    def render(self, template: str = "REPORT.md.j2") -> str:
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent), trim_blocks=True,
            lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
        names = {name: getattr(self, name) for name in dir(self) if name[0] != "_"}
        text = environment.get_template(template).render(
            names, measured=measured, sweeps=sweeps, verdict_table=verdict_table)
        return re.sub(r"\n{3,}", "\n\n", text)

    # Links and figures

    def figure(self, name: str, alternative: str) -> str:
        return f"![{alternative}](pics/{name}.{self.kind})" if name in self.drawn else ""

    def run(self, what: str) -> str:
        """A command that makes runs, with the flags for the user's own folders."""
        return f"`{what}{self.flags}`"

    def link(self, path: str) -> str:
        return path if self.root == "." else os.path.join(self.root, path)

    def quote(self, file: str, name: str) -> str:
        """The code of Class.method, as it stands in the file now."""
        text = (ROOT / file).read_text(encoding="utf-8")
        node = ast.parse(text)
        for part in name.split("."):
            node = next(child for child in node.body if getattr(child, "name", "") == part)
        lines = text.splitlines()[node.lineno - 1:node.end_lineno]
        code = "\n".join(line[node.col_offset:] for line in lines)
        return f"[`{file}`]({self.link(file)}#L{node.lineno})\n```python\n{code}\n```"

    def figures_page(self) -> str:
        """Every figure that is there, on one page beside them."""
        parts = ["# All figures\n\nThose of [the report](../REPORT.md), and the others. "
                 "`python plot.py` draws them."]
        for name in sorted(self.drawn, key=str.lower):
            parts.append(f"## {name}\n\n![{self.title(name)}]({name}.{self.kind})")
        return "\n\n".join(parts) + "\n"

    def title(self, name: str) -> str:
        titles = {f"{figures}_{split}_{quantity}":
                  f"{view.study.title}: {SPLITS[split]} {QUANTITIES[quantity][0]}"
                  for figures, view in self.views.items() for split in view.study.splits
                  for quantity in QUANTITIES}
        return titles.get(name, name.replace("_", " "))

    # Differences

    def points(self, *cells: Cell, **how) -> str:
        return sweeps.points(self.evidence, *cells, **how)

    def dropout(self, network: str, **how) -> str:
        """With dropout less without it, at the defaults."""
        return self.points(base(network), base(network, without_dropout=True), **how)

    def norm(self, network: str, **how) -> str:
        """With batch normalization less without it, at the defaults."""
        return self.points(base(network), base(network, without_BatchNorm=True), **how)

    def gap(self, network: str) -> str:
        """By how many nats dropout closes the gap of the losses."""
        estimate = self.evidence.difference(base(network, without_dropout=True), base(network),
                                            of="gap")
        return str(estimate or "not run yet")

    def at_best_rate(self, network: str) -> str:
        """Batch normalization's effect with each arm at its own best learning rate."""
        return self.points(*(cell(f"{network}_learning_rates", without_BatchNorm=without,
                                  learning_rate=SWEEP) for without in (False, True)), by=BEST)

    def single(self, *rates: float, of: str = "val_acc", by: str = QUARTER) -> str:
        """Single activations less whole maps; of several rates each at its best."""
        rate = rates[0] if len(rates) == 1 else rates
        return self.points(*(cell("dimention", drop_rate=rate, dropout_type=kind)
                             for kind in ("1d", "2d")), of=of, by=by)

    def lower_loss(self, rate: float) -> str:
        """The lowest validation loss, single activations less whole maps."""
        estimate = self.evidence.difference(*(cell("dimention", drop_rate=rate, dropout_type=kind)
                                              for kind in ("1d", "2d")), of="val_loss", by=BEST)
        return str(estimate or "not run yet")

    def gain_over_epochs(self) -> str:
        """The MLP's gain of drop rate 0.2 when training stops earlier: its 100 epochs, cut."""
        study = next(study for study in STUDIES if study.figures == "weight_decay")
        parts = []
        for epochs in (10, 20, 40, 100):
            view = View(study, self.source, epochs)
            with_, none = (view.find(drop_rate=p, weight_decay=0.0) for p in (0.2, 0.0))
            if with_ and none and view.epochs == epochs:
                gain = Pool({"": view}).estimate("quarter_val_acc", with_, none)
                parts.append(f"{gain.points} at {epochs}")
        return ", ".join(parts) + " epochs" if parts else "not run yet"

    # The first page

    def reached(self) -> str:
        curves = {n: self.evidence.curve(base(n)) for n in ("MLP", "CNN")}
        return " and ".join(f"the {n} {100 * curve.mean('test_acc'):.1f} %{cut_short(curve)}"
                            for n, curve in curves.items() if curve) or "not run yet"

    def lead(self) -> str:
        return self.points(base("CNN"), base("MLP"), of="test_acc", by=BEST)

    def verdicts(self) -> str:
        """How many claims hold, do not, and are undecided; the rest are arguments."""
        counts = Counter(finding.verdict() for finding in self.found)
        rest = len(self.found) - sum(counts[each] for each in (HOLDS, FAILS, UNDECIDED))
        return (f"{counts[HOLDS]} hold, {counts[FAILS]} do not and {counts[UNDECIDED]} are "
                f"undecided; {rest} more are arguments that no number decides")

    def best_table(self) -> str:
        """The best of each grid, and the networks of the ablations."""
        rows = []
        for network in NETWORKS:
            name = network.upper()
            grid = self.views[name]
            tried = f", of {len(grid.curves)} of its {len(grid.settings)} settings" * bool(
                grid.missing)
            for what, curve, data in (
                    (f"best {name} of the grid{tried}", next(iter(grid.curves.values()), None),
                     grid.data),
                    (f"{name} at its defaults", self.evidence.curve(base(name)),
                     self.views[f"{name}_ablation"].data)):
                rows.append([what, in_words(curve), f"{curve.epochs} of {EPOCHS[network]}",
                             len(curve.runs), data, value(curve, "val_acc"),
                             value(curve, "test_acc"), time_of_a_run(curve)]
                            if curve else [what, NOT_YET, *["–"] * 6])
        return markdown(["", "setting", "epochs", "runs", "data", COLUMNS["val_acc"],
                         COLUMNS["test_acc"], "time of a run"], rows)

    def ablation_table(self) -> str:
        """Test accuracy with both layers, one and none, for both networks."""
        rows = []
        for text, norm, drop in (("both", False, False), ("batch normalization alone", False, True),
                                 ("dropout alone", True, False), ("neither", True, True)):
            cells = [self.evidence.curve(base(n, without_BatchNorm=norm, without_dropout=drop))
                     for n in ("MLP", "CNN")]
            rows.append([text, *(f"{value(curve, 'test_acc')} (n = {len(curve.runs)})"
                                 if curve else NOT_YET for curve in cells)])
        return markdown(["layers", "MLP, test accuracy", "CNN, test accuracy"], rows)

    def for_readme(self) -> dict[str, str]:
        """What README.md shows between comments of these names."""
        return {"results": self.best_table(), "ablation": self.ablation_table()}

    # Statistics

    def deviations(self) -> str:
        """The pooled deviations that stand in where runs are few, and how alike those are."""
        parts = []
        for network, epochs in EPOCHS.items():
            deviation, freedom = self.pool.deviation(network, epochs, "val_acc")
            if freedom:
                own = [curve.deviation("val_acc") for curve in self.pool.curves.values()
                       if (curve.network, curve.epochs) == (network, epochs)
                       and len(curve.runs) >= FEW]
                ratio = f", settings differ by a factor of {max(own) / min(own):.1f}" if (
                    len(own) > 1 and min(own) > 0) else ""
                parts.append(f"{deviation:.4f} for the {network.upper()} at {epochs} epochs "
                             f"({freedom:.0f} degrees of freedom{ratio})")
        return f"In best validation accuracy it is {' and '.join(parts)}." if parts else (
            f"{NOT_YET} {self.run('./run_grid.sh ablation --seed 0 1')} makes second seeds.")

    def across_claims(self) -> str:
        """Holm's correction over all claims that are decided."""
        decided = []
        for finding in self.found:
            verdict, numbers = finding.verdict(), finding.decided()
            ps = [p for number, p, own in numbers if own == verdict and finding.by in number.by]
            if verdict in (HOLDS, FAILS) and ps:
                one = finding.claim.some == (verdict == HOLDS)  # is enough
                decided.append((min if one else max)(ps))
        corrected = holm(decided)
        above = sum(p >= 0.05 for p in corrected)
        return (f"Corrected across the {len(decided)} claims that numbers decide, too, "
                + (f"every p stays below 0.05 (largest {max(corrected):.3f})" if not above else
                   f"{above} would be above 0.05 (largest {max(corrected):.3f})")
                if decided else "No claim is decided yet") + "."

    def otherwise(self) -> str:
        """Which verdicts depend on whose deviation is taken."""
        pooled = Evidence(self.source, self.views, few=math.inf)
        changed = [f"{one.claim.number} ({other})" for one in self.found if one.verdict() != (
            other := Finding(one.claim, pooled).verdict())]
        return ("With the pooled deviation in every comparison, not only where runs are few, "
                + (f"these come out otherwise: {', '.join(changed)}." if changed
                   else "no claim comes out otherwise."))

    def unsteady(self) -> str:
        """Claims whose verdict depends on the measure."""
        changed = []
        for finding in self.found:
            by = {measure: finding.by_measure(measure) for measure in (QUARTER, BEST, "last epoch")}
            if len(set(by.values()) - {"–"}) > 1:
                changed.append(finding.claim.number)
        return ", ".join(changed) or "none"

    # Studies

    def status(self, name: str) -> str:
        """On what data, for how long, with how many seeds; what is missing; which code."""
        view = self.views[name]
        if not view.curves:
            return f"{NOT_YET} {self.run(command(view.study))} makes the runs."
        missing = (f"; {len(view.missing)} of {len(view.settings)} settings are missing or "
                   f"unfinished: {self.run(view.command)} makes them" if view.missing else "")
        made = f"; {view.origin}" * (not view.is_of_one)
        return (f"{view.study.title}: {view.data}; {plural(view.epochs, 'epoch')}, "
                f"{view.seeds_text}{missing}{made}.{self.few_seeds(view)}")

    def few_seeds(self, view: View) -> str:
        if view.study.splits or min(view.seeds) >= FEW:
            return ""
        deviation, freedom = self.pool.deviation(view.study.network, view.epochs, "quarter_val_acc")
        return (f" Where a setting has fewer than {FEW} runs, intervals take the pooled deviation "
                f"of {100 * deviation:.2f} points ({freedom:.0f} degrees of freedom)."
                if freedom else
                " No setting of this length has a second seed, so differences have no interval.")

    def best(self, name: str, most: int = 5) -> str:
        curves = list(self.views[name].curves.values())[:most]
        return markdown(["setting", "runs", *(COLUMNS[key] for key in SHORT)], [
            [f"`{curve.label}`", len(curve.runs), *(value(curve, key) for key in SHORT)]
            for curve in curves]) if curves else ""

    def luck(self, name: str) -> str:
        """By how much the best of a grid looks better than it is."""
        view = self.views[name]
        curves = view.all_complete()
        deviation, freedom = self.pool.deviation(view.study.network, view.epochs, "val_loss")
        if not freedom or not curves:
            return ""
        errors = [deviation / math.sqrt(len(curve.runs)) for curve in curves]
        shift = optimism([curve.mean("val_loss") for curve in curves], errors)
        return (f"Being the best of {len(curves)}, the first row's loss looks about {shift:.2f} "
                "lower than that setting's with other seeds.")

    def told(self, *numbers: str) -> str:
        """Verdicts of claims with the numbers that decide them."""
        return "\n".join(self.sentence(self.claims[number]) for number in numbers)

    def sentence(self, finding: Finding) -> str:
        parts = [f"{number.what} {own.points if number.of.endswith('acc') else own}"
                 for number, _, _ in finding.decided() if (own := number.by.get(finding.by))]
        reason = f" ({finding.reason})" * bool(finding.reason)
        words = finding.claim.words.removeprefix("… ")
        return (f"- {finding.claim.number}, {words}: **{finding.verdict()}**{reason}"
                + f": {'; '.join(parts)}" * bool(parts) + ".")

    def argument(self, name: str, *claims: str, figure: bool = True, table: bool = False) -> str:
        """An argument's figure, what it was measured on, its table, and its claims."""
        views = [view for key, view in self.views.items() if key.endswith(name)]
        if not any(view.curves for view in views):
            return self.status(views[0].study.figures)
        parts = [self.figure(name, views[0].study.title) if figure else "",
                 *(self.status(view.study.figures) for view in views if view.curves),
                 sweeps.TABLES[name](self.evidence) if table else "", self.told(*claims)]
        return "\n\n".join(filter(None, parts))

    def topic(self, name: str, table: str, networks: tuple[str, ...] = NETWORKS) -> str:
        missing = [n for n in networks if name not in self.source.theory.get(n, {})]
        ran = "; ".join(f"{n.upper()}, {plural(len(topic['runs']), 'network')} of "
                        f"`{topic['setting']}` ({topic['data']})"
                        for n, topic in measured.known(self.source, name))
        orders = " ".join(f"{n.upper()}: {NOT_YET} "
                          f"{self.run(f'python theory.py {name} --network {n}')} measures it."
                          for n in missing)
        return "\n\n".join(filter(None, (table if ran else "", ran and f"{ran}.", orders)))

    # The older report's numbers

    def highest(self, network: str) -> tuple[float, float] | None:
        """The best test results over all runs and epochs, looked at as the older code did.

        That is only where validation accuracy was the best so far, and without the runs that drop
        single activations, which it never did.
        """
        names = {run.name for name in OLDER_STUDIES if self.views[name].study.network == network
                 for run in self.views[name].runs if run.settings.dropout_type != "1d"}
        rows = self.source.epochs[(self.source.epochs.network == network)
                                  & self.source.epochs.run.isin(names)
                                  & (self.source.epochs.epoch <= EPOCHS[network])]
        rows = rows[rows.val_acc >= rows.groupby("run").val_acc.cummax()]
        return None if rows.empty else (rows.test_acc.max(), rows.test_loss.min())

    def reproduced(self) -> str:
        return "; ".join(f"{n.upper()} {PUBLISHED[n][0]} there, {found[0]:.4f} here"
                         for n in NETWORKS if (found := self.highest(n))) or "not run yet"

    def against_published(self) -> str:
        rows = []
        for network, published in PUBLISHED.items():
            name, extremes = network.upper(), self.highest(network)
            curve = self.evidence.curve(base(name))
            for i, (key, what) in enumerate((("test_acc", "highest test accuracy"),
                                             ("test_loss", "lowest test loss"))):
                rows.append([f"{name}, {what}, found as there", published[i],
                             f"{extremes[i]:.4f}" if extremes else NOT_YET,
                             f"{extremes[i] - published[i]:+.4f}" if extremes else "–"])
                rows.append([f"{name} at its defaults, {COLUMNS[key].replace(' there', '')} at the "
                             f"best validation accuracy{cut_short(curve)}", published[i],
                             value(curve, key) if curve else NOT_YET,
                             f"{curve.mean(key) - published[i]:+.4f}" if curve else "–"])
        return markdown(["", "older report", "here", "difference"], rows)

    def how_far(self) -> str:
        runs = [(run, self.source.summaries[run.network, run.name])
                for run in self.source.of("cnn") if run.settings and run.settings.augment
                and run.rows]
        if not runs:
            maker = self.run("python cnn/main.py --drop_rate 0 --learning_rate 0.003 --augment "
                             "--schedule onecycle")
            return f"{NOT_YET} {maker} makes it."
        table = markdown(["run", "epochs", "data", *(COLUMNS[key] for key in SHORT)], [
            [f"`{run.name}`", len(run.rows), data_name(run), *(f"{own[key]:.4f}" for key in SHORT)]
            for run, own in runs])
        run, best = max(runs, key=lambda each: each[1]["val_acc"])
        above = best["test_acc"] - AIM
        place = ("which cannot be told from the aim" if abs(above) < AIM_ERROR else
                 "above the aim" if above > 0 else "below the aim")
        return (f"{table}\n\nThe one with the best validation accuracy, `{run.name}`, reaches "
                f"{best['test_acc']:.4f}, {place}: two standard errors of 10 000 images are "
                f"{AIM_ERROR:.3f}.")

    def mixed(self) -> str:
        """Which studies several versions or processors made."""
        begun = [view for view in self.views.values() if view.curves]
        titles = [view.study.title for view in begun if not view.is_of_one]
        return (f"{len(titles)} of the {len(begun)} studies that have runs are not of one known "
                f"version of the code and one processor: {'; '.join(titles)}." if titles else
                "Each study is of one known version of the code and one processor.")

    def trained(self) -> str:
        """Hours of training, by network."""
        hours = {n: sum(s for run in self.source.of(n) for row in run.rows
                        if 0 <= (s := row["seconds"]) < 1e9) for n in NETWORKS}
        return ", ".join(f"{n.upper()} {duration(time)}" for n, time in hours.items())


def cut_short(curve: Curve | None) -> str:
    """After how many epochs, where the protocol has more."""
    asked = EPOCHS[curve.network] if curve else 0
    return f" after {curve.epochs} of {asked} epochs" if curve and curve.epochs < asked else ""


def in_words(curve: Curve) -> str:
    own = curve.settings
    return (f"batch {own.batch_size}, learning rate {own.learning_rate}, drop rate {own.drop_rate}")


def time_of_a_run(curve: Curve) -> str:
    """The median, and the processors that took it."""
    time = duration(np.median(curve.over_epochs("seconds").sum(axis=1)))
    machines = {processor(run).split(",")[0] for run in curve.runs}
    return f"{time}, {' and '.join(sorted(machines))}"


def fill(text: str, parts: dict[str, str]) -> str:
    """`text` with what stands between <!-- NAME --> and <!-- /NAME --> replaced by parts[NAME]."""
    return re.sub(r"<!-- (\w+) -->\n.*?<!-- /\1 -->",
                  lambda match: f"<!-- {match[1]} -->\n{parts[match[1]]}\n<!-- /{match[1]} -->"
                  if match[1] in parts else match[0], text, flags=re.DOTALL)
