"""The page's list of requests in a real browser: what it shows, how it follows changes, and how one is cancelled."""

from collections.abc import Callable
from http import HTTPStatus

from playwright.sync_api import Page, expect

from tests.gateway.page.site import ATTACKS, RUN
from tests.gateway.page.visit import Visit, Visiting
from vectorize_pipelines.gateway.door.auth import Caller, Scope
from vectorize_pipelines.gateway.problems import Problem


def test_requests_are_listed_with_what_became_of_them(visit: Visit) -> None:
    page = visit.page
    visit.open("/?tab=requests")
    expect(page.get_by_role("tab", name="Requests")).to_have_attribute("aria-selected", "true")
    expect(page.locator(".task")).to_have_count(50)
    expect(page.locator("#requests-status")).to_have_text("50 of 125 requests")
    for state, count in {"All": 125, "Pending": 1, "Processing": 1, "Completed": 121, "Failed": 1}.items():
        expect(page.locator("#states label").filter(has_text=state)).to_have_text(f"{state} {count}")

    waiting, busy, failed, done = (visit.request(f"order-{number}") for number in (505, 504, 503, 501))
    expect(waiting.locator(".state")).to_have_text("Pending")
    expect(waiting.get_by_role("link")).to_have_count(0)
    expect(busy.get_by_role("progressbar")).to_have_js_property("value", 0.42)
    expect(busy).to_contain_text("42%")
    expect(busy).to_contain_text("400 items")
    expect(failed).to_contain_text("UnreadableFileError: https://example.com/a.pdf: the server answers 404")
    expect(done.locator(".facts")).to_contain_text("1 vector")
    expect(done.locator(".facts")).to_contain_text("took 1.2 s")
    expect(done.get_by_role("link", name="Run in Dagster")).to_have_attribute("href", f"/dagster/runs/{RUN}")
    expect(page.get_by_role("button", name="Cancel order-")).to_have_count(2)


def test_requests_of_one_state_and_more_of_them(visit: Visit) -> None:
    page = visit.page
    visit.open("/?tab=requests")
    page.locator("#states").get_by_label("All").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".task")).to_have_count(1)
    expect(page.locator(".task .id")).to_have_text("order-505")
    assert visit.parameters() == {"tab": "requests", "state": "pending"}
    page.locator("#states label").filter(has_text="Completed").click()
    expect(page.locator("#requests-status")).to_have_text("50 of 121 requests")
    more = page.get_by_role("button", name="Load more")
    more.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".task")).to_have_count(100)
    expect(more).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".task")).to_have_count(121)
    expect(more).to_be_hidden()
    expect(page.locator("#requests-status")).to_have_text("121 requests")
    expect(visit.request("order-21").locator(".id")).to_be_focused()
    page.go_back()
    expect(page.locator(".task .id")).to_have_text("order-505")
    visit.open("/?tab=requests&state=cancelled")
    expect(page.locator(".task .id")).to_have_text("order-502")
    expect(page.locator("#states").get_by_label("Cancelled")).to_be_checked()


def test_changes_are_shown_as_they_come(visit: Visit) -> None:
    page = visit.page
    visit.open("/?tab=requests")
    expect(page.locator("#connection")).to_have_text("Live")
    busy = visit.request("order-504")
    expect(busy.locator(".state")).to_have_text("Processing")
    busy.locator(".id").evaluate("node => { window.before = node; }")
    visit.site.change("order-504", "completed", progress=1.0, result={"collection": "notes", "vector_count": 400})
    expect(busy.locator(".state")).to_have_text("Completed")
    expect(busy).to_contain_text("400 vectors")
    expect(busy.get_by_role("progressbar")).to_be_hidden()
    expect(busy.get_by_role("button")).to_have_count(0)
    expect(page.locator("#states label").filter(has_text="Completed")).to_have_text("Completed 122")
    assert busy.locator(".id").evaluate("node => node === window.before")  # it is the same element


