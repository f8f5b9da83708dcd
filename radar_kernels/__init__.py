"""Triton kernels for speculative decoding with a stop policy; on a CPU each op runs its plain PyTorch reference.

Attention of a tree is `canonical_attention` (the target) and `tree_attention` (the draft), the top-k confidences of a
draft call are taken and added to the tree by `grow_tree`, and the policy's LSTM steps in `lstm_step`.
"""

from radar_kernels.accept_nodes import Acceptance, accept_nodes
from radar_kernels.batch_stop import batch_stop
from radar_kernels.cache_rows import keep_rows, store_rows
from radar_kernels.canonical_attention import canonical_attention
from radar_kernels.choose_nodes import NodeChoice, NodeWeights, choose_nodes
from radar_kernels.draft_rows import Beam, DraftRows, draft_rows
from radar_kernels.grow_tree import TreeBuffers, grow_tree
from radar_kernels.lstm_step import LstmStep, PolicyWeights, lstm_step
from radar_kernels.mark_seen import mark_seen
from radar_kernels.mass_stop import mass_stop
from radar_kernels.quantize_rows import quantize_rows
from radar_kernels.rms_norm import add_rms_norm, rms_norm
from radar_kernels.rotary_angles import rotary_angles
from radar_kernels.rotate_store import HeadNorms, rotate_store
from radar_kernels.sample_tokens import SamplingState, greedy_tokens, sample_tokens
from radar_kernels.select_nodes import VerifyTree, select_nodes
from radar_kernels.share_nodes import Share, share_nodes
from radar_kernels.silu_mul import silu_mul
from radar_kernels.skinny_linear import Parts, runs_skinny, skinny_linear, skinny_parts
from radar_kernels.tree_attention import tree_attention
from radar_kernels.tree_mass import tree_mass

__all__ = [
    "Acceptance",
    "Beam",
    "DraftRows",
    "HeadNorms",
    "LstmStep",
    "NodeChoice",
    "NodeWeights",
    "Parts",
    "PolicyWeights",
    "SamplingState",
    "Share",
    "TreeBuffers",
    "VerifyTree",
    "accept_nodes",
    "add_rms_norm",
    "batch_stop",
    "canonical_attention",
    "choose_nodes",
    "draft_rows",
    "greedy_tokens",
    "grow_tree",
    "keep_rows",
    "lstm_step",
    "mark_seen",
    "mass_stop",
    "quantize_rows",
    "rms_norm",
    "rotary_angles",
    "rotate_store",
    "runs_skinny",
    "sample_tokens",
    "select_nodes",
    "share_nodes",
    "silu_mul",
    "skinny_linear",
    "skinny_parts",
    "store_rows",
    "tree_attention",
    "tree_mass",
]
