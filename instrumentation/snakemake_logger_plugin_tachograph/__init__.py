"""``snakemake --logger tachograph``: Snakemake finds this package by its name.

See `tachograph.integrations.snakemake`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from logging import LogRecord, getLogger
from typing import Any

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.settings import LogHandlerSettingsBase


@dataclass
class LogHandlerSettings(LogHandlerSettingsBase):  # type: ignore[misc]
    """What ``--logger-tachograph-…`` says.

    Attributes:
        workflow: what the runs are called.
    """

    workflow: str | None = field(
        default=None,
        metadata={"help": "What the runs are called (default: like the project's directory).", "type": str},
    )


class LogHandler(LogHandlerBase):  # type: ignore[misc]
    """Hands on what Snakemake logs."""

    def __post_init__(self) -> None:
        self._records: Any = None
        self._is_broken = False

    def emit(self, record: LogRecord) -> None:
        """Take a record, in Snakemake's own thread for that."""
        if self._records is None and not self._is_broken:
            self._open()
        if self._records is not None:
            self._records.handle(record)

    def _open(self) -> None:
        # Every command of Snakemake imports this module, that of each job, too; only a run needs the rest. Here it is
        # imported while Snakemake goes on.
        try:
            from tachograph.integrations.snakemake import Records

            self._records = Records(
                getattr(self.settings, "workflow", None), is_dry_run=bool(self.common_settings.dryrun)
            )
        except Exception:
            self._is_broken = True
            getLogger(__name__).exception("Snakemake is not instrumented")

    def close(self) -> None:
        """Snakemake ends, and with it the run."""
        if self._records is not None:
            self._records.close()
        super().close()

    @property
    def writes_to_stream(self) -> bool:
        """It leaves the terminal to Snakemake."""
        return False

    @property
    def writes_to_file(self) -> bool:
        """It writes none."""
        return False

    @property
    def has_filter(self) -> bool:
        """What Snakemake is quiet about is reported all the same."""
        return True

    @property
    def has_formatter(self) -> bool:
        """It needs none."""
        return True

    @property
    def needs_rulegraph(self) -> bool:
        """The edges of jobs that never start are those of their rules."""
        return True
