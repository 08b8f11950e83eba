"""The coordinate check passes what is right, names what is wrong, and leaves the model as it found it."""

import copy
import json
import math

import pytest
import torch
from click.testing import CliRunner
from families import MLP, Transformer
from scipy import stats
from torch import nn
from torch.nn import functional as F

from tuner import Scale
from tuner.cli import main
from tuner.errors import BadInput
from tuner.mup import coordinate_check, plan, roles
from tuner.mup.check import _spectral, family_named
from tuner.mup.probe import effects, look, size
from tuner.mup.slopes import LEVEL, Measured, _fitted

SCALES = [Scale(width=width) for width in (64, 128, 256, 512)]


class Digits:
    """Three layers on points that a random teacher has named."""

    scales = SCALES

    def build(self, scale):
        return MLP(int(scale["width"]))

    def loss(self, model, seed):
        drawn = torch.Generator().manual_seed(seed)
        x = torch.randn(16, 12, generator=drawn)
        return F.cross_entropy(model(x), (x[:, :5] - x[:, 5:10]).argmax(-1))


class Planned(Digits):
    """Right but for one change of the groups."""

    def optimizer(self, model, scale, lr):
        planned = plan(roles(self.build, SCALES[0], scale))
        planned.init_(model)
        groups = planned.param_groups(model, lr, weight_decay=0.1)
        for group in groups:
            self.change(group, scale["width"] / SCALES[0]["width"])
        return torch.optim.AdamW(groups)

    def change(self, group, wider):
        pass


class Standard(Digits):
    def optimizer(self, model, scale, lr):
        return torch.optim.AdamW(model.parameters(), lr=lr)


class SlowBiases(Planned):
    def change(self, group, wider):
        if group["role"] == "vector":
            group["lr"] /= wider
            group["weight_decay"] *= wider


class OneDecay(Planned):
    def change(self, group, wider):
        group["weight_decay"] = 0.1


class Coupled(Digits):
    def optimizer(self, model, scale, lr):
        planned = plan(roles(self.build, SCALES[0], scale), "adam")
        planned.init_(model)
        groups = planned.param_groups(model, lr)
        return torch.optim.Adam([{**group, "weight_decay": 0.01} for group in groups])


@pytest.mark.parametrize(("parametrization", "optimizer"), [("mup", "adamw"), ("mup", "sgd"), ("spectral", "muon")])
def test_plans_pass(parametrization, optimizer):
    told = coordinate_check(Digits(), parametrization, optimizer)
    assert (told.verdict, told.as_json()["verdict"]) == ("pass", "pass"), told.reasons


def test_a_right_parametrization_of_one_s_own_passes():
    assert coordinate_check(Planned()).verdict == "pass"


@pytest.mark.parametrize(
    ("family", "name", "quantity", "slope"),
    [
        (Standard, "second", "change", 1),
        (SlowBiases, "first.bias", "effect", -1),
        (OneDecay, "second.weight", "decay", -1),
        (Coupled, "first.weight", "decay", 1),
    ],
)
def test_what_is_wrong_is_named_with_its_power(family, name, quantity, slope):
    told = coordinate_check(family())
    assert told.verdict == "fail"
    assert [s.quantity for s in told.slopes if s.name == name and s.verdict == "fail"].count(quantity) == 1
    found = next(s for s in told.slopes if (s.name, s.quantity) == (name, quantity))
    assert found.slope == pytest.approx(slope, abs=0.25)
    assert told.worst.name.startswith(name.partition(".")[0])  # no earlier layer is blamed


def test_training_that_diverges_when_wide_fails():
    class Wild(Standard):
        def loss(self, model, seed):
            loss = super().loss(model, seed)
            return loss / 0 if model.readout.in_features == 512 and loss.grad_fn and seed < 1000 else loss

    told = coordinate_check(Wild())
    assert told.verdict == "fail"
    assert "diverges at width 512" in told.reasons[0]
    json.dumps(told.as_json(), allow_nan=False)


