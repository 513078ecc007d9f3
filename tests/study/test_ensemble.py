"""The engine against plain loops over plain networks."""

import pytest
import torch
from torch.nn import functional as F

from tinygpt_lightning.gpt.model import GPTConfig, TinyGPT
from tinygpt_lightning.study.ensemble import DropoutNoise, Ensemble, draw_parameters, stacked_logits
from tinygpt_lightning.study.recipe import read_recipe

CPU = torch.device("cpu")
SIZE = {"n_positions": 32, "n_embd": 8, "n_head": 2}
DRY = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
ADAMW = {"class_path": "AdamW", "init_args": {"lr": 0.01}}
ONE_CYCLE = {"class_path": "OneCycleLR", "init_args": {"max_lr": 0.02, "total_steps": 50}}
PROMPT = len("Question: Xin")


def recipe(stages=2, config=DRY, stage=None, **model):
    return read_recipe(
        {
            "data": {"question": "Xin", "answer": "Chào!"},
            "model": {"config": {**SIZE, **config}, "optimizer": ADAMW, **model},
            "stages": [{"epochs": 1}, *[{"epochs": 1, **(stage or {})}] * (stages - 1)],
        }
    )


def ensemble(asked, seeds, measure_updates=False):
    return Ensemble(asked, seeds, CPU, measure_updates)


def train(together, epochs):
    for _ in range(epochs):
        together.train_epoch()
    return together


def ids_of(asked):
    return torch.tensor([asked.vocabulary.encode(asked.text)])


def plain_loop(asked, seed, epochs, stages=1):
    """What everybody would write."""
    torch.manual_seed(seed)
    model, ids, losses = TinyGPT(asked.config), ids_of(asked), []
    first = PROMPT - 1 if asked.loss_on == "answer" else 0
    for _ in range(stages):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, 50) if asked.lr_scheduler else None
        for _ in range(epochs):
            loss = F.cross_entropy(model(ids[:, :-1])[0, first:], ids[0, first + 1 :])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if scheduler:
                scheduler.step()
            losses.append(loss.item())
    return model, losses


@pytest.mark.parametrize(
    ("config", "model"),
    [
        ({}, {}),
        ({"tie_weights": True}, {"loss_on": "answer"}),
        ({"bias": False, "n_inner": 5, "initializer_range": 0.02}, {"lr_scheduler": ONE_CYCLE}),
        ({"n_embd": 2, "n_head": 1, "n_inner": 1, "layer_norm_epsilon": 100.0}, {}),
    ],
)
def test_each_replicate_equals_a_plain_loop(config, model):
    asked = recipe(config={**DRY, **config}, **model)
    together = train(ensemble(asked, [3, 8, 1]), 25)
    for index, seed in enumerate(together.seeds):
        alone, losses = plain_loop(asked, seed, 25)
        assert torch.stack(together.losses)[:, index].tolist() == pytest.approx(losses, abs=1e-5)
        replicate = TinyGPT(asked.config)
        together.copy_weights(index, replicate)
        torch.testing.assert_close(replicate(ids_of(asked)), alone(ids_of(asked)), atol=1e-4, rtol=0)


def test_a_new_optimizer_over_the_stack_equals_one_for_each_replicate():
    asked = recipe()
    together = train(ensemble(asked, [0, 1]), 6)
    together.begin_stage(asked, 1)
    train(together, 6)
    for index, seed in enumerate(together.seeds):
        losses = plain_loop(asked, seed, 6, stages=2)[1]
        assert torch.stack(together.losses)[:, index].tolist() == pytest.approx(losses, abs=1e-5)


def test_a_kept_optimizer_and_carried_weights_equal_one_long_stage():
    asked = recipe(config={}, stage={"reset_optimizer": False})
    through, across = ensemble(asked, [0, 1]), ensemble(asked, [0, 1])
    for epoch in range(8):
        if epoch == 4:
            across.begin_stage(asked, 1)
        train(through, 1), train(across, 1)
    assert torch.equal(torch.stack(through.losses), torch.stack(across.losses))


def test_a_fork_leaves_its_origin_alone():
    asked = recipe(lr_scheduler=ONE_CYCLE)
    origin, untouched = train(ensemble(asked, [0]), 3), train(ensemble(asked, [0]), 3)
    fork = train(origin.fork(), 3)
    assert (origin.epoch, fork.epoch) == (3, 6)
    train(origin, 3), train(untouched, 3)
    for each in (fork, origin):
        assert torch.equal(torch.stack(each.losses), torch.stack(untouched.losses))


def test_redrawn_weights_depend_on_seed_and_stage_only():
    asked = recipe(stage={"weights": "redrawn"})
    first, second = ensemble(asked, [0, 1]), ensemble(asked, [1])
    before = first.parameters["wte.weight"].clone()
    for each in (first, second):
        each.begin_stage(asked, 1)
    assert not torch.equal(first.parameters["wte.weight"], before)
    assert torch.equal(first.parameters["wte.weight"][1], second.parameters["wte.weight"][0])


