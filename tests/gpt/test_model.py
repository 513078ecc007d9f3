import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from tinygpt_lightning.gpt.model import GPTConfig, TinyGPT

SMALL = GPTConfig(n_positions=48, n_embd=32, n_head=4)
CONFIGS = Path(__file__).parents[2] / "configs"


def random_ids(batch: int = 2, length: int = 40, vocab_size: int = 34) -> Tensor:
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(7))


def make(config: GPTConfig = SMALL, seed: int = 0) -> TinyGPT:
    torch.manual_seed(seed)
    return TinyGPT(config)


def hugging_face(model: TinyGPT) -> GPT2LMHeadModel:
    """Hugging Face's GPT-2 with one layer and the weights of ``model``."""
    config = model.config
    reference = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.n_positions,
            n_embd=config.n_embd,
            n_layer=1,
            n_head=config.n_head,
            n_inner=config.n_inner,
            activation_function="gelu_new",
            embd_pdrop=config.embd_pdrop,
            attn_pdrop=config.attn_pdrop,
            resid_pdrop=config.resid_pdrop,
            layer_norm_epsilon=config.layer_norm_epsilon,
            tie_word_embeddings=config.tie_weights,
            bos_token_id=None,
            eos_token_id=None,
            attn_implementation="eager",
        )
    )
    theirs = dict(reference.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Hugging Face keeps the linear weights inside the block as (in, out).
            value = parameter.T if ".c_" in name and name.endswith("weight") else parameter
            theirs.pop(hugging_face_name(name)).copy_(value)
    assert not theirs, "every weight of the reference has a counterpart"
    return reference.eval()


def hugging_face_name(name: str) -> str:
    if name.startswith("lm_head"):
        return name
    return "transformer." + name.replace("h.", "h.0.", 1) if name.startswith("h.") else "transformer." + name


VARIANTS = {
    "default": SMALL,
    "n_inner": replace(SMALL, n_inner=50),
    "tie_weights": replace(SMALL, tie_weights=True, initializer_range=0.02),
    "initializer_range": replace(SMALL, initializer_range=0.3),
    "epsilon": replace(SMALL, layer_norm_epsilon=0.1),
    "one_head": replace(SMALL, n_head=1),
}


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_logits_and_gradients_equal_hugging_faces_gpt2(config: GPTConfig) -> None:
    model = make(config).eval()
    reference = hugging_face(model)
    ids = random_ids()
    logits = model(ids)
    output = reference(ids, labels=ids)
    torch.testing.assert_close(logits, output.logits, atol=1e-5, rtol=0)

    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(loss, output.loss, atol=1e-5, rtol=0)
    loss.backward()
    output.loss.backward()
    theirs = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        expected = theirs[hugging_face_name(name)].grad
        assert parameter.grad is not None
        expected = expected.T if ".c_" in name and name.endswith("weight") else expected
        torch.testing.assert_close(parameter.grad, expected, atol=1e-5, rtol=1e-4)


def test_logits_equal_hugging_faces_gpt2_at_full_size_and_length() -> None:
    model = make(GPTConfig()).eval()
    ids = random_ids(batch=1, length=1024)
    with torch.no_grad():
        torch.testing.assert_close(model(ids), hugging_face(model)(ids).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("changed", [0, 1, 20, 39])
def test_no_position_sees_what_comes_later(changed: int) -> None:
    model = make().eval()
    ids = random_ids()
    other = ids.clone()
    other[:, changed] = (ids[:, changed] + 1) % 34
    before, after = model(ids), model(other)
    assert before[:, :changed].equal(after[:, :changed])
    assert (before[:, changed:] != after[:, changed:]).flatten(2).any(dim=-1).all(), "and every later one sees it"


def test_parameters_carry_gpt2s_names_and_shapes() -> None:
    C = 768
    expected = {"wte.weight": (34, C), "wpe.weight": (1024, C), "lm_head.weight": (34, C)}
    for name in ("h.ln_1", "h.ln_2", "ln_f"):
        expected |= {f"{name}.weight": (C,), f"{name}.bias": (C,)}
    for name, out, inner in [("attn.c_attn", 3 * C, C), ("attn.c_proj", C, C), ("mlp.c_fc", 4 * C, C)]:
        expected |= {f"h.{name}.weight": (out, inner), f"h.{name}.bias": (out,)}
    expected |= {"h.mlp.c_proj.weight": (C, 4 * C), "h.mlp.c_proj.bias": (C,)}
    model = make(GPTConfig())
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == expected
    assert set(model.state_dict()) == set(expected), "nothing but parameters is saved"
    assert sum(p.numel() for p in model.parameters()) == 7_928_064


def test_the_default_config_is_gpt2_smalls() -> None:
    theirs = GPT2Config()
    ours = GPTConfig()
    for name in ("n_positions", "n_embd", "n_head", "n_inner", "embd_pdrop", "attn_pdrop", "resid_pdrop"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.layer_norm_epsilon == theirs.layer_norm_epsilon
    assert (ours.vocab_size, ours.bias, ours.tie_weights, ours.initializer_range) == (34, True, False, None)


@pytest.mark.parametrize(("name", "n_embd", "n_head"), [("small", 768, 12), ("medium", 1024, 16), ("large", 1280, 20)])
def test_the_size_configs_hold_the_size_and_nothing_else(name: str, n_embd: int, n_head: int) -> None:
    content = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    assert content == {"model": {"config": {"n_embd": n_embd, "n_head": n_head}}}
    with torch.device("meta"):
        model = TinyGPT(GPTConfig(**content["model"]["config"]))
    # GPT-2's arithmetic: embeddings and head; 12 C² + 13 C in a block; 2 C in the last LayerNorm.
    C = n_embd
    assert sum(p.numel() for p in model.parameters()) == (34 + 1024 + 34) * C + 12 * C * C + 13 * C + 2 * C


def test_without_bias_there_is_none_and_the_rest_is_as_with_zeros() -> None:
    model = make(replace(SMALL, bias=False)).eval()
    assert not [name for name, _ in model.named_parameters() if "bias" in name]
    with_zeros = TinyGPT(SMALL).eval()
    missing, unexpected = with_zeros.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected
    with torch.no_grad():
        for name in missing:
            with_zeros.get_parameter(name).zero_()
    torch.testing.assert_close(model(random_ids()), with_zeros(random_ids()), atol=1e-6, rtol=0)


def test_tied_weights_are_one_parameter() -> None:
    model = make(replace(SMALL, tie_weights=True))
    assert model.lm_head.weight is model.wte.weight
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in make().parameters()) - 34 * 32
    untied = make()
    assert untied.lm_head.weight is not untied.wte.weight


@pytest.mark.parametrize("tie_weights", [False, True])
def test_initializer_range_draws_as_gpt2_does(tie_weights: bool) -> None:
    # 5 standard errors of a standard deviation over n numbers are 5 / sqrt(2 n) of it.
    model = make(GPTConfig(n_embd=256, n_head=4, initializer_range=0.05, tie_weights=tie_weights))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "ln_" in name:
            assert parameter.eq(1).all(), name
        else:
            std = 0.05 / math.sqrt(2) if name.endswith("c_proj.weight") else 0.05
            tolerance = 5 / math.sqrt(2 * parameter.numel())
            assert parameter.std().item() == pytest.approx(std, rel=tolerance), name
            assert abs(parameter.mean().item()) < 5 * std / math.sqrt(parameter.numel()), name


def test_by_default_every_layer_starts_as_pytorch_makes_it() -> None:
    torch.manual_seed(3)
    C = 32
    drawn = {
        "wte": nn.Embedding(34, C),
        "wpe": nn.Embedding(48, C),
        "h.ln_1": nn.LayerNorm(C),
        "h.attn.c_attn": nn.Linear(C, 3 * C),
        "h.attn.c_proj": nn.Linear(C, C),
        "h.ln_2": nn.LayerNorm(C),
        "h.mlp.c_fc": nn.Linear(C, 4 * C),
        "h.mlp.c_proj": nn.Linear(4 * C, C),
        "ln_f": nn.LayerNorm(C),
        "lm_head": nn.Linear(C, 34, bias=False),
    }
    model = make(SMALL, seed=3)
    for name, layer in drawn.items():
        for key, value in layer.state_dict().items():
            assert value.equal(model.state_dict()[f"{name}.{key}"]), f"{name}.{key}"


NO_DROPOUT = replace(SMALL, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)


def captured(model: TinyGPT, ids: Tensor) -> dict[str, Tensor]:
    """What goes into the block, out of attention and MLP, and into attention's last layer."""
    seen: dict[str, Tensor] = {}
    hooks = [
        model.h.register_forward_pre_hook(lambda _, args: seen.update(stream=args[0])),
        model.h.attn.register_forward_hook(lambda _, __, out: seen.update(attn=out)),
        model.h.attn.c_proj.register_forward_pre_hook(lambda _, args: seen.update(heads=args[0])),
        model.h.mlp.register_forward_hook(lambda _, __, out: seen.update(mlp=out)),
    ]
    model(ids)
    for hook in hooks:
        hook.remove()
    return seen


def assert_dropped(dropped: Tensor, whole: Tensor, p: float) -> None:
    """Each number is 0, about a share ``p`` of them, or scaled by 1 / (1 - p)."""
    gone = dropped == 0
    torch.testing.assert_close(dropped, torch.where(gone, 0.0, whole / (1 - p)), atol=1e-5, rtol=1e-4)
    assert gone.float().mean().item() == pytest.approx(p, abs=0.05)


@pytest.mark.parametrize(
    ("place", "tensors"), [("embd_pdrop", ["stream"]), ("resid_pdrop", ["attn", "mlp"]), ("attn_pdrop", ["heads"])]
)
def test_dropout_acts_in_its_place_while_training_and_only_then(place: str, tensors: list[str]) -> None:
    model = make(replace(NO_DROPOUT, **{place: 0.3}))
    plain = make(NO_DROPOUT)
    # One position attends to itself alone: its weight of 1 per head is dropped or not.
    ids = random_ids(batch=400, length=1)
    model.eval()
    assert model(ids).equal(plain(ids)), "off in evaluation"

    model.train()
    whole, dropped = captured(plain, ids), captured(model, ids)
    assert not model(ids).equal(model(ids)), "every pass draws anew"
    if place == "resid_pdrop":  # what reaches the MLP has been dropped before
        assert_dropped(dropped["attn"], whole["attn"], 0.3)
        assert (dropped["mlp"] == 0).float().mean().item() == pytest.approx(0.3, abs=0.05)
    else:
        for name in tensors:
            assert_dropped(dropped[name], whole[name], 0.3)
    for name in {"stream", "attn", "mlp", "heads"} - set(tensors):
        assert (dropped[name] != 0).all(), f"{name} is left whole"


@pytest.mark.parametrize("start", [0, 1, 25, 39])
def test_positions_before_the_first_scored_one_are_read(start: int) -> None:
    model, ids = make().eval(), random_ids()
    whole = model(ids)[:, start:]
    scored = model(ids, start)
    assert scored.equal(whole) if start == 0 else torch.allclose(scored, whole, rtol=0, atol=1e-6)
    whole_gradient, gradient = (
        torch.autograd.grad(logits.square().mean(), model.h.attn.c_attn.weight)[0] for logits in (whole, scored)
    )
    torch.testing.assert_close(gradient, whole_gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("length", [0, 49])
def test_a_sequence_must_have_1_to_n_positions_characters(length: int) -> None:
    with pytest.raises(ValueError, match=f"expected a sequence of 1 to n_positions=48 characters, got {length}"):
        make()(torch.zeros(1, length, dtype=torch.long))


def test_the_longest_sequence_is_n_positions() -> None:
    assert make()(torch.zeros(1, 48, dtype=torch.long)).shape == (1, 48, 34)


@pytest.mark.parametrize("bad", [-1, 34])
def test_ids_outside_the_vocabulary_are_refused(bad: int) -> None:
    ids = random_ids()
    ids[1, 3] = bad
    with pytest.raises(ValueError, match=rf"expected ids from 0 to 33 \(vocab_size - 1\), got .*{bad}"):
        make()(ids)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, value) for name in ("vocab_size", "n_positions", "n_embd", "n_head", "n_inner") for value in (0, -1)],
        ("n_head", 5),
        *[(name, value) for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop") for value in (-0.1, 1.0, math.nan)],
        ("initializer_range", 0.0),
        ("initializer_range", -0.02),
        ("layer_norm_epsilon", 0.0),
    ],
)
def test_a_config_out_of_range_is_refused_by_name_and_value(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: expected .*, got {value}$"):
        GPTConfig(**{name: value})


def test_attention_weights_are_hugging_faces() -> None:
    model = make().eval()
    ids = random_ids()
    weights = model.attention_weights(ids)
    assert weights.shape == (2, 4, 40, 40)
    (expected,) = hugging_face(model)(ids, output_attentions=True).attentions
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=0)


