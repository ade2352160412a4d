"""Pages in a real browser: clicked, typed at, measured, and given a hostile run."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandboxrl.envs.trajectory import Observation, StopReason, Tokens, ToolCall, Turn
from sandboxrl.launch.__main__ import main
from sandboxrl.rl.reports.pages.comparison import compare_page
from sandboxrl.rl.reports.pages.run import report_page, view_trajectories, write_report
from tests.rl.reports.pages.browser import Page, chromium, needs_browser
from tests.rl.reports.pages.sample_run import asked, trajectory, write_sample_run
from tests.rl.reports.pages.test_pages import endpoint_trajectory, write_rows

pytestmark = needs_browser

CHOSEN = "document.querySelector('.row[aria-selected=true]')?.getAttribute('aria-posinset')"
TOLD = "document.querySelector('.told').textContent"
SHOWN = "[...document.querySelectorAll('.pane:not([hidden]) h3')].map(one => one.textContent)"
SEARCHED = "!/searching/.test(document.querySelector('.told').textContent)"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("chromium") / "profile") as opened:
        yield opened


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 steps: 208 trajectories before, during and after."""
    return write_report(write_sample_run(tmp_path_factory.mktemp("runs") / "sample", steps=40))


@pytest.fixture(scope="module")
def all_kinds(tmp_path_factory: pytest.TempPathFactory, report: Path) -> dict[str, Path]:
    """A page of each kind."""
    folder = tmp_path_factory.mktemp("kinds")
    other = write_sample_run(folder / "another_run_with_a_long_name", steps=30, seed=1)
    evaluation = write_rows(
        folder / "evaluation/results.jsonl",
        [
            endpoint_trajectory(task_id=f"t{i}", mode=mode, score=float(i % 2)).to_dict()
            for i in range(30)
            for mode in ("llm", "sandbox")
        ],
    )
    write_rows(folder / "sweep/recipes/lr_high-s0.yaml", ["name: lr_high-s0"])
    write_sample_run(folder / "sweep/lr_high-s0", steps=5)
    for words in (["view", str(folder / "sweep")], ["analyze", f"run={other}", "--out", str(folder / "tables")]):
        assert main(words) == 0
    pages = {"compare": compare_page([report.parent, other]), "evaluation": view_trajectories([evaluation])}
    made = {name: folder / f"{name}.html" for name in pages}
    for name, text in pages.items():
        made[name].write_text(text)
    analysis = folder / "tables/analysis.html"
    return {"run": report, "sweep": folder / "sweep/sweep.html", "analysis": analysis, **made}


def opened(page: Page, file: Path, state: str = "", width: int = 1500, height: int = 1000, dark: bool = False) -> None:
    page.size(width, height, dark, phone=width < 500)
    page.said.clear()
    if file.name == "analysis.html":
        page.show(file)
    else:
        page.open(file, state)


def choosing(select: str, option: str) -> str:
    """Script: choose an option as a person does; its value is the option's place."""
    return f"""(() => {{
        const one = document.querySelector('select[aria-label={json.dumps(select)}]');
        one.selectedIndex = [...one.options].findIndex(option => option.text === {json.dumps(option)});
        one.dispatchEvent(new Event('change'));
        return one.selectedIndex;
    }})()"""


def shows(page: Page) -> list[str]:
    return page.run(SHOWN)


def test_the_page_draws_itself_without_an_error(page: Page, all_kinds: dict[str, Path]) -> None:
    for name, file in all_kinds.items():
        opened(page, file)
        assert page.said == [], name
        assert page.run("document.querySelectorAll('section').length") >= 2
    opened(page, all_kinds["run"])
    assert page.run("document.querySelectorAll('.chart svg path').length") >= 8
    assert page.run("document.querySelectorAll('.row').length") < 60, "only the rows in view exist"
    assert "Let me look at what is there." in page.run("document.querySelector('.pane .body').textContent")


def test_filters_show_what_they_say(page: Page, report: Path) -> None:
    opened(page, report)
    assert page.run(TOLD).startswith("208 trajectories")
    page.click(".toggle[title^='Reward 0']")
    failed = page.run(TOLD)
    rewards = "[...document.querySelectorAll('.row:not([hidden]) .c-reward')].map(one => one.textContent)"
    assert " of 208 trajectories" in failed and set(page.run(rewards)) <= {"0.00", "0.25", "lost"}
    assert page.run("document.querySelector('.toggle[title^=\"Reward 0\"]').getAttribute('aria-pressed')") == "true"
    assert page.run(choosing("Stop reason", "max turns")) > 0
    stops = "[...document.querySelectorAll('.row:not([hidden]) .c-stop')].map(one => one.textContent)"
    assert set(page.run(stops)) == {"max turns"}
    state = page.run("location.hash")
    page.run("window.before = true, location.reload()")
    page.until("!window.before && document.querySelector('.pane .body')")
    assert page.run("location.hash") == state and set(page.run(stops)) == {"max turns"}, "the address keeps it"
    page.run("[...document.querySelectorAll('.picks .plain')].at(-1).click()")
    assert page.run(TOLD).startswith("208 trajectories")


