"""The best learning rate of an unmodified Hugging Face GPT-2 on characters, over width and over depth.

    OMP_NUM_THREADS=1 python -m benchmarks.transfer width
    OMP_NUM_THREADS=1 python -m benchmarks.transfer depth

Under the plan (mup over width, completep over depth) and without it, from the same base. Trained with AdamW for 200
steps of 8 windows of 32 characters, the rate rising over a quarter of them and falling to zero; the loss is held-out,
at the end, the mean over seeds. The best rate is the bottom of a parabola through the three best of a grid in factors
of 2^(1/2); its range is over seeds.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
import transformers

from benchmarks.batch import bottom
from objectives.training import schedule
from objectives.transformer import text, windows
from tuner.mup import plan, roles
from tuner.scale import Scale

STEPS, BATCH, CONTEXT, HEADS = 200, 8, 32, 4
RATES = tuple(2.0 ** (k / 2) for k in range(-22, -5))
BRANCHES = ("transformer.h.*.attn.c_proj", "transformer.h.*.mlp.c_proj")
WIDTHS = tuple(Scale(width=width, depth=2) for width in (32, 64, 128, 256))
DEPTHS = tuple(Scale(width=64, depth=depth) for depth in (2, 4, 8))
HELD_OUT = 32  # windows


def build(scale: Scale) -> torch.nn.Module:
    without = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = transformers.GPT2Config(
        vocab_size=text()[2],
        n_positions=CONTEXT,
        n_embd=int(scale["width"]),
        n_layer=int(scale["depth"]),
        n_head=HEADS,
        bos_token_id=0,
        eos_token_id=0,
        **without,
    )
    model: torch.nn.Module = transformers.GPT2LMHeadModel(config)
    return model


def loss_after(base: Scale, scale: Scale, parametrization: str, init_scale: float, lr: float, seed: int) -> float:
    """Held-out nats a character at the end of training; infinite where it diverged."""
    torch.set_num_threads(1)
    planned = plan(roles(build, base, scale), "adamw", parametrization, BRANCHES)
    torch.manual_seed(seed)
    model = build(scale)
    if parametrization != "sp":
        planned.init_(model, init_scale)
    optimizer = torch.optim.AdamW(planned.param_groups(model, lr, weight_decay=0.1), betas=(0.9, 0.95))
    peaks = [group["lr"] for group in optimizer.param_groups]
    train, held, _ = text()
    drawn = torch.Generator().manual_seed(seed)
    for step in range(STEPS):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * schedule(step, STEPS)
        tokens, _ = windows(train, torch.randint(len(train) - CONTEXT, (BATCH,), generator=drawn), CONTEXT)
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    starts = torch.linspace(0, len(held) - CONTEXT - 1, HELD_OUT).long()
    with torch.no_grad():
        tokens, _ = windows(held, starts, CONTEXT)
        found = float(model(input_ids=tokens, labels=tokens).loss)
    return found if np.isfinite(found) else np.inf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("axis", choices=["width", "depth"])
    parser.add_argument("--parametrizations", help="with commas between them; default: the plan's and sp")
    parser.add_argument(
        "--init-scale", type=float, default=1.0, help="of the plan's start; without a plan there is none"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    scales, right = (WIDTHS, "mup") if chosen.axis == "width" else (DEPTHS, "completep")
    began = time.perf_counter()
    print(f"| | {chosen.axis} | best lr (range over seeds) | loss there |\n|---|---|---|---|")
    with ProcessPoolExecutor(chosen.workers) as pool:
        for parametrization in (chosen.parametrizations or f"{right},sp").split(","):
            best = []
            for scale in scales:
                runs = {
                    (lr, seed): pool.submit(loss_after, scales[0], scale, parametrization, chosen.init_scale, lr, seed)
                    for lr in RATES
                    for seed in range(chosen.seeds)
                }
                losses = np.array([[runs[lr, seed].result() for lr in RATES] for seed in range(chosen.seeds)])
                each = np.exp([bottom(RATES, line) for line in losses])
                best.append(float(np.exp(bottom(RATES, losses.mean(0)))))
                cells = (
                    parametrization,
                    f"{scale[chosen.axis]:g}",
                    f"{best[-1]:.4f} ({each.min():.4f} .. {each.max():.4f})",
                    f"{losses.mean(0).min():.3f}",
                )
                print(f"| {' | '.join(cells)} |", flush=True)
            print(f"| {parametrization} | all | moves by a factor {max(best) / min(best):.2f} | |", flush=True)
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
