"""Claims about the callbacks of training loops, both of them: against a loop written out, counts in closed form."""

import copy
import importlib
import math
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from tuner import Scale, create_study
from tuner.errors import BadInput
from tuner.integrations.training import flops
from tuner.mup import plan, roles

lightning = pytest.importorskip("lightning.pytorch", reason="no lightning: install the extra lightning")
transformers = pytest.importorskip("transformers", reason="no transformers: install the extra transformers")
pytest.importorskip("accelerate", reason="no accelerate: install the extra transformers")

from benchmarks.examples import lightning_fit, trainer  # noqa: E402
from tuner.integrations.lightning import TrialCallback as OfLightning  # noqa: E402
from tuner.integrations.transformers import TrialCallback as OfTransformers  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*'pin_memory' argument is set as true but no accelerator is found"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),  # Lightning, of a loader for a few numbers
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),  # where a test wants none
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*is deprecated"),  # Lightning, of torch
]

INPUTS, WIDTH, CLASSES, BATCH = 6, 16, 3, 8
EXAMPLE = 6 * (INPUTS * WIDTH + WIDTH**2 + WIDTH * CLASSES) - 2 * INPUTS * WIDTH  # the inputs have no gradient


class Net(nn.Module):
    """As the Trainer of transformers wants one: it says its loss."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.one, self.two, self.out = nn.Linear(INPUTS, width), nn.Linear(width, width), nn.Linear(width, CLASSES)

    def forward(self, x, labels):
        logits = self.out(F.relu(self.two(F.relu(self.one(x)))))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Module(lightning.LightningModule):
    def __init__(self, net, optimizer, decay, steps):
        super().__init__()
        self.net, self.optimizer, self.decay, self.steps = net, optimizer, decay, steps

    def training_step(self, batch, index):
        return self.net(**batch)["loss"]

    def validation_step(self, batch, index):
        self.log("val_loss", self.net(**batch)["loss"], batch_size=len(batch["x"]))

    def configure_optimizers(self):
        if not self.decay:
            return self.optimizer
        linear = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1 - step / self.steps)
        return {"optimizer": self.optimizer, "lr_scheduler": {"scheduler": linear, "interval": "step"}}


class InOrder(IterableDataset):
    """Lest the Trainer shuffles."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


class Transformers:
    callback = OfTransformers
    metric = "eval_loss"

    def __init__(self, folder):
        self.folder = folder

    def fit(
        self, watch, net, rows, steps, optimizer=None, decay=False, held_out=None, accumulate=1, also=(), **settings
    ):
        args = transformers.TrainingArguments(
            str(self.folder),
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            gradient_accumulation_steps=accumulate,
            lr_scheduler_type="linear" if decay else "constant",
            **{"eval_strategy": "steps" if held_out else "no", "eval_steps": 2, **settings},
            max_grad_norm=0.0,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        optimizer = optimizer or torch.optim.SGD(net.parameters(), 0.1)
        data = {"train_dataset": InOrder(rows), "eval_dataset": held_out}
        trainer = transformers.Trainer(net, args, **data, optimizers=(optimizer, None), callbacks=[watch, *also])
        trainer.train()
        self.log = trainer.state.log_history
        return trainer.state.global_step


class Lightning:
    callback = OfLightning
    metric = "val_loss"

    def __init__(self, folder):
        self.folder = folder

    def fit(self, watch, net, rows, steps, optimizer=None, decay=False, held_out=None, accumulate=1):
        quiet = dict.fromkeys(
            ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "barebones"), False
        )
        optimizer = optimizer or torch.optim.SGD(net.parameters(), 0.1)
        trainer = lightning.Trainer(
            max_steps=steps,
            accumulate_grad_batches=accumulate,
            accelerator="cpu",
            callbacks=[watch],
            default_root_dir=self.folder,
            log_every_n_steps=1,
            **quiet,
        )
        held = [DataLoader(held_out, BATCH)] if held_out else []
        trainer.fit(Module(net, optimizer, decay, steps), DataLoader(rows, BATCH), *held)
        return trainer.global_step


@pytest.fixture(params=[Transformers, Lightning])
def loop(request, tmp_path):
    return request.param(tmp_path)


def rows(batches, seed=0, last=BATCH):
    drawn = torch.Generator().manual_seed(seed)
    x = torch.randn((batches - 1) * BATCH + last, INPUTS, generator=drawn)
    return [{"x": row, "labels": torch.tensor(int(row[0] > 0) + int(row[1] > 0))} for row in x]


