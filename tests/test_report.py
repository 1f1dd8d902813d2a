"""Report pieces: text is escaped, nothing is fetched, figures keep their numbers."""

import base64
import io
import re

import numpy as np
import pytest
import soundfile
from PIL import Image

from zoo import report
from zoo.reasons import evidence, reasons


def fetched(page: str) -> list[str]:
    """What a browser would fetch from elsewhere."""
    found = re.findall(r'(?:src|href|srcset|poster)\s*=\s*["\']?([^"\'\s>]+)', page)
    found += re.findall(r"url\(([^)]+)\)", page) + re.findall(r"@import\s+(\S+)", page)
    return [x for x in found if not x.startswith(("data:", "#"))]


def test_what_would_be_fetched_is_found():
    page = "<img src='http://a'><a href=b.css></a> url(c.png) @import d; <img src=data:x>"
    assert fetched(page) == ["http://a", "b.css", "c.png", "d;"]


def test_text_is_escaped_everywhere():
    bad = "<script>alert('x')</script>&"
    page = report.page(
        bad,
        bad,
        report.section(bad, report.paragraph(bad), report.heading(bad), report.code(bad)),
        report.figures([(bad, bad)]),
        report.table([bad], [[bad]]),
        report.bars([(bad, 1.0, "model")]),
        report.shelf([report.card(bad, notes=[bad], mark=bad)]),
    )
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 15
    assert page.count("<section>") == page.count("</section>") == 1


def test_table_writes_numbers_to_the_right():
    html = report.table(["name", "events", "recall"], [["a", 1234, 0.25], ["b", 5, 1.0]])
    assert "<td>a</td><td class=n>1,234</td><td class=n>0.2500</td>" in html
    assert html.count("<th class=n>") == 2


def test_bars_are_in_proportion():
    html = report.bars([("half", 0.2, "floor"), ("all", 0.4, "optimum"), ("none", 0.0, "floor")])
    assert re.findall(r"width:([\d.]+)%", html) == ["50.0", "100.0", "0.0"]
    assert report.COLOURS["optimum"] in html
    assert "width:0.0%" in report.bars([("zero", 0.0, "floor")])


def test_curves_are_inline_and_repeatable():
    levels = {"best possible": (0.5, "optimum")}
    args = (([1, 2, 3], [3.0, 2.0, 1.0]), ([2, 3], [0.1, 0.3]), "recall@10", levels, 3)
    svg = report.curves(*args)
    assert svg == report.curves(*args)
    assert svg.startswith('<svg class="plot"') and "best possible" in svg and "recall@10" in svg
    assert fetched(svg) == []


def test_curves_of_a_resumed_run_need_no_losses():
    assert "validation recall@10" in report.curves(((), ()), ([1], [0.2]), "recall@10")


@pytest.mark.parametrize("size, expected", [((200, 100), (96, 48)), ((8, 8), (96, 96))])
def test_picture_is_an_inline_thumbnail(tmp_path, size, expected):
    path = tmp_path / "a.png"
    Image.new("RGB", size, "red").save(path)
    html = report.picture(path)
    data = base64.b64decode(re.search(r"base64,([^\"]+)", html)[1])
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == expected
        assert image.getpixel((1, 1)) == (255, 0, 0)
    assert "no image" in report.picture("")


def test_sound_is_inline(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(80, np.float32), 8000)
    inline = re.search(r"base64,([^\"]+)", report.sound(path))[1]
    assert base64.b64decode(inline) == path.read_bytes()
    assert report.sound("") == ""


def small_evidence(steps: int):
    """Items 1 red, 2 green, 3 red, 4 without words; 1 -> 2 `steps` times, 3 -> 3's like once."""
    words = [frozenset(), *map(frozenset, (["red"], ["green"], ["red"], []))]
    values = np.array([1, 2] * steps + [2, 3] * steps)
    offsets = np.arange(0, len(values) + 1, 2)
    vectors = np.array([[0, 0], [1, 0], [0, 2], [1, 1], [-1, 0]], np.float32)
    return evidence(values, offsets, words, vectors, ["", "one", "two", "three", "four"])


def test_reasons_are_counted():
    known = small_evidence(20)
    assert reasons(known, [1], 2) == [
        "20 of 20 people took it right after the last item",
        "after 'red' people take 'green' 2.0 times as often as by chance",
    ]
    assert reasons(known, [1, 2], 3) == [
        "20 of 20 people took it right after the last item",
        "after 'green' people take 'red' 2.0 times as often as by chance",
        "'red', as 1 of the 2 items before",
        "most like 'one' of the history (cosine 0.71)",
    ]


def test_reasons_need_enough_steps_and_say_what_is_new():
    assert reasons(small_evidence(19), [1], 2) == [
        "19 of 19 people took it right after the last item"
    ]
    assert reasons(small_evidence(20), [1], 4) == [
        "new: nobody had it in training, only its content speaks"
    ]
