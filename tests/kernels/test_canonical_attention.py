"""canonical_attention: the reference against the formula, the kernels against the reference, and bits against bits."""

import importlib

import pytest
import torch
from test_tree_attention import SHAPES, Case
from tolerances import assert_close

from radar_kernels import canonical_attention, reference_canonical
from radar_kernels.ancestor_paths import ancestor_paths
from radar_kernels.reference_canonical import PAGE
from radar_kernels.reference_tree import pack_bits

op = importlib.import_module("radar_kernels.canonical_attention")
NAN = float("nan")
EXTRAS = {
    "nothing": {},
    "window": {"window": 21},
    "window of one": {"window": 1},
    "softcap": {"softcap": 1.5},
    "sink": {"sink": True},
    "all": {"window": 70, "softcap": 3.0, "sink": True, "scale": 0.5},
}


def options_of(case, extra):
    extra = dict(extra)
    if extra.pop("sink", False):
        extra["sink"] = torch.randn(case.query.shape[1], device=case.query.device)
    return extra


def inputs_of(case):
    """Paths in place of ancestor bits."""
    *tensors, ancestors = case.inputs
    return *tensors, ancestor_paths(ancestors, 64 * ancestors.shape[2])


def formula(case, *, window=None, softcap=None, sink=None, scale=None):
    """In float64, a path at a time."""
    query, key, value = (x.double().cpu() for x in (case.query, case.key, case.value))
    batch, heads, nodes, dim = query.shape
    output = torch.zeros(batch, nodes, heads, dim, dtype=torch.float64)
    for b in range(batch):
        for n in range(nodes):
            path = case.visible[b, n].nonzero().flatten().tolist()
            path = path if window is None else path[-window:]
            for h in range(heads if path else 0):
                group = h // (heads // key.shape[1])
                scores = key[b, group, path] @ query[b, h, n] * (dim**-0.5 if scale is None else scale)
                scores = scores if softcap is None else softcap * (scores / softcap).tanh()
                rest = [] if sink is None else [sink[h].double().cpu()[None]]
                weights = torch.cat([scores, *rest]).softmax(0)[: len(path)]
                output[b, n, h] = weights @ value[b, group, path]
    return output.to(case.query.device)


