"""The page in a real browser: the system's Chromium, where there is one."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_core_python import base as axe
from conftest import SENTENCE
from networks import learnt, untrained

from tinygpt_lightning.data.text import QAPair
from tinygpt_lightning.page.page import render

from .browser import BACKSPACE, CHROMIUM, CONTROL, DRIVER, ENTER, RIGHT, TAB, Browser

ROOT = Path(__file__).parents[2]
RELEASED = [ROOT / "checkpoints" / "smallest" / name for name in ("page.html", "page-16.html")]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver on the PATH"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.parametrize("page", RELEASED, ids=lambda path: path.name)
def test_the_released_page_is_used(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width)
    browser.click("#play")
    browser.wait(lambda: said(browser) == SENTENCE)
    assert browser.text("guess") == "The text is complete."
    browser.click("#back")
    assert said(browser) == SENTENCE[:-1]
    browser.click("#restart")
    assert said(browser) == "Question: Xin chào"
    browser.click("#step")
    assert said(browser) == "Question: Xin chào "

    browser.type("#typed", BACKSPACE * 5)
    assert said(browser) == "Question: Xin"
    browser.type("#typed", "ß")
    assert "ß" in browser.text("typed-error")
    browser.type("#typed", BACKSPACE + " chào")
    assert (said(browser), browser.text("typed-error")) == ("Question: Xin chào", "")

    assert said(browser, "says") == SENTENCE
    browser.type("#switches input", " ")  # attention
    assert said(browser, "says") != SENTENCE
    browser.type("#switches input", " ")
    assert said(browser, "says") == SENTENCE

    drag_a_weight(browser)
    assert said(browser, "weights-say") != SENTENCE
    browser.click("#reset")
    assert said(browser, "weights-say") == SENTENCE

    browser.slide("moment", 0)
    assert said(browser, "moment-says") != SENTENCE
    browser.slide("moment", 1000)
    assert said(browser, "moment-says") == SENTENCE

    browser.click("#language")
    assert browser.js("return document.documentElement.lang") == "vi"
    assert "nhìn thấy" in browser.text("writing") + browser.js("return document.title")
    assert not browser.messages()
    assert browser.requests() == [page.as_uri()]


def said(browser: Browser, where: str = "text") -> str:
    """A text on the screen, as the model wrote it."""
    return browser.text(where).replace("↵", "")


def drag_a_weight(browser: Browser) -> None:
    """Drag numbers of the token embedding upwards."""
    for column in (2, 5, 12):
        left, top = browser.js(
            """const canvas = document.querySelector('#weight-grids canvas');
            canvas.scrollIntoView({block: 'center'});
            const box = canvas.getBoundingClientRect();
            return [box.left, box.top];"""
        )
        browser.drag(left + 20 * column + 10, top + 26, by=-150)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.parametrize("page", RELEASED, ids=lambda path: path.name)
def test_the_rules_of_accessibility_hold(browser: Browser, page: Path, width: int, dark: bool) -> None:
    browser.open(page, width, dark=dark)
    browser.js("for (const details of document.querySelectorAll('section:not(#weights) details')) details.open = true")
    browser.js("show(40); point({array: 'w:wte.weight', t: 1, i: 1}, true)")
    browser.js((Path(axe.__file__).parent / "axe.min.js").read_text("utf-8"))
    result = browser.later("axe.run()")
    assert [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in result["violations"]] == []
    assert len(result["passes"]) > 15


@pytest.mark.parametrize("width", [360, 768, 1440, 2560])
def test_nothing_is_wider_than_the_screen(browser: Browser, width: int) -> None:
    for page in RELEASED:
        browser.open(page, width)
        for _ in range(2):
            browser.js("show(1000)")
            assert browser.js("return document.documentElement.scrollWidth <= innerWidth")
            browser.click("#language")


def test_the_keyboard_is_enough(browser: Browser) -> None:
    browser.open(RELEASED[0])
    seen = set()
    for _ in range(150):
        browser.press(TAB)
        seen.add(browser.js("return document.activeElement.id"))
    assert seen >= {"language", "play", "step", "typed", "along", "moment", "reset"}
    browser.js("document.getElementById('step').focus()")
    browser.press(ENTER)
    assert said(browser) == "Question: Xin chào "
    browser.js("document.querySelector('.strips[data-rows^=wte] canvas').focus()")
    browser.press(RIGHT)
    assert browser.text("formula").startswith("wte[1, 0] (“u”) = ")
    browser.js("document.querySelector('#weight-grids canvas').focus()")
    browser.press(RIGHT)
    browser.type("#number", CONTROL + "a")
    browser.type("#number", "12.5")
    assert browser.js("return model.w['wte.weight'][model.w['wte.weight'].shape[1]]") == 12.5


def test_it_can_be_printed(browser: Browser) -> None:
    browser.open(RELEASED[0], dark=True)
    browser.js("show(1000)")
    sheet = base64.b64decode(browser.devtools("Page.printToPDF", printBackground=True)["data"])
    assert sheet.startswith(b"%PDF")
    assert 2 <= sheet.count(b"/Type /Page\n") + sheet.count(b"/Type /Page ") <= 12


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a model that is too large to compute in one."""
    page = tmp_path_factory.mktemp("large") / "page.html"
    page.write_text(render(learnt(n_embd=160, n_head=4), "large"), encoding="utf-8")
    return page