def test_order_and_step_can_be_chosen(page: Page, report: Path) -> None:
    opened(page, report)
    assert page.run(choosing("Order", "highest reward")) > 0
    rewards = page.run(
        """[...document.querySelectorAll('.row:not([hidden])')]
        .sort((a, b) => a.getAttribute('aria-posinset') - b.getAttribute('aria-posinset'))
        .map(one => +one.querySelector('.c-reward').textContent)"""
    )
    assert rewards == sorted(rewards, reverse=True) and rewards[0] == 1
    assert page.run(choosing("Step", "step 40")) > 0
    assert page.run(TOLD).startswith("64 of 208")


def test_search_finds_what_was_said_anywhere(page: Page, tmp_path: Path) -> None:
    rows = []
    for i in range(3000):
        turn = Turn(
            f"Filler {i}.", (ToolCall("bash", {"command": f"ls /{'x' * 200}"}),), (Observation(f"répétition {i}"),)
        )
        rows.append(endpoint_trajectory(task_id=f"t{i}", turns=(turn,)).to_dict())
    rows[2345]["turns"][0]["observations"][0]["text"] = 'a NEEDLE "quoted" <b>'
    (tmp_path / "page.html").write_text(view_trajectories([write_rows(tmp_path / "r.jsonl", rows)]))
    opened(page, tmp_path / "page.html")
    for typed, found in (
        ("needle", 1), ('"quoted" <b>', 1), ("RÉPÉTITION 77", 11), ("t2345", 1), ("filler 2999.", 1),
        ("nowhere at all", 0),
    ):  # fmt: skip
        page.run("document.querySelector('input[type=search]').select()")
        page.type(typed)
        told = f"document.querySelector('.told').textContent.startsWith('{found} of 3,000')"
        page.until(f"{told} && {SEARCHED}", within_s=30)
    assert page.said == []


def test_all_of_it_works_with_keys_and_focus_is_never_lost(page: Page, report: Path) -> None:
    opened(page, report)
    page.press("l")
    assert page.run("document.activeElement.getAttribute('role')") == "listbox"
    page.press("Home")
    assert page.run(CHOSEN) == "1"
    for _ in range(3):
        page.press("ArrowDown")
    page.press("j", "k")
    assert page.run(CHOSEN) == "4"
    assert page.run("document.activeElement.getAttribute('aria-activedescendant')") == page.run(
        "document.querySelector('.row[aria-selected=true]').id"
    )
    page.press("End")
    assert page.run(CHOSEN) == "208"
    inside = """(() => {
        const row = document.querySelector('.row[aria-selected=true]').getBoundingClientRect();
        const list = document.querySelector('.list').getBoundingClientRect();
        return row.top >= list.top - 1 && row.bottom <= list.bottom + 1;
    })()"""
    assert page.run(inside)
    page.press("PageUp", "Enter")
    assert page.run("document.activeElement.className") == "pane"
    page.press("t")
    page.until("document.querySelector('.tokens u')")
    page.press("Escape")
    assert page.run("document.activeElement.getAttribute('role')") == "listbox"
    page.press("f")
    assert " of 208" in page.run(TOLD)
    page.press("/")
    page.type("Port")
    page.until("/ of 208/.test(document.querySelector('.told').textContent)")
    assert page.run("document.activeElement.type") == "search"
    page.press("?")
    assert page.run("document.querySelector('dialog') === null"), "in a field, a key is a letter"
    page.press("Tab")
    page.press("?")
    assert page.run("document.querySelector('dialog[open]') !== null")
    page.press("Escape")
    page.until("document.querySelector('dialog') === null")


def test_a_chosen_chip_keeps_the_focus(page: Page, report: Path) -> None:
    opened(page, report, "row=20")
    chips = "[...document.querySelectorAll('.pane')][0].querySelectorAll('.chip')"
    before = page.run(f"[...{chips}].findIndex(one => one.getAttribute('aria-pressed') === 'true')")
    target = before + 1 if before < 7 else before - 1
    page.run(f"{chips}[{target}].focus()")
    page.press("Enter")
    page.until(f"{chips}[{target}]?.getAttribute('aria-pressed') === 'true'")
    assert page.run(f"document.activeElement === {chips}[{target}]")