def test_slopes_are_those_of_scipy():
    torch.manual_seed(0)
    found = [
        Measured("x", "size", scale, math.exp(0.3 * math.log(scale["width"]) + 0.1 * float(torch.randn(()))))
        for scale in SCALES
        for _ in range(3)
    ]
    slope, low, high = _fitted(found, ["width"])["width"]
    line = stats.linregress([math.log(m.scale["width"]) for m in found], [math.log(m.value) for m in found])
    reach = line.stderr * stats.t.ppf(0.5 + LEVEL / 2, len(found) - 2)
    assert (slope, low, high) == pytest.approx((line.slope, line.slope - reach, line.slope + reach))


def test_depth_and_width_have_slopes_of_their_own():
    class Deep(Digits):
        scales = [Scale(width=w, depth=d) for w in (64, 128, 256) for d in (2, 4)]  # noqa: RUF012

        def build(self, scale):
            return Transformer(int(scale["width"]), int(scale["depth"]))

        def loss(self, model, seed):
            tokens = torch.randint(11, (8, 7), generator=torch.Generator().manual_seed(seed))
            tokens[:, 1::2] = (3 * tokens[:, :-1:2] + 1) % 11  # every other one can be told
            return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    told = coordinate_check(Deep(), "completep", branches=("blocks.*.project", "blocks.*.down"), seeds=range(2))
    along = {axis: {s.name for s in told.slopes if s.axis == axis} for axis in ("width", "depth")}
    assert "blocks.*.down.weight" in along["width"]
    assert along["depth"] >= {"blocks.*", "norm", "readout"}
    assert not any(".*." in name for name in along["depth"])
    assert told.verdict != "fail", told.reasons


