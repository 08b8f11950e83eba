"""What grows is told by shapes alone: a table of stock modules, and refusals that name the tensor."""

import copy

import pytest
import torch
from families import MLP, ResNet, Transformer
from torch import nn

from tuner import Scale
from tuner.errors import BadInput
from tuner.mup import Roles, roles


class Zoo(nn.Module):
    """One of every kind."""

    def __init__(self, n):
        super().__init__()
        self.embedding = nn.Embedding(7, n, padding_idx=0)
        self.linear, self.readout = nn.Linear(n, 4 * n), nn.Linear(4 * n, 3)
        self.few_keys = nn.Linear(n, 8, bias=False)  # queries share a key whose width stands still
        self.depthwise, self.grouped = nn.Conv1d(n, n, 3, groups=n), nn.Conv1d(n, 2 * n, 3, groups=4)
        self.groups_of_four = nn.Conv1d(n, n, 3, groups=n // 4)
        self.transposed = nn.ConvTranspose2d(n, 3, 2)
        self.attention, self.lstm = nn.MultiheadAttention(n, n // 4), nn.LSTM(5, n)
        self.norm, self.rms, self.batch = nn.LayerNorm(n), nn.RMSNorm(n), nn.BatchNorm1d(n)
        self.token, self.temperature = nn.Parameter(torch.randn(1, 1, n)), nn.Parameter(torch.ones(()))
        self.experts = nn.Parameter(torch.randn(6, 4 * n, n))


KNOWN = {
    "embedding.weight": ("input", 1, 2),
    "linear.weight": ("hidden", 2, 2),
    "linear.bias": ("vector", 1, 2),
    "readout.weight": ("output", 2, 1),
    "readout.bias": ("scalar", 1, 1),
    "few_keys.weight": ("output", 2, 1),
    "depthwise.weight": ("input", 1, 2),
    "grouped.weight": ("hidden", 2, 2),
    "groups_of_four.weight": ("input", 1, 2),
    "transposed.weight": ("output", 2, 1),
    "transposed.bias": ("scalar", 1, 1),
    "attention.in_proj_weight": ("hidden", 2, 2),
    "attention.out_proj.weight": ("hidden", 2, 2),
    "lstm.weight_ih_l0": ("input", 1, 2),
    "lstm.weight_hh_l0": ("hidden", 2, 2),
    "lstm.bias_hh_l0": ("vector", 1, 2),
    "norm.weight": ("vector", 1, 2),
    "rms.weight": ("vector", 1, 2),
    "batch.bias": ("vector", 1, 2),
    "token": ("vector", 1, 2),
    "temperature": ("scalar", 1, 1),
    "experts": ("hidden", 2, 2),
}


def zoo(scale):
    return Zoo(int(scale["width"]))


@pytest.fixture(scope="module")
def table():
    return roles(zoo, Scale(width=16), Scale(width=32))


@pytest.mark.parametrize("name", KNOWN)
def test_stock_modules_have_the_roles_of_the_theory(table, name):
    tensor = table[name]
    assert (tensor.role, tensor.wider_in, tensor.wider_out) == KNOWN[name]


def test_fans_are_those_of_torch(table):
    """Torch's own fan in and fan out, where a tensor is a matrix that sums over all it is given."""
    model = zoo(Scale(width=32))
    for name in ("linear.weight", "readout.weight", "grouped.weight", "attention.in_proj_weight"):
        fans = nn.init._calculate_fan_in_and_fan_out(model.get_parameter(name))
        kernel = model.get_parameter(name)[0, 0].numel()  # torch counts it in the fan out too
        assert (table[name].fan_in, table[name].fan_out * kernel) == fans
    assert (table["experts"].fan_in, table["experts"].fan_out) == (32, 128)


def test_a_tensor_starts_as_the_base_s(table):
    assert (table["norm.weight"].mean, table["norm.weight"].std) == (1, 0)
    # torch: uniform within fan_in^-1/2, of deviation (3 fan_in)^-1/2, here of 16 x 64 entries; known to 0.45 / 32
    assert table["linear.weight"].std == pytest.approx((3 * 16) ** -0.5, rel=6 * 0.45 / 32)


def test_depth_repeats_and_width_widens():
    def build(scale):
        return Transformer(int(scale["width"]), int(scale["depth"]))

    table = roles(build, Scale(width=8, depth=2), Scale(width=32, depth=6))
    assert {t.name.split(".")[0] for t in table if t.repeated} == {"blocks"}
    assert table.deeper == 3
    assert table["blocks.5.down.weight"].wider_in == 4
    assert {(h.base, h.target) for h in table.heads} == {(4, 16)}
    assert "blocks.*.query.weight (6)" in str(table)


def test_depth_alone_still_tells_roles():
    def build(scale):
        return (
            Transformer(16, int(scale["depth"]))
            if "width" not in scale
            else Transformer(int(scale["width"]), int(scale["depth"]))
        )

    table = roles(build, Scale(width=16, depth=2), Scale(width=16, depth=4))
    assert (table["blocks.3.up.weight"].role, table["blocks.3.up.weight"].wider_in) == ("hidden", 1)
    assert table["readout.weight"].role == "output"
    assert table["readout.weight"].fan_in == 16
    assert {(head.base, head.target) for head in table.heads} == {(8, 8)}


def test_an_axis_with_which_nothing_grows_is_refused():
    with pytest.raises(
        BadInput, match="nothing in the model grows with batchsize, by 2; let build use it, or name an axis"
    ):
        roles(lambda s: MLP(int(s["width"])), Scale(width=8, batchsize=4), Scale(width=32, batchsize=8))


class Sided(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.into, self.w = nn.Linear(4, width), nn.Parameter(torch.zeros(width, inner))


def test_a_plain_matrix_whose_sides_grow_by_two_ratios_does_not_tell_which_it_takes_in():
    with pytest.raises(BadInput, match=r"w grows from \(16, 32\) to \(64, 64\), by two ratios"):
        roles(lambda s: Sided(int(s["width"]), int(s["ffn"])), Scale(width=16, ffn=32), Scale(width=64, ffn=64))


class Scaled(nn.Module):
    """Attention that says how wide its heads are by what it scales logits with; beside it a norm with such a number."""

    def __init__(self, width):
        super().__init__()
        self.query, self.scaling = nn.Linear(width, width), (width // 2) ** -0.5
        self.norm = nn.LayerNorm(width)
        self.norm.scale = width**-0.5


def test_heads_are_told_by_the_scale_of_logits_where_nothing_says_head_dim():
    table = roles(lambda s: Scaled(int(s["width"])), Scale(width=8), Scale(width=32))
    assert [(head.module, head.base, head.target) for head in table.heads] == [("", 4, 16)]


def test_a_tied_tensor_has_both_its_roles():
    table = roles(lambda scale: Transformer(int(scale["width"]), tied=True), Scale(width=8), Scale(width=16))
    assert table["embedding.weight"].roles == {"embedding.weight": "input", "readout.weight": "output"}
    assert table["readout.weight"] is table["embedding.weight"]


def test_weights_counted_as_scale_tell_the_width():
    """Twice as wide is about four times the weights; the ratio of the width is read off the shapes."""

    def build(scale):
        return MLP(round((scale["params"] / 4) ** 0.5))

    table = roles(build, Scale(params=4 * 16**2), Scale(params=4 * 64**2))
    assert (table["second.weight"].role, table["second.weight"].wider_in) == ("hidden", 4)


def test_planning_takes_no_memory_of_the_target():
    """A layer of 2^40 entries."""
    table = roles(lambda s: nn.Linear(int(s["width"]), int(s["width"])), Scale(width=8), Scale(width=2**20))
    assert table["weight"].wider_in == 2**17


def test_the_table_is_a_value(table):
    assert Roles.of_json(table.as_json()) == table == copy.deepcopy(table) == roles(zoo, table.base, table.target)


def test_places_in_a_list_tell_nothing_of_how_tensors_start():
    """The gains of a norm between two matrices are ones, whatever their names have in common with the matrices'."""

    def build(scale):
        n = int(scale["width"])
        return nn.Sequential(nn.Linear(12, n), nn.LayerNorm(n), nn.Linear(n, 5))

    table = roles(build, Scale(width=64), Scale(width=128))
    assert (table["1.weight"].mean, table["1.weight"].std) == (1, 0)
    assert table["0.weight"].std == pytest.approx((3 * 12) ** -0.5, rel=0.1)
    assert table["2.weight"].std == pytest.approx((3 * 64) ** -0.5, rel=0.15)


def test_a_readout_keeps_its_role_where_depth_moves_its_place():
    def build(scale):
        n = int(scale["width"])
        hidden = [nn.Linear(n, n) for _ in range(int(scale["depth"]))]
        return nn.Sequential(nn.Linear(12, n), *hidden, nn.Linear(n, 5))

    table = roles(build, Scale(width=16, depth=1), Scale(width=32, depth=3))
    assert [t.role for t in table if t.name.endswith("weight")] == ["input", *["hidden"] * 3, "output"]
    assert [t.repeated for t in table if t.name.endswith("weight")] == [False, True, True, True, False]
    assert table["4.weight"].std == pytest.approx((3 * 16) ** -0.5, rel=0.2)


def test_one_output_is_a_readout_and_one_input_an_input():
    table = roles(lambda s: nn.Linear(int(s["width"]), 1), Scale(width=8), Scale(width=16))
    assert (table["weight"].role, table["weight"].wider_in) == ("output", 2)
    table = roles(lambda s: nn.Linear(1, int(s["width"])), Scale(width=8), Scale(width=16))
    assert table["weight"].role == "input"


def test_what_build_keeps_is_real():
    class Keeps:
        data = None

        def build(self, scale):
            if self.data is None:
                self.data = torch.ones(3)
            return nn.Linear(3, int(scale["width"]))

    family = Keeps()
    roles(family.build, Scale(width=8), Scale(width=16))
    assert family.data.device.type == "cpu"


class Plain(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, n))


def test_what_shapes_do_not_tell_is_asked_for():
    scales = Scale(width=8), Scale(width=16)
    with pytest.raises(BadInput, match=r'table does not tell .* given=\{"table": "input"\}'):
        roles(lambda s: Plain(int(s["width"])), *scales)
    told = roles(lambda s: Plain(int(s["width"])), *scales, given={"tab*": "output"})["table"]
    assert (told.role, told.fan_in, told.fan_out, told.wider_in) == ("output", 16, 9, 2)
    with pytest.raises(BadInput, match=r"'table\.weight', which is no tensor"):
        roles(lambda s: Plain(int(s["width"])), *scales, given={"table": "input", "table.weight": "input"})
    with pytest.raises(BadInput, match="'matrix', given for tab"):
        roles(lambda s: Plain(int(s["width"])), *scales, given={"tab*": "matrix"})


def rounded(scale):
    return nn.Linear(int(scale["width"]), 8 * round(scale["width"] / 3 / 8))


@pytest.mark.parametrize(
    ("build", "base", "target", "message"),
    [
        (lambda s: MLP(16), {"width": 8}, {"width": 16}, "the same shapes"),
        (rounded, {"width": 16}, {"width": 40}, "nothing is rounded"),
        (zoo, {"width": 32}, {"width": 16}, "must not be larger at the base"),
        (zoo, {"width": 16}, {"size": 32}, "the same axes"),
        (zoo, {"steps": 16}, {"steps": 32}, "how wide"),
        (lambda s: "model", {"width": 16}, {"width": 32}, "must return a torch.nn.Module, got str"),
        (lambda s: nn.LazyLinear(int(s["width"])), {"width": 16}, {"width": 32}, "no shape before it is called"),
        (lambda s: zoo(s)[9], {"width": 16}, {"width": 32}, "fails: TypeError"),
        (lambda s: nn.ModuleList(nn.Linear(2, int(s["width"])) for _ in range(int(s["width"]))), {"width": 2},
         {"width": 4}, "other parameters at .* the first of them"),
        (lambda s: Transformer(int(s["width"])), {"width": 8, "depth": 1}, {"width": 16, "depth": 2}, "use the depth"),
        (lambda s: nn.Linear(int(s["width"]), 2).apply(lambda m: nn.init.constant_(m.weight, torch.nan)),
         {"width": 8}, {"width": 16}, "weight is not finite"),
    ],
)  # fmt: skip
def test_a_family_that_cannot_be_told_is_refused(build, base, target, message):
    with pytest.raises(BadInput, match=message):
        roles(build, Scale(base), Scale(target))


def test_resnets_are_read_too():
    table = roles(lambda s: ResNet(int(s["width"])), Scale(width=8), Scale(width=24))
    assert [t.role for t in table if t.name.endswith("weight")] == [
        "input", "vector", "hidden", "hidden", "hidden", "output",
    ]  # fmt: skip
