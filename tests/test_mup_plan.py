"""Rules against the mup package, against each other by an exact symmetry, and what a plan refuses."""

import copy
import math
import re
from pathlib import Path

import pytest
import torch
from families import MLP, ResNet, Transformer
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from tuner import Scale
from tuner.errors import BadInput
from tuner.mup import plan, roles

BASE, TARGET = Scale(width=8), Scale(width=32)
FAMILIES = {"MLP": MLP, "Transformer": Transformer, "ResNet": ResNet}
BATCHES = {
    "MLP": lambda: (torch.randn(16, 12), torch.randint(5, (16,))),
    "Transformer": lambda: (torch.randint(11, (4, 6)), torch.randint(11, (4, 6))),
    "ResNet": lambda: (torch.randn(8, 3, 6, 6), torch.randint(4, (8,))),
}
BRANCHES = {"MLP": (), "Transformer": ("blocks.*.project", "blocks.*.down"), "ResNet": ("two",)}
OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def table(family, **more):
    return roles(lambda s: FAMILIES[family](int(s["width"]), **more), BASE, TARGET)


def settings(model, groups):
    """Learning rate, weight decay and epsilon of every tensor, by name."""
    by_id = {id(p): (g["lr"], g["weight_decay"], g.get("eps")) for g in groups for p in g["params"]}
    return {name: by_id[id(p)] for name, p in model.named_parameters()}