def test_effects_against_the_difference_by_hand():
    torch.manual_seed(0)
    model, x = MLP(8), torch.randn(4, 12)
    initial = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    trained = copy.deepcopy(model.state_dict())
    told = {name: value for name, value, _ in effects(model, look(model, lambda: model(x).sum()), initial)}
    h = torch.tanh(F.linear(x, trained["first.weight"], trained["first.bias"]))
    moved = F.linear(h, trained["second.weight"] - initial["second.weight"])
    assert told["second.weight"] == pytest.approx(size(moved))
    assert told["third.bias"] == pytest.approx(size(trained["third.bias"] - initial["third.bias"]))
    assert all(torch.equal(trained[name], value) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Root(nn.Module):
    """A readout that is a parameter of the model itself."""

    def __init__(self, width):
        super().__init__()
        self.first, self.second = nn.Linear(12, width), nn.Linear(width, width)
        self.head = nn.Parameter(torch.randn(width, 5) / width)

    def forward(self, x):
        return torch.relu(self.second(torch.relu(self.first(x)))) @ self.head


class Rooted(Digits):
    def build(self, scale):
        return Root(int(scale["width"]))

    def optimizer(self, model, scale, lr):
        wider = scale["width"] / 64
        rates = {"first": 1.0, "second": 1 / wider, "head": 1.0}  # the last by a power too large
        groups = [{"params": [p], "lr": lr * rates[n.split(".")[0]]} for n, p in model.named_parameters()]
        return torch.optim.AdamW(groups, weight_decay=0.0)


def test_tensors_of_the_model_itself_are_judged():
    told = coordinate_check(Rooted(), lr=0.01)
    found = next(s for s in told.slopes if (s.name, s.quantity) == ("head", "effect through others"))
    assert (found.verdict, found.slope) == ("fail", pytest.approx(1.0, abs=0.3))


def test_tensors_that_nothing_sees_are_said():
    class Apart(Digits):
        def build(self, scale):
            model = MLP(int(scale["width"]))
            model.extra = nn.Linear(int(scale["width"]), 1)
            return model

        def loss(self, model, seed):
            x = torch.randn(16, 12, generator=torch.Generator().manual_seed(seed))
            h = model.third(torch.tanh(model.second(torch.tanh(model.first(x)))))
            return F.cross_entropy(model.readout(h + model.extra.weight), x[:, :5].argmax(-1))

    told = coordinate_check(Apart())
    assert told.verdict != "pass"
    assert "extra.weight" in told.reasons[-1]


class Attends(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.fused = fused
        self.inner = nn.Linear(6, 6)

    def forward(self, x):
        q = self.inner(x)
        if self.fused:
            return F.scaled_dot_product_attention(q, x, x, scale=0.5, is_causal=True)
        return (0.5 * q @ x.mT + torch.full((5, 5), -torch.inf).triu(1)).softmax(-1) @ x


def test_logits_are_seen_where_attention_is_taken():
    torch.manual_seed(0)
    x, fused = torch.randn(2, 5, 6), Attends(fused=True)
    plain = Attends(fused=False)
    plain.load_state_dict(fused.state_dict())
    seen = [look(nn.Sequential(m), lambda m=m: m(x).sum()).activations["0.logits"] for m in (fused, plain)]
    wanted = 0.5 * fused.inner(x) @ x.mT
    below = torch.ones(5, 5).tril().bool()
    torch.testing.assert_close(seen[0], wanted)
    torch.testing.assert_close(seen[1][:, below], wanted[:, below])


def test_torch_s_own_attention_is_seen():
    torch.manual_seed(0)
    attention, x = nn.MultiheadAttention(8, 2), torch.randn(5, 3, 8)
    seen = look(nn.Sequential(attention), lambda: attention(x, x, x)[0].sum())
    q, k, _ = (part.unflatten(-1, (2, 4)) for part in F.linear(x, attention.in_proj_weight).chunk(3, -1))
    wanted = torch.einsum("ibhd,jbhd->bhij", q, k) / 2
    torch.testing.assert_close(seen.activations["0.logits"], wanted)
    assert seen.heads["0.logits"] == 4


def test_products_that_are_no_logits_do_not_count():
    x, w = torch.randn(2, 5, 6), torch.randn(6, 12)

    def attend(product):
        q, k = (x @ w).chunk(2, -1)
        return product(q, k).softmax(-1).sum()

    for product, summed in (
        (lambda q, k: torch.einsum("bid,bjd->bij", q, k), 6),
        (lambda q, k: q @ k.mT, 6),
        (torch.cdist, 0),
    ):
        assert look(nn.Identity(), lambda p=product: attend(p)).heads["logits"] == summed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scales": [Scale(width=w, depth=w) for w in (2, 4, 8)]}, "vary together"),
        ({"loss": lambda model, seed: 1 / 0}, r"loss\(model, .* fails: ZeroDivisionError"),
        ({"optimizer": lambda model, scale, lr: 1 / 0}, r"optimizer\(model, .* fails: ZeroDivisionError"),
        ({"scales": SCALES[:2]}, "needs three different scales, got 2"),
        ({"loss": lambda model, seed: torch.ones(3)}, "must give one number"),
        ({"loss": lambda model, seed: model.first.weight.sum() * torch.nan}, "no learning rate|before training"),
        ({"build": lambda scale: MLP(16)}, "the same shapes"),
    ],
)
def test_a_family_that_cannot_be_checked_is_refused(change, message):
    family = Digits()
    for name, value in change.items():
        setattr(family, name, value)
    with pytest.raises(BadInput, match=message):
        coordinate_check(family, lr=0.01)