def batches(rows):
    return list(DataLoader(rows, BATCH))


def net(seed=0):
    torch.manual_seed(seed)
    return Net()


def by_hand(model, rows, optimizer, factor=lambda step: 1.0):
    """The losses of every step, and of the same loop as everybody writes it."""
    rates, losses = [group["lr"] for group in optimizer.param_groups], []
    for step, batch in enumerate(batches(rows)):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor(step)
        optimizer.zero_grad()
        loss = model(**batch)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_without_an_evaluation_the_loss_is_the_mean_of_the_last_tenth_of_the_steps(loop):
    model, data, watch = net(), rows(30), loop.callback()
    losses = by_hand(twin := copy.deepcopy(model), data, torch.optim.SGD(twin.parameters(), 0.1))
    loop.fit(watch, model, data, 30)
    assert watch.result().loss == pytest.approx(sum(losses[-3:]) / 3, rel=1e-5)
    assert watch.result().seconds > 0


def test_the_loss_is_that_of_the_last_evaluation(loop):
    model, held_out, watch = net(), rows(3, seed=1, last=5), loop.callback()
    loop.fit(watch, model, rows(6), 6, held_out=held_out)
    whole = [{name: torch.stack([row[name] for row in held_out]) for name in ("x", "labels")}]
    with torch.no_grad():
        assert watch.result().loss == pytest.approx(model(**whole[0])["loss"].item(), rel=1e-5)
    named = loop.callback(metric=loop.metric)
    assert loop.fit(named, net(), rows(6), 6, held_out=held_out) == 6
    assert named.result().loss == watch.result().loss


def test_steps_of_several_batches_are_seen_whole(loop):
    model, data, watch = net(), rows(20), loop.callback()
    halves = [[row for at in (i, i + 1) for row in data[at * BATCH : (at + 1) * BATCH]] for i in range(0, 20, 2)]
    twin, losses = copy.deepcopy(model), []
    optimizer = torch.optim.SGD(twin.parameters(), 0.1)
    for half in halves:
        losses += [sum(twin(**b)["loss"].item() for b in batches(half)) / 2]
        optimizer.zero_grad()
        sum(twin(**b)["loss"] / 2 for b in batches(half)).backward()
        optimizer.step()
    loop.fit(watch, model, data, 10, accumulate=2)
    assert watch.result().loss == pytest.approx(losses[-1], rel=1e-5)
    assert watch.result().cost == 20 * BATCH * EXAMPLE


def test_flops_are_the_closed_form_s(loop):
    watch = loop.callback()
    loop.fit(watch, net(), rows(7), 7)
    assert watch.result().cost == 7 * BATCH * EXAMPLE
    loop.fit(watch, net(), rows(7), 1)
    assert watch.result().cost is None  # the first step is not counted
    with torch.device("meta"):
        model, x, labels = Net(), torch.empty(BATCH, INPUTS), torch.empty(BATCH, dtype=torch.long)
    assert flops(lambda: model(x, labels)["loss"]) == BATCH * EXAMPLE


def test_a_run_ends_at_the_step_whose_batch_is_poisoned(loop):
    data, watch = rows(12), loop.callback()
    data[4 * BATCH + 3]["x"][0] = math.nan
    assert loop.fit(watch, net(), data, 12, held_out=rows(1)) == 5
    assert watch.result().loss == math.inf
    assert watch.result().cost == 5 * BATCH * EXAMPLE


def test_a_run_that_a_huge_rate_blows_up_ends_and_one_that_only_does_badly_does_not(loop):
    model, watch = net(), loop.callback()
    assert loop.fit(watch, model, rows(20), 20, torch.optim.SGD(model.parameters(), 1e30)) < 20
    assert watch.result().diverged
    model, data, watch = net(), rows(20), loop.callback()
    losses = by_hand(twin := copy.deepcopy(model), data, torch.optim.SGD(twin.parameters(), 5.0))
    assert max(losses) > 100 * losses[0] > 100 * losses[-1]  # which it recovers from
    assert loop.fit(watch, model, data, 20, torch.optim.SGD(model.parameters(), 5.0)) == 20
    assert watch.result().loss == pytest.approx(sum(losses[-2:]) / 2, rel=1e-2)
    model, watch = net(), loop.callback(above=50)
    first = next(step for step, loss in enumerate(losses) if loss > 50)
    assert loop.fit(watch, model, data, 20, torch.optim.SGD(model.parameters(), 5.0)) == first + 1
    assert watch.result().loss == math.inf


