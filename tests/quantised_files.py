"""Tiny quantised models on disk, written by hand: a folder of safetensors in fp8, or one GGUF file."""

import json

import numpy as np
import torch
from safetensors.torch import load_file, save_file

__all__ = ["configured", "write_compressed", "write_fp8", "write_gguf", "write_mxfp4"]

GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def configured(folder, quantization_config):
    """A folder's config, with another `quantization_config`; None: without."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("quantization_config", None)
    if quantization_config is not None:
        config["quantization_config"] = quantization_config
    path.write_text(json.dumps(config))
    return folder


def _with_scales(model, folder, suffix, quantised):
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    found = {}
    for name, weight in load_file(file).items():
        if name.endswith("proj.weight"):
            found[name], found[name + suffix] = quantised(weight)
        else:
            found[name] = weight
    save_file(found, file, metadata={"format": "pt"})


def write_compressed(model, folder, inputs=None):
    """compressed-tensors' fp8, a scale a row of a weight; inputs: the strategy of their dynamic scale."""

    def quantised(weight):
        scale = weight.abs().amax(1, keepdim=True) / 448
        return (weight / scale).to(torch.float8_e4m3fn), scale

    numbers = {"num_bits": 8, "type": "float", "symmetric": True}
    group = {"targets": ["Linear"], "weights": {**numbers, "strategy": "channel"}}
    if inputs is not None:
        group["input_activations"] = {**numbers, "dynamic": True, "strategy": inputs}
    _with_scales(model, folder, "_scale", quantised)
    how = {"quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed"}
    return configured(folder, {**how, "config_groups": {"all": group}, "ignore": ["lm_head"]})


def write_fp8(model, folder, block=32):
    """fp8 in square blocks, as DeepSeek's: what transformers unpacks where there is no GPU."""

    def quantised(weight):
        rows, columns = (size // block for size in weight.shape)
        blocks = weight.reshape(rows, block, columns, block)
        scale = blocks.abs().amax((1, 3), keepdim=True) / 448
        return (blocks / scale).reshape(weight.shape).to(torch.float8_e4m3fn), scale[:, 0, :, 0].contiguous()

    _with_scales(model, folder, "_scale_inv", quantised)
    how = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [block, block]}
    return configured(folder, how)


def write_mxfp4(model, folder):
    """gpt-oss with experts of random 4-bit numbers, 32 to a scale."""
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    found = load_file(file)
    for name in [name for name in found if name.endswith("_proj") and "experts" in name]:
        experts, columns, rows = found.pop(name).shape  # of the transposed weight
        found[f"{name}_blocks"] = torch.randint(0, 256, (experts, rows, columns // 32, 16), dtype=torch.uint8)
        found[f"{name}_scales"] = torch.randint(122, 126, (experts, rows, columns // 32), dtype=torch.uint8)
    save_file(found, file, metadata={"format": "pt"})
    return configured(folder, {"quant_method": "mxfp4", "modules_to_not_convert": []})


def write_gguf(model, file, kind="F32", architecture="llama"):
    """A Llama model and a tokenizer of its 64 tokens, as llama.cpp would have them; sizes that divide by 32."""
    import gguf

    config, written = model.config, gguf.GGUFWriter(file, architecture)
    written.add_context_length(config.max_position_embeddings)
    written.add_embedding_length(config.hidden_size)
    written.add_block_count(config.num_hidden_layers)
    written.add_feed_forward_length(config.intermediate_size)
    written.add_head_count(config.num_attention_heads)
    written.add_head_count_kv(config.num_key_value_heads)
    written.add_layer_norm_rms_eps(config.rms_norm_eps)
    written.add_rope_freq_base(config.rope_parameters["rope_theta"])
    written.add_vocab_size(config.vocab_size)
    letters = [*(chr(code) for code in range(ord("A"), ord("A") + config.vocab_size - 4)), "AB", "CD", "<start>"]
    written.add_tokenizer_model("gpt2")
    written.add_token_list(["<end>", *letters])
    written.add_token_types([3, *[1] * (len(letters) - 1), 3])
    written.add_token_merges(["A B", "C D"])
    written.add_eos_token_id(0)
    written.add_bos_token_id(len(letters))
    written.add_add_bos_token(False)
    quant = gguf.GGMLQuantizationType[kind]
    for name, weight in model.state_dict().items():
        values = np.ascontiguousarray(weight.float().cpu().numpy())
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:  # llama.cpp turns neighbours, transformers halves
                halves = values.reshape(heads, 2, -1, config.hidden_size)
                values = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))
        if kind != "F32" and values.ndim > 1:
            written.add_tensor(_gguf_name(name), gguf.quants.quantize(values, quant), raw_dtype=quant)
        else:
            written.add_tensor(_gguf_name(name), values)
    written.write_header_to_file()
    written.write_kv_data_to_file()
    written.write_tensors_to_file()
    written.close()
    return file


def _gguf_name(name):
    name = name.removesuffix(".weight")
    if name in GGUF_NAMES:
        return f"{GGUF_NAMES[name]}.weight"
    _, _, index, rest = name.split(".", 3)
    return f"blk.{index}.{GGUF_NAMES[rest]}.weight"
