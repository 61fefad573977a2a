"""The demo: its tree and images, and the page in a real browser."""

from __future__ import annotations

import re
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from conftest import SMALL
from PIL import Image

from c2f_zoo import Hierarchy, Prediction, create_model, load_hierarchy
from c2f_zoo.cli import main
from c2f_zoo.demo.app import MAX_PIXELS, Demo, create_page, launch, read_bounded
from c2f_zoo.demo.examples import find_examples
from c2f_zoo.demo.tree_view import tree_html
from c2f_zoo.inference.prediction import Provenance

TREE = Hierarchy(
    ("kind", "shape"), (("round", "edged", "<b>"), ("disc", "ring", "egg", "orb", "box", "b")), ((0, 0, 0, 0, 1, 2),)
)
CALIBRATED = Provenance(rule="climb", risk=0.05)
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def predict(p: dict[str, list[float]], **parts: Any) -> Prediction:
    arrays = {level: np.array(values) for level, values in p.items()}
    return Prediction(parts.pop("path", []), tree=TREE, probabilities=arrays, **parts)


P = {"kind": [0.9, 0.02, 0.08], "shape": [0.1, 0.6, 0.05, 0.15, 0.02, 0.08]}


def items(html: str) -> list[tuple[str, str]]:
    """Return CSS class and name of the classes of a tree, in order."""
    return re.findall(r'<li class="(\w+)"><span class="node"><span class="name"[^>]*>([^<]*)<', html)


def test_the_path_lights_up_to_the_trusted_class() -> None:
    steps = [("kind", "round", 0.93)], [("shape", "ring", 0.44)]
    html = tree_html(predict(P, trusted_path=steps[0], guess=steps[1], provenance=CALIBRATED))
    shown = [("trusted", "round"), ("guess", "ring"), ("other", "orb"), ("other", "disc")]
    assert items(html) == [*shown, ("other", "&lt;b&gt;"), ("other", "edged")]
    assert "and 1 other<" in html and "93 %" in html and "44 %" in html
    assert "Trusted at a risk of 5 %: <b>kind</b> round (93 %)" in html and 'data-level="kind"' in html
    assert "<b>" not in re.sub(r"<b>kind</b>", "", html)  # names are escaped


def test_a_guess_may_leave_the_trusted_path_and_nothing_may_be_trusted() -> None:
    apart = predict(
        P,
        trusted_path=[("kind", "edged", 0.6)],
        guess=[("kind", "round", 0.4), ("shape", "disc", 0.2)],
        provenance=CALIBRATED,
    )
    assert items(tree_html(apart))[:2] == [("guess", "round"), ("guess", "disc")]
    assert ("trusted", "edged") in items(tree_html(apart))
    nothing = tree_html(replace(apart, trusted_path=[]))
    assert "Nothing can be trusted at a risk of 5 %" in nothing and 'class="trusted"' not in nothing


def test_without_calibration_the_tree_shows_the_path() -> None:
    html = tree_html(predict(P, path=[("kind", "round", 0.9), ("shape", "ring", 0.6)]))
    assert items(html)[:2] == [("path", "round"), ("path", "ring")] and "not calibrated" in html
    only = tree_html(predict({"kind": P["kind"]}, path=[("kind", "round", 0.9)]))  # predicted down to a level
    assert [name for _, name in items(only)] == ["round", "&lt;b&gt;", "edged"]


@pytest.fixture(scope="module")
def demo() -> Demo:
    return Demo.of(create_model("mlph_tiny_critters", pretrained=True))


def test_distance_shrinks_by_equal_ratios_to_half_of_the_coarsest_resolution(demo: Demo) -> None:
    image = Image.new("RGB", (3000, 2000))
    sides = [demo.pixels_at(distance, image) for distance in range(0, 101, 25)]
    assert sides[0] == 2000 and sides[-1] == 6
    np.testing.assert_allclose(sides[1:], [demo.side * (6 / demo.side) ** (one / 4) for one in range(1, 5)], atol=0.5)
    assert {demo.pixels_at(distance, Image.new("RGB", (5, 4))) for distance in range(101)} == {4}


def test_the_promised_risk_is_the_largest_calibrated_one_up_to_the_accepted(demo: Demo) -> None:
    assert demo.risks == [0.01, 0.02, 0.05, 0.1, 0.2]
    accepted = (0.001, 0.01, 0.049, 0.05, 0.07, 0.2, 0.9)
    assert [demo.calibrated_risk(risk) for risk in accepted] == [0.01, 0.01, 0.02, 0.05, 0.05, 0.2, 0.2]
    plain = Demo.of(create_model("mlph", hierarchy="critters", **SMALL))  # type: ignore[arg-type]
    assert plain.risks == [] and plain.calibrated_risk(None) is None