def test_a_token_says_all_that_is_known_of_it(page: Page, report: Path) -> None:
    rows = [json.loads(line) for line in (report.parent / "trajectories/step_000040.jsonl").open()]
    at = next(i for i, row in enumerate(rows) if "learner_logprobs" in row)
    row = rows[at]
    first = row["tokens"]["mask"].index(1)
    content = page_content(report)
    number = content["index"]["columns"]["place"].index(content["index"]["names"]["place"].index(["Training", 40])) + at
    opened(page, report, f"view=tokens&row={number}")
    page.until("document.querySelector('.pane u.on')")
    page.run("document.querySelector('.pane .tokens').focus()")
    page.run("document.querySelectorAll('.pane .stream.folded').forEach(one => one.classList.remove('folded'))")
    for _ in range(first + 1):
        page.press("ArrowRight")
    told = page.run(
        "[...document.querySelectorAll('#tip dt')].map(one => [one.textContent, one.nextSibling.textContent])"
    )
    facts = {name: value.replace("−", "-") for name, value in told}
    assert facts["token id"] == str(row["tokens"]["ids"][first]) and facts["position"] == str(first)
    assert facts["loss mask"] == "1" and facts["weight version"] == "39"
    assert float(facts["log-prob, engine"]) == pytest.approx(row["tokens"]["logprobs"][first], abs=1e-4)
    assert float(facts["log-prob, learner"]) == pytest.approx(row["learner_logprobs"][0], abs=1e-4)
    assert float(facts["mismatch"]) == pytest.approx(
        row["learner_logprobs"][0] - row["tokens"]["logprobs"][first], rel=0.1
    )
    assert float(facts["advantage"]) == pytest.approx(row["advantage"], abs=1e-3)
    assert page.run("document.activeElement.className") == "tokens"


def page_content(file: Path) -> dict[str, Any]:
    from tests.rl.reports.pages.reading import content

    return content(file.read_text())


def test_question_and_right_answer_stand_beside_what_was_graded(page: Page, report: Path) -> None:
    opened(page, report, "row=0")
    shown = page.run("[...document.querySelectorAll('.pane')][0].querySelector('.asked').innerText")
    first = json.loads((report.parent / "trajectories/eval_heldout_000000.jsonl").open().readline())
    assert first["question"] in shown and first["gold"] in shown and first["answer"] in shown
    box = "document.querySelectorAll('.pane .answer')[{}].getBoundingClientRect()"
    assert page.run(f"{box.format(0)}.top === {box.format(1)}.top"), "side by side"


def test_the_same_task_stands_side_by_side(page: Page, all_kinds: dict[str, Path]) -> None:
    for name in ("run", "compare", "evaluation"):
        opened(page, all_kinds[name])
        page.until("document.querySelectorAll('.pane:not([hidden]) .body').length === 2")
        first, second = shows(page)
        assert first == second
        labels = page.run(
            "[...document.querySelectorAll('.pane header select')].map(one => one.selectedOptions[0].text)"
        )
        assert len(set(labels)) == 2, name
    page.press("b")
    assert len(shows(page)) == 1


def test_a_chart_can_be_read_without_pointing(page: Page, report: Path) -> None:
    opened(page, report)
    label = page.run("document.querySelector('.chart svg').getAttribute('aria-label')")
    assert label.startswith("Training reward, steps 0 to 40.") and " to 0." in label
    page.run("document.querySelector('.chart svg').focus()")
    page.press("Home", "ArrowRight", "ArrowRight")
    rows = [json.loads(line) for line in (report.parent / "metrics.jsonl").open()]
    value = next(row["reward/mean"] for row in rows if row["step"] == 2 and "reward/mean" in row)
    spoken = page.run("document.querySelector('.chart [aria-live]').textContent")
    assert spoken.startswith("step 2: ") and float(spoken.split()[-1]) == pytest.approx(value, abs=1e-2)
    page.run(
        "[...document.querySelectorAll('summary')].find(one => one.textContent === 'All numbers as a table').click()"
    )
    page.until("document.querySelectorAll('.more table tbody tr').length === 41")


OVERFLOW = """(() => {
    const outside = one => one.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5;
    const all = [...document.querySelectorAll('body *')].filter(one => !one.closest('.wide, pre, svg, .row, dialog'));
    return all.filter(outside).map(one => one.className);
})()"""


