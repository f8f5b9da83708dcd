"""The models whose shapes are measured."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """What a kernel needs to know of a model. `draft_vocabulary` is that of the published EAGLE-3 head."""

    name: str
    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    draft_vocabulary: int = 32000


LLAMA_8B = Geometry(
    name="Llama-3.1-8B", layers=32, hidden_size=4096, intermediate_size=14336, heads=32, kv_heads=8, head_dim=128,
    vocabulary=128256,
)  # fmt: skip
LLAMA_70B = replace(LLAMA_8B, name="Llama-3.1-70B", layers=80, hidden_size=8192, intermediate_size=28672, heads=64)
DEEPSEEK_8B = replace(LLAMA_8B, name="DeepSeek-R1-Distill-Llama-8B")
VICUNA_13B = Geometry(
    name="Vicuna-13B", layers=40, hidden_size=5120, intermediate_size=13824, heads=40, kv_heads=40, head_dim=128,
    vocabulary=32000,
)  # fmt: skip
QWEN3_8B = Geometry(
    name="Qwen3-8B", layers=36, hidden_size=4096, intermediate_size=12288, heads=32, kv_heads=8, head_dim=128,
    vocabulary=151936,
)  # fmt: skip
TINY = Geometry(
    name="tiny", layers=2, hidden_size=256, intermediate_size=688, heads=4, kv_heads=2, head_dim=64, vocabulary=2048,
    draft_vocabulary=2048,
)  # fmt: skip
GEOMETRIES = (LLAMA_8B, VICUNA_13B, QWEN3_8B)
