#!/usr/bin/env python3
"""The sixty runs of the MLP grid, two epochs each, at full size: in peace, under kill -9, and called twice at once.

    python tests/grid_check.py DATA_DIR [--kills 20]

Takes some minutes, and prints what it measures and finds. Exit code 0: nothing was lost or trained twice.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from grid import ROOT, call, differences, epochs_per_run, kill_worker, start

sys.path.insert(0, str(ROOT))
EPOCHS = 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=Path, metavar="DATA_DIR")
    parser.add_argument("--kills", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checks = Checks(options.data_dir, Path(folder), options.kills)
        checks.peace()
        checks.kills()
        checks.overlap()
    print("\n".join(["", *checks.wrong]) if checks.wrong else "\nall as it should be")
    return 1 if checks.wrong else 0


class Checks:
    def __init__(self, data: Path, folder: Path, kills: int):
        self.data, self.folder, self.number = data, folder, kills
        self.peaceful = folder / "peace"
        self.wrong = []

    def flags(self, runs: Path) -> list:
        return ["--num_epochs", EPOCHS, "--data_dir", self.data, "--runs_dir", runs]

    def expect(self, true: bool, text: str) -> None:
        print(("ok     " if true else "WRONG  ") + text, flush=True)
        if not true:
            self.wrong.append(text)

    def compare(self, runs: Path, what: str) -> None:
        found = differences(runs, self.peaceful, 60)
        self.expect(not found, f"{what}: {60 - len(found)} of 60 runs are the same as in peace, bit for bit, and no "
                               f"temporary file is left {found or ''}")

    def peace(self) -> None:
        for what in ("first", "second"):
            started = time.monotonic()
            done = call("mlp", "-j", 2, *self.flags(self.peaceful))
            seconds = time.monotonic() - started
            finished = len(list(self.peaceful.glob("mlp/*/result.json")))
            self.expect((done.returncode, finished) == (0, 60), f"the {what} call of `run_grid.sh mlp -j 2 "
                        f"--num_epochs {EPOCHS}`: {finished} finished runs, {seconds:.1f} s")
        self.expect(seconds < 5, "the second call took less than 5 s")
        trained = epochs_per_run(self.peaceful)
        self.expect(sum(trained.values()) == 60 * EPOCHS, f"{sum(trained.values())} epochs were trained")

    def kills(self) -> None:
        runs = self.folder / "kills"
        started = time.monotonic()
        quiet = {"stderr": subprocess.DEVNULL}
        calls = [start("mlp", "-j", 4, *self.flags(runs), **quiet)]
        for kill in range(self.number):  # spread over the whole grid
            epochs = 60 * EPOCHS * kill // (self.number + 1)
            while sum(epochs_per_run(runs).values()) < epochs:
                assert any(each.poll() is None for each in calls), "all workers have ended too early"
                time.sleep(0.05)
            kill_worker([each.mark for each in calls])
            calls.append(start("mlp", *self.flags(runs), **quiet))
        for each in calls:
            each.wait()
        trained = sum(epochs_per_run(runs).values())
        self.expect(calls[-1].returncode == 0, f"four workers, {self.number} of them killed by -9 and replaced: "
                    f"{len(list(runs.glob('mlp/*/result.json')))} finished runs, {time.monotonic() - started:.1f} s")
        self.expect(trained <= 60 * EPOCHS, f"{trained} epochs told of {60 * EPOCHS}: none was trained twice")
        self.compare(runs, "after the kills")

    def overlap(self) -> None:
        runs = self.folder / "overlap"
        started = time.monotonic()
        calls = [start("mlp", "-j", 2, *self.flags(runs)), start("batch_size", "mlp", "-j", 2, *self.flags(runs))]
        codes = [each.wait() for each in calls]
        trained = epochs_per_run(runs)
        self.expect(codes == [0, 0] and len(trained) == 60 and set(trained.values()) == {EPOCHS},
                    f"two calls of overlapping studies at once: {len(trained)} runs, {sum(trained.values())} epochs "
                    f"trained, {time.monotonic() - started:.1f} s")
        self.compare(runs, "of the two calls")


if __name__ == "__main__":
    sys.exit(main())