def test_a_phone_never_scrolls_sideways(page: Page, all_kinds: dict[str, Path]) -> None:
    for name, file in all_kinds.items():
        for state in ("", "view=tokens") if name != "analysis" else ("",):
            opened(page, file, state, width=390, height=844)
            assert page.run("document.documentElement.scrollWidth") <= 390, name
            assert page.run(OVERFLOW) == [], name


def test_bars_are_true_to_their_numbers_at_any_width(page: Page, all_kinds: dict[str, Path]) -> None:
    measure = """[...document.querySelectorAll('.metered')].map(one => {
        const [bar, whole] = ['i', '.meter'].map(part => one.querySelector(part).getBoundingClientRect().width);
        return [+one.querySelector('b').textContent, bar / whole];
    })"""
    for width in (390, 1500):
        opened(page, all_kinds["compare"], width=width)
        bars = page.run(measure)
        assert len(bars) >= 2
        for told, drawn in bars:
            assert drawn == pytest.approx(told, abs=0.01)
    opened(page, all_kinds["run"], width=390)
    changes = """[...document.querySelectorAll('.figure')].map(one => {
        const [from, to] = one.querySelector('.value').textContent.match(/[0-9.]+/g);
        const [bar, whole] = ['i', '.track'].map(part => one.querySelector(part).getBoundingClientRect());
        return [+from, +to, (bar.left - whole.left) / whole.width, bar.width / whole.width];
    })"""
    for before, after, left, drawn in page.run(changes):
        assert left == pytest.approx(min(before, after), abs=0.01) and drawn == pytest.approx(
            abs(after - before), abs=0.01
        )


def test_bars_of_a_long_run_do_not_overlap_on_a_phone(page: Page, tmp_path: Path) -> None:
    rows = [{"step": i, "tokens/sampled": 100.0, "tokens/environment": 50.0, "reward/mean": 0.5} for i in range(1, 601)]
    write_rows(tmp_path / "run/metrics.jsonl", rows)
    (tmp_path / "page.html").write_text(report_page(tmp_path / "run"))
    page.size(390, 844, phone=True)
    page.show(tmp_path / "page.html")
    page.until("document.querySelector('.stacked')")
    bars = page.run("document.querySelector('.stacked').getAttribute('d')").split("Z")[:-1]
    edges = [(float(one[1:].split(" ")[0]), float(one.split("h")[1].split("V")[0])) for one in bars]
    assert 40 < len(edges) < 200
    for (left, wide), (after, _) in zip(edges, edges[1:], strict=False):
        assert wide >= 2 and left + wide <= after + 0.02


CONTRAST = Path(__file__).with_name("contrast.js").read_text()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_text_has_a_contrast_of_four_and_a_half(page: Page, all_kinds: dict[str, Path], dark: bool) -> None:
    opened(page, all_kinds["run"], dark=dark)
    page.run("Object.assign(document.querySelector('h1').style, { color: 'gray', background: 'silver' })")
    assert page.run(CONTRAST) == [[2.17, "", "sample"]], "the method finds what is too faint"
    for name, file in all_kinds.items():
        for state in ("", "view=tokens") if name != "analysis" else ("",):
            opened(page, file, state, dark=dark)
            assert page.run("document.body.textContent.length") > 200
            assert page.run(CONTRAST) == [], name


@pytest.fixture(scope="module")
def ten_thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(0)
    folder = tmp_path_factory.mktemp("large")
    with (folder / "results.jsonl").open("w") as file:
        for i in range(10_000):
            made, text = trajectory(rng, i % 2500, 3, rng.random())
            file.write(json.dumps(made.to_dict() | {"token_text": text, **asked(i % 2500)}) + "\n")
    (folder / "page.html").write_text(view_trajectories([folder / "results.jsonl"]))
    return folder / "page.html"


