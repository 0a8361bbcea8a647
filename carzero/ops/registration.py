"""The ops as torch knows them: schemas, implementations, fakes, derivatives, autocast.

One schema for forward and one for backward of `pair_logits` and of `pair_simr`; the backend is chosen inside the
implementation, on real tensors. `torch.ops.carzero.*` are differentiable, exportable and safe under torch.compile.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from . import native, reference, tiled, tiled_backward, tiled_general
from .attention_core import TORCH_CORE, AttentionCore
from .backends import check_recompute, choose
from .call import CARZERO, Options, Params, autocast_dtype, result_axes, wide_dtype
from .cuda_core import CudaCore
from .spec import LAYER_PARAMETERS, DecoderSpec, decode
from .tape import TapeSize

_library = torch.library.Library("carzero", "DEF")

_INPUTS = (
    "Tensor memory, Tensor queries, Tensor? row_count, Tensor? pairs, Tensor norm_weight, Tensor norm_bias, "
    "Tensor[] layers, Tensor[] head, Tensor? packed, int heads, float eps, float dropout_p, Tensor? seed, "
    "int direction, SymInt memory_offset, SymInt query_offset, bool projected, bool float32_out, str backend, "
    "str recompute, SymInt tile_pairs, SymInt original_rows, Tensor? query_mask, str spec"
)
_ATTENTION_INPUTS = (
    "Tensor memory, Tensor queries, Tensor? row_count, Tensor? pairs, Tensor norm_weight, Tensor norm_bias, "
    "Tensor[] layers, Tensor? packed, int heads, float eps, bool projected, SymInt original_rows, str backend, "
    "SymInt tile_pairs, Tensor? query_mask, str spec"
)
_PROJECT_INPUTS = (
    "Tensor memory, Tensor? row_count, Tensor norm_weight, Tensor norm_bias, Tensor[] layers, float eps, str spec"
)

#: Backends that are the tiled op with one attention core or another.
_CORES: dict[str, AttentionCore] = {"torch": TORCH_CORE, "cuda": CudaCore()}

# names of the arguments above, in order
_NAMES = tuple(part.split()[-1] for part in _INPUTS.split(", "))


def _params(
    norm_weight: Tensor, norm_bias: Tensor, layers: list[Tensor], head: list[Tensor], heads: int, eps: float, spec: str
) -> Params:  # fmt: skip
    other = decode(spec)
    return Params.from_flat([norm_weight, norm_bias, *layers, *head], _layers(layers, other), heads, eps, other)


def _layers(tensors: list[Tensor], other: DecoderSpec | None) -> int:
    return other.layers if other else len(tensors) // len(LAYER_PARAMETERS)


def _call(simr: bool, values: tuple) -> tuple[Params, Options, dict]:
    """The arguments of an op as the backends take them, and the rest by name."""
    a = dict(zip(_NAMES, values))
    params = _params(a["norm_weight"], a["norm_bias"], a["layers"], a["head"], a["heads"], a["eps"], a["spec"])
    options = Options(
        row_count=a["row_count"], pairs=a["pairs"], dropout_p=a["dropout_p"], seed=a["seed"],
        direction=a["direction"], memory_offset=a["memory_offset"], query_offset=a["query_offset"],
        projected=a["projected"], simr=simr, tile_pairs=a["tile_pairs"], original_rows=a["original_rows"],
        query_mask=a["query_mask"],
    )  # fmt: skip
    return params, options, a


def _backend(a: dict, *, backward: bool = False) -> str:
    queries: Tensor = a["queries"]
    return choose(
        a["backend"], device=queries.device, dtype=queries.dtype, width=queries.shape[-1], heads=a["heads"],
        recompute=a.get("recompute", "full"), projected_backward=backward and a["projected"],
        other=decode(a["spec"]), rows=a["memory"].shape[1],
    )[0]  # fmt: skip


def _out_shape(simr: bool, a: dict) -> tuple[int, ...]:
    memory, queries, pairs = a["memory"], a["queries"], a["pairs"]
    grid = (memory.shape[0], queries.shape[0]) if pairs is None else (pairs.shape[0],)
    return (*grid, *result_axes(decode(a["spec"]) or CARZERO, queries.shape, simr))


def _out_dtype(a: dict) -> torch.dtype:
    return wide_dtype(a["queries"].dtype) if a["float32_out"] else a["queries"].dtype


def _tape_size(a: dict) -> TapeSize:
    memory, queries, pairs, layers = a["memory"], a["queries"], a["pairs"], a["layers"]
    check_recompute(a["recompute"], decode(a["spec"]))
    # without a tape, a fake tensor's device need not have any backend
    keeps_lse = a["recompute"] != "full" and _backend(a) == "triton"
    return TapeSize(
        layers=_layers(layers, decode(a["spec"])),
        pairs=memory.shape[0] * queries.shape[0] if pairs is None else pairs.shape[0],
        width=queries.shape[-1],
        ffn=layers[LAYER_PARAMETERS.index("linear1_weight")].shape[0],
        dtype=queries.dtype,
        device=queries.device,
        dropout=a["dropout_p"] > 0.0,
        lse_heads=a["heads"] if keeps_lse else 0,
    )


def _new_tape(a: dict) -> Tensor:
    return a["queries"].new_empty((_tape_size(a).bytes(a["recompute"]),), dtype=torch.uint8)


def _forward(simr: bool, *values) -> tuple[Tensor, Tensor]:
    params, options, a = _call(simr, values)
    memory, queries = a["memory"], a["queries"]
    backend = _backend(a)
    tape = _new_tape(a)
    with torch.autocast(queries.device.type, enabled=False):
        if backend == "reference":
            # a reference run keeps nothing: its tape stays what the schema promises, and is never read
            tape.zero_()
            function = reference.pair_simr if simr else reference.pair_logits
            out = function(memory, queries, params, options)
        elif backend == "torch" and params.other:
            out = tiled_general.pair_forward(memory, queries, params, options)
        elif backend in _CORES:
            kept = _tape_size(a).views(tape, a["recompute"])
            out = tiled.pair_forward(memory, queries, params, options, kept, _CORES[backend])
        elif backend == "triton":
            kept = _tape_size(a).views(tape, a["recompute"])
            out = _fused("").pair_forward(memory, queries, params, options, kept)
        else:
            out = native.pair_forward(memory, queries, params, options, a["packed"])
    return out.reshape(_out_shape(simr, a)).to(_out_dtype(a)).contiguous(), tape


def _backward(simr: bool, grad: Tensor, tape: Tensor, *values) -> list[Tensor]:
    params, options, a = _call(simr, values)
    memory, queries = a["memory"], a["queries"]
    backend = _backend(a, backward=True)
    with torch.autocast(queries.device.type, enabled=False):
        if backend == "reference":
            out = _reference_backward(simr, grad, memory, queries, params, options)
        elif backend == "torch" and params.other:
            flat = grad.reshape(-1, *result_axes(params.other, queries.shape, simr))
            out = tiled_general.pair_backward(flat, memory, queries, params, options)
        elif backend in _CORES:
            flat = grad.reshape(-1, grad.shape[-1]) if simr else grad.reshape(-1)
            kept = _tape_size(a).views(tape, a["recompute"])
            out = tiled_backward.pair_backward(flat, memory, queries, params, options, kept, _CORES[backend])
        elif backend == "triton":
            flat = grad.reshape(-1, grad.shape[-1]) if simr else grad.reshape(-1)
            kept = _tape_size(a).views(tape, a["recompute"])
            out = _fused("_backward").pair_backward(flat, memory, queries, params, options, kept)
        else:
            out = native.pair_backward(grad, memory, queries, params, options, a["packed"])
    return [g.contiguous() for g in out]


def _fused(part: str) -> ModuleType:
    """The module that cuts the work into tiles for Triton, which is imported only where it is wanted."""
    return importlib.import_module(f"{__package__}.fused{part}")


def _reference_backward(
    simr: bool, grad: Tensor, memory: Tensor, queries: Tensor, params: Params, options: Options
) -> list[Tensor]:
    function = reference.pair_simr if simr else reference.pair_logits

    def run(memory: Tensor, queries: Tensor, *tensors: Tensor) -> Tensor:
        return function(memory, queries, params.rebuilt(tensors), options)

    # torch.func works where autograd's own recording is off, as it is inside an op
    out, pull, *_ = torch.func.vjp(run, memory, queries, *params.flat())
    return list(pull(grad.to(out.dtype)))


def _forward_fake(simr: bool, *values) -> tuple[Tensor, Tensor]:
    a = dict(zip(_NAMES, values))
    return a["queries"].new_empty(_out_shape(simr, a), dtype=_out_dtype(a)), _new_tape(a)


def _backward_fake(simr: bool, grad: Tensor, tape: Tensor, *values) -> list[Tensor]:
    a = dict(zip(_NAMES, values))
    inputs = [a["memory"], a["queries"], a["norm_weight"], a["norm_bias"], *a["layers"], *a["head"]]
    return [t.new_empty(t.shape) for t in inputs]


def _register_pair(name: str, simr: bool) -> None:
    _library.define(f"{name}({_INPUTS}) -> (Tensor, Tensor)")
    _library.define(f"{name}_backward(Tensor grad, Tensor tape, {_INPUTS}) -> Tensor[]")
    _library.impl(name, lambda *v: _forward(simr, *v), "CompositeExplicitAutograd")
    _library.impl(f"{name}_backward", lambda *v: _backward(simr, *v), "CompositeExplicitAutograd")
    torch.library.register_fake(f"carzero::{name}", lambda *v: _forward_fake(simr, *v), lib=_library)
    torch.library.register_fake(f"carzero::{name}_backward", lambda *v: _backward_fake(simr, *v), lib=_library)

    def setup_context(ctx, inputs, output) -> None:
        a = dict(zip(_NAMES, inputs))
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.layers, ctx.head = len(a["layers"]), len(a["head"])
        ctx.save_for_backward(
            output[1], a["memory"], a["queries"], a["row_count"], a["pairs"], a["norm_weight"], a["norm_bias"],
            *a["layers"], *a["head"], a["packed"], a["seed"], a["query_mask"],
        )  # fmt: skip
        ctx.rest = {n: v for n, v in a.items() if not isinstance(v, Tensor | list) and n not in _OPTIONAL}

    def backward(ctx, grad, _):
        if grad is None:
            return tuple(
                [None] * ctx.layers if n == "layers" else [None] * ctx.head if n == "head" else None for n in _NAMES
            )
        tape, memory, queries, row_count, pairs, norm_weight, norm_bias, *more = ctx.saved_tensors
        layers, head, (packed, seed, query_mask) = more[: ctx.layers], more[ctx.layers : -3], more[-3:]
        a = {
            "memory": memory, "queries": queries, "row_count": row_count, "pairs": pairs, "norm_weight": norm_weight,
            "norm_bias": norm_bias, "layers": layers, "head": head, "packed": packed, "seed": seed,
            "query_mask": query_mask, **ctx.rest,
        }  # fmt: skip
        op = getattr(torch.ops.carzero, f"{name}_backward")
        d_memory, d_queries, d_weight, d_bias, *rest = op(grad, tape, *(a[n] for n in _NAMES))
        gradients = {
            "memory": d_memory, "queries": d_queries, "norm_weight": d_weight, "norm_bias": d_bias,
            "layers": rest[: ctx.layers], "head": rest[ctx.layers :],
        }  # fmt: skip
        return tuple(gradients.get(n) for n in _NAMES)

    def no_second(ctx, *grads):
        raise NotImplementedError(
            f"{name}: its gradient cannot be differentiated again. For second derivatives call "
            f"carzero.ops.reference.{name}, which is plain torch."
        )

    torch.library.register_autograd(f"carzero::{name}", backward, setup_context=setup_context, lib=_library)
    torch.library.register_autograd(f"carzero::{name}_backward", no_second, lib=_library)
    _register_autocast(name, 2, _NAMES.index("float32_out"))


_OPTIONAL = ("row_count", "pairs", "packed", "seed", "query_mask", "layers", "head")


def _register_autocast(name: str, inputs: int, float32_out: int | None = None) -> None:
    """Under autocast the first `inputs` arguments are cast, weights stay, and results are float32."""
    op = getattr(torch.ops.carzero, name).default
    for device in (torch.device("cpu"), torch.device("cuda")):
        key = f"Autocast{device.type.upper()}"
        keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

        def cast(*values, device=device, keys=keys):
            a = list(values)
            a[:inputs] = [t.to(autocast_dtype(t.dtype, device)) for t in a[:inputs]]
            if float32_out is not None:
                a[float32_out] = True
            with torch._C._ExcludeDispatchKeyGuard(keys):
                return op(*a)

        _library.impl(name, cast, key)


def _attention(
    memory, queries, row_count, pairs, norm_weight, norm_bias, layers, packed, heads, eps, projected, original_rows,
    backend, tile_pairs, query_mask, spec,
) -> Tensor:  # fmt: skip
    params = _params(norm_weight, norm_bias, layers, [], heads, eps, spec)
    options = Options(
        row_count=row_count, pairs=pairs, projected=projected, simr=True, tile_pairs=tile_pairs, query_mask=query_mask
    )
    chosen = _backend({"memory": memory, "queries": queries, "heads": heads, "backend": backend, "spec": spec})
    shape = _attention_shape(memory, queries, pairs, len(params.layers), original_rows)
    with torch.autocast(queries.device.type, enabled=False):
        if chosen == "reference":
            return reference.pair_attention(memory, queries, params, options, original_rows)
        if chosen == "torch" and params.other:
            return tiled_general.pair_attention(memory, queries, params, options, original_rows).view(shape)
        if chosen in _CORES:
            out = tiled.pair_attention(memory, queries, params, options, original_rows, _CORES[chosen])
            return out.view(shape)
        if chosen == "triton":
            return _fused("").pair_attention(memory, queries, params, options, original_rows).view(shape)
        return native.pair_attention(memory, queries, params, options, packed, original_rows)


def _attention_shape(memory, queries, pairs, layers: int, original_rows) -> tuple[int, ...]:
    grid = (memory.shape[0], queries.shape[0]) if pairs is None else (pairs.shape[0],)
    return (layers, *grid, *queries.shape[1:-1], original_rows)


def _attention_fake(
    memory, queries, row_count, pairs, norm_weight, norm_bias, layers, packed, heads, eps, projected, original_rows,
    backend, tile_pairs, query_mask, spec,
) -> Tensor:  # fmt: skip
    shape = _attention_shape(memory, queries, pairs, _layers(layers, decode(spec)), original_rows)
    return queries.new_empty(shape, dtype=wide_dtype(queries.dtype))


def _project(memory, row_count, norm_weight, norm_bias, layers, eps, spec) -> Tensor:
    params = _params(norm_weight, norm_bias, layers, [], 1, eps, spec)
    with torch.autocast(memory.device.type, enabled=False):
        return (tiled_general if params.other else tiled).project_memory(memory, params, row_count)


def _project_fake(memory, row_count, norm_weight, norm_bias, layers, eps, spec) -> Tensor:
    other = decode(spec)
    d = layers[LAYER_PARAMETERS.index("norm2_weight")].shape[0]
    return memory.new_empty((*memory.shape[:2], _layers(layers, other), 2, d))


def _pack(params: list[Tensor], heads: int, compute: torch.dtype) -> Tensor:
    return native.pack_weights(params, heads, compute)


def _pack_fake(params: list[Tensor], heads: int, compute: torch.dtype) -> Tensor:
    return params[0].new_empty((torch.library.get_ctx().new_dynamic_size(),), dtype=torch.uint8)


def _register_inference(name: str, schema: str, implementation: Callable, fake: Callable) -> None:
    _library.define(schema)
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"carzero::{name}", fake, lib=_library)


_register_pair("pair_logits", simr=False)
_register_pair("pair_simr", simr=True)
_register_inference("pair_attention", f"pair_attention({_ATTENTION_INPUTS}) -> Tensor", _attention, _attention_fake)
_register_inference("project_memory", f"project_memory({_PROJECT_INPUTS}) -> Tensor", _project, _project_fake)
_register_inference(
    "pack_weights", "pack_weights(Tensor[] params, int heads, ScalarType compute) -> Tensor", _pack, _pack_fake
)
_register_autocast("pair_attention", 2)
_register_autocast("project_memory", 1)