def test_the_command_answers_in_json_and_by_its_status(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("from test_mup_check import Digits, Standard\nnothing = 3\n")
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "check.html"
    for name, status in (("Digits", 0), ("Standard", 1)):
        done = CliRunner().invoke(main, ["check", f"mine:{name}", "--json", "-o", str(page)])
        told = json.loads(done.stdout.splitlines()[-1])
        assert (done.exit_code, told["verdict"]) == (status, ["pass", "fail"][status]), done.stderr
        assert set(told["worst"]) == {"name", "quantity", "slope", "interval"}
        assert f"Coordinate check of mine:{name}: {told['verdict']}" in page.read_text()
    with pytest.raises(BadInput, match="has no build"):
        family_named("mine:nothing")


CLAIMS = """
from test_mup_check import Planned, Standard
import tuner

class Trains:
    parametrization = "mup-adamw"
    space = tuner.SearchSpace({"lr": tuner.Float(1e-3, 1e-1, log=True)})
    def cost(self, params, scale):
        return scale["width"]
    def __call__(self, params, scale, seed):
        return params["lr"] / scale["width"]

class Honest(Trains, Planned):
    pass

class Liar(Trains, Standard):
    pass

class Broken(Trains, Standard):
    def loss(self, model, seed):
        return 1 / 0
"""
STUDY = """
[study]
name = "{name}"
[objective]
call = "claims_{name}:{name}"
[scale]
target = {{ width = 512 }}
proxies = {{ width = [64, 128] }}
[budget]
target_runs = 0.5
"""


@pytest.mark.parametrize(("name", "status"), [("Honest", 0), ("Liar", 1), ("Broken", 2)])
def test_an_objective_is_held_to_its_parametrization_before_the_first_trial(tmp_path, name, status):
    (tmp_path / f"claims_{name}.py").write_text(CLAIMS)
    study = tmp_path / "study.toml"
    study.write_text(STUDY.format(name=name))
    asked = ["run", str(study), "--workers", "0", "--no-verify", "--json"]
    first = CliRunner().invoke(main, asked)
    assert first.exit_code == status, first.stderr
    said = ["coordinate check: pass", "stopped before the first trial", "fails: ZeroDivisionError"][status]
    assert said in first.stderr
    assert ("--skip-check" in first.stderr) == bool(status)
    assert bool(first.stdout) == (status == 0)
    again = CliRunner().invoke(main, [*asked, "--skip-check"])
    assert again.exit_code == 0
    assert "coordinate check: " not in again.stderr  # not made again; the verdict may name the one before
    assert json.loads(again.stdout)["trials"] >= 4


class Forgotten(Digits):
    def optimizer(self, model, scale, lr):
        return torch.optim.AdamW(model.first.parameters(), lr=lr)


class NoOptimizer(Digits):
    def optimizer(self, model, scale, lr):
        return None


class Detached(Digits):
    def loss(self, model, seed):
        return super().loss(model, seed).detach()


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        (Forgotten(), {}, r"second\.weight is 0 times in the optimizer's groups; put it in one, or freeze it"),
        (NoOptimizer(), {}, "must give an optimizer, got NoneType"),
        (Detached(), {}, "a training step fails: .*; correct the family"),
        (Digits(), {"scales": SCALES[:1] * 3}, "needs three different scales, got 1"),
        (Digits(), {"seeds": ()}, "needs a seed, a step and a learning rate above zero, got 0 seeds"),
        (Digits(), {"steps": 0}, "got 4 seeds, 0 steps"),
        (Digits(), {"lr": math.nan}, "lr=nan; correct"),
        (Digits(), {"lr": -0.1}, r"lr=-0\.1; correct"),
        (
            Digits(),
            {"scales": [Scale(width=64, batch_size=b) for b in (8, 16, 32)]},
            "cannot see batch_size, and the scales differ in it",
        ),
    ],
)
def test_a_check_that_would_mean_nothing_is_refused_in_one_line(family, options, message):
    with pytest.raises(BadInput, match=message) as refused:
        coordinate_check(family, **options)
    assert "\n" not in str(refused.value)


def test_the_spectral_norm_of_a_matrix_with_a_gap_is_its_largest_singular_value():
    torch.manual_seed(0)
    left, right = torch.linalg.qr(torch.randn(30, 5))[0], torch.linalg.qr(torch.randn(20, 5))[0]
    matrix = left @ torch.diag(torch.tensor([3.0, 1.0, 0.5, 0.2, 0.1])) @ right.mT
    assert _spectral(matrix) == pytest.approx(3.0, rel=1e-4)


def test_spectral_norms_are_shown_and_not_judged():
    told = coordinate_check(Digits(), seeds=range(2))
    shown = {(s.name, s.quantity): s for s in told.slopes if s.quantity.startswith("norm")}
    hidden = shown["second.weight", "norm"]
    assert abs(hidden.slope) < 0.25  # std n^-1/2 times 2 n^1/2
    assert hidden.verdict == "pass"
    assert not any("norm" in reason for reason in told.reasons)