def test_ten_thousand_open_in_a_second_and_scroll_at_sixty_frames(page: Page, ten_thousand: Path) -> None:
    """Both are measured in processor time of the page's own thread: the machine may have other things to do."""
    page.size(1500, 1000)
    page.open(ten_thousand)  # once, so that the file is in memory
    wall = page.open(ten_thousand)
    cost = page.thread_s()  # a page that is opened has a process of its own
    assert page.run(TOLD).startswith("10,000 trajectories")
    assert 0 < cost < 1.0 and wall < 5.0, f"{cost:.2f} s of processor time, {wall:.2f} s"
    before, frames = page.thread_s(), 120
    page.run(
        f"""(async () => {{
            const box = document.querySelector('.list');
            for (let i = 0; i < {frames}; i++) {{
                box.scrollTop += 731;
                await new Promise(requestAnimationFrame);
            }}
        }})()"""
    )
    each = (page.thread_s() - before) / frames
    assert page.run("document.querySelector('.list').scrollTop") > 80_000
    assert each < 1 / 60, f"{1000 * each:.1f} ms of processor time per frame"
    numbers = page.run(
        "[...document.querySelectorAll('.row:not([hidden])')].map(one => +one.getAttribute('aria-posinset'))"
    )
    assert sorted(numbers) == list(range(min(numbers), max(numbers) + 1)), "no row is missing or there twice"
    print(f"10,000: opened in {wall:.2f} s ({cost:.2f} s of processor time), {1000 * each:.1f} ms per frame")


# ---- hostile text

OWNED = "document.documentElement.setAttribute('data-owned','yes');alert(1)"
HOSTILE = (
    f'</script></title></style><script>{OWNED}</script><img src=x onerror="{OWNED}"><!--<script>\u2028\u202e\x00\x1b[2J'
    "\ud800__proto__"
)


def hostile_run(folder: Path) -> Path:
    call = ToolCall(HOSTILE, {HOSTILE: HOSTILE, "deep": {"a": [HOSTILE]}, "__proto__": HOSTILE}, error=HOSTILE)
    answer = Observation(HOSTILE, HOSTILE, is_error=True, exit_code=1, timed_out=True)
    turn = Turn(HOSTILE, (call,), (answer,), reasoning=HOSTILE, start=1, end=3, cut=True)
    tokens = Tokens([1, 2, 3, 4], [0, 1, 1, 0], [0.0, -1.0, float("-inf"), 0.0], [-1, 0, 1, -1])
    row = endpoint_trajectory(
        task_id=HOSTILE, source=HOSTILE, turns=(turn,), tokens=tokens, answer=HOSTILE, error=HOSTILE
    ).to_dict()
    beside = {"advantage": 0.5, "question": HOSTILE, "gold": HOSTILE, "learner_logprobs": [float("nan"), -1.0]}
    rows = [
        row | beside | {"token_text": [HOSTILE] * 4},
        row | beside | {"task_id": "__proto__", "mode": "constructor"},
    ]
    for name in ("step_000001", "step_000002", f"eval_{HOSTILE[:60].replace('/', '')}_000001"):
        write_rows(folder / f"trajectories/{name}.jsonl", rows)
    write_rows(folder / "metrics.jsonl", [{"step": i, HOSTILE: i, f"eval/{HOSTILE}/score": 0.5} for i in (1, 2)])
    (folder / "recipe.yaml").write_text(HOSTILE.encode("utf-8", "replace").decode())
    (folder / "log.txt").write_text(HOSTILE.encode("utf-8", "replace").decode())
    write_rows(folder / "summary.json", [{"status": HOSTILE, "eval_before": {HOSTILE: 0}, "eval_after": {HOSTILE: 1}}])
    return folder


@pytest.mark.parametrize(
    "state", ["", "view=tokens", "q=%3Cimg&row=1", "row=99999&view=x&theme=%22%3E%3Cimg&stop=77&sort=-1"]
)
def test_hostile_text_runs_no_script(page: Page, tmp_path: Path, state: str) -> None:
    control = tmp_path / "control.html"
    control.write_text(f"<script>{OWNED.replace('alert(1)', '')}</script>")
    page.show(control)
    assert page.run("document.documentElement.dataset.owned") == "yes", "the method would see a script that ran"
    run = hostile_run(tmp_path / "run</title><script>alert(1)")
    files = [write_report(run), tmp_path / "compare.html"]
    other = hostile_run(tmp_path / "other")
    files[1].write_text(compare_page([run, other]), errors="replace")
    for file in files:
        opened(page, file, state)
        page.run("document.querySelectorAll('details').forEach(one => { one.open = true })")
        page.press("j", "t", "t")
        page.until("document.querySelector('.pane .body')")
        assert page.said == []
        assert page.run("document.documentElement.dataset.owned") is None
        assert page.run("document.querySelectorAll('img, iframe, object, link, form').length") == 0
        scripts = (
            "[...document.scripts].filter(one => one.type !== 'text/plain' && one.type !== 'application/json').length"
        )
        assert page.run(scripts) == 1
        text = page.run("document.getElementById('page').textContent")
        assert "⟨202e⟩" in text and "\u202e" not in text and "\x00" not in text and StopReason.FINISHED in text