def test_a_new_request_and_its_progress_are_shown(visit: Visit) -> None:
    visit.open("/?tab=requests")
    expect(visit.page.locator("#connection")).to_have_text("Live")
    expect(visit.page.locator(".task")).to_have_count(50)
    visit.page.get_by_role("button", name="Load more").click()
    expect(visit.page.locator(".task")).to_have_count(100)
    visit.site.tasks.insert(0, {**visit.site.tasks[0], "task_id": "order-506"})
    visit.site.change("order-506", "processing", progress=0.1)
    new = visit.request("order-506")
    expect(new.locator(".state")).to_have_text("Processing")
    expect(visit.page.locator(".task")).to_have_count(101)  # what was loaded before stays, and none is there twice
    visit.site.change("order-506", "processing", progress=0.75, says=False)
    expect(new).to_contain_text("75%")


def test_what_leaves_a_filtered_list_takes_the_focus_on(visit: Visit) -> None:
    page = visit.page
    visit.site.change("order-505", "processing", says=False, run_id=RUN)
    visit.open("/?tab=requests&state=processing")
    expect(page.locator("#connection")).to_have_text("Live")
    expect(page.locator(".task")).to_have_count(2)
    visit.request("order-505").get_by_role("link").focus()
    visit.site.change("order-505", "completed")
    expect(page.locator(".task")).to_have_count(1)
    expect(visit.request("order-504").locator(".id")).to_be_focused()


def test_a_broken_connection_comes_back_and_nothing_is_missed(visiting: Visiting) -> None:
    visit = visiting()
    connection = visit.page.locator("#connection")
    visit.open("/?tab=requests")
    expect(connection).to_have_text("Live")
    visit.site.failures["/events"] = Problem(HTTPStatus.SERVICE_UNAVAILABLE, "the cluster does not answer")
    visit.site.send(None)
    expect(connection).to_have_text("Reconnecting…")
    visit.site.change("order-505", "failed", says=False, error={"class": "ItemError", "message": "too long"})
    del visit.site.failures["/events"]
    expect(connection).to_have_text("Live")
    expect(visit.request("order-505")).to_contain_text("ItemError: too long")


def test_after_a_reset_the_list_is_asked_for_again(visit: Visit) -> None:
    visit.open("/?tab=requests&state=pending")
    expect(visit.page.locator("#connection")).to_have_text("Live")
    expect(visit.page.locator(".task")).to_have_count(1)
    visit.site.change("order-505", "cancelled", says=False)
    visit.site.send("event: reset\ndata: {}\n\n")
    expect(visit.page.locator(".task")).to_have_count(0)
    expect(visit.page.get_by_text("No request is pending.")).to_be_visible()


def test_a_request_is_cancelled_once_that_is_confirmed(visit: Visit) -> None:
    page, press = visit.page, visit.page.keyboard.press
    visit.open("/?tab=requests")
    waiting = visit.request("order-505")
    cancel = waiting.get_by_role("button", name="Cancel order-505")
    cancel.press("Enter")
    dialog = page.get_by_role("dialog", name="Cancel this request?")
    expect(dialog).to_contain_text("order-505")
    expect(dialog.get_by_role("button", name="Let it go on")).to_be_focused()
    press("Escape")
    expect(dialog).to_be_hidden()
    expect(cancel).to_be_focused()
    press("Enter")
    press("Enter")  # Let it go on
    expect(dialog).to_be_hidden()
    expect(waiting.locator(".state")).to_have_text("Pending")
    press("Enter")
    press("Tab")
    press("Enter")
    expect(waiting.locator(".state")).to_have_text("Cancelled")
    expect(cancel).to_be_hidden()
    expect(waiting.locator(".id")).to_be_focused()


