"""A module in Lightning's Trainer (extra `lightning`), which steps by the groups of its plan."""

import lightning.pytorch as lightning
import torch
from torch import nn

import tuner
from tuner.integrations.lightning import TrialCallback

BASE = tuner.Scale(width=32)
space = {"lr": tuner.Float(1e-4, 1e-1, log=True)}


def build(scale):
    n = int(scale["width"])
    return nn.Sequential(nn.Linear(64, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU(), nn.Linear(n, 2))


def cost(params, scale):
    """FLOPs of 16 batches of 32, forward and backward; of the first layer's input nobody needs the gradient."""
    n = scale["width"]
    return 16 * 32 * (6 * (64 * n + n * n + 2 * n) - 2 * 64 * n)


class Module(lightning.LightningModule):
    def __init__(self, scale, lr):
        super().__init__()
        self.model, self.lr = build(scale), lr
        self.plan = tuner.mup.plan(tuner.mup.roles(build, BASE, scale))
        self.plan.init_(self.model)

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.model(batch), (batch[:, 0] > 0).long())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.plan.param_groups(self.model, self.lr))


def train(params, scale, seed):
    lightning.seed_everything(seed, verbose=False)
    data, watch = torch.utils.data.DataLoader(torch.randn(256, 64), 32), TrialCallback()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    lightning.Trainer(max_epochs=2, callbacks=[watch], enable_model_summary=False, **quiet).fit(
        Module(scale, params["lr"]), data
    )
    return watch.result()


if __name__ == "__main__":
    study = tuner.create_study(space, target=tuner.Scale(width=128), proxies=[BASE, tuner.Scale(width=64)], cost=cost)
    study.optimize(train, budget=0.5)
    print(study.recommend().params)
