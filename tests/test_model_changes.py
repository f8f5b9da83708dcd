"""What the model says now is what the text says now: weights, modules, adapters, hooks, types change between texts."""

import copy

import pytest
import torch
from fakes import DEVICE, hf_greedy, tiny_draft, tiny_target
from torch import nn

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, TreeConfig
from radar.errors import UsageError
from radar.policy.baselines_history import GammaTune

FIRST = [(7 * i + i // 3) % 9 for i in range(40)]
TREE = TreeConfig(total_tokens=20, max_calls=5, tree_top_k=4)


def decoders(model, **options):
    options = {"max_length": 256} | options
    draft = tiny_draft().to(model.dtype)
    return [
        RadarDecoder(model, draft=draft, policy=FixedDepth(3), tree=TREE, fallback=False, **options),
        AutoregressiveDecoder(model, **options),
    ]


def says_what_generate_says(decoder, prompt, **options):
    text = decoder.generate(prompt, max_new_tokens=20, **options).token_ids
    assert text == hf_greedy(decoder.model, prompt, 20)
    return text


def optimiser_step(model):
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    ids = torch.tensor([FIRST], device=model.device)
    model(ids, labels=ids).loss.backward()
    optimiser.step()


def another_state(model):
    model.load_state_dict(tiny_target(seed=5).state_dict())


def assigned_state(model):
    model.load_state_dict(tiny_target(seed=5).state_dict(), assign=True)


def new_head(model):
    head = nn.Linear(model.config.hidden_size, model.config.vocab_size, bias=False).to(model.device)
    model.set_output_embeddings(nn.init.normal_(head.weight, 0, 0.3) is not None and head)


def new_layer(model):
    model.model.layers[1] = copy.deepcopy(tiny_target(seed=7).model.layers[1])


def new_projection(model):
    model.model.layers[2].mlp.up_proj = copy.deepcopy(tiny_target(seed=7).model.layers[2].mlp.up_proj)


def new_embedding(model):
    model.set_input_embeddings(copy.deepcopy(tiny_target(seed=7).model.embed_tokens))


def hook_on_the_model(model):
    def push(_module, _args, out):
        out.logits = out.logits.clone()
        out.logits[..., 3] += 2.0
        return out

    model.register_forward_hook(push)


def hook_on_a_layer(model):
    model.model.layers[3].mlp.register_forward_hook(lambda _module, _args, out: out * 0.3)


def hook_for_another(model):
    """Whose function may lie where the first one's lay."""
    mlp = model.model.layers[3].mlp
    mlp.register_forward_hook(lambda _module, _args, out: out * 0.1).remove()
    mlp.register_forward_hook(lambda _module, _args, out: out * 0.6)


CHANGES = [
    optimiser_step, another_state, assigned_state, new_head, new_layer, new_projection, new_embedding,
    hook_on_the_model, hook_on_a_layer, hook_for_another,
]  # fmt: skip


@pytest.mark.parametrize("which", [0, 1], ids=["rounds", "plain"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_between_two_texts_is_seen(change, which):
    model = tiny_target()
    decoder = decoders(model)[which]
    before = says_what_generate_says(decoder, FIRST)
    change(model)
    says_what_generate_says(decoder, FIRST + before[:8], reuse_prefix=True)
    assert says_what_generate_says(decoder, FIRST) != before
    again = decoder.generate(FIRST, max_new_tokens=4, reuse_prefix=True)
    assert again.metrics.num_reused_prompt_tokens == len(FIRST) - 1  # nothing has changed since


def test_a_model_that_scales_its_scores_is_honoured():
    """The whole model is called, not its parts: a subclass's forward counts."""

    class Shifted(type(tiny_target())):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = out.logits.roll(1, dims=-1)
            return out

    model = tiny_target()
    plain = hf_greedy(model, FIRST, 30)
    model.__class__ = Shifted
    for decoder in decoders(model):
        assert says_what_generate_says(decoder, FIRST) != plain


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.to(torch.float32)])
def test_a_model_that_was_cast_decodes_in_its_new_type(cast, tmp_path):
    from radar.draft.checkpoint import save_draft

    save_draft(tiny_draft(), tmp_path)
    model = tiny_target()
    ours = RadarDecoder(model, draft=tmp_path, tree=TREE, max_length=128)
    ours.generate(FIRST, max_new_tokens=5)
    cast(model)
    expected = AutoregressiveDecoder(copy.deepcopy(model), max_length=128)
    out = ours.generate(FIRST, max_new_tokens=12)
    assert ours.engine.target.cache.keys.dtype == model.dtype
    assert out.token_ids[:3] == expected.generate(FIRST, max_new_tokens=3).token_ids  # later on 16 bits may part


def test_a_head_of_the_callers_is_not_cast_behind_his_back():
    model, draft = tiny_target(), tiny_draft()
    decoder = RadarDecoder(model, draft=draft, tree=TREE, max_length=128)
    model.to(torch.bfloat16)
    for _ in range(2):
        with pytest.raises(UsageError, match=r"it is torch\.float32 on .*, the target torch\.bfloat16"):
            decoder.generate(FIRST, max_new_tokens=5)
    draft.to(torch.bfloat16)
    assert len(decoder.generate(FIRST, max_new_tokens=5).token_ids) == 5
    model.float()
    with pytest.raises(UsageError, match="does not fit"):
        decoder.generate(FIRST, max_new_tokens=5)
    # what needs no rounds works on
    assert decoder.metrics.num_generations == 1
    assert (decoder.vocab_size, decoder.engine_name) == (17, "graph" if DEVICE.type == "cuda" else "eager")
    decoder.policy = GammaTune()  # one that reads signals
    decoder.policy = FixedDepth(2)
    with pytest.raises(UsageError, match="needs TreeConfig"):
        decoder.policy = FixedDepth(17)
    draft.float()
    out = decoder.generate(FIRST, max_new_tokens=20)
    assert out.metrics.num_draft_calls == 2 * out.metrics.num_spec_steps > 0


def test_a_vocabulary_that_grows_or_shrinks_is_seen():
    model = tiny_target()
    pair = decoders(model)
    with pytest.raises(UsageError, match="must be integers from 0 to"):
        pair[0].generate([1, 17])
    model.resize_token_embeddings(20, mean_resizing=False)
    for decoder in pair:
        says_what_generate_says(decoder, [*FIRST, 18, 19])
        assert decoder.vocab_size == 20
    model.resize_token_embeddings(12, mean_resizing=False)
    for decoder in pair:
        with pytest.raises(UsageError, match="must be integers from 0 to"):
            decoder.generate([*FIRST, 18])
    says_what_generate_says(pair[1], FIRST)
    with pytest.raises(UsageError, match=r"proposes ids up to 1\d, the target's vocabulary ends at 11"):
        pair[0].generate(FIRST)
    model.set_output_embeddings(nn.Linear(32, 30, bias=False).to(DEVICE))
    with pytest.raises(UsageError, match="logits are 30 wide and its vocabulary has 12 ids"):
        pair[1].generate(FIRST)
    model.lm_head.register_forward_hook(lambda _module, _args, out: out[..., :12])  # rows that pad it, cut off again
    says_what_generate_says(pair[1], FIRST)


def test_a_prompt_of_a_vocabulary_that_shrank_is_refused():
    decoder = decoders(tiny_target())[1]
    rounds = decoder.rounds([1, 2, 16])
    decoder.model.resize_token_embeddings(12, mean_resizing=False)
    with pytest.raises(UsageError, match="holds id 16, and the vocabulary has shrunk to 12"):
        next(rounds)


def test_a_resized_model_that_shares_its_config_leaves_the_other_alone():
    model = tiny_target()
    other = type(model)(model.config).to(DEVICE).eval()
    pair = decoders(other)
    model.resize_token_embeddings(20, mean_resizing=False)
    for decoder in pair:
        assert decoder.vocab_size == 17
        with pytest.raises(UsageError, match="must be integers from 0 to 16, got 18"):
            decoder.generate([1, 18])
        says_what_generate_says(decoder, FIRST)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.gpu
def test_a_model_goes_to_the_cpu_and_gets_another_module_there(tmp_path):
    from radar.draft.checkpoint import save_draft

    save_draft(tiny_draft(), tmp_path)
    model = tiny_target()
    decoder = RadarDecoder(model, draft=tmp_path, max_length=128, fallback=False)
    assert decoder.tree.total_tokens == 60
    says_what_generate_says(decoder, FIRST)
    model.cpu()
    says_what_generate_says(decoder, FIRST)
    assert (decoder.engine_name, decoder.tree.total_tokens) == ("eager", 32)
    model.model.layers[1] = tiny_target(seed=7).model.layers[1].cpu()
    says_what_generate_says(decoder, FIRST)
    model.to(DEVICE)
    says_what_generate_says(decoder, FIRST)
    assert (decoder.engine_name, decoder.tree.total_tokens) == ("graph", 60)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_default_type_of_the_process_changes_nothing(dtype):
    model = tiny_target()
    expected = hf_greedy(model, FIRST, 30)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        for decoder in decoders(model):
            assert decoder.generate(FIRST, max_new_tokens=30).token_ids == expected
            sampled = decoder.generate(FIRST, max_new_tokens=30, temperature=0.7, top_p=0.9, seed=1).token_ids
            torch.set_default_dtype(torch.float32)
            assert decoder.generate(FIRST, max_new_tokens=30, temperature=0.7, top_p=0.9, seed=1).token_ids == sampled
            torch.set_default_dtype(dtype)
    finally:
        torch.set_default_dtype(before)


def test_autocast_is_passed_over_with_a_warning():
    model = tiny_target()
    for decoder in decoders(model):
        expected = decoder.generate(FIRST, max_new_tokens=20).token_ids
        with torch.autocast(DEVICE.type, torch.bfloat16), pytest.warns(UserWarning, match="autocast is on"):
            assert decoder.generate(FIRST, max_new_tokens=20).token_ids == expected


def test_a_config_that_wants_tuples_changes_nothing():
    model = tiny_target()
    expected = hf_greedy(model, FIRST, 30)
    model.config.return_dict = False
    try:
        hf_greedy(model, FIRST, 2)
    except AttributeError:
        pytest.skip("this transformers cannot decode such a model either")
    for decoder in decoders(model):
        assert decoder.generate(FIRST, max_new_tokens=30).token_ids == expected


def quantised():
    model = tiny_target().cpu()
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


class Wrapper(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.inner = model
        self.config, self.device, self.dtype = model.config, model.device, model.dtype


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: "gpt2", "must be a loaded transformers model .* got str: load one with AutoModelForCausalLM"),
        (lambda: Wrapper(tiny_target()), "got Wrapper"),
        (lambda: nn.DataParallel(tiny_target()), r"got DataParallel: pass its \.module"),
        (lambda: tiny_target().model, "LlamaModel has no output layer"),
        (quantised, "quantised dynamically"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*quantiz.*:DeprecationWarning")
def test_what_is_no_stock_model_is_refused_by_name(make, message):
    model = make()
    with pytest.raises(UsageError, match=message):
        AutoregressiveDecoder(model, max_length=64)
    with pytest.raises(UsageError, match=message):
        RadarDecoder(model, draft=tiny_draft(), max_length=64)
