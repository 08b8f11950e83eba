"""What is exported does elsewhere what the plan does here."""

import copy
import json

import pytest
import torch
from families import MLP, Transformer

from tuner import Scale
from tuner.errors import BadInput
from tuner.mup import export, plan, roles

BRANCHES = ("blocks.*.project", "blocks.*.down")
ASKED = {"lr": 0.02, "weight_decay": 0.1, "eps": 1e-9}


def deep(optimizer="adamw", tied=False):
    def build(scale):
        return Transformer(int(scale["width"]), int(scale["depth"]), tied=tied)

    table = roles(build, Scale(width=8, depth=2), Scale(width=32, depth=4))
    return plan(table, optimizer, "completep", BRANCHES), build(table.target)


def wide(parametrization="mup"):
    table = roles(lambda s: MLP(int(s["width"])), Scale(width=8), Scale(width=32))
    return plan(table, "adamw", parametrization)


def by_name(model, groups):
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        names[id(p)]: {key: value for key, value in group.items() if key != "params"}
        for group in groups
        for p in group["params"]
    }


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
@pytest.mark.parametrize("tied", [False, True])
def test_python_groups_draws_and_multiplies_as_the_plan(optimizer, tied):
    planned, model = deep(optimizer, tied)
    said: dict = {}
    exec(export(planned, "python", **ASKED), said)
    assert by_name(model, said["param_groups"](model)) == by_name(model, planned.param_groups(model, **ASKED))
    assert "blocks.0 are q.k times 0.125, not 0.25" in export(planned, "python", **ASKED)
    torch.manual_seed(0)
    said["initialise"](model)
    for tensor, _ in planned:
        entries = model.get_parameter(tensor.name).detach()
        if tensor.std:  # a deviation is known to (2 n)^-1/2
            assert float(entries.std()) == pytest.approx(planned.std(tensor), rel=5 * (2 * entries.numel()) ** -0.5)
        else:
            assert (entries == tensor.mean).all()
    theirs = copy.deepcopy(model)
    planned.attach_(model)
    said["multiply"](theirs)
    for block in theirs.blocks:
        block.scale = 4**0.5 / 16
    tokens = torch.randint(11, (3, 6))
    torch.testing.assert_close(theirs(tokens), model(tokens))


def test_json_has_every_number():
    planned, model = deep(tied=True)
    told = json.loads(export(planned, "json", **ASKED))
    settings = by_name(model, planned.param_groups(model, **ASKED))
    for tensor in told["tensors"]:
        assert {key: tensor[key] for key in settings[tensor["name"]]} == settings[tensor["name"]]
    (embedding,) = [t for t in told["tensors"] if t["name"] == "embedding.weight"]
    assert embedding["multipliers"] == {"embedding.weight": 1.0, "readout.weight": 0.25}
    assert (told["branch"], told["heads"][0]["logits"]) == (0.5, 4**0.5 / 16)


def test_base_shapes_are_read_by_the_mup_package(tmp_path):
    oracle = pytest.importorskip("mup")
    planned, file = wide(), tmp_path / "base.bsh"
    file.write_text(export(planned, "mup", **ASKED))
    model, ours = MLP(32, readout=oracle.MuReadout), MLP(32)
    oracle.set_base_shapes(model, str(file))
    groups = oracle.MuAdamW(model.parameters(), lr=0.02, weight_decay=0.1).param_groups
    told, mine = by_name(model, groups), by_name(ours, planned.param_groups(ours, **ASKED))
    for name, settings in mine.items():
        for key in ("lr", "weight_decay"):
            assert settings[key] == pytest.approx(told[name][key])


def test_granite_computes_what_a_planned_llama_does():
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 13, "num_attention_heads": 4, "num_key_value_heads": 2, "attention_dropout": 0.0}

    def shape(scale):
        width = int(scale["width"])
        return {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": int(scale["depth"])}

    def build(scale):
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **shape(scale)))

    table = roles(build, Scale(width=32, depth=2), Scale(width=128, depth=4))
    planned = plan(table, "adamw", "completep", ("*.o_proj", "*.down_proj"))
    torch.manual_seed(0)
    llama = build(table.target)
    planned.init_(llama)
    settings = json.loads(export(planned, "granite", **ASKED))
    assert settings == {
        "embedding_multiplier": 1.0, "residual_multiplier": 0.5, "logits_scaling": 4.0,
        "attention_multiplier": 8**0.5 / 32,
    }  # fmt: skip
    granite = transformers.GraniteForCausalLM(
        transformers.GraniteConfig(**sizes, **shape(table.target), **settings, tie_word_embeddings=False)
    )
    granite.load_state_dict(llama.state_dict())
    tokens = torch.randint(13, (2, 7))
    torch.testing.assert_close(granite(tokens).logits, llama(tokens).logits)


