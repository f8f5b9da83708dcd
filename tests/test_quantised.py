"""Quantised targets: texts are `generate`'s of the same model, which stays as it is; what mixes rows is refused."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fakes import DEVICE, hf_greedy, tiny_target
from quantised_files import configured, write_compressed, write_fp8, write_mxfp4
from tiny_families import tiny_family
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig
from transformers.utils import is_kernels_available

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, TreeConfig
from radar.draft.config import DraftConfig
from radar.draft.eagle3 import Eagle3Draft
from radar.errors import UsageError
from radar.target import quantised
from radar.target.digest import weights_digest
from radar.target.fingerprint import fingerprint
from radar.target.load import load_model
from radar.target.quantised import KINDS, check_quantised, describe, kind_of
from radar.target.ranks import Ranks
from radar.train.draft_target import FrozenTarget, new_draft
from radar.train.options import TrainingOptions

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
NEW = 20
SIZES = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3}  # in blocks of 32 or 64


def stock():
    return tiny_target(**SIZES)


def decoders(model):
    torch.manual_seed(0)
    draft = Eagle3Draft(DraftConfig.of_target(model.config, draft_vocab_size=60)).eval()
    draft.set_draft_vocabulary(torch.arange(60))
    options = {"max_length": 64, "tap_layers": (0, 1, 2)}
    tree = TreeConfig(total_tokens=12, max_calls=3, tree_top_k=4)
    draft.to(model.device, model.dtype)
    return [
        RadarDecoder(model, draft=draft, policy=FixedDepth(2), tree=tree, fallback=False, **options),
        AutoregressiveDecoder(model, max_length=64),
    ]


def load(folder, **options):
    return load_model(str(folder), device=DEVICE, **{"dtype": None, "progress": False, **options})


def saved(how, folder):
    stock().save_pretrained(folder / "stock")
    model = AutoModelForCausalLM.from_pretrained(folder / "stock", quantization_config=how, device_map={"": DEVICE})
    model.save_pretrained(folder / "quantised")
    return folder / "quantised"


def torchao(name, folder):
    quantization = pytest.importorskip("torchao.quantization")
    four = {"weight_dtype": torch.int4, "granularity": quantization.PerGroup(32)}
    return saved(TorchAoConfig(getattr(quantization, name)(**(four if "Intx" in name else {}))), folder)


def bitsandbytes(how, folder):
    pytest.importorskip("bitsandbytes")
    return saved(BitsAndBytesConfig(**how), folder)


def compressed(inputs, folder):
    pytest.importorskip("compressed_tensors")
    return write_compressed(stock(), folder / "compressed", inputs)


FOUR = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
EIGHT = {"load_in_8bit": True, "llm_int8_threshold": 0.0}
CASES = {
    "torchao int8": (lambda folder: torchao("Int8WeightOnlyConfig", folder), "torchao, weights alone"),
    "torchao float8": (lambda folder: torchao("Float8WeightOnlyConfig", folder), "torchao, weights alone"),
    "torchao int4": (lambda folder: torchao("IntxWeightOnlyConfig", folder), "torchao, weights alone"),
    "bitsandbytes nf4": (lambda folder: bitsandbytes(FOUR, folder), "bitsandbytes, weights alone"),
    "bitsandbytes int8": (lambda folder: bitsandbytes(EIGHT, folder), "bitsandbytes, inputs too, row by row"),
    "compressed": (lambda folder: compressed(None, folder), "compressed-tensors, weights alone"),
    "compressed rows": (lambda folder: compressed("token", folder), "compressed-tensors, inputs too, row by row"),
}


@pytest.mark.parametrize("case", CASES)
def test_texts_are_those_of_generate_and_the_model_stays_as_it_is(case, tmp_path):
    write, said = CASES[case]
    model = load(write(tmp_path))
    assert describe(model).startswith(said)
    radar, plain = decoders(model)
    before = fingerprint(model), weights_digest(model)
    text = plain.generate(PROMPT, max_new_tokens=NEW).token_ids
    assert len(set(text)) > 4
    if "weights alone" in said:
        assert text == hf_greedy(model, PROMPT, NEW)
        assert radar.generate(PROMPT, max_new_tokens=NEW).token_ids == text
    else:  # its rounding makes much of the last bit, in transformers' own passes too
        assert len(radar.generate(PROMPT, max_new_tokens=NEW).token_ids) == NEW
        linear = model.model.layers[1].mlp.up_proj
        rows = torch.randn(1, 3, linear.in_features, generator=torch.Generator().manual_seed(0)).to(DEVICE)
        rows[:, 1:] *= 10  # of one scale with the first they would change it
        with torch.inference_mode():
            torch.testing.assert_close(linear(rows)[:, :1], linear(rows[:, :1]), rtol=1e-5, atol=1e-6)
    if case != "bitsandbytes nf4" or DEVICE.type == "cuda":  # processors with bfloat16 have it pack anew for a digest
        assert (fingerprint(model), weights_digest(model)) == before


@pytest.mark.skipif(DEVICE.type == "cuda", reason="there transformers leaves fp8 packed, and asks a hub for kernels")
def test_fp8_is_unpacked_where_there_is_no_gpu(tmp_path):
    pytest.importorskip("accelerate")
    model = load(write_fp8(stock(), tmp_path))
    expected = hf_greedy(model, PROMPT, NEW)
    assert expected != hf_greedy(stock(), PROMPT, NEW)
    assert [one.generate(PROMPT, max_new_tokens=NEW).token_ids for one in decoders(model)] == [expected] * 2


def test_mxfp4_is_unpacked_where_its_kernels_are_missing(tmp_path):
    pytest.importorskip("accelerate")
    if is_kernels_available():
        pytest.skip("kernels is there, and would be asked for them")
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    model = load(write_mxfp4(tiny_family("gpt_oss", layer_types=layers, **SIZES), tmp_path))
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    expected = hf_greedy(model, PROMPT, NEW)
    assert len(set(expected)) > 4
    assert [one.generate(PROMPT, max_new_tokens=NEW).token_ids for one in decoders(model)] == [expected] * 2


def test_what_a_library_leaves_to_the_first_forward_is_done_before_a_decoder_stands_on_it(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(compressed(None, tmp_path), device_map={"": DEVICE})
    linear = model.model.layers[0].mlp.up_proj
    assert linear.weight.dtype == torch.float8_e4m3fn
    AutoregressiveDecoder(model, max_length=64)
    assert linear.weight.dtype == torch.float32
    assert not linear.weight.is_inference()


def test_another_scale_of_a_quantised_weight_is_another_model():
    quantization = pytest.importorskip("torchao.quantization")
    model = stock()
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    weight = model.model.layers[1].mlp.up_proj.weight
    before = fingerprint(model), weights_digest(model)
    plain = decoders(model)[1]
    assert plain.generate(PROMPT, max_new_tokens=NEW).token_ids == hf_greedy(model, PROMPT, NEW)
    weight.scale.mul_(3)
    assert fingerprint(model).layout == before[0].layout
    assert fingerprint(model).values != before[0].values
    assert weights_digest(model) != before[1]
    assert plain.generate(PROMPT, max_new_tokens=NEW).token_ids == hf_greedy(model, PROMPT, NEW)
    weight.scale = weight.scale.clone()
    assert fingerprint(model).layout != before[0].layout


class OldWeight(torch.Tensor):
    """As torchao had it before 0.18, with a function that rounds inputs."""

    __module__ = "torchao.quantization.linear_activation_quantized_tensor"


def old_torchao(name):
    linear = nn.Linear(64, 96, bias=False)
    weight = linear.weight.detach().as_subclass(OldWeight)
    weight.input_quant_func = SimpleNamespace(__name__=name)
    linear._parameters["weight"] = weight
    return linear


def with_module(module):
    model = stock()
    model.model.layers[1].mlp.up_proj = module
    return model


def test_a_new_head_begins_with_a_quantised_output_layer():
    quantization = pytest.importorskip("torchao.quantization")
    model = stock()
    quantization.quantize_(model, quantization.Float8WeightOnlyConfig())
    text = SimpleNamespace(streams=[[1] * 100], frequencies=lambda size: np.ones(size))
    config = replace(DraftConfig.of_target(model.config, draft_vocab_size=40), num_aux_hidden_states=2)
    draft = new_draft(FrozenTarget(model, (0, 1)), config, text, TrainingOptions(length=16, steps=1))
    whole = model.get_output_embeddings().weight.dequantize()
    assert torch.equal(draft.lm_head.weight, whole[draft.target_ids()])


class Linear8bitLt(nn.Linear):
    """As in bitsandbytes, for where that is not installed."""

    __module__ = "bitsandbytes.nn.modules"

    def __init__(self, threshold):
        super().__init__(64, 96, bias=False)
        self.state = SimpleNamespace(threshold=threshold)


class GgufLinear(nn.Linear):
    __module__ = "transformers.integrations.gguf.utils"


def per_tensor():
    quantization = pytest.importorskip("torchao.quantization")
    model = stock()
    how = quantization.Int8DynamicActivationInt8WeightConfig(granularity=quantization.PerTensor())
    quantization.quantize_(model, how)
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (per_tensor, r"one scale of all rows.*each other's scores: quantise it with granularity=PerRow\(\)"),
        (lambda: with_module(Linear8bitLt(6.0)), r"layers.1.mlp.up_proj, a Linear8bitLt.*llm_int8_threshold=0.0"),
        (lambda: with_module(old_torchao("_int8_symm_per_token_quant_noop_decode")), r"inputs by _int8.*noop_decode"),
        (lambda: with_module(old_torchao("_quantise")), r"inputs by _quantise, not each row by itself.*PerRow\(\)"),
        (lambda: with_module(GgufLinear(64, 96, bias=False)), r"GgufConfig\(dequantize=True\)"),
    ],
)
def test_what_rounds_rows_by_other_rows_is_refused_by_name(make, message):
    model = make()
    for make_decoder in (AutoregressiveDecoder, lambda model, **options: decoders(model)):
        with pytest.raises(UsageError, match=message):
            make_decoder(model, max_length=64)


def test_compressed_inputs_of_one_scale_are_refused(tmp_path):
    model = load(compressed("tensor", tmp_path))
    with pytest.raises(UsageError, match=r"strategy 'tensor', which is of all rows.*strategy 'token'"):
        AutoregressiveDecoder(model, max_length=64)


def test_what_torchao_makes_to_train_is_refused():
    float8 = pytest.importorskip("torchao.float8")
    model = float8.convert_to_float8_training(stock(), config=float8.Float8LinearConfig(emulate=True))
    with pytest.raises(UsageError, match=r"torchao's Float8Linear, made to train.*convert the model"):
        AutoregressiveDecoder(model, max_length=64)


def test_rows_by_themselves_are_let_through():
    for module in (Linear8bitLt(0.0), old_torchao("_int8_asymm_per_token_quant")):
        model = with_module(module)
        check_quantised(model)
    assert describe(model).startswith("torchao, inputs too, row by row")
    quantization = pytest.importorskip("torchao.quantization")
    model = stock()
    quantization.quantize_(model, quantization.Int8DynamicActivationInt8WeightConfig())
    check_quantised(model)
    assert describe(model).startswith("torchao, inputs too, row by row")
    assert describe(stock()) is None


def test_methods_that_are_not_known_or_not_installed_are_refused_before_weights_are_read(tmp_path, monkeypatch):
    stock().config.save_pretrained(tmp_path)  # and no weights
    for method in ("fouroversix", None):
        with pytest.raises(UsageError, match=f"quantised by '{method}'.*known: torchao, bitsandbytes"):
            load(configured(tmp_path, {"quant_method": method}))
    monkeypatch.setattr(quantised, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"by GPTQ needs accelerate and .*: pip install accelerate optimum gptqmodel"):
        load(configured(tmp_path, {"quant_method": "gptq", "bits": 4}))
    old = SimpleNamespace(quantization_config={"load_in_8bit": True})
    assert kind_of(old) is KINDS["bitsandbytes"]


@pytest.mark.parametrize("what", ["fp8", "compressed", "eetq", "plain weights"])
def test_config_and_weights_that_disagree_are_refused(what, tmp_path):
    if what == "plain weights":
        folder, message = torchao("Int8WeightOnlyConfig", tmp_path), "no transformers model.*torchao"
        shutil.copy(tmp_path / "stock" / "model.safetensors", folder)
    elif "eetq" in what:
        model = stock()
        for name, part in list(model.named_modules()):
            if name.endswith("_proj"):
                part.register_buffer("weight_scales", torch.ones(part.out_features))
        model.save_pretrained(tmp_path)
        folder, message = tmp_path, r"21 tensors are of quantised weights, which the config says nothing of"
    else:
        write = write_fp8 if "fp8" in what else write_compressed
        folder = configured(write(stock(), tmp_path), None)
        message = r"not of one model: 21 tensors are of quantised weights, which the config says nothing of"
    with pytest.raises(UsageError, match=message):
        load(folder)


def test_no_quantised_target_is_split(tmp_path, monkeypatch):
    monkeypatch.setattr("radar.target.load.join_ranks", lambda device: Ranks(0, 2))
    pytest.importorskip("accelerate")
    with pytest.raises(UsageError, match="is quantised, and no such model is split"):
        load(write_fp8(stock(), tmp_path), tp_plan="auto")


def test_another_type_than_it_was_quantised_for_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"cannot make a forward.*leave dtype= out"):
        load(torchao("Float8WeightOnlyConfig", tmp_path), dtype=torch.bfloat16)
