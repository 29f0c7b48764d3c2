"""What a run shows while it trains, and the table at the end."""

import sys

from tqdm import tqdm

from store.run import RunFolder
from store.settings import Settings

BAR = "{desc} |{bar}| {n:.1f}/{total} [{elapsed}<{remaining}{postfix}]"


class Progress:
    """A bar on a terminal; where the output goes elsewhere, a line per epoch."""

    def __init__(self, settings: Settings, place: str = ""):
        self.title = f"{place}{settings.network} {settings.name}"
        self.num_epochs = settings.num_epochs
        self.bar = None
        if sys.stderr.isatty() and sys.stdout.isatty():
            # A name without the defaults at its end, which --evaluate takes too, leaves room.
            short = self.title.removesuffix("_seed0").removesuffix("_2d").removesuffix("_False_False")
            self.bar = tqdm(total=settings.num_epochs, desc=short, bar_format=BAR, dynamic_ncols=True)

    def begin(self, epoch: int) -> None:
        """The run goes on after so many epochs."""
        if self.bar is not None:
            self.bar.initial = self.bar.n = self.bar.last_print_n = epoch

    def step(self, share: float) -> None:
        """One step is done: this share of an epoch."""
        if self.bar is not None:
            self.bar.update(share)

    def level(self, epoch: int) -> None:
        """Free the bar of the rounding of its shares."""
        if self.bar is not None:
            self.bar.n = epoch

    def epoch(self, row: dict) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(f"val loss {row['val_loss']:.3f} acc {row['val_acc']:.3f}, "
                                     f"{row['seconds']:.1f} s/epoch")
        else:
            self.say(f"epoch {row['epoch']}/{self.num_epochs}  "
                     f"train {row['train_loss']:.4f} {row['train_acc']:.4f}  "
                     f"val {row['val_loss']:.4f} {row['val_acc']:.4f}  "
                     f"test {row['test_loss']:.4f} {row['test_acc']:.4f}  {row['seconds']:.1f} s")

    def say(self, text: str) -> None:
        tqdm.write(f"{self.title}  {text}", file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def print_results(folders: dict[Settings, RunFolder]) -> None:
    """The outcome of each run; losses and accuracies are those at the best validation accuracy."""
    width = max(len(folder.name) for folder in folders.values())
    print(f"\n{'run':{width}}  epochs  best  val loss  val acc  test loss  test acc    seconds")
    for settings, folder in folders.items():
        if (failure := folder.failure()) and not folder.finished(settings.num_epochs):
            print(f"{folder.name:{width}}  failed: {failure.get('reason')}")
        elif result := folder.result():
            print(f"{folder.name:{width}}  {result['epochs']:6}  {result['best_epoch']:4}  "
                  f"{result['val_loss']:8.4f}  {result['val_acc']:7.4f}  {result['test_loss']:9.4f}  "
                  f"{result['test_acc']:8.4f}  {result['seconds']:9.1f}")
