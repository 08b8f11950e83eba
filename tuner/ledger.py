"""The ledger: what a search and its verification cost, beside tuning the target itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

DIRECT = 16  # runs of tuning at the target, for comparison


@dataclass(frozen=True)
class Ledger:
    """Costs in the study's unit; every attempt is charged.

    Args:
        target_run: cost of one run at the target.
        search: cost of the search.
        verification: cost of the verification runs.
        verified: whether one of them, of the setting in question, finished or diverged.
        loss: what it measured; None: it diverged, or there is none.
        unit: of cost; empty where only the study's cost function knows it.
    """

    target_run: float
    search: float
    verification: float = 0.0
    verified: bool = False
    loss: float | None = None
    unit: str = ""

    @property
    def total(self) -> float:
        return self.search + self.verification

    @property
    def direct(self) -> float:
        """Cost of tuning at the target."""
        return DIRECT * self.target_run

    def as_json(self, stopped: str) -> dict[str, Any]:
        """The `--json` contract's "ledger"; stopped: why the search did."""
        return {
            "search": {"cost": self.search, "target_runs": self.search / self.target_run},
            "verification": {"cost": self.verification, "loss": self.loss} if self.verification else None,
            "stopped": stopped,
        }
