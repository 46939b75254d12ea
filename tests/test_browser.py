"""What the browser's fixture finds in a page with faults, and in one without."""

import browser

GOOD = "<!doctype html><html lang=en><title>t</title><main><h1>t</h1><p>text</p></main></html>"


def test_a_page_without_fault_and_one_with_each(chromium, tmp_path):
    (tmp_path / "good.html").write_text(GOOD)
    with browser.opened(chromium, tmp_path / "good.html", width=400, dark=True) as page:
        assert page.faults == page.violations() == []
        assert not page.overflows()
    bad = (
        "<img src='http://localhost:9/x.png'><div style='width: 900px'>w</div><script>f()</script>"
    )
    (tmp_path / "bad.html").write_text(GOOD.replace("<p>", bad))
    with browser.opened(chromium, tmp_path / "bad.html", width=400) as page:
        page.tab.wait_for_timeout(100)
        assert {fault.split(":")[0] for fault in page.faults} >= {"request", "exception"}
        assert any("image-alt" in one for one in page.violations())
        assert page.overflows()
