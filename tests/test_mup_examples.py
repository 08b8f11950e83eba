"""Models that people have, unmodified: planned, checked, and trained for ten steps."""

import math
import re
from pathlib import Path

import pytest
import torch
from families import ResNet
from torch import nn
from torch.nn import functional as F

from benchmarks.nanogpt import Chars
from tuner import Scale
from tuner.mup import coordinate_check, plan, roles

transformers = pytest.importorskip("transformers")
VOCABULARY, CONTEXT = 13, 8


def tokens(seed):
    """Sequences of which every other token can be told from the one before."""
    drawn = torch.randint(VOCABULARY, (8, CONTEXT), generator=torch.Generator().manual_seed(seed))
    drawn[:, 1::2] = (3 * drawn[:, ::2] + 1) % VOCABULARY
    return drawn


class HuggingFace:
    def loss(self, model, seed):
        asked = tokens(seed)
        return model(input_ids=asked, labels=asked).loss


class GPT2(HuggingFace):
    branches = ("transformer.h.*.attn.c_proj", "transformer.h.*.mlp.c_proj")

    def build(self, scale):
        sizes = {"n_embd": int(scale["width"]), "n_layer": int(scale["depth"]), "n_head": 4, "n_positions": CONTEXT}
        without = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        special = dict.fromkeys(("bos_token_id", "eos_token_id"), 0)
        config = transformers.GPT2Config(vocab_size=VOCABULARY, **sizes, **without, **special)
        return transformers.GPT2LMHeadModel(config)


class Llama(HuggingFace):
    branches = ("model.layers.*.self_attn.o_proj", "model.layers.*.mlp.down_proj")

    def build(self, scale):
        width = int(scale["width"])
        sizes = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": int(scale["depth"])}
        heads = {"num_attention_heads": width // 8, "num_key_value_heads": width // 16}
        config = transformers.LlamaConfig(vocab_size=VOCABULARY, **sizes, **heads)
        return transformers.LlamaForCausalLM(config)


class Nano(Chars):
    branches = ("blocks.*.attention.project", "blocks.*.down")


class Images:
    branches = ()

    def build(self, scale):
        return ResNet(int(scale["width"]))

    def loss(self, model, seed):
        drawn = torch.Generator().manual_seed(seed)
        x, y = torch.randn(16, 3, 6, 6, generator=drawn), torch.randint(4, (16,), generator=drawn)
        return F.cross_entropy(model(x + F.one_hot(y, 4)[:, 1:, None, None]), y)


FAMILIES = {"GPT-2": GPT2, "Llama": Llama, "nanoGPT": Nano, "ResNet": Images}
KNOWN = {
    "GPT-2": {"transformer.wte.weight": "input", "transformer.h.1.attn.c_attn.weight": "hidden"},
    "Llama": {"model.layers.1.self_attn.k_proj.weight": "hidden", "lm_head.weight": "output"},
    "nanoGPT": {"positions.weight": "input", "readout.weight": "output"},
    "ResNet": {"stem.weight": "input", "wider.weight": "hidden"},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_ten_steps_under_a_plan_lower_the_loss(name):
    family = FAMILIES[name]()
    deep = {} if name == "ResNet" else {"depth": 4}
    base, target = Scale({"width": 32, **dict.fromkeys(deep, 2)}), Scale({"width": 64, **deep})
    table = roles(family.build, base, target)
    assert {n: table[n].role for n in KNOWN[name]} == KNOWN[name]
    planned = plan(table, "adamw", "completep", family.branches)
    torch.manual_seed(0)
    model = family.build(target)
    planned.init_(model)
    optimizer = torch.optim.AdamW(planned.param_groups(model, lr=0.01, weight_decay=0.1))
    planned.check(model, optimizer)
    assert isinstance(model, nn.Module)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = family.loss(model, 0)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("parametrization", ["mup", "sp"])
def test_the_check_tells_a_plan_from_the_standard_parametrization(name, parametrization):
    deep = {} if name == "ResNet" else {"depth": 2}
    scales = [Scale({"width": width, **deep}) for width in (32, 64, 128, 256)]
    told = coordinate_check(FAMILIES[name](), parametrization, scales=scales, seeds=range(2))
    assert told.verdict == "fail" if parametrization == "sp" else told.verdict != "fail", told.reasons


def readme(part):
    """The block of code that has this in it."""
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    [code] = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if part in block]
    return code


def test_the_readme_s_plain_gpt_and_resnet_pass_their_check_and_learn(capsys):
    exec(readme("class ResNet"), {})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["Chars", "Images"]
    for (_, verdict, loss), classes in zip(lines, (103, 4), strict=True):
        assert verdict != "fail"
        assert float(loss) < 0.8 * math.log(classes)  # of a guess


def test_the_readme_s_study_of_an_unmodified_gpt2_tunes_the_rate_of_its_embeddings():
    said: dict = {}
    exec(readme("GPT2LMHeadModel"), said)
    study = said["language"]
    assert study.problem.parametrization.belief(study.problem.space, "lr_input", "width", ("width",)) == (0.0, 0.12)
    assert all(math.isfinite(o.loss) for o in study.observations)
    assert set(study.recommend().params) == {"lr", "lr_input"}
