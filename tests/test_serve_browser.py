"""The page in headless Chromium against a real server: connect, see frames, speak, interrupt, end."""

from __future__ import annotations

import shutil
import socket
import time

import pytest
from live_doubles import serving

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
for needed in ("fastapi", "uvicorn", "aiortc", "prometheus_client"):
    pytest.importorskip(needed, reason="the serve extra is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("chromium is not installed: apt-get install chromium", allow_module_level=True)

FLAGS = (
    "--no-sandbox",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--autoplay-policy=no-user-gesture-required",
)
PATIENCE = 60_000  # ms; a loaded machine is slow to start


@pytest.fixture(scope="module")
def server():
    with serving("live_server.py") as address:
        yield address


@pytest.fixture(scope="module")
def page(server):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        page.set_default_timeout(PATIENCE)
        page.problems = []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        yield page
        browser.close()


def begin(page, address):
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    page.click("#start")
    page.wait_for_selector('#status[data-state="live"]')


def until(page, expression):
    """Poll from here: the page's own policy forbids evaluating strings inside it."""
    end = time.monotonic() + PATIENCE / 1000
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"never came true: {expression}"
        page.wait_for_timeout(50)


def says(page, word):
    until(page, f"document.querySelector('#detail').textContent.includes('{word}')")


def test_a_conversation_by_webrtc(page, server):
    begin(page, server)
    video = "document.querySelector('#video')"
    until(page, f"{video}.videoWidth === 256")
    until(page, f"{video}.getVideoPlaybackQuality().totalVideoFrames > 20")
    page.fill("#text", "hello")
    page.keyboard.press("Enter")
    says(page, "speaking")
    page.click("#interrupt")
    says(page, "idle")
    page.click("#mic")
    page.wait_for_selector('#mic[aria-pressed="true"]')
    says(page, "speaking")
    page.keyboard.press("Escape")
    assert "WebRTC" in page.inner_text("#detail")
    page.click("#end")
    page.wait_for_selector("#start:visible")
    assert not page.problems


def test_a_conversation_by_websocket(page, server):
    begin(page, server + "/?socket")
    until(page, "document.querySelector('#canvas').width === 256")
    says(page, "WebSocket")
    until(page, "parseFloat(document.querySelector('#fps').textContent) > 5")
    page.click("#end")
    page.wait_for_selector("#start:visible")
    assert not page.problems


def test_a_client_that_dawdles_is_shown_out(server):
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        assert slow.recv(100) == b"", "closed without an answer"


def test_the_page_fits_a_phone_and_names_its_controls(page, server):
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(server)
    page.wait_for_selector("body[data-ready]")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert "Synthetic face" in page.inner_text("header")
    nameless = page.evaluate(
        """[...document.querySelectorAll("button, input, textarea, select")].filter(e =>
            !(e.textContent.trim() || e.labels?.length || e.ariaLabel || e.ariaHidden)).length"""
    )
    assert nameless == 0
    small = page.evaluate(
        """[...document.querySelectorAll("button")].filter(e =>
            e.offsetHeight && e.offsetHeight < 44).map(e => e.id)"""
    )
    assert small == []
    reached = set()
    for _ in range(25):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.dataset.id"))
    assert {"start", "photo"} - reached <= {"photo"}, "the keyboard reaches the conversation"
