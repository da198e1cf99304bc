"""Binds the tensors of a file to names, every one checked against the shape the numbers ask for."""

from dataclasses import dataclass, field

from llamoot.errors import ModelFileError
from llamoot.gguf.reader import GGUF, Tensor
from llamoot.gguf.types import TensorType
from llamoot.kernels.table import Executor, Floats, Weight
from llamoot.model.config import Config
from llamoot.model.tensors import Spec, layer_specs, model_specs
from llamoot.quant.decode import decode


@dataclass(eq=False)
class Bound:
    """Tensors of one layer (or of the whole model), by GGUF name without `blk.N.` and `.weight`."""

    matrices: dict[str, Weight] = field(default_factory=dict)
    vectors: dict[str, Floats] = field(default_factory=dict)

    def vector(self, name: str) -> Floats | None:
        return self.vectors.get(name)

    def bias(self, matrix: str) -> Floats | None:
        return self.vectors.get(matrix + ".bias")


@dataclass(eq=False)
class Weights:
    """All of a model. `output` is the embedding table where the file has no matrix of its own."""

    model: Bound
    layers: list[Bound]

    @property
    def notes(self) -> list[str]:
        """What was converted at load."""
        bounds = [self.model, *self.layers]
        return [f"{w.name}: {w.note}" for b in bounds for w in b.matrices.values() if w.note]


def tensor_of(gguf: GGUF, name: str) -> Tensor | None:
    """The tensor of that name; a few converters leave `.weight` away."""
    return gguf.tensors.get(name) or gguf.tensors.get(name.removesuffix(".weight"))


def specs_of(gguf: GGUF, config: Config) -> list[list[Spec]]:
    """What the file has to hold: of the model, then of each layer; missing optional ones left out.

    Raises ModelFileError naming the tensor, with expected and actual shape.
    """

    def find(name: str) -> tuple[int, ...] | None:
        tensor = tensor_of(gguf, name)
        return tensor.shape if tensor else None

    _refuse_scales(gguf)
    wanted = [list(model_specs(config, find))]
    wanted += [list(layer_specs(config, i, find)) for i in range(len(config.layers))]
    return [[spec for spec in specs if _checked(gguf, spec)] for specs in wanted]


def _refuse_scales(gguf: GGUF) -> None:
    """A scale beside an NVFP4 matrix would have to be applied; leaving it out gives nonsense."""
    for name, tensor in gguf.tensors.items():
        scale = name.removesuffix(".weight") + ".scale"
        if tensor.type is TensorType.NVFP4 and scale in gguf.tensors:
            where = f"{name}: NVFP4 with a scale of its own"
            raise ModelFileError(gguf.path, where, "is not supported; quantize it to another type")


def _checked(gguf: GGUF, spec: Spec) -> bool:
    """Whether the tensor is there, in a shape that fits."""
    tensor = tensor_of(gguf, spec.name)
    expected = " or ".join(str(shape) for shape in spec.shapes)
    if tensor is None:
        if spec.needed:
            raise ModelFileError(gguf.path, spec.name, f"is missing, expected {expected}")
        return False
    if _squeezed(tensor.shape) not in map(_squeezed, spec.shapes):
        where = f"{spec.name}: expected {expected}"
        raise ModelFileError(gguf.path, where, f"file has {tensor.type.name} {tensor.shape}")
    return True


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without leading ones: a matrix of one row is stored as a vector by some converters."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


def bind(gguf: GGUF, config: Config, executor: Executor) -> Weights:
    """Read every weight of the model into `executor`'s form."""
    wanted = specs_of(gguf, config)
    model, *layers = (_bind_one(gguf, specs, executor) for specs in wanted)
    if "output" not in model.matrices and not config.traits.headless:
        model.matrices["output"] = model.matrices["token_embd"]
    return Weights(model, layers)


def _bind_one(gguf: GGUF, specs: list[Spec], executor: Executor) -> Bound:
    bound = Bound()
    for spec in specs:
        tensor = tensor_of(gguf, spec.name)
        assert tensor is not None, "specs_of has seen it"
        name = spec.name.removesuffix(".weight")
        if name.startswith("blk."):
            name = name.split(".", 2)[2]
        if spec.kind == "vector":
            bound.vectors[name] = _floats(tensor)
            continue
        make = executor.table if spec.kind == "table" else executor.weight
        missing = len(spec.shapes[0]) - len(tensor.shape)
        shape = (1,) * max(missing, int(len(tensor.shape) < 2)) + tensor.shape
        bound.matrices[name] = make(spec.name, tensor.raw, int(tensor.type), shape)
    return bound


def _floats(tensor: Tensor) -> Floats:
    return decode(tensor.raw, tensor.type, tensor.shape)
