"""The ops under torch's own tools: opcheck, compile, export, autocast, autograd."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from op_cases import SPEC, Case, Runner, error, kind, make_case, run, seeded_like, values
from tolerances import SAME
from torch import Tensor, nn

from carzero.ops import pack_weights, pair_attention, pair_logits, pair_simr, project_memory

COUNT = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 9, 0, 0], [1, 0, 1, 1, 2]], dtype=torch.int32)
PAIRS = torch.tensor([[2, 1], [0, 3]])


def raw_arguments(
    case: Case, backend: str, *, head: bool = True, recompute: str = "full", dropout_p: float = 0.2
) -> tuple:
    w = case.weights
    return (
        case.memory, case.queries, case.options.get("row_count"), case.options.get("pairs"), w.norm_weight, w.norm_bias,
        [t for layer in w.layers for t in layer], list(w.head) if head else [], None, SPEC.heads, SPEC.eps, 0.2,
        torch.tensor([4]), 1, 5, 6, False, False, backend, recompute, 0, 0, None, "",
    )  # fmt: skip


def permuted(case: Case) -> Case:
    memory = case.memory.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    queries = case.queries.detach().T.contiguous().T.requires_grad_()
    return replace(case, memory=memory, queries=queries)


@pytest.mark.parametrize("layout", [lambda case: case, permuted], ids=["compact", "permuted"])
@pytest.mark.parametrize(
    "options", [{"row_count": COUNT}, {"pairs": torch.tensor([[2, 1], [0, 3]])}], ids=["grid", "pairs"]
)
@pytest.mark.parametrize("op", ["pair_logits", "pair_simr"])
def test_opcheck(runner: Runner, op: str, options: dict, layout) -> None:
    if runner.absorb or runner.sixteen_bit:
        return
    case = layout(make_case(3, 4, 5, **options))
    arguments = raw_arguments(case, runner.backend, head=op == "pair_logits", recompute=runner.recompute)
    found = torch.library.opcheck(getattr(torch.ops.carzero, op).default, arguments)
    assert len(found) == 4
    assert set(found.values()) == {"SUCCESS"}


def test_opcheck_of_the_backward_and_of_the_inference_ops() -> None:
    case = make_case(3, 4, 5, row_count=COUNT)
    with torch.no_grad():
        case = replace(
            case, memory=case.memory.detach(), queries=case.queries.detach(), weights=case.weights.map(Tensor.detach)
        )
        arguments = raw_arguments(case, "torch")
        out, tape = torch.ops.carzero.pair_logits(*arguments)
    layers = [t for layer in case.weights.layers for t in layer]
    w = case.weights
    calls = {
        "pair_logits_backward": (torch.ones_like(out), tape, *arguments),
        "pair_attention": (
            case.memory, case.queries, COUNT, None, w.norm_weight, w.norm_bias, layers, None, SPEC.heads, SPEC.eps,
            False, 11, "torch", 0, None, "",
        ),
        "project_memory": (case.memory, COUNT, w.norm_weight, w.norm_bias, layers, SPEC.eps, ""),
    }  # fmt: skip
    for name, values_ in calls.items():
        found = torch.library.opcheck(getattr(torch.ops.carzero, name).default, values_)
        assert set(found.values()) == {"SUCCESS"}, name


def test_raw_ops_are_differentiable(runner: Runner) -> None:
    case = make_case(3, 4, 5, runner.dtypes()[0], row_count=COUNT)
    with runner.forced():
        out, tape = torch.ops.carzero.pair_logits(*raw_arguments(case, runner.backend, recompute=runner.recompute))
        assert not tape.requires_grad
        grads = torch.autograd.grad(out, case.leaves(), seeded_like(out))
    how = {"dropout_p": 0.2, "seed": 4, "direction": 1, "memory_offset": 5, "query_offset": 6}
    theirs = values(runner, case, **how)
    assert torch.equal(out, theirs["out"])
    assert torch.equal(grads[1], theirs["queries"])
    assert torch.equal(grads[-1], theirs["head.3.bias"])


def test_second_derivatives_are_refused_with_a_way_out(runner: Runner) -> None:
    case = make_case(2, 3, 5, runner.dtypes()[0])
    with runner.forced():
        (grad,) = torch.autograd.grad(run(runner, case).sum(), case.memory, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"its gradient cannot be differentiated again\. For second"):
        torch.autograd.grad(grad.sum(), case.memory)


def test_only_what_is_wanted_gets_a_gradient(runner: Runner) -> None:
    case = make_case(2, 3, 5, runner.dtypes()[0])
    frozen = replace(case, memory=case.memory.detach(), weights=case.weights.map(Tensor.detach))
    with runner.forced():
        out = run(runner, frozen)
        out.backward(seeded_like(out))
    assert case.queries.grad is not None
    assert error(case.queries.grad, values(runner, case)["queries"]) <= SAME[runner.dtypes()[0], "gradient"].value


class Module(nn.Module):
    """The op with weights as parameters, as a model holds them."""

    def __init__(self, case: Case, backend: str, **options) -> None:
        super().__init__()
        self.spec, self.backend, self.options = case.weights.spec, backend, options
        self.tensors = nn.ParameterList(case.weights.flat())
        self.type = type(case.weights)

    def forward(self, memory: Tensor, queries: Tensor) -> Tensor:
        weights = self.type.from_flat(self.spec, list(self.tensors))
        return pair_logits(memory, queries, weights, backend=self.backend, **self.options).sin()


def test_compile_fullgraph_with_dynamic_shapes(runner: Runner) -> None:
    if runner.absorb or runner.sixteen_bit:
        return
    torch._dynamo.reset()
    first = make_case(3, 4, 5)
    module = Module(first, runner.backend, recompute=runner.recompute, dropout_p=0.2, seed=3)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((3, 4, 5), (2, 7, 9), (5, 3, 4)):
        case = make_case(*shape)
        outs = [f(case.memory, case.queries) for f in (compiled, module)]
        grads = [torch.autograd.grad(out.sum(), [case.memory, *module.parameters()]) for out in outs]
        assert torch.equal(*outs)
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.slow
def test_compile_with_inductor(runner: Runner) -> None:
    if runner.absorb or runner.sixteen_bit:
        return
    torch._dynamo.reset()
    case = make_case(3, 4, 5)
    module = Module(case, runner.backend)
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    ours, theirs = (
        torch.autograd.grad(f(case.memory, case.queries).sum(), [case.memory, case.queries, *module.parameters()])
        for f in (compiled, module)
    )
    for a, b in zip(ours, theirs, strict=True):
        assert error(a, b) <= SAME[torch.float32, "gradient"].value


def test_export_with_dynamic_shapes(runner: Runner) -> None:
    if runner.absorb or runner.sixteen_bit:
        return
    case = make_case(3, 4, 5)
    module = Module(case, runner.backend).eval()
    sizes = ({0: torch.export.Dim("M"), 1: torch.export.Dim("P")}, {0: torch.export.Dim("Q")})
    example = case.memory.detach(), case.queries.detach()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, example, dynamic_shapes=sizes).module()
        other = make_case(2, 7, 9)
        assert torch.equal(program(other.memory, other.queries), module(other.memory, other.queries))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_casts_inputs_keeps_weights_returns_float32(runner: Runner, dtype: torch.dtype) -> None:
    if dtype not in runner.dtypes():
        return
    case = make_case(3, 4, 5)
    rounded = replace(
        case,
        memory=case.memory.detach().to(dtype).requires_grad_(),
        queries=case.queries.detach().to(dtype).requires_grad_(),
    )
    with torch.autocast("cpu", dtype=dtype):
        ours = values(runner, case)
        with runner.forced(), torch.no_grad():
            assert run(runner, case, simr=True).dtype == torch.float32
    plain = values(runner, rounded)
    assert ours["out"].dtype == torch.float32
    assert {value.dtype for value in ours.values()} == {torch.float32}
    for name, value in ours.items():
        assert error(value, plain[name]) <= SAME[dtype, kind(name)].value, name


def test_autocast_of_mixed_inputs_and_of_float64() -> None:
    case = make_case(3, 4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        mixed = pair_logits(case.memory.bfloat16(), case.queries, case.weights, backend="torch")
        same = pair_logits(case.memory, case.queries, case.weights, backend="torch")
        wide = make_case(3, 4, 5, torch.float64)
        assert torch.equal(mixed, same)
        assert pair_logits(wide.memory, wide.queries, wide.weights, backend="torch").dtype == torch.float64
        assert project_memory(case.memory, case.weights).kv.dtype == torch.bfloat16
        maps = pair_attention(case.memory, case.queries, case.weights, backend="torch")
    assert maps.dtype == torch.float32


def test_backward_inside_autocast_computes_as_outside(runner: Runner) -> None:
    case = make_case(3, 4, 5)
    if runner.sixteen_bit:
        return
    with runner.forced():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = run(runner, case)
            inside = torch.autograd.grad(out, case.leaves(), seeded_like(out), retain_graph=True)
        outside = torch.autograd.grad(out, case.leaves(), seeded_like(out))
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))


def test_packed_weights_under_autocast(runner: Runner) -> None:
    if torch.bfloat16 not in runner.dtypes():
        return
    case = make_case(3, 4, 5)
    with runner.forced(), torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        packed = replace(case, weights=pack_weights(case.weights, torch.bfloat16))
        assert torch.equal(run(runner, packed), run(runner, case))


@pytest.mark.parametrize("memories", [4, 16])
def test_bytes_kept_between_forward_and_backward(runner: Runner, memories: int) -> None:
    """Inputs and weights and nothing that grows with M*Q, unless a tape is asked for."""
    case = make_case(memories, 12, 9, dropout_p=0.1, seed=1)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with runner.forced(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run(runner, case)
    own = sum(leaf.untyped_storage().nbytes() for leaf in case.leaves())
    rows = 2 * memories * 12
    layer = rows * SPEC.width * 4
    # residual stream twice, attention output, q of one layer of two, hidden; and two masks of a byte an element, or the
    # log-sum-exps of the heads where the kernels draw masks again
    more = rows * SPEC.heads * 4 if runner.backend == "triton" else 2 * rows * SPEC.width
    none = 3 * layer + layer // 2 + rows * SPEC.ffn * 4 + more
    tape = {"full": 0, "layer": layer, "none": none}[runner.recompute]
    assert out.requires_grad
    # the seed is the one tensor more
    assert own + tape <= sum(kept.values()) <= own + tape + 64


def test_workspace_does_not_grow_with_the_number_of_memories(need) -> None:
    """The torch backend's largest live set of tensors, forward and backward, at M and at 4 M."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Live(TorchDispatchMode):
        """Peak bytes of storages that ops inside made and that are still referenced."""

        def __init__(self) -> None:
            super().__init__()
            self.sizes: dict[int, int] = {}
            self.peak = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            import weakref

            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, Tensor):
                    storage = tensor.untyped_storage()
                    if storage._cdata not in self.sizes:
                        self.sizes[storage._cdata] = storage.nbytes()
                        weakref.finalize(storage, self.sizes.pop, storage._cdata, None)
            self.peak = max(self.peak, sum(self.sizes.values()))
            return out

    from carzero.ops.call import Options, Params
    from carzero.ops.tiled import pair_forward
    from carzero.ops.tiled_backward import pair_backward

    peaks = []
    for memories in (8, 32):
        case = make_case(memories, 16, 9)
        params, options = Params.of(case.weights), Options(tile_pairs=32)
        with torch.no_grad(), Live() as live:
            pair_forward(case.memory, case.queries, params, options)
            pair_backward(torch.ones(memories * 16), case.memory, case.queries, params, options)
        # outputs grow with M by nature: logits and the memory's gradient
        peaks.append(live.peak - case.memory.nbytes - memories * 16 * 4)
    assert peaks[1] <= 1.05 * peaks[0]


def test_simr_gives_no_gradient_to_the_head(runner: Runner) -> None:
    case = make_case(2, 3, 5, runner.dtypes()[0])
    with runner.forced():
        out = pair_simr(case.memory, case.queries, case.weights, backend=runner.backend)
        assert torch.autograd.grad(out.sum(), case.weights.head, allow_unused=True) == (None,) * 8