def test_the_plan_s_groups_are_stepped_by_their_rates_and_a_schedule_keeps_their_ratios(loop):
    def build(scale):
        return Net(int(scale["width"]))

    planned = plan(roles(build, Scale(width=WIDTH), Scale(width=64)))
    torch.manual_seed(0)
    model, data, watch = build(Scale(width=64)), rows(20), loop.callback()
    planned.init_(model)
    twin = copy.deepcopy(model)
    ours, theirs = (
        torch.optim.AdamW(planned.param_groups(m, lr=0.02, weight_decay=0.1), foreach=False) for m in (twin, model)
    )
    assert len({group["lr"] for group in ours.param_groups}) > 1
    losses = by_hand(twin, data, ours, lambda step: 1 - step / 20)
    loop.fit(watch, model, data, 20, theirs, decay=True)
    assert watch.result().loss == pytest.approx(sum(losses[-2:]) / 2, rel=1e-4)
    for mine, its in zip(twin.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(its, mine, rtol=1e-4, atol=1e-6)


def test_a_trainer_that_would_hardly_log_is_made_to(tmp_path):
    model, data, watch, loop = net(), rows(60), OfTransformers(), Transformers(tmp_path)
    losses = by_hand(twin := copy.deepcopy(model), data, torch.optim.SGD(twin.parameters(), 0.1))
    loop.fit(watch, model, data, 60, logging_strategy="no")
    assert watch.result().loss == pytest.approx(sum(losses[-6:]) / 6, rel=1e-5)
    assert watch.result().cost == 60 * BATCH * EXAMPLE
    data[22 * BATCH]["x"][0] = math.nan
    assert loop.fit(watch, net(), data, 60, logging_steps=500, held_out=rows(1), eval_steps=3) == 24
    assert watch.result().loss == math.inf
    evaluated = [line["step"] for line in loop.log if "eval_loss" in line]
    assert evaluated == list(range(3, 24, 3))  # and not what diverged


def test_what_diverged_at_the_end_of_an_epoch_is_not_evaluated(tmp_path):
    data, watch, loop = rows(2), OfTransformers(), Transformers(tmp_path)
    data[-1]["x"][0] = math.nan
    assert loop.fit(watch, net(), data, 60, held_out=rows(1), eval_strategy="epoch", logging_strategy="epoch") == 2
    assert not [line for line in loop.log if "eval_loss" in line]


def test_steps_that_no_log_shows_are_of_the_run_too(tmp_path):
    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop |= state.global_step == 10  # and logs are every third

    data, watch = rows(60), OfTransformers()
    assert Transformers(tmp_path).fit(watch, net(), data, 60, also=[Stop()], logging_strategy="no") == 10
    assert watch.result().cost == 10 * BATCH * EXAMPLE
    data[9 * BATCH]["x"][0] = math.nan
    Transformers(tmp_path).fit(watch, net(), data, 60, also=[Stop()], logging_strategy="no")
    assert watch.result().loss == math.inf


def test_an_evaluation_before_the_training_is_not_its_loss(tmp_path):
    model, watch = net(), OfTransformers()
    losses = by_hand(twin := copy.deepcopy(model), rows(5), torch.optim.SGD(twin.parameters(), 0.1))
    Transformers(tmp_path).fit(watch, model, rows(5), 5, held_out=rows(1), eval_on_start=True, eval_strategy="no")
    assert watch.result().loss == pytest.approx(losses[-1], rel=1e-5)


def test_batches_of_other_sizes_count_by_their_size(tmp_path):
    """Lightning sees a batch, and the Trainer asks a model of its own library."""
    watch = OfLightning()
    assert Lightning(tmp_path).fit(watch, net(), rows(3, last=5), 3) == 3
    assert watch.result().cost == (2 * BATCH + 5) * EXAMPLE
    watch = OfTransformers()
    assert gpt2(tmp_path, watch, examples=2 * BATCH + 4) == 3
    assert watch.result().cost == (2 * BATCH + 4) * gpt2_example()


LAYERS, N, CONTEXT, VOCABULARY = 2, 32, 16, 48


def gpt2(folder, watch, examples=BATCH, steps=3, **settings):
    sizes = {"n_embd": N, "n_layer": LAYERS, "n_head": 4, "n_positions": CONTEXT, "vocab_size": VOCABULARY}
    special = {"bos_token_id": 0, "eos_token_id": 0, "loss_type": "ForCausalLM"}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **special, **settings))
    tokens = torch.arange(examples * CONTEXT).view(examples, CONTEXT) % VOCABULARY
    quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
    args = transformers.TrainingArguments(str(folder), max_steps=steps, per_device_train_batch_size=BATCH, **quiet)
    data = InOrder([{"input_ids": row, "labels": row} for row in tokens])
    trainer = transformers.Trainer(model, args, train_dataset=data, callbacks=[watch])
    trainer.train()
    return trainer.state.global_step


