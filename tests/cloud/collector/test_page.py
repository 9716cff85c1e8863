"""The fleet page: self-contained, unable to run what a device sends, and, where there is a Chromium, seen to work."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from edgekit.cloud.collector._http import load_page

HOSTILE = "<img src=x onerror=\"document.title='owned'\"></td><script>document.title='owned'</script>"


def test_nothing_is_fetched_from_elsewhere():
    text, _ = load_page()
    page = text.decode()

    found = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag, attrs):
            found.extend((tag, name, value) for name, value in attrs if name in ("src", "href", "srcset", "style") or name.startswith("on"))

    Parser().feed(page)
    assert found == []
    assert set(re.findall(r"https?://[^\s\"'`]+", page)) == {"http://www.w3.org/2000/svg"}, "the name of SVG's namespace"
    assert "@import" not in page
    assert "url(" not in page


def test_no_text_is_ever_parsed_as_html_or_code():
    page = load_page()[0].decode()
    for sink in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "DOMParser",
        "createContextualFragment",
        "srcdoc",
    ):
        assert sink not in page


def test_policy_allows_the_pages_own_script_and_style_by_hash_only():
    _, policy = load_page()
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-[^']+';", policy)
    assert re.search(r"style-src 'sha256-[^']+';", policy)
    assert "unsafe" not in policy


def dump(url, tmp_path, until):
    """The page's document once it holds ``until``; on a busy machine the browser may give up before the collector has answered, so it is asked again."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium to look at the page with")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    shown = ""
    for budget_ms in (3000, 10_000, 30_000, 30_000):
        options = [f"--user-data-dir={tmp_path}", f"--virtual-time-budget={budget_ms}", "--dump-dom", url]
        shown = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60, check=True).stdout
        if until in shown:
            break
    return shown


@pytest.mark.slow
def test_in_a_browser_empty_then_with_a_hostile_device(client, otlp, tmp_path):
    empty = dump(client.collector.url, tmp_path, '<section class="card empty" id="empty">')
    assert re.search(r'<section class="card empty" id="empty">', empty), "shown"
    assert f"edgekit serve BUNDLE --collector {client.collector.url}" in empty

    def fill(meter):
        for tier in (HOSTILE, "edge"):
            attributes = {"edgekit.model": HOSTILE, "edgekit.model.version": HOSTILE, "edgekit.tier": tier, "edgekit.outcome": "ok"}
            meter.histogram("edgekit.request.duration").record(0.0123, attributes)
        meter.counter("edgekit.route.requests").add(1, {"edgekit.tier": "edge", "edgekit.sla": "met", "edgekit.outcome": "ok"})

    source = otlp.resource(HOSTILE, "b", "edgekit-router", **{"edgekit.device_profile": HOSTILE, "edgekit.bundle.digest": HOSTILE})
    (body,) = otlp.metrics(fill, source, client.now_ms())
    assert client.post("metrics", body).status == 200
    assert client.post("logs", otlp.receipt({"verified": HOSTILE}, source, client.now_ms())).status == 200
    shown = dump(client.collector.url, tmp_path, "&lt;img src=x")
    assert "<title>EdgeKit fleet</title>" in shown, "the device's script did not run"
    assert "<img" not in shown
    assert shown.count("<script>") == 1
    assert shown.count("&lt;img src=x") >= 4
    assert re.search(r'id="empty" hidden', shown)
    assert 'class="series edge p99"' in shown
    assert re.search(r'<td class="num">12\.\d</td>', shown), "p95 in ms"
