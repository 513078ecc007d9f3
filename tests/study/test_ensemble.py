"""The vectorised engine against plain loops over plain modules."""

import pytest
import torch
from torch.nn import functional as F

from tinygpt_lightning.gpt.model import GPTConfig, TinyGPT
from tinygpt_lightning.study.engine.ensemble import DropoutNoise, Ensemble, GivenDropout

CPU = torch.device("cpu")
SIZE = {"vocab_size": 11, "n_positions": 16, "n_embd": 8, "n_head": 2}
DRY = GPTConfig(**SIZE, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
IDS = torch.tensor([[1, 5, 2, 10, 0, 3, 3, 7, 9, 4]])


def ensemble(config, seeds, learning_rate=1e-2):
    return Ensemble(config, seeds, IDS.size(1) - 1, learning_rate, CPU)


def plain_loop(seed, epochs, config=DRY):
    torch.manual_seed(seed)
    model = TinyGPT(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(epochs):
        loss = F.cross_entropy(model(IDS[:, :-1]).flatten(0, 1), IDS[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses


@pytest.mark.parametrize("tied", [False, True])
def test_each_replicate_is_a_plain_loop(tied):
    config = GPTConfig(**{**vars(DRY), "tie_weights": tied})
    together = ensemble(config, [3, 8, 1])
    for _ in range(25):
        together.train_epoch(IDS, answer_start=4)
    for index, seed in enumerate(together.seeds):
        model, losses = plain_loop(seed, 25, config)
        assert torch.stack(together.losses)[:, index].tolist() == pytest.approx(losses, abs=1e-5)
        replicate = TinyGPT(config)
        together.copy_weights(index, replicate)
        torch.testing.assert_close(replicate(IDS), model(IDS), atol=1e-5, rtol=0)
        for name, parameter in model.named_parameters():
            mine, plain = replicate.get_parameter(name), parameter
            if name == "h.attn.c_attn.bias":
                # The keys' bias adds the same to all scores of a row, and softmax takes it away again: its
                # gradient is nothing but rounding, which AdamW scales up.
                mine, plain = (torch.cat([bias[:8], bias[16:]]) for bias in (mine, plain))
            torch.testing.assert_close(mine, plain, atol=1e-5, rtol=0)


def test_a_new_optimizer_over_the_stack_is_one_for_each_replicate():
    together = ensemble(DRY, [0, 1])
    for reset in (False, True):
        if reset:
            together.begin_stage(1, reset_optimizer=True, redraw_weights=False)
        for _ in range(6):
            together.train_epoch(IDS, answer_start=4)
    for index, seed in enumerate(together.seeds):
        torch.manual_seed(seed)
        model = TinyGPT(DRY)
        for _ in range(2):
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
            for _ in range(6):
                loss = F.cross_entropy(model(IDS[:, :-1])[0], IDS[0, 1:])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        assert together.losses[-1][index].item() == pytest.approx(loss.item(), abs=1e-5)


def test_a_kept_optimizer_and_carried_weights_are_no_boundary_at_all():
    through, across = ensemble(GPTConfig(**SIZE), [0, 1]), ensemble(GPTConfig(**SIZE), [0, 1])
    for epoch in range(8):
        if epoch == 4:
            across.begin_stage(1, reset_optimizer=False, redraw_weights=False)
        for each in (through, across):
            each.train_epoch(IDS, answer_start=4)
    assert torch.equal(torch.stack(through.losses), torch.stack(across.losses))


def test_a_fork_leaves_its_origin_alone():
    origin, untouched = ensemble(DRY, [0]), ensemble(DRY, [0])
    for each in (origin, untouched):
        for _ in range(3):
            each.train_epoch(IDS, answer_start=4)
    fork = origin.fork()
    for _ in range(3):
        fork.train_epoch(IDS, answer_start=4)
    assert origin.epoch == 3
    for each in (origin, untouched):
        each.train_epoch(IDS, answer_start=4)
    assert torch.equal(origin.losses[-1], untouched.losses[-1])


def test_redrawn_weights_are_new_known_ones():
    first, second = ensemble(DRY, [0, 1]), ensemble(DRY, [1])
    before = first.parameters["wte.weight"].clone()
    for each in (first, second):
        each.begin_stage(1, reset_optimizer=True, redraw_weights=True)
    assert not torch.equal(first.parameters["wte.weight"], before)
    assert torch.equal(first.parameters["wte.weight"][1], second.parameters["wte.weight"][0])


def test_drawing_weights_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    ensemble(DRY, [0])
    assert torch.equal(torch.rand(1), expected)


def test_a_seed_does_not_depend_on_its_neighbours():
    alone, beside = ensemble(GPTConfig(**SIZE), [7]), ensemble(GPTConfig(**SIZE), [2, 7, 5])
    for each in (alone, beside):
        for _ in range(10):
            each.train_epoch(IDS, answer_start=4)
    assert torch.equal(torch.stack(alone.losses)[:, 0], torch.stack(beside.losses)[:, 1])


def test_spelt_out_attention_is_the_models_own():
    torch.manual_seed(0)
    model = TinyGPT(DRY)
    with GivenDropout(None):
        spelt_out = model(IDS)
    torch.testing.assert_close(spelt_out, model(IDS), atol=1e-6, rtol=1e-5)


def test_dropout_is_at_the_models_places_with_its_probabilities():
    config = GPTConfig(**SIZE, embd_pdrop=0.5, attn_pdrop=0.25, resid_pdrop=0.0)
    T, C, H = 10, 8, 2
    factors = DropoutNoise(config, T, CPU).factors(range(500), epoch=3)  # (S, N)
    embedding, attention, rest = factors.split([T * C, H * T * T, 2 * T * C], dim=1)
    for part, p in ((embedding, 0.5), (attention, 0.25)):
        assert part.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)])
        # Five standard deviations of a mean of so many draws.
        assert (part == 0).float().mean().item() == pytest.approx(p, abs=5 * (p * (1 - p) / part.numel()) ** 0.5)
    assert (rest == 1).all()
    model = TinyGPT(config)
    with GivenDropout(factors[0]) as mode:
        model(IDS[:, :T])
    assert mode.used == factors.size(1)  # the model drops as often as is drawn


def test_dropout_differs_by_seed_and_epoch_and_by_nothing_else():
    noise = DropoutNoise(GPTConfig(**SIZE), 10, CPU)
    factors = noise.factors([0, 1], 5)
    assert not torch.equal(factors[0], factors[1])
    assert not torch.equal(factors, noise.factors([0, 1], 6))
    assert torch.equal(factors[1:], noise.factors([1], 5))


def test_exactness_is_counted_from_the_start_of_the_stage():
    one = ensemble(DRY, [0])
    while one.exact_after == [None]:
        one.train_epoch(IDS, answer_start=4)
    assert one.exact_after == [one.epoch]
    model = TinyGPT(DRY)
    one.copy_weights(0, model)
    assert torch.equal(model(IDS[:, :-1]).argmax(-1)[0, 3:], IDS[0, 4:])
    one.begin_stage(1, reset_optimizer=False, redraw_weights=False)
    assert one.exact_after == [None]
    one.train_epoch(IDS, answer_start=4)
    assert one.exact_after == [1]