def paged(*tensors):
    """A cache [B, KV, S, D] as pages in a random order among others that hold NaN, and their table."""
    batch, kv_heads, capacity, dim = tensors[0].shape
    count = -(-capacity // PAGE)
    numbers = torch.randperm(2 * batch * count)[: batch * count].view(batch, count).to(tensors[0].device)
    made = []
    for tensor in tensors:
        pages = torch.full((2 * batch * count, kv_heads, PAGE, dim), NAN, dtype=tensor.dtype, device=tensor.device)
        whole = torch.nn.functional.pad(tensor, (0, 0, 0, count * PAGE - capacity), value=NAN)
        pages[numbers] = whole.unflatten(2, (count, PAGE)).transpose(1, 2)
        made.append(pages)
    return *made, numbers.int()


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("shape", ["prefix 0", "prefix 127", "70 nodes, two words", "batch 2", "group 7"])
def test_reference_equals_the_formula(shape, extra, device):
    case = Case(**SHAPES[shape], device=device)
    options = options_of(case, EXTRAS[extra])
    expected = formula(case, **options)
    found = reference_canonical.canonical_attention(*inputs_of(case), **options)
    assert_close(found, expected, "tree_attention reference", torch.float32)
    key, value, table = paged(case.key, case.value)
    inputs = (case.query, key, value, *inputs_of(case)[3:])
    found = canonical_attention(*inputs, **options, block_table=table, backend="torch")
    assert_close(found, expected, "tree_attention reference", torch.float32)


@pytest.mark.parametrize(
    "shape",
    [
        "prefix 0", "prefix of whole blocks", "one node", "one node alone", "10 queries of 80 rows", "batch 2",
        "group 7", "dim 96", "dim 32, full cache", "many splits",
    ],
)  # fmt: skip
def test_kernels_equal_the_reference(shape, kernel_dtype, device):
    case = Case(**SHAPES[shape], dtype=kernel_dtype, device=device)
    expected = reference_canonical.canonical_attention(*inputs_of(case))
    found = canonical_attention(*inputs_of(case), backend="triton")
    assert_close(found, expected, "tree_attention", kernel_dtype)
    if shape in ("10 queries of 80 rows", "batch 2", "many splits"):
        key, value, table = paged(case.key, case.value)
        inputs = (case.query, key, value, *inputs_of(case)[3:])
        assert torch.equal(canonical_attention(*inputs, block_table=table, backend="triton"), found)


@pytest.mark.parametrize("prefix", [256, 319, 320, 321, 512, 576])
def test_no_chunk_is_left_out(prefix, device):
    """Where the last chunk has begun, and has no whole block, one, or all of its own."""
    case = Case(heads=2, kv_heads=1, dim=16, nodes=3, prefix=(prefix,), device=device)
    expected = reference_canonical.canonical_attention(*inputs_of(case))
    found = canonical_attention(*inputs_of(case), backend="triton")
    assert_close(found, expected, "tree_attention", torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("extra", [name for name in EXTRAS if name != "nothing"])
@pytest.mark.parametrize("shape", ["prefix 127", "10 queries of 80 rows"])
def test_window_softcap_and_sink(shape, extra, device):
    case = Case(**SHAPES[shape], device=device)
    options = options_of(case, EXTRAS[extra])
    expected = reference_canonical.canonical_attention(*inputs_of(case), **options)
    assert_close(
        canonical_attention(*inputs_of(case), **options, backend="triton"), expected, "tree_attention", torch.float32
    )


class Text:
    """A text's keys and values by position, and queries that ask for its tokens in other surroundings."""

    def __init__(self, length, dtype, device, *, heads=2, kv_heads=1, dim=16):
        self.keys, self.values = (torch.randn(1, kv_heads, length, dim).to(device, dtype) for _ in range(2))
        self.query = torch.randn(1, heads, 1, dim).to(device, dtype)
        self.device = device

    def alone(self, position, **options):
        """One token of plain decoding."""
        return self.within(position, 0, nodes=1, **options)

    def within(self, position, depth, *, nodes, own=None, pages=False, seed=0, **options):
        """The token as node `own` of a random tree, `depth` draft tokens below the root, whose rows are the text's."""
        generator = torch.Generator().manual_seed(seed)
        own = nodes - 1 if own is None else own
        start = position - depth
        columns = [*torch.randperm(own, generator=generator)[:depth].sort().values.tolist(), own]
        dense = torch.eye(nodes, dtype=torch.bool)
        for child in range(1, nodes):  # any tree whose nodes come behind their parents
            dense[child] |= dense[int(torch.randint(child, (), generator=generator))]
        dense[own] = False
        dense[own, columns] = True
        (_, kv_heads, _, dim), rows = self.keys.shape, start + nodes
        key, value = (torch.randn(1, kv_heads, rows, dim, generator=generator).to(self.keys) for _ in range(2))
        query = torch.randn(1, self.query.shape[1], nodes, dim, generator=generator).to(self.keys)
        for cache, text in ((key, self.keys), (value, self.values)):
            cache[:, :, :start] = text[:, :, :start]
            cache[:, :, [start + column for column in columns]] = text[:, :, start : position + 1]
        query[:, :, own] = self.query[:, :, 0]
        words = torch.nn.functional.pad(dense, (0, -nodes % 64)).unflatten(-1, (-1, 64)).long()
        ancestors = (words << torch.arange(64)).sum(-1)[None].to(self.device)
        length, paths = torch.tensor([start], device=self.device), ancestor_paths(ancestors, nodes)
        if pages:
            key, value, options["block_table"] = paged(key, value)
        return canonical_attention(query, key, value, length, paths, backend="triton", **options)[0, own]


# chunks are of 256 keys, and from 4,096 on of 1,024
POSITIONS = [0, 64, 256, 261, *(pytest.param(far, marks=pytest.mark.slow) for far in (1000, 4099))]
TREES = [(1, 3, {}), (4, 9, {"own": 6}), (6, 12, {"pages": True}), (9, 67, {"own": 66})]


@pytest.mark.parametrize("position", POSITIONS)
def test_a_tokens_bits_depend_on_its_path_alone(position, kernel_dtype, device):
    if kernel_dtype == torch.float32 and device.type == "cpu" and position not in (64, 261):
        pytest.skip("the interpreter does the same to every type")
    text = Text(position + 1, kernel_dtype, device)
    expected = text.alone(position)
    assert torch.equal(text.alone(position, pages=True), expected)
    for seed, (depth, nodes, options) in enumerate(TREES):
        found = text.within(position, min(depth, position), nodes=nodes, seed=seed, **options)
        assert torch.equal(found, expected), (depth, nodes, options)


@pytest.mark.parametrize("extra", [{"window": 100}, {"window": 3, "softcap": 2.0}], ids=str)
@pytest.mark.parametrize("position", [65, 259])
def test_bits_under_a_window_too(position, extra, device):
    text = Text(position + 1, torch.float16, device)
    expected = text.alone(position, **extra)
    for depth, nodes, options in TREES[1:3]:
        assert torch.equal(text.within(position, depth, nodes=nodes, **options, **extra), expected)


def test_a_key_at_another_position_would_be_seen(device):
    """The comparison of bits has teeth: two keys of the path change places, the sum is the same but for rounding."""
    text = Text(261, torch.float16, device)
    before = text.alone(260)
    for swapped in (text.keys, text.values):
        swapped[:, :, [40, 200]] = swapped[:, :, [200, 40]]
    after = text.alone(260)
    assert not torch.equal(after, before)
    assert_close(after, before, "tree_attention", torch.float16)


def test_chunks_are_where_the_kernels_think(device):
    """The host counts chunks, the kernels ask for theirs by position."""
    starts = [*range(0, 4096, 256), *range(4096, 16384, 1024), *range(16384, 40000, 2048)]
    for chunk, start in enumerate(starts):
        assert op.chunk_of(start) == chunk
        assert start == 0 or op.chunk_of(start - 1) == chunk - 1


@pytest.mark.parametrize("nodes", [1, 10, 70, 140])
def test_paths_are_the_bits_in_order(nodes, device):
    dense = torch.eye(nodes, dtype=torch.bool)
    for child in range(1, nodes):
        dense[child] |= dense[int(torch.randint(child, ()))]
    words = pack_bits(dense)[None].expand(2, -1, -1).to(device)
    expected, found = (ancestor_paths(words, 20, backend=backend) for backend in ("torch", "triton"))
    assert torch.equal(found.lengths, dense.sum(1).expand(2, -1).int().to(device))
    assert torch.equal(found.lengths, expected.lengths)
    for node in range(nodes):
        path = dense[node].nonzero().flatten()[:20].int().to(device)
        for paths in (found, expected):
            assert torch.equal(paths.columns[1, node, : len(path)], path)


@pytest.mark.parametrize(("pages", "extra"), [(False, {"window": 65, "softcap": 2.0}), (True, {})], ids=str)
def test_nodes_of_several_texts_in_one_row(extra, pages, device):
    """Each node an entry of the batch: the bits are those of trees side by side, with the keys of a text read once for
    its nodes, and without."""
    lengths, counts, most, groups = [130, 0, 66], [5, 2, 18], 18, 4
    key, value = (torch.randn(3, 1, 192, 16, device=device).half() for _ in range(2))
    query = torch.randn(3, groups, most, 16, device=device).half()
    dense = torch.eye(most, dtype=torch.bool)
    for child in range(1, most):
        dense[child] |= dense[int(torch.randint(child, ()))]
    paths = ancestor_paths(pack_bits(dense)[None].expand(3, -1, -1).to(device), 20)
    length = torch.tensor(lengths, device=device)
    table = None
    if pages:
        key, value, table = paged(key, value)
        extra = extra | {"block_table": table}
    side_by_side = canonical_attention(query, key, value, length, paths, **extra, backend="triton")

    nodes = [(row, node) for row, count in enumerate(counts) for node in range(count)]
    row = torch.tensor([row for row, _ in nodes] + [0, 0], device=device)  # and two of no text
    node = torch.tensor([node for _, node in nodes] + [most - 1] * 2, device=device)
    prefix = length[row]
    prefix[-2:] = 0
    if pages:
        extra["block_table"] = table[row]
    else:
        key, value = key[row], value[row]
    starts = torch.tensor([0, 5, 7, 25], dtype=torch.int32, device=device)
    entries = op.Paths(paths.columns[row, node][:, None].contiguous(), paths.lengths[row, node][:, None].contiguous())
    inputs = query[row, :, node][:, :, None], key, value, prefix, entries
    for alike in (None, op.Alike(starts, most)):
        packed = canonical_attention(*inputs, **extra, alike=alike, backend="triton")
        assert torch.equal(packed[:-2, 0], side_by_side[row, node][:-2])
    with pytest.raises(ValueError, match=r"with alike query must be \[B, H, 1, D\]"):
        canonical_attention(*inputs, **extra, alike=op.Alike(starts.long(), most), backend="triton")
