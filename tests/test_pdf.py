"""The pages as PDF: by Chromium where there is one, refused in plain words where there is none."""

import re
import shutil
import zlib

import pytest

from tools import pdf


def page(html, name, body):
    (html / "book").mkdir(parents=True, exist_ok=True)
    (html / "book" / f"{name}.html").write_text(f"<!doctype html><html lang='en'><title>{name}</title><body>{body}</body></html>")


def test_without_chromium_nothing_is_printed_and_the_way_out_is_said(tmp_path, monkeypatch, capsys):
    page(tmp_path / "html", "one", "Text.")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CHROMIUM", "no-such-program")
    monkeypatch.setattr(pdf, "BUILD", tmp_path)
    monkeypatch.setattr(pdf, "INDEX", tmp_path / "html" / "index.html")
    assert pdf.main([]) == 1
    assert "no Chromium: install one, or name its program in the variable CHROMIUM" in capsys.readouterr().err
    assert not (tmp_path / "pdf").exists()


def test_pages_that_are_not_there_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pdf, "INDEX", tmp_path / "index.html")
    assert pdf.main([]) == 1 and "run `make html`" in capsys.readouterr().err
    page(tmp_path, "one", "Text.")
    with pytest.raises(SystemExit):
        pdf.main(["two"])
    assert "no page two; there are one" in capsys.readouterr().err


@pytest.mark.slow
def test_each_page_becomes_a_file_with_all_its_text(tmp_path):
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        pytest.skip("no Chromium")
    later = "new Promise(done => setTimeout(() => { document.body.style.height = '9000px'; done(); }, 500))"
    page(tmp_path, "one", f"<h1>One</h1>Text.<script>window.MathJax = {{startup: {{promise: {later}}}}}</script>")
    page(tmp_path, "two", "<h1>Two</h1>")
    (tmp_path / "pdf").mkdir()
    (tmp_path / "pdf" / "old.pdf").touch()
    pdf.print_pages(pdf.pages(tmp_path), tmp_path / "pdf")
    assert sorted(path.name for path in (tmp_path / "pdf").iterdir()) == ["one.pdf", "two.pdf"]
    content = (tmp_path / "pdf" / "one.pdf").read_bytes()
    assert content.startswith(b"%PDF-") and len(re.findall(rb"/Type\s*/Page\b", content)) >= 5  # it waited for MathJax
    streams = [zlib.decompress(found) for found in re.findall(rb"stream\r?\n(x.*?)\r?\nendstream", content, re.DOTALL)]
    assert any(b"Tj" in stream or b"TJ" in stream for stream in streams)  # text, and no picture of it
    assert sorted(path.name for path in tmp_path.iterdir()) == ["book", "pdf", "pdf-work.lock"]