def test_megatron_s_options_say_what_they_leave_out():
    def build(scale):
        return Transformer(int(scale["width"]))

    planned = plan(roles(build, Scale(width=8), Scale(width=32)))
    lines = export(planned, "megatron", **ASKED).splitlines()
    assert lines[:3] == ["--use-mup", "--mup-base-hidden-size 8", "--mup-base-head-dim 4"]
    assert "weight decay stays 0.1 there, this plan has 0.4" in lines[-1]


def test_what_a_format_cannot_say_is_refused():
    for message, call in {
        "no format is named 'yaml'": lambda: export(wide(), "yaml", lr=1.0),
        "mup knows muP over width, got spectral": lambda: export(wide("spectral"), "mup", lr=1.0),
        "branches x 0.5": lambda: export(deep()[0], "mup", lr=1.0),
        "Megatron-LM's muP is Adam's over one width": lambda: export(deep()[0], "megatron", lr=1.0),
    }.items():
        with pytest.raises(BadInput, match=message):
            call()


class Odd(torch.nn.Module):
    """A parameter with a plan of its own, a padding row, a frozen matrix, a branch that gives a tuple."""

    def __init__(self, width):
        super().__init__()
        self.rates = torch.nn.Parameter(torch.log(torch.arange(1.0, width + 1)))
        self.words = torch.nn.Embedding(7, width, padding_idx=0)
        self.still = torch.nn.Linear(width, width).requires_grad_(False)
        self.attention = torch.nn.MultiheadAttention(width, width // 4, batch_first=True)
        self.readout = torch.nn.Linear(width, 3, bias=False)

    def forward(self, tokens):
        x = self.words(tokens) * self.rates
        x = x + self.attention(x, x, x)[0]
        return self.readout(input=self.still(x))


def test_python_leaves_alone_what_the_plan_leaves_alone():
    def build(scale):
        return Odd(int(scale["width"]))

    table = roles(build, Scale(width=16), Scale(width=64))
    planned = plan(table, "adamw", "completep", ("attention",))
    torch.manual_seed(0)
    model = build(table.target)
    kept = {name: model.get_parameter(name).detach().clone() for name in ("rates", "still.weight")}
    said: dict = {}
    exec(export(planned, "python", **ASKED, betas=(0.9, 0.95), lr_multipliers={"input": 3.0}), said)
    said["initialise"](model)
    assert all(torch.equal(model.get_parameter(name), value) for name, value in kept.items())
    assert (model.words.weight[0] == 0).all()
    groups = by_name(model, said["param_groups"](model))
    assert groups == by_name(
        model, planned.param_groups(model, **ASKED, betas=(0.9, 0.95), lr_multipliers={"input": 3.0})
    )
    assert "still.weight" not in groups
    theirs = copy.deepcopy(model)
    planned.attach_(model)
    said["multiply"](theirs)
    tokens = torch.randint(7, (2, 5))
    torch.testing.assert_close(theirs(tokens), model(tokens))
    starts = {t["name"]: t["starts"] for t in json.loads(export(planned, "json", **ASKED))["tensors"]}
    assert starts["rates"] is None


def test_granite_keeps_the_attention_of_heads_that_do_not_grow():
    transformers = pytest.importorskip("transformers")

    def sizes(scale):
        width = int(scale["width"])
        heads = {"num_attention_heads": width // 8, "num_key_value_heads": width // 8}
        return {"vocab_size": 13, "hidden_size": width, "intermediate_size": width, "num_hidden_layers": 1, **heads}

    def build(scale):
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes(scale)))

    table = roles(build, Scale(width=16), Scale(width=32))
    planned = plan(table)
    torch.manual_seed(0)
    llama = build(table.target)
    planned.init_(llama)
    settings = json.loads(export(planned, "granite", **ASKED))
    assert settings["attention_multiplier"] == 8**-0.5
    granite = transformers.GraniteForCausalLM(
        transformers.GraniteConfig(**sizes(table.target), **settings, tie_word_embeddings=False)
    )
    granite.load_state_dict(llama.state_dict())
    tokens = torch.randint(13, (2, 7))
    torch.testing.assert_close(granite(tokens).logits, llama(tokens).logits)