def gpt2_example(attention=12):
    """FLOPs a sequence: 6 a weight and token, the tied readout's too, and the products of attention."""
    return CONTEXT * (6 * (LAYERS * 12 * N**2 + N * VOCABULARY) + attention * LAYERS * CONTEXT * N)


@pytest.mark.parametrize(("dropout", "attention"), [(0.1, 12), (0.0, 14)], ids=["eager", "fused"])
def test_flops_of_a_transformer_have_its_readout_and_attention_in_them(tmp_path, dropout, attention):
    """A fused attention, which torch takes where nothing is dropped, multiplies queries and keys again going back."""
    watch = OfTransformers()
    gpt2(tmp_path, watch, attn_pdrop=dropout, examples=3 * BATCH)
    assert watch.result().cost == 3 * BATCH * gpt2_example(attention)


def test_a_compiled_model_stays_compiled(loop):
    """But for the step that is counted."""
    ran = []

    def backend(graph, inputs):
        return lambda *given: ran.append(len(given)) or graph.forward(*given)

    torch._dynamo.reset()
    model, watch = net(), loop.callback()
    model.compile(backend=backend)
    loop.fit(watch, model, rows(6), 6)
    assert len(ran) == 5
    assert watch.result().cost == 6 * BATCH * EXAMPLE


@pytest.mark.parametrize("step", [1, 2])
def test_a_run_that_breaks_leaves_nothing_behind_the_next(loop, step):
    class Broken(Net):
        def forward(self, x, labels):
            self.seen = getattr(self, "seen", 0) + self.training
            if self.seen == step:
                raise RuntimeError("no memory")
            return super().forward(x, labels)

    watch = loop.callback()
    with pytest.raises(RuntimeError, match="no memory"):
        loop.fit(watch, Broken(), rows(4), 4)
    with pytest.raises(BadInput, match="the run is not over"):
        watch.result()
    loop.callback()
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
    loop.fit(watch, net(), rows(4), 4)  # the same, once more
    assert watch.result().cost == 4 * BATCH * EXAMPLE


def test_what_cannot_be_is_one_line(loop):
    with pytest.raises(BadInput, match="above: must be a number, got nan; give a loss"):
        loop.callback(above=math.nan)
    watch = loop.callback()
    with pytest.raises(BadInput, match="result: the run is not over; ask for it after the training"):
        watch.result()
    watch = loop.callback(metric="evil_loss")
    loop.fit(watch, net(), rows(2), 2, held_out=rows(1))
    with pytest.raises(BadInput, match=f"metric: 'evil_loss' was not evaluated; did you mean '{loop.metric}'"):
        watch.result()


@pytest.mark.parametrize("library", ["transformers", "lightning"])
def test_a_library_that_is_missing_is_named_with_its_extra(library, monkeypatch):
    monkeypatch.delitem(sys.modules, f"tuner.integrations.{library}")
    monkeypatch.setitem(sys.modules, {"lightning": "lightning.pytorch"}.get(library, library), None)
    with pytest.raises(BadInput, match=rf"{library} is not installed; install transfer-tuner\[{library}\]"):
        importlib.import_module(f"tuner.integrations.{library}")


def searched(objective, budget=0.3, **settings):
    """What a few trials of a study charged, and what it had foreseen."""
    proxies = [Scale(width=32), Scale(width=64)]
    study = create_study(objective=objective, target=Scale(width=128), proxies=proxies, seed=0, **settings)
    study.optimize(budget=budget)
    assert all(math.isfinite(run.loss) for run in study.observations)
    assert study.recommend().params
    return [run.cost for run in study.observations], [study.cost(r.params, r.scale) for r in study.observations]


def test_the_example_of_a_trainer_is_an_objective_whose_cost_is_foreseen():
    charged, foreseen = searched(trainer.Language())
    assert len(charged) > 2
    assert charged == foreseen


def test_the_example_of_lightning_is_an_objective_whose_cost_is_foreseen():
    charged, foreseen = searched(lightning_fit.train, 0.5, space=lightning_fit.space, cost=lightning_fit.cost)
    assert len(charged) > 2
    assert charged == foreseen