def test_a_cancellation_that_comes_too_late_is_said_in_words(visiting: Visiting) -> None:
    visit = visiting()
    visit.open("/?tab=requests")
    visit.site.failures["/tasks/order-504"] = Problem(HTTPStatus.CONFLICT, "order-504 is completed")
    _cancel(visit, "order-504")
    expect(visit.request("order-504").get_by_role("alert")).to_have_text("order-504 is completed.")


def test_who_may_not_cancel_is_told_and_not_asked_again(visiting: Visiting) -> None:
    visit = visiting()
    visit.open("/?tab=requests")
    detail = "the token 'reader' lacks the scope submit"
    visit.site.failures["/tasks/order-504"] = Problem(HTTPStatus.FORBIDDEN, detail)
    _cancel(visit, "order-504")
    expect(visit.request("order-504").get_by_role("alert")).to_have_text(f"{detail}.")
    expect(visit.page.get_by_role("button", name="Cancel order-")).to_have_count(0)


def _cancel(visit: Visit, task_id: str) -> None:
    visit.page.get_by_role("button", name=f"Cancel {task_id}").click()
    visit.page.get_by_role("button", name="Cancel the request").click()


def test_a_reader_has_no_button_to_cancel_and_one_to_sign_out(visit: Visit) -> None:
    visit.site.caller = Caller.of("reader", Scope.READ)
    visit.open("/?tab=requests")
    expect(visit.page.get_by_role("button", name="Sign out")).to_contain_text("reader")
    expect(visit.page.locator(".task")).to_have_count(50)
    expect(visit.page.get_by_role("button", name="Cancel order-")).to_have_count(0)


def test_without_tokens_nobody_signs_out(visit: Visit) -> None:
    visit.open("/?tab=requests")
    expect(visit.page.get_by_role("button", name="Cancel order-")).to_have_count(2)
    expect(visit.page.get_by_role("button", name="Sign out")).to_have_count(0)


def test_when_the_session_ends_it_leads_to_the_sign_in(visiting: Visiting) -> None:
    visit = visiting()
    visit.open("/?tab=requests&state=completed")
    expect(visit.page.locator("#connection")).to_have_text("Live")
    visit.site.caller = None
    visit.site.send(None)
    link = visit.page.get_by_role("alert").get_by_role("link", name="Sign in")
    expect(link).to_have_attribute("href", "/signin?next=%2F%3Ftab%3Drequests%26state%3Dcompleted")
    expect(visit.page.locator("#connection")).to_have_text("Signed out")


def test_nothing_in_a_request_becomes_markup_or_a_script(visit: Visit) -> None:
    template = visit.site.tasks[0]
    error = {"class": ATTACKS[0], "message": ATTACKS[1]}
    visit.site.tasks = [
        {**template, "task_id": attack, "status": "failed", "error": error, "collection": attack, "run_id": attack}
        for attack in ATTACKS
    ]
    visit.site.tasks.append({**template, "task_id": "waits", "task_type": ATTACKS[0]})
    visit.open("/?tab=requests")
    expect(visit.page.locator(".task .id")).to_have_text([*ATTACKS, "waits"])
    visit.page.get_by_role("button", name="Cancel waits").click()
    expect(visit.page.locator("#cancel-id")).to_have_text("waits")
    assert visit.page.locator(".task script, .task svg, .task img").count() == 0
    assert visit.page.evaluate("window.hacked") is None


def test_a_hidden_tab_follows_nothing(visit: Visit) -> None:
    visit.open("/?tab=requests")
    expect(visit.page.locator("#connection")).to_have_text("Live")
    assert len(visit.site.streams) == 1
    visit.page.get_by_role("tab", name="Search").click()
    visit.search("boat")  # an answer that came after the stream was closed
    visit.page.wait_for_function("() => true")
    _until(visit.page, lambda: not visit.site.streams)


def _until(page: Page, holds: Callable[[], bool]) -> None:
    for _ in range(1200):
        if holds():
            return
        page.wait_for_timeout(50)
    raise AssertionError("it did not happen")