def test_a_first_stage_begins_with_the_weights_of_fit():
    config = GPTConfig(**SIZE)
    torch.manual_seed(5)
    expected = dict(TinyGPT(config).named_parameters())
    state = torch.random.get_rng_state()
    drawn = draw_parameters(config, [5], 0, CPU)
    assert torch.equal(state, torch.random.get_rng_state())  # the global generator is left alone
    assert all(torch.equal(drawn[name][0], parameter) for name, parameter in expected.items())


def test_a_seed_does_not_depend_on_its_neighbours():
    """To rounding: a stack of one may take another path through the linear algebra."""
    asked = recipe(config={})
    alone, beside = train(ensemble(asked, [7]), 10), train(ensemble(asked, [2, 7, 5]), 10)
    torch.testing.assert_close(torch.stack(alone.losses)[:, 0], torch.stack(beside.losses)[:, 1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("config", [{}, {"bias": False, "tie_weights": True, "n_inner": 3, "layer_norm_epsilon": 9.0}])
def test_the_stack_equals_the_model(config):
    size = GPTConfig(**SIZE, **config)
    model = TinyGPT(size).eval()
    ids = torch.randint(34, (20,))
    logits = stacked_logits({name: p[None] for name, p in model.named_parameters()}, size, ids)
    torch.testing.assert_close(logits, model(ids[None]), atol=1e-6, rtol=1e-5)


def test_dropout_is_at_the_models_places_with_its_probabilities():
    size = GPTConfig(**SIZE, embd_pdrop=0.5, attn_pdrop=0.25, resid_pdrop=0.0)
    T, C, H = 10, 8, 2
    noise = DropoutNoise(size, T, CPU)
    factors = noise.factors(range(500), epoch=3)  # (S, N)
    embedding, attention, rest = factors.split([T * C, H * T * T, 2 * T * C], dim=1)
    for part, p in ((embedding, 0.5), (attention, 0.25)):
        assert part.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)])
        # Five standard deviations of a mean of so many draws.
        assert (part == 0).float().mean().item() == pytest.approx(p, abs=5 * (p * (1 - p) / part.numel()) ** 0.5)
    assert (rest == 1).all()
    assert not noise.is_off


def test_dropout_of_the_stack_equals_the_models(monkeypatch):
    """The model itself, with its `dropout` told what to multiply by, and its attention spelt out by PyTorch."""
    size = GPTConfig(**SIZE)
    model, ids, T = TinyGPT(size).train(), torch.randint(34, (10,)), 10
    [factors] = DropoutNoise(size, T, CPU).factors([4], 0)
    used = 0

    def given(x, p=0.5, training=True, inplace=False):
        nonlocal used
        start, used = used, used + x.numel()
        return x * factors[start:used].view(x.shape)

    def attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False):
        assert is_causal
        scores = (q @ k.transpose(-2, -1) / q.size(-1) ** 0.5).masked_fill(~torch.ones(T, T).tril().bool(), -torch.inf)
        return given(scores.softmax(-1)) @ v

    monkeypatch.setattr(F, "dropout", given)
    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    expected = model(ids[None])
    assert used == len(factors)
    stacked = stacked_logits({name: p[None] for name, p in model.named_parameters()}, size, ids, factors[None])
    torch.testing.assert_close(stacked, expected, atol=1e-6, rtol=1e-5)


def test_dropout_depends_on_seed_and_epoch_only():
    noise = DropoutNoise(GPTConfig(**SIZE), 10, CPU)
    factors = noise.factors([0, 1], 5)
    assert not torch.equal(factors[0], factors[1])
    assert not torch.equal(factors, noise.factors([0, 1], 6))
    assert torch.equal(factors[1:], noise.factors([1], 5))
    assert DropoutNoise(GPTConfig(**SIZE, **DRY), 10, CPU).factors([0], 0) is None


@pytest.mark.parametrize("config", [DRY, {}])
def test_exactness_is_counted_from_the_start_of_the_stage(config):
    asked = recipe(config=config, stage={"reset_optimizer": False})
    one = ensemble(asked, [0])
    first = None
    while first is None:
        one.train_epoch()
        if one.evaluate()[1].item():
            first = one.epoch
    one.note_exactness()
    assert one.exact_after == [first]
    model, ids = TinyGPT(asked.config).eval(), ids_of(asked)
    one.copy_weights(0, model)
    assert torch.equal(model(ids[:, :-1]).argmax(-1)[0, PROMPT - 1 :], ids[0, PROMPT:])
    one.begin_stage(asked, 1)
    assert one.exact_after == [None]
    one.train_epoch()
    one.note_exactness()
    assert one.exact_after == [1]
    assert one.exact_in_run == [first]


def test_exactness_at_a_boundary_counts_for_the_run():
    """Without dropout the pass of the next epoch evaluates an update, and at a boundary there is none."""
    asked = recipe(stages=3, stage={"reset_optimizer": False})
    one = ensemble(asked, [0])
    while not one.evaluate()[1].item():
        one.train_epoch()
    one.begin_stage(asked, 1)
    fork = one.fork()
    fork.begin_stage(asked, 2)
    assert one.exact_in_run == fork.exact_in_run == [one.epoch]
