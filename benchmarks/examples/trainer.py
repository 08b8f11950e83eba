"""An unmodified GPT-2 in Hugging Face's Trainer (extra `transformers`), tuned from two small widths."""

import functools
import tempfile

import torch
import transformers

import tuner
from tuner.integrations.training import flops
from tuner.integrations.transformers import TrialCallback

BASE, TARGET, STEPS, BATCH = tuner.Scale(width=32), tuner.Scale(width=128), 10, 8
text = torch.arange(4096) % 61 % 48  # your data
rows = [{"input_ids": row, "labels": row} for row in text.view(256, 16)]


def build(scale):
    sizes = {"n_embd": int(scale["width"]), "n_layer": 2, "n_head": 4, "n_positions": 16, "vocab_size": 48}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


@functools.cache
def step(scale):
    """FLOPs of one step, counted on the meta device."""
    with torch.device("meta"):
        model, tokens = build(scale), torch.zeros(BATCH, 16, dtype=torch.long)
    return flops(lambda: model(input_ids=tokens, labels=tokens).loss)


class Language:
    parametrization = "mup-adamw"
    space = tuner.SearchSpace({"lr": tuner.Float(1e-4, 1e-1, log=True)})

    def cost(self, params, scale):
        return STEPS * step(scale)

    def __call__(self, params, scale, seed):
        transformers.set_seed(seed)
        plan, model = tuner.mup.plan(tuner.mup.roles(build, BASE, scale)), build(scale)
        plan.init_(model)
        optimizer = torch.optim.AdamW(plan.param_groups(model, params["lr"]))  # a schedule keeps the groups' ratios
        watch = TrialCallback()  # ends a run that diverges, and hands back its loss and FLOPs
        with tempfile.TemporaryDirectory() as runs:
            quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True}
            args = transformers.TrainingArguments(runs, max_steps=STEPS, seed=seed, **quiet)
            trainer = transformers.Trainer(
                model, args, train_dataset=rows, callbacks=[watch], optimizers=(optimizer, None)
            )
            trainer.train()
        return watch.result()


if __name__ == "__main__":
    study = tuner.create_study(objective=Language(), target=TARGET, proxies=[BASE, tuner.Scale(width=64)])
    study.optimize(budget=0.3)
    print(study.recommend().params)
