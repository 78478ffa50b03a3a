"""The page of live cameras in a real browser: what comes from real topics, behind the door that asks for a token.

`VECTORIZE_TEST_SCREENSHOTS` names a folder that the screenshots are kept in.
"""

import io
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, Locator, Page, expect

from tests.gateway.installations import NO_DAGSTER
from tests.gateway.page.site import ATTACKS
from tests.gateway.page.test_appearance import NARROW, looked_at
from tests.gateway.page.visit import WIDE, Watched
from tests.gateway.risk.assessor import Assessor
from tests.gateway.running import serving
from tests.messaging.assessed import result, task
from vectorize_pipelines.gateway.app import create_app
from vectorize_pipelines.gateway.door.tokens import Scope, Tokens, TokensFile
from vectorize_pipelines.gateway.routes import risk
from vectorize_pipelines.messaging.assessments import AssessmentTaskMessage, RiskAssessmentResultMessage
from vectorize_pipelines.settings import load_settings

#: What is assessed of some cameras: level, score, summary, hazards, recommendation.
JUDGED: list[tuple[str, str, float, str, list[str], str]] = [
    (
        "A12 northbound, km 31",
        "critical",
        0.94,
        "A cyclist rides on the hard shoulder against the traffic, at dusk and without lights.",
        ["cyclist on the motorway", "no lights"],
        "Close the right lane and send a patrol.",
    ),
    (
        "Harbour gate 3",
        "high",
        0.71,
        "A lorry backs across the crossing while two people on foot wait in its blind spot.",
        ["blind spot", "reversing lorry"],
        "Warn the driver by radio.",
    ),
    ("Market square", "medium", 0.48, "Dense crowd around a delivery van that moves at walking pace.", ["crowd"], ""),
    ("School road", "low", 0.22, "Three parked cars narrow the road; nobody is near the crossing.", [], ""),
    ("Tunnel exit", "none", 0.03, "Traffic flows freely in both lanes.", [], ""),
]


def scene(number: int) -> bytes:
    """A picture of a road with something on it."""
    picture = Image.new("RGB", (480, 270), (96 + 12 * number, 124, 150))
    draw = ImageDraw.Draw(picture)
    draw.polygon([(190, 90), (290, 90), (470, 270), (10, 270)], fill=(70, 72, 76))
    for top in range(100, 270, 34):
        draw.rectangle((237, top, 243, top + 16), fill=(225, 225, 215))
    draw.rectangle((150 + 35 * number, 150, 215 + 35 * number, 195), fill=(200, 60 + 30 * number, 50))
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=80)
    return content.getvalue()


SCENE = scene(0)
#: What the browser says of a WebSocket that the server refuses.
_REFUSED = "WebSocket connection to"
#: Opens the page at an address.
Visiting = Callable[..., AbstractContextManager[Page]]


@dataclass
class Site:
    """A server of an installation, and the token that opens it."""

    url: str
    token: str


@pytest.fixture
def site(assessor: Assessor) -> Iterator[Site]:
    settings = load_settings()
    token = TokensFile.of(settings).add("viewer", [Scope.READ])
    with serving(lambda address: create_app(settings, NO_DAGSTER, Tokens.open(settings), address)) as url:
        yield Site(url, token)


@pytest.fixture
def visiting(opened: Browser, site: Site) -> Visiting:
    """Signed in, at the page of cameras; nothing may go wrong in it, and nothing be asked of another server."""

    @contextmanager
    def visit(address: str = "/cameras") -> Iterator[Page]:
        context = opened.new_context(
            base_url=site.url,
            viewport={"width": WIDE[0], "height": WIDE[1]},
            locale="en-US",
            timezone_id="UTC",
        )
        context.set_default_timeout(60_000)
        page = context.new_page()
        watched = Watched(page)
        page.goto(address)
        page.get_by_label("Token").fill(site.token)
        page.keyboard.press("Enter")
        expect(page.locator("#connection")).to_have_text("Live")
        yield page
        context.close()
        assert [error for error in watched.errors if not error.startswith(_REFUSED)] == []
        assert watched.elsewhere(site.url) == []

    return visit


def card(page: Page, camera: str) -> Locator:
    return page.locator(".camera").filter(has=page.get_by_role("heading", name=camera, exact=True))


class Shift:
    """What is assessed before it is sent, all at once."""

    def __init__(self, assessor: Assessor) -> None:
        self._assessor = assessor
        self._tasks: list[AssessmentTaskMessage] = []
        self._results: list[RiskAssessmentResultMessage] = []

    def assess(self, camera: str, detection: int, *, groups: int = 1, image: bytes = SCENE, **said: Any) -> None:
        """A detection of now: the group 0 is as `said`, the others are harmless."""
        now = datetime.now(UTC) + timedelta(milliseconds=detection)
        harmless = {"risk_level": "none", "risk_score": 0.0, "summary": "Nothing is near."}
        figures = {"timestamp": now.isoformat(), "latency_ms": 812.0, "prompt_tokens": 900, "completion_tokens": 60}
        for group in range(groups):
            self._tasks.append(task(camera, detection, group, groups, image=image, timestamp=now))
            self._results.append(result(camera, detection, group, groups, **figures, **(harmless if group else said)))

    def send(self) -> None:
        """Send it."""
        self._assessor.send_tasks(*self._tasks)
        self._assessor.send_results(*self._results)
        self._tasks, self._results = [], []


@pytest.fixture
def shift(assessor: Assessor) -> Shift:
    return Shift(assessor)