def test_a_large_model_shows_its_recorded_pass(browser: Browser, recorded: Path) -> None:
    browser.open(recorded)
    written = "Question: Xin chào \nAnswer: Chào bạn!."
    assert "335,200" in browser.text("recorded")
    browser.js("show(1000)")
    assert said(browser) == written
    assert browser.js("return document.getElementById('prompt').hidden")
    assert browser.text("verdict").startswith("The text survives")
    browser.type("#switches label:nth-of-type(4) input", " ")  # positions
    assert browser.text("verdict").startswith("The text breaks")
    assert not browser.messages()


def test_a_hostile_model_cannot_break_out(browser: Browser, tmp_path: Path) -> None:
    hostile = "</script><script>document.title='out'</script>"
    pairs = [QAPair(f"{hostile}{n}", "'\"\u2028\u2029\u202e<!--&amp;") for n in range(10_000)]
    page = tmp_path / "page.html"
    page.write_text(render(untrained(pairs, n_positions=128), hostile), encoding="utf-8")
    browser.open(page, 360)
    browser.js("show(1000)")
    assert said(browser).startswith(f"Question: {hostile}0")
    assert browser.js("return document.title").endswith(hostile)
    assert not browser.messages()
    assert browser.requests() == [page.as_uri()]


def test_nothing_else_may_run(browser: Browser) -> None:
    browser.open(RELEASED[0])
    browser.js("const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s)")
    assert browser.js("return window.ran") is None
    assert "Content Security Policy" in browser.messages()[0]


def test_every_number_is_explained(browser: Browser) -> None:
    browser.open(RELEASED[0])
    browser.js("show(1000)")
    problems = browser.js(
        """return grids.flatMap((grid) => {
          const ref = grid.ref(0, 0);
          point(ref, true);
          const shows = document.getElementById('formula').textContent;
          return shows.includes('undefined') || shows.includes('NaN') || !grid.lit.length ? [shows] : [];
        })"""
    )
    assert problems == []


def test_three_numbers_have_regions_and_words_of_their_own(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(render(untrained(n_embd=3, n_head=1), "three"), encoding="utf-8")
    browser.open(page)
    label, moved = (
        browser.js(f"return document.{found}.textContent")
        for found in ("querySelector('[for=along]')", "getElementById('along-name')")
    )
    assert label == "Move all points:"
    assert "line" not in moved
    # Each point lies in the region of the character that is written there.
    wrong = browser.js(
        """show(1000);
        const [[left, right], [bottom, top]] = state.bounds, n = state.areas.length;
        return state.pass.x.filter((_, t) => {
          const [a, b] = seen(model, state.pass.x_mlp[t]);
          const [i, j] = [((a - left) / (right - left)) * n, ((top - b) / (top - bottom)) * n];
          const around = (row) => [row?.[Math.floor(i)], row?.[Math.floor(i) + 1]];
          const near = [0, 1].flatMap((below) => around(state.areas[Math.floor(j) + below]));
          return !near.includes(greedy(state.pass, t));
        }).length"""
    )
    assert wrong == 0
    assert not browser.messages()