def test_a_smaller_risk_trusts_no_finer_class(demo: Demo, tmp_path: Path) -> None:
    (file, *_), _ = find_examples(load_hierarchy("critters"), None, tmp_path)
    depth = {"": -1, "family": 0, "genus": 1, "species": 2}
    shown = [demo.show(file, 40, risk)[1] for risk in demo.risks]
    levels = [(re.findall(r'data-level="(\w+)"', html) or [""])[0] for html in shown]
    assert [depth[level] for level in levels] == sorted(depth[level] for level in levels)


def test_large_images_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    file = tmp_path / "large.png"
    Image.new("1", (10_000, 1 + MAX_PIXELS // 10_000)).save(file)
    assert file.stat().st_size < 100_000
    with pytest.raises(ValueError, match="50 million pixels; the demo takes up to 50 million"):
        read_bounded(file)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match="cannot read the image"):
        read_bounded(tmp_path / "text.png")


def test_examples_are_drawn_for_the_critters_or_from_a_folder(tmp_path: Path) -> None:
    drawn, notes = find_examples(load_hierarchy("critters"), None, tmp_path)
    assert len(drawn) == 4 and not notes and all(Image.open(file).size == (96, 96) for file in drawn)
    assert find_examples(load_hierarchy("cub"), None, tmp_path) == ([], [])
    (tmp_path / "photos").mkdir()
    for number in range(15):
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / f"{number:02}.png")
    (tmp_path / "photos" / "notes.txt").write_text("")
    files, notes = find_examples(load_hierarchy("critters"), tmp_path / "photos", tmp_path)
    assert [file.name for file in files] == [f"{number:02}.png" for number in range(12)]
    assert notes == ["files without an image extension, left out: 1", "further images, left out: 3"]


@pytest.mark.parametrize(("package", "extra"), [("gradio", "demo"), ("captum.attr", "explain")])
def test_without_an_extra_the_error_says_how_to_install_it(
    package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(sys, "argv", ["c2f-zoo", "demo", "mlph_tiny_critters"])
    with pytest.raises(SystemExit, match=re.escape(f"pip install 'c2f_zoo[{extra}]'")):
        main()


@pytest.fixture
def address(demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, set[str]]]:
    """Serve the demo; yield its address and the hosts that this process looks up."""
    hosts: set[str] = set()
    look_up = socket.getaddrinfo

    def record(host: Any, *args: Any, **kwargs: Any) -> Any:
        hosts.add(host.decode() if isinstance(host, bytes) else str(host))
        return look_up(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", record)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    files, _ = find_examples(load_hierarchy("critters"), None, tmp_path)
    page = create_page(demo, "mlph_tiny_critters", files)
    yield launch(page, "127.0.0.1", None), hosts
    page.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::Warning:gradio")
@pytest.mark.skipif(BROWSER is None, reason="there is no chromium; Debian has it: apt-get install chromium")
def test_in_a_browser_the_prediction_climbs_from_species_to_family(
    address: tuple[str, set[str]], tmp_path: Path
) -> None:
    sync = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
    url, hosts = address
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])  # root needs the option
        window = browser.new_page(viewport={"width": 1280, "height": 700})
        window.set_default_timeout(60_000)
        requests: list[str] = []
        window.on("request", lambda request: requests.append(request.url))
        window.goto(url)
        window.locator(".gallery-item").first.click()
        window.wait_for_selector('.c2f-summary[data-level="species"]')
        assert window.locator(".c2f-images figure").count() == 4
        assert window.locator(".c2f-tree li.trusted").count() == 3
        window.get_by_label("range slider for Distance").fill("100")
        window.wait_for_selector('.c2f-summary[data-level="family"]')
        assert window.locator(".c2f-tree li.trusted").count() == 1
        assert window.locator(".c2f-tree li.guess").count() == 2
        assert window.locator("figcaption").first.inner_text() == "6 x 6 pixels"

        window.set_viewport_size({"width": 390, "height": 844})  # a phone
        assert window.evaluate("document.documentElement.scrollWidth") <= 390

        large = tmp_path / "large.png"
        Image.new("1", (10_000, 8_000)).save(large)
        window.locator('button[aria-label="Clear"], button[aria-label="Remove Image"]').first.click()
        window.locator("input[type=file]").first.set_input_files(large)
        window.get_by_text("the image has 80 million pixels").wait_for()
        browser.close()
    network = [request for request in map(urlsplit, requests) if request.scheme not in ("data", "blob")]
    assert network and {request.hostname for request in network} == {"127.0.0.1"}
    assert hosts <= {"127.0.0.1", "localhost", "None", ""}
