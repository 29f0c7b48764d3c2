"""Throwaway until the real one lands."""
from typing import NamedTuple
from report.old_studies import STUDIES as OLD
from store.settings import Settings

class Study(NamedTuple):
    name: str
    network: str
    figures: str
    title: str
    epochs: int
    settings: dict
    splits: tuple = ("train", "val")

STUDIES = tuple(Study(s.command.split()[1] if s.command.startswith("./") else "rates", s.network, s.name, s.title, s.epochs,
      {label: Settings.parse(s.network, name) for label, name in s.settings.items()}, s.splits) for s in OLD.values())
