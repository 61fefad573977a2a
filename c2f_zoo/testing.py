"""Checks of poolings and heads, for this library and for plug-ins.

`check_pooling` and `check_head` need no test framework. They raise an `AssertionError` that names the failed check.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import json
import pickle
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from c2f_zoo.heads import Head, create_head
from c2f_zoo.hierarchy import Hierarchy
from c2f_zoo.pooling import POOLINGS, Pooling, create_pooling

PoolingReference = Callable[[Pooling, Sequence[Tensor]], Tensor]
HeadReference = Callable[[Head, Tensor, Hierarchy, str], Sequence[float]]

# Inputs that are difficult for second-order poolings; constants and a single location have no covariance.
HARD_INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": lambda x: torch.zeros_like(x),
    "constant": lambda x: torch.full_like(x, 0.7),
    "large constant": lambda x: torch.full_like(x, 1e4),
    "one location": lambda x: x[:, :, :1, :1],
    "tiny": lambda x: 1e-8 * x,
    "large": lambda x: 1e4 * x.clamp(-3, 3),
    "large and tiny": lambda x: x * 10.0 ** torch.linspace(-8, 4, x.shape[3], dtype=x.dtype),
    "dead channel": lambda x: torch.cat([torch.zeros_like(x[:, :1]), x[:, 1:]], dim=1),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Relative error of a vector under autocast: the root doubles the relative error where sums cancel.
AUTOCAST_TOLERANCE = {torch.bfloat16: 0.05, torch.float16: 0.01}
IN_FEATURES = 5


def check_pooling(
    pooling: str | Callable[..., Pooling],
    in_channels: Sequence[int],
    reference: PoolingReference | None = None,
    *,
    atol: float = 1e-11,
    **options: object,
) -> None:
    """Check that a pooling satisfies the contract of `c2f_zoo.Pooling`.

    - The attributes are set; the vector is (N, `out_features`), also for no image and for a single location.
    - Values match the reference, and gradients match numerical differentiation, in float64. An option `grad_eps`, which
      bounds a gradient, is set to 0.
    - Values and gradients are finite for `HARD_INPUTS` in float32, bfloat16 and float16, with and without autocast, in
      training and evaluation mode. The vector has the dtype of the maps and weights.
    - Under autocast vectors stay close to those of float32, for maps of the size of 1e-8, 1 and 1e4.
    - Memory layout does not matter.
    - Options survive JSON; `state_dict`, `copy.deepcopy` and `pickle` preserve all state, including a drawn sketch.
    - The global random generator is used for the initial weights only.
    - Maps with other numbers of channels raise a ValueError, as do maps of different sizes if `one_size` is true.

    Args:
        pooling: a registered name, or the class.
        in_channels: numbers of channels of the test's maps; use small numbers.
        reference: a function of (pooling, maps) that returns (N, out_features) in float64; None to compare no values.
        atol: absolute tolerance of the comparison with the reference; the relative tolerance is 1e-9.
        **options: options of the pooling; use small sizes, e.g. `dim=5`.

    Raises:
        AssertionError: a check failed; the message names the pooling, the check and the case.

    Examples:
        >>> check_pooling("avg", [3, 2], lambda pooling, maps: torch.cat([x.mean(dim=(2, 3)) for x in maps], dim=1))
    """
    case = _PoolingCase(pooling, tuple(in_channels), reference, atol, options)
    _run(f"pooling {_name(pooling)}", _POOLING_CHECKS, case)


def check_head(head: str | Callable[..., Head], reference: HeadReference | None = None, **options: object) -> None:
    """Check that a head satisfies the contract of `c2f_zoo.Head`.

    The trees are small and irregular, of one to four levels.

    - The attributes are set. `forward` returns the requested levels, in that order, as (N, classes), and raises a
      ValueError for unknown ones.
    - A level's logits do not depend on the other requested levels.
    - `log_probs` matches the reference's probabilities, float32 or wider, with a sum of at most 1 per level; it accepts
      any subset of the levels.
    - If `levels_are_marginals`, a class is at least as probable as its children together; otherwise some class is not.
    - `get_classifier` returns a linear layer with an output per class, or raises a ValueError.
    - Values and gradients are finite for weights of 1e4; autocast stays close.
    - Options survive JSON; `state_dict`, `copy.deepcopy` and `pickle` preserve all state.
    - The global random generator is used for the initial weights only.

    Args:
        head: a registered name, or the class.
        reference: a function of (head, v, hierarchy, level) that returns the level's probabilities of one vector v (D,)
            in float64.
        **options: options of the head.

    Raises:
        AssertionError: a check failed; the message names the head, the check and the case.

    Examples:
        >>> check_head("levels", lambda head, v, tree, level: head.get_classifier(level)(v).softmax(dim=0).tolist())
    """
    _run(f"head {_name(head)}", _HEAD_CHECKS, _HeadCase(head, reference, options))


def irregular_hierarchy(depth: int) -> Hierarchy:
    """Return a class tree with one to three children per class.

    Labels are in random order, and the levels' names contain dots.

    Args:
        depth: number of levels, >= 1.

    Examples:
        >>> irregular_hierarchy(3).num_classes
        {'level.0': 3, 'level.1': 3, 'level.2': 5}
    """
    rng = random.Random(depth)
    rows: list[tuple[str, ...]] = [()]
    for level in range(depth):
        counts = [3 if level == 0 else 1 if i == 0 else rng.choice((1, 2)) for i in range(len(rows))]
        rows = [(*row, f"{len(row)}.{i}.{j}") for i, row in enumerate(rows) for j in range(counts[i])]
    rng.shuffle(rows)
    return Hierarchy.from_rows([f"level.{d}" for d in range(depth)], rows)


def child_sums(hierarchy: Hierarchy, probabilities: Mapping[str, Tensor], level: str) -> Tensor:
    """Return the sum (N, classes) of the probabilities of each class's children.

    Args:
        hierarchy: the class tree.
        probabilities: (N, classes) of `level` and of the next finer level.
        level: a level other than the leaf level.
    """
    depth = hierarchy.levels.index(level)
    below = probabilities[hierarchy.levels[depth + 1]]
    parents = torch.tensor(hierarchy.parents[depth])
    return torch.zeros_like(probabilities[level], dtype=below.dtype).index_add(1, parents, below)


def _run(subject: str, checks: Sequence[Callable[[Any], None]], case: object) -> None:
    for check in checks:
        title = check.__name__.removeprefix("_pooling_").removeprefix("_head_").replace("_", " ")
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                check(case)
        except AssertionError as error:
            raise AssertionError(f"{subject} fails the check of {title}: {error}") from error
        except Exception as error:
            raise AssertionError(f"{subject} fails the check of {title}: {type(error).__name__}: {error}") from error


def _name(part: str | Callable[..., object]) -> str:
    return repr(part) if isinstance(part, str) else getattr(part, "__name__", repr(part))


def _require(condition: object, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _require_finite(tensors: Mapping[str, Tensor | None], where: str) -> None:
    for name, tensor in tensors.items():
        _require(tensor is not None, f"{where}: {name} has no gradient")
        _require(tensor is not None and tensor.isfinite().all(), f"{where}: {name} is not finite")


def _require_error(call: Callable[[], object], what: str) -> None:
    try:
        call()
    except ValueError:
        return
    raise AssertionError(f"{what} raises no ValueError")


def _check_attributes(part: nn.Module, base: type, names: Sequence[str]) -> None:
    _require(isinstance(part, base), f"it is a {type(part).__name__}, not a subclass of c2f_zoo.{base.__name__}")
    for name in names:
        _require(getattr(part, name, None) not in (None, "", ()), f"the attribute {name} is empty")


def _check_generator(create: Callable[[int], nn.Module], forward: Callable[[nn.Module], object]) -> None:
    draws = []
    for seed in (1, 2):
        part = create(seed).eval()
        before = torch.get_rng_state()
        forward(part)
        _require(torch.equal(torch.get_rng_state(), before), "forward draws from the global generator")
        draws.append(torch.rand(3))
        if not any(weight.ndim > 1 for weight in part.parameters()):
            torch.manual_seed(seed)
            _require(torch.equal(draws[-1], torch.rand(3)), "it draws from the global generator, but has no weights")
    _require(not torch.equal(*draws), "it seeds the global generator")


def _check_copies(part: nn.Module, other: nn.Module, forward: Callable[[nn.Module], Sequence[Tensor]]) -> None:
    """Compare a part in evaluation mode with its copies and with `other`."""
    other.load_state_dict(part.state_dict())
    copies = {"state_dict": other, "deepcopy": copy.deepcopy(part), "pickle": pickle.loads(pickle.dumps(part))}
    for name, twin in copies.items():
        equal = all(torch.equal(a, b) for a, b in zip(forward(part), forward(twin), strict=True))
        _require(equal, f"{name} gives other values")


@dataclass(frozen=True)
class _PoolingCase:
    pooling: str | Callable[..., Pooling]
    channels: tuple[int, ...]
    reference: PoolingReference | None
    atol: float
    options: Mapping[str, Any]

    @property
    def factory(self) -> Callable[..., Pooling]:
        return POOLINGS[self.pooling] if isinstance(self.pooling, str) else self.pooling

    def takes(self, option: str) -> bool:
        return option in inspect.signature(self.factory).parameters

    def create(self, dtype: torch.dtype = torch.float64, seed: int = 1) -> Pooling:
        torch.manual_seed(seed)
        if isinstance(self.pooling, str):
            return create_pooling(self.pooling, self.channels, **self.options).to(dtype)
        return self.pooling(list(self.channels), **self.options).to(dtype)

    def create_with_biases(self) -> Pooling:
        pooling = self.create()
        for name, bias in pooling.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(bias)  # a bias of zero would hide its absence
        return pooling

    def maps(self, n: int = 2, height: int = 5, width: int = 3, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        generator = torch.Generator().manual_seed(2)
        shapes = [(n, channels, height, width) for channels in self.channels]
        return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def _pooling_attributes(case: _PoolingCase) -> None:
    pooling = case.create()
    _check_attributes(pooling, Pooling, ["in_channels", "out_features", "one_size", "description"])
    _require(pooling.in_channels == case.channels, f"in_channels is {pooling.in_channels}, not {case.channels}")


def _pooling_options(case: _PoolingCase) -> None:
    again = replace(case, options=json.loads(json.dumps(case.options)))
    again.create().load_state_dict(case.create().state_dict())


def _pooling_values(case: _PoolingCase) -> None:
    for size in ((5, 3), (1, 1), (1, 7)):
        pooling, maps = case.create_with_biases(), case.maps(2, *size)
        found = pooling(maps)
        shape = (2, pooling.out_features)
        _require(tuple(found.shape) == shape, f"maps of {size} give a vector of {tuple(found.shape)}, not {shape}")
        _require_finite({"the vector": found}, f"maps of {size}")
        if case.reference is not None:
            torch.testing.assert_close(found, case.reference(pooling, maps), rtol=1e-9, atol=case.atol)


def _pooling_gradients(case: _PoolingCase) -> None:
    exact = {"grad_eps": 0.0} if case.takes("grad_eps") else {}
    pooling, maps = replace(case, options={**case.options, **exact}).create_with_biases(), case.maps(2, 3, 2)
    names = [name for name, _ in pooling.named_parameters()]

    def run(*inputs: Tensor) -> Tensor:
        state = dict(zip(names, inputs[len(maps) :], strict=True))
        return torch.func.functional_call(pooling, state, (list(inputs[: len(maps)]),))

    inputs = (*(x.requires_grad_() for x in maps), *pooling.parameters())
    is_right = torch.autograd.gradcheck(run, inputs, raise_exception=False)
    _require(is_right, "they differ from numerical differentiation")


def _pooling_hard_inputs(case: _PoolingCase) -> None:
    autocasts = (None, torch.bfloat16, torch.float16)
    for hard, dtype, autocast, training in itertools.product(HARD_INPUTS, DTYPES, autocasts, (True, False)):
        where = f"{hard} in {dtype}, {f'autocast to {autocast}, ' if autocast else ''}{'train' if training else 'eval'}"
        pooling = case.create(dtype).train(training)  # biases are zero, as at the start of training
        maps = [HARD_INPUTS[hard](x).to(dtype).requires_grad_() for x in case.maps()]
        with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
            out = pooling(maps)
        (out.float() * torch.linspace(-1, 1, out.shape[1])).sum().backward()
        _require(out.dtype == dtype, f"{where}: the vector is {out.dtype}")
        gradients = {f"the gradient of map {i}": x.grad for i, x in enumerate(maps)}
        gradients |= {f"the gradient of {name}": weight.grad for name, weight in pooling.named_parameters()}
        _require_finite({"the vector": out, **gradients}, where)
        with torch.no_grad():
            _require_finite({"the vector after a training step": pooling.eval()(maps)}, where)


def _pooling_autocast(case: _PoolingCase) -> None:
    for (autocast, tolerance), scale in itertools.product(AUTOCAST_TOLERANCE.items(), (1e-8, 1.0, 1e4)):
        pooling = case.create(torch.float32)
        maps = [x * scale for x in case.maps(dtype=torch.float32)]
        with torch.no_grad():
            with torch.autocast("cpu", dtype=autocast):
                found = pooling(maps).double()
            expected = pooling.double()([x.double() for x in maps])
        where = f"autocast to {autocast}, maps of the size of {scale:g}"
        _require(found.norm() > 0, f"{where}: the vector vanishes")
        error = float((found - expected).norm() / expected.norm())
        _require(error < tolerance, f"{where}: the relative error is {error:.2g}, not below {tolerance}")


def _pooling_memory_layout(case: _PoolingCase) -> None:
    pooling, maps = case.create(), case.maps()
    expected = pooling(maps)
    strided = [torch.stack([x, -x], dim=-1)[..., 0] for x in maps]
    for other in ([x.contiguous(memory_format=torch.channels_last) for x in maps], strided):
        torch.testing.assert_close(pooling(other), expected)


def _pooling_an_empty_batch(case: _PoolingCase) -> None:
    pooling = case.create(torch.float32).eval()
    out = pooling([x[:0].requires_grad_() for x in case.maps(dtype=torch.float32)])
    _require(tuple(out.shape) == (0, pooling.out_features), f"no image gives a vector of {tuple(out.shape)}")
    out.sum().backward()
    for name, weight in pooling.named_parameters():
        _require(weight.grad is None or weight.grad.eq(0).all(), f"no image gives {name} a gradient")


def _pooling_copies(case: _PoolingCase) -> None:
    maps, sketch = case.maps(), {"seed": 7} if case.takes("seed") else {}
    other = replace(case, options={**case.options, **sketch}).create(seed=3)
    _check_copies(case.create().eval(), other.eval(), lambda pooling: [pooling(maps)])


def _pooling_the_random_generator(case: _PoolingCase) -> None:
    maps = case.maps()
    _check_generator(lambda seed: case.create(seed=seed), lambda pooling: pooling(maps))


def _pooling_maps_that_do_not_fit(case: _PoolingCase) -> None:
    pooling, (first, *others) = case.create(), case.maps()
    _require_error(lambda: pooling([torch.cat([first, first], dim=1), *others]), "a map with other channels")
    if others:
        smaller = [first, *(x[:, :, :4] for x in others)]
        if pooling.one_size:
            _require_error(lambda: pooling(smaller), "maps of different sizes with one_size = True")
        else:
            _require_finite({"the vector": pooling(smaller)}, "maps of different sizes with one_size = False")


_POOLING_CHECKS: list[Callable[[_PoolingCase], None]] = [
    _pooling_attributes,
    _pooling_options,
    _pooling_values,
    _pooling_gradients,
    _pooling_hard_inputs,
    _pooling_autocast,
    _pooling_memory_layout,
    _pooling_an_empty_batch,
    _pooling_copies,
    _pooling_the_random_generator,
    _pooling_maps_that_do_not_fit,
]


@dataclass(frozen=True)
class _HeadCase:
    head: str | Callable[..., Head]
    reference: HeadReference | None
    options: Mapping[str, Any]

    def create(
        self, tree: Hierarchy, levels: Sequence[str] = (), dtype: torch.dtype = torch.float64, seed: int = 1
    ) -> Head:
        torch.manual_seed(seed)
        levels = tuple(levels or tree.levels)
        if isinstance(self.head, str):
            return create_head(self.head, IN_FEATURES, tree, levels, **self.options).to(dtype)
        return self.head(IN_FEATURES, tree, levels, **self.options).to(dtype)

    def vectors(self, dtype: torch.dtype = torch.float64) -> Tensor:
        generator = torch.Generator().manual_seed(2)
        return 3 * torch.randn(4, IN_FEATURES, generator=generator, dtype=torch.float64).to(dtype)


def _trees() -> Iterator[Hierarchy]:
    return map(irregular_hierarchy, (1, 2, 3, 4))


def _head_attributes(case: _HeadCase) -> None:
    for tree in _trees():
        head = case.create(tree)
        _check_attributes(head, Head, ["levels", "levels_are_marginals", "description"])
        _require(head.levels == tree.levels, f"levels is {head.levels}, not {tree.levels}")


def _head_options(case: _HeadCase) -> None:
    tree = irregular_hierarchy(3)
    again = replace(case, options=json.loads(json.dumps(case.options)))
    again.create(tree).load_state_dict(case.create(tree).state_dict())


def _head_requested_levels(case: _HeadCase) -> None:
    tree, v = irregular_hierarchy(3), case.vectors()
    head = case.create(tree)
    everything = head(v, tree.levels)
    for levels in (tree.levels, (), tree.levels[1:2], tree.levels[:1], (tree.levels[2], tree.levels[0])):
        found = head(v, levels)
        _require(tuple(found) == levels, f"forward gives the levels {tuple(found)}, not {levels}")
        for level in levels:
            shape = (4, tree.num_classes[level])
            _require(
                tuple(found[level].shape) == shape, f"logits of {level} are {tuple(found[level].shape)}, not {shape}"
            )
            torch.testing.assert_close(found[level], everything[level], rtol=1e-12, atol=1e-12)
    one = case.create(tree, tree.levels[1:2])
    _require_error(lambda: one(v, tree.levels[:1]), "a level that the head does not predict")


def _head_probabilities(case: _HeadCase) -> None:
    v = case.vectors()
    for tree in _trees():
        for levels in {tree.levels, tree.levels[-1:], tree.levels[:1], tree.levels[1:-1] or tree.levels}:
            head = case.create(tree, levels)
            logits = head(v, levels)
            found = head.log_probs(logits)
            for level in levels:
                alone = head.log_probs({level: logits[level]})[level]
                torch.testing.assert_close(alone, found[level], rtol=0, atol=0)
                totals = found[level].exp().sum(dim=1)
                _require((totals <= 1 + 1e-9).all(), f"the probabilities of {level} sum to {totals.max():g}")
                if case.reference is not None:
                    expected = [case.reference(head, row, tree, level) for row in v[:2]]
                    wanted = torch.tensor(expected, dtype=torch.float64)
                    torch.testing.assert_close(found[level][:2].exp(), wanted, rtol=1e-9, atol=1e-12)


def _head_levels_are_marginals(case: _HeadCase) -> None:
    for tree in _trees():
        head, v = case.create(tree), case.vectors()
        p = {level: z.exp() for level, z in head.log_probs(head(v, tree.levels)).items()}
        excess = [(child_sums(tree, p, level) - p[level]).max() for level in tree.levels[:-1]]
        if head.levels_are_marginals:
            _require(
                all(x <= 1e-12 for x in excess), "it is true, but some children are more probable than their parent"
            )
        elif excess:
            _require(any(x > 1e-12 for x in excess), "it is false, but no children are more probable than their parent")


def _head_classifiers(case: _HeadCase) -> None:
    tree = irregular_hierarchy(3)
    head = case.create(tree)
    for level in tree.levels:
        try:
            layer = head.get_classifier(level)
        except ValueError:
            continue
        _require(isinstance(layer, nn.Linear), f"get_classifier({level!r}) is a {type(layer).__name__}, not nn.Linear")
        _require(
            layer.out_features == tree.num_classes[level], f"the classifier of {level} has another number of classes"
        )
    _require_error(lambda: head.get_classifier("level.9"), "get_classifier of an unknown level")


def _head_large_scores(case: _HeadCase) -> None:
    tree = irregular_hierarchy(4)
    head = case.create(tree, dtype=torch.float32)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(1e4 * parameter.sign())
    found = head.log_probs(head(case.vectors(torch.float32).sign(), tree.levels))
    torch.stack([z.sum() for z in found.values()]).sum().backward()
    gradients = {f"the gradient of {n}": p.grad for n, p in head.named_parameters() if p.grad is not None}
    _require_finite({**found, **gradients}, "weights of 1e4")
    for level, z in found.items():
        _require((z <= 1e-3).all(), f"weights of 1e4: a log-probability of {level} is {z.max():g}")


def _head_autocast(case: _HeadCase) -> None:
    tree = irregular_hierarchy(3)
    head, v = case.create(tree, dtype=torch.float32), case.vectors(torch.float32)
    expected = head.log_probs(head(v, tree.levels))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head.log_probs(head(v, tree.levels))
    for level in tree.levels:
        _require(found[level].dtype == torch.float32, f"log-probabilities of {level} are {found[level].dtype}")
        torch.testing.assert_close(found[level], expected[level], rtol=0.05, atol=0.1)
    if head.levels_are_marginals:
        p = {level: z.exp() for level, z in found.items()}
        for level in tree.levels[:-1]:
            _require((child_sums(tree, p, level) <= p[level] + 1e-5).all(), f"children of {level} exceed their parent")


def _head_copies(case: _HeadCase) -> None:
    tree, v = irregular_hierarchy(3), case.vectors()
    head, other = case.create(tree).eval(), case.create(tree, seed=3).eval()
    _check_copies(head, other, lambda head: list(head(v, tree.levels).values()))


def _head_the_random_generator(case: _HeadCase) -> None:
    tree, v = irregular_hierarchy(3), case.vectors()
    _check_generator(lambda seed: case.create(tree, seed=seed), lambda head: head(v, tree.levels))


_HEAD_CHECKS: list[Callable[[_HeadCase], None]] = [
    _head_attributes,
    _head_options,
    _head_requested_levels,
    _head_probabilities,
    _head_levels_are_marginals,
    _head_classifiers,
    _head_large_scores,
    _head_autocast,
    _head_copies,
    _head_the_random_generator,
]
