"""What the gate converts, what it refuses and in which words, and whom it lets pass."""

import importlib
import inspect
from collections.abc import Sequence

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from jaxtyping import Bool, Float, Int
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.testing import assert_close

from pyro_memory import SlotMemory, importance_bound
from pyro_memory.gate import check_image_shape, check_least, check_places, checked
from pyro_memory.models import VMA, LSTMMixer
from pyro_memory.nets import Context

pytestmark = pytest.mark.unchecked
DOORS = (
    "addressing data diagnostics distributions guides inference kernels models nets recall stores testing training zoo"
)


@checked
class Layer(nn.Module):
    """Stands for any module of the package."""

    def __init__(self, dim: int, *, scale: float = 1.0, rule: str | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(
        self, x: Float[Tensor, "batch dim"], mask: Bool[Tensor, " batch"] | None = None, lengths: Tensor | None = None
    ) -> Tensor:
        return x

    def at(self, a: Int[Tensor, "*address"], y: Int[Tensor, "batch"] | Float[Tensor, "batch dim"] = None) -> Tensor:
        return a

    def read(self, memory: SlotMemory, sizes: tuple[int, int] = (1, 1), kinds: dict[str, int] | None = None) -> tuple:
        return sizes


LAYER = Layer(3)
X, SIGNS = torch.ones(2, 3), torch.tensor([1.0, -1.0, 1.0])


def test_every_public_function_and_class_stands_behind_it():
    bare = []
    for door in DOORS.split():
        module = importlib.import_module(f"pyro_memory.{door}")
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            if not getattr(thing, "__module__", "").startswith("pyro_memory"):
                continue
            own = vars(thing).get("__init__") if inspect.isclass(thing) else thing
            plain = inspect.isclass(thing) and issubclass(thing, (tuple, torch.autograd.Function, BaseException))
            if inspect.isfunction(own) and not plain and not hasattr(own, "__gate__"):
                bare.append(f"{door}.{name}")
    assert bare == []


@pytest.mark.parametrize("given", [X.tolist(), X.numpy(), np.ones((2, 3)), np.ones((2, 3), "int64"), [[1, 1, 1]] * 2])
def test_arrays_and_lists_become_tensors_of_the_module_s_dtype(given):
    assert_close(LAYER(given), X, rtol=0, atol=0)
    assert Layer(3).double()(given).dtype == torch.float64


def test_a_conversion_is_a_copy_and_a_tensor_is_handed_on_itself():
    array = np.ones((2, 3), np.float32)
    out = LAYER(array)
    array[:] = 0
    assert_close(out, X)
    assert LAYER(X) is X


def test_numbers_of_numpy_and_of_tensors_are_numbers():
    for three in (np.int64(3), torch.tensor(3), np.array(3)):
        assert type(Layer(three, scale=np.float32(0.5)).dim) is int
    assert LAYER.read(SlotMemory(X), np.array([4, 5])) == (4, 5)
    assert LAYER.at(2).dtype == LAYER.at(torch.tensor([2], dtype=torch.uint8)).dtype == torch.long


REFUSED = {
    "another type": (lambda: LAYER("x"), TypeError, r"`x` must be a floating-point tensor \[batch, dim\]; got 'x'"),
    "another module": (lambda: LAYER(LAYER), TypeError, "`x` must be .* got a Layer. Give a tensor, a numpy array"),
    "a ragged list": (lambda: LAYER([[1.0], [1.0, 2.0]]), ValueError, "`x` must be .* its rows of one length"),
    "a list of words": (lambda: LAYER([["a"]]), TypeError, "`x` must be .* got a list of 1 list"),
    "integers": (lambda: LAYER(X.long()), ValueError, r"`x` .* got an int64 tensor .*Convert it: x.float\(\)"),
    "complex": (lambda: LAYER(X.cfloat()), ValueError, "`x` must be .* got a complex64 tensor"),
    "double": (lambda: LAYER(X.double()), ValueError, r"`x` must have the dtype of the Layer, float32; got float64"),
    "too few dimensions": (lambda: LAYER(X[0]), ValueError, r"One dimension is missing: x\[None\] adds a first one"),
    "too many dimensions": (lambda: LAYER(X[None]), ValueError, r"\[batch, dim\]; got .* of shape \[1, 2, 3\]"),
    "another width": (lambda: LAYER(X[:, :2]), ValueError, "with dim = 3, as the Layer has; got"),
    "another length": (
        lambda: LAYER(X, torch.ones(4, dtype=torch.bool)), ValueError, r"`mask` .* with batch = 2, as `x` has",
    ),
    "another device": (lambda: LAYER(X.to("meta")), ValueError, r"device of the Layer, cpu; got .* on meta.*x.to"),
    "NaN": (lambda: LAYER(X * torch.nan), ValueError, r"`x` must be finite; got nan at \[0, 0\]"),
    "infinity": (lambda: LAYER(X / 0), ValueError, "`x` must be finite; got inf"),
    "sparse": (lambda: LAYER(X.to_sparse()), ValueError, r"`x` must .* dense; got torch.sparse_coo.*x.to_dense\(\)"),
    "infinities": (lambda: LAYER(X / 0 * SIGNS), ValueError, r"`x` must be finite; got -?inf at \[0, 0\]"),
    "none of two kinds": (lambda: LAYER.at(0, X[0] > 0), TypeError, "`y` must be an integer .* or"),
    "a fraction": (lambda: Layer(2.5), TypeError, "`dim` must be an integer; got 2.5"),
    "a flag": (lambda: Layer(True), TypeError, "`dim` must be an integer; got True"),
    "beyond 64 bits": (lambda: Layer(2**70), ValueError, "`dim` must be an integer; got 1180591620717411303424"),
    "no number": (lambda: Layer(3, scale=float("nan")), ValueError, "`scale` must be a number; got nan"),
    "no word": (lambda: Layer(3, rule=3), TypeError, "`rule` must be a str; got 3"),
    "a plain tensor": (
        lambda: LAYER.read(X), TypeError, r"`memory` must be a SlotMemory; got .*SlotMemory\(items\), items \[slot",
    ),
    "a class": (lambda: LAYER.read(SlotMemory), TypeError, r"got the class SlotMemory. Give an instance, SlotMemory\("),
    "too many items": (lambda: LAYER.read(SlotMemory(X), (1, 2, 3)), ValueError, "`sizes` must be a sequence of 2"),
    "one item": (lambda: LAYER.read(SlotMemory(X), (1, "2")), TypeError, r"`sizes\[1\]` must be an integer; got '2'"),
    "one value": (
        lambda: LAYER.read(SlotMemory(X), kinds={"k": 0.5}), TypeError, r'`kinds\["k"\]` must be an integer; got 0.5',
    ),
    "no mapping": (lambda: LAYER.read(SlotMemory(X), kinds=[1]), TypeError, "`kinds` must be a mapping"),
    "a model's class": (
        lambda: importance_bound(VMA, print), TypeError, r"`model` must be .* got the class VMA. Build one: VMA\(...\)",
    ),
    "a state": (lambda: LSTMMixer(3)(X[None], 4), TypeError, "`state` must be an LSTMState; .*call before returned"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_and_the_remedy_told(name):
    call, kind, message = REFUSED[name]
    with pytest.raises(kind, match=message):
        call()


def test_finite_numbers_whose_sum_is_not_may_pass():
    large = 3e38 * torch.ones(2, 3)
    assert large.sum() == torch.inf
    assert LAYER(large) is large


def test_what_stands_past_the_lengths_is_not_looked_at():
    padded = torch.stack([X[0], X[0] * torch.nan])
    assert LAYER(padded, lengths=torch.tensor([1, 0])) is padded
    assert LAYER(padded, None, torch.tensor([1, 0])) is padded


def test_logarithms_of_probabilities_may_be_of_zero():
    @checked
    def total(log_weight: Float[Tensor, " particle"]) -> Tensor:
        return log_weight.logsumexp(0)

    assert_close(total(torch.tensor([0.0, -torch.inf])), torch.tensor(0.0))
    with pytest.raises(ValueError, match="`log_weight` must be finite; got nan"):
        total(torch.tensor([torch.nan]))


def test_mixed_precision_and_compilers_pass():
    with torch.autocast("cpu", torch.bfloat16):
        assert LAYER(X.bfloat16()).dtype == torch.bfloat16
    assert_close(torch.compile(LAYER, backend="eager", fullgraph=True)(X), X)


def test_a_call_from_inside_the_package_is_not_looked_at_and_a_user_s_subclass_is_its_own():
    inside = {"__name__": "pyro_memory.somewhere", "layer": LAYER, "x": X.long()}
    exec("out = layer(x)", inside)
    assert inside["out"].dtype == torch.long

    class Mine(Layer):
        def forward(self, x):
            return x

    assert Mine(3)("x") == "x"


def test_what_torch_refuses_inside_names_the_arguments_and_other_errors_are_left():
    code = (
        "from pyro_memory.gate import checked\n"
        "@checked\n"
        "def product(x: object, y: object, error: object = None):\n"
        "    if error:\n        raise error\n"
        "    return x @ y\n"
    )
    room = {"__name__": "pyro_memory.somewhere"}
    exec(code, room)
    with pytest.raises(ValueError, match=r"product cannot take `x` a float32 tensor .*`y` .*: .*must match|shapes"):
        room["product"](X, X)
    for own in (
        ValueError("`x` says it"),
        RuntimeError("CUDA out of memory"),
        KeyError("k"),
        NotImplementedError("no"),
    ):
        with pytest.raises(type(own), match=str(own.args[0])):
            room["product"](X, X, error=own)


def test_ranges_are_told():
    with pytest.raises(ValueError, match=r"`sizes` must be each of them at least 1; got \(2, 0\)"):
        check_least(1, dim=None, sizes=(2, 0))
    with pytest.raises(ValueError, match=r"`shape` must be \(channels, height, width\)"):
        check_image_shape((28, 28))
    for a in (-1, 5):
        with pytest.raises(ValueError, match=f"`a` must be from 0 to 4, the slots; got {a}"):
            check_places("a", torch.tensor([0, a]), 5, "the slots")
    with pytest.raises(ValueError, match="`a` must be from 0 to 1"):
        SlotMemory(X)[torch.tensor([2])]


def test_a_record_keeps_what_the_gate_made_of_it():
    assert Context(code=[[1.0, 2.0]]).code.dtype == torch.float32
    memory = SlotMemory(np.zeros((4, 2)), mask=[True, True, False, False])
    assert isinstance(memory.prior(), dist.Categorical)
    assert memory.mask.dtype == torch.bool


def test_objectives_are_instances():
    with pytest.raises(TypeError, match=r"`objective` must be an ELBO; got the class Trace_ELBO. Give an instance"):
        importlib.import_module("pyro_memory").fit(print, print, [], Trace_ELBO, steps=1)


def test_a_number_is_taken_from_no_graph_and_an_address_may_be_numpy_s():
    with pytest.raises(TypeError, match="`scale` must be a number; got a float32 tensor"):
        Layer(3, scale=nn.Parameter(torch.tensor(0.5)))
    assert_close(SlotMemory(X)[np.int64(1)], X[1])


def test_attributes_of_a_user_s_class_bind_no_dimension_of_data():
    class Mine(Layer):
        batch = 7

    assert Mine(3)(X) is X


def test_vmap_reads_a_memory():
    memory = SlotMemory(torch.eye(3))
    assert_close(torch.func.vmap(lambda a: memory[a])(torch.tensor([2, 0])), torch.eye(3)[[2, 0]])


def test_a_loop_over_a_memory_is_told_what_to_loop_over():
    with pytest.raises(TypeError, match=r"loop over `memory.values`"):
        list(SlotMemory(X))


def test_the_items_of_a_sequence_may_have_different_sizes():
    @checked
    def lengths(rows: Sequence[Float[Tensor, "column dim"]]) -> list[int]:
        return [len(row) for row in rows]

    assert lengths([torch.ones(2, 3), np.ones((4, 3))]) == [2, 4]
