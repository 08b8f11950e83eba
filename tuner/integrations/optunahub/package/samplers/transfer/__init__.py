"""`TransferSampler` of the installed package transfer-tuner, for OptunaHub: there is no second copy of it here."""

from tuner.integrations.optuna import TransferSampler

__all__ = ["TransferSampler"]