def test_the_python_of_the_readme_plans_a_model(capsys):
    readme = Path(__file__).parents[1] / "README.md"
    _, code, *_ = re.findall(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    said: dict = {}
    exec(code, said)
    said["plan"].check(said["model"], said["optimizer"])
    assert str(said["plan"]) in capsys.readouterr().out
    hidden = next(g for g in said["optimizer"].param_groups if g["role"] == "hidden")
    assert (hidden["lr"], hidden["weight_decay"]) == (3e-3 / 16, 0.1 * 16)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_rules_are_those_of_the_mup_package(family, optimizer):
    """Learning rates, weight decays and initial deviations of every tensor; the package starts as torch does."""
    oracle = pytest.importorskip("mup")
    torch.manual_seed(0)
    base, other, model = (FAMILIES[family](w, readout=oracle.MuReadout) for w in (8, 16, 32))
    oracle.set_base_shapes(model, base, delta=other)
    decay = {} if optimizer == "adam" else {"weight_decay": 0.3}
    groups = getattr(oracle, {"sgd": "MuSGD", "adam": "MuAdam", "adamw": "MuAdamW"}[optimizer])(
        model.parameters(), lr=0.1, **decay
    ).param_groups
    ours = FAMILIES[family](32)
    planned = plan(table(family), optimizer)
    mine, theirs = settings(ours, planned.param_groups(ours, lr=0.1, **decay)), settings(model, groups)
    assert {n: s[:2] for n, s in mine.items()} == {n: pytest.approx(s[:2]) for n, s in theirs.items()}
    for tensor, rule in planned:
        entries = model.get_parameter(tensor.name).detach()
        if tensor.std and entries.numel() > 30:
            # a deviation is known to (2 n)^-1/2 for normal entries; the base's tensor has fewer
            error = (2 * entries.numel()) ** -0.5 + (2 * base.get_parameter(tensor.name).numel()) ** -0.5
            assert float(entries.std()) == pytest.approx(tensor.std * rule.std, rel=5 * error)


def trained(model, batch, optimizer, steps=4):
    """Outputs after every step."""
    inputs, targets = batch
    outputs = []
    for _ in range(steps):
        output = model(inputs)
        outputs.append(output.detach())
        optimizer.zero_grad()
        F.cross_entropy(output.flatten(0, -2), targets.flatten()).backward()
        optimizer.step()
    return torch.stack(outputs)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_multiplier_may_be_moved_into_the_weights(family, optimizer):
    """Exact: multiplier A, deviation B and rate C do what 1, A B and A C (SGD: A^2 C) do. So mup, which multiplies
    readouts, and spectral, which does not, train the same function where all widths grow alike."""
    torch.manual_seed(0)
    batch = BATCHES[family]()
    asked = {"lr": 0.05, **({} if optimizer == "adam" else {"weight_decay": 0.1})}
    if optimizer != "sgd":
        asked["eps"] = 1e-4  # matters, and so is scaled too
    told = []
    multiplied = plan(table(family), optimizer, "mup")
    model = FAMILIES[family](32)
    multiplied.init_(model)
    model = model.double()
    for name in ("mup", "spectral"):
        planned, mine = plan(table(family), optimizer, name), copy.deepcopy(model)
        if name == "spectral":
            for _, hooks in ((m, m._forward_pre_hooks) for m in mine.modules()):
                hooks.clear()
            for tensor, rule in multiplied:
                mine.get_parameter(tensor.name).data *= rule.multiplier
        batch = tuple(t.double() if t.is_floating_point() else t for t in batch)
        told.append(trained(mine, batch, OPTIMIZERS[optimizer](planned.param_groups(mine, **asked))))
    torch.testing.assert_close(told[0], told[1])


def test_a_plan_from_the_base_to_itself_changes_nothing():
    for optimizer in ("sgd", "adamw", "lion", "muon"):
        for name in ("sp", "mup", "spectral", "completep"):  # completedp is not for all optimizers
            here = roles(lambda s: Transformer(int(s["width"]), int(s["depth"])), *[Scale(width=8, depth=2)] * 2)
            for _, rule in plan(here, optimizer, name):
                assert {rule.std, rule.multiplier, rule.lr, rule.weight_decay, rule.eps} == {1.0}


@pytest.mark.parametrize(("name", "power"), [("depth-mup", 0.5), ("completep", 1.0)])
def test_depth_follows_completep_s_table(name, power):
    """CompleteP, Table 1, with m_N = 4 and m_L = 3."""
    here = roles(
        lambda s: Transformer(int(s["width"]), int(s["depth"])), Scale(width=8, depth=2), Scale(width=32, depth=6)
    )
    planned = plan(here, "adamw", name, branches=BRANCHES["Transformer"])
    rule = {t.name: its for t, its in planned}
    assert planned.branch == pytest.approx(3**-power)
    for tensor, its in planned:
        assert its.eps == pytest.approx(3**-power / 4 if tensor.repeated else 1 / 4)
    hidden, gain = rule["blocks.0.down.weight"], rule["blocks.0.norm.weight"]
    assert (hidden.lr, hidden.std) == (pytest.approx(3 ** (power - 1) / 4), 0.5)
    assert hidden.lr * hidden.weight_decay == pytest.approx(1)
    assert gain.lr == pytest.approx(3 ** (power - 1))
    assert {rule[n].lr for n in ("embedding.weight", "norm.weight", "readout.weight")} == {1.0}
    assert rule["readout.weight"].multiplier == 1 / 4


def test_the_spectral_condition_holds():
    """|W| and the first step of Muon are (fan_out / fan_in)^1/2, by as much as at the base, whatever the shape."""

    def build(scale):
        return nn.Sequential(*[nn.Linear(int(a * scale["width"]), int(b * scale["width"]), bias=False)
                               for a, b in ((1, 4), (4, 1), (1, 1))])  # fmt: skip

    def norms(scale):
        planned = plan(roles(build, Scale(width=32), scale), "muon", "spectral")
        model, told = build(scale), []
        planned.init_(model)
        groups = planned.param_groups(model, lr=1.0)
        step = torch.optim.Muon([{k: v for k, v in g.items() if k not in ("role", "optimizer")} for g in groups])
        for layer in model:
            before = layer.weight.detach().clone()
            layer.weight.grad = torch.randn_like(before)
            told.append((before, layer.weight))
        step.step()
        return [
            [float(torch.linalg.matrix_norm(w.detach(), 2)) * (w.shape[1] / w.shape[0]) ** 0.5 for w in (a, b - a)]
            for a, b in told
        ]

    torch.manual_seed(0)
    small, large = (torch.tensor(norms(Scale(width=width))) for width in (32, 256))
    # a random matrix's norm is within some 10 % of its limit at width 32; Newton-Schulz in bfloat16 is no closer
    torch.testing.assert_close(large, small, rtol=0.25, atol=0)


def test_rates_by_hand_of_other_optimizers():
    """Grown in one dimension only: SGD's o / i, Muon's (o / i)^1/2 less torch's own."""

    def build(scale):
        return nn.Linear(int(scale["into"]), int(scale["out"]), bias=False)

    def rate(optimizer, name="mup", **grown):
        base, target = Scale(into=8, out=8), Scale({"into": 8, "out": 8, **grown})
        here = roles(build, base, target, given={"weight": "hidden"})
        return plan(here, optimizer, name).rule(here["weight"]).lr

    assert rate("sgd", into=32) == 1 / 4
    assert rate("sgd", out=32) == 4
    assert rate("lion", into=32) == rate("adamw", into=32) == 1 / 4
    assert rate("muon", into=32) == 1 / 2
    assert rate("muon", out=32) == 1  # torch.optim.Muon multiplies by (rows / columns)^1/2 itself
    assert rate("sgd", "sp", into=32, out=32) == 1


def test_decay_exponent_and_multipliers_by_role():
    model, here = MLP(32), table("MLP")
    half = settings(model, plan(here, decay_exponent=0.5).param_groups(model, lr=1.0, weight_decay=0.1))
    assert half["second.weight"][:2] == (0.25, pytest.approx(0.2))
    groups = plan(here).param_groups(
        model, lr=1.0, weight_decay=0.1, lr_multipliers={"input": 5.0}, undecayed=("vector", "scalar")
    )
    told = settings(model, groups)
    assert told["first.weight"][:2] == (5.0, 0.1)
    assert (told["first.bias"][1], told["readout.bias"][1]) == (0, 0)


def planned_transformer(**more):
    def build(scale):
        return Transformer(int(scale["width"]), int(scale["depth"]), **more)

    here = roles(build, Scale(width=8, depth=2), Scale(width=32, depth=4))
    return plan(here, "adamw", "completep", BRANCHES["Transformer"])


@pytest.mark.parametrize("tied", [False, True])
def test_multipliers_reach_the_forward_pass(tied):
    """Against the forward pass written out: branches / 2, readout / 4, logits by sqrt(4) / 16."""
    torch.manual_seed(0)
    planned, model = planned_transformer(tied=tied), Transformer(32, 4, tied=tied)
    planned.init_(model)
    model.readout.weight.data.normal_()
    plain = copy.deepcopy(model)
    for module in plain.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    tokens = BATCHES["Transformer"]()[0]
    x = plain.embedding(tokens) + plain.position.weight
    for block in plain.blocks:
        for half in ("attention", "mlp"):
            before = x
            saved = block.down if half == "attention" else block.project
            kept = saved.weight.data.clone(), saved.bias.data.clone()
            saved.weight.data.zero_(), saved.bias.data.zero_()
            block.scale = 4**0.5 / 16
            x = before + (block(before) - before) / 2
            saved.weight.data, saved.bias.data = kept
    torch.testing.assert_close(model(tokens), F.linear(plain.norm(x), plain.readout.weight) / 4)


def test_attaching_again_is_as_once_and_copies_keep_it():
    torch.manual_seed(0)
    planned, model = planned_transformer(), Transformer(32, 4)
    planned.init_(model)
    tokens = BATCHES["Transformer"]()[0]
    once = model(tokens)
    planned.attach_(model)
    loaded = Transformer(32, 4)
    loaded.load_state_dict(model.state_dict())
    planned.attach_(loaded)
    for other in (model, copy.deepcopy(model), loaded, torch.compile(model, backend="eager")):
        torch.testing.assert_close(other(tokens), once)


def test_wrapped_models_have_the_same_groups(tmp_path):
    planned, model = planned_transformer(), Transformer(32, 4)
    wanted = planned.param_groups(model, lr=1.0)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/met", rank=0, world_size=1)
    try:
        for wrapped in (torch.compile(model, backend="eager"), DistributedDataParallel(model)):
            groups = planned.param_groups(wrapped, lr=1.0)
            assert [[id(p) for p in g["params"]] for g in groups] == [[id(p) for p in g["params"]] for g in wanted]
            planned.attach_(wrapped)
        sharded = torch.distributed.fsdp.fully_shard(
            copy.deepcopy(model), mesh=torch.distributed.init_device_mesh("cpu", (1,))
        )
        assert [len(g["params"]) for g in planned.param_groups(sharded, lr=1.0)] == [len(g["params"]) for g in wanted]
    finally:
        torch.distributed.destroy_process_group()


def test_init_draws_what_the_plan_says():
    torch.manual_seed(0)
    here = table("MLP")
    planned, model = plan(here, zero_readout=True), MLP(32)
    planned.init_(model, init_scale=2.0)
    assert not model.readout.weight.any()
    drawn = model.second.weight.detach()
    assert float(drawn.std()) == pytest.approx(2 * here["second.weight"].std / 2, rel=5 * (2 * drawn.numel()) ** -0.5)


def test_a_plan_prints_all_it_says():
    text = str(planned_transformer(tied=True))
    assert "1 and 0.25" in text  # the embedding, and the readout that it is tied to
    assert "every residual branch" in text
    assert "logits of attention x 0.125" in text


class Tables(nn.Module):
    """A fixed table, gates that start open, and a readout that is a plain parameter."""

    def __init__(self, width):
        super().__init__()
        self.fixed = nn.Parameter(torch.linspace(-1, 1, 6 * width).reshape(6, width), requires_grad=False)
        self.gates = nn.Parameter(torch.cat([torch.ones(width), torch.zeros(width)]))
        self.inner, self.head = nn.Linear(width, width), nn.Parameter(torch.randn(width, 3))

    def forward(self, x):
        return (self.inner(x) * self.gates[: x.shape[-1]]) @ self.head


def test_what_has_a_plan_of_its_own_is_left_as_it_is():
    given = {"fixed": "input", "head": "output"}
    here = roles(lambda s: Tables(int(s["width"])), BASE, TARGET, given=given)
    model = Tables(32)
    kept = model.fixed.clone(), model.gates.clone()
    with pytest.raises(BadInput, match=r"reads out and cannot be multiplied .* by 0\.25 there"):
        plan(here).init_(model)
    plan(here, own=("",)).init_(model)
    assert torch.equal(model.fixed, kept[0])
    assert torch.equal(model.gates, kept[1])
    assert float(model.head.detach().std()) == pytest.approx(here["head"].std, rel=5 * (2 * 96) ** -0.5)


def test_another_plan_leaves_nothing_of_the_first():
    model, here = MLP(32), table("MLP")
    plan(here).attach_(model)
    assert sum(len(m._forward_pre_hooks) for m in model.modules()) == 1
    plan(here, parametrization="spectral").attach_(model)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_readout_called_by_keyword_is_multiplied_too():
    model, x = MLP(32), torch.randn(3, 32)
    plain = model.readout(x)
    plan(table("MLP")).attach_(model)
    bias = model.readout.bias
    for said in (model.readout(x), model.readout(input=x)):
        torch.testing.assert_close(said - bias, (plain - bias) / 4)


class Inner(nn.Module):
    """A module that is called `module`, and torch's own attention as a branch."""

    def __init__(self, width):
        super().__init__()
        self.module, self.attention = nn.Linear(width, width), nn.MultiheadAttention(width, width // 4)

    def forward(self, x):
        return x + self.attention(self.module(x), x, x)[0]


def test_branches_of_torch_s_attention_and_names_like_wrappers():
    def build(scale):
        return nn.Sequential(*[Inner(int(scale["width"])) for _ in range(int(scale["depth"]))])

    here = roles(build, Scale(width=8, depth=1), Scale(width=16, depth=2))
    model, x = build(here.target), torch.randn(3, 1, 16)
    before = model(x)
    with pytest.raises(BadInput, match=r"called by nothing, .* name '0\.attention'"):
        plan(here, "adamw", "completep", ("*.attention.out_proj",)).attach_(model)
    torch.testing.assert_close(model(x), before)
    plain = copy.deepcopy(model[0])
    plan(here, "adamw", "completep", ("*.attention",)).attach_(model)
    torch.testing.assert_close(model[0](x), x + (plain(x) - x) / 2)


class Inline(nn.Module):
    """Attention that keeps its scale to itself."""

    def __init__(self, width):
        super().__init__()
        self.head_dim = width // 2
        self.query = nn.Linear(width, width)


def over_batch(optimizer, batch_size, tokens=1e6, parametrization="completedp"):
    """The plan of an MLP 4 times as wide, with more data at once or in all."""
    base, target = Scale(width=8, batch_size=8, tokens=1e6), Scale(width=32, batch_size=batch_size, tokens=tokens)
    return plan(roles(lambda s: MLP(int(s["width"])), base, target), optimizer, parametrization, branches=())


def test_batch_and_tokens_move_every_group_by_completedp():
    """By hand, at 16x the batch and 4x the tokens: Mlodozeniec et al. 2025; SGD at 16x the batch: Goyal et al. 2017."""
    asked = {"lr": 1.0, "weight_decay": 1.0, "eps": 1e-8}
    moved = over_batch("adamw", 128, 4e6).param_groups(MLP(32), **asked, betas=(0.9, 0.99))
    still = over_batch("adamw", 128, 4e6, "completep").param_groups(MLP(32), **asked)
    for one, other in zip(moved, still, strict=True):
        factors = [one[name] / other[name] for name in ("lr", "weight_decay", "eps")]
        assert factors == pytest.approx([2, 2, 1 / 2])
        assert one["betas"] == pytest.approx((0.6, 0.96))
        assert "betas" not in other
    for one, other in zip(
        over_batch("sgd", 128).param_groups(MLP(32), lr=1.0),
        over_batch("sgd", 8).param_groups(MLP(32), lr=1.0),
        strict=True,
    ):
        assert one["lr"] == pytest.approx(16 * other["lr"])
        assert one["weight_decay"] == other["weight_decay"]


def test_what_a_plan_cannot_do_it_refuses_before_anything_is_touched():
    here, model = table("MLP"), MLP(32)
    before = copy.deepcopy(model.state_dict())
    for message, call in {
        "'adamax' is not known": lambda: plan(here, "adamax"),
        "'mupp' is not known": lambda: plan(here, parametrization="mupp"),
        "decay_exponent must be between": lambda: plan(here, decay_exponent=2),
        "multiplies every residual branch by 0.5": lambda: plan(planned_transformer().roles, "adamw", "completep"),
        "is tied to readout.weight; untie": lambda: plan(planned_transformer(tied=True).roles, "adamw", "spectral"),
        "Adam divides a weight decay": lambda: plan(here, "adam").param_groups(model, lr=1.0, weight_decay=0.1),
        "multiplies 1 - beta by 16; pass Adam's betas": lambda: over_batch("adamw", 128).param_groups(model, lr=1.0),
        "takes a beta of 0.9 to -0.6, where the rule ends": lambda: over_batch("adamw", 128).param_groups(
            model, lr=1.0, betas=(0.9, 0.99)
        ),
        "lr must be a finite number, at least zero, got nan": lambda: plan(here).param_groups(model, lr=math.nan),
        "weight_decay must be a finite number": lambda: plan(here).param_groups(model, lr=1.0, weight_decay=-1.0),
        "'input'.* above zero, got -2": lambda: plan(here).param_groups(model, 1.0, lr_multipliers={"input": -2}),
        "betas must be two numbers": lambda: plan(here).param_groups(model, 1.0, betas=(0.9,)),
        "below 1, got .1.5, 0.9.": lambda: plan(here).param_groups(model, 1.0, betas=(1.5, 0.9)),
        "betas are Adam's, and this plan is for lion": lambda: plan(here, "lion").param_groups(
            model, 1.0, betas=(0.9, 0.9)
        ),
        "init_scale must be a finite number above zero": lambda: plan(here).init_(model, init_scale=math.nan),
        "own names 'readot', which is no module; did you mean 'readout'": lambda: plan(here, own=("readot",)),
        "own is a sequence of names, got 'readout'": lambda: plan(here, own="readout"),
        "branches name blocks.0.down and blocks.0 around it": lambda: plan(
            planned_transformer().roles, "adamw", "completep", ("blocks.0", "blocks.*.down")
        ),
        "completedp is known for sgd, adam, adamw, got lion": lambda: over_batch("lion", 128),
        "'readouts' is no role": lambda: plan(here).param_groups(model, lr=1.0, lr_multipliers={"readouts": 2.0}),
        "first.weight is .* in the model": lambda: plan(here).init_(MLP(16)),
        "the plan and not in the model": lambda: plan(here).init_(MLP(32, bias=False)),
        "branches names 'nothing', which is no module": lambda: plan(
            planned_transformer().roles, "adamw", "completep", ("blocks.*.down", "nothing")
        ),
        "heads 4 wide at the base and 16 at the target": lambda: plan(
            roles(lambda s: Inline(int(s["width"])), BASE, TARGET)
        ).init_(Inline(32)),
    }.items():
        with pytest.raises(BadInput, match=message):
            call()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in model.modules())
    attends = roles(lambda s: Inline(int(s["width"])), BASE, TARGET)
    plan(attends, own=("",)).init_(Inline(32))  # as the refusal says


def test_groups_that_miss_or_repeat_a_tensor_are_refused():
    planned, model = plan(table("MLP")), MLP(32)
    planned.check(model, torch.optim.AdamW(planned.param_groups(model, lr=1.0)))
    some = [p for name, p in model.named_parameters() if name != "third.weight"]
    with pytest.raises(BadInput, match=r"third\.weight is 0 times"):
        planned.check(model, torch.optim.SGD(some))
    model.third.weight.requires_grad_(False)
    planned.check(model, torch.optim.SGD(some))
