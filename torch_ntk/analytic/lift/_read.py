"""Trace a module with `torch.fx`, and read the graph node by node."""

from __future__ import annotations

import contextlib
import functools
import inspect
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import rnn

from ..._checks import type_error, value_error
from ..._functional import Batch
from ...activations._lookup import is_registered, registered_functions
from .._program import Program
from ._builder import Builder
from ._coupling import coupled, refuse_coupled
from ._functions import (
    ATTRIBUTES,
    DROPOUT_FUNCTIONS,
    METHOD_RULES,
    TAKE_PARAMETERS,
    function_rule,
)
from ._in_place import overwritten, read_later
from ._modules import (
    DROPOUTS,
    REFUSED,
    UNKNOWN,
    module_rule,
    stands_alone,
    why_unknown,
    why_unknown_function,
)
from ._standard import Standard
from ._values import RANDOM, Data, each_known, leaves, side


class _Tracer(fx.Tracer):
    """A tracer that records modules with a rule, refused modules and registered functions as nodes.

    `torch.fx` traces into Python functions down to the functions of torch. A function that was
    passed to `register_dual` must be one node instead. `autowrap_functions` achieves this if the
    forward of a module uses it as a global name, and `_recorded` if it is an attribute.

    Args:
        buffers: Whether methods of buffers become nodes, which `self.token.expand(n, -1, -1)` with
            a traced n needs. A forward may then not branch on values of buffers.
    """

    def __init__(self, buffers: bool) -> None:
        super().__init__(autowrap_functions=registered_functions())
        self.proxy_buffer_attributes = buffers

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return stands_alone(m) or super().is_leaf_module(m, module_qualified_name)


def read(
    model: nn.Module,
    x1: Tensor | Batch,
    x2: Tensor | Batch | None,
    dtype: torch.dtype,
    standard: Standard | None = None,
    training: bool = False,
) -> Program:
    """Return the program of `model` for inputs that are tensors, or batches of several tensors.

    The caller has set the modules' training flags. Nodes that do not depend on random weights are
    computed here, and the other nodes become steps.

    Raises:
        ValueError: A part of the network has no limit. The message names the node, the reason and
            a remedy.
        TypeError: The network cannot be traced.
    """
    second = x1 if x2 is None else x2
    builder = Builder(dtype, (len(x1), len(second)), x2 is None, standard, training, _device(x1))
    if _changed(model):
        raise _refusal_of_change(builder, model)
    values = (x.value if isinstance(x, Batch) else x for x in (x1, second))
    return _Reader(*_traced(model), builder).read(_paired(*values))


def _traced(model: nn.Module) -> tuple[nn.Module, fx.Graph]:
    """Return the graph of a module, and the module in which its nodes look up submodules."""
    tracer = _Tracer(False)
    if tracer.is_leaf_module(model, ""):  # fx would trace into a root that is a single layer
        model = nn.Sequential(model)
    failed = fx.proxy.TraceError, TypeError, RuntimeError, ValueError, AttributeError
    try:
        with _recorded(model):
            try:
                graph = tracer.trace(model)
            except failed as error:
                tracer = _Tracer(True)
                try:
                    graph = tracer.trace(model)
                except failed:
                    raise error from None
    except failed as error:
        places = traceback.extract_tb(error.__traceback__)
        if any(place.filename == rnn.__file__ for place in places):
            raise type_error(
                "model",
                "of padded sequences",
                f"a {type(model).__name__} that packs or unpacks them",
                "Give NTKRNN the padded sequences: what is after the end of one does not change "
                "its outputs before. Multiply them by a known mask [N, T, 1], which for the "
                "last state of each is 1 at its last time only, (outputs * ends).sum(1).",
            ) from error
        raise type_error(
            "model",
            "traceable by torch.fx",
            f"a {type(model).__name__} that is not: {error}".rstrip(". "),
            "A forward whose Python control flow depends on the data of its input has no "
            "fixed graph. Move that part out of the network, or build the network from "
            "modules.",
        ) from error
    # Not an fx.GraphModule: making its code registers wrapped functions for the whole process.
    assert isinstance(tracer.root, nn.Module)
    return tracer.root, graph


