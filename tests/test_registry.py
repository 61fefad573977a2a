"""Registry: names, duplicates and unknown names."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint

import pytest

from c2f_zoo import registry as module
from c2f_zoo.registry import Registry


def test_a_registered_entry_is_found_and_listed() -> None:
    registry = Registry[int]("number")
    registry.register("two")(2)
    registry.register("ten")(10)
    assert registry["two"] == 2
    assert registry.names() == ["ten", "two"]
    assert registry.names("tw*") == ["two"]
    assert "ten" in registry
    assert "six" not in registry


def test_the_decorator_returns_its_argument() -> None:
    registry = Registry[object]("function")

    @registry.register("f")
    def f() -> None: ...

    assert registry["f"] is f


def test_a_duplicate_is_an_error_unless_overridden() -> None:
    registry = Registry[int]("number")
    registry.register("one")(1)
    with pytest.raises(ValueError, match=r"number 'one' is registered already .*override=True"):
        registry.register("one")(2)
    assert registry["one"] == 1
    registry.register("one", override=True)(3)
    assert registry["one"] == 3


def test_an_empty_name_is_an_error() -> None:
    with pytest.raises(ValueError, match="a number needs a name"):
        Registry[int]("number").register("")


def test_an_unknown_name_suggests_close_ones() -> None:
    registry = Registry[int]("backbone")
    registry.register("resnet50")(0)
    registry.register("vgg16")(0)
    with pytest.raises(ValueError, match=r"unknown backbone 'resnet5O'; did you mean 'resnet50'\?"):
        registry["resnet5O"]
    with pytest.raises(ValueError, match=r"unknown backbone 'zzz'; known: resnet50, vgg16"):
        registry["zzz"]


def test_a_thread_never_sees_some_of_the_plugins_only(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint(name, "math:pi", "numbers") for name in ("one", "two")]
    numbers = Registry[float]("number", "numbers")
    found: list[list[str]] = []

    def read(group: str) -> Iterator[EntryPoint]:
        yield points[0]
        if not found:  # another thread asks for the names in the middle
            found.append([])
            with ThreadPoolExecutor(1) as pool:
                found[0] = pool.submit(numbers.names).result()
        yield points[1]

    monkeypatch.setattr(module, "_entry_points", read)
    assert numbers.names() == ["one", "two"]
    assert found == [["one", "two"]]