def test_attention_weights_are_those_that_the_forward_pass_uses() -> None:
    model = make().eval()
    ids = random_ids()
    weights = model.attention_weights(ids)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 40))
    assert not weights.triu(1).any()

    x = model.h.ln_1(model.wte(ids) + model.wpe(torch.arange(40)))
    v = model.h.attn.c_attn(x)[..., 64:].unflatten(-1, (4, 8)).transpose(1, 2)  # (B, H, T, C/H)
    by_hand = model.h.attn.c_proj((weights @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(by_hand, captured(model, ids)["attn"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("training", [True, False])
def test_attention_weights_leave_no_trace(training: bool) -> None:
    model = make().train(training)
    ids = random_ids()
    generator = torch.get_rng_state()
    first = model.attention_weights(ids)
    assert torch.get_rng_state().equal(generator)
    assert [module.training for module in model.modules()] == [training] * len(list(model.modules()))
    assert first.equal(model.attention_weights(ids)), "without dropout"
    assert not first.requires_grad


def test_a_model_can_be_exported_and_gives_the_same_logits() -> None:
    model = make().eval()
    ids = random_ids()
    exported = torch.export.export(model, (ids,)).module()
    torch.testing.assert_close(exported(ids), model(ids), atol=1e-6, rtol=0)