@contextlib.contextmanager
def _recorded(model: nn.Module) -> Iterator[None]:
    """A context in which registered functions that are attributes of modules become nodes."""
    found = [
        (module, name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if is_registered(value.func if isinstance(value, functools.partial) else value)
    ]
    for module, name, value in found:
        vars(module)[name] = _recording(value)
    try:
        yield
    finally:
        for module, name, value in found:
            vars(module)[name] = value


def _recording(function: Any) -> Any:
    """Return `function`, or the partial of one, such that calls with a proxy become nodes."""
    named: dict[str, Any] = {}
    if isinstance(function, functools.partial):
        if function.args:
            return function
        function, named = function.func, function.keywords

    def call(*args: Any, **kwargs: Any) -> Any:
        kwargs = {**named, **kwargs}
        for argument in leaves((args, kwargs)):
            if isinstance(argument, fx.Proxy):
                return argument.tracer.create_proxy("call_function", function, args, kwargs)
        return function(*args, **kwargs)

    return call


class _Reader:
    """Reads the nodes of a graph in order, and stores the value of each."""

    def __init__(self, root: nn.Module, graph: fx.Graph, builder: Builder) -> None:
        self._module = root
        self._graph = graph
        self._builder = builder
        self._values: dict[fx.Node, Any] = {}

    def read(self, x: Any) -> Program:
        """Return the program of the graph for a batch in the form in which the model takes it."""
        self._take(x)
        for node in self._graph.nodes:
            self._builder.node = _label(node)
            if node.op == "placeholder":
                continue
            if node.op == "output":
                made = self._output(self._of(node.args[0]))
                samples = self._builder.samples
                refuse_coupled(self._graph, self._values, x, samples, self._evaluated)
                return made
            self._values[node] = self._node(node)
        raise AssertionError("a graph ends with its output")

    def _evaluated(self, x: Any, samples: int, nodes: Sequence[fx.Node]) -> dict[fx.Node, Any]:
        """Return the values of all nodes, of which some known ones are evaluated for a batch x."""
        b = self._builder
        builder = Builder(b.dtype, (samples, samples), True, b.standard, b.training, b.device)
        other = _Reader(self._module, self._graph, builder)
        other._values.update(self._values)
        other._take(x)
        with torch.no_grad():
            for node in nodes:
                builder.node = _label(node)
                try:
                    other._values[node] = other._node(node)
                except (RuntimeError, IndexError, ValueError, TypeError) as error:
                    raise coupled(
                        f"{node.name!r}, computed from the inputs, which fails for a batch of "
                        f"{samples} copies of one sample: {error}".rstrip(". ")
                    ) from error
        return other._values

    def _take(self, x: Any) -> None:
        """Assign the entries of the batch to the arguments of the forward."""
        nodes = [n for n in self._graph.nodes if n.op == "placeholder"]
        names = [str(n.target) for n in nodes]
        if isinstance(x, Mapping):
            given = dict(x)
        else:
            arguments = x if isinstance(x, (tuple, list)) else (x,)
            given = dict(zip(names, arguments, strict=False))
            given.update(
                {f"argument {i + 1}": a for i, a in enumerate(arguments[len(nodes) :], len(nodes))}
            )
        more = [name for name in given if name not in names]
        if more or any(name.startswith("*") for name in names):
            raise type_error(
                "model",
                "a function of what the batch has, by name or in its order",
                f"a forward({', '.join(names)}) for a batch with {', '.join(more) or 'any number'}",
                "Wrap the module in one that takes exactly these arguments.",
            )
        for node, name in zip(nodes, names, strict=True):
            if name in given:
                self._values[node] = given[name]
            elif node.args:
                self._values[node] = node.args[0]
            else:
                raise type_error(
                    "model",
                    "a function of one tensor, or of what the batch has",
                    f"a forward with the argument {name!r} besides",
                    "Give it in the batch, as a tuple in the order of the arguments or a mapping "
                    "by their names; or wrap the module so that it is fixed.",
                )

    def _output(self, output: Any) -> Program:
        if isinstance(output, RANDOM):
            return self._builder.program(output)
        if isinstance(output, Data):
            raise value_error(
                "model",
                "a network with a layer of random weights",
                "one whose output depends on no random weights",
                "It has no kernel. Add a layer, NTKLinear or NTKConv.",
            )
        raise type_error(
            "model",
            "a function to one tensor",
            f"one whose output is {type(output).__name__}",
            "Wrap it so that it returns the tensor whose kernel you need.",
        )

    def _of(self, argument: Any) -> Any:
        """Return an argument in which nodes are replaced by their values."""
        return fx.node.map_arg(argument, lambda n: self._values[n])

    def _node(self, node: fx.Node) -> Any:
        args, kwargs = self._of(node.args), self._of(node.kwargs)
        if not args and "input" in kwargs:
            args, kwargs = (kwargs["input"],), {k: v for k, v in kwargs.items() if k != "input"}
        random = any(isinstance(a, (*RANDOM, nn.Parameter)) for a in leaves((args, kwargs)))
        if self._writes(node):
            args, kwargs = _copied(args), _copied(kwargs)
        if node.op == "call_module":
            return self._call_module(node, args, kwargs, random)
        if node.op == "get_attr":
            return self._attribute(node)
        if not random and node.target not in DROPOUT_FUNCTIONS:
            return self._known(_callable(node), args, kwargs)
        if node.op == "call_method":
            rule = METHOD_RULES.get(str(node.target))
        elif node.target is getattr:
            rule = ATTRIBUTES.get(args[1])
            args = args[:1]
        else:
            rule = function_rule(node.target)
        if _is_returned(node) and _takes_the_only_feature(node, args, kwargs):
            return args[0]
        if rule is None:
            raise self._builder.refusal(_named(node), *why_unknown_function(_named(node)))
        try:
            return rule(self._builder, *args, **kwargs)
        except TypeError as error:
            if "argument" not in str(error) or not _signature_fails(rule, args, kwargs):
                raise
            raise self._builder.refusal(f"{_named(node)} with these arguments", *UNKNOWN) from error

    def _writes(self, node: fx.Node) -> bool:
        """Whether the node overwrites its input; raises an error if a later node reads that."""
        module = self._module.get_submodule(str(node.target)) if node.op == "call_module" else None
        written = overwritten(node, module)
        if written is None:
            return False
        later = read_later(node, written, self._module)
        if later is not None:
            raise self._builder.refusal(
                "an operation in place",
                f"It overwrites {written.name!r}, which {later.name!r} reads afterwards.",
                "Do it out of place (inplace=False, x = x + y instead of x += y).",
            )
        return True

    def _call_module(self, node: fx.Node, args: Any, kwargs: Any, random: bool) -> Any:
        module = self._module.get_submodule(str(node.target))
        kind = type(module)
        if kind in REFUSED:
            why, remedy = REFUSED[kind]
            raise self._builder.refusal(_kind(kind), why, remedy)
        if _changed(module):
            raise _refusal_of_change(self._builder, module)
        rule = module_rule(kind)
        trained = next(module.parameters(), None) is not None
        if rule is not None and (random or trained or kind in DROPOUTS):
            return rule(self._builder, module, *args, **kwargs)
        if random or trained:
            raise self._builder.refusal(kind.__name__, *why_unknown(kind))
        return self._known(module, args, kwargs)

    def _attribute(self, node: fx.Node) -> Data | nn.Parameter:
        target = str(node.target)
        found: Any = self._module
        for part in target.split("."):
            found = getattr(found, part)
        if isinstance(found, nn.Parameter):
            if all(user.target in TAKE_PARAMETERS for user in node.users):
                return found
            raise self._builder.refusal(
                f"the parameter {target!r} used directly",
                "Only the weights of layers have a known distribution.",
                "Use NTKLinear or NTKConv, or register it as a buffer if it is a constant.",
            )
        return Data(found, found)

    def _known(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Call a function of known values, for x1 and for x2."""
        given = [a for a in leaves((args, kwargs)) if isinstance(a, Data)]
        first = side(args, 0), side(kwargs, 0)
        with _without_randomness(self._builder):
            one = function(*first[0], **first[1])
            if all(a.first is a.second for a in given):
                return Data(one, one) if isinstance(one, Tensor) else one
            second = side(args, 1), side(kwargs, 1)
            return Data(one, function(*second[0], **second[1]))


@contextlib.contextmanager
def _without_randomness(builder: Builder) -> Iterator[None]:
    """A context in which drawing random numbers raises an error."""

    def states() -> list[Tensor]:
        cuda = builder.device.type == "cuda"
        return [
            torch.get_rng_state(),
            *([torch.cuda.get_rng_state(builder.device)] if cuda else []),
        ]

    before = states()
    yield
    if not all(map(torch.equal, before, states())):
        raise builder.refusal(
            "a forward that draws random numbers",
            "The kernel would be another one in every call.",
            "Draw them before the call and pass them in the batch; use nn.Dropout for dropout.",
        )


def _device(x: Tensor | Batch) -> torch.device:
    return (x.tensors[0] if isinstance(x, Batch) else x).device


def _paired(first: Any, second: Any) -> Any:
    """Return two batches of the same structure as one, with a `Data` for each pair of tensors."""
    if isinstance(first, Tensor):
        return Data(first, second)
    if isinstance(first, Mapping):
        return {k: _paired(v, second[k]) for k, v in first.items()}
    if isinstance(first, (tuple, list)):
        return type(first)(_paired(a, c) for a, c in zip(first, second, strict=True))
    return first


def _changed(module: nn.Module) -> bool:
    """Whether a module has hooks or a replaced forward, and may not compute what its class does."""
    return bool("forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks)


def _refusal_of_change(builder: Builder, module: nn.Module) -> ValueError:
    return builder.refusal(
        f"{type(module).__name__} with a forward hook or a replaced forward",
        "It may compute something else than its class does.",
        "Remove the hook during this call.",
    )


def _signature_fails(rule: Any, args: Any, kwargs: Any) -> bool:
    try:
        inspect.signature(rule).bind(None, *args, **kwargs)
    except TypeError:
        return True
    return False


def _copied(arguments: Any) -> Any:
    """Return arguments with copies of their known tensors, which may then be overwritten."""
    return each_known(arguments, lambda known: known.map(torch.clone) if known.is_tensor else known)


def _is_returned(node: fx.Node) -> bool:
    return [user.op for user in node.users] == ["output"]


def _takes_the_only_feature(node: fx.Node, args: Any, kwargs: Any) -> bool:
    """Whether the node makes `[N]` of outputs `[N, 1]`, as a final `squeeze(-1)` does."""
    x, *others = args
    if not isinstance(x, RANDOM) or tuple(x.shape) != (1,):
        return False
    if any(isinstance(a, (*RANDOM, Data)) for a in leaves((others, kwargs))):
        return False
    try:
        made = _callable(node)(torch.arange(3.0)[:, None], *others, **kwargs)
    except (RuntimeError, IndexError, TypeError):
        return False
    return isinstance(made, torch.Tensor) and torch.equal(made, torch.arange(3.0))


def _callable(node: fx.Node) -> Any:
    if node.op == "call_method":
        name = str(node.target)
        return lambda x, *args, **kwargs: getattr(x, name)(*args, **kwargs)
    return node.target


def _kind(kind: type[nn.Module]) -> str:
    return f"nn.{kind.__name__}" if kind.__module__.startswith("torch.") else kind.__name__


def _label(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name


def _named(node: fx.Node) -> str:
    target = node.target
    return f"{getattr(target, '__name__', target)}"
