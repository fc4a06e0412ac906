"""metrics.csv: Lightning's logger, with a file that a killed process leaves whole and that can go on."""

import csv
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

log = logging.getLogger(__name__)


class Writer(ExperimentWriter):
    """Writes rows through, and the file anew by renaming where a row brings new columns.

    Args:
        folder: of metrics.csv.
        rows, columns: how much of a file that is there stays.
    """

    def __init__(self, folder: Path, rows: int = 0, columns: Sequence[str] = ()) -> None:
        self.rows = rows
        self._first_columns = list(columns)
        super().__init__(str(folder))

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the file as it is."""
        return tuple(self.metrics_keys)

    def save(self) -> None:
        self.rows += len(self.metrics)
        super().save()

    def sync(self) -> None:
        """Have what was written on the disk, whatever becomes of the machine."""
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        path.unlink(missing_ok=True) if self.rows == 0 else self._cut(path)

    def _cut(self, path: Path) -> None:
        self.metrics_keys = list(self._first_columns)
        rows = _rows(path)
        if len(rows) < self.rows:
            log.warning("%s has lost rows: %d of %d are there", path, len(rows), self.rows)
        self.rows = min(self.rows, len(rows))
        _write(path, rows[: self.rows], self.metrics_keys)

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        _write(path, _rows(path), fieldnames)


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _write(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def csv_logger(folder: Path, rows: int = 0, columns: Sequence[str] = ()) -> CSVLogger:
    """`folder/metrics.csv`, written through at every row, so that a run that dies loses none.

    Args:
        folder: an earlier metrics.csv there is removed, but for
        rows, columns: what stays of it.
    """
    logger = CSVLogger(folder, name="", version="", flush_logs_every_n_steps=1)
    logger._experiment = Writer(folder, rows, columns)
    return logger
