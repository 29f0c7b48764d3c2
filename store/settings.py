"""The settings of a run, and its name."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Settings:
    """All that decides the numbers of one run, but for the data."""

    network: str  # "mlp" or "cnn"
    batch_size: int
    learning_rate: float
    drop_rate: float
    seed: int
    num_epochs: int
    without_BatchNorm: bool = False
    without_dropout: bool = False
    dropout_type: str | None = None  # the CNN's: "2d" drops feature maps, "1d" single activations
    hidden_size: int | None = None  # the MLP's
    precision: str = "fp32"
    compile: bool = False
    augment: bool = False
    schedule: str = "constant"
    synthetic: bool = False

    @property
    def name(self) -> str:
        """The name of the run's folder: one name is one experiment. The number of epochs is no part of it,
        as a run can go on, unless the learning rate's schedule depends on it."""
        parts = [self.batch_size, self.learning_rate, self.drop_rate, self.without_BatchNorm, self.without_dropout]
        if self.dropout_type:
            parts.append(self.dropout_type)
        parts.append(f"seed{self.seed}")
        if self.hidden_size not in (None, 100):
            parts.append(f"hidden{self.hidden_size}")
        if self.precision != "fp32":
            parts.append(self.precision)
        if self.schedule != "constant":
            parts.append(f"{self.schedule}{self.num_epochs}")
        parts += [flag for flag in ("compile", "augment", "synthetic") if getattr(self, flag)]
        return "_".join(map(str, parts))

    def identity(self) -> dict:
        """What two runs must share to be the same experiment."""
        settings = asdict(self)
        if self.schedule == "constant":
            del settings["num_epochs"]
        return settings