def test_cameras_are_seen_live(visiting: Visiting, shift: Shift) -> None:
    with visiting() as page:
        expect(page.locator("#cameras-empty")).to_contain_text("Nothing has been assessed lately")
        for number, (camera, level, score, summary, hazards, recommendation) in enumerate(JUDGED):
            said = {"summary": summary, "hazards": hazards, "recommendation": recommendation}
            for detection in range(2):
                shift.assess(camera, detection, risk_level="low", risk_score=score / 3)
            shift.assess(camera, 2, groups=2, image=scene(number), **said, risk_level=level, risk_score=score)
        failed: dict[str, Any] = {
            "error": {"class": "InvalidAnswerError", "message": "it is no JSON"},
            "risk_level": None,
        }
        shift.assess("Yard", 0, risk_score=None, **failed)
        shift.send()
        expect(page.locator(".camera")).to_have_count(len(JUDGED) + 1)
        first = card(page, JUDGED[0][0])
        expect(first).to_have_attribute("data-level", "critical")
        expect(first.locator(".view .level")).to_have_text("Critical 0.94")
        expect(first.locator(".said > .summary")).to_have_text(JUDGED[0][3])
        expect(first.locator(".hazards li")).to_have_text(JUDGED[0][4])
        expect(first.locator(".history li")).to_have_count(3)
        expect(first.locator(".view img")).to_have_js_property("naturalWidth", 480)
        expect(page.locator("#alarm")).to_contain_text(re.compile("Critical|High"))
        expect(card(page, "Yard")).to_contain_text("Not assessed. InvalidAnswerError: it is no JSON")
        first.get_by_text("All 2 groups").click()
        expect(first.locator(".group").nth(1)).to_contain_text("Nothing is near.")
        expect(page.locator(".view img:visible")).to_have_count(len(JUDGED) + 1)
        assert looked_at(page, "cameras-light") > 140
        page.emulate_media(color_scheme="dark")
        assert looked_at(page, "cameras-dark") < 90
        page.set_viewport_size({"width": NARROW[0], "height": NARROW[1]})
        looked_at(page, "cameras-dark-narrow")


def test_cameras_are_chosen_and_ordered(visiting: Visiting, shift: Shift) -> None:
    with visiting() as page:
        for camera, level, score, *_ in JUDGED:
            shift.assess(camera, 0, risk_level=level, risk_score=score)
        shift.send()
        names = page.locator(".camera .name")
        by_name = sorted(each[0] for each in JUDGED)
        expect(names).to_have_text(by_name)
        expect(page.locator("#cameras-status")).to_have_text("5 cameras")
        page.get_by_label("Order").select_option("risk")
        expect(names).to_have_text([each[0] for each in JUDGED])
        page.get_by_label("Critical").check()
        page.get_by_label("High").check()
        expect(names).to_have_text([each[0] for each in JUDGED[:2]])
        expect(page.locator("#cameras-status")).to_have_text("2 of 5 cameras")
        page.get_by_label("Camera", exact=True).fill("harbour")
        expect(names).to_have_text(["Harbour gate 3"])
        shift.assess("Harbour gate 3", 1, risk_level="low", risk_score=0.1)
        shift.send()
        expect(page.locator("#cameras-empty")).to_have_text("No camera is so.")
    with visiting(address="/cameras?camera_id=School+road&camera_id=Tunnel+exit") as page:
        expect(page.locator(".camera .name")).to_have_text(["School road", "Tunnel exit"])


def test_an_open_card_holds_still(visiting: Visiting, shift: Shift) -> None:
    with visiting() as page:
        shift.assess("north", 0, groups=2, risk_level="low", risk_score=0.2, summary="before")
        shift.send()
        north = card(page, "north")
        north.get_by_text("All 2 groups").click()
        shift.assess("north", 1, groups=2, risk_level="critical", risk_score=0.9, summary="after")
        shift.send()
        expect(north.locator("summary")).to_have_text("Close to go on: 1 newer detection")
        expect(north.locator(".said > .summary")).to_have_text("before")
        north.locator("summary").click()
        expect(north.locator(".said > .summary")).to_have_text("after")
        expect(north).to_have_attribute("data-level", "critical")


def test_hostile_results_do_nothing(visiting: Visiting, shift: Shift) -> None:
    with visiting() as page:
        for number, attack in enumerate(ATTACKS):
            said = {"summary": attack, "hazards": [attack], "recommendation": attack, "model": attack}
            shift.assess(attack, number, groups=2, image=attack.encode(), **said)
        shift.send()
        expect(page.locator(".camera")).to_have_count(len(ATTACKS))
        expect(page.locator(".camera .no-picture:visible")).to_have_count(len(ATTACKS))
        for number in range(len(ATTACKS)):
            page.locator(".camera summary").nth(number).click()
        assert set(page.locator(".camera .name").all_text_contents()) == set(ATTACKS)
        assert page.locator(".camera script, .camera svg, .camera [onerror], .camera [onload]").count() == 0
        assert page.evaluate("window.hacked") is None


def test_it_says_when_the_session_is_over(visiting: Visiting, shift: Shift, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(risk, "HEARTBEAT_SECONDS", 0.1)
    with visiting() as page:
        shift.assess("north", 0)
        shift.send()
        expect(page.locator(".camera")).to_have_count(1)
        TokensFile.of(load_settings()).remove("viewer")
        expect(page.locator("#connection")).to_have_text("Signed out")
        expect(page.get_by_role("alert")).to_contain_text("Sign in")
